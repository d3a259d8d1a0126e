"""What a training left behind, read back: the weights of one run folder as modules in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from pocketlens_training.heads import Control, Heads
from pocketlens_training.lesson_student import sibling_lesson
from pocketlens_training.recipe import Recipe
from pocketlens_training.student import Student, TokenLearner
from pocketlens_training.text import load_tokenizer
from pocketlens_training.towers import Teacher

LESSONS = ("edits", "student", "heads-union", "heads-control", "symmetric")
"""Whose weights make a bundle ("edits" holds the whole teacher), in the order of `Trained`'s modules."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """All modules of a finished run."""

    folder: Path
    recipe: Recipe
    teacher: Teacher
    student: Student
    heads: Heads
    control: Control
    symmetric: TokenLearner

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"


def load_run(folder: Path) -> Trained:
    """Modules of the run in `folder`. Raises FileNotFoundError naming the lesson that is missing."""
    for lesson in LESSONS:
        if not (folder / f"{lesson}.safetensors").is_file():
            raise FileNotFoundError(
                f"{folder}: lesson `{lesson}` is not trained yet; run the `pocketlens-train` command again "
                "that began it"
            )
    recipe = Recipe.read(folder / "recipe.json")
    vocabulary = load_tokenizer(folder / "tokenizer.json").get_vocab_size()
    empty = load_file(folder / "heads-union.safetensors")["target.empty"]
    trained = Trained(
        folder=folder,
        recipe=recipe,
        teacher=Teacher(recipe, vocabulary),
        student=Student(recipe.student_widths, recipe.tokens, recipe.word_width),
        heads=Heads(recipe.dim, empty),
        control=Control(recipe.dim),
        symmetric=TokenLearner(recipe.teacher_widths[-1], recipe.tokens, recipe.word_width),
    )
    modules = (trained.teacher, trained.student, trained.heads, trained.control, trained.symmetric)
    for lesson, module in zip(LESSONS, modules, strict=True):
        module.load_state_dict(load_file(folder / f"{lesson}.safetensors"))
        module.eval().requires_grad_(False)
    return trained


def load_sibling(trained: Trained, tokens: int) -> Student:
    """The student of this run that writes `tokens` tokens. Raises FileNotFoundError if it is not trained yet."""
    path = trained.folder / f"{sibling_lesson(tokens)}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not trained yet; run `pocketlens-train sibling {trained.folder} --tokens {tokens}`"
        )
    sibling = Student(trained.recipe.student_widths, tokens, trained.recipe.word_width)
    sibling.load_state_dict(load_file(path))
    return sibling.eval().requires_grad_(False)
