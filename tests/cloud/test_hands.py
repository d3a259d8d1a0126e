"""Threads for checks and searches, as the event loop asks for them."""

import asyncio
import gc
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocketlens_cloud.serving import hands as module
from pocketlens_cloud.serving.hands import HELD_UP_S, Hands


def run(body, most=4):
    async def whole():
        return await asyncio.wait_for(body(Hands(pool, most)), 20)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns wherever they can
    try:
        with ThreadPoolExecutor(most) as pool:
            return asyncio.run(whole())
    finally:
        sys.setswitchinterval(usual)


def test_what_is_quick_is_done_by_one_thread_at_a_time_in_order(monkeypatch):
    monkeypatch.setattr(module, "HELD_UP_S", 10.0)  # a machine may stand still for longer than the true one
    done: list[int] = []
    at_work = threading.Lock()

    def work(n):
        assert at_work.acquire(blocking=False), "two at once"
        done.append(n)
        at_work.release()
        return n

    async def body(hands):
        return await asyncio.gather(*(hands.do(work, n) for n in range(50)))

    assert run(body) == done == list(range(50))


def test_what_waits_behind_slow_work_goes_to_the_next_thread():
    """All but one are held up: the last does everything else."""
    go_on = threading.Event()

    async def body(hands):
        slow = [asyncio.create_task(hands.do(go_on.wait, 10)) for _ in range(3)]
        quick = await asyncio.gather(*(hands.do(abs, -n) for n in range(20)))
        assert not any(task.done() for task in slow)
        go_on.set()
        return quick, await asyncio.gather(*slow)

    assert run(body) == (list(range(20)), [True] * 3)


def test_who_is_done_is_told_though_the_same_thread_goes_on_with_slow_work():
    go_on = threading.Event()

    async def body(hands):
        quick, slow = asyncio.create_task(hands.do(abs, -1)), asyncio.create_task(hands.do(go_on.wait, 10))
        assert await asyncio.wait_for(quick, 5) == 1
        assert not slow.done()
        go_on.set()
        return await slow

    assert run(body, most=1)


def test_never_more_threads_than_the_most():
    at_once, most_seen, lock = 0, 0, threading.Lock()

    def work():
        nonlocal at_once, most_seen
        with lock:
            at_once += 1
            most_seen = max(most_seen, at_once)
        time.sleep(4 * HELD_UP_S)
        with lock:
            at_once -= 1

    async def body(hands):
        await asyncio.gather(*(hands.do(work) for _ in range(30)))

    run(body, most=3)
    assert most_seen == 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.001, 0.03]), st.integers(0, 3)), max_size=25), st.integers(1, 4))
def test_each_gets_its_own_answer_however_it_comes(pieces, most):
    """Asked in several turns of the loop, some slow: nothing is lost, nothing done twice."""
    done: list[int] = []

    def work(n: int, seconds: float) -> int:
        time.sleep(seconds)
        done.append(n)
        if n % 5 == 4:
            raise ValueError(n)
        return n

    async def body(hands):
        tasks = []
        for n, (seconds, turns) in enumerate(pieces):
            tasks.append(asyncio.create_task(hands.do(work, n, seconds)))
            for _ in range(turns):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(body, most)
    assert sorted(done) == list(range(len(pieces)))
    for n, each in enumerate(found):
        assert each.args == (n,) if n % 5 == 4 else each == n


def test_cancelled_work_that_has_not_begun_never_begins():
    begun, go_on = [], threading.Event()

    async def body(hands):
        first = asyncio.create_task(hands.do(go_on.wait, 10))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(hands.do(begun.append, n)) for n in range(3)]
        await asyncio.sleep(0.05)
        others[1].cancel()
        first.cancel()  # has begun: goes on, and nobody is told
        go_on.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(each).__name__ for each in found] == ["CancelledError", "NoneType", "CancelledError", "NoneType"]

    run(body, most=1)
    assert begun == [0, 2]


def test_what_is_quick_wakes_no_second_thread_however_much_of_it_waits():
    threads = set()

    def work():
        threads.add(threading.get_ident())
        time.sleep(HELD_UP_S / 10)

    async def body(hands):
        await asyncio.gather(*(hands.do(work) for _ in range(100)))

    run(body)
    assert len(threads) <= 2, "a machine may stand still for a moment"


def test_an_error_does_not_keep_what_was_asked():
    class Request:
        pass

    def refused(_request):
        raise ValueError

    async def body(hands):
        request = Request()
        alive = weakref.ref(request)
        with suppress(ValueError):
            await hands.do(refused, request)
        del request
        for _ in range(100):  # the thread goes to sleep
            if alive() is None:
                return True
            await asyncio.sleep(0.01)
        return False

    gc.disable()
    try:
        assert run(body)
    finally:
        gc.enable()


def test_what_no_future_takes_is_told_as_an_error():
    async def body(hands):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await hands.do(next, iter(()))
        return await hands.do(abs, -1)

    assert run(body) == 1


def test_a_pool_that_is_down_is_an_error_for_all_who_ask():
    async def body(hands):
        hands._pool.shutdown()
        for found in await asyncio.gather(hands.do(len, ""), hands.do(len, ""), return_exceptions=True):
            with pytest.raises(RuntimeError, match="shutdown"):
                raise found

    run(body)


def test_nothing_ticks_while_nothing_is_asked():
    async def body(hands):
        await hands.do(abs, -1)
        await asyncio.sleep(3 * HELD_UP_S)
        return hands._watching

    assert run(body) is None
