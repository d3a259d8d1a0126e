"""The search index of a gallery: its settings reach the engine, scores stay true cosines, wider walks find more."""

import json
from dataclasses import replace

import gallery_oracle as oracle
import numpy as np
import pytest
from pocketlens_cloud.gallery.embedded import EmbeddedGallery, IndexSettings
from pocketlens_cloud.gallery.filters import Filter, carrying
from pocketlens_cloud.gallery.interface import Point, Search, Walk

WIDE, MANY = 1024, 3000  # 12 MB a vector name, above the engine's indexing threshold of 10,000 KiB
DESCRIBED = 400  # of them have payload


@pytest.fixture(scope="module", params=[True, False], ids=["int8", "float32"])
def indexed(request, tmp_path_factory):
    """A gallery large enough for a search index: (path, gallery, its vectors, int8)."""
    path = tmp_path_factory.mktemp("indexed") / "g"
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((MANY, 32)) @ rng.standard_normal((32, WIDE))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    index = IndexSettings(m=12, ef_construct=40, int8=request.param)
    with EmbeddedGallery.create(path, dim=WIDE, vectors=["original"], gallery_space="gs-1", index=index) as gallery:
        described = [point.payload for point in oracle.pictures(DESCRIBED, seed=2)] + [{}] * (MANY - DESCRIBED)
        gallery.upsert(
            [
                Point(f"{i:032x}", {"original": row}, {"half": i % 2, **payload})
                for i, (row, payload) in enumerate(zip(rows, described, strict=True))
            ]
        )
        gallery.settle()
        yield path, gallery, rows, request.param


def test_index_settings_reach_the_engine(indexed):
    path, _, _, int8 = indexed
    config = json.loads((path / "shard" / "edge_config.json").read_text(encoding="utf-8"))
    assert (config["hnsw_config"]["m"], config["hnsw_config"]["ef_construct"]) == (12, 40)
    assert ("quantization_config" in config) is int8
    assert any((path / "shard").rglob("quantized*")) is int8  # the one-byte copies themselves


def test_conditions_let_pass_what_they_say_where_the_payload_is_indexed_for_reading(indexed):
    _, gallery, rows, _ = indexed
    points = [Point(point_id, {}, payload) for point_id, payload in gallery.payloads()]
    asked = [
        Search(vector=rows[0], name="original", top=MANY, exact=True, payload=(), where=Filter(all_of=(one,)))
        for one in oracle.CONDITIONS[::11]
    ]
    for search, hits in zip(asked, gallery.search_many(asked), strict=True):
        passing = {point.id for point in points if oracle.passes(point, search.where)}
        assert {hit.id for hit in hits} == passing, search.where


@pytest.mark.parametrize("where", [{}, {"half": 1}])
def test_scores_of_a_quantised_search_are_true_cosines_best_first(indexed, where):
    _, gallery, rows, _ = indexed
    queries = rows[:20] + 0.01 * rows[20:40]
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        hits = gallery.search(Search(vector=query, name="original", top=10, where=carrying(where)))
        cosines = rows @ query
        assert [hit.score for hit in hits] == pytest.approx([float(cosines[int(hit.id, 16)]) for hit in hits], abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_scores_left_coarse_differ_so_rescoring_is_what_makes_them_true(indexed):
    _, gallery, rows, int8 = indexed
    hits = gallery.search(Search(vector=rows[0], name="original", top=10, walk=Walk(rescore=False)))
    errors = [abs(hit.score - float(rows[int(hit.id, 16)] @ rows[0])) for hit in hits]
    assert (max(errors) > 1e-4) is int8


def test_a_wider_walk_finds_more_and_the_default_nearly_all(indexed):
    _, gallery, rows, _ = indexed

    def ids(row, **how) -> set[str]:
        return {hit.id for hit in gallery.search(Search(vector=row, name="original", top=10, **how))}

    exact = [ids(row, exact=True) for row in rows[:50]]

    def recall(**walk) -> float:
        found = [ids(row, walk=Walk(**walk)) for row in rows[:50]]
        return sum(len(a & b) for a, b in zip(exact, found, strict=True)) / 500

    assert recall(ef=10) < recall()
    assert recall() > 0.99


def test_pages_within_one_power_of_two_are_cut_from_one_walk(indexed):
    _, gallery, rows, _ = indexed
    for row in rows[:20]:
        asked = Search(vector=row, name="original", top=15, walk=Walk(ef=16), payload=())
        pages = gallery.search_many([replace(asked, top=5, skip=skip) for skip in (0, 5, 10)])
        assert [hit for page in pages for hit in page] == gallery.search(asked)


def test_additions_to_a_settled_gallery_are_found_before_and_after_settling(tmp_path):
    rows = np.random.default_rng(6).standard_normal((MANY, WIDE)).astype(np.float32)
    with EmbeddedGallery.create(tmp_path / "g", dim=WIDE, vectors=["original"], gallery_space="gs-1") as gallery:
        gallery.upsert([Point(f"{i:032x}", {"original": row}) for i, row in enumerate(rows[:-1])])
        gallery.settle()
        gallery.upsert([Point(f"{MANY:032x}", {"original": rows[-1]})])
        assert gallery.search(Search(vector=rows[-1], name="original", top=1))[0].id == f"{MANY:032x}"
        gallery.settle()
        assert gallery.search(Search(vector=rows[-1], name="original", top=1))[0].id == f"{MANY:032x}"
