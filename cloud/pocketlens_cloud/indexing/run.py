"""The state of one indexing run: what is in the gallery, what the source wants in, what is to be written.

Owns which picture is new, a duplicate, relabelled or stale. Decides in one thread, in the order of names; writes in
another, one batch at a time (pipeline.py)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from pocketlens_cloud.gallery.interface import Gallery, Point
from pocketlens_cloud.gallery.payload import Payload, excess
from pocketlens_cloud.indexing.journal import Entry, Journal
from pocketlens_cloud.indexing.looking import Seen
from pocketlens_cloud.indexing.names import FILE_KEY, printable
from pocketlens_cloud.indexing.report import IngestReport


@dataclass
class Batch:
    """What is written together: new pictures, new payloads, and the journal's lines about them."""

    fresh: list[Seen] = field(default_factory=list)
    relabelled: dict[str, Payload] = field(default_factory=dict)  # by id
    entries: list[Entry] = field(default_factory=list)
    looked_at: int = 0


@final
class Run:
    def __init__(self, gallery: Gallery, journal: Journal, notes: Mapping[str, Payload]) -> None:
        self.report = IngestReport()
        self._notes = notes
        self._gallery, self._journal = gallery, journal
        self.stored: Mapping[str, Payload] = dict(gallery.payloads())  # id -> payload, as found at the start
        self._owner: dict[str, str] = {}  # id -> first file that holds it
        self._untouched: set[str] = set()  # files that cannot be read or stored, whose pictures stay as they are

    def take(self, seen: Seen, batch: Batch) -> None:
        """Decide what a look means, and put what is to be written into `batch`."""
        batch.looked_at += 1
        if seen.entry and not seen.trouble:
            batch.entries.append(seen.entry)
        if self._is_new(seen, batch):
            batch.fresh.append(seen)

    def _is_new(self, seen: Seen, batch: Batch) -> bool:
        if seen.trouble or seen.entry is None:
            self.report.unreadable.append((printable(seen.file), seen.trouble.removeprefix(f"{seen.file}: ")))
            if seen.entry is None:
                self._untouched.add(seen.file)
            return False
        if trouble := excess(self._payload(seen.file)):
            self.report.unreadable.append((seen.file, f"{trouble}, its path with it: shorten its path or its labels"))
            self._untouched.add(seen.file)
            return False
        point = seen.entry.id
        first = self._owner.setdefault(point, seen.file)
        if first != seen.file:
            self.report.duplicates.append((seen.file, first))
            if self._notes.get(seen.file, {}) != self._notes.get(first, {}):
                self.report.lost_payload.append((seen.file, first))
            return False
        if point not in self.stored:
            return True
        self.report.skipped += 1
        if self.stored[point] != (wanted := self._payload(seen.file)):
            batch.relabelled[point] = wanted
        return False

    def write(self, batch: Batch, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Bring a batch into the gallery, onto the disk, and only then into the journal.

        vectors: (len(batch.fresh), dim) by name."""
        entries = [seen.entry for seen in batch.fresh if seen.entry]
        if entries:
            self._gallery.upsert(
                [
                    Point(entry.id, {name: rows[at] for name, rows in vectors.items()}, self._payload(entry.file))
                    for at, entry in enumerate(entries)
                ]
            )
        for point, payload in batch.relabelled.items():
            self._gallery.set_payload(point, payload)
        if entries or batch.relabelled:
            self._gallery.flush()
        self._journal.append(batch.entries)
        self.report.indexed += len(entries)
        self.report.relabelled += len(batch.relabelled)

    def remove_stale(self, files: Sequence[str], *, prune: bool) -> None:
        """Remove pictures whose file now holds something else; report or prune those whose file is gone.

        A picture without a file's name came from elsewhere (Gallery.Add) and is left alone."""
        stale = {point: file for point, file in _named(self.stored.items()) if point not in self._owner}
        here = set(files)
        replaced = [point for point, file in stale.items() if file in here - self._untouched]
        gone = {point: file for point, file in stale.items() if file not in here}
        self.report.replaced = len(replaced)
        self.report.gone = sorted(gone.values())
        self.report.pruned = len(gone) if prune else 0
        if doomed := replaced + (list(gone) if prune else []):
            self._gallery.delete(doomed)

    def _payload(self, file: str) -> Payload:
        return {FILE_KEY: file, **self._notes.get(file, {})}


def _named(stored: Iterable[tuple[str, Payload]]) -> Iterable[tuple[str, str]]:
    return ((point, str(payload[FILE_KEY])) for point, payload in stored if FILE_KEY in payload)
