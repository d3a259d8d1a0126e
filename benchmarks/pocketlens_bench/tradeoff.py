"""Approximate against exact search in the embedded gallery: how an index is built, how it is walked, and what each
way costs. The gallery's defaults come from this table.

Owns the vectors it is tried on, the ways of building and walking, and the choice. Building takes minutes and searching
seconds, so built galleries are kept in a folder and a killed run goes on where it stopped; each is built in a process
of its own, whose peak of memory is its own. Called by cli/tradeoff.py."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketlens_cloud.gallery.embedded import INDEX, EmbeddedGallery, IndexSettings
from pocketlens_cloud.gallery.interface import WALK, Gallery, Point, Search, Walk

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.world import OnProgress, silently

WANTED_RECALL, WANTED_MS = 0.98, 6.0  # of exact search's first ten; p50 of a search
TOP = 10
CHUNK = 2_000  # vectors stored at once
NAME = "original"
BUILDS = (
    IndexSettings(m=16, ef_construct=100, int8=False),  # the engine's own defaults
    IndexSettings(m=16, ef_construct=100, int8=True),
    IndexSettings(m=16, ef_construct=200, int8=True),
    IndexSettings(m=32, ef_construct=100, int8=True),
    IndexSettings(m=32, ef_construct=200, int8=True),
    IndexSettings(m=32, ef_construct=400, int8=True),
)
EFS = (64, 128, 256, 512, 640, 768, 1024)
HOW_WALKED = (
    Walk(int8=False, rescore=False, oversampling=1.0),
    Walk(int8=True, rescore=False, oversampling=1.0),
    Walk(int8=True, rescore=True, oversampling=1.0),
    Walk(int8=True, rescore=True, oversampling=2.0),
)
HONESTY = (
    "The vectors are drawn, not pictures': points of a Gaussian with fewer dimensions than the space, questions drawn "
    "alike. Real galleries are clustered, which makes them easier in places and harder in others. Searches carry no "
    "filter: one that leaves half of the pictures makes the walk several times slower. Memory is the peak of the "
    "process that searched, mapped file pages included; p99 rests on a hundredth of the searches."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is tried: gallery vectors of so many numbers, lying near a subspace of `inner` dimensions."""

    vectors: int = 1_000_000
    width: int = 512
    inner: int = 64
    noise: float = 0.02  # of each number, beside a point whose coordinates in the subspace have deviation 1
    queries: int = 500


FULL = Sizes()
QUICK = Sizes(vectors=50_000, queries=200)


def measure(
    folder: Path,
    *,
    sizes: Sizes = FULL,
    builds: tuple[IndexSettings, ...] = BUILDS,
    seed: int = 0,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench tradeoff` says, as one JSON object.

    folder: where galleries are built and kept, about 5 GB for each of a million vectors."""
    load, began = load_now(), perf_counter()
    home = folder / f"tradeoff-{sizes.vectors}-{sizes.width}-{sizes.inner}-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    truth = exact_hits(home, sizes, seed, on_progress)
    rows: list[dict[str, Any]] = []
    for at, settings in enumerate(builds):
        on_progress(f"build {_name(settings)}", at, len(builds))
        built = _apart(build, home, settings, sizes, seed)
        on_progress(f"search {_name(settings)}", at, len(builds))
        rows += [{**built, **row} for row in _apart(search, home, settings, sizes, seed, truth)]
    chosen = [row for row in rows if _is_default(row)]
    return {
        "benchmark": "tradeoff",
        "set": "synthetic",
        "unit": "recall: share of exact search's first ten; times in ms, one search at a time",
        "gallery": sizes.vectors,
        "title": f"{sizes.vectors:,} vectors of width {sizes.width}, {sizes.inner} dimensions within",
        "rows": rows,
        "chosen": chosen[0] if chosen else None,
        "lost": list(losses(rows)),
        "honesty": HONESTY,
        "left_out": [] if chosen else ["the gallery's default settings: they are not among those built"],
        "conditions": conditions(
            None,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={"build": os.cpu_count() or 1, "search": "the engine's own, one search at a time"},
            seeds={"vectors": seed, "bootstrap": seed},
            sizes=asdict(sizes),
        ),
    }


def losses(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Which ways miss what is wanted."""
    for how in dict.fromkeys((row["m"], row["ef_construct"], row["walked"]) for row in rows):
        some = [row for row in rows if (row["m"], row["ef_construct"], row["walked"]) == how]
        if not any(row["recall"] >= WANTED_RECALL and row["p50_ms"] <= WANTED_MS for row in some):
            best = max(some, key=lambda row: row["recall"])
            yield (
                f"m {how[0]}, ef_construct {how[1]}, {how[2]}: no ef reaches {WANTED_RECALL} within {WANTED_MS:g} ms; "
                f"at best {best['recall']:.3f} at {best['p50_ms']:.1f} ms"
            )


# --- the vectors


def drawn(sizes: Sizes, seed: int, what: str) -> Iterator[NDArray[np.float32]]:
    """Unit vectors (CHUNK, width) block by block; `what` is gallery or queries."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((sizes.width, sizes.inner)))[0].T
    count = {"gallery": sizes.vectors, "queries": sizes.queries}[what]
    for start in range(0, count, CHUNK):
        rng = np.random.default_rng([seed, start, what == "queries"])
        rows = min(CHUNK, count - start)
        points = rng.standard_normal((rows, sizes.inner)) @ basis
        points += sizes.noise * rng.standard_normal((rows, sizes.width))
        yield (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def exact_hits(home: Path, sizes: Sizes, seed: int, on_progress: OnProgress) -> NDArray[np.int64]:
    """(queries, TOP) places of the nearest, by comparing with all in float32; remembered in `home`."""
    file = home / f"exact-{sizes.queries}.npy"
    if file.exists():
        return np.load(file)
    queries = np.concatenate(list(drawn(sizes, seed, "queries")))
    places, scores = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    for at, some in enumerate(drawn(sizes, seed, "gallery")):
        scores = np.concatenate([scores, queries @ some.T], axis=1)
        here = np.broadcast_to(at * CHUNK + np.arange(len(some)), (len(queries), len(some)))
        places = np.concatenate([places, here], axis=1)
        best = np.argpartition(-scores, TOP - 1, axis=1)[:, :TOP]
        scores, places = np.take_along_axis(scores, best, axis=1), np.take_along_axis(places, best, axis=1)
        on_progress("exact search", min((at + 1) * CHUNK, sizes.vectors), sizes.vectors)
    partial = file.with_suffix(".partial.npy")
    np.save(partial, places)
    os.replace(partial, file)
    return places


# --- building and searching, each in a process of its own


def build(home: Path, settings: IndexSettings, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Build a gallery unless it is there whole; what building took."""
    path, card = home / _name(settings), home / f"{_name(settings)}.json"
    if card.exists():
        return json.loads(card.read_text(encoding="utf-8"))
    shutil.rmtree(path, ignore_errors=True)  # begun and not finished
    began, load = perf_counter(), load_now()
    with EmbeddedGallery.create(
        path, dim=sizes.width, vectors=[NAME], gallery_space="gs-tradeoff", index=settings
    ) as gallery:
        for at, some in enumerate(drawn(sizes, seed, "gallery")):
            gallery.upsert([Point(f"{at * CHUNK + i:032x}", {NAME: row}) for i, row in enumerate(some)])
        stored = perf_counter()
        gallery.settle()
    built = {
        "m": settings.m,
        "ef_construct": settings.ef_construct,
        "quantised": settings.int8,
        "store_s": round(stored - began, 1),
        "build_s": round(perf_counter() - stored, 1),
        "build_load": [load, load_now()],
        "build_peak_bytes": peak_bytes(),
        "disk_bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    }
    card.write_text(json.dumps(built), encoding="utf-8")
    return built


def search(
    home: Path, settings: IndexSettings, sizes: Sizes, seed: int, truth: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """A row for each way of walking and each ef: recall and times, one search at a time."""
    queries = np.concatenate(list(drawn(sizes, seed, "queries")))
    rows = []
    with EmbeddedGallery.open(home / _name(settings)) as gallery:
        for query in queries:  # so that the first row does not pay for reading the index from the disk
            gallery.search(Search(vector=query, name=NAME, top=TOP, walk=Walk(ef=EFS[-1], int8=False)))
            gallery.search(Search(vector=query, name=NAME, top=TOP, walk=Walk(ef=EFS[-1])))
        for walk in HOW_WALKED:
            if walk.int8 and not settings.int8:
                continue
            for ef in EFS:
                tried = Walk(ef=ef, int8=walk.int8, rescore=walk.rescore, oversampling=walk.oversampling)
                rows.append({**asdict(tried), "walked": walked(tried), **asked(gallery, queries, tried, truth)})
        for row in rows:
            row["memory_bytes"] = peak_bytes()
    return rows


def asked(
    gallery: Gallery, queries: NDArray[np.float32], walk: Walk, truth: NDArray[np.int64]
) -> dict[str, float | int]:
    """Recall of exact search's first ten, and times."""
    took, found = [], 0
    for query, wanted in zip(queries, truth, strict=True):
        began = perf_counter()
        hits = gallery.search(Search(vector=query, name=NAME, top=TOP, walk=walk))
        took.append(1e3 * (perf_counter() - began))
        found += len({int(hit.id, 16) for hit in hits} & set(wanted.tolist()))
    p50, p95, p99 = (float(q) for q in np.quantile(took, (0.5, 0.95, 0.99)))
    return {"recall": found / truth.size, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "searches": len(queries)}


def walked(walk: Walk) -> str:
    """A way of walking, for people."""
    if not walk.int8:
        return "float32"
    return f"int8, rescored x{walk.oversampling:g}" if walk.rescore else "int8, not rescored"


def peak_bytes() -> int:
    """The most memory this process held so far."""
    import resource  # not on every system; where it is missing, this benchmark does not run

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _apart(work: Any, *given: Any) -> Any:
    """`work(*given)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def _name(settings: IndexSettings) -> str:
    return f"m{settings.m}-ef{settings.ef_construct}-{'int8' if settings.int8 else 'float32'}"


def _is_default(row: Mapping[str, Any]) -> bool:
    """Whether a row is what a gallery does when nobody says otherwise."""
    index = (row["m"], row["ef_construct"], row["quantised"]) == (INDEX.m, INDEX.ef_construct, INDEX.int8)
    return index and (row["ef"], row["walked"]) == (WALK.ef, walked(WALK))
