"""The sample world's curriculum, from nothing to checkpoints: the table of contents of this room.

Its set is written as anyone's would be (samples/pocketlens_samples/training_set.py); every lesson is the one that
anyone's set is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator
from pocketlens_samples.training_set import Sizes, write_training_set
from rich.progress import Progress, TaskID

from pocketlens_training.baselines import learn_symmetric
from pocketlens_training.checkpoint import SYMMETRIC, load_run, sibling_folder
from pocketlens_training.distil import distil
from pocketlens_training.material import Sources, gather
from pocketlens_training.reading import reader_of
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.run import cache_of, read_recipe, sources_of
from pocketlens_training.students.student import MOST_TOKENS
from pocketlens_training.teachers.own import TeacherRecipe
from pocketlens_training.teachers.teach import teach
from pocketlens_training.teachers.teacher import Teacher
from pocketlens_training.tuning import HeadRecipe, tune


@dataclass(frozen=True, kw_only=True)
class SampleRecipe:
    """All of a sample training."""

    sizes: Sizes = field(default_factory=Sizes)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    student: DistilRecipe = field(default_factory=DistilRecipe)
    heads: HeadRecipe = field(default_factory=HeadRecipe)

    def seeded(self, seed: int) -> SampleRecipe:
        return SampleRecipe(
            sizes=replace(self.sizes, seed=seed), teacher=replace(self.teacher, seed=seed),
            student=replace(self.student, seed=seed), heads=replace(self.heads, seed=seed),
        )  # fmt: skip


TINY = SampleRecipe(
    sizes=Sizes(pictures=512, sketches=128, told=256, triplets=128, questions=40, gallery=300),
    teacher=TeacherRecipe(
        batch=64, steps=100, edit_steps=20, widths=(8, 16, 24, 32), word_width=64, dim=64, text_layers=2, held_out=0.1
    ),
    student=DistilRecipe(student="tiny-s", batch=64, bank=64, steps=100),
    heads=HeadRecipe(batch=64, steps=20),
)
"""Seconds on one core: proves that the code runs and learns something, not that it learns well."""


def set_sources(folder: Path) -> Sources:
    """The files of the set in `folder`, as a distillation takes them."""
    return Sources(
        images=folder / "pairs.jsonl", told=folder / "told.jsonl", sketches=folder / "sketches.jsonl",
        questions=folder / "questions.jsonl",
    )  # fmt: skip


def learn_sample(
    folder: Path, recipe: SampleRecipe, *, where: Accelerator, progress: Progress, workers: int = 0
) -> None:
    """All lessons in order. What is already there in `folder` is read, not made again."""
    world, own = folder / "set", folder / "teacher"
    bars: dict[str, TaskID] = {}

    def drawn(kind: str, done: int, total: int) -> None:
        if kind not in bars:
            bars[kind] = progress.add_task(kind, total=total, note="")
        progress.update(bars[kind], completed=done)

    write_training_set(world, recipe.sizes, on_done=drawn)
    teach(world / "pairs.jsonl", own, recipe.teacher, where=where, progress=progress, workers=workers)
    distil(
        f"run:{own}", set_sources(world), folder, recipe.student, where=where, progress=progress, workers=workers,
        cache=own,
    )  # fmt: skip
    learn_run_heads(folder, world / "triplets.jsonl", recipe.heads, where=where, progress=progress, workers=workers)
    learn_run_symmetric(folder, where=where, progress=progress, workers=workers)


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
    """The symmetric baseline of `run`: same teacher, pictures, k, losses, steps."""
    recipe, sources = read_recipe(run), sources_of(run)
    if (run / f"{SYMMETRIC}.safetensors").exists():
        return
    teacher = load_run(run).teacher
    material = gather(teacher, sources, recipe, where=where, progress=progress, workers=workers, cache=cache_of(run))
    learn_symmetric(material, recipe, run, where=where, progress=progress)


def learn_siblings(
    run: Path, counts: Sequence[int], *, where: Accelerator, progress: Progress, workers: int = 0
) -> None:
    """Students with other numbers of tokens, of the same teacher: same recipe, steps, seed and pictures.

    Raises ValueError for a number of tokens that the run's own student has or that no bundle accepts."""
    recipe = read_recipe(run)
    for count in counts:
        if count == recipe.tokens:
            raise ValueError(f"{count} tokens: the run's own student has as many; a sibling needs another number")
        if not 1 <= count <= MOST_TOKENS:
            raise ValueError(f"{count} tokens: a bundle takes 1 to {MOST_TOKENS}")
    teacher = load_run(run).teacher.name
    for count in counts:
        distil(
            teacher, sources_of(run), sibling_folder(run, count), replace(recipe, tokens=count), where=where,
            progress=progress, workers=workers, cache=cache_of(run),
        )  # fmt: skip


def on_device(teacher: Teacher, where: Accelerator) -> Teacher:
    for module in (teacher.image, teacher.text):
        module.to(where.device)
    return teacher
