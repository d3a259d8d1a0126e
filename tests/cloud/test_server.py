"""The transport: sizes, silent clients, deadlines, overload, a graceful end."""

import asyncio
import gzip
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest
from pocketlens_cloud.runtime import NICENESS
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import front, metrics, server
from pocketlens_cloud.serving.batching import Limits
from pocketlens_cloud.serving.hosts import is_loopback
from pocketlens_wire import limits
from pocketlens_wire.errors import KIND_METADATA, RETRY_METADATA, GalleryError, ServerFault
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub


class Slow:
    """A composer whose tower takes as long as the test wants; counts the runs that were begun."""

    def __init__(self, composer) -> None:
        self._composer = composer
        self.begun = 0
        self.go_on = threading.Event()

    def __getattr__(self, name: str):
        return getattr(self._composer, name)

    def read(self, rows):
        self.begun += 1
        assert self.go_on.wait(10)
        return self._composer.read(rows)


@pytest.fixture
def slow(composer, gallery, serve):
    """(slow composer, running server)"""
    composer = Slow(composer)
    with serve(Service(composer, gallery)) as running:
        yield composer, running
        composer.go_on.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def outcome(running, request, timeout: float = 10) -> grpc.StatusCode:
    try:
        running.search(request, timeout)
        return grpc.StatusCode.OK
    except grpc.RpcError as error:
        return error.code()


def test_the_size_cap_holds_also_against_compressed_bombs(toy, running):
    fits = toy.request(words="").SerializeToString()
    padded = fits + b"\xfa\x7f\x80\xea\x03" + b"\0" * 62720  # an unknown field of 62,720 bytes
    assert running.raw(padded)
    assert len(padded) < limits.MAX_REQUEST_BYTES
    for body in (b"\0" * 70_000, b"\0" * 5_000_000):
        with pytest.raises(grpc.RpcError) as caught:
            running.raw(body)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(gzip.compress(b"\0" * 10_000_000)) < limits.MAX_REQUEST_BYTES
    channel = grpc.insecure_channel(running.address, compression=grpc.Compression.Gzip)
    with channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/pocketlens.v1.Retrieval/Search")(b"\0" * 10_000_000, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert running.search(toy.request()).hits


def test_silent_and_babbling_clients_are_dropped(toy, running):
    host, port = running.address.split(":")
    with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))) as noisy:
        noisy.sendall(bytes(range(256)))
        noisy.settimeout(5)
        assert _is_closed(noisy)
        started = time.monotonic()
        silent.settimeout(6)
        assert _is_closed(silent)
        assert time.monotonic() - started < 4
    assert running.search(toy.request()).hits


def _is_closed(connection: socket.socket) -> bool:
    """Read until the other side hangs up; a timeout raises."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def test_an_unknown_method_is_unimplemented(running):
    with pytest.raises(grpc.RpcError) as caught:
        running.raw(b"", method="Destroy")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_work_nobody_waits_for_any_more_is_never_begun(toy, slow):
    composer, running = slow
    with ThreadPoolExecutor(4) as clients:
        busy = clients.submit(outcome, running, toy.request(words="first"))
        wait_for(lambda: composer.begun == 1)
        assert outcome(running, toy.request(words="late"), timeout=0.2) is grpc.StatusCode.DEADLINE_EXCEEDED
        given_up = running.stub.Search.future(toy.request(words="given up"), timeout=10)
        time.sleep(0.1)
        given_up.cancel()
        time.sleep(0.1)
        composer.go_on.set()
        assert busy.result() is grpc.StatusCode.OK
    assert outcome(running, toy.request(words="first")) is grpc.StatusCode.OK  # from memory
    assert composer.begun == 1


def test_too_many_questions_are_turned_away_and_the_rest_answered(toy, slow, monkeypatch):
    composer, running = slow
    monkeypatch.setattr(front, "MAX_INSIDE", 4)
    with ThreadPoolExecutor(4) as clients:
        busy = [clients.submit(outcome, running, toy.request()) for _ in range(4)]
        wait_for(lambda: composer.begun == 1)
        time.sleep(0.1)
        with pytest.raises(grpc.RpcError) as caught:
            running.search(toy.request(), 10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = dict(caught.value.trailing_metadata())
        assert int(told[RETRY_METADATA]) == int(told["grpc-retry-pushback-ms"]) > 0
        running.stub.Describe(pb.DescribeRequest(), timeout=5)  # the loop is free
        composer.go_on.set()
        assert [future.result() for future in busy] == [grpc.StatusCode.OK] * 4
    assert outcome(running, toy.request()) is grpc.StatusCode.OK


def test_a_full_house_refuses_searches_before_anything_else_and_counts_them(toy, service, serve, monkeypatch):
    class Passed(grpc.aio.ServerInterceptor):
        def __init__(self) -> None:
            self.methods = []

        async def intercept_service(self, continuation, handler_call_details):
            self.methods.append(handler_call_details.method.rpartition("/")[2])
            return await continuation(handler_call_details)

    passed = Passed()
    with serve(service, interceptors=[passed]) as running:
        monkeypatch.setattr(front, "MAX_INSIDE", 0)
        before = turned_away()
        assert outcome(running, toy.request()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:  # its message is not even read
            running.raw(b"\xff")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())[KIND_METADATA] == "Overloaded"
        assert turned_away() == before + 2
        running.stub.Describe(pb.DescribeRequest(), timeout=5)
        monkeypatch.setattr(front, "MAX_INSIDE", 1)
        assert outcome(running, toy.request()) is grpc.StatusCode.OK
    assert passed.methods == ["Describe", "Search"]


def turned_away() -> float:
    """Searches over gRPC that ended as Overloaded."""
    return sum(
        value
        for name, labels, value in metrics.read(metrics.exposition().decode())
        if name == "pocketlens_requests_total" and labels["kind"] == "Overloaded" and labels["via"] == "grpc"
    )


def test_calls_that_a_busy_loop_does_not_look_at_are_ended_while_they_are_few(service, serve):
    few, most = (dict(server.OPTIONS)[f"grpc.server.max_pending_requests{name}"] for name in ("", "_hard_limit"))
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with serve(service) as running, ExitStack() as channels:
        stubs = [RetrievalStub(channels.enter_context(grpc.insecure_channel(running.address, alone))) for _ in range(8)]
        for stub in stubs:
            stub.Describe(pb.DescribeRequest(), timeout=5)
        looks = threading.Event()
        running._loop.call_soon_threadsafe(looks.wait, 20)
        calls = [stubs[n % 8].Describe.future(pb.DescribeRequest(), timeout=30) for n in range(1200)]
        wait_for(lambda: sum(call.done() for call in calls) >= 1200 - most - 1)  # gRPC has taken one out for the loop
        assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.CANCELLED}
        looks.set()
        codes = Counter(call.code() for call in calls)
        assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
        assert few <= codes[grpc.StatusCode.OK] <= most + 1
        assert stubs[0].Describe(pb.DescribeRequest(), timeout=5)


@pytest.mark.parametrize(
    ("asked", "is_here", "where"),
    [
        ({}, True, "loop"),
        ({"top": 100}, True, "loop"),
        ({"top": 101}, True, "hand"),
        ({"skip": 5, "top": 96}, True, "hand"),
        ({"rerank": True}, True, "hand"),
        ({"group_by": "colour"}, True, "hand"),
        ({}, False, "hand"),
    ],
)
def test_a_short_search_of_this_process_is_done_at_once_others_in_a_thread(
    service, gallery, serve, toy, monkeypatch, asked, is_here, where
):
    threads: list[str] = []
    search = type(gallery).search

    def seen(self, wanted):
        threads.append(threading.current_thread().name)
        return search(self, wanted)

    monkeypatch.setattr(type(gallery), "search", seen)
    monkeypatch.setattr(type(gallery), "in_process", is_here)
    with serve(service) as running:
        assert running.search(toy.request(**asked)).hits
        loop = asyncio.run_coroutine_threadsafe(_thread_name(), running._loop).result(5)
    assert {"loop" if name == loop else name.partition("_")[0] for name in threads} == {where}


def test_long_pages_and_lists_of_payload_are_a_threads(service, gallery, toy, monkeypatch):
    def is_quick(**asked) -> bool:
        return service.finishes_quickly(service.check(toy.request(**asked)))

    none = pb.Projection()
    assert is_quick(top=100)
    monkeypatch.setattr(type(gallery), "payload_kinds", {f"key{n}": "text" for n in range(11)})
    assert is_quick(top=90) and not is_quick(top=91)
    assert is_quick(top=91, payload=none), "no more values than are asked for"
    monkeypatch.setattr(type(gallery), "payload_kinds", {"tags": "texts"})
    assert not is_quick(top=1)
    assert is_quick(top=1, payload=none)


def test_what_one_run_ends_at_once_does_not_stop_the_loop(service, toy, monkeypatch):
    """64 questions wait for one row; each search takes as long as one turn of the loop may."""
    finish = type(service).finish

    def slowly(self, *given):
        time.sleep(front.TURN_OF_LOOP_S)
        return finish(self, *given)

    monkeypatch.setattr(type(service), "finish", slowly)

    async def body() -> None:
        with ThreadPoolExecutor(1) as hands, ThreadPoolExecutor(1) as readers:
            house = front.Front(service, hands, readers, Limits(kept=0))
            asked = asyncio.gather(*(house.ask(toy.request(), float("inf")) for _ in range(64)))
            late, before = 0.0, time.perf_counter()
            while not asked.done():
                await asyncio.sleep(0)
                late, before = max(late, time.perf_counter() - before), time.perf_counter()
            assert all(reply.hits for reply in await asked) and house.inside == 0
            assert late < 32 * front.TURN_OF_LOOP_S, "not even half of them in one turn"

    asyncio.run(body())


def test_a_search_that_fails_in_the_loop_leaves_the_house(service, toy, monkeypatch):
    def failing(*_):
        raise GalleryError("broken")

    monkeypatch.setattr(type(service), "finish", failing)

    async def body() -> None:
        with ThreadPoolExecutor(1) as hands, ThreadPoolExecutor(1) as readers:
            house = front.Front(service, hands, readers, Limits())
            with pytest.raises(GalleryError):
                await house.ask(toy.request(), float("inf"))
            assert house.inside == 0

    asyncio.run(body())


async def _thread_name() -> str:
    return threading.current_thread().name


def test_who_would_wait_long_or_past_his_deadline_is_turned_away_before_any_work(toy, slow, monkeypatch):
    composer, running = slow
    monkeypatch.setattr(front.Batcher, "wait_s", lambda *_: 0.7)
    with pytest.raises(grpc.RpcError) as caught:
        running.search(toy.request(), 0.5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "would wait 700 ms for its turn, longer than its deadline" in caught.value.details()
    monkeypatch.setattr(front, "PATIENCE_S", 0.1)
    with pytest.raises(grpc.RpcError) as caught:
        running.search(toy.request(), 10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(caught.value.trailing_metadata())[RETRY_METADATA]) >= 700
    assert composer.begun == 0


def test_questions_that_are_being_checked_count_as_waiting(service, toy, monkeypatch):
    check, go_on = service.check, threading.Event()
    monkeypatch.setattr(service, "check", lambda request: go_on.wait(10) and check(request))
    monkeypatch.setattr(front, "PATIENCE_S", 0.1)

    async def body() -> None:
        with ThreadPoolExecutor(1) as hands, ThreadPoolExecutor(1) as readers:
            house = front.Front(service, hands, readers, Limits(most_tokens=1, kept=0))
            batcher = house.batcher
            batcher._tokens_per_s, batcher.counts.rows, batcher.counts.tokens = 50.0, 1, 10
            assert house.refusal() is None
            asked = asyncio.create_task(house.ask(toy.request(), float("inf")))
            await asyncio.sleep(0.05)
            refused = house.refusal()
            assert refused and "would wait 180 ms" in str(refused), "9 tokens more than a run takes at once"
            go_on.set()
            assert (await asked).hits and house.refusal() is None

    asyncio.run(body())


def test_those_turned_away_are_told_to_come_again_as_fast_as_questions_are_read(service, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(front.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(front.Batcher, "wait_s", lambda *_: 0.2)
    monkeypatch.setattr(front.Batcher, "waiting", 10)
    monkeypatch.setattr(front, "PATIENCE_S", 0.1)
    house = front.Front(service, ThreadPoolExecutor(1), ThreadPoolExecutor(1), Limits())

    def told(times: int) -> list[float]:
        return [round(refused.retry_after_s, 6) for _ in range(times) if (refused := house.refusal())]

    assert told(3) == [0.2, 0.22, 0.24]
    assert max(told(1000)) == told(1)[0] == front.MAX_RETRY_S
    now[0] += 1
    assert told(2) == [1.02, 1.04], "some have come meanwhile"
    now[0] += 10
    house._coming = 10
    assert told(2) == [0.2, 0.21], "those on their way to the queue are read too"
    before = house._next_back
    assert house.refusal(now[0] + 0.05) and house._next_back > before
    monkeypatch.setattr(front, "PATIENCE_S", 1)
    before = house._next_back
    assert house.refusal(now[0] + 0.05).retry_after_s == 0.2 and house._next_back == before, "a matter of its deadline"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
def test_the_tower_stands_back_for_the_loop(toy, composer, gallery, serve):
    class Telling(Slow):
        def read(self, rows):
            self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return self._composer.read(rows)

    telling = Telling(composer)
    with serve(Service(telling, gallery)) as running:
        running.search(toy.request(), 10)
    assert telling.niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


@pytest.mark.parametrize("error", [RuntimeError("finished already"), grpc.aio.AbortError("")])
def test_refusing_a_call_that_grpc_has_ended_is_a_cancelled_call(error):
    class Ended:
        async def abort(self, *_):
            raise error

    expected = grpc.aio.AbortError if isinstance(error, grpc.aio.AbortError) else asyncio.CancelledError
    with pytest.raises(expected):
        asyncio.run(server.abort(Ended(), ServerFault("x")))


def test_stopping_finishes_calls_in_flight_and_takes_no_new_ones(toy, slow):
    composer, running = slow
    with ThreadPoolExecutor(1) as clients:
        in_flight = clients.submit(outcome, running, toy.request())
        wait_for(lambda: composer.begun == 1)
        running.tell_to_stop()
        time.sleep(0.2)
        assert not running.ended.is_set()
        with grpc.insecure_channel(running.address) as late, pytest.raises(grpc.RpcError) as caught:
            late.unary_unary("/pocketlens.v1.Retrieval/Describe")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        composer.go_on.set()
        assert in_flight.result() is grpc.StatusCode.OK
        assert running.ended.wait(5)


def test_many_callers_at_once_get_each_their_own_answer(toy, running):
    requests = [toy.request(words=words, top=40) for words in ("red", "green", "blue", "hat", "shoe", "")]
    alone = [list(running.search(request).hits) for request in requests]
    with ThreadPoolExecutor(12) as clients:
        together = list(clients.map(lambda i: list(running.search(requests[i % 6]).hits), range(120)))
    for i, hits in enumerate(together):
        assert [hit.id for hit in hits] == [hit.id for hit in alone[i % 6]]


def test_a_port_in_use_is_a_plain_error(running, service, serve):
    host, port = running.address.split(":")
    with pytest.raises(ServerFault, match=f"cannot listen on {host}, port {port}"):
        asyncio.run(server.run(service, host=host, port=int(port), on_ready=lambda _: None, stop=asyncio.Event()))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.1.2.3", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_loopback_is_known(host, loopback):
    assert is_loopback(host) is loopback
