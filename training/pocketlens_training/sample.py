"""The sample world's curriculum, from nothing to checkpoints: the table of contents of this room."""

from __future__ import annotations

from pocketlens_training.lesson_heads import learn_heads
from pocketlens_training.lesson_student import learn_student, learn_symmetric
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
