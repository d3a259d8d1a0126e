"""Small pictures of what the gallery holds, for the page.

Owns the way from a picture's id to its file and to a JPEG: only pictures the gallery holds, only files inside the
folder that was named, only the bytes that were indexed. Knows no HTTP."""

import hashlib
import io
import re
from functools import lru_cache
from pathlib import Path
from typing import Final, final

from PIL import Image
from pocketlens_wire.errors import GalleryError
from pocketlens_wire.pictures import MAX_FILE_BYTES, open_picture

from pocketlens_cloud.gallery.interface import Gallery
from pocketlens_cloud.indexing.ingest import FILE_KEY

SIDE: Final = 320  # pixels of the longer side: two screen pixels for one at the size shown
QUALITY: Final = 85
KEPT: Final = 1024  # thumbnails in memory, about 10 KB each
_ID: Final = re.compile(r"[0-9a-f]{32}")


class NoPicture(Exception):
    """There is no such picture here to show; the message says why."""


@final
class Thumbnails:
    """Thumbnails of one gallery's pictures. Safe to call from several threads."""

    def __init__(self, gallery: Gallery, folder: Path) -> None:
        """`folder`: the one that was indexed. Raises GalleryError if it is none."""
        if not folder.is_dir():
            raise GalleryError(f"{folder} is not a folder: name the one that was indexed with --pictures")
        self._gallery, self._home = gallery, folder.resolve()
        self._made = lru_cache(KEPT)(self._make)

    def of(self, picture_id: str) -> bytes:
        """A JPEG of at most SIDE pixels. `picture_id`: 32 hex digits.

        Raises NoPicture for an id the gallery does not hold or whose file is not, or no longer, the one that was
        indexed; BadPicture for a file that cannot be decoded."""
        if not _ID.fullmatch(picture_id):
            raise NoPicture("a picture is named by the 32 hex digits of its id")
        payload = self._gallery.payload(picture_id)  # each time: a picture that was removed must not be shown
        if payload is None:
            raise NoPicture(f"the gallery holds no picture {picture_id}")
        return self._made(picture_id, str(payload.get(FILE_KEY, "")))

    def _make(self, picture_id: str, name: str) -> bytes:
        data = self._read(name)
        if hashlib.sha256(data).hexdigest()[:32] != picture_id:
            raise NoPicture(f"the file of picture {picture_id} has changed since it was indexed: index again")
        return _small(open_picture(data, name=picture_id, near=SIDE))

    def _read(self, name: str) -> bytes:
        """The bytes of a file inside the folder; a name or a link that leads out of it is no file of ours."""
        try:
            path = (self._home / name).resolve()
            if path.is_relative_to(self._home) and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                return path.read_bytes()
        except (OSError, ValueError, RuntimeError):  # unreadable; a NUL in the name; links in a circle
            pass
        raise NoPicture("the file of this picture is not in the folder given with --pictures")


def _small(picture: Image.Image) -> bytes:
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
