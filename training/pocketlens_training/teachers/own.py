"""A teacher of one's own: its recipe, its folder, and how it is read back.

TEACHER/teacher.json says what it is, tokenizer.json holds its words, teacher.safetensors its weights in half precision:
float32 made of them is what is taught and exported, so that nothing is lost by keeping them small."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketlens_wire.pictures import PictureSpec
from safetensors import SafetensorError
from safetensors.torch import load_file

from pocketlens_training.loop import write_json
from pocketlens_training.recipe import PROMPTS, strictly
from pocketlens_training.sets.pixels import VARIATIONS
from pocketlens_training.teachers.teacher import CannotTeach, Teacher, frozen
from pocketlens_training.teachers.tokenizing import read_tokenizer
from pocketlens_training.teachers.towers import Towers
from pocketlens_training.teachers.vocabulary import LAYOUT

CARD, WEIGHTS, WORDS = "teacher.json", "teacher.safetensors", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """Every number of a teacher's training. Widths in numbers, `side` in pixels, steps in optimiser steps; steps of 0
    are chosen by the size of the set."""

    seed: int = 20261121
    side: int = 96
    """Pictures are square, this many pixels a side."""
    context: int = 64
    """Most token ids in one text, begin and end included."""
    dim: int = 256
    """Width of the joint space."""
    word_width: int = 192
    """Width of a word embedding, and so of a sentence token."""
    text_layers: int = 4
    widths: tuple[int, ...] = (32, 64, 128, 192)
    """Channels of the image tower's four stages."""
    batch: int = 256
    steps: int = 0
    rate: float = 1.5e-3
    edit_steps: int = 0
    edit_rate: float = 6e-4
    edit_share: float = 0.6
    """Of an edit lesson's batch: captions of another picture followed by a change; the rest are plain captions."""
    variation: str = "shift"
    held_out: float = 0.02
    """Share of pictures (of groups) kept from training and searched at the end; at most 5,000."""
    word_at_least: int = 2
    """A word that occurs less often has no token of its own."""
    words_at_most: int = 30_000

    def __post_init__(self) -> None:
        if self.variation not in VARIATIONS:
            raise ValueError(f"variation must be one of {', '.join(VARIATIONS)}, came {self.variation!r}")

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> TeacherRecipe:
        """Raises ValueError, naming keys, for a recipe of another version."""
        return strictly(cls, json.loads(path.read_text()), str(path))


def build_towers(recipe: TeacherRecipe, vocabulary: int) -> Towers:
    return Towers(
        widths=recipe.widths, vocabulary=vocabulary, context=recipe.context, word_width=recipe.word_width,
        text_layers=recipe.text_layers, dim=recipe.dim,
    )  # fmt: skip


def from_own(name: str, folder: Path) -> Teacher:
    """The teacher that `pocketlens-train teacher` left in `folder`. Raises CannotTeach."""
    if not (folder / CARD).is_file() or not (folder / WEIGHTS).is_file():
        why = "its training is not finished" if (folder / "recipe.json").is_file() else "no teacher lies there"
        raise CannotTeach(f"{name}: {why}; `pocketlens-train teacher --pairs FILE.jsonl -o {folder}` makes one")
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text())
        recipe = TeacherRecipe.read(folder / "recipe.json")
        towers = build_towers(recipe, int(card["vocabulary"]))
        towers.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CannotTeach(f"{name}: {folder} is not a whole teacher ({str(error).splitlines()[0]})") from error
    return as_teacher(name, recipe, towers, read_tokenizer(folder / WORDS))


def as_teacher(name: str, recipe: TeacherRecipe, towers: Towers, tokenizer: Any) -> Teacher:
    """Trained towers as what a student learns from."""
    frozen(towers)
    return Teacher(
        name=name, image=towers.image, text=towers.text, scale=float(towers.scale()), dim=recipe.dim,
        context=recipe.context, picture=PictureSpec(side=recipe.side, fit="crop"), layout=LAYOUT, prompts=PROMPTS,
        tokenizer=tokenizer, signature="pocketlens towers v1",
    )  # fmt: skip
