"""The training loop of all lessons: steps, checkpoints, logs one can plot, exact resumption, one or many devices.

What a micro-batch holds follows from (seed, its number, the process) alone, so a resumed run takes the very steps it
would have taken. Devices, precision and gradient synchronisation are accelerate's."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

LOG_EVERY = 20  # steps
SILENT_S = 30.0  # after so long a log that nobody watches gets a line
UMASK = os.umask(0)
os.umask(UMASK)  # it can be read by setting it alone
PRECISIONS = ("auto", "bf16", "fp16", "fp32")

LossOf = Callable[[Any, int, np.random.Generator], tuple[Tensor, Mapping[str, float | Tensor]]]
"""(module, micro-batch number, its randomness) -> (loss, figures for the log)."""


Several = tuple[Tensor, ...] | list[Tensor]


class NotFinite(FloatingPointError):
    """A loss or a gradient became NaN or infinite: names the step and where the last good state lies."""


class CannotSave(OSError):
    """A checkpoint could not be written; what was written before is whole."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    rate: peak of AdamW's. slower: factor on it of the parameters whose name begins with one of these. decay: weight
    decay of matrices. accumulate: micro-batches whose mean gradient one step takes. average: decay of the running mean
    of the weights (EMA), which is what is kept; 0 keeps the last ones. every: steps between saved states."""

    steps: int
    rate: float
    seed: int
    slower: Mapping[str, float] | None = None
    decay: float = 0.05
    clip: float = 1.0
    accumulate: int = 1
    average: float = 0.0
    every: int = 200


def progress_bar() -> Progress:
    """A bar where there is a terminal; `train` prints plain lines elsewhere."""

    def whole(**more: Any) -> Column:  # what is said last gives way where a terminal is narrow
        return Column(no_wrap=True, **more)

    return Progress(
        TextColumn("{task.description:<11}", table_column=whole(min_width=11)),
        BarColumn(bar_width=10, table_column=whole(min_width=10)),
        MofNCompleteColumn(table_column=whole(min_width=11)),
        TimeElapsedColumn(table_column=whole(min_width=7)),
        TimeRemainingColumn(table_column=whole(min_width=7)),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        expand=True,
    )


def machine(device: str = "auto", precision: str = "auto") -> Accelerator:
    """Where lessons run. device: "cpu", "cuda", or "auto". precision: one of PRECISIONS; "auto" takes bfloat16 where
    the hardware has it. Raises ValueError, saying what is there, for what is not."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, came {precision!r}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, came {device!r}")
    gpu = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not gpu:
        raise ValueError("device cuda was asked for, but torch sees no NVIDIA GPU here; use --device cpu")
    if precision == "fp16" and not gpu:
        raise ValueError("precision fp16 needs an NVIDIA GPU; use bf16 or fp32 here")
    if precision == "auto":
        precision = "bf16" if _has_bfloat16(gpu=gpu) else "fp32"
    AcceleratorState._reset_state(reset_partial_state=False)  # a process may train twice, in tests and benchmarks
    return Accelerator(
        cpu=not gpu,
        mixed_precision="no" if precision == "fp32" else precision,
        # Others wait while one computes the teacher's vectors, which may take hours.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )


def precision_of(where: Accelerator) -> str:
    """As `machine` was asked for it."""
    return "fp32" if where.mixed_precision == "no" else where.mixed_precision


def _has_bfloat16(*, gpu: bool) -> bool:
    if gpu:
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to 1 % of `peak`."""
    warm = max(1, steps * 3 // 100)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def room_for(path: Path, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new .npy file as a writable map, its bytes reserved: a disk that fills up under a map kills the process without
    a word. Raises OSError when there is no room."""
    held = np.lib.format.open_memmap(path, "w+", kind, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return held


def partial_of(path: Path) -> Path:
    """Where `path` is written until it is whole: several processes may make the same thing. What processes of this
    machine left there when they were killed is removed."""
    here = f"{path.stem}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(here)}*.part"):
        process = left.name.removeprefix(here).removesuffix(".part")
        if process.isdecimal() and not _alive(int(process)):
            left.unlink(missing_ok=True)
    return path.with_name(f"{here}{os.getpid()}.part")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def save_atomically(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write `path` whole or not at all. Raises CannotSave, for example on a full disk."""
    partial = partial_of(path)
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, partial, metadata)
        partial.chmod(0o666 & ~UMASK)  # the library keeps its files to their owner
        partial.replace(path)
    except Exception as error:  # safetensors raises its own kind for a full disk
        partial.unlink(missing_ok=True)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise CannotSave(
            f"{path} ({size / 1e6:.1f} MB) could not be written ({error}). What was saved before is whole: make room "
            "and run the same command again"
        ) from error


def train(
    lesson: str,
    module: nn.Module,
    loss_of: LossOf,
    schedule: Schedule,
    *,
    folder: Path,
    where: Accelerator,
    progress: Progress,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> None:
    """Train `module` in place to `schedule.steps` and leave its weights in `folder/<lesson>.safetensors`.

    While under way the state lies in `<lesson>.resume.safetensors`; a run killed anywhere goes on from there. Logs:
    `<lesson>.csv` and, if tensorboard is installed, `tensorboard/<lesson>`. Raises NotFinite, CannotSave."""
    done = folder / f"{lesson}.safetensors"
    if done.exists():
        module.load_state_dict(load_file(done))
        module.to(where.device).eval()
        progress.console.print(f"{lesson}: already trained ({done.name})", markup=False)
        return
    _Run(lesson, module, loss_of, schedule, folder, where, progress, validate).go()


class _Run:
    """One lesson under way."""

    def __init__(
        self, lesson: str, module: nn.Module, loss_of: LossOf, schedule: Schedule, folder: Path, where: Accelerator,
        progress: Progress, validate: Callable[[nn.Module], dict[str, float]] | None,
    ) -> None:  # fmt: skip
        self.lesson, self.loss_of, self.schedule, self.folder = lesson, loss_of, schedule, folder
        self.where, self.progress, self.validate = where, progress, validate
        self.module = module.to(where.device)
        self.averaged = _averaged(module, schedule.average)
        optimiser = torch.optim.AdamW(_groups(module, schedule), lr=schedule.rate, betas=(0.9, 0.98))
        self.first = self._resume(optimiser)
        self.prepared, self.optimiser = where.prepare(module, optimiser)
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.log = Log(folder, lesson, self.first) if where.is_main_process else None
        self.said_at = time.monotonic()
        self.unchecked: list[Tensor] = []  # of each step, whether all was finite; looking waits for the GPU

    @property
    def _saved(self) -> Path:
        return self.folder / f"{self.lesson}.resume.safetensors"

    def go(self) -> None:
        steps = self.schedule.steps
        bar = self.progress.add_task(self.lesson, total=steps, completed=self.first, note="")
        started = time.monotonic()
        figures: dict[str, float | Tensor] = {}
        for step in range(self.first, steps):
            figures |= self._step(step)  # a figure of every second batch is in the log too
            last = step + 1 == steps
            if last or (step + 1) % LOG_EVERY == 0:
                self._check(step)
                said = {name: float(value) for name, value in figures.items()}
                pace = (step + 1 - self.first) / (time.monotonic() - started)
                self._say(step, said, pace, bar, slow=last or (step + 1) % self.schedule.every == 0)
                figures = {}
            if not last and (step + 1) % self.schedule.every == 0:
                self._save(step)
        self._finish()

    def _step(self, step: int) -> Mapping[str, float | Tensor]:
        schedule, where = self.schedule, self.where
        self.module.train()
        rate = learning_rate(step, schedule.steps, schedule.rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        figures: dict[str, float | Tensor] = {}
        losses: list[Tensor] = []
        for part in range(schedule.accumulate):
            micro = step * schedule.accumulate + part
            seed = [schedule.seed, micro, where.process_index]
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))  # dropout follows the step too
            wait = where.no_sync(self.prepared) if part + 1 < schedule.accumulate else nullcontext()
            with wait:
                loss, told = self.loss_of(self.prepared, micro, np.random.default_rng(seed))
                where.backward(loss / schedule.accumulate)
            losses.append(loss.detach())
            figures |= {"loss": loss.detach(), **told}
        norm = where.clip_grad_norm_(self.trained, schedule.clip)
        if where.scaler is None and norm is not None:  # a scaler leaves out steps of infinite gradients
            losses.append(norm.detach())
        self.unchecked.append(torch.isfinite(torch.stack([each.float() for each in losses])).all())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        return figures

    def _check(self, step: int) -> None:
        """Raises NotFinite if a loss or a gradient since the last look was not a number."""
        good = torch.stack(self.unchecked).tolist()
        self.unchecked.clear()
        if all(good):
            return
        first = step + 2 - len(good) + good.index(False)
        kept = f"the last good state is {self._saved}" if self._saved.exists() else "no state was saved before it"
        raise NotFinite(
            f"{self.lesson}: loss or gradient of step {first} is not a number; {kept}. Lower the rate, in a new "
            "folder, or look at what that step was shown"
        )

    def _say(self, step: int, figures: dict[str, float], pace: float, bar: Any, *, slow: bool) -> None:
        if slow and self.validate is not None:
            self.module.eval()
            figures |= self.validate(self._kept())
        if self.log is None:
            return
        self.log.add(step + 1, {**figures, "steps_per_s": pace})
        note = " ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self.progress.update(bar, completed=step + 1, note=note)
        if (slow or self._long_silent()) and not self.progress.console.is_terminal:
            self.said_at = time.monotonic()
            text = f"{self.lesson}: step {step + 1}/{self.schedule.steps} {note} ({pace:.2f} steps/s)"
            self.progress.console.print(text, soft_wrap=True, markup=False)

    def _long_silent(self) -> bool:
        return time.monotonic() - self.said_at > SILENT_S

    def _kept(self) -> nn.Module:
        """The weights that will be kept."""
        return self.module if self.averaged is None else self.averaged.module.eval()

    def _save(self, step: int) -> None:
        self._check(step) if self.unchecked else None
        if not self.where.is_main_process:
            return
        state = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        if self.averaged is not None:
            state |= {f"average.{name}": value for name, value in self.averaged.state_dict().items()}
        state |= _optimiser_tensors(self.optimiser) | {"step": torch.tensor(step + 1), "way": self._way()}
        if self.where.scaler is not None:
            held = self.where.scaler.state_dict()
            state |= {f"scaler.{name}": torch.tensor(value, dtype=torch.float64) for name, value in held.items()}
        save_atomically(state, self._saved)

    def _way(self) -> Tensor:
        """How the numbers come about: another precision or number of processes would not go on with the same curve."""
        way = f"precision {precision_of(self.where)}, processes {self.where.num_processes}"
        return torch.tensor(list(way.encode()), dtype=torch.uint8)

    def _resume(self, optimiser: torch.optim.Optimizer) -> int:
        if not self._saved.exists():
            return 0
        tensors = load_file(self._saved, device=str(self.where.device))
        step = int(tensors["step"])
        was, now = (bytes(way.tolist()).decode() for way in (tensors.get("way", self._way()), self._way()))
        if was != now:
            raise ValueError(
                f"{self._saved} was begun with {was}, not {now}; give the options it was begun with, or name another "
                "folder"
            )
        self.module.load_state_dict(under("module.", tensors))
        if self.averaged is not None:
            self.averaged.load_state_dict(under("average.", tensors))
        _restore_optimiser(optimiser, under("optimiser.", tensors))
        if self.where.scaler is not None and (held := under("scaler.", tensors)):
            whole = ("growth_interval", "_growth_tracker")
            numbers = {name: float(value) for name, value in held.items()}
            self.where.scaler.load_state_dict({n: int(v) if n in whole else v for n, v in numbers.items()})
        self.progress.console.print(f"{self.lesson}: resumed at step {step}", markup=False)
        return step

    def _finish(self) -> None:
        if self.averaged is not None:
            self.module.load_state_dict(self.averaged.module.state_dict())
        self.where.wait_for_everyone()
        self.module.eval()
        if self.where.is_main_process:
            save_atomically(self.module.state_dict(), self.folder / f"{self.lesson}.safetensors")
            self._saved.unlink(missing_ok=True)
        self.where.wait_for_everyone()  # the next lesson of another process may read what was saved
        if self.log is not None:
            self.log.close()
        unwrapped = self.where.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        assert unwrapped is self.module
        self.where._models.clear()
        self.where._optimizers.clear()


class Log:
    """`<lesson>.csv`, one row every LOG_EVERY steps, and the same for TensorBoard. Rows after `first` are dropped, so
    that a resumed run leaves the curve of an undisturbed one."""

    def __init__(self, folder: Path, lesson: str, first: int) -> None:
        self.path = folder / f"{lesson}.csv"
        self.rows = [row for row in read_log(self.path) if row["step"] <= first] if self.path.exists() else []
        self.board = _tensorboard(folder / "tensorboard" / lesson, first)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **figures})
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        partial = self.path.with_suffix(".part")
        try:
            with partial.open("w", newline="") as file:
                table = csv.DictWriter(file, columns)
                table.writeheader()
                table.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
            partial.replace(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CannotSave(f"{self.path} could not be written ({error}); make room and run again") from error
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a lesson's CSV; what a row does not say is missing in it."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write `path` whole or not at all."""
    partial = partial_of(path)
    partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _tensorboard(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first + 1)


def _averaged(module: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None

    def mix(kept: Several, new: Several, _count: Tensor | int) -> None:
        if not kept[0].is_floating_point():
            for mine, theirs in zip(kept, new, strict=True):
                mine.copy_(theirs)
            return
        steps = float(averaged.n_averaged)  # on the CPU: the count given lies on the GPU, and reading it waits
        # Early on the mean is of few steps, or it would remember the first weights.
        get_ema_multi_avg_fn(min(decay, (1.0 + steps) / (10.0 + steps)))(kept, new, 0)

    averaged = AveragedModel(module, multi_avg_fn=mix, use_buffers=True)
    return averaged


def _groups(module: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Parameters by their factor on the rate and by whether they decay."""
    slower = schedule.slower or {}
    sorted_: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = next((value for start, value in slower.items() if name.startswith(start)), 1.0)
            decay = schedule.decay if parameter.ndim > 1 else 0.0
            sorted_.setdefault((factor, decay), []).append(parameter)
    return [{"params": some, "factor": f, "weight_decay": d} for (f, d), some in sorted_.items()]


def _optimiser_tensors(optimiser: Any) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    whole = optimiser.state_dict()
    for key, value in tensors.items():
        i, name = key.split(".")
        # The count of steps stays on the CPU, where AdamW keeps it.
        whole["state"].setdefault(int(i), {})[name] = value.cpu() if name == "step" else value
    optimiser.load_state_dict(whole)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
