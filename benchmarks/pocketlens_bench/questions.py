"""The sample world's questions, kind by kind, with their gallery's vectors in memory and how an answer is judged.

For tables with dozens of rows: searching is a plain matrix product over the whole gallery in float32, which `accuracy`
shows to agree with the gallery on disk. Called by token_table.py and robustness.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.compose import Ask, Features, Mode
from pocketlens_samples.catalogue import Spec
from pocketlens_samples.queries import Picture, composed_set, sketch_set

from pocketlens_bench.lab import Lab, Vectors
from pocketlens_bench.protocols.figures import CONFIDENCE, resamples
from pocketlens_bench.protocols.measures import by_name
from pocketlens_bench.protocols.ranking import Ranked, Ties, ranked
from pocketlens_bench.protocols.task import Query, Task
from pocketlens_bench.world import OnProgress, Sizes, photographed

RANKING = (
    "cosine in float32 over the whole gallery by a matrix product; among equal scores the relevant picture is put last"
)
METRICS = ("R@1", "R@10", "mAP@10")
DEEP = 10
CHUNK = 256  # questions composed between two steps of the progress bar
INDEXED = 512  # gallery pictures between two steps of the progress bar

Judged = Mapping[str, NDArray[np.float64]]  # (queries,) percent, by metric


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions of one kind to one gallery.

    pictures: what the device sees. words: one text each, "" for the picture alone. relevant: gallery indexes that
    answer each. gallery: its vectors by name."""

    key: str
    title: str
    pictures: tuple[Picture, ...]
    words: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]
    gallery: Mapping[str, Vectors]

    @cached_property
    def task(self) -> Task:
        names = tuple(f"{place:06d}" for place in range(self.gallery_size))
        queries = (
            Query(id=f"{i:06d}", reference=None, relevant=frozenset(names[place] for place in places))
            for i, places in enumerate(self.relevant)
        )
        return Task(name=self.key, gallery=names, queries=tuple(queries))

    @property
    def gallery_size(self) -> int:
        return len(self.gallery["original"])

    def judged(self, vectors: Vectors, against: str = "original") -> Judged:
        """Each query's percent under each of METRICS, for query vectors (queries, dim) searched in `against`."""
        gallery = self.gallery[against].T
        return self._judged(lambda part: vectors[part] @ gallery)

    def judged_scores(self, scores: Vectors) -> Judged:
        """The same for scores (queries, gallery) that come from elsewhere."""
        return self._judged(lambda part: scores[part])

    def _judged(self, scores_of: Callable[[slice], Vectors]) -> Judged:
        blocks = ranked(self.task, scores_of, depth=DEEP, ties=Ties.PESSIMISTIC)
        parts = [_percent(block) for block in blocks]
        return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _percent(block: Ranked) -> Judged:
    return {name: 100 * values for name, values in by_name(block.hits, block.relevant, METRICS).items()}


# --- the sets


def about_pictures(lab: Lab, sizes: Sizes, on_progress: OnProgress) -> tuple[Questions, Questions]:
    """The composed set, a picture and words that change it; and its pictures without words, to the same gallery, where
    the answers are other pictures of the very same specification."""
    found = composed_set(queries=sizes.queries, gallery=sizes.gallery)
    places: dict[Spec, list[int]] = {}
    for place, picture in enumerate(found.gallery):
        places.setdefault(picture.spec, []).append(place)
    anchors = tuple(query.anchor for query in found.queries)
    gallery = indexed(lab, found.gallery, "composed gallery", on_progress)
    changed = Questions(
        key="composed", title="picture + words", pictures=anchors, words=tuple(query.text for query in found.queries),
        relevant=found.relevant, gallery=gallery,
    )  # fmt: skip
    alone = Questions(
        key="picture", title="picture alone", pictures=anchors, words=("",) * len(anchors),
        relevant=tuple(tuple(places[query.source]) for query in found.queries), gallery=gallery,
    )  # fmt: skip
    return changed, alone


def sketches(lab: Lab, sizes: Sizes, on_progress: OnProgress) -> Questions:
    """A sketch alone, to a gallery of its own: pictures that agree with all it shows."""
    found = sketch_set(sketches=sizes.sketches, gallery=sizes.sketch_gallery)
    return Questions(
        key="sketch", title="sketch alone", pictures=found.sketches, words=("",) * len(found.sketches),
        relevant=found.relevant, gallery=indexed(lab, found.gallery, "sketch gallery", on_progress),
    )  # fmt: skip


def drawn(lab: Lab, pictures: Sequence[Picture], what: str, on_progress: OnProgress) -> list[bytes]:
    """Each picture as a camera's JPEG file."""
    on_progress(f"draw {what}", 0, len(pictures))
    return photographed(
        pictures, processes=lab.threads, on_done=lambda done: on_progress(f"draw {what}", done, len(pictures))
    )


def indexed(lab: Lab, pictures: Sequence[Picture], what: str, on_progress: OnProgress) -> dict[str, Vectors]:
    """Named vectors of a gallery, made from picture files as indexing makes them."""
    files = drawn(lab, pictures, what, on_progress)
    batches: list[dict[str, Vectors]] = []
    for start in range(0, len(files), INDEXED):
        batches += lab.images(files[start : start + INDEXED])
        on_progress(f"index {what}", min(start + INDEXED, len(files)), len(files))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


# --- asking


def composed(lab: Lab, asks: Sequence[Ask], mode: Mode = "zero-shot") -> Vectors:
    """Query vectors (asks, dim)."""
    return np.concatenate(
        [lab.composer.compose_batch(asks[start : start + CHUNK], mode) for start in range(0, len(asks), CHUNK)]
    )


def features(lab: Lab, asks: Sequence[Ask]) -> Features:
    """All three text features of each question, from which every mode's query vector follows."""
    parts = [lab.composer.features(asks[start : start + CHUNK]) for start in range(0, len(asks), CHUNK)]
    return Features(
        np.concatenate([part.composed for part in parts]),
        np.concatenate([part.picture for part in parts]),
        np.concatenate([part.words for part in parts]),
    )


# --- figures


def figures(judged: Judged, *, seed: int, metrics: Sequence[str] = METRICS) -> dict[str, dict[str, float]]:
    """Each metric's mean over the queries with its percentile bootstrap interval, as `protocols.figures` draws it: the
    same seed draws the same queries for every row, so differences are paired. All metrics in one pass."""
    values = np.stack([judged[name] for name in metrics], axis=1)
    group = np.zeros(len(values), np.intp)
    means = np.concatenate([counts @ values for counts in resamples(group, seed)]) / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return {
        name: {"value": float(values[:, i].mean()), "low": float(low[i]), "high": float(high[i])}
        for i, name in enumerate(metrics)
    }


def minus(these: Judged, those: Judged) -> Judged:
    """Query by query, so that the interval of the mean is paired."""
    return {name: these[name] - those[name] for name in these}


def mean_of(several: Sequence[Judged]) -> Judged:
    """Query by query, over several ways of asking the same."""
    return {name: np.mean([one[name] for one in several], axis=0) for name in several[0]}
