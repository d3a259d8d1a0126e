"""What a distillation has before its first step: the teacher, its vectors of all pictures, captions, sketches.

All of it is frozen, shared by every student and baseline of a run, and computed once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from pocketlens_training.features import teacher_vectors
from pocketlens_training.reading import Reader, reader_of
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.sets.feed import look
from pocketlens_training.sets.lines import BadLines, read_pairs, read_sketches, read_told, read_triplets
from pocketlens_training.sets.sources import Files, NoPictures, Source, open_source
from pocketlens_training.teachers.teacher import Teacher
from pocketlens_training.told import ToldBank

UNREADABLE = "unreadable.csv"
FEWEST = 8  # pictures from which a batch can be made at all


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a distillation's material lies. images: anything open_source reads, or a pairs file; told: captions with
    edits; sketches: sketch and photo; questions: composed queries for the log."""

    images: Path
    told: Path | None = None
    sketches: Path | None = None
    questions: Path | None = None

    def check(self) -> None:
        """Read every JSON lines file once: a mistake in one shall not be found after hours. Raises BadLines."""
        for file, read in ((self.told, read_told), (self.sketches, read_sketches), (self.questions, read_triplets)):
            if file is not None:
                read(file)

    def relative_to(self, folder: Path) -> dict[str, str | None]:
        """As a run keeps them: relative to it, so that both can be moved together."""
        return {
            key: None if value is None else os.path.relpath(value.absolute(), folder.absolute())
            for key, value in vars(self).items()
        }

    @classmethod
    def of(cls, named: Mapping[str, str | None], folder: Path) -> Sources:
        return cls(**{key: None if value is None else folder / value for key, value in named.items()})  # type: ignore[arg-type]


@dataclass
class Material:
    """A teacher, and what it makes of the pictures: what every student of a run shares. Rows are readable pictures."""

    teacher: Teacher
    reader: Reader
    photos: Source
    numbers: NDArray[np.int64]
    """Of each row, its number in `photos`."""
    content: str
    """What names the photos by what they hold: 16 hex digits."""
    raw: Tensor
    """Raw teacher vectors float32 (rows, dim)."""
    kept: NDArray[np.int64]
    """Rows to learn from."""
    held: NDArray[np.int64]
    """Rows held out."""
    cache: Path
    told: ToldBank | None = None
    sketches: Source | None = None
    drawn: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """(sketch number, row of its photo) of the sketches to learn from."""
    sketch_content: str = ""
    """What names all sketches by what they hold."""
    sketch_raw: Tensor | None = None
    """Raw teacher vectors of all sketches, by number; for `drawn-own` alone."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is known of photos, by name; for diagnostics alone."""

    @property
    def unit(self) -> Tensor:
        return F.normalize(self.raw, dim=1)


def gather(
    teacher: Teacher, sources: Sources, recipe: DistilRecipe, *, where: Accelerator, progress: Progress, workers: int,
    cache: Path,
) -> Material:  # fmt: skip
    """Teacher vectors of all pictures, and all else that is frozen. Raises NoPictures, BadLines."""
    with where.main_process_first():  # the others find its vectors kept
        return _gathered(teacher, sources, recipe, where, progress, workers, cache)


def _gathered(
    teacher: Teacher, sources: Sources, recipe: DistilRecipe, where: Accelerator, progress: Progress, workers: int,
    cache: Path,
) -> Material:  # fmt: skip
    for module in (teacher.image, teacher.text):
        module.to(where.device)
    photos, attributes = open_images(sources.images)
    seen = with_bar(progress, "vectors", len(photos), lambda tick: teacher_vectors(
        teacher, photos, cache / "features", device=where.device, workers=workers, on_done=tick,
    ))  # fmt: skip
    different = len(np.unique(seen.digests, axis=0))
    if different < FEWEST:
        raise NoPictures(f"{sources.images}: {different} different pictures can be read; at least {FEWEST} are needed")
    if seen.unreadable:
        progress.console.print(
            f"{len(seen.unreadable)} pictures cannot be read and are left out; {UNREADABLE} lists them", markup=False
        )
    reader = reader_of(teacher, where)
    held, kept = split_by_content(seen.digests, recipe.held_out)
    material = Material(
        teacher=teacher, reader=reader, photos=photos, numbers=seen.numbers, raw=seen.raw, kept=kept, held=held,
        content=sha256(seen.digests.tobytes()).hexdigest()[:16], cache=cache, unreadable=list(seen.unreadable),
        attributes=attributes,
    )  # fmt: skip
    if sources.told is not None and recipe.composition_weight:
        both = f"{teacher.id} {teacher.text_id}"
        material.told = ToldBank(sources.told, material.unit, material.content, reader, both, cache / "told", progress)
    if sources.sketches is not None and recipe.sketches.startswith("drawn"):
        _add_sketches(material, sources.sketches, recipe, where=where, progress=progress, workers=workers)
    return material


def open_images(images: Path) -> tuple[Source, dict[str, Mapping[str, Any]]]:
    """The pictures, and what a pairs file says of them. Raises NoPictures, BadLines."""
    if images.suffix != ".jsonl":
        return open_source(images), {}
    if not images.is_file():
        raise NoPictures(f"{images}: no such file")
    plain, _ = read_pairs(images)
    known = {one.image: one.attributes for one in plain}
    return Files(images.parent, list(known)), known


def with_bar(progress: Progress, title: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
    """What `work` gives, which tells a bar how many are done."""
    bar = progress.add_task(title, total=total, note="")
    return work(lambda count: progress.advance(bar, count))


def _add_sketches(
    material: Material, file: Path, recipe: DistilRecipe, *, where: Accelerator, progress: Progress, workers: int
) -> None:
    listed = read_sketches(file)
    photos = material.photos
    root = photos.root if isinstance(photos, Files) else file.parent
    row_of = {absolute(root, photos.names[number]): row for row, number in enumerate(material.numbers)}
    held = set(material.held.tolist())
    source = Files(file.parent, [sketch for sketch, _ in listed])
    good, content = set(), sha256()
    for looked in look(source, material.teacher.picture, workers=workers):
        good |= {one.number for one in looked if one.problem is None}
        content.update(b"".join(one.digest for one in looked))
        material.unreadable += [(source.names[one.number], one.problem) for one in looked if one.problem is not None]
    rows = [row_of.get(absolute(file.parent, photo)) for _, photo in listed]
    pairs = [(n, row) for n, row in enumerate(rows) if row is not None and n in good and row not in held]
    torn, strangers = len(listed) - len(good), rows.count(None)
    lost = f"{torn:,} cannot be read, the photo of {strangers:,} is no readable picture of --images"
    if not pairs:
        raise BadLines(f"{file}: none of its {len(listed):,} sketches can be learned from: {lost}")
    if torn or strangers:
        progress.console.print(f"{file}: of its {len(listed):,} sketches {lost}; they are left out", markup=False)
    material.sketches, material.drawn = source, np.array(pairs)
    material.sketch_content = content.hexdigest()[:16]
    if recipe.sketches == "drawn-own":
        seen = with_bar(progress, "sketches", len(source), lambda tick: teacher_vectors(
            material.teacher, source, material.cache / "features", device=where.device, workers=workers, on_done=tick,
        ))  # fmt: skip
        material.sketch_raw = torch.zeros(len(source), seen.raw.shape[1])
        material.sketch_raw[torch.from_numpy(seen.numbers)] = seen.raw


def absolute(root: Path, name: str) -> str:
    return os.path.normpath(root.absolute() / name)


def split_by_content(digests: NDArray[np.uint8], held_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(held out, kept) rows, by digest: the same pictures whatever their order and names, and no copy of one that is
    held out among the kept. Held out is at most a tenth."""
    names = [row.tobytes() for row in digests]
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    cut = min(held_out, len(names) // 10)
    while cut > 0 and names[order[cut]] == names[order[cut - 1]]:
        cut -= 1
    return np.sort(order[:cut]), np.sort(order[cut:])
