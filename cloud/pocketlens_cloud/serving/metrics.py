"""Every figure that a running server gives to Prometheus.

Owns names, labels and buckets; docs/operations.md explains them. Label sets are bounded: no label holds what an asker
wrote. Figures belong to the process and are kept from its start; nothing here knows of gRPC or of who reads them. The
only file that imports prometheus_client."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from pocketlens_wire.errors import STATUS_OF
from pocketlens_wire.v1 import retrieval_pb2 as pb
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
KINDS: Final = ("OK", "Cancelled", *(kind.__name__ for kind in STATUS_OF))
STAGES: Final = ("check", "queue", "text_tower", "heads", "search", "total")
OUTCOMES: Final = ("passed", "failed", "busy")
# Doubling: a tower may take 3 ms on a server and 300 on a small board; quantiles within a bucket are interpolated.
SECONDS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8)
ROW_FATES: Final = {  # by the field of batching.py's Counts
    "read": "rows",
    "remembered": "remembered",
    "shared": "shared",
    "late": "late",
    "unwanted": "unwanted",
}
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)

disable_created_metrics()  # a second series for each, which nobody asks for
_registry = CollectorRegistry()
ProcessCollector(registry=_registry)  # process_resident_memory_bytes, process_open_fds, ...
PlatformCollector(registry=_registry)
GCCollector(registry=_registry)

_requests = Counter(
    "pocketlens_requests", "Calls that ended, by how they ended.", ["method", "via", "kind"], registry=_registry
)
_turns = Counter("pocketlens_turns", "Turns of conversations, by how they ended.", ["kind"], registry=_registry)
_in_flight = Gauge("pocketlens_calls_in_flight", "Calls that have arrived and not ended.", registry=_registry)
_call = Histogram(
    "pocketlens_call_seconds", "From a call's arrival to its end, however it ended.", ["method"],
    buckets=SECONDS, registry=_registry,
)  # fmt: skip
_stage = Histogram(
    "pocketlens_stage_seconds", "Stages of answered questions.", ["stage"], buckets=SECONDS, registry=_registry
)
_batch = Histogram(
    "pocketlens_batch_rows", "Rows that one run of the text tower read.", buckets=ROWS, registry=_registry
)
_queue = Gauge("pocketlens_queue_depth", "Questions waiting for the text tower.", registry=_registry)
_wait = Gauge(
    "pocketlens_expected_wait_seconds", "What a question that came now would wait for its turn.", registry=_registry
)


class _Rows:
    """A counter that is kept elsewhere."""

    counts: Callable[[], Mapping[str, int]] = staticmethod(dict)

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "pocketlens_rows", "Rows for the text tower, by what became of them.", labels=["what"]
        )
        for what, count in self.counts().items():
            family.add_metric([what], count)
        yield family


_rows = _Rows()
_registry.register(_rows)  # pyright: ignore[reportArgumentType]
_healthy = Gauge(
    "pocketlens_healthy", "1 while the last canary passed and the server is not leaving.", registry=_registry
)
_canaries = Counter("pocketlens_canaries", "Canary questions, by how they ended.", ["outcome"], registry=_registry)
_canary = Histogram("pocketlens_canary_seconds", "A canary question.", buckets=SECONDS, registry=_registry)
_pictures = Gauge("pocketlens_gallery_pictures", "Pictures in the gallery.", registry=_registry)
_gallery = Info("pocketlens_gallery", "The gallery's space and generation.", registry=_registry)
_build = Info("pocketlens_build", "What runs: version, bundle, its spaces, execution provider.", registry=_registry)

for _outcome in OUTCOMES:
    _canaries.labels(_outcome)  # there from the start, so that a rate over them is never empty
_stages = [(f"{stage}_ms", _stage.labels(stage)) for stage in STAGES]  # looked up once: it is asked for each question
_requests.labels("Search", "grpc", "OK")
_call.labels("Search")
_turns.labels("OK")


def call_began() -> None:
    _in_flight.inc()


def call_ended(method: str, via: str, kind: str, seconds: float) -> None:
    """One call. kind: of KINDS; anything else counts as ServerFault."""
    _in_flight.dec()
    _requests.labels(method, via, kind if kind in KINDS else "ServerFault").inc()
    _call.labels(method).observe(seconds)


def call_turned_away(method: str, via: str) -> None:
    """A call that ended before it began: counted, but not among the times, which it would make look better."""
    _requests.labels(method, via, "Overloaded").inc()


def turn_ended(kind: str) -> None:
    """One turn of a conversation; kind as above."""
    _turns.labels(kind if kind in KINDS else "ServerFault").inc()


def observe_times(times: pb.StageTimes) -> None:
    """The stages of one answered question."""
    for field, stage in _stages:
        stage.observe(getattr(times, field) / 1e3)


def observe_batch(size: int) -> None:
    """One run of the text tower read `size` rows."""
    _batch.observe(size)


def observe_canary(outcome: str, seconds: float) -> None:
    """One canary. outcome: of OUTCOMES."""
    _canaries.labels(outcome).inc()
    _canary.observe(seconds)


def set_healthy(*, healthy: bool) -> None:
    _healthy.set(healthy)


def watch_queue(depth: Callable[[], int], expected_wait_s: Callable[[], float]) -> None:
    """Both are asked whenever figures are read, from another thread."""
    _queue.set_function(depth)
    _wait.set_function(expected_wait_s)


def watch_rows(counts: Callable[[], Mapping[str, int]]) -> None:
    """`counts` of rows since the start, by what became of them; asked as above."""
    _rows.counts = counts


def say_what_runs(facts: pb.DescribeReply) -> None:
    """Bundle and gallery; again whenever the gallery may have changed."""
    _pictures.set(facts.gallery_size)
    _gallery.info({"gallery_space": facts.gallery_space, "generation": facts.generation})
    _build.info(
        {
            "version": facts.server_version,
            "bundle": facts.bundle,
            "token_space": facts.token_space,
            "provider": facts.provider,
        }
    )


def exposition() -> bytes:
    """All figures in Prometheus's text form (CONTENT_TYPE)."""
    return generate_latest(_registry)


def collected() -> list[Metric]:
    """The same as values, to be told by another process."""
    return list(_registry.collect())


def joined(told: Mapping[int, Sequence[Metric]]) -> bytes:
    """What several workers collected, by their numbers, as one exposition. Each series keeps its worker's number as a
    label: summed up, a counter would fall whenever a worker is started again."""
    whole: dict[str, Metric] = {}
    for worker, families in told.items():
        for family in families:
            into = whole.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [
                sample._replace(labels={**sample.labels, "worker": str(worker)}) for sample in family.samples
            ]
    return generate_latest(_Collected(whole.values()))  # pyright: ignore[reportArgumentType]


class _Collected:
    """Stands for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def read(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of each figure in an exposition. Raises ValueError for anything else."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value
