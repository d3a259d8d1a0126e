"""The recipe of one training: every number a run is given, saved beside the weights it made.

Owns sizes, steps, seeds and rates; the stages read it and add none of their own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pocketlens_wire.manifest import Prompts

PROMPTS = Prompts(
    composed="a photo of {sentence}, {words}",
    picture="a photo of {sentence}",
    words="{words}",
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All of a sample training. Widths in numbers, `side` in pixels, steps in optimiser steps."""

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
    tokens: int = 4
    """Sentence tokens a picture becomes (k)."""
    teacher_widths: tuple[int, ...] = (32, 64, 128, 192)
    student_widths: tuple[int, ...] = (16, 32, 64, 96)

    pictures: int = 100_000
    """Unlabelled photos; they come in pairs that differ in one or two attributes."""
    sketches: int = 30_000
    """Pencil sketches, each of the specification of the photo with the same number."""
    batch: int = 256
    teacher_steps: int = 1800
    teacher_rate: float = 1.5e-3
    edit_steps: int = 700
    edit_rate: float = 6e-4
    student_steps: int = 3000
    student_rate: float = 2e-3
    bank: int = 4096
    """Frozen teacher vectors beside the batch as negatives of GCD."""
    caption_bank: int = 120_000
    """Captions from which composition distillation takes a picture's nearest."""
    composition_weight: float = 10.0
    sketch_share: float = 0.2
    """Share of a student batch that is sketches, pulled to the vector of the photo."""
    triplets: int = 8_000
    head_steps: int = 800
    head_rate: float = 1e-3
    symmetric_pictures: int = 30_000
    """Photos whose feature maps the symmetric baseline learns from."""
    symmetric_steps: int = 3000

    @property
    def most_tokens(self) -> int:
        """Sentence tokens that the cloud half of this training takes in one query."""
        return 2 * self.tokens

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Recipe:
        raw = json.loads(path.read_text())
        known = {field.name for field in fields(cls)}
        if raw.keys() != known:
            raise ValueError(
                f"{path}: recipe keys missing {sorted(known - raw.keys())}, unknown {sorted(raw.keys() - known)}; "
                "start a new run folder"
            )
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
        return cls(**values)


TINY = Recipe(
    pictures=512, sketches=128, batch=64, bank=64, caption_bank=256, triplets=128, symmetric_pictures=256,
    teacher_steps=100, edit_steps=20, student_steps=100, head_steps=20, symmetric_steps=20,
    teacher_widths=(8, 16, 24, 32), student_widths=(4, 8, 12, 16), word_width=64, dim=64, text_layers=2,
)  # fmt: skip
"""Seconds on one core: proves that the code runs and learns something, not that it learns well."""
