"""The borders that hostile bytes meet, without a socket: what comes of them must be documented.

Shared by test_fuzz.py (hypothesis, in CI) and atheris_run.py (`make fuzz`). Each border takes bytes or a message, and
raises for whatever is neither an answer nor a refusal that docs/wire.md has."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Point
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import front, gateway, server, writing
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import HTTP_STATUS_OF, KIND_METADATA, STATUS_OF, BadPicture, BadQuery, SpaceMismatch
from pocketlens_wire.pictures import PictureSpec, fit, open_picture
from pocketlens_wire.tokens import Encoding, pack, unpack
from pocketlens_wire.v1 import gallery_pb2
from pocketlens_wire.v1 import retrieval_pb2 as pb

SEARCH, DESCRIBE, CONVERSE = (f"/pocketlens.v1.Retrieval/{name}" for name in ("Search", "Describe", "Converse"))
MINE = (BadQuery, SpaceMismatch)  # what an asker may have done wrong
ENDED = {(STATUS_OF[kind].name, kind.__name__) for kind in MINE}
HTTP = {(HTTP_STATUS_OF[kind], kind.__name__) for kind in MINE} | {(413, "BadQuery"), (415, "BadQuery")}
PAYLOAD = {"colour": "red", "count": 1, "price": 0.5, "sold": True, "at": {"lat": 1.0, "lon": 2.0}, "tags": ["a", "b"]}


class Undocumented(AssertionError):
    """An ending that no page promises."""


class _Aborted(grpc.aio.AbortError):
    pass


class _Context:
    """Of one call, as the transport would give it."""

    def __init__(self, messages: list[Any] = ()) -> None:  # type: ignore[assignment]
        self.ended: tuple[str, str] | None = None
        self._messages = [*messages, grpc.aio.EOF]

    async def read(self) -> Any:
        return self._messages.pop(0) if len(self._messages) > 1 else self._messages[0]

    def time_remaining(self) -> float | None:
        return None

    async def abort(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str], ...]) -> None:
        details.encode()  # it travels as UTF-8
        assert len(details) <= server.MAX_SENTENCE and "Traceback" not in details
        self.ended = (code.name, dict(metadata)[KIND_METADATA])
        raise _Aborted("")


@cache
def house() -> SimpleNamespace:
    """The sample bundle, a gallery with payload of every kind, the gRPC handlers and the HTTP application."""
    composer = Composer.load(default_bundle())
    home = Path(tempfile.mkdtemp(prefix="pocketlens-fuzz-"))
    names = sorted({composer.vector_of(mode) for mode in composer.modes})
    gallery = EmbeddedGallery.create(
        home / "g", dim=composer.manifest.dim, vectors=names, gallery_space=composer.manifest.gallery_space
    )
    drawn = np.random.default_rng(0)
    gallery.upsert(
        [
            Point(f"{n:032x}", {name: _unit(drawn.standard_normal(composer.manifest.dim)) for name in names}, PAYLOAD)
            for n in range(12)
        ]
    )
    gallery.flush()
    service = Service(composer, gallery)
    hands, readers = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    inside = front.Front(service, hands, readers, server.BATCH)
    page = home / "index.html"
    page.write_text("page")
    site = gateway.Site(page={"index.html": page}, bundle={}, thumbnails=None)
    return SimpleNamespace(
        loop=asyncio.new_event_loop(), facts=service.describe(), handlers=server._handlers(inside),
        application=gateway.application(inside, site, hands, host="127.0.0.1"), gallery=gallery, home=home,
        pools=(hands, readers),
    )  # fmt: skip


def leave() -> None:
    """Give back what `house` holds."""
    if not house.cache_info().currsize:
        return
    for pool in house().pools:
        pool.shutdown()
    house().gallery.close()
    house().loop.close()
    shutil.rmtree(house().home)
    house.cache_clear()


def _unit(vector: Any) -> Any:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def question(**changes: Any) -> pb.SearchRequest:
    """A good one, with fields changed; None leaves one out."""
    facts = house().facts
    tokens = np.random.default_rng(1).standard_normal((2, facts.token_width)).astype(np.float32)
    fields = {
        "token_space": facts.token_space, "encoder": facts.encoders[0], "sentence": pack(tokens, Encoding.INT8),
        "words": "in red", "top": 3,
    } | changes  # fmt: skip
    return pb.SearchRequest(**{name: value for name, value in fields.items() if value is not None})


def call(body: bytes, method: str = SEARCH) -> Message | None:
    """A unary call over gRPC's handlers: the reply, or None if it was refused as it should be."""
    handler = house().handlers.service(SimpleNamespace(method=method, invocation_metadata=()))
    context = _Context()
    try:
        reply = house().loop.run_until_complete(handler.unary_unary(handler.request_deserializer(body), context))
    except _Aborted:
        if context.ended not in ENDED:
            raise Undocumented(f"{method}: {context.ended}") from None
        return None
    handler.response_serializer(reply)
    if isinstance(reply, pb.SearchReply) and not all(-1.001 <= hit.score <= 1.001 for hit in reply.hits):
        raise Undocumented("a score that is no cosine")
    return reply


def converse(bodies: list[bytes]) -> None:
    """A conversation of these messages."""
    handler = house().handlers.service(SimpleNamespace(method=CONVERSE, invocation_metadata=()))
    context = _Context([handler.request_deserializer(body) for body in bodies])

    async def listen() -> None:
        async for reply in handler.stream_stream(None, context):
            handler.response_serializer(reply)
            kind = reply.error.kind
            if kind and kind not in {each.__name__ for each in MINE}:
                raise Undocumented(f"a turn ended in {kind}: {reply.error.message}")

    try:
        house().loop.run_until_complete(listen())
    except _Aborted:
        if context.ended not in ENDED:
            raise Undocumented(f"Converse: {context.ended}") from None


def http(body: bytes, *, kind: str = gateway.PROTOBUF, path: str = "/v1/search", pieces: int = 1) -> int:
    """A body over the gateway; the status."""
    cuts = [len(body) * n // pieces for n in range(pieces + 1)]
    events = [{"type": "http.request", "body": body[a:b], "more_body": b < len(body)} for a, b in pairwise(cuts)]
    came: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        came.append(event)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "headers": [(b"host", b"localhost"), (b"content-type", kind.encode("latin-1"))],
    }  # fmt: skip
    house().loop.run_until_complete(house().application(scope, receive, send))
    status = came[0]["status"]
    said = b"".join(each.get("body", b"") for each in came)
    if status == 200:
        (pb.SearchReply if path == "/v1/search" else pb.DescribeReply).FromString(said)
    elif (status, json.loads(said)["kind"]) not in HTTP:
        raise Undocumented(f"HTTP {status}: {said[:300]!r}")
    return status


def tokens(body: bytes) -> None:
    """A sentence: refused, or numbers that pack again to what unpacks alike."""
    try:
        sentence = pb.Sentence.FromString(body)
    except Exception:  # noqa: BLE001 - protobuf's; the service's own reader is `call`
        return
    try:
        values = unpack(sentence)
    except BadQuery:
        return
    if not np.isfinite(values).all() or values.dtype != np.float32:
        raise Undocumented("tokens that are not finite float32")
    again = unpack(pack(values, Encoding.F32))
    if not np.array_equal(values, again):
        raise Undocumented("tokens that do not survive the wire")


def picture(body: bytes) -> None:
    """A file: refused as BadPicture, or a square of pixels."""
    try:
        seen = fit(open_picture(body, near=8), PictureSpec(8, "crop"))
    except BadPicture:
        return
    if seen.shape != (8, 8, 3) or seen.dtype != np.uint8:
        raise Undocumented(f"a picture of {seen.shape}")


def gallery_message(body: bytes) -> None:
    """What Gallery.Add reads of a message before it touches the gallery."""
    read = server.reader(gallery_pb2.AddRequest)

    async def arrive() -> None:
        async def messages() -> Any:
            yield read(body)

        begin, _ = await writing._arrived(messages())
        for key, value in begin.payload.items():
            writing._scalar(value, key)
        for vector in begin.vectors:
            writing._vector(vector.data)

    try:
        house().loop.run_until_complete(arrive())
    except MINE:
        return
