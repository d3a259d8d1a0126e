"""The demo: its questions have exact answers, and the whole of it runs, again and again, leaving nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pocketlens_samples import demo
from pocketlens_samples.catalogue import random_spec
from pocketlens_samples.demo_questions import Plan, plan
from pocketlens_samples.demo_report import described
from pocketlens_wire.errors import BadQuery, ServerFault

PICTURES = 320
DEMO = str(Path(sys.executable).with_name("pocketlens-demo"))


@pytest.fixture(scope="module")
def asked() -> Plan:
    return plan(pictures=PICTURES)


def test_asks_every_kind_of_question(asked):
    kinds = {question.kind for question in asked.questions}
    assert kinds >= {"picture + words", "picture + two edits", "sketch", "sketch + words", "words", "picture"}
    assert any(question.where for question in asked.questions)
    assert len(asked.questions) >= 10
    assert len(asked.gallery) == PICTURES
    assert len({picture.id for picture in asked.gallery}) == PICTURES


def test_every_question_has_an_answer_that_is_not_its_own_picture(asked):
    for question in asked.questions:
        assert asked.answers(question) >= 1, question
        if question.anchor and question.words:
            assert not question.is_answer(question.anchor.spec.payload()), question


def test_the_filter_leaves_the_answers_in_and_some_pictures_out(asked):
    (question,) = (question for question in asked.questions if question.where)
    payloads = [picture.spec.payload() for picture in asked.gallery]
    kept = [payload for payload in payloads if question.where.items() <= payload.items()]
    assert sum(map(question.is_answer, kept)) == asked.answers(question)
    assert 0 < len(kept) < len(payloads)


def test_a_seed_fixes_everything_and_another_changes_it(asked):
    assert plan(pictures=PICTURES) == asked
    assert plan(pictures=PICTURES, seed=5).questions != asked.questions


def test_a_gallery_too_small_is_refused():
    with pytest.raises(BadQuery, match=r"--pictures is 20; the demo's questions need at least 300"):
        plan(pictures=20)


def test_describes_whatever_can_be_drawn():
    rng = np.random.default_rng(0)
    spec = replace(random_spec(rng, held_out=None), category="mug", count=2, part=True, background="grass")
    assert described(spec.payload()).endswith("mugs with handles on grass")
    for _ in range(500):
        assert described(random_spec(rng, held_out=None).payload())


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(BadQuery, match="holds other files"):
        demo.Folder(tmp_path).prepare({"drawn": "a", "indexed": "b"})
    assert (tmp_path / "thesis.txt").read_text() == "three years"


@pytest.mark.parametrize(
    ("state", "left"),
    [
        ({"drawn": "a", "indexed": "b"}, {"pictures", "gallery"}),
        ({"drawn": "a", "indexed": "c"}, {"pictures"}),
        ({"drawn": "c", "indexed": "b"}, set()),
    ],
)
def test_what_another_state_left_is_cleared_out(tmp_path, state, left):
    folder = demo.Folder(tmp_path / "demo")
    folder.prepare({"drawn": "a", "indexed": "b"})
    folder.pictures.mkdir()
    folder.gallery.mkdir()
    folder.prepare(state)
    assert {path.name for path in folder.path.iterdir() if path.is_dir()} == left


def test_a_server_that_fails_shows_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "command", lambda _: [sys.executable, "-c", "raise SystemExit('no space left')"])
    with pytest.raises(ServerFault, match=r"exit code 1:\nno space left"), demo.serving(demo.Folder(tmp_path)):
        pass


def test_a_server_that_never_comes_up_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "command", lambda _: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(demo, "READY_S", 0.3)
    with pytest.raises(demo.TooLate, match=r"not ready after 0\.3 s"), demo.serving(demo.Folder(tmp_path)):
        pass
    assert not _is_alive(int((tmp_path / "server.pid").read_text()))


def test_the_whole_demo_twice_and_the_commands_it_ends_with(tmp_path):
    first = _demo(tmp_path)
    assert first.returncode == 0, first.stderr
    assert re.search(r"\d+ of 13 questions have a right picture at rank 1, \d+ among the first five", first.stdout)
    assert "not open-vocabulary search" in " ".join(first.stdout.split())
    assert (tmp_path / "demo" / "contact-sheet.png").stat().st_size > 100_000
    assert (tmp_path / "demo" / "answers.html").read_text().count("<section>") == 13
    assert not _is_alive(_server_pid(tmp_path))
    assert len(_commands(first.stdout)) == 3

    second = _demo(tmp_path, "--keep")
    assert second.returncode == 0, second.stderr
    assert "they are there already" in second.stdout
    assert _counts(second.stdout) == _counts(first.stdout)
    pid = _server_pid(tmp_path)
    try:
        assert f"kill {pid}" in second.stdout
        third = _demo(tmp_path)
        assert third.returncode == 1
        assert f"stop that server with `kill {pid}`" in third.stderr
        for command in _commands(second.stdout):
            answered = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
            assert answered.returncode == 0, f"{command}\n{answered.stderr}"
            assert "photo-" in answered.stdout
        assert (tmp_path / "answer.png").stat().st_size > 10_000
    finally:
        os.kill(pid, signal.SIGTERM)
    _wait_until(lambda: not (tmp_path / "demo" / "server.ready").exists())  # gone when it stops by itself


def test_ctrl_c_leaves_no_server_behind(tmp_path):
    # A shell's background jobs ignore Ctrl-C, and hand that on to their children: tests may run in one.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(
        [DEMO, "--pictures", "300"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, heard)
    with run:
        _wait_until((tmp_path / "demo" / "server.pid").exists, 30)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=20)
    assert run.returncode == 130
    assert said.splitlines()[-1] == "pocketlens-demo: stopped; nothing is left running"
    assert not _is_alive(_server_pid(tmp_path))


def test_a_missing_bundle_is_one_plain_sentence(tmp_path):
    run = _demo(tmp_path, env={"POCKETLENS_BUNDLE": str(tmp_path / "nowhere")})
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert "nowhere: not a bundle" in line


def _demo(at: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEMO, "--pictures", str(PICTURES), *options],
        cwd=at,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )


def _commands(said: str) -> list[str]:
    """The lines a reader would copy from the last step."""
    lines = said.partition("Ask a question of your own")[2].splitlines()
    return [line.strip() for line in lines if "pocketlens-" in line and shlex.split(line)]


def _counts(said: str) -> list[str]:
    return re.findall(r"(\d+) of 13 questions|(\d+) among", " ".join(said.split()))


def _server_pid(at: Path) -> int:
    return int((at / "demo" / "server.pid").read_text())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(happens, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
