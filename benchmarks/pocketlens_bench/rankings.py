"""Anyone's rankings from a file, checked against the benchmark before anything is counted.

Four forms: JSON lines, TREC runs, numpy archives, and the submission files of CIRR and CIRCO. Where a ranking has
scores they alone decide the order, and ties are broken by the named policy; where it has none the list's order stands.
Every refusal names file, line and query. Called by score.py."""

import json
import math
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.protocols import ranking
from pocketlens_bench.protocols.protocol import Protocol
from pocketlens_bench.protocols.ranking import Ranked, Ties, from_lists, ranked
from pocketlens_bench.protocols.task import Query, Task

NAMED = 5
EXPECTED = '{"query": id, "ranking": [ids]}'
PACKED = b"\x1f\x8b"  # how gzip files begin
SUBMISSION_ASIDE = ("version", "metric")  # keys of a CIRR submission that are no queries


class BadRanking(PocketlensError):
    """A ranking file cannot be judged. Names file, line and query."""


@dataclass(frozen=True)
class One:
    """One query's ranking as it came. where: file and line, for messages. of_run: the line number in a TREC run, where
    a query has as many lines as pictures and the task, if any, stands before the query's id."""

    task: str
    query: str
    names: list[str]
    scores: list[float] | None
    where: str
    of_run: int | None = None


@dataclass(frozen=True)
class Held:
    """One query's ranking, names checked: gallery places, 4 bytes each, as whole runs have hundreds of millions."""

    places: "array[int]"
    scores: "array[float] | None"
    where: str
    lines: "array[int] | None" = None  # of a run: the line of each picture


def read(
    file: Path, protocol: Protocol, tasks: Sequence[Task], *, ties: Ties = Ties.PESSIMISTIC, allow_short: bool = False
) -> list[Iterator[Ranked]]:
    """The rankings of each task, block by block, in the order of its queries.

    allow_short: places that a ranking lacks are misses; otherwise every ranking must go as deep as the protocol looks.
    Raises BadRanking, for what concerns one query alone while the blocks are read."""
    if file.suffix.lower() == ".npz":
        return _from_arrays(file, protocol, tasks, ties, allow_short=allow_short)
    rankings = _by_query(_parsed(file), tasks)
    return [_blocks(file, protocol, task, rankings[task.name], ties, allow_short=allow_short) for task in tasks]


# --- files of lines


def _parsed(file: Path) -> Iterator[One]:
    try:
        with file.open("rb") as raw:
            lines = _numbered(file, raw)
            begun = next(lines, None)
            if begun is None:
                raise BadRanking(f"{file} is empty")
            _refuse_lists(file, begun)
            lines = chain([begun], lines)
            if not begun[1].lstrip().startswith("{"):
                yield from (_trec(file, number, line) for number, line in lines)
                return
            if _is_line(begun[1]):
                yield from (_json_line(file, number, line) for number, line in lines)
                return
            text = "".join(f"{line}\n" for _, line in lines)
            _refuse_other_lines(file, begun, text)
        yield from _submission(file, text, begun[0])
    except OSError as error:
        raise BadRanking(f"{file} cannot be read: {error.strerror}") from error


def _numbered(file: Path, raw: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    for number, line in enumerate(raw, 1):
        if number == 1 and line.startswith(PACKED):
            raise BadRanking(f"{file} is compressed: unpack it first")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
        except UnicodeDecodeError as error:
            raise BadRanking(f"{file}, line {number}: not UTF-8 text: {error.reason}") from error
        if text:
            yield number, text


def _refuse_lists(file: Path, begun: tuple[int, str]) -> None:
    if begun[1].lstrip().startswith("["):
        raise BadRanking(f"{file}, line {begun[0]}: a JSON list; expected an object a line, {EXPECTED}")


def _refuse_other_lines(file: Path, begun: tuple[int, str], text: str) -> None:
    """An object a line with other keys than ours would be read as a submission, and fail there by another name."""
    try:
        first, several = json.loads(begun[1]), len(text.strip().splitlines()) > 1
    except (ValueError, RecursionError):
        return
    if several and isinstance(first, dict):
        raise BadRanking(f"{file}, line {begun[0]}: expected {EXPECTED}, found the keys {', '.join(first) or 'none'}")


def _is_line(begun: str) -> bool:
    """Whether a file that begins like this holds an object a line. A submission is one object of many keys."""
    try:
        return not {"query", "ranking"}.isdisjoint(json.loads(begun))
    except (ValueError, RecursionError):
        return '"query"' in begun


def _json(file: Path, number: int, text: str) -> dict[str, Any]:
    """The object that begins on line `number`."""
    try:
        found = json.loads(text, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        raise BadRanking(f"{file}, line {number + error.lineno - 1}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise BadRanking(f"{file}, line {number}: {error}") from error
    if not isinstance(found, dict):
        raise BadRanking(f"{file}, line {number}: expected an object")
    return found


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python would keep the last of two in silence; in a submission a key is a query."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"`{pairs[_again([key for key, _ in pairs])][0]}` is there twice")
    return found


def _json_line(file: Path, number: int, line: str) -> One:
    where, found = f"{file}, line {number}", _json(file, number, line)
    if not {"query", "ranking"} <= found.keys():
        raise BadRanking(f"{where}: expected {EXPECTED}")
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


def _trec(file: Path, number: int, line: str) -> One:
    """`query Q0 picture rank score tag`; a query of one of several tasks is `task/query`."""
    where, fields = f"{file}, line {number}", line.split()
    if len(fields) != 6:
        raise BadRanking(
            f"{where}: expected `query Q0 picture rank score tag`, found {len(fields)} fields. Ids with spaces need "
            "JSON lines."
        )
    query, _, name, _, score, _ = fields
    try:
        value = float(score)
    except ValueError as error:
        raise BadRanking(f"{where}: score {score!r} is not a number") from error
    return One("", query, [name], [value], where, of_run=number)


def _submission(file: Path, text: str, number: int) -> Iterator[One]:
    """CIRR's {"version", "metric", pair: [names]} and CIRCO's {query: [ids]}."""
    found = _json(file, number, text)
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


def _by_query(found: Iterator[One], tasks: Sequence[Task]) -> dict[str, dict[str, Held]]:
    """Rankings by task and query. TREC's lines of one query, one picture each, become one ranking."""
    by_name = {task.name: task for task in tasks}
    queries = {task.name: {query.id for query in task.queries} for task in tasks}
    rankings: dict[str, dict[str, Held]] = {task.name: {} for task in tasks}
    for one in found:
        task, query = _of_run(one, queries) if one.of_run is not None else (_task_of(one, one.task, queries), one.query)
        if query not in queries[task]:
            known = by_name[task].queries[0].id
            raise BadRanking(f"{one.where}: query {query} is not in the benchmark ({task}); ids look like {known}")
        came, before = _held(one, query, by_name[task]), rankings[task].get(query)
        if before is None:
            rankings[task][query] = came
        elif came.lines and before.lines and came.scores and before.scores:
            before.places.extend(came.places)
            before.scores.extend(came.scores)
            before.lines.extend(came.lines)
        else:
            raise BadRanking(f"{one.where}: query {query} was ranked before, in {before.where}")
    return rankings


def _of_run(one: One, queries: Mapping[str, set[str]]) -> tuple[str, str]:
    """Task and query of a run's line. Ids may hold slashes themselves, as those of sketches do."""
    for task, ids in queries.items():
        if one.query.startswith(f"{task}/") and one.query[len(task) + 1 :] in ids:
            return task, one.query[len(task) + 1 :]
    if len(queries) == 1:
        return next(iter(queries)), one.query
    task, _, query = one.query.partition("/")
    return _task_of(one, task if query else "", queries), query


def _task_of(one: One, named: str, known: Mapping[str, Any]) -> str:
    if named in known:
        return named
    if not named and len(known) == 1:
        return next(iter(known))
    said = f"task {named!r} is unknown" if named else "no task is named"
    raise BadRanking(f"{one.where}: {said}; the benchmark has {', '.join(known)}")


def _held(one: One, query: str, task: Task) -> Held:
    """A ranking whose pictures are known and whose scores are numbers, one each."""
    places = array("i", [task.place.get(name, -1) for name in one.names])
    if -1 in places:
        raise BadRanking(
            f"{one.where}: query {query} ranks {one.names[places.index(-1)]}, which is not in the gallery; ids look "
            f"like {task.gallery[0]}{''.join(f' ({note})' for note in task.notes[:1])}"
        )
    if one.scores is None:
        return Held(places, None, one.where)
    if len(one.scores) != len(places):
        raise BadRanking(f"{one.where}: query {query} has {len(places)} pictures and {len(one.scores)} scores")
    try:
        scores = array("d", one.scores)
    except OverflowError as error:
        raise BadRanking(f"{one.where}: query {query} has a score beyond all floating numbers") from error
    if bad := [score for score in scores if not math.isfinite(score)]:
        raise BadRanking(f"{one.where}: query {query} has a score that is {bad[0]}")
    return Held(places, scores, one.where, None if one.of_run is None else array("q", [one.of_run]))


def _blocks(
    file: Path, protocol: Protocol, task: Task, rankings: Mapping[str, Held], ties: Ties, *, allow_short: bool
) -> Iterator[Ranked]:
    if absent := [query.id for query in task.queries if query.id not in rankings]:
        more = f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else ""
        raise BadRanking(
            f"{file}: {len(absent):,} of {len(task.queries):,} queries of {task.name} have no ranking: "
            f"{', '.join(absent[:NAMED])}{more}"
        )
    size = max(1, ranking.CELLS // max(len(task.gallery), 1))
    for start in range(0, len(task.queries), size):
        queries = task.queries[start : start + size]
        ready = [_ordered(task, query, rankings[query.id], ties) for query in queries]
        if not allow_short:
            for query, places in zip(queries, ready, strict=True):
                _check_depth(protocol, task, query, len(places), rankings[query.id].where)
        yield from_lists(task, queries, ready)


def _ordered(task: Task, query: Query, held: Held, ties: Ties) -> list[int]:
    """Gallery places, best first, of the pictures that compete in this query."""
    places = np.array(held.places, np.intp)
    if len(np.unique(places)) < len(places):
        again = _again(held.places)
        line = f", again in line {held.lines[again]}" if held.lines else ""
        raise BadRanking(f"{held.where}: query {query.id} ranks {task.gallery[held.places[again]]} twice{line}")
    if held.scores is not None:
        places = _by_score(task, query, places, np.array(held.scores), ties)
    places = places[~np.isin(places, task.places(query.exclude))]
    if query.candidates is not None:
        places = places[np.isin(places, task.places(query.candidates))]
    return places.tolist()


def _by_score(
    task: Task, query: Query, places: NDArray[np.intp], scores: NDArray[np.float64], ties: Ties
) -> NDArray[np.intp]:
    second = {Ties.PESSIMISTIC: 1, Ties.OPTIMISTIC: -1, Ties.BY_ID: 0}[ties]
    right = np.isin(places, task.places(query.relevant))
    return places[np.lexsort((task.id_rank[places], second * right, -scores))]


def _again(found: Sequence[Any]) -> int:
    """Where the first stands that was there before."""
    seen: set[Any] = set()
    return next(at for at, one in enumerate(found) if one in seen or seen.add(one))


def _check_depth(protocol: Protocol, task: Task, query: Query, came: int, where: str) -> None:
    """A ranking must go as deep as the protocol looks, or to the end of what competes."""
    if query.candidates is None:
        competing = len(task.gallery) - len(task.places(query.exclude))
    else:
        competing = len(task.places(query.candidates - query.exclude))
    needed = competing if protocol.depth is None else min(protocol.depth, competing)
    if came < needed:
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
        with zipfile.ZipFile(file):
            pass  # np.load would take a lone .npy as well
        with np.load(file, allow_pickle=False) as found:
            arrays = dict(found)
    except FileNotFoundError as error:
        raise BadRanking(f"{file} cannot be read: {error.strerror}") from error
    except (OSError, EOFError, ValueError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise BadRanking(f"{file} is not an archive of plain arrays: {error}") from error
    if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise BadRanking(f"{file}: `{strange[0]}` is not an array of numpy's")
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

    rows = _places(file, "query", [query.id for query in task.queries], named("queries"))
    if prefix + "scores" in arrays:
        columns = _places(file, "picture", list(task.gallery), named("gallery"))
        return ranked(task, _scores(file, task, named("scores"), rows, columns), ties=ties, depth=protocol.depth)
    gallery = _ids(file, "picture", named("gallery"))
    if unknown := [name for name in gallery if name not in task.place]:
        raise BadRanking(f"{file}: picture {unknown[0]} is not in the gallery")
    orders = named("order")
    whole = orders.ndim == 2 and orders.dtype.kind in "iu" and len(orders) == len(rows) and orders.size > 0
    if not whole or orders.max() >= len(gallery) or orders.min() < 0:
        raise BadRanking(
            f"{file}: `{prefix}order` must be whole numbers ({len(rows)}, depth), places in `gallery`; found "
            f"{orders.dtype} {orders.shape}"
        )
    places = np.array([task.place[name] for name in gallery], np.int32)
    held = {
        query.id: Held(array("i", places[orders[row]].tobytes()), None, f"{file}, row {row}")
        for query, row in zip(task.queries, rows, strict=True)
    }
    return _blocks(file, protocol, task, held, ties, allow_short=allow_short)


def _scores(
    file: Path, task: Task, scores: NDArray, rows: Sequence[int], columns: Sequence[int]
) -> Callable[[slice], NDArray[np.floating]]:
    if scores.ndim != 2 or scores.dtype.kind != "f":
        raise BadRanking(
            f"{file}: `scores` must be floating numbers (queries, gallery), found {scores.dtype} {scores.shape}"
        )
    if scores.shape != (len(rows), len(columns)):
        raise BadRanking(f"{file}: `scores` is {scores.shape}, expected ({len(rows)}, {len(columns)})")
    for query, row in zip(task.queries, rows, strict=True):
        if not np.isfinite(scores[row]).all():
            name = task.gallery[columns.index(int(np.flatnonzero(~np.isfinite(scores[row]))[0]))]
            raise BadRanking(
                f"{file}: `scores`, row {row}: query {query.id} has a score that is not finite, for picture {name}"
            )
    wide = np.float32 if scores.dtype.itemsize < 8 else np.float64
    return lambda part: scores[np.asarray(rows[part])][:, columns].astype(wide)


def _places(file: Path, what: str, wanted: Sequence[str], came: NDArray) -> list[int]:
    """Where each wanted id stands among those that came. Raises BadRanking for one too many, too few or twice."""
    place = {name: at for at, name in enumerate(_ids(file, what, came))}
    if unknown := sorted(place.keys() - set(wanted)):
        raise BadRanking(f"{file}: {what} {unknown[0]} is not in the benchmark")
    if absent := [name for name in wanted if name not in place]:
        raise BadRanking(f"{file}: {len(absent):,} of {len(wanted):,} are missing, {what} {absent[0]} for one")
    return [place[name] for name in wanted]


def _ids(file: Path, what: str, came: NDArray) -> list[str]:
    """The ids of an array, none twice."""
    if came.ndim != 1 or came.dtype.kind not in "Uiu":
        raise BadRanking(f"{file}: {what} ids must be a row of text or numbers, found {came.dtype} {came.shape}")
    names = [str(name) for name in came.tolist()]
    if len(set(names)) < len(names):
        raise BadRanking(f"{file}: {what} {names[_again(names)]} is there twice")
    return names
