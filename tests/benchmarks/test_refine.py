"""Refining measured upon the default bundle, on few pictures: what the service does is what is judged."""

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pocketlens_bench import refine
from pocketlens_bench.lab import Lab
from pocketlens_bench.questions import about_pictures, composed
from pocketlens_bench.refine import Asked, Sizes, measure, phrase
from pocketlens_bench.report.console_refine import print_refine
from pocketlens_bench.report.page import page_of
from pocketlens_bench.report.results import read_result
from pocketlens_bench.report.sections.refine import Refine
from pocketlens_bench.world import silently
from pocketlens_cloud.compose import Modifier
from pocketlens_samples.catalogue import Spec
from pocketlens_wire.bundle import default_bundle
from rich.console import Console

SIZES = Sizes(asked=12, gallery=150, queries=12, composed_gallery=150, sketches=8, sketch_gallery=60)


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab.open(default_bundle(), threads=1)


@pytest.fixture(scope="module")
def asked(lab) -> Asked:
    return Asked.drawn(lab, SIZES, silently)


@pytest.fixture(scope="module")
def result():
    return measure(default_bundle(), sizes=SIZES, threads=1)


def table(result, key: str):
    return next(each for each in result["tables"] if each["key"] == key)


@pytest.mark.parametrize("mode", ["zero-shot", "tuned"])
def test_what_is_judged_is_what_the_service_asks(lab, asked, mode):
    places = asked.having("background")
    vectors = refine._ways_away(lab, asked, places, "background", "colour", mode)
    for at, place in enumerate(places[:3]):
        spec = asked.specs[place]
        words = Modifier(phrase(spec, "colour", asked.others[place]["colour"]))
        for way, weight in (("-0.5", -0.5), ("-1", -1.0), ("-2", -2.0)):
            away = Modifier(phrase(spec, "background", spec.background), weight)
            wanted = lab.composer.compose(asked.tokens[place], [words, away], mode).vector
            np.testing.assert_allclose(vectors[way][at], wanted, atol=2e-5)
        wanted = lab.composer.compose(asked.tokens[place], words.words, mode).vector
        np.testing.assert_allclose(vectors["words alone"][at], wanted, atol=2e-5)


def test_shares_are_those_of_a_count_by_hand(lab, asked, result):
    words = [phrase(spec, "colour", other["colour"]) for spec, other in zip(asked.specs, asked.others, strict=True)]
    vectors = composed(lab, list(zip(asked.tokens, words, strict=True)))
    without = wished = 0
    for spec, other, vector in zip(asked.specs, asked.others, vectors, strict=True):
        cosines = asked.gallery["original"] @ vector
        for place in sorted(range(SIZES.gallery), key=lambda i, scores=cosines: -scores[i])[:10]:
            without += asked.holds["count"][place] != spec.count
            wished += asked.holds["colour"][place] == other["colour"]
    row = next(r for r in table(result, "away, zero-shot")["rows"] if r["name"] == "count: words alone")
    assert row["without it"]["value"] == pytest.approx(100 * without / 120)
    assert row["has the words"]["value"] == pytest.approx(100 * wished / 120)


def test_without_re_ranking_the_figures_are_those_of_the_tables_beside(lab, asked, result):
    questions, _ = about_pictures(lab, SIZES.world, silently)
    tokens = refine.sent(lab.tokens(refine.drawn(lab, questions.pictures, "", silently)))
    judged = questions.judged(composed(lab, list(zip(tokens, questions.words, strict=True))))
    without, default, paper = table(result, "re-ranking, composed, zero-shot")["rows"]
    for metric in ("R@1", "R@10", "mAP@10"):
        assert without[metric]["value"] == pytest.approx(judged[metric].mean())
    assert without["rerank_ms"] == 0 < default["rerank_ms"] < paper["rerank_ms"] * 100


def test_words_say_the_value_and_no_other():
    spec = Spec("mug", "red", "dotted", "small", 2, "grass", part=True)
    said = {name: phrase(spec, name, getattr(spec, name)) for name in refine.UNWANTED}
    assert said == {
        "background": "on grass", "colour": "in red", "count": "two of them", "size": "small", "part": "with handles",
        "pattern": "dotted",
    }  # fmt: skip
    assert phrase(spec, "part", value=False) == "without handles"


def test_it_says_where_it_loses(result, tmp_path):
    rigged = copy.deepcopy(result)
    for each in rigged["tables"]:
        for row in each["differences"]:
            good = {"value": 5.0, "low": 4.0, "high": 6.0}
            row.update({name: good for name, value in row.items() if isinstance(value, dict)})

    def lost() -> list[str]:
        file = tmp_path / "refine.json"
        file.write_text(json.dumps(rigged))
        return [said for said in Refine().lost(read_result(file)) if "more than joined text" not in said]

    assert lost() == []
    bad = {"value": -5.0, "low": -6.0, "high": -4.0}
    for key, metric, said in (
        ("away, tuned", "without it", "does not lead away"),
        ("away, tuned", "category", "loses the picture's category"),
        ("weights, zero-shot", "has the words", "costs what the first words ask for"),
        ("re-ranking, sketch, tuned", "mAP@10", "makes it worse, mAP@10 -5.0"),
    ):
        before = len(lost())
        for row in table(rigged, key)["differences"]:
            if row.get("way", "-1") in ("-1", "1.5"):
                row[metric] = bad
        now = lost()
        assert len(now) > before
        assert said in " ".join(now)


ROOT = Path(__file__).parents[2]
WAYS = {
    "words alone": "words alone", 'the text ", not on grass" joined to them': "joined as text",
    "-0.5, beside the picture (PDV)": "-0.5, PDV", "-1, beside the picture (PDV)": "-1, PDV",
    "**-0.5**": "-0.5", "**-1**": "-1", "**-2**": "-2",
}  # fmt: skip


def test_the_documents_quote_what_was_measured():
    kept = json.loads((ROOT / "benchmarks" / "results" / "sample-refine.json").read_text())
    about, seen = "", 0
    for line in (ROOT / "docs" / "converse.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")] if line.startswith("|") else []
        cells = ["", *cells] if len(cells) == 4 and cells[0] in WAYS else cells
        if len(cells) != 5 or cells[1] not in WAYS:
            continue
        about = {"": about, "ground": "background"}.get(cells[0], cells[0])
        for mode, place in (("zero-shot", 0), ("tuned", 1)):
            rows = {row["name"]: row for row in table(kept, f"away, {mode}")["rows"]}
            row = rows[f"{about}: {WAYS[cells[1]]}"]
            quoted = [int(cell.split(" / ")[place]) for cell in cells[2:]]
            assert quoted == [round(row[name]["value"]) for name in refine.METRICS], line
            seen += 1
    assert seen == 40  # rows of the table, in two modes
    text = (ROOT / "docs" / "gallery.md").read_text()
    for key in ("composed, tuned", "composed, zero-shot", "sketch, tuned", "sketch, zero-shot"):
        for row in table(kept, f"re-ranking, {key}")["differences"]:
            figure = row["mAP@10"]
            digits = 2 if row["of"] == "default" else 1
            wanted = "{value:.{d}f} ({low:.{d}f} to {high:.{d}f})".format(d=digits, **figure)
            assert wanted in text


def test_the_result_is_json_and_readable(result, tmp_path):
    file = tmp_path / "refine.json"
    file.write_text(json.dumps(result, allow_nan=False))
    text = page_of([read_result(file)], tmp_path / "results.md").text
    assert "## Refining" in text
    assert "| background: -1, PDV |" in text
    shown = io.StringIO()
    print_refine(Console(file=shown, width=90), result)
    assert "Where it loses:" in shown.getvalue()
    assert "…" not in shown.getvalue()
