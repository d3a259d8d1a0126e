"""The file a batch writes: one JSON line a picture, which is also what makes it resumable.

Owns reading the lines of an earlier run, which of them still hold, and the repair of a torn last one. Knows
neither pictures nor servers; batch.py does."""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from pocketlens_wire.errors import BadQuery, ServerFault

_BEGIN = b'{"file": '  # of each line; what does not begin so is somebody else's file, and stays

Line = dict[str, Any]
Stamp = tuple[int, int]  # bytes and modification time in milliseconds of a picture file


def named(file: str) -> Line:
    """How a line names its picture: `file`, and where the name is no UTF-8, its exact bytes too."""
    exact = os.fsencode(file)
    text = exact.decode("utf-8", "replace")
    if text.encode() == exact:
        return {"file": text}
    return {"file": text, "file_base64": base64.b64encode(exact).decode()}


class Journal:
    """Lines at `path`, appended to by one process at a time; a context manager.

    Lines of an earlier run stay if they hold: asked the same, no error, and the picture, where it is still there, as it
    was. The others are removed, so that each picture has one line.

    Args:
        asked: what every line of this run is asked with.
        pictures: the pictures there are now.

    Attributes:
        done: files with a line that holds."""

    def __init__(self, path: Path, *, asked: Mapping[str, Any], pictures: Mapping[str, Stamp]) -> None:
        self.path = path
        self.done: set[str] = set()
        self._asked = dict(asked)
        self._pictures = pictures
        self._file = _open_alone(path)
        try:
            if not self._all_hold():
                self._rewrite()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, file: str, found: Mapping[str, Any]) -> None:
        """Append the line of one picture; a process killed afterwards has not lost it.

        Raises ServerFault for numbers that JSON cannot hold."""
        size, modified_ms = self._pictures.get(file, (0, 0))
        line = {**named(file), "size": size, "modified_ms": modified_ms, "asked": self._asked, **found}
        try:
            text = json.dumps(line, allow_nan=False)
        except ValueError as error:
            raise ServerFault(f"{file}: the answer holds numbers that are not finite ({error}).") from error
        self._file.write(text.encode() + b"\n")
        self._file.flush()

    def _all_hold(self) -> bool:
        """Whether every line holds; notes the done ones."""
        held = 0
        for number, line in enumerate(self._lines(), start=1):
            file = self._holds(line, number)
            if file is not None:
                held += len(line)
                self.done.add(file)
        return held == os.fstat(self._file.fileno()).st_size

    def _rewrite(self) -> None:
        """The lines that hold into a new file, which takes the old one's place."""
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        new = _open_alone(unfinished)
        new.truncate(0)
        os.fchmod(new.fileno(), os.fstat(self._file.fileno()).st_mode & 0o7777)
        for number, line in enumerate(self._lines(), start=1):
            if self._holds(line, number) is not None:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
        os.replace(unfinished, self.path)
        self._file.close()
        self._file = new

    def _lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        return iter(self._file)

    def _holds(self, line: bytes, number: int) -> str | None:
        """The picture of a line that holds, or None. Raises BadQuery for a line that no batch wrote, or another one."""
        if not line.endswith(b"\n") and line.startswith(_BEGIN[: len(line)]):
            return None  # torn: the last one, from a process that was killed
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not {"file", "asked", "size", "modified_ms"} <= record.keys():
            raise BadQuery(f"{self.path}: line {number} is not from a batch. Name another --out.")
        found = cast("Line", record)
        if _said(found["asked"]) != _said(self._asked):  # as text: 1, 1.0 and true are equal to Python
            raise BadQuery(
                f"{self.path}: line {number} was asked with {_said(found['asked'])}; now it is {_said(self._asked)}. "
                "Name another --out, or remove this one."
            )
        file = os.fsdecode(base64.b64decode(found["file_base64"])) if "file_base64" in found else str(found["file"])
        stamp = (found["size"], found["modified_ms"])
        return file if "error" not in found and self._pictures.get(file, stamp) == stamp else None


def _said(asked: Any) -> str:
    return json.dumps(asked, ensure_ascii=False, sort_keys=True)


def _open_alone(path: Path) -> BinaryIO:
    """The file, made if need be, positioned at its end. Raises BadQuery while another process writes it."""
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise BlockingIOError
    except BlockingIOError:
        file.close()
        raise BadQuery(f"{path}: another batch writes it right now. Wait until it has finished.") from None
    return file
