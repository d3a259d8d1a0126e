"""Results of an ablation and of a distillation's pace, made up, for the tests of what is shown of them."""

from copy import deepcopy

import pytest
from pocketlens_bench.ablation import summary
from pocketlens_bench.ablation.cells import CELLS

CARD = {
    "command": None,
    "machine": {"cpu": "Cpu", "cores": 4, "ram_gb": 24.0, "system": "Linux", "load_at_start": 0.1},
    "threads": {"each trial": 1}, "seeds": {"trained with": "1, 2, 3"}, "sizes": {"batch": 64},
    "versions": {"python": "3.11"}, "time": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
STUDENT = ("composed R@1", "composed R@10", "composed mAP@10", "sketch R@10", "sketch_and_words R@10",
           "pale_sketch R@10", "validation R@10", "validation mAP@10")  # fmt: skip
HEADS = tuple(key for key in STUDENT if "sketch" not in key)


def _cell(name):
    return next(each for each in CELLS if each.name == name)


def _trials_of(values, keys=STUDENT, **more):
    """Of one cell: what each seed's trial found, all figures of a seed alike."""
    return {seed: dict.fromkeys(keys, value) | more for seed, value in values.items()}


def _ablation(left_out=()):
    """A small result. k 2 beats the base, k 8 does not; the union is below its control; pdv stands level."""
    base = {1: 80.0, 2: 81.0, 3: 82.0}
    by_cell = {
        "base": _trials_of(base),
        "k 2": _trials_of({1: 85.0, 2: 86.1, 3: 87.2}),
        "k 8": _trials_of({1: 84.0, 2: 76.0, 3: 90.0}),
        "Pic2Word": _trials_of({1: 60.0, 2: 61.0, 3: 60.0}, HEADS),
        "gated to original": _trials_of({1: 83.0, 2: 84.0, 3: 85.0}, HEADS),
        "gated to union": _trials_of({1: 82.0, 2: 83.5, 3: 84.0}, HEADS),
        "plain to union": _trials_of({1: 79.0, 2: 81.5, 3: 82.5}, HEADS),
    }
    found = {}
    for name, several in by_cell.items():
        for seed, figures in several.items():
            found[_cell(name).key, seed] = {"rows": {name: figures}}
    for seed, value in base.items():
        rows = {
            "words only": _trials_of({seed: 5.0}, HEADS)[seed],
            "pdv": _trials_of({seed: value}, HEADS, number=0.9 + 0.2 * (seed == 3))[seed],
        }
        found[_cell("free").key, seed] = {"rows": rows}
    cells = [one for one in CELLS if any(key == one.key for key, _ in found)]
    return {
        "benchmark": "ablation", "set": "sample", "honesty": "Made up.", "left_out": list(left_out),
        "conditions": deepcopy(CARD),
        "tables": [{"key": "ablation", "title": "Ablation", "rows": list(summary.rows_of(cells, found))}],
    }  # fmt: skip


def _distil(share=0.7):
    rows = [
        {"name": name, "seconds_per_step": 0.1 / of, "pictures_per_second": 640 * of, "of_bare": of}
        for name, of in (("bare", 1.0), ("whole", 0.9), ("whole, with composition distillation", share))
    ]
    card = {**deepcopy(CARD), "device": "cpu", "precision": "no"}
    needs = {
        "gflops_per_picture": 0.6, "remembered_mb_per_picture": 12.0, "frozen_mb": 600.0, "trained_mb": 80.0,
    }  # fmt: skip
    return {
        "benchmark": "distill", "honesty": "Made up.", "conditions": card, "needs": needs,
        "student": {"parameters": 4_000_000, "multiply_adds": 3e8},
        "tables": [{"key": "distill", "title": "tiny from run:teacher", "rows": rows}],
    }  # fmt: skip


@pytest.fixture
def ablation():
    """A function that makes one."""
    return _ablation


@pytest.fixture
def distil():
    """A function that makes one; its share: of bare, with composition distillation."""
    return _distil
