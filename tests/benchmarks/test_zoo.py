"""What students cost: a small zoo measured by the command, what is asked of it, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from pocketlens_bench import zoo
from pocketlens_bench.cli import app
from pocketlens_bench.report.page import page_of
from pocketlens_bench.report.results import read_results
from pocketlens_bench.zoo import ASKED, CannotRun, Inhabitant, UnknownInhabitant, chosen, peak, race, spread
from pocketlens_bench.zoo_making import Tower, drawn, fingerprint, made, settle, whole_attention
from pocketlens_training.cost import multiply_adds, parameters
from pocketlens_training.students.backbones import make_backbone


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app([str(each) for each in arguments])
    return left.value.code, capsys.readouterr()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def result(work: Path) -> dict:
    out = work / "zoo.json"
    with pytest.raises(SystemExit) as left:
        app([
            "zoo", "--only", "tiny", "--only", "mobilenetv3_small_100", "--width", "512", "--rounds", "3", "--work",
            str(work), "--out", str(out), "--json",
        ])  # fmt: skip
    assert left.value.code == 0
    return json.loads(out.read_text())


# --- what comes out


def test_a_row_says_what_a_student_costs(result: dict) -> None:
    tiny, mobile = result["tables"][0]["rows"]
    assert (tiny["name"], mobile["name"]) == ("tiny, 512", "mobilenetv3_small_100, 512")
    assert (tiny["side"], mobile["side"]) == (96, 224)
    whole = parameters(make_backbone("mobilenetv3_small_100", pretrained=False))
    assert 0.5 * whole < mobile["parameters"] < whole + 2_000_000
    assert 40e6 < mobile["multiply_adds"] < 100e6  # published: 56 million, with its classifier
    for row in (tiny, mobile):
        fp32, fp16, int8 = row["forms"]
        assert [form["precision"] for form in row["forms"]] == ["fp32", "fp16", "int8"]
        assert 0.98 < fp32["graph_bytes"] / (4 * row["parameters"]) < 1.2  # counted is what is shipped
        assert 0.45 < fp16["graph_bytes"] / fp32["graph_bytes"] < 0.6
        assert 0.2 < int8["graph_bytes"] / fp32["graph_bytes"] < 0.4
        assert 0.9 < fp32["ort_bytes"] / fp32["graph_bytes"] < 1.3 and int8["ort_bytes"] < 0.5 * fp32["ort_bytes"]
        for form in row["forms"]:
            assert form["peak_bytes"] > result["empty_process_bytes"] > 20_000_000
            for threads in ("threads_1", "threads_4"):
                times = form[threads]
                assert 0 < times["p25_ms"] <= times["p50_ms"] <= times["p75_ms"]
        assert row["near"]["mean"] > 0.9


def test_ratios_that_were_not_measured_are_left_out_and_named(result: dict) -> None:
    assert result["ratios"] == [] and len(result["left_out"]) == len(ASKED)
    assert result["conditions"]["bundle"] is None and "torch" in result["conditions"]["versions"]


def test_a_second_run_makes_nothing_again(result: dict, work: Path, capsys) -> None:
    before = {file: file.stat().st_mtime_ns for file in work.rglob("encoder.*")}
    code, said = run(
        ["zoo", "--only", "tiny", "--width", 512, "--rounds", 3, "--work", work], capsys
    )  # fmt: skip
    assert code == 0 and "tiny, 512" in said.out and "Read with care" in said.out
    assert {file: file.stat().st_mtime_ns for file in work.rglob("encoder.*")} == before and before


def test_what_was_begun_or_made_otherwise_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "encoder.fp32.onnx").write_text("half a file")
    card = made("tiny", 512, tmp_path, seed=0)
    onnx.checker.check_model(onnx.load(tmp_path / "encoder.fp32.onnx"))
    assert card["wanted"]["made_by"] == fingerprint()
    written = (tmp_path / "card.json").stat().st_mtime_ns
    assert made("tiny", 512, tmp_path, seed=0) == card and (tmp_path / "card.json").stat().st_mtime_ns == written
    other = made("tiny", 512, tmp_path, seed=1)
    assert other["wanted"]["seed"] == 1 and (tmp_path / "card.json").stat().st_mtime_ns != written


def test_drawn_weights_are_alive() -> None:
    """Without statistics of its own, batch normalisation would leave activations dead or endless."""
    squares = drawn(8, 64, seed=3)
    assert squares.shape == (8, 64, 64, 3) and squares.dtype == np.uint8 and squares.std() > 20
    backbone = make_backbone("mobilenetv3_small_100", side=64, pretrained=False)
    settle(backbone, squares)
    import torch

    with torch.no_grad():
        places = backbone(torch.from_numpy(squares))
    assert 0.05 < float(places.std()) < 20 and not backbone.training


def test_a_tower_gives_unit_vectors() -> None:
    import torch

    torch.manual_seed(0)
    tower = Tower("MobileCLIP2-S0").eval()
    with torch.no_grad():
        vector = tower(torch.zeros(1, tower.side, tower.side, 3, dtype=torch.uint8))
    assert vector.shape == (1, 512) and tower.side == 256
    assert float(vector.norm()) == pytest.approx(1, abs=1e-4)


def test_all_arithmetic_of_attention_is_counted() -> None:
    """torch runs it in one piece, of which it counts nothing: a third of this tower would be missing."""
    import torch

    tower = Tower("ViT-B-32").eval()
    with whole_attention():
        macs = multiply_adds(tower, torch.zeros(1, 224, 224, 3, dtype=torch.uint8))
    assert macs == pytest.approx(4.4e9, rel=0.02)  # as published


# --- the clock and the verdicts


class Counting:
    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def run(self, outputs, feeds) -> None:
        self.seen.append(self.name)


def test_all_take_turns_and_who_begins_moves_on() -> None:
    seen: list[str] = []
    graphs = {(name, "fp32"): Counting(name, seen) for name in "abc"}
    taken = race(graphs, dict.fromkeys("abc"), 3)  # type: ignore[arg-type]
    each = 1 + zoo.IN_A_ROW
    assert seen == [name for turn in ("abc", "bca", "cab") for name in turn for _ in range(each)]
    assert {len(times) for times in taken.values()} == {3}


def test_verdicts_and_losses_are_told_either_way() -> None:
    rows = {(f"{model}, 512", precision): [1.0] * 9 for model in zoo.STUDENTS for precision in zoo.PRECISIONS}
    rows |= {(tower, "fp32"): [30.0] * 9 for tower in ("CLIP ViT-B/32 image tower", "MobileCLIP2-S0 image tower")}
    rows["mobilenetv4_conv_small, 512", "fp32"] = [2.4] * 9
    ratios, left_out = zoo._ratios(rows, seed=0)
    verdicts = {ratio["name"]: ratio["reached"] for ratio in ratios}
    assert list(verdicts.values()) == [False, True, True, False, None, None] and left_out == []
    forms = [{"precision": p, "threads_1": spread([t]), "threads_4": spread([1.0])} for p, t in
             (("fp32", 2.0), ("int8", 1.0))]  # fmt: skip
    lost = list(zoo._lost([{"name": "tiny, 512", "kind": "student", "forms": forms}], ratios))
    assert any("30.00 times, short of the 35 asked for" in said for said in lost)
    assert any("`tiny, 512`: int8 is no faster than fp32, 1.00 against 1.00 ms with 4 threads" in said for said in lost)
    assert not any("with 1 thread" in said for said in lost)


def test_a_graph_that_kills_its_process_is_named_and_half_precision_left_out(tmp_path: Path, monkeypatch) -> None:
    broken = tmp_path / "encoder.fp16.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(CannotRun, match=r"encoder.fp16.onnx cannot be run: .*not a graph"):
        peak([str(broken), "96", "1"])
    cards = {"a": {"side": 96}}
    found, dead = zoo._memory({("a", "fp16"): broken}, cards, lambda *_: None)
    assert found == {} and len(dead) == 1 and dead[0].startswith("a in fp16: encoder.fp16.onnx cannot be run")
    with pytest.raises(CannotRun):
        zoo._memory({("a", "int8"): broken}, cards, lambda *_: None)
    killed = subprocess.CompletedProcess([], -11, "", "")
    monkeypatch.setattr(zoo.subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(CannotRun, match=r"dies of encoder.fp16.onnx on this machine \(signal 11\)"):
        peak([str(broken), "96", "1"])


# --- who may ask for what


def test_rows_follow_the_table_not_the_asking() -> None:
    assert chosen(["ViT-B-32", "tiny"], (512, 768)) == [
        Inhabitant("tiny", 512), Inhabitant("tiny", 768), Inhabitant("ViT-B-32", 0)
    ]  # fmt: skip
    assert {row.name for row in chosen([], (512,))} >= {"efficientnet_b2, 512", "MobileCLIP2-S0 image tower"}
    with pytest.raises(UnknownInhabitant, match="dodo: not in the zoo, which holds tiny, "):
        chosen(["dodo"], (512,))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--only", "dodo"], 1, "dodo: not in the zoo"),
        (["--rounds", "1"], 2, "rounds"),
        (["--width", "0"], 2, "width"),
        (["--out", "/no/such/folder/zoo.json"], 2, "/no/such/folder"),
    ],
)
def test_errors_are_one_plain_line(arguments, code, words, capsys) -> None:
    came, said = run(["zoo", *arguments], capsys)
    assert came == code and words in said.err
    assert "Traceback" not in said.err and said.out == ""


def test_without_the_libraries_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['timm'] = None; from pocketlens_bench.cli import app; app(['zoo', '--only', 'tiny'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.strip() == (
        "pocketlens-bench: timm is not installed here: pip install 'pocketlens[teachers,export,bench]'"
    )


def test_the_page_shows_it(result: dict, work: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo.json").write_text(json.dumps(result))
    text = page_of(read_results([tmp_path]), tmp_path / "results.md").text
    assert "## Zoo: what a student costs" in text
    assert "| tiny, 512 | 96 |" in text and "Left out: mobilenetv4_conv_small int8 against" in text
