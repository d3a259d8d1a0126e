"""Versions of a gallery on a Qdrant server: collections NAME.v0001, NAME.v0002 ... and alias NAME on the live one.

Owns those names and what is remembered of a version; every call to the server is remote.py's or qdrant.py's."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, final

from pocketlens_wire.errors import GalleryError, SpaceMismatch

from pocketlens_cloud.gallery import remote
from pocketlens_cloud.gallery.directory import Description
from pocketlens_cloud.gallery.qdrant import Server
from pocketlens_cloud.gallery.qdrant_terms import LAYOUT, CollectionSettings
from pocketlens_cloud.gallery.remote import RemoteGallery
from pocketlens_cloud.gallery.versions import NAME, Record, Saved

RECORD: Final = "pocketlens-version"  # key of a collection's metadata, beside remote.DESCRIPTION


@final
class CollectionVersions:
    """The versions behind one alias. Builders and servers may use it side by side."""

    def __init__(self, server: Server, alias: str, layout: CollectionSettings = LAYOUT) -> None:
        """`layout`: of versions that are made. Raises GalleryError for a name that cannot be an alias."""
        if not alias or not all(char.isalnum() or char in "_-" for char in alias):
            raise GalleryError(f"`{alias}` cannot name a gallery on a server: use letters, digits, `_` and `-`")
        self._server, self._alias, self._layout = server, alias, layout

    @property
    def title(self) -> str:
        return f"{self._server.address.url}, {self._alias}"

    def names(self) -> list[str]:
        head = f"{self._alias}."
        found = [name.removeprefix(head) for name in self._server.collections() if name.startswith(head)]
        return sorted((name for name in found if NAME.fullmatch(name)), key=lambda name: int(name[1:]))

    def live(self) -> str:
        target = self._server.target(self._alias)
        if not target:
            return ""
        name = target.removeprefix(f"{self._alias}.")
        if not NAME.fullmatch(name):
            raise GalleryError(f"{self.title}: the alias points to {target}, which is no version of it")
        return name

    def point_to(self, name: str) -> None:
        self._server.point(self._alias, self._collection(name))

    def describe(self, name: str) -> Description:
        return remote.describe(self._server, self._collection(name))

    def record(self, name: str) -> Record | None:
        text = self._server.metadata(self._collection(name), RECORD)
        try:
            return None if text is None else Record(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise GalleryError(f"{self.title}: what is remembered of {name} is damaged: build a new version") from error

    def note(self, name: str, record: Record) -> None:
        self._server.set_metadata(self._collection(name), RECORD, json.dumps(asdict(record)))

    def create(self, name: str, *, dim: int, vectors: Sequence[str], gallery_space: str) -> RemoteGallery:
        return RemoteGallery.create(
            self._server,
            self._collection(name),
            dim=dim,
            vectors=vectors,
            gallery_space=gallery_space,
            layout=self._layout,
        )

    def open(self, name: str) -> RemoteGallery:
        return RemoteGallery.open(self._server, self._collection(name))

    def remove(self, name: str) -> None:
        self._server.drop(self._collection(name))
        self.journal(name).unlink(missing_ok=True)

    def journal(self, name: str) -> Path:
        """On this machine, where the pictures are; losing it costs reading them again, nothing else."""
        which = hashlib.sha256(f"{self._server.address.url} {self._collection(name)}".encode()).hexdigest()[:16]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketlens" / "journals"
        return home / f"{self._collection(name)}-{which}.jsonl"

    def save(self, name: str, to: Path | None) -> Saved:
        """On the server, in its own folder of snapshots. Raises GalleryError where one would not be whole."""
        if to is not None:
            raise GalleryError("a server keeps its snapshots itself: leave --to out, and copy the file it names")
        collection = self._collection(name)
        if (nodes := self._server.nodes(collection)) > 1:
            raise GalleryError(
                f"{self.title}: {name} lies on {nodes} nodes, and a snapshot holds one node's part only: "
                "make one on each node by Qdrant's own means, or build a version with one shard"
            )
        record = self.record(name)
        if record is None or not self.describe(name).settled:
            raise GalleryError(f"{self.title}: the building of {name} did not reach its end: run `build` again")
        place, size, sha256 = self._server.snapshot(collection)
        return Saved(version=name, place=place, size=size, sha256=sha256)

    def load(self, name: str, source: str, gallery_space: str) -> None:
        """`source`: file:///qdrant/snapshots/..., a path of the server's own, or a URL that it can read."""
        collection = self._collection(name)
        self._server.recover(collection, source)
        try:
            found = self.describe(name).gallery_space
            if found != gallery_space:
                raise SpaceMismatch(
                    f"{source} lies in gallery space `{found}`; the bundle speaks `{gallery_space}`. "
                    "Name the bundle it was indexed with"
                )
        except (GalleryError, SpaceMismatch):
            self._server.drop(collection)
            raise

    def _collection(self, name: str) -> str:
        return f"{self._alias}.{name}"
