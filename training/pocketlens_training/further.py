"""What follows a student, whatever it was taught on: heads, the symmetric baseline, other numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from rich.progress import Progress

from pocketlens_training.baselines import learn_symmetric
from pocketlens_training.checkpoint import SYMMETRIC, load_run, sibling_folder
from pocketlens_training.distil import distil
from pocketlens_training.material import gather
from pocketlens_training.reading import reader_of
from pocketlens_training.run import cache_of, read_recipe, sources_of, teacher_of
from pocketlens_training.sets.kept import MOST_BYTES
from pocketlens_training.students.student import MOST_TOKENS
from pocketlens_training.teachers.teacher import Teacher
from pocketlens_training.tuning import HeadRecipe, tune


def learn_run_heads(
    run: Path, triplets: Path | None, recipe: HeadRecipe, *, where: Accelerator, progress: Progress, workers: int = 0
) -> None:
    """Heads and their control for the student of `run`."""
    trained = load_run(run)
    teacher = on_device(trained.teacher, where)
    tune(
        trained.student, teacher, triplets, run, recipe, reader=reader_of(teacher, where, exact=True), where=where,
        progress=progress, workers=workers,
    )  # fmt: skip


def learn_run_symmetric(run: Path, *, where: Accelerator, progress: Progress, workers: int = 0) -> None:
    """The symmetric baseline of `run`: same teacher, photos, k, steps, GCD and composition distillation."""
    recipe, sources = read_recipe(run), sources_of(run)
    if (run / f"{SYMMETRIC}.safetensors").exists():
        return
    teacher = teacher_of(run)
    material = gather(teacher, sources, recipe, where=where, progress=progress, workers=workers, cache=cache_of(run))
    learn_symmetric(material, recipe, run, where=where, progress=progress)


def learn_siblings(
    run: Path,
    counts: Sequence[int],
    *,
    where: Accelerator,
    progress: Progress,
    workers: int = 0,
    keep_bytes: int = MOST_BYTES,
) -> None:
    """Students with other numbers of tokens, of the same teacher: same recipe, steps, seed and pictures.

    Raises ValueError for a number of tokens that the run's own student has or that no bundle accepts."""
    recipe = read_recipe(run)
    for count in counts:
        if count == recipe.tokens:
            raise ValueError(f"{count} tokens: the run's own student has as many; a sibling needs another number")
        if not 1 <= count <= MOST_TOKENS:
            raise ValueError(f"{count} tokens: a bundle takes 1 to {MOST_TOKENS}")
    teacher = teacher_of(run).name
    for count in counts:
        distil(
            teacher, sources_of(run), sibling_folder(run, count), replace(recipe, tokens=count), where=where,
            progress=progress, workers=workers, cache=cache_of(run), keep_bytes=keep_bytes,
        )  # fmt: skip


def on_device(teacher: Teacher, where: Accelerator) -> Teacher:
    for module in (teacher.image, teacher.text):
        module.to(where.device)
    return teacher
