"""How fast a distillation goes, beside the least it could do: forward and backward of the bare student and text tower.

Both are timed in one run, by turns, on the same batches; the bare one is given its pixels and rows beforehand. Called
by cli/distil_pace.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from pocketlens_training.cost import multiply_adds, parameters
from pocketlens_training.distil import Distiller, Plan, learn
from pocketlens_training.loop import machine, precision_of
from pocketlens_training.material import Material, Sources, gather
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.sets.pixels import VariedPictures, stacked
from pocketlens_training.students.student import Student, make_student, student_picture
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.teacher import Teacher
from rich.console import Console
from rich.progress import Progress
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.world import OnProgress, silently

WARM = 2  # steps before the clock runs
HONESTY = (
    "Bare is forward and backward of student and text tower on pixels and rows made beforehand: no picture is read, no "
    "loss but a sum, no optimiser. The whole step reads and varies pictures, makes rows, computes the losses, steps "
    "and averages. Composition distillation runs the text tower three times more every second step; its row says what "
    "that costs."
)


def measure(
    teacher_name: str, images: Path, *, told: Path | None, student_name: str, batch: int, steps: int, rounds: int,
    workers: int, cache: Path, on_progress: OnProgress = silently,
) -> dict[str, Any]:  # fmt: skip
    """Everything `pocketlens-bench distill` says, as one JSON object."""
    load = load_now()
    where = machine()
    teacher = load_teacher(teacher_name)
    recipe = DistilRecipe(
        student=student_name, pretrained=False, batch=batch, steps=steps, sketches="none", composition_weight=0.0
    )
    progress = Progress(console=Console(quiet=True), disable=True)  # stdout is for the result
    on_progress("teacher vectors", 0, 1)
    material = gather(
        teacher, Sources(images=images, told=told), replace(recipe, composition_weight=10.0), where=where,
        progress=progress, workers=workers, cache=cache,
    )  # fmt: skip
    torch.manual_seed(0)
    student = make_student(student_name, teacher, tokens=recipe.tokens, pretrained=False)
    pace = _Pace(student, teacher, material, recipe, where, workers)
    needs = pace.needs()
    ways: dict[str, Callable[[], list[float]]] = {"bare": pace.bare, "whole": pace.whole}
    if material.told is not None:
        ways["whole, with composition distillation"] = lambda: pace.whole(composition=10.0)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            taken[name] += way()
        on_progress("rounds", turn + 1, rounds)
    bare = median(taken["bare"])
    rows = [
        {"name": name, "seconds_per_step": median(values), "pictures_per_second": batch / median(values),
         "of_bare": bare / median(values)}
        for name, values in taken.items()
    ]  # fmt: skip
    side = student.encoder.side
    card = conditions(
        None, load=load, sizes={"batch": batch, "steps of a round": steps, "rounds": rounds},
        threads={"torch": torch.get_num_threads(), "processes that read": workers}, device=str(where.device),
        precision=precision_of(where),
    )  # fmt: skip
    card["versions"]["torch"] = torch.__version__
    return {
        "benchmark": "distill",
        "tables": [{"key": "distill", "title": f"{student_name} from {_shown(teacher.name)}", "rows": rows}],
        "student": {
            "parameters": parameters(student),
            "multiply_adds": multiply_adds(student.cpu(), torch.zeros(1, side, side, 3, dtype=torch.uint8)),
        },
        "needs": needs,
        "honesty": HONESTY,
        "conditions": card,
    }


def _shown(teacher: str) -> str:
    """A teacher's name without the folders of this machine."""
    family, colon, rest = teacher.partition(":")
    model, at, file = rest.partition("@")
    if at:
        return f"{family}:{model}@{Path(file).name}"
    return f"{family}{colon}{Path(rest).resolve().name}" if family == "run" or Path(rest).is_dir() else teacher


class _Pace:
    def __init__(
        self, student: Student, teacher: Teacher, material: Material, recipe: DistilRecipe, where: Accelerator,
        workers: int,
    ) -> None:  # fmt: skip
        self.student, self.teacher, self.material, self.recipe = student, teacher, material, recipe
        self.where, self.workers = where, workers
        plan = Plan(material, recipe, 0)
        pictures = VariedPictures(material.photos, student_picture(student, teacher), "none")
        self.pixels = [
            stacked([pictures[ask] for ask in plan.asks(micro)]).to(where.device) for micro in range(recipe.steps)
        ]
        self.rows = material.reader.maker.rows([material.reader.alone] * recipe.batch, tokens=recipe.tokens).to(
            where.device
        )

    def needs(self) -> dict[str, float]:
        """What a step needs of any machine: arithmetic and what backward must remember, of one picture; and the bytes
        of weights, frozen and trained (with gradient, both moments of AdamW and the running mean).

        Arithmetic is counted forward; backward is taken for twice that, and for once in the text tower, whose weights
        learn nothing. (Torch counts the backward of grouped convolutions as if they were whole.)"""
        module = Distiller(self.student).to(self.where.device).train().requires_grad_()
        owned = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *self._frozen().parameters())}
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with FlopCounterMode(display=False) as of_student, torch.no_grad():
            module(self.pixels[0])
        with FlopCounterMode(display=False) as of_both, saved_tensors_hooks(note, lambda tensor: tensor):
            self._forward(module, self.pixels[0])
        student = of_student.get_total_flops()
        arithmetic = 3 * student + 2 * (of_both.get_total_flops() - student)
        return {
            "gflops_per_picture": arithmetic / self.recipe.batch / 1e9,
            "remembered_mb_per_picture": sum(kept.values()) / self.recipe.batch / 1e6,
            "frozen_mb": 4 * parameters(self._frozen()) / 1e6,
            "trained_mb": 20 * parameters(self.student) / 1e6,
        }

    def _frozen(self) -> torch.nn.ModuleList:
        return torch.nn.ModuleList([self.teacher.image, self.teacher.text])

    def _forward(self, module: Distiller, pixels: torch.Tensor) -> torch.Tensor:
        rows = self.rows
        with self.where.autocast():
            sentence = module(pixels).sentence
            return self.teacher.text(rows.token_ids, sentence, rows.sentence_start, rows.sentence_length, rows.end)

    def bare(self) -> list[float]:
        """Seconds of each step after the first WARM."""
        module = Distiller(self.student).to(self.where.device).train().requires_grad_()
        taken = []
        for pixels in self.pixels:
            started = perf_counter()
            self._forward(module, pixels).float().sum().backward()
            self._wait()
            taken.append(perf_counter() - started)
            module.zero_grad(set_to_none=True)
        return taken[WARM:]

    def whole(self, composition: float = 0.0) -> list[float]:
        """Seconds of a step, as many times as steps after the first WARM; the loop is timed as it is used."""
        recipe = replace(self.recipe, composition_weight=composition)
        torch.manual_seed(0)
        student = make_student(recipe.student, self.teacher, tokens=recipe.tokens, pretrained=False)
        progress = Progress(console=Console(quiet=True), disable=True)  # stdout is for the result
        with TemporaryDirectory(prefix="pocketlens-bench-") as folder:
            began = _after(student, WARM, self._wait)
            learn(
                student, self.material, recipe, Path(folder), where=self.where, progress=progress, workers=self.workers
            )
            self._wait()
            ended = perf_counter()
        count = recipe.steps - WARM
        return [(ended - began()) / count] * count

    def _wait(self) -> None:
        if self.where.device.type == "cuda":
            torch.cuda.synchronize()


def _after(student: Student, calls: int, wait: Callable[[], None]) -> Callable[[], float]:
    """Tells when `student` was called for the time after `calls`: the beginning of the steps that count."""
    seen: list[float] = []

    def note(*_: Any) -> None:
        if len(seen) == calls:
            wait()
        seen.append(perf_counter())

    student.encoder.register_forward_pre_hook(note)
    return lambda: seen[calls]
