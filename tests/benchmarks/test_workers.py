"""A short measurement, of one worker since starting takes long: a real server and asker, searches answered by the
stand-in. Several are tests/cloud/test_workers.py's."""

import io
import json
import os
import sys

import pytest
from pocketlens_bench.report.console_workers import print_workers
from pocketlens_bench.workers import Place, Sizes, measure, split_of
from pocketlens_samples.queries import composed_set, write_gallery
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.manifest import read_cloud
from rich.console import Console

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shares a port's connections out")


def test_a_whole_small_run(tmp_path):
    pytest.importorskip("qdrant_client", reason="pip install 'pocketlens[qdrant]'")
    from pocketlens_cloud.gallery import versions
    from pocketlens_cloud.gallery.collections import CollectionVersions
    from pocketlens_cloud.indexing.building import build
    from qdrant.servers import SERVERS

    write_gallery(tmp_path / "pictures", composed_set(queries=2, gallery=20).gallery, processes=1)
    with SERVERS["fake"](tmp_path) as running:
        shop = CollectionVersions(running.server, running.name)
        name, _ = build(shop, tmp_path / "pictures", default_bundle())
        versions.promote(shop, name, read_cloud(default_bundle()).gallery_space, unverified=True)
        at = running.server.address
        place = Place(url=at.url, grpc_port=at.grpc_port, name=running.name)
        result = measure(default_bundle(), place, counts=(1,), sizes=Sizes(seconds=0.7, rounds=1))
    (row,) = result["rows"]
    (turn,) = row["turns"]
    assert row["workers"] == 1 and turn["per_s"] == row["per_s"] > 0
    assert turn["processors_busy"] > 0 and turn["memory_mb"] > 100
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = io.StringIO()
    print_workers(Console(file=page, width=110), result)
    assert "processors busy" in page.getvalue()


def test_server_gallery_and_asker_have_processors_of_their_own_where_there_are_enough():
    split, beside = split_of(1)
    if len(os.sched_getaffinity(0)) >= 3:
        assert len({*split.measured, *beside, *split.asker}) == 3
    assert len(split.measured) == 1
