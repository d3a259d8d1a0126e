"""Which call is being answered: its id and its trace, for logs, replies and spans.

Owns the two names under which they travel, and what is believed of those that arrive. Anyone may read the current
call; observe.py opens it."""

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

REQUEST_ID: Final = "x-request-id"
TRACEPARENT: Final = "traceparent"  # https://www.w3.org/TR/trace-context/
GRACE_S: Final = 10.0  # for those in flight when the server is told to stop

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_PARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The span elsewhere that this call belongs to."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16
    sampled: bool


@dataclass(kw_only=True)
class Call:
    """One call on its way. kind: how it ended: OK, Cancelled, or the class name of its error; empty until then."""

    method: str  # Search, Describe, ...
    via: str  # grpc or http
    request_id: str
    parent: Parent | None = None
    trace_id: str = ""  # 32 hex digits; empty where nobody traces
    kind: str = ""


CURRENT: Final[ContextVar[Call | None]] = ContextVar("call", default=None)


def open_call(method: str, via: str, headers: Mapping[str, str]) -> Call:
    """The call that these headers (names in lower case) open. What is not sane is not kept: ids end in logs."""
    parent = parent_of(headers.get(TRACEPARENT, ""))
    given = headers.get(REQUEST_ID, "")
    request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
    return Call(
        method=method, via=via, request_id=request_id, parent=parent, trace_id=parent.trace_id if parent else ""
    )


def parent_of(text: str) -> Parent | None:
    """A traceparent header read; None for what is none."""
    found = _PARENT.fullmatch(text)
    if found is None or (found[1] == "00" and found[5]):  # later versions may be longer, this one not
        return None
    return Parent(trace_id=found[2], span_id=found[3], sampled=bool(int(found[4], 16) & 1))


def headers_back() -> list[tuple[str, str]]:
    """What goes back with the current call's reply or error: its ids."""
    call = CURRENT.get()
    if call is None:
        return []
    return [(REQUEST_ID, call.request_id), *([("x-trace-id", call.trace_id)] if call.trace_id else [])]
