"""The arithmetic of a plan by hand-worked cases, where its numbers stand, and the page against the code."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pocketlens_bench.cli import app
from pocketlens_bench.plan import (
    Ask,
    Assumed,
    Found,
    Measured,
    NoResult,
    link_bytes,
    picture_disk,
    picture_ram,
    plan,
    read_measured,
    times,
)
from pocketlens_bench.plan_check import Sizes, check
from pocketlens_bench.plan_page import SAID, number, refreshed
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import ServerFault

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LINKS = 4 * (2 * 5 + 5 / 4)  # of m = 5: 45 bytes

VALUES = {
    "million_search": 0.004, "million_search_fp32": 0.012, "million_search_p95": 0.004,
    "million_memory": 1e6 * (100 * 5 + LINKS), "million_build": 900.0,
    "build_cores": 4, "width": 100, "links": 5, "search_growth": 2.0, "build_growth": 1.5, "picture_s": 0.1,
    "request_bytes": 1000, "reply_bytes": 2000, "run_s": 0.001, "token_s": 1e-4, "check_s": 0.0002, "loop_s": 0.0008,
    "way_s": 0.0005, "finish_s": 0.001,
}  # fmt: skip
MEASURED = Measured(**{name: Found(value, name, "made up") for name, value in VALUES.items()}, speeds=(1.0, 0.8))
ASSUMED = Assumed(
    width=100, names=1, payload_bytes=50, links=5, replicas=2, node_ram_gb=100, node_cores=10, node_reads_per_s=1000,
    node_gbit_s=1, node_price_h=2.0, front_cores=4, front_price_h=1.0, fill=0.5, utilisation=0.5, rows=2, row_tokens=16,
    top=10, hit_bytes=60, rescored=20, most_in_shard=10_000_000,
)  # fmt: skip


def test_memory_and_disk_of_a_picture():
    assert link_bytes(5) == LINKS == 45
    assert MEASURED.overhead == pytest.approx(1.0)
    assert picture_ram(MEASURED, ASSUMED, "fp32") == pytest.approx(400 + 45)
    assert picture_ram(MEASURED, ASSUMED, "int8") == pytest.approx(100 + 45)
    assert picture_ram(MEASURED, ASSUMED, "binary") == pytest.approx(12.5 + 45)
    assert picture_ram(MEASURED, replace(ASSUMED, names=2), "int8") == pytest.approx(2 * 145)
    assert picture_disk(ASSUMED, "fp32") == 400 + 45 + 50
    assert picture_disk(ASSUMED, "int8") == 400 + 100 + 45 + 50
    heavy = replace(MEASURED, million_memory=Found(2e6 * 545, "", ""))
    assert picture_ram(heavy, ASSUMED, "fp32") == pytest.approx(2 * 445)


def test_a_plan_by_hand():
    """100 million pictures, int8, 100 questions a second: 10 shards of 10 million, search 8 ms in each."""
    found = plan(MEASURED, ASSUMED, Ask(pictures=1e8, questions_per_s=100, form="int8"))
    assert found.shards == 10
    assert found.shards_a_node == 10  # 50 GB are used, a shard has 1.45, but there are no more than ten
    assert found.search_cpu_s == pytest.approx(10 * 0.008)
    assert found.nodes_for == {
        "memory": 2,  # two copies
        "search": 2,  # 100 x 0.08 s / 0.5 = 16 cores of 10
        "disk reads": 40,  # 100 x 10 x 20 / 0.5 = 40,000 of 1,000
        "network": 1,  # 100 x 10 x (400 + 600) bytes = 8 Mbit/s
    }
    assert found.gallery_nodes == 40 and found.breaks_first == "disk reads"
    assert found.copies == pytest.approx(40)
    assert found.ram_bytes == pytest.approx(2 * 1e8 * 145)
    assert found.disk_bytes == pytest.approx(2 * 1e8 * 595)
    assert found.network_bytes_s == pytest.approx(1e6)
    assert found.edge_bytes_s == pytest.approx(300_000)
    assert found.encode_core_h == pytest.approx(1e8 * 0.1 / 3600)
    assert found.build_core_h == pytest.approx(1e8 * 2 * (900 * 4 / 1e6) * 1.5 / 3600)
    assert found.build_h == pytest.approx(found.build_core_h / 400)
    # tower: 2 rows x (1 ms / 8 rows a run + 1.6 ms) = 3.45 ms; with checks, search's end and loop 5.45 of 1.6 cores
    assert found.front_limits["processors"] == pytest.approx(0.5 * 1.6 / 0.00545)
    assert found.front_limits["Python's lock"] == pytest.approx(0.5 / 0.002)  # checks, search's end, loop
    assert found.front_limits["hands"] == pytest.approx(0.5 * 16 / (0.0012 + 0.008))  # no scatter: the slowest is any
    assert found.fronts == 1 and found.front_nodes == 1
    assert found.per_million == pytest.approx((40 * 2.0 + 1.0) / 3600 / 100 * 1e6)


def test_memory_search_and_network_can_each_break_first():
    ample = replace(ASSUMED, node_reads_per_s=10**9)
    idle = plan(MEASURED, ample, Ask(pictures=1e10, questions_per_s=1, form="int8"))
    assert idle.shards == 1000 and idle.shards_a_node == 34  # 50 GB of 1.45
    assert idle.nodes_for["memory"] == 59 and idle.breaks_first == "memory"  # 2,000 copies, 34 on a node
    assert not idle.believable
    busy = plan(MEASURED, ample, Ask(pictures=1e7, questions_per_s=1e4, form="int8"))
    assert busy.breaks_first == "search" and busy.gallery_nodes == 16  # 10,000 x 8 ms / 0.5 / 10
    slow = replace(ample, node_gbit_s=0.001)
    assert plan(MEASURED, slow, Ask(pictures=1e7, questions_per_s=1e4, form="int8")).breaks_first == "network"
    assert plan(MEASURED, ASSUMED, Ask(pictures=1e7, questions_per_s=1e4, form="fp32")).nodes_for["disk reads"] == 0


def test_a_shard_never_outgrows_a_node():
    small = replace(ASSUMED, node_ram_gb=1, most_in_shard=10**9)  # half a GB is used: 1.1 million of 445 bytes
    found = plan(MEASURED, small, Ask(pictures=1e7, questions_per_s=1, form="fp32"))
    assert found.shards == 9 and found.shards_a_node == 1


def test_times_are_those_of_the_parts_where_nothing_waits():
    """One question at a time: way, loop, check, a run of two rows, the search elsewhere, the end."""
    found = plan(MEASURED, ASSUMED, Ask(pictures=1e8, questions_per_s=1, form="int8"))
    row = times(MEASURED, ASSUMED, found)
    alone_s = 0.0005 + 0.0008 + 0.0002 + (0.001 + 32e-4) + 0.001 + 0.008
    assert row["p50_ms"] == pytest.approx(1e3 * alone_s, rel=0.02)
    assert row["shed_share"] == 0


def test_more_shards_more_slowest():
    scattered = replace(MEASURED, million_search_p95=Found(0.008, "", ""))
    few, many = (
        times(scattered, ASSUMED, plan(scattered, ASSUMED, Ask(pictures=size, questions_per_s=10, form="fp32")))
        for size in (1e7, 1e9)
    )
    assert many["p50_ms"] > 1.5 * few["p50_ms"]


# --- where the numbers stand


def test_every_number_on_the_page_stands_where_the_page_says():
    for found in read_measured(RESULTS).found():
        name, _, place = found.source.partition(": ")
        told = json.loads((RESULTS / name).read_text())
        if place.startswith("approximate"):  # a ratio of two rows
            continue
        for key in place.replace("[", ".").replace("]", "").split("."):
            told = told[int(key)] if isinstance(told, list) else told[key]
        assert found.value in (told, told * 1e-3, told / 1e3)


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(NoResult, match=r"synthetic-tradeoff\.json"):
        read_measured(tmp_path)
    for file in RESULTS.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    crooked = json.loads((RESULTS / "synthetic-tradeoff.json").read_text())
    del crooked["chosen"]["memory_bytes"]
    (tmp_path / "synthetic-tradeoff.json").write_text(json.dumps(crooked))
    with pytest.raises(NoResult, match=r"chosen\.memory_bytes"):
        read_measured(tmp_path)


def test_the_page_agrees_with_results_and_code():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert refreshed(page, read_measured(RESULTS)) == page, "run: pocketlens-bench plan --write docs/scale.md"


def test_every_assumption_is_explained():
    assert set(SAID) == {each.name for each in fields(Assumed)}


def test_a_page_without_marks_is_refused():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").replace("plan:front", "plan:back")
    with pytest.raises(ValueError, match="plan:front"):
        refreshed(page, MEASURED)


def test_numbers_have_three_digits():
    assert [number(each) for each in (0, 0.01234, 5.4321, 123.4, 1234.5, 98_765_432)] == [
        "0", "0.0123", "5.43", "123", "1,230", "98,800,000"
    ]  # fmt: skip


# --- the command


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app(arguments)
    return left.value.code, capsys.readouterr()


def test_the_command_plans_and_takes_other_assumptions(capsys):
    asked = ["plan", "--pictures", "1e9", "--rate", "100", "--json", "--results", str(RESULTS)]
    code, said = run(asked, capsys)
    assert code == 0
    usual = json.loads(said.out)
    assert usual["ask"] == {"pictures": 1e9, "questions_per_s": 100.0, "form": "int8"}
    dearer = json.loads(run([*asked, "--set", "node_price_h=4", "--set", "front_price_h=1.2"], capsys)[1].out)
    assert dearer["per_million"] == pytest.approx(2 * usual["per_million"])
    code, said = run(asked[:-3] + asked[-2:], capsys)
    assert code == 0 and "breaks first" in said.out


@pytest.mark.parametrize(
    "wrong", [["--set", "nodes=3"], ["--set", "replicas=0"], ["--set", "fill=x"], ["--form", "pq"]]
)
def test_wrong_assumptions_are_refused(wrong, capsys):
    code, said = run(["plan", *wrong, "--results", str(RESULTS)], capsys)
    assert code == 2 and "Traceback" not in said.err


def test_a_check_in_which_nothing_was_answered_says_so(monkeypatch):
    monkeypatch.setattr("pocketlens_bench.plan_check.GALLERY", 30)
    monkeypatch.setattr("pocketlens_bench.plan_check.DISTINCT", 200)
    monkeypatch.setattr("pocketlens_bench.calibrate.ROUNDS", 1)
    monkeypatch.setattr("pocketlens_bench.plan_check.steadily", lambda _outcomes, _seconds: 0.0)
    with pytest.raises(ServerFault, match=r"no question was answered in 0\.1 s"):
        check(default_bundle(), sizes=Sizes(shares=(0.5,), seconds=0.1, bare_s=0.1))


def test_a_small_check_against_a_real_server(monkeypatch):
    """No figure is judged: this machine may be busy. Every stage runs, and both sides see the same questions."""
    monkeypatch.setattr("pocketlens_bench.plan_check.GALLERY", 30)
    monkeypatch.setattr("pocketlens_bench.plan_check.DISTINCT", 200)
    monkeypatch.setattr("pocketlens_bench.calibrate.ROUNDS", 2)
    told = check(default_bundle(), sizes=Sizes(shares=(0.5,), seconds=1.0, bare_s=1.0))
    (row,) = told["rows"]
    assert row["measured"]["offered_per_s"] == pytest.approx(row["simulated"]["offered_per_s"])
    assert (
        row["measured"]["p50_ms"] > 0 and row["simulated"]["p50_ms"] >= row["simulated_without_the_way"]["p50_ms"] > 0
    )
    costs = told["costs"]
    assert costs["token_s"] > 0 and costs["loop_s"] >= 0 and costs["speeds"][0] == 1.0
    json.dumps(told, allow_nan=False)
