"""HTTP/2 by hand: a connection on which frames go out as they are given, also those no library would send."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, Self, final

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from pocketlens_wire.errors import KIND_METADATA

from pocketlens_bench.hostile.case import ANSWERED, GONE, OPEN

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SEARCH: Final = "/pocketlens.v1.Retrieval/Search"
PATIENCE_S: Final = 20.0
MAX_FRAME: Final = 16_384
_STATUS: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip

Header = tuple[str, str]


def message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """gRPC's envelope of a message: compressed or not, its length, its bytes. `length` may lie."""
    return bytes([flag]) + (len(data) if length is None else length).to_bytes(4, "big") + data


def headers_of(path: str = SEARCH, *more: Header, **changed: str | None) -> list[Header]:
    """Those of a call. `changed`: method, scheme, authority, te, type; None leaves it out."""
    named = {"method": "POST", "scheme": "http", "authority": "localhost", "te": "trailers", "type": "application/grpc"}
    said = {**named, **changed}
    names = {"method": ":method", "scheme": ":scheme", "authority": ":authority", "te": "te", "type": "content-type"}
    whole = [(names[name], value) for name, value in said.items() if value is not None]
    pseudo = [each for each in whole if each[0].startswith(":")]
    return [*pseudo, (":path", path), *(each for each in whole if not each[0].startswith(":")), *more]


@final
class Line:
    """One connection. `told`: settings to begin with; None sends neither preface nor settings."""

    def __init__(self, address: str, told: dict[int, int] | None = None, *, silent: bool = False) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._encoder, self._decoder = Encoder(), Decoder()
        if not silent:
            self.send(PREFACE, SettingsFrame(0, settings=told or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *parts: Frame | bytes) -> bool:
        """Whether it went out: a server may close whenever it has had enough."""
        try:
            self._socket.sendall(b"".join(each if isinstance(each, bytes) else each.serialize() for each in parts))
        except OSError:
            return False
        return True

    def opening(self, stream: int, headers: Sequence[Header] | None = None, *, end: bool = False) -> HeadersFrame:
        """The frame that begins a call; not sent."""
        flags = ["END_HEADERS", *(["END_STREAM"] if end else [])]
        return HeadersFrame(stream, self._encoder.encode(headers or headers_of()), flags=flags)

    def asks(self, stream: int, body: bytes, headers: Sequence[Header] | None = None) -> list[Frame]:
        """A whole call, in frames as large as may be."""
        pieces = [body[at : at + MAX_FRAME] for at in range(0, len(body), MAX_FRAME)]
        return [
            self.opening(stream, headers),
            *(data(stream, piece, end=place == len(pieces) - 1) for place, piece in enumerate(pieces)),
        ]

    def frames(self) -> Iterator[Frame]:
        """What comes, until the server closes. Settings are acknowledged."""
        with self._socket.makefile("rb") as stream, suppress(ConnectionError):
            while len(head := stream.read(9)) == 9:
                frame, length = Frame.parse_frame_header(memoryview(head))
                frame.parse_body(memoryview(stream.read(length)))
                if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                    self.send(SettingsFrame(0, flags=["ACK"]))
                yield frame

    def outcome(self, stream: int = 1) -> str:
        """How that call ended: status and kind, `reset` and why, or that the connection was closed."""
        answer, last = 0, ""
        try:
            for frame in self.frames():
                if isinstance(frame, HeadersFrame):
                    found = {str(name): str(value) for name, value in self._decoder.decode(frame.data)}
                    if frame.stream_id == stream:
                        last = _named(found) or last
                if frame.stream_id != stream:
                    continue
                if isinstance(frame, DataFrame):
                    answer += len(frame.data)
                    self.send(WindowUpdateFrame(0, window_increment=max(1, frame.flow_controlled_length)))
                if isinstance(frame, RstStreamFrame):
                    return last or f"reset {frame.error_code}"
                if "END_STREAM" in frame.flags:
                    return last if last != ANSWERED or answer else "nothing"
        except TimeoutError:
            return "no answer"
        return GONE

    def state(self) -> str:
        """Whether the server still listens on this connection: it answers a ping, or has closed it."""
        mark = b"hostile?"
        self.send(PingFrame(0, opaque_data=mark))
        try:
            for frame in self.frames():
                if isinstance(frame, GoAwayFrame):
                    return GONE
                if isinstance(frame, PingFrame) and "ACK" in frame.flags and frame.opaque_data == mark:
                    return OPEN
        except TimeoutError:
            return "no answer"
        return GONE


def data(stream: int, body: bytes, *, end: bool = False) -> DataFrame:
    return DataFrame(stream, body, flags=["END_STREAM"] if end else [])


def _named(headers: dict[str, str]) -> str:
    """The ending that these headers tell; empty if they only begin an answer."""
    if "grpc-status" in headers:
        return f"{_STATUS[int(headers['grpc-status'])]} {headers.get(KIND_METADATA, '')}".strip()
    status = headers.get(":status", "200")
    return "" if status == "200" else f"HTTP {status}"
