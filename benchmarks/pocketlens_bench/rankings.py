"""Anyone's rankings from a file, checked against the benchmark before anything is counted.

Four forms: JSON lines, TREC runs, numpy archives, and the submission files of CIRR and CIRCO. Where a ranking has
scores they alone decide the order, and ties are broken by the named policy; where it has none the list's order stands.
Every refusal names file, line and query. Called by score.py."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.protocols import ranking
from pocketlens_bench.protocols.protocol import Protocol
from pocketlens_bench.protocols.ranking import Ranked, Ties, from_lists, ranked
from pocketlens_bench.protocols.task import Query, Task

NAMED = 5
SUBMISSION_ASIDE = ("version", "metric")  # keys of a CIRR submission that are no queries


class BadRanking(PocketlensError):
    """A ranking file cannot be judged. Names file, line and query."""


@dataclass(frozen=True)
class One:
    """One query's ranking as it came. where: file and line, for messages. of_run: one picture of a TREC run, where a
    query has as many lines as pictures."""

    task: str
    query: str
    names: list[str]
    scores: list[float] | None
    where: str
    of_run: bool = False


def read(
    file: Path, protocol: Protocol, tasks: Sequence[Task], *, ties: Ties = Ties.PESSIMISTIC, allow_short: bool = False
) -> list[Iterator[Ranked]]:
    """The rankings of each task, block by block, in the order of its queries.

    allow_short: places that a ranking lacks are misses; otherwise every ranking must go as deep as the protocol looks.
    Raises BadRanking; for .npz files it may come while the blocks are read."""
    if file.suffix == ".npz":
        return _from_arrays(file, protocol, tasks, ties, allow_short=allow_short)
    rankings = _by_query(_parsed(file), tasks)
    return [_blocks(file, protocol, task, rankings[task.name], ties, allow_short=allow_short) for task in tasks]


# --- files of lines


def _parsed(file: Path) -> Iterator[One]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = lines.read(1)
            while first.isspace():
                first = lines.read(1)
            lines.seek(0)
            if not first:
                raise BadRanking(f"{file} is empty")
            if first != "{":
                yield from map(_trec, _numbered(file, lines))
                return
            begun = lines.readline()
            if _is_line(begun):
                lines.seek(0)
                yield from (_json_line(where, line) for where, line in _numbered(file, lines))
                return
        yield from _submission(file)
    except OSError as error:
        raise BadRanking(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadRanking(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _numbered(file: Path, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{file}, line {number}", line


def _is_line(begun: str) -> bool:
    """Whether a file that begins like this holds an object a line. A submission is one object of many keys."""
    try:
        return "query" in json.loads(begun) or "ranking" in json.loads(begun)
    except json.JSONDecodeError:
        return '"query"' in begun


def _json_line(where: str, line: str) -> One:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRanking(f"{where}: not JSON: {error.msg}") from error
    if not isinstance(found, dict) or not {"query", "ranking"} <= found.keys():
        raise BadRanking(f'{where}: expected {{"query": id, "ranking": [ids]}}')
    if unknown := sorted(found.keys() - {"task", "query", "ranking", "scores"}):
        raise BadRanking(f"{where}: unknown key `{unknown[0]}`; known are task, query, ranking, scores")
    names, scores = found["ranking"], found.get("scores")
    if not isinstance(names, list) or not all(_is_id(name) for name in names):
        raise BadRanking(f"{where}: `ranking` must be a list of ids")
    if not _is_id(found["query"]):
        raise BadRanking(f"{where}: `query` must be an id")
    if scores is not None and not (isinstance(scores, list) and all(_is_number(score) for score in scores)):
        raise BadRanking(f"{where}: `scores` must be a list of numbers")
    return One(str(found.get("task", "")), str(found["query"]), [str(name) for name in names], scores, where)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _trec(numbered: tuple[str, str]) -> One:
    """`query Q0 picture rank score tag`; a query of one of several tasks is `task/query`."""
    where, line = numbered
    fields = line.split()
    if len(fields) != 6:
        raise BadRanking(f"{where}: expected `query Q0 picture rank score tag`, found {len(fields)} fields")
    query, _, name, _, score, _ = fields
    try:
        value = float(score)
    except ValueError as error:
        raise BadRanking(f"{where}: score {score!r} is not a number") from error
    task, _, rest = query.rpartition("/")
    return One(task, rest, [name], [value], where, of_run=True)


def _submission(file: Path) -> Iterator[One]:
    """CIRR's {"version", "metric", pair: [names]} and CIRCO's {query: [ids]}."""
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadRanking(f"{file}, line {error.lineno}: not JSON: {error.msg}") from error
    if found.get("metric") == "recall_subset":
        raise BadRanking(
            f"{file} is CIRR's recall_subset file, three names a query: score the recall file or a whole run"
        )
    for query, names in found.items():
        if query in SUBMISSION_ASIDE:
            continue
        where = f"{file}, entry {query}"
        if not isinstance(names, list) or not all(_is_id(name) for name in names):
            raise BadRanking(f"{where}: expected a list of ids")
        yield One("", query, [str(name) for name in names], None, where)


# --- checks


def _by_query(found: Iterator[One], tasks: Sequence[Task]) -> dict[str, dict[str, One]]:
    """Rankings by task and query. TREC's lines of one query, one picture each, become one ranking."""
    queries = {task.name: {query.id for query in task.queries} for task in tasks}
    rankings: dict[str, dict[str, One]] = {task.name: {} for task in tasks}
    for one in found:
        task = _task_of(one, tasks)
        if one.query not in queries[task]:
            raise BadRanking(f"{one.where}: query {one.query} is not in the benchmark{f' ({task})' if task else ''}")
        before = rankings[task].get(one.query)
        if before is None:
            rankings[task][one.query] = one
        elif one.of_run and one.scores and before.scores:
            before.names.extend(one.names)
            before.scores.extend(one.scores)
        else:
            raise BadRanking(f"{one.where}: query {one.query} was ranked before, in {before.where}")
    return rankings


def _task_of(one: One, tasks: Sequence[Task]) -> str:
    names = [task.name for task in tasks]
    if one.task in names:
        return one.task
    if not one.task and len(names) == 1:
        return names[0]
    said = f"task {one.task!r} is unknown" if one.task else "no task is named"
    raise BadRanking(f"{one.where}: {said}; the benchmark has {', '.join(names)}")


def _blocks(
    file: Path, protocol: Protocol, task: Task, rankings: Mapping[str, One], ties: Ties, *, allow_short: bool
) -> Iterator[Ranked]:
    if absent := [query.id for query in task.queries if query.id not in rankings]:
        more = f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else ""
        raise BadRanking(
            f"{file}: {len(absent):,} of {len(task.queries):,} queries of {task.name} have no ranking: "
            f"{', '.join(absent[:NAMED])}{more}"
        )
    ready = [_ordered(task, query, rankings[query.id], ties) for query in task.queries]
    for query, places in zip(task.queries, ready, strict=True):
        _check_depth(protocol, task, query, len(places), rankings[query.id].where, allow_short=allow_short)
    return _in_blocks(task, ready)


def _in_blocks(task: Task, ready: Sequence[Sequence[int]]) -> Iterator[Ranked]:
    size = max(1, ranking.CELLS // max(len(task.gallery), 1))
    for start in range(0, len(ready), size):
        yield from_lists(task, task.queries[start : start + size], ready[start : start + size])


def _ordered(task: Task, query: Query, one: One, ties: Ties) -> list[int]:
    """Gallery places, best first, of the pictures that compete in this query."""
    places = [task.place.get(name, -1) for name in one.names]
    if -1 in places:
        raise BadRanking(
            f"{one.where}: query {query.id} ranks {one.names[places.index(-1)]}, which is not in the gallery"
        )
    if len(set(places)) != len(places):
        twice = next(name for name in one.names if one.names.count(name) > 1)
        raise BadRanking(f"{one.where}: query {query.id} ranks {twice} twice")
    if one.scores is not None:
        if len(one.scores) != len(places):
            raise BadRanking(f"{one.where}: query {query.id} has {len(places)} pictures and {len(one.scores)} scores")
        if bad := [score for score in one.scores if not math.isfinite(score)]:
            raise BadRanking(f"{one.where}: query {query.id} has a score that is {bad[0]}")
        places = _by_score(task, query, places, one.scores, ties)
    absent = {task.place[name] for name in query.exclude if name in task.place}
    wanted = None if query.candidates is None else {task.place[name] for name in query.candidates if name in task.place}
    return [place for place in places if place not in absent and (wanted is None or place in wanted)]


def _by_score(task: Task, query: Query, places: Sequence[int], scores: Sequence[float], ties: Ties) -> list[int]:
    right = set(task.places(query.relevant).tolist())
    second = {Ties.PESSIMISTIC: 1, Ties.OPTIMISTIC: -1, Ties.BY_ID: 0}[ties]
    keyed = sorted(
        (-score, second * (place in right), task.gallery[place], place)
        for score, place in zip(scores, places, strict=True)
    )
    return [key[-1] for key in keyed]


def _check_depth(protocol: Protocol, task: Task, query: Query, came: int, where: str, *, allow_short: bool) -> None:
    """A ranking must go as deep as the protocol looks, or to the end of what competes."""
    absent = len(query.exclude & task.place.keys())
    competing = len(task.gallery) - absent if query.candidates is None else len(query.candidates)
    needed = competing if protocol.depth is None else min(protocol.depth, competing)
    if came < needed and not allow_short:
        raise BadRanking(
            f"{where}: query {query.id} ranks {came:,} pictures, {protocol.name} looks at {needed:,}. Give longer "
            "rankings, or count what is missing as misses with --allow-short."
        )


# --- arrays


def _from_arrays(
    file: Path, protocol: Protocol, tasks: Sequence[Task], ties: Ties, *, allow_short: bool
) -> list[Iterator[Ranked]]:
    """queries (q,), gallery (n,) ids and scores (q, n) or order (q, depth) of places in gallery, best first; with
    several tasks each array is called `task:queries` and so on."""
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = dict(found)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadRanking(f"{file} is not an archive of plain arrays: {error}") from error
    return [_task_arrays(file, protocol, task, arrays, len(tasks), ties, allow_short=allow_short) for task in tasks]


def _task_arrays(
    file: Path,
    protocol: Protocol,
    task: Task,
    arrays: Mapping[str, NDArray],
    many: int,
    ties: Ties,
    *,
    allow_short: bool,
) -> Iterator[Ranked]:
    prefix = f"{task.name}:" if many > 1 else ""

    def named(key: str) -> NDArray:
        if prefix + key not in arrays:
            raise BadRanking(f"{file} has no array `{prefix}{key}`; it has {', '.join(sorted(arrays)) or 'none'}")
        return arrays[prefix + key]

    rows = _places(file, "query", [query.id for query in task.queries], named("queries"), all_of=True)
    if prefix + "scores" in arrays:
        columns = _places(file, "picture", list(task.gallery), named("gallery"), all_of=True)
        return ranked(task, _scores(file, named("scores"), rows, columns), ties=ties, depth=protocol.depth)
    gallery = [task.place.get(str(name), -1) for name in named("gallery").tolist()]
    if -1 in gallery:
        raise BadRanking(f"{file}: picture {named('gallery')[gallery.index(-1)]} is not in the gallery")
    orders = named("order")
    if (
        orders.ndim != 2
        or orders.dtype.kind not in "iu"
        or orders.size == 0
        or orders.max() >= len(gallery)
        or orders.min() < 0
    ):
        raise BadRanking(f"{file}: `{prefix}order` must be whole numbers (queries, depth), places in `gallery`")
    return _ordered_blocks(file, protocol, task, orders[rows], gallery, allow_short=allow_short)


def _scores(
    file: Path, scores: NDArray, rows: Sequence[int], columns: Sequence[int]
) -> Callable[[slice], NDArray[np.floating]]:
    if scores.ndim != 2 or scores.dtype.kind != "f":
        raise BadRanking(
            f"{file}: `scores` must be floating numbers (queries, gallery), found {scores.dtype} {scores.shape}"
        )
    if scores.shape != (len(rows), len(columns)):
        raise BadRanking(f"{file}: `scores` is {scores.shape}, expected ({len(rows)}, {len(columns)})")
    for place, row in enumerate(rows):
        if not np.isfinite(scores[row]).all():
            raise BadRanking(
                f"{file}: `scores`, row {row} (query {place} of the benchmark) has a number that is not finite"
            )
    wide = np.float32 if scores.dtype.itemsize < 8 else np.float64
    return lambda part: scores[np.asarray(rows[part])][:, columns].astype(wide)


def _ordered_blocks(
    file: Path, protocol: Protocol, task: Task, orders: NDArray, gallery: Sequence[int], *, allow_short: bool
) -> Iterator[Ranked]:
    ready = []
    for query, order in zip(task.queries, orders, strict=True):
        one = One(task.name, query.id, [task.gallery[gallery[place]] for place in order.tolist()], None, str(file))
        places = _ordered(task, query, one, Ties.BY_ID)
        _check_depth(protocol, task, query, len(places), str(file), allow_short=allow_short)
        ready.append(places)
    return _in_blocks(task, ready)


def _places(file: Path, what: str, wanted: Sequence[str], came: NDArray, *, all_of: bool) -> list[int]:
    """Where each wanted id stands among those that came. Raises BadRanking for one too many, too few or twice."""
    place: dict[str, int] = {}
    for at, name in enumerate(map(str, came.tolist())):
        if name in place:
            raise BadRanking(f"{file}: {what} {name} is there twice")
        place[name] = at
    if unknown := sorted(place.keys() - set(wanted)):
        raise BadRanking(f"{file}: {what} {unknown[0]} is not in the benchmark")
    if all_of and (absent := [name for name in wanted if name not in place]):
        raise BadRanking(f"{file}: {len(absent):,} of {len(wanted):,} are missing, {what} {absent[0]} for one")
    return [place[name] for name in wanted]
