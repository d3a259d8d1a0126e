"""The sets: exact ground truth, a clean split, and galleries that hold what they promise."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image
from pocketlens_samples import queries as queries_module
from pocketlens_samples.catalogue import ATTRIBUTES, Spec, apply, is_held_out
from pocketlens_samples.queries import (
    SHOWN_BY_SKETCH,
    ComposedSet,
    Picture,
    composed_set,
    retrieval_set,
    sketch_set,
    training_triplets,
    write_gallery,
)


@pytest.fixture(scope="module")
def composed() -> ComposedSet:
    return composed_set(queries=300, gallery=1600)


def differences(first: Spec, second: Spec) -> set[str]:
    return {f.name for f in fields(Spec) if getattr(first, f.name) != getattr(second, f.name)}


def test_the_composed_set_has_the_sizes_asked_for_and_unique_ids(composed):
    assert (len(composed.queries), len(composed.gallery), len(composed.relevant)) == (
        300,
        1600,
        300,
    )
    assert len({picture.id for picture in composed.gallery}) == 1600
    assert len({query.id for query in composed.queries}) == 300


def test_the_edits_lead_from_the_source_to_a_held_out_target(composed):
    for query in composed.queries:
        assert query.source == query.anchor.spec
        assert apply(query.source, query.edits) == query.target
        assert differences(query.source, query.target) == {e.attribute for e in query.edits}
        assert is_held_out(query.target)


def test_relevant_are_exactly_the_pictures_of_the_target(composed):
    for query, relevant in zip(composed.queries, composed.relevant, strict=True):
        expected = [i for i, p in enumerate(composed.gallery) if p.spec == query.target]
        assert list(relevant) == expected and expected


def test_the_gallery_holds_a_new_drawing_of_the_source_and_a_decoy(composed):
    for query in composed.queries:
        again = [p for p in composed.gallery if p.spec == query.source]
        assert again and all(p.seed != query.anchor.seed for p in again)
        near = [p for p in composed.gallery if len(differences(p.spec, query.source)) == 1]
        assert any(p.spec != query.target for p in near)


def test_targets_are_not_told_by_their_place_or_seed(composed):
    # A shuffled gallery: the planted pictures are not the first ones.
    places = [i for relevant in composed.relevant for i in relevant]
    assert 0.4 < np.mean(places) / 1600 < 0.6
    assert len({picture.seed for picture in composed.gallery}) > 1590


def test_a_quarter_of_the_queries_carries_two_edits(composed):
    share = np.mean([len(query.edits) == 2 for query in composed.queries])
    assert 0.17 < share < 0.33
    assert {len(query.edits) for query in composed.queries} == {1, 2}


def test_every_attribute_is_asked_for(composed):
    asked = {edit.attribute for query in composed.queries for edit in query.edits}
    assert asked == set(ATTRIBUTES)


def test_a_gallery_without_room_is_refused():
    with pytest.raises(ValueError, match=r"need \d+ gallery pictures.*room for 40"):
        composed_set(queries=20, gallery=40)


def test_retrieval_pictures_are_held_out_and_unique():
    pictures, captions = retrieval_set(count=200)
    assert len(pictures) == len(captions) == len({picture.spec for picture in pictures}) == 200
    assert all(is_held_out(picture.spec) for picture in pictures)


def test_more_retrieval_pictures_than_there_are_held_out_specifications_is_an_error():
    with pytest.raises(ValueError, match="held-out specifications"):
        retrieval_set(count=69_120)


def test_relevant_photos_agree_with_all_that_the_sketch_shows():
    sketches, gallery, relevant = sketch_set(sketches=40, gallery=300)
    assert all(sketch.kind == "sketch" and is_held_out(sketch.spec) for sketch in sketches)
    for sketch, answers in zip(sketches, relevant, strict=True):
        agreeing = [
            i for i, photo in enumerate(gallery) if differences(photo.spec, sketch.spec).isdisjoint(SHOWN_BY_SKETCH)
        ]
        assert list(answers) == agreeing and agreeing
        assert all(gallery[i].seed != sketch.seed for i in answers)


def test_a_sketch_is_drawn_as_a_sketch():
    photo = Picture("p", Spec("hat", "red", "plain", "large", 1, "navy", True), seed=5)
    sketch = Picture("s", photo.spec, seed=5, kind="sketch")
    assert np.median(sketch.pixels()) > 240 > np.median(photo.pixels())


def test_training_never_meets_the_held_out_part():
    triplets = training_triplets(2000, seed=3)
    assert len(triplets) == 2000
    for triplet in triplets:
        assert not is_held_out(triplet.anchor.spec) and not is_held_out(triplet.target.spec)
        assert apply(triplet.anchor.spec, triplet.edits) == triplet.target.spec
    assert training_triplets(50, seed=3) == triplets[:50]
    assert training_triplets(50, seed=4) != triplets[:50]


def test_a_written_gallery_can_be_read_back(tmp_path):
    gallery = composed_set(queries=5, gallery=30).gallery
    heard: list[int] = []
    write_gallery(tmp_path / "new", gallery, on_done=heard.append)
    assert heard == list(range(1, 31))
    text = (tmp_path / "new" / "payload.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["file"] for line in lines] == [f"{picture.id}.jpg" for picture in gallery]
    for line, picture in zip(lines, gallery, strict=True):
        assert Spec(**line["payload"]) == picture.spec
        with Image.open(tmp_path / "new" / line["file"]) as image:
            error = np.abs(np.asarray(image).astype(int) - picture.pixels()).mean()
        assert error < 12, picture


def test_processes_write_the_same_gallery(tmp_path, monkeypatch):
    gallery = composed_set(queries=5, gallery=30).gallery
    write_gallery(tmp_path / "alone", gallery, processes=1)
    monkeypatch.setattr(queries_module, "MANY_PICTURES", 10)
    write_gallery(tmp_path / "together", gallery, processes=2)
    alone, together = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "together")
    )
    assert len(alone) == 31 and alone == together
