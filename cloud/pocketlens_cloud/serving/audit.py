"""The audit log: who asked what of the service, and when.

Owns one file of JSON lines, only ever appended to, mode 0600; or stderr. Never in it: words, tokens, keys, hits.

- index and admin calls: a line when one begins, on the disk (fsync) before it is let in, and one when it ends. Where
  that first line cannot be written, for a full disk say, the call is refused: what changes the service leaves a trace
  or does not happen.
- searches and other questions: counted by who and how they ended, one line a minute, and one at the end; each has a
  line of its own only if asked for. These are not synced, and a disk that takes none stops no search: what is lost is
  counted and told in the next line that can be written. A crash loses up to a minute of counts.
- calls without a good key are counted like searches: a line each would let strangers fill the disk.

A file that is moved away (logrotate) is made anew with the next line."""

import asyncio
import errno
import json
import logging
import os
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from pocketlens_wire.errors import ServerFault

log = logging.getLogger(__name__)

COUNTS_EVERY_S: Final = 60.0
MAX_WAITING: Final = 10_000  # lines for a disk that is slow; beyond, lines are lost rather than memory
_STDERR: Final = 2


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A call as the log tells it. key: its id; certificate: the name in the device's; None where there is none."""

    method: str
    scope: str | None
    peer: str
    key: str | None = None
    certificate: str | None = None

    @property
    def is_change(self) -> bool:
        """Whether it may change the service, so that it must leave a trace."""
        return self.scope in ("index", "admin")


class Audit:
    """The log, written by one thread of its own. A context manager; leaving it writes the last counts.

    file: None for stderr. each_search: a line for each question too. Raises ServerFault for a file that cannot be
    opened."""

    def __init__(self, file: Path | None, *, each_search: bool = False) -> None:
        self._file, self._each_search = file, each_search
        self._descriptor = _STDERR if file is None else _open(file)
        self._thread = ThreadPoolExecutor(1, "audit")
        self._lock = threading.Lock()  # around the two below, which both threads change
        self._waiting, self._lost = 0, 0
        self._is_torn, self._is_failing = False, False  # the writing thread's own
        self._counts: Counter[tuple[str | None, str | None, str, str]] = Counter()
        self._since = ""
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_counts()
        self._thread.shutdown()
        if self._descriptor != _STDERR:
            os.close(self._descriptor)

    async def begin(self, visit: Visit) -> None:
        """A call that was let in begins. Raises ServerFault if it must leave a trace and cannot."""
        if not visit.is_change:
            return
        try:
            await asyncio.wrap_future(self._submit(_line("begin", visit), is_kept=True))
        except OSError as error:
            raise ServerFault(
                f"the audit log of this server cannot be written ({error.strerror}): index and admin calls are refused "
                "until it can be; searches go on"
            ) from error

    def end(self, visit: Visit, status: str, *, was_let_in: bool) -> None:
        """A call ended; status: gRPC's name for how. Never raises for the file. Called in the event loop."""
        if visit.is_change and was_let_in:
            self._submit(_line("end", visit, status=status), is_kept=True)
        elif visit.is_change and visit.key:
            self._submit(_line("refused", visit, status=status))
        elif self._each_search and was_let_in:
            self._submit(_line("question", visit, status=status))
        else:
            self._count(visit, status)

    # --- counting

    def _count(self, visit: Visit, status: str) -> None:
        self._since = self._since or _now()
        self._counts[visit.key, visit.certificate, visit.method, status] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COUNTS_EVERY_S, self._write_counts)

    def _write_counts(self) -> None:
        self._timer = None
        if not self._counts:
            return
        names = ("key", "certificate", "method", "status")
        counts = [
            dict(zip(names, which, strict=True)) | {"calls": n} for which, n in sorted(self._counts.items(), key=str)
        ]
        self._submit({"at": _now(), "event": "counts", "since": self._since, "counts": counts})
        self._counts.clear()
        self._since = ""

    # --- writing

    def _submit(self, line: dict[str, Any], *, is_kept: bool = False) -> "Future[None]":
        """Have a line written; is_kept: it is on the disk when the future is done. The future fails with OSError."""
        with self._lock:
            if self._waiting >= MAX_WAITING:
                self._lost += 1
                lost: Future[None] = Future()
                lost.set_exception(OSError(errno.EAGAIN, "its disk is far behind"))
                return lost
            self._waiting += 1
        future = self._thread.submit(self._write, line, is_kept=is_kept)
        future.add_done_callback(self._written)
        return future

    def _written(self, future: "Future[None]") -> None:
        """Count what was not. Once per failure the server's log says so, not once per line."""
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._waiting -= 1
            self._lost += error is not None
        if error is not None and not self._is_failing:
            log.error("audit log %s: %s; searches go on, index and admin calls are refused", self._file, error)
        self._is_failing = error is not None

    def _write(self, line: dict[str, Any], *, is_kept: bool) -> None:
        """Append `line`, and how many were lost before it. Raises OSError."""
        if self._file is not None:
            self._follow(self._file)
        lost = self._lost
        told = json.dumps(line | {"lost_lines": lost} if lost else line).encode() + b"\n"
        if self._is_torn:
            told = b"\n" + told
        written = os.write(self._descriptor, told)
        self._is_torn = written < len(told)  # what is left of a line that a full disk cut stays a line of its own
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if is_kept and self._file is not None:
            os.fsync(self._descriptor)
        with self._lock:
            self._lost -= lost

    def _follow(self, file: Path) -> None:
        """Open the file anew if what we hold was moved away."""
        try:
            is_same = os.path.samestat(os.fstat(self._descriptor), file.stat())
        except FileNotFoundError:
            is_same = False
        if not is_same:
            before, self._descriptor = self._descriptor, os.open(file, _FLAGS, 0o600)
            os.close(before)


_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def _open(file: Path) -> int:
    try:
        return os.open(file, _FLAGS, 0o600)
    except OSError as error:
        raise ServerFault(f"audit log {file}: cannot be opened ({error.strerror})") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _line(event: str, visit: Visit, **more: str) -> dict[str, Any]:
    return {
        "at": _now(), "event": event, "key": visit.key, "certificate": visit.certificate, "peer": visit.peer,
        "method": visit.method, "scope": visit.scope, **more,
    }  # fmt: skip
