"""Versions of a gallery, from building to dropping: the same tests over directories and over a Qdrant server."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pocketlens_cloud.cli import app
from pocketlens_cloud.gallery import embedded
from pocketlens_cloud.gallery import versions as steps
from pocketlens_cloud.gallery.folder import FolderVersions
from pocketlens_cloud.gallery.interface import Point
from pocketlens_cloud.gallery.versions import Saved, Versions
from pocketlens_cloud.indexing.building import build
from pocketlens_cloud.local import open_local
from pocketlens_wire.errors import GalleryError, SpaceMismatch
from qdrant.servers import SERVERS, Running
from typer.testing import CliRunner


@dataclass
class Place:
    """Where versions lie, and how the commands name it."""

    versions: Versions
    arguments: Callable[..., list[str]]
    break_index: Callable[[str, str], None]  # (version, payload key)
    source: Callable[[Saved], str]  # what `restore` is told of a snapshot


@contextmanager
def _folder(home: Path) -> Iterator[Place]:
    def break_index(version: str, key: str) -> None:
        with embedded.EmbeddedGallery.open(home / "shop" / version) as gallery:
            gallery._shard.update(embedded.engine.UpdateOperation.delete_field_index(key))

    yield Place(FolderVersions(home / "shop"), lambda: [str(home / "shop")], break_index, lambda saved: saved.place)


@contextmanager
def _collections(running: Running) -> Iterator[Place]:
    from pocketlens_cloud.gallery.collections import CollectionVersions

    server, name = running.server, running.name

    def break_index(version: str, key: str) -> None:
        server.writing.delete_payload_index(f"{name}.{version}", key)

    arguments = [name, "--qdrant", server.address.url, "--qdrant-grpc-port", str(server.address.grpc_port)]
    yield Place(
        CollectionVersions(server, name),
        lambda: arguments,
        break_index,
        lambda saved: running.snapshot(f"{name}.{saved.version}", saved.place),
    )


@pytest.fixture(params=["folder", *SERVERS])
def place(request, tmp_path, monkeypatch) -> Iterator[Place]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "folder":
        with _folder(tmp_path) as made:
            yield made
        return
    pytest.importorskip("qdrant_client", reason="pip install 'pocketlens[qdrant]'")
    (tmp_path / "server").mkdir()
    with SERVERS[request.param](tmp_path / "server") as running, _collections(running) as made:
        yield made


@pytest.fixture
def few(tmp_path, draw_picture) -> Path:
    """Nine pictures with payload."""
    folder = tmp_path / "few"
    lines = []
    for i in range(9):
        draw_picture(folder / f"{i}.png", i)
        lines.append(json.dumps({"file": f"{i}.png", "payload": {"n": i, "colour": "red"}}))
    (folder / "payload.jsonl").write_text("\n".join(lines))
    return folder


def verified(versions: Versions, name: str, space: str) -> dict[str, bool]:
    return {finding.what: finding.ok for finding in steps.verify(versions, name, space)}


def add(versions: Versions, folder: Path, toy) -> str:
    """A version, built, verified and promoted."""
    name, _ = build(versions, folder, toy.bundle)
    assert all(verified(versions, name, toy.gallery_space).values())
    steps.promote(versions, name, toy.gallery_space)
    return name


def contents(versions: Versions, name: str) -> dict[str, dict]:
    gallery = versions.open(name)
    try:
        return dict(gallery.payloads())
    finally:
        gallery.close()


def test_build_verify_promote_roll_back_and_drop(place, few, toy, draw_picture):
    versions, space = place.versions, toy.gallery_space
    with pytest.raises(GalleryError, match="has no live version"):
        steps.live_or_raise(versions)
    name, report = build(versions, few, toy.bundle)
    assert (name, report.indexed, versions.live()) == ("v0001", 9, "")
    with pytest.raises(GalleryError, match=r"was not verified .*gallery verify"):
        steps.promote(versions, name, space)
    assert all(verified(versions, name, space).values())
    assert steps.promote(versions, name, space) == ""
    draw_picture(few / "another.png", 100)
    assert add(versions, few, toy) == "v0002"
    assert [(v.name, v.live, v.record.size) for v in steps.listed(versions)] == [
        ("v0001", False, 9),
        ("v0002", True, 10),
    ]
    with pytest.raises(GalleryError, match=r"v0002 is live, so it is not dropped"):
        steps.drop(versions, "v0002")
    assert steps.rollback(versions) == ("v0002", "v0001")
    with pytest.raises(GalleryError, match="nothing was live before v0001"):
        steps.rollback(versions)
    steps.promote(versions, "v0002", space)
    steps.drop(versions, "v0001")
    assert versions.names() == ["v0002"]
    with pytest.raises(GalleryError, match=r"v0001, live before v0002, was dropped"):
        steps.rollback(versions)
    with pytest.raises(GalleryError, match="has no version v0001; it has v0002"):
        steps.chosen(versions, "v0001")


def test_a_building_that_was_cut_short_is_gone_on_with_and_not_promoted(place, few, toy, make_toy, tmp_path):
    def stop(done: int, _: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(place.versions, few, toy.bundle, batch=2, on_progress=stop)
    assert verified(place.versions, "v0001", toy.gallery_space)["building"] is False
    with pytest.raises(GalleryError, match="did not reach its end"):
        steps.promote(place.versions, "v0001", toy.gallery_space, unverified=True)
    other = make_toy(tmp_path / "other", gallery_space="gs-" + "1" * 16)
    with pytest.raises(SpaceMismatch, match=f"{toy.gallery_space}.*{other.gallery_space}"):
        build(place.versions, few, other.bundle)
    name, report = build(place.versions, few, toy.bundle)
    assert (name, report.skipped, report.indexed) == ("v0001", 4, 5)
    assert all(verified(place.versions, "v0001", toy.gallery_space).values())


def test_an_empty_folder_makes_no_version(place, tmp_path, toy):
    (tmp_path / "empty").mkdir()
    with pytest.raises(GalleryError, match="holds no pictures"):
        build(place.versions, tmp_path / "empty", toy.bundle)
    assert place.versions.names() == []


def test_verify_sees_what_is_wrong(place, few, toy, monkeypatch):
    versions, space = place.versions, toy.gallery_space
    build(versions, few, toy.bundle)
    assert verified(versions, "v0001", "gs-other")["gallery space"] is False
    place.break_index("v0001", "n")
    assert verified(versions, "v0001", space) == {
        "building": True,
        "gallery space": True,
        "payload indexes": False,
        "pictures": True,
        "vectors `original`": True,
        "search `original`": True,
        "vectors `union`": True,
        "search `union`": True,
    }
    assert versions.record("v0001").verified == ""
    gallery = versions.open("v0001")
    monkeypatch.setattr(f"{type(gallery).__module__}.check_vectors", lambda *_: None)
    nan, one = np.full(toy.dim, np.nan, np.float32), np.eye(toy.dim, dtype=np.float32)[0]
    gallery.upsert([Point("f" * 32, {"original": nan, "union": one}, {"file": "x"})])
    gallery.settle()
    gallery.close()
    found = verified(versions, "v0001", space)
    assert (found["building"], found["vectors `original`"], found["vectors `union`"]) == (False, False, True)
    with pytest.raises(GalleryError, match="was not verified in its present generation"):
        steps.promote(versions, "v0001", space)


def test_another_gallery_space_is_not_promoted(place, few, toy):
    build(place.versions, few, toy.bundle)
    with pytest.raises(SpaceMismatch, match=f"{toy.gallery_space}.*gs-other"):
        steps.promote(place.versions, "v0001", "gs-other", unverified=True)
    assert place.versions.live() == ""


def test_a_snapshot_comes_back_as_the_next_version(place, few, toy):
    versions = place.versions
    add(versions, few, toy)
    saved = versions.save("v0001", None)
    source = place.source(saved)
    with pytest.raises(SpaceMismatch, match=f"{toy.gallery_space}.*gs-other"):
        steps.restore(versions, source, "gs-other")
    assert versions.names() == ["v0001"]
    assert steps.restore(versions, source, toy.gallery_space) == "v0002"
    assert contents(versions, "v0002") == contents(versions, "v0001")
    assert versions.record("v0002").verified == ""
    assert all(verified(versions, "v0002", toy.gallery_space).values())
    with pytest.raises(GalleryError):
        steps.restore(versions, source + ".gone", toy.gallery_space)


def test_the_commands_say_all_of_it_as_json(place, few, toy):
    def run(command: str, *arguments: str, bundle: bool = False, code: int = 0) -> dict:
        named = ["--bundle", str(toy.bundle)] if bundle else []
        result = CliRunner().invoke(app, ["gallery", command, *place.arguments(), *arguments, *named, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code != 2 else {"error": result.stderr}

    assert run("list") == {"title": place.versions.title, "versions": []}
    assert run("build", str(few), bundle=True)["version"] == "v0001"
    assert "was not verified" in run("promote", bundle=True, code=2)["error"]
    assert run("verify", bundle=True)["ok"] is True
    assert run("promote", bundle=True) == {"live": "v0001", "before": ""}
    assert run("build", str(few), bundle=True)["version"] == "v0002"
    assert run("promote", "--unverified", bundle=True) == {"live": "v0002", "before": "v0001"}
    assert run("rollback") == {"live": "v0001", "before": "v0002"}
    assert [(v["version"], v["live"], v["verified"]) for v in run("list")["versions"]] == [
        ("v0001", True, True),
        ("v0002", False, False),
    ]
    assert run("snapshot")["version"] == "v0001"
    assert "is live, so it is not dropped" in run("drop", "v0001", "--yes", code=2)["error"]
    assert "say --yes" in run("drop", "v0002", code=2)["error"]
    assert run("drop", "v0002", "--yes") == {"dropped": "v0002"}
    place.break_index("v0001", "n")
    assert run("verify", bundle=True, code=1)["ok"] is False


# --- what only a directory has


@pytest.fixture
def shop(tmp_path, few, toy) -> FolderVersions:
    versions = FolderVersions(tmp_path / "shop")
    build(versions, few, toy.bundle)
    return versions


def test_a_plain_gallery_is_no_directory_of_versions(indexed):
    with pytest.raises(GalleryError, match="is one gallery, not a directory of versions"):
        FolderVersions(indexed)


def test_doctor_and_searches_on_the_device_take_the_live_version(shop, few, toy):
    def examined() -> tuple[int, dict[str, str]]:
        ran = CliRunner().invoke(app, ["doctor", "--bundle", str(toy.bundle), "--gallery", shop.title, "--json"])
        return ran.exit_code, {finding["what"]: finding["detail"] for finding in json.loads(ran.stdout)}

    code, found = examined()
    assert code == 1
    assert "has no live version: build one, verify it, then `pocketlens-cloud gallery promote`" in found["gallery"]
    with pytest.raises(GalleryError, match="has no live version"):
        open_local(Path(shop.title), toy.bundle)

    live = add(shop, few, toy)  # v0002; v0001 stays beside it
    generation = shop.describe(live).generation
    assert generation != shop.describe("v0001").generation
    code, found = examined()
    assert code == 0
    assert (live, generation) == (Path(found["version"].split()[0]).name, found["generation"].split(":")[0])
    with open_local(Path(shop.title), toy.bundle) as here:
        assert here.search(toy.request()).generation == generation


@pytest.mark.parametrize("at", [("--gallery",), ("--qdrant", "http://127.0.0.1:9", "--collection")])
def test_a_versioned_gallery_is_not_written_to_and_the_next_step_is_named(shop, at):
    """Before a model is loaded: the bundle is not even looked for."""
    ran = CliRunner().invoke(app, ["serve", *at, shop.title, "--writable", "--bundle", "nowhere", "--port", "0"])
    said = " ".join(ran.stderr.split())
    assert ran.exit_code == 2
    for words in ("--writable is only for a gallery by itself", "gallery build", "`gallery promote`", "index"):
        assert words in said


def test_a_version_that_is_open_is_neither_dropped_nor_copied(shop):
    gallery = shop.open("v0001")
    for refused in (lambda: shop.remove("v0001"), lambda: shop.save("v0001", None)):
        with pytest.raises(GalleryError, match="is open in another process"):
            refused()
    gallery.close()
    shop.remove("v0001")
    assert shop.names() == []


def test_damaged_and_foreign_snapshots_are_refused_and_leave_nothing(shop, toy, tmp_path):
    good = Path(shop.save("v0001", tmp_path / "good.tar.gz").place)

    def refused(data: bytes, match: str) -> None:
        bad = tmp_path / "bad.tar"
        bad.write_bytes(data)
        with pytest.raises(GalleryError, match=match):
            steps.restore(shop, str(bad), toy.gallery_space)
        assert sorted(path.name for path in (tmp_path / "shop").iterdir()) == ["v0001"]

    whole = good.read_bytes()
    with tarfile.open(good) as archive:
        told = json.loads(archive.extractfile("snapshot.json").read())
    refused(whole[: len(whole) // 2], "is cut short|is damaged")
    refused(b"no tar", "is no snapshot")
    refused(_tar({"holiday.txt": b""}), "does not begin with snapshot.json")
    head = {"snapshot.json": json.dumps(told).encode()}
    random = np.random.default_rng(0).bytes(1 << 18)  # does not shrink, so the harm lies behind the manifest
    for compress in (lzma.compress, gzip.compress, bz2.compress):
        packed = compress(_tar(head | {"gallery.json": random}))
        harmed = packed[: 1 << 17] + bytes(1 << 12) + packed[(1 << 17) + (1 << 12) :]
        refused(harmed, r"bad\.tar (is no snapshot|cannot be restored)|gallery.json has another hash")
        refused(packed[: 1 << 17], r"bad\.tar (is no snapshot|cannot be restored)")
    refused(_tar(head | {"gallery.json": b"{}"}), "gallery.json has another hash")
    refused(_tar(head), "is cut short: built.json is missing")
    escaping = {"snapshot.json": json.dumps(told | {"files": {"../evil": "0"}}).encode(), "../evil": b"x"}
    refused(_tar(escaping), "not restored")
    refused(_tar(head | {"stranger": b"x"}), "stranger.*does not name")
    assert not (tmp_path / "evil").exists()


def _tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return raw.getvalue()
