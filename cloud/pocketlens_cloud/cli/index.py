"""`pocketlens-cloud index`: flags, progress and the report."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_cloud.cli.root import AsJson, Bundle, Precision, app, err, fail, out, plain_errors
from pocketlens_cloud.gallery.payload import shown

if TYPE_CHECKING:
    from pocketlens_cloud.indexing.ingest import IngestReport


class Decode(StrEnum):
    THREADS = "threads"
    PROCESSES = "processes"


class Engine(StrEnum):
    LOCAL = "local"
    RAY = "ray"


MAX_UNREADABLE_SHOWN = 20
PLAIN_PROGRESS_EVERY_S = 2.0


@app.command()
def index(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of pictures, list file, 'shards/*.tar', or s3://bucket/....")
    ],
    gallery: Annotated[Path, typer.Option(help="Gallery directory; made if it is not there.")],
    bundle: Bundle = None,
    payload: Annotated[
        Path | None,
        typer.Option(help="What to store with each picture (default: DIR/payload.jsonl).", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures per model run and per journal entry.")] = 64,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of the model, and pictures decoded at once (default: all cores).", show_default=False
        ),
    ] = None,
    decode: Annotated[
        Decode | None,
        typer.Option(
            help="Decode in threads or in processes (default: processes where there is much to read).",
            show_default=False,
        ),
    ] = None,
    precision: Precision = "fp32",
    allow_unreadable: Annotated[int, typer.Option(min=0, metavar="N", help="Exit 0 with up to N bad pictures.")] = 0,
    prune: Annotated[bool, typer.Option("--prune", help="Remove pictures whose file is gone from SOURCE.")] = False,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read every file again, whatever its time says.")] = False,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="COSINE",
            show_default=False,
            help="Report pictures at least so near to each other, as 0.98; nothing is removed.",
        ),
    ] = None,
    near_duplicates_to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="That report, .json or .csv (default: near-duplicates.json in the gallery's directory).",
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            show_default=False,
            help="Go on: look so often whether SOURCE changed, and index what did.",
        ),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="local, or ray: the machines of a Ray cluster.")] = Engine.LOCAL,
    as_json: AsJson = False,
) -> None:
    """Bring a gallery in line with a folder of pictures, or another source of them.

    Kill it and run it again as you like: what is done is skipped, changed files are replaced, nothing
    is stored twice. Unreadable pictures are listed at the end and make the exit code 1 unless allowed.

    Lines of payload.jsonl name a picture and what a filter may ask for:

    {"file": "shoes/0001.jpg", "payload": {"kind": "shoe", "price": 59.9, "in_stock": true}}

    [bold]Examples[/bold]

    pocketlens-cloud index ~/Pictures --gallery ./gallery

    pocketlens-cloud index shop/ --gallery ./shop-gallery --payload shop.jsonl --allow-unreadable 5

    pocketlens-cloud index shop/ --gallery ./shop-gallery --prune

    pocketlens-cloud index 'shards/*.tar' --gallery ./gallery --near-duplicates 0.98

    pocketlens-cloud index ~/Pictures --gallery ./gallery --watch 10
    """
    if near_duplicates_to and near_duplicates is None:
        raise typer.BadParameter("needs --near-duplicates", param_hint="--near-duplicates-to")
    with plain_errors():
        from pocketlens_wire.bundle import default_bundle

        from pocketlens_cloud.gallery.folder import is_versioned
        from pocketlens_cloud.indexing import ingest

        if is_versioned(gallery):
            fail(
                f"{gallery} has versions, and those are not changed; build the next one: "
                f"`pocketlens-cloud gallery build {gallery} DIR`"
            )
        if payload is None and (found := ingest.default_payload(Path(source))):
            err.print(f"payload from {found}", markup=False)
        near = None
        if near_duplicates is not None:
            near = ingest.NearDuplicates(near_duplicates, near_duplicates_to or gallery / "near-duplicates.json")

        def once() -> "IngestReport":
            with progress() as on_progress:
                return ingest.index(
                    source, gallery, bundle or default_bundle(), payload=payload, batch=batch, threads=threads,
                    decode=decode.value if decode else None, precision=precision, prune=prune, rehash=rehash, near=near,
                    engine=engine.value, on_progress=on_progress,
                )  # fmt: skip

        def tell(report: "IngestReport") -> None:
            if as_json:
                out.print_json(json.dumps({**asdict(report), "merged": report.merged}))
            else:
                print_report(report, f"gallery {gallery}")
            if near:
                err.print(f"{report.near_duplicates} near duplicates, see {near.report}", markup=False, highlight=False)
            list_lines("unreadable", [f"{file}: {reason}" for file, reason in report.unreadable])

        if watch:
            _watch(source, once, tell, watch)
            return
        report = once()
        tell(report)
        if len(report.unreadable) > allow_unreadable:
            said = f"{len(report.unreadable)} unreadable, {allow_unreadable} allowed (--allow-unreadable)"
            err.print(said, style="red", markup=False)
            raise typer.Exit(1)


def _watch(
    source: str, once: "Callable[[], IngestReport]", tell: "Callable[[IngestReport], None]", every_s: float
) -> None:
    """Until SIGTERM, or Ctrl-C, which ends a run where it is."""
    import signal
    import threading

    from pocketlens_cloud.indexing.watching import watch

    def tell_trouble(error: Exception) -> None:
        err.print(f"{shown(str(error))}; trying again", style="yellow", markup=False, highlight=False)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    watch(source, once, every_s=every_s, stop=stop, on_report=tell, on_trouble=tell_trouble)


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left on a terminal, a plain line every few seconds elsewhere."""
    if not err.is_terminal:
        yield _plain_progress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(TextColumn("indexing"), *columns, console=err) as bar:
        task = bar.add_task("indexing", total=None, rate="")
        started = time.monotonic()

        def on_progress(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-6)
            bar.update(task, completed=done, total=total, rate=f"{rate:.0f} pictures/s")

        yield on_progress


def _plain_progress() -> Callable[[int, int], None]:
    started = told = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < PLAIN_PROGRESS_EVERY_S and done < total:
            return
        told = now
        rate = done / max(now - started, 1e-6)
        err.print(
            f"{done}/{total} pictures, {rate:.0f}/s, {(total - done) / rate:.0f} s left",
            markup=False,
            highlight=False,
        )

    return on_progress


def print_report(report: "IngestReport", title: str) -> None:
    counts = {
        "indexed": report.indexed,
        "already there": report.skipped,
        "with new payload": report.relabelled,
        "same bytes as another file": report.merged,
        "replaced": report.replaced,
        "pruned": report.pruned,
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to do"
    out.print(f"{told}", markup=False, highlight=False)
    list_lines("same bytes", [f"{file} = {first}" for file, first in report.duplicates])
    if not report.pruned:
        list_lines("no longer in the source (remove them with --prune)", report.gone)
    list_lines("named in the payload but not in the source", report.unused_payload)
    list_lines(
        "payload not used, the same picture has another", [f"{file} = {first}" for file, first in report.lost_payload]
    )
    out.print(
        f"{title}: {report.size} pictures, generation {report.generation}",
        markup=False,
        highlight=False,
    )


def list_lines(what: str, lines: list[str]) -> None:
    """At most MAX_UNREADABLE_SHOWN lines of names and reasons; names are foreign text."""
    if not lines:
        return
    err.print(f"{what} ({len(lines)}):", markup=False, highlight=False)
    for line in lines[:MAX_UNREADABLE_SHOWN]:
        err.print(f"  {shown(line)}", markup=False, highlight=False)
    if len(lines) > MAX_UNREADABLE_SHOWN:
        err.print(f"  and {len(lines) - MAX_UNREADABLE_SHOWN} more (all of them with --json)", markup=False)
