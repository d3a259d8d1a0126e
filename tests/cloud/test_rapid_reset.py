"""HTTP/2 as a weapon: streams opened and reset at once (CVE-2023-44487), and more of them than may be."""

from __future__ import annotations

import socket
import struct
import time

import grpc
import pytest
from pocketlens_cloud.serving.server import MAX_STREAMS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 1, 3, 4, 6, 7
CANCEL, REFUSED = 8, 7


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """One header in HPACK, plain and not remembered."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


CALL = b"".join(
    literal(*each)
    for each in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/pocketlens.v1.Retrieval/Search"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)


def opening(stream: int) -> bytes:
    """A call that has begun and whose message never comes."""
    return frame(HEADERS, 0x4, stream, CALL)


def frames(line: socket.socket):
    """What the server sends, until it closes."""
    with line.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            payload = stream.read(int.from_bytes(head[:3]))
            yield head[3], int.from_bytes(head[5:9]) & 0x7FFFFFFF, payload


@pytest.fixture
def line(running):
    host, _, port = running.address.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as line:
        line.sendall(PREFACE + frame(SETTINGS, 0, 0))
        yield line


def answered(running, toy):
    """The hits of a question; one that gRPC ends because too many calls wait is asked again, as clients do."""
    for left in reversed(range(20)):
        try:
            return running.search(toy.request()).hits
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED or not left:
                raise
            time.sleep(0.05)
    raise AssertionError


def test_a_flood_of_reset_streams_holds_up_nobody_else(running, toy, line):
    reset = struct.pack(">I", CANCEL)
    for first in range(1, 20_001, 1000):
        try:
            line.sendall(b"".join(opening(i) + frame(RST_STREAM, 0, i, reset) for i in range(first, first + 1000, 2)))
        except ConnectionError:
            break  # the server has had enough of this connection, as it may
        assert answered(running, toy)
    assert answered(running, toy)


def test_a_connection_has_so_many_streams_and_no_more(running, toy, line):
    came = frames(line)
    told = next(payload for kind, _, payload in came if kind == SETTINGS and payload)
    assert dict(struct.iter_unpack(">HI", told))[3] == MAX_STREAMS  # SETTINGS_MAX_CONCURRENT_STREAMS
    line.sendall(frame(SETTINGS, 0x1, 0))
    refused = 0
    for first in range(0, MAX_STREAMS + 200, 100):
        line.sendall(b"".join(opening(2 * i + 1) for i in range(first, first + 100)) + frame(PING, 0, 0, bytes(8)))
        for kind, _, payload in came:
            assert kind != GOAWAY
            refused += kind == RST_STREAM and payload == struct.pack(">I", REFUSED)
            if kind == PING:
                break
        assert running.search(toy.request()).hits  # behind them, so that they do not pile up before the loop
    while refused < 200:
        kind, _, payload = next(came)
        refused += kind == RST_STREAM and payload == struct.pack(">I", REFUSED)
