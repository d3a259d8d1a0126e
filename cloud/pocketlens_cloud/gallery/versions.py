"""Versions of one gallery: build beside, verify, promote, roll back.

Owns the order of steps and every refusal, whichever engine keeps the versions: folder.py (directories of one machine)
or remote.py (collections of a Qdrant server behind an alias). What lies in a version is its gallery's business."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from pocketlens_wire.errors import GalleryError, SpaceMismatch

from pocketlens_cloud.gallery.directory import Description
from pocketlens_cloud.gallery.filters import Filter, HasId
from pocketlens_cloud.gallery.interface import Gallery, Scored, Search

NAME = re.compile(r"v\d{4,}")
BATCH = 256  # pictures whose vectors are looked at in one go
SAMPLED = 64  # pictures that must find themselves
UNIT = 1e-3  # how far a vector's length may be from 1: the engine normalises in float32
TIE = 1e-4  # cosines closer than this count as equal: two files can hold the same picture


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is remembered of a version beside its gallery.

    size, generation: as its building left them; verified: generation that passed `verify` ("" for none); before: the
    version that was live when this one was promoted ("" for none)."""

    size: int
    generation: str
    verified: str = ""
    before: str = ""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One line of `list`."""

    name: str
    live: bool
    description: Description
    record: Record | None  # None: its building has not come to its end


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A snapshot that was made. `place`: a file here, or a name on the server."""

    version: str
    place: str
    size: int  # bytes
    sha256: str


class Versions(Protocol):
    """Where the versions of one gallery lie. Nothing here is called on a query's path."""

    @property
    def title(self) -> str:
        """What messages call it."""
        ...

    def names(self) -> list[str]:
        """Versions there are, oldest first."""
        ...

    def live(self) -> str:
        """Name of the version that is served; "" if none was promoted yet."""
        ...

    def point_to(self, name: str) -> None:
        """Make `name` the live version, at once and for everyone."""
        ...

    def describe(self, name: str) -> Description:
        """A version's account of itself, without opening it."""
        ...

    def record(self, name: str) -> Record | None: ...

    def note(self, name: str, record: Record) -> None: ...

    def create(self, name: str, *, dim: int, vectors: Sequence[str], gallery_space: str) -> Gallery: ...

    def open(self, name: str) -> Gallery: ...

    def remove(self, name: str) -> None: ...

    def journal(self, name: str) -> Path:
        """File that remembers which bytes each indexed file held; made with its folder on first use."""
        ...

    def save(self, name: str, to: Path | None) -> Saved:
        """Snapshot a version into the file `to`, or to where the engine keeps snapshots."""
        ...

    def load(self, name: str, source: str, gallery_space: str) -> None:
        """Make version `name` of a snapshot; nothing is left of it if it lies in another gallery space."""
        ...


@dataclass(frozen=True)
class Finding:
    """One line of a verification."""

    what: str
    detail: str
    ok: bool = True


def to_build(versions: Versions) -> tuple[str, bool]:
    """(version to index into, whether a building that was cut short is continued)."""
    names = versions.names()
    if names and versions.record(names[-1]) is None and names[-1] != versions.live():
        return names[-1], True
    return following(names), False


def following(names: Sequence[str]) -> str:
    """The name after the last."""
    return f"v{max((int(name[1:]) for name in names), default=0) + 1:04d}"


def open_to_build(
    versions: Versions, name: str, *, dim: int, vectors: Sequence[str], gallery_space: str, resumed: bool
) -> Gallery:
    """The gallery to index into. Raises SpaceMismatch if a cut-short building was for another bundle."""
    if not resumed:
        return versions.create(name, dim=dim, vectors=vectors, gallery_space=gallery_space)
    gallery = versions.open(name)
    if gallery.gallery_space != gallery_space:
        gallery.close()
        raise SpaceMismatch(
            f"{versions.title}: {name}, whose building was cut short, lies in gallery space "
            f"`{gallery.gallery_space}`; the bundle makes `{gallery_space}`. Drop {name}, or go on with its own bundle"
        )
    return gallery


def listed(versions: Versions) -> list[Version]:
    live = versions.live()
    return [
        Version(name=name, live=name == live, description=versions.describe(name), record=versions.record(name))
        for name in versions.names()
    ]


def chosen(versions: Versions, name: str | None) -> str:
    """`name` if there is such a version, the newest for None. Raises GalleryError."""
    names = versions.names()
    if not names:
        raise GalleryError(f"{versions.title} has no versions: make one with `pocketlens-cloud gallery build`")
    if name is None:
        return names[-1]
    if name not in names:
        raise GalleryError(f"{versions.title} has no version {name}; it has {', '.join(names)}")
    return name


def live_or_raise(versions: Versions) -> str:
    if live := versions.live():
        return live
    raise GalleryError(
        f"{versions.title} has no live version: build one, verify it, then `pocketlens-cloud gallery promote`"
    )


def verify(versions: Versions, name: str, gallery_space: str) -> Iterator[Finding]:
    """Findings, each as soon as it is made; if all are good, it is noted that this generation was verified."""
    record = versions.record(name)
    good = True
    gallery = versions.open(name)
    try:
        for finding in _examined(gallery, record, gallery_space):
            good = good and finding.ok
            yield finding
        if good and record:
            versions.note(name, replace(record, verified=gallery.generation))
    finally:
        gallery.close()


def promote(versions: Versions, name: str, gallery_space: str, *, unverified: bool = False) -> str:
    """Make `name` the live version; the one that was live until now, "" for none.

    Raises SpaceMismatch for another gallery space; GalleryError for a version that is unfinished, empty or, but for
    `unverified`, was not verified as it is."""
    description, record, live = versions.describe(name), versions.record(name), versions.live()
    if description.gallery_space != gallery_space:
        raise SpaceMismatch(
            f"{versions.title}: {name} lies in gallery space `{description.gallery_space}`; the bundle speaks "
            f"`{gallery_space}`. Name the bundle it was built with, or build it again"
        )
    if record is None or not description.settled:
        raise GalleryError(f"{versions.title}: the building of {name} did not reach its end: run `build` again")
    if record.size == 0:
        raise GalleryError(f"{versions.title}: {name} holds no pictures")
    if record.verified != description.generation and not unverified:
        raise GalleryError(
            f"{versions.title}: {name} was not verified in its present generation {description.generation}: "
            f"run `pocketlens-cloud gallery verify` first, or say --unverified"
        )
    if name != live:
        versions.note(name, replace(record, before=live))
        versions.point_to(name)
    return live


def rollback(versions: Versions) -> tuple[str, str]:
    """Make live again what was live before; (version until now, version from now on). Raises GalleryError."""
    live = live_or_raise(versions)
    record = versions.record(live)
    before = record.before if record else ""
    if not before:
        raise GalleryError(f"{versions.title}: nothing was live before {live}: promote another version by its name")
    if before not in versions.names():
        raise GalleryError(f"{versions.title}: {before}, live before {live}, was dropped: promote another version")
    versions.point_to(before)
    return live, before


def drop(versions: Versions, name: str) -> None:
    """Remove a version for good. Raises GalleryError for the live one."""
    if name == versions.live():
        raise GalleryError(
            f"{versions.title}: {name} is live, so it is not dropped: promote another or roll back first"
        )
    versions.remove(name)


def restore(versions: Versions, source: str, gallery_space: str) -> str:
    """The next version, made of a snapshot; it is verified and promoted like a built one."""
    name = following(versions.names())
    versions.load(name, source, gallery_space)
    if record := versions.record(name):  # neither a verification nor a history came along
        versions.note(name, replace(record, verified="", before=""))
    return name


def _examined(gallery: Gallery, record: Record | None, gallery_space: str) -> Iterator[Finding]:
    yield _built(gallery, record)
    same = gallery.gallery_space == gallery_space
    yield Finding("gallery space", f"gallery {gallery.gallery_space}, bundle {gallery_space}", same)
    missing = sorted(set(gallery.payload_keys) - set(gallery.indexed_keys))
    said = f"missing: {', '.join(missing)}" if missing else f"{len(gallery.payload_keys)} keys"
    yield Finding("payload indexes", said, not missing)
    ids = [point for point, _ in gallery.payloads()]
    yield Finding("pictures", f"{len(ids)} listed, {gallery.size} counted", len(ids) == gallery.size > 0)
    for name in gallery.vectors:
        yield _vectors(gallery, name, ids)
        yield _found(gallery, name, ids)


def _built(gallery: Gallery, record: Record | None) -> Finding:
    if record is None or not gallery.settled:
        return Finding("building", "did not reach its end: run `build` again", ok=False)
    same = (gallery.size, gallery.generation) == (record.size, record.generation)
    now = f"{gallery.size} pictures in generation {gallery.generation}"
    return Finding("building", f"{now}; built: {record.size} in {record.generation}", same)


def _vectors(gallery: Gallery, name: str, ids: Sequence[str]) -> Finding:
    """Every vector is there, finite and of length 1."""
    broken = []
    for batch in (ids[at : at + BATCH] for at in range(0, len(ids), BATCH)):
        rows = {hit.id: hit.vector for hit in _stored(gallery, name, batch)}
        for point in batch:
            row = rows.get(point)
            if row is None or not np.isfinite(row).all() or abs(float(np.linalg.norm(row)) - 1) > UNIT:
                broken.append(point)
    said = f"{len(broken)} are missing, not finite or not of length 1, first {broken[0]}" if broken else "all sound"
    return Finding(f"vectors `{name}`", f"{len(ids)}: {said}", not broken)


def _stored(gallery: Gallery, name: str, ids: Sequence[str]) -> list[Scored]:
    anywhere = np.zeros(gallery.dim, np.float32)
    anywhere[0] = 1
    where = Filter(all_of=(HasId(tuple(ids)),))
    return gallery.search(
        Search(vector=anywhere, name=name, top=len(ids), where=where, payload=(), with_vectors=True, exact=True)
    )


def _found(gallery: Gallery, name: str, ids: Sequence[str]) -> Finding:
    """Stored pictures, evenly spread, find themselves first, walking the index as questions do."""
    spread = np.linspace(0, len(ids) - 1, min(SAMPLED, len(ids)), dtype=int)
    sample = [ids[int(i)] for i in np.unique(spread)]
    rows = {hit.id: hit.vector for hit in _stored(gallery, name, sample)} if sample else {}
    lost = []
    for point in sample:
        row = rows.get(point)
        if row is None:
            lost.append(point)
            continue
        hits = gallery.search(Search(vector=row, name=name, top=5, payload=()))
        tied = [hit.id for hit in hits if hit.score >= 1 - TIE]
        if not tied or (point not in tied and len(tied) < len(hits)):
            lost.append(point)
    said = f"{len(lost)} do not find themselves, first {lost[0]}" if lost else "each finds itself first"
    return Finding(f"search `{name}`", f"{len(sample)} sampled: {said}", not lost and bool(sample))
