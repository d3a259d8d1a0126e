"""The door: what each call passes before it is answered, whichever way it came.

Owns which call needs which scope, and the order: who asks (keys.py), whether they may, a line in the audit log
(audit.py). Over gRPC it is an interceptor, the gateway asks it for itself. A call that the table does not know needs
scope admin, so that a new service is closed until somebody opens it."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio
from pocketlens_wire.api_key import HEADER, is_local
from pocketlens_wire.errors import NotAllowed, PocketlensError, Unauthenticated, status_of

from pocketlens_cloud.serving.audit import Audit, Visit
from pocketlens_cloud.serving.keys import Key, Keys, Scope, demand, note_caller
from pocketlens_cloud.serving.server import abort

OPEN: Final = "/grpc.health.v1.Health/"  # who watches a server has no key

# By a method's name, else by its service's. None: any good key will do.
SCOPE_OF: Final[Mapping[str, Scope | None]] = {
    "/pocketlens.v1.Retrieval/": "search",
    "/pocketlens.v1.Retrieval/Describe": None,
    "/pocketlens.v1.Gallery/": "index",
    "/grpc.reflection.v1.ServerReflection/": None,
    "/grpc.reflection.v1alpha.ServerReflection/": None,
    # the gateway's
    "/v1/search": "search",
    "/v1/pictures": "search",
    "/v1/describe": None,
}


def scope_of(method: str) -> Scope | None:
    """What a call of `method` needs."""
    service = method[: method.rfind("/") + 1]
    named = method if method in SCOPE_OF else service
    closed: Scope = "admin"
    return SCOPE_OF.get(named, closed)


@dataclass(frozen=True, kw_only=True)
class Call:
    """Who calls what, as the transport tells it.

    headers: the values of `authorization`. peer: the address, as in `127.0.0.1:4711`. certificate: the name in the
    device's own, verified certificate."""

    method: str
    headers: Sequence[str]
    peer: str
    is_encrypted: bool
    certificate: str | None = None


class Door:
    """keys: None asks for none, and then index and admin calls are answered to this machine alone. allow_clear: take
    keys also where others can read them."""

    def __init__(self, *, keys: Keys | None = None, audit: Audit | None = None, allow_clear: bool = False) -> None:
        self._keys, self._audit, self._allow_clear = keys, audit, allow_clear

    @asynccontextmanager
    async def passing(self, call: Call, status: Callable[[BaseException], str] | None = None) -> AsyncIterator[None]:
        """Around the answer to `call`. Raises Unauthenticated, NotAllowed, or ServerFault where the call must leave a
        trace and cannot. `status`: names how it ended, from what was raised."""
        key, was_let_in, ended = None, False, "OK"
        try:
            key = self._know(call)
            note_caller(key, lambda: self._judged(call))
            self._allow(call, key)
            if self._audit:
                await self._audit.begin(_visit(call, key))
            was_let_in = True
            yield
        except BaseException as error:
            ended = (status or _status)(error)
            raise
        finally:
            if self._audit:
                self._audit.end(_visit(call, key), ended, was_let_in=was_let_in)

    def _judged(self, call: Call) -> Key | None:
        key = self._know(call)
        self._allow(call, key)
        return key

    def _know(self, call: Call) -> Key | None:
        if self._keys is None:
            return None
        if call.headers and not (call.is_encrypted or self._allow_clear or is_local(call.peer)):
            raise Unauthenticated(
                "a key is not taken over a connection that is not encrypted: ask over TLS, and since others could read "
                "the key, have it replaced"
            )
        return self._keys.recognise(call.headers)

    def _allow(self, call: Call, key: Key | None) -> None:
        scope = scope_of(call.method)
        if key:
            demand(key, scope)
        elif scope in ("index", "admin") and not is_local(call.peer):
            raise NotAllowed(
                f"this server has no keys, so calls that need scope {scope} are answered only on its own machine; "
                "start it with --keys"
            )


def _visit(call: Call, key: Key | None) -> Visit:
    return Visit(
        method=call.method,
        scope=scope_of(call.method),
        peer=call.peer,
        key=key.id if key else None,
        certificate=call.certificate,
    )


def _status(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return grpc.StatusCode.CANCELLED.name
    return status_of(error).name


# --- gRPC


class DoorInterceptor(grpc.aio.ServerInterceptor):
    """Every call but those to health passes the door."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(OPEN):
            return handler
        headers = tuple(str(value) for name, value in handler_call_details.invocation_metadata or () if name == HEADER)
        return self._guarded(handler, method, headers)

    def _guarded(self, handler: Any, method: str, headers: Sequence[str]) -> grpc.RpcMethodHandler:
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind, answer = next((kind, found) for kind in kinds if (found := getattr(handler, kind)))
        guarded = _streaming if handler.response_streaming else _once
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            guarded(answer, lambda context: self._passing(method, headers, context)),
            handler.request_deserializer,
            handler.response_serializer,
        )

    @asynccontextmanager
    async def _passing(self, method: str, headers: Sequence[str], context: Any) -> AsyncIterator[None]:
        def status(error: BaseException) -> str:
            return context.code().name if isinstance(error, grpc.aio.AbortError) else _status(error)

        try:
            async with self._door.passing(_call(method, headers, context), status):
                yield
        except PocketlensError as error:  # the door's own; what is behind it has aborted
            await abort(context, error)


def _call(method: str, headers: Sequence[str], context: Any) -> Call:
    facts = context.auth_context()
    name = next(iter(facts.get("x509_common_name", ())), None)
    return Call(
        method=method,
        headers=headers,
        peer=unquote(context.peer()).removeprefix("ipv4:").removeprefix("ipv6:"),
        is_encrypted=facts.get("transport_security_type", [b"insecure"])[0] != b"insecure",
        certificate=name.decode("utf-8", "replace") if name else None,
    )


def _once(answer: Callable[..., Any], passing: Callable[[Any], Any]) -> Callable[..., Any]:
    async def guarded(request: Any, context: Any) -> Any:
        async with passing(context):
            reply = answer(request, context)
            return await reply if inspect.isawaitable(reply) else reply

    return guarded


def _streaming(answer: Callable[..., Any], passing: Callable[[Any], Any]) -> Callable[..., Any]:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        async with passing(context):
            replies = answer(request, context)
            if hasattr(replies, "__aiter__"):
                async for reply in replies:
                    yield reply
            else:
                await replies  # it writes to the context itself

    return guarded
