"""How much is still found when the device's picture is bad: ten corruptions at five severities.

Only the picture that is asked with is corrupted; the gallery stays as it is. The light student's rows stand beside
those of the large tower upon the very same files, so that one sees whether lightness makes fragile. Owns rows and
comparisons; what happens to a picture is corruptions.py's. Called by cli/robustness.py."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from pocketlens_samples.queries import COMPOSED_SEED, SKETCH_SEED
from pocketlens_wire.errors import BadBundle

from pocketlens_bench.accuracy import HONESTY, Bench, summed
from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.corruptions import CORRUPTIONS, SEVERITIES, Corruption, jpeg_file
from pocketlens_bench.lab import Lab, sent
from pocketlens_bench.questions import (
    RANKING,
    Judged,
    Questions,
    about_pictures,
    composed,
    features,
    figures,
    mean_of,
    minus,
    sketches,
)
from pocketlens_bench.shelf import Row
from pocketlens_bench.world import VALIDATION_SEED, OnProgress, Sizes, silently

METRICS = ("R@10", "mAP@10")
FULL = Sizes(queries=600, gallery=6000, sketches=400, sketch_gallery=6000)
QUICK = Sizes(queries=100, gallery=1000, sketches=80, sketch_gallery=1000, validation=150, validation_gallery=750)

LIGHT, TUNED, LARGE = "zero-shot", "tuned", "symmetric"
SUM, SKETCH = "sum, tuned", "large image tower"
ROWS = {
    LIGHT: "the light student's tokens, zero-shot",
    TUNED: "the light student's tokens, tuned mode",
    LARGE: "the large tower's tokens, zero-shot",
    SUM: "the large tower's picture vector + weight * words vector",
    SKETCH: "the large tower's picture vector alone",
}
ALIKE = 10.0  # points of clean R@10 within which it can be said who loses more
UNSEEN = (
    "the sample bundle's models were not trained with corrupted pictures: they saw them shifted at most; but half of "
    "the sketches its student was shown were pale, as `low contrast` makes them"
)
COMPARED = ((LIGHT, LARGE), (LIGHT, SUM), (LIGHT, SKETCH), (TUNED, LIGHT))

Cell = tuple[str, int]  # corruption, severity
ByCell = Mapping[Cell, Judged]


def measure(
    bundle: Path,
    *,
    sizes: Sizes = FULL,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    seed: int = 0,
    threads: int | None = None,
    on_progress: OnProgress = silently,
) -> dict[str, Any]:
    """Everything `pocketlens-bench robustness` says, as one JSON object; percentages with 95 % intervals.

    `seed` draws the corruptions and the bootstrap. Raises BadBundle, also for a bundle without baselines."""
    load, started = load_now(), perf_counter()
    threads = threads or os.cpu_count() or 1
    lab = Lab.open(bundle, threads=threads)
    if lab.baselines is None:
        raise BadBundle(f"{bundle}: it has no baselines folder, and fragility needs something to compare with.")
    weight = Bench(lab, sizes, seed, on_progress).tuned_weight()
    changed, _ = about_pictures(lab, sizes, on_progress)
    run = _Run(lab, weight, corruptions, seed, on_progress)
    tables = [run.table(kind) for kind in (changed, sketches(lab, sizes, on_progress))]
    return {
        "benchmark": "robustness",
        "set": "sample",
        "unit": "percent",
        "honesty": HONESTY,
        "ranking": RANKING,
        "corruptions": [
            {"name": each.name, "says": each.says, "levels": list(each.levels)} for each in corruptions
        ],
        "rows": ROWS,
        "training": UNSEEN,
        "left_out": [] if TUNED in lab.composer.modes else ["tuned: the bundle has no heads"],
        "tables": tables,
        "lost": [said for table in tables for said in _lost(table)],
        "conditions": conditions(
            bundle,
            load=load,
            seconds=round(perf_counter() - started, 1),
            threads={"device": 1, "devices at a time": threads, "cloud": threads},
            providers={"device": lab.encoder.provider, "cloud": lab.composer.provider},
            seeds={
                "composed": COMPOSED_SEED, "sketch": SKETCH_SEED, "validation": VALIDATION_SEED, "corruptions": seed,
                "bootstrap": seed,
            },
            sizes=asdict(sizes),
            tuned_weight=weight,
        ),
    }  # fmt: skip


class _Run:
    """What all tables of one run share."""

    def __init__(
        self, lab: Lab, weight: float, corruptions: Sequence[Corruption], seed: int, on_progress: OnProgress
    ) -> None:
        self.lab = lab
        self.weight = weight
        self.corruptions = corruptions
        self.seed = seed
        self.on_progress = on_progress

    def table(self, kind: Questions) -> dict[str, Any]:
        pixels = [picture.pixels() for picture in kind.pictures]
        against: dict[str, str] = {}
        clean: dict[str, Judged] = {}
        for row in self.rows([jpeg_file(each) for each in pixels], kind):
            against[row.name] = row.against
            clean[row.name] = kind.judged(row.vectors, row.against)
        found: dict[str, dict[Cell, Judged]] = {name: {} for name in clean}
        cells = [(corruption, severity) for corruption in self.corruptions for severity in SEVERITIES]
        for done, (corruption, severity) in enumerate(cells, start=1):
            files = [
                corruption.file(each, severity, seed=self.seed, number=number) for number, each in enumerate(pixels)
            ]
            for row in self.rows(files, kind):
                found[row.name][corruption.name, severity] = kind.judged(row.vectors, row.against)
            self.on_progress(f"corrupt and ask: {kind.title}", done, len(cells))
        return {
            "key": kind.key,
            "title": kind.title,
            "queries": len(kind.words),
            "gallery": kind.gallery_size,
            "rows": [{"name": name, "against": against[name], **self.row(clean[name], found[name])} for name in clean],
            "differences": [
                {"of": of, "over": over, **self.difference(clean[of], found[of], clean[over], found[over])}
                for of, over in COMPARED
                if of in clean and over in clean
            ],
        }

    def rows(self, files: list[bytes], kind: Questions) -> Iterator[Row]:
        """Every way of asking with these picture files."""
        lab = self.lab
        texts = features(lab, list(zip(sent(lab.tokens(files)), kind.words, strict=True)))
        yield Row(name=LIGHT, vectors=texts.composed)
        if TUNED in lab.composer.modes:
            yield Row(name=TUNED, vectors=lab.composer.query(texts, TUNED), against=lab.composer.vector_of(TUNED))
        image, tokens = lab.large(files)
        yield Row(name=LARGE, vectors=composed(lab, list(zip(tokens, kind.words, strict=True))))
        if any(kind.words):
            yield Row(name=SUM, vectors=summed(image, texts.words, self.weight))
        else:
            yield Row(name=SKETCH, vectors=image)

    # --- figures

    def figures(self, judged: Judged) -> dict[str, Any]:
        return figures(judged, seed=self.seed, metrics=METRICS)

    def row(self, clean: Judged, found: ByCell) -> dict[str, Any]:
        """A row's figures: clean; over everything; by severity; by corruption, and there by severity."""
        return {
            "clean": self.figures(clean),
            "corrupted": self.under(clean, list(found.values())),
            "severities": [
                {"severity": severity, **self.under(clean, [found[cell] for cell in found if cell[1] == severity])}
                for severity in SEVERITIES
            ],
            "corruptions": [
                {
                    "name": each.name,
                    **self.under(clean, [found[each.name, severity] for severity in SEVERITIES]),
                    "severities": [
                        {"severity": severity, "level": level, **self.under(clean, [found[each.name, severity]])}
                        for severity, level in zip(SEVERITIES, each.levels, strict=True)
                    ],
                }
                for each in self.corruptions
            ],
        }

    def under(self, clean: Judged, some: Sequence[Judged]) -> dict[str, Any]:
        """Figures of the mean over some cells; under `drop`, what they lose against clean, paired."""
        mean = mean_of(some)
        return {**self.figures(mean), "drop": self.figures(minus(clean, mean))}

    def difference(self, clean: Judged, found: ByCell, clean_over: Judged, found_over: ByCell) -> dict[str, Any]:
        """One row over another: on clean pictures, on corrupted ones, and how much more of its own it loses."""

        def compared(cells: Sequence[Cell]) -> dict[str, Any]:
            ahead = minus(mean_of([found[cell] for cell in cells]), mean_of([found_over[cell] for cell in cells]))
            return {"corrupted": self.figures(ahead), "more_lost": self.figures(minus(ahead_clean, ahead))}

        ahead_clean = minus(clean, clean_over)
        return {
            "clean": self.figures(ahead_clean),
            **compared(list(found)),
            "corruptions": [
                {"name": each.name, **compared([(each.name, severity) for severity in SEVERITIES])}
                for each in self.corruptions
            ],
        }


def _lost(table: Mapping[str, Any]) -> Iterator[str]:
    """What each row suffers most from; where the light student stands behind the large tower, or loses more."""
    for row in table["rows"]:
        worst = max(row["corruptions"], key=lambda each: each["drop"]["R@10"]["value"])
        yield (
            f"{table['title']}, {row['name']}: {worst['name']} costs most, {worst['drop']['R@10']['value']:.1f} points "
            "of R@10 over its five severities"
        )
    for row in table["differences"]:
        if row["of"] != LIGHT:
            continue
        cases = [{**row, "name": "all corruptions"}, *row["corruptions"]]
        for case in cases:
            if case["corrupted"]["R@10"]["high"] < 0:
                behind = -case["corrupted"]["R@10"]["value"]
                yield f"{table['title']}, {case['name']}: {LIGHT} is {behind:.1f} points behind {row['over']}"
        if not _alike(row["clean"]["R@10"]):
            continue  # who finds nothing clean has nothing to lose
        for case in cases:
            if case["more_lost"]["R@10"]["low"] > 0:
                more = case["more_lost"]["R@10"]["value"]
                yield f"{table['title']}, {case['name']}: {LIGHT} loses {more:.1f} points more than {row['over']}"


def _alike(difference: Mapping[str, float]) -> bool:
    return abs(difference["value"]) <= ALIKE
