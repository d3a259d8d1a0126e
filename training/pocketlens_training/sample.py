"""The sample world's curriculum, from nothing to checkpoints: the table of contents of this room.

Its set is written as anyone's would be (samples/pocketlens_samples/training_set.py); every lesson is the one that
anyone's set is given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator
from pocketlens_samples.training_set import Sizes, write_training_set
from rich.progress import Progress, TaskID

from pocketlens_training.distil import distil
from pocketlens_training.further import learn_run_heads, learn_run_symmetric
from pocketlens_training.material import Sources
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.teachers.own import TeacherRecipe
from pocketlens_training.teachers.teach import teach
from pocketlens_training.tuning import HeadRecipe


@dataclass(frozen=True, kw_only=True)
class SampleRecipe:
    """All of a sample training."""

    sizes: Sizes = field(default_factory=Sizes)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    student: DistilRecipe = field(default_factory=lambda: DistilRecipe(batch=128))
    """Small batches: the bank has negatives enough, and of as many pictures more steps leave the plateau sooner."""
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

    with where.main_process_first():
        write_training_set(world, recipe.sizes, on_done=drawn)
    teach(world / "pairs.jsonl", own, recipe.teacher, where=where, progress=progress, workers=workers)
    distil(
        f"run:{own}", set_sources(world), folder, recipe.student, where=where, progress=progress, workers=workers,
        cache=own,
    )  # fmt: skip
    learn_run_heads(folder, world / "triplets.jsonl", recipe.heads, where=where, progress=progress, workers=workers)
    learn_run_symmetric(folder, where=where, progress=progress, workers=workers)
