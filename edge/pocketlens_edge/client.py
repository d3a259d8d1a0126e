"""Ask the retrieval service, blocking or in asyncio.

Owns who is asked and when it is over: a server through a channel, or a gallery on this device. What is asked is
questions.py, what came back answers.py, the channel connection.py. Called by the command line, the demo and the
benchmarks; knows no pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from pocketlens_wire.api_key import ApiKey
from pocketlens_wire.errors import BadQuery, Unavailable
from pocketlens_wire.tokens import Encoding
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

from pocketlens_edge.answers import ENVELOPE_BYTES, Answer, Hit, answer_of
from pocketlens_edge.connection import (
    ATTEMPTS,
    Tls,
    Trace,
    check_server,
    key_metadata,
    open_async_channel,
    open_channel,
    plain_error,
    trace_metadata,
)
from pocketlens_edge.questions import Mode, Scalar, question

if TYPE_CHECKING:
    from pocketlens_edge.encoder import Encoder

__all__ = ["ATTEMPTS", "ENVELOPE_BYTES", "Answer", "Answerer", "AsyncClient", "Client", "Hit", "Tls", "open_channel"]

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Answerer(Protocol):
    """What answers in this process, without a network: see `local.open_gallery`. Raises PocketlensErrors."""

    def search(self, request: pb.SearchRequest) -> pb.SearchReply: ...
    def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply: ...


class Client:
    """Asks one server, or a gallery on this device; threads may share it. A context manager; it closes what it opened.

    Args:
        server: HOST:PORT, or what `open_gallery` gave.
        encoder: whose tokens are sent; its two ids go with every question.
        token_space, encoder_id: the same two where no encoder is loaded: for words alone, or tokens made elsewhere.
        timeout_s: deadline of a question, retries included, seconds; a gallery on this device has none.
        encoding: how tokens travel.
        tls: how the connection is encrypted; None: not at all.
        api_key: what a server that asks for keys knows this device by; sent only encrypted, or within this machine.
        trace: gives the W3C traceparent that a question is sent with, such as `traces.traceparent`; None: none.
        channel: a ready gRPC channel to use instead of opening one to `server`; the caller closes it, and answers for
            who can read a key that goes through it.
    """

    def __init__(
        self,
        server: str | Answerer,
        encoder: Encoder | None = None,
        *,
        token_space: str = "",
        encoder_id: str = "",
        timeout_s: float = 5.0,
        encoding: Encoding = Encoding.INT8,
        tls: Tls | None = None,
        api_key: ApiKey | str | None = None,
        trace: Trace | None = None,
        channel: grpc.Channel | None = None,
    ) -> None:
        self.token_space, self.encoder_id = _ids(encoder, token_space, encoder_id)
        self.server, self.timeout_s, self.encoding = str(server), _positive(timeout_s), encoding
        self._remote = _Remote(server, timeout_s, tls, api_key, trace, channel) if isinstance(server, str) else None
        self._answerer = self._remote or cast("Answerer", server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless it was handed in. Nothing can be asked afterwards."""
        if self._remote:
            self._remote.close()

    def describe(self) -> pb.DescribeReply:
        """What the service speaks and allows. Raises a PocketlensError in plain words."""
        return self._answerer.describe(pb.DescribeRequest())

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
        return self.ask(self.question(tokens, words, top=top, mode=mode, where=where))

    def question(
        self,
        tokens: NDArray[np.float32] | None,
        words: str = "",
        *,
        top: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Scalar] | None = None,
    ) -> pb.SearchRequest:
        """What `search` would ask. Raises BadQuery for what cannot be asked; nothing is sent."""
        return _question(self, tokens, words, top, mode, where)

    def ask(self, request: pb.SearchRequest) -> Answer:
        """Ask a question as it is, such as one that was kept. Raises the PocketlensError of the server's status."""
        start = perf_counter()
        reply = self._answerer.search(request)
        took_ms = 1e3 * (perf_counter() - start)
        sent = request.ByteSize() if self._remote else 0
        return answer_of(reply, request, server=self.server, round_trip_ms=took_ms, request_bytes=sent)


class AsyncClient:
    """`Client` for asyncio: the same arguments, questions, answers and errors. An asynchronous context manager.

    Tasks of one event loop may share it, that in which it is first used. Cancelling a task cancels its question. A
    gallery on this device is searched in a thread. Encoding blocks: `await asyncio.to_thread(encoder.encode, picture)`.
    """

    def __init__(
        self,
        server: str | Answerer,
        encoder: Encoder | None = None,
        *,
        token_space: str = "",
        encoder_id: str = "",
        timeout_s: float = 5.0,
        encoding: Encoding = Encoding.INT8,
        tls: Tls | None = None,
        api_key: ApiKey | str | None = None,
        trace: Trace | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self.token_space, self.encoder_id = _ids(encoder, token_space, encoder_id)
        self.server, self.timeout_s, self.encoding = str(server), _positive(timeout_s), encoding
        self._remote = (
            _AsyncRemote(server, timeout_s, tls, api_key, trace, channel) if isinstance(server, str) else None
        )
        self._answerer = self._remote or _InThread(cast("Answerer", server))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, unless it was handed in. Nothing can be asked afterwards."""
        if self._remote:
            await self._remote.close()

    async def describe(self) -> pb.DescribeReply:
        """What the service speaks and allows. Raises a PocketlensError in plain words."""
        return await self._answerer.describe(pb.DescribeRequest())

    async def search(
        self,
        tokens: NDArray[np.float32] | None,
        words: str = "",
        *,
        top: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Scalar] | None = None,
    ) -> Answer:
        """As `Client.search`."""
        return await self.ask(_question(self, tokens, words, top, mode, where))

    async def ask(self, request: pb.SearchRequest) -> Answer:
        """As `Client.ask`."""
        start = perf_counter()
        reply = await self._answerer.search(request)
        took_ms = 1e3 * (perf_counter() - start)
        sent = request.ByteSize() if self._remote else 0
        return answer_of(reply, request, server=self.server, round_trip_ms=took_ms, request_bytes=sent)


def _ids(encoder: Encoder | None, token_space: str, encoder_id: str) -> tuple[str, str]:
    """Token space and encoder id, from an encoder or as they were given."""
    if encoder is None:
        if not token_space:
            raise TypeError("a client needs an encoder, or the token_space (and encoder_id) of the tokens it sends")
        return token_space, encoder_id
    if token_space or encoder_id:
        raise TypeError("give a client an encoder or the two ids, not both")
    return encoder.manifest.token_space, encoder.encoder_id


def _positive(timeout_s: float) -> float:
    if not timeout_s > 0:
        raise BadQuery(f"timeout is {timeout_s} s; it must be more than 0.")
    return timeout_s


def _question(
    asker: Client | AsyncClient,
    tokens: NDArray[np.float32] | None,
    words: str,
    top: int,
    mode: Mode | None,
    where: Mapping[str, Scalar] | None,
) -> pb.SearchRequest:
    return question(
        token_space=asker.token_space,
        encoder_id=asker.encoder_id,
        tokens=tokens,
        words=words,
        encoding=asker.encoding,
        top=top,
        mode=mode,
        where=where or {},
    )


class _Remote:
    """An Answerer behind a channel."""

    def __init__(
        self,
        server: str,
        timeout_s: float,
        tls: Tls | None,
        key: ApiKey | str | None,
        trace: Trace | None,
        channel: grpc.Channel | None,
    ) -> None:
        self._server, self._timeout_s, self._tls, self._trace = server, timeout_s, tls, trace
        self._metadata = key_metadata(key, server, encrypted=bool(tls or channel))
        self._channel = channel or open_channel(server, tls)
        self._owns_channel = channel is None
        self._stub = RetrievalStub(self._channel)

    def search(self, request: pb.SearchRequest) -> pb.SearchReply:
        return self._call(self._stub.Search, request)

    def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        return self._call(self._stub.Describe, request)

    def close(self) -> None:
        if self._owns_channel:
            self._channel.close()

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request) -> Reply:
        try:
            return method(request, timeout=self._timeout_s, metadata=(*self._metadata, *trace_metadata(self._trace)))
        except grpc.RpcError as error:
            failed = cast("grpc.Call", error)
            raise plain_error(failed, server=self._server, timeout_s=self._timeout_s, tls=self._tls) from None


class _AsyncRemote:
    """The same in asyncio. Its channel is opened by the first question, as a channel belongs to an event loop."""

    def __init__(
        self,
        server: str,
        timeout_s: float,
        tls: Tls | None,
        key: ApiKey | str | None,
        trace: Trace | None,
        channel: grpc.aio.Channel | None,
    ) -> None:
        self._server, self._timeout_s, self._tls, self._trace = server, timeout_s, tls, trace
        self._metadata = key_metadata(key, server, encrypted=bool(tls or channel))
        self._channel = channel
        self._owns_channel = channel is None
        self._closed = False
        check_server(server, tls)

    async def search(self, request: pb.SearchRequest) -> pb.SearchReply:
        return await self._call(self._stub().Search, request)

    async def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        return await self._call(self._stub().Describe, request)

    async def close(self) -> None:
        self._closed = True
        if self._owns_channel and self._channel:
            await self._channel.close()

    def _stub(self) -> Any:
        if self._closed:
            raise ValueError("the client is closed")
        self._channel = self._channel or open_async_channel(self._server, self._tls)
        return RetrievalStub(cast("grpc.Channel", self._channel))  # generated code takes both kinds

    async def _call(self, method: Callable[..., Awaitable[Reply]], request: Message) -> Reply:
        try:
            return await method(
                request, timeout=self._timeout_s, metadata=(*self._metadata, *trace_metadata(self._trace))
            )
        except grpc.aio.AioRpcError as failed:
            raise plain_error(failed, server=self._server, timeout_s=self._timeout_s, tls=self._tls) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):  # gRPC cancels what is under way; nobody else did
                raise Unavailable(f"{self._server}: the client was closed before the answer came.") from None
            raise


class _InThread:
    """An Answerer of this process, asked without holding up the event loop."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    async def search(self, request: pb.SearchRequest) -> pb.SearchReply:
        return await asyncio.to_thread(self._answerer.search, request)

    async def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        return await asyncio.to_thread(self._answerer.describe, request)
