"""A folder: one line a picture, in order; killed or torn anywhere it goes on; nothing is dropped silently."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from pocketlens_edge import batch as batching
from pocketlens_edge import patience
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.journal import Journal
from pocketlens_wire.errors import SpaceMismatch


@pytest.fixture
def folder(tmp_path, photo) -> Path:
    """Seven pictures, all different, one of them in a folder below."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for number, colour in enumerate(["red", "green", "blue", "white", "black", "orange"]):
        Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
    shutil.copy(photo, folder / "deeper" / "mug.JPG")
    (folder / "notes.txt").write_text("no picture, and not one by its name either")
    return folder


@pytest.fixture
def ask(run, folder, server, tmp_path):
    def batch(*arguments, out: Path = tmp_path / "out.jsonl"):
        ran = run("batch", folder, "-t", "in red", "-s", server, "-o", out, "--json", *arguments)
        return ran, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return batch


NAMES = ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "deeper/mug.JPG"]


def test_one_line_a_picture_in_order(ask, service):
    service.delay_s = 0.02
    ran, lines = ask("--top", 1)
    assert ran.code == 0, ran.err
    assert ran.json["answered"] == 7
    assert [line["file"] for line in lines] == NAMES
    for line in lines:
        assert line["hits"] == [{"rank": 1, "id": "a" * 40, "score": 0.5, "payload": {"count": 2, "file": "one.png"}}]
        assert line["asked"]["words"] == "in red"
        assert set(line["times_ms"]["device"]) == {"open", "fit", "encode"}
        assert line["bytes"]["message"] > 700
    assert {request.words for request in service.requests} == {"in red"}
    assert len({request.sentence.data for request in service.requests}) == 7


def test_again_asks_nothing(ask, service):
    ask()
    ran, lines = ask()
    assert ran.code == 0
    assert (ran.json["there"], ran.json["answered"], service.calls, len(lines)) == (7, 0, 7, 7)


@pytest.mark.parametrize("left", [0, 1, 400, 2500])
def test_a_torn_last_line_is_repaired(ask, service, tmp_path, left):
    _, whole = ask()
    out = tmp_path / "out.jsonl"
    torn = out.read_bytes()[:left]
    out.write_bytes(torn)
    service.calls = 0
    ran, lines = ask()
    assert ran.code == 0, ran.err
    assert [line["file"] for line in lines] == NAMES
    assert service.calls == 7 - torn.count(b"\n")
    assert whole[0]["hits"] == lines[0]["hits"]


def test_a_changed_picture_is_asked_again(ask, folder, service):
    ask()
    Image.new("RGB", (50, 40), "pink").save(folder / "2.png")
    ran, lines = ask()
    assert (ran.json["there"], ran.json["answered"]) == (6, 1)
    assert sorted(line["file"] for line in lines) == NAMES
    assert len({request.sentence.data for request in service.requests}) == 7 + 1


def test_bad_pictures_are_listed_and_tried_again(ask, folder, service):
    (folder / "bad.jpg").write_bytes(b"hello")
    (folder / "away.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.png")
    ran, lines = ask()
    assert ran.code == 1
    bad = {line["file"]: line["error"] for line in lines if "error" in line}
    assert set(bad) == {"bad.jpg", "away.jpg", "pipe.png"} == {failed["file"] for failed in ran.json["failed"]}
    assert bad["bad.jpg"]["kind"] == "BadPicture"
    assert "not a picture" in bad["bad.jpg"]["message"]
    assert service.calls == 7

    Image.new("RGB", (40, 40), "pink").save(folder / "bad.jpg")
    (folder / "away.jpg").unlink()
    (folder / "pipe.png").unlink()
    ran, lines = ask()
    assert ran.code == 0, ran.err
    assert sorted(line["file"] for line in lines) == sorted([*NAMES, "bad.jpg"])
    assert service.calls == 8


def test_people_get_the_count_and_the_names(run, folder, server, tmp_path):
    for number in range(12):
        (folder / f"bad{number:02}.jpg").write_bytes(b"hello")
    ran = run("batch", folder, "-s", server, "-o", tmp_path / "out.jsonl")
    assert ran.code == 1
    assert "19 pictures: 7 answered, 12 failed" in ran.out
    assert ran.err.count("failed: bad") == 10
    assert "2 more" in ran.err


def test_names_that_are_no_text_and_links_in_circles(ask, folder, service):
    strange = os.fsencode(folder) + b"/caf\xe9\n.png"
    shutil.copy(os.fsencode(folder / "0.png"), strange)
    (folder / "deeper" / "around").symlink_to(folder, target_is_directory=True)
    (folder / "linked.png").symlink_to(folder / "1.png")
    ran, lines = ask()
    assert ran.code == 0, ran.err
    assert len(lines) == 9
    (line,) = [line for line in lines if "file_base64" in line]
    assert base64.b64decode(line["file_base64"]) == b"caf\xe9\n.png"
    ran, _ = ask()
    assert (ran.json["there"], service.calls) == (9, 9), "the strange name is known again"


def test_another_question_needs_another_file(ask, server, service):
    ask()
    ran, _ = ask("-t", "in green")
    assert ran.code == 1
    assert "in red" in ran.json["error"]["message"]
    assert "in green" in ran.json["error"]["message"]
    assert service.calls == 7


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["-f", "count=1"], ["-f", "count=true"]),  # equal to Python, and not to the gallery
        (["-f", "count=1"], ["-f", "count=1.0"]),
        ([], ["--top", 3]),
        ([], ["--mode", "tuned"]),
        ([], ["--encoding", "int4"]),
        ([], ["--tokens", "kept"]),
    ],
)
def test_what_is_asked_otherwise_is_another_question(ask, tmp_path, monkeypatch, first, then):
    monkeypatch.chdir(tmp_path)
    assert ask(*first)[0].code == 0
    ran, _ = ask(*then)
    assert ran.code == 1
    assert "Name another --out" in ran.json["error"]["message"]
    assert ask(*first)[0].code == 0


@pytest.mark.parametrize(
    "text", ['{"my": "notes"}\n', "notes\nwithout an end", "[1]\n", "just notes", '{"my": "notes"}']
)
def test_a_file_that_no_batch_wrote_is_left_alone(run, folder, server, tmp_path, text):
    out = tmp_path / "notes.jsonl"
    out.write_text(text)
    ran = run("batch", folder, "-s", server, "-o", out)
    assert ran.code == 1
    assert "line 1 is not from a batch" in ran.err
    assert out.read_text() == text


def test_what_is_wrong_with_all_pictures_stops_it_and_it_goes_on(ask, service):
    service.failures.append((grpc.StatusCode.FAILED_PRECONDITION, "token space `ts-1` is not `ts-2`", "SpaceMismatch"))
    ran, lines = ask()
    assert ran.code == 1
    assert ran.json["error"]["kind"] == "SpaceMismatch"
    assert f"{len(lines)} of 7 pictures" in ran.json["error"]["message"]
    assert not any("error" in line for line in lines), "it is no picture's own fault"

    service.delay_s = 0.01
    ran, lines = ask("--timeout", "0.001")
    assert ran.code == 1
    assert ran.json["error"]["kind"] == "TooLate"

    ran, lines = ask()
    assert ran.code == 0
    assert sorted(line["file"] for line in lines) == NAMES


BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "a new question would wait 250 ms", "Overloaded")


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """What a batch waits for, in seconds, on a clock that nothing else moves."""
    waited: list[float] = []
    monkeypatch.setattr(batching, "_pause", lambda ended, seconds: waited.append(seconds))
    monkeypatch.setattr(patience, "monotonic", lambda: sum(waited))
    return waited


def test_a_busy_server_is_asked_again_when_it_says(ask, service, pauses, tmp_path):
    service.retry_after = "250"
    service.failures.extend([BUSY] * 12)
    ran, lines = ask("--outbox", tmp_path / "box")
    assert ran.code == 0, ran.err
    assert (ran.json["answered"], ran.json["kept"], [line["file"] for line in lines]) == (7, 0, NAMES)
    assert service.calls == 7 + 12
    assert len(set(pauses)) == 12 and all(0.25 <= each <= 0.375 for each in pauses), "not all of them together"


def test_patience_with_a_busy_server_ends(ask, service, pauses, tmp_path):
    service.retry_after = "4000"
    service.failures.extend([BUSY] * 99)
    ran, lines = ask("--patience", 0)
    assert (ran.code, ran.json["error"]["kind"], pauses) == (1, "Overloaded", [])
    assert "Stopped: 0 of 7 pictures" in ran.json["error"]["message"]

    box = tmp_path / "box"
    ran, lines = ask("--patience", 10, "--outbox", box)
    assert (ran.code, ran.json["kept"], len(list(box.glob("*.question")))) == (3, 7, 7)
    assert 6 <= sum(pauses) < 10 + 6 * batching.IN_FLIGHT, "those on their way waited, the others were kept at once"
    assert [line["file"] for line in lines] == NAMES


def test_a_batch_that_ends_waits_for_no_pause(folder, bundle, tmp_path):
    waiting, waited = threading.Semaphore(0), []

    def answering(file, encoded, pause):
        if file == NAMES[0]:
            for _ in range(batching.IN_FLIGHT - 1):
                assert waiting.acquire(timeout=30)
            raise SpaceMismatch("the spaces are not one.")
        waiting.release()
        pause(20)
        waited.append(file)
        return {}

    found = batching.look_through(folder)
    with (
        Journal(tmp_path / "out.jsonl", asked={}, pictures=found.pictures) as journal,
        pytest.raises(SpaceMismatch, match="Stopped: 0 of 7"),
    ):
        batching.run(folder, found, journal, Encoder.load(bundle), answering=answering)
    assert waited == []


def test_with_an_outbox_nothing_is_lost(run, folder, server, service, tmp_path):
    box, out = tmp_path / "box", tmp_path / "out.jsonl"
    ran = run("batch", folder, "-t", "in red", "-s", "127.0.0.1:1", "-o", out, "--outbox", box, "--json")
    assert ran.code == 3
    assert ran.json["kept"] == 7
    assert "No Pocketlens server answers" in ran.json["reason"]
    kept = {line["kept"]: line["file"] for line in map(json.loads, out.read_text().splitlines())}
    assert sorted(kept.values()) == NAMES

    again = run("batch", folder, "-t", "in red", "-s", server, "-o", out, "--outbox", box, "--json")
    assert (again.code, again.json["there"], service.calls) == (0, 7, 0), "kept questions are not asked twice"

    sent = run("outbox", "send", box, "-s", server, "--json")
    assert sent.code == 0
    assert {answered["id"]: answered["picture"] for answered in sent.json["answered"]} == kept


def test_encode_only_keeps_tokens_and_asks_nobody(run, folder, bundle, tmp_path):
    out, tokens = tmp_path / "out.jsonl", tmp_path / "tokens"
    for there in (0, 7):
        ran = run("batch", folder, "--encode-only", "--tokens", tokens, "-o", out, "--json", "-s", "127.0.0.1:1")
        assert (ran.code, ran.json["encoded"], ran.json["there"]) == (0, 7 - there, there)
    encoder = Encoder.load(bundle)
    for line in map(json.loads, out.read_text().splitlines()):
        with np.load(tokens / line["tokens"]) as saved:
            np.testing.assert_array_equal(saved["tokens"], encoder.encode_timed(folder / line["file"]).tokens)
            assert saved["encoder"] == encoder.encoder_id


def test_a_name_too_long_for_its_tokens_is_that_pictures_fault(run, folder, tmp_path):
    long = "x" * 251 + ".png"
    shutil.copy(folder / "0.png", folder / long)
    ran = run("batch", folder, "--encode-only", "--tokens", tmp_path / "t", "-o", tmp_path / "out.jsonl", "--json")
    assert ran.code == 1
    assert ran.json["encoded"] == 7
    assert [failed["file"] for failed in ran.json["failed"]] == [long]


def test_two_batches_do_not_share_a_file(ask, folder, tmp_path, monkeypatch, run, server):
    inside = []

    def second(*arguments, **options):
        if not inside:
            inside.append(run("batch", folder, "-t", "in red", "-s", server, "-o", tmp_path / "out.jsonl", "--json"))
        return original(*arguments, **options)

    original = batching.run
    monkeypatch.setattr(batching, "run", second)
    ran, lines = ask()
    assert ran.code == 0
    assert inside[0].code == 1
    assert "another batch writes it" in inside[0].json["error"]["message"]
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "-o", "out.jsonl"], 1, "is not a folder"),
        ([".", "-o", "out.jsonl"], 1, "holds no pictures"),
        ([".", "-o", "no/such/out.jsonl"], 2, "there is no folder"),
        ([".", "-o", "out.jsonl", "--encode-only"], 2, "needs --tokens"),
        ([".", "-o", "out.jsonl", "--encode-only", "--tokens", "t", "-t", "red"], 2, "asks nothing"),
        (["."], 2, "--out"),
    ],
)
def test_wrong_usage(run, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    ran = run("batch", *arguments)
    assert ran.code == code
    assert said in ran.err
    assert not (tmp_path / "out.jsonl").exists()
