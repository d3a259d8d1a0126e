"""How much each caller may ask: a token bucket for each key.

A question is let in while its caller's bucket holds a row's worth, which it pays at once, and pays for its further rows
when they are known, so a question of many rows costs what it costs, and a caller may owe. Runs in one event loop."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from pocketlens_wire.errors import Overloaded

MAX_CALLERS: Final = 10_000  # remembered; the one that was seen longest ago begins anew with a full bucket


@dataclass(frozen=True)
class Rate:
    """per_s: rows a second in the long run; burst: rows at once after a pause, at least 1."""

    per_s: float
    burst: float


@dataclass
class _Bucket:
    rows: float
    at: float  # time.monotonic() when `rows` was true


@final
class Buckets:
    """One bucket for each caller that has a rate."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic, most: int = MAX_CALLERS) -> None:
        self._now, self._most = now, most
        self._of: OrderedDict[str, _Bucket] = OrderedDict()

    def let_in(self, caller: str, rate: Rate) -> None:
        """Take a row from the caller's bucket. Raises Overloaded, saying when to come again, if it holds less."""
        bucket = self._filled(caller, rate)
        if bucket.rows < 1:
            raise Overloaded(
                f"key {caller} may ask {rate.per_s:g} rows a second, and has asked more: try again in a moment",
                retry_after_s=(1 - bucket.rows) / rate.per_s,
            )
        bucket.rows -= 1

    def pay(self, caller: str, rate: Rate, rows: int) -> None:
        """Take the price of a question that was let in, but for the row it paid then."""
        self._filled(caller, rate).rows -= rows

    def _filled(self, caller: str, rate: Rate) -> _Bucket:
        now = self._now()
        bucket = self._of.pop(caller, None) or _Bucket(rate.burst, now)
        bucket.rows = min(rate.burst, bucket.rows + rate.per_s * (now - bucket.at))
        bucket.at = now
        self._of[caller] = bucket
        while len(self._of) > self._most:
            self._of.popitem(last=False)
        return bucket
