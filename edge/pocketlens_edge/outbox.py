"""Questions kept while no server answers, sent later; nothing is lost or sent half-written, whenever one is killed.

Owns the folder and its files, all for their owner's eyes alone (0700, 0600):

    <id>.question         a question that waits: its request (tokens and words, no picture) and where it came from
    <id>.damaged          one that cannot be read any more, set aside by `send`
    answers/<id>.json     the answer
    .lock                 held by the one process that sends or drops

Every file is written beside its place, brought to the disk, then renamed. A question is removed only after its
answer is on the disk; where both are found, the answer counts, so that no question is answered twice. Asking twice
changes nothing on the server. Called by the command line; whom to ask is handed in."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

from google.protobuf.message import DecodeError
from pocketlens_wire.errors import BadQuery, Overloaded, PocketlensError, ServerFault, TooLate, Unavailable
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_edge.patience import ask_patiently

AWAY = (Unavailable, Overloaded, TooLate)  # no answer now; the same question may get one later

MAX_QUESTIONS = 10_000
MAX_BYTES = 64 * 1024 * 1024  # of all questions; one with int8 tokens has about 1.5 KB
MAX_AGE = timedelta(days=30)  # older ones are not sent unless asked for
MAX_QUESTION_BYTES = 256 * 1024  # of one file; a request has at most 64 KiB

_FORMAT = 1
_QUESTION, _DAMAGED, _UNFINISHED = ".question", ".damaged", ".unfinished"
_STALE_S = 3600  # an unfinished file this old belongs to nobody
_KEYS = {"format", "id", "created", "picture", "request"}
_SILENT = 3  # questions in a row without an answer, then the server is left alone

Ask = Callable[[pb.SearchRequest], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One that waits. picture: the name it was asked with, for people; None for words alone."""

    id: str  # sorts by time
    created: datetime
    picture: str | None
    request: pb.SearchRequest


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A file that is no question. reason: a sentence's half."""

    id: str
    reason: str


@dataclass(kw_only=True)
class Sent:
    """What one `send` did. waiting: still there because no server answered; reason: why, a sentence."""

    answered: list[Question] = field(default_factory=list[Question])
    refused: list[tuple[Question, PocketlensError]] = field(default_factory=list[tuple[Question, PocketlensError]])
    too_old: list[Question] = field(default_factory=list[Question])
    damaged: list[Damaged] = field(default_factory=list[Damaged])
    waiting: list[Question] = field(default_factory=list[Question])
    reason: str = ""


class Outbox:
    """The outbox in `folder`, made if it is not there. Raises BadQuery if others may look into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers = folder / "answers"
        _make_private(folder)
        _make_private(self.answers)
        self._count, self._bytes = self._counted()
        self._one_at_a_time = threading.Lock()

    # --- keeping

    def keep(self, request: pb.SearchRequest, *, picture: str | None) -> str:
        """Put a question in; once this returns its id, it is on the disk. Raises BadQuery when the outbox is full."""
        now = datetime.now(UTC)
        id_ = f"{now:%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(4)}"
        record = {
            "format": _FORMAT,
            "id": id_,
            "created": now.isoformat(),
            "picture": picture,
            "request": base64.b64encode(request.SerializeToString()).decode(),
        }
        line = json.dumps(record).encode()
        data = line + b"\n" + _digest(line) + b"\n"
        with self._one_at_a_time:
            self._check_room(len(data))
        _write_durably(self.folder / f"{id_}{_QUESTION}", data)
        return id_

    def _check_room(self, more_bytes: int) -> None:
        """Counted once, then kept up to date, so that a batch is not slowed down by what it keeps; before it is called
        full it is counted again."""
        if not self._has_room(more_bytes):
            self._count, self._bytes = self._counted()
        if not self._has_room(more_bytes):
            raise BadQuery(
                f"outbox {self.folder} is full: {self._count:,} questions, {self._bytes:,} bytes; the limits are "
                f"{MAX_QUESTIONS:,} and {MAX_BYTES:,}. This question was not kept. Send or drop some."
            )
        self._count, self._bytes = self._count + 1, self._bytes + more_bytes

    def _has_room(self, more_bytes: int) -> bool:
        return self._count < MAX_QUESTIONS and self._bytes + more_bytes <= MAX_BYTES

    def _counted(self) -> tuple[int, int]:
        sizes: list[int] = []
        for file in self._files(_QUESTION):
            with suppress(FileNotFoundError):  # sent meanwhile
                sizes.append(file.lstat().st_size)
        return len(sizes), sum(sizes)

    # --- looking

    def look(self) -> list[Question | Damaged]:
        """What waits, oldest first."""
        found = [_read(file) for file in self._files(_QUESTION)]
        return [entry for entry in found if entry is not None]

    def set_aside(self) -> list[str]:
        """The ids of damaged files that `send` set aside."""
        return [file.name.removesuffix(_DAMAGED) for file in self._files(_DAMAGED)]

    def answered(self) -> list[str]:
        """The ids that have an answer, oldest first."""
        return sorted(file.stem for file in self.answers.glob("*.json") if not file.name.startswith("."))

    # --- sending and dropping

    def send(
        self,
        ask: Ask,
        *,
        patience_s: float = 0.0,
        max_age: timedelta = MAX_AGE,
        on_answer: Callable[[Question, Mapping[str, Any]], None] | None = None,
    ) -> Sent:
        """Ask what waits, oldest first, and write the answers.

        ask: gives the answer in plain values, or raises a PocketlensError.
        patience_s: how long one question is asked again while no server answers; a busy one says when.
        on_answer: told of each answer once it is on the disk.
        A question that the server refuses stays and holds up no other. Raises BadQuery when another process sends."""
        sent, silent = Sent(), 0
        with self._locked():
            self._tidy()
            for entry in self.look():
                if isinstance(entry, Damaged):
                    self._set_aside(entry)
                    sent.damaged.append(entry)
                    continue
                if datetime.now(UTC) - entry.created > max_age:
                    sent.too_old.append(entry)
                    continue
                if silent >= _SILENT:
                    sent.waiting.append(entry)
                    continue
                try:
                    answer = ask_patiently(partial(ask, entry.request), patience_s, again=AWAY)
                    self._answer(entry, answer)
                except AWAY as error:
                    silent += _SILENT if isinstance(error, Unavailable) else 1
                    sent.waiting.append(entry)
                    sent.reason = str(error)
                except PocketlensError as error:
                    sent.refused.append((entry, error))
                else:
                    silent = 0
                    sent.answered.append(entry)
                    if on_answer:
                        on_answer(entry, answer)
        return sent

    def drop(self, ids: Sequence[str]) -> None:
        """Remove questions, damaged files and answers by id. Raises BadQuery, before anything is removed, for an
        id that is none of them, and when another process sends."""
        with self._locked():
            files = [file for id_ in ids for file in self._named(id_)]
            for file in files:
                file.unlink(missing_ok=True)
            _to_disk(self.folder)
            _to_disk(self.answers)

    def _answer(self, question: Question, answer: Mapping[str, Any]) -> None:
        """The answer to the disk, then the question away; killed in between, `_tidy` finishes it.

        Raises ServerFault for an answer with numbers that JSON cannot hold."""
        record = {
            "id": question.id,
            "created": question.created.isoformat(),
            "answered": datetime.now(UTC).isoformat(),
            "picture": question.picture,
            "words": question.request.words,
            **answer,
        }
        try:
            line = json.dumps(record, allow_nan=False).encode()
        except ValueError as error:
            raise ServerFault(f"The answer holds numbers that are not finite ({error}).") from error
        _write_durably(self.answers / f"{question.id}.json", line + b"\n")
        self._remove(question.id)

    def _remove(self, id_: str) -> None:
        (self.folder / f"{id_}{_QUESTION}").unlink()
        _to_disk(self.folder)

    def _set_aside(self, damaged: Damaged) -> None:
        os.replace(self.folder / f"{damaged.id}{_QUESTION}", self.folder / f"{damaged.id}{_DAMAGED}")
        _to_disk(self.folder)

    def _tidy(self) -> None:
        """Finish what a killed process began: answered questions go, and so do files nobody finished."""
        answered = set(self.answered())
        for file in self._files(_QUESTION):
            if file.name.removesuffix(_QUESTION) in answered:
                self._remove(file.name.removesuffix(_QUESTION))
        for file in self.answers.glob(f".*{_UNFINISHED}"):  # written under the lock, which is ours
            file.unlink(missing_ok=True)
        for file in self.folder.glob(f".*{_UNFINISHED}"):  # one being written now is a moment old
            with suppress(FileNotFoundError):  # or finished meanwhile
                if time.time() - file.lstat().st_mtime > _STALE_S:
                    file.unlink()

    def _named(self, id_: str) -> list[Path]:
        places = (
            self.folder / f"{id_}{_QUESTION}",
            self.folder / f"{id_}{_DAMAGED}",
            self.answers / f"{id_}.json",
        )
        found = [place for place in places if os.sep not in id_ and os.path.lexists(place)]
        if not found:
            raise BadQuery(f"outbox {self.folder}: nothing has the id `{id_}`; `outbox list` shows them.")
        return found

    def _files(self, ending: str) -> list[Path]:
        names = sorted(name for name in os.listdir(self.folder) if name.endswith(ending) and not name.startswith("."))
        return [self.folder / name for name in names]

    @contextmanager
    def _locked(self) -> Generator[None]:
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = lock.read(20).strip() or "unknown"
                raise BadQuery(
                    f"outbox {self.folder}: another process sends or drops right now (pid {holder}). "
                    "Wait until it has finished."
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


# --- files


def _read(path: Path) -> Question | Damaged | None:
    """What the file holds; None if it went away meanwhile: another process has sent it."""
    id_ = path.name.removesuffix(_QUESTION)
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return Damaged(id=id_, reason="not a regular file")
        if status.st_size > MAX_QUESTION_BYTES:
            return Damaged(id=id_, reason=f"{status.st_size:,} bytes, more than any question has")
        line, _, rest = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:  # another user's, or a bad block: no reason to hold up the others
        return Damaged(id=id_, reason=f"cannot be read ({error.strerror})")
    if rest.strip() != _digest(line):
        return Damaged(id=id_, reason="its bytes are not those that were written")
    try:
        return _question(id_, json.loads(line))
    except (ValueError, TypeError, KeyError, DecodeError) as error:
        return Damaged(id=id_, reason=f"not a question of this version ({error})")


def _question(id_: str, raw: Any) -> Question:
    if not isinstance(raw, dict):
        raise ValueError("no JSON object")
    record = cast("dict[str, Any]", raw)
    if record.get("format") != _FORMAT or record.keys() != _KEYS or record["id"] != id_:
        raise ValueError(f"expected format {_FORMAT} with {', '.join(sorted(_KEYS))} and its own id")
    request = pb.SearchRequest.FromString(base64.b64decode(record["request"], validate=True))
    created = datetime.fromisoformat(record["created"])
    picture = record["picture"]
    if created.tzinfo is None or not (picture is None or isinstance(picture, str)):
        raise ValueError("no time zone, or the picture is not a name")
    return Question(id=id_, created=created, picture=picture, request=request)


def _digest(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode()


def _make_private(folder: Path) -> None:
    """A folder of its owner's alone. One that is there and empty becomes so; one in use must be so already."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise BadQuery(f"outbox {folder}: is not a folder.") from None
    else:
        _to_disk(folder.parent)
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        if any(folder.iterdir()):
            raise BadQuery(
                f"outbox {folder}: others on this machine may look into it, and tokens tell what a picture shows. "
                f"Close it with `chmod 700 {folder}`, or name a new folder."
            )
        folder.chmod(0o700)


def _write_durably(path: Path, data: bytes) -> None:
    """The file at `path` with these bytes, on the disk when this returns; whenever killed, whole or not there."""
    unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _to_disk(path.parent)


def _to_disk(folder: Path) -> None:
    """A folder's names to the disk: a rename alone may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
