"""Vectors of a frozen teacher, computed once and kept by the content of the pictures.

A cache is a folder of safetensors shards under the teacher's id; a picture that was renamed, or lies in another set, is
found again. Shared by all runs that name the same cache."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pocketlens_training.loop import save_atomically
from pocketlens_training.sets.feed import DIGEST_BYTES, Looked, digest, look, pixels_of
from pocketlens_training.sets.sources import NoPictures, Source
from pocketlens_training.teachers.teacher import Teacher

SHARD = 8192  # pictures
FLUSH_EVERY_S = 120.0  # what a kill may cost


@dataclass(frozen=True)
class Seen:
    """What a teacher made of a source. numbers: of the readable pictures, in order; digests: of their contents, uint8
    (readable, 16); raw: float32 (readable, dim)."""

    numbers: NDArray[np.int64]
    digests: NDArray[np.uint8]
    raw: Tensor
    unreadable: list[tuple[str, str]]


@torch.no_grad()
def teacher_vectors(
    teacher: Teacher,
    source: Source,
    cache: Path,
    *,
    device: torch.device,
    batch: int = 64,
    workers: int = 0,
    on_done: Callable[[int], None] | None = None,
) -> Seen:
    """Raw image features of every picture of `source`, from `cache` where they are there.

    In float32: these are targets, and rounding in a target cannot be unlearned. Raises NoPictures when none can be
    read."""
    store = _Store(cache / teacher.id)
    tower = teacher.image.to(device).eval()
    found: list[tuple[int, bytes]] = []
    unreadable: list[tuple[str, str]] = []
    try:
        for looked in look(source, teacher.picture, known=store.known, batch=batch, workers=workers):
            new = [one for one in looked if one.pixels is not None]
            if new:
                store.add(new, tower(pixels_of(new).to(device))[0].float().cpu())
            found += [(one.number, one.digest) for one in looked if one.problem is None]
            unreadable += [(source.names[one.number], one.problem) for one in looked if one.problem is not None]
            if on_done is not None:
                on_done(len(looked))
    finally:  # interrupted, too: a large tower may have taken a second for each
        store.flush()
    if not found:
        raise NoPictures(f"none of the {len(source)} pictures can be read; the first: {unreadable[0][1]}")
    numbers, digests = zip(*found, strict=True)
    named = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return Seen(np.array(numbers), named, store.take(digests), unreadable)


def list_unreadable(path: Path, unreadable: list[tuple[str, str]]) -> None:
    """Write names and reasons as CSV; no file when there are none."""
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(("picture", "problem"))
        table.writerows(unreadable)


class _Store:
    """The shards of one teacher: digest -> raw feature."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[bytes, int] = {}
        self._parts: list[Tensor] = []
        self._new: list[tuple[bytes, Tensor]] = []
        self._flushed = time.monotonic()
        for shard in sorted(folder.glob("*.safetensors")):
            self._read(shard)

    def _read(self, shard: Path) -> None:
        try:
            tensors = load_file(shard)
        except SafetensorError:
            shard.unlink(missing_ok=True)  # it can be computed again
            return
        digests = tensors["digest"].numpy().tobytes()
        before = sum(map(len, self._parts))
        for i in range(len(tensors["raw"])):
            self.known[digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]] = before + i
        self._parts.append(tensors["raw"])

    def add(self, looked: list[Looked], raw: Tensor) -> None:
        for one, vector in zip(looked, raw, strict=True):
            self._new.append((one.digest, vector))
        if len(self._new) >= SHARD or time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what is new as a shard of its own; another process may add beside us."""
        self._flushed = time.monotonic()
        if not self._new:
            return
        digests = np.frombuffer(b"".join(named for named, _ in self._new), np.uint8).reshape(-1, DIGEST_BYTES)
        raw = torch.stack([vector for _, vector in self._new])
        path = self.folder / f"{digest(digests.tobytes()).hex()}.safetensors"  # by what it holds: never another's name
        save_atomically({"digest": torch.from_numpy(digests.copy()), "raw": raw}, path)
        before = sum(map(len, self._parts))
        for i, (named, _) in enumerate(self._new):
            self.known[named] = before + i
        self._parts.append(raw)
        self._new.clear()

    def take(self, digests: Sequence[bytes]) -> Tensor:
        return torch.cat(self._parts)[torch.tensor([self.known[named] for named in digests])]
