"""Results files as the report reads them: JSON with a kind, asked for what must be there.

Strict about what is used and kind about the rest: an unknown key is no error (a newer measurement may say more), a
missing or crooked one is named with file and place. Called by page.py, compare.py and the sections."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlens_wire.errors import PocketlensError

from pocketlens_bench.protocols.figures import Measured

ENDS = ("value", "low", "high")


class BadResult(PocketlensError):
    """A results file is unreadable, of an unknown kind, or lacks something. Names file and place."""


@dataclass(frozen=True)
class Node:
    """A place in a results file. Every question raises BadResult when the answer is not there."""

    file: str
    place: str
    value: Any

    def __getitem__(self, key: str) -> "Node":
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if key not in self.value:
            raise BadResult(f"{self.file}: {self.place or 'top level'} has no `{key}`. Measure it again.")
        return self._at(key)

    def get(self, key: str) -> "Node | None":
        """What is there under `key`, or None when nothing is, or null."""
        there = isinstance(self.value, dict) and self.value.get(key) is not None
        return self._at(key) if there else None

    def keys(self) -> list[str]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return list(self.value)

    def each(self) -> list["Node"]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Node(self.file, f"{self.place}[{i}]", item) for i, item in enumerate(self.value)]

    def each_of(self, key: str) -> list["Node"]:
        """Entries of the list under `key`; none when there is no such list."""
        there = self.get(key)
        return there.each() if there else []

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("text")
        return self.value

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong("a number")
        try:
            finite = math.isfinite(self.value)
        except OverflowError:  # a whole number beyond all floating ones
            finite = False
        if not finite:
            raise self.wrong("a number")
        return self.value

    def whole(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.wrong("a whole number")
        return self.value

    def figure(self) -> Measured:
        """A value with both ends of its interval."""
        if not self.is_figure():
            raise self.wrong("a figure {value, low, high}")
        return Measured(*(self[end].number() for end in ENDS))

    def is_figure(self) -> bool:
        return isinstance(self.value, dict) and all(end in self.value for end in ENDS)

    def metrics(self) -> list[str]:
        """Keys under which figures stand, in the file's order."""
        return [key for key in self.keys() if self[key].is_figure()]

    def sentences(self, key: str) -> list[str]:
        return [said.text() for said in self.each_of(key)]

    def wrong(self, expected: str) -> BadResult:
        came = json.dumps(self.value, default=str)
        return BadResult(
            f"{self.file}: {self.place or 'top level'} should be {expected}, and is {came[:60]}. Measure it again."
        )

    def _at(self, key: str) -> "Node":
        return Node(self.file, f"{self.place}.{key}" if self.place else key, self.value[key])


@dataclass(frozen=True)
class Result:
    """One results file. kind: what was measured; about: which set."""

    path: Path
    kind: str
    about: str
    data: Node

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def conditions(self) -> Node:
        return self.data["conditions"]


def read_result(path: Path) -> Result:
    """Raises BadResult for a file that is no result."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
    except OSError as error:
        raise BadResult(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BadResult(f"{path}: not a results file, {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("benchmark"), str):
        raise BadResult(f"{path}: not a results file: it does not say which `benchmark` it is of")
    data = Node(path.name, "", value)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadResult(f"{path}: holds half of a character; measure it again") from error
    data["conditions"].keys()
    about = data.get("set") or data.get("protocol")
    return Result(path, value["benchmark"], about.text() if about else "", data)


def read_results(named: Iterable[Path]) -> list[Result]:
    """Results of files, and of all *.json in folders, in the order named. Raises BadResult, also for none at all."""
    named = list(named)
    found = [read_result(path) for path in _files(named)]
    if not found:
        raise BadResult(f"{', '.join(map(str, named))}: no results (*.json) there")
    return found


def _files(named: Iterable[Path]) -> Iterator[Path]:
    for path in named:
        yield from sorted(path.glob("*.json")) if path.is_dir() else [path]


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")
