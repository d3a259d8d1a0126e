"""Messages as weapons: bytes that are no protobuf, envelopes that lie, compression that swells."""

import gzip
import zlib
from collections.abc import Callable
from typing import Final

import grpc
import numpy as np
from pocketlens_wire.limits import MAX_REQUEST_BYTES
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.hostile.case import ANSWERED, MISMATCH, REFUSED, TOO_LARGE, UNKNOWN_METHOD, Case, case
from pocketlens_bench.hostile.http2 import SEARCH, Header, headers_of, message
from pocketlens_bench.hostile.target import Target

Act = Callable[[Target], str]

SEED: Final = 6
BOMB_BYTES: Final = 32 << 20
ENVELOPE: Final = "INTERNAL"  # what gRPC itself says, without a kind, of an envelope that it cannot open
LATE: Final = ("DEADLINE_EXCEEDED", "CANCELLED")
IN_TIME: Final = ("grpc-timeout", "300m")  # for a message that does not come: until then it is waited for
GOOD_OR_NOT: Final = (REFUSED, MISMATCH, ANSWERED)  # what random damage may come to


def _raw(body: bytes) -> Act:
    return lambda to: to.raw(body)


def _good(to: Target) -> bytes:
    return to.question().SerializeToString()


def _after_good(more: bytes) -> Act:
    """A good question, and `more` fields behind it."""
    return lambda to: to.raw(_good(to) + more)


def _random(to: Target) -> str:
    drawn = np.random.default_rng(SEED)
    return to.all_of([drawn.bytes(int(size)) for size in drawn.integers(1, 600, 200)], GOOD_OR_NOT)


def _truncated(to: Target) -> str:
    """At every offset of a question with all kinds of fields, whose tokens are few."""
    whole = to.question(
        sentence=pb.Sentence(encoding=pb.TOKEN_ENCODING_INT8, count=1, width=3, data=b"abc", scales=b"abcd"),
        modifiers=[pb.Modifier(words="red", weight=0.5)],
        where=pb.Filter(any_of=[pb.Clause(condition=pb.Condition(key="k", near=pb.Near(latitude=1)))]),
    ).SerializeToString()
    return to.all_of([whole[:size] for size in range(len(whole))], (REFUSED, MISMATCH))


def _flipped(to: Target) -> str:
    drawn, whole = np.random.default_rng(SEED), _good(to)
    bodies = [
        whole[:place] + bytes([whole[place] ^ 1 << int(drawn.integers(8))]) + whole[place + 1 :]
        for place in drawn.integers(0, len(whole), 200)
    ]
    return to.all_of(bodies, GOOD_OR_NOT)


def _repeated(to: Target) -> str:
    return to.raw(_good(to) * (MAX_REQUEST_BYTES // len(_good(to))))


def _nested_bytes(depth: int) -> bytes:
    """`where`, whose clause's filter has a clause ... each a length and what it holds."""
    inner = b""
    for _ in range(depth):
        inner = _field(1, _field(2, inner))
    return _field(9, inner)


def _field(number: int, held: bytes) -> bytes:
    size, length = len(held), b""
    while True:
        length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        if not (size := size >> 7):
            return bytes([number << 3 | 2]) + length + held


# --- by hand, over HTTP/2


def _enveloped(
    body: bytes | None = None, *more: Header, path: str = SEARCH, flag: int = 0, length: int | None = None,
    **changed: str | None,
) -> Act:  # fmt: skip
    """A whole call whose envelope, or headers, are not as gRPC's own library would send them. body: None is a good
    question; changed: as headers_of takes it."""

    def act(to: Target) -> str:
        with to.line() as line:
            envelope = message(_good(to) if body is None else body, flag=flag, length=length)
            line.send(*line.asks(1, envelope, headers_of(path, *more, **changed)))
            return line.outcome()

    return act


def _bodiless(to: Target) -> str:
    """The stream ends with its headers."""
    with to.line() as line:
        line.send(line.opening(1, [*headers_of(), IN_TIME], end=True))
        return line.outcome()


def _two_messages(to: Target) -> str:
    with to.line() as line:
        line.send(*line.asks(1, message(_good(to)) * 2))
        return line.outcome()


def _bomb(squeezed: bytes, how: str) -> Act:
    """A message of 32 MiB that came as some 30 KB."""
    return _enveloped(squeezed, ("grpc-encoding", how), flag=1)


def _squeezed_good(to: Target) -> str:
    return to.raw(_good(to), compression=grpc.Compression.Gzip)


_SWOLLEN: Final = _field(127 % 16, bytes(BOMB_BYTES))

CASES: list[Case] = [
    case("messages", "random", "200 times random bytes", GOOD_OR_NOT, _random),
    case("messages", "truncated", "a question cut off at every offset", REFUSED, _truncated),
    case("messages", "flipped", "200 times a question with one bit turned", GOOD_OR_NOT, _flipped),
    case("messages", "empty", "no bytes at all", REFUSED, _raw(b"")),
    case("messages", "unknown-fields", "60,000 bytes of fields nobody knows", ANSWERED,
         _after_good(b"\xfa\x7f\x03abc" * 10_000)),
    case("messages", "duplicate-fields", "the whole question again and again, to 64 KiB", ANSWERED, _repeated),
    case("messages", "other-wire-type", "a known field as another type", ANSWERED, _after_good(b"\x30\x05\x32\x01x")),
    case("messages", "deep", "messages in messages, 5,000 deep", REFUSED, _raw(_nested_bytes(5000))),
    case("messages", "groups", "10,000 groups that begin and never end", REFUSED, _raw(b"\x1b" * 10_000)),
    case("messages", "closed-groups", "5,000 groups in each other", REFUSED,
         _raw(b"\xfb\x07" * 5000 + b"\xfc\x07" * 5000)),
    case("messages", "huge-varint", "a number of 11 bytes", REFUSED, _after_good(b"\x30" + b"\xff" * 10 + b"\x01")),
    case("messages", "huge-length", "a field said to have 2**35 bytes", REFUSED,
         _after_good(b"\x22\xff\xff\xff\xff\x7f")),
    case("messages", "field-zero", "a field of number 0", REFUSED, _after_good(b"\x02\x01x")),
    case("messages", "wire-type-seven", "a wire type that does not exist", REFUSED, _after_good(b"\x0f")),
    case("messages", "unknown-enum", "a mode of number -1", REFUSED, _after_good(b"\x28" + b"\xff" * 9 + b"\x01")),
    case("messages", "one-byte-too-large", "one byte more than 64 KiB", TOO_LARGE, _raw(bytes(MAX_REQUEST_BYTES + 1))),
    case("messages", "four-megabytes", "4 MiB", TOO_LARGE, _raw(bytes(4 << 20))),
    case("messages", "of-another-method", "a question to Describe", ANSWERED,
         lambda to: to.raw(_good(to), "/pocketlens.v1.Retrieval/Describe")),
    case("messages", "no-such-method", "a method that does not exist", UNKNOWN_METHOD,
         lambda to: to.raw(_good(to), "/pocketlens.v1.Retrieval/Nothing")),
    case("messages", "compressed", "a good question, compressed", ANSWERED, _squeezed_good),
    case("messages", "gzip-bomb", "32 MiB that came as 32 KB", TOO_LARGE, _bomb(gzip.compress(_SWOLLEN), "gzip")),
    case("messages", "deflate-bomb", "the same by deflate", TOO_LARGE, _bomb(zlib.compress(_SWOLLEN, 9), "deflate")),
    case("messages", "no-gzip", "said to be gzip, and is not", ENVELOPE,
         _enveloped(b"x" * 100, ("grpc-encoding", "gzip"), flag=1)),
    case("messages", "unknown-compression", "compressed in a way nobody knows", ENVELOPE,
         _enveloped(None, ("grpc-encoding", "br"), flag=1)),
    case("messages", "compressed-by-nothing", "said to be compressed, and not how", ENVELOPE, _enveloped(None, flag=1)),
    case("messages", "wrong-flag", "an envelope of kind 255", REFUSED, _enveloped(None, flag=255)),
    case("messages", "length-short", "an envelope that says fewer bytes than come", REFUSED,
         _enveloped(None, length=5)),
    case("messages", "length-long", "an envelope that says 4 GiB", TOO_LARGE, _enveloped(None, length=2**32 - 1)),
    case("messages", "length-beyond", "an envelope that says more bytes than come", LATE,
         _enveloped(None, IN_TIME, length=9000)),
    case("messages", "no-message", "headers, and the end of the stream", LATE, _bodiless),
    case("messages", "two-messages", "two messages where one is asked for", ANSWERED, _two_messages),
    case("messages", "json", "the content type of JSON, and JSON", REFUSED, _enveloped(b"{}", type="application/json")),
    case("messages", "no-content-type", "no content type", ANSWERED, _enveloped(None, type=None)),
    case("messages", "by-get", "GET instead of POST", "reset 2", _enveloped(None, method="GET")),
    case("messages", "no-path", "a path of one slash", UNKNOWN_METHOD, _enveloped(None, path="/")),
    case("messages", "endless-path", "a path of 6,000 letters", UNKNOWN_METHOD,
         _enveloped(None, path="/" + "a" * 6000)),
    case("messages", "bad-timeout", "a deadline that is no time", ENVELOPE, _enveloped(None, ("grpc-timeout", "soon"))),
    case("messages", "no-time", "a deadline of 0 nanoseconds", "DEADLINE_EXCEEDED",
         _enveloped(None, ("grpc-timeout", "0n"))),
    case("messages", "odd-request-id", "a request id of control codes and 5,000 letters", ANSWERED,
         _enveloped(None, ("x-request-id", "a\tb" + "x" * 5000), ("traceparent", "00-zz-zz-01"))),
]  # fmt: skip
