"""How well a bundle finds: the held-out set of the sample world, through the parts that a user's query goes through.

Owns which rows are compared, and how each makes its query vector. Pictures are JPEG files; tokens come from the
device's encoder and travel through the wire codec; query vectors come from the cloud's composer and are searched in
a real gallery on disk. Judging is protocols/measures.py. Called by cli/accuracy.py."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.compose import Ask, Mode
from pocketlens_samples.language import caption
from pocketlens_samples.queries import (
    COMPOSED_SEED,
    RETRIEVAL_SEED,
    SKETCH_SEED,
    ComposedSet,
    Picture,
    composed_set,
    retrieval_set,
    sketch_set,
)
from pocketlens_wire.tokens import Encoding

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.lab import SENT, Lab, Vectors, sent
from pocketlens_bench.protocols.measures import by_name
from pocketlens_bench.questions import Judged, figures, minus
from pocketlens_bench.shelf import RANKING, Row, Shelf, marked, nearest, pessimistic, shelved
from pocketlens_bench.world import (
    FULL,
    VALIDATION_SEED,
    OnProgress,
    Sizes,
    has_held_out_wording,
    photographed,
    silently,
    words_for_sketches,
)

HONESTY = (
    "The sample world teaches composition by text-side edit supervision: its text tower was tuned on captions followed "
    "by edits, which no published CLIP has seen. So these figures are not zero-shot composed retrieval in the papers' "
    "sense, although student and tokens saw no triplet; and the world is drawn, with a closed vocabulary."
)

METRICS = ("R@1", "R@5", "R@10", "mAP@10")
IN_INT8 = tuple((f"{mode}, int8 encoder", mode) for mode in ("zero-shot", "tuned"))
CHUNK = 256  # queries composed between two steps of the progress bar
WEIGHTS = tuple(float(w) for w in np.round(np.geomspace(0.1, 10.0, 25), 3))  # tried for picture + weight * words


def measure(
    bundle: Path,
    *,
    sizes: Sizes = FULL,
    seed: int = 0,
    threads: int | None = None,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench accuracy` says, as one JSON object; percentages with 95 % intervals.

    `seed` draws the bootstrap, the ceiling's captions and the sketches' words; the sets have their own fixed seeds.
    Raises BadBundle and GalleryError."""
    load, started = load_now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    lab = Lab.open(bundle, threads=threads)
    bench = Bench(lab, sizes, seed, on_progress)
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as folder:
        weight = bench.tuned_weight()
        tables = [
            bench.composed(Path(folder) / "composed", weight),
            bench.text_to_image(Path(folder) / "retrieval"),
            *bench.sketches(Path(folder) / "sketches"),
        ]
    return {
        "benchmark": "accuracy",
        "set": "sample",
        "unit": "percent",
        "honesty": HONESTY,
        "ranking": RANKING,
        "left_out": _left_out(lab),
        "tables": tables,
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - started, 1),
            threads={"device": 1, "cloud": threads},
            providers={"device": lab.encoder.provider, "cloud": lab.composer.provider},
            seeds={
                "composed": COMPOSED_SEED, "retrieval": RETRIEVAL_SEED, "sketch": SKETCH_SEED,
                "validation": VALIDATION_SEED, "bootstrap": seed,
            },
            sizes=asdict(sizes),
            tuned_weight={
                "weight": weight, "tried": list(WEIGHTS), "by": "R@10, then mAP@10, on the validation set",
            },
        ),
    }  # fmt: skip


def _left_out(lab: Lab) -> list[str]:
    """Rows this bundle cannot give, and why."""
    said = []
    if lab.baselines is None:
        said.append("symmetric, tuned control: the bundle has no baselines folder")
    if "tuned" not in lab.composer.modes:
        said.append("tuned: the bundle has no heads")
    if lab.int8 is None:
        said.append("int8 encoder: the bundle has no such form")
    return said


class Bench:
    """One run: draws each set, makes its rows, ranks and judges them."""

    def __init__(self, lab: Lab, sizes: Sizes, seed: int, on_progress: OnProgress) -> None:
        self.lab = lab
        self.sizes = sizes
        self.seed = seed
        self.on_progress = on_progress

    # --- the sets

    def composed(self, folder: Path, weight: float) -> dict[str, Any]:
        """A picture and words that change it."""
        found = composed_set(queries=self.sizes.queries, gallery=self.sizes.gallery)
        files = self.files("anchors", [query.anchor for query in found.queries])
        with self.shelf("composed gallery", folder, found.gallery) as shelf:
            rows = self.composed_rows(found, files, weight)
            return self.table(
                "composed", "picture + words", shelf, rows, found.relevant,
                groups=_groups(found),
                differences=(
                    ("zero-shot", "sum, tuned"), ("zero-shot", "symmetric"),
                    ("zero-shot", "zero-shot, f32"), ("tuned", "zero-shot"), ("tuned", "tuned control"),
                    ("ceiling", "zero-shot"), *IN_INT8,
                ),
            )  # fmt: skip

    def composed_rows(self, found: ComposedSet, files: list[bytes], weight: float) -> list[Row]:
        lab = self.lab
        texts = [query.text for query in found.queries]
        image, words, tokens = lab.image(files), self.compose([(None, text) for text in texts]), lab.tokens(files)
        asks = {encoding: list(zip(sent(tokens, encoding), texts, strict=True)) for encoding in Encoding}
        rows = [
            Row(name="words only", vectors=words),
            Row(name="picture only", vectors=image),
            Row(name="sum, untuned", vectors=summed(image, words, 1.0)),
            Row(name="sum, tuned", vectors=summed(image, words, weight)),
        ]
        if lab.baselines:
            symmetric = zip(lab.symmetric_tokens(files), texts, strict=True)
            rows.append(Row(name="symmetric", vectors=self.compose(list(symmetric))))
        rows += self.by_mode(asks.pop(SENT))
        if lab.baselines:
            features = lab.composer.features(list(zip(sent(tokens), texts, strict=True)))
            rows.append(Row(name="tuned control", vectors=lab.baselines.control(features)))
        rows.append(Row(name="ceiling", vectors=self.compose([(None, text) for text in self.told(found)])))
        rows += [Row(name=f"zero-shot, {name}", vectors=self.compose(others)) for name, others in asks.items()]
        return rows + self.in_int8(files, texts)

    def told(self, found: ComposedSet) -> list[str]:
        """For the ceiling: the composed prompt with the anchor's true caption in the sentence's place."""
        rng = np.random.default_rng([self.seed, 1])
        prompt = self.lab.composer.manifest.prompts.composed
        return [prompt.format(sentence=caption(query.source, rng), words=query.text) for query in found.queries]

    def text_to_image(self, folder: Path) -> dict[str, Any]:
        """A full caption, typed as words."""
        pictures, captions = retrieval_set(count=self.sizes.retrieval)
        with self.shelf("text-to-image gallery", folder, pictures) as shelf:
            rows = self.by_mode([(None, text) for text in captions])
            return self.table("text_to_image", "text to image", shelf, rows, [(i,) for i in range(len(pictures))])

    def sketches(self, folder: Path) -> list[dict[str, Any]]:
        """A sketch alone, and a sketch with words for what it cannot show."""
        found = sketch_set(sketches=self.sizes.sketches, gallery=self.sizes.sketch_gallery)
        files = self.files("sketches", found.sketches)
        tokens = sent(self.lab.tokens(files))
        words, both = words_for_sketches(found, self.seed)
        with self.shelf("sketch gallery", folder, found.gallery) as shelf:
            large = Row(name="large image tower", vectors=self.lab.image(files))
            alone = self.by_mode([(token, "") for token in tokens]) + self.in_int8(files, [""] * len(files))
            together = self.by_mode(list(zip(tokens, words, strict=True))) + self.in_int8(files, words)
            return [
                self.table("sketch", "sketch to picture", shelf, [large, *alone], found.relevant, differences=IN_INT8),
                self.table("sketch_and_words", "sketch + words", shelf, together, both, differences=IN_INT8),
            ]

    def tuned_weight(self) -> float:
        """The weight of the words in the sum that does best on a validation set of its own."""
        found = composed_set(queries=self.sizes.validation, gallery=self.sizes.validation_gallery, seed=VALIDATION_SEED)
        gallery = self.lab.image(self.files("validation gallery", found.gallery))
        image = self.lab.image(self.files("validation anchors", [query.anchor for query in found.queries]))
        words = self.compose([(None, query.text) for query in found.queries])

        def worth(weight: float) -> tuple[float, float]:
            hits = nearest(gallery, summed(image, words, weight))
            ranked = [pessimistic(*pair) for pair in zip(hits, found.relevant, strict=True)]
            judged = judge(ranked, found.relevant)
            return float(judged["R@10"].mean()), float(judged["mAP@10"].mean())

        return max(WEIGHTS, key=worth)

    # --- the work

    def by_mode(self, asks: Sequence[Ask]) -> list[Row]:
        """The same questions in each mode the bundle has: zero-shot, then tuned."""
        return [
            Row(name=mode, vectors=self.compose(asks, mode), against=self.lab.composer.vector_of(mode))
            for mode in self.lab.composer.modes
        ]

    def in_int8(self, files: list[bytes], texts: Sequence[str]) -> list[Row]:
        """The same questions with tokens of the encoder in int8; none where the bundle has no such form."""
        if self.lab.int8 is None:
            return []
        tokens = sent(self.lab.tokens(files, self.lab.int8))
        rows = self.by_mode(list(zip(tokens, texts, strict=True)))
        return [replace(row, name=f"{row.name}, int8 encoder") for row in rows]

    def compose(self, asks: Sequence[Ask], mode: Mode = "zero-shot") -> Vectors:
        parts = []
        for start in range(0, len(asks), CHUNK):
            parts.append(self.lab.composer.compose_batch(asks[start : start + CHUNK], mode))
            self.on_progress("compose queries", min(start + CHUNK, len(asks)), len(asks))
        return np.concatenate(parts)

    def files(self, what: str, pictures: Sequence[Picture]) -> list[bytes]:
        self.on_progress(f"draw {what}", 0, len(pictures))
        return photographed(
            pictures,
            processes=self.lab.threads,
            on_done=lambda done: self.on_progress(f"draw {what}", done, len(pictures)),
        )

    def shelf(self, what: str, folder: Path, pictures: Sequence[Picture]) -> AbstractContextManager[Shelf]:
        files = self.files(what, pictures)
        return shelved(self.lab, files, folder, lambda done: self.on_progress(f"index {what}", done, len(files)))

    def table(
        self,
        key: str,
        title: str,
        shelf: Shelf,
        rows: Sequence[Row],
        relevant: Sequence[Sequence[int]],
        *,
        groups: Mapping[str, Mapping[str, NDArray[np.bool_]]] | None = None,
        differences: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """Rank and judge every row; `groups` are masks over queries by kind and name."""
        judged: dict[str, Judged] = {}
        checked: dict[str, float] = {}
        for done, row in enumerate(rows, start=1):
            ranked = shelf.ranked(row, relevant)
            judged[row.name] = judge(ranked, relevant)
            checked[row.name] = 100 * shelf.first_ten_agree(row, ranked)
            self.on_progress(f"search {title}", done, len(rows))
        return {
            "key": key,
            "title": title,
            "queries": len(relevant),
            "gallery": len(shelf),
            "rows": [
                {
                    "name": row.name,
                    "against": row.against,
                    **self.figures(judged[row.name]),
                    "groups": self.by_group(judged[row.name], groups or {}),
                    "same_first_ten_as_exact": checked[row.name],
                }
                for row in rows
            ],
            "differences": [
                {"of": a, "over": b, **self.figures(minus(judged[a], judged[b]))}
                for a, b in differences
                if a in judged and b in judged
            ],
        }

    def figures(self, judged: Judged) -> dict[str, Any]:
        return figures(judged, seed=self.seed, metrics=METRICS)

    def by_group(self, judged: Judged, groups: Mapping[str, Mapping[str, NDArray[np.bool_]]]) -> dict[str, Any]:
        return {
            kind: {
                name: {
                    "queries": int(mask.sum()),
                    **self.figures({metric: values[mask] for metric, values in judged.items()}),
                }
                for name, mask in masks.items()
                if mask.any()
            }
            for kind, masks in groups.items()
        }


def judge(ranked: Sequence[Sequence[int]], relevant: Sequence[Sequence[int]]) -> Judged:
    """Each query's percent under each of METRICS."""
    counts = np.array([len(set(wanted)) for wanted in relevant])
    return {name: 100 * values for name, values in by_name(marked(ranked, relevant), counts, METRICS).items()}


def summed(image: Vectors, words: Vectors, weight: float) -> Vectors:
    """The baseline without tokens: picture + weight * words, unit length."""
    both = image + np.float32(weight) * words
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def _groups(found: ComposedSet) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Masks over the queries; one with two edits counts under both attributes."""
    new_wording = np.array([has_held_out_wording(query) for query in found.queries])
    edits = np.array([len(query.edits) for query in found.queries])
    edited = [{edit.attribute for edit in query.edits} for query in found.queries]
    attributes = sorted(set().union(*edited))
    return {
        "wording": {"known": ~new_wording, "held out": new_wording},
        "edits": {"one": edits == 1, "two": edits == 2},
        "attribute": {name: np.array([name in names for names in edited]) for name in attributes},
    }
