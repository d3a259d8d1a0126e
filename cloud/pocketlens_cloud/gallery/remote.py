"""A gallery kept by a Qdrant server or cluster: one collection, searched and written over gRPC.

The only file that imports qdrant_client, which the extra `qdrant` brings; turns its errors into ours, with the address
and the next step. Knows no versions: which collection is live is collections.py's."""

import json
import logging
import os
import secrets
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, assert_never, final
from urllib.parse import urlsplit
from uuid import UUID

import grpc
import numpy as np
from pocketlens_wire.errors import GalleryError, Overloaded, PocketlensError, Unavailable

from pocketlens_cloud.gallery import times
from pocketlens_cloud.gallery.checks import check_filter, check_search, check_vectors
from pocketlens_cloud.gallery.directory import FORMAT, Description, format_of
from pocketlens_cloud.gallery.filters import (
    AnyOf,
    Between,
    Condition,
    Equals,
    Filter,
    HasId,
    Missing,
    Near,
    NoneOf,
    Says,
)
from pocketlens_cloud.gallery.interface import Point, Scored, Search
from pocketlens_cloud.gallery.payload import Kind, Payload, Value, given_back, learn, stored
from pocketlens_cloud.gallery.ranks import Ranked, answers

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

log = logging.getLogger(__name__)

KEY_VARIABLE: Final = "POCKETLENS_QDRANT_API_KEY"
DESCRIPTION: Final = "pocketlens"  # key of a collection's metadata; its value is JSON text, so merging cannot mix two
WORDS: Final = "-"  # before a text's key: its second copy, indexed by words; no key of a user's begins so
EACH: Final = "text"  # each of several texts lies there as {EACH: text}, to be asked one by one
WORDED: Final[tuple[Kind, ...]] = ("text", "texts")
BATCH: Final = 256  # points written in one call: about 1 MB of two vectors of width 512
SCROLL: Final = 500  # points read in one call
SETTLE_POLL_S: Final = 0.5
SETTLE_S: Final = 6 * 3600.0  # for a server to build its search index
SNAPSHOT_S: Final = 3600
COARSE_OVERSAMPLING: Final = 4.0  # one bit a number ranks so coarsely that more must be rescored

# What a call may ask of the collection at most; the service checks requests long before that (limits.py).
STRICT: Final = {
    "enabled": True,
    "max_query_limit": 65_536,  # ranks.py looks far for the end of equal scores
    "search_max_hnsw_ef": 65_536,
    "search_max_oversampling": 16.0,
    "search_allow_exact": True,  # `verify` compares with every picture
    "unindexed_filtering_retrieve": False,
    "unindexed_filtering_update": False,
    "upsert_max_batchsize": 4 * BATCH,
    "filter_max_conditions": 256,
    "condition_max_size": 4096,
    "max_timeout": 600,
}

# grpc tries these again by itself, within the call's own deadline: every call this file makes can be made twice.
_AGAIN: Final = {
    "methodConfig": [
        {
            "name": [{"service": "qdrant.Points"}, {"service": "qdrant.Collections"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_CHANNEL: Final = {
    "grpc.service_config": json.dumps(_AGAIN),
    "grpc.max_reconnect_backoff_ms": 2000,  # a server that is back is noticed within two seconds
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.keepalive_time_ms": 20_000,  # a peer that vanished without a word is noticed within 25 s
    "grpc.keepalive_timeout_ms": 5000,
    "grpc.max_receive_message_length": 64 << 20,
}

ReadConsistency = int | Literal["majority", "quorum", "all"]
Quantisation = Literal["none", "int8", "binary"]


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server is and how it is asked. A call ends after `timeout_s`, whatever happens; writes have longer."""

    url: str  # of its HTTP side, as in http://127.0.0.1:6333; snapshots go there, all else over gRPC
    grpc_port: int = 6334
    api_key: str | None = field(default=None, repr=False)
    timeout_s: int = 5
    write_timeout_s: int = 60
    read_consistency: ReadConsistency | None = None  # None: one replica's word


@dataclass(frozen=True, kw_only=True)
class CollectionSettings:
    """How a collection is laid out; fixed when it is made.

    shards, replicas: parts of a collection, and copies of each, over the nodes of a cluster; write_consistency: copies
    that must have a write before it counts; m, ef_construct: as in embedded.IndexSettings; quantisation: copies of the
    vectors that searches walk, in one byte or one bit a number, before they are compared by float32."""

    shards: int = 1
    replicas: int = 1
    write_consistency: int = 1
    vectors_on_disk: bool = False
    payload_on_disk: bool = True
    m: int = 32
    ef_construct: int = 400
    quantisation: Quantisation = "int8"


LAYOUT: Final = CollectionSettings()


def read_key(file: Path | None) -> str | None:
    """The API key from a file, else from the environment; never from the command line, which others can see."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(
            f"{file} cannot be read: {error}. It should hold Qdrant's API key and nothing else"
        ) from error
    if not key or not key.isprintable() or " " in key:
        raise GalleryError(f"{file} should hold Qdrant's API key on one line, and nothing else")
    return key


@final
class Server:
    """A connection to a Qdrant server: what there is on it, and its errors as ours. Safe from several threads."""

    def __init__(self, address: Address, client: "QdrantClient | None" = None) -> None:
        """Nothing is asked yet. `client`: another client in place of one over the network.

        Raises GalleryError if qdrant-client is missing or the address is none."""
        self.models = _library()
        self.address = address
        self._given = client
        self._clients: dict[int, QdrantClient] = {}
        self._making = threading.Lock()
        self.host = _checked(address)

    @property
    def reading(self) -> "QdrantClient":
        return self.client(self.address.timeout_s)

    @property
    def writing(self) -> "QdrantClient":
        return self.client(self.address.write_timeout_s)

    def client(self, timeout_s: int) -> "QdrantClient":
        """A client whose every call ends within `timeout_s`."""
        if self._given is not None:
            return self._given
        with self._making:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = _connect(self.address, timeout_s)
            return self._clients[timeout_s]

    def version(self) -> str:
        with self.asking("it does not tell its version"):
            return str(self.reading.info().version)

    def collections(self) -> list[str]:
        with self.asking("its collections cannot be listed"):
            return sorted(each.name for each in self.reading.get_collections().collections)

    def target(self, alias: str) -> str:
        """Collection that an alias points to; "" if there is no such alias."""
        with self.asking("its aliases cannot be listed"):
            found = self.reading.get_aliases().aliases
        return next((each.collection_name for each in found if each.alias_name == alias), "")

    def point(self, alias: str, collection: str) -> None:
        """One call: whoever asks sees the old target or the new one, never none."""
        models, old = self.models, self.target(alias)
        actions: list[Any] = []
        if old:
            actions.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        actions.append(models.CreateAliasOperation(create_alias=create))
        with self.asking(f"alias {alias} cannot be pointed to {collection}"):
            self.writing.update_collection_aliases(actions)

    def info(self, collection: str) -> "models.CollectionInfo":
        with self.asking(f"collection {collection} cannot be read"):
            return self.reading.get_collection(collection)

    def metadata(self, collection: str, key: str) -> str | None:
        """Text under `key` of a collection's metadata."""
        held = self.info(collection).config.metadata or {}
        value = held.get(key)
        return value if isinstance(value, str) else None

    def set_metadata(self, collection: str, key: str, value: str) -> None:
        with self.asking(f"the metadata of collection {collection} cannot be written"):
            self.writing.update_collection(collection, metadata={key: value})

    def drop(self, collection: str) -> None:
        with self.asking(f"collection {collection} cannot be dropped"):
            self.writing.delete_collection(collection)

    def nodes(self, collection: str) -> int:
        """Number of nodes that hold a part of a collection."""
        with self.asking(f"the shards of collection {collection} cannot be listed"):
            spread = self.reading.collection_cluster_info(collection)
        return len({spread.peer_id, *(shard.peer_id for shard in spread.remote_shards)})

    def snapshot(self, collection: str) -> tuple[str, int, str]:
        """Make a snapshot on the server: (its name, bytes, SHA-256, "" where the server tells none)."""
        with self.asking(f"no snapshot of collection {collection} was made"):
            made = self.client(SNAPSHOT_S).create_snapshot(collection)
        if made is None:
            raise GalleryError(f"Qdrant at {self.address.url} made no snapshot of {collection}: its log says why")
        return made.name, made.size, made.checksum or ""

    def recover(self, collection: str, location: str) -> None:
        """Make `collection` of a snapshot: a URL or a file:// path that the server itself can read."""
        with self.asking(f"collection {collection} cannot be made of {location}"):
            self.client(SNAPSHOT_S).recover_snapshot(
                collection, location, priority=self.models.SnapshotPriority.SNAPSHOT
            )

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Turn every error of the client into ours, beginning with the server's address and `what`."""
        try:
            yield
        except PocketlensError:
            raise
        except Exception as error:
            raise self._ours(error, what) from error

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _ours(self, error: Exception, what: str) -> PocketlensError:
        """gRPC's status and HTTP's, as far as they differ in what a person can do."""
        at, (code, details) = f"Qdrant at {self.address.url}", _status(error)
        match code:
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                return Unavailable(
                    f"{at} does not answer on {self.host}:{self.address.grpc_port} ({details}): "
                    "is it running, and are host and gRPC port right? It is asked again with the next question"
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return Unavailable(f"{at} did not answer in time ({what}): it is overloaded, or too far away")
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                return GalleryError(f"{at} refused the API key ({details}): set {KEY_VARIABLE}, or name a file with it")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Overloaded(f"{at} has more to do than it allows ({details}): ask again later")
            case grpc.StatusCode.NOT_FOUND:
                return GalleryError(f"{at}: {what}: {details}. `pocketlens-cloud gallery list` says what there is")
            case _:
                return GalleryError(f"{at}: {what}: {details}")


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
                **_layout(server.models, dim, vectors, layout),
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
        return [key for key in self.payload_keys if there.issuperset(_fields(key, kinds[key]))]

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
                id=_uuid(point.id),
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
                self._collection, self._in(payload), points=[_uuid(point_id)], wait=True
            )

    def delete(self, ids: Sequence[str]) -> None:
        if not ids:  # which a server refuses as empty
            return
        self._begin(self._description.payload)
        selected = self._server.models.PointIdsList(points=[_uuid(point_id) for point_id in ids])
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
            filter=_filter(models, search.where, kinds),
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
                [_uuid(point_id) for point_id in ids],
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
        old = _indexes(self._server.models, self._description.payload)
        self._describe(description)
        self._writing = True
        there = set(self._server.info(self._collection).payload_schema)  # may lag behind `old` after a kill just here
        for name, schema in _indexes(self._server.models, kinds).items():
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
        return kept | {WORDS + key: _worded(value) for key, value in kept.items() if kinds[key] in WORDED}

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


def _library() -> Any:
    """qdrant_client.models; importing it takes a third of a second, so only who needs a server does."""
    try:
        from qdrant_client import models
    except ImportError as error:
        raise GalleryError("a Qdrant server needs qdrant-client: pip install 'pocketlens[qdrant]'") from error
    return models


def _connect(address: Address, timeout_s: int) -> "QdrantClient":
    from qdrant_client import QdrantClient

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of a key without encryption: _checked refuses it off this machine
        return QdrantClient(
            url=address.url,
            grpc_port=address.grpc_port,
            prefer_grpc=True,
            api_key=address.api_key,
            timeout=timeout_s,
            check_compatibility=False,  # it would ask over HTTP in a thread of its own, and print
            grpc_options=dict(_CHANNEL),
            # Certificates of authorities take a tenth of a second to load, for nothing where nothing is encrypted.
            verify=urlsplit(address.url).scheme == "https",
        )


def _checked(address: Address) -> str:
    """The host. A key goes to other machines encrypted or not at all."""
    parts = urlsplit(address.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise GalleryError(f"{parts.scheme}://{parts.hostname or ''}: name Qdrant's address like http://127.0.0.1:6333")
    if address.api_key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise GalleryError(
            f"the API key would go to {parts.hostname} unencrypted: use https://, or a server without a key"
        )
    return parts.hostname


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What went wrong in gRPC's terms, over whichever protocol; and in words, on one line."""
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return error.code(), " ".join((error.details() or "no details").split())
    said = " ".join(str(error).split()) or type(error).__name__
    of_http = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
    match type(error).__name__:
        case "ResourceExhaustedResponse":
            return grpc.StatusCode.RESOURCE_EXHAUSTED, said
        case "UnexpectedResponse":
            return grpc.StatusCode[of_http.get(getattr(error, "status_code", 0), "UNKNOWN")], said
        case "ResponseHandlingException":
            return grpc.StatusCode.UNAVAILABLE, said or repr(getattr(error, "source", error))
        case _:
            return grpc.StatusCode.UNKNOWN, said


def _layout(models: Any, dim: int, vectors: Sequence[str], layout: CollectionSettings) -> dict[str, Any]:
    each = models.VectorParams(size=dim, distance=models.Distance.COSINE, on_disk=layout.vectors_on_disk)
    copies = {
        "none": None,
        "int8": models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        ),
        "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    }
    return {
        "vectors_config": dict.fromkeys(vectors, each),
        "shard_number": layout.shards,
        "replication_factor": layout.replicas,
        "write_consistency_factor": layout.write_consistency,
        "on_disk_payload": layout.payload_on_disk,
        "hnsw_config": models.HnswConfigDiff(m=layout.m, ef_construct=layout.ef_construct),
        "quantization_config": copies[layout.quantisation],
        "strict_mode_config": models.StrictModeConfig(**STRICT),
    }


def _schema(models: Any, kind: Kind) -> Any:
    return {
        "text": models.PayloadSchemaType.KEYWORD,
        "texts": models.PayloadSchemaType.KEYWORD,
        "integer": models.PayloadSchemaType.INTEGER,
        "integers": models.PayloadSchemaType.INTEGER,
        "number": models.PayloadSchemaType.FLOAT,
        "flag": models.PayloadSchemaType.INTEGER,  # stored as 0 and 1, see payload.stored
        "time": models.PayloadSchemaType.DATETIME,
        "place": models.PayloadSchemaType.GEO,
    }[kind]


def _indexes(models: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Index by field. A field can have one; texts are searched whole and by words, so they have two fields."""
    by_words = models.TextIndexParams(
        type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True, on_disk=True
    )
    found = {}
    for key, kind in kinds.items():
        found |= {name: _schema(models, kind) if name == key else by_words for name in _fields(key, kind)}
    return found


def _fields(key: str, kind: Kind) -> list[str]:
    """Fields that are indexed for a payload key. Of `texts` some pictures have one, as before the key met a list."""
    match kind:
        case "text":
            return [key, WORDS + key]
        case "texts":
            return [key, WORDS + key, f"{WORDS}{key}[].{EACH}"]
        case _:
            return [key]


def _worded(value: Any) -> Any:
    return [{EACH: text} for text in value] if isinstance(value, list) else value


def _filter(models: Any, where: Filter, kinds: Mapping[str, Kind]) -> Any:
    """The client's filter for a `where` that `check_filter` let pass; None for an empty one."""
    if not where:
        return None
    some = [_part(models, part, kinds) for part in where.any_of]
    return models.Filter(
        must=[_part(models, part, kinds) for part in where.all_of] or None,
        min_should=models.MinShould(conditions=some, min_count=where.at_least) if some else None,
        must_not=[_part(models, part, kinds) for part in where.none_of] or None,
    )


def _part(models: Any, part: Condition | Filter, kinds: Mapping[str, Kind]) -> Any:
    match part:
        case Filter():
            return _filter(models, part, kinds) or models.Filter()
        case HasId(ids):
            return models.HasIdCondition(has_id=[_uuid(point_id) for point_id in ids])
        case Missing(key):
            return models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
        case Equals(key, value) if kinds[key] == "number":  # the engine matches floats by range only
            return models.FieldCondition(key=key, range=models.Range(gte=float(value), lte=float(value)))
        case Equals(key, value) if kinds[key] == "time":  # the same instant, however it is written
            return models.FieldCondition(key=key, range=models.DatetimeRange(gte=str(value), lte=str(value)))
        case Equals(key, value):
            return models.FieldCondition(key=key, match=models.MatchValue(value=stored(value, kinds[key])))
        case AnyOf(key, values):
            return models.FieldCondition(key=key, match=models.MatchAny(any=[stored(v, kinds[key]) for v in values]))
        case NoneOf(key, values):  # the engine's own "except" holds for a list that has any other value besides
            return models.Filter(
                must_not=[_part(models, AnyOf(key, values), kinds), _part(models, Missing(key), kinds)]
            )
        case Between(key=key):
            return _range(models, part, kinds[key])
        case Says(key, words):
            alone = models.FieldCondition(key=WORDS + key, match=models.MatchText(text=words))
            if kinds[key] == "text":
                return alone
            # An index of a list knows only which words are in any of its texts; all must be in one of them.
            one = models.Filter(must=[models.FieldCondition(key=EACH, match=models.MatchText(text=words))])
            among = models.NestedCondition(nested=models.Nested(key=WORDS + key, filter=one))
            return models.Filter(should=[alone, among])
        case Near(key, latitude, longitude, radius_m):
            centre = models.GeoPoint(lat=latitude, lon=longitude)
            return models.FieldCondition(key=key, geo_radius=models.GeoRadius(center=centre, radius=radius_m))
        case _:
            assert_never(part)


def _range(models: Any, between: Between, kind: Kind) -> Any:
    key = between.key
    nothing = models.HasIdCondition(has_id=[])
    if kind == "time":
        span = times.span(above=between.above, least=between.least, below=between.below, most=between.most)
        return models.FieldCondition(key=key, range=models.DatetimeRange(gte=span[0], lte=span[1])) if span else nothing
    whole = between if kind == "number" else between.of_integers()
    if whole is None:
        return nothing
    bounds = models.Range(gt=whole.above, gte=whole.least, lt=whole.below, lte=whole.most)
    return models.FieldCondition(key=key, range=bounds)


def _row(vectors: Any, asked: Search) -> Any:
    return np.asarray(vectors[asked.name], np.float32) if asked.with_vectors else None


def _uuid(point_id: str) -> str:
    return str(UUID(point_id))
