"""`pocketlens-cloud serve`: flags, what is opened before anything listens, signals.

Where the flags' values come from besides the command line is settings.py's; several workers are workers.py's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlens_cloud.cli.operating import (
    ConfigFile,
    DrainS,
    InsecureMetrics,
    LogFormat,
    LogLevel,
    MetricsAt,
    Reflection,
    address,
    monitor_of,
    open_operations,
    start_log,
)
from pocketlens_cloud.cli.places import Consistency, GrpcPort, Place, QdrantKeyFile, TimeoutS, Url
from pocketlens_cloud.cli.root import Bundle, Precision, app, err, out, plain_errors
from pocketlens_cloud.cli.security import (
    AuditLog,
    AuditSearches,
    Certificate,
    CertificateKey,
    ClientAuthorities,
    InsecureListen,
    KeyFile,
    Security,
    guard_host,
    open_security,
    warn_of_readers,
)
from pocketlens_cloud.cli.settings import ENVIRONMENT, FromAnywhere, Settings
from pocketlens_cloud.cli.workers import Workers, check_workers, supervise

if TYPE_CHECKING:
    from pocketlens_cloud.compose import Composer
    from pocketlens_cloud.gallery.embedded import EmbeddedGallery
    from pocketlens_cloud.gallery.following import FollowingGallery
    from pocketlens_cloud.gallery.interface import Gallery
    from pocketlens_cloud.service import Service
    from pocketlens_cloud.serving.front import Front
    from pocketlens_cloud.serving.operations import Operations
    from pocketlens_cloud.serving.workers import Line

OnReady = Callable[[int, str], None]  # with the port and what is served there


@app.command(cls=FromAnywhere, context_settings={"auto_envvar_prefix": ENVIRONMENT})
def serve(
    gallery: Annotated[
        Path | None,
        typer.Option(help="Gallery directory made by `index`, or directory of versions.", show_default=False),
    ] = None,
    bundle: Bundle = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 lets the system choose.")] = 50551,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one run of the text tower.")] = 1,
    precision: Precision = "fp32",
    runs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs of the text tower at once (default: cores / threads / workers).", show_default=False
        ),
    ] = None,
    workers: Workers = 1,
    remember: Annotated[int, typer.Option(min=0, help="Texts whose features are kept; 0: none.")] = 20_000,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Write host:port here once ready; removed at the end.", show_default=False),
    ] = None,
    insecure_listen: InsecureListen = False,
    tls_cert: Certificate = None,
    tls_key: CertificateKey = None,
    client_ca: ClientAuthorities = None,
    keys: KeyFile = None,
    audit_log: AuditLog = None,
    audit_searches: AuditSearches = False,
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
    writable: Annotated[
        bool, typer.Option("--writable", help="Let callers add and remove pictures; loads the image tower too.")
    ] = False,
    qdrant: Url = None,
    collection: Annotated[
        str | None, typer.Option(metavar="NAME", help="Gallery on the Qdrant server.", show_default=False)
    ] = None,
    qdrant_grpc_port: GrpcPort = 6334,
    qdrant_key_file: QdrantKeyFile = None,
    qdrant_timeout_s: TimeoutS = 5,
    qdrant_read_consistency: Consistency = None,
    metrics: MetricsAt = None,
    insecure_metrics: InsecureMetrics = False,
    reflection: Reflection = False,
    drain_s: DrainS = 0.0,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
    config: ConfigFile = None,
) -> None:
    """Answer composed queries over gRPC until SIGTERM or Ctrl-C.

    One line on stdout says when it is ready and where. Stopping finishes the calls in flight.

    Of a gallery with versions (pocketlens-cloud gallery) it serves the live one, and another as soon as it is promoted.

    With --web a browser can ask too: the page turns the picture into tokens itself and sends only those.

    [bold]Examples[/bold]

    pocketlens-cloud serve --gallery ./gallery

    pocketlens-cloud serve --gallery ./gallery --web 127.0.0.1:8080 --pictures ~/Pictures

    pocketlens-cloud serve --gallery ./gallery --port 0 --ready-file ./address

    pocketlens-cloud serve --qdrant http://10.0.0.5:6333 --collection shop

    pocketlens-cloud serve --qdrant http://10.0.0.5:6333 --collection shop --workers 4

    pocketlens-cloud serve --gallery ./gallery --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --keys keys.json

    pocketlens-cloud serve --config serve.toml --metrics 127.0.0.1:9464 --drain-s 5

    Certificates and keys are followed while it runs: replace the files, and the next connection or call meets the new.
    An option that is not given comes from the environment (POCKETLENS_SERVE_PORT for --port), then from the file of
    --config; `pocketlens-cloud config` shows what that makes.
    """
    asked = Settings(**{name: value for name, value in locals().items() if name != "config"})
    with plain_errors():
        start_log(asked)
        security = open_security(asked)
        warn_of_readers(asked)
        guard_host(host, security)
        if pictures and not web:
            raise typer.BadParameter("is for the page: give --web too", param_hint="--pictures")
        page = address(web, "--web") if web else None
        if page:
            guard_host(page[0], security)
        monitor = monitor_of(asked)
        place = _place(asked)
        check_workers(asked)
        if workers == 1:
            with announced(asked) as on_ready:
                _serve(asked, place, security, monitor, on_ready)
        else:
            with security.audit or nullcontext():  # that it can be had is known; each worker opens it for itself
                pass
            supervise(asked, security, page, monitor)
        err.print("stopped", markup=False)


def _place(asked: Settings) -> Place:
    """Where the gallery is: a directory, or a name on a server."""
    if asked.gallery and not asked.qdrant and not asked.collection:
        name = str(asked.gallery)
    elif asked.qdrant and asked.collection and not asked.gallery:
        name = asked.collection
    else:
        raise typer.BadParameter(
            "name a directory with --gallery, or a server's gallery with --qdrant and --collection"
        )
    return Place(
        name=name,
        url=asked.qdrant,
        grpc_port=asked.qdrant_grpc_port,
        key_file=asked.qdrant_key_file,
        timeout_s=asked.qdrant_timeout_s,
        consistency=asked.qdrant_read_consistency,
    )


def serve_as_worker(asked: Settings, line: "Line") -> None:
    """One of several: what it has to say goes to the supervisor, which has looked at the options before."""
    _serve(asked, _place(asked), open_security(asked), None, lambda _, facts: line.ready(facts), line)


@contextmanager
def announced(asked: Settings) -> "Iterator[OnReady]":
    """Gives what says where it is ready, on stdout and in the ready file; the file goes at the end."""
    file = asked.ready_file
    if file:
        file.unlink(missing_ok=True)  # one that was killed could not

    def on_ready(bound: int, facts: str) -> None:
        at = f"[{asked.host}]:{bound}" if ":" in asked.host else f"{asked.host}:{bound}"
        if file:
            beside = file.with_name(f"{file.name}.new")
            beside.write_text(at, encoding="utf-8")
            beside.replace(file)
        out.print(f"ready on {at}: {facts}", markup=False, highlight=False)

    try:
        yield on_ready
    finally:
        if file:
            file.unlink(missing_ok=True)


def _serve(
    asked: Settings,
    place: Place,
    security: Security,
    monitor: tuple[str, int] | None,
    on_ready: "OnReady",
    line: "Line | None" = None,
) -> None:
    """Load gallery and models side by side, then serve until told to stop. line: to the supervisor, of a worker."""
    from concurrent.futures import ThreadPoolExecutor

    if asked.writable:
        _refuse_versions(place)  # before models are loaded
    with ThreadPoolExecutor(1) as opener, ThreadPoolExecutor(1) as loader:
        opening = opener.submit(_open_gallery, place)
        loading = loader.submit(_load_composer, asked)
        from pocketlens_cloud.service import Service  # grpc loads meanwhile

    with opening.result() as held:
        composer = loading.result()
        service = Service(composer, held)
        if not held.settled:
            err.print(
                f"warning: an indexing of {place.name} did not reach its end; run it again",
                style="yellow",
                markup=False,
            )
        facts = (
            f"{held.size} pictures, token space {composer.manifest.token_space}, "
            f"gallery space {held.gallery_space}, {composer.provider}"
        )
        operations = open_operations(asked, monitor, service, composer, held)
        if line:
            line.answer(operations.health)
        page = _page(asked, service, held, security, operations, is_worker=line is not None) if asked.web else None
        writing = _writing(asked, held, operations) if asked.writable else nullcontext(())
        with security.audit or nullcontext(), writing as further:
            _run(asked, service, lambda bound: on_ready(bound, facts), operations, page, security, further)


@contextmanager
def _writing(
    asked: Settings, gallery: "Gallery", operations: "Operations"
) -> "Iterator[Sequence[Callable[[Any], None]]]":
    """What adds pocketlens.v1.Gallery to a server; the gallery is settled afterwards."""
    from pocketlens_cloud.bundle import open_cloud_half
    from pocketlens_cloud.indexing.writing import Writer
    from pocketlens_cloud.serving.writing import WritingService

    writer = Writer(gallery, *open_cloud_half(asked.bundle_folder), threads=asked.threads)
    service = WritingService(writer)
    operations.health.watch_writing(writer.probe)
    try:
        yield [service.register]
    finally:
        service.close()


def _refuse_versions(place: Place) -> None:
    """What is verified and promoted stays as it is: else a rollback would lose what was added. Raises GalleryError."""
    from pocketlens_wire.errors import GalleryError

    from pocketlens_cloud.gallery.folder import is_versioned

    if place.url is None and not is_versioned(Path(place.name)):
        return
    at = f" --qdrant {place.url}" if place.url else ""
    raise GalleryError(
        f"{place.name} has versions, and the live one is not changed, so --writable is only for a gallery by itself. "
        f"Put the pictures into a folder and build the next version from it, while this one is served: "
        f"`pocketlens-cloud gallery build {place.name} DIR{at}`, then `gallery verify` and `gallery promote`; a server "
        "without --writable follows at once. For a gallery that callers add to, make one with `pocketlens-cloud index`"
    )


def _open_gallery(place: Place) -> "EmbeddedGallery | FollowingGallery":
    """A gallery by itself, or the live version of one that has versions, followed."""
    if place.url is not None:
        from pocketlens_cloud.gallery.collections import CollectionVersions
        from pocketlens_cloud.gallery.following import FollowingGallery

        return FollowingGallery(CollectionVersions(place.server(), place.name)).start()
    from pocketlens_cloud.gallery.folder import open_gallery

    return open_gallery(Path(place.name))


def _load_composer(asked: Settings) -> "Composer":
    from pocketlens_cloud.compose import Composer
    from pocketlens_cloud.runtime import stand_back

    stand_back()  # and with it the threads that ONNX Runtime starts here
    return Composer.load(asked.bundle_folder, threads=asked.threads, precision=asked.precision)


def _page(
    asked: Settings,
    service: "Service",
    gallery: "Gallery",
    security: Security,
    operations: "Operations",
    *,
    is_worker: bool,
) -> "Callable[[Front], AbstractAsyncContextManager[None]]":
    """The gateway, opened: what it lacks is said before anything listens."""
    from pocketlens_cloud.serving import gateway
    from pocketlens_cloud.serving.thumbnails import Thumbnails

    host, port = address(str(asked.web), "--web")
    thumbnails = Thumbnails(gallery, asked.pictures) if asked.pictures else None
    site = gateway.open_site(service, asked.bundle_folder, thumbnails)

    def on_ready(bound: int) -> None:
        if not is_worker:
            say_page(asked, security, bound)

    encryption = security.tls.context() if security.tls else None
    door, observer = security.door(), operations.observer
    return lambda front: gateway.serving(
        front, site, host=host, port=port, on_ready=on_ready, door=door, encryption=encryption, observer=observer,
        shares=is_worker,
    )  # fmt: skip


def say_page(asked: Settings, security: Security, bound: int) -> None:
    """Where the page is."""
    host = str(asked.web).rpartition(":")[0]
    shown = "" if asked.pictures else "; without --pictures it shows no pictures"
    out.print(f"page on http{'s' if security.tls else ''}://{host}:{bound}/{shown}", markup=False, highlight=False)


def _runs(asked: Settings) -> int:
    """Runs of the text tower at once, of each worker."""
    from pocketlens_cloud.runtime import cores

    return asked.runs or max(1, cores() // (asked.threads * asked.workers))


def _run(
    asked: Settings,
    service: "Service",
    on_ready: "Callable[[int], None]",
    operations: "Operations",
    page: "Callable[[Front], AbstractAsyncContextManager[None]] | None",
    security: Security,
    further: "Sequence[Callable[[Any], None]]",
) -> None:
    import asyncio
    import gc
    import signal

    from pocketlens_cloud.serving import server
    from pocketlens_cloud.serving.batching import limits_for
    from pocketlens_cloud.serving.door import DoorInterceptor

    async def until_told() -> None:
        told, hurry, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def hear(number: int) -> None:
            if told.is_set() or number == signal.SIGINT:  # Ctrl-C, or told twice: no time to drain
                hurry.set()
            told.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: loop.call_soon_threadsafe(hear, number))

        async def leave() -> None:
            try:
                await told.wait()
                await operations.leave(asked.drain_s, hurry)
            finally:
                stop.set()

        leaving = asyncio.create_task(leave())
        try:
            await server.run(
                service,
                host=asked.host,
                port=asked.port,
                on_ready=on_ready,
                stop=stop,
                beside=operations.beside(page),
                batch=limits_for(service.provider, runs=_runs(asked), kept=asked.remember, packs=service.packs),
                credentials=security.tls.credentials() if security.tls else None,
                interceptors=[*operations.interceptors, DoorInterceptor(security.door())],
                further=[*operations.further, *further],
                shares=asked.workers > 1,
            )
        finally:
            leaving.cancel()

    gc.freeze()  # models and modules stay: a full round of the collector over them holds up every answer
    asyncio.run(until_told())
