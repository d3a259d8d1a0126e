"""How well a bundle finds: the held-out set of the sample world, through the parts that a user's query goes through.

Owns which rows are compared, and how each makes its query vector. Pictures are JPEG files; tokens come from the
device's encoder and travel through the wire codec; query vectors come from the cloud's composer and are searched in
a real gallery on disk. Judging is metrics.py. Called by cli.py."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_cloud.compose import Composer, Mode
from pocketlens_cloud.gallery import Gallery, Point
from pocketlens_cloud.runtime import Graph
from pocketlens_cloud.towers import ImageTower
from pocketlens_edge.encoder import Encoder
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
from pocketlens_wire.pictures import fit, open_picture
from pocketlens_wire.tokens import Encoding, pack, unpack
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.baselines import Baselines
from pocketlens_bench.conditions import Busy, conditions
from pocketlens_bench.metrics import judge, mean, pessimistic
from pocketlens_bench.world import (
    FULL,
    VALIDATION_SEED,
    Sizes,
    has_held_out_wording,
    photographed,
    words_for_sketches,
)

HONESTY = (
    "The sample world teaches composition by text-side edit supervision: its text tower was tuned on captions followed "
    "by edits, which no published CLIP has seen. So these figures are not zero-shot composed retrieval in the papers' "
    "sense, although student and tokens saw no triplet; and the world is drawn, with a closed vocabulary."
)
RANKING = (
    "cosine in float32 over the whole gallery, exact search in the embedded gallery; among equal scores the relevant "
    "picture is put last"
)

METRICS = ("R@1", "R@5", "R@10", "mAP@10")
DEEP = 20  # hits fetched per query: ten and room for ties
BATCH = 64  # pictures in one run of the image tower
WEIGHTS = tuple(float(w) for w in np.round(np.geomspace(0.1, 10.0, 25), 3))  # tried for picture + weight * words

Vectors = NDArray[np.float32]  # (count, dim), unit rows
OnProgress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of asking: a query vector for each query, and the gallery vector it is searched in."""

    name: str
    vectors: Vectors
    against: str = "original"


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The loaded parts of one bundle."""

    encoder: Encoder
    composer: Composer
    tower: ImageTower
    places: Graph  # the image tower again, for its third output
    baselines: Baselines | None
    threads: int

    @classmethod
    def open(cls, bundle: Path, *, threads: int) -> "Lab":
        folder, manifest = open_cloud_half(bundle)
        return cls(
            encoder=Encoder.load(bundle, threads=1),
            composer=Composer.load(bundle, threads=threads),
            tower=ImageTower(folder, manifest, threads=threads),
            places=Graph(folder / manifest.image_tower.file, threads=threads),
            baselines=Baselines.load(bundle, threads=threads),
            threads=threads,
        )

    def tokens(self, files: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """The device: sentence tokens (k, width) of each picture file."""
        near = self.encoder.manifest.picture.side
        return [self.encoder.encode(open_picture(file, near=near)) for file in files]

    def images(self, files: Sequence[bytes]) -> Iterator[dict[str, Vectors]]:
        """The cloud's indexing: named gallery vectors of each batch of picture files."""
        for start in range(0, len(files), BATCH):
            yield self.tower.vectors(self.pixels(files[start : start + BATCH]))

    def image(self, files: Sequence[bytes]) -> Vectors:
        """The large tower's unit vectors."""
        return np.concatenate([batch["original"] for batch in self.images(files)])

    def symmetric_tokens(self, files: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """Tokens of the symmetric baseline; they are made in the cloud, so no wire is between."""
        assert self.baselines is not None
        tokens: list[NDArray[np.float32]] = []
        for start in range(0, len(files), BATCH):
            (places,) = self.places.run(["places"], {"pixels": self.pixels(files[start : start + BATCH])})
            tokens.extend(self.baselines.sentences(places))
        return tokens

    def pixels(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """(batch, side, side, 3) RGB, as the large tower sees them."""
        spec = self.composer.manifest.picture
        return np.stack([fit(open_picture(file, near=spec.side), spec) for file in files])


@dataclass(frozen=True)
class Shelf:
    """A gallery on disk, and the same vectors in memory to check it by."""

    gallery: Gallery
    vectors: dict[str, Vectors]

    def ranked(self, row: Row, relevant: Sequence[Sequence[int]]) -> list[list[int]]:
        """For each query the gallery indexes of its first hits, best first."""
        return [
            pessimistic(
                [(int(hit.id, 16), hit.score) for hit in self.gallery.search(vector, row.against, DEEP, exact=True)], wanted
            )  # fmt: skip
            for vector, wanted in zip(row.vectors, relevant, strict=True)
        ]  # type: ignore[return-value]


def measure(
    bundle: Path,
    *,
    sizes: Sizes = FULL,
    seed: int = 0,
    threads: int | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Everything `pocketlens-bench accuracy` says, as one JSON object; percentages with 95 % intervals.

    `seed` draws the bootstrap, the ceiling's captions and the sketches' words; the sets have their own fixed seeds.
    Raises BadBundle and GalleryError."""
    busy, started = Busy.now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    lab = Lab.open(bundle, threads=threads)
    bench = _Bench(lab, sizes, seed, on_progress)
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
            busy=busy,
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
    return said


class _Bench:
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
                    ("zero-shot", "picture + words, sum, tuned"), ("zero-shot", "symmetric"), ("zero-shot", "zero-shot, f32"),
                    ("tuned", "zero-shot"), ("tuned", "tuned control"), ("ceiling", "zero-shot"),
                ),
            )  # fmt: skip

    def composed_rows(self, found: ComposedSet, files: list[bytes], weight: float) -> list[Row]:
        lab, composer = self.lab, self.lab.composer
        texts = [query.text for query in found.queries]
        image = lab.image(files)
        words = composer.compose_batch([(None, text) for text in texts], "zero-shot")
        rows = [
            Row(name="words only", vectors=words),
            Row(name="picture only", vectors=image),
            Row(name="picture + words, sum, untuned", vectors=summed(image, words, 1.0)),
            Row(name="picture + words, sum, tuned", vectors=summed(image, words, weight)),
        ]
        if lab.baselines:
            symmetric = list(zip(lab.symmetric_tokens(files), texts, strict=True))
            rows.append(Row(name="symmetric", vectors=composer.compose_batch(symmetric, "zero-shot")))
        tokens = lab.tokens(files)
        for encoding in Encoding:
            asks = list(zip(sent(tokens, encoding), texts, strict=True))
            name = "zero-shot" if encoding is Encoding.INT8 else f"zero-shot, {encoding}"
            rows.append(Row(name=name, vectors=composer.compose_batch(asks, "zero-shot")))
        asks = list(zip(sent(tokens), texts, strict=True))
        if "tuned" in composer.modes:
            rows.append(Row(name="tuned", vectors=composer.compose_batch(asks, "tuned"), against="union"))
        if lab.baselines:
            rows.append(Row(name="tuned control", vectors=lab.baselines.control(composer.features(asks))))
        rows.append(Row(name="ceiling", vectors=self.ceiling(found)))
        order = [*rows[:4], *(row for row in rows[4:] if ", " not in row.name), *(r for r in rows[4:] if ", " in r.name)]
        return order

    def ceiling(self, found: ComposedSet) -> Vectors:
        """What the text tower makes of the anchor's true caption in the sentence's place."""
        rng = np.random.default_rng([self.seed, 1])
        prompt = self.lab.composer.manifest.prompts.composed
        told = [prompt.format(sentence=caption(query.source, rng), words=query.text) for query in found.queries]
        return self.lab.composer.compose_batch([(None, text) for text in told], "zero-shot")

    def text_to_image(self, folder: Path) -> dict[str, Any]:
        """A full caption, typed as words."""
        pictures, captions = retrieval_set(count=self.sizes.retrieval)
        with self.shelf("text-to-image gallery", folder, pictures) as shelf:
            rows = self.by_mode(lambda mode: self.lab.composer.compose_batch([(None, text) for text in captions], mode))
            return self.table("text_to_image", "text to image", shelf, rows, [(i,) for i in range(len(pictures))])

    def sketches(self, folder: Path) -> list[dict[str, Any]]:
        """A sketch alone, and a sketch with words for what it cannot show."""
        found = sketch_set(sketches=self.sizes.sketches, gallery=self.sizes.sketch_gallery)
        files = self.files("sketches", found.sketches)
        tokens = sent(self.lab.tokens(files))
        words, both = words_for_sketches(found, self.seed)
        large = Row(name="large image tower", vectors=self.lab.image(files))
        with self.shelf("sketch gallery", folder, found.gallery) as shelf:
            alone = self.by_mode(lambda mode: self.lab.composer.compose_batch([(token, "") for token in tokens], mode))
            asks = list(zip(tokens, words, strict=True))
            together = self.by_mode(lambda mode: self.lab.composer.compose_batch(asks, mode))
            return [
                self.table("sketch", "sketch to picture", shelf, [large, *alone], found.relevant),
                self.table("sketch_and_words", "sketch + words", shelf, together, both),
            ]

    def by_mode(self, compose: Callable[[Mode], Vectors]) -> list[Row]:
        against = {"zero-shot": "original", "tuned": "union"}
        return [Row(name=mode, vectors=compose(mode), against=against[mode]) for mode in self.lab.composer.modes]

    def tuned_weight(self) -> float:
        """The weight of the words in the sum that does best on a validation set of its own."""
        found = composed_set(
            queries=self.sizes.validation, gallery=self.sizes.validation_gallery, seed=VALIDATION_SEED
        )
        gallery = self.lab.image(self.files("validation gallery", found.gallery))
        image = self.lab.image(self.files("validation anchors", [query.anchor for query in found.queries]))
        words = self.lab.composer.compose_batch([(None, query.text) for query in found.queries], "zero-shot")

        def worth(weight: float) -> tuple[float, float]:
            hits = nearest(gallery, summed(image, words, weight))
            ranked = [pessimistic(*pair) for pair in zip(hits, found.relevant, strict=True)]
            r10, map10 = judge(("R@10", "mAP@10"), ranked, found.relevant).mean(0)
            return float(r10), float(map10)

        return max(WEIGHTS, key=worth)

    # --- the work

    def files(self, what: str, pictures: Sequence[Picture]) -> list[bytes]:
        self.on_progress(f"draw {what}", 0, len(pictures))
        return photographed(
            pictures,
            processes=self.lab.threads,
            on_done=lambda done: self.on_progress(f"draw {what}", done, len(pictures)),
        )

    def shelf(self, what: str, folder: Path, pictures: Sequence[Picture]) -> "_Shelved":
        return _Shelved(self, what, folder, pictures)

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
        judged: dict[str, NDArray[np.float64]] = {}
        ranked: list[list[int]] = []
        for done, row in enumerate(rows, start=1):
            ranked = shelf.ranked(row, relevant)
            judged[row.name] = 100 * judge(METRICS, ranked, relevant)
            self.on_progress(f"search {title}", done, len(rows))
        return {
            "key": key,
            "title": title,
            "queries": len(relevant),
            "gallery": len(next(iter(shelf.vectors.values()))),
            "rows": [
                {"name": row.name, "against": row.against, **self.figures(judged[row.name])}
                | ({"groups": self.by_group(judged[row.name], groups)} if groups else {})
                for row in rows
            ],
            "differences": [
                {"of": a, "over": b, **self.figures(judged[a] - judged[b])}
                for a, b in differences
                if a in judged and b in judged
            ],
            "gallery_check": agreement(shelf, rows[-1], ranked),
        }

    def figures(self, values: NDArray[np.float64]) -> dict[str, Any]:
        """Each metric's mean over the queries (queries, metrics) with its interval."""
        return {name: asdict(mean(values[:, i], seed=self.seed)) for i, name in enumerate(METRICS)}

    def by_group(
        self, values: NDArray[np.float64], groups: Mapping[str, Mapping[str, NDArray[np.bool_]]]
    ) -> dict[str, Any]:
        return {
            kind: {
                name: {"queries": int(mask.sum()), **self.figures(values[mask])}
                for name, mask in masks.items()
                if mask.any()
            }
            for kind, masks in groups.items()
        }


class _Shelved:
    """Context manager: the pictures drawn, seen by the large tower and put into a gallery of their own."""

    def __init__(self, bench: _Bench, what: str, folder: Path, pictures: Sequence[Picture]) -> None:
        self._bench, self._what, self._folder, self._pictures = bench, what, folder, pictures

    def __enter__(self) -> Shelf:
        files = self._bench.files(self._what, self._pictures)
        manifest = self._bench.lab.composer.manifest
        self._gallery = Gallery.create(
            self._folder, dim=manifest.dim, vectors=manifest.targets, gallery_space=manifest.gallery_space
        )
        parts: dict[str, list[Vectors]] = {name: [] for name in manifest.targets}
        placed = 0
        for batch in self._bench.lab.images(files):
            count = len(batch["original"])
            self._gallery.upsert(
                [Point(f"{placed + i:032x}", {name: batch[name][i] for name in parts}) for i in range(count)]
            )
            for name, part in parts.items():
                part.append(batch[name])
            placed += count
            self._bench.on_progress(f"index {self._what}", placed, len(files))
        self._gallery.settle()
        return Shelf(self._gallery, {name: np.concatenate(part) for name, part in parts.items()})

    def __exit__(self, *_: object) -> None:
        self._gallery.close()


def sent(
    tokens: Sequence[NDArray[np.float32]], encoding: Encoding = Encoding.INT8
) -> list[NDArray[np.float32]]:
    """The tokens as the cloud receives them: packed, serialised, parsed, unpacked."""
    return [unpack(pb.Sentence.FromString(pack(token, encoding).SerializeToString())) for token in tokens]


def summed(image: Vectors, words: Vectors, weight: float) -> Vectors:
    """The baseline without tokens: picture + weight * words, unit length."""
    both = image + np.float32(weight) * words
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def nearest(gallery: Vectors, queries: Vectors) -> list[list[tuple[int, float]]]:
    """For each query its DEEP best gallery indexes and their cosines, by comparing with all."""
    cosines = queries @ gallery.T
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :DEEP]
    return [[(int(i), float(row[i])) for i in places] for places, row in zip(best, cosines, strict=True)]


def agreement(shelf: Shelf, row: Row, ranked: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Percentage of queries whose first ten hits are, as a set, those of a plain float32 matrix product."""
    exact = nearest(shelf.vectors[row.against], row.vectors)
    same = [set(came[:10]) == {i for i, _ in hits[:10]} for came, hits in zip(ranked, exact, strict=True)]
    return {"row": row.name, "same_first_ten_as_exact": 100 * float(np.mean(same))}


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
