"""What is shown of an ablation and of a distillation's pace: page, comparison, console."""

import json
from copy import deepcopy
from io import StringIO

import pytest
from pocketlens_bench.report.compare import compared
from pocketlens_bench.report.console_ablation import print_ablation
from pocketlens_bench.report.console_distil import print_distil
from pocketlens_bench.report.page import page_of
from pocketlens_bench.report.results import BadResult, read_result
from pocketlens_bench.report.sections.ablation import _ends, base_of, rows_of
from rich.console import Console


def saved(tmp_path, made, name="one"):
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(made))
    return read_result(file)


def page(tmp_path, made):
    return page_of([saved(tmp_path, made)], tmp_path / "page.md").text


def lost(text):
    return text.partition("**Where it loses**")[2].partition("**What it does not say**")[0]


# --- the page


def test_losing_rows_are_named_and_no_others(tmp_path, ablation):
    said = lost(page(tmp_path, ablation()))
    assert "`tokens: k 2` beats the base beyond its interval: composed R@1 +5.1 (+4.9 to +5.3)" in said
    assert "`gated to union` is below its control `gated to original`: composed R@1 -0.8 (-1.6 to -0.1)" in said
    assert "`plain to union` is below the base, which has no heads" not in said  # its mean is that of the base
    assert "`pdv` (free) is at or above the base student: composed R@1 +0.0 (+0.0 to +0.0)" in said
    for name in ("k 8", "Pic2Word", "words only"):
        assert name not in said
    assert "`gated to original`" not in said.replace("control `gated to original`", "")


def test_one_seed_proves_nothing(tmp_path, ablation):
    made = ablation()
    for row in made["tables"][0]["rows"]:
        row["seeds"] = 1
        for over in ("over_base", "over_control"):
            if over in row:
                row[over] = {"seeds": 1} | {
                    key: dict.fromkeys(("value", "low", "high"), figure["value"])
                    for key, figure in row[over].items()
                    if key != "seeds"
                }
    text = page(tmp_path, made)
    assert "beats the base" not in text
    assert "**+" not in text and "**-" not in text
    assert "(one seed)" in lost(text)


def test_base_and_controls_stand_in_the_table_and_differences_beyond_noise_are_bold(tmp_path, ablation):
    text = page(tmp_path, ablation())
    targets = text.partition("**targets**")[2].partition("**free**")[0].splitlines()
    names = [line.split("|")[1].strip() for line in targets if line.startswith("| ")]
    assert names[:6] == ["cell", "---", "base", "gated to original", "gated to union", "plain to union"]
    assert "| gated to union | gated to original | **-0.8 ±0.7** |" in text
    assert "| plain to union | base | +0.0 ±2.2 |" in text
    assert "| k 2 | **+5.1 ±0.2** |" in text
    assert "| k 8 | +2.3 ±16.5 |" in text
    tokens = text.partition("**tokens**")[2].partition("**baselines**")[0]
    assert "pale sketch R@10" in tokens and "pale sketch R@10" not in "".join(targets)
    assert "| pdv | 0.9, 0.9, 1.1 | 81.0 ±2.5 |" in text


def test_what_was_left_out_stands_among_the_cautions(tmp_path, ablation):
    cautions = page(tmp_path, ablation(["tokens / k 8, seed 2: RuntimeError"])).partition("**What it does not say**")[2]
    assert "- Made up." in cautions
    assert "- Left out: tokens / k 8, seed 2: RuntimeError." in cautions


def test_a_result_without_its_base_is_refused(tmp_path, ablation):
    made = ablation()
    made["tables"][0]["rows"] = made["tables"][0]["rows"][1:]
    with pytest.raises(BadResult, match="no row of the group `base`"):
        page(tmp_path, made)


def test_what_is_far_off_does_not_squeeze_the_rest(tmp_path, ablation):
    (each,) = saved(tmp_path, ablation()).data["tables"].each()
    rows = rows_of(each)
    left, right = _ends(rows, "composed R@10", base_of(each, rows).figure("composed R@10"))
    assert 40 < left < 60  # Pic2Word and all of k 8's width, not the 5 of words only
    assert 98 < right < 112


def test_a_pace_below_85_percent_is_named_as_lost(tmp_path, distil):
    text = page(tmp_path, distil())
    assert "`whole, with composition distillation` goes at 70% of bare" in lost(text)
    assert "`whole` goes" not in text
    assert "Nothing that was compared" in page(tmp_path, distil(0.86))
    assert "| bare | 0.100 | 640 | 100% |" in text
    assert "| weights that stay: the large image and text towers | 600 | MB |" in text


# --- compare


def test_rows_of_one_name_in_two_groups_are_told_apart(tmp_path, ablation):
    old = ablation()
    rows = old["tables"][0]["rows"]
    rows.append({**deepcopy(rows[1]), "group": "loop"})
    new = deepcopy(old)
    for metric in ("composed R@10", "composed mAP@10"):
        new["tables"][0]["rows"][1][metric] = {"value": 99.0, "low": 98.0, "high": 100.0}
    new["tables"][0]["rows"].reverse()
    found = compared(
        saved(tmp_path, old, "a"), saved(tmp_path, new, "b"), everything=False, scatter=0.1, seed=0
    )  # fmt: skip
    assert [row["name"] for row in found["rows"]] == [
        "ablation / tokens, k 2 / composed R@10", "ablation / tokens, k 2 / composed mAP@10",
    ]  # fmt: skip
    assert found["counts"]["better"] == 2
    assert found["only_old"] == found["only_new"] == []


def test_a_row_keeps_its_name_when_its_namesake_is_gone(tmp_path, ablation):
    old = ablation()
    rows = old["tables"][0]["rows"]
    rows.append({**deepcopy(rows[1]), "group": "loop"})
    a, b = saved(tmp_path, old, "a"), saved(tmp_path, ablation(), "b")
    found = compared(a, b, everything=True, scatter=0.1, seed=0)
    assert found["only_new"] == []
    assert {name.rpartition(" / ")[0] for name in found["only_old"]} == {"ablation / loop, k 2"}


def test_a_single_seed_is_warned_of(tmp_path, ablation):
    made = ablation()
    made["tables"][0]["rows"][1]["seeds"] = 1
    a, b = saved(tmp_path, ablation(), "a"), saved(tmp_path, made, "b")
    found = compared(a, b, everything=True, scatter=0.1, seed=0)
    assert any("the new one have a single seed" in said for said in found["warnings"])
    assert not any("the old one have" in said for said in found["warnings"])


def test_paces_are_compared_by_ratio(tmp_path, distil):
    new = distil()
    new["tables"][0]["rows"][1].update(seconds_per_step=0.2, pictures_per_second=320.0, of_bare=0.5)
    new["tables"][0]["rows"][2]["of_bare"] = 0.72
    new["needs"]["frozen_mb"] = 500.0
    a, b = saved(tmp_path, distil(), "a"), saved(tmp_path, new, "b")
    rows = compared(a, b, everything=False, scatter=0.1, seed=0)["rows"]
    assert {row["name"]: row["verdict"] for row in rows} == {
        "distill / whole / seconds_per_step": "worse",
        "distill / whole / pictures_per_second": "worse",
        "distill / whole / of_bare": "worse",
        "needs / frozen_mb": "better",
    }


# --- the console


def printed(show, made, width):
    console = Console(width=width, file=StringIO())
    show(console, made)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_console(width, ablation, distil):
    made = ablation(["tokens / k 8, seed 2: RuntimeError, see error.txt in tokens-k_8-s2"])
    longest = deepcopy(made["tables"][0]["rows"][1])
    longest.update(group="sketches", name="drawn, teacher's own vector")
    longest["over_base"]["composed mAP@10"] = {"value": -12.3, "low": -25.0, "high": 0.4}
    made["tables"][0]["rows"].insert(2, longest)
    lines = printed(print_ablation, made, width)
    assert max(map(len, lines)) <= width
    assert any(line.startswith("  drawn, teacher's own vector ") and "-12.3 ±12.7" in line for line in lines)
    assert any("pale" in line for line in lines) == (width == 120)
    assert max(map(len, printed(print_distil, distil(), width))) <= width


def test_the_console_says_number_control_and_missing_seeds(ablation):
    made = ablation()
    made["tables"][0]["rows"][1]["seeds"] = 2
    text = "\n".join(printed(print_ablation, made, 80))
    assert "pdv (0.9 to 1.1)" in text
    assert "k 2, 2 of 3 seeds" in text
    controls = text.partition("Targets over their controls")[2]
    assert "gated to union  gated to original" in controls and "-0.8 ±0.7" in controls
