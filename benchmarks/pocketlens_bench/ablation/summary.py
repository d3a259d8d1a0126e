"""From figures of single trials to rows of a table: means and intervals over seeds, differences paired by seed.

Arithmetic alone: knows no training and loads none. Called by driver.py."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from pocketlens_bench.ablation.cells import BASE, Cell, control_of

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t for a 95 % interval of a mean of so many seeds."""
NUMBER = "number"  # beside the figures of a row: what was chosen on the validation set
Figures = Mapping[str, float]
Found = Mapping[tuple[str, int], Mapping[str, Any]]


def rows_of(cells: Sequence[Cell], found: Found) -> Iterator[dict[str, Any]]:
    """Rows in the order of `cells`, which begin with the base. found: of (cell's key, seed) what its trial gave."""
    base = _by_seed(found, cells[0]).get(cells[0].name, {})
    for cell in cells:
        control = control_of(cell)
        against = _by_seed(found, control).get(control.name, {}) if control else {}
        for name, several in _by_seed(found, cell).items():
            first, *_ = several.values()
            metrics = [metric for metric in first if metric != NUMBER]
            row: dict[str, Any] = {"group": cell.group, "name": name, "says": cell.says, "seeds": len(several)}
            row |= {metric: interval([one[metric] for one in several.values()]) for metric in metrics}
            if NUMBER in first:
                row["numbers"] = [one[NUMBER] for one in several.values()]
            if cell.group != BASE and (over := paired(several, base)):
                row["over_base"] = over
            if control:
                row["control"] = control.name
                if over := paired(several, against):
                    row["over_control"] = over
            yield row


def paired(these: Mapping[int, Figures], those: Mapping[int, Figures]) -> dict[str, Any]:
    """Differences of each figure that both have, over the seeds that both have, and how many those are; empty without
    any."""
    seeds = sorted(these.keys() & those.keys())
    if not seeds:
        return {}
    metrics = [metric for metric in these[seeds[0]] if metric != NUMBER and metric in those[seeds[0]]]
    return {
        "seeds": len(seeds),
        **{metric: interval([these[seed][metric] - those[seed][metric] for seed in seeds]) for metric in metrics},
    }


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval over seeds; of a single seed the mean alone, its interval being unknown."""
    middle = mean(values)
    if len(values) == 1:
        return {"value": middle, "low": middle, "high": middle}
    half = T_95[len(values)] * stdev(values) / math.sqrt(len(values))
    return {"value": middle, "low": middle - half, "high": middle + half}


def _by_seed(found: Found, cell: Cell) -> dict[str, dict[int, Figures]]:
    """Row name -> seed -> its figures; seeds in order."""
    rows: dict[str, dict[int, Figures]] = {}
    for (key, seed), trial in sorted(found.items()):
        if key == cell.key:
            for name, figures in trial["rows"].items():
                rows.setdefault(name, {})[seed] = figures
    return rows
