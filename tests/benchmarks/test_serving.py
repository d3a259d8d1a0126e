"""A short measurement of the service, with a real server and asker, upon the default bundle."""

import io
import json

import pytest
from pocketlens_bench.load import Outcome
from pocketlens_bench.report.console_serving import print_serving
from pocketlens_bench.serving import SHORTEST, Sizes, Texts, measure, on_time
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
    assert alone["beyond"]["p50_ms"] > alone["in_service"]["p50_ms"] > 0
    overload = result["overload"]
    assert overload["statuses"]["overload"]["OK"] > 10
    assert overload["accepted"]["p50_ms"] > 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = io.StringIO()
    print_serving(Console(file=page, width=90), result)
    assert "of capacity" in page.getvalue()


def test_seconds_in_which_the_asker_was_late_are_told_apart():
    def second(at: int, *, lag_s: float, took_s: float, status: str = "OK") -> list[Outcome]:
        return [Outcome(at + part / 100, lag_s, took_s, status) for part in range(100)]

    calm = second(0, lag_s=0.001, took_s=0.1)
    flood = [
        *second(0, lag_s=0.001, took_s=0.2),
        *second(1, lag_s=0.5, took_s=9.0),
        *second(2, lag_s=0.009, took_s=0.005, status="RESOURCE_EXHAUSTED"),
        *second(3, lag_s=0.011, took_s=7.0, status="RESOURCE_EXHAUSTED"),
    ]
    found = on_time(calm, flood)
    assert found["share"] == 0.5
    assert [found[key]["p99_ms"] for key in ("calm", "accepted", "turned_away")] == pytest.approx([100, 200, 5])
    nobody = on_time([], second(0, lag_s=0.5, took_s=9.0))
    assert nobody == {"share": 0.0, "calm": None, "accepted": None, "turned_away": None}
