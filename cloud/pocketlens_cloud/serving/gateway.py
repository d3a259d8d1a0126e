"""The HTTP gateway: the page in the browser, and for it the two questions of retrieval.proto.

Owns routes, headers, how a body is read, and the way from an error to an HTTP status. What a request means is
service.py's; questions wait in front.py with those that came over gRPC. Bodies are the protobuf messages
themselves, as in gRPC: one schema, and the bytes that the page counts are the bytes that travel. Errors are JSON,
`{"kind": ..., "message": ...}`. The only file that imports starlette and uvicorn."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final, TypeVar

import uvicorn
from google.protobuf.message import DecodeError, Message
from pocketlens_wire import limits
from pocketlens_wire.errors import (
    BadQuery,
    Overloaded,
    PocketlensError,
    ServerFault,
    SpaceMismatch,
    TooLate,
    Unauthenticated,
    http_status_of,
)
from pocketlens_wire.manifest import MANIFEST, read_edge, resolve_half
from pocketlens_wire.v1 import retrieval_pb2 as pb
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event
from uvicorn.protocols.http.h11_impl import H11Protocol

from pocketlens_cloud.service import Service
from pocketlens_cloud.serving.calls import GRACE_S, headers_back
from pocketlens_cloud.serving.door import Call, Door
from pocketlens_cloud.serving.front import Front
from pocketlens_cloud.serving.hosts import is_loopback
from pocketlens_cloud.serving.observe import Observer, note
from pocketlens_cloud.serving.server import MAX_SENTENCE
from pocketlens_cloud.serving.thumbnails import NoPicture, Thumbnails

log = logging.getLogger(__name__)

PAGE: Final = Path(__file__).with_name("page")  # written by `make web`
PROTOBUF: Final = "application/x-protobuf"
QUESTION_S: Final = 5.0  # deadline of a question from the page, as the command line's own
BODY_S: Final = 5.0  # for all of a body, which is at most 64 KiB
MAX_UNKEPT_BYTES: Final = 1 << 20  # read of a body that is too long: who still sends would not see why it is refused
HEAD_S: Final = 5.0  # for a request's first lines
MAX_CONNECTIONS: Final = 256
DRAWERS: Final = 2  # thumbnails made at once

# Said here rather than asked of the system, whose tables differ: wasm and modules do not run under a wrong type.
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}

# Nothing from elsewhere, nothing to elsewhere. The two Cross-Origin policies isolate the page, without which a
# browser gives wasm no threads.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_Asked = TypeVar("_Asked", bound=Message)
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Site:
    """What there is to serve beside answers. page, bundle: files by the path they are asked for with."""

    page: Mapping[str, Path]
    bundle: Mapping[str, Path]
    thumbnails: Thumbnails | None


class _Refusal(Exception):
    """A request that HTTP itself has a status for."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


def open_site(service: Service, bundle: Path, thumbnails: Thumbnails | None, *, page: Path = PAGE) -> Site:
    """The built page, and the edge half of `bundle`, which the page's encoder comes from.

    Raises ServerFault if the page was not built, BadBundle for a bundle without a sound edge half, SpaceMismatch
    if that half's encoder is not one this service accepts: every question of the page would be refused."""
    if not (page / "index.html").is_file():
        raise ServerFault(
            "the page is not built: `make web` in the source tree builds it, with node 20 or newer and npm"
        )
    half, ours = read_edge(bundle), service.describe()
    made = [graph.encoder for graph in half.graphs.values()]
    if half.token_space != ours.token_space or not set(made) & set(ours.encoders):
        raise SpaceMismatch(
            f"the edge half of bundle {bundle} makes tokens of space `{half.token_space}` with {', '.join(made)}; this "
            f"server speaks `{ours.token_space}` and accepts {', '.join(ours.encoders)}. Take both halves of one bundle"
        )
    folder = resolve_half(bundle, "edge")
    names = [MANIFEST, half.golden.file, *(graph.file for graph in half.graphs.values())]
    files = {path.relative_to(page).as_posix(): path for path in page.rglob("*") if path.is_file()}
    return Site(page=files, bundle={name: folder / name for name in names}, thumbnails=thumbnails)


@asynccontextmanager
async def serving(
    front: Front,
    site: Site,
    *,
    host: str,
    port: int,
    on_ready: Callable[[int], None],
    door: Door | None = None,
    encryption: ssl.SSLContext | None = None,
    observer: Observer | None = None,
    shares: bool = False,
) -> AsyncIterator[None]:
    """Serve over HTTP until left, then finish what is in flight; `on_ready` gets the port. `door`: what questions
    pass; without `encryption` it is plain http; `shares`: the port, as in server.py.

    Raises ServerFault if the port cannot be had."""
    with ThreadPoolExecutor(DRAWERS, "thumbnail") as pool, _listening(host, port, shares=shares) as bound:
        config = uvicorn.Config(
            application(front, site, pool, host=host, door=door, observer=observer),
            http=_Hurried,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,  # what is asked for tells what a person looked for
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=128,  # asyncio takes so many at a time, and counts only afterwards
            timeout_graceful_shutdown=int(GRACE_S),
        )
        server = _Server(config, encryption)
        task = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        on_ready(bound.getsockname()[1])
        try:
            yield
        finally:
            server.should_exit = True
            await task


def application(
    front: Front,
    site: Site,
    pool: ThreadPoolExecutor,
    *,
    host: str,
    door: Door | None = None,
    observer: Observer | None = None,
) -> ASGIApp:
    """The ASGI application; `host` is what it listens on. Page and encoder pass no door: nothing of the gallery's
    is in them, and a browser asks for them before it could have a key."""
    door, observer = door or Door(), observer or Observer()
    pictures = _pictures(site.thumbnails, pool)
    search = _behind(door, "/v1/search", _search(front))
    describe = _behind(door, "/v1/describe", _describe(front))
    routes = [
        Route("/v1/search", _answering(_observed(observer, "Search", search)), methods=["POST"]),
        Route("/v1/describe", _answering(_observed(observer, "Describe", describe)), methods=["POST"]),
        Route("/v1/pictures/{id}", _answering(_behind(door, "/v1/pictures", pictures)), methods=["GET"]),
        *(Route(f"/v1/bundle/{name}", _answering(_file(path)), methods=["GET"]) for name, path in site.bundle.items()),
        *(Route(f"/{name}", _answering(_file(path)), methods=["GET"]) for name, path in site.page.items()),
        Route("/", _answering(_file(site.page["index.html"])), methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _named}
    return _guarded(Starlette(routes=routes, exception_handlers=handlers), host)


# --- endpoints


def _behind(door: Door, method: str, endpoint: Endpoint) -> Endpoint:
    async def behind(request: Request) -> Response:
        peer = f"[{at.host}]:{at.port}" if (at := request.client) and ":" in at.host else at and f"{at.host}:{at.port}"
        call = Call(
            method=method,
            headers=request.headers.getlist("authorization"),
            peer=peer or "unknown",
            is_encrypted=request.url.scheme == "https",
        )
        async with door.passing(call):
            return await endpoint(request)

    return behind


def _observed(observer: Observer, method: str, endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        with observer.around(method, "http", request.headers) as observed:
            try:
                return await endpoint(request)
            except _Refusal:
                observed.call.kind = "BadQuery"
                raise
            except ClientDisconnect:
                observed.call.kind = "Cancelled"
                raise

    return answer


def _search(front: Front) -> Endpoint:
    async def search(request: Request) -> Response:
        until = time.monotonic() + QUESTION_S
        asked = await _message(request, pb.SearchRequest)
        try:
            async with asyncio.timeout(until - time.monotonic()):
                reply = await front.ask(asked, until)
                note(asked, reply)
                return _protobuf(reply)
        except TimeoutError:
            raise TooLate(f"the answer took more than the {QUESTION_S:g} s that a question has") from None

    return search


def _describe(front: Front) -> Endpoint:
    async def describe(request: Request) -> Response:
        return _protobuf(await front.describe(await _message(request, pb.DescribeRequest), None))

    return describe


def _file(path: Path) -> Endpoint:
    """One file. Only what is listed has a route, so no path can lead elsewhere."""
    kind = TYPES.get(path.suffix, "application/octet-stream")

    async def file(request: Request) -> Response:
        found = path.stat()
        version = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        kept = {"ETag": version, "Cache-Control": "no-cache"}  # asked again each time, sent again only if changed
        if request.headers.get("if-none-match") == version:
            return Response(status_code=304, headers=kept)
        return FileResponse(path, headers=kept, media_type=kind, stat_result=found)

    return file


def _pictures(thumbnails: Thumbnails | None, pool: ThreadPoolExecutor) -> Endpoint:
    async def picture(request: Request) -> Response:
        if thumbnails is None:
            raise _Refusal(404, "this server shows no pictures: start it with --pictures DIR")
        wanted = request.path_params["id"]
        try:
            data = await asyncio.get_running_loop().run_in_executor(pool, thumbnails.of, wanted)
        except NoPicture as error:
            raise _Refusal(404, str(error)) from error
        # An id stands for certain bytes for ever; but the picture may be removed from the gallery.
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    return picture


# --- bodies


async def _message(request: Request, kind: type[_Asked]) -> _Asked:
    """The request's body as a message. Raises BadQuery, or _Refusal for what HTTP has a status of its own for."""
    came = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if came != PROTOBUF:
        raise _Refusal(415, f"the body must be {PROTOBUF}; {came[:60]} came")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise _Refusal(415, "the body must not be compressed")
    try:
        async with asyncio.timeout(BODY_S):
            body = await _body(request)
    except TimeoutError:
        raise _Refusal(408, f"the body did not arrive within {BODY_S:g} s", Connection="close") from None
    try:
        return kind.FromString(body)
    except DecodeError:
        raise BadQuery(f"the request is not a valid {kind.DESCRIPTOR.full_name} message") from None


async def _body(request: Request) -> bytes:
    """All of the body, none of it kept beyond the limit."""
    body, came = b"", 0
    async for piece in request.stream():
        came += len(piece)
        if came <= limits.MAX_REQUEST_BYTES:
            body += piece
        elif came > MAX_UNKEPT_BYTES:
            break
    if came > limits.MAX_REQUEST_BYTES:
        raise _Refusal(
            413, f"a request may have {limits.MAX_REQUEST_BYTES:,} bytes; this one has more", Connection="close"
        )
    return body


def _protobuf(message: Message) -> Response:
    headers = {"Cache-Control": "no-store", **dict(headers_back())}
    return Response(message.SerializeToString(), media_type=PROTOBUF, headers=headers)


# --- errors


def _answering(endpoint: Endpoint) -> Endpoint:
    """The error boundary: every way a request can fail becomes a status and a plain sentence here."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except _Refusal as refusal:
            return _saying(refusal.status, BadQuery(str(refusal)), refusal.headers)
        except PocketlensError as error:
            if isinstance(error, ServerFault):
                log.error("a request failed", exc_info=error)
            return _saying(http_status_of(error), error, _advice(error))
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception:
            log.exception("a request failed")
            return _saying(500, ServerFault("the server failed on this request; its log has the details"))

    return answer


async def _named(_request: Request, error: HTTPException) -> Response:
    """What the router itself refuses: an address it does not have, or a method that an address does not."""
    why = "there is nothing at this address" if error.status_code == 404 else "this address is not asked in that way"
    return _saying(error.status_code, BadQuery(why), dict(error.headers or {}))


def _advice(error: PocketlensError) -> dict[str, str]:
    match error:
        case Overloaded():
            return {"Retry-After": str(ceil(error.retry_after_s))}
        case Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case _:
            return {}


def _saying(status: int, error: PocketlensError, headers: Mapping[str, str] | None = None) -> Response:
    said = {"kind": type(error).__name__, "message": str(error)[:MAX_SENTENCE]}
    return JSONResponse(said, status, headers={"Cache-Control": "no-store", **dict(headers_back()), **(headers or {})})


# --- the transport


def _guarded(app: ASGIApp, host: str) -> ASGIApp:
    """`app` with the security headers on every response, behind a look at who is asked.

    A page of another site can have its own name point to this machine (DNS rebinding) and would then read the
    gallery as its own; on loopback only loopback's names are answered."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(event: Event) -> None:
            if event["type"] == "http.response.start":
                MutableHeaders(scope=event).update(HEADERS)
            await send(event)

        asked = Headers(scope=scope).get("host", "")
        name = asked.rpartition(":")[0] if asked.rpartition(":")[2].isdigit() else asked
        if is_loopback(host) and not is_loopback(name.strip("[]")):
            refused = _saying(421, BadQuery("this server answers only to localhost and loopback addresses"))
            await refused(scope, receive, headed)
        else:
            await app(scope, receive, headed)

    return guarded


@contextmanager
def _listening(host: str, port: int, *, shares: bool) -> Any:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, reuse_port=shares)
    except OSError as error:
        why = error.strerror or error
        raise ServerFault(f"cannot listen on {host}, port {port}: is another program there? ({why})") from error
    with bound:
        yield bound


class _Server(uvicorn.Server):
    """Signals are the command line's: they stop gRPC and HTTP together."""

    def __init__(self, config: uvicorn.Config, encryption: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._encryption = encryption

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """With encryption uvicorn would leave a silent client 60 s for its handshake."""
        if self._encryption is None:
            await super().startup(sockets)
            return
        (bound,) = sockets or []
        listening = await asyncio.get_running_loop().create_server(
            lambda: _Hurried(config=self.config, server_state=self.server_state, app_state={}),
            sock=bound,
            ssl=self._encryption,
            ssl_handshake_timeout=HEAD_S,
            backlog=self.config.backlog,
        )
        self.servers = [listening]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Any:
        yield


class _Hurried(H11Protocol):
    """Closes a connection whose request does not begin in time; uvicorn alone would wait for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:  # not even heard: the process's descriptors are gRPC's too
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._rest()
        elif self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def _rest(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None
