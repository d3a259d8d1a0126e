"""The HTTP port for machines that look after this one: /metrics, /healthz, /readyz.

Owns a thread of its own, so that it answers also when the event loop stands still. What the figures are is
metrics.py's, what health is health.py's. Nothing here tells what anyone asked."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer, ThreadingMixIn
from threading import Thread
from typing import Any, Final, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from pocketlens_wire.errors import ServerFault

from pocketlens_cloud.serving import metrics

SILENCE_S: Final = 5.0  # for a client that says nothing
Answer = tuple[str, str, bytes]  # status, content type, body


class State(Protocol):
    """Of a server, or of several workers together; each a sentence, or empty. Asked from threads."""

    @property
    def why(self) -> str:
        """It is not ready."""
        ...

    @property
    def stuck(self) -> str:
        """It is beyond help."""
        ...


@contextmanager
def listening(
    state: State, *, host: str, port: int, figures: Callable[[], bytes] = metrics.exposition
) -> Iterator[int]:
    """Answer until left; gives the port. Raises ServerFault if it cannot be had."""
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        why = error.strerror or error
        raise ServerFault(f"cannot listen on {host}, port {port}: is another program there? ({why})") from error
    server.set_app(_application(state, figures))
    thread = Thread(target=server.serve_forever, name="monitoring", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _application(
    state: State, figures: Callable[[], bytes]
) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """The WSGI application."""
    routes: dict[str, Callable[[], Answer]] = {
        "/metrics": lambda: ("200 OK", metrics.CONTENT_TYPE, figures()),
        "/healthz": lambda: _said(state.stuck),
        "/readyz": lambda: _said(state.why),
    }

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        route = routes.get(environ["PATH_INFO"])
        if route is None:
            status, kind, body = "404 Not Found", "text/plain", f"there are {', '.join(routes)}\n".encode()
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"GET it\n"
        else:
            status, kind, body = route()
        start_response(
            status, [("Content-Type", kind), ("Cache-Control", "no-store"), ("Content-Length", str(len(body)))]
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer


def _said(why_not: str) -> Answer:
    status = "503 Service Unavailable" if why_not else "200 OK"
    return status, "text/plain; charset=utf-8", f"{why_not or 'ok'}\n".encode()


class _Server(ThreadingMixIn, WSGIServer):
    """wsgiref's server with a thread for each client: one that is silent keeps nobody else waiting."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """As the library's, without asking the name server who we are: that may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # pyright: ignore[reportAttributeAccessIssue]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    """Silent in the log, and not for ever at the ear of a silent client."""

    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass
