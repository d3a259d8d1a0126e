"""Where pictures may lie, and what is said of places that give none: one sentence that names the place."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from pocketlens_training.material import open_images
from pocketlens_training.sets.sources import Files, NoPictures, members, open_source
from pocketlens_wire.errors import BadPicture


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def everything(place: Path) -> dict[str, bytes]:
    source = open_source(place)
    assert len(source) == len(source.names)
    return {name: source.read(n) for n, name in enumerate(source.names)}


def refusal(place: Path) -> str:
    with pytest.raises(NoPictures) as caught:
        open_source(place)
    said = str(caught.value)
    assert said.startswith(str(place)), said
    assert "\n" not in said
    return said


def test_a_folder_is_searched_through_and_what_is_hidden_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "b.JPG", b"b")
    put(tmp_path / "a" / "deep" / "c.png", b"c")
    put(tmp_path / "a" / "d.webp", b"d")
    put(tmp_path / "notes.txt")
    put(tmp_path / "._b.jpg")
    put(tmp_path / ".thumbnails" / "b.jpg")
    tar_of(tmp_path / "z" / "more.tar", {"1.png": b"1", "1.json": b"{}"})
    assert everything(tmp_path) == {"b.JPG": b"b", "a/d.webp": b"d", "a/deep/c.png": b"c", "z/more.tar/1.png": b"1"}


def test_the_order_of_a_folder_is_that_of_names(tmp_path: Path) -> None:
    for name in ("c.png", "a.png", "x/b.png", "b.png", "q/a.png"):
        put(tmp_path / name)
    assert open_source(tmp_path).names == ["a.png", "b.png", "c.png", "q/a.png", "x/b.png"]


def test_a_list_names_files_beside_it_and_in_shards(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png", b"a")
    tar_of(tmp_path / "s.tar", {"k/1.png": b"1"})
    listed = put(tmp_path / "list.txt", b"in/a.png\n\n  s.tar/k/1.png  \nin/none.png\ns.tar/none.png\n")
    source = open_source(listed)
    assert source.names == ["in/a.png", "s.tar/k/1.png", "in/none.png", "s.tar/none.png"]
    assert [source.read(0), source.read(1)] == [b"a", b"1"]
    with pytest.raises(BadPicture, match=r"none\.png: cannot be read"):
        source.read(2)
    with pytest.raises(BadPicture, match=r"s\.tar: no picture 'none\.png' in it"):
        source.read(3)


def test_a_list_of_absolute_names(tmp_path: Path) -> None:
    picture = put(tmp_path / "far" / "a.png", b"a")
    listed = put(tmp_path / "near" / "list.txt", f"{picture}\n".encode())
    assert open_source(listed).read(0) == b"a"


def test_one_shard_and_a_folder_of_shards(tmp_path: Path) -> None:
    one = tar_of(tmp_path / "p-0.tar", {"0.png": b"zero", "0.cls": b"3", "._0.png": b"apple", "d/1.jpeg": b"one"})
    assert everything(one) == {"p-0.tar/0.png": b"zero", "p-0.tar/d/1.jpeg": b"one"}
    tar_of(tmp_path / "p-1.tar", {"0.png": b"other"})
    assert everything(tmp_path) == {
        "p-0.tar/0.png": b"zero",
        "p-0.tar/d/1.jpeg": b"one",
        "p-1.tar/0.png": b"other",
    }


def test_a_pairs_file_names_its_pictures_once(tmp_path: Path) -> None:
    put(tmp_path / "a.png", b"a")
    lines = b'{"image": "a.png", "captions": ["x"], "attributes": {"size": 3}}\n{"image": "a.png", "captions": ["y"]}\n'
    source, known = open_images(put(tmp_path / "pairs.jsonl", lines))
    assert (source.names, source.read(0)) == (["a.png"], b"a")
    assert set(known) == {"a.png"}
    with pytest.raises(NoPictures, match=r"none\.jsonl: no such file"):
        open_images(tmp_path / "none.jsonl")


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "none")
    assert "no such file or folder" in refusal(tmp_path / "none.tar")


def test_an_empty_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    put(tmp_path / "readme.md")
    assert ".jpg" in refusal(tmp_path)


@pytest.mark.parametrize("files", [{}, {"0.txt": b"words"}])
def test_a_shard_without_pictures(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert "no pictures in it" in refusal(tar_of(tmp_path / "empty.tar", files))


def test_an_empty_list_and_one_that_is_no_text(tmp_path: Path) -> None:
    assert "the list is empty" in refusal(put(tmp_path / "list.txt", b"\n \n"))
    assert "neither a folder, a .tar, nor a list" in refusal(put(tmp_path / "a.bin", b"\xff\xfe\x00\x81"))


def test_a_broken_shard_is_named_wherever_it_lies(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar", {f"{n}.png": bytes(2000) for n in range(5)})
    cut = put(tmp_path / "cut" / "cut.tar", whole.read_bytes()[:5000])
    assert "broken" in refusal(cut)
    with pytest.raises(NoPictures, match=r"cut\.tar: not an uncompressed tar, or broken"):
        open_source(cut.parent)
    assert "not an uncompressed tar" in refusal(put(tmp_path / "words.tar", b"no tar at all" * 100))


def test_a_compressed_shard_is_refused_for_it_cannot_be_read_at_random(tmp_path: Path) -> None:
    packed = tar_of(tmp_path / "packed.tar", {"0.png": b"zero"}, "w:gz")
    assert "not an uncompressed tar" in refusal(packed)
    assert "neither a folder, a .tar, nor a list" in refusal(tar_of(tmp_path / "p.tar.gz", {"0.png": b"0"}, "w:gz"))


def test_members_lie_where_they_are_said_to(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "s.tar", {"a.png": b"12345", "b.png": b"", "c.png": b"678"})
    data = shard.read_bytes()
    assert {name: data[at : at + length] for name, (at, length) in members(shard).items()} == {
        "a.png": b"12345",
        "b.png": b"",
        "c.png": b"678",
    }
    with pytest.raises(NoPictures, match="no such file"):
        members(tmp_path / "none.tar")


def test_a_name_through_a_shard_that_is_gone_is_a_bad_picture_or_no_place(tmp_path: Path) -> None:
    with pytest.raises((BadPicture, NoPictures), match=r"gone\.tar"):
        Files(tmp_path, ["gone.tar/0.png"]).read(0)


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def png(colour: int) -> dict:
    from PIL import Image

    held = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(held, "PNG")
    return {"bytes": held.getvalue(), "path": None}


def hugging(datasets, folder: Path, rows: list, column: str = "photo"):
    features = datasets.Features({"id": datasets.Value("int64"), column: datasets.Image()})
    made = datasets.Dataset.from_dict({"id": list(range(len(rows))), column: rows}, features=features)
    made.save_to_disk(str(folder))
    return made


def test_a_datasets_folder_gives_its_pictures_as_they_were_put_in(datasets, tmp_path: Path) -> None:
    outside = put(tmp_path / "out.png", png(9)["bytes"])
    rows = [png(1), png(2), {"bytes": None, "path": str(outside)}]
    hugging(datasets, tmp_path / "set", rows)
    source = open_source(tmp_path / "set")
    assert source.names == ["photo-0", "photo-1", "photo-2"]
    assert [source.read(n) for n in range(3)] == [png(n)["bytes"] for n in (1, 2, 9)]


def test_a_row_without_a_picture_is_a_bad_picture(datasets, tmp_path: Path) -> None:
    hugging(datasets, tmp_path / "set", [png(1), None])
    source = open_source(tmp_path / "set")
    with pytest.raises(BadPicture, match="photo-1"):
        source.read(1)


def test_parts_of_a_datasets_folder_are_named(datasets, tmp_path: Path) -> None:
    made = hugging(datasets, tmp_path / "set", [png(1)])
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "parts"))
    assert str(tmp_path / "parts" / "train") in refusal(tmp_path / "parts")
    assert len(open_source(tmp_path / "parts" / "train")) == 1


def test_a_datasets_folder_without_pictures_names_its_columns(datasets, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(str(tmp_path / "set"))
    assert "text, label" in refusal(tmp_path / "set")


def test_a_folder_that_only_looks_like_datasets(datasets, tmp_path: Path) -> None:
    put(tmp_path / "set" / "dataset_info.json", b"{}")
    assert "not a datasets folder" in refusal(tmp_path / "set")


def test_without_the_library_the_folder_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    import sys

    put(tmp_path / "set" / "dataset_info.json", b"{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(tmp_path / "set")
