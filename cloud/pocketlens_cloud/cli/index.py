"""`pocketlens-cloud index`: flags, progress and the report."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlens_cloud.cli.root import AsJson, Bundle, Precision, app, err, out, plain_errors

if TYPE_CHECKING:
    from pocketlens_cloud.indexing.ingest import IngestReport

MAX_UNREADABLE_SHOWN = 20
PLAIN_PROGRESS_EVERY_S = 2.0


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures, searched recursively.")],
    gallery: Annotated[Path, typer.Option(help="Gallery directory; made if it is not there.")],
    bundle: Bundle = None,
    payload: Annotated[
        Path | None,
        typer.Option(help="What to store with each picture (default: DIR/payload.jsonl).", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures per model run and per journal entry.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads (default: all cores).", show_default=False)
    ] = None,
    precision: Precision = "fp32",
    allow_unreadable: Annotated[int, typer.Option(min=0, metavar="N", help="Exit 0 with up to N bad pictures.")] = 0,
    prune: Annotated[bool, typer.Option("--prune", help="Remove pictures whose file is gone from DIR.")] = False,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read every file again, whatever its time says.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a gallery in line with a folder of pictures.

    Kill it and run it again as you like: what is done is skipped, changed files are replaced, nothing
    is stored twice. Unreadable pictures are listed at the end and make the exit code 1 unless allowed.

    Lines of payload.jsonl name a picture and what a filter may ask for:

    {"file": "shoes/0001.jpg", "payload": {"kind": "shoe", "price": 59.9, "in_stock": true}}

    [bold]Examples[/bold]

    pocketlens-cloud index ~/Pictures --gallery ./gallery

    pocketlens-cloud index shop/ --gallery ./shop-gallery --payload shop.jsonl --allow-unreadable 5

    pocketlens-cloud index shop/ --gallery ./shop-gallery --prune
    """
    with plain_errors():
        from pocketlens_wire.bundle import default_bundle

        from pocketlens_cloud.indexing import ingest

        if payload is None and (found := ingest.default_payload(folder)):
            err.print(f"payload from {found}", markup=False)
        with progress() as on_progress:
            report = ingest.index(
                folder,
                gallery,
                bundle or default_bundle(),
                payload=payload,
                batch=batch,
                threads=threads,
                precision=precision,
                prune=prune,
                rehash=rehash,
                on_progress=on_progress,
            )
        if as_json:
            out.print_json(json.dumps({**asdict(report), "merged": report.merged}))
        else:
            print_report(report, f"gallery {gallery}")
        list_lines("unreadable", [f"{file}: {reason}" for file, reason in report.unreadable])
        if len(report.unreadable) > allow_unreadable:
            err.print(f"{len(report.unreadable)} unreadable, {allow_unreadable} allowed", style="red", markup=False)
            raise typer.Exit(1)


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
        list_lines("no longer in the folder (remove them with --prune)", report.gone)
    list_lines("named in the payload but not in the folder", report.unused_payload)
    list_lines(
        "payload not used, the same picture has another", [f"{file} = {first}" for file, first in report.lost_payload]
    )
    out.print(
        f"{title}: {report.size} pictures, generation {report.generation}",
        markup=False,
        highlight=False,
    )


def list_lines(what: str, lines: list[str]) -> None:
    if not lines:
        return
    err.print(f"{what} ({len(lines)}):", markup=False, highlight=False)
    for line in lines[:MAX_UNREADABLE_SHOWN]:
        err.print(f"  {line}", markup=False, highlight=False)
    if len(lines) > MAX_UNREADABLE_SHOWN:
        err.print(f"  and {len(lines) - MAX_UNREADABLE_SHOWN} more (all of them with --json)", markup=False)
