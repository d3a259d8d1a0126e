"""Indexing beside the bare tower, with real processes, upon the default bundle; and what tells a spoilt gallery."""

import io
import json
import shutil

import pytest
from pocketlens_bench.cli import app
from pocketlens_bench.indexing import WAYS, Sizes, compare, draw, measure
from pocketlens_bench.report.console_indexing import print_indexing, print_kills
from pocketlens_bench.world import silently
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Point, Search
from pocketlens_cloud.indexing.ingest import content_id, index
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import ServerFault
from rich.console import Console

SIZES = Sizes(pictures=24, width=64, height=48, rounds=1)


def test_each_way_is_measured_between_two_looks_at_the_bare_tower():
    result = measure(default_bundle(), batch=8, threads=1, ways=WAYS[1:], sizes=SIZES)
    (row,) = result["rows"]
    assert row["decode"] == "processes"
    assert row["bare_per_s"] == pytest.approx(sum(result["bare_per_s"]) / 2)
    assert row["share"] == pytest.approx(row["per_s"] / row["bare_per_s"])
    assert row["whole_s"] > 24 / row["per_s"] / 2
    assert {"decoding", "image tower", "writing", "settling"} <= row["stages_s"].keys()
    assert 40 < row["largest_decoder_mb"] < row["memory_mb"] < 2000, "of another process, or in another unit"
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = io.StringIO()
    print_indexing(Console(file=page, width=80), result)
    assert "processes" in page.getvalue() and "…" not in page.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp("kills")
    draw(home / "pictures", SIZES, 0, silently)
    index(home / "pictures", home / "g", default_bundle())
    return home


@pytest.mark.parametrize("harm", ["none", "missing", "foreign", "payload", "vector", "zeros", "unsettled"])
def test_a_spoilt_gallery_is_told_from_a_sound_one(whole, tmp_path, harm, monkeypatch):
    wanted = {content_id(file.read_bytes()): file.name for file in (whole / "pictures").iterdir()}
    shutil.copytree(whole / "g", tmp_path / "g")
    with EmbeddedGallery.open(tmp_path / "g") as gallery:
        (one,) = gallery.search(Search(vector=unit(gallery.dim), name="original", top=1, with_vectors=True))
        vectors = dict.fromkeys(gallery.vectors, unit(gallery.dim))
        if harm == "zeros":
            monkeypatch.setattr("pocketlens_cloud.gallery.embedded.check_vectors", lambda *_: None)
            vectors = {name: 0 * vector for name, vector in vectors.items()}
        if harm == "missing":
            gallery.delete([one.id])
        elif harm == "foreign":
            gallery.upsert([Point("a" * 32, vectors, {"file": "x.jpg"})])
        elif harm == "payload":
            gallery.set_payload(one.id, {})
        elif harm in ("vector", "zeros", "unsettled"):
            gallery.upsert([Point(one.id, vectors, one.payload)])
        if harm != "unsettled":
            gallery.settle()
    if harm == "none":
        compare(tmp_path / "g", whole / "g", wanted)
        return
    with pytest.raises(ServerFault, match={"missing": "missing", "unsettled": "not settled"}.get(harm, harm)):
        compare(tmp_path / "g", whole / "g", wanted)


def unit(dim: int):
    import numpy as np

    return np.eye(1, dim, dtype=np.float32)[0]


def test_kills_are_counted_on_the_terminal(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        app(["indexing", "--kill-for", "soon"])
    assert left.value.code == 2
    page = io.StringIO()
    told = {"kills": 3, "runs": 4, "finished": 1, "seconds": 9.0, "pictures": 5}
    print_kills(Console(file=page), {**told, "faults": {"missing": 0, "twice": 0}})
    assert page.getvalue().startswith("3 kills in 4 runs, 9 s")
    assert "none is missing, twice." in page.getvalue()
    print_kills(Console(file=page), {**told, "faults": {"missing": 2, "twice": 0}})
    assert "Of 5 pictures 2 missing." in page.getvalue()
