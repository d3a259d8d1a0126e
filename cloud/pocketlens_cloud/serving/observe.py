"""What is done around every call, whichever way it came: its id, its log line, its figures, its span.

Owns the order of these and what a call is said to have ended as. Errors become statuses elsewhere (server.py,
gateway.py); figures are metrics.py's, spans traces.py's, ids calls.py's."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, final

import grpc
import grpc.aio
from pocketlens_wire.errors import KIND_METADATA, PocketlensError
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.serving import metrics
from pocketlens_cloud.serving.calls import CURRENT, Call, headers_back, open_call
from pocketlens_cloud.serving.traces import Tracing

log = logging.getLogger(__name__)

OURS: Final = "/pocketlens."  # health and reflection are asked all the time and tell nothing

Handler = Callable[[Any, Any], Any]
_STAGES_MS: Final = [f"{stage}_ms" for stage in metrics.STAGES]
_CURRENT: Final[ContextVar["Observed | None"]] = ContextVar("observed", default=None)


@final
class Observer:
    """Around calls. on_answer, on_fault: told of every answered question, and of all that failed by our fault."""

    def __init__(
        self,
        tracing: Tracing | None = None,
        *,
        on_answer: Callable[[], None] = lambda: None,
        on_fault: Callable[[], None] = lambda: None,
    ) -> None:
        self._tracing = tracing
        self._tell = {"OK": on_answer, "ServerFault": on_fault, "GalleryError": on_fault}

    @contextmanager
    def around(self, method: str, via: str, headers: Mapping[str, str]) -> Iterator["Observed"]:
        """For a `with` that the call is answered in, in a task of its own: the current call stays what it is."""
        call = open_call(method, via, headers)
        CURRENT.set(call)
        observed = Observed(call, self._tracing, self._tell)
        _CURRENT.set(observed)
        metrics.call_began()
        began = time.perf_counter()
        try:
            yield observed
            call.kind = call.kind or "OK"
        except BaseException as error:
            call.kind = call.kind or _kind(error)
            raise
        finally:
            self._ended(observed, time.perf_counter() - began)

    def _ended(self, observed: "Observed", seconds: float) -> None:
        call = observed.call
        metrics.call_ended(call.method, call.via, call.kind, seconds)
        facts = {"method": call.method, "via": call.via, "kind": call.kind, "ms": round(seconds * 1e3, 2)}
        # Who is turned away is counted; thousands of lines a second would take the time that is short already.
        level = logging.DEBUG if call.kind == "Overloaded" else logging.INFO
        log.log(level, "%s %s %.1f ms", call.method, call.kind, seconds * 1e3, extra=facts | observed.facts)
        observed.close()
        if call.kind != "OK":
            observed.tell(call.kind)


@final
class Observed:
    """One call being observed."""

    def __init__(self, call: Call, tracing: Tracing | None, tell: Mapping[str, Callable[[], None]]) -> None:
        """tell: what to call when a question has ended, by its kind; others are told to nobody."""
        self.call, self._tracing, self._tell = call, tracing, tell
        self._span = tracing.begin(call) if tracing else None
        self.facts: dict[str, Any] = {}  # for the log line

    def asked(self, request: Any) -> None:
        if isinstance(request, pb.SearchRequest):
            self.facts["k"] = request.sentence.count

    def answered(self, reply: Any) -> None:
        """Figures, spans and facts of a reply, where it is one to a question."""
        if isinstance(reply, pb.SearchReply):
            self._found(reply)
        elif reply.DESCRIPTOR.name == "ConverseReply":
            self._turned(reply)

    def tell(self, kind: str) -> None:
        self._tell.get(kind, lambda: None)()

    def _turned(self, reply: Any) -> None:
        """A turn of a conversation; one that is refused does not end the call."""
        kind = reply.error.kind if reply.HasField("error") else "OK"
        metrics.turn_ended(kind)
        self.facts["turns"] = self.facts.get("turns", 0) + 1
        if kind == "OK":
            self._found(reply.reply)
        else:
            self.tell(kind)

    def _found(self, reply: pb.SearchReply) -> None:
        metrics.observe_times(reply.times)
        stages = {field: round(getattr(reply.times, field), 2) for field in _STAGES_MS}
        self.facts |= {"mode": pb.Mode.Name(reply.mode), "hits": len(reply.hits), **stages}
        self.tell("OK")
        if self._tracing:
            self._tracing.stages(self._span, reply.times)

    def close(self) -> None:
        if self._tracing:
            self._tracing.end(self._span, self.call)


def note(request: Any, reply: Any) -> None:
    """What the current call was asked and answered; for a transport that makes bytes of it itself."""
    if observed := _CURRENT.get():
        observed.asked(request)
        observed.answered(reply)


def _kind(error: BaseException) -> str:
    """What an exception is counted as."""
    match error:
        case PocketlensError():
            return type(error).__name__
        case asyncio.CancelledError() | GeneratorExit():
            return "Cancelled"
        case _:
            return "ServerFault"


# --- gRPC


@final
class Interceptor(grpc.aio.ServerInterceptor):
    """The observer around gRPC's calls. To stand outermost, so that it sees what others refuse."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OURS):
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._one(method, handler.unary_unary), **codec)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._many(method, handler.stream_stream), **codec)
        return handler

    def _one(self, method: str, answer: Handler) -> Handler:
        async def observed_answer(request: Any, context: Any) -> Any:
            with self._around(method, context) as observed:
                observed.asked(request)
                reply = await answer(request, context)
                observed.answered(reply)
                return reply

        return observed_answer

    def _many(self, method: str, answers: Handler) -> Handler:
        async def observed_answers(requests: Any, context: Any) -> AsyncIterator[Any]:
            with self._around(method, context) as observed:
                replies = answers(requests, _Seen(context, observed))
                if hasattr(replies, "__aiter__"):
                    async for reply in replies:
                        observed.answered(reply)
                        yield reply
                else:
                    await replies  # it writes to the context itself

        return observed_answers

    @contextmanager
    def _around(self, method: str, context: Any) -> Iterator[Observed]:
        headers = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        with self._observer.around(method, "grpc", headers) as observed:
            context.set_trailing_metadata(tuple(headers_back()))
            try:
                yield observed
            except asyncio.CancelledError:
                left = context.time_remaining()
                observed.call.kind = "TooLate" if left is not None and left <= 0 else "Cancelled"
                raise
            except grpc.aio.AbortError:
                observed.call.kind = _refused_as(context)
                raise


@final
class _Seen:
    """A call's context whose replies are seen as they are written."""

    def __init__(self, context: Any, observed: Observed) -> None:
        self._context, self._observed = context, observed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, reply: Any) -> None:
        self._observed.answered(reply)
        await self._context.write(reply)


def _refused_as(context: Any) -> str:
    """The kind of an error that was already made a status."""
    for name, value in context.trailing_metadata() or ():
        if name == KIND_METADATA:
            return str(value)
    return "ServerFault"
