"""The page's gateway: requests of HTTP/1.1 as weapons. Tried where the page is built."""

import socket
from collections.abc import Callable
from typing import Final

from pocketlens_wire.limits import MAX_REQUEST_BYTES

from pocketlens_bench.hostile.case import GONE, Case, Lacking, case
from pocketlens_bench.hostile.target import DEADLINE_S, PROTOBUF, Target

Act = Callable[[Target], str]

HEAD: Final = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF}\r\n".encode()


def _spoken(sent: bytes, *, ended: bool = False) -> Act:
    """Any bytes; the status of what comes back, or that the connection was closed."""

    def act(to: Target) -> str:
        if to.web is None:
            raise Lacking("the built page (`make web`)")
        host, _, port = to.web.rpartition(":")
        with socket.create_connection((host, int(port)), DEADLINE_S) as line:
            try:
                line.sendall(sent)
                if ended:
                    line.shutdown(socket.SHUT_WR)
                came = line.recv(65_536)
            except ConnectionError:
                return GONE
        return came.split(b" ", 2)[1].decode() if came.startswith(b"HTTP/1.1 ") else GONE

    return act


def _good(to: Target) -> bytes:
    return to.question().SerializeToString()


CASES: list[Case] = [
    case("http", "random", "a body of random bytes", "400 BadQuery", lambda to: to.http(b"\xff" * 500)),
    case("http", "json", "JSON for protobuf", "415 BadQuery",
         lambda to: to.http(b"{}", **{"Content-Type": "application/json"})),
    case("http", "compressed", "a compressed body", "415 BadQuery",
         lambda to: to.http(b"x", **{"Content-Encoding": "gzip"})),
    case("http", "too-large", "one byte more than 64 KiB", "413 BadQuery",
         lambda to: to.http(bytes(MAX_REQUEST_BYTES + 1))),
    case("http", "ten-megabytes", "10 MB said, and none sent", ("413", "408"),
         _spoken(HEAD + b"Content-Length: 10000000\r\n\r\n")),
    case("http", "both-lengths", "a length and chunks, as smugglers send", ("400", GONE),
         _spoken(HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
                 ended=True)),
    case("http", "two-lengths", "two lengths", ("400", GONE),
         _spoken(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef")),
    case("http", "bad-chunk", "a chunk of negative size", ("400", GONE),
         _spoken(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc")),
    case("http", "no-host", "no Host", ("400", "421"), _spoken(b"GET / HTTP/1.1\r\n\r\n")),
    case("http", "other-host", "another site's name", "421 BadQuery",
         lambda to: to.http(_good(to), Host="evil.example")),
    case("http", "headers", "1 MB of headers", ("400", "431", GONE),
         _spoken(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 160_000)),
    case("http", "http-2", "HTTP/2's first bytes", ("400", "421", GONE),
         _spoken(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ended=True)),
    case("http", "out", "a way out of the page's folder", "404 BadQuery",
         lambda to: to.http(b"", "/%2e%2e/%2e%2e/etc/passwd", "GET")),
    case("http", "nul", "NUL in a picture's id", "404 BadQuery", lambda to: to.http(b"", "/v1/pictures/%00", "GET")),
    case("http", "method", "a method nobody knows", "405 BadQuery", lambda to: to.http(b"", method="BREW")),
]  # fmt: skip
