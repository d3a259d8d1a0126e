"""The results page: what stands on it, what it refuses, and that it is the same for the same results."""

import json
import subprocess
import sys
from copy import deepcopy
from math import exp
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pocketlens_bench.cli import app
from pocketlens_bench.report.page import page_of, stale, write
from pocketlens_bench.report.results import BadResult, read_results

ROOT = Path(__file__).parents[2]
CARD = {
    "command": None,
    "commit": {"id": "0123456789abcdef", "dirty": True},
    "bundle": {"name": "b", "encoder": "enc-1", "token_space": "ts-1", "gallery_space": "gs-1"},
    "machine": {"cpu": "Cpu", "cores": 4, "ram_gb": 24.0, "system": "Linux", "load_at_start": 0.1},
    "threads": {"device": 1},
    "seeds": {"bootstrap": 71001},
    "sizes": {"gallery": 100},
    "versions": {"python": "3.11"},
    "seconds": 2.5,
    "time": "2026-01-01T00:00:00+00:00",
}


def figure(value: float, half: float = 2.0) -> dict[str, float]:
    return {"value": value, "low": max(value - half, 0), "high": min(value + half, 100)}


def result(kind: str, **more) -> dict:
    return {"benchmark": kind, "set": "sample", "honesty": "Made up", "conditions": deepcopy(CARD), **more}


def accuracy() -> dict:
    rows = [("sum", 30.0), ("zero-shot", 50.0), ("tuned", 60.0), ("other", 70.0), ("ceiling", 99.0)]
    return result(
        "accuracy",
        tables=[
            {
                "key": "composed", "title": "picture + words", "queries": 1200, "gallery": 6000,
                "rows": [{"name": name, "R@1": figure(value), "R@10": figure(value + 1)} for name, value in rows],
                "differences": [{"of": "tuned", "over": "sum", "R@1": {"value": 30.0, "low": 28.0, "high": 32.0}}],
            }
        ],
    )  # fmt: skip


def score() -> dict:
    made = accuracy()
    made.update(benchmark="score", set="cirr", states={"gallery": "all pictures of the split", "ties": "against us"})
    return made


def latency() -> dict:
    def ms(value):
        return {"p50_ms": value, "p95_ms": 1.5 * value, "p99_ms": 2 * value}

    stages = {"open": ms(0.2), "encode": ms(9.0), "transport": ms(1.0), "text_tower": ms(3.0), "all": ms(13.2)}
    return result("latency", tables=[{"title": "end to end", "rounds": 50, "stages": stages}])


def start(sent_ms: float = 300.0, peak_mb: float = 100.0) -> dict:
    row = {"name": "self-contained, fp32", "request_ms": sent_ms, "request_p95_ms": 450.0, "whole_ms": 420.0}
    return result(
        "start",
        tables=[
            {"key": "query", "title": "One query", "rows": [{**row, "peak_mb": peak_mb, "runs": []}]},
            {"key": "phases", "title": "Where", "rows": [{"name": "import numpy", "phase_ms": 50.0, "part": 1.0}]},
        ],
        binary_mb=133.0,
        left_out=[],
    ) | {"conditions": {**deepcopy(CARD), "sizes": {"rounds": 30}}}


def serving(served: float = 95.0, beyond: float = 1.5, goodput: float = 0.95, slower: float = 1.5) -> dict:
    def ms(value):
        return {"p50_ms": value, "p95_ms": 1.5 * value, "p99_ms": 2 * value}

    names = ("served", "the bare text tower", "open_clip encode_text, 1 at a time")
    overload = {
        "capacity_per_s": served, "offered_per_s": 10 * served, "seconds": 300.0, "goodput_per_s": goodput * served,
        "goodput_share": goodput, "calm": ms(40.0), "accepted": ms(40.0 * slower), "turned_away": ms(4.0),
        "after": ms(41.0), "memory_mb": {"begin": 500.0, "end": 501.0, "most": 502.0},
    }  # fmt: skip
    made = result(
        "serving", precision="fp32", overload=overload,
        rates=[
            {"name": name, "per_s": rate, "served_is": served / rate, "processor_ms": 3e3 / rate}
            for name, rate in zip(names, (served, 100.0, 12.0), strict=True)
        ],
        unloaded={"questions": 99, "whole": ms(30.0), "tower_and_search": ms(28.0), "beyond": ms(beyond),
                  "in_service": ms(beyond / 2), "bare_call": ms(0.5)},
        left_out=[],
    )  # fmt: skip
    sizes = {"shortest": 8, "longest": 40, "at_once": 64, "processors_measured": 3}
    return made | {"conditions": {**deepcopy(CARD), "sizes": sizes}}


def indexing(share: float = 0.95) -> dict:
    row = {
        "decode": "processes", "per_s": 20.0 * share, "bare_per_s": 20.0, "share": share, "cpu_ms": 195.0,
        "bare_cpu_ms": 190.0, "memory_mb": 900.0,
    }  # fmt: skip
    made = result("indexing", precision="fp32", rows=[row])
    return made | {"conditions": {**deepcopy(CARD), "sizes": {"pictures": 2048, "batch": 64}}}


def chaos(errors: int = 0) -> dict:
    row = {
        "name": "Client", "asked": 1000, "answered": 1000 - errors, "errors": {"Unavailable": errors} if errors else {},
        "turned_away": 0, "mixed": 0, "differing": 2, "of an unknown generation": 0, "p50_ms": 9.0, "p99_ms": 90.0,
        "slowest_ms": 900.0,
    }  # fmt: skip
    facts = [
        {"name": "servers killed", "value": 12, "must_be_zero": False},
        {"name": "seconds", "value": 1.25, "must_be_zero": False},
        {"name": "pictures missing", "value": 0, "must_be_zero": True},
    ]
    made = result(
        "chaos", tables=[{"key": "k", "title": "Killed", "rows": [row], "facts": facts}], lost=[], left_out=[]
    )
    return made | {"conditions": {**deepcopy(CARD), "sizes": {"seconds": 300.0, "rate": 30.0}}}


def plan() -> dict:
    def one(p50: float, **more) -> dict:
        return {"offered_per_s": 60.0, "achieved_per_s": 59.0, "p50_ms": p50, "p95_ms": 2 * p50, "p99_ms": 3 * p50,
                "shed_share": 0.02, **more}  # fmt: skip

    costs = {"run_s": 0.001, "token_s": 5e-5, "loop_s": 0.001, "way_s": 3e-4, "check_s": {"p50": 4e-4},
             "finish_s": {"p50": 8e-4}}  # fmt: skip
    rows = [{"measured": one(10.0), "simulated": one(7.0), "simulated_without_the_way": one(5.0)}]
    lost = ["at 60 questions a second the simulation says p50 is 7.0 ms, measured were 10.0"]
    made = result("plan", precision="fp32", rows=rows, costs=costs, lost=lost, left_out=[])
    return made | {"conditions": {**deepcopy(CARD), "sizes": {"processors_measured": 3}}}


def load() -> dict:
    rows = [
        {"offered_per_s": x, "achieved_per_s": min(x, 150.0), "p50_ms": 5 + x / 50, "p95_ms": 8 + exp(x / 40),
         "p99_ms": 9 + exp(x / 38), "failed": 0}
        for x in (25.0, 50.0, 100.0, 200.0)
    ]  # fmt: skip
    return result("load", tables=[{"title": "tuned, 4 threads", "rows": rows}])


def network() -> dict:
    profiles = {"LAN": (1000, 1000, 0.5, 0.0), "4G": (10, 30, 25, 0.001), "2G": (0.05, 0.1, 300, 0.02)}
    ways = {"tokens, int8": 900, "JPEG upload": 30_000}
    rows = [
        {"profile": name, "way": way, "up_bytes": sent, "down_bytes": 2000,
         "p50_ms": 6 + 2 * delay + sent * 8 / up / 1e3,
         "p95_ms": 8 + 3 * delay + sent * 8 / up / 900 + (2 if way.startswith("tokens") and name == "LAN" else 0),
         "rounds": 50}
        for name, (up, _, delay, _) in profiles.items()
        for way, sent in ways.items()
    ]  # fmt: skip
    return result(
        "network",
        profiles=[
            {"name": name, "up_mbit": up, "down_mbit": down, "delay_ms": delay, "loss": loss}
            for name, (up, down, delay, loss) in profiles.items()
        ],
        tables=[{"title": "all", "rows": rows}],
    )


def scale() -> dict:
    def rows(start):
        return [
            {"gallery": size, "real": min(size, 100_000), "R@1": figure(start - 20 - 6 * i),
             "R@10": figure(start - 6 * i), "p50_ms": 0.3 * (i + 1), "p95_ms": 0.5 * (i + 1)}
            for i, size in enumerate((1000, 10_000, 100_000, 1_000_000))
        ]  # fmt: skip

    return result(
        "scale",
        tables=[
            {"title": "picture + words", "rows": rows(99)},
            {"title": "sketch", "rows": rows(90)},
        ],
        lost=["at 1,000,000 pictures R@1 falls by 18 points"],
    )


def tradeoff() -> dict:
    tried = [
        {"m": m, "ef_construct": 100, "ef": ef, "quantised": quantised, "p50_ms": (3 - quantised) * m / 40 * ef / 100,
         "walked": "int8" if quantised else "float32",
         "p95_ms": ef / 50, "recall": 1 - exp(-ef * m / 900) - 0.004 * quantised,
         "memory_bytes": 2.1e9, "build_s": 500.0}
        for m in (16, 32)
        for quantised in (False, True)
        for ef in (64, 128, 256, 512)
    ]  # fmt: skip
    return result(
        "tradeoff", title="1,000,000 vectors", gallery=1_000_000, rows=tried, chosen=tried[6],
        lost=["m 16, ef_construct 100, float32: no ef reaches 0.98"],
    )  # fmt: skip


def robustness() -> dict:
    def row(name, start):
        cells = [{"severity": s, "R@10": figure(start - 10 * s)} for s in range(1, 6)]
        mean = {"R@10": figure(start - 30), "drop": {"R@10": figure(30)}}
        return {
            "name": name, "clean": {"R@10": figure(start)}, "corrupted": mean,
            "corruptions": [{"name": what, **mean, "severities": cells} for what in ("blur", "noise")],
        }  # fmt: skip

    return result(
        "robustness",
        corruptions=[{"name": what, "says": "worse", "levels": [1, 2, 3, 4, 5]} for what in ("blur", "noise")],
        tables=[
            {"key": "composed", "title": "picture + words", "queries": 10, "gallery": 100,
             "rows": [row("zero-shot", 99), row("symmetric", 95)], "differences": []}
        ],
    )  # fmt: skip


def tokens() -> dict:
    rows = [
        {"name": f"k={k}, {precision}", "tokens": k, "precision": precision, "offered": precision != "int2",
         "token_bytes": k * size, "request_bytes": 100 + k * size, "R@10": figure(90 - (precision == "int2") * 20)}
        for k in (1, 4)
        for precision, size in (("f32", 768), ("int8", 196), ("int2", 52))
    ]  # fmt: skip
    students = [
        {"tokens": k, "encoder": f"enc-{k}", "own": k == 4, "graph_bytes": 9e6, "million_multiply_adds": 27.4}
        for k in (1, 4)
    ]
    differences = [{"of": "k=1, int8", "over": "k=4, int8", "about": "tokens", "R@10": figure(0)}]
    return result(
        "tokens", precisions="int2 is not offered", students=students,
        tables=[{"key": "composed", "title": "picture + words", "queries": 10, "gallery": 100, "rows": rows,
                 "differences": differences}],
    )  # fmt: skip


def ablation() -> dict:
    def row(group, name, value, over=None, **more):
        there = {"seeds": 3, "composed R@10": figure(value), "composed mAP@10": figure(value - 20)}
        differences = {} if over is None else {"over_base": {"seeds": 3, "composed R@10": figure(over)}}
        return {"group": group, "name": name, "says": "", **there, **differences, **more}

    rows = [
        row("base", "base", 90), row("tokens", "k 1", 80, 0.5), row("free", "pdv", 40, 1, numbers=[0.9, 0.9, 1.1]),
        row("targets", "plain to union", 91, 1, control="base", over_control={"seeds": 3, "composed R@10": figure(1)}),
    ]  # fmt: skip
    return result("ablation", tables=[{"key": "ablation", "title": "Ablation", "rows": rows}], left_out=[])


def distil() -> dict:
    rows = [
        {"name": name, "seconds_per_step": 1 / of, "pictures_per_second": 100 * of, "of_bare": of}
        for name, of in (("bare", 1.0), ("whole", 0.7))
    ]
    needs = {"gflops_per_picture": 0.6, "remembered_mb_per_picture": 12, "frozen_mb": 600, "trained_mb": 80}
    made = result(
        "distill", tables=[{"key": "distill", "title": "tiny from sample", "rows": rows}], needs=needs,
        student={"parameters": 350_089, "multiply_adds": 10_061_824},
    )  # fmt: skip
    made["conditions"] |= {"device": "cpu", "precision": "no", "sizes": {"batch": 256}}
    return made


def zoo() -> dict:
    def form(precision, ms):
        times = {"p50_ms": ms, "p25_ms": 0.9 * ms, "p75_ms": 1.1 * ms}
        return {"precision": precision, "graph_bytes": 4e6, "ort_bytes": 4.1e6, "peak_bytes": 9e7, "threads_1": times,
                "threads_4": times}  # fmt: skip

    rows = [
        {"name": name, "side": 224, "parameters": 3_700_000, "multiply_adds": 206_000_000, "recipe": "per tensor",
         "forms": [form("fp32", ms), form("fp16", ms), form("int8", ms / 2)]}
        for name, ms in (("light, 512", 4.7), ("heavy image tower", 99.0))
    ]  # fmt: skip
    ratios = [
        {"name": "light against heavy", "times_faster": figure(42.1), "least": 35.0, "reached": True},
        {"name": "light against itself", "times_faster": figure(2.1, 0.1), "least": 2.3, "reached": False},
        {"name": "for the record", "times_faster": figure(3.0), "least": None, "reached": None},
    ]
    made = result(
        "zoo", tables=[{"key": "zoo", "title": "Zoo", "rows": rows}], ratios=ratios, empty_process_bytes=6e7,
        governor="performance", lost=["light against itself: short"], left_out=[],
    )  # fmt: skip
    made["conditions"] |= {"sizes": {"rounds": 60}, "bundle": None}
    return made


EVERY = {
    make.__name__: make
    for make in (
        accuracy,
        score,
        ablation,
        distil,
        zoo,
        latency,
        start,
        load,
        serving,
        indexing,
        chaos,
        plan,
        network,
        scale,
        tradeoff,
        robustness,
        tokens,
    )
}


@pytest.fixture
def saved(tmp_path):
    """Writes results into a folder, whose path it gives."""

    def save(*results: dict) -> Path:
        for each in results:
            (tmp_path / f"{each['benchmark']}.json").write_text(json.dumps(each))
        return tmp_path

    return save


def text_of(folder: Path) -> str:
    return page_of(read_results([folder]), folder / "results.md").text


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page over every kind, with its pictures."""
    folder = tmp_path_factory.mktemp("every")
    for name, make in EVERY.items():
        (folder / f"{name}.json").write_text(json.dumps(make()))
    out = folder / "results.md"
    write(page_of(read_results([folder]), out), out)
    return out


# --- what stands on it


def test_every_kind_has_its_section_with_losses_cautions_command_and_conditions(written):
    sections = written.read_text().split("\n## ")[1:]
    assert len(sections) == len(EVERY)
    for section in sections:
        for part in ("**Where it loses**", "**What it does not say**", "Made up", "pocketlens-bench ", "0123456789ab"):
            assert part in section
    assert "71001" in sections[0]  # a seed is no count: no comma


def test_links_of_the_page_lead_somewhere(written):
    text = written.read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    for heading in headings:
        assert f"[{heading}](#" in text
    for name in EVERY:
        assert f"[`{name}.json`]({name}.json)" in text


def test_what_is_above_ours_is_named_as_lost(saved):
    text = text_of(saved(accuracy()))
    assert "`other` is above `tuned` in R@1 70.0 against 60.0, R@10 71.0 against 61.0 (beyond noise)" in text
    assert "`ceiling` is above" not in text
    assert "**+30.0 ±2.0**" in text


def test_a_protocol_says_what_its_numbers_mean(saved):
    assert "| gallery | all pictures of the split |" in text_of(saved(score()))


def test_a_profile_at_which_tokens_are_slower_is_named_as_lost(saved):
    text = text_of(saved(network()))
    assert "LAN: JPEG upload takes" in text
    assert "2G: JPEG upload takes" not in text


def test_a_server_that_no_longer_keeps_up_is_named_as_lost(saved):
    assert "at 200 questions a second it no longer keeps up, 150.0 are answered" in text_of(saved(load()))


def test_what_survived_is_counted_and_what_did_not_is_named(saved):
    text = text_of(saved(chaos()))
    assert "| Client | 1,000 | 0 | 2 | 0 | 9.00 | 90.0 | 900 |" in text
    assert "| servers killed | 12 |  |" in text and "| seconds | 1.25 |  |" in text
    assert "| pictures missing | 0 | 0 |" in text
    assert "| 3 Unavailable | 2 |" in text_of(saved(chaos(errors=3)))
    assert "stood still" not in text, "an older result does not say"
    newer = chaos()
    newer["tables"][0]["rows"][0]["late_while_still"] = 7
    assert "| slowest ms | late while the machine stood still |" in (text := text_of(saved(newer)))
    assert "| 900 | 7 |" in text


def test_the_chosen_setting_is_marked_once(saved):
    text = text_of(saved(tradeoff()))
    assert text.count("**chosen**") == 1
    assert "| m 16, ef_construct 100, int8 | int8 | 256 **chosen** |" in text


def test_a_ratio_is_shown_with_what_was_asked_for(saved):
    text = text_of(saved(zoo()))
    assert "| light against heavy | 42.10 | 40.10 to 44.10 | 35 | PASS |" in text
    assert "| light against itself | 2.10 | 2.00 to 2.20 | 2.3 | short of it |" in text
    assert "| for the record | 3.00 | 1.00 to 5.00 |  |  |" in text
    assert "| light, 512 | fp32 | 4.0 MB | 4.1 MB | 4.70 (4.23 to 5.17) |" in text


def test_where_nobody_looked_for_losses_the_page_claims_nothing(saved):
    made = tokens()
    assert "Nobody worked it out" in text_of(saved(made))
    assert "Nothing that was compared here came out ahead" in text_of(saved({**made, "lost": []}))


def test_the_slowest_stage_is_named(saved):
    assert "end to end: 68% of the median goes into `encode`, 9.00 of 13.2 ms" in text_of(saved(latency()))


def test_a_service_that_falls_short_is_named(saved):
    assert "meant" not in text_of(saved(serving()))
    text = text_of(saved(serving(served=60.0, beyond=2.5, goodput=0.8, slower=2.4)))
    for said in (
        "served is 0.60 times `the bare text tower`, less than the 0.9 meant",
        "served is 5.00 times `open_clip encode_text, 1 at a time`, less than the 6 meant",
        "one question costs 2.5 ms beyond tower and search",
        "in overload 80% of capacity are answered",
        "p99 of those answered in overload is 2.4 times that at 70 %",
    ):
        assert said in text


def test_an_indexing_far_below_its_bare_tower_is_a_loss(saved):
    assert "meant" not in text_of(saved(indexing()))
    assert "decoding in processes, indexing reaches 80% of the bare tower" in text_of(saved(indexing(0.8)))


def test_a_process_that_starts_too_slowly_or_is_too_large_is_named(saved):
    assert "takes" not in text_of(saved(start()))
    text = text_of(saved(start(sent_ms=401.0, peak_mb=130.4)))
    assert "`self-contained, fp32` takes 401 ms, more than the 400 it is meant to" in text
    assert "`self-contained, fp32` takes 130 MB, more than the 120 it is meant to" in text


def test_the_command_is_the_one_that_was_typed(saved):
    made = tokens()
    made["conditions"]["command"] = ["tokens", "--quick", "--out", "my tokens.json"]
    assert "\npocketlens-bench tokens --quick --out 'my tokens.json'\n" in text_of(saved(made))


def test_an_older_card_without_commit_is_reported_all_the_same(saved):
    made = latency()
    for key in ("commit", "command", "threads", "seconds"):
        del made["conditions"][key]
    assert "| commit | not recorded |" in text_of(saved(made))


# --- pictures


def test_every_picture_is_there_for_light_and_for_dark_pages(written):
    text = written.read_text()
    pictures = sorted((written.parent / "img" / "results").iterdir())
    assert len(pictures) == 2 * text.count("<picture>")
    for file in pictures:
        assert f'"img/results/{file.name}"' in text
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert 1200 < pixels.shape[1] < 2000
        assert (np.median(pixels) > 200) == file.stem.endswith("light")
        assert file.stat().st_size < 120_000


def test_the_same_results_give_the_same_bytes(written, tmp_path):
    for name in ("load", "robustness"):
        (tmp_path / f"{name}.json").write_bytes((written.parent / f"{name}.json").read_bytes())
    out = tmp_path / "results.md"
    _, *pictures = write(page_of(read_results([tmp_path]), out), out)
    assert len(pictures) == 4
    assert page_of(read_results([tmp_path]), out).text == out.read_text()
    for file in pictures:
        assert file.read_bytes() == (written.parent / file.relative_to(tmp_path)).read_bytes(), file.name


def test_the_text_is_made_without_the_drawing_library():
    code = (
        "import sys; from pathlib import Path; from pocketlens_bench.report import page, results;"
        f"page.page_of(results.read_results([Path({str(ROOT / 'benchmarks' / 'results')!r})]), Path('x.md'));"
        "print('matplotlib' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# --- whether it is fresh


def test_a_page_of_its_results_is_fresh(written):
    assert stale(page_of(read_results([written.parent]), written), written) == []


def test_the_committed_page_is_that_of_the_committed_results():
    page = ROOT / "docs" / "results.md"
    assert stale(page_of(read_results([ROOT / "benchmarks" / "results"]), page), page) == []


def test_changed_results_make_page_and_their_pictures_stale(saved, monkeypatch, capsys):
    folder = saved(load(), tokens())
    with pytest.raises(SystemExit) as left:
        app(["report", str(folder)])
    assert left.value.code == 0
    with pytest.raises(SystemExit) as left:
        app(["report", str(folder), "--check"])
    assert left.value.code == 0
    changed = load()
    changed["tables"][0]["rows"][0]["p50_ms"] = 77.7
    saved(changed)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        app(["report", str(folder), "--check"])
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert "does not agree with the results" in said
    assert "load-rates-light.png was drawn from other results" in said
    assert "tokens-bytes" not in said


# --- what it refuses


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda made: made.update(benchmark="speed"), ["kind `speed`", "latency", "Leave the file out"]),
        (lambda made: made.pop("tables"), ["latency.json", "no `tables`"]),
        (lambda made: made["tables"][0]["stages"]["open"].pop("p95_ms"), ["tables[0].stages.open", "`p95_ms`"]),
        (lambda made: made["tables"][0]["stages"]["open"].update(p95_ms="fast"), ["open.p95_ms", "a number", "fast"]),
        (lambda made: made["tables"][0].update(title=7), ["tables[0].title", "text"]),
        (lambda made: made.pop("benchmark"), ["latency.json", "`benchmark`"]),
    ],
)
def test_a_result_that_lacks_something_is_refused_by_file_and_place(spoil, words, tmp_path):
    made = latency()
    spoil(made)
    (tmp_path / "latency.json").write_text(json.dumps(made))
    with pytest.raises(BadResult) as refused:
        text_of(tmp_path)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("content", ["not JSON", "[1]", '{"benchmark": "load", "x": NaN}', "\x80"])
def test_a_file_that_is_no_result_is_refused_by_name(content, tmp_path):
    (tmp_path / "odd.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadResult, match=r"odd\.json"):
        read_results([tmp_path])


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(BadResult, match="no results"):
        read_results([tmp_path])


def test_an_unknown_key_is_no_error(saved):
    made = load()
    made["tables"][0]["rows"][0]["new"] = {"more": [1]}
    assert "**Where it loses**" in text_of(saved(made))
