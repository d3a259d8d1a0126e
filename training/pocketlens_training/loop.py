"""The training loop all stages share: steps, checkpoints, logs one can plot, resumption.

A step's randomness comes from (seed, step) alone, so a resumed run takes the very steps it would have taken."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LossOf = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]]


def progress_bar() -> Progress:
    """A bar where there is a terminal; `train` prints plain lines elsewhere."""
    return Progress(
        TextColumn("{task.description:<13}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to 1 % of `peak`."""
    warm = max(1, steps * 3 // 100)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor has it (most of it is in convolutions), else plain float32."""
    capable = device.type == "cuda" or (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(capable))


def save_atomically(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".part")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    whole = optimiser.state_dict()
    for key, value in tensors.items():
        _, i, name = key.split(".")
        whole["state"].setdefault(int(i), {})[name] = value
    optimiser.load_state_dict(whole)


def train(
    stage: str,
    module: nn.Module,
    parameters: Iterable[nn.Parameter],
    loss_of: LossOf,
    *,
    steps: int,
    rate: float,
    seed: int,
    folder: Path,
    progress: Progress,
    validate: Callable[[], dict[str, float]] | None = None,
    every: int = 200,
) -> None:
    """Train `module` in place to `steps` and leave its weights in `folder/<stage>.safetensors`.

    While under way the state lies in `<stage>.resume.safetensors`; a run killed anywhere goes on from there."""
    done = folder / f"{stage}.safetensors"
    resume = folder / f"{stage}.resume.safetensors"
    if done.exists():
        module.load_state_dict(load_file(done))
        progress.console.print(f"{stage}: already trained ({done.name})")
        return
    trained = [p for p in parameters if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    plain = [p for p in trained if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    first = 0
    if resume.exists():
        tensors = load_file(resume)
        first = int(tensors.pop("step"))
        _restore_optimiser(optimiser, {k: tensors.pop(k) for k in list(tensors) if k.startswith("optimiser.")})
        module.load_state_dict(tensors)
        progress.console.print(f"{stage}: resumed at step {first}")
    bar = progress.add_task(stage, total=steps, completed=first, note="")
    started = time.monotonic()
    for step in range(first, steps):
        module.train()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, rate)
        torch.manual_seed(seed * 1_000_003 + step)  # dropout too is a function of the step
        loss, figures = loss_of(step, np.random.default_rng([seed, step]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        last = step + 1 == steps
        if last or (step + 1) % 20 == 0:
            figures = {"loss": loss.item(), **figures}
            if validate and (last or (step + 1) % every == 0):
                module.eval()
                figures |= validate()
            if not all(math.isfinite(value) for value in figures.values()):
                raise FloatingPointError(f"{stage}: step {step + 1} gave {figures}; lower the rate and resume")
            pace = (step + 1 - first) / (time.monotonic() - started)
            _log(folder / f"{stage}.log.jsonl", {"step": step + 1, **figures, "steps_per_s": pace})
            note = " ".join(f"{name} {value:.3g}" for name, value in figures.items())
            progress.update(bar, completed=step + 1, note=note)
            if not progress.console.is_terminal and (last or (step + 1) % every == 0):
                progress.console.print(f"{stage}: step {step + 1}/{steps} {note} ({pace:.2f} steps/s)", soft_wrap=True)
        if not last and (step + 1) % every == 0:
            state = {**module.state_dict(), **_optimiser_tensors(optimiser), "step": torch.tensor(step + 1)}
            save_atomically(state, resume)
    module.eval()
    save_atomically(module.state_dict(), done)
    resume.unlink(missing_ok=True)


def _log(path: Path, record: dict[str, float]) -> None:
    with path.open("a") as handle:
        handle.write(json.dumps({k: round(v, 5) for k, v in record.items()}) + "\n")
