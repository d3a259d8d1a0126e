"""Does another form of an encoder find what the original finds?

Not whether its tokens are near: whether the right picture is still among the first ten. The same questions are asked
with both forms' tokens, through the bundle's own text tower and heads, and the change of recall@10 is given with a 95 %
interval. A form passes when even the interval's worse end is a loss of at most ALLOWED."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.compose import Composer, Mode
from pocketlens_cloud.towers import ImageTower
from pocketlens_edge.encoder import Encoder
from pocketlens_training.sets.lines import BadLines, read_triplets
from pocketlens_training.sets.sources import Files, Source
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec, fit, open_picture

ALLOWED = 0.5
"""Points of recall@10 that a form may lose, at 95 % confidence."""
FIRST = 10
CHUNK = 64
Z95 = 1.959964

Floats = NDArray[np.float32]
Squares = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Change:
    """Recall@10 of a form against the original's, percent of the same questions; low and high: 95 % of the change."""

    recall: float
    original: float
    change: float
    low: float
    high: float
    overlap: float
    """Mean share of the first ten that both have."""

    @property
    def passes(self) -> bool:
        return self.low >= -ALLOWED


class Judge:
    """Questions to one bundle, asked with any encoder's tokens. kind: what the questions are, for a report."""

    def __init__(
        self, bundle: Path, spec: PictureSpec, asked: Asked, *, kind: str, threads: int | None = None
    ) -> None:  # fmt: skip
        """spec: of the encoder's pixels. Raises BadBundle, BadLines when nothing can be asked."""
        folder, manifest = open_cloud_half(bundle)
        self.kind = kind
        self._composer = Composer.load(bundle, threads=threads)
        self.modes: list[Mode] = self._composer.modes
        tower = ImageTower(folder, manifest, threads=threads)
        gallery, self.unreadable = squares(asked.gallery, manifest.picture)
        row_of = {asked.gallery.names[number]: row for row, number in enumerate(gallery)}
        made = list(gallery.values())
        parts = [tower.vectors(np.stack(made[i : i + CHUNK])) for i in range(0, len(made), CHUNK)]
        self._gallery = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
        references, torn = squares(asked.references, spec)
        self.unreadable += torn
        kept = [n for n in references if any(name in row_of for name in asked.targets[n])]
        if not kept:
            raise BadLines(f"{kind}: no question whose picture and a target can be read")
        self.words = [asked.words[n] for n in kept]
        self.pixels = np.stack([references[n] for n in kept])
        self._right = [{row_of[name] for name in asked.targets[n] if name in row_of} for n in kept]
        self._left_out = [[row_of[name] for name in asked.excluded[n] if name in row_of] for n in kept]

    def __len__(self) -> int:
        return len(self.words)

    def tokens(self, encoder: Encoder) -> Floats:
        """Of every question's picture, (questions, k, width)."""
        parts = [encoder.encode_pixels(self.pixels[i : i + CHUNK]) for i in range(0, len(self), CHUNK)]
        return np.concatenate(parts)

    def firsts(self, tokens: Floats, mode: Mode) -> NDArray[np.int64]:
        """Rows of the gallery that each question finds first, (questions, 10)."""
        queries = self._composer.compose_batch(list(zip(tokens, self.words, strict=True)), mode)
        scores = queries @ self._gallery[self._composer.vector_of(mode)].T
        for row, left_out in enumerate(self._left_out):
            scores[row, left_out] = -np.inf
        return np.argsort(-scores, axis=1, kind="stable")[:, :FIRST]

    def compare(self, original: Floats, other: Floats) -> dict[Mode, Change]:
        """What is found with `other` tokens, beside what is found with the `original` ones, in every mode."""
        return {mode: self._compare(self.firsts(original, mode), self.firsts(other, mode)) for mode in self.modes}

    def _compare(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> Change:
        was, now = (np.array([bool(right & set(row)) for right, row in zip(self._right, rows.tolist(), strict=True)])
                    for rows in (before, after))  # fmt: skip
        low, high = interval(lost=int((was & ~now).sum()), gained=int((now & ~was).sum()), asked=len(was))
        shared = [len(set(a) & set(b)) / len(a) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
        return Change(
            recall=100 * now.mean(), original=100 * was.mean(), change=100 * (now.mean() - was.mean()), low=low,
            high=high, overlap=float(np.mean(shared)),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Questions before anything is read: of each its reference (by number), words, targets and what is left out."""

    references: Source
    words: Sequence[str]
    targets: Sequence[Sequence[str]]
    excluded: Sequence[Sequence[str]]
    gallery: Source


def composed(file: Path) -> Asked:
    """Composed questions of a JSON lines file; they search all that `gallery.txt` beside it and their targets name."""
    asked = read_triplets(file)
    listed = file.parent / "gallery.txt"
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = list(dict.fromkeys([*names, *(name for one in asked for name in one.targets)]))
    return Asked(
        references=Files(file.parent, [one.reference for one in asked]), words=[one.text for one in asked],
        targets=[one.targets for one in asked], excluded=[one.exclude for one in asked],
        gallery=Files(file.parent, names),
    )  # fmt: skip


def themselves(pictures: Source) -> Asked:
    """Without questions: each picture alone shall find itself among all."""
    names = [[name] for name in pictures.names]
    return Asked(
        references=pictures, words=[""] * len(names), targets=names, excluded=[()] * len(names), gallery=pictures
    )


def squares(source: Source, spec: PictureSpec) -> tuple[dict[int, Squares], list[tuple[str, str]]]:
    """Fitted pictures by number, and the names of those that cannot be read, with the reason."""
    found: dict[int, Squares] = {}
    bad: list[tuple[str, str]] = []
    for number, name in enumerate(source.names):
        try:
            found[number] = fit(open_picture(source.read(number), name=name, near=spec.side), spec)
        except BadPicture as problem:
            bad.append((name, str(problem)))
    return found, bad


def interval(*, lost: int, gained: int, asked: int) -> tuple[float, float]:
    """95 % interval of a change of recall, in points, from the questions that one form answers and the other does not.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions": Wald's with half a
    pair added to each of the four cells, so that no discordant pair in few questions does not pass for certainty."""
    n, fewer, more = asked + 2, lost + 0.5, gained + 0.5
    change = (more - fewer) / n
    half = Z95 * math.sqrt(max(0.0, (more + fewer) - (more - fewer) ** 2 / n)) / n
    return 100 * (change - half), 100 * (change + half)


def needed() -> int:
    """Questions of which none may change so that a form can pass."""
    n = 100
    while interval(lost=0, gained=0, asked=n)[0] < -ALLOWED:
        n += 1
    return n
