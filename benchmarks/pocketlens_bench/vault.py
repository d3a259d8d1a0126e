"""Gallery vectors of picture files, kept on disk by content: a picture is put through the image tower once.

Owns the folder of one gallery space: `vectors.f32` with a row of all named vectors for each picture, and `keys.bin`
with the row's key, the hash of the file's bytes and of the part that counts. Rows are appended, vectors first, so that
after a kill the shorter of the two files says how far it came. Called by runs.py."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pocketlens_cloud.gallery.directory import Lock
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.pictures import MAX_PIXELS, PictureSpec, fit, open_picture

from pocketlens_bench.lab import BATCH, Lab, Vectors
from pocketlens_bench.protocols.task import Where
from pocketlens_bench.world import OnProgress

KEY_BYTES = 32

Key = bytes


class Vault:
    """Context manager: the open folder of one gallery space; one process at a time. Raises GalleryError if another
    has it."""

    def __init__(self, folder: Path, targets: Sequence[str], dim: int) -> None:
        self._folder, self._targets, self._dim = folder, list(targets), dim
        self._row_bytes = 4 * dim * len(self._targets)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock.take(self._folder)
        self._keys = (self._folder / "keys.bin").open("ab+")
        self._vectors = (self._folder / "vectors.f32").open("ab+")
        rows = min(self._keys.tell() // KEY_BYTES, self._vectors.tell() // self._row_bytes)
        self._keys.truncate(rows * KEY_BYTES)
        self._vectors.truncate(rows * self._row_bytes)
        self._keys.seek(0)
        every = self._keys.read()
        self._row = {every[at * KEY_BYTES : (at + 1) * KEY_BYTES]: at for at in range(rows)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._keys.close()
        self._vectors.close()
        self._lock.release()

    def __contains__(self, key: Key) -> bool:
        return key in self._row

    def add(self, keys: Sequence[Key], vectors: Mapping[str, Vectors]) -> None:
        """Keep a batch: on the disk when this returns. vectors: each (keys, dim) by name."""
        rows = np.concatenate([vectors[name] for name in self._targets], axis=1, dtype=np.float32)
        for file, content in ((self._vectors, rows.tobytes()), (self._keys, b"".join(keys))):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        start = len(self._row)
        self._row.update((key, start + at) for at, key in enumerate(keys))

    def vectors(self, keys: Sequence[Key], name: str) -> Vectors:
        """(keys, dim) float32 of the named vector, read from the disk."""
        width = self._dim * len(self._targets)
        mapped = np.memmap(self._folder / "vectors.f32", np.float32, "r", shape=(len(self._row), width))
        start = self._targets.index(name) * self._dim
        return np.array(mapped[[self._row[key] for key in keys], start : start + self._dim])


@dataclass(frozen=True)
class Seen:
    """A look at one picture: its key, its pixels if the vault lacks it, or why it is no picture."""

    key: Key
    pixels: NDArray[np.uint8] | None
    trouble: str = ""


def stored(
    lab: Lab, vault: Vault, pictures: Mapping[str, Where], on_progress: OnProgress
) -> tuple[dict[str, Key], dict[str, str]]:
    """Bring all pictures into the vault. Gives each id's key, and for what cannot be read the reason."""
    spec = lab.composer.manifest.picture
    keys: dict[str, Key] = {}
    troubles: dict[str, str] = {}
    with ThreadPoolExecutor(lab.threads, "decode") as pool:
        for done, names in _batches(list(pictures)):
            seen = list(pool.map(lambda name: look(pictures[name], spec, vault), names))
            fresh = {one.key: one.pixels for one in seen if one.pixels is not None}
            if fresh:
                vault.add(list(fresh), lab.tower.vectors(np.stack(list(fresh.values()))))
            for name, one in zip(names, seen, strict=True):
                if one.trouble:
                    troubles[name] = one.trouble
                else:
                    keys[name] = one.key
            on_progress("gallery vectors", done, len(pictures))
    return keys, troubles


def _batches(names: list[str]) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, len(names), BATCH):
        some = names[start : start + BATCH]
        yield start + len(some), some


def look(where: Where, spec: PictureSpec, vault: Vault) -> Seen:
    """Read and hash one picture; decode it if the vault does not know it."""
    try:
        content = where.file.read_bytes()
    except OSError as error:
        return Seen(b"", None, f"cannot be read: {error.strerror}")
    part = "" if where.box is None else repr(tuple(map(float, where.box)))
    key = hashlib.sha256(content + part.encode()).digest()
    if key in vault:
        return Seen(key, None)
    try:
        return Seen(key, fit(opened(content, where, spec.side), spec))
    except BadPicture as error:
        return Seen(key, None, str(error))


def opened(content: bytes, where: Where, side: int) -> Image.Image:
    """The picture, or the part of it that counts: cut out, what lies outside black, padded black to a square (as
    GeneCIS does). Raises BadPicture."""
    if where.box is None:
        return open_picture(content, name=where.file.name, near=side)
    left, top, right, bottom = (round(edge) for edge in where.box)
    if (right - left) * (bottom - top) > MAX_PIXELS:
        raise BadPicture(f"{where.file.name}: the part {left}, {top}, {right}, {bottom} is larger than any picture")
    part = open_picture(content, name=where.file.name).crop((left, top, right, bottom))
    square = Image.new("RGB", (max(part.size), max(part.size)))
    square.paste(part, ((square.width - part.width) // 2, (square.height - part.height) // 2))
    return square
