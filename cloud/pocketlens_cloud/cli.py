"""pocketlens-cloud: index, serve, describe, doctor.

Owns flags, messages and exit codes: 0 done, 1 done but something is wrong with what was found,
2 could not be done. Each command imports what it needs, so that --help is quick."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pocketlens_wire.errors import PocketlensError, Unavailable, error_from_status
from rich.console import Console

if TYPE_CHECKING:
    from pocketlens_cloud.compose import Composer
    from pocketlens_cloud.gallery import Gallery
    from pocketlens_cloud.ingest import IngestReport
    from pocketlens_cloud.server import Front
    from pocketlens_cloud.service import Service

app = typer.Typer(
    name="pocketlens-cloud",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""The cloud side of Pocketlens: index pictures into a gallery, answer composed queries over gRPC.

    [bold]Start here[/bold]

    pocketlens-cloud index ~/Pictures --gallery ./gallery

    pocketlens-cloud serve --gallery ./gallery

    Then, on the device: pocketlens-edge search photo.jpg --text "in red" --server 127.0.0.1:50551""",
)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

MAX_UNREADABLE_SHOWN = 20
PLAIN_PROGRESS_EVERY_S = 2.0

Bundle = Annotated[
    Path | None,
    typer.Option(help="Bundle folder (default: $POCKETLENS_BUNDLE, else the sample bundle).", show_default=False),
]
Precision = Annotated[
    str,
    typer.Option(help="Form of the tower to run: fp32, or int8 where the bundle has it (faster, nearly the same)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


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
    with _plain_errors():
        from pocketlens_wire.bundle import default_bundle

        from pocketlens_cloud import ingest

        if payload is None and (found := ingest.default_payload(folder)):
            err.print(f"payload from {found}", markup=False)
        with _progress() as on_progress:
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
            _print_report(report, gallery)
        _list("unreadable", [f"{file}: {reason}" for file, reason in report.unreadable])
        if len(report.unreadable) > allow_unreadable:
            err.print(f"{len(report.unreadable)} unreadable, {allow_unreadable} allowed", style="red", markup=False)
            raise typer.Exit(1)


@app.command()
def serve(
    gallery: Annotated[Path, typer.Option(help="Gallery directory made by `index`.")],
    bundle: Bundle = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 lets the system choose.")] = 50551,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of one model run (default: up to 4).", show_default=False),
    ] = None,
    precision: Precision = "fp32",
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Write host:port here once ready; removed at the end.", show_default=False),
    ] = None,
    insecure_listen: Annotated[
        bool, typer.Option("--insecure-listen", help="Allow a --host others can reach, without encryption.")
    ] = False,
    web: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Also serve the page here: the device's part in a browser.", show_default=False
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder that was indexed, so that the page can show the hits.", show_default=False),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Answer composed queries over gRPC until SIGTERM or Ctrl-C.

    One line on stdout says when it is ready and where. Stopping finishes the calls in flight.

    With --web a browser can ask too: the page turns the picture into tokens itself and sends only those.

    [bold]Examples[/bold]

    pocketlens-cloud serve --gallery ./gallery

    pocketlens-cloud serve --gallery ./gallery --web 127.0.0.1:8080 --pictures ~/Pictures

    pocketlens-cloud serve --gallery ./gallery --port 0 --ready-file ./address
    """
    if log_level.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter("use debug, info, warning or error", param_hint="--log-level")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _plain_errors():
        _guard_host(host, insecure_listen)
        if pictures and not web:
            raise typer.BadParameter("is for the page: give --web too", param_hint="--pictures")
        page = _address(web) if web else None
        if page:
            _guard_host(page[0], insecure_listen)
        _serve(gallery, bundle, host, port, threads, precision, ready_file, page, pictures)


@app.command()
def describe(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="A running server.")] = "127.0.0.1:50551",
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Ask a running server what it speaks and allows.

    [bold]Example[/bold]

    pocketlens-cloud describe --server 127.0.0.1:50551 --json
    """
    with _plain_errors():
        facts = _ask_describe(server, timeout_s)
        if as_json:
            out.print_json(json.dumps(facts))
            return
        for name, value in facts.items():
            said = ", ".join(map(str, value)) if isinstance(value, list) else value
            out.print(f"{name:>18}  {said}", markup=False, highlight=False)


@app.command()
def doctor(
    bundle: Bundle = None,
    gallery: Annotated[Path | None, typer.Option(help="Also examine this gallery.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Prove the bundle (and a gallery) on this machine.

    Checks every hash, replays the bundle's golden vectors through the real towers and heads, names the
    execution provider and the versions. Exit code 1 if anything is not as it should be.

    [bold]Example[/bold]

    pocketlens-cloud doctor --gallery ./gallery
    """
    with _plain_errors():
        from pocketlens_wire.bundle import default_bundle

        from pocketlens_cloud.doctor import examine

        findings = []
        for finding in examine(bundle or default_bundle(), gallery):
            findings.append(finding)
            if not as_json:
                mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
                out.print(mark, end=" ")
                out.print(f"{finding.what}: {finding.detail}", markup=False, highlight=False)
        if as_json:
            out.print_json(json.dumps([asdict(finding) for finding in findings]))
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One line for what a user can act on; no traceback."""
    try:
        yield
    except PocketlensError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        err.print("stopped; run the same command again to go on", markup=False)
        raise typer.Exit(130) from None


def _fail(message: str) -> NoReturn:
    err.print("[bold red]error:[/bold red] ", end="")
    err.print(message, markup=False, highlight=False)
    raise typer.Exit(2)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
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


def _print_report(report: "IngestReport", gallery: Path) -> None:
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
    _list("same bytes", [f"{file} = {first}" for file, first in report.duplicates])
    if not report.pruned:
        _list("no longer in the folder (remove them with --prune)", report.gone)
    _list("named in the payload but not in the folder", report.unused_payload)
    _list(
        "payload not used, the same picture has another", [f"{file} = {first}" for file, first in report.lost_payload]
    )
    out.print(
        f"gallery {gallery}: {report.size} pictures, generation {report.generation}",
        markup=False,
        highlight=False,
    )


def _list(what: str, lines: list[str]) -> None:
    if not lines:
        return
    err.print(f"{what} ({len(lines)}):", markup=False, highlight=False)
    for line in lines[:MAX_UNREADABLE_SHOWN]:
        err.print(f"  {line}", markup=False, highlight=False)
    if len(lines) > MAX_UNREADABLE_SHOWN:
        err.print(f"  and {len(lines) - MAX_UNREADABLE_SHOWN} more (all of them with --json)", markup=False)


def _guard_host(host: str, insecure_listen: bool) -> None:
    from pocketlens_cloud.server import is_loopback

    if is_loopback(host):
        return
    if not insecure_listen:
        _fail(
            f"{host} can be reached from other machines, and calls are not encrypted yet: "
            "say --insecure-listen if that is meant, or listen on 127.0.0.1"
        )
    err.print(f"warning: calls to {host} are neither encrypted nor authenticated", style="yellow", markup=False)


def _address(text: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT as its two parts."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise typer.BadParameter(f"{text} is not HOST:PORT, as in 127.0.0.1:8080", param_hint="--web")
    return host.strip("[]"), int(port)


def _serve(
    gallery: Path, bundle: Path | None, host: str, port: int, threads: int | None, precision: str,
    ready_file: Path | None, page: tuple[str, int] | None, pictures: Path | None,
) -> None:  # fmt: skip
    """Load gallery and models side by side, then serve until told to stop."""
    from concurrent.futures import ThreadPoolExecutor

    if ready_file:
        ready_file.unlink(missing_ok=True)  # one that was killed could not
    with ThreadPoolExecutor(2) as pool:
        opening = pool.submit(_open_gallery, gallery)
        loading = pool.submit(_load_composer, bundle, threads, precision)
        from pocketlens_cloud.service import Service  # grpc loads meanwhile

    with opening.result() as held:
        composer = loading.result()
        service = Service(composer, held)
        if not held.settled:
            err.print(
                f"warning: an indexing of {gallery} did not reach its end; run it again",
                style="yellow",
                markup=False,
            )
        facts = (
            f"{held.size} pictures, token space {composer.manifest.token_space}, "
            f"gallery space {held.gallery_space}, {composer.provider}"
        )
        beside = _page(service, held, bundle, page, pictures) if page else None
        _run(service, host, port, ready_file, facts, beside)


def _open_gallery(path: Path) -> "Gallery":
    from pocketlens_cloud.gallery import Gallery

    return Gallery.open(path)


def _load_composer(bundle: Path | None, threads: int | None, precision: str) -> "Composer":
    from pocketlens_wire.bundle import default_bundle

    from pocketlens_cloud.compose import Composer

    return Composer.load(bundle or default_bundle(), threads=threads, precision=precision)


def _page(
    service: "Service", gallery: "Gallery", bundle: Path | None, at: tuple[str, int], pictures: Path | None
) -> "Callable[[Front], AbstractAsyncContextManager[None]]":
    """The gateway, opened: what it lacks is said before anything listens."""
    from pocketlens_wire.bundle import default_bundle

    from pocketlens_cloud import gateway
    from pocketlens_cloud.thumbnails import Thumbnails

    host, port = at
    site = gateway.open_site(service, bundle or default_bundle(), Thumbnails(gallery, pictures) if pictures else None)

    def on_ready(bound: int) -> None:
        name = f"[{host}]" if ":" in host else host
        shown = "" if pictures else "; without --pictures it shows no pictures"
        out.print(f"page on http://{name}:{bound}/{shown}", markup=False, highlight=False)

    return lambda front: gateway.serving(front, site, host=host, port=port, on_ready=on_ready)


def _run(
    service: "Service", host: str, port: int, ready_file: Path | None, facts: str,
    beside: "Callable[[Front], AbstractAsyncContextManager[None]] | None",
) -> None:  # fmt: skip
    import asyncio
    import signal

    from pocketlens_cloud import server

    def on_ready(bound: int) -> None:
        address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        if ready_file:
            beside = ready_file.with_name(f"{ready_file.name}.new")
            beside.write_text(address, encoding="utf-8")
            beside.replace(ready_file)
        out.print(f"ready on {address}: {facts}", markup=False, highlight=False)

    async def until_told() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
        await server.run(service, host=host, port=port, on_ready=on_ready, stop=stop, beside=beside)

    try:
        asyncio.run(until_told())
    finally:
        if ready_file:
            ready_file.unlink(missing_ok=True)
    err.print("stopped", markup=False)


def _ask_describe(server: str, timeout_s: float) -> dict[str, object]:
    import grpc
    from pocketlens_wire.v1 import retrieval_pb2 as pb
    from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

    with grpc.insecure_channel(server) as channel:
        try:
            reply = RetrievalStub(channel).Describe(pb.DescribeRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(
                    f"no server answers at {server}: start one with `pocketlens-cloud serve`, or check the address"
                ) from error
            raise error_from_status(error.code(), error.details() or "") from error
    facts: dict[str, object] = {}
    for key in pb.DescribeReply.DESCRIPTOR.fields:
        value = getattr(reply, key.name)
        facts[key.name] = list(value) if key.is_repeated else value
    facts["modes"] = [pb.Mode.Name(mode) for mode in reply.modes]
    facts["default_mode"] = pb.Mode.Name(reply.default_mode)
    return facts
