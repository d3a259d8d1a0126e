"""The queue before the text tower: what is read together, what is dropped, what is remembered."""

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlens_cloud.serving.batching import Batcher, Limits
from pocketlens_cloud.towers import MAX_PADDING, Row
from pocketlens_wire.errors import TooLate

ALONE = Limits(kept=0)


def feature(row: Row) -> np.ndarray:
    picture = 0.0 if row.sentence is None else float(row.sentence.sum()) + row.start
    return np.array([sum(row.ids), len(row.ids), picture], np.float32)


class Ended(BaseException):
    """What ends a thread."""


class Tower:
    """Reads rows as `feature` does; remembers its runs; stands still while `go_on` is not set."""

    def __init__(self, *, held: bool = False) -> None:
        self.runs: list[list[Row]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        if not held:
            self.go_on.set()

    def __call__(self, rows):
        self.runs.append(list(rows))
        self.begun.set()
        assert self.go_on.wait(10)
        if any(row.ids[0] == 666 for row in rows):
            raise RuntimeError("this row breaks the tower")
        if any(row.ids[0] == 999 for row in rows):
            raise Ended
        return np.stack([feature(row) for row in rows])


def run(body, tower: Tower, limits: Limits = ALONE):
    async def within():
        with ThreadPoolExecutor(limits.runs) as pool:
            try:
                return await asyncio.wait_for(body(Batcher(tower, pool, limits)), 20)
            finally:
                tower.go_on.set()

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns wherever they can
    try:
        return asyncio.run(within())
    finally:
        sys.setswitchinterval(usual)


async def begun(tower: Tower) -> None:
    await asyncio.get_running_loop().run_in_executor(None, tower.begun.wait, 10)


def row(*ids: int, sentence=None, start: int = 0) -> Row:
    return Row(list(ids), sentence, start)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=90), min_size=1, max_size=4), max_size=40))
def test_each_question_gets_its_own_rows_whatever_their_company(questions):
    tower = Tower()
    limits = Limits(most_rows=8, most_tokens=120, runs=2, kept=50)

    async def body(batcher):
        asked = [batcher.read([row(*ids) for ids in question]) for question in questions]
        answers = await asyncio.gather(*asked)
        for question, (texts, _) in zip(questions, answers, strict=True):
            assert np.array_equal(texts, np.stack([feature(row(*ids)) for ids in question]))
        assert batcher.waiting_tokens == 0

    run(body, tower, limits)
    for rows in tower.runs:
        longest = max(len(each.ids) for each in rows)
        assert len(rows) <= 8
        assert len(rows) == 1 or len(rows) * longest <= 120
        assert sum(longest - len(each.ids) for each in rows) <= MAX_PADDING


def test_what_waits_while_the_tower_is_busy_is_read_together_and_not_beyond_the_most():
    tower = Tower(held=True)

    async def body(batcher):
        first = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        others = [asyncio.create_task(batcher.read([row(n)])) for n in range(2, 12)]
        await asyncio.sleep(0)
        assert batcher.waiting_tokens == 10
        tower.go_on.set()
        await asyncio.gather(first, *others)

    run(body, tower, Limits(most_rows=6, kept=0))
    assert [len(rows) for rows in tower.runs] == [1, 6, 4]


def test_a_tower_that_reads_no_padding_takes_the_most_urgent_of_any_length():
    tower = Tower(held=True)

    async def body(batcher):
        first = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        lengths_and_deadlines = [(30, 4), (5, 1), (20, 3), (9, 2)]
        others = [
            asyncio.create_task(batcher.read([row(*[n] * n)], time.monotonic() + 100 * deadline))
            for n, deadline in lengths_and_deadlines
        ]
        await asyncio.sleep(0)
        tower.go_on.set()
        await asyncio.gather(first, *others)
        return batcher.counts

    assert run(body, tower, Limits(most_tokens=34, kept=0, packs=True)).padding == 0
    assert [[len(each.ids) for each in rows] for rows in tower.runs] == [[1], [5, 9, 20], [30]]


def test_the_expected_wait_is_that_of_all_runs_together():
    tower = Tower(held=True)

    async def body(batcher):
        batcher._tokens_per_s, batcher.counts.rows, batcher.counts.tokens = 10.0, 1, 10
        reading = [asyncio.create_task(batcher.read([row(n)])) for n in (1, 2)]
        await begun(tower)
        waiting = asyncio.create_task(batcher.read([row(*range(1, 41))]))
        await asyncio.sleep(0)
        expected = batcher.wait_s()
        tower.go_on.set()
        await asyncio.gather(*reading, waiting)
        return expected

    assert run(body, tower, Limits(most_rows=1, runs=2, kept=0)) == 2.0  # 40 tokens, 10 a second by each of two


def test_the_most_urgent_question_goes_first_and_long_rows_do_not_pad_short_ones():
    tower = Tower(held=True)

    async def body(batcher):
        now = time.monotonic()
        first = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        long = asyncio.create_task(batcher.read([row(*[7] * 70)], now + 100))
        short = [asyncio.create_task(batcher.read([row(n)], now + 50)) for n in (2, 3)]
        await asyncio.sleep(0)
        tower.go_on.set()
        await asyncio.gather(first, long, *short)

    run(body, tower)
    assert [[len(each.ids) for each in rows] for rows in tower.runs] == [[1], [1, 1], [70]]


def test_late_and_abandoned_rows_never_reach_the_tower():
    tower = Tower(held=True)

    async def body(batcher):
        first = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        late = asyncio.create_task(batcher.read([row(2)], time.monotonic() + 0.01))
        left = asyncio.create_task(batcher.read([row(3)]))
        kept = asyncio.create_task(batcher.read([row(4)]))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0)
        tower.go_on.set()
        with pytest.raises(TooLate):
            await late
        await asyncio.gather(first, kept)
        return batcher.counts

    counts = run(body, tower)
    assert [[each.ids[0] for each in rows] for rows in tower.runs] == [[1], [4]]
    assert (counts.late, counts.unwanted) == (1, 1)


def test_one_row_is_read_once_for_all_who_wait_and_stays_when_one_of_them_leaves():
    tower = Tower(held=True)

    async def body(batcher):
        first = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        leaving, staying = (asyncio.create_task(batcher.read([row(5), row(5)])) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        tower.go_on.set()
        await first
        texts, _ = await staying
        assert np.array_equal(texts, np.stack([feature(row(5))] * 2))
        return batcher.counts

    assert run(body, tower).shared == 3
    assert [len(rows) for rows in tower.runs] == [1, 1]


def test_memory_is_bounded_and_tells_pictures_apart():
    tower = Tower()
    sentence = np.ones((2, 3), np.float32)
    rows = [
        row(1, 2),
        row(1, 2, sentence=sentence),
        row(1, 2, sentence=sentence, start=1),
        row(1, 2, sentence=-sentence),
    ]

    async def body(batcher):
        for each in rows:
            texts, took_s = await batcher.read([each])
            assert np.array_equal(texts[0], feature(each)) and took_s > 0
        again, took_s = await batcher.read(rows[1:])
        assert np.array_equal(again, np.stack([feature(each) for each in rows[1:]])) and took_s == 0
        assert batcher.counts.remembered == 3
        await batcher.read([rows[0]])  # had to make room for the fourth
        return batcher.counts

    assert run(body, tower, Limits(kept=3)).rows == 5


def test_a_row_that_breaks_the_tower_harms_only_its_own_question():
    tower = Tower(held=True)

    async def body(batcher):
        first = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        bad, good = (asyncio.create_task(batcher.read([row(n)])) for n in (666, 2))
        await asyncio.sleep(0)
        tower.go_on.set()
        with pytest.raises(RuntimeError, match="breaks the tower"):
            await bad
        assert (await good)[0][0, 0] == 2
        await first
        assert (await batcher.read([row(3)]))[0][0, 0] == 3

    run(body, tower, Limits(kept=10))


def test_a_thread_that_ends_takes_only_its_own_rows_with_it():
    tower = Tower()

    async def body(batcher):
        for _ in range(3):
            with pytest.raises(RuntimeError, match="Ended"):
                await batcher.read([row(999)])
        assert (await batcher.read([row(3)]))[0][0, 0] == 3
        return batcher.wait_s(), batcher.waiting_tokens, batcher._running, batcher._reading

    assert run(body, tower) == (0, 0, 0, {})


def test_what_was_read_is_answered_though_the_next_run_cannot_be_chosen(monkeypatch):
    tower = Tower(held=True)

    async def body(batcher):
        first = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        second = asyncio.create_task(batcher.read([row(2)]))
        await asyncio.sleep(0)
        with monkeypatch.context() as broken:
            broken.setattr(Limits, "groups", lambda *_: 1 / 0)
            tower.go_on.set()
            assert (await first)[0][0, 0] == 1
            while batcher._running:
                await asyncio.sleep(0.001)
        assert (await batcher.read([row(3)]))[0][0, 0] == 3
        assert (await second)[0][0, 0] == 2

    run(body, tower)


def test_a_pool_that_is_down_is_an_error_and_leaves_nothing_behind():
    async def body(batcher):
        batcher._pool.shutdown()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="shutdown"):
                await batcher.read([row(1), row(2)])
        return batcher.waiting_tokens, batcher._running, batcher._reading

    assert run(body, Tower()) == (0, 0, {})


def test_rows_that_are_to_come_count_as_waiting_once_all_runs_are_busy():
    tower = Tower(held=True)

    async def body(batcher):
        assert batcher.wait_s(100) == 0, "nothing is known of its speed"
        tower.go_on.set()
        await batcher.read([row(*range(1, 11))])
        batcher._tokens_per_s = 10.0
        assert (batcher.wait_s(3), batcher.wait_s(4), batcher.wait_s(6)) == (0, 0, 2.0), "40 tokens are read at once"
        tower.go_on.clear()
        tower.begun.clear()
        reading = asyncio.create_task(batcher.read([row(1)]))
        await begun(tower)
        waits = batcher.wait_s(0), batcher.wait_s(3)
        tower.go_on.set()
        await reading
        return waits

    assert run(body, tower, Limits(most_tokens=40, kept=0)) == (0, 3.0)


def test_what_is_remembered_is_not_waited_for():
    tower = Tower()

    async def body(batcher):
        for _ in range(10):
            await batcher.read([row(*range(1, 11))])
        batcher._tokens_per_s = 10.0
        return batcher.wait_s(50)

    assert run(body, tower, Limits(most_tokens=40, kept=9)) == pytest.approx(1.0), "of 50 like it 5 would be read"
    few = run(body, tower, Limits(most_rows=2, kept=9))
    assert few == pytest.approx(4.8), "a run takes two rows, however short"


def test_the_expected_wait_follows_the_towers_speed():
    tower = Tower(held=True)

    async def body(batcher):
        assert batcher.wait_s() == 0
        tower.go_on.set()
        await batcher.read([row(*[1] * 10)])
        tower.go_on.clear()
        tower.begun.clear()
        first = asyncio.create_task(batcher.read([row(2)]))
        await begun(tower)
        waiting = [asyncio.create_task(batcher.read([row(n, n)])) for n in range(3, 8)]
        await asyncio.sleep(0)
        few = batcher.wait_s()
        waiting += [asyncio.create_task(batcher.read([row(n, n)])) for n in range(8, 13)]
        await asyncio.sleep(0)
        assert batcher.wait_s() == pytest.approx(2 * few) and few > 0
        tower.go_on.set()
        await asyncio.gather(first, *waiting)
        assert batcher.wait_s() == 0

    run(body, tower)
