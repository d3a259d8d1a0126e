"""A gallery on disk made for one measurement, and ranking in it.

Owns the order of hits: cosine in float32 over the whole gallery, exact search; among equal scores the relevant
picture is put last. Called by accuracy.py; judging is protocols/measures.py."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Gallery, Point, Search

from pocketlens_bench.lab import Lab, Vectors
from pocketlens_bench.protocols.measures import Hits

RANKING = (
    "cosine in float32 over the whole gallery, exact search in the embedded gallery; among equal scores the relevant "
    "picture is put last"
)
DEEP = 20  # hits fetched per query: ten and room for ties


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of asking: a query vector for each query, and the gallery vector it is searched in."""

    name: str
    vectors: Vectors
    against: str = "original"


@dataclass(frozen=True)
class Shelf:
    """A gallery on disk, and the same vectors in memory to check it by."""

    gallery: Gallery
    vectors: dict[str, Vectors]

    def ranked(self, row: Row, relevant: Sequence[Sequence[int]]) -> list[list[int]]:
        """For each query the gallery indexes of its first hits, best first."""
        return [
            pessimistic(self.hits(vector, row.against), wanted)
            for vector, wanted in zip(row.vectors, relevant, strict=True)
        ]

    def first_ten_agree(self, row: Row, ranked: Sequence[Sequence[int]]) -> float:
        """Share of queries whose first ten hits are, as a set, those of a plain float32 matrix product."""
        exact = nearest(self.vectors[row.against], row.vectors)
        same = [set(came[:10]) == {i for i, _ in hits[:10]} for came, hits in zip(ranked, exact, strict=True)]
        return float(np.mean(same))

    def __len__(self) -> int:
        return len(self.vectors["original"])

    def hits(self, vector: NDArray[np.float32], against: str) -> list[tuple[int, float]]:
        """The DEEP best gallery indexes and their scores."""
        asked = Search(vector=vector, name=against, top=DEEP, payload=(), exact=True)
        return [(int(hit.id, 16), hit.score) for hit in self.gallery.search(asked)]


@contextmanager
def shelved(lab: Lab, files: Sequence[bytes], folder: Path, on_done: Callable[[int], None]) -> Iterator[Shelf]:
    """A gallery of the picture files in `folder`, settled as by indexing; a picture's id is its place in `files`."""
    manifest = lab.composer.manifest
    batches: list[dict[str, Vectors]] = []
    placed = 0
    with EmbeddedGallery.create(
        folder, dim=manifest.dim, vectors=manifest.targets, gallery_space=manifest.gallery_space
    ) as gallery:
        for batch in lab.images(files):
            rows = [{name: batch[name][i] for name in batch} for i in range(len(batch["original"]))]
            gallery.upsert([Point(f"{placed + i:032x}", row) for i, row in enumerate(rows)])
            batches.append(batch)
            placed += len(rows)
            on_done(placed)
        gallery.settle()
        yield Shelf(gallery, {name: np.concatenate([batch[name] for batch in batches]) for name in manifest.targets})


def pessimistic(scored: Sequence[tuple[int, float]], relevant: Collection[int]) -> list[int]:
    """Gallery indexes by score, best first; among equal scores the relevant ones come last: ties count against us."""
    wanted = set(relevant)
    return [place for place, _ in sorted(scored, key=lambda pair: (-pair[1], pair[0] in wanted))]


def marked(ranked: Sequence[Sequence[int]], relevant: Sequence[Collection[int]]) -> Hits:
    """(queries, DEEP) whether the picture at each rank is relevant; a shorter ranking ends in misses.

    Raises ValueError for a query without relevant pictures and for a picture ranked twice."""
    hits = np.zeros((len(ranked), DEEP), np.bool_)
    for row, places, wanted in zip(hits, ranked, relevant, strict=True):
        if not wanted:
            raise ValueError("a query without relevant pictures cannot be judged")
        if len(set(places)) != len(places):
            raise ValueError("a picture is ranked twice")
        row[: len(places)] = np.isin(places[:DEEP], list(wanted))
    return hits


def nearest(gallery: Vectors, queries: Vectors) -> list[list[tuple[int, float]]]:
    """For each query its DEEP best gallery indexes and their cosines, by comparing with all."""
    cosines = queries @ gallery.T
    deep = min(DEEP, len(gallery))
    best = np.argpartition(-cosines, deep - 1, axis=1)[:, :deep]
    hits = [[(int(i), float(row[i])) for i in places] for places, row in zip(best, cosines, strict=True)]
    return [sorted(some, key=lambda hit: (-hit[1], hit[0])) for some in hits]
