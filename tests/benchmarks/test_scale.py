"""Growing galleries: distractors that answer nothing, exact ranking as they join, the whole measurement small."""

from dataclasses import replace

import numpy as np
import pytest
from pocketlens_bench import distractors, scale
from pocketlens_bench.distractors import Real, encoded, pictures, synthetic
from pocketlens_bench.scale import TOP, Best, Sizes, judge, pieces
from pocketlens_samples.catalogue import Spec, random_spec
from pocketlens_wire.bundle import default_bundle


def specs(count, seed=0):
    rng = np.random.default_rng(seed)
    return [random_spec(rng, held_out=None) for _ in range(count)]


def test_no_distractor_shows_what_is_wanted():
    free = pictures(300, 0, set())
    wanted = {picture.spec for picture in free[::2]}
    assert not wanted & {picture.spec for picture in pictures(300, 0, wanted)}


def test_what_is_shown_is_encoded_once_and_in_pairs():
    (row,) = encoded(specs(1))
    attributes = len(Spec.__dataclass_fields__)
    assert row.sum() == attributes + attributes * (attributes - 1) / 2


def test_synthetic_vectors_lie_where_the_pictures_lie():
    """Features linear in the attributes plus noise: the synthetic ones must have the same mean and scatter."""
    shown = specs(3000)
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((encoded(shown[:1]).shape[1], 16)).astype(np.float32)
    features = encoded(shown) @ weights + 0.5 * rng.standard_normal((3000, 16)).astype(np.float32)
    made = np.concatenate(list(synthetic(Real(features, tuple(shown)), 3000, seed=0, wanted=set())))
    assert made.shape == (3000, 16)
    spread = features.std(axis=0)
    assert np.abs(made.mean(axis=0) - features.mean(axis=0)).max() < 0.15 * spread.max()
    assert np.abs(made.std(axis=0) / spread - 1).max() < 0.1


def test_synthetic_vectors_follow_the_seed_alone():
    of = Real(np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32), tuple(specs(100)))
    once, again, other = (next(synthetic(of, 50, seed=seed, wanted=set())) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_pieces_end_at_the_marks_and_keep_every_row():
    blocks = [np.arange(start, start + 4)[:, None] for start in (0, 4, 8)]
    cut = list(pieces(iter(blocks), [0, 3, 4, 9]))
    assert [len(piece) for piece in cut] == [3, 1, 4, 1, 3]
    assert np.concatenate(cut).ravel().tolist() == list(range(12))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_growing_gallery_is_judged_as_the_whole_gallery_at_once():
    rng = np.random.default_rng(0)
    queries, base, others = (unit(rng.standard_normal((n, 8))).astype(np.float32) for n in (5, 30, 200))
    found = type("Found", (), {"relevant": tuple((i, i + 5) for i in range(5))})
    each = scale.Group(found=found, rows={"row": ("original", queries)}, base={"original": base})
    best = Best(np.full((5, TOP), -np.inf, np.float32))
    for start in range(0, 200, 30):
        best.see(queries, others[start : start + 30])
    came = judge(each, "row", best.scores)
    ranks = np.argsort(-(queries @ np.concatenate([base, others]).T), axis=1)
    for i, row in enumerate(ranks[:, :TOP].tolist()):
        hits = [place in (i, i + 5) for place in row]
        assert came["R@1"][i] == 100 * hits[0]
        assert came["R@10"][i] == 100 * any(hits)
        precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(TOP) if hits[rank]]
        assert came["mAP@10"][i] == pytest.approx(100 * sum(precisions) / 2)


def test_a_distractor_with_an_equal_score_comes_before_the_answer():
    queries = base = np.eye(2, dtype=np.float32)[:1]
    found = type("Found", (), {"relevant": ((0,),)})
    each = scale.Group(found=found, rows={"row": ("original", queries)}, base={"original": base})
    assert judge(each, "row", np.array([[1.0]], np.float32))["R@1"][0] == 0
    assert judge(each, "row", np.array([[0.5]], np.float32))["R@1"][0] == 100


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    sizes = Sizes(galleries=(100, 250, 400), real=200, groups=2, queries=12, base=100, approximate=(250, 400))
    folder = tmp_path_factory.mktemp("scale")
    stages = []
    result = scale.measure(
        default_bundle(), folder, sizes=sizes, threads=2, on_progress=lambda *stage: stages.append(stage[0])
    )
    return result, folder, stages


def test_the_whole_measurement_says_what_is_real(small):
    result, _, stages = small
    assert [table["key"] for table in result["tables"]] == ["sum", "zero-shot", "tuned"]
    for table in result["tables"]:
        assert [(row["gallery"], row["real"]) for row in table["rows"]] == [(100, 100), (250, 250), (400, 300)]
        found = [row["R@1"]["value"] for row in table["rows"]]
        assert found == sorted(found, reverse=True)
    assert {row["gallery"] for row in result["approximate"]} == {250, 400}
    assert all(row["recall"] == 1 for row in result["approximate"])  # below the indexing threshold search is exact
    assert "synthetic" in result["distractors"]
    assert {"anchors", "distractor pictures", "exact search"} <= {stage.removeprefix("draw ") for stage in stages}


def test_features_made_once_are_read_again(small, monkeypatch):
    result, folder, _ = small
    monkeypatch.setattr(distractors, "_features", lambda *_: pytest.fail("made again"))
    sizes = Sizes(galleries=(100, 250, 400), real=200, groups=2, queries=12, base=100, approximate=())
    assert scale.measure(default_bundle(), folder, sizes=sizes, threads=2)["tables"] == result["tables"]
    with pytest.raises(pytest.fail.Exception):  # another number of pictures: another last file
        scale.measure(default_bundle(), folder, sizes=replace(sizes, real=150), threads=2)
