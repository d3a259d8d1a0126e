"""Real processes: killed without warning and begun again, and two of them teaching one student."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pocketlens_training.cli import app
from pocketlens_training.loop import read_log
from safetensors.torch import load_file
from typer.testing import CliRunner

TRAIN = [sys.executable, "-m", "pocketlens_training"]
QUIET = {**os.environ, "PYTHONWARNINGS": "ignore"}
PATIENCE = 240  # seconds; a loaded machine is slow


def begin(arguments: list[str], log: Path) -> subprocess.Popen:
    with log.open("w") as out:
        return subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, env=QUIET, start_new_session=True)


def kill_when(process: subprocess.Popen, sign: Path, log: Path) -> None:
    """kill -9 as soon as `sign` exists."""
    until = time.monotonic() + PATIENCE
    while not sign.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finish(arguments: list[str], log: Path) -> str:
    process = begin(arguments, log)
    try:
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return log.read_text()


def figures(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "steps_per_s"} for row in csv.DictReader(file)]


def same(one: Path, other: Path) -> None:
    first, second = load_file(one / "student.safetensors"), load_file(other / "student.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert figures(one / "student.csv") == figures(other / "student.csv")


def test_the_sample_training_killed_in_the_students_lesson_and_begun_again(tiny_run: Path, tmp_path: Path) -> None:
    """As tests/conftest.py trains it, which nobody disturbed: one thread, the machine's own precision."""
    folder = tmp_path / "run"
    for part in ("set", "teacher"):  # the lessons before, which take most of the time
        shutil.copytree(tiny_run / part, folder / part)
    command = [*TRAIN, "sample", "--tiny", "-o", str(folder), "--device", "cpu", "--threads", "1"]
    process = begin(command, tmp_path / "first.log")
    kill_when(process, folder / "student.csv", tmp_path / "first.log")
    assert not (folder / "student.safetensors").exists()
    said = finish(command, tmp_path / "second.log")
    same(folder, tiny_run)
    for name in ("heads", "heads-control", "symmetric"):
        first, second = (load_file(each / f"{name}.safetensors") for each in (folder, tiny_run))
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    summary = json.loads(said.splitlines()[-1])
    assert summary["run"] == str(folder) and summary["processes"] == 1
    assert not list(folder.rglob("*.resume.safetensors"))


def distilling(little: Path, out: Path, steps: int = 260) -> list[str]:
    return [
        "distill", "--teacher", f"run:{little / 'teacher'}", "--images", str(little / "pairs.jsonl"), "--told",
        str(little / "told.jsonl"), "--sketches", str(little / "sketches.jsonl"), "--student", "tiny-s", "--side", "32",
        "--tokens", "2", "--batch", "8", "--bank", "16", "--steps", str(steps), "--accumulate", "2", "--cache",
        str(little / "cache"), "-o", str(out), "--device", "cpu", "--precision", "fp32", "--threads", "1",
        "--workers", "0",
    ]  # fmt: skip


def test_a_distillation_goes_on_from_its_saved_state(little: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = begin([*TRAIN, *distilling(little, killed)], tmp_path / "first.log")
    kill_when(process, killed / "student.resume.safetensors", tmp_path / "first.log")
    assert not (killed / "student.safetensors").exists()
    said = finish([*TRAIN, *distilling(little, killed)], tmp_path / "second.log")
    assert "student: resumed at step 200" in said
    finish([*TRAIN, *distilling(little, whole)], tmp_path / "whole.log")
    same(killed, whole)


def launched(command: list[str], log: Path) -> str:
    # `accelerate launch --cpu` begins one process only, whatever number is asked for.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
              "pocketlens_training"]  # fmt: skip
    return finish([*launch, *command], log)


@pytest.fixture(scope="module")
def two_processes() -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo, which lets processes on CPUs talk")


@pytest.mark.usefixtures("two_processes")
def test_two_processes_teach_one_student(little: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = distilling(little, run, steps=20)
    command[command.index("--cache") + 1] = str(tmp_path / "cache")  # both compute the vectors at once
    said = launched(command, tmp_path / "distil.log")
    summary = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert summary["processes"] == 2
    (row,) = read_log(run / "student.csv")
    assert all(math.isfinite(value) for value in row.values())
    launched(
        ["heads", str(run), "--triplets", str(little / "triplets.jsonl"), "--steps", "20", "--device", "cpu",
         "--threads", "1", "--precision", "fp32", "--workers", "0"], tmp_path / "heads.log",
    )  # fmt: skip
    for name in ("heads", "heads-control"):
        assert all(math.isfinite(value) for value in read_log(run / f"{name}.csv")[-1].values())
    assert not list(tmp_path.rglob("*.part"))


def test_a_mistake_is_one_line(little: Path, tmp_path: Path) -> None:
    for changed, said in (
        (["--images", str(tmp_path / "none")], "no such file or folder"),
        (["--teacher", "run:none"], "no teacher lies there"),
        (["--teacher", "clip"], "no teacher has this name"),
        (["--gcd", "cos"], "gcd must be one of"),
        (["--variation", "zoom"], "variation must be one of"),
        (["--device", "gpu"], "device must be auto, cpu or cuda"),
    ):
        ran = CliRunner().invoke(app, [*distilling(little, tmp_path / "run", 1), *changed])
        assert ran.exit_code == 1
        assert said in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
