"""The service as a model: questions arrive, are let in or turned away, checked, read in batches, searched, answered.

Owns the clock and the stations; how a run is put together is the service's own `Limits`, and who is turned away
follows serving/front.py. What everything costs comes in (calibrate.py measures it). Not modelled: deadlines that pass
while a row waits, rows remembered or shared, how long Python keeps its lock at a time, and the few milliseconds until
one more hand is woken. Called by plan.py and plan_check.py; tests hold it to closed forms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import final

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.serving.batching import SMOOTHING, Limits
from pocketlens_cloud.serving.front import HANDS, MAX_INSIDE, PATIENCE_S
from pocketlens_cloud.serving.server import MOST_PENDING, PENDING

Seconds = NDArray[np.float64]
Then = Callable[[], None]
NOTHING: Seconds = np.zeros(1)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one server's work takes, in seconds of a processor that does nothing else; arrays are samples to draw from.

    A run of the text tower takes (run_s + token_s x tokens, padding included where it is read) x a draw of `scatter`
    and needs no Python; all else shares Python's one lock. `speeds[n - 1]`: how fast each of n tasks goes while n are
    at work, 1 being alone; beyond the last they share what the last shows."""

    run_s: float
    token_s: float
    scatter: Seconds = field(default_factory=lambda: np.ones(1))
    speeds: tuple[float, ...] = (1.0,)
    check_s: Seconds = field(default_factory=lambda: NOTHING)
    finish_s: Seconds = field(default_factory=lambda: NOTHING)  # heads, and the search where it is in process
    loop_s: float = 0.0  # of the one event loop, for a call: half of it before admission, half after the search
    way_s: float = 0.0  # to the asker and back, of no processor that is modelled
    away_s: Seconds = field(default_factory=lambda: NOTHING)  # search elsewhere: a hand waits and works not


@dataclass(frozen=True, kw_only=True)
class House:
    """How one server is set up; the defaults are the service's own."""

    batch: Limits = field(default_factory=Limits)
    hands: int = HANDS
    pending: tuple[int, int] = (PENDING, MOST_PENDING)  # calls before the loop beyond which gRPC ends some, and all
    most_inside: int = MAX_INSIDE
    patience_s: float = PATIENCE_S


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came of it. `sojourn_s`: of those answered, in order of arrival; NaN for those turned away."""

    due: Seconds
    sojourn_s: Seconds
    ended: float  # when the last question left
    mean_inside: float  # over the whole time, counted at every change
    tower_work_s: float  # processor seconds asked of it
    tower_busy_s: float  # seconds during which at least one run was under way
    processors_used: float  # mean number at work
    runs: int
    rows: int

    def row(self, warm_s: float, seconds: float) -> dict[str, float]:
        """Rates and quantiles of the questions due in `seconds` after `warm_s`, counted as load.py counts."""
        here = (self.due >= warm_s) & (self.due < warm_s + seconds)
        took = self.sojourn_s[here]
        answered = took[~np.isnan(took)]
        in_time = np.sum(self.due[here] + np.nan_to_num(took, nan=np.inf) <= warm_s + seconds)
        p50, p95, p99 = np.quantile(answered, (0.5, 0.95, 0.99)) * 1e3 if len(answered) else (0.0, 0.0, 0.0)
        return {
            "offered_per_s": len(took) / seconds,
            "achieved_per_s": float(in_time) / seconds,
            "p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99),
            "shed_share": 1 - len(answered) / max(len(took), 1),
            "tower_busy_share": self.tower_busy_s / self.ended,
            "rows_a_run": self.rows / max(self.runs, 1),
        }  # fmt: skip


def simulate(
    due: Seconds, questions: Sequence[Sequence[int]], costs: Costs, house: House | None = None, *, seed: int = 0
) -> Simulated:
    """Questions due at `due` seconds, the i-th with rows of `questions[i % len(questions)]` tokens."""
    return _Front(due, questions, costs, house or House(), np.random.default_rng(seed)).run()


# --- a gallery of shards


def queue_times(due: Seconds, service_s: Seconds, servers: int) -> Seconds:
    """From due to done, first come first served by `servers` (M/G/c if `due` is Poisson)."""
    free = [0.0] * servers
    heapify(free)
    done = np.empty(len(due))
    for i, (at, takes) in enumerate(zip(due.tolist(), service_s.tolist(), strict=True)):
        done[i] = max(at, free[0]) + takes
        heapreplace(free, done[i])
    return done - due


def slowest_of(times: Seconds, shards: int, size: int, rng: np.random.Generator) -> Seconds:
    """The largest of `shards` independent draws from `times`, `size` times over: one quantile each.

    Shards that answer the same questions are busy together, so truly the largest is smaller: an upper bound in mean
    (Nelson and Tantawi 1988, on fork and join)."""
    return np.quantile(times, rng.random(size) ** (1 / shards), method="inverted_cdf")


# --- the machinery


@final
class Clock:
    """Events in order of time; among equal times in order of being asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._order = count()

    def at(self, time: float, do: Then) -> None:
        heappush(self._events, (time, next(self._order), do))

    def run(self) -> None:
        while self._events:
            self.now, _, do = heappop(self._events)
            do()


@dataclass
class _Tasks:
    """Tasks that go equally fast. Time is kept in work done by each, so who has least left ends first."""

    done: float = 0.0
    ends: list[tuple[float, int, Then]] = field(default_factory=list)

    def left(self) -> float:
        return max(0.0, self.ends[0][0] - self.done)


@final
class Processors:
    """Tasks that share processors evenly. Those that need Python's lock share one, however many are free."""

    def __init__(self, clock: Clock, speeds: Sequence[float]) -> None:
        self._clock, self._speeds = clock, speeds
        self._native, self._locked = _Tasks(), _Tasks()
        self._order = count()
        self._since = 0.0
        self._version = 0
        self.task_s = 0.0  # time integral of the number of processors at work

    def begin(self, work_s: float, then: Then, *, locked: bool) -> None:
        self._advance()
        tasks = self._locked if locked else self._native
        heappush(tasks.ends, (tasks.done + work_s, next(self._order), then))
        self._arm()

    def _rates(self) -> tuple[float, float]:
        """Of each native task, of each locked one."""
        native, locked = len(self._native.ends), len(self._locked.ends)
        at_work, most = native + min(1, locked), len(self._speeds)
        speed = self._speeds[max(at_work, 1) - 1] if at_work <= most else self._speeds[-1] * most / at_work
        return speed, speed / max(1, locked)

    def _advance(self) -> None:
        passed = self._clock.now - self._since
        self._since = self._clock.now
        for tasks, rate in zip((self._native, self._locked), self._rates(), strict=True):
            if tasks.ends:
                tasks.done += passed * rate
        self.task_s += passed * min(len(self._native.ends) + min(1, len(self._locked.ends)), len(self._speeds))

    def _arm(self) -> None:
        self._version += 1
        groups = zip((self._native, self._locked), self._rates(), strict=True)
        first = min(((tasks.left() / rate, at) for at, (tasks, rate) in enumerate(groups) if tasks.ends), default=None)
        if first:
            tasks = (self._native, self._locked)[first[1]]
            self._clock.at(self._clock.now + first[0], partial(self._end, self._version, tasks))

    def _end(self, version: int, tasks: _Tasks) -> None:
        if version != self._version:  # another task came or went meanwhile
            return
        self._advance()
        tasks.done, _, then = heappop(tasks.ends)  # exactly what it should be, so that rounding does not add up
        self._arm()
        then()


@final
class Station:
    """So many threads before one line: each takes a task of Python's, works, waits for what is elsewhere, and so on."""

    def __init__(self, clock: Clock, processors: Processors, threads: int) -> None:
        self._clock, self._processors, self._free = clock, processors, threads
        self._line: deque[tuple[float, float, Then]] = deque()

    def ask(self, work_s: float, then: Then, *, away_s: float = 0.0) -> None:
        self._line.append((work_s, away_s, then))
        self._take()

    def _take(self) -> None:
        while self._free and self._line:
            work_s, away_s, then = self._line.popleft()
            if not work_s and not away_s:
                then()
                continue
            self._free -= 1
            if work_s:
                self._processors.begin(work_s, partial(self._worked, away_s, then), locked=True)
            else:
                self._worked(away_s, then)

    def _worked(self, away_s: float, then: Then) -> None:
        if away_s:
            self._clock.at(self._clock.now + away_s, partial(self._over, then))
        else:
            self._over(then)

    def _over(self, then: Then) -> None:
        self._free += 1
        then()
        self._take()


@dataclass(eq=False)
class _Question:
    number: int
    rows_left: int


@final
class _Front:
    """One server: event loop, admission, hands, text tower."""

    def __init__(
        self, due: Seconds, questions: Sequence[Sequence[int]], costs: Costs, house: House, rng: np.random.Generator
    ) -> None:
        self._due, self._questions, self._costs, self._house = due, questions, costs, house
        self._clock = Clock()
        self._processors = Processors(self._clock, costs.speeds)
        self._loop = Station(self._clock, self._processors, 1)
        self._hands = Station(self._clock, self._processors, house.hands)
        self._waiting: list[tuple[int, _Question]] = []  # rows: their tokens, in order of arrival
        self._waiting_tokens = self._tokens_per_s = 0.0
        self._running = self._inside = self._coming = self._runs = self._rows = self._tokens = 0
        self._pending, self._looking, self._rng = deque[int](), False, rng
        self._inside_s = self._inside_since = 0.0
        self._work_s = self._busy_s = self._busy_since = self._ended = 0.0
        self._sojourn_s = np.full(len(due), np.nan)
        draws = len(due)
        self._check_s = rng.choice(costs.check_s, draws)
        self._finish_s = rng.choice(costs.finish_s, draws)
        self._away_s = rng.choice(costs.away_s, draws)
        self._scatter = iter(rng.choice(costs.scatter, sum(len(questions[i % len(questions)]) for i in range(draws))))

    def run(self) -> Simulated:
        for number, at in enumerate(self._due.tolist()):
            self._clock.at(at, partial(self._arrive, number))
        self._clock.run()
        ended = max(self._ended, 1e-12)
        return Simulated(
            due=self._due,
            sojourn_s=self._sojourn_s,
            ended=ended,
            mean_inside=self._inside_s / ended,
            tower_work_s=self._work_s,
            tower_busy_s=self._busy_s,
            processors_used=self._processors.task_s / ended,
            runs=self._runs,
            rows=self._rows,
        )

    def _arrive(self, number: int) -> None:
        """In line before the loop, unless it is long: gRPC then ends the call at no cost that is modelled."""
        few, most = self._house.pending
        if len(self._pending) > few and self._rng.random() * (most - few) < len(self._pending) - few:
            self._ended = max(self._ended, self._clock.now)
            return
        self._pending.append(number)
        self._look()

    def _look(self) -> None:
        """The loop looks at one call at a time, and does what else it has to do in between."""
        if self._pending and not self._looking:
            self._looking = True
            self._loop.ask(self._costs.loop_s / 2, partial(self._looked, self._pending.popleft()))

    def _looked(self, number: int) -> None:
        self._looking = False
        self._let_in(number)
        self._look()

    def _let_in(self, number: int) -> None:
        """As Front.refusal, but for deadlines."""
        if self._inside >= self._house.most_inside or self._wait_s() > self._house.patience_s:
            self._ended = max(self._ended, self._clock.now)
            return
        self._count_inside(1)
        self._coming += 1
        self._hands.ask(self._check_s[number], partial(self._queue, number))

    def _wait_s(self) -> float:
        """As Batcher.wait_s."""
        if not self._tokens_per_s:
            return 0.0
        batch = self._house.batch
        usual = self._tokens / self._rows
        at_once = (batch.runs - self._running) * min(batch.most_tokens, batch.most_rows * usual)
        before = max(0.0, self._waiting_tokens + self._coming * usual - at_once)
        return before / (self._tokens_per_s * batch.runs)

    def _count_inside(self, more: int) -> None:
        self._inside_s += self._inside * (self._clock.now - self._inside_since)
        self._inside_since = self._clock.now
        self._inside += more

    def _queue(self, number: int) -> None:
        rows = self._questions[number % len(self._questions)]
        question = _Question(number, len(rows))
        self._coming -= 1
        self._waiting += [(tokens, question) for tokens in rows]
        self._waiting_tokens += sum(rows)
        self._pump()

    def _pump(self) -> None:
        limits = self._house.batch
        while self._running < limits.runs and self._waiting:
            groups = limits.groups([tokens for tokens, _ in self._waiting])
            taken = set(next(group for group in groups if 0 in group))  # the row that waits longest, and its company
            batch = [self._waiting[at] for at in sorted(taken)]
            self._waiting = [row for at, row in enumerate(self._waiting) if at not in taken]
            self._begin(batch)

    def _begin(self, batch: list[tuple[int, _Question]]) -> None:
        lengths = [tokens for tokens, _ in batch]
        self._waiting_tokens -= sum(lengths)
        if not self._running:
            self._busy_since = self._clock.now
        self._running += 1
        self._runs += 1
        self._rows += len(batch)
        self._tokens += sum(lengths)
        read = sum(lengths) if self._house.batch.packs else len(batch) * max(lengths)
        work_s = self._costs.run_s + self._costs.token_s * read
        work_s *= float(next(self._scatter))  # no more runs than rows
        self._work_s += work_s
        self._processors.begin(work_s, partial(self._read, batch, self._clock.now), locked=False)

    def _read(self, batch: list[tuple[int, _Question]], began: float) -> None:
        self._running -= 1
        if not self._running:
            self._busy_s += self._clock.now - self._busy_since
        self._learn_speed([tokens for tokens, _ in batch], self._clock.now - began)
        for _, question in batch:
            question.rows_left -= 1
            if not question.rows_left:
                number = question.number
                away_s = float(self._away_s[number])
                where = self._hands if away_s else self._loop  # as Service.finishes_quickly
                where.ask(self._finish_s[number], partial(self._searched, number), away_s=away_s)
        self._pump()

    def _learn_speed(self, lengths: list[int], took_s: float) -> None:
        """As Batcher._account."""
        speed = sum(lengths) / max(took_s, 1e-6)
        if len(lengths) > 1 or not self._tokens_per_s:
            old = self._tokens_per_s or speed
            self._tokens_per_s = old + SMOOTHING * (speed - old)

    def _searched(self, number: int) -> None:
        self._loop.ask(self._costs.loop_s / 2, partial(self._answered, number))

    def _answered(self, number: int) -> None:
        self._count_inside(-1)
        self._ended = self._clock.now
        self._sojourn_s[number] = self._clock.now + self._costs.way_s - self._due[number]
