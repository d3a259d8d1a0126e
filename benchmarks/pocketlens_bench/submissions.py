"""What leaves a run: the test servers' files of CIRR and CIRCO, and our own rankings as `score` reads them.

Each writer sees the blocks of one row pass by. Called by runs.py."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pocketlens_bench.protocols.queries import CirrQuery
from pocketlens_bench.protocols.ranking import Ranked

DEPTH = {"cirr": 50, "circo": 50}  # names a query
SUBSET = 3  # names a query in CIRR's second file


def kept(blocks: Iterable[Ranked], seen: list[Ranked], depth: int) -> Iterator[Ranked]:
    """The blocks as they are; `seen` keeps each one's first `depth` ranks."""
    for block in blocks:
        order, hits = block.order[:, :depth], block.hits[:, :depth]
        seen.append(Ranked(block.task, block.queries, order.copy(), hits.copy(), block.relevant, block.candidates))
        yield block


def names(block: Ranked, row: int) -> list[str]:
    """A ranking of the block as ids."""
    return [block.task.gallery[place] for place in block.order[row].tolist() if place >= 0]


def cirr(blocks: Iterable[Ranked]) -> dict[str, dict[str, object]]:
    """CIRR's two files by name. The reference has left the ranking already; the group's order is that of the ranking,
    which must be whole."""
    recall: dict[str, object] = {"version": "rc2", "metric": "recall"}
    subset: dict[str, object] = {"version": "rc2", "metric": "recall_subset"}
    for block in blocks:
        for row, query in enumerate(block.queries):
            assert isinstance(query, CirrQuery)
            ranked = names(block, row)
            recall[query.id] = ranked[: DEPTH["cirr"]]
            subset[query.id] = [name for name in ranked if name in query.members][:SUBSET]
    return {"recall": recall, "recall_subset": subset}


def circo(blocks: Iterable[Ranked]) -> dict[str, dict[str, list[int]]]:
    """CIRCO's file; ids as numbers, as in the official examples. The reference stays."""
    found = {
        query.id: [int(name) for name in names(block, row)[: DEPTH["circo"]]]
        for block in blocks
        for row, query in enumerate(block.queries)
    }
    return {"submission": found}


FILES = {"cirr": cirr, "circo": circo}


def write_submission(protocol: str, split: str, row: str, blocks: Iterable[Ranked], folder: Path) -> list[Path]:
    """The server's files for one row, `circo-test-zero-shot.submission.json` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, content in FILES[protocol](blocks).items():
        file = folder / f"{protocol}-{split}-{row.replace(' ', '-')}.{kind}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        written.append(file)
    return written


def write_rankings(blocks: Iterable[Ranked], file: Path) -> None:
    """A line for each query: {"task", "query", "ranking"}."""
    with file.open("w", encoding="utf-8") as lines:
        for block in blocks:
            for row, query in enumerate(block.queries):
                line = {"task": block.task.name, "query": query.id, "ranking": names(block, row)}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
