"""Pictures that look nearly the same: found by the gallery's own search, reported, never removed.

Every picture's vector is searched for; what lies at or above a cosine is a pair. Pictures of equal bytes are one
picture already (run.py)."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from pocketlens_wire.errors import GalleryError

from pocketlens_cloud.gallery.filters import Filter, HasId
from pocketlens_cloud.gallery.interface import Gallery, Scored, Search
from pocketlens_cloud.indexing.names import FILE_KEY

NEIGHBOURS: Final = 20  # of one picture that are looked at; a picture with more has them reported by the others
AT_ONCE: Final = 64
VECTOR: Final = "original"  # the image tower's own, which every gallery has


@dataclass(frozen=True)
class Pair:
    """Two pictures, ids and files, and the cosine of their vectors; the smaller id first."""

    cosine: float
    ids: tuple[str, str]
    files: tuple[str, str]


def near_duplicates(gallery: Gallery, least: float) -> list[Pair]:
    """All pairs of cosine `least` or more among the nearest of each picture, nearest pairs first.

    Searched as questions are: in a large gallery by walking its index, which may miss a pair."""
    name = VECTOR if VECTOR in gallery.vectors else gallery.vectors[0]
    ids, found = iter([point for point, _ in gallery.payloads()]), {}
    while some := list(islice(ids, AT_ONCE)):
        for one, hits in _neighbours(gallery, some, name, least):
            for hit in hits:
                if hit.id != one.id:
                    first, second = sorted((one, hit), key=lambda picture: picture.id)
                    files = (str(first.payload.get(FILE_KEY, "")), str(second.payload.get(FILE_KEY, "")))
                    found[first.id, second.id] = Pair(hit.score, (first.id, second.id), files)
    return sorted(found.values(), key=lambda pair: (-pair.cosine, pair.ids))


def _neighbours(gallery: Gallery, ids: Sequence[str], name: str, least: float) -> Iterator[tuple[Scored, list[Scored]]]:
    """Each of the pictures `ids` with those at least so near to it."""
    told = [FILE_KEY] if FILE_KEY in gallery.payload_keys else []
    anything = np.zeros(gallery.dim, np.float32)
    anything[0] = 1
    these = Filter(all_of=(HasId(tuple(ids)),))
    ones = gallery.search(
        Search(vector=anything, name=name, top=len(ids), where=these, payload=told, with_vectors=True, exact=True)
    )
    asked = [
        Search(vector=one.vector, name=name, top=NEIGHBOURS + 1, least_score=least, payload=told)
        for one in ones
        if one.vector is not None
    ]
    yield from zip(ones, gallery.search_many(asked), strict=True)


def write_report(path: Path, pairs: Sequence[Pair], *, least: float, size: int) -> None:
    """As CSV if the file is so called, else as JSON. Raises GalleryError."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".csv":
                lines = csv.writer(file)
                lines.writerow(["cosine", "file", "other_file", "id", "other_id"])
                lines.writerows([f"{pair.cosine:.6f}", *pair.files, *pair.ids] for pair in pairs)
            else:
                found = [{"cosine": round(pair.cosine, 6), "files": pair.files, "ids": pair.ids} for pair in pairs]
                json.dump({"least": least, "pictures": size, "pairs": found}, file, ensure_ascii=False, indent=1)
    except OSError as error:
        raise GalleryError(f"cannot write {path}: {error.strerror}") from error
