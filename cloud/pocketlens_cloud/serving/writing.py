"""pocketlens.v1.Gallery: pictures added to and removed from the gallery of a running server.

Owns how a picture comes together from its messages and how many may be on their way; what a write is belongs to
indexing/writing.py. Offered only where `serve --writable` asks for it; who may call it is the door's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, final

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadQuery, Overloaded, TooLate
from pocketlens_wire.limits import MAX_CHUNK_BYTES, MAX_PICTURE_BYTES
from pocketlens_wire.v1 import gallery_pb2 as pb

from pocketlens_cloud.gallery.payload import Scalar
from pocketlens_cloud.indexing.writing import Writer
from pocketlens_cloud.serving import server as transport

MAX_ADDING: Final = 8  # pictures on their way at once; each may hold MAX_PICTURE_BYTES
ARRIVING_S: Final = 60.0  # for all messages of one picture


@final
class WritingService:
    """The two methods, as coroutines around a Writer."""

    def __init__(self, writer: Writer, *, arriving_s: float = ARRIVING_S) -> None:
        self._writer, self._arriving_s = writer, arriving_s
        self._hands = ThreadPoolExecutor(2, "write")  # one decodes while the other writes
        self._adding = 0

    def register(self, server: grpc.aio.Server) -> None:
        """For server.run's `further`."""
        server.add_generic_rpc_handlers([_handlers(self)])

    def close(self) -> None:
        """Finish what is being written and settle the gallery."""
        self._hands.shutdown()
        self._writer.close()

    async def add(self, requests: AsyncIterator[Any], _: Any) -> pb.AddReply:
        if self._adding >= MAX_ADDING:
            raise Overloaded(f"{MAX_ADDING} pictures are on their way already: try again in a moment")
        self._adding += 1
        try:
            async with asyncio.timeout(self._arriving_s):
                begin, data = await _arrived(requests)
            return await self._in_thread(self._add, begin, data)
        except TimeoutError as error:
            raise TooLate(f"the picture did not arrive within {self._arriving_s:g} s") from error
        finally:
            self._adding -= 1

    async def remove(self, request: pb.RemoveRequest, _: Any) -> pb.RemoveReply:
        removed, state = await self._in_thread(self._writer.remove, list(request.ids))
        return pb.RemoveReply(removed=removed, generation=state.generation, gallery_size=state.size)

    async def _in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._hands, work, *given)

    def _add(self, begin: pb.Begin, data: bytes) -> pb.AddReply:
        payload = {key: _scalar(value, key) for key, value in begin.payload.items()}
        if begin.vectors:
            vectors = {vector.name: _vector(vector.data) for vector in begin.vectors}
            point = begin.id
            was_there, state = self._writer.add_vectors(point, begin.gallery_space, vectors, payload)
        else:
            self._writer.check_space(begin.gallery_space or self._writer.gallery.gallery_space)
            point, was_there, state = self._writer.add_picture(data, payload)
        return pb.AddReply(id=point, was_there=was_there, generation=state.generation, gallery_size=state.size)


async def _arrived(requests: AsyncIterator[Any]) -> tuple[pb.Begin, bytes]:
    """The first message and the bytes of the others, never more of them than were announced. Raises BadQuery."""
    begin: pb.Begin | None = None
    data = bytearray()
    async for request in requests:
        if not isinstance(request, pb.AddRequest):
            raise BadQuery(request.reason)
        part = request.WhichOneof("part")
        if begin is None:
            if part != "begin":
                raise BadQuery("the first message must be `begin`")
            begin = _checked(request.begin)
        elif part != "chunk" or not 1 <= len(request.chunk) <= MAX_CHUNK_BYTES:
            raise BadQuery(f"after `begin` come chunks of 1 to {MAX_CHUNK_BYTES} bytes")
        elif len(data) + len(request.chunk) > begin.picture_bytes:
            raise BadQuery(f"picture_bytes said {begin.picture_bytes}; more came")
        else:
            data += request.chunk
    if begin is None:
        raise BadQuery("nothing came: begin with `begin`")
    if len(data) != begin.picture_bytes:
        raise BadQuery(f"picture_bytes said {begin.picture_bytes}; {len(data)} came")
    return begin, bytes(data)


def _checked(begin: pb.Begin) -> pb.Begin:
    """Either a picture or vectors, and no more of it than may come."""
    if bool(begin.vectors) == bool(begin.picture_bytes):
        raise BadQuery("send either a picture (picture_bytes, then chunks) or vectors")
    if begin.picture_bytes > MAX_PICTURE_BYTES:
        raise BadQuery(f"a picture's file may have {MAX_PICTURE_BYTES} bytes; {begin.picture_bytes} were announced")
    if begin.id and not begin.vectors:
        raise BadQuery("a picture's id follows from its bytes: leave `id` empty, or send vectors with it")
    return begin


def _scalar(value: Any, key: str) -> Scalar:
    kind = value.WhichOneof("kind")
    if kind is None:
        raise BadQuery(f"payload key `{key[:64]}` has no value")
    return getattr(value, kind)


def _vector(data: bytes) -> NDArray[np.float32]:
    if len(data) % 4:
        raise BadQuery("a vector's data is little-endian float32, four bytes a number")
    return np.frombuffer(data, "<f4").astype(np.float32)


def _handlers(service: WritingService) -> grpc.GenericRpcHandler:
    methods = {
        "Add": (grpc.stream_unary_rpc_method_handler, pb.AddRequest, service.add),
        "Remove": (grpc.unary_unary_rpc_method_handler, pb.RemoveRequest, service.remove),
    }
    return grpc.method_handlers_generic_handler(
        pb.DESCRIPTOR.services_by_name["Gallery"].full_name,
        {
            name: handler(
                transport.answering(method),
                request_deserializer=transport.reader(request),
                response_serializer=lambda reply: reply.SerializeToString(),
            )
            for name, (handler, request, method) in methods.items()
        },
    )
