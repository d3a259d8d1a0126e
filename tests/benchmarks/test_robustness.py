"""A tiny robustness run through the real parts: two corruptions."""

import io
import json
from dataclasses import replace

import pytest
from pocketlens_bench.corruptions import CORRUPTIONS
from pocketlens_bench.report.console_tables import print_robustness
from pocketlens_bench.robustness import measure
from pocketlens_bench.world import Sizes
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import BadBundle
from rich.console import Console

TINY = Sizes(queries=16, gallery=100, sketches=16, sketch_gallery=100, validation=10, validation_gallery=60)
(JPEG,) = (corruption for corruption in CORRUPTIONS if corruption.is_jpeg)
NOTHING = replace(JPEG, name="nothing", levels=(92,) * 5)  # files of the usual quality: as clean as clean
COVERED = replace(CORRUPTIONS[-1], levels=(0.2, 0.4, 0.6, 0.8, 1.0))


@pytest.fixture(scope="module")
def result():
    return measure(default_bundle(), sizes=TINY, corruptions=(NOTHING, COVERED), threads=1)


def test_student_and_large_tower_stand_beside_each_other(result):
    composed, sketch = result["tables"]
    assert [row["name"] for row in composed["rows"]] == ["zero-shot", "tuned", "symmetric", "sum, tuned"]
    assert [row["name"] for row in sketch["rows"]] == ["zero-shot", "tuned", "symmetric", "large image tower"]
    assert [(row["of"], row["over"]) for row in composed["differences"]] == [
        ("zero-shot", "symmetric"), ("zero-shot", "sum, tuned"), ("tuned", "zero-shot"),
    ]  # fmt: skip
    for row in (*composed["rows"], *sketch["rows"]):
        assert [corruption["name"] for corruption in row["corruptions"]] == ["nothing", "occlusion"]
        assert [cell["severity"] for cell in row["corruptions"][0]["severities"]] == [1, 2, 3, 4, 5]


def test_what_does_nothing_loses_nothing_and_what_covers_all_loses_most(result):
    for table in result["tables"]:
        for row in table["rows"]:
            nothing, covered = row["corruptions"]
            assert nothing["drop"]["R@10"] == {"value": 0, "low": 0, "high": 0}
            assert nothing["mAP@10"] == row["clean"]["mAP@10"]
            assert covered["severities"][-1]["R@10"]["value"] < 60
    student = result["tables"][0]["rows"][0]
    assert student["clean"]["R@10"]["value"] > 90
    assert student["corruptions"][1]["drop"]["R@10"]["low"] > 0


def test_means_and_drops_add_up(result):
    for table in result["tables"]:
        for row in table["rows"]:
            for metric in ("R@10", "mAP@10"):
                cells = [cell[metric]["value"] for each in row["corruptions"] for cell in each["severities"]]
                mean = row["corrupted"][metric]["value"]
                assert mean == pytest.approx(sum(cells) / len(cells))
                assert row["corrupted"]["drop"][metric]["value"] == pytest.approx(row["clean"][metric]["value"] - mean)
        rows = {row["name"]: row for row in table["rows"]}
        for row in table["differences"]:
            lost = [rows[name]["corrupted"]["drop"]["R@10"]["value"] for name in (row["of"], row["over"])]
            assert row["more_lost"]["R@10"]["value"] == pytest.approx(lost[0] - lost[1])


def test_the_result_says_what_was_done_and_what_was_lost(result):
    assert result["corruptions"][1]["levels"] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert result["conditions"]["seeds"]["corruptions"] == 0
    assert any("occlusion costs most" in said for said in result["lost"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = io.StringIO()
    print_robustness(Console(file=page, width=80), result)
    shown = page.getvalue()
    assert "large image tower" in shown
    assert "…" not in shown
    for said in result["lost"]:
        assert said in shown


def test_a_bundle_without_baselines_is_refused(tmp_path):
    for half in ("edge", "cloud"):
        (tmp_path / half).symlink_to(default_bundle() / half)
    with pytest.raises(BadBundle, match="no baselines folder"):
        measure(tmp_path, sizes=TINY)
