"""The best hits rearranged by their own vectors: what that does to composed queries and to sketches.

Owns the settings that are compared. Rearranging is pocketlens_cloud/rerank.py's. Called by refine.py."""

from time import perf_counter
from typing import Any, Final

import numpy as np
from pocketlens_cloud.compose import Mode
from pocketlens_cloud.rerank import RERANK, Rerank, rerank

from pocketlens_bench.accuracy import judge
from pocketlens_bench.lab import Lab, Tokens, Vectors, sent
from pocketlens_bench.questions import Judged, Questions, about_pictures, composed, drawn, figures, minus, sketches
from pocketlens_bench.shelf import DEEP
from pocketlens_bench.world import OnProgress, Sizes

METRICS = ("R@1", "R@10", "mAP@10")
REACH = 100  # hits fetched, from which the deepest setting takes
WITHOUT = "without"
# After the paper (arXiv 2308.06954), but for 100 hits in place of its 400.
SETTINGS: Final = {
    "default": RERANK,
    "the paper's": Rerank(depth=REACH, neighbours=9, leaders=10, pooling="largest", standardised=False),
}


def reranked(lab: Lab, sizes: Sizes, seed: int, on_progress: OnProgress) -> list[dict[str, Any]]:
    """A table for each set and mode: without, and in each of the settings, with paired differences."""
    tables = []
    for questions in (about_pictures(lab, sizes, on_progress)[0], sketches(lab, sizes, on_progress)):
        tokens = sent(lab.tokens(drawn(lab, questions.pictures, questions.title, on_progress)))
        for mode in lab.composer.modes:
            on_progress(f"re-rank {questions.title}, {mode}", 0, 1)
            tables.append(_table(lab, questions, tokens, mode, seed))
    return tables


def _table(lab: Lab, questions: Questions, tokens: list[Tokens], mode: Mode, seed: int) -> dict[str, Any]:
    vectors = composed(lab, list(zip(tokens, questions.words, strict=True)), mode)
    gallery = questions.gallery[lab.composer.vector_of(mode)]
    judged, taken = {}, {}
    for name, how in ({WITHOUT: None} | SETTINGS).items():
        judged[name], taken[name] = _judged(questions, vectors, gallery, how)
    return {
        "key": f"re-ranking, {questions.key}, {mode}",
        "title": f"Re-ranking, {questions.title}, {mode}",
        "queries": len(questions.words),
        "gallery": questions.gallery_size,
        "rows": [
            {"name": name, **figures(judged[name], seed=seed, metrics=METRICS), "rerank_ms": taken[name]}
            for name in judged
        ],
        "differences": [
            {"of": name, "over": WITHOUT, **figures(minus(judged[name], judged[WITHOUT]), seed=seed, metrics=METRICS)}
            for name in SETTINGS
        ],
    }


def _judged(questions: Questions, vectors: Vectors, gallery: Vectors, how: Rerank | None) -> tuple[Judged, float]:
    """Percent by query under METRICS, and the median of milliseconds that rearranging took; 0 where none was done."""
    ranked, took = [], []
    for vector in vectors:
        cosines = gallery @ vector
        best = np.argsort(-cosines, kind="stable")[:REACH]
        if how is not None:
            began = perf_counter()
            order, _ = rerank(vector, gallery[best], cosines[best], how)
            took.append((perf_counter() - began) * 1e3)
            best = best[order]
        ranked.append([int(place) for place in best[:DEEP]])
    return judge(ranked, questions.relevant), float(np.median(took)) if took else 0.0
