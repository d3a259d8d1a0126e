"""Others' rankings under a protocol, and two of them against each other.

Owns the result of `pocketlens-bench score`: figures with intervals, their breakdown by group, paired differences.
Knows no model; rankings come from rankings.py, counting from protocols. Called by cli/score.py."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_bench.protocols.figures import CONFIDENCE, RESAMPLES, Figure
from pocketlens_bench.protocols.protocol import Protocol, Reading
from pocketlens_bench.protocols.ranking import Ranked, Ties
from pocketlens_bench.protocols.reading import BadSet, tasks_of
from pocketlens_bench.protocols.task import Task
from pocketlens_bench.rankings import read

HONESTY = (
    "Intervals say how sure a figure is for queries like these; they do not hold the choice of benchmark, of words put "
    "to the queries, or of training seeds."
)


def measure(
    name: str,
    ranking: Path,
    annotations: Path,
    *,
    against: Path | None = None,
    reading: Reading,
    ties: Ties = Ties.PESSIMISTIC,
    allow_short: bool = False,
    per_query: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything `pocketlens-bench score` says, as one JSON object; percent, null where nothing counts.

    Raises BadSet for the annotations and BadRanking for a ranking."""
    load, began = load_now(), perf_counter()
    protocol = PROTOCOLS[name]
    tasks = tasks_of(protocol, annotations, reading)
    if not any(query.relevant for task in tasks for query in task.queries):
        raise BadSet(
            f"{name}, split {reading.split or 'of papers'}: no query has a known right answer. A test split's truth is "
            "on its server; otherwise gallery and queries do not belong together"
        )
    files = [ranking, *([against] if against else [])]
    names, rows, short = named(files), [], []
    for file, called in zip(files, names, strict=True):
        ended: list[int] = []
        blocks = read(file, protocol, tasks, ties=ties, allow_short=allow_short)
        rows.append(protocol.judge(tasks, [noting_ends(some, protocol.depth, ended) for some in blocks]))
        if sum(ended):
            short.append(f"{called}: {sum(ended):,} rankings end early; what they lack counts as missed")
    differences = [compared((names[0], names[1]), rows[0], rows[1], seed)] if against else []
    table = {
        "key": name,
        "title": protocol.title,
        "queries": sum(len(task.queries) for task in tasks),
        "gallery": sum(len(task.gallery) for task in tasks),
        "rows": [
            {"name": name, **{figure.name: asdict(figure.measured(seed=seed)) for figure in row if counts(figure)}}
            for name, row in zip(names, rows, strict=True)
        ],
        "groups": [
            {"name": name, **{figure.name: by_group(figure) for figure in row if len(figure.groups) > 1}}
            for name, row in zip(names, rows, strict=True)
        ],
        "differences": differences,
    }
    if per_query:
        table["query_ids"] = [f"{task.name}/{query.id}" for task in tasks for query in task.queries]
        table["averaged"] = averaged(rows[0])
        for said, row in zip(table["rows"], rows, strict=True):
            said["per_query"] = {figure.name: [number(value) for value in figure.values.tolist()] for figure in row}
    return {
        "benchmark": "score",
        "set": name,
        "unit": "percent",
        "protocols": [stated(protocol)],
        "ties": str(ties),
        "tables": [table],
        "lost": [*losses(differences)],
        "left_out": [*notes(tasks), *short, *uncounted(rows)],
        "honesty": HONESTY,
        "conditions": conditions(
            None,
            load=load,
            seconds=round(perf_counter() - began, 1),
            threads={},
            seeds={"bootstrap": seed},
            sizes={"resamples": RESAMPLES, "confidence": CONFIDENCE, "queries": table["queries"]},
        ),
    }


def stated(protocol: Protocol) -> dict[str, Any]:
    """A protocol's name, title and statement."""
    return {
        "name": protocol.name, "title": protocol.title, "depth": protocol.depth, "headline": list(protocol.headline),
        **asdict(protocol.states),
    }  # fmt: skip


def named(files: Sequence[Path]) -> list[str]:
    """What the tables call each file: its name, with its folder's where two are alike."""
    for called in ([file.stem for file in files], [file.name for file in files]):
        if len(set(called)) == len(files):
            return called
    return [f"{file.absolute().parent.name}/{file.name}" for file in files]


def noting_ends(blocks: Iterable[Ranked], depth: int | None, ended: list[int]) -> Iterator[Ranked]:
    """The blocks as they are; `ended` gets how many rankings of each end before the protocol's depth."""
    for block in blocks:
        needed = block.candidates if depth is None else np.minimum(block.candidates, depth)
        ended.append(int(((block.order >= 0).sum(axis=1) < needed).sum()))
        yield block


def averaged(figures: Sequence[Figure]) -> dict[str, Any]:
    """How the queries' values become the figures that are no plain mean of them; what `compare` needs to pair them."""
    return {
        figure.name: {
            "group": figure.group.tolist(), "groups": list(figure.groups), "weights": figure.weights.tolist(),
            "group_decimals": figure.group_decimals,
        }
        for figure in figures
        if len(figure.groups) > 1
    }  # fmt: skip


def counts(figure: Figure) -> bool:
    """Whether any query counts in it."""
    return not np.isnan(figure.value)


def uncounted(rows: Sequence[Sequence[Figure]]) -> list[str]:
    """Figures in which no query counts."""
    return list(
        dict.fromkeys(f"{figure.name}: no query counts in it" for row in rows for figure in row if not counts(figure))
    )


def number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if np.isnan(value) else float(value)


def by_group(figure: Figure) -> dict[str, float | None]:
    return {name: number(mean) for name, mean in zip(figure.groups, figure.group_means().tolist(), strict=True)}


def compared(names: tuple[str, str], these: Sequence[Figure], those: Sequence[Figure], seed: int) -> dict[str, Any]:
    """Each figure of the first ranking less that of the second, paired, and on how many queries which was better."""
    difference: dict[str, Any] = {"of": names[0], "over": names[1]}
    for mine, other in zip(these, those, strict=True):
        if np.isnan(mine.value) or np.isnan(other.value):
            continue
        measured = mine.minus(other, seed=seed)
        apart = (mine.values - other.values)[~np.isnan(mine.values)]
        difference[mine.name] = {
            **asdict(measured), "beyond_noise": len(apart) > 1 and not measured.low <= 0 <= measured.high,
            "queries_better": int((apart > 0).sum()), "queries_worse": int((apart < 0).sum()),
            "queries_alike": int((apart == 0).sum()),
        }  # fmt: skip
    return difference


def losses(differences: Sequence[dict[str, Any]]) -> Iterator[str]:
    for each in differences:
        for name, one in each.items():
            if isinstance(one, dict) and one["beyond_noise"] and one["value"] < 0:
                yield f"{each['of']} is behind {each['over']} in {name} by {-one['value']:.2f} points"


def notes(tasks: Sequence[Task]) -> list[str]:
    """What the loader says about these tasks."""
    return list(dict.fromkeys(note for task in tasks for note in task.notes))
