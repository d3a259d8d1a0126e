"""Ask the retrieval service and understand its answer.

Owns the channel (deadline, retries, message caps) and the way back from reply or status to plain values.
What is asked is questions.py. Called by cli.py, doctor.py, the demo and the benchmarks; knows no pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Self, TypeVar, cast

import grpc
import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import (
    KIND_METADATA,
    BadQuery,
    Overloaded,
    PocketlensError,
    ServerFault,
    TooLate,
    Unavailable,
    error_from_status,
)
from pocketlens_wire.limits import MAX_REQUEST_BYTES
from pocketlens_wire.tokens import Encoding
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

from pocketlens_edge.questions import Mode, Scalar, from_value, mode_name, question

Request = TypeVar("Request")
Reply = TypeVar("Reply")

MAX_REPLY_BYTES = 4 * 1024 * 1024  # 1,000 hits with 4 KB of payload each
ENVELOPE_BYTES = 300  # see Answer.envelope_bytes
ATTEMPTS = 4  # the first and three more: about 0.1, 0.2 and 0.4 s apart, enough for a server to restart
_ADDRESS = re.compile(r"(\[[^\]\s]+\]|[^:/\s\[\]]+):\d{1,5}|unix:\S+")
_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "pocketlens.v1.Retrieval"}],
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],  # nothing else gets better by asking again
            },
        }
    ]
}


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One gallery picture. score: cosine, -1 to 1. payload: what the gallery knows of it, `file` among it."""

    id: str
    score: float
    payload: dict[str, Scalar]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one question.

    hits: best first.
    times_ms: milliseconds; the server's stages (`check`, `queue`, `text_tower`, `heads`, `search`, and their
        `total`) and `round_trip`, from the call to its reply as the device sees it.
    request_bytes: the serialised request message.
    mode: `zero-shot` or `tuned`, as it was answered.
    notes: what the asker should know, sentences.
    words_used: the words that reached the text tower, if they had to be cut; else empty.
    generation: the state of the gallery that answered.
    """

    hits: list[Hit]
    times_ms: dict[str, float]
    request_bytes: int
    mode: str
    notes: list[str]
    words_used: str
    generation: str
    token_space: str
    gallery_space: str

    @property
    def envelope_bytes(self) -> int:
        """Estimate of what gRPC adds to the message on its way up.

        Counted: all that HTTP/2 sends for the first question on a connection (its headers, frame headers,
        flow control; 291 bytes seen by a counting proxy, grpcio 1.85). Later questions need about 90, as their
        headers refer to the first's. Not counted: opening the connection (72 bytes, once) and TCP/IP."""
        return ENVELOPE_BYTES


class Client:
    """One connection to one server; threads may share it. A context manager; it closes what it opened.

    Args:
        server: HOST:PORT.
        token_space, encoder_id: of the bundle whose tokens are sent.
        timeout_s: deadline of a question, retries included, seconds.
        encoding: how tokens travel.
        channel: a ready gRPC channel to use instead of opening one to `server`; the caller closes it.
    """

    def __init__(
        self,
        server: str,
        *,
        token_space: str,
        encoder_id: str,
        timeout_s: float = 5.0,
        encoding: Encoding = Encoding.INT8,
        channel: grpc.Channel | None = None,
    ) -> None:
        if not timeout_s > 0:
            raise BadQuery(f"timeout is {timeout_s} s; it must be more than 0.")
        self.server = server
        self.token_space = token_space
        self.encoder_id = encoder_id
        self.timeout_s = timeout_s
        self.encoding = encoding
        self._channel = channel or open_channel(server)
        self._owns_channel = channel is None
        self._stub = RetrievalStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless it was handed in. Nothing can be asked afterwards."""
        if self._owns_channel:
            self._channel.close()

    def describe(self) -> pb.DescribeReply:
        """What the service speaks and allows. Raises a PocketlensError in plain words."""
        return self._call(self._stub.Describe, pb.DescribeRequest())

    def search(
        self,
        tokens: NDArray[np.float32] | None,
        words: str = "",
        *,
        top: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Scalar] | None = None,
    ) -> Answer:
        """Ask for `top` pictures: like the one in `tokens`, changed as `words` say; or for what they say.

        `tokens` is float32 (count, width), or None for words alone.
        `mode` None leaves the choice to the server; `where` keeps pictures whose payload has these values.
        Raises BadQuery before sending what cannot be asked, and otherwise the PocketlensError of the
        server's status, in plain words."""
        request = question(
            token_space=self.token_space,
            encoder_id=self.encoder_id,
            tokens=tokens,
            words=words,
            encoding=self.encoding,
            top=top,
            mode=mode,
            where=where or {},
        )
        start = perf_counter()
        reply = self._call(self._stub.Search, request)
        return _answer(reply, round_trip_ms=1e3 * (perf_counter() - start), request_bytes=request.ByteSize())

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request) -> Reply:
        try:
            return method(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise self._in_plain_words(cast("grpc.Call", error)) from None

    def _in_plain_words(self, failed: grpc.Call) -> PocketlensError:
        kind = dict(failed.trailing_metadata() or ()).get(KIND_METADATA)
        error = error_from_status(failed.code(), failed.details() or "", str(kind))
        match error:
            case TooLate():
                return TooLate(f"{self.server}, {self.timeout_s:g} s allowed: {error}")
            case Unavailable() | Overloaded() | ServerFault():
                return type(error)(f"{self.server}: {error}")
            case _:
                return error


def open_channel(server: str) -> grpc.Channel:
    """A channel with our retries and message caps; it connects on first use.

    Raises BadQuery for what is not an address."""
    if not _ADDRESS.fullmatch(server):
        raise BadQuery(f"server `{server}` is not HOST:PORT, as in 127.0.0.1:50551.")
    options: list[tuple[str, str | int]] = [
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.initial_reconnect_backoff_ms", 100),  # so that a retry meets a server that has just come up
        ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # Every byte up counts: no pings to probe bandwidth, no list of compressions (tokens do not compress).
        ("grpc.http2.bdp_probe", 0),
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # A proxy in the environment is for the world outside, and gRPC would use it for this machine too.
        ("grpc.enable_http_proxy", int(not server.startswith(_LOOPBACK))),
    ]
    return grpc.insecure_channel(server, options=options)


def _answer(reply: pb.SearchReply, *, round_trip_ms: float, request_bytes: int) -> Answer:
    times = reply.times
    return Answer(
        hits=[
            Hit(
                id=hit.id,
                score=hit.score,
                payload={key: from_value(hit.payload[key]) for key in sorted(hit.payload)},
            )
            for hit in reply.hits
        ],
        times_ms={
            "check": times.check_ms,
            "queue": times.queue_ms,
            "text_tower": times.text_tower_ms,
            "heads": times.heads_ms,
            "search": times.search_ms,
            "total": times.total_ms,
            "round_trip": round_trip_ms,
        },
        request_bytes=request_bytes,
        mode=mode_name(reply.mode),
        notes=list(reply.notes),
        words_used=reply.words_used,
        generation=reply.generation,
        token_space=reply.token_space,
        gallery_space=reply.gallery_space,
    )
