"""What whoever runs a server relies on: health that is earned, figures that add up, ids, logs without words."""

import asyncio
import math
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.indexing.writing import Writer
from pocketlens_cloud.runtime import Graph
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import health, metrics, vitals
from pocketlens_cloud.serving.calls import parent_of
from pocketlens_cloud.serving.canary import Canary, golden_canary
from pocketlens_cloud.serving.operations import Operations
from pocketlens_edge import AsyncClient, Client
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

SERVING, NOT_SERVING = (health_pb2.HealthCheckResponse.ServingStatus.Value(name) for name in ("SERVING", "NOT_SERVING"))


@dataclass
class Operated:
    """A running server with all that operators are given."""

    running: Any
    operations: Operations
    port: int

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def figures(self) -> Counter[str]:
        """Every figure by its name and labels as they are written."""
        found: Counter[str] = Counter()
        for name, labels, value in metrics.read(self.get("/metrics")[1]):
            found[name + "".join(f" {key}={said}" for key, said in sorted(labels.items()))] = value  # type: ignore[assignment]
        return found

    def check(self, service: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.running.channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


@contextmanager
def operated(
    service, toy, gallery, serve, writes: Callable[[], None] | None = None, **given: Any
) -> Iterator[Operated]:
    ports: list[int] = []
    canary = golden_canary(toy.bundle, service._composer.manifest, gallery, "tuned", "fp32")
    operations = Operations(service, canary, monitor=("127.0.0.1", 0), on_monitor=ports.append, **given)
    if writes:
        operations.health.watch_writing(writes)
    with serve(
        service, beside=operations.beside(), interceptors=operations.interceptors, further=operations.further
    ) as running:
        yield Operated(running, operations, ports[0])


@pytest.fixture(scope="module")
def watched(service, toy, gallery, serve) -> Iterator[Operated]:
    with operated(service, toy, gallery, serve) as found:
        yield found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- health


@contextmanager
def poisoned(kind: str, monkeypatch) -> Iterator[None]:
    """The text tower as it is found on bad days."""
    run = Graph.run

    def sick(self, outputs, feeds):
        if list(outputs) != ["text"]:
            return run(self, outputs, feeds)
        if kind == "raises":
            raise RuntimeError("the device is gone")
        (text,) = run(self, outputs, feeds)
        return [text * np.nan if kind == "nan" else -text]

    with monkeypatch.context() as poison:
        poison.setattr(Graph, "run", sick)
        yield


@pytest.mark.parametrize("kind", ["raises", "nan", "wrong"])
def test_a_poisoned_tower_turns_health_red_and_only_a_canary_turns_it_green(watched, monkeypatch, kind):
    assert [watched.check(name) for name in health.SERVICES] == [SERVING, SERVING]
    before = watched.figures()
    with poisoned(kind, monkeypatch):
        wait_for(lambda: watched.check() == NOT_SERVING)
        assert watched.check("pocketlens.v1.Retrieval") == NOT_SERVING
        status, why = watched.get("/readyz")
        assert (status, why.startswith("the canary failed: ")) == (503, True)
        assert watched.get("/healthz")[0] == 200  # to start it anew would not help
        assert watched.figures()["pocketlens_healthy"] == 0
    wait_for(lambda: watched.check() == SERVING)
    after = watched.figures()
    assert watched.get("/readyz") == (200, "ok\n")
    for outcome in ("passed", "failed"):
        name = f"pocketlens_canaries_total outcome={outcome}"
        assert after[name] > before[name]


def test_a_gallery_that_does_not_answer_turns_health_red(watched, gallery, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(type(gallery), "search", lambda *_: 1 / 0)
        wait_for(lambda: watched.check() == NOT_SERVING)
    wait_for(lambda: watched.check() == SERVING)


def test_a_question_that_fails_has_a_canary_asked_at_once(service, toy, gallery, serve, monkeypatch):
    with operated(service, toy, gallery, serve, canary_every_s=3600) as found:
        with poisoned("raises", monkeypatch):
            assert status_of(lambda: found.running.search(question(toy))) is grpc.StatusCode.INTERNAL
            wait_for(lambda: found.check() == NOT_SERVING)
        wait_for(lambda: found.check() == SERVING)


def test_a_tower_that_stands_still_turns_health_red(service, toy, gallery, serve, monkeypatch):
    monkeypatch.setattr(health, "STUCK_S", 0.3)
    with operated(service, toy, gallery, serve) as found:
        assert found.check() == SERVING
        with blocked(monkeypatch):
            wait_for(lambda: found.check() == NOT_SERVING)
            assert found.get("/readyz")[1] == "no question has been answered for 0.3 s\n"
        wait_for(lambda: found.check() == SERVING)


def test_a_server_that_cannot_answer_from_the_start_is_never_healthy(service, toy, gallery, serve, monkeypatch):
    with poisoned("wrong", monkeypatch), operated(service, toy, gallery, serve) as found:
        assert found.check() == NOT_SERVING
        assert "score" in found.get("/readyz")[1]


def test_health_of_the_service_that_writes_is_earned_by_writing(watched, toy, composer, indexed, serve, tmp_path):
    assert watched.check(health.WRITING) == NOT_SERVING  # nothing can be written there
    shutil.copytree(indexed, tmp_path / "g", ignore=shutil.ignore_patterns("gallery.lock"))
    with EmbeddedGallery.open(tmp_path / "g") as gallery:
        writer = Writer(gallery, *open_cloud_half(toy.bundle))
        disk_is_full = threading.Event()

        def probe() -> None:
            if disk_is_full.is_set():
                raise OSError("no space left on device")
            writer.probe()

        with operated(Service(composer, gallery), toy, gallery, serve, writes=probe, canary_every_s=0.26) as found:
            services = (*health.SERVICES, health.WRITING)
            assert [found.check(name) for name in services] == [SERVING] * 3
            disk_is_full.set()
            wait_for(lambda: found.check(health.WRITING) == NOT_SERVING)
            assert [found.check(name) for name in health.SERVICES] == [SERVING] * 2  # who searches is served on
            disk_is_full.clear()
            wait_for(lambda: found.check(health.WRITING) == SERVING)
            gallery.close()
            wait_for(lambda: found.check(health.WRITING) == NOT_SERVING)
        writer._decoder.close()


# --- the end


def test_no_call_fails_while_one_of_two_servers_leaves(service, toy, gallery, serve):
    """Behind a balancer of the plain kind: a connection for each call, to whoever said last that it serves; nothing
    is asked twice."""
    with operated(service, toy, gallery, serve) as stays, operated(service, toy, gallery, serve) as leaves:
        preferred, ended, answered = [leaves], threading.Event(), Counter()

        def look_now_and_then() -> None:
            while not ended.wait(0.1):
                preferred[0] = leaves if leaves.operations.health.ready else stays

        def ask_on() -> None:
            while not ended.is_set():
                at = preferred[0]
                with grpc.insecure_channel(at.running.address, [("grpc.enable_retries", 0)]) as channel:
                    code = status_of(lambda c=channel: RetrievalStub(c).Search(toy.request(), timeout=5))
                answered[at is leaves, code] += 1

        with ThreadPoolExecutor(3) as clients:
            asking = [clients.submit(ask_on), clients.submit(ask_on), clients.submit(look_now_and_then)]
            wait_for(lambda: answered[True, grpc.StatusCode.OK] > 20)
            leaves.running.run(leaves.operations.leave(0.5, asyncio.Event())).result(5)
            leaves.running.tell_to_stop()
            assert leaves.running.ended.wait(5)
            before_end = answered[False, grpc.StatusCode.OK]
            wait_for(lambda: answered[False, grpc.StatusCode.OK] > before_end + 20)
            ended.set()
            for each in asking:
                each.result(5)
        assert {code for _, code in answered} == {grpc.StatusCode.OK}


# --- figures


def question(toy, **changes: Any) -> pb.SearchRequest:
    """One that no other is like, so that it is not answered from memory."""
    fresh = np.random.default_rng().standard_normal((4, toy.width)).astype(np.float32)
    return toy.request(**({"sentence": pack(fresh, Encoding.F32)} | changes))


def status_of(ask: Callable[[], Any]) -> grpc.StatusCode:
    try:
        ask()
        return grpc.StatusCode.OK
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]


def test_figures_add_up_to_what_was_asked(watched, toy, monkeypatch):
    before, running = watched.figures(), watched.running
    for _ in range(7):
        running.search(question(toy))
    running.stub.Describe(pb.DescribeRequest(), timeout=5)
    for wrong in ({"top": 0}, {"token_space": "ts-foreign"}, {"token_space": "ts-other"}):
        assert status_of(lambda wrong=wrong: running.search(question(toy, **wrong))) is not grpc.StatusCode.OK
    assert status_of(lambda: running.raw(b"no protobuf")) is grpc.StatusCode.INVALID_ARGUMENT
    with blocked(monkeypatch) as begun:
        given_up = running.stub.Search.future(question(toy), timeout=10)
        assert begun.wait(5)
        given_up.cancel()
        assert status_of(lambda: running.search(question(toy), timeout=0.2)) is grpc.StatusCode.DEADLINE_EXCEEDED
    counted = {
        "pocketlens_requests_total kind=OK method=Search via=grpc": 7,
        "pocketlens_requests_total kind=OK method=Describe via=grpc": 1,
        "pocketlens_requests_total kind=BadQuery method=Search via=grpc": 2,
        "pocketlens_requests_total kind=SpaceMismatch method=Search via=grpc": 2,
        "pocketlens_requests_total kind=Cancelled method=Search via=grpc": 1,
        "pocketlens_requests_total kind=TooLate method=Search via=grpc": 1,
        "pocketlens_call_seconds_count method=Search": 13,
        **{f"pocketlens_stage_seconds_count stage={stage}": 7 for stage in metrics.STAGES},
    }
    wait_for(lambda: watched.figures()["pocketlens_calls_in_flight"] == 0)
    after = watched.figures()
    assert {name: after[name] - before[name] for name in counted} == counted
    spent = {stage: after[f"pocketlens_stage_seconds_sum stage={stage}"] for stage in metrics.STAGES}
    assert 0 < sum(spent[stage] for stage in metrics.STAGES if stage != "total") <= spent["total"] * 1.001
    assert after["pocketlens_batch_rows_sum"] - before["pocketlens_batch_rows_sum"] > 7
    assert after["pocketlens_gallery_pictures"] == 40
    assert after["process_resident_memory_bytes"] > 1e7


def test_a_conversation_that_its_client_ends_is_counted_as_ended_well(watched, toy):
    """Ended by half-closing, as our clients do that are done; who cancels is counted as such."""
    stub, address = watched.running.stub, watched.running.address
    before = watched.figures()
    messages = [pb.ConverseRequest(open=question(toy)), pb.ConverseRequest(turn=pb.Turn(top=3))]
    assert len(list(stub.Converse(iter(messages), timeout=10))) == 2
    with Client(address, token_space=toy.token_space) as client, client.converse(client.question(None, "a")) as talk:
        talk.say("red")

    async def talking() -> None:
        async with (
            AsyncClient(address, token_space=toy.token_space) as client,
            client.converse(client.question(None, "a")) as talk,
        ):
            await talk.say("red")

    asyncio.run(talking())
    wait_for(lambda: watched.figures()["pocketlens_calls_in_flight"] == 0)
    said = threading.Event()

    def silent_after_one() -> Iterator[pb.ConverseRequest]:
        yield messages[0]
        said.wait(10)

    left = stub.Converse(silent_after_one(), timeout=10)
    next(left)
    left.cancel()
    wait_for(lambda: watched.figures()["pocketlens_calls_in_flight"] == 0)
    said.set()
    after, name = watched.figures(), "pocketlens_requests_total kind={} method=Converse via=grpc"
    counted = {kind: after[name.format(kind)] - before[name.format(kind)] for kind in metrics.KINDS}
    assert {kind: count for kind, count in counted.items() if count} == {"OK": 3, "Cancelled": 1}


@contextmanager
def blocked(monkeypatch) -> Iterator[threading.Event]:
    """A text tower that has begun and does not go on."""
    run, begun, go_on = Graph.run, threading.Event(), threading.Event()

    def slow(self, outputs, feeds):
        if list(outputs) == ["text"]:
            begun.set()
            assert go_on.wait(10)
        return run(self, outputs, feeds)

    with monkeypatch.context() as patch:
        patch.setattr(Graph, "run", slow)
        try:
            yield begun
        finally:
            go_on.set()


@pytest.mark.parametrize(
    ("wanted", "buckets", "found"),
    [
        (0.5, [], None),
        (0.5, [(1, 0), (math.inf, 0)], None),
        (0.5, [(1, 10), (2, 10), (math.inf, 10)], 0.5),
        (0.5, [(1, 5), (2, 10), (math.inf, 10)], 1.0),
        (0.95, [(1, 5), (2, 10), (math.inf, 10)], 1.9),
        (0.99, [(1, 5), (2, 6), (math.inf, 10)], 2.0),
    ],
)
def test_quantiles_are_reckoned_as_prometheus_does(wanted, buckets, found):
    assert vitals.quantile(wanted, buckets) == (None if found is None else pytest.approx(found))


# --- ids


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("sent", "kept"), [("my-request.7", True), ("", False), ("a b", False), ("x" * 65, False), ('"}{', False)]
)
def test_a_sane_request_id_comes_back_and_another_is_replaced(watched, toy, sent, kept):
    metadata = (("x-request-id", sent), ("traceparent", PARENT))
    _, call = watched.running.stub.Search.with_call(question(toy), timeout=5, metadata=metadata)
    back = dict(call.trailing_metadata())
    assert (back["x-request-id"] == sent) is kept
    assert re.fullmatch(r"[\w.-]+", back["x-request-id"])
    assert back["x-trace-id"] == PARENT.split("-")[1]
    with pytest.raises(grpc.RpcError) as caught:
        watched.running.stub.Search(question(toy, top=0), timeout=5, metadata=metadata)
    back = dict(caught.value.trailing_metadata())
    assert (back["x-request-id"] == sent, back["pocketlens-error"]) == (kept, "BadQuery")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (PARENT, True),
        (PARENT.replace("00-", "01-", 1) + "-more", True),  # a later version may say more
        (PARENT + "-more", False),
        (PARENT.replace("00-", "ff-", 1), False),
        (PARENT.upper(), False),
        (PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), False),
        (PARENT.replace("b7ad6b7169203331", "0" * 16), False),
        ("", False),
    ],
)
def test_a_traceparent_is_taken_only_as_the_standard_has_it(text, good):
    assert (parent_of(text) is not None) is good


def test_the_schema_is_told_only_where_that_was_said(watched, service, toy, gallery, serve):
    def reflected(found: Operated) -> grpc.StatusCode:
        stub = reflection_pb2_grpc.ServerReflectionStub(found.running.channel)
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol="pocketlens.v1.Retrieval")]
        return status_of(lambda: list(stub.ServerReflectionInfo(iter(asked), timeout=5)))

    assert reflected(watched) is grpc.StatusCode.UNIMPLEMENTED
    with operated(service, toy, gallery, serve, reflect=True) as found:
        assert reflected(found) is grpc.StatusCode.OK


def test_turns_of_a_conversation_are_counted_beside_its_call(watched, toy):
    before = watched.figures()
    steps = [
        pb.ConverseRequest(open=question(toy)),
        pb.ConverseRequest(turn=pb.Turn(add=pb.Modifier(words="smaller"))),
        pb.ConverseRequest(turn=pb.Turn(back=9)),  # refused, and the conversation goes on
        pb.ConverseRequest(turn=pb.Turn(top=2)),
    ]
    replies = list(watched.running.stub.Converse(iter(steps), timeout=10))
    assert [reply.WhichOneof("outcome") for reply in replies] == ["reply", "reply", "error", "reply"]
    counted = {
        "pocketlens_turns_total kind=OK": 3,
        "pocketlens_turns_total kind=BadQuery": 1,
        "pocketlens_requests_total kind=OK method=Converse via=grpc": 1,
        "pocketlens_stage_seconds_count stage=total": 3,
    }
    wait_for(lambda: watched.figures()["pocketlens_calls_in_flight"] == 0)
    after = watched.figures()
    assert {name: after[name] - before[name] for name in counted} == counted


@pytest.mark.parametrize(("expected", "is_right"), [((0.6, 0.9), True), ((0.9, 0.6), True), ((0.6, 0.6), False)])
def test_a_promotion_between_the_canarys_question_and_its_answer_is_no_fault(expected, is_right):
    """The answer's score is 0.9; what is expected may be that of the version before or after."""
    scores = iter(expected)
    canary = Canary(question=pb.SearchRequest, expected=lambda: next(scores), margin=0.01)

    async def ask(_question, _until):
        return pb.SearchReply(hits=[pb.Hit(id="a", score=0.9)])

    async def tried() -> str:
        tries = health.Health(canary)
        await tries._try(ask)
        return tries.why

    assert (asyncio.run(tried()) == "") is is_right


def test_a_question_whose_time_has_passed_is_counted_as_late_and_starts_no_canary(watched, toy, monkeypatch):
    def fault(figures: Counter[str]) -> float:
        return sum(value for name, value in figures.items() if "kind=ServerFault" in name)

    doubts: list[None] = []
    monkeypatch.setattr(watched.operations.health, "doubt", lambda: doubts.append(None))
    before = fault(watched.figures())
    for _ in range(3):
        for wait_s in (0.0005, 0.001, 0.002, 0.004, 0.008):
            with suppress(grpc.RpcError):
                watched.running.search(toy.request(), wait_s)
    assert watched.running.search(toy.request(), 10).hits
    assert fault(watched.figures()) == before
    assert not doubts
