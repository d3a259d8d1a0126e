"""The open loop: arrivals as drawn, times from when a question was due, failures by status, a whole small run."""

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
from pocketlens_bench.load import WARM_UP_S, Outcome, Plan, Sizes, arrivals, carried_out, losses, measure, told
from pocketlens_wire.bundle import default_bundle

METHOD = "/test.Echo/Say"


def test_arrivals_are_poisson_and_follow_the_seed():
    times = np.array(arrivals(200, 50, seed=1))
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential
    assert arrivals(200, 50, seed=1) == tuple(times.tolist()) != arrivals(200, 50, seed=2)


@pytest.fixture
def server():
    """Answers one question at a time; `stall` makes the first one after it wait."""
    state = {"stall": 0.0, "address": "", "loop": None}
    ready = threading.Event()

    async def serve():
        lock, stop = asyncio.Lock(), asyncio.Event()

        async def say(request, context):
            async with lock:
                pause, state["stall"] = state["stall"], 0.0
                await asyncio.sleep(pause)
                if request == b"bad":
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
                return request

        each = grpc.aio.server()
        handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
        each.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
        state["address"] = f"127.0.0.1:{each.add_insecure_port('127.0.0.1:0')}"
        await each.start()
        state["loop"], state["stop"] = asyncio.get_running_loop(), stop
        ready.set()
        await stop.wait()
        await each.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    ready.wait()
    yield state
    state["loop"].call_soon_threadsafe(state["stop"].set)
    thread.join(timeout=5)


def test_a_stall_shows_in_the_times_of_all_that_were_due_meanwhile(server):
    due = tuple(np.arange(0.0, 1.0, 0.02))
    threading.Timer(0.5, lambda: server.update(stall=0.6)).start()
    began = time.perf_counter()
    outcomes = carried_out(Plan(server["address"], METHOD, (b"hello",), due=due))
    assert time.perf_counter() - began > 1.0
    slow = [one for one in outcomes if one.took_s > 0.1]
    assert len(slow) >= 15  # a closed loop would have counted one
    assert all(one.status == "OK" for one in outcomes)
    assert [one.due for one in outcomes] == list(due)


def test_failures_are_counted_by_status(server):
    due = (WARM_UP_S, WARM_UP_S + 0.01, WARM_UP_S + 0.02, WARM_UP_S + 0.03)
    messages = (*[b"hello"] * 8, b"bad", b"hello")  # the first eight open the connections
    row = told(carried_out(Plan(server["address"], METHOD, messages, due=due)), seconds=1.0)
    assert row["statuses"] == {"OK": 3, "RESOURCE_EXHAUSTED": 1}
    assert (row["asked"], row["failed"], row["offered_per_s"]) == (4, 1, 4.0)


def test_what_is_due_in_the_warm_up_does_not_count_and_late_answers_are_not_achieved():
    outcomes = [
        Outcome(0.5, 0.0, 9.0, "OK"),
        Outcome(WARM_UP_S, 0.002, 0.01, "OK"),
        Outcome(WARM_UP_S + 1, 0.0, 5.0, "OK"),
    ]
    row = told(outcomes, seconds=2.0)
    assert (row["asked"], row["offered_per_s"], row["achieved_per_s"]) == (2, 1.0, 0.5)
    assert row["p50_ms"] == pytest.approx((10 + 5000) / 2)
    (said,) = losses({"title": "tokens", "rows": [row]})
    assert "of 1 questions a second 0 are answered in time" in said


def test_a_closed_loop_keeps_so_many_open(server):
    outcomes = carried_out(Plan(server["address"], METHOD, (b"hello",), at_once=3, seconds=0.3))
    assert len(outcomes) > 10 and all(one.status == "OK" for one in outcomes)


def test_the_whole_measurement():
    sizes = Sizes(shares=(0.3,), seconds=1.0, gallery=60, questions=5)
    result = measure(default_bundle(), sizes=sizes)
    tokens, uploads = result["tables"]
    for table in (tokens, uploads):
        (row,) = table["rows"]
        assert row["failed"] == 0 and row["asked"] > 5
        assert row["offered_per_s"] == pytest.approx(0.3 * table["capacity_per_s"], rel=0.5)
        assert all(times["p50_ms"] <= times["p95_ms"] <= row["p99_ms"] for times in row["stages"].values())
        assert row["stages"]["text_tower"]["p50_ms"] > 0 and row["stages"]["way_and_waiting"]["p50_ms"] > 0
    assert set(tokens["rows"][0]["stages"]) == {"check", "queue", "text_tower", "heads", "search", "way_and_waiting"}
    assert {"decode", "image_tower"} < set(uploads["rows"][0]["stages"])
    assert result["tokens_over_uploads"] == tokens["capacity_per_s"] / uploads["capacity_per_s"]
