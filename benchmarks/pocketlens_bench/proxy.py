"""A TCP proxy on loopback that counts the bytes passing through it.

What it counts is what a connection carries, HTTP/2 frames and headers included; TCP and IP headers are below it.
Called by latency.py, never while times are taken."""

import socket
from contextlib import suppress
from threading import Lock, Thread
from types import TracebackType
from typing import Self

CHUNK = 64 * 1024


class CountingProxy:
    """Context manager: listens on `address`, passes everything on to `server` (HOST:PORT)."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = Lock()
        self._counts = {"up": 0, "down": 0}
        self._open: list[socket.socket] = []
        self._threads = [Thread(target=self._accept, daemon=True)]

    @property
    def up(self) -> int:
        """Bytes passed from clients to the server so far."""
        return self._counts["up"]

    @property
    def down(self) -> int:
        """Bytes passed from the server to clients so far."""
        return self._counts["down"]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for end in (self._listener, *self._open):
            _shut(end)
        for thread in self._threads:
            thread.join(timeout=5)
        for end in (self._listener, *self._open):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed: the end
                return
            server = socket.create_connection(self._server)
            self._open += [client, server]
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                pump = Thread(target=self._pump, args=(source, sink, way), daemon=True)
                self._threads.append(pump)
                pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):  # one side went away; so does the other
            while chunk := source.recv(CHUNK):
                with self._lock:
                    self._counts[way] += len(chunk)  # before it is passed on: a reply never outruns its count
                sink.sendall(chunk)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):  # not connected any more
        end.shutdown(socket.SHUT_RDWR)
