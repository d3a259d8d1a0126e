"""The gRPC server: limits of the transport, one error boundary, a graceful end.

Owns the event loop and the threads models run in; what a request means is service.py's. The settings were
chosen by probing grpcio 1.85, whose behaviour differs from older ones."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Barrier, BrokenBarrierError
from typing import Any, Final, NoReturn, TypeVar, final

import grpc
import grpc.aio
from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError, Message
from pocketlens_wire import limits
from pocketlens_wire.errors import (
    KIND_METADATA,
    RETRY_METADATA,
    BadQuery,
    Overloaded,
    PocketlensError,
    ServerFault,
    status_of,
)
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.runtime import stand_back
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import calls, metrics
from pocketlens_cloud.serving.batching import Limits
from pocketlens_cloud.serving.front import HANDS, Front

log = logging.getLogger(__name__)

MAX_CALLS: Final = 4096  # at once; the last line behind Front, which turns away far earlier and says when to come again
# Of one connection, against rapid reset (CVE-2023-44487): gRPC's clients keep those beyond, others get UNAVAILABLE.
# Fewer than may wait for the loop, so that one connection does not fill that line.
MAX_STREAMS: Final = 200
PENDING: Final = 256  # calls that wait for the loop to look at them, beyond which gRPC ends more and more of them
MOST_PENDING: Final = 512  # beyond which it ends all
START_S: Final = 10.0  # for a pool's threads
MAX_SENTENCE: Final = 1000  # characters of an error; HTTP/2 trailers have 8 KiB

OPTIONS: Final = [
    ("grpc.max_receive_message_length", limits.MAX_REQUEST_BYTES),
    ("grpc.server_handshake_timeout_ms", 2000),  # the default holds a silent client for 120 s
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_connection_age_ms", 3_600_000),  # then a device connects anew, and shows its certificate again
    # By default 1,000 and 3,000, for which a full loop needs seconds. What gRPC ends costs nothing of Python's lock.
    ("grpc.server.max_pending_requests", PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
]

BATCH: Final = Limits()

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Retrieval"].full_name
_SEARCH: Final = f"/{_SERVICE}/Search"

_Reply = TypeVar("_Reply", bound=Message)


@dataclass(frozen=True)
class _Malformed:
    """Stands for a request that is no protobuf of its type."""

    reason: str


async def run(
    service: Service,
    *,
    host: str,
    port: int,
    on_ready: Callable[[int], None],
    stop: asyncio.Event,
    beside: Callable[[Front], AbstractAsyncContextManager[object]] | None = None,
    credentials: grpc.ServerCredentials | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    further: Sequence[Callable[[grpc.aio.Server], None]] = (),
    batch: Limits = BATCH,
    shares: bool = False,
) -> None:
    """Serve until `stop` is set, then take no new calls, finish those in flight, return.

    `port` 0 lets the system choose; `on_ready` gets the port it is. `beside`: what else answers from the same
    front in the meantime, entered before and left after (gateway.py). `credentials`: without them nothing is encrypted;
    `interceptors`: what every call passes, outermost first, unless the house is full; `further`: each adds a service of
    its own; `batch`: what is read together; `shares`: the port, with others that do (workers.py): else a second server
    on it fails. Raises ServerFault if the port cannot be had."""
    require_upb()
    with ThreadPoolExecutor(HANDS, "hand") as hands, ThreadPoolExecutor(batch.runs, "tower", stand_back) as readers:
        _start(hands, HANDS)
        _start(readers, batch.runs)
        front = Front(service, hands, readers, batch)
        async with beside(front) if beside else nullcontext():
            passed = (_Turnstile(front), *interceptors)
            options = [*OPTIONS, ("grpc.so_reuseport", int(shares))]
            server = grpc.aio.server(interceptors=passed, options=options, maximum_concurrent_rpcs=MAX_CALLS)
            server.add_generic_rpc_handlers([_handlers(front)])
            for add in further:
                add(server)
            bound = _bind(server, host, port, credentials)
            await server.start()
            on_ready(bound)
            await stop.wait()
            front.end_conversations()
            await server.stop(calls.GRACE_S)


def _start(pool: Executor, threads: int) -> None:
    """Start the threads now, and not with questions: one that cannot be would take its question with it."""
    together = Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(together.wait, START_S)
        together.wait(START_S)
    except (RuntimeError, BrokenBarrierError) as error:
        together.abort()
        raise ServerFault(
            f"{threads} threads of one kind could not be started: {error or 'they took too long'}"
        ) from error


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise ServerFault(f"cannot listen on {host}, port {port}: is another program there? ({error})") from error


def require_upb() -> None:
    """Refuse protobuf's pure Python parser, which recurses without limit (CVE-2025-4565)."""
    if (kind := api_implementation.Type()) != "upb":
        raise ServerFault(f"protobuf runs on its `{kind}` parser; unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION")


def _handlers(front: Front) -> grpc.GenericRpcHandler:
    methods: dict[str, tuple[type[Message], Callable[[Any, Any], Awaitable[Message]]]] = {
        "Search": (pb.SearchRequest, front.search),
        "Describe": (pb.DescribeRequest, front.describe),
    }
    unary = {
        name: grpc.unary_unary_rpc_method_handler(
            answering(method), request_deserializer=reader(request), response_serializer=_written
        )
        for name, (request, method) in methods.items()
    }
    converse = grpc.stream_stream_rpc_method_handler(
        _answering_many(_conversing(front)),
        request_deserializer=reader(pb.ConverseRequest),
        response_serializer=_written,
    )
    return grpc.method_handlers_generic_handler(_SERVICE, {**unary, "Converse": converse})


@final
class _Turnstile(grpc.aio.ServerInterceptor):
    """Turns searches away while the house is full, before they cost anything: with ten times too many questions nine
    are refused for each that is answered, and what they cost the answers go without.

    Outermost: whom it turns away passes neither observer nor door, and is counted here."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        if handler_call_details.method == _SEARCH and (refused := self._front.refusal()):
            metrics.call_turned_away("Search", "grpc")
            # As if it were a stream: gRPC then answers without waiting for the message to arrive.
            return grpc.stream_stream_rpc_method_handler(partial(_refuse, refused))
        return await continuation(handler_call_details)


async def _refuse(refused: Overloaded, _requests: Any, context: Any) -> None:
    """As `abort`, without the price of an exception."""
    context.set_trailing_metadata(_trailers(refused))
    context.set_details(str(refused)[:MAX_SENTENCE])
    context.set_code(status_of(refused))


def _written(reply: Message) -> bytes:
    return reply.SerializeToString()


def _conversing(front: Front) -> Callable[[Any], AsyncIterator[Message]]:
    """A conversation, read one message at a time."""

    def converse(context: Any) -> AsyncIterator[Message]:
        async def read() -> pb.ConverseRequest | None:
            message = await context.read()
            if isinstance(message, _Malformed):
                raise BadQuery(message.reason)
            return None if message is grpc.aio.EOF else message

        def let_go(error: PocketlensError) -> None:
            # The call's own task waits in a write that does not end: the status must come from another one.
            leaving = asyncio.ensure_future(abort(context, error))
            leaving.add_done_callback(lambda done: done.cancelled() or done.exception())

        return front.converse(read, let_go, context)

    return converse


def reader(kind: type[Message]) -> Callable[[bytes], Message | _Malformed]:
    """A deserialiser that never raises: gRPC would answer INTERNAL, and the fault is the client's."""

    def read(data: bytes) -> Message | _Malformed:
        try:
            return kind.FromString(data)
        except DecodeError:
            return _Malformed(f"the request is not a valid {kind.DESCRIPTOR.full_name} message")

    return read


def answering(
    method: Callable[[Any, Any], Awaitable[_Reply]],
) -> Callable[[Any, Any], Awaitable[_Reply]]:
    """`method` within the error boundary."""

    async def answer(request: Any, context: Any) -> _Reply:
        async with _boundary(context):
            if isinstance(request, _Malformed):
                raise BadQuery(request.reason)
            return await method(request, context)
        raise AssertionError("the boundary aborts")

    return answer


def _answering_many(method: Callable[[Any], AsyncIterator[Message]]) -> Callable[[Any, Any], AsyncIterator[Message]]:
    """The same for a method with many replies, which reads for itself."""

    async def answer(_requests: Any, context: Any) -> AsyncIterator[Message]:
        async with _boundary(context):
            async for reply in method(context):
                yield reply

    return answer


@asynccontextmanager
async def _boundary(context: Any) -> AsyncIterator[None]:
    """The error boundary: every way a call can fail becomes a status and a plain sentence here."""
    try:
        yield
    except PocketlensError as error:
        if isinstance(error, ServerFault):
            log.error("a question failed", exc_info=error)
        await abort(context, error)
    except Exception:
        log.exception("a question failed")
        await abort(context, ServerFault("the server failed on this question; its log has the details"))


async def abort(context: Any, error: PocketlensError) -> NoReturn:
    """End a call with the status, sentence and kind of `error`. One that has ended already counts as cancelled: its
    deadline passed, or its caller left, meanwhile."""
    try:
        await context.abort(status_of(error), str(error)[:MAX_SENTENCE], (*_trailers(error), *calls.headers_back()))
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001 - gRPC's own, of no public class
        raise asyncio.CancelledError from None
    raise AssertionError("abort returned")


def _trailers(error: PocketlensError) -> tuple[tuple[str, str], ...]:
    """What a program can read of an error, beside its status."""
    kind = (KIND_METADATA, type(error).__name__)
    if not isinstance(error, Overloaded):
        return (kind,)
    # Ours, and the name by which gRPC's own retries know it.
    wait_ms = str(round(error.retry_after_s * 1e3))
    return kind, (RETRY_METADATA, wait_ms), ("grpc-retry-pushback-ms", wait_ms)
