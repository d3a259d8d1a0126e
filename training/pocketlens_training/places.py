"""The large tower's maps before pooling, kept on disk: LAR compares with them, the symmetric baseline reads them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress

from pocketlens_training.loop import CannotSave, partial_of, room_for
from pocketlens_training.sets.feed import look, pixels_of
from pocketlens_training.sets.sources import Source
from pocketlens_training.teachers.teacher import Teacher


@torch.no_grad()
def teacher_places(
    teacher: Teacher, photos: Source, numbers: NDArray[np.int64], content: str, cache: Path, *, where: Accelerator,
    progress: Progress, workers: int = 0,
) -> NDArray[np.float16]:  # fmt: skip
    """Maps float16 (rows, places, width) of the pictures `numbers`, memory-mapped from `cache`. Raises CannotSave.

    content: what names the pictures by what they hold."""
    path = cache / "places" / f"{teacher.id}-{content}.npy"
    with where.main_process_first():
        if not path.exists():
            _make(teacher, photos, numbers, path, where.device, progress, workers)
    return np.load(path, mmap_mode="r")


def _make(
    teacher: Teacher, photos: Source, numbers: NDArray[np.int64], path: Path, device: torch.device, progress: Progress,
    workers: int,
) -> None:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    bar = progress.add_task("places", total=len(numbers), note="")
    tower = teacher.image.to(device).eval()
    chosen = _Chosen(photos, numbers)
    held: NDArray[np.float16] | None = None
    try:
        for looked in look(chosen, teacher.picture, workers=workers):
            places = tower(pixels_of(looked).to(device))[1].half().cpu().numpy()
            if held is None:
                shape = (len(numbers), *places.shape[1:])
                held = room_for(partial, np.float16, shape)
            held[[one.number for one in looked]] = places
            progress.advance(bar, len(looked))
        assert held is not None
        held.flush()  # type: ignore[attr-defined]
        partial.replace(path)
    except OSError as error:
        raise CannotSave(f"{path} could not be written ({error}); make room, or leave out what needs it") from error
    finally:
        partial.unlink(missing_ok=True)


class _Chosen(Source):
    def __init__(self, photos: Source, numbers: NDArray[np.int64]) -> None:
        self.photos, self.numbers = photos, numbers
        self.names = [photos.names[n] for n in numbers]

    def read(self, number: int) -> bytes:
        return self.photos.read(int(self.numbers[number]))


def grid_of(places: int) -> tuple[int, int]:
    """Rows and columns of a square map. Raises ValueError for one that is not square."""
    side = math.isqrt(places)
    if side * side != places:
        raise ValueError(f"a map of {places} places is no square")
    return side, side
