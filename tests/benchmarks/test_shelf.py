"""Ranking in a real gallery, with toy vectors."""

from types import SimpleNamespace

import numpy as np
import pytest
from pocketlens_bench.accuracy import summed
from pocketlens_bench.lab import sent
from pocketlens_bench.shelf import Row, nearest, shelved
from pocketlens_wire.tokens import Encoding

DIM = 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return {name: unit(rng.normal(size=(50, DIM))) for name in ("original", "union")}


@pytest.fixture
def lab(vectors):
    """As far as a shelf needs one: two batches of ready vectors."""
    batches = [{name: rows[part] for name, rows in vectors.items()} for part in (slice(0, 30), slice(30, 50))]
    manifest = SimpleNamespace(dim=DIM, targets=["original", "union"], gallery_space="gs-toy")
    return SimpleNamespace(composer=SimpleNamespace(manifest=manifest), images=lambda files: iter(batches))


def test_every_picture_finds_itself_in_its_own_vector(lab, vectors, tmp_path):
    relevant = [(i,) for i in range(50)]
    with shelved(lab, [b""] * 50, tmp_path / "gallery", lambda done: None) as shelf:
        for name in ("original", "union"):
            row = Row(name="itself", vectors=vectors[name], against=name)
            ranked = shelf.ranked(row, relevant)
            assert [hits[0] for hits in ranked] == list(range(50))
            assert shelf.first_ten_agree(row, ranked) == 1.0
            crossed = shelf.ranked(Row(name="crossed", vectors=vectors["union"], against="original"), relevant)
            assert np.mean([hits[0] == i for i, hits in enumerate(crossed)]) < 0.2  # the mistake this test exists for
        reversed_hits = [hits[::-1] for hits in ranked]
        assert shelf.first_ten_agree(row, reversed_hits) < 0.1


def test_nearest_is_the_plain_order(vectors):
    gallery = vectors["original"]
    (hits,) = nearest(gallery, gallery[:1])
    cosines = gallery @ gallery[0]
    assert [i for i, _ in hits] == np.argsort(-cosines)[:20].tolist()
    assert len(nearest(gallery[:3], gallery[:1])[0]) == 3


def test_the_sum_has_unit_length_and_two_ends(vectors):
    image, words = vectors["original"], vectors["union"]
    assert np.linalg.norm(summed(image, words, 0.7), axis=1) == pytest.approx(1)
    np.testing.assert_allclose(summed(image, words, 0.0), image, atol=1e-6)
    np.testing.assert_allclose(summed(image, words, 1e4), words, atol=1e-3)


def test_tokens_go_through_the_wire_codec():
    tokens = [np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float32)]
    np.testing.assert_array_equal(sent(tokens, Encoding.F32), tokens)
    off = {encoding: np.abs(sent(tokens, encoding)[0] - tokens[0]).max() for encoding in Encoding}
    assert 0 < off[Encoding.F16] < off[Encoding.INT8] < off[Encoding.INT4] < 0.4
