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

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.task import Query, Task, Where

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
Boxes = Mapping[str, tuple[float, float, float, float]]
NAMED = 5  # of many culprits, so many are named
_Kind = TypeVar("_Kind")


class BadSet(PocketlensError):
    """A benchmark's folder is not as its protocol needs it. Names file and entry."""


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
        return json.loads(file.read_bytes())
    except OSError as error:
        raise BadSet(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSet(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadSet(f"{file}, line {error.lineno}: not JSON: {error.msg}. Get the file again.") from error


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
        return found

    def entry(self, key: str) -> "Entry":
        return Entry(f"{self.where}, `{key}`", self._typed(key, dict, "an object"))

    def numbers(self, key: str) -> dict[str, float]:
        """An object of numbers by name."""
        found = self._typed(key, dict, "an object")
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.wrong(f"`{key}`, `{name}` must be a number, found {_what(value)}")
        return {name: float(value) for name, value in found.items()}

    def numbers_in(self, key: str) -> list[float]:
        """A list of numbers."""
        found = self._typed(key, list, "a list")
        for item in found:
            if isinstance(item, bool) or not isinstance(item, int | float):
                raise self.wrong(f"`{key}` must hold numbers only, found {_what(item)}")
        return [float(item) for item in found]

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
        return value


def _what(value: Any) -> str:
    """A value in a message: its type, and its beginning."""
    said = json.dumps(value, ensure_ascii=False, default=str)
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
    """The picture files below a folder, listed once; a name without suffix is found with any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, str] = {}
        for at, _, names in os.walk(folder):
            for name in names:
                path = Path(at, name)
                if path.suffix.lower() in SUFFIXES:
                    relative = path.relative_to(folder)
                    self._files[relative.with_suffix("").as_posix()] = relative.as_posix()
                    self._files[relative.as_posix()] = relative.as_posix()

    def find(self, name: str) -> Path | None:
        """The file of a relative posix path with or without its suffix; another suffix than the named one will do."""
        path = PurePosixPath(name)
        bare = path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name  # "v1.5" has no suffix
        found = self._files.get(name) or self._files.get(bare)
        return self.folder / found if found else None

    def every(self) -> list[str]:
        """All pictures as relative posix paths, sorted."""
        return sorted(set(self._files.values()))


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
    lost = len(task.queries) - len(kept)
    note = f"{task.name}: {len(missing):,} pictures are missing and left out ({_some(sorted(missing))})"
    if lost:
        note += f", and with them {lost:,} queries"
    gallery = tuple(name for name in task.gallery if name not in missing)
    return replace(task, gallery=gallery, queries=tuple(kept), notes=(*task.notes, note))


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
