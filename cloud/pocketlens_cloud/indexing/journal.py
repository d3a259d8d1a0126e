"""The journal: which bytes each picture of a source held when it was last read.

Only spares reading again what did not change; the gallery is the truth about which pictures are in."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from pocketlens_wire.errors import GalleryError


@dataclass(frozen=True)
class Entry:
    """One line of the journal: a picture's name, how its source looked, and the picture it held."""

    file: str
    fingerprint: str  # as the source gives it; empty: nothing is known, so it is read again
    id: str


@final
class Journal:
    """Append-only JSON lines, each batch brought to disk before `append` returns.

    A kill may tear the last line; reading ignores what it cannot read and writing goes on behind it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}

    def __enter__(self) -> "Journal":
        try:
            self._file = self._path.open("ab+")
        except OSError as error:
            raise GalleryError(f"cannot write to {self._path}: {error.strerror}") from error
        self._file.seek(0)
        data = self._file.read()
        self._file.truncate(data.rfind(b"\n") + 1)  # a torn last line
        for line in data.splitlines():
            try:
                entry = _entry(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue  # costs one picture to be read again
            self.entries[entry.file] = entry
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entries: Sequence[Entry]) -> None:
        """Record names whose pictures are on disk in the gallery."""
        fresh = [entry for entry in entries if self.entries.get(entry.file) != entry]
        if not fresh:
            return
        self._file.write(b"".join(json.dumps(asdict(e), ensure_ascii=False).encode() + b"\n" for e in fresh))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.update((entry.file, entry) for entry in fresh)


def _entry(raw: dict[str, Any]) -> Entry:
    if "mtime_ns" in raw:  # as written before there were sources other than folders
        return Entry(raw["file"], f"{raw['size']}-{raw['mtime_ns']}", raw["id"])
    return Entry(**raw)
