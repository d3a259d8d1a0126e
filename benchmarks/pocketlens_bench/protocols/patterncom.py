"""PatternCom (Psomas et al., IGARSS 2024): an aerial picture and another value of one attribute."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_groups
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, groups, percent
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

KS = (5, 10, 15, 20)
DECIMALS = 2  # of a query's percentage, and of an attribute's mean


class PatternCom(Protocol):
    name = "patterncom"
    title = "PatternCom"
    headline = ("mAP",)
    states = Statement(
        gallery="all 30,400 pictures of PatternNet; those without a row in the attribute's file are never relevant",
        queries="every row of an attribute's file with every other value that the attribute takes for the same "
        "(merged) class; the bare value as words",
        ids="a query: attribute, file, wanted value: color/airplane001.jpg/red; a picture: its file name",
        exclusions="none: the query's picture stays",
        denominators="plain AP over positives, 0 if there are none; P@k over k, R@k over positives. Each query's "
        "percentage is rounded to two decimals, then the attribute's mean, then the plain mean over attributes",
        ties="official: undefined (argsort). Ours: the named policy",
        source="billpsomas/rscir evaluate.py, relevance as since July 2024 (value and merged class)",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_patterncom import load_patterncom

        return load_patterncom(root, reading)

    def values(self, block: Ranked) -> Values:
        hits, positives = block.hits, block.relevant
        exact = {
            "mAP": measures.plain_ap(hits, positives),
            **{f"R@{k}": measures.hits_over(hits, k, positives) for k in KS},
            **{f"P@{k}": measures.hits_over(hits, k, k) for k in KS},
        }
        return {name: np.round(100 * values, DECIMALS) / 100 for name, values in exact.items()}

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        attribute = groups(tasks)
        plain = [over_groups(name, "mean over attributes", percent(values, name), attribute) for name in values[0]]
        return [replace(figure, group_decimals=DECIMALS) for figure in plain]
