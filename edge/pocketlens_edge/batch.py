"""Every picture below a folder: encoded, asked about, one line each.

Owns which files are taken, in what order, and what one picture's failure means to the others. The lines are
journal.py's; encoder, question and outbox are handed in. Called by the command line."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pocketlens_wire.errors import BadPicture, PocketlensError
from pocketlens_wire.pictures import ENDINGS

from pocketlens_edge.encoder import Encoded, Encoder
from pocketlens_edge.journal import Journal, Line, Stamp
from pocketlens_edge.patience import Pause

IN_FLIGHT = 4  # questions on their way at once: the network's wait is not the encoder's

# What the line of a file says; raises PocketlensError. It waits with the Pause, which ends when the batch does.
Answering = Callable[[str, Encoded, Pause], Line]


@dataclass(kw_only=True)
class Folder:
    """What lies below a folder. pictures: relative names in order; failed: (name, why) of what cannot be looked at."""

    pictures: dict[str, Stamp] = field(default_factory=dict[str, Stamp])
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@dataclass(kw_only=True)
class Summary:
    """What a batch did with how many pictures. there: had their line already; failed: (name, why)."""

    pictures: int
    there: int
    answered: int = 0
    kept: int = 0
    encoded: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def look_through(folder: Path) -> Folder:
    """The picture files below `folder`, by their endings, sorted by name. Links to files count, linked folders are
    not entered, so there are no loops. Raises BadPicture if it is no folder, or one without pictures."""
    if not folder.is_dir():
        raise BadPicture(f"{folder}: is not a folder; name the one that holds the pictures.")
    found = Folder()

    def failed(error: OSError) -> None:
        name = os.path.relpath(os.fsdecode(error.filename), folder)
        found.failed.append((name, f"cannot be looked into ({error.strerror})"))

    names = [
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, files in os.walk(folder, onerror=failed)
        for name in files
        if Path(name).suffix.lower() in ENDINGS
    ]
    for name in sorted(names, key=os.fsencode):
        try:
            status = (folder / name).stat()
        except OSError as error:
            found.failed.append((name, f"cannot be read ({error.strerror})"))
        else:
            found.pictures[name] = (status.st_size, status.st_mtime_ns // 1_000_000)
    if not (found.pictures or found.failed):
        raise BadPicture(f"{folder}: holds no pictures (files ending in {', '.join(sorted(ENDINGS))}).")
    return found


def run(
    folder: Path,
    found: Folder,
    journal: Journal,
    encoder: Encoder,
    *,
    answering: Answering | None,
    keep_tokens: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Summary:
    """Give every picture of `found` without a line its line.

    answering: None encodes only. keep_tokens: folder for NAME.npz of each picture. on_progress: told how many of
    the pictures have their line.
    A picture that cannot be used gets a line with its error. Whatever else goes wrong would go wrong for all, so
    it stops the batch: the PocketlensError says how far it came, and the next run goes on there."""
    todo = [file for file in found.pictures if file not in journal.done]
    summary = Summary(pictures=len(found.pictures) + len(found.failed), there=len(found.pictures) - len(todo))
    for file, why in found.failed:
        summary.failed.append((file, why))
        journal.write(file, {"error": {"kind": "BadPicture", "message": why}})
    done = summary.there
    try:
        with closing(_in_order(todo, lambda file: _encode(folder, file, encoder, keep_tokens), answering)) as lines:
            for file, line in lines:
                journal.write(file, line)
                done += 1
                _count(summary, file, line)
                if on_progress:
                    on_progress(done)
    except PocketlensError as error:
        raise type(error)(
            f"{error} Stopped: {done} of {len(found.pictures)} pictures are in {journal.path}; "
            "the same command goes on from there."
        ) from error
    return summary


def _in_order(
    files: Sequence[str], encode: Callable[[str], tuple[Encoded | None, Line]], answering: Answering | None
) -> Generator[tuple[str, Line]]:
    """(file, line) in the order of `files`, while up to IN_FLIGHT questions are on their way."""
    ended = threading.Event()
    with ThreadPoolExecutor(IN_FLIGHT, "ask") as pool:
        on_their_way: deque[tuple[str, Line, Future[Line] | None]] = deque()
        try:
            for file in files:
                encoded, line = encode(file)
                asked = pool.submit(answering, file, encoded, partial(_pause, ended)) if answering and encoded else None
                on_their_way.append((file, line, asked))
                if len(on_their_way) == IN_FLIGHT:
                    yield _landed(*on_their_way.popleft())
            while on_their_way:
                yield _landed(*on_their_way.popleft())
        finally:
            ended.set()  # or the pool would wait for the patient


def _pause(ended: threading.Event, seconds: float) -> None:
    """Wait. Raises CancelledError once the batch has ended: nobody wants that answer any more."""
    if ended.wait(seconds):
        raise CancelledError


def _landed(file: str, line: Line, asked: Future[Line] | None) -> tuple[str, Line]:
    return file, {**line, **asked.result()} if asked else line


def _encode(folder: Path, file: str, encoder: Encoder, keep_tokens: Path | None) -> tuple[Encoded | None, Line]:
    """What was encoded and the beginning of the line; when the picture cannot be used, None and the whole line."""
    try:
        encoded = encoder.encode_timed(folder / file, name=file)
        line: Line = {"times_ms": {"device": encoded.times_ms}}
        if keep_tokens:
            line["tokens"] = _save(encoder, encoded, keep_tokens, file)
    except BadPicture as error:
        return None, {"error": {"kind": "BadPicture", "message": str(error)}}
    return encoded, line


def _save(encoder: Encoder, encoded: Encoded, folder: Path, file: str) -> str:
    path = folder / f"{file}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        encoder.save(encoded.tokens, path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise BadPicture(f"{file}: with .npz its name is too long for {folder}.") from error
        raise
    return os.fsencode(f"{file}.npz").decode("utf-8", "replace")


def _count(summary: Summary, file: str, line: Line) -> None:
    if "error" in line:
        summary.failed.append((file, line["error"]["message"]))
    elif "kept" in line:
        summary.kept += 1
    elif "hits" in line:
        summary.answered += 1
    else:
        summary.encoded += 1
