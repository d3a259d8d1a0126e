"""Threads for checks and searches, as the event loop asks for them."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pocketlens_cloud.serving.hands import TOGETHER, Hands


def run(body, threads=4):
    async def whole():
        return await asyncio.wait_for(body(Hands(pool)), 10)

    with ThreadPoolExecutor(threads) as pool:
        return asyncio.run(whole())


def test_what_is_asked_in_one_turn_of_the_loop_is_done_by_one_thread_in_order():
    done: list[tuple[int, int]] = []

    async def body(hands):
        asked = range(2 * TOGETHER)
        return await asyncio.gather(
            *(hands.do(lambda n: done.append((threading.get_ident(), n)) or n, n) for n in asked)
        )

    assert run(body) == list(range(2 * TOGETHER))
    first = [n for thread, n in done if thread == done[0][0]]
    assert first[:TOGETHER] in (list(range(TOGETHER)), list(range(TOGETHER, 2 * TOGETHER)))


def test_each_gets_its_own_error():
    def half(number: int) -> float:
        if number % 2:
            raise ValueError(number)
        return number / 2

    async def body(hands):
        return await asyncio.gather(*(hands.do(half, n) for n in range(6)), return_exceptions=True)

    found = run(body)
    assert found[::2] == [0, 1, 2] and [each.args for each in found[1::2]] == [(1,), (3,), (5,)]


def test_cancelled_work_that_has_not_begun_never_begins():
    begun, go_on = [], threading.Event()

    async def body(hands):
        first = asyncio.create_task(hands.do(go_on.wait))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(hands.do(begun.append, n)) for n in range(3)]
        await asyncio.sleep(0.05)
        others[1].cancel()
        first.cancel()  # has begun: goes on, and nobody is told
        go_on.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(each).__name__ for each in found] == ["CancelledError", "NoneType", "CancelledError", "NoneType"]

    run(body, threads=1)
    assert begun == [0, 2]


def test_a_pool_that_is_down_is_an_error_for_all_who_ask():
    async def body(hands):
        hands._pool.shutdown()
        for found in await asyncio.gather(hands.do(len, ""), hands.do(len, ""), return_exceptions=True):
            with pytest.raises(RuntimeError, match="shutdown"):
                raise found

    run(body)
