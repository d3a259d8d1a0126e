"""The server that is tried: how cases ask it, and the three things that must hold after each of them.

Owns the good question and what of its answer must not change. Knows no case."""

import http.client
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, final

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pocketlens_cloud.gallery.times import microseconds
from pocketlens_wire.errors import PocketlensError, ServerFault
from pocketlens_wire.limits import MAX_CHUNK_BYTES
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import gallery_pb2, gallery_pb2_grpc, retrieval_pb2_grpc
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.hostile.case import ANSWERED, BUSY, CANCELLED, Lacking, ending, ending_of_call
from pocketlens_bench.hostile.http2 import Line

DEADLINE_S: Final = 30.0
HEALTHY_S: Final = 20.0
TRIES, AGAIN_S = 50, 0.2
WORDS: Final = "the same in red"
TOKENS: Final = 4
PROTOBUF: Final = "application/x-protobuf"

_SERVING = health_pb2.HealthCheckResponse.SERVING  # pyright: ignore[reportAttributeAccessIssue]
_CHANNEL: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
                   ("grpc.max_metadata_size", 1 << 24), ("grpc.use_local_subchannel_pool", 1)]  # fmt: skip


@dataclass(frozen=True)
class Doors:
    """The keys of a server that asks for them. Each the key itself; `file`: the file of them, which may be spoilt."""

    good: str
    index: str
    revoked: str
    expired: str
    file: Path


@dataclass(frozen=True)
class Indexing:
    """A folder of hostile files, and how indexing it ended for each, by name."""

    folder: Path
    ended: Callable[[str], str]


@final
@dataclass(kw_only=True)
class Target:
    """One server.

    is_alive: whether its process runs; None where that cannot be known. web: HOST:PORT of its page. device: what a
    device does with a picture's file. indexing: the hostile files, laid and indexed once; None: nothing may be written
    to this server's gallery."""

    address: str
    is_alive: Callable[[], bool] | None = None
    web: str | None = None
    doors: Doors | None = None
    device: Callable[[Path], object] | None = None
    indexing: Callable[[], Indexing] | None = None
    _channel: grpc.Channel = field(init=False)

    def __post_init__(self) -> None:
        self._channel = grpc.insecure_channel(self.address, _CHANNEL)

    def close(self) -> None:
        self._channel.close()

    # --- asking

    @property
    def bearer(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.doors.good}"),) if self.doors else ()

    @cached_property
    def facts(self) -> pb.DescribeReply:
        """What the server says it speaks. Raises ServerFault if none answers."""
        stub = retrieval_pb2_grpc.RetrievalStub(self._channel)
        try:
            return stub.Describe(pb.DescribeRequest(), timeout=DEADLINE_S, metadata=self.bearer, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ServerFault(f"{self.address}: does not describe itself ({ending_of_call(error)})") from error

    def tokens(self, count: int = TOKENS, width: int = 0) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """(count, width) float32, the same every time; 0: as wide as the server's."""
        drawn = np.random.default_rng(20_260).standard_normal((count, width or self.facts.token_width))
        return drawn.astype(np.float32)

    def question(self, **changes: Any) -> pb.SearchRequest:
        """The good question, with fields changed; None leaves one out."""
        fields = {
            "token_space": self.facts.token_space, "encoder": self.facts.encoders[0],
            "sentence": pack(self.tokens(), Encoding.INT8), "words": WORDS, "top": min(10, self.facts.gallery_size),
        } | changes  # fmt: skip
        return pb.SearchRequest(**{name: value for name, value in fields.items() if value is not None})

    def search(self, **changes: Any) -> str:
        return self.raw(self.question(**changes).SerializeToString())

    def wordless(self, **changes: Any) -> str:
        """A question that is nothing but what is said in `changes`."""
        return self.search(**{"sentence": None, "encoder": None, "words": None, **changes})

    def raw(
        self, body: bytes, method: str = "/pocketlens.v1.Retrieval/Search", metadata: Sequence[tuple[str, str]] = (),
        **how: Any,
    ) -> str:  # fmt: skip
        """Any bytes as the request of any method; how that ended."""
        try:
            given = tuple(metadata) or self.bearer
            self._channel.unary_unary(method)(body, timeout=DEADLINE_S, metadata=given, **how)
        except grpc.RpcError as error:
            return ending_of_call(error)
        return ANSWERED

    def with_headers(self, *authorization: str, method: str = "/pocketlens.v1.Retrieval/Search") -> str:
        """The good question, with these values of `authorization` and no others, over a channel of its own."""
        body = self.question().SerializeToString()
        with grpc.insecure_channel(self.address, _CHANNEL) as channel:
            try:
                channel.unary_unary(method)(
                    body, timeout=DEADLINE_S, metadata=tuple(("authorization", value) for value in authorization)
                )
            except grpc.RpcError as error:
                return ending_of_call(error)
        return ANSWERED

    def all_of(self, bodies: Sequence[bytes], allowed: Sequence[str]) -> str:
        """Ask each; the first ending that is none of `allowed`, else the first of `allowed`."""
        for body in bodies:
            if (came := self.raw(body)) not in allowed:
                return f"{came} (for {body[:32].hex()}..., {len(body)} bytes)"
        return allowed[0]

    def key_of(self, kind: str) -> str:
        """A payload key whose values have that field of `Value`; no time, if texts are wanted. Raises Lacking."""
        for key, value in sorted(self._sample.items()):  # a map's own order differs from run to run
            if value.WhichOneof("kind") == kind and microseconds(value.text) is None:
                return key
        raise Lacking(f"a gallery with payload of the kind `{kind}`")

    @cached_property
    def _sample(self) -> dict[str, pb.Value]:
        return dict(self._ask().hits[0].payload)

    def line(self, told: dict[int, int] | None = None, *, silent: bool = False) -> Line:
        return Line(self.address, told, silent=silent)

    # --- pictures

    def add(self, data: bytes, *, announced: int | None = None) -> str:
        """A picture into the gallery, and out of it again if it went in."""
        begin = gallery_pb2.Begin(picture_bytes=len(data) if announced is None else announced)
        chunks = (data[at : at + MAX_CHUNK_BYTES] for at in range(0, len(data), MAX_CHUNK_BYTES))
        return self.add_parts(
            [gallery_pb2.AddRequest(begin=begin), *(gallery_pb2.AddRequest(chunk=each) for each in chunks)]
        )

    def add_parts(self, parts: Sequence[gallery_pb2.AddRequest]) -> str:
        self.own()
        stub = gallery_pb2_grpc.GalleryStub(self._channel)
        try:
            added = stub.Add(iter(parts), timeout=DEADLINE_S)
            stub.Remove(gallery_pb2.RemoveRequest(ids=[added.id]), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            return ending_of_call(error)
        return ANSWERED

    def seen(self, picture: Path) -> str:
        """How the device's encoder takes a picture."""
        if self.device is None:
            raise Lacking("a bundle's device half")
        try:
            self.device(picture)
        except PocketlensError as error:
            return ending(error)
        return ANSWERED

    def own(self) -> "Indexing":
        """What only a server of our own has. Raises Lacking."""
        if self.indexing is None:
            raise Lacking("a server of its own, whose gallery may be written")
        return self.indexing()

    # --- HTTP

    def http(self, body: bytes, path: str = "/v1/search", method: str = "POST", **headers: str) -> str:
        """`200`, or status and kind."""
        if self.web is None:
            raise Lacking("the built page (`make web`)")
        line = http.client.HTTPConnection(self.web, timeout=DEADLINE_S)
        try:
            line.request(method, path, body, {"Content-Type": PROTOBUF, **headers})
            came = line.getresponse()
            said = came.read()
        finally:
            line.close()
        return f"{came.status}" + (" " + said.partition(b'"kind":"')[2].split(b'"')[0].decode() if said else "")

    # --- what must hold after each case

    @contextmanager
    def unharmed(self):  # noqa: ANN201 - a context manager
        """What is done inside must leave the server as it was. Raises Harmed."""
        before = self.good()
        yield
        if self.is_alive and not self.is_alive():
            raise Harmed("the server's process is gone")
        self._check_health()
        if self.good() != before and self.good() != before:  # a canary in the same batch may move a last bit, once
            raise Harmed("the good question is answered otherwise than before")

    def good(self) -> bytes:
        """The good question's answer, but for times, and for the generation, which pictures that come and go move."""
        reply = self._ask()
        reply.ClearField("times")
        reply.ClearField("generation")
        return reply.SerializeToString(deterministic=True)

    def _ask(self) -> pb.SearchReply:
        """The good question's answer; who is turned away on a busy machine asks again. Raises Harmed."""
        stub = retrieval_pb2_grpc.RetrievalStub(self._channel)
        came = ""
        for _ in range(TRIES):
            try:
                return stub.Search(self.question(), timeout=DEADLINE_S, metadata=self.bearer, wait_for_ready=True)
            except grpc.RpcError as error:
                came = ending_of_call(error)
            if came not in (BUSY, CANCELLED):  # the latter by gRPC, where too many calls wait
                break
            sleep(AGAIN_S)
        raise Harmed(f"the good question is not answered: {came}")

    def _check_health(self) -> None:
        """Says SERVING, or does so again in time: on a busy machine a canary may be late. Raises Harmed."""
        for name in ("", "pocketlens.v1.Retrieval"):
            until = monotonic() + HEALTHY_S
            while (came := self._health(name)) == CANCELLED and monotonic() < until:
                sleep(AGAIN_S)
            if came != "SERVING":
                raise Harmed(f"health of `{name}` is not SERVING, for {HEALTHY_S:g} s: {came}")

    def _health(self, name: str) -> str:
        """SERVING as soon as it is, or how the call ended."""
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=HEALTHY_S, wait_for_ready=True)
        try:
            for reply in watched:
                if reply.status == _SERVING:
                    watched.cancel()
                    return "SERVING"
        except grpc.RpcError as error:
            return ending_of_call(error)
        return "ended"


class Harmed(Exception):
    """A server that is not as it was; the message says in what."""
