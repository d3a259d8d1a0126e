"""Sources: whatever pictures come from, the gallery is the same, and what cannot be listed is not touched."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.indexing.ingest import NearDuplicates, content_id, index
from pocketlens_cloud.indexing.journal import Journal
from pocketlens_cloud.indexing.sources import open_source
from pocketlens_wire.errors import GalleryError


def contents(path: Path) -> dict[str, dict]:
    with EmbeddedGallery.open(path) as gallery:
        assert gallery.settled
        return dict(gallery.payloads())


@pytest.fixture
def folder(tmp_path, draw_picture) -> Path:
    for i in range(9):
        draw_picture(tmp_path / "pictures" / f"{'ab'[i % 2]}" / f"{i}.png", 100 + i)
    return tmp_path / "pictures"


def shard(path: Path, folder: Path, names: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, name)
        notes = tarfile.TarInfo("notes.json")
        tar.addfile(notes)


def shards(tmp_path: Path, folder: Path) -> Path:
    names = open_source(folder).names()
    shard(tmp_path / "shards" / "0.tar", folder, names[:4])
    shard(tmp_path / "shards" / "1.tar", folder, names[4:])
    return tmp_path / "shards"


@pytest.fixture
def store(folder):
    """The folder's pictures in fsspec's store in memory."""
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/bucket/pictures", recursive=True)
    yield fs
    fs.rm("/bucket", recursive=True)


@pytest.fixture(params=["list", "shards", "store", "shards in a store"])
def source(request, tmp_path, folder) -> str:
    """The folder's pictures from somewhere else."""
    if request.param == "list":
        lines = [f"pictures/{name}" for name in open_source(folder).names()]
        (tmp_path / "list.txt").write_text("\n".join([*lines, "", lines[0]]))
        return str(tmp_path / "list.txt")
    if request.param == "shards":
        return f"{shards(tmp_path, folder)}/*.tar"
    fs = request.getfixturevalue("store")
    if request.param == "store":
        return "memory://bucket/pictures"
    fs.put(str(shards(tmp_path, folder)), "/bucket/shards", recursive=True)
    return "memory://bucket/shards/*.tar"


def test_every_source_gives_the_folders_gallery(toy, folder, source, tmp_path):
    report = index(source, tmp_path / "g", toy.bundle, batch=4)
    assert (report.indexed, report.size, report.unreadable) == (9, 9, [])
    index(folder, tmp_path / "plain", toy.bundle)
    assert contents(tmp_path / "g").keys() == contents(tmp_path / "plain").keys()
    origin = open_source(source)
    for name in origin.names():
        assert contents(tmp_path / "g")[content_id(origin.read(name))] == {"file": name}


def test_again_reads_nothing_and_prune_removes_what_is_gone(toy, source, tmp_path, monkeypatch):
    index(source, tmp_path / "g", toy.bundle)
    origin = open_source(source)
    names = origin.names()
    monkeypatch.setattr(type(origin), "read", None)
    again = index(source, tmp_path / "g", toy.bundle)
    assert (again.indexed, again.skipped, again.unreadable) == (0, 9, [])
    whole = type(origin).names
    monkeypatch.setattr(type(origin), "names", lambda self: whole(self)[1:])
    assert index(source, tmp_path / "g", toy.bundle).gone == names[:1]
    assert index(source, tmp_path / "g", toy.bundle, prune=True).size == 8
    monkeypatch.setattr(type(origin), "names", lambda self: [])
    with pytest.raises(GalleryError, match="is it mounted"):  # nothing at all is rather a mistake
        index(source, tmp_path / "g", toy.bundle, prune=True)
    assert len(contents(tmp_path / "g")) == 8


def test_a_changed_shard_or_object_is_read_again(toy, folder, store, tmp_path, draw_picture):
    pattern = f"{shards(tmp_path, folder)}/*.tar"
    index(pattern, tmp_path / "g", toy.bundle)
    draw_picture(folder / "a" / "0.png", 999)
    shards(tmp_path, folder)
    report = index(pattern, tmp_path / "g", toy.bundle)
    assert (report.indexed, report.replaced, report.skipped, report.size) == (1, 1, 8, 9)
    index("memory://bucket/pictures", tmp_path / "s", toy.bundle)
    draw_picture(folder / "a" / "0.png", 1000)
    store.put(str(folder / "a" / "0.png"), "/bucket/pictures/a/0.png")
    report = index("memory://bucket/pictures", tmp_path / "s", toy.bundle)
    assert (report.indexed, report.replaced, report.skipped, report.size) == (1, 1, 8, 9)


@pytest.mark.parametrize("harm", ["cut", "torn header", "compressed", "same name twice", "huge size", "negative size"])
def test_a_shard_that_cannot_be_listed_to_its_end_changes_nothing(toy, folder, tmp_path, harm):
    pattern = f"{shards(tmp_path, folder)}/*.tar"
    index(pattern, tmp_path / "g", toy.bundle)
    second = tmp_path / "shards" / "1.tar"
    whole = second.read_bytes()
    if harm == "cut":
        second.write_bytes(whole[: 512 * 5])
    elif harm == "torn header":
        at = whole.rindex(b"8.png", 0, whole.index(b"notes.json"))
        second.write_bytes(whole[:at] + b"\xff" * 300 + whole[at + 300 :])
    elif harm == "compressed":
        with tarfile.open(second, "w:gz") as tar:
            tar.add(folder, "x")
    elif harm.endswith("size"):
        at = whole.index(b"notes.json")
        header = bytearray(whole[at : at + 512])
        header[124:136] = (b"\x80" + b"\x7f" * 11) if harm == "huge size" else (b"\xff" * 10 + b"\xfc\x00")  # -1024
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * ord(" "))
        second.write_bytes(whole[:at] + header + whole[at + 512 :])
    else:
        with tarfile.open(second, "a") as tar:
            tar.add(folder / "a" / "8.png", open_source(pattern).names()[-1].split("/", 1)[1])
    with pytest.raises(GalleryError, match=r"1\.tar"):
        index(pattern, tmp_path / "g", toy.bundle, prune=True)
    assert len(contents(tmp_path / "g")) == 9


def test_a_shard_that_is_there_is_no_pattern(toy, folder, tmp_path):
    home = tmp_path / "set[1]"
    shards(tmp_path, folder).rename(home)
    shutil.copytree(home, tmp_path / "set1")  # what the brackets would match
    report = index(f"{home}/0.tar", tmp_path / "g", toy.bundle)
    assert (report.indexed, report.unreadable) == (4, [])
    origin = open_source(f"{home}/0.tar")
    assert [origin.read(name) for name in origin.names()] == [
        (folder / name.removeprefix("0.tar/")).read_bytes() for name in origin.names()
    ]
    assert origin.names()[0].startswith("0.tar/")
    assert {name.split("/", 1)[0] for name in open_source(f"{tmp_path}/set[1]/[01].tar").names()} == {"set1"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "is not a folder"),
        ("no/*.tar", "no such shard"),
        ("http://127.0.0.1/pictures", "no web page is read"),
        ("filecache::s3://bucket/x", "no web page is read"),
        ("s3://", "name a bucket"),
        ("nosuch://bucket/x", "cannot be opened"),
    ],
)
def test_what_is_no_source_is_said(where, message):
    with pytest.raises(GalleryError, match=message):
        open_source(where).names()


def test_a_list_names_files_and_nothing_else(tmp_path):
    for line, message in (("s3://bucket/a.png", "command line"), ("notes.doc", "not the name of a picture")):
        (tmp_path / "list.txt").write_text(f"a.png\n{line}\n")
        with pytest.raises(GalleryError, match=f"line 2.*{message}"):
            open_source(tmp_path / "list.txt").names()
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GalleryError, match="UTF-8"):
        open_source(tmp_path / "list.txt").names()


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\u0085", "\x0c"])
def test_lines_end_in_lf_or_cr_lf_and_nowhere_else(toy, tmp_path, draw_picture, odd):
    name = f"a{odd}b.png"
    draw_picture(tmp_path / name, 1)
    draw_picture(tmp_path / "c.png", 2)
    (tmp_path / "list.txt").write_bytes(f"{name}\r\nc.png\r\n".encode())
    told = {"colour": f"in{odd if odd > ' ' else ' '}red"}  # JSON itself forbids the control codes of ASCII
    line = json.dumps({"file": name, "payload": told}, ensure_ascii=False)
    (tmp_path / "labels.jsonl").write_bytes(f"{line}\r\n\r\n".encode())
    report = index(tmp_path / "list.txt", tmp_path / "g", toy.bundle, payload=tmp_path / "labels.jsonl")
    assert (report.indexed, report.unreadable, report.unused_payload) == (2, [], [])
    assert {"file": name} | told in contents(tmp_path / "g").values()


def test_a_listed_file_that_is_missing_is_unreadable_and_keeps_its_picture(toy, folder, tmp_path):
    (tmp_path / "list.txt").write_text("pictures/a/0.png\npictures/b/1.png\n")
    index(tmp_path / "list.txt", tmp_path / "g", toy.bundle)
    (folder / "a" / "0.png").unlink()
    report = index(tmp_path / "list.txt", tmp_path / "g", toy.bundle, prune=True)
    assert [file for file, _ in report.unreadable] == ["pictures/a/0.png"]
    assert report.size == 2


def test_without_fsspec_a_store_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(GalleryError, match=r"pocketlens\[stores\]"):
        open_source("s3://bucket/pictures")


def test_without_a_stores_driver_the_extra_and_the_driver_are_named(monkeypatch):
    pytest.importorskip("fsspec", reason="pip install 'pocketlens[stores]'")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(GalleryError, match=r"Install s3fs .*pip install 'pocketlens\[stores\]' s3fs"):
        open_source("s3://bucket/pictures")


def test_a_store_that_may_not_be_listed_changes_nothing(toy, store, tmp_path, monkeypatch):
    index("memory://bucket/pictures", tmp_path / "g", toy.bundle)

    whole = type(store).ls

    def ls(self, path, *given, **more):
        if path.rstrip("/").endswith("/b"):
            raise PermissionError(13, "Access Denied")
        return whole(self, path, *given, **more)

    monkeypatch.setattr(type(store), "ls", ls)
    with pytest.raises(GalleryError, match="cannot be listed"):
        index("memory://bucket/pictures", tmp_path / "g", toy.bundle, prune=True)
    assert len(contents(tmp_path / "g")) == 9


def test_a_journal_from_before_there_were_sources_is_understood(toy, folder, tmp_path, monkeypatch):
    index(folder, tmp_path / "g", toy.bundle)
    path = tmp_path / "g" / "journal.jsonl"
    old = []
    with Journal(path) as journal:
        for entry in journal.entries.values():
            size, mtime_ns = map(int, entry.fingerprint.split("-"))
            old.append(json.dumps({"file": entry.file, "size": size, "mtime_ns": mtime_ns, "id": entry.id}))
    path.write_text("\n".join(old) + "\n")
    monkeypatch.setattr(type(open_source(folder)), "read", None)
    assert index(folder, tmp_path / "g", toy.bundle).skipped == 9


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_near_duplicates_are_reported_and_stay(toy, folder, tmp_path, ending):
    from PIL import Image

    with Image.open(folder / "a" / "0.png") as picture:
        picture.putpixel((10, 10), (0, 0, 0))
        picture.save(folder / "a" / "0-touched.png")
    shutil.copy(folder / "a" / "2.png", folder / "copy.png")  # the same picture, not a near one
    near = NearDuplicates(0.95, tmp_path / f"near.{ending}")
    report = index(folder, tmp_path / "g", toy.bundle, near=near)
    assert (report.near_duplicates, report.size) == (1, 10)
    text = near.report.read_text()
    if ending == "json":
        (pair,) = json.loads(text)["pairs"]
        assert sorted(pair["files"]) == ["a/0-touched.png", "a/0.png"]
        assert 0.95 <= pair["cosine"] < 1
    else:
        assert len(text.splitlines()) == 2
        assert "a/0-touched.png" in text
    assert os.path.getsize(near.report)


@pytest.mark.filterwarnings("ignore")  # Ray warns of itself
def test_ray_leaves_the_same_gallery_and_journal(toy, folder, tmp_path, monkeypatch):
    pytest.importorskip("ray.data")
    shutil.copy(folder / "a" / "2.png", folder / "copy.png")
    (folder / "bad.png").write_text("no picture")
    plain = index(folder, tmp_path / "plain", toy.bundle)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    far = index(folder, tmp_path / "far", toy.bundle, engine="ray", batch=4, threads=2)
    assert contents(tmp_path / "far") == contents(tmp_path / "plain")
    assert (far.indexed, far.duplicates, far.unreadable) == (plain.indexed, plain.duplicates, plain.unreadable)
    journals = [sorted((tmp_path / name / "journal.jsonl").read_text().splitlines()) for name in ("plain", "far")]
    assert journals[0] == journals[1]
    assert index(folder, tmp_path / "far", toy.bundle).skipped == 9
