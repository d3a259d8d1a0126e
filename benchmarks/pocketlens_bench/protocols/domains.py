"""Domain conversion: a photo and a style, "as a cartoon". Three codes count the same data three ways.

ImageNet-R as in Pic2Word (recall) and as in MagicLens (hit rate), and FREEDOM's mAP over every pair of domains of
ImageNet-R, NICO++, MiniDomainNet and LTLL. A query's group is `source>target`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_groups
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, groups, percent
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

EPSILON = 1e-5  # in all three codes' denominators
DECIMALS = 2  # of FREEDOM's rounding of a pair


class Pic2WordImageNetR(Protocol):
    name = "imagenet-r"
    title = "ImageNet-R, photo to style, recall (Pic2Word)"
    depth = 200
    headline = ("R@10", "R@50")
    ks: ClassVar[tuple[int, ...]] = (10, 50, 1, 5, 100, 200)
    states = Statement(
        gallery="16,983 pictures: cartoon, origami, toy, sculpture, and the 10,000 query photos themselves",
        queries="every one of 10,000 photos for each of four styles, with the style as words",
        ids="a query: the photo's path as in the list, `>`, the style: `.../n01443537_1.jpg>cartoon`; a "
        "picture: its path",
        exclusions="none",
        denominators="R@k: hits among the first k over (positives + 1e-5), a true recall; P@k: hits over k. Queries "
        "whose class has no picture of the style stay with 0, so no method exceeds 76.5, 53.0, 72.0, 71.0 %. The mean "
        "over the four styles",
        ties="official: undefined (torch.topk). Ours: the named policy",
        source="google-research/composed_image_retrieval 8c053297 eval_utils.py get_metrics_imgnet",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_domains import load_imagenet_r

        return load_imagenet_r(root, reading)

    def values(self, block: Ranked) -> Values:
        return {
            **{f"R@{k}": measures.hits_over(block.hits, k, block.relevant + EPSILON) for k in self.ks},
            **{f"P@{k}": measures.hits_over(block.hits, k, k) for k in self.ks},
        }

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        says = {"R": "hits among the first k over positives", "P": "hits among the first k over k"}
        return [
            over_groups(name, f"{says[name[0]]}, mean over styles", percent(values, name), groups(tasks))
            for name in values[0]
        ]


class MagicLensImageNetR(Pic2WordImageNetR):
    name = "imagenet-r-magiclens"
    title = "ImageNet-R, photo to style, hit rate (MagicLens, UNION)"
    depth = 50
    states = Statement(
        gallery="as `imagenet-r`",
        queries="as `imagenet-r`",
        ids="as `imagenet-r`",
        exclusions="none",
        denominators="R@k is a hit rate: whether any positive is among the first k. Never lower than the recall of "
        "`imagenet-r` and usually far higher: not to be compared with it, though papers tabulate them side by side",
        ties="official: undefined. Ours: the named policy",
        source="google-deepmind/magiclens 5135f58b data_utils.py evaluate_recall",
    )

    def values(self, block: Ranked) -> Values:
        return {f"R@{k}": measures.hit_rate(block.hits, k) for k in (10, 50)}

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        says = "share of queries with any positive among the first k, mean over styles"
        return [over_groups(name, says, percent(values, name), groups(tasks)) for name in values[0]]


class Freedom(Protocol):
    """Every ordered pair of domains; ImageNet-R here, the other sets below."""

    name = "imagenet-r-freedom"
    title = "ImageNet-R, every pair of domains, mAP (FREEDOM)"
    headline = ("mAP",)
    ks: ClassVar[tuple[int, ...]] = (10, 50)
    dataset: ClassVar[str] = "imagenet_r"
    states = Statement(
        gallery="the whole database, all domains; where queries are of the database, the query too",
        queries="every query picture of every domain for each other domain, with the target domain's bare word",
        ids="a query: the picture's path, `>`, the word of the wanted domain: `.../a.jpg>photo`; a picture: "
        "its path as in the list",
        exclusions="none: right class in the wrong domain, the query itself included, is a negative",
        denominators="trapezoid AP over (positives + 1e-5); R@k: hits over (positives + 1e-5); P@k: hits over "
        "(min(positives, k) + 1e-5), not the usual precision. Queries without positives count as 0. A pair's mean is "
        "rounded to two decimals, then averaged over targets, then over sources",
        ties="official: undefined (argsort). Ours: the named policy",
        source="NikosEfth/freedom 5df4bca6 utils_retrieval.py metrics_calc, utils.py compute_map",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_domains import load_freedom

        return load_freedom(root, reading, self.dataset)

    def values(self, block: Ranked) -> Values:
        hits, positives = block.hits, block.relevant
        return {
            "mAP": measures.trapezoid_ap(hits, positives + EPSILON),
            **{f"R@{k}": measures.hits_over(hits, k, positives + EPSILON) for k in self.ks},
            **{f"P@{k}": measures.hits_over(hits, k, np.minimum(positives, k) + EPSILON) for k in self.ks},
        }

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        pairs = groups(tasks)
        return [
            over_pairs(name, "mean over targets, then over sources", percent(values, name), pairs) for name in values[0]
        ]


class Nico(Freedom):
    name = "nico"
    title = "NICO++, every pair of domains, mAP (FREEDOM)"
    ks = (50, 100)
    dataset = "nico"


class MiniDomainNet(Freedom):
    name = "minidomainnet"
    title = "MiniDomainNet, every pair of domains, mAP (FREEDOM)"
    ks = (50, 100)
    dataset = "minidomainnet"


class Ltll(Freedom):
    name = "ltll"
    title = "LTLL, today and archive, mAP (FREEDOM)"
    ks = (5, 10)
    dataset = "ltll"


def over_pairs(name: str, says: str, values: NDArray[np.float64], pairs: Sequence[str]) -> Figure:
    """The mean over sources of the means over their targets, each pair's mean rounded first."""
    figure = over_groups(name, says, values, pairs)
    sources = [pair.partition(">")[0] for pair in figure.groups]
    weights = np.array([1 / (len(set(sources)) * sources.count(source)) for source in sources])
    return replace(figure, weights=weights, group_decimals=DECIMALS)
