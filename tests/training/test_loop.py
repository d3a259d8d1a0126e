"""A training killed anywhere and run again takes the very steps it would have taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pocketlens_training.loop import learning_rate, progress_bar, train
from safetensors.torch import load_file
from torch import Tensor, nn


class Killed(Exception):
    pass


def run(folder: Path, *, die_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    # Dropout and batch norm: randomness and state that a careless resumption loses.
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == die_at:
            raise Killed
        x = torch.from_numpy(rng.standard_normal((16, 4))).float()
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    train(
        "toy", module, module.parameters(), loss_of, steps=60, rate=1e-2, seed=1, folder=folder,
        progress=progress_bar(), every=10,
    )  # fmt: skip
    return module


@pytest.mark.parametrize("die_at", [1, 10, 37, 59])
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, die_at: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", die_at=die_at)
    assert (tmp_path / "b" / "toy.resume.safetensors").exists() == (die_at >= 10)
    run(tmp_path / "b")
    undisturbed, resumed = (load_file(tmp_path / name / "toy.safetensors") for name in "ab")
    assert undisturbed.keys() == resumed.keys()
    for name, tensor in undisturbed.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_finished_stage_is_read_not_trained(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path, die_at=0)  # would raise on the first step
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 20"):
        train(
            "bad", module, module.parameters(), lambda _s, _r: (module(torch.full((1, 1), torch.nan)).sum(), {}),
            steps=30, rate=1e-2, seed=1, folder=tmp_path, progress=progress_bar(),
        )  # fmt: skip
    assert not (tmp_path / "bad.safetensors").exists()


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) < 40
    assert rates[-1] < 0.02
