"""The ablation: arithmetic over seeds, cells, going on after a break, commands, a trial in earnest."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pocketlens_bench.ablation import driver, exam, summary, trial
from pocketlens_bench.ablation.cells import CELLS, chosen, control_of
from pocketlens_bench.cli import app
from pocketlens_bench.report.page import page_of
from pocketlens_bench.report.results import read_result

STUDENT = ("composed R@1", "composed R@10", "composed mAP@10", "sketch R@10", "sketch_and_words R@10",
           "pale_sketch R@10", "validation R@10", "validation mAP@10")  # fmt: skip
HEADS = tuple(key for key in STUDENT if "sketch" not in key)


def cell(name, group=None):
    return next(each for each in CELLS if each.name == name and group in (None, each.group))


def trials_of(values, keys=STUDENT, **more):
    """Of one cell: what each seed's trial found, all figures of a seed alike."""
    return {seed: dict.fromkeys(keys, value) | more for seed, value in values.items()}


def found_of(**cells):
    """cell name, with _ for a blank: {seed: figures}."""
    found = {}
    for name, several in cells.items():
        one = cell(name.replace("_", " "))
        for seed, figures in several.items():
            found[one.key, seed] = {"rows": {one.name: figures}}
    return found


def rows_by_name(found, *names):
    cells = [cell("base"), *(cell(name) for name in names)]
    return {row["name"]: row for row in summary.rows_of(cells, found)}


# --- arithmetic


def test_the_interval_is_students_over_seeds():
    """1, 2, 6: mean 3, deviation sqrt((4 + 1 + 9) / 2) = 2.6458, t 4.303 of two degrees: 4.303 * 2.6458 / sqrt 3."""
    found = summary.interval([1.0, 2.0, 6.0])
    assert found["value"] == 3
    assert found["high"] - 3 == pytest.approx(6.5730, abs=1e-3)
    assert 3 - found["low"] == pytest.approx(6.5730, abs=1e-3)
    assert summary.interval([1.0, 3.0])["high"] == pytest.approx(2 + 12.706 * math.sqrt(2) / math.sqrt(2))
    assert summary.interval([7.0]) == {"value": 7.0, "low": 7.0, "high": 7.0}


def test_the_table_of_t_is_that_of_the_distribution():
    """By its density: between -t and t lies 95 % of Student's distribution of n - 1 degrees."""
    for seeds, t in summary.T_95.items():
        df = seeds - 1
        scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
        steps = 20_000
        middles = ((k + 0.5) * t / steps for k in range(steps))
        inside = 2 * t / steps * sum(scale * (1 + x * x / df) ** (-(df + 1) / 2) for x in middles)
        assert inside == pytest.approx(0.95, abs=2e-4), seeds


def test_differences_pair_seeds():
    """The seeds differ by 20 points, the cells within a seed by 1, 2, 3: unpaired nothing would be known."""
    rows = rows_by_name(
        found_of(base=trials_of({1: 50.0, 2: 60.0, 3: 70.0}), k_2=trials_of({3: 73.0, 1: 51.0, 2: 62.0})), "k 2"
    )
    over = rows["k 2"]["over_base"]
    assert over["seeds"] == 3
    assert over["composed R@10"]["value"] == pytest.approx(2)
    assert over["composed R@10"]["high"] == pytest.approx(2 + 4.303 / math.sqrt(3))
    assert rows["k 2"]["composed R@10"]["high"] > 80
    assert "over_base" not in rows["base"]


def test_heads_are_held_against_the_same_composition_on_the_vectors_as_they_are():
    found = found_of(
        base=trials_of({1: 10.0, 2: 10.0}),
        gated_to_original=trials_of({1: 30.0, 2: 31.0}, HEADS),
        gated_to_union=trials_of({1: 32.0, 2: 35.0}, HEADS),
        plain_to_union=trials_of({1: 12.0, 2: 14.0}, HEADS),
    )
    rows = rows_by_name(found, "gated to original", "gated to union", "plain to union")
    union, plain = rows["gated to union"], rows["plain to union"]
    assert union["control"] == "gated to original"
    assert union["over_control"]["composed mAP@10"]["value"] == 3
    assert union["over_base"]["composed mAP@10"]["value"] == 23.5
    assert plain["control"] == "base"
    assert plain["over_control"] == plain["over_base"]
    assert "control" not in rows["gated to original"]
    assert control_of(cell("k 2")) is None


def test_a_missing_seed_is_not_paired():
    """Seed 2 of the base and seed 1 of the cell are missing: by place they would be paired, 3 with 1 and 2 with 3."""
    rows = rows_by_name(found_of(base=trials_of({1: 50.0, 3: 70.0}), k_2=trials_of({2: 61.0, 3: 75.0})), "k 2")
    assert rows["k 2"]["seeds"] == 2
    assert rows["k 2"]["over_base"]["seeds"] == 1
    assert rows["k 2"]["over_base"]["composed R@10"] == {"value": 5.0, "low": 5.0, "high": 5.0}
    apart = rows_by_name(found_of(base=trials_of({1: 50.0}), k_2=trials_of({2: 61.0})), "k 2")
    assert "over_base" not in apart["k 2"]


def test_numbers_chosen_are_no_figures(ablation):
    free = {row["name"]: row for row in ablation()["tables"][0]["rows"] if row["group"] == "free"}
    assert free["pdv"]["numbers"] == [0.9, 0.9, pytest.approx(1.1)]
    assert "number" not in free["pdv"] and "number" not in free["pdv"]["over_base"]
    assert "numbers" not in free["words only"]


# --- cells


def test_names_of_no_cell_are_refused():
    with pytest.raises(ValueError, match=r"no cell is called nonsense; the groups are base, tokens, gcd, .*free"):
        chosen(["tokens", "nonsense"])


def test_what_is_chosen_brings_base_and_control_along():
    assert chosen([]) == list(CELLS)
    assert [one.name for one in chosen(["tokens"])] == ["base", "k 1", "k 2", "k 8"]
    assert [one.name for one in chosen(["transagg to union"])] == ["base", "transagg to original", "transagg to union"]
    assert [one.name for one in chosen(["plain to union"])] == ["base", "plain to union"]


def test_every_target_has_a_control_and_no_two_cells_a_folder():
    for one in CELLS:
        searches_another = one.kind == "heads" and not one.name.endswith("to original")
        assert (control_of(one) is not None) == searches_another, one.name
    assert len({one.key for one in CELLS}) == len(CELLS)


def test_trials_of_another_recipe_lie_in_another_folder():
    def folder(one, steps=2):
        return trial.folder_of(trials_at(Path("run"), Path("work"), steps), one, 1)

    changed = replace(cell("k 2"), change={"tokens": 3})
    assert folder(cell("k 2")) == folder(cell("k 2"))
    assert len({folder(cell("k 2")), folder(changed), folder(cell("k 2"), 3)}) == 3


def test_the_documents_know_how_many_trainings_there_are():
    count = sum(one.kind in ("student", "symmetric", "phi") for one in CELLS)
    said = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert f"{count} trainings for each seed" in said and f"{count} x seeds x steps" in said


# --- going on after a break


@pytest.fixture
def made_run(tmp_path):
    """As much of a sample run as the driver itself reads."""
    sets = (f"set/{name}.jsonl" for name in ("pairs", "told", "sketches", "triplets"))
    for name in (*sets, "teacher/teacher.json", "teacher/teacher.safetensors"):
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"format": 1}')
    return tmp_path / "run"


@pytest.fixture
def acted(monkeypatch):
    """Trials that only note who they were; some may fail."""
    notes = {"went": [], "fails": set()}

    class Acted:
        def __init__(self, trials, one, seed, folder):
            self.one, self.seed = one, seed

        def go(self):
            if (self.one.name, self.seed) in notes["fails"]:
                raise RuntimeError(f"no memory at /home/somebody for {self.one.name}")
            notes["went"].append((self.one.name, self.seed))
            figures = dict.fromkeys(STUDENT, 10.0 * self.seed + len(self.one.name))
            return {"cell": self.one.key, "seed": self.seed, "rows": {self.one.name: figures}}

    monkeypatch.setattr(trial, "_Trial", Acted)
    monkeypatch.setattr(trial.torch, "set_num_threads", lambda threads: None)
    return notes


def trials_at(run, work, steps=2):
    return trial.Trials(run=run, work=work, base={"steps": steps, "batch": 64}, head_steps=2, threads=1)


def test_a_killed_ablation_goes_on(made_run, acted, tmp_path):
    acted["fails"] = {("k 2", 2)}
    trials, cells = trials_at(made_run, tmp_path / "work"), chosen(["k 2"])
    first = driver.measure(trials, cells, seeds=2, jobs=1)
    assert acted["went"] == [("base", 1), ("base", 2), ("k 2", 1)]
    failed = trial.folder_of(trials, cell("k 2"), 2)
    assert first["left_out"] == [f"tokens / k 2, seed 2: RuntimeError, see error.txt in {failed.name}"]
    assert [(row["name"], row["seeds"]) for row in first["tables"][0]["rows"]] == [("base", 2), ("k 2", 1)]
    assert "no memory" in (failed / "error.txt").read_text()
    acted.update(went=[], fails=set())
    second = driver.measure(trials, cells, seeds=2, jobs=1)
    assert acted["went"] == [("k 2", 2)]
    assert second["left_out"] == []
    assert [row["seeds"] for row in second["tables"][0]["rows"]] == [2, 2]
    assert not (failed / "error.txt").exists()


def test_trials_end_with_a_killed_driver(tmp_path):
    """A trial that would sleep for a minute, and its driver killed: the next driver must not find it at work."""
    (tmp_path / "begin.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from pocketlens_bench.ablation.driver import _pool\n"
        "def trial():\n"
        "    Path('part').write_text(str(os.getpid()))\n"
        "    Path('part').replace('trial')\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    _pool().submit(trial).result()\n"
    )
    driver = subprocess.Popen([sys.executable, "begin.py"], cwd=tmp_path)
    at_work = tmp_path / "trial"
    waited(at_work.exists)
    driver.kill()
    driver.wait()
    waited(lambda: not alive(int(at_work.read_text())))


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_trial_costs_no_other(tmp_path):
    """As the system kills what takes too much memory."""
    (tmp_path / "begin.py").write_text(
        "import os, signal\n"
        "from pocketlens_bench.ablation import driver\n"
        "def attempt(trials, one, seed):\n"
        "    if one == 'large':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return {'seed': seed}\n"
        "if __name__ == '__main__':\n"
        "    driver.attempt = attempt\n"
        "    asks = [('small', 1), ('large', 1), ('small', 2), ('small', 3)]\n"
        "    for ask, came in driver._attempted(None, asks, 2):\n"
        "        print(*ask, type(came).__name__)\n"
    )
    said = subprocess.run([sys.executable, "begin.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert sorted(said.stdout.splitlines()) == [
        "large 1 BrokenProcessPool", "small 1 dict", "small 2 dict", "small 3 dict",
    ], said.stderr  # fmt: skip


def waited(happens):
    end = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_crooked_set_stops_all_of_it(made_run, acted, tmp_path, monkeypatch):
    def go(self):
        raise driver.PocketlensError("the set is crooked")

    monkeypatch.setattr(trial._Trial, "go", go)
    with pytest.raises(driver.PocketlensError, match="crooked"):
        driver.measure(trials_at(made_run, tmp_path / "work"), chosen(["k 2"]), seeds=1, jobs=1)


def test_without_any_base_student_nothing_is_compared(made_run, acted, tmp_path):
    acted["fails"] = {("base", 1)}
    with pytest.raises(driver.PocketlensError, match=r"no base student could be trained; base / base, seed 1"):
        driver.measure(trials_at(made_run, tmp_path / "work"), chosen(["k 2"]), seeds=1, jobs=1)


def test_trials_of_other_steps_or_another_teacher_are_not_taken_for_these(made_run, acted, tmp_path):
    driver.measure(trials_at(made_run, tmp_path / "work"), chosen(["k 2"]), seeds=1, jobs=1)
    with pytest.raises(driver.OtherTrials, match=r"steps 2, now 500\); take another folder"):
        driver.measure(trials_at(made_run, tmp_path / "work", 500), chosen(["k 2"]), seeds=1, jobs=1)
    (made_run / "teacher" / "teacher.safetensors").write_text("other weights")
    with pytest.raises(driver.OtherTrials, match="run "):
        driver.measure(trials_at(made_run, tmp_path / "work"), chosen(["k 2"]), seeds=1, jobs=1)


def test_a_result_says_what_it_was_made_with(made_run, acted, tmp_path):
    result = driver.measure(trials_at(made_run, tmp_path / "work"), chosen(["k 2"]), seeds=2, jobs=1)
    card = result["conditions"]
    assert card["sizes"]["steps of a student"] == 2
    assert card["seeds"] == {"trained with": "1, 2"}
    assert "torch" in card["versions"]
    assert str(tmp_path) not in json.dumps(result)


# --- the commands


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app([str(each) for each in arguments])
    return left.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    "arguments",
    [["ablation", "run", "--work", "work"], ["distill", "sample", "photos"]],
    ids=["ablation", "distill"],
)
def test_without_torch_the_extra_is_named(arguments, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, said = run(arguments, capsys)
    assert code == 1
    assert said.err == "pocketlens-bench: torch is not installed here: pip install 'pocketlens[train]'\n"


def test_a_folder_that_is_no_run_is_refused(capsys, tmp_path):
    code, said = run(["ablation", tmp_path, "--work", tmp_path / "work"], capsys)
    assert code == 1
    assert "no sample run with a set and a teacher; `pocketlens-train sample -o" in said.err
    assert not (tmp_path / "work").exists()


def test_an_unknown_cell_is_refused(capsys, made_run, tmp_path):
    code, said = run(["ablation", made_run, "--work", tmp_path / "work", "--only", "k 3"], capsys)
    assert code == 1
    assert "no cell is called k 3; the groups are base, tokens" in said.err
    assert not (tmp_path / "work").exists()


def test_wrong_usage_is_refused_first(capsys, made_run, tmp_path):
    assert run(["ablation", made_run], capsys)[0] == 2
    code, said = run(["ablation", made_run, "--work", tmp_path / "w", "--out", tmp_path / "no" / "a.json"], capsys)
    assert code == 2 and "--out" in said.err
    assert run(["ablation", made_run, "--work", tmp_path / "w", "--seeds", "9"], capsys)[0] == 2


def test_the_command_writes_what_the_page_reads(capsys, made_run, acted, tmp_path):
    out = tmp_path / "ablation.json"
    arguments = ["ablation", made_run, "--work", tmp_path / "w", "--only", "tokens", "--seeds", "2", "--out", out]
    code, said = run(arguments, capsys)
    assert code == 0, said.err
    assert "k 8" in said.out and max(map(len, said.out.splitlines())) <= 80
    assert "**tokens**" in page_of([read_result(out)], tmp_path / "page.md").text


# --- one trial in earnest


def test_a_trial_trains_answers_and_is_kept(tiny_run, tmp_path, monkeypatch, capsys):
    small = {"validation": (20, 200), "composed": (30, 300), "sketch": (20, 200)}
    monkeypatch.setattr(exam, "SIZES", small)
    trials = trials_at(tiny_run, tmp_path / "work")
    capsys.readouterr()
    result = driver.measure(trials, chosen(["base"]), seeds=1, jobs=1)
    assert capsys.readouterr().out == ""  # it is for the result
    assert result["left_out"] == []
    (row,) = result["tables"][0]["rows"]
    assert {key for key in row if " " in key} >= set(STUDENT)
    assert all(0 <= row[key]["value"] <= 100 for key in STUDENT)
    kept = json.loads((trial.folder_of(trials, cell("base"), 1) / "figures.json").read_text())
    assert kept["rows"]["base"]["composed R@10"] == row["composed R@10"]["value"]
    assert sorted(file.name for file in (tmp_path / "work" / "exam").iterdir()) == [
        "composed.npz", "sketch.npz", "validation.npz",
    ]  # fmt: skip
