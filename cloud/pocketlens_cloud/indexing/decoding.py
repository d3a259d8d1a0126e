"""From a picture's bytes to the square the image tower sees, in this process or in others.

Owns the decoding processes: started when first needed, one picture at a time each, and gone with the process that
started them, however it ends, since each reads from a pipe that ends with it. They are plain children rather than
multiprocessing's: those run the caller's main module again and outlive a killed parent. What the children do is
decoding_worker.py's, what pixels a picture is pocketlens_wire.pictures'."""

import json
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Final, Protocol, final

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadPicture, ServerFault
from pocketlens_wire.pictures import PictureSpec, fit, open_picture

READY, PIXELS, TROUBLE = b"R", b"P", b"T"  # what a child says, one byte before the rest
HEAD: Final = struct.Struct("<II")  # of a question: bytes of the name, bytes of the picture
LENGTH: Final = struct.Struct("<I")  # of an answer that is text
_CHILD: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pocketlens_cloud.indexing.decoding_worker import main; main(json.loads(sys.argv[2]))"
)


class Decoder(Protocol):
    """Turns files into squares; may be called from several threads."""

    def decode(self, data: bytes, name: str) -> NDArray[np.uint8]:
        """(side, side, 3) RGB. Raises BadPicture, DecoderDied."""
        ...

    def close(self) -> None: ...


class DecoderDied(Exception):
    """The process that decoded a picture is gone: the picture may have killed it, or the system ran out of memory."""


@final
class InThreads:
    """Decodes in the thread that asks."""

    def __init__(self, spec: PictureSpec) -> None:
        self._spec = spec

    def decode(self, data: bytes, name: str) -> NDArray[np.uint8]:
        return fit(open_picture(data, name=name, near=self._spec.side), self._spec)

    def close(self) -> None:
        pass


@final
class InProcesses:
    """Decodes in processes of its own, as many as threads ask at once.

    A picture that brings its process down costs that process and, tried once more, its own place in the gallery."""

    def __init__(self, spec: PictureSpec) -> None:
        self._spec = spec
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        self._children: list[_Child] = []
        self._guard = Lock()

    def decode(self, data: bytes, name: str) -> NDArray[np.uint8]:
        try:
            return self._once(data, name)
        except DecoderDied:
            return self._once(data, name)  # it may have been killed for another's memory

    def _once(self, data: bytes, name: str) -> NDArray[np.uint8]:
        try:
            child = self._idle.get_nowait()
        except Empty:
            child = self._start()
        pixels = child.decode(data, name)  # a child that died is not put back
        self._idle.put(child)
        if isinstance(pixels, str):
            raise BadPicture(pixels)
        return pixels

    def _start(self) -> "_Child":
        child = _Child(self._spec)
        with self._guard:
            self._children.append(child)
        return child

    def close(self) -> None:
        for child in self._children:
            child.end()


class _Child:
    """One decoding process, and the two pipes to it."""

    def __init__(self, spec: PictureSpec) -> None:
        self._shape = (spec.side, spec.side, 3)
        command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), json.dumps(asdict(spec))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        if self._from.read(1) != READY:
            self.end()
            raise ServerFault(
                "a decoding process could not be started (its own words stand above): try --decode threads"
            )

    def decode(self, data: bytes, name: str) -> NDArray[np.uint8] | str:
        """Pixels, or why there are none."""
        called = name.encode("utf-8", "replace")
        try:
            self._to.write(HEAD.pack(len(called), len(data)) + called)
            self._to.write(data)
            self._to.flush()
            if (kind := self._from.read(1)) == PIXELS:
                return np.frombuffer(self._all(int(np.prod(self._shape))), np.uint8).reshape(self._shape)
            if kind == TROUBLE:
                return self._all(*LENGTH.unpack(self._all(LENGTH.size))).decode()
        except OSError:
            pass
        self.end()
        raise DecoderDied(f"its decoder died (exit code {self._process.returncode})")

    def _all(self, size: int) -> bytes:
        data = self._from.read(size)
        if len(data) < size:
            raise OSError("the child is gone")
        return data

    def end(self) -> None:
        """Kill it, as there is nothing it could lose. Ending twice is no error."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):  # what was still to be written has no reader
                pipe.close()


def decoder(how: str, spec: PictureSpec) -> Decoder:
    """`how`: "threads" or "processes"."""
    return InProcesses(spec) if how == "processes" else InThreads(spec)
