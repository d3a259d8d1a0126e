"""Times as payload: text by RFC 3339 to microseconds since 1970-01-01 UTC, and back.

Whole microseconds, as Qdrant keeps them, so that bounds given as floating seconds are met exactly."""

import math
import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final

# Date, T, seconds and an offset, all of them: what is less is text. Leap seconds and more digits than Qdrant keeps too.
_FORM: Final = re.compile(
    r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def microseconds(text: str) -> int | None:
    """A time since 1970-01-01 UTC; None if `text` is none: `2026-01-31T23:59:59.5+01:00`, years 1 to 9999 in UTC."""
    if not _FORM.fullmatch(text):
        return None
    try:
        since = (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
    except ValueError:  # no such day
        return None
    return since if FIRST <= since <= LAST else None


def text_of(since: int) -> str:
    """The time so many microseconds after 1970-01-01 UTC, between FIRST and LAST."""
    return (_EPOCH + since * _MICROSECOND).isoformat(timespec="microseconds").replace("+00:00", "Z")


def span(
    *, above: float | None, least: float | None, below: float | None, most: float | None
) -> tuple[str, str] | None:
    """Seconds since 1970-01-01 UTC as the first and last time that keep the bounds, both inclusive; None if there is
    no such time."""
    first, last = FIRST, LAST
    if above is not None:
        first = max(first, math.floor(Fraction(above) * 1_000_000) + 1)
    if least is not None:
        first = max(first, math.ceil(Fraction(least) * 1_000_000))
    if below is not None:
        last = min(last, math.ceil(Fraction(below) * 1_000_000) - 1)
    if most is not None:
        last = min(last, math.floor(Fraction(most) * 1_000_000))
    return (text_of(first), text_of(last)) if first <= last else None
