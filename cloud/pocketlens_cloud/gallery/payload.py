"""What payload a picture may carry: keys, value types, and how an engine keeps them.

Pure Python, no engine. Used by galleries for every write, by checks.py for every filter, by ingest.py to name a bad
line."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pocketlens_wire.errors import GalleryError

from pocketlens_cloud.gallery import times

MAX_PAYLOAD_BYTES = 2048  # of one picture as JSON: a reply of MAX_TOP hits stays under gRPC's 4 MiB
KEY = re.compile(r"[^\W\d][\w-]{0,63}")  # no dots or quotes, which the engine reads as paths

Scalar = str | int | float | bool
Value = Scalar | list[str] | list[int] | dict[str, float]
Payload = Mapping[str, Value]
Kind = Literal["text", "integer", "number", "flag", "time", "place", "texts", "integers"]
"""`time`: text by RFC 3339, see times.py. `place`: {"lat": degrees, "lon": degrees}. `texts`, `integers`: some pictures
have several values under the key; of such a key a condition holds if it holds for one of them."""

_WIDER: Final[dict[frozenset[Kind], Kind]] = {
    frozenset(("integer", "number")): "number",
    frozenset(("text", "texts")): "texts",
    frozenset(("integer", "integers")): "integers",
}


def kind_of(value: object) -> Kind | None:
    """Payload type of a Python value; None if it cannot be payload (empty or mixed lists, null, NaN, huge integers).

    A text that is a whole RFC 3339 time is a time."""
    match value:
        case bool():
            return "flag"
        case int():
            return "integer" if -(2**63) <= value < 2**63 else None
        case float():
            return "number" if math.isfinite(value) else None
        case str():
            return "text" if times.microseconds(value) is None else "time"
        case list():
            return _kind_of_list(value)
        case dict():
            return "place" if _is_place(value) else None
    return None


def _kind_of_list(values: list[Any]) -> Kind | None:
    if values and all(isinstance(value, str) for value in values):
        return "texts"
    return "integers" if values and all(kind_of(value) == "integer" for value in values) else None


def learn(kinds: Mapping[str, Kind], payload: Mapping[str, object]) -> dict[str, Kind]:
    """`kinds` extended by the keys of a payload that can be stored.

    Raises GalleryError as `learn_kinds` does, and for a payload above MAX_PAYLOAD_BYTES."""
    learned = learn_kinds(kinds, payload)
    if trouble := excess(payload):
        raise GalleryError(trouble)
    return learned


def excess(payload: Mapping[str, object]) -> str:
    """Why a payload is too large; empty if it is not. Raises ValueError for text that UTF-8 cannot hold."""
    if (size := len(json.dumps(dict(payload), ensure_ascii=False).encode())) <= MAX_PAYLOAD_BYTES:
        return ""
    return f"one picture's payload may have {MAX_PAYLOAD_BYTES} bytes as JSON; this one has {size}"


def learn_kinds(kinds: Mapping[str, Kind], payload: Mapping[str, object]) -> dict[str, Kind]:
    """`kinds` extended by the keys of `payload`, whatever its size.

    An integer key that meets a number becomes a number key, a text or integer key that meets a list one of lists. The
    first value of a key decides whether it holds times: a time key refuses other text, a text key takes times as text.
    Raises GalleryError for a bad key, a value that cannot be payload, a type that contradicts `kinds`."""
    learned = dict(kinds)
    for key, value in payload.items():
        if not KEY.fullmatch(key):
            raise GalleryError(
                f"payload key {clip(key)}: use at most 64 letters, digits, `_` and `-`, beginning with a letter or `_`"
            )
        came = kind_of(value)
        if came is None:
            raise GalleryError(
                f"payload key `{key}`: values are text, 64-bit integers, finite numbers, true or false, times, places "
                f'{{"lat": degrees, "lon": degrees}}, lists of texts or of integers; {clip(repr(value))} came'
            )
        known = learned.get(key, came)
        if came == "time" and known in ("text", "texts"):
            came = "text"
        if known != came and frozenset((known, came)) not in _WIDER:
            raise GalleryError(f"payload key `{key}` holds {known} elsewhere; {came} {clip(repr(value))} came")
        learned[key] = _WIDER.get(frozenset((known, came)), known)
    return learned


def stored(value: Value, kind: Kind) -> Any:
    """A value as an engine keeps it and is asked for it."""
    match kind, value:
        case "flag", bool():
            return int(value)  # qdrant_edge 0.9.0 reads a Python bool in a filter as an integer and then finds nothing
        case "number", int():
            return float(value)
        case _:
            return value


def given_back(payload: Mapping[str, Any] | None, kinds: Mapping[str, Kind]) -> dict[str, Value]:
    """What `stored` made, as it came; integers of a key that met a number since, as numbers."""
    as_came = {"flag": bool, "number": float}
    return {key: as_came.get(kinds[key], _itself)(value) for key, value in (payload or {}).items()}


def _itself(value: Any) -> Any:
    return value


def clip(text: str, limit: int = 60) -> str:
    """Foreign text in backticks, shortened so that a message stays a sentence, control codes shown as `?`."""
    return f"`{shown(text if len(text) <= limit else text[: limit - 3] + '...')}`"


def shown(text: str) -> str:
    """Foreign text for a terminal, whole and in one line: line ends, escapes and other control codes shown as `?`."""
    return "".join(char if char.isprintable() else "?" for char in text)


def is_degrees(latitude: object, longitude: object) -> bool:
    """Whether a place on the earth: -90 to 90, -180 to 180."""
    return all(
        kind_of(value) in ("integer", "number") and isinstance(value, (int, float)) and abs(value) <= most
        for value, most in ((latitude, 90), (longitude, 180))
    )


def _is_place(value: dict[Any, Any]) -> bool:
    return value.keys() == {"lat", "lon"} and is_degrees(value["lat"], value["lon"])
