"""CIRCO (Baldrati et al., ICCV 2023): a COCO photo and a sentence, with several right answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_queries
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, percent
from pocketlens_bench.protocols.queries import ASPECTS, CircoQuery
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

KS = (5, 10, 25, 50)


class Circo(Protocol):
    name = "circo"
    title = "CIRCO"
    depth = 50
    headline = ("mAP@5", "mAP@10", "mAP@25", "mAP@50")
    submission = 50
    has_splits = True
    states = Statement(
        gallery="all 123,403 pictures of COCO 2017 unlabeled",
        queries="every query once, with `relative_caption` alone; works that also read `shared_concept` must say so",
        ids="a query: its `id`, counted from 0; a picture: COCO's number, 87 for 000000000087.jpg",
        exclusions="none: the reference stays in the gallery",
        denominators="AP@k: precision at each right answer among the first k, summed, over min(right answers, k). "
        "R@k: whether the one picture the query was written for is among the first k. mAP@10 by aspect: a query counts "
        "in each of its aspects",
        ties="official: undefined (torch.topk). Ours: the named policy; among right answers of equal score the smaller "
        "id comes first, so R@k of the target is not protected",
        source="miccunifi/CIRCO 267b5c90 evaluation.py; miccunifi/SEARLE a9c314ba",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_circo import load_circo

        return load_circo(root, reading)

    def values(self, block: Ranked) -> Values:
        places = np.array([block.task.place.get(target(query), -2) for query in block.queries])
        at_target: measures.Hits = block.order == places[:, None]
        aspects = np.array([[aspect in aspects_of(query) for aspect in ASPECTS] for query in block.queries])
        ap10 = average_precision(block, 10)
        return {
            **{f"mAP@{k}": average_precision(block, k) for k in KS},
            **{f"R@{k} of the target": measures.hit_rate(at_target, k) for k in KS},
            **{
                f"mAP@10, {aspect}": np.where(carried, ap10, np.nan)
                for aspect, carried in zip(ASPECTS, aspects.T, strict=True)
            },
        }

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        return [over_queries(name, says(name), percent(values, name)) for name in values[0]]


def says(name: str) -> str:
    if name.startswith("R@"):
        return "share of queries with the one picture they were written for among the first k"
    over = "the queries that carry the aspect" if "," in name else "queries"
    return f"plain average precision over min(right answers, k), mean over {over}"


def average_precision(block: Ranked, k: int) -> measures.Values:
    return measures.plain_ap(block.hits, np.minimum(block.relevant, k), k)


def target(query: object) -> str:
    return query.target or "" if isinstance(query, CircoQuery) else ""


def aspects_of(query: object) -> tuple[str, ...]:
    return query.aspects if isinstance(query, CircoQuery) else ()
