"""Two results side by side: what counts as better, what as noise, what is refused and what is warned of."""

import json
import re
from copy import deepcopy

import numpy as np
import pytest
from pocketlens_bench.cli import app
from pocketlens_bench.report.compare import EXACT, INTERVALS, PAIRED, RATIO, compared
from pocketlens_bench.report.results import BadResult, read_result

CARD = {
    "bundle": {"encoder": "enc-1"},
    "machine": {"cpu": "Cpu", "cores": 4, "load_at_start": 0.1},
    "seeds": {"bootstrap": 0},
    "sizes": {"queries": 4},
}


def accuracy(value: float = 50.0, half: float = 2.0, **row) -> dict:
    figure = {"value": value, "low": value - half, "high": value + half}
    rows = [{"name": "tuned", "R@10": figure, "groups": {"wording": {"known": {"R@10": figure}}}, **row}]
    return {
        "benchmark": "accuracy", "set": "sample", "conditions": deepcopy(CARD),
        "tables": [{"key": "composed", "rows": rows, "differences": [{"of": "a", "over": "b", "R@10": figure}]}],
    }  # fmt: skip


def latency(ms: float = 10.0, sent: int = 900) -> dict:
    stages = {"all": {"p50_ms": ms, "p95_ms": 20.0, "p99_ms": 3 * ms}, "fit": {"p50_ms": 0.01 * ms, "p95_ms": 0.2}}
    return {
        "benchmark": "latency", "set": "sample", "conditions": deepcopy(CARD),
        "tables": [{"title": "end to end", "stages": stages}], "request": {"wire_bytes": sent},
    }  # fmt: skip


@pytest.fixture
def laid(tmp_path):
    """Compares two results given as objects."""

    def lay(old: dict, new: dict, **more):
        for name, each in (("old", old), ("new", new)):
            (tmp_path / f"{name}.json").write_text(json.dumps(each))
        options = {"everything": True, "scatter": 0.1, "seed": 0, **more}
        return compared(read_result(tmp_path / "old.json"), read_result(tmp_path / "new.json"), **options)

    return lay


def verdicts(found: dict) -> dict[str, str]:
    return {row["name"]: row["verdict"] for row in found["rows"]}


# --- figures with intervals


@pytest.mark.parametrize(
    ("value", "verdict"), [(50.0, "within noise"), (52.8, "within noise"), (52.9, "better"), (47.1, "worse")]
)
def test_intervals_are_held_against_each_other(laid, value, verdict):
    # Both half-widths are 2: the difference's is the root of 8, 2.83.
    (row,) = laid(accuracy(), accuracy(value), everything=False)["rows"] or [{"verdict": "within noise"}]
    assert row["verdict"] == verdict
    if verdict != "within noise":
        assert row["by"] == INTERVALS
        assert row["difference"]["high"] - row["difference"]["low"] == pytest.approx(2 * 8**0.5)


def test_the_same_queries_are_compared_query_by_query(laid):
    rng = np.random.default_rng(0)
    before = 100.0 * (rng.random(400) < 0.5)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:12]] = 100.0  # 3 points more, far inside both intervals

    def made(values, ids="q"):
        one = accuracy(float(values.mean()), 5.0, per_query={"R@10": values.tolist()})
        one["tables"][0]["query_ids"] = [f"{ids}{i}" for i in range(len(values))]
        return one

    found = laid(made(before), made(after))
    row = next(row for row in found["rows"] if row["name"] == "composed / tuned / R@10")
    assert (row["verdict"], row["by"]) == ("better", PAIRED)
    assert row["difference"]["value"] == pytest.approx(3.0)
    assert 1.0 < row["difference"]["low"] < 3.0 < row["difference"]["high"] < 5.0
    others = laid(made(before), made(after, ids="p"))
    assert {row["by"] for row in others["rows"]} == {INTERVALS}
    assert verdicts(others)["composed / tuned / R@10"] == "within noise"


def test_values_that_do_not_make_up_the_figure_are_not_trusted(laid):
    def made(value):
        one = accuracy(value, 5.0, per_query={"R@10": [0.0, 100.0]})
        one["tables"][0]["query_ids"] = ["a", "b"]
        return one

    assert laid(made(50.0), made(60.0), everything=False)["methods"] == [INTERVALS]


def test_what_is_lost_is_better_when_it_is_less(laid):
    def made(lost):
        return accuracy(drop={"R@10": {"value": lost, "low": lost - 1, "high": lost + 1}})

    assert verdicts(laid(made(30.0), made(20.0)))["composed / tuned / drop / R@10"] == "better"


def test_breakdowns_and_noise_are_listed_only_when_asked_for(laid):
    assert laid(accuracy(), accuracy(), everything=False)["rows"] == []
    names = verdicts(laid(accuracy(), accuracy()))
    assert set(names) == {"composed / tuned / R@10", "composed / tuned / groups / wording / known / R@10"}


# --- times and bytes


@pytest.mark.parametrize(
    ("ms", "verdict"), [(10.9, "within noise"), (11.1, "worse"), (9.2, "within noise"), (9.0, "better")]
)
def test_times_are_ratios(laid, ms, verdict):
    found = laid(latency(), latency(ms))
    assert verdicts(found)["end to end / stages / all / p50_ms"] == verdict
    row = next(row for row in found["rows"] if row["name"].endswith("all / p50_ms"))
    assert row["by"] == RATIO
    assert row["ratio"] == pytest.approx(ms / 10)


def test_a_hundredth_of_a_millisecond_is_the_clocks(laid):
    assert verdicts(laid(latency(), latency(13.0)))["end to end / stages / fit / p50_ms"] == "within noise"


def test_bytes_are_exact(laid):
    found = laid(latency(), latency(sent=901))
    (row,) = (row for row in found["rows"] if row["unit"] == "bytes")
    assert (row["verdict"], row["by"]) == ("worse", EXACT)


# --- what is refused and warned of


@pytest.mark.parametrize(("key", "value"), [("benchmark", "latency"), ("set", "cirr")])
def test_another_kind_or_set_is_refused(laid, key, value):
    with pytest.raises(BadResult, match="one kind and set"):
        laid(accuracy(), {**accuracy(), key: value})


def test_nothing_in_common_is_refused(laid):
    other = accuracy()
    other["tables"][0]["key"] = "sketch"
    with pytest.raises(BadResult, match="no figure in common"):
        laid(accuracy(), other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card["bundle"].update(encoder="enc-2"), "bundles differ"),
        (lambda card: card["seeds"].update(bootstrap=1), "seeds differ"),
        (lambda card: card["sizes"].update(queries=9), r"sizes differ.*queries: 4, 9"),
        (lambda card: card["machine"].update(cpu="Other"), "machines differ"),
        (lambda card: card["machine"].update(load_at_start=3.0), "other work ran"),
    ],
)
def test_unlike_conditions_are_warned_of(laid, change, words):
    new = latency()
    assert laid(latency(), new)["warnings"] == []
    change(new["conditions"])
    (said,) = laid(latency(), new)["warnings"]
    assert re.search(words, said)


def test_machines_do_not_matter_to_accuracy(laid):
    new = accuracy()
    new["conditions"]["machine"]["cpu"] = "Other"
    assert laid(accuracy(), new)["warnings"] == []


def test_figures_of_one_side_only_are_named(laid):
    new = accuracy()
    new["tables"][0]["rows"].append({"name": "zero-shot", "R@10": {"value": 1, "low": 0, "high": 2}})
    found = laid(accuracy(), new)
    assert found["only_new"] == ["composed / zero-shot / R@10"]
    assert found["only_old"] == []


# --- the command


def test_the_command_shows_and_fails_on_worse_when_asked(tmp_path, capsys):
    for name, each in (("old", latency()), ("new", latency(20.0))):
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    files = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]

    def run(*options):
        with pytest.raises(SystemExit) as left:
            app(["compare", *files, *options])
        return left.value.code, capsys.readouterr().out

    code, shown = run()
    assert code == 0
    assert "worse" in shown and "x 2.00" in shown and "2 worse" in shown
    assert run("--fail-on-worse")[0] == 1
    files.reverse()
    code, shown = run("--fail-on-worse", "--json")
    assert code == 0
    assert json.loads(shown)["counts"] == {"better": 2, "worse": 0, "within noise": 3}
