"""Fitted squares kept on disk, so that a picture is decoded once and not at every step.

For photographs of many megapixels decoding costs more than a light student's step; small sets of small pictures gain a
tenth. Only what is fitted alike every time can be kept: a crop is another one each time."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec
from rich.progress import Progress

from pocketlens_training.loop import CannotSave, partial_of, room_for
from pocketlens_training.sets.feed import look
from pocketlens_training.sets.pixels import Pixels
from pocketlens_training.sets.sources import Source

MOST_BYTES = 8_000_000_000


class KeptPixels:
    """Squares by number of their source. Opened where it is first asked: worker processes are not sent pixels."""

    def __init__(self, path: Path, rows: NDArray[np.int64]) -> None:
        self._path, self._rows = path, rows
        self._squares: NDArray[np.uint8] | None = None

    def take(self, number: int) -> Pixels:
        """uint8 (side, side, 3), a view not to be written to."""
        squares = self._squares
        if squares is None:
            mapped = np.load(self._path, mmap_mode="r")
            squares = self._squares = np.asarray(mapped)  # a memmap's own indexing costs more than a shift does
        return squares[self._rows[number]]

    def __getstate__(self) -> dict[str, object]:
        return {"_path": self._path, "_rows": self._rows, "_squares": None}


def keep_pixels(
    source: Source, numbers: NDArray[np.int64], content: str, spec: PictureSpec, cache: Path, *, progress: Progress,
    workers: int = 0, most_bytes: int = MOST_BYTES,
) -> KeptPixels | None:  # fmt: skip
    """The squares of the pictures `numbers`, made once in `cache`; None when they would take more than `most_bytes`.

    content: what names the pictures by what they hold. Raises CannotSave."""
    if len(numbers) * spec.side**2 * 3 > most_bytes or not len(numbers):
        return None
    which = sha256(numbers.astype("<i8").tobytes()).hexdigest()[:8]  # of sketches a run takes some
    path = cache / "pixels" / f"{content}-{which}-{spec.side}-{spec.fit}-{spec.resample}.npy"
    rows = np.full(len(source), -1, np.int64)
    rows[numbers] = np.arange(len(numbers))
    if not path.exists():
        _make(source, rows, len(numbers), spec, path, progress, workers)
    return KeptPixels(path, rows)


def _make(
    source: Source, rows: NDArray[np.int64], count: int, spec: PictureSpec, path: Path, progress: Progress, workers: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    bar = progress.add_task("pixels", total=len(source), note="")
    try:
        held = room_for(partial, np.uint8, (count, spec.side, spec.side, 3))
        for looked in look(source, spec, workers=workers):
            for one in looked:
                if rows[one.number] < 0:
                    continue
                if one.pixels is None:
                    raise BadPicture(f"{one.problem} It could be read a moment ago: run again.")
                held[rows[one.number]] = one.pixels
            progress.advance(bar, len(looked))
        held.flush()  # type: ignore[attr-defined]
        partial.replace(path)
    except OSError as error:
        raise CannotSave(f"{path} could not be written ({error}); make room, or --keep-gb 0 to decode anew") from error
    finally:
        partial.unlink(missing_ok=True)
