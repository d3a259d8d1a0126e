"""The held-out sets as files, and what is said of them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pocketlens_bench import world
from pocketlens_samples.catalogue import ATTRIBUTES, random_edits, random_spec
from pocketlens_samples.language import edit_phrase
from pocketlens_samples.queries import ComposedQuery, Picture, retrieval_set, sketch_set


@pytest.mark.parametrize("held_out", [False, True])
def test_the_wording_is_recognised(held_out):
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(600):
        source = random_spec(rng, held_out=None)
        edits = random_edits(source, int(rng.integers(1, 3)), rng)
        text = edit_phrase(source, edits, rng, held_out_templates=held_out)
        query = ComposedQuery("q", Picture("a", source, 0), text, edits, source)
        assert world.has_held_out_wording(query) is held_out, text
        seen.add(edits[0].attribute)
    assert seen == set(ATTRIBUTES)


def test_pictures_become_jpeg_files():
    pictures, _ = retrieval_set(count=3)
    heard = []
    files = world.photographed(pictures, on_done=heard.append)
    assert heard == [1, 2, 3]
    for picture, file in zip(pictures, files, strict=True):
        with Image.open(BytesIO(file)) as opened:
            assert opened.format == "JPEG"
            difference = np.abs(np.asarray(opened, np.int16) - picture.pixels())
        assert difference.mean() < 6  # lossy, but the same picture


def test_drawing_in_processes_gives_the_same_files(monkeypatch):
    monkeypatch.setattr(world, "WORTH_A_POOL", 2)
    pictures, _ = retrieval_set(count=4)
    assert world.photographed(pictures, processes=2) == [world.jpeg(picture) for picture in pictures]


def test_words_for_sketches_say_what_a_sketch_cannot_show():
    found = sketch_set(sketches=20, gallery=60)
    words, relevant = world.words_for_sketches(found, seed=0)
    for sketch, text, indexes in zip(found.sketches, words, relevant, strict=True):
        assert indexes
        assert all(found.gallery[i].spec == sketch.spec for i in indexes)
        assert sketch.spec.colour in text or "violet" in text
    assert words == world.words_for_sketches(found, seed=0)[0]
