"""Reading other people's benchmark folders: strictly, with file and entry in every message.

Owns the refusal, the typed look into JSON, where picture files are, what becomes of missing ones, and official sizes.
Called by the loaders."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pocketlens_wire.errors import PocketlensError
from pocketlens_wire.pictures import ENDINGS

from pocketlens_bench.protocols.protocol import Protocol, Reading
from pocketlens_bench.protocols.task import Query, Task, Where

Boxes = Mapping[str, tuple[float, float, float, float]]
NAMED = 5  # of many culprits, so many are named
_Kind = TypeVar("_Kind")


class BadSet(PocketlensError):
    """A benchmark's folder is not as its protocol needs it. Names file and entry."""


def tasks_of(protocol: Protocol, root: Path, reading: Reading) -> list[Task]:
    """The tasks of a benchmark under `root`. Raises BadSet, also for a task without queries, and for a split of a
    benchmark that has none."""
    if reading.split and not protocol.has_splits:
        raise BadSet(f"{protocol.name} has no splits, so --split {reading.split} means nothing: leave it out")
    tasks = protocol.load(root, reading)
    for task in tasks:
        if not task.queries:
            raise BadSet(f"{protocol.name}, {task.name}: its annotations hold no query")
    return tasks


def all_judged(queries: Iterable[Query], file: Path) -> None:
    """A split's truth is public, or it is not. Raises BadSet when some queries have a right answer and some do not."""
    every = list(queries)
    without_one = [query.id for query in every if not query.relevant]
    if without_one and len(without_one) < len(every):
        raise BadSet(
            f"{file}: {len(without_one):,} of {len(every):,} queries have no right answer ({_some(without_one)}), and "
            "would count as missed. Get the file again."
        )


# --- files


def first_of(root: Path, *candidates: str) -> Path:
    """The first of these paths below `root` that is there. Raises BadSet naming all that were tried."""
    if not root.is_dir():
        raise BadSet(f"{root} is not a folder: --root (or --annotations) names the benchmark's folder")
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise BadSet(f"{root} holds none of {', '.join(candidates)}: see docs/benchmarks.md for the layout")


def read_json(file: Path) -> Any:
    """The JSON of a file. Raises BadSet naming file and line."""
    try:
        return parsed(file.read_bytes())
    except OSError as error:
        raise BadSet(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSet(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadSet(f"{file}, line {error.lineno}: not JSON: {error.msg}. Get the file again.") from error
    except (ValueError, RecursionError) as error:
        raise BadSet(f"{file}: {error}. Get the file again.") from error


def parsed(text: bytes | str) -> Any:
    """JSON, strictly: no key twice (Python would keep the last in silence), no NaN. Raises ValueError and
    RecursionError."""
    return json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key `{next(name for name in names if names.count(name) > 1)}` is there twice")
    return found


def _no_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON's")


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines that are not blank, without the end. Raises BadSet."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadSet(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSet(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028
        if line.strip():
            yield number, line.rstrip()


def entries(file: Path) -> list["Entry"]:
    """The objects of a JSON list. Raises BadSet."""
    found = read_json(file)
    if not isinstance(found, list):
        raise BadSet(f"{file}: expected a list of entries, found {_what(found)}")
    return [Entry(f"{file}, entry {place}", item) for place, item in enumerate(found)]


class Entry:
    """One object of an annotation file; asks for a key's value by type and refuses by name."""

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise BadSet(f"{where}: expected an object, found {_what(value)}")
        self.where = where
        self._value = value

    def has(self, key: str) -> bool:
        return key in self._value

    def wrong(self, said: str) -> BadSet:
        return BadSet(f"{self.where}: {said}")

    def text(self, key: str) -> str:
        return self._typed(key, str, "text")

    def whole(self, key: str) -> int:
        return self._typed(key, int, "a whole number")

    def list_of(self, key: str, kind: type[_Kind]) -> list[_Kind]:
        """A list whose items are all `kind` (bool is no int)."""
        found = self._typed(key, list, "a list")
        for item in found:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise self.wrong(f"`{key}` must hold {kind.__name__} only, found {_what(item)}")
            self._sound(key, item)
        return found

    def entry(self, key: str) -> "Entry":
        return Entry(f"{self.where}, `{key}`", self._typed(key, dict, "an object"))

    def numbers(self, key: str) -> dict[str, float]:
        """An object of numbers by name."""
        found = self._typed(key, dict, "an object")
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.wrong(f"`{key}`, `{name}` must be a number, found {_what(value)}")
        return {name: self._float(key, value) for name, value in found.items()}

    def numbers_in(self, key: str) -> list[float]:
        """A list of numbers."""
        found = self._typed(key, list, "a list")
        for item in found:
            if isinstance(item, bool) or not isinstance(item, int | float):
                raise self.wrong(f"`{key}` must hold numbers only, found {_what(item)}")
        return [self._float(key, item) for item in found]

    def only(self, *known: str) -> None:
        """Refuse keys that nobody reads: a typing mistake would otherwise pass in silence."""
        if unknown := sorted(self._value.keys() - set(known)):
            raise self.wrong(f"unknown key `{unknown[0]}`; known are {', '.join(known)}")

    def _typed(self, key: str, kind: type[_Kind], said: str) -> _Kind:
        if key not in self._value:
            raise self.wrong(f"key `{key}` is missing")
        value = self._value[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(f"`{key}` must be {said}, found {_what(value)}")
        self._sound(key, value)
        return value

    def _sound(self, key: str, value: Any) -> None:
        """Text that can be written: JSON may hold half of a character."""
        try:
            value.encode() if isinstance(value, str) else None
        except UnicodeEncodeError as error:
            raise self.wrong(f"`{key}` is not text: {_what(value)} holds half of a character") from error

    def _float(self, key: str, value: float) -> float:
        try:
            return float(value)
        except OverflowError as error:
            raise self.wrong(f"`{key}` holds a number beyond all floating numbers") from error


def _what(value: Any) -> str:
    """A value in a message: its type, and its beginning."""
    said = json.dumps(value, default=str)
    return f"{type(value).__name__} {said[:40]}{'...' if len(said) > 40 else ''}"


# --- galleries and counts


def unique(names: Iterable[str], file: Path) -> tuple[str, ...]:
    """The gallery's ids in order. Raises BadSet for one that is there twice."""
    seen: dict[str, None] = {}
    for name in names:
        if name in seen:
            raise BadSet(f"{file}: {name} is in the gallery twice")
        seen[name] = None
    return tuple(seen)


def check_count(what: str, came: int, official: int | None, file: Path, reading: Reading) -> list[str]:
    """Nothing, or the note that sizes are not the official ones. Raises BadSet unless that is allowed."""
    if official is None or came == official:
        return []
    if not reading.any_size:
        raise BadSet(
            f"{file}: {came:,} {what}, the official benchmark has {official:,}. A smaller gallery makes figures look "
            "better. Get the file again, or measure it anyway with --any-size, and the result will say so."
        )
    return [f"{came:,} {what} instead of the official {official:,}: not comparable with published figures"]


def known(names: Iterable[str], gallery: Mapping[str, int] | frozenset[str], where: str, what: str) -> None:
    """Raises BadSet if an id is not in the gallery."""
    for name in names:
        if name not in gallery:
            raise BadSet(f"{where}: {what} {name} is not in the gallery")


# --- pictures


def safe(path: str, where: str) -> PurePosixPath:
    """A relative path that stays below the folder it is joined to. Raises BadSet."""
    found = PurePosixPath(path.removeprefix("./"))
    if found.is_absolute() or ".." in found.parts or not found.parts or "\\" in path or "\0" in path:
        raise BadSet(f"{where}: {path!r} is not a path below the pictures' folder")
    return found


class Shelf:
    """The picture files below a folder, links followed, listed once; a name without suffix is found with any.

    Raises BadSet for a folder that cannot be read, and for a file name that is not UTF-8."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {path.relative_to(folder).as_posix() for path in _pictures(folder, frozenset())}
        self._bare: dict[str, list[str]] = {}
        for name in sorted(self._files):
            self._bare.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)

    def find(self, name: str) -> Path | None:
        """The file of a relative posix path with or without its suffix; another suffix than the named one will do.

        Raises BadSet when several would."""
        if name in self._files:
            return self.folder / name
        path = PurePosixPath(name)
        bare = path.with_suffix("").as_posix() if path.suffix.lower() in ENDINGS else name  # "v1.5" has no suffix
        found = self._bare.get(bare, [])
        if len(found) > 1:
            raise BadSet(f"{self.folder}: {name} may be {' or '.join(found)}; name it with its suffix, or delete one")
        return self.folder / found[0] if found else None

    def every(self) -> list[str]:
        """All pictures as relative posix paths, sorted."""
        return sorted(self._files)


def _pictures(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """Picture files below a folder; a link back to a folder that is being listed ends there."""
    if (real := os.path.realpath(folder)) in above:
        return
    try:
        entries_there = sorted(folder.iterdir())
    except OSError as error:
        raise BadSet(f"{folder} cannot be listed: {error.strerror}") from error
    for path in entries_there:
        if path.is_dir():
            yield from _pictures(path, above | {real})
        elif path.suffix.lower() in ENDINGS:
            try:
                path.name.encode()
            except UnicodeEncodeError as error:
                raise BadSet(f"{folder}: the file name {path.name!r} is not UTF-8; rename it") from error
            yield path


def with_pictures(task: Task, places: Mapping[str, Path | None], reading: Reading, boxes: Boxes | None = None) -> Task:
    """`task` with its picture files; what has none is missing.

    More missing files than reading.allow_missing are refused by name. Otherwise they leave the gallery, and queries
    that cannot be asked or answered any more are left out; both are named in the task's notes."""
    needed = dict.fromkeys([*task.gallery, *(query.reference for query in task.queries if query.reference)])
    missing = [name for name in needed if places.get(name) is None]
    if len(missing) > reading.allow_missing:
        raise BadSet(
            f"{task.name}: {len(missing):,} of {len(needed):,} pictures were not found ({_some(missing)}). Get them, "
            f"or leave them out with --allow-missing {len(missing)}, and the result will say so."
        )
    pictures = {name: Where(file, (boxes or {}).get(name)) for name in needed if (file := places.get(name)) is not None}
    if not missing:
        return replace(task, pictures=pictures)
    return replace(without(task, frozenset(missing)), pictures=pictures, missing=tuple(missing))


def without(task: Task, missing: frozenset[str]) -> Task:
    """`task` without these pictures, and without the queries that they make impossible; its notes say both."""
    kept: list[Query] = []
    for query in task.queries:
        relevant = query.relevant - missing
        if query.reference not in missing and (relevant or not query.relevant):
            kept.append(query if relevant == query.relevant else replace(query, relevant=relevant))
    if not kept:
        raise BadSet(f"{task.name}: without the {len(missing):,} missing pictures no query is left to ask")
    lost = len(task.queries) - len(kept)
    note = f"{task.name}: {len(missing):,} pictures are missing and left out ({_some(sorted(missing))})"
    if lost:
        note += f", and with them {lost:,} queries"
    gallery = tuple(name for name in task.gallery if name not in missing)
    return replace(task, gallery=gallery, queries=tuple(kept), notes=(*task.notes, note))


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
