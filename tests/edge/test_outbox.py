"""Questions without an answer are kept: nothing lost, nothing answered twice, whenever a process is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from pocketlens_edge import outbox as outboxes
from pocketlens_edge import patience
from pocketlens_edge.outbox import Damaged, Outbox
from pocketlens_edge.questions import question
from pocketlens_wire.errors import BadQuery, Overloaded, SpaceMismatch, TooLate, Unavailable
from pocketlens_wire.tokens import Encoding
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalServicer, add_RetrievalServicer_to_server

NOBODY = "127.0.0.1:1"


def asked(words: str, tokens: np.ndarray | None = None) -> pb.SearchRequest:
    return question(
        token_space="ts-0", encoder_id="enc-0", tokens=tokens, words=words, encoding=Encoding.INT8, top=3, mode=None,
        where={"count": 2},
    )  # fmt: skip


def echo(request: pb.SearchRequest) -> dict:
    return {"hits": [], "echo": request.words}


@pytest.fixture
def box(tmp_path) -> Outbox:
    return Outbox(tmp_path / "box")


def answers(box: Outbox) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_bytes()) for file in box.answers.iterdir()}


def waiting(box: Outbox) -> list[str]:
    return [entry.id for entry in box.look()]


# --- keeping


def test_a_kept_question_is_the_question(box, tokens):
    request = asked("make it red", tokens)
    id_ = box.keep(request, picture="mug.jpg")
    (kept,) = Outbox(box.folder).look()
    assert (kept.id, kept.picture, kept.request) == (id_, "mug.jpg", request)


def test_order_is_that_of_keeping(box):
    ids = [box.keep(asked(f"{number}"), picture=None) for number in range(20)]
    assert waiting(box) == ids


def test_only_the_owner_may_look_and_no_picture_is_kept(run, photo, tmp_path):
    before = os.umask(0)
    try:
        ran = run("search", photo, "-t", "red", "-s", NOBODY, "--outbox", tmp_path / "box")
    finally:
        os.umask(before)
    assert ran.code == 3
    paths = [tmp_path / "box", *(tmp_path / "box").rglob("*")]
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    (kept,) = [path.read_bytes() for path in paths if path.suffix == ".question"]
    assert len(kept) < 2000 < photo.stat().st_size
    assert photo.read_bytes()[200:260] not in kept


def test_a_folder_that_others_may_look_into_is_refused_unless_empty(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(BadQuery, match="chmod 700"):
        Outbox(tmp_path / "mine")
    (tmp_path / "empty").mkdir(mode=0o755)
    Outbox(tmp_path / "empty")
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(BadQuery, match="is not a folder"):
        Outbox(tmp_path / "file")


@pytest.mark.parametrize(("limit", "value"), [("MAX_QUESTIONS", 3), ("MAX_BYTES", 900)])
def test_a_full_outbox_says_so_and_keeps_what_it_has(box, monkeypatch, limit, value):
    monkeypatch.setattr(outboxes, limit, value)
    ids = [box.keep(asked("x"), picture=None) for _ in range(3)]
    with pytest.raises(BadQuery, match=r"is full: 3 questions.*not kept"):
        box.keep(asked("x" * 200), picture=None)
    assert waiting(box) == ids


# --- sending


def test_every_question_gets_its_answer(box):
    ids = {box.keep(asked(f"{number}"), picture=f"{number}.jpg"): f"{number}" for number in range(5)}
    told = []
    sent = box.send(echo, on_answer=lambda entry, answer: told.append((entry.id, answer["echo"])))
    assert [entry.id for entry in sent.answered] == list(ids)
    assert told == list(ids.items())
    assert {id_: answer["echo"] for id_, answer in answers(box).items()} == ids
    assert waiting(box) == []
    assert answers(box)[next(iter(ids))]["picture"] == "0.jpg"


def test_a_refused_question_stays_and_holds_up_no_other(box):
    ids = [box.keep(asked(words), picture=None) for words in ("old space", "good")]

    def ask(request):
        if request.words == "old space":
            raise SpaceMismatch("the query speaks `ts-old`; this server speaks `ts-new`")
        return echo(request)

    sent = box.send(ask)
    ((refused, error),) = sent.refused
    assert refused.id == ids[0]
    assert "ts-old" in str(error) and "ts-new" in str(error)
    assert [entry.id for entry in sent.answered] == [ids[1]]
    assert waiting(box) == [ids[0]]


def test_an_answer_that_cannot_be_written_holds_up_no_other(box):
    ids = [box.keep(asked(words), picture=None) for words in ("nan", "good")]
    sent = box.send(lambda request: {"score": float(request.words == "good") or float("nan")})
    assert [entry.id for entry, _ in sent.refused] == [ids[0]]
    assert list(answers(box)) == [ids[1]]


def test_a_server_that_is_away_is_asked_once(box):
    ids = [box.keep(asked(f"{number}"), picture=None) for number in range(5)]
    calls = []

    def away(request):
        calls.append(request)
        raise Unavailable("nobody there")

    sent = box.send(away)
    assert (len(calls), sent.reason) == (1, "nobody there")
    assert [entry.id for entry in sent.waiting] == ids == waiting(box)


@pytest.mark.parametrize("error", [TooLate, Overloaded])
def test_one_slow_question_holds_up_no_other(box, error):
    ids = [box.keep(asked(words), picture=None) for words in ("slow", "good", "slow", "slow", "slow", "good")]

    def ask(request):
        if request.words == "slow":
            raise error("no answer")
        return echo(request)

    sent = box.send(ask)
    assert [entry.id for entry in sent.answered] == [ids[1]]
    assert [entry.id for entry in sent.waiting] == [ids[0], *ids[2:]], "after three without an answer it stops"


def test_patience_waits_for_the_server(box, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(patience, "sleep", waited.append)
    monkeypatch.setattr(patience, "monotonic", lambda: sum(waited))
    monkeypatch.setattr(patience, "uniform", lambda least, most: least)
    box.keep(asked("x"), picture=None)
    errors = [Unavailable("nobody"), TooLate("late"), Overloaded("busy", retry_after_s=3), Unavailable("nobody")]
    left = [*errors, Overloaded("busy", retry_after_s=0)]

    def ask(request):
        if left:
            raise left.pop(0)
        return echo(request)

    assert len(box.send(ask, patience_s=20).answered) == 1
    assert waited == [0.5, 1, 3, 2, 0.05], "a busy server says when, and is never asked in a loop"

    box.keep(asked("y"), picture=None)
    left = [Overloaded("busy", retry_after_s=4)] * 99
    waited.clear()
    sent = box.send(ask, patience_s=10)
    assert (waited, len(sent.waiting), sent.reason) == ([4, 4], 1, "busy"), "it has no room before patience ends"


def test_old_questions_stay_until_asked_for(box):
    id_ = box.keep(asked("x"), picture=None)
    sent = box.send(echo, max_age=timedelta(0))
    assert [entry.id for entry in sent.too_old] == [id_] == waiting(box)
    assert box.send(echo).answered


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewritten(path: Path, **changes: object) -> None:
    """Another content with the right digest: whoever wrote it, it is no question."""
    line = json.dumps({**json.loads(path.read_bytes().splitlines()[0]), **changes}).encode()
    path.write_bytes(line + b"\n" + outboxes._digest(line) + b"\n")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "a flipped bit": flipped,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-70]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(800)),
    "huge": lambda path: os.truncate(path, 10**9),
    "a newer format": lambda path: rewritten(path, format=2),
    "another id": lambda path: rewritten(path, id="x"),
    "no request": lambda path: rewritten(path, request=None),
    "broken base64": lambda path: rewritten(path, request="***"),
    "broken protobuf": lambda path: rewritten(path, request="//8="),
    "no time zone": lambda path: rewritten(path, created="2026-01-01T00:00:00"),
    "a key more": lambda path: rewritten(path, more=1),
    "a folder": as_folder,
    "a pipe": as_pipe,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_question_is_named_and_set_aside(box, kind):
    bad, good = (box.keep(asked(words), picture=None) for words in ("bad", "good"))
    DAMAGES[kind](box.folder / f"{bad}.question")
    (looked, _) = box.look()
    assert isinstance(looked, Damaged) and looked.id == bad
    sent = box.send(echo)
    assert [entry.id for entry in sent.damaged] == [bad]
    assert list(answers(box)) == [good]
    assert (waiting(box), box.set_aside()) == ([], [bad])
    assert box.send(echo).damaged == [], "it is told once"


def test_a_question_that_cannot_be_read_holds_up_no_other(box, monkeypatch):
    """Another user's file, or a bad block."""
    lost, good = (box.keep(asked(words), picture=None) for words in ("lost", "good"))
    read = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path.name == f"{lost}.question":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    sent = box.send(echo)
    assert [(entry.id, entry.reason) for entry in sent.damaged] == [(lost, "cannot be read (Permission denied)")]
    monkeypatch.undo()
    assert list(answers(box)) == [good]


def test_a_question_answered_before_the_kill_is_not_asked_again(box):
    """Its answer was written, the question not yet removed: the answer stands, the question goes."""
    kept = box.keep(asked("x"), picture=None)
    file = box.folder / f"{kept}.question"
    held = file.read_bytes()
    box.send(echo)
    file.write_bytes(held)
    told = []
    box.send(lambda request: told.append(request) or echo(request))
    assert told == [] and not file.exists() and list(answers(box)) == [kept]


def test_what_another_process_is_writing_is_left_to_it(box):
    box.keep(asked("x"), picture=None)
    fresh, stale = (box.folder / f".{name}.question.unfinished" for name in ("fresh", "stale"))
    for file in (fresh, stale):
        file.write_bytes(b"half a que")
    os.utime(stale, (1e9, 1e9))
    box.send(echo)
    assert fresh.exists() and not stale.exists()


def test_other_files_are_left_alone(box):
    (box.folder / "notes.txt").write_text("mine")
    box.keep(asked("x"), picture=None)
    box.send(echo)
    assert (box.folder / "notes.txt").read_text() == "mine"


def test_two_do_not_send_at_once(box):
    box.keep(asked("x"), picture=None)
    second = []

    def ask(request):
        with pytest.raises(BadQuery, match=rf"another process sends .*\(pid {os.getpid()}\)"):
            Outbox(box.folder).send(echo)
        with pytest.raises(BadQuery, match="another process"):
            Outbox(box.folder).drop([])
        second.append(Outbox(box.folder).keep(asked("y"), picture=None))  # keeping goes on meanwhile
        return echo(request)

    assert len(box.send(ask).answered) == 1
    assert waiting(box) == second
    assert len(box.send(echo).answered) == 1, "the lock is free again"


def test_drop(box):
    one, two, three = (box.keep(asked(words), picture=None) for words in ("1", "2", "3"))
    box.drop([two])
    assert waiting(box) == [one, three]
    with pytest.raises(BadQuery, match=r"nothing has the id `\.\./box`"):
        box.drop([one, "../box"])
    assert waiting(box) == [one, three], "nothing goes when one id is wrong"
    box.send(echo)
    box.drop([one])
    assert list(answers(box)) == [three]


# --- the commands


def test_the_way_through_the_commands(run, server, service, photo, tmp_path):
    box = tmp_path / "box"
    kept = run("search", photo, "-t", "in red", "-s", NOBODY, "--outbox", box, "--json")
    assert kept.code == 3
    id_ = kept.json["kept"]["id"]
    assert "No Pocketlens server" in kept.json["kept"]["reason"]
    told = run("search", "-t", "two hats", "-s", NOBODY, "--outbox", box)
    assert (told.code, told.out) == (3, "")
    assert f"`pocketlens-edge outbox send {box} -s {NOBODY}`" in told.err.replace("\n", " ")

    listed = run("outbox", "list", box)
    assert listed.code == 0
    assert id_ in listed.out and "two hats" in listed.out and "2 waiting, 0 damaged, 0 answered" in listed.out

    away = run("outbox", "send", box, "-s", NOBODY, "--patience", 0)
    assert away.code == 3
    assert "waiting: 2" in away.err

    sent = run("outbox", "send", box, "-s", server, "--json")
    assert sent.code == 0
    assert [entry["words"] for entry in sent.json["answered"]] == ["in red", "two hats"]
    answer = json.loads(Path(sent.json["answered"][0]["answer"]).read_text())
    assert answer["hits"][0]["payload"]["file"] == "one.png"
    assert service.requests[0].sentence.count == 4

    assert run("outbox", "list", box, "--json").json == {
        "waiting": [], "damaged": [], "answered": [entry["id"] for entry in sent.json["answered"]],
    }  # fmt: skip
    assert "2 dropped" in run("outbox", "drop", box, "--answered").out
    assert run("outbox", "list", box, "--json").json["answered"] == []


def test_answered_at_once_leaves_the_outbox_empty(run, server, tmp_path):
    ran = run("search", "-t", "hat", "-s", server, "--outbox", tmp_path / "box", "--json")
    assert ran.code == 0
    assert ran.json["hits"]
    assert waiting(Outbox(tmp_path / "box")) == []


def test_what_the_server_refuses_is_not_kept(run, server, service, tmp_path):
    service.failures.append((grpc.StatusCode.FAILED_PRECONDITION, "`ts-old`, not `ts-new`", "SpaceMismatch"))
    ran = run("search", "-t", "hat", "-s", server, "--outbox", tmp_path / "box")
    assert ran.code == 1
    assert "`ts-old`, not `ts-new`" in ran.err
    assert waiting(Outbox(tmp_path / "box")) == []


def test_a_refusal_later_is_reported_with_both_ids(run, server, service, tmp_path):
    box = tmp_path / "box"
    run("search", "-t", "hat", "-s", NOBODY, "--outbox", box)
    service.failures.append((grpc.StatusCode.FAILED_PRECONDITION, "`ts-old`, not `ts-new`", "SpaceMismatch"))
    ran = run("outbox", "send", box, "-s", server)
    assert ran.code == 1
    assert "refused:" in ran.err and "`ts-old`, not `ts-new`" in ran.err
    assert len(waiting(Outbox(box))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["list", "nowhere"], 2, "nowhere"),
        (["drop", "."], 2, "--answered or --waiting"),
        (["list", "."], 1, "is not an outbox"),
        (["send", "."], 1, "is not an outbox"),
        (["send"], 2, "DIR"),
        ([], 2, "command"),
    ],
)
def test_wrong_usage(run, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    ran = run("outbox", *arguments)
    assert ran.code == code
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing is made of a folder that is none"


# --- killed: at every step of a file's way, and at random instants beside a server that comes and goes

AT_EVERY_STEP = """
import os, pathlib, signal, sys
from pocketlens_edge.outbox import Outbox
from pocketlens_wire.v1.retrieval_pb2 import SearchRequest
folder, act, when, step = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
box = Outbox(folder)
left = step

def killing(true):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = true(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

for name in ("open", "fsync", "replace", "unlink", "write"):
    setattr(os, name, killing(getattr(os, name)))
if act == "keep":
    print(box.keep(SearchRequest(words="new"), picture=None), flush=True)
else:
    box.send(lambda request: {"echo": request.words})
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("act", ["keep", "send"])
def test_killed_at_every_step(tmp_path, act, when):
    """Each system call that matters in turn, until one run has so few that it comes through."""
    for step in range(1, 60):
        box = Outbox(tmp_path / f"{act}{step}")
        kept = {box.keep(asked(f"{number}"), picture=None): f"{number}" for number in range(2)}
        command = [sys.executable, "-c", AT_EVERY_STEP, str(box.folder), act, when, str(step)]
        killed = subprocess.run(command, capture_output=True, text=True)
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        assert not any(isinstance(entry, Damaged) for entry in box.look()), "nothing half-written has a name"
        if killed.stdout:
            kept[killed.stdout.strip()] = "new"
        sent = box.send(echo)
        assert not (sent.damaged or sent.refused or sent.waiting)
        got = {id_: answer["echo"] for id_, answer in answers(box).items()}
        assert got.items() >= kept.items()
        assert len(got) <= len(kept) + (act == "keep"), "a question being kept may be there, nothing else"
        assert waiting(box) == []
        if killed.returncode == 0:
            assert step > 4, "too few steps to prove anything"
            return
    raise AssertionError("it never came through")


class Echo(RetrievalServicer):
    """Answers with the words it was asked, now and then not at all."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calls = 0

    def Search(self, request, context):  # noqa: N802
        self.calls += 1
        time.sleep(0.002)
        if self.random.random() < 0.05:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        return pb.SearchReply(notes=[request.words], token_space=request.token_space)


@contextmanager
def comes_and_goes(service: Echo, port: int):
    """A server on `port` that is there for a moment, away for a moment, and there for good in the end."""
    over = threading.Event()

    def live() -> None:
        while not over.is_set():
            with ThreadPoolExecutor(4) as threads:
                server = grpc.server(threads)
                add_RetrievalServicer_to_server(service, server)
                server.add_insecure_port(f"127.0.0.1:{port}")
                server.start()
                over.wait(0.6)
                server.stop(grace=0).wait()
            over.wait(0.15)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


KEEP_ON = """
import sys, pathlib
from pocketlens_edge.outbox import Outbox
from pocketlens_wire.v1.retrieval_pb2 import SearchRequest
box, number = Outbox(pathlib.Path(sys.argv[1])), 0
while True:
    words = f"{sys.argv[2]} {number}"
    print(box.keep(SearchRequest(token_space="ts-0", words=words, top=1), picture=None), words, flush=True)
    number += 1
"""


def test_killed_at_random_instants(tmp_path):
    """Real kill -9 of those that keep and of those that send. What was said to be kept gets exactly one answer."""
    draw = random.Random(5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    box = Outbox(tmp_path / "box")
    kept: dict[str, str] = {}
    command = [sys.executable, "-m", "pocketlens_edge", "outbox", "send", str(box.folder)]
    command += ["--server", f"127.0.0.1:{port}", "--patience", "1", "--timeout", "1"]
    service = Echo(6)
    with comes_and_goes(service, port):
        for round_ in range(12):
            keeper = subprocess.Popen(
                [sys.executable, "-c", KEEP_ON, str(box.folder), str(round_)], stdout=subprocess.PIPE, text=True
            )
            assert keeper.stdout
            first = keeper.stdout.readline()
            time.sleep(draw.uniform(0, 0.05))
            keeper.kill()
            for line in [first, *keeper.stdout.read().splitlines(keepends=True)]:
                if line.endswith("\n"):
                    id_, _, words = line.strip().partition(" ")
                    kept[id_] = words
            keeper.wait()
            keeper.stdout.close()
            sender = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before, deadline = service.calls, time.monotonic() + 20
            while service.calls == before and sender.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)  # killed while it is loaded it would prove little
            time.sleep(draw.uniform(0, 0.06))
            sender.kill()
            sender.wait()

    def ask(request):
        service.calls += 1
        return {"notes": [request.words]}

    box.send(ask)
    got = answers(box)
    assert waiting(box) == [] == box.set_aside()
    assert {id_: answer["notes"] for id_, answer in got.items() if id_ in kept} == {i: [w] for i, w in kept.items()}
    assert len(got.keys() - kept.keys()) <= 12, "at most the one that each killed keeper had no time to tell of"
    assert len(kept) >= 24 and service.calls >= len(got)
    assert not list(box.answers.glob(".*")), "nothing half-written is left"
