"""A look at one picture of a source: read, hashed and, if the gallery lacks it, decoded.

Knows no gallery and no tower: which ids are in and what the journal remembers is given. Many looks run at once, here in
threads (pipeline.py) or on other machines (ray_engine.py)."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadPicture

from pocketlens_cloud.indexing.decoding import Decoder, DecoderDied
from pocketlens_cloud.indexing.journal import Entry
from pocketlens_cloud.indexing.names import content_id, printable
from pocketlens_cloud.indexing.sources import Source

NOT_UTF8: Final = "its name is not UTF-8: rename it"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a look at one picture gave; pixels or vectors only for one the gallery lacks."""

    file: str
    entry: Entry | None = None  # None if the file could not be read at all
    pixels: NDArray[np.uint8] | None = None  # (side, side, 3)
    vectors: Mapping[str, NDArray[np.float32]] | None = None  # (dim,) by name, where the tower has seen it already
    trouble: str = ""  # why it is not a usable picture


@final
class Clock:
    """Seconds by stage, added up over threads."""

    def __init__(self) -> None:
        self._guard = Lock()
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, began: float) -> float:
        """Count the time since `began` (perf_counter) for `stage`; now."""
        now = time.perf_counter()
        with self._guard:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - began
        return now


@dataclass(frozen=True)
class Looker:
    """`remembered`: the journal's entries by name; `stored`: ids that the gallery holds."""

    source: Source
    remembered: Mapping[str, Entry]
    stored: Collection[str]
    clock: Clock = field(default_factory=Clock)

    def unchanged(self, file: str) -> Seen | None:
        """The look, where neither bytes nor pixels are needed for it. Raises BadPicture."""
        known = self.remembered.get(file)
        if not known or not known.fingerprint or known.id not in self.stored:
            return None
        return Seen(file=file, entry=known) if self.source.fingerprint(file) == known.fingerprint else None

    def look(self, file: str, decoder: Decoder) -> Seen:
        """Runs in several threads."""
        if printable(file) != file:
            return Seen(file=file, trouble=NOT_UTF8)
        began = time.perf_counter()
        try:
            if seen := self.unchanged(file):
                return seen
            fingerprint = self.source.fingerprint(file)
            data = self.source.read(file)
        except BadPicture as error:
            return Seen(file=file, trouble=str(error))
        began = self.clock.add("reading", began)
        entry = Entry(file, fingerprint, content_id(data))
        began = self.clock.add("hashing", began)
        if entry.id in self.stored:
            return Seen(file=file, entry=entry)
        try:
            return Seen(file=file, entry=entry, pixels=decoder.decode(data, file))
        except BadPicture as error:
            return Seen(file=file, entry=entry, trouble=str(error))
        except DecoderDied as error:
            return Seen(file=file, trouble=f"{file}: {error}")
        finally:
            self.clock.add("decoding", began)


def unremembered(files: Iterable[str], remembered: Mapping[str, Entry]) -> int:
    """How many pictures will at least have to be read."""
    return sum(file not in remembered for file in files)
