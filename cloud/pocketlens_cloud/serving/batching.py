"""The queue before the text tower: rows of many questions read together.

Owns which rows share a run, what is dropped before a run, and what is remembered after it. No timer holds a row back:
whenever the tower is free it reads what is waiting, so batches grow with the load and a lone question waits for nobody.
Questions come in one event loop. The tower runs in threads, which take the next rows themselves: a busy loop must not
leave it idle. What a row means is compose.py's."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import TooLate

from pocketlens_cloud.towers import MAX_ROWS, Row, buckets, packs

log = logging.getLogger(__name__)

Read = Callable[[Sequence[Row]], NDArray[np.float32]]
Feature = NDArray[np.float32]  # (dim,)

MAX_TOKENS: Final = 128  # of one run, padding included: a processor reads more rows in proportionally more time
MAX_TOKENS_ELSEWHERE: Final = 4096  # a GPU reads so many in hardly more time than one
KEPT: Final = 20_000  # features remembered; 40 MB at 512 numbers each
SMOOTHING: Final = 0.2  # weight of the newest run in the estimate of the tower's speed


@dataclass(frozen=True, kw_only=True)
class Limits:
    """most_rows, most_tokens: of one run; a single row may be longer. runs: at once. kept: features remembered.
    packs: the tower reads no padding."""

    most_rows: int = MAX_ROWS
    most_tokens: int = MAX_TOKENS
    runs: int = 1
    kept: int = KEPT
    packs: bool = False

    def groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of rows that are read together. A tower that reads padding gets rows of like lengths, another one
        the rows as they stand."""
        group = packs if self.packs else buckets
        return group(lengths, most_rows=self.most_rows, most_tokens=self.most_tokens)


def limits_for(provider: str, *, runs: int, kept: int = KEPT, packs: bool = False) -> Limits:
    """Limits for the execution provider that runs the tower. runs: at once where that is the CPU; a GPU has one."""
    if provider == "CPUExecutionProvider":
        return Limits(runs=runs, kept=kept, packs=packs)
    return Limits(most_tokens=MAX_TOKENS_ELSEWHERE, kept=kept, packs=packs)


@dataclass
class Counts:
    """What has happened since the start."""

    runs: int = 0
    rows: int = 0  # read by the tower
    tokens: int = 0  # of those rows, without padding
    padding: int = 0
    remembered: int = 0  # rows answered from memory
    shared: int = 0  # rows that another question was already waiting for
    late: int = 0  # dropped because their deadline had passed
    unwanted: int = 0  # dropped because nobody waited any more


@dataclass(eq=False)
class _Waiting:
    """A row that is to be read, once, for everyone who waits for it."""

    row: Row
    key: bytes
    until: float  # time.monotonic() of the last deadline among those who wait
    future: "asyncio.Future[Feature]"
    wanted: int = 1
    took_s: float = 0.0  # of the run that read it
    since: float = field(default_factory=time.monotonic)


@final
class Batcher:
    """A text tower shared by all questions of one event loop."""

    def __init__(self, read: Read, pool: Executor, limits: Limits) -> None:
        """`read`: rows to features (rows, dim), row for row the same whatever their company; called in `pool`."""
        self._read, self._pool, self._limits = read, pool, limits
        self._waiting: dict[bytes, _Waiting] = {}  # in order of arrival
        self._reading: dict[bytes, _Waiting] = {}
        self._lock = Lock()  # for the two above and the two below, which the threads change as well
        self._running = 0
        self.waiting_tokens = 0  # in rows no run has begun with
        self._kept: OrderedDict[bytes, Feature] = OrderedDict()
        self._tokens_per_s = 0.0
        self.counts = Counts()
        self.on_run: Callable[[int], None] = lambda _rows: None  # told of each run, with its number of rows

    @property
    def waiting(self) -> int:
        """Rows no run has begun with."""
        return len(self._waiting)

    def wait_s(self, coming: int = 0) -> float:
        """Seconds until a row that came after `coming` others, of the usual length, would be taken up, by the speed of
        the latest runs; 0 before the first."""
        if not self._tokens_per_s:
            return 0.0
        counts, limits = self.counts, self._limits
        usual = counts.tokens / (counts.rows + counts.remembered + counts.shared)  # what is remembered is not read
        at_once = (limits.runs - self._running) * min(limits.most_tokens, limits.most_rows * usual)
        before = max(0.0, self.waiting_tokens + coming * usual - at_once)
        return before / (self._tokens_per_s * limits.runs)

    async def read(self, rows: Sequence[Row], until: float = float("inf")) -> tuple[NDArray[np.float32], float]:
        """Features (len(rows), dim) of one question's rows, and the seconds of the longest run that read one of them.

        until: time.monotonic() of the question's deadline.

        Raises TooLate if it passes before the tower takes them up; whatever the tower raises."""
        keys = [_key(row) for row in rows]
        with self._lock:  # once for all of them, or a thread takes the first and leaves the others for the next run
            found: list[Feature | _Waiting] = [
                self._placed(row, key, until) for row, key in zip(rows, keys, strict=True)
            ]
        waiting = [each for each in found if isinstance(each, _Waiting)]
        if waiting:
            try:
                self._pump()
                await asyncio.wait([each.future for each in waiting])
            finally:
                for each in waiting:
                    each.wanted -= 1
        texts = np.stack([each.future.result() if isinstance(each, _Waiting) else each for each in found])
        return texts, max((each.took_s for each in waiting), default=0.0)

    def _placed(self, row: Row, key: bytes, until: float) -> "Feature | _Waiting":
        """The feature if it is remembered, else the row in the queue, where it may stand already. Under the lock."""
        if (feature := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            self.counts.remembered += 1
            return feature
        if known := self._waiting.get(key) or self._reading.get(key):
            self.counts.shared += 1
            known.until = max(known.until, until)
            known.wanted += 1
            return known
        placed = _Waiting(row, key, until, asyncio.get_running_loop().create_future())
        self._waiting[key] = placed
        self.waiting_tokens += len(row.ids)
        return placed

    def _pump(self) -> None:
        """Wake threads that sleep, each with rows to begin with."""
        loop = asyncio.get_running_loop()
        while batch := self._first(loop):
            try:
                self._pool.submit(self._read_on, batch, loop)
            except RuntimeError as error:  # the pool is going down
                self._lost(batch, error)

    def _first(self, loop: asyncio.AbstractEventLoop) -> list[_Waiting]:
        with self._lock:
            batch = self._taken(loop) if self._running < self._limits.runs else []
            self._running += bool(batch)
            return batch

    def _next(self, loop: asyncio.AbstractEventLoop) -> list[_Waiting]:
        with self._lock:
            batch = self._taken(loop)
            self._running -= not batch
            return batch

    def _read_on(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: run after run until nothing waits."""
        try:
            while batch:
                began = time.perf_counter()
                read = self._read_together([each.row for each in batch])
                took_s, ended, batch = time.perf_counter() - began, batch, []
                try:
                    batch = self._next(loop)
                finally:
                    _call(loop, self._ended, ended, read, took_s)
        except BaseException as error:
            log.exception("a thread of the text tower ended; the next question starts another")
            _call(loop, self._lost, batch, error)

    def _lost(self, batch: list[_Waiting], error: BaseException) -> None:
        """A thread ended, though nobody asked it to, and did not read `batch`."""
        with self._lock:
            self._running -= 1
            for each in batch:
                del self._reading[each.key]
        for each in batch:
            each.future.set_exception(RuntimeError(f"the text tower ended: {error!r}"))
            each.future.exception()  # as below

    def _taken(self, loop: asyncio.AbstractEventLoop) -> list[_Waiting]:
        """The next run: the most urgent row and those that go with it. Under the lock, in any thread."""
        self._drop_what_nobody_waits_for(loop)
        if not self._waiting:
            return []
        queue = sorted(self._waiting.values(), key=lambda each: (each.until, each.since))
        groups = self._limits.groups([len(each.row.ids) for each in queue])
        batch = [queue[at] for at in next(group for group in groups if 0 in group)]
        for each in batch:
            self._reading[each.key] = self._waiting.pop(each.key)
            self.waiting_tokens -= len(each.row.ids)
        return batch

    def _drop_what_nobody_waits_for(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        dropped = [each for each in self._waiting.values() if not each.wanted or each.until <= now]
        for each in dropped:
            del self._waiting[each.key]
            self.waiting_tokens -= len(each.row.ids)
        if dropped:
            _call(loop, self._dropped, dropped)

    def _dropped(self, rows: list[_Waiting]) -> None:
        for each in rows:
            if each.wanted:
                self.counts.late += 1
                each.future.set_exception(TooLate("the deadline passed while the question waited for its turn"))
                each.future.exception()  # of a question's rows only the first is asked for it
            else:
                self.counts.unwanted += 1
                each.future.cancel()

    def _read_together(self, rows: list[Row]) -> "list[Feature | Exception]":
        try:
            return list(self._read(rows))
        except Exception as error:
            if len(rows) == 1:
                return [error]
            log.exception("a run of %d rows failed; each is read alone", len(rows))
            return [each for row in rows for each in self._read_together([row])]

    def _ended(self, batch: list[_Waiting], read: "list[Feature | Exception]", took_s: float) -> None:
        with self._lock:
            for each in batch:
                del self._reading[each.key]
        for each, feature in zip(batch, read, strict=True):
            each.took_s = took_s
            if isinstance(feature, Exception):
                each.future.set_exception(feature)
                each.future.exception()  # whoever waited may be gone: asyncio would report it as never looked at
            else:
                each.future.set_result(feature)
                self._remember(each.key, feature)
        self._account([len(each.row.ids) for each in batch], took_s)

    def _remember(self, key: bytes, feature: Feature) -> None:
        if self._limits.kept and np.isfinite(feature).all():
            self._kept[key] = feature
            while len(self._kept) > self._limits.kept:
                self._kept.popitem(last=False)

    def _account(self, lengths: list[int], took_s: float) -> None:
        tokens = sum(lengths)
        self.counts.runs += 1
        self.on_run(len(lengths))
        self.counts.rows += len(lengths)
        self.counts.tokens += tokens
        self.counts.padding += 0 if self._limits.packs else len(lengths) * max(lengths) - tokens
        speed = tokens / max(took_s, 1e-6)
        if len(lengths) > 1 or not self._tokens_per_s:  # a lone row says little of what a full run reads
            old = self._tokens_per_s or speed
            self._tokens_per_s = old + SMOOTHING * (speed - old)


def _call(loop: asyncio.AbstractEventLoop, told: Callable[..., None], *what: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(told, *what)


def _key(row: Row) -> bytes:
    """All that the feature of a row depends on."""
    ids = np.asarray(row.ids, np.int32).tobytes()
    return ids if row.sentence is None else b"%d:%d:" % (row.start, len(ids)) + ids + row.sentence.tobytes()
