"""A short measurement of the service, with a real server and asker, upon the default bundle."""

import io
import json

import pytest
from pocketlens_bench.report.console_serving import print_serving
from pocketlens_bench.serving import SHORTEST, Sizes, Texts, measure
from pocketlens_cloud.compose import Composer
from pocketlens_wire.bundle import default_bundle
from rich.console import Console


def test_rows_have_every_length_equally_often():
    texts = Texts(Composer.load(default_bundle()), seed=0)
    lengths = [len(row.ids) for row in texts.rows(600)]
    assert set(lengths) == set(range(SHORTEST, texts.longest + 1))
    assert sum(lengths) / len(lengths) == pytest.approx(texts.mean_length, rel=0.1)
    assert len(set(texts.some(600))) > 590


def test_a_whole_small_run():
    result = measure(default_bundle(), sizes=Sizes(seconds=0.7, overload_s=0.7, unloaded_s=0.7, gallery=40))
    served, bare = result["rates"]
    assert 0 < served["per_s"] < 2 * bare["per_s"]
    assert result["unloaded"]["questions"] > 10
    alone = result["unloaded"]
    assert alone["whole"]["p50_ms"] > alone["tower_and_search"]["p50_ms"] > 0
    overload = result["overload"]
    assert overload["statuses"]["overload"]["OK"] > 10
    assert overload["accepted"]["p50_ms"] > 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = io.StringIO()
    print_serving(Console(file=page, width=90), result)
    assert "of capacity" in page.getvalue()
