"""A gallery kept by a Qdrant server or cluster: one collection, searched and written over gRPC.

Owns what a collection of ours is and does. The connection and its errors are qdrant.py's, Qdrant's terms
qdrant_terms.py's. Knows no versions: which collection is live is collections.py's."""

import json
import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, final
from uuid import UUID

import numpy as np
from pocketlens_wire.errors import GalleryError, Unavailable

from pocketlens_cloud.gallery.checks import check_filter, check_search, check_vectors
from pocketlens_cloud.gallery.directory import FORMAT, Description, format_of
from pocketlens_cloud.gallery.filters import Filter
from pocketlens_cloud.gallery.interface import Point, Scored, Search
from pocketlens_cloud.gallery.payload import Kind, Payload, Value, given_back, learn, stored
from pocketlens_cloud.gallery.qdrant import Server
from pocketlens_cloud.gallery.qdrant_terms import (
    BATCH,
    LAYOUT,
    WORDED,
    WORDS,
    CollectionSettings,
    fields_of,
    filter_of,
    indexes_of,
    layout_of,
    uuid_of,
    worded,
)
from pocketlens_cloud.gallery.ranks import Ranked, answers

if TYPE_CHECKING:
    from pocketlens_cloud.gallery.qdrant import models

log = logging.getLogger(__name__)

DESCRIPTION: Final = "pocketlens"  # key of a collection's metadata; its value is JSON text, so merging cannot mix two
SCROLL: Final = 500  # points read in one call
SETTLE_POLL_S: Final = 0.5
SETTLE_S: Final = 6 * 3600.0  # for a server to build its search index
COARSE_OVERSAMPLING: Final = 4.0  # one bit a number ranks so coarsely that more must be rescored


@final
class RemoteGallery:
    """An open collection. Searches may come from several threads and processes, writes from one.

    What an embedded gallery keeps in gallery.json lies in the collection's own metadata: it goes where the collection
    goes (to every node, into snapshots) and away with it. No lock is held: a second writer is found out, not kept out.
    """

    def __init__(
        self, server: Server, collection: str, description: Description, *, coarse: bool = False, owned: bool = False
    ) -> None:
        """Use `create` or `open`. `coarse`: one bit a number is walked; `owned`: the connection is closed with it."""
        self._server, self._collection, self._owned = server, collection, owned
        self._description = description
        self._least_oversampling = COARSE_OVERSAMPLING if coarse else 1.0
        self._writing = False

    @classmethod
    def create(
        cls,
        server: Server,
        collection: str,
        *,
        dim: int,
        vectors: Sequence[str],
        gallery_space: str,
        layout: CollectionSettings = LAYOUT,
    ) -> "RemoteGallery":
        """Make an empty collection. Raises GalleryError if there is one, or the server is too old for this."""
        if collection in server.collections():
            raise GalleryError(f"Qdrant at {server.address.url} already holds collection {collection}: open or drop it")
        description = Description(
            gallery_space=gallery_space,
            dim=dim,
            vectors=list(vectors),
            payload={},
            generation=f"{secrets.token_hex(4)}-0",
            settled=True,
        )
        with server.asking(f"collection {collection} cannot be made"):
            server.writing.create_collection(
                collection,
                metadata={DESCRIPTION: json.dumps(asdict(description))},
                **layout_of(server.models, dim, vectors, layout),
            )
        if server.metadata(collection, DESCRIPTION) is None:
            server.drop(collection)
            raise GalleryError(
                f"Qdrant at {server.address.url} is version {server.version()}, which keeps no metadata with a "
                "collection: Pocketlens needs 1.16 or newer"
            )
        return cls(server, collection, description, coarse=layout.quantisation == "binary")

    @classmethod
    def open(cls, server: Server, name: str, *, owned: bool = False) -> "RemoteGallery":
        """Open a collection, or the one an alias points to now. Raises GalleryError, Unavailable."""
        collection = server.target(name) or name
        info = server.info(collection)
        coarse = isinstance(info.config.quantization_config, server.models.BinaryQuantization)
        return cls(server, collection, _description(server, collection, info), coarse=coarse, owned=owned)

    @property
    def title(self) -> str:
        return f"{self._server.address.url}, collection {self._collection}"

    @property
    def in_process(self) -> bool:
        return False

    @property
    def gallery_space(self) -> str:
        return self._description.gallery_space

    @property
    def dim(self) -> int:
        return self._description.dim

    @property
    def vectors(self) -> list[str]:
        return self._description.vectors

    @property
    def generation(self) -> str:
        return self._description.generation

    @property
    def settled(self) -> bool:
        return self._description.settled

    @property
    def payload_kinds(self) -> dict[str, Kind]:
        return dict(self._description.payload)

    @property
    def payload_keys(self) -> list[str]:
        return sorted(self._description.payload)

    @property
    def indexed_keys(self) -> list[str]:
        there = set(self._server.info(self._collection).payload_schema)
        kinds = self._description.payload
        return [key for key in self.payload_keys if there.issuperset(fields_of(key, kinds[key]))]

    @property
    def size(self) -> int:
        with self._asking("cannot be counted"):
            return self._server.reading.count(self._collection, exact=True).count

    def check_filter(self, where: Filter) -> None:
        check_filter(where, self._description.payload)

    def search(self, asked: Search) -> list[Scored]:
        """Best first; equal scores in the order of ids. What is promised across pages: ranks.answers."""
        return self.search_many([asked])[0]

    def search_many(self, asked: Sequence[Search]) -> list[list[Scored]]:
        for search in asked:
            check_search(search, self._description.payload, self.vectors)
        found = answers(asked, self._ranked)
        return [self._scored(search, hits) for search, hits in zip(asked, found, strict=True)]

    def payloads(self) -> Iterator[tuple[str, dict[str, Value]]]:
        offset = None
        while True:
            with self._asking("cannot be read"):
                records, offset = self._server.reading.scroll(
                    self._collection,
                    limit=SCROLL,
                    offset=offset,
                    with_payload=self.payload_keys or False,
                    consistency=self._consistency,
                    timeout=self._server.address.timeout_s,
                )
            for record in records:
                yield UUID(str(record.id)).hex, self._out(record.payload)
            if offset is None:
                return

    def payload(self, point_id: str) -> dict[str, Value] | None:
        found = self._retrieved([point_id], payload=self.payload_keys, vector=False)
        return self._out(found[0].payload) if found else None

    def ping(self) -> None:
        """One point's id, of any."""
        with self._asking("cannot be searched"):
            self._server.reading.scroll(
                self._collection, limit=1, with_payload=False, timeout=self._server.address.timeout_s
            )

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert points, or replace those with the same id; returns when so many copies have them as are asked for."""
        for point in points:
            check_vectors(point, self.vectors, self.dim)
        self._begin(self._learned(point.payload for point in points))
        models = self._server.models
        stored = [
            models.PointStruct(
                id=uuid_of(point.id),
                vector={name: point.vectors[name].tolist() for name in self.vectors},
                payload=self._in(point.payload),
            )
            for point in points
        ]
        for at in range(0, len(stored), BATCH):
            with self._asking("cannot be written"):
                self._server.writing.upsert(self._collection, stored[at : at + BATCH], wait=True)

    def set_payload(self, point_id: str, payload: Payload) -> None:
        self._begin(self._learned([payload]))
        with self._asking("cannot be written"):
            self._server.writing.overwrite_payload(
                self._collection, self._in(payload), points=[uuid_of(point_id)], wait=True
            )

    def delete(self, ids: Sequence[str]) -> None:
        if not ids:  # which a server refuses as empty
            return
        self._begin(self._description.payload)
        selected = self._server.models.PointIdsList(points=[uuid_of(point_id) for point_id in ids])
        with self._asking("cannot be written"):
            self._server.writing.delete(self._collection, selected, wait=True)

    def flush(self) -> None:
        """Nothing to do: a write has returned when the server had it in its log. Bringing that onto disks is the
        server's own business, and replicas are what guards against a node's loss."""

    def settle(self) -> None:
        """Wait for the server to build its search index, then put the writing on record."""
        self._await_index()
        held = describe(self._server, self._collection)
        if held.generation != self.generation:
            raise GalleryError(
                f"{self.title} was written by another process meanwhile (generation {held.generation}, ours was "
                f"{self.generation}): let one write at a time, and index again"
            )
        if not self.settled:
            self._describe(replace(self._description, settled=True))
        self._writing = False

    def close(self) -> None:
        if self._owned:
            self._server.close()

    def __enter__(self) -> "RemoteGallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _consistency(self) -> Any:
        wanted = self._server.address.read_consistency
        return self._server.models.ReadConsistencyType(wanted) if isinstance(wanted, str) else wanted

    def _ranked(self, asked: Sequence[tuple[Search, int]]) -> list[list[Ranked]]:
        """The so many best of each search, with no payload but the group key."""
        if not asked:
            return []
        requests = [self._request(search, depth) for search, depth in asked]
        with self._asking("cannot be searched"):
            came = self._server.reading.query_batch_points(
                self._collection, requests, consistency=self._consistency, timeout=self._server.address.timeout_s
            )
        return [
            [
                Ranked(
                    UUID(str(hit.id)).hex,
                    max(-1.0, min(1.0, hit.score)),
                    self._group(hit.payload, search.group_by),
                )
                for hit in answer.points
            ]
            for (search, _), answer in zip(asked, came, strict=True)
        ]

    def _group(self, payload: Mapping[str, Any] | None, key: str | None) -> str | int | None:
        value = self._out(payload).get(key) if key else None
        return value if isinstance(value, str | int) else None

    def _request(self, search: Search, depth: int) -> "models.QueryRequest":
        models = self._server.models
        kinds, walk = self._description.payload, search.walk
        return models.QueryRequest(
            query=search.vector.tolist(),
            using=search.name,
            filter=filter_of(models, search.where, kinds),
            params=models.SearchParams(
                hnsw_ef=max(walk.ef, depth),
                exact=search.exact,
                quantization=models.QuantizationSearchParams(
                    ignore=search.exact or not walk.int8,
                    rescore=walk.rescore,
                    oversampling=max(walk.oversampling, self._least_oversampling),
                ),
            ),
            limit=depth,
            with_payload=False if search.group_by is None else [search.group_by],
        )

    def _scored(self, asked: Search, hits: Sequence[Ranked]) -> list[Scored]:
        """Hits with what is stored with them; one that was deleted meanwhile is left out."""
        wanted = self.payload_keys if asked.payload is None else list(asked.payload)
        if not hits or (not wanted and not asked.with_vectors):
            return [Scored(hit.id, hit.score, {}) for hit in hits]
        vector = [asked.name] if asked.with_vectors else False
        stored = {
            UUID(str(record.id)).hex: record
            for record in self._retrieved([hit.id for hit in hits], payload=wanted or False, vector=vector)
        }
        return [
            Scored(hit.id, hit.score, self._out(record.payload), _row(record.vector, asked))
            for hit in hits
            if (record := stored.get(hit.id))
        ]

    def _retrieved(self, ids: Sequence[str], *, payload: bool | list[str], vector: bool | list[str]) -> list[Any]:
        with self._asking("cannot be read"):
            return self._server.reading.retrieve(
                self._collection,
                [uuid_of(point_id) for point_id in ids],
                with_payload=payload,
                with_vectors=vector,
                consistency=self._consistency,
                timeout=self._server.address.timeout_s,
            )

    def _learned(self, payloads: Iterable[Payload]) -> dict[str, Kind]:
        kinds = self._description.payload
        for payload in payloads:
            kinds = learn(kinds, payload)
        return kinds

    def _begin(self, kinds: Mapping[str, Kind]) -> None:
        """Before a write: a new generation once per opening, and new payload keys on record and indexed."""
        if self._writing and kinds == self._description.payload:
            return
        description = replace(self._description, format=format_of(kinds), payload=dict(kinds), settled=False)
        if not self._writing:
            held = describe(self._server, self._collection).generation  # may have grown since it was opened
            birth, count = held.rsplit("-", 1)
            description = replace(description, generation=f"{birth}-{int(count) + 1}")
        old = indexes_of(self._server.models, self._description.payload)
        self._describe(description)
        self._writing = True
        there = set(self._server.info(self._collection).payload_schema)  # may lag behind `old` after a kill just here
        for name, schema in indexes_of(self._server.models, kinds).items():
            if name not in there or old.get(name) != schema:
                self._index(name, schema, again=name in there)

    def _index(self, name: str, schema: Any, *, again: bool) -> None:
        with self._asking(f"payload field {name} cannot be indexed"):
            if again:
                self._server.writing.delete_payload_index(self._collection, name, wait=True)
            self._server.writing.create_payload_index(self._collection, name, field_schema=schema, wait=True)

    def _describe(self, description: Description) -> None:
        self._server.set_metadata(self._collection, DESCRIPTION, json.dumps(asdict(description)))
        self._description = description

    def _await_index(self) -> None:
        """Until the server says green. Grey: an index is wanted, but the server restarted and waits for a nudge."""
        models, until, nudged = self._server.models, time.monotonic() + SETTLE_S, False
        while (status := self._server.info(self._collection).status) != models.CollectionStatus.GREEN:
            if status == models.CollectionStatus.RED:
                raise GalleryError(f"{self.title}: the server failed to build its search index: its log says why")
            if status == models.CollectionStatus.GREY and not nudged:
                with self._asking("its search index cannot be begun"):
                    self._server.writing.update_collection(
                        self._collection, optimizers_config=models.OptimizersConfigDiff()
                    )
                nudged = True
            if time.monotonic() > until:
                raise Unavailable(f"{self.title}: no search index after {SETTLE_S / 3600:.0f} hours: index again later")
            time.sleep(SETTLE_POLL_S)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        with self._server.asking(f"collection {self._collection} {what}"):
            yield

    def _in(self, payload: Payload) -> dict[str, Any]:
        """As stored; texts a second time, for their index of words."""
        kinds = self._description.payload
        kept = {key: stored(value, kinds[key]) for key, value in payload.items()}
        return kept | {WORDS + key: worded(value) for key, value in kept.items() if kinds[key] in WORDED}

    def _out(self, payload: Mapping[str, Any] | None) -> dict[str, Value]:
        kept = {key: value for key, value in (payload or {}).items() if not key.startswith(WORDS)}
        return given_back(kept, self._description.payload)


def describe(server: Server, collection: str) -> Description:
    """A collection's account of itself. Raises GalleryError if it is none of ours, damaged or newer than this."""
    return _description(server, collection, server.info(collection))


def _description(server: Server, collection: str, info: "models.CollectionInfo") -> Description:
    title = f"{server.address.url}, collection {collection}"
    text = (info.config.metadata or {}).get(DESCRIPTION)
    if not isinstance(text, str):
        raise GalleryError(
            f"{title} was not made by Pocketlens: make one with `pocketlens-cloud gallery build`, or check the name"
        )
    try:
        raw = json.loads(text)
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise GalleryError(
                f"{title}: format {raw['format']} is newer than this program's {FORMAT}: update Pocketlens"
            )
        return Description(**raw)
    except (ValueError, TypeError) as error:
        raise GalleryError(f"{title}: its metadata is damaged ({error}): build a new version") from error


def _row(vectors: Any, asked: Search) -> Any:
    return np.asarray(vectors[asked.name], np.float32) if asked.with_vectors else None
