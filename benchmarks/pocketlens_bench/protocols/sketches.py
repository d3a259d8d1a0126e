"""Zero-shot sketch-based retrieval: Sketchy, TU-Berlin and QuickDraw, sketches of classes that no training saw.

Public codes call half a dozen different things mAP@200; here each has a name that says what it is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.figures import Figure, over_queries
from pocketlens_bench.protocols.protocol import Protocol, Reading, Statement, Values, percent
from pocketlens_bench.protocols.ranking import Ranked
from pocketlens_bench.protocols.task import Task

EPSILON = 1e-5  # UNION's, in its denominators
SAYS = {
    "mAP@200[den=min(k,npos)]": "plain AP over min(200, positives): recommended for new work",
    "mAP@200[den=200]": "plain AP over 200 always: CVAE (Yelamarthi et al.), where mAP@200 began",
    "mAP@200[den=min(k,npos),voc]": "VOC-interpolated AP over min(200, positives): ZSE-SBIR; SAKE and DSN with top 200",
    "mAP@200[den=hits]": "plain AP over the hits among the first 200: SEM-PCYC, torchmetrics; says how the hits are "
    "ordered, not how many there are",
    "mAP@200[den=hits,trapezoid]": "trapezoid AP over the hits among the first 200 + 1e-5: UNION",
    "mAP@all[den=npos]": "plain AP over positives: SEM-PCYC, doodle2search, Sketch_LVM",
    "mAP@all[den=npos,voc]": "VOC-interpolated AP over positives: ZSE-SBIR, SAKE, DSN",
    "mAP@all[den=npos,trapezoid]": "trapezoid AP over positives + 1e-5: UNION",
    "P@k[den=k]": "hits among the first k over k: CVAE, UNION",
    "P@k[den=min(k,gallery)]": "hits among the first k over min(k, gallery): SAKE, SEM-PCYC",
    "P@k[first min(k,npos)]": "share of hits among the first min(k, positives): ZSE-SBIR",
    "P@k[den=min(k,npos)]": "hits among the first k over min(k, positives): doodle2search's helper",
}


class Sketches(Protocol):
    """Every public definition on one ranking."""

    headline = ("mAP@all[den=npos]", "mAP@200[den=min(k,npos)]", "P@100[den=k]", "P@200[den=k]")
    states = Statement(
        gallery="all photos of the unseen classes",
        queries="every sketch of the unseen classes, without words",
        ids="a query: the sketch's path as in its list; a picture: the photo's path as in its list",
        exclusions="none",
        denominators="in each figure's own name; a query whose class has no photo counts as 0. Means are over queries, "
        "not over classes",
        ties="official: undefined sorts, except where sklearn takes tied scores at once, which lies between "
        "optimistic and pessimistic. Ours: the named policy",
        source="the class and file lists of SAKE and ZSE-SBIR; each figure names the code it agrees with",
    )

    def load(self, root: Path, reading: Reading) -> list[Task]:
        from pocketlens_bench.protocols.load_sketches import load_sketches

        return load_sketches(root, reading, self.name)

    def values(self, block: Ranked) -> Values:
        hits, positives, k = block.hits, block.relevant, 200
        inside = hits[:, :k].sum(axis=1)
        return {
            "mAP@all[den=npos]": measures.plain_ap(hits, positives),
            "mAP@200[den=min(k,npos)]": measures.plain_ap(hits, np.minimum(positives, k), k),
            "mAP@200[den=200]": measures.plain_ap(hits, k, k),
            "mAP@200[den=min(k,npos),voc]": measures.interpolated_ap(hits, np.minimum(positives, k), k),
            "mAP@200[den=hits]": measures.plain_ap(hits, inside, k),
            "mAP@200[den=hits,trapezoid]": measures.trapezoid_ap(hits, inside + EPSILON, k),
            "mAP@all[den=npos,voc]": measures.interpolated_ap(hits, positives),
            "mAP@all[den=npos,trapezoid]": measures.trapezoid_ap(hits, positives + EPSILON),
            **{name: value for k in (50, 100, 200) for name, value in precisions(block, k).items()},
        }

    def figures(self, tasks: Sequence[Task], values: Sequence[Values]) -> list[Figure]:
        return [over_queries(name, says(name), percent(values, name)) for name in values[0]]


class Sketchy25(Sketches):
    name = "sketchy-25"
    title = "Sketchy extended, split 1 (25 unseen classes, SAKE's list)"


class Sketchy21(Sketches):
    name = "sketchy-21"
    title = "Sketchy extended, split 2 (21 unseen classes)"
    headline = ("mAP@200[den=min(k,npos)]", "P@200[den=k]", "mAP@all[den=npos]")


class TuBerlin(Sketches):
    name = "tuberlin"
    title = "TU-Berlin extended (30 unseen classes)"


class QuickDraw(Sketches):
    name = "quickdraw"
    title = "QuickDraw extended (30 unseen classes)"


def precisions(block: Ranked, k: int) -> dict[str, measures.Values]:
    """Precision at k as four codes count it."""
    hits, positives = block.hits, block.relevant
    until = np.minimum(positives, k)
    early = hits[:, :k] & (np.arange(min(k, hits.shape[1])) < until[:, None])
    return {
        f"P@{k}[den=k]": measures.hits_over(hits, k, k),
        f"P@{k}[den=min(k,gallery)]": measures.hits_over(hits, k, np.minimum(block.candidates, k)),
        f"P@{k}[first min(k,npos)]": measures.hits_over(early, k, until),
        f"P@{k}[den=min(k,npos)]": measures.hits_over(hits, k, until),
    }


def says(name: str) -> str:
    kind, _, rest = name.partition("[")
    return SAYS[name] if name in SAYS else SAYS[f"{kind[0]}@k[{rest}"]
