"""What a training left behind, read back: the weights of one run folder as modules in evaluation mode."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlens_wire.pictures import PictureSpec
from safetensors.torch import load_file
from torch import nn

from pocketlens_training.loop import under
from pocketlens_training.recipe import DistilRecipe, strictly
from pocketlens_training.run import LESSON, read_recipe, teacher_of
from pocketlens_training.students.student import Student, make_learner, make_student, student_picture
from pocketlens_training.teachers.teacher import Teacher
from pocketlens_training.tuning import CARD, CONTROL, HEADS, HeadRecipe, Heads, make_heads

SYMMETRIC = "symmetric"
SIBLINGS = "siblings"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The modules of a run: what is there of it. picture: how its device makes a picture square."""

    folder: Path
    recipe: DistilRecipe
    teacher: Teacher
    student: Student
    picture: PictureSpec
    head_recipe: HeadRecipe | None
    heads: Heads | None
    control: Heads | None
    symmetric: nn.Module | None
    """The token learner of the symmetric baseline, upon the large tower's map."""


def load_run(folder: Path) -> Trained:
    """Modules of the run in `folder`. Raises FileNotFoundError naming what is not trained yet; CannotTeach, ValueError
    when its teacher is another one now."""
    recipe = read_recipe(folder)
    if not (folder / f"{LESSON}.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder}: its student is not trained yet; run the `pocketlens-train` command again that began it"
        )
    teacher = teacher_of(folder)
    student = load_student(folder, recipe, teacher)
    head_recipe, heads, control = _load_heads(folder)
    return Trained(
        folder=folder, recipe=recipe, teacher=teacher, student=student, picture=student_picture(student, teacher),
        head_recipe=head_recipe, heads=heads, control=control, symmetric=_load_symmetric(folder, recipe, teacher),
    )  # fmt: skip


def load_student(folder: Path, recipe: DistilRecipe, teacher: Teacher) -> Student:
    """The student whose weights lie in `folder`, frozen."""
    backbone = recipe.student.partition("@")[0]  # the file it began with is not needed any more
    student = make_student(
        backbone, teacher, tokens=recipe.tokens, side=recipe.side, pretrained=False, anchors=recipe.anchors
    )
    student.load_state_dict(under("student.", load_file(folder / f"{LESSON}.safetensors")))
    return _still(student)


def load_sibling(trained: Trained, tokens: int) -> Student:
    """The student of this run that writes `tokens` tokens. Raises FileNotFoundError if it is not trained yet."""
    folder = sibling_folder(trained.folder, tokens)
    if not (folder / f"{LESSON}.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder}: not trained yet; run `pocketlens-train sibling {trained.folder} --tokens {tokens}`"
        )
    return load_student(folder, read_recipe(folder), trained.teacher)


def sibling_folder(run: Path, tokens: int) -> Path:
    return run / SIBLINGS / f"k{tokens}"


def _load_heads(folder: Path) -> tuple[HeadRecipe | None, Heads | None, Heads | None]:
    if not (folder / CARD).is_file():
        return None, None, None
    recipe = strictly(HeadRecipe, json.loads((folder / CARD).read_text())["recipe"], str(folder / CARD))
    made = []
    for lesson, target in ((HEADS, recipe.target), (CONTROL, "original")):
        tensors = load_file(folder / f"{lesson}.safetensors")
        heads = make_heads(HeadRecipe(composition=recipe.composition, target=target), tensors["target.empty_raw"][0])
        heads.load_state_dict(tensors)
        made.append(_still(heads))
    return recipe, made[0], made[1]


def _load_symmetric(folder: Path, recipe: DistilRecipe, teacher: Teacher) -> nn.Module | None:
    from pocketlens_training.baselines import Symmetric

    path = folder / f"{SYMMETRIC}.safetensors"
    if not path.is_file():
        return None
    tensors = under("student.", load_file(path))
    channels = tensors["learner.project.weight"].shape[1]
    module = Symmetric(make_learner(recipe.student, channels, teacher, tokens=recipe.tokens, anchors=recipe.anchors))
    module.load_state_dict(tensors)
    return _still(module)


def _still(module: Any) -> Any:
    return module.eval().requires_grad_(False)
