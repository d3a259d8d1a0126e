"""What payload a picture may carry: keys and value types.

Pure Python, no engine. Used by galleries for every write, by ingest.py to name a bad line."""

import json
import math
import re
from collections.abc import Mapping
from typing import Literal

from pocketlens_wire.errors import GalleryError

MAX_PAYLOAD_BYTES = 2048  # of one picture as JSON: a reply of MAX_TOP hits stays under gRPC's 4 MiB
KEY = re.compile(r"[^\W\d][\w-]{0,63}")  # no dots or quotes, which the engine reads as paths

Scalar = str | int | float | bool
Payload = Mapping[str, Scalar]
Kind = Literal["text", "integer", "number", "flag"]


def kind_of(value: object) -> Kind | None:
    """Payload type of a Python value; None if it cannot be payload (lists, null, NaN, huge integers)."""
    match value:
        case bool():
            return "flag"
        case int():
            return "integer" if -(2**63) <= value < 2**63 else None
        case float():
            return "number" if math.isfinite(value) else None
        case str():
            return "text"
    return None


def learn(kinds: Mapping[str, Kind], payload: Mapping[str, object]) -> dict[str, Kind]:
    """`kinds` extended by the keys of `payload`; an integer key that meets a number becomes a number key.

    Raises GalleryError for a bad key, a value that cannot be payload, a type that contradicts `kinds`,
    or a payload above MAX_PAYLOAD_BYTES."""
    learned = dict(kinds)
    for key, value in payload.items():
        if not KEY.fullmatch(key):
            raise GalleryError(
                f"payload key {clip(key)}: use at most 64 letters, digits, `_` and `-`, beginning with a letter or `_`"
            )
        came = kind_of(value)
        if came is None:
            raise GalleryError(
                f"payload key `{key}`: values are text, 64-bit integers, finite numbers, true or false; "
                f"{clip(repr(value))} came"
            )
        known = learned.setdefault(key, came)
        if {known, came} == {"integer", "number"}:
            learned[key] = "number"
        elif known != came:
            raise GalleryError(f"payload key `{key}` holds {known} elsewhere; {came} {clip(repr(value))} came")
    if len(json.dumps(dict(payload), ensure_ascii=False).encode()) > MAX_PAYLOAD_BYTES:
        raise GalleryError(f"one picture's payload may have {MAX_PAYLOAD_BYTES} bytes as JSON; this one has more")
    return learned


def clip(text: str, limit: int = 60) -> str:
    """Foreign text in backticks, shortened so that a message stays a sentence, control codes shown as `?`."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:limit])
    return f"`{shown if len(text) <= limit else shown[: limit - 3] + '...'}`"
