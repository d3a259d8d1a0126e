"""Pictures into and out of the gallery of a running server, over real gRPC."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import grpc
import numpy as np
import pytest
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.cli import app
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.indexing.names import content_id
from pocketlens_cloud.indexing.writing import Writer
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import keys
from pocketlens_cloud.serving.door import Door, DoorInterceptor
from pocketlens_cloud.serving.keys import Keys
from pocketlens_cloud.serving.writing import MAX_ADDING, WritingService
from pocketlens_wire.errors import GalleryError
from pocketlens_wire.limits import MAX_CHUNK_BYTES, MAX_PICTURE_BYTES, MAX_REMOVED
from pocketlens_wire.v1 import gallery_pb2 as pb
from pocketlens_wire.v1 import retrieval_pb2 as retrieval
from pocketlens_wire.v1.gallery_pb2_grpc import GalleryStub
from typer.testing import CliRunner

WAIT_S = 20


@pytest.fixture
def writer(toy, indexed, tmp_path) -> Iterator[Writer]:
    """On a copy of the indexed gallery. Settles when it is told to, not by the clock."""
    shutil.copytree(indexed, tmp_path / "g", ignore=shutil.ignore_patterns("gallery.lock"))
    with EmbeddedGallery.open(tmp_path / "g") as gallery:
        writer = Writer(gallery, *open_cloud_half(toy.bundle), settle_after_s=1000)
        yield writer
        writer.close()


@pytest.fixture
def writing(composer, writer, serve):
    """A server that can be written to, and a stub of its Gallery."""
    service = WritingService(writer, arriving_s=2)
    with serve(Service(composer, writer.gallery), further=[service.register]) as running:
        running.gallery = GalleryStub(running.channel)
        yield running
    service._hands.shutdown()


def messages(data: bytes, *, chunk: int = MAX_CHUNK_BYTES, **begin) -> list[pb.AddRequest]:
    first = pb.AddRequest(begin=pb.Begin(**{"picture_bytes": len(data)} | begin))
    return [first, *(pb.AddRequest(chunk=data[at : at + chunk]) for at in range(0, len(data), chunk))]


def labels(**values: str) -> dict[str, retrieval.Value]:
    return {key: retrieval.Value(text=value) for key, value in values.items()}


def drawn(tmp_path, draw_picture, seed: int, side: int = 20) -> bytes:
    draw_picture(tmp_path / "drawn.png", 5000 + seed, side=side)  # none of those in the gallery
    return (tmp_path / "drawn.png").read_bytes()


def test_an_added_picture_is_found_and_a_removed_one_is_not(toy, writing, writer, tmp_path, draw_picture):
    data = drawn(tmp_path, draw_picture, 999, side=200)
    assert len(data) > 2 * MAX_CHUNK_BYTES
    before = writer.gallery.generation
    reply = writing.gallery.Add(iter(messages(data, payload=labels(colour="pink"))), timeout=WAIT_S)
    assert (reply.id, reply.was_there, reply.gallery_size) == (content_id(data), False, 41)
    assert reply.generation != before
    pink = retrieval.Condition(key="colour", equals=retrieval.Value(text="pink"))
    found = writing.search(toy.request(filter=[pink]))
    assert [hit.id for hit in found.hits] == [reply.id]
    assert found.generation == reply.generation
    wanted = toy.vectors(toy.pixels([tmp_path / "drawn.png"]))
    (hit,) = writer.gallery.search(search_of(wanted["union"][0]))
    assert (hit.id, hit.payload) == (reply.id, {"colour": "pink"})
    again = writing.gallery.Add(iter(messages(data, payload=labels(colour="rose"))), timeout=WAIT_S)
    assert (again.was_there, again.gallery_size) == (True, 41)
    assert writer.gallery.payload(reply.id) == {"colour": "rose"}
    removed = writing.gallery.Remove(pb.RemoveRequest(ids=[reply.id, "0" * 32, reply.id]), timeout=WAIT_S)
    assert (removed.removed, removed.gallery_size) == (1, 40)
    assert not writing.search(toy.request(filter=[pink])).hits


def search_of(vector):
    from pocketlens_cloud.gallery.interface import Search

    return Search(vector=vector, name="union", top=1)


def test_ready_vectors_need_their_space(toy, writing, writer):
    vector = np.arange(1, toy.dim + 1, dtype=np.float32)
    vectors = [pb.Vector(name=name, data=vector.tobytes()) for name in writer.gallery.vectors]
    ready = {"picture_bytes": 0, "vectors": vectors, "id": "a" * 32}
    reply = writing.gallery.Add(iter(messages(b"", gallery_space=toy.gallery_space, **ready)), timeout=WAIT_S)
    assert (reply.id, reply.was_there) == ("a" * 32, False)
    (hit,) = writer.gallery.search(search_of(vector / np.linalg.norm(vector)))
    assert hit.id == "a" * 32
    for space in ("", "gs-" + "1" * 16):
        with pytest.raises(grpc.RpcError) as refused:
            writing.gallery.Add(iter(messages(b"", gallery_space=space, **ready)), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_what_cannot_be_added_is_refused_and_changes_nothing(toy, writing, writer, tmp_path, draw_picture):
    data = drawn(tmp_path, draw_picture, 5)
    one = [pb.Vector(name="original", data=np.ones(toy.dim, np.float32).tobytes())]
    zero = [pb.Vector(name=name, data=bytes(4 * toy.dim)) for name in writer.gallery.vectors]
    spaced = {"gallery_space": toy.gallery_space, "picture_bytes": 0}
    bad = {
        "begin": [],
        "first message": messages(data)[1:],
        "after `begin`": [*messages(data), messages(data)[0]],
        "more came": messages(data, picture_bytes=len(data) - 1),
        "came": messages(data, picture_bytes=len(data) + 1),
        "announced": messages(b"", picture_bytes=MAX_PICTURE_BYTES + 1),
        "either": messages(data, vectors=one),
        "follows from its bytes": messages(data, id="a" * 32),
        "known kind": messages(b"no picture"),
        "holds text elsewhere": messages(data, payload={"colour": retrieval.Value(integer=3)}),
        "has no value": messages(data, payload={"colour": retrieval.Value()}),
        "vectors are": messages(b"", vectors=one, id="a" * 32, **spaced),
        "finite": messages(b"", vectors=zero, id="a" * 32, **spaced),
        "32 hex digits": messages(b"", vectors=zero, id="../../x", **spaced),
    }
    for message, sent in bad.items():
        with pytest.raises(grpc.RpcError, match=message) as refused:
            writing.gallery.Add(iter(sent), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for ids in ([], ["x"], ["a" * 32] * (MAX_REMOVED + 1)):
        with pytest.raises(grpc.RpcError) as refused:
            writing.gallery.Remove(pb.RemoveRequest(ids=ids), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    raw = writing.channel.stream_unary("/pocketlens.v1.Gallery/Add")
    with pytest.raises(grpc.RpcError, match=r"not a valid pocketlens.v1.AddRequest") as refused:
        raw(iter([b"\xff\xff"]), timeout=WAIT_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (writer.gallery.size, writer.gallery.settled) == (40, True)
    assert writing.search(toy.request()).hits


def test_too_many_at_once_are_turned_away_and_slow_ones_given_up(writing, tmp_path, draw_picture):
    go = Event()

    def slowly():
        yield messages(b"x")[0]
        go.wait(WAIT_S)

    waiting = [writing.gallery.Add.future(slowly(), timeout=WAIT_S) for _ in range(MAX_ADDING + 1)]
    codes = [call.code() for call in waiting]  # waits for each
    go.set()
    assert sorted(code.name for code in codes) == ["DEADLINE_EXCEEDED"] * MAX_ADDING + ["RESOURCE_EXHAUSTED"]
    assert not writing.gallery.Add(iter(messages(drawn(tmp_path, draw_picture, 6))), timeout=WAIT_S).was_there


def test_searches_go_on_while_pictures_come_and_go(toy, writing, writer, tmp_path, draw_picture):
    files = [drawn(tmp_path, draw_picture, 2000 + seed) for seed in range(24)]
    over = Event()

    def ask() -> int:
        asked = 0
        while not over.is_set():
            # one that is removed between its ranking and its reading is left out, and two are being removed at once
            assert 8 <= len(writing.search(toy.request(top=10)).hits) <= 10
            asked += 1
        return asked

    def write(part: list[bytes]) -> None:
        for data in part:
            point = writing.gallery.Add(iter(messages(data)), timeout=WAIT_S).id
            assert writing.gallery.Remove(pb.RemoveRequest(ids=[point]), timeout=WAIT_S).removed == 1
            assert not writing.gallery.Add(iter(messages(data)), timeout=WAIT_S).was_there

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            list(pool.map(write, (files[::2], files[1::2])))
            writer.settle()
        finally:
            over.set()
    assert all(each.result() > 0 for each in asking)
    assert (writer.gallery.size, writer.gallery.settled) == (64, True)


def test_what_was_answered_survives_and_settling_declares_it_finished(toy, writer, tmp_path, draw_picture):
    data = drawn(tmp_path, draw_picture, 7)
    _, _, state = writer.add_picture(data, {})
    assert not writer.gallery.settled
    writer.settle()
    assert (writer.gallery.settled, writer.gallery.generation) == (True, state.generation)
    assert writer.remove([content_id(data)])[1].generation != state.generation
    quick = Writer(writer.gallery, *open_cloud_half(toy.bundle), settle_after_s=0)
    quick.add_picture(data, {})
    quick._timer.join(WAIT_S)
    assert writer.gallery.settled
    quick.close()


def test_a_settling_that_fails_is_told_and_tried_again(toy, writer, tmp_path, draw_picture, monkeypatch, caplog):
    """A disk that is full for a moment, first when the write is flushed, then at two settlings."""
    settle, tries, done = EmbeddedGallery.settle, [], Event()

    def fail_twice(gallery: EmbeddedGallery) -> None:
        tries.append(gallery)
        if len(tries) <= 2:
            raise GalleryError("no space left")
        settle(gallery)
        done.set()

    def fail(_: EmbeddedGallery) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(EmbeddedGallery, "settle", fail_twice)
        raise GalleryError("no space left either")

    quick = Writer(writer.gallery, *open_cloud_half(toy.bundle), settle_after_s=0.01)
    monkeypatch.setattr(EmbeddedGallery, "flush", fail)
    with pytest.raises(GalleryError, match="left either"):
        quick.add_picture(drawn(tmp_path, draw_picture, 11), {})
    assert done.wait(WAIT_S)
    assert [(each.levelname, "no space left" in each.message) for each in caplog.records] == [("ERROR", True)] * 2
    assert ["next try in 0.1 s" in each.message for each in caplog.records] == [True, False]
    quick.close()
    assert writer.gallery.settled


def test_added_pictures_belong_to_no_source(toy, pictures, writer, tmp_path, draw_picture):
    from pocketlens_cloud.indexing.ingest import index

    data = drawn(tmp_path, draw_picture, 8)
    writer.add_picture(data, {"colour": "pink"})
    report = index(pictures, writer.gallery, toy.bundle, journal=tmp_path / "journal.jsonl", prune=True)
    assert (report.gone, report.size) == ([], 41)
    assert writer.gallery.payload(content_id(data)) == {"colour": "pink"}


def test_the_command_line_adds_and_removes(toy, writing, tmp_path, draw_picture):
    data = drawn(tmp_path, draw_picture, 9)
    (tmp_path / "bad.png").write_text("no picture")
    done = CliRunner().invoke(
        app,
        ["add", str(tmp_path / "drawn.png"), str(tmp_path / "bad.png"), "--server", writing.address, "--json",
         "--payload", '{"colour": "pink", "sold": true, "price": 2.5, "count": 3}'],
    )  # fmt: skip
    assert done.exit_code == 1
    assert json.loads(done.stdout)["id"] == content_id(data)
    assert "bad.png: the picture: not a picture of a known kind" in done.stderr
    done = CliRunner().invoke(app, ["remove", content_id(data), "0" * 32, "--server", writing.address])
    assert (done.exit_code, done.stdout) == (0, "1 removed, 40 pictures left\n")
    again = CliRunner().invoke(app, ["remove", content_id(data), "--server", writing.address])
    assert (again.exit_code, again.stdout) == (1, "0 removed, 40 pictures left\n")
    present = writing.search(toy.request()).hits[0].id
    short = CliRunner().invoke(app, ["remove", present, present[:8], "--server", writing.address])
    assert (short.exit_code, short.stdout) == (2, "")
    assert f"`{present[:8]}` is no picture's id" in short.stderr and "search --json" in short.stderr
    assert writing.search(toy.request()).hits[0].id == present


def test_who_may_only_search_may_not_write(composer, writer, serve, tmp_path, draw_picture):
    file = tmp_path / "keys.json"
    held = {scope: keys.new(file, [scope])[0] for scope in ("search", "index")}
    service = WritingService(writer)
    drawn(tmp_path, draw_picture, 10)
    interceptors = [DoorInterceptor(Door(keys=Keys(file)))]
    with serve(Service(composer, writer.gallery), further=[service.register], interceptors=interceptors) as running:
        for scope, exit_code in (("search", 2), ("index", 0)):
            arguments = ["add", str(tmp_path / "drawn.png"), "--server", running.address]
            done = CliRunner().invoke(app, arguments, env={"POCKETLENS_API_KEY": held[scope]})
            assert done.exit_code == exit_code, done.stderr
            assert ("needs scope index" in done.stderr) == (scope == "search")
    service._hands.shutdown()
    assert writer.gallery.size == 41


def test_a_server_that_takes_no_pictures_says_so(running):
    done = CliRunner().invoke(app, ["remove", "0" * 32, "--server", running.address])
    assert done.exit_code == 2
    assert "--writable" in done.stderr
