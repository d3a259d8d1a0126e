"""A training killed anywhere and run again takes the very steps it would have taken."""

from __future__ import annotations

import csv
import errno
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pocketlens_training import loop
from pocketlens_training.loop import (
    CannotSave,
    NotFinite,
    Schedule,
    learning_rate,
    machine,
    progress_bar,
    read_log,
    save_atomically,
    train,
    write_json,
)
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

PLAIN = Schedule(steps=60, rate=1e-2, seed=1, every=10)
ALL = replace(PLAIN, average=0.95, accumulate=2, slower={"0": 0.5})


class Killed(Exception):
    pass


def run(
    folder: Path, schedule: Schedule = PLAIN, *, die_at: int | None = None, nan_at: int | None = None,
    steep_at: int | None = None, precision: str = "fp32",
) -> nn.Module:  # fmt: skip
    """die_at, nan_at, steep_at (its loss is finite, its gradient is not): micro-batches."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    # Dropout and batch norm: randomness and state that a careless resumption loses.
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def loss_of(given: Any, micro: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        if micro == die_at:
            raise Killed
        x = torch.from_numpy(rng.standard_normal((16, 4))).float()
        loss = (given(x) - x.sum(1, keepdim=True)).square().mean()
        if micro == steep_at:
            loss = loss + (given[0].weight * 0).abs().sqrt().sum()
        figures: dict[str, float | Tensor] = {"drawn": float(x[0, 0])}
        if micro % 2 == 0:
            figures["now and then"] = loss.detach() + 1
        return loss * (math.nan if micro == nan_at else 1.0), figures

    def validate(kept: nn.Module) -> dict[str, float]:
        assert not kept.training
        with torch.no_grad():
            return {"held out": float(kept(torch.ones(1, 4)))}

    train(
        "toy", module, loss_of, schedule, folder=folder, where=machine("cpu", precision), progress=progress_bar(),
        validate=validate,
    )  # fmt: skip
    return module


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "toy.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "steps_per_s"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("schedule", [PLAIN, ALL], ids=["plain", "mean and accumulation"])
@pytest.mark.parametrize("die_at", [1, 10, 37, 59])
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, schedule: Schedule, die_at: int) -> None:
    run(tmp_path / "a", schedule)
    with pytest.raises(Killed):
        run(tmp_path / "b", schedule, die_at=die_at * schedule.accumulate)
    assert (tmp_path / "b" / "toy.resume.safetensors").exists() == (die_at >= 10)
    run(tmp_path / "b", schedule)
    undisturbed, resumed = (load_file(tmp_path / name / "toy.safetensors") for name in "ab")
    assert undisturbed.keys() == resumed.keys()
    for name, tensor in undisturbed.items():
        assert torch.equal(tensor, resumed[name]), name
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    assert not (tmp_path / "b" / "toy.resume.safetensors").exists()


def test_killed_again_and_again(tmp_path: Path) -> None:
    run(tmp_path / "a", ALL)
    for die_at in (5, 25, 24, 47, 81, 119):
        with pytest.raises(Killed):
            run(tmp_path / "b", ALL, die_at=die_at)
    run(tmp_path / "b", ALL)
    undisturbed, resumed = (load_file(tmp_path / name / "toy.safetensors") for name in "ab")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in undisturbed.items())
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


def test_what_is_kept_is_the_mean_of_the_weights(tmp_path: Path) -> None:
    mean, last = run(tmp_path / "a", replace(PLAIN, average=0.95)), run(tmp_path / "b")
    assert not torch.equal(mean[0].weight, last[0].weight)
    assert torch.allclose(mean[0].weight, last[0].weight, atol=0.2)
    assert torch.equal(mean[0].weight, load_file(tmp_path / "a" / "toy.safetensors")["0.weight"])
    assert not mean.training


def test_the_mean_follows_its_formula(tmp_path: Path) -> None:
    """kept <- d kept + (1 - d) new, d = min(0.5, (1 + t) / (10 + t)) after the first step, whose weights are taken."""
    before: list[Tensor] = []

    def learned(folder: str, average: float) -> nn.Linear:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)

        def loss_of(given: Any, micro: int, rng: np.random.Generator) -> tuple[Tensor, dict]:
            if not average:
                before.append(given.weight.detach().clone())
            return given(torch.from_numpy(rng.standard_normal((4, 3))).float()).square().mean(), {}

        (tmp_path / folder).mkdir()
        schedule = Schedule(steps=12, rate=1e-2, seed=1, average=average)
        train(
            "toy", module, loss_of, schedule, folder=tmp_path / folder, where=machine("cpu", "fp32"),
            progress=progress_bar(),
        )  # fmt: skip
        return module

    last = learned("last", 0.0)
    first, *later = [*before[1:], last.weight.detach()]
    kept = first
    for t, new in enumerate(later, 1):
        share = min(0.5, (1 + t) / (10 + t))
        kept = share * kept + (1 - share) * new
    assert torch.allclose(learned("mean", 0.5).weight, kept, atol=1e-6)


@pytest.mark.parametrize(("every", "steps"), [(20, [20, 40, 60]), (40, [20, 40, 60, 80])])
def test_tensorboard_shows_a_resumed_run_as_one(tmp_path: Path, every: int, steps: list[int]) -> None:
    """What came before the saved state stays; what the killed run had written after it is not there twice."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    schedule = replace(PLAIN, every=every, steps=steps[-1])
    with pytest.raises(Killed):
        run(tmp_path, schedule, die_at=steps[-1] - 13)
    run(tmp_path, schedule)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard" / "toy"))
    events.Reload()
    for name, wanted in (("loss", steps), ("held out", [step for step in steps if step % every == 0])):
        assert [event.step for event in events.Scalars(name)] == wanted, name


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """Of a module whose gradient is a mean over rows, two halves of a batch give the gradient of the whole."""
    data = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 10, 3))).float()

    def learned(accumulate: int) -> Tensor:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)

        def loss_of(given: Any, micro: int, _rng: Any) -> tuple[Tensor, dict]:
            x = data[micro // accumulate].chunk(accumulate)[micro % accumulate]
            return given(x).square().mean(), {}

        folder = tmp_path / str(accumulate)
        folder.mkdir()
        schedule = Schedule(steps=8, rate=1e-2, seed=1, accumulate=accumulate)
        train("toy", module, loss_of, schedule, folder=folder, where=machine("cpu", "fp32"), progress=progress_bar())
        return module.weight.detach()

    assert torch.allclose(learned(1), learned(2), atol=1e-6)
    assert (tmp_path / "2" / "toy.csv").exists()


def test_the_log_holds_all_figures_even_those_of_every_second_batch(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", ALL)
    for name in "ab":
        rows = read_log(tmp_path / name / "toy.csv")
        assert [row["step"] for row in rows] == [20, 40, 60]
        for row in rows:
            assert row.keys() >= {"step", "loss", "drawn", "now and then", "steps_per_s", "held out"}
            assert all(math.isfinite(value) for value in row.values())
    assert list((tmp_path / "a" / "tensorboard" / "toy").glob("events.*"))


def test_slower_parameters_move_less(tmp_path: Path) -> None:
    def moved(slower: dict[str, float]) -> float:
        torch.manual_seed(0)
        before = nn.Linear(4, 8).weight.detach()
        folder = tmp_path / str(len(slower))
        return float((run(folder, replace(PLAIN, steps=2, slower=slower))[0].weight - before).detach().abs().max())

    assert moved({"0.": 0.1}) == pytest.approx(0.1 * moved({}), rel=0.1)


def test_a_finished_stage_is_read_not_trained(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path, die_at=0)  # would raise on the first step
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("schedule", "micro", "step"),
    [(PLAIN, 0, 1), (PLAIN, 33, 34), (PLAIN, 59, 60), (ALL, 66, 34), (ALL, 67, 34), (ALL, 68, 35)],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step(tmp_path: Path, schedule, micro, step) -> None:
    with pytest.raises(NotFinite, match=rf"toy: loss or gradient of step {step} is not a number"):
        run(tmp_path, schedule, nan_at=micro)
    assert not (tmp_path / "toy.safetensors").exists()
    saved = tmp_path / "toy.resume.safetensors"
    assert saved.exists() == (step > 10)
    if saved.exists():
        state = load_file(saved)
        assert int(state["step"]) == (step - 1) // 10 * 10
        assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in state.values())
    if (tmp_path / "toy.csv").exists():
        assert all(math.isfinite(value) for row in read_log(tmp_path / "toy.csv") for value in row.values())


@pytest.mark.parametrize(("micro", "step"), [(9, 10), (33, 34), (59, 60)])
def test_a_gradient_that_is_not_finite_is_no_good_state(tmp_path: Path, micro: int, step: int) -> None:
    """Its loss is finite; that of the next step is not, and after the last step there is no next."""
    with pytest.raises(NotFinite, match=rf"toy: loss or gradient of step {step} is not a number"):
        run(tmp_path, steep_at=micro)
    assert not (tmp_path / "toy.safetensors").exists()
    for saved in tmp_path.glob("*.safetensors"):
        assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in load_file(saved).values())


def full_disk(*_args, **_kwargs) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_and_what_was_saved_before_is_whole(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "b", die_at=25)
    before = (tmp_path / "b" / "toy.resume.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_file", full_disk)
        with pytest.raises(
            CannotSave, match=r"toy\.resume\.safetensors \(.* MB\) could not be written .*No space left"
        ):
            run(tmp_path / "b")
    assert (tmp_path / "b" / "toy.resume.safetensors").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    run(tmp_path / "a")
    run(tmp_path / "b")
    undisturbed, resumed = (load_file(tmp_path / name / "toy.safetensors") for name in "ab")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in undisturbed.items())
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


def test_a_disk_that_is_full_for_the_log(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(csv.DictWriter, "writerows", full_disk)
    with pytest.raises(CannotSave, match=r"toy\.csv could not be written .*No space left"):
        run(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_what_is_kept_can_be_read_by_others_as_far_as_they_may(tmp_path: Path, monkeypatch) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        monkeypatch.setattr(loop, "UMASK", mask)
        save_atomically({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


def test_a_narrow_terminal_keeps_how_far_it_is(tmp_path: Path) -> None:
    bar = progress_bar()
    bar.add_task("student", total=3000, completed=220, note=" ".join(f"figure{n} 0.123" for n in range(20)))
    console = Console(width=80, file=StringIO())
    console.print(bar.get_renderable())
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "student" in line and "220/3000" in line and "figure0" in line and line.rstrip().endswith("…")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    def half(_tensors, path: Path, _metadata=None) -> None:
        Path(path).write_bytes(b"half")
        full_disk()

    path = tmp_path / "x.safetensors"
    save_atomically({"a": torch.ones(2)}, path)
    monkeypatch.setattr(loop, "save_file", half)
    with pytest.raises(CannotSave):
        save_atomically({"a": torch.zeros(2)}, path)
    assert load_file(path)["a"].tolist() == [1, 1]
    write_json(tmp_path / "x.json", {"a": "ü"})
    assert {each.name for each in tmp_path.iterdir()} == {"x.safetensors", "x.json"}


def test_half_precision_learns_too(tmp_path: Path) -> None:
    run(tmp_path, precision="bf16")
    rows = read_log(tmp_path / "toy.csv")
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize(
    ("device", "precision", "said"),
    [
        ("gpu", "auto", "device must be auto, cpu or cuda, came 'gpu'"),
        ("cpu", "fp8", "precision must be one of auto, bf16, fp16, fp32, came 'fp8'"),
        ("cuda", "auto", "torch sees no NVIDIA GPU here; use --device cpu"),
        ("cpu", "fp16", "precision fp16 needs an NVIDIA GPU"),
        ("auto", "fp16", "precision fp16 needs an NVIDIA GPU"),
    ],
)
def test_a_machine_that_is_not_there_is_refused(monkeypatch, device: str, precision: str, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        machine(device, precision)


def test_a_process_can_train_twice_on_machines_of_other_precision() -> None:
    assert machine("cpu", "bf16").mixed_precision == "bf16"
    assert machine("cpu", "fp32").mixed_precision == "no"
    assert machine("cpu").device.type == "cpu"


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) < 40
    assert rates[-1] < 0.02
