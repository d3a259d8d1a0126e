"""FashionIQ (Wu et al., CVPR 2021): a garment and two sentences on how the wanted one differs."""

from collections.abc import Sequence
from pathlib import Path

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_groups
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, names, percent
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

KS = (10, 50, 1, 5)


class FashionIq(Protocol):
    """The original split."""

    name = "fashioniq"
    title = "FashionIQ, original split"
    depth = 50
    has_splits = True
    headline = ("R@10", "R@50", "mean of R@10 and R@50")
    states = Statement(
        gallery="the category's split file, in three categories: dress, shirt, toptee",
        queries="every pair once; its two captions joined both ways, `c1 and c2` and `c2 and c1`, each stripped of "
        "`.?, ` at both ends; the query's vector is the mean of the two (SEARLE, LinCIR)",
        ids="a query: its place in the caption file of its category, from 0; a picture: its ASIN",
        exclusions="none: the reference stays in the gallery",
        denominators="R@k: share of queries whose target is among the first k; the mean over the three categories, "
        "not over queries",
        ties="official: undefined (torch.argsort); the starter kit's rank is optimistic. Ours: the named policy",
        source="miccunifi/SEARLE a9c314ba validate.py; google-research/composed_image_retrieval 8c053297",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_fashioniq import load_fashioniq

        return load_fashioniq(root, reading)

    def values(self, block: Ranked) -> Values:
        return {f"R@{k}": measures.hit_rate(block.hits, k) for k in KS}

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        category = names(tasks)
        says = "share of queries with the target among the first k, mean over categories"
        found = [over_groups(name, says, percent(values, name), category) for name in values[0]]
        mean = (percent(values, "R@10") + percent(values, "R@50")) / 2
        found.insert(2, over_groups("mean of R@10 and R@50", "their mean, query by query", mean, category))
        return found


class FashionIqVal(FashionIq):
    """The VAL protocol: a smaller gallery, each caption a query of its own."""

    name = "fashioniq-val"
    title = "FashionIQ, VAL protocol"
    states = Statement(
        gallery="the category's references and targets alone, sorted: 31 to 51 % smaller than the original split",
        queries="each caption that is not empty is a query of its own, so about twice as many",
        ids="a query: place and caption, 12-0 and 12-1; a picture: its ASIN",
        exclusions="the reference ranks last (VAL sets its distance to a huge value); here it is taken out",
        denominators="R@k as in the original split. Scores are higher than there: never in one table with it",
        ties="official: numpy's default sort, undefined. Ours: the named policy",
        source="yanbeic/VAL 8d127491 generate_groundtruth.py, test_val.py (squared L2 of the model's embeddings; on "
        "unit vectors the same order as cosine)",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_fashioniq import load_fashioniq_val

        return load_fashioniq_val(root, reading)
