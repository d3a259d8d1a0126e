"""The large models: text tower over token rows, image tower over pixels.

Owns batching by true length and the order of image tower and target head. Knows no prompt
(compose.py) and no gallery; graphs are run by runtime.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import PACKS, CloudManifest, TowerGraph

from pocketlens_cloud.runtime import Graph

MAX_ROWS = 64  # rows in one run of the text tower: beyond it the CPU gains nothing
MAX_PADDING = 64  # padding tokens accepted to spare one run; a run's fixed cost is about as much


@dataclass(frozen=True)
class Row:
    """One sequence of the text tower: its ids without padding, and where the sentence lies in it."""

    ids: Sequence[int]
    sentence: NDArray[np.float32] | None = None  # (k, width)
    start: int = 0  # position of the sentence's first token in `ids`


def buckets(
    lengths: Sequence[int], *, most_rows: int = MAX_ROWS, most_tokens: int | None = None
) -> Iterator[list[int]]:
    """Indices grouped so that rows of one group are padded little; shortest first.

    A new group opens when `most_rows` are in, when the group with its padding would have more than `most_tokens`
    tokens, or when the padding would exceed MAX_PADDING tokens, so one query's rows run together and a benchmark's
    thousands fall apart by length."""
    group: list[int] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        grown = len(group) * (lengths[index] - lengths[group[-1]]) if group else 0
        too_many = most_tokens is not None and (len(group) + 1) * lengths[index] > most_tokens
        if group and (len(group) == most_rows or too_many or padding + grown > MAX_PADDING):
            yield group
            group, padding, grown = [], 0, 0
        group.append(index)
        padding += grown
    if group:
        yield group


def packs(lengths: Sequence[int], *, most_rows: int = MAX_ROWS, most_tokens: int | None = None) -> Iterator[list[int]]:
    """Indices grouped in the order they stand in, for a tower that reads no padding: as many as go into one run."""
    group: list[int] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if group and (len(group) == most_rows or (most_tokens is not None and tokens + length > most_tokens)):
            yield group
            group, tokens = [], 0
        group.append(index)
        tokens += length
    if group:
        yield group


def _form(manifest: CloudManifest, tower: str, forms: dict[str, TowerGraph], precision: str) -> TowerGraph:
    """The form of a tower that was asked for. Raises BadBundle."""
    if precision not in forms:
        raise BadBundle(f"{manifest.name}: no {precision} {tower}; this bundle has {', '.join(forms)}")
    return forms[precision]


@final
class TextTower:
    """Token rows to unit text features. precision: a key of the manifest's `text_tower`."""

    def __init__(
        self, folder: Path, manifest: CloudManifest, *, threads: int | None = None, precision: str = "fp32"
    ) -> None:
        file = _form(manifest, "text tower", manifest.text_tower, precision).file
        self._graph = Graph(folder / file, threads=threads).require(
            inputs={"token_ids", "sentence", "sentence_start", "sentence_length", "end"}, outputs={"text"}
        )
        self._width = manifest.token_width
        self._pad = manifest.text.pad
        self._fixed_length = manifest.context if manifest.text.fixed_length else 0
        self._dim = manifest.dim
        self.packs = self._graph.properties.get(PACKS) == "yes"
        """Whether it reads no padding, so that rows of any lengths go together."""

    @property
    def provider(self) -> str:
        return self._graph.provider

    def run(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Unit text features (rows, dim), in the order of `rows`."""
        text = np.empty((len(rows), self._dim), np.float32)
        for group in (packs if self.packs else buckets)([len(row.ids) for row in rows]):
            text[group] = self._run_padded([rows[index] for index in group])
        return text

    def _run_padded(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        batch = len(rows)
        length = max(self._fixed_length, *(len(row.ids) for row in rows))
        # At least one sentence position, since a zero-sized axis upsets some graphs.
        k = max(1, *(0 if row.sentence is None else len(row.sentence) for row in rows))
        token_ids = np.full((batch, length), self._pad, np.int64)
        sentence = np.zeros((batch, k, self._width), np.float32)
        sentence_length = np.zeros(batch, np.int64)
        for i, row in enumerate(rows):
            token_ids[i, : len(row.ids)] = row.ids
            if row.sentence is not None:
                sentence[i, : len(row.sentence)] = row.sentence
                sentence_length[i] = len(row.sentence)
        feeds = {
            "token_ids": token_ids,
            "sentence": sentence,
            "sentence_start": np.array([row.start for row in rows], np.int64),
            "sentence_length": sentence_length,
            "end": np.array([len(row.ids) - 1 for row in rows], np.int64),
        }
        (text,) = self._graph.run(["text"], feeds)
        return text


@final
class ImageTower:
    """Pixels to the named gallery vectors. Used by indexing only; serving never runs it.

    precision: a key of the manifest's `image_tower`."""

    def __init__(
        self, folder: Path, manifest: CloudManifest, *, threads: int | None = None, precision: str = "fp32"
    ) -> None:
        file = _form(manifest, "image tower", manifest.image_tower, precision).file
        self._tower = Graph(folder / file, threads=threads).require(inputs={"pixels"}, outputs={"image_raw", "image"})
        self._head = manifest.target_head and Graph(folder / manifest.target_head.file, threads=threads).require(
            inputs={"image_raw"}, outputs={"union"}
        )
        self.targets = list(manifest.targets)

    @property
    def provider(self) -> str:
        return self._tower.provider

    def features(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(image_raw, image), each (batch, dim), of pixels (batch, side, side, 3) RGB; `image` unit."""
        image_raw, image = self._tower.run(["image_raw", "image"], {"pixels": pixels})
        return image_raw, image

    def union(self, image_raw: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """The target head's unit vectors (batch, dim); None where the bundle has no target head."""
        return self._head.run(["union"], {"image_raw": image_raw})[0] if self._head else None

    def vectors(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The gallery's named vectors, each (batch, dim) with unit rows."""
        image_raw, image = self.features(pixels)
        union = self.union(image_raw) if "union" in self.targets else None
        return {"original": image} if union is None else {"original": image, "union": union}
