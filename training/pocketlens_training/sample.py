"""The sample world's curriculum, from nothing to checkpoints: the table of contents of this room."""

from __future__ import annotations

from collections.abc import Sequence

from pocketlens_training.lesson_heads import learn_heads
from pocketlens_training.lesson_student import learn_sibling, learn_student, learn_symmetric
from pocketlens_training.lesson_teacher import learn_edits, learn_teacher
from pocketlens_training.school import School


def learn(school: School) -> None:
    """All lessons in order. What is already trained in the school's folder is read, not trained again."""
    school.draw_pictures()
    learn_teacher(school)  # both towers, on pictures and captions
    learn_edits(school)  # the text tower alone: a later phrase overrides an earlier one
    learn_student(school)  # unlabelled pictures through the frozen text tower
    learn_heads(school)  # tuned mode and its control, on triplets
    learn_symmetric(school)  # the baseline the benchmark compares with


def learn_siblings(school: School, counts: Sequence[int]) -> None:
    """Students with other numbers of tokens, of the teacher that the school's folder holds.

    Raises FileNotFoundError without that teacher; ValueError for a number of tokens that the run's own student has
    or that no bundle of this training accepts."""
    if not school.done("edits"):
        raise FileNotFoundError(f"{school.folder}: no teacher yet; run `pocketlens-train sample -o {school.folder}`")
    for count in counts:
        if count == school.recipe.tokens:
            raise ValueError(f"{count} tokens: the run's own student has as many; a sibling needs another number")
        if not 1 <= count <= school.recipe.most_tokens:
            raise ValueError(f"{count} tokens: a bundle of this training takes 1 to {school.recipe.most_tokens}")
    school.draw_pictures()
    learn_teacher(school)  # both are read, not trained again
    learn_edits(school)
    for count in counts:
        learn_sibling(school, count)
