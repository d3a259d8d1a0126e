"""What refining a question does: words with weights, words to lead away from, re-ranking. On the sample world.

Owns which ways of asking are compared and what a hit is looked at for. What the service does itself is asked of its own
composer, plan by plan; the other ways are the same vectors put together otherwise. Called by cli/refine.py."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pocketlens_cloud.compose import Features, Mode, Modifier
from pocketlens_samples.catalogue import ATTRIBUTES, Spec, Value, other_value, random_spec
from pocketlens_samples.queries import COMPOSED_SEED, SKETCH_SEED, Picture
from pocketlens_samples.wording import COUNT_WORD, PART, PATTERN_ADJECTIVE, PLACE, SIZE

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.lab import Lab, Tokens, Vectors, sent
from pocketlens_bench.questions import Judged, drawn, features, figures, indexed, minus
from pocketlens_bench.refine_rerank import reranked
from pocketlens_bench.world import OnProgress, silently
from pocketlens_bench.world import Sizes as WorldSizes

SEED = 81_001  # of the pictures asked with, and of their gallery
FIRST = 10  # hits that are looked at
METRICS = ("without it", "category", "has the words")  # more is better, of each
WEIGHED = ("has it", "has the words")
UNWANTED = ("background", "colour", "count", "size", "part", "pattern")
WANTED = ("background", "count", "size", "part")
AWAY = (-0.5, -1.0, -2.0)
ALONE = "words alone"
CHUNK = 256  # questions read at once
HONESTY = (
    "The sample world is drawn, with a closed vocabulary, and one teacher made its towers: neither photographs nor "
    "other teachers were tried. Weights were tried as listed, not tuned. What picture and words ask for is told by "
    "attributes alone: a hit may be good in other ways."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """asked: pictures asked with; gallery: that they are asked of; the others: of the sets that are re-ranked."""

    asked: int = 400
    gallery: int = 5000
    queries: int = 1200
    composed_gallery: int = 6000
    sketches: int = 500
    sketch_gallery: int = 6000

    @property
    def world(self) -> WorldSizes:
        return WorldSizes(
            queries=self.queries, gallery=self.composed_gallery, sketches=self.sketches,
            sketch_gallery=self.sketch_gallery,
        )  # fmt: skip


FULL = Sizes()
QUICK = Sizes(asked=80, gallery=800, queries=120, composed_gallery=800, sketches=80, sketch_gallery=800)


def measure(
    bundle: Path, *, sizes: Sizes = FULL, seed: int = 0, threads: int | None = None, on_progress: OnProgress = silently
) -> dict[str, Any]:
    """Everything `pocketlens-bench refine` says, as one JSON object; percentages with 95 % intervals.

    `seed` draws the bootstrap; the sets have their own fixed seeds. Raises BadBundle."""
    load, started = load_now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    lab = Lab.open(bundle, threads=threads)
    asked = Asked.drawn(lab, sizes, on_progress)
    tables: list[dict[str, Any]] = []
    for mode in lab.composer.modes:
        tables += [_away(lab, asked, mode, seed, on_progress), _weighed(lab, asked, mode, seed, on_progress)]
    tables += reranked(lab, sizes.world, seed, on_progress)
    return {
        "benchmark": "refine",
        "set": "sample",
        "unit": "percent",
        "honesty": HONESTY,
        "left_out": [] if "tuned" in lab.composer.modes else ["tuned mode: the bundle has no heads"],
        "tables": tables,
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - started, 1),
            threads={"device": 1, "cloud": threads},
            providers={"device": lab.encoder.provider, "cloud": lab.composer.provider},
            seeds={"asked": SEED, "composed": COMPOSED_SEED, "sketch": SKETCH_SEED, "bootstrap": seed},
            sizes=asdict(sizes),
        ),
    }


# --- the set


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Pictures of held-out combinations, their tokens as the cloud receives them, and a gallery of any pictures.

    others: for each picture another value of each attribute; gallery: vectors by name; holds: (pictures,) values of the
    gallery by attribute."""

    specs: tuple[Spec, ...]
    tokens: Sequence[Tokens]
    others: tuple[Mapping[str, Value], ...]
    gallery: Mapping[str, Vectors]
    holds: Mapping[str, NDArray[Any]]

    @classmethod
    def drawn(cls, lab: Lab, sizes: Sizes, on_progress: OnProgress) -> "Asked":
        rng = np.random.default_rng(SEED)
        asked = [_picture(f"asked-{i:05d}", rng, held_out=True) for i in range(sizes.asked)]
        gallery = [_picture(f"photo-{i:06d}", rng, held_out=None) for i in range(sizes.gallery)]
        specs = tuple(picture.spec for picture in asked)
        return cls(
            specs=specs,
            tokens=sent(lab.tokens(drawn(lab, asked, "pictures asked with", on_progress))),
            others=tuple({name: other_value(spec, name, rng) for name in ATTRIBUTES} for spec in specs),
            gallery=indexed(lab, gallery, "gallery", on_progress),
            holds={name: np.array([getattr(each.spec, name) for each in gallery]) for name in ATTRIBUTES},
        )

    def having(self, attribute: str) -> list[int]:
        """Places of the pictures that can be asked with "not" about it: a part that is not there is not unwanted."""
        return [i for i, spec in enumerate(self.specs) if attribute != "part" or spec.part]

    def first(self, vectors: Vectors, against: str) -> NDArray[np.intp]:
        """(questions, FIRST) gallery places, best first."""
        return np.argsort(-(vectors @ self.gallery[against].T), axis=1, kind="stable")[:, :FIRST]


def _picture(name: str, rng: Generator, *, held_out: bool | None) -> Picture:
    return Picture(name, random_spec(rng, held_out=held_out), int(rng.integers(2**31)))


def phrase(spec: Spec, attribute: str, value: Value) -> str:
    """`value` of `attribute` as one would say it of the thing in `spec`."""
    match attribute:
        case "background":
            return PLACE[str(value)][0]
        case "colour":
            return f"in {value}"
        case "count":
            return "just one" if value == 1 else f"{COUNT_WORD[int(value)][0]} of them"
        case "size":
            return SIZE[str(value)][0]
        case "part":
            return PART[spec.category][bool(value)][int(spec.count > 1)][0]
        case _:
            return PATTERN_ADJECTIVE[str(value)][0]


# --- asking


@dataclass(frozen=True)
class _Asking:
    """Query vectors of one mode for some of the pictures, by what is said beside them."""

    lab: Lab
    mode: Mode
    tokens: Sequence[Tokens]

    def beside(self, texts: Sequence[str]) -> Vectors:
        return self.query(self.read(texts))

    def alone(self, texts: Sequence[str]) -> Vectors:
        return self.query(self.read(texts, pictured=False))

    def read(self, texts: Sequence[str], *, pictured: bool = True) -> Features:
        return features(self.lab, list(zip(self.tokens if pictured else [None] * len(texts), texts, strict=True)))

    def query(self, read: Features) -> Vectors:
        return self.lab.composer.query(read, self.mode)

    def served(self, words: Sequence[str], others: Sequence[str], weights: Sequence[float]) -> list[Vectors]:
        """What the service asks the gallery for words of weight 1 and others of each of `weights`."""
        composer = self.lab.composer
        plans = [
            [
                composer.plan(tokens, [Modifier(said), Modifier(other, weight)], self.mode)
                for tokens, said, other in zip(self.tokens, words, others, strict=True)
            ]
            for weight in weights
        ]
        rows = [row for plan in plans[0] for row in plan.rows]  # the same whatever the weight
        texts = np.concatenate([composer.read(rows[at : at + CHUNK]) for at in range(0, len(rows), CHUNK)])
        ends = np.cumsum([len(plan.rows) for plan in plans[0]])[:-1]
        parts = np.split(texts, ends)
        return [
            np.stack([composer.finish(plan, part).vector for plan, part in zip(each, parts, strict=True)])
            for each in plans
        ]


def _away(lab: Lab, asked: Asked, mode: Mode, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    """Words to lead away from: what the picture shows itself, while other words ask for something else."""
    rows, differences = [], []
    for done, attribute in enumerate(UNWANTED, start=1):
        places = asked.having(attribute)
        wish = "background" if attribute == "colour" else "colour"
        judged = {
            way: _judged_away(asked, places, attribute, wish, asked.first(vectors, lab.composer.vector_of(mode)))
            for way, vectors in _ways_away(lab, asked, places, attribute, wish, mode).items()
        }
        rows += _rows(attribute, judged, METRICS, seed)
        differences += _differences(attribute, judged, ("-0.5", "-1", "-2"), ALONE, METRICS, seed)
        on_progress(f"words to leave, {mode}", done, len(UNWANTED))
    return _table(f"away, {mode}", f"Away from what the picture shows, {mode}", asked, rows, differences)


def _ways_away(
    lab: Lab, asked: Asked, places: Sequence[int], attribute: str, wish: str, mode: Mode
) -> dict[str, Vectors]:
    specs = [asked.specs[i] for i in places]
    words = [phrase(spec, wish, asked.others[i][wish]) for i, spec in zip(places, specs, strict=True)]
    unwanted = [phrase(spec, attribute, getattr(spec, attribute)) for spec in specs]
    nothing = [""] * len(places)
    asking = _Asking(lab, mode, [asked.tokens[i] for i in places])
    read = asking.read(words)
    said = asking.query(read)
    beside = asking.beside(unwanted) - asking.beside(nothing)
    ways = {
        ALONE: said,
        "joined as text": asking.beside([f"{w}, not {x}" for w, x in zip(words, unwanted, strict=True)]),
        "-0.5, PDV": _unit(said - np.float32(0.5) * beside),
        "-1, PDV": _unit(said - beside),
        **dict(zip(("-0.5", "-1", "-2"), asking.served(words, unwanted, AWAY), strict=True)),
    }
    if mode == "tuned":
        towers = [asking.read(texts, pictured=False).composed for texts in (unwanted, nothing)]
        moved = Features(_unit(read.composed - towers[0] + towers[1]), read.picture, read.words)
        ways["-1, before the head"] = asking.query(moved)
        ways["-1, by the tower"] = _unit(said - towers[0] + towers[1])
    return ways


def _judged_away(
    asked: Asked, places: Sequence[int], attribute: str, wish: str, first: NDArray[np.intp]
) -> dict[str, NDArray[np.float64]]:
    specs = [asked.specs[i] for i in places]
    return {
        "without it": 100 - _percent(asked, attribute, [getattr(spec, attribute) for spec in specs], first),
        "category": _percent(asked, "category", [spec.category for spec in specs], first),
        "has the words": _percent(asked, wish, [asked.others[i][wish] for i in places], first),
    }


def _weighed(lab: Lab, asked: Asked, mode: Mode, seed: int, on_progress: OnProgress) -> dict[str, Any]:
    """Second words of another weight than 1, beside words that ask for a colour."""
    places = list(range(len(asked.specs)))
    colours = [asked.others[i]["colour"] for i in places]
    rows, differences = [], []
    for done, attribute in enumerate(WANTED, start=1):
        wanted = [asked.others[i][attribute] for i in places]
        judged: dict[str, Judged] = {}
        for way, vectors in _ways_weighed(lab, asked, attribute, mode).items():
            first = asked.first(vectors, lab.composer.vector_of(mode))
            judged[way] = {
                "has it": _percent(asked, attribute, wanted, first),
                "has the words": _percent(asked, "colour", colours, first),
            }
        rows += _rows(attribute, judged, WEIGHED, seed)
        others = [way for way in judged if way != "joined as text"]
        differences += _differences(attribute, judged, others, "joined as text", WEIGHED, seed)
        on_progress(f"words with weights, {mode}", done, len(WANTED))
    return _table(f"weights, {mode}", f"More or less of second words, {mode}", asked, rows, differences)


def _ways_weighed(lab: Lab, asked: Asked, attribute: str, mode: Mode) -> dict[str, Vectors]:
    words = [phrase(spec, "colour", other["colour"]) for spec, other in zip(asked.specs, asked.others, strict=True)]
    more = [phrase(spec, attribute, other[attribute]) for spec, other in zip(asked.specs, asked.others, strict=True)]
    nothing = [""] * len(words)
    asking = _Asking(lab, mode, asked.tokens)
    said = asking.beside(words)

    def joined(by: str) -> Vectors:
        return asking.beside([f"{first}{by}{second}" for first, second in zip(words, more, strict=True)])

    light, heavy = asking.served(words, more, (0.5, 1.5))
    return {
        "joined as text": joined(", "),
        "joined by and": joined(" and "),
        "joined by nothing": joined(" "),
        "0.5": light,
        "1.5": heavy,
        "1, PDV": _unit(said + asking.beside(more) - asking.beside(nothing)),
        "1, words alone": _unit(said + asking.alone(more) - asking.alone(nothing)),
    }


def _unit(vectors: NDArray[np.floating[Any]]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# --- judging


def _percent(asked: Asked, attribute: str, wanted: Sequence[Value], first: NDArray[np.intp]) -> NDArray[np.float64]:
    """(questions,): of the first hits, how many have `wanted`."""
    return 100 * (asked.holds[attribute][first] == np.array(wanted)[:, None]).mean(axis=1)


def _rows(about: str, judged: Mapping[str, Judged], metrics: Sequence[str], seed: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{about}: {way}", "about": about, "way": way, "queries": len(values[metrics[0]]),
            **figures(values, seed=seed, metrics=metrics),
        }
        for way, values in judged.items()
    ]  # fmt: skip


def _differences(
    about: str, judged: Mapping[str, Judged], ways: Sequence[str], over: str, metrics: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    return [
        {
            "of": f"{about}: {way}", "over": f"{about}: {over}", "about": about, "way": way,
            **figures(minus(judged[way], judged[over]), seed=seed, metrics=metrics),
        }
        for way in ways
    ]  # fmt: skip


def _table(
    key: str, title: str, asked: Asked, rows: list[dict[str, Any]], differences: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "key": key, "title": title, "queries": len(asked.specs), "gallery": len(asked.holds["category"]), "rows": rows,
        "differences": differences,
    }  # fmt: skip
