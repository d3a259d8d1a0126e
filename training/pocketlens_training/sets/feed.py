"""Batches of pixels, prepared ahead of the steps that want them, and one look at every picture of a source.

Both are torch's DataLoader; ours is what is drawn when, so that a resumed run is given the same batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import PictureSpec
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pocketlens_training.sets.pixels import Ask, Pixels, square, stacked
from pocketlens_training.sets.sources import Source

DIGEST_BYTES = 16


class Feed:
    """Pixels uint8 (batch, side, side, 3) of micro-batch after micro-batch, as `plan` says which pictures are in it."""

    def __init__(
        self, pictures: Dataset, plan: Callable[[int], Sequence[Ask]], *, device: torch.device, workers: int
    ) -> None:
        self._pictures, self._plan, self._device, self._workers = pictures, plan, device, workers
        self._batches: Iterator[Tensor | BadPicture] = iter(())
        self._next = -1

    def at(self, micro: int) -> Tensor:
        """The pixels of micro-batch `micro`; asked in order they were prepared ahead."""
        if micro != self._next:
            self._batches, self._next = self._from(micro), micro
        self._next += 1
        batch = next(self._batches)
        if isinstance(batch, BadPicture):
            raise batch
        return batch.to(self._device, non_blocking=True)

    def _from(self, micro: int) -> Iterator[Tensor | BadPicture]:
        def plans() -> Iterator[Sequence[Ask]]:
            number = micro
            while True:
                yield self._plan(number)
                number += 1

        return iter(
            DataLoader(
                _Careful(self._pictures), batch_sampler=plans(), num_workers=self._workers, collate_fn=_joined,  # pyright: ignore
                pin_memory=self._device.type == "cuda", generator=torch.Generator(),  # not the lesson's randomness
            )
        )  # fmt: skip


class _Careful(Dataset):
    """Gives an unreadable picture's error back: raised in a worker process it would be that one's traceback."""

    def __init__(self, pictures: Dataset) -> None:
        self._pictures = pictures

    def __getitem__(self, ask: Ask) -> Pixels | BadPicture:
        try:
            return self._pictures[ask]
        except BadPicture as bad:
            return bad


def _joined(pixels: Sequence[Pixels | BadPicture]) -> Tensor | BadPicture:
    bad = next((each for each in pixels if isinstance(each, BadPicture)), None)
    return stacked(cast("Sequence[Pixels]", pixels)) if bad is None else bad


class Looked(NamedTuple):
    """One picture of a source: its content's hash, and its pixels, or why there are none."""

    number: int
    digest: bytes
    pixels: Pixels | None
    problem: str | None


def digest(data: bytes) -> bytes:
    """What names a picture's content: 16 bytes of BLAKE2b over its file."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


class _Looking(Dataset):
    def __init__(self, source: Source, spec: PictureSpec, known: Collection[bytes]) -> None:
        self.source, self.spec, self.known = source, spec, known

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Looked:
        try:
            data = self.source.read(number)
            named = digest(data)
            if named in self.known:
                return Looked(number, named, None, None)
            return Looked(number, named, square(data, self.spec, name=self.source.names[number]), None)
        except BadPicture as bad:
            return Looked(number, b"", None, str(bad))


def look(
    source: Source, spec: PictureSpec, *, known: Collection[bytes] = (), batch: int = 64, workers: int = 0
) -> Iterator[list[Looked]]:
    """Every picture once, in order. Of those whose digest is in `known` no pixels are made."""
    yield from DataLoader(
        _Looking(source, spec, known), batch_size=batch, num_workers=workers, collate_fn=list,
        generator=torch.Generator(),
    )  # fmt: skip


def pixels_of(looked: Sequence[Looked]) -> Tensor:
    """Pixels uint8 (n, side, side, 3) of those that have some."""
    return torch.from_numpy(np.stack([one.pixels for one in looked if one.pixels is not None]))
