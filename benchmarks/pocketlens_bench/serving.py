"""What the service makes of its processors: questions a second beside the bare text tower and beside open_clip.

Owns the questions (distinct, of mixed length, so that no memory helps), the comparison on the same processors, what one
question costs beyond tower and search, and what ten times too many questions do. The asker has a processor of its own,
so that it does not take from what is measured. Called by cli/serving.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from time import perf_counter, process_time
from typing import Any, NamedTuple, final

import numpy as np
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.serving.batching import Limits
from pocketlens_cloud.towers import Row
from pocketlens_samples.language import vocabulary
from pocketlens_samples.queries import composed_set
from pocketlens_wire.errors import ServerFault
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.latency import shelve
from pocketlens_bench.load import CONNECTIONS, SEARCH, WARM_UP_S, Outcome, Plan, arrivals, carried_out, stages
from pocketlens_bench.server import Running, serving
from pocketlens_bench.world import OnProgress, silently

SHORTEST, LONGEST = 8, 40  # tokens of a row, begin and end among them
AT_ONCE = (16, 24, 32, 40)  # questions open in the closed loop: that of them which the service answers fastest
TURNS = 4  # in which that is found
FILLING_S = 0.5  # of a closed loop, in which the first questions are still on their way
WINDOW = 40  # rows among which the bare tower finds those it reads together
ROUNDS = 6  # what is compared takes turns, so that a machine that slows down does so for all
DESCRIBE = "/pocketlens.v1.Retrieval/Describe"
SHARE = 0.7  # of capacity: the load beside which overload is seen
OVERLOAD = 10.0
DISTINCT = 4000  # questions, asked again and again; the service remembers none
GALLERY = 500
TURNED_AWAY = frozenset({"RESOURCE_EXHAUSTED", "CANCELLED"})  # by the service; by gRPC, before the service looked
PUNCTUAL_S = 0.01  # by which the asker may be late for a second to count as one in which the machine ran
SAMPLE_S = 0.5  # between two looks at the server's memory
HONESTY = (
    "The service is told to remember nothing, so every question is read by the tower. It, the bare tower and open_clip "
    "take turns. The asker runs on a processor of its own and all that is measured on the others. Texts for open_clip "
    "are cut into tokens before its clock starts, the service's within it. As many questions are open as the service "
    f"answers fastest, of {', '.join(map(str, AT_ONCE))}. The bare tower reads the same rows, grouped "
    "in the same way, from as many threads, with nothing else to do."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """seconds: of each measurement, all its rounds together; overload_s: of overload; unloaded_s: of asking one at a
    time; gallery: pictures."""

    seconds: float = 30.0
    overload_s: float = 300.0
    unloaded_s: float = 10.0
    gallery: int = GALLERY


FULL = Sizes()
QUICK = Sizes(seconds=3.0, overload_s=6.0, unloaded_s=2.0)


@dataclass(frozen=True)
class Split:
    """Which processors do what."""

    measured: tuple[int, ...]
    asker: tuple[int, ...]


class Rate(NamedTuple):
    """processor_ms: what one question cost, all threads together."""

    per_s: float
    processor_ms: float


def measure(
    bundle: Path,
    *,
    baseline: str | None = None,
    precision: str = "fp32",
    threads: int = 1,
    sizes: Sizes = FULL,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench serving` says, as one JSON object; times in ms, rates a second, memory in 1e6 bytes.

    baseline: model of open_clip with which to compare, of the same size as the bundle's text tower; threads: of one
    run of the text tower. Raises the PocketlensError of whatever part fails."""
    load, began = load_now(), perf_counter()
    split = processors()
    composer = Composer.load(bundle, threads=threads, precision=precision)
    limits = Limits(runs=max(1, len(split.measured) // threads), kept=0, packs=composer.packs)
    texts = Texts(composer, seed)
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as folder:
        shelf = Path(folder) / "gallery"
        shelve(bundle, composed_set(queries=5, gallery=sizes.gallery), Path(folder) / "pictures", shelf, on_progress)
        options = ("--precision", precision, "--runs", limits.runs)
        with serving(bundle, shelf, threads=threads, more=options, processors=split.measured) as server:
            asker = Asker(server, split, texts.requests(DISTINCT))
            at_once = busiest(asker, sizes.seconds / 10)
            rates = compared(asker, at_once, composer, texts, baseline, limits, sizes, on_progress)
            on_progress("one question at a time", ROUNDS, ROUNDS + 2)
            alone, bare_call = asker.closed(1, sizes.unloaded_s), asker.doing_nothing().closed(1, sizes.unloaded_s)
            on_progress("overload", ROUNDS + 1, ROUNDS + 2)
            capacity = rates[0]["per_s"]
            calm = asker.open(SHARE * capacity, sizes.seconds, seed)
            with Memory(server.pid) as memory:
                flood = asker.open(OVERLOAD * capacity, sizes.overload_s, seed)
            after = asker.open(SHARE * capacity, sizes.seconds, seed + 1)
            again = steadily(asker.closed(at_once, sizes.seconds), sizes.seconds)
        on_progress("overload", ROUNDS + 2, ROUNDS + 2)
    return {
        "benchmark": "serving",
        "set": "words",
        "precision": precision,
        "rates": rates,
        "unloaded": unloaded(alone, bare_call),
        "overload": overload(calm, flood, after, (capacity, again), sizes, memory.seen),
        "honesty": HONESTY,
        "left_out": [] if baseline else ["open_clip: no model was named with --baseline"],
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"each run of the tower": threads, "runs at once": limits.runs},
            seeds={"questions": seed, "arrivals": seed},
            sizes={
                **asdict(sizes), "processors_measured": len(split.measured), "processors_asking": len(split.asker),
                "shortest": SHORTEST, "longest": texts.longest, "mean_length": texts.mean_length, "at_once": at_once,
                "distinct": DISTINCT,
            },
        ),
    }  # fmt: skip


def processors() -> Split:
    """The last processor asks, the others are measured; a machine with one shares it."""
    here = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    return Split(here[:-1] or here, here[-1:])


# --- questions


class Texts:
    """Words whose rows have every length between the shortest and the longest equally often."""

    def __init__(self, composer: Composer, seed: int) -> None:
        self._composer, self._rng = composer, np.random.default_rng(seed)
        self._around = len(self._row("a").ids) - self._pieces("a")
        self._words = {word: self._pieces(word) for word in vocabulary()}
        self._single = [word for word, pieces in self._words.items() if pieces == 1]
        self.longest = min(LONGEST, composer.manifest.context)
        self.mean_length = (SHORTEST + self.longest) / 2

    def some(self, count: int) -> list[str]:
        return [self._of_length(int(length)) for length in self._rng.integers(SHORTEST, self.longest + 1, count)]

    def rows(self, count: int) -> list[Row]:
        return self.rows_of(self.some(count))

    def rows_of(self, texts: Sequence[str]) -> list[Row]:
        return [self._row(words) for words in texts]

    def requests(self, count: int) -> tuple[bytes, ...]:
        """Search requests of words alone in zero-shot mode: one row each."""
        return self.requests_of(self.some(count))

    def requests_of(self, texts: Sequence[str]) -> tuple[bytes, ...]:
        space = self._composer.manifest.token_space
        return tuple(
            pb.SearchRequest(token_space=space, words=words, mode=pb.MODE_ZERO_SHOT, top=10).SerializeToString()
            for words in texts
        )

    def _of_length(self, length: int) -> str:
        words, left = [], length - self._around
        while left > 0:
            word = str(self._rng.choice(list(self._words)))
            if self._words[word] > left:
                word = str(self._rng.choice(self._single))
            words.append(word)
            left -= self._words[word]
        return " ".join(words)

    def _row(self, words: str) -> Row:
        (row,) = self._composer.plan(None, words, "zero-shot").rows
        return row

    def _pieces(self, word: str) -> int:
        """Tokens that one more `word` makes."""
        return len(self._row(f"a {word}").ids) - len(self._row("a").ids)


# --- what is compared with


def busiest(asker: Asker, seconds: float) -> int:
    """How many questions open at a time are answered at the highest rate: with fewer the tower finds no full runs, with
    more those it turns away cost time as well."""
    asker.closed(max(AT_ONCE), WARM_UP_S)
    turns = [{count: steadily(asker.closed(count, seconds), seconds) for count in AT_ONCE} for _ in range(TURNS)]
    return max(AT_ONCE, key=lambda count: sum(turn[count] for turn in turns))


def compared(
    asker: Asker, at_once: int, composer: Composer, texts: Texts, baseline: str | None, limits: Limits, sizes: Sizes,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rates a second of the service, the bare text tower and open_clip, in turns: the mean and each round's; how many
    times the one of its round the service's rate is, the median of all rounds; and what a question cost of processors'
    time, which says the same of a machine whose host gives its time to others."""
    rows, words, seconds = texts.rows(DISTINCT), texts.some(DISTINCT), sizes.seconds / ROUNDS
    found: dict[str, list[Rate]] = {}
    for turn in range(ROUNDS):
        on_progress("service, bare tower and open_clip in turns", turn, ROUNDS + 2)
        found.setdefault("served", []).append(served(asker, at_once, seconds))
        found.setdefault("the bare text tower", []).append(bare_tower(composer, rows, limits, seconds, asker.split))
        for name, rate in library_rates(baseline, words, seconds, asker.split).items() if baseline else ():
            found.setdefault(name, []).append(rate)
    return [
        {
            "name": name,
            "per_s": float(np.mean([rate.per_s for rate in rates])),
            "rounds_per_s": [rate.per_s for rate in rates],
            "served_is": float(
                np.median(
                    [ours.per_s / max(rate.per_s, 1e-9) for ours, rate in zip(found["served"], rates, strict=True)]
                )
            ),
            "processor_ms": float(np.mean([rate.processor_ms for rate in rates])),
        }
        for name, rates in found.items()
    ]


def served(asker: Asker, at_once: int, seconds: float) -> Rate:
    before = asker.server.processor_s()
    outcomes = asker.closed(at_once, seconds)
    worked = asker.server.processor_s() - before
    return Rate(steadily(outcomes, seconds), 1e3 * worked / max(answered(outcomes), 1))


def bare_tower(composer: Composer, rows: Sequence[Row], limits: Limits, seconds: float, split: Split) -> Rate:
    """Rows a second that the text tower reads with nothing else to do: groups made beforehand, as many threads as the
    service has."""
    lengths = [len(row.ids) for row in rows]
    groups = [
        [rows[at] for at in group]
        for start in range(0, len(rows), WINDOW)
        for group in _grouped(lengths, range(start, min(start + WINDOW, len(rows))), limits)
    ]
    turn, began = cycle(groups), perf_counter()

    def read(_: int) -> int:
        done = 0
        while not done or perf_counter() - began < seconds:
            group = next(turn)
            composer.read(group)
            done += len(group)
        return done

    with bound_to(split.measured), ThreadPoolExecutor(limits.runs) as pool:
        composer.read(groups[0])
        began, worked = perf_counter(), process_time()
        done = sum(pool.map(read, range(limits.runs)))
        return Rate(done / (perf_counter() - began), 1e3 * (process_time() - worked) / done)


def _grouped(lengths: Sequence[int], within: range, limits: Limits) -> Iterator[list[int]]:
    """Of so many rows as may wait at a time, those that are read together."""
    here = list(within)
    for group in limits.groups([lengths[at] for at in here]):
        yield [here[at] for at in group]


def library_rates(model: str, texts: Sequence[str], seconds: float, split: Split) -> dict[str, Rate]:
    """Texts a second through open_clip's own `encode_text`, each padded to its context, one at a time and 32.

    In a process of its own, so that its threads are bound to the measured processors from the start."""
    asked = {"model": model, "texts": list(texts), "seconds": seconds, "processors": list(split.measured)}
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServerFault(f"open_clip could not be measured: {done.stderr.strip()[-300:]}")
    return {f"open_clip encode_text, {batch} at a time": Rate(*rate) for batch, *rate in json.loads(done.stdout)}


LIBRARY = """
import json, os, sys, time, logging
asked = json.load(sys.stdin)
if hasattr(os, "sched_setaffinity") and asked["processors"]: os.sched_setaffinity(0, asked["processors"])
import open_clip, torch
logging.disable()
torch.set_num_threads(max(1, len(asked["processors"])))
model = open_clip.create_model(asked["model"]).eval()
tokens = open_clip.get_tokenizer(asked["model"])(asked["texts"])
rates = []
with torch.no_grad():
    for batch in (1, 32):
        parts = tokens.split(batch)
        model.encode_text(parts[0])
        began, worked, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < asked["seconds"]:
            done += len(model.encode_text(parts[done // batch % len(parts)]))
        rates.append([batch, done / (time.perf_counter() - began), 1e3 * (time.process_time() - worked) / done])
print(json.dumps(rates))
"""


@contextmanager
def bound_to(processors: Sequence[int]) -> Iterator[None]:
    """This thread and those it starts on `processors`; threads that are there already stay where they are."""
    if not processors or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- asking


@dataclass(frozen=True)
class Asker:
    """Carries out plans in a fresh process on its own processor, whose event loop nothing else delays."""

    server: Running
    split: Split
    messages: tuple[bytes, ...]
    method: str = SEARCH
    connections: int = CONNECTIONS

    def closed(self, at_once: int, seconds: float) -> list[Outcome]:
        address, connections = self.server.address, self.connections
        return self._carried_out(
            Plan(address, self.method, self.messages, at_once=at_once, seconds=seconds, connections=connections)
        )

    def open(self, rate: float, seconds: float, seed: int) -> list[Outcome]:
        return self._carried_out(
            Plan(self.server.address, self.method, self.messages, due=arrivals(rate, seconds, seed))
        )

    def doing_nothing(self) -> Asker:
        """One whose calls go the way of every call and ask neither tower nor gallery."""
        return replace(self, messages=(pb.DescribeRequest().SerializeToString(),), method=DESCRIBE)

    def _carried_out(self, plan: Plan) -> list[Outcome]:
        with ProcessPoolExecutor(1, get_context("spawn"), _bind, (self.split.asker,)) as pool:
            return pool.submit(carried_out, plan).result()


def _bind(processors: Sequence[int]) -> None:
    if processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)


@final
class Memory(Thread):
    """Resident bytes of a process, looked at until left: (seconds since the start, bytes)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over, self.seen = pid, Event(), []

    def run(self) -> None:
        began = perf_counter()
        while not self._over.wait(SAMPLE_S):
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            self.seen.append((perf_counter() - began, pages * os.sysconf("SC_PAGE_SIZE")))

    def __enter__(self) -> Memory:
        if Path("/proc").is_dir():
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


# --- figures


def answered(outcomes: Sequence[Outcome]) -> int:
    return sum(one.status == "OK" for one in outcomes)


def steadily(outcomes: Sequence[Outcome], seconds: float) -> float:
    """Answers a second of a closed loop, without the time in which the house fills, and what came after the end."""
    begin = min(FILLING_S, seconds / 4)
    ends = (one.due + one.took_s for one in outcomes if one.status == "OK")
    return sum(begin <= end < seconds for end in ends) / (seconds - begin)


def unloaded(outcomes: Sequence[Outcome], bare_call: Sequence[Outcome]) -> dict[str, Any]:
    """Quantiles of the whole, of tower and search, of what is left, of how much of that the service itself takes, and
    of a call that asks for next to nothing."""
    found = [one for one in outcomes if one.status == "OK"]
    whole = np.array([1e3 * one.took_s for one in found])
    work = np.array([one.stages["text_tower"] + one.stages["search"] for one in found])
    return {
        "questions": len(found),
        **{
            name: {f"p{q}_ms": float(np.quantile(values, q / 100)) for q in (50, 95, 99)}
            for name, values in (
                ("whole", whole),
                ("tower_and_search", work),
                ("beyond", whole - work),
                ("in_service", np.array([one.stages["total"] for one in found]) - work),
                ("bare_call", np.array([1e3 * one.took_s for one in bare_call if one.status == "OK"])),
            )
        },
    }


def overload(
    calm: Sequence[Outcome], flood: Sequence[Outcome], after: Sequence[Outcome], capacities: tuple[float, float],
    sizes: Sizes, memory: Sequence[tuple[float, int]],
) -> dict[str, Any]:  # fmt: skip
    """What was answered of ten times too many, how long those answered and those turned away took. capacities: what
    the service did before and after with as many as go; what was answered is compared with their mean."""
    capacity = sum(capacities) / 2
    shed = [1e3 * one.took_s for one in flood if one.status in TURNED_AWAY]
    in_time = sum(one.status == "OK" and one.due + one.took_s <= sizes.overload_s for one in flood)
    return {
        "capacity_per_s": capacity,
        "capacities_per_s": list(capacities),
        "offered_per_s": len(flood) / sizes.overload_s,
        "seconds": sizes.overload_s,
        "goodput_per_s": in_time / sizes.overload_s,
        "goodput_share": in_time / sizes.overload_s / capacity,
        "calm": quantiles([1e3 * one.took_s for one in calm if one.status == "OK"]),
        "accepted": quantiles([1e3 * one.took_s for one in flood if one.status == "OK"]),
        "turned_away": quantiles(shed),
        "stages": {name: stages([one for one in of if one.status == "OK"]) for name, of in
                   (("calm", calm), ("overload", flood))},
        "after": quantiles([1e3 * one.took_s for one in after if one.status == "OK"]),
        "on_time": on_time(calm, flood),
        "statuses": {name: dict(Counter(one.status for one in of)) for name, of in
                     (("calm", calm), ("overload", flood), ("after", after))},
        "asker_late_p99_ms": 1e3 * float(np.quantile([one.lag_s for one in flood], 0.99)),
        "memory_mb": {"begin": memory[0][1] / 1e6, "end": memory[-1][1] / 1e6, "most": max(m for _, m in memory) / 1e6}
        if memory
        else None,
    }  # fmt: skip


def on_time(calm: Sequence[Outcome], flood: Sequence[Outcome]) -> dict[str, Any]:
    """The same times of those seconds in which the asker was punctual. It has a processor of its own, so that when it
    is late the machine stood still for a while, and the service with it. share: of the overload's seconds."""
    kept, of_flood = punctual(flood)
    return {
        "share": of_flood,
        **{
            name: quantiles([1e3 * one.took_s for one in found if one.status in statuses])
            for name, found, statuses in (
                ("calm", punctual(calm)[0], {"OK"}),
                ("accepted", kept, {"OK"}),
                ("turned_away", kept, TURNED_AWAY),
            )
        },
    }


def punctual(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], float]:
    """Those due in seconds of which 99 in 100 were sent in time, and the share of such seconds."""
    lags: dict[int, list[float]] = {}
    for one in outcomes:
        lags.setdefault(int(one.due), []).append(one.lag_s)
    good = {second for second, late in lags.items() if np.quantile(late, 0.99) <= PUNCTUAL_S}
    return [one for one in outcomes if int(one.due) in good], len(good) / max(len(lags), 1)


def quantiles(times: Sequence[float]) -> dict[str, float] | None:
    return {f"p{q}_ms": float(np.quantile(times, q / 100)) for q in (50, 95, 99)} if times else None
