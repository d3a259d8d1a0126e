"""The ways to whoever answers: a server over gRPC, or a gallery in this process; blocking, and in asyncio.

Owns calls, their deadlines and their end, and the lines that a conversation is held over. What is asked and what comes
back are client.py's. Called by client.py alone."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message
from pocketlens_wire.api_key import ApiKey
from pocketlens_wire.errors import TooLate, Unavailable
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

from pocketlens_edge.connection import (
    Tls,
    Trace,
    check_server,
    key_metadata,
    open_async_channel,
    open_channel,
    plain_error,
    trace_metadata,
)

GOODBYE_S = 0.5  # for a server to end a conversation that its client has ended
_FAILED_TO_SEND = "Internal error from Core"  # gRPC's words, in asyncio alone

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Told = TypeVar("Told")


class Answerer(Protocol):
    """What answers in this process, without a network: see `local.open_gallery`. Raises PocketlensErrors."""

    def search(self, request: pb.SearchRequest) -> pb.SearchReply: ...
    def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply: ...
    def converse(self, messages: Iterable[pb.ConverseRequest]) -> Iterator[pb.ConverseReply]: ...


class Remote:
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

    def converse(self, messages: Iterable[pb.ConverseRequest]) -> Generator[pb.ConverseReply]:
        """Each reply must come within the deadline of a question; a conversation as a whole has none.

        Closed after `messages` has ended, it gives the server time to end the call: one that is cancelled counts as
        given up there."""
        call: Any = self._stub.Converse(iter(messages), metadata=self._metadata)
        ended = threading.Event()
        if not call.add_callback(ended.set):
            ended.set()  # it is over already
        try:
            while True:
                yield self._within_deadline(call)
        except GeneratorExit:
            ended.wait(GOODBYE_S)
            raise
        finally:
            call.cancel()

    def close(self) -> None:
        if self._owns_channel:
            self._channel.close()

    def _within_deadline(self, call: Any) -> pb.ConverseReply:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            call.cancel()

        timer = threading.Timer(self._timeout_s, give_up)
        timer.start()
        try:
            return next(call)
        except StopIteration:
            raise Unavailable(f"{self._server}: the server ended the conversation.") from None
        except grpc.RpcError as error:
            if late.is_set():
                raise _late(self._server, self._timeout_s) from None
            failed = cast("grpc.Call", error)
            raise plain_error(failed, server=self._server, timeout_s=self._timeout_s, tls=self._tls) from None
        finally:
            timer.cancel()

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request) -> Reply:
        try:
            return method(request, timeout=self._timeout_s, metadata=(*self._metadata, *trace_metadata(self._trace)))
        except grpc.RpcError as error:
            failed = cast("grpc.Call", error)
            raise plain_error(failed, server=self._server, timeout_s=self._timeout_s, tls=self._tls) from None


class AsyncRemote:
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

    def line(self) -> AsyncRemoteLine:
        return AsyncRemoteLine(self)

    def call(self) -> Any:
        """A conversation's stream."""
        return self._stub().Converse(metadata=self._metadata)

    async def said(self, saying: Awaitable[Any]) -> Any:
        """What comes of one half of a turn. Raises the error of the call in plain words."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await saying
        except TimeoutError:
            raise _late(self._server, self._timeout_s) from None
        except grpc.aio.AioRpcError as failed:
            raise plain_error(failed, server=self._server, timeout_s=self._timeout_s, tls=self._tls) from None

    def over(self) -> Unavailable:
        return Unavailable(f"{self._server}: the server ended the conversation.")

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


class InThread:
    """An Answerer of this process, asked without holding up the event loop."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    async def search(self, request: pb.SearchRequest) -> pb.SearchReply:
        return await asyncio.to_thread(self._answerer.search, request)

    async def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        return await asyncio.to_thread(self._answerer.describe, request)

    def line(self) -> InThreadLine:
        return InThreadLine(self._answerer)


# --- lines of a conversation


def _late(server: str, timeout_s: float) -> TooLate:
    return TooLate(
        f"{server}, {timeout_s:g} s allowed: the turn was not answered in time, which ends the conversation."
    )


class BlockingLine:
    """Message out, reply in, over the two iterators that gRPC and a gallery on this device take and give."""

    def __init__(self, answerer: Answerer) -> None:
        self._messages: queue.SimpleQueue[pb.ConverseRequest | None] = queue.SimpleQueue()
        self._answerer = answerer
        self._replies: Iterator[pb.ConverseReply] | None = None

    def exchange(self, message: pb.ConverseRequest) -> pb.ConverseReply:
        self._messages.put(message)
        self._replies = self._replies or self._answerer.converse(iter(self._messages.get, None))
        return next(self._replies)

    def close(self) -> None:
        self._messages.put(None)  # lets go of gRPC's thread, which waits for the next message
        if close := getattr(self._replies, "close", None):
            close()


class AsyncRemoteLine:
    """The same over a stream of gRPC's asyncio."""

    def __init__(self, remote: AsyncRemote) -> None:
        self._remote = remote
        self._call: Any = None
        self._end: grpc.aio.AioRpcError | None = None  # what the call ended with

    async def exchange(self, message: pb.ConverseRequest) -> pb.ConverseReply:
        if not self._call:
            self._call = self._remote.call()
            self._call.add_done_callback(self._note_end)
        try:
            await self._remote.said(self._write(message))
            reply = await self._remote.said(self._call.read())
        except asyncio.InvalidStateError:  # the call is over already; reading says why
            reply = await self._remote.said(self._call.read())
        except BaseException:
            self._call.cancel()
            raise
        if reply is grpc.aio.EOF:
            raise self._remote.over()
        return reply

    async def _write(self, message: pb.ConverseRequest) -> None:
        """Raises what the call ended with if it is over. Of a message that meets the end on its way gRPC says but
        "Internal error from Core", and that in the place of the status that came."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as failed:
            if failed.details() != _FAILED_TO_SEND:
                raise
            if not self._end or self._end.details() == _FAILED_TO_SEND or self._end.code() is grpc.StatusCode.OK:
                raise self._remote.over() from None
            raise self._end from None

    def _note_end(self, call: Any) -> None:
        self._end = grpc.aio.AioRpcError(
            _at_once(call.code()),
            grpc.aio.Metadata(),
            _at_once(call.trailing_metadata()),
            _at_once(call.details()),
        )

    async def close(self) -> None:
        if not self._call:
            return
        try:
            async with asyncio.timeout(GOODBYE_S):
                if not self._call.done():
                    await self._call.done_writing()
                    await self._call.code()  # the server's end of it
        except (TimeoutError, asyncio.InvalidStateError):  # the latter: over meanwhile
            pass
        finally:
            self._call.cancel()


def _at_once(there: Coroutine[Any, Any, Told]) -> Told:
    """What a coroutine gives that waits for nothing, as none does that asks a call for its end after that."""
    try:
        there.send(None)
    except StopIteration as gave:
        return gave.value
    raise RuntimeError("gRPC's call says that it is over, and waits")


class InThreadLine:
    """The same over a gallery of this process, without holding up the event loop."""

    def __init__(self, answerer: Answerer) -> None:
        self._line = BlockingLine(answerer)

    async def exchange(self, message: pb.ConverseRequest) -> pb.ConverseReply:
        return await asyncio.to_thread(self._line.exchange, message)

    async def close(self) -> None:
        self._line.close()
