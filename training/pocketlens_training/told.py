"""Captions without pictures, and words one could add to each: the language side of composition distillation.

For an unlabelled picture the frozen teacher names the nearest caption; then text(sentence + words) is pulled to
text(caption + words). No picture is paired with anything, so the student still sees no triplet. The term is ours, not
ISA's; sample_world's feasibility study and the ablation say what it gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor

from pocketlens_training.loop import save_atomically
from pocketlens_training.losses import angle_loss
from pocketlens_training.reading import SLOT, Reader
from pocketlens_training.sets.lines import BadLines, Told, read_told

MOST = 200_000  # captions: the search for the nearest is exact
CHUNK = 512


class ToldBank:
    """The captions of a file, and of each picture the nearest."""

    def __init__(
        self, file: Path, images: Tensor, content: str, reader: Reader, teacher: str, cache: Path, progress: Progress
    ) -> None:
        """images: unit teacher vectors (rows, dim) on the CPU, named by `content`. teacher: names both its
        towers."""
        self.told = _fitting(read_told(file), file, reader, progress)
        self._with_edits = any(one.edits for one in self.told)
        key = hashlib.sha256(file.read_bytes())
        key.update(str((content, len(self.told), teacher)).encode())
        path = cache / f"nearest-{key.hexdigest()[:16]}.safetensors"
        if path.exists():
            self.nearest = load_file(path)["nearest"]
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self.nearest = _nearest(images, self._vectors(reader, progress), reader.where.device, progress)
        save_atomically({"nearest": self.nearest}, path)

    def composition_loss(
        self, reader: Reader, sentence: Tensor, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> Tensor:
        """Mean 1 - cos(text(sentence + words), text(nearest caption + words)); sentence (batch, k, width) of `rows`."""
        told = [self.told[int(n)] for n in self.nearest[torch.from_numpy(rows)]]
        words = [self._edit(one.edits, rng) for one in told]
        prompts = [reader.composed(each) for each in words]
        with torch.no_grad():
            wanted = reader.unit([p.replace(SLOT, one.caption, 1) for p, one in zip(prompts, told, strict=True)])
        return angle_loss(reader.unit(prompts, sentence), wanted)

    def _edit(self, edits: tuple[str, ...], rng: np.random.Generator) -> str:
        """One of the caption's own edits; of one without, another's."""
        while not edits:
            edits = self.told[int(rng.integers(len(self.told)))].edits if self._with_edits else (self._other(rng),)
        return edits[int(rng.integers(len(edits)))]

    def _other(self, rng: np.random.Generator) -> str:
        """Without any edits in the file, another caption stands as the words."""
        return self.told[int(rng.integers(len(self.told)))].caption

    @torch.no_grad()
    def _vectors(self, reader: Reader, progress: Progress) -> Tensor:
        """Unit text features (captions, dim)."""
        bar = progress.add_task("captions", total=len(self.told), note="")
        parts = []
        for start in range(0, len(self.told), CHUNK):
            some = [reader.alone.replace(SLOT, one.caption) for one in self.told[start : start + CHUNK]]
            parts.append(reader.unit(some))
            progress.advance(bar, len(some))
        return torch.cat(parts)


def _fitting(told: list[Told], file: Path, reader: Reader, progress: Progress) -> list[Told]:
    """Those whose caption leaves room for their longest edit (cut, they would teach that edits say nothing), at most
    MOST. What is left out is said."""
    longest = [reader.composed(max(one.edits, key=len, default="")).replace(SLOT, one.caption, 1) for one in told]
    lengths = [n for i in range(0, len(told), CHUNK) for n in reader.maker.lengths(longest[i : i + CHUNK])]
    fitting = [one for one, length in zip(told, lengths, strict=True) if length <= reader.maker.context]
    if long := len(told) - len(fitting):
        said = f"{file}: {long:,} captions are left out: with their edits they are too long for a row"
        progress.console.print(said, markup=False)
    if len(fitting) > MOST:
        progress.console.print(f"{file}: the first {MOST:,} of {len(fitting):,} captions are used", markup=False)
    if not fitting:
        raise BadLines(f"{file}: no caption is short enough for a row of {reader.maker.context} ids with its edit")
    return fitting[:MOST]


@torch.no_grad()
def _nearest(images: Tensor, captions: Tensor, device: torch.device, progress: Progress) -> Tensor:
    """Of each image its nearest caption, int32 (rows,)."""
    bar = progress.add_task("nearest", total=len(images), note="")
    parts = []
    for start in range(0, len(images), CHUNK):
        some = images[start : start + CHUNK].to(device)
        parts.append((some @ captions.T).argmax(1).int().cpu())
        progress.advance(bar, len(some))
    return torch.cat(parts)
