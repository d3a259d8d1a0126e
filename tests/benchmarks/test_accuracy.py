"""A tiny accuracy run through the real parts, upon the default bundle."""

import io
import json
import shutil

import pytest
from pocketlens_bench.accuracy import IN_INT8, METRICS, measure
from pocketlens_bench.baselines import Baselines
from pocketlens_bench.lab import Lab
from pocketlens_bench.report.console import print_accuracy
from pocketlens_bench.world import Sizes
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import BadBundle
from rich.console import Console

TINY = Sizes(
    queries=20, gallery=200, retrieval=60, sketches=20, sketch_gallery=100, validation=10, validation_gallery=60
)
COMPOSED = [
    "words only",
    "picture only",
    "sum, untuned",
    "sum, tuned",
    "symmetric",
    "zero-shot",
    "tuned",
    "tuned control",
    "ceiling",
    "zero-shot, f32",
    "zero-shot, f16",
    "zero-shot, int4",
    "zero-shot, int8 encoder",
    "tuned, int8 encoder",
]


@pytest.fixture(scope="module")
def heard():
    return []


@pytest.fixture(scope="module")
def result(heard):
    return measure(default_bundle(), sizes=TINY, threads=1, on_progress=lambda *said: heard.append(said))


def test_every_row_of_the_issue_is_there(result):
    tables = {table["key"]: table for table in result["tables"]}
    assert [row["name"] for row in tables["composed"]["rows"]] == COMPOSED
    assert list(tables) == ["composed", "text_to_image", "sketch", "sketch_and_words"]
    assert (tables["composed"]["queries"], tables["composed"]["gallery"]) == (20, 200)
    assert result["left_out"] == []
    against = {row["name"]: row["against"] for row in tables["composed"]["rows"]}
    assert [name for name, vector in against.items() if vector == "union"] == ["tuned", "tuned, int8 encoder"]


def test_the_int8_encoder_stands_beside_fp32(result):
    """In every table with pictures, and in pairs: its own tokens, not those of fp32 again."""
    for table in result["tables"]:
        if table["key"] == "text_to_image":
            continue
        assert [(one["of"], one["over"]) for one in table["differences"]][-2:] == list(IN_INT8)
    lab = Lab.open(default_bundle(), threads=1)
    assert lab.int8 is not None and lab.int8.form == "int8" and lab.encoder.form == "fp32"


def test_figures_are_percent_with_intervals_around_them(result):
    for table in result["tables"]:
        for row in table["rows"]:
            assert row["same_first_ten_as_exact"] >= 90
            for name in METRICS:
                figure = row[name]
                assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 100
            assert row["R@1"]["value"] <= row["R@5"]["value"] <= row["R@10"]["value"]


def test_groups_divide_the_queries(result):
    groups = result["tables"][0]["rows"][0]["groups"]
    for kind in ("wording", "edits"):
        assert sum(group["queries"] for group in groups[kind].values()) == 20
    one, two = (groups["edits"][name]["queries"] for name in ("one", "two"))
    assert sum(group["queries"] for group in groups["attribute"].values()) == one + 2 * two


def test_the_card_says_under_what_it_was_measured(result, heard):
    card = result["conditions"]
    assert card["bundle"]["encoder"].startswith("enc-")
    assert card["seeds"]["validation"] not in (card["seeds"]["composed"], 1)
    assert card["sizes"]["queries"] == 20
    assert card["tuned_weight"]["weight"] in card["tuned_weight"]["tried"]
    assert "not zero-shot composed retrieval" in result["honesty"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert all(0 <= done <= total for _, done, total in heard)


def test_the_table_shows_rows_differences_and_honesty(result):
    page = io.StringIO()
    print_accuracy(Console(file=page, width=80), result)
    shown = page.getvalue()
    for name in COMPOSED:
        assert f"│ {name} " in shown
    best = result["tables"][0]["rows"][0]["R@10"]
    assert f"{best['value']:.1f} ±{(best['high'] - best['low']) / 2:.1f}" in shown
    assert "…" not in shown  # nothing is cropped, not even where there is no terminal
    assert "paired differences" in shown
    assert result["honesty"] in shown


def test_baselines_are_proved_before_they_are_used(tmp_path):
    assert Baselines.load(tmp_path) is None
    shutil.copytree(default_bundle() / "baselines", tmp_path / "baselines")
    assert Baselines.load(tmp_path) is not None
    flipped = tmp_path / "baselines" / "symmetric.onnx"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    with pytest.raises(BadBundle, match="symmetric"):
        Baselines.load(tmp_path)
    (tmp_path / "baselines" / "baselines.json").write_text('{"format": 1}')
    with pytest.raises(BadBundle, match="not a description"):
        Baselines.load(tmp_path)
