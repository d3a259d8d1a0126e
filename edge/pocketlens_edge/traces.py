"""Let a question be followed through the service: a W3C trace context, made here without any library.

The service hangs its spans below the one that is named here; this device keeps none itself. A trace that the
environment names ($TRACEPARENT, as OpenTelemetry has it) is gone on with."""

import os
import re
import secrets

HEADER = "traceparent"
ENVIRONMENT = "TRACEPARENT"
_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent() -> str:
    """A span of its own in the environment's trace, else in a new one: 55 characters, to be recorded."""
    going_on = _PARENT.fullmatch(os.environ.get(ENVIRONMENT, ""))
    trace_id = going_on[1] if going_on else secrets.token_hex(16)
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"


def trace_id(parent: str) -> str:
    """The 32 hex digits of a traceparent by which its trace is found."""
    return parent.split("-")[1]
