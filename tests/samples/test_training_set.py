"""The sample world as a set that one trains on: whole or gone on with, and nothing held out in it."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pocketlens_samples import training_set
from pocketlens_samples.catalogue import Spec, apply, is_held_out, random_edits, random_spec
from pocketlens_samples.training_set import (
    Sizes,
    _legal_edit,
    edited_text,
    names,
    specifications,
    write_training_set,
)

SMALL = Sizes(pictures=24, captions=2, sketches=8, told=30, edits=2, triplets=12, questions=6, gallery=40)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_training_set(folder, SMALL, workers=1)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                held = tar.extractfile(member)
                assert held is not None
                found[f"{shard.name}/{member.name}"] = held.read()
    return found


def of(payload: dict) -> Spec:
    return Spec(**payload)


def test_the_files_are_those_that_anyones_set_has(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        "set.json", "pairs.jsonl", "told.jsonl", "sketches.jsonl", "triplets.jsonl", "questions.jsonl", "gallery.txt",
        "photos-0000.tar", "sketches-0000.tar", "triplets-0000.tar", "anchors-0000.tar", "gallery-0000.tar",
    }  # fmt: skip
    pairs = lines(written / "pairs.jsonl")
    plain, edited = ([one for one in pairs if ("edit" in one) == has] for has in (False, True))
    assert len(plain) == len(edited) == SMALL.pictures
    assert all(len(one["captions"]) == SMALL.captions for one in plain)
    assert [one["group"] for one in plain] == [n // 2 for n in range(SMALL.pictures)]
    assert len(lines(written / "sketches.jsonl")) == SMALL.sketches
    assert len(lines(written / "told.jsonl")) == SMALL.told
    assert all(len(one["edits"]) == SMALL.edits for one in lines(written / "told.jsonl"))
    assert len(lines(written / "triplets.jsonl")) == SMALL.triplets
    assert len((written / "gallery.txt").read_text().splitlines()) == SMALL.gallery


def test_every_name_is_in_its_shard_and_is_a_picture(written: Path) -> None:
    there = members(written)
    named = {one["image"] for one in lines(written / "pairs.jsonl")}
    named |= {one[key] for one in lines(written / "sketches.jsonl") for key in ("sketch", "photo")}
    named |= {one[key] for one in lines(written / "triplets.jsonl") for key in ("reference", "target")}
    for one in lines(written / "questions.jsonl"):
        named |= {one["reference"], *one["targets"]}
    named |= set((written / "gallery.txt").read_text().splitlines())
    assert named == set(there)
    for data in there.values():
        assert Image.open(io.BytesIO(data)).size[0] >= 64


def test_the_training_room_reads_it(written: Path) -> None:
    pytest.importorskip("torch")
    from pocketlens_training.sets.lines import read_pairs, read_sketches, read_told, read_triplets

    plain, edited = read_pairs(written / "pairs.jsonl")
    assert (len(plain), len(edited)) == (SMALL.pictures, SMALL.pictures)
    assert len(read_triplets(written / "triplets.jsonl")) == SMALL.triplets
    assert len(read_triplets(written / "questions.jsonl")) == len(lines(written / "questions.jsonl"))
    assert len(read_told(written / "told.jsonl")) == SMALL.told and len(read_sketches(written / "sketches.jsonl")) == 8


def test_nothing_held_out_is_in_it(written: Path) -> None:
    assert not any(is_held_out(spec) for spec in specifications(2000, 3))
    shown = [of(one["attributes"]) for one in lines(written / "pairs.jsonl") if "attributes" in one]
    assert len(shown) == SMALL.pictures and not any(is_held_out(spec) for spec in shown)


def test_no_text_speaks_of_what_is_held_out(monkeypatch) -> None:
    """Every specification that a caption, an edit, a triplet or a question of the set is made of."""
    spoken: list[Spec] = []
    for name in ("caption", "edit_phrase"):
        original = getattr(training_set, name)
        monkeypatch.setattr(
            training_set,
            name,
            lambda spec, *more, told=original, **named: spoken.append(spec) or told(spec, *more, **named),
        )
    rng = np.random.default_rng(0)
    for spec in specifications(400, 1):
        edited_text(spec, rng)
        training_set.plain_text(spec, rng)
    list(training_set._told(replace(SMALL, told=400)))
    assert len(spoken) > 1500
    assert not any(is_held_out(spec) for spec in spoken)
    for triplet in training_set.training_triplets(200, 3):
        assert not is_held_out(triplet.anchor.spec) and not is_held_out(triplet.target.spec)
    asked = training_set.training_questions(queries=50, gallery=400, seed=3)
    wanted = [asked.gallery[n].spec for relevant in asked.relevant for n in relevant]
    assert wanted and not any(is_held_out(spec) for spec in wanted)  # nothing is learned from the others


def test_neighbours_differ_and_stand_side_by_side() -> None:
    specs = specifications(60, 5)
    for first, second in zip(specs[::2], specs[1::2], strict=True):
        differ = sum(first.payload()[key] != second.payload()[key] for key in first.payload())
        assert 1 <= differ <= 3


def test_targets_of_questions_are_what_was_asked_for(written: Path) -> None:
    asked = training_set.training_questions(queries=SMALL.questions, gallery=SMALL.gallery, seed=SMALL.seed)
    gallery = (written / "gallery.txt").read_text().splitlines()
    there = members(written)
    said = lines(written / "questions.jsonl")
    assert len(said) == len(asked.queries)
    for line, query, relevant in zip(said, asked.queries, asked.relevant, strict=True):
        assert line["text"] == query.text and line["id"] == query.id
        assert line["targets"] == [gallery[n] for n in relevant]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(there[line["reference"]]))), query.anchor.pixels())
        for name, n in zip(line["targets"], relevant, strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(there[name]))), asked.gallery[n].pixels())


def test_sketches_are_of_the_photos_they_name(written: Path) -> None:
    assert [(one["sketch"][-7:], one["photo"][-7:]) for one in lines(written / "sketches.jsonl")] == [
        (f"{n:03d}.png", f"{n:03d}.png") for n in range(SMALL.sketches)
    ]


def test_the_same_seed_gives_the_same_pictures_and_texts(written: Path, tmp_path: Path) -> None:
    write_training_set(tmp_path / "again", SMALL, workers=2)
    again, before = contents(tmp_path / "again"), contents(written)
    assert {name: data for name, data in again.items() if not name.endswith(".tar")} == {
        name: data for name, data in before.items() if not name.endswith(".tar")
    }
    assert members(tmp_path / "again") == members(written)
    write_training_set(tmp_path / "other", replace(SMALL, seed=5), workers=1)
    assert members(tmp_path / "other") != members(written)


class Killed(Exception):
    pass


def test_killed_between_it_goes_on(written: Path, tmp_path: Path, monkeypatch) -> None:
    def dying(kind: str, _done: int, _all: int) -> None:
        if kind == "triplets":
            raise Killed

    with pytest.raises(Killed):
        write_training_set(tmp_path, SMALL, on_done=dying, workers=1)
    assert (tmp_path / "photos-0000.tar").exists() and not (tmp_path / "pairs.jsonl").exists()
    (tmp_path / "sketches-0000.tar").unlink()
    before = (tmp_path / "photos-0000.tar").stat().st_mtime_ns
    heard: list[tuple[str, int, int]] = []
    write_training_set(tmp_path, SMALL, on_done=lambda *told: heard.append(told), workers=1)
    assert (tmp_path / "photos-0000.tar").stat().st_mtime_ns == before  # not drawn again
    assert members(tmp_path) == members(written)
    assert (tmp_path / "pairs.jsonl").read_bytes() == (written / "pairs.jsonl").read_bytes()
    assert ("photos", SMALL.pictures, SMALL.pictures) in heard and heard[-1][0] == "gallery"
    assert not list(tmp_path.glob("*.part"))


def test_a_shard_is_whole_or_not_there(tmp_path: Path, monkeypatch) -> None:
    pictures = [training_set.Picture(f"{n}", spec, n) for n, spec in enumerate(specifications(4, 1))]
    drawn = 0

    def failing(image, *_args, **_kwargs) -> None:
        nonlocal drawn
        drawn += 1
        if drawn == 3:
            raise OSError(28, "No space left on device")
        original(image, *_args, **_kwargs)

    original = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(OSError, match="No space left"):
        training_set._draw_shard(tmp_path / "s.tar", pictures)
    assert not (tmp_path / "s.tar").exists()


def test_a_set_of_other_sizes_is_refused(written: Path) -> None:
    before = contents(written)
    for other in (replace(SMALL, pictures=26), replace(SMALL, seed=1)):
        with pytest.raises(ValueError, match=r"holds a set of other sizes or seed \(set\.json says which\)"):
            write_training_set(written, other, workers=1)
    assert contents(written) == before


def test_names_say_the_shard_and_the_place(monkeypatch) -> None:
    monkeypatch.setattr(training_set, "SHARD", 2)
    pictures = [training_set.Picture(f"{n}", spec, n) for n, spec in enumerate(specifications(4, 1))]
    assert names("photos", pictures[:3]) == [
        "photos-0000.tar/000.png",
        "photos-0000.tar/001.png",
        "photos-0001.tar/000.png",
    ]


def test_what_is_told_leads_to_no_held_out_combination() -> None:
    rng = np.random.default_rng(3)
    specs = [random_spec(rng, held_out=False) for _ in range(400)]
    assert not any(is_held_out(apply(spec, _legal_edit(spec, rng))) for spec in specs)
    assert any(is_held_out(apply(spec, random_edits(spec, 1, rng))) for spec in specs)  # or nothing was tested
