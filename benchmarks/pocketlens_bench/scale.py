"""What is found as the gallery grows from a thousand pictures to a million.

Owns the questions, the order in which distractors join the gallery, the exact ranking at every size, the check of the
synthetic vectors, and what approximate search in the embedded gallery loses. Called by cli/scale.py."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.gallery.embedded import INDEX, EmbeddedGallery
from pocketlens_cloud.gallery.interface import WALK, Gallery, Point, Search
from pocketlens_samples.catalogue import Spec
from pocketlens_samples.queries import COMPOSED_SEED, ComposedSet, composed_set

from pocketlens_bench import distractors
from pocketlens_bench.accuracy import summed
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.lab import Lab, Vectors, sent
from pocketlens_bench.protocols.figures import over_queries
from pocketlens_bench.questions import composed, drawn
from pocketlens_bench.world import OnProgress, silently

TOP = 10
METRICS = ("R@1", "R@10", "mAP@10")
HONESTY = (
    "The world has 69,120 specifications: a gallery of a million holds about fourteen pictures of each, and for every "
    "question hundreds that miss what is wanted in one attribute. Distractors that answer a question are left out, so "
    "the right answers stay as few as in the small gallery."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """galleries: sizes, ascending. real: distractors that are pictures. groups: sets of `queries` questions, each with
    a gallery of `base` pictures of its own, which the distractors join. approximate: sizes of the gallery on disk."""

    galleries: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    real: int = 100_000
    groups: int = 6
    queries: int = 200
    base: int = 1_000
    approximate: tuple[int, ...] = (10_000, 100_000, 1_000_000)


FULL = Sizes()
QUICK = Sizes(galleries=(1_000, 3_000, 10_000), real=5_000, groups=2, approximate=(10_000,))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Questions, the query vectors of each row, and the gallery that holds their answers."""

    found: ComposedSet
    rows: Mapping[str, tuple[str, Vectors]]  # the gallery vector searched in, query vectors (queries, dim)
    base: Mapping[str, Vectors]


@dataclass
class Best:
    """The scores of the TOP nearest distractors seen so far, (queries, TOP); they are never relevant."""

    scores: NDArray[np.float32]

    def see(self, queries: Vectors, some: Vectors) -> None:
        both = np.concatenate([self.scores, queries @ some.T], axis=1)
        self.scores = -np.partition(-both, TOP - 1, axis=1)[:, :TOP]


def measure(
    bundle: Path,
    folder: Path,
    *,
    sizes: Sizes = FULL,
    seed: int = 0,
    threads: int | None = None,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench scale` says, as one JSON object. folder: where features and galleries are kept."""
    load, began = load_now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    lab = Lab.open(bundle, threads=threads)
    home = folder / f"scale-{lab.composer.manifest.gallery_space}-{seed}"
    groups = [group(lab, sizes, number, on_progress) for number in range(sizes.groups)]
    wanted = answers(groups)
    real = distractors.real(
        lab, min(sizes.real, sizes.galleries[-1]), seed=seed, wanted=wanted, folder=home / "real",
        on_progress=on_progress,
    )  # fmt: skip
    tables = grown(lab, groups, real, sizes, seed, on_progress)
    approximate = [*on_disk(lab, groups[0], real, sizes, seed, wanted, home / "gallery", on_progress)]
    checked = check(lab, groups, real, seed, on_progress)
    return {
        "benchmark": "scale",
        "set": "sample",
        "unit": "percent; times in ms",
        "distractors": distractors.SAYS,
        "tables": tables,
        "approximate": approximate,
        "check": checked,
        "lost": [*losses(tables, approximate)],
        "left_out": [],
        "honesty": HONESTY,
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"cloud": threads},
            seeds={"composed": COMPOSED_SEED, "distractors": seed, "bootstrap": seed},
            sizes=asdict(sizes),
        ),
    }


def group(lab: Lab, sizes: Sizes, number: int, on_progress: OnProgress) -> Group:
    """The composed set, drawn with another seed for each group."""
    found = composed_set(queries=sizes.queries, gallery=sizes.base, seed=COMPOSED_SEED + 10 * number)
    files = drawn(lab, [query.anchor for query in found.queries], "anchors", on_progress)
    texts = [query.text for query in found.queries]
    asks = list(zip(sent(lab.tokens(files)), texts, strict=True))
    words = composed(lab, [(None, text) for text in texts])
    rows = {
        "sum": ("original", summed(lab.image(files), words, 1.0)),
        "zero-shot": ("original", composed(lab, asks)),
    }
    if "tuned" in lab.composer.modes:
        rows["tuned"] = ("union", composed(lab, asks, "tuned"))
    gallery = list(lab.images(drawn(lab, found.gallery, "small galleries", on_progress)))
    return Group(
        found=found, rows=rows, base={name: np.concatenate([batch[name] for batch in gallery]) for name in gallery[0]}
    )


def answers(groups: list[Group]) -> set[Spec]:
    """What is wanted by any question: no distractor shows it."""
    return {query.target for each in groups for query in each.found.queries}


# --- exact search at every size


def joining(real: distractors.Real, count: int, seed: int, wanted: set[Spec]) -> Iterator[NDArray[np.float32]]:
    """Raw features of the first `count` distractors in blocks of CHUNK: the pictures, then synthetic ones."""
    pictured = min(count, len(real.features))
    for start in range(0, pictured, distractors.CHUNK):
        yield real.features[start : min(start + distractors.CHUNK, pictured)]
    yield from distractors.synthetic(real, count - pictured, seed=seed, wanted=wanted)


def grown(
    lab: Lab, groups: list[Group], real: distractors.Real, sizes: Sizes, seed: int, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """A table per row: figures at each size of the gallery."""
    names = list(groups[0].rows)
    best = {
        (name, i): Best(np.full((sizes.queries, TOP), -np.inf, np.float32))
        for name in names
        for i in range(len(groups))
    }
    tables = {name: {"key": name, "title": name, "queries": sizes.groups * sizes.queries, "rows": []} for name in names}
    seen = 0
    stream = pieces(
        joining(real, sizes.galleries[-1] - sizes.base, seed, answers(groups)),
        [size - sizes.base for size in sizes.galleries],
    )
    for size in sizes.galleries:
        while seen < size - sizes.base:
            some = distractors.vectors(lab, next(stream))
            for i, each in enumerate(groups):
                for name, (against, queries) in each.rows.items():
                    best[name, i].see(queries, some[against])
            seen += len(some["original"])
            on_progress("exact search", seen, sizes.galleries[-1])
        for name in names:
            judged = [judge(each, name, best[name, i].scores) for i, each in enumerate(groups)]
            figures = {
                metric: asdict(
                    over_queries(metric, "", np.concatenate([one[metric] for one in judged])).measured(seed=seed)
                )
                for metric in METRICS
            }
            tables[name]["rows"].append(
                {"gallery": size, "real": min(size, sizes.base + len(real.features)), **figures}
            )
    return list(tables.values())


def pieces(blocks: Iterable[NDArray[np.float32]], marks: Iterable[int]) -> Iterator[NDArray[np.float32]]:
    """The same rows, cut so that no piece reaches over any of `marks`, ascending numbers of rows."""
    ahead = sorted(set(marks))
    seen = 0
    for block in blocks:
        while len(block):
            room = next((mark - seen for mark in ahead if mark > seen), len(block))
            yield block[:room]
            seen += len(block[:room])
            block = block[room:]  # noqa: PLW2901


def judge(each: Group, name: str, others: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Each question's percent under each metric: its own gallery, joined by distractors whose nearest score `others`
    (queries, TOP). Among equal scores what is not relevant comes first."""
    against, queries = each.rows[name]
    scores = queries @ each.base[against].T
    relevant = np.zeros(scores.shape, bool)
    for row, places in zip(relevant, each.found.relevant, strict=True):
        row[list(places)] = True
    counts = relevant.sum(axis=1)
    scores, relevant = np.concatenate([scores, others], axis=1), np.pad(relevant, ((0, 0), (0, others.shape[1])))
    order = np.lexsort((relevant, -scores), axis=1)[:, :TOP]
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    found = {
        "R@1": hits[:, 0],
        "R@10": hits.any(axis=1),
        "mAP@10": (precision * hits).sum(axis=1) / np.minimum(counts, TOP),
    }
    return {name: 100 * values.astype(np.float64) for name, values in found.items()}


# --- approximate search on disk


def on_disk(
    lab: Lab,
    each: Group,
    real: distractors.Real,
    sizes: Sizes,
    seed: int,
    wanted: set[Spec],
    path: Path,
    on_progress: OnProgress,
) -> Iterator[dict[str, Any]]:
    """The embedded gallery with its default settings at some sizes: what it misses of exact search's first ten, what
    that costs in R@10, how long a search takes, one at a time. Built anew each time; the vectors are what is kept."""
    if not sizes.approximate:
        return
    shutil.rmtree(path, ignore_errors=True)
    manifest = lab.composer.manifest
    with EmbeddedGallery.create(
        path, dim=manifest.dim, vectors=manifest.targets, gallery_space=manifest.gallery_space
    ) as gallery:
        placed = _store(gallery, each.base, 0)
        stream = pieces(
            joining(real, max(sizes.approximate) - sizes.base, seed, wanted),
            [size - sizes.base for size in sizes.approximate],
        )
        for size in sizes.approximate:
            while placed < size:
                placed = _store(gallery, distractors.vectors(lab, next(stream)), placed)
                on_progress("store on disk", placed, max(sizes.approximate))
            on_progress(f"build the index of {size:,}", 0, 1)
            began = perf_counter()
            gallery.settle()
            built = perf_counter() - began
            for name, (against, queries) in each.rows.items():
                yield {
                    "row": name, "gallery": size, "settle_s": round(built, 1), "m": INDEX.m,
                    "ef_construct": INDEX.ef_construct, "int8": INDEX.int8, "ef": WALK.ef,
                    **searched(gallery, queries, against, each.found.relevant),
                }  # fmt: skip
    shutil.rmtree(path, ignore_errors=True)


def _store(gallery: Gallery, some: Mapping[str, Vectors], placed: int) -> int:
    """Put named vectors into the gallery; its ids count on from `placed`."""
    count = len(some["original"])
    gallery.upsert([Point(f"{placed + i:032x}", {name: some[name][i] for name in some}) for i in range(count)])
    return placed + count


def searched(
    gallery: Gallery, queries: Vectors, against: str, relevant: tuple[tuple[int, ...], ...]
) -> dict[str, float]:
    """Recall of exact search's first ten, R@10 of both in percent, and quantiles of a search's time."""
    took, same, found = [], 0, {"exact": 0, "approximate": 0}
    for query, wanted in zip(queries, relevant, strict=True):
        asked = Search(vector=query, name=against, top=TOP)
        gallery.search(asked)  # once unmeasured: the first touch of a page is the disk's time
        began = perf_counter()
        near = gallery.search(asked)
        took.append(1e3 * (perf_counter() - began))
        exact = gallery.search(replace(asked, exact=True))
        ids = {"exact": {int(hit.id, 16) for hit in exact}, "approximate": {int(hit.id, 16) for hit in near}}
        same += len(ids["exact"] & ids["approximate"])
        for how, some in ids.items():
            found[how] += not some.isdisjoint(wanted)
    p50, p95 = (float(q) for q in np.quantile(took, (0.5, 0.95)))
    return {
        "recall": same / (TOP * len(queries)), "searches": len(queries),
        "R@10 exact": 100 * found["exact"] / len(queries),
        "R@10 approximate": 100 * found["approximate"] / len(queries),
        "p50_ms": p50, "p95_ms": p95,
    }  # fmt: skip


# --- are the synthetic vectors like the real ones?


SHARES = (0.5, 0.1)  # of the distractors that stay pictures when the others are replaced


def check(
    lab: Lab, groups: list[Group], real: distractors.Real, seed: int, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """All distractor pictures against a share of them beside synthetic vectors made from that share."""
    every = distractors.vectors(lab, real.features)
    pictured = {name: _judged_with(groups, name, every) for name in groups[0].rows}
    return [
        _checked(lab, groups, real, int(share * len(real.features)), every, pictured, seed)
        for at, share in enumerate(SHARES)
        if on_progress("check synthetic vectors", at, len(SHARES)) is None
    ]


def _checked(
    lab: Lab,
    groups: list[Group],
    real: distractors.Real,
    kept: int,
    every: Mapping[str, Vectors],
    pictured: Mapping[str, Mapping[str, NDArray[np.float64]]],
    seed: int,
) -> dict[str, Any]:
    of = distractors.Real(real.features[:kept], real.specs[:kept])
    count = len(real.features) - kept
    made = np.concatenate(list(distractors.synthetic(of, count, seed=seed + 1, wanted=answers(groups))))
    mixed = distractors.vectors(lab, np.concatenate([of.features, made]))
    synthetic = {name: _judged_with(groups, name, mixed) for name in groups[0].rows}
    difference = {
        name: {
            metric: asdict(
                over_queries(metric, "", synthetic[name][metric] - pictured[name][metric]).measured(seed=seed)
            )
            for metric in METRICS
        }
        for name in groups[0].rows
    }
    neighbours = {
        way: _neighbours(some["original"][kept:], some["original"][:kept])
        for way, some in (("pictures", every), ("synthetic", mixed))
    }
    return {"distractors": len(real.features), "synthetic": count, "difference": difference, "neighbours": neighbours}


def _judged_with(groups: list[Group], name: str, joined: Mapping[str, Vectors]) -> dict[str, NDArray[np.float64]]:
    parts = []
    for each in groups:
        against, queries = each.rows[name]
        best = Best(np.full((len(queries), TOP), -np.inf, np.float32))
        for start in range(0, len(joined[against]), distractors.CHUNK):
            best.see(queries, joined[against][start : start + distractors.CHUNK])
        parts.append(judge(each, name, best.scores))
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}


def _neighbours(some: Vectors, among: Vectors, count: int = 1_000) -> dict[str, float]:
    """Quantiles of the cosine of the first `count` to their nearest neighbour in `among`."""
    nearest = (some[:count] @ among.T).max(axis=1)
    return {f"p{int(100 * q):02d}": float(np.quantile(nearest, q)) for q in (0.05, 0.5, 0.95)}


def losses(tables: list[dict[str, Any]], approximate: list[dict[str, Any]]) -> Iterator[str]:
    """What growth and approximation cost, in sentences."""
    for table in tables:
        small, large = table["rows"][0], table["rows"][-1]
        falls = small["R@1"]["value"] - large["R@1"]["value"], small["R@10"]["value"] - large["R@10"]["value"]
        yield (
            f"{table['title']}: from {small['gallery']:,} to {large['gallery']:,} pictures R@1 falls by {falls[0]:.1f} "
            f"points, R@10 by {falls[1]:.1f}"
        )
    for row in approximate:
        cost = row["R@10 exact"] - row["R@10 approximate"]
        if cost > 0:
            yield f"{row['row']}, {row['gallery']:,} pictures: approximate search costs {cost:.1f} points of R@10"
