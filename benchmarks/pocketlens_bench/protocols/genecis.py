"""GeneCIS (Vaze et al., CVPR 2023): a picture and a word, against a dozen candidates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_groups, over_queries
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, names, percent
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

KS = (1, 2, 3)


class Genecis(Protocol):
    name = "genecis"
    title = "GeneCIS, four tasks"
    headline = ("R@1, mean of 4 tasks",)
    states = Statement(
        gallery="each query's own 10 or 15 candidates: its target and the gallery of its template",
        queries="every template once, with the bare condition as words",
        ids="a query: its place in the task's file, from 0; a picture: COCO's number, or for the attribute "
        "tasks Visual Genome's with the box, 2316353@10,20,30,40; `#2` after an id that a template lists"
        " twice",
        exclusions="none; the reference is not a candidate",
        denominators="R@k: share of queries whose target is among the first k candidates; each task by itself, and "
        "their mean, which is comparable only over all four",
        ties="official: the loader puts the target first, so an order by position leaks the label (a constant scorer "
        "finds everything). Ours: the named policy",
        source="facebookresearch/genecis 0c5c968c eval_functions.py",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_genecis import load_genecis

        return load_genecis(root, reading)

    def values(self, block: Ranked) -> Values:
        return {f"R@{k}": measures.hit_rate(block.hits, k) for k in KS}

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        task = np.array(names(tasks))
        says = "share of queries with the target among the first k candidates"
        means = [
            over_groups(
                f"R@{k}, mean of {len(tasks)} tasks",
                f"{says}, mean over tasks",
                percent(values, f"R@{k}"),
                task.tolist(),
            )
            for k in KS
        ]
        return means + [
            over_queries(f"R@{k}, {each.name}", says, np.where(task == each.name, percent(values, f"R@{k}"), np.nan))
            for each in tasks
            for k in KS
        ]
