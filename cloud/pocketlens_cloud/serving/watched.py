"""What some files mean, kept in step with them while the server runs.

Owns when they are read again and what holds when they cannot be used: what was read before. What they mean is the
caller's: certificates (tls.py), keys (keys.py). No thread and no timer: who needs the meaning asks, and the files are
looked at then."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from pocketlens_wire.errors import PocketlensError, ServerFault

log = logging.getLogger(__name__)

YOUNG_S: Final = 2.0  # a file as young as this may change again without its times telling: its bytes are compared
AGAIN_S: Final = 5.0  # files that could not be used are tried again, changed or not: a certificate may become valid

Meaning = TypeVar("Meaning")
_State = tuple[object, ...]


class Watched(Generic[Meaning]):
    """The meaning of `files`, as `read` makes it of their bytes; threads may share it.

    read: raises a PocketlensError naming the file for what cannot be used. At the start that error is raised from
    here; later it is logged, and the last meaning stays. what: for the log, such as "the keys"."""

    def __init__(self, files: Sequence[Path], read: Callable[[Sequence[bytes]], Meaning], *, what: str) -> None:
        self._files, self._read, self._what = files, read, what
        self._lock = threading.Lock()
        self._seen, self._held = self._states(), self._bytes()
        self._meaning = read(self._held)
        self._again: float | None = None  # when to try again; None: what is there is in use

    def get(self) -> Meaning:
        """What the files mean now, or last meant. Never raises for a file."""
        with self._lock:
            seen = self._states()
            if seen != self._seen or (self._again is not None and time.monotonic() >= self._again):
                is_news, self._seen = seen != self._seen, seen  # before reading: a later change is another state
                self._refresh(is_news=is_news)
            return self._meaning

    def _refresh(self, *, is_news: bool) -> None:
        try:
            held = self._bytes()
            if held != self._held:
                self._meaning, self._held = self._read(held), held
                log.info("%s: read anew from %s", self._what, ", ".join(map(str, self._files)))
            self._again = None
        except PocketlensError as error:
            self._again = time.monotonic() + AGAIN_S
            if is_news:
                log.error("%s; %s that were read before stay in use", error, self._what)

    def _bytes(self) -> list[bytes]:
        held: list[bytes] = []
        for file in self._files:
            try:
                held.append(file.read_bytes())
            except OSError as error:
                raise ServerFault(f"{file}: cannot be read ({error.strerror})") from error
        return held

    def _states(self) -> _State:
        return tuple(_state(file) for file in self._files)


def _state(file: Path) -> _State:
    """What tells one content of a file from the next."""
    try:
        found = file.stat()
        is_young = abs(time.time() - found.st_mtime) < YOUNG_S
        return (
            found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, file.read_bytes() if is_young else b"",
        )  # fmt: skip
    except OSError as error:
        return (error.errno,)
