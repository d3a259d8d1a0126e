"""From the figures of a running server to what a person wants to know: rates, quantiles, depths.

Owns the arithmetic between two readings; fetching and showing are cli/top.py's. Knows figures by their names, which
are metrics.py's."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pocketlens_cloud.serving import metrics

Labels = frozenset[tuple[str, str]]
QUANTILES = (0.5, 0.95, 0.99)
START = "process_start_time_seconds"


@dataclass(frozen=True)
class Reading:
    """All figures at one moment. at_s: seconds of any clock that runs evenly."""

    figures: dict[str, dict[Labels, float]]
    at_s: float

    def value(self, name: str) -> float:
        """The sum of a figure over its labels; 0 where there is none."""
        return sum(self.figures.get(name, {}).values())

    def each(self, name: str) -> list[float]:
        """The values of a figure: of several workers each has its own; empty where there is none."""
        return list(self.figures.get(name, {}).values())

    def labels(self, name: str) -> dict[str, str]:
        """The labels of a figure that stands once, such as an info."""
        return dict(next(iter(self.figures.get(name, {})), frozenset()))


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """over_s: of the time between two readings, or since the server's start. Rates are per second, None where the
    time is not known; quantiles in milliseconds, None where nothing was seen."""

    over_s: float | None
    since_start: bool
    healthy: bool
    processes: int  # workers, or 1
    asked_per_s: float | None
    shed_per_s: float | None
    failed_per_s: float | None
    ended: dict[str, int]  # calls by how they ended
    stages_ms: dict[str, dict[str, float | None]]
    in_flight: int
    queue_rows: int
    expected_wait_ms: float
    rows_per_run: float | None
    pictures: int
    rss_bytes: int
    open_fds: int
    runs: dict[str, str] = field(default_factory=dict)  # version, bundle, ...


def reading(text: str, at_s: float) -> Reading:
    """An exposition (metrics.py) as a reading. Raises ValueError for anything else."""
    figures: dict[str, dict[Labels, float]] = defaultdict(dict)
    for name, labels, value in metrics.read(text):
        figures[name][frozenset(labels.items())] = value
    if "pocketlens_healthy" not in figures:
        raise ValueError("these are not the figures of pocketlens-cloud")
    return Reading(dict(figures), at_s)


def vitals(now: Reading, before: Reading | None, *, uptime_s: float | None = None) -> Vitals:
    """What happened between `before` and `now`, or since the start, `uptime_s` seconds ago."""
    if before and now.each(START) and not set(before.each(START)) & set(now.each(START)):
        before = None  # another process answers there now
    over_s = now.at_s - before.at_s if before else uptime_s
    ended = _ended(now, before)
    runs = _grown(now, before, "pocketlens_batch_rows_count")

    def rate(*kinds: str) -> float | None:
        count = sum(ended.get(kind, 0) for kind in kinds) if kinds else sum(ended.values())
        return count / over_s if over_s else None

    return Vitals(
        over_s=over_s,
        since_start=before is None,
        healthy=all(now.each("pocketlens_healthy")),
        processes=len(now.each("pocketlens_healthy")),
        asked_per_s=rate(),
        shed_per_s=rate("Overloaded"),
        failed_per_s=rate("ServerFault", "GalleryError"),
        ended=ended,
        stages_ms={stage: _quantiles(now, before, stage) for stage in metrics.STAGES},
        in_flight=int(now.value("pocketlens_calls_in_flight")),
        queue_rows=int(now.value("pocketlens_queue_depth")),
        expected_wait_ms=1e3 * max(now.each("pocketlens_expected_wait_seconds"), default=0.0),
        rows_per_run=_grown(now, before, "pocketlens_batch_rows_sum") / runs if runs else None,
        pictures=int(max(now.each("pocketlens_gallery_pictures"), default=0.0)),
        rss_bytes=int(now.value("process_resident_memory_bytes")),
        open_fds=int(now.value("process_open_fds")),
        runs=now.labels("pocketlens_build_info") | now.labels("pocketlens_gallery_info"),
    )


def quantile(wanted: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """The quantile `wanted` (0 to 1) of (upper bound, count up to it) pairs, as Prometheus reckons it: evenly spread
    within a bucket, and the last bound where it lies beyond. None where nothing was counted."""
    ordered = sorted(buckets)
    if not ordered or not ordered[-1][1]:
        return None
    rank = wanted * ordered[-1][1]
    low, below = 0.0, 0.0
    for bound, count in ordered:
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low


def _ended(now: Reading, before: Reading | None) -> dict[str, int]:
    ended: dict[str, int] = defaultdict(int)
    for labels, count in _growth(now, before, "pocketlens_requests_total").items():
        ended[dict(labels)["kind"]] += int(count)
    return {kind: count for kind, count in sorted(ended.items()) if count}


def _grown(now: Reading, before: Reading | None, name: str) -> float:
    return sum(_growth(now, before, name).values())


def _growth(now: Reading, before: Reading | None, name: str) -> dict[Labels, float]:
    """How much each series of a counter grew; one that fell, of a worker that was started again, grew from 0."""
    past = before.figures.get(name, {}) if before else {}
    return {
        labels: count - past.get(labels, 0.0) if count >= past.get(labels, 0.0) else count
        for labels, count in now.figures.get(name, {}).items()
    }


def _quantiles(now: Reading, before: Reading | None, stage: str) -> dict[str, float | None]:
    buckets: dict[float, float] = defaultdict(float)
    for labels, count in _growth(now, before, "pocketlens_stage_seconds_bucket").items():
        said = dict(labels)
        if said["stage"] == stage:
            buckets[float(said["le"])] += count
    found = {f"p{100 * wanted:.0f}": quantile(wanted, buckets.items()) for wanted in QUANTILES}
    return {name: None if value is None else round(1e3 * value, 3) for name, value in found.items()}
