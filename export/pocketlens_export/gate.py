"""Does another form of an encoder find what the original finds?

Not whether its tokens are near: whether the right picture is still among the first ten. The same questions are asked
with both forms' tokens, through the bundle's own text tower and heads, and the change of recall@10 is given with a 95 %
interval. A form passes when even the interval's worse end is a loss of at most ALLOWED."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
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
Fitting = Callable[[Image.Image, PictureSpec], Squares]


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
    shared: list[int]
    """Of how many questions they share 0, 1, ... 10 of their first ten."""

    @property
    def passes(self) -> bool:
        return self.low >= -ALLOWED


Changes = dict[Mode, Change]


def passes(changes: Changes) -> bool:
    """Whether a form does in every mode."""
    return all(change.passes for change in changes.values())


class Judge:
    """Questions to one bundle, answered by its fp32 graphs and by others in their place.

    kind: what the questions are, for a report; one that is asked twice counts once. pixels: of their pictures,
    (questions, side, side, 3). tokens: of those, by the original encoder. unreadable: pictures left out, and why."""

    def __init__(self, bundle: Path, asked: Asked, *, kind: str, threads: int | None = None) -> None:
        """Raises BadBundle, and BadLines when nothing can be asked."""
        folder, manifest = open_cloud_half(bundle)
        encoder = Encoder.load(bundle, threads=threads or 0)
        self.kind, self.composer = kind, Composer.load(bundle, threads=threads)
        self.modes = self.composer.modes
        self._spec, self._large = encoder.manifest.picture, manifest.picture
        self._pictures, self._read = asked.gallery, list(range(len(asked.gallery)))
        self.unreadable: list[tuple[str, str]] = []
        self._vectors = self.vectors(ImageTower(folder, manifest, threads=threads))
        row_of = {asked.gallery.names[number]: row for row, number in enumerate(self._read)}
        references, torn = squares(asked.references, self._spec)
        self.unreadable += torn
        kept = _different(
            {n: (references[n].tobytes(), asked.words[n]) for n in references
             if any(name in row_of for name in asked.targets[n])}
        )  # fmt: skip
        if not kept:
            raise BadLines(f"{kind}: no question whose picture and a target can be read")
        self._references, self._kept = asked.references, kept
        self.words = [asked.words[n] for n in kept]
        self.pixels = np.stack([references[n] for n in kept])
        self._right = [{row_of[name] for name in asked.targets[n] if name in row_of} for n in kept]
        self._left_out = [[row_of[name] for name in asked.excluded[n] if name in row_of] for n in kept]
        self.tokens = self.read(encoder)
        self._before = {mode: self.firsts(mode) for mode in self.modes}

    def __len__(self) -> int:
        return len(self.words)

    def read(self, encoder: Encoder, pixels: Squares | None = None) -> Floats:
        """Tokens of every question's picture, or of other pixels in its place, (questions, k, width)."""
        seen = self.pixels if pixels is None else pixels
        return np.concatenate([encoder.encode_pixels(seen[i : i + CHUNK]) for i in range(0, len(seen), CHUNK)])

    def seen(self, fitted: Fitting) -> Squares:
        """The questions' pictures, fitted to the encoder in another way."""
        return np.stack(list(squares(Part(self._references, self._kept), self._spec, fitted)[0].values()))

    def large(self, count: int) -> Squares:
        """Some of the pictures that are searched, as the image tower sees them, (count or fewer, side, side, 3)."""
        return np.stack(list(squares(Part(self._pictures, self._read[:count]), self._large)[0].values()))

    def vectors(self, tower: ImageTower) -> dict[str, Floats]:
        """Of the pictures that are searched, by name. The first time, those that cannot be read are left out."""
        parts: list[dict[str, Floats]] = []
        read, waiting = [], []
        for number, made in _each(self._pictures, self._read, self._large, fit):
            if isinstance(made, str):
                self.unreadable.append((self._pictures.names[number], made))
                continue
            read.append(number)
            waiting.append(made)
            if len(waiting) == CHUNK:
                parts.append(tower.vectors(np.stack(waiting)))
                waiting = []
        if waiting:
            parts.append(tower.vectors(np.stack(waiting)))
        if not parts:
            raise BadLines(f"{self.kind}: none of the pictures to search can be read")
        self._read = read
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def firsts(
        self, mode: Mode, tokens: Floats | None = None, *, composer: Composer | None = None,
        vectors: dict[str, Floats] | None = None,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Rows of the gallery that each question finds first, (questions, 10); what is not given is the original's."""
        composer = composer or self.composer
        asks = list(zip(self.tokens if tokens is None else tokens, self.words, strict=True))
        queries = composer.compose_batch(asks, mode)
        scores = queries @ (vectors or self._vectors)[composer.vector_of(mode)].T
        for row, left_out in enumerate(self._left_out):
            scores[row, left_out] = -np.inf
        return np.argsort(-scores, axis=1, kind="stable")[:, :FIRST]

    def changes(
        self,
        tokens: Floats | None = None,
        *,
        composer: Composer | None = None,
        vectors: dict[str, Floats] | None = None,
    ) -> Changes:
        """What other tokens, another text tower or other gallery vectors change, in every mode."""
        return {
            mode: self._change(self._before[mode], self.firsts(mode, tokens, composer=composer, vectors=vectors))
            for mode in self.modes
        }

    def _change(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> Change:
        was, now = (np.array([bool(right & set(row)) for right, row in zip(self._right, rows.tolist(), strict=True)])
                    for rows in (before, after))  # fmt: skip
        low, high = interval(lost=int((was & ~now).sum()), gained=int((now & ~was).sum()), asked=len(was))
        shared = [len(set(a) & set(b)) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
        return Change(
            recall=100 * now.mean(), original=100 * was.mean(), change=100 * (now.mean() - was.mean()), low=low,
            high=high, overlap=float(np.mean(shared)) / before.shape[1],
            shared=np.bincount(shared, minlength=FIRST + 1).tolist(),
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


def _different(questions: dict[int, tuple[bytes, str]]) -> list[int]:
    """One of each: a question asked again brings no further certainty."""
    first: dict[tuple[bytes, str], int] = {}
    for number, (pixels, words) in questions.items():
        first.setdefault((sha256(pixels).digest(), words), number)
    return list(first.values())


def squares(
    source: Source, spec: PictureSpec, fitted: Fitting = fit
) -> tuple[dict[int, Squares], list[tuple[str, str]]]:
    """Fitted pictures by number, and the names of those that cannot be read, with the reason."""
    found: dict[int, Squares] = {}
    bad: list[tuple[str, str]] = []
    for number, made in _each(source, range(len(source)), spec, fitted):
        if isinstance(made, str):
            bad.append((source.names[number], made))
        else:
            found[number] = made
    return found, bad


def some(pictures: Source, count: int) -> Source:
    """At most so many of them, drawn."""
    return Part(pictures, np.random.default_rng(0).permutation(len(pictures))[:count].tolist())


class Part(Source):
    """Some pictures of a source, by number."""

    def __init__(self, pictures: Source, numbers: Sequence[int]) -> None:
        self._pictures, self._numbers = pictures, numbers
        self.names = [pictures.names[number] for number in numbers]

    def read(self, number: int) -> bytes:
        return self._pictures.read(self._numbers[number])


class Both(Source):
    """The pictures of two sources, one after the other."""

    def __init__(self, first: Source, second: Source) -> None:
        self._first, self._second = first, second
        self.names = [*first.names, *second.names]

    def read(self, number: int) -> bytes:
        before = len(self._first)
        return self._first.read(number) if number < before else self._second.read(number - before)


def _each(
    source: Source, numbers: Iterable[int], spec: PictureSpec, fitted: Fitting
) -> Iterator[tuple[int, Squares | str]]:
    """Each picture's number and its square, or why it cannot be read."""
    for number in numbers:
        name = source.names[number]
        try:
            yield number, fitted(open_picture(source.read(number), name=name, near=spec.side), spec)
        except BadPicture as problem:
            yield number, str(problem)


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
