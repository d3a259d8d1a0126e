"""Indexing: exactly the folder's pictures, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Search
from pocketlens_cloud.indexing import decoding, ingest, looking
from pocketlens_cloud.indexing.ingest import content_id, index, list_pictures, read_payload
from pocketlens_wire.errors import BadBundle, GalleryError, SpaceMismatch

COSINE = 1e-5


def contents(path: Path) -> dict[str, dict]:
    with EmbeddedGallery.open(path) as gallery:
        assert gallery.settled
        return dict(gallery.payloads())


def expected(folder: Path) -> dict[str, dict]:
    """What a gallery of `folder` without payload must hold: one entry per content, under its first name."""
    held: dict[str, dict] = {}
    for file in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")):
        held.setdefault(content_id((folder / file).read_bytes()), {"file": file})
    return held


def everything(path: Path, dim: int) -> list:
    """Every picture's place, score and payload in two searches: equal galleries give equal lists."""
    with EmbeddedGallery.open(path) as gallery:
        queries = np.random.default_rng(0).standard_normal((2, dim)).astype(np.float32)
        return [
            gallery.search(Search(vector=query, name=name, top=10_000)) for query in queries for name in gallery.vectors
        ]


@pytest.fixture
def folder(tmp_path, draw_picture) -> Path:
    for i in range(10):
        draw_picture(tmp_path / "pictures" / f"{i}.png", 100 + i)
    return tmp_path / "pictures"


def test_times_places_and_lists_are_indexed_once_and_stay(toy, folder, tmp_path):
    told = {"when": "2026-01-31T12:00:00+01:00", "at": {"lat": 52.5, "lon": 13}, "tags": ["a", "b"], "sizes": [1]}
    (folder / "payload.jsonl").write_text(json.dumps({"file": "3.png", "payload": told}))
    index(folder, tmp_path / "g", toy.bundle)
    assert told in [{k: v for k, v in payload.items() if k != "file"} for payload in contents(tmp_path / "g").values()]
    assert index(folder, tmp_path / "g", toy.bundle).relabelled == 0
    (folder / "payload.jsonl").write_text(json.dumps({"file": "3.png", "payload": told | {"when": "in May"}}))
    with pytest.raises(GalleryError, match=r"line 1: payload key `when` holds time elsewhere; text `'in May'` came"):
        index(folder, tmp_path / "g", toy.bundle)


def test_vectors_and_payload_are_those_of_the_pictures(toy, pictures, gallery):
    files = list_pictures(pictures)
    assert len(files) == 40
    wanted = toy.vectors(toy.pixels([pictures / file for file in files]))
    notes = {
        line["file"]: line["payload"] for line in map(json.loads, (pictures / "payload.jsonl").read_text().splitlines())
    }
    for name in ("original", "union"):
        for file, vector in zip(files, wanted[name], strict=True):
            (hit,) = gallery.search(Search(vector=vector, name=name, top=1))
            assert hit.id == content_id((pictures / file).read_bytes())
            assert hit.score > 1 - COSINE
            assert hit.payload == {"file": file} | notes[file]


def test_running_again_does_nothing_and_decodes_nothing(toy, folder, tmp_path, monkeypatch):
    first = index(folder, tmp_path / "g", toy.bundle)
    monkeypatch.setattr(decoding, "open_picture", None)
    seen = []
    again = index(folder, tmp_path / "g", toy.bundle, on_progress=lambda done, total: seen.append((done, total)))
    assert (first.indexed, again.indexed, again.skipped) == (10, 0, 10)
    assert first.generation == again.generation
    assert seen[-1] == (10, 10)
    monkeypatch.setattr(looking, "content_id", None)
    assert index(folder, tmp_path / "g", toy.bundle).skipped == 10  # size and time say that nothing changed


@pytest.mark.parametrize("loss", ["journal gone", "times touched", "rehash"])
def test_without_the_journals_help_bytes_decide(toy, folder, tmp_path, monkeypatch, loss):
    index(folder, tmp_path / "g", toy.bundle)
    if loss == "journal gone":
        (tmp_path / "g" / "journal.jsonl").unlink()
    elif loss == "times touched":
        for file in folder.iterdir():
            os.utime(file, (1, 1))
    monkeypatch.setattr(decoding, "open_picture", None)
    report = index(folder, tmp_path / "g", toy.bundle, rehash=loss == "rehash")
    assert (report.indexed, report.skipped) == (0, 10)


def test_a_torn_journal_line_is_dropped_and_written_again(toy, folder, tmp_path):
    index(folder, tmp_path / "g", toy.bundle)
    journal = tmp_path / "g" / "journal.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:6]) + b"garbage\n" + lines[7] + lines[8][:20])
    assert index(folder, tmp_path / "g", toy.bundle).skipped == 10
    after = [json.loads(line) for line in journal.read_bytes().splitlines() if line != b"garbage"]
    assert {entry["file"] for entry in after} == {f"{i}.png" for i in range(10)}
    assert journal.read_bytes().endswith(b"\n")


def test_equal_bytes_are_one_picture_under_the_first_name(toy, folder, tmp_path):
    shutil.copy(folder / "3.png", folder / "0-copy.png")
    shutil.copy(folder / "3.png", folder / "z.png")
    report = index(folder, tmp_path / "g", toy.bundle, batch=2)
    assert (report.indexed, report.merged) == (10, 2)
    assert report.duplicates == [("3.png", "0-copy.png"), ("z.png", "0-copy.png")]
    assert contents(tmp_path / "g") == expected(folder)
    (folder / "0-copy.png").unlink()
    report = index(folder, tmp_path / "g", toy.bundle)
    assert (report.indexed, report.relabelled, report.gone) == (0, 1, [])
    assert contents(tmp_path / "g") == expected(folder)


def test_a_changed_file_replaces_its_old_picture(toy, folder, tmp_path, draw_picture):
    index(folder, tmp_path / "g", toy.bundle)
    draw_picture(folder / "4.png", 999)
    report = index(folder, tmp_path / "g", toy.bundle)
    assert (report.indexed, report.replaced, report.skipped, report.size) == (1, 1, 9, 10)
    assert contents(tmp_path / "g") == expected(folder)


def test_files_that_are_gone_are_reported_and_pruned_only_when_asked(toy, folder, tmp_path):
    index(folder, tmp_path / "g", toy.bundle)
    before = contents(tmp_path / "g")
    (folder / "4.png").unlink()
    (folder / "5.png").rename(folder / "renamed.png")
    report = index(folder, tmp_path / "g", toy.bundle)
    assert (report.gone, report.pruned, report.relabelled, report.size) == (["4.png"], 0, 1, 10)
    assert before.keys() == contents(tmp_path / "g").keys()
    report = index(folder, tmp_path / "g", toy.bundle, prune=True)
    assert (report.gone, report.pruned, report.size) == (["4.png"], 1, 9)
    assert contents(tmp_path / "g") == expected(folder)


def test_unreadable_pictures_are_listed_and_the_rest_goes_on(toy, folder, tmp_path):
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "torn.png").write_bytes((folder / "1.png").read_bytes()[:200])
    Image.new("1", (9000, 9000)).save(folder / "huge.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    report = index(folder, tmp_path / "g", toy.bundle, batch=4)
    assert (report.indexed, report.size) == (10, 10)
    reasons = dict(report.unreadable)
    assert sorted(reasons) == ["dot.png", "empty.png", "huge.png", "text.jpg", "torn.png"]
    assert "empty" in reasons["empty.png"]
    assert "megapixels" in reasons["huge.png"]
    shutil.copy(folder / "1.png", folder / "2.png")  # and one that was good becomes one that is not
    (folder / "3.png").write_bytes(b"broken now")
    report = index(folder, tmp_path / "g", toy.bundle)
    assert len(report.unreadable) == 6
    assert (report.replaced, report.merged, report.size) == (2, 1, 8)


def test_only_pictures_inside_the_folder_are_listed(folder, tmp_path, draw_picture):
    draw_picture(tmp_path / "outside" / "secret.png", 1)
    draw_picture(folder / "deep" / "er" / "UPPER.PNG", 2)
    (folder / "notes.txt").touch()
    (folder / "leads-out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "stays-in.png").symlink_to(folder / "0.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    assert list_pictures(folder) == [*(f"{i}.png" for i in range(10)), "deep/er/UPPER.PNG", "stays-in.png"]
    with pytest.raises(GalleryError, match="is not a folder"):
        list_pictures(folder / "0.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_not_utf8_is_listed_as_unreadable(toy, folder, tmp_path):
    shutil.copy(os.fsencode(folder / "0.png"), os.fsencode(folder) + b"/\xff.png")
    report = index(folder, tmp_path / "g", toy.bundle)
    assert report.unreadable == [("?.png", "its name is not UTF-8: rename it")]


def test_a_picture_whose_path_or_labels_cannot_be_stored_is_named_and_the_rest_goes_on(toy, folder, tmp_path):
    index(folder, tmp_path / "g", toy.bundle)
    before = contents(tmp_path / "g")
    deep = folder / Path(*["\u00fc" * 120] * 9)  # 2,177 bytes with the file's name
    deep.mkdir(parents=True)
    for name in ("11.png", f"{deep.relative_to(folder)}/1.png"):  # the same picture, under another name too
        shutil.copy(folder / "1.png", folder / name)
    Image.new("RGB", (20, 20), (1, 2, 3)).save(deep / "new.png")
    lines = [("2.png", "x" * 3000), ("3.png", "x")]
    text = "\n".join(json.dumps({"file": file, "payload": {"caption": caption}}) for file, caption in lines)
    (folder / "payload.jsonl").write_text(text)
    report = index(folder, tmp_path / "g", toy.bundle, batch=4, prune=True)
    long = [f"{deep.relative_to(folder)}/{name}" for name in ("1.png", "new.png")]
    assert sorted(file for file, _ in report.unreadable) == ["2.png", *long]
    assert all("2048 bytes as JSON; this one has" in reason for _, reason in report.unreadable)
    assert (report.indexed, report.relabelled, report.replaced, report.pruned) == (0, 1, 0, 0)
    captioned = {content_id((folder / "3.png").read_bytes()): {"file": "3.png", "caption": "x"}}
    assert contents(tmp_path / "g") == before | captioned
    fresh = index(folder, tmp_path / "new", toy.bundle, batch=4)
    assert (fresh.indexed, len(fresh.unreadable)) == (9, 3)


def test_payload_of_a_second_name_is_reported_when_it_is_not_used(toy, folder, tmp_path):
    shutil.copy(folder / "1.png", folder / "copy.png")
    shutil.copy(folder / "2.png", folder / "same.png")
    lines = [("1.png", 1), ("copy.png", 2), ("2.png", 3), ("same.png", 3)]
    text = "\n".join(json.dumps({"file": file, "payload": {"n": n}}) for file, n in lines)
    (folder / "payload.jsonl").write_text(text)
    report = index(folder, tmp_path / "g", toy.bundle)
    assert report.merged == 2
    assert report.lost_payload == [("copy.png", "1.png")]


def test_a_changed_payload_is_taken_over_without_the_model(toy, folder, tmp_path, monkeypatch):
    notes = folder / "payload.jsonl"
    notes.write_text('{"file": "1.png", "payload": {"n": 1}}\n\n{"file": "ghost.png", "payload": {}}\n')
    report = index(folder, tmp_path / "g", toy.bundle)
    assert report.unused_payload == ["ghost.png"]
    notes.write_text('{"file": "1.png", "payload": {"n": 2.5, "new": true}}\n')
    monkeypatch.setattr(ingest, "ImageTower", None)
    report = index(folder, tmp_path / "g", toy.bundle)
    assert report.relabelled == 1
    stored = contents(tmp_path / "g")
    assert stored[content_id((folder / "1.png").read_bytes())] == {"file": "1.png", "n": 2.5, "new": True}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ("[1]", "line 2: expected"),
        ('{"file": "b.png"}', "line 2: expected"),
        ('{"file": 1, "payload": {}}', "line 2: `file` must be text"),
        ('{"file": "b.png", "payload": {"file": "c"}}', "line 2: payload key `file` is taken"),
        ('{"file": "b.png", "payload": {"n": "x"}}', "line 2: payload key `n` holds integer elsewhere"),
        ('{"file": "b.png", "payload": {"n": null}}', "line 2: payload key `n`: values are"),
        ('{"file": "b.png", "payload": {"n": NaN}}', "line 2: payload key `n`: values are"),
        ('{"file": "a.png", "payload": {}}', "line 2: `a.png` has a line already"),
    ],
)
def test_a_bad_payload_line_is_named(tmp_path, line, message):
    path = tmp_path / "payload.jsonl"
    path.write_text('{"file": "a.png", "payload": {"n": 1}}\n' + line + "\n")
    with pytest.raises(GalleryError) as caught:
        read_payload(path, {})
    assert message in str(caught.value)
    with pytest.raises(GalleryError, match="cannot be read"):
        read_payload(tmp_path / "nowhere.jsonl", {})


def test_another_gallery_space_is_refused_with_both_ids(toy, make_toy, folder, tmp_path):
    index(folder, tmp_path / "g", toy.bundle)
    other = make_toy(tmp_path / "other", gallery_space="gs-" + "1" * 16)
    with pytest.raises(SpaceMismatch, match=f"{toy.gallery_space}.*{other.gallery_space}"):
        index(folder, tmp_path / "g", other.bundle)
    assert len(contents(tmp_path / "g")) == 10
    with pytest.raises(BadBundle):
        index(folder, tmp_path / "g2", tmp_path)


def test_a_gallery_without_union_vectors_is_made_by_a_bundle_without_heads(make_toy, folder, tmp_path):
    plain = make_toy(tmp_path / "plain", targets=("original",))
    index(folder, tmp_path / "g", plain.bundle)
    with EmbeddedGallery.open(tmp_path / "g") as gallery:
        assert gallery.vectors == ["original"]


def _indexer(folder: Path, gallery: Path, bundle: Path) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from pocketlens_cloud.indexing.ingest import index; "
        "index(*map(Path, sys.argv[1:]), batch=4)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(gallery), str(bundle)], stderr=subprocess.PIPE
    )


def test_kill_it_anywhere_and_it_finishes_with_nothing_lost_and_nothing_twice(toy, tmp_path, draw_picture):
    """kill -9 while the gallery is made, after a few batches, in the middle, near the end."""
    folder, gallery = tmp_path / "pictures", tmp_path / "g"
    for i in range(160):
        draw_picture(folder / f"{i:03d}.png", i)
    journal = gallery / "journal.jsonl"
    kills = 0
    for moment in (gallery, gallery / "shard", gallery / "gallery.json", journal, 4, 5, 40, 90, 130, 156):
        process = _indexer(folder, gallery, toy.bundle)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            reached = moment.exists() if isinstance(moment, Path) else _lines(journal) >= moment
            if reached:
                process.send_signal(signal.SIGKILL)
                break
        _, told = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), told.decode()
    assert kills >= 7  # the last moments may come too late on a fast machine
    index(folder, gallery, toy.bundle)
    assert contents(gallery) == expected(folder)
    index(folder, tmp_path / "undisturbed", toy.bundle, batch=4)
    killed, undisturbed = everything(gallery, toy.dim), everything(tmp_path / "undisturbed", toy.dim)
    assert [[(hit.id, hit.payload) for hit in hits] for hits in killed] == [
        [(hit.id, hit.payload) for hit in hits] for hits in undisturbed
    ]
    scores = [np.array([[hit.score for hit in hits] for hits in lists]) for lists in (killed, undisturbed)]
    assert np.abs(scores[0] - scores[1]).max() < COSINE


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
