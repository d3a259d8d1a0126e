"""Anyone's own composed queries: lines of reference, words and targets over a folder of pictures."""

from collections.abc import Sequence
from pathlib import Path

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_queries
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, percent
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

KS = (1, 5, 10, 50)


class Own(Protocol):
    name = "jsonl"
    title = "Own queries"
    depth = 50
    headline = ("R@1", "R@5", "R@10", "R@50", "mAP@10")
    states = Statement(
        gallery="every picture of the folder, or those that gallery.txt names",
        queries="every line of queries.jsonl, with its reference, its text, or both",
        ids="a query: its `id`, else the number of its line; a picture: its path below the pictures' folder",
        exclusions="what a line's `exclude` names; nothing else: the reference stays unless it is named there",
        denominators="R@k: share of queries with any target among the first k. mAP@k: precision at each target among "
        "the first k, summed, over min(targets, k)",
        ties="the named policy",
        source="ours; the measures are those of CIRR (R@k) and CIRCO (mAP@k)",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_own import load_own

        return load_own(root, reading)

    def values(self, block: Ranked) -> Values:
        names = [f"R@{k}" for k in KS] + [f"mAP@{k}" for k in KS if k > 1]
        return measures.by_name(block.hits, block.relevant, names)

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        says = {"R": "share of queries with a target among the first k", "m": "plain AP over min(targets, k)"}
        return [over_queries(name, says[name[0]], percent(values, name)) for name in values[0]]
