"""The trade-off of approximate search: its vectors, its truth, and a whole small run that resumes."""

import numpy as np
import pytest
from pocketlens_bench import tradeoff
from pocketlens_bench.tradeoff import TOP, Sizes, drawn, exact_hits, measure, walked
from pocketlens_cloud.gallery.embedded import INDEX, IndexSettings
from pocketlens_cloud.gallery.interface import Walk

SMALL = Sizes(vectors=4_500, width=32, inner=8, queries=20)


def every(what, sizes=SMALL, seed=0):
    return np.concatenate(list(drawn(sizes, seed, what)))


def test_vectors_are_unit_and_lie_near_the_inner_dimensions():
    vectors = every("gallery")
    assert vectors.shape == (4_500, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    spectrum = np.linalg.svd(vectors, compute_uv=False)
    assert spectrum[7] > 10 * spectrum[8]
    assert not np.isin(every("queries")[:, 0], vectors[:, 0]).any()


def test_exact_hits_are_those_of_one_matrix_product(tmp_path):
    hits = exact_hits(tmp_path, SMALL, 0, lambda *_: None)
    nearest = np.argsort(-(every("queries") @ every("gallery").T), axis=1)[:, :TOP]
    assert [set(row) for row in hits.tolist()] == [set(row) for row in nearest.tolist()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tradeoff")
    builds = (IndexSettings(m=16, ef_construct=100, int8=False), INDEX)
    return folder, builds, measure(folder, sizes=SMALL, builds=builds)


def test_every_way_of_walking_has_its_row_and_the_default_is_marked(run):
    _, _, result = run
    ways = {(row["quantised"], row["walked"]) for row in result["rows"]}
    assert (False, "float32") in ways and (True, "int8, rescored x2") in ways
    assert not any(how.startswith("int8") for quantised, how in ways if not quantised)
    assert result["chosen"]["walked"] == walked(Walk())
    assert all(0 <= row["recall"] <= 1 and row["p50_ms"] <= row["p95_ms"] for row in result["rows"])


def test_what_is_built_is_not_built_again(run, monkeypatch):
    folder, builds, result = run
    home = next(folder.iterdir())
    made = {file: file.stat().st_mtime_ns for file in home.glob("*.json")}
    again = measure(folder, sizes=SMALL, builds=builds)
    assert {file: file.stat().st_mtime_ns for file in home.glob("*.json")} == made
    assert [row["recall"] for row in again["rows"]] == [row["recall"] for row in result["rows"]]


def test_a_build_that_was_killed_is_begun_anew(tmp_path):
    home = tmp_path / "home"
    (home / "m32-ef400-int8").mkdir(parents=True)
    (home / "m32-ef400-int8" / "torn").write_text("half a gallery")
    built = tradeoff.build(home, INDEX, SMALL, 0)
    assert built["disk_bytes"] > 0
    assert not (home / "m32-ef400-int8" / "torn").exists()


def test_ways_that_miss_what_is_wanted_are_named():
    row = {"m": 16, "ef_construct": 100, "walked": "float32", "recall": 0.9, "p50_ms": 2.0}
    good = {**row, "m": 32, "recall": 0.99}
    slow = {**good, "p50_ms": 20.0}
    assert list(tradeoff.losses([row, good, slow])) == [
        "m 16, ef_construct 100, float32: no ef reaches 0.98 within 6 ms; at best 0.900 at 2.0 ms"
    ]
