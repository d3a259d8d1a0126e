"""The gallery: pictures' vectors and payload, searched by cosine and filtered by payload.

The only file that imports qdrant_edge; works around what that engine does not check or cannot say.
The directory's own files are directory.py's, payload types payload.py's, what may be asked checks.py's, the order of
hits ranks.py's. Knows no pictures and no models: vectors come in ready."""

import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never, cast, final
from uuid import UUID

import numpy as np
import qdrant_edge as engine
from numpy.typing import NDArray
from pocketlens_wire.errors import GalleryError

from pocketlens_cloud.gallery import directory, times
from pocketlens_cloud.gallery.checks import check_filter, check_search, check_vectors
from pocketlens_cloud.gallery.directory import SHARD, Description, Lock
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
from pocketlens_cloud.gallery.interface import Point, Scored, Search, Walk
from pocketlens_cloud.gallery.payload import Kind, Payload, Value, given_back, learn, stored
from pocketlens_cloud.gallery.ranks import Ranked, answers

FULL_SCAN_KB = 10_000  # vectors a filter leaves, in KB, below which comparing with all of them is faster than walking
MAX_SEGMENT_KB = 100_000_000
SEARCHERS = 1  # threads, which is the caller's own; the engine holds Python's lock while others search for it
INT8_QUANTILE = 0.99  # numbers beyond it are cut, so that one outlier does not coarsen all the others
SCROLL = 1000  # points fetched at once when walking the whole gallery

_INDEX_OF: dict[Kind, engine.PayloadSchemaType] = {
    "text": engine.PayloadSchemaType.Keyword,
    "texts": engine.PayloadSchemaType.Keyword,
    "integer": engine.PayloadSchemaType.Integer,
    "integers": engine.PayloadSchemaType.Integer,
    "number": engine.PayloadSchemaType.Float,
    "flag": engine.PayloadSchemaType.Integer,  # stored as 0 and 1, see payload.stored
    "time": engine.PayloadSchemaType.Datetime,
    "place": engine.PayloadSchemaType.Geo,
}


@dataclass(frozen=True)
class IndexSettings:
    """How the search index (HNSW) is built; fixed when a gallery is made.

    m: links of a picture; ef_construct: pictures looked at to find them; int8: walk copies of the vectors in one
    byte a number, which builds about four times and searches about three times faster at the same recall, for a
    quarter more memory. Below 10,000 KiB of a vector (10,000 pictures of width 256) the engine makes no index
    and every search is exact. The defaults were chosen with `pocketlens-bench tradeoff` (docs/results.md)."""

    m: int = 32
    ef_construct: int = 400
    int8: bool = True


INDEX = IndexSettings()


@final
class EmbeddedGallery:
    """An open gallery. One process at a time; searches may come from several threads."""

    def __init__(self, path: Path, lock: Lock, description: Description, shard: engine.EdgeShard) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._lock = lock
        self._description = description
        self._shard = shard
        self._writing = False

    @classmethod
    def create(
        cls, path: Path, *, dim: int, vectors: Sequence[str], gallery_space: str, index: IndexSettings = INDEX
    ) -> "EmbeddedGallery":
        """Make an empty gallery in `path`, a new or empty directory.

        Raises GalleryError if one is there already, the directory holds other things, cannot be
        written, or is held by another process."""
        directory.make(path)
        lock = Lock.take(path)
        try:
            if cls.exists(path):
                raise GalleryError(f"{path} already holds a gallery: open it, or choose another directory")
            if foreign := directory.foreign_files(path):
                raise GalleryError(f"{path} is not empty (it holds {foreign[0]}): choose a new or empty directory")
            shutil.rmtree(path / SHARD, ignore_errors=True)
            description = Description(
                gallery_space=gallery_space,
                dim=dim,
                vectors=list(vectors),
                payload={},
                generation=f"{secrets.token_hex(4)}-0",
                settled=True,
            )
            with _engine(f"{path}: cannot create the gallery"):
                shard = engine.EdgeShard.create(str(path / SHARD), _config(dim, vectors, index))
            directory.write(path, description)  # last: a gallery without it was never finished
            return cls(path, lock, description, shard)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: Path) -> "EmbeddedGallery":
        """Open the gallery in `path`. Raises GalleryError if there is none, it is damaged, or it is held."""
        if not cls.exists(path):
            raise GalleryError(f"no gallery in {path}: make one with `pocketlens-cloud index DIR --gallery {path}`")
        lock = Lock.take(path)
        try:
            description = directory.read(path)
            with _engine(f"{path}: the gallery cannot be opened; it may be damaged: index again into a new directory"):
                shard = engine.EdgeShard.load(str(path / SHARD), _settings(description.dim, description.vectors))
            return cls(path, lock, description, shard)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether `path` holds a finished gallery. Raises GalleryError if it may not be looked at."""
        return directory.holds_gallery(path)

    @property
    def title(self) -> str:
        """What messages call it: its directory."""
        return str(self.path)

    @property
    def in_process(self) -> bool:
        return True

    @property
    def gallery_space(self) -> str:
        return self._description.gallery_space

    @property
    def dim(self) -> int:
        return self._description.dim

    @property
    def vectors(self) -> list[str]:
        """Names of the vectors each picture has."""
        return self._description.vectors

    @property
    def generation(self) -> str:
        """Which state of the gallery this is; changes whenever it is written."""
        return self._description.generation

    @property
    def settled(self) -> bool:
        """False after an indexing that did not reach its end."""
        return self._description.settled

    @property
    def payload_kinds(self) -> dict[str, Kind]:
        """Payload keys and the type of their values."""
        return dict(self._description.payload)

    @property
    def payload_keys(self) -> list[str]:
        """Keys a filter may name, sorted."""
        return sorted(self._description.payload)

    @property
    def indexed_keys(self) -> list[str]:
        """Payload keys the engine has an index on, sorted: all of payload_keys in a sound gallery."""
        return sorted(self._shard.info().payload_schema)

    @property
    def size(self) -> int:
        """Number of pictures."""
        return self._shard.count(engine.CountRequest(exact=True))

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert points, or replace those with the same id. Survives a kill; a power cut only after `flush`.

        Raises GalleryError for a wrong dimension, a missing vector, a vector that is not finite or is
        zero, or a payload whose types contradict the gallery's."""
        for point in points:
            check_vectors(point, self.vectors, self.dim)
        self._begin(self._learned(point.payload for point in points))
        rows = [
            engine.Point(
                _uuid(point.id),
                {name: point.vectors[name].tolist() for name in self.vectors},
                self._in(point.payload),
            )
            for point in points
        ]
        with _engine(f"{self.path}: cannot write"):
            self._shard.update(engine.UpdateOperation.upsert_points(rows))

    def set_payload(self, point_id: str, payload: Payload) -> None:
        """Replace the whole payload of one picture."""
        self._begin(self._learned([payload]))
        with _engine(f"{self.path}: cannot write"):
            self._shard.update(engine.UpdateOperation.overwrite_payload([_uuid(point_id)], self._in(payload)))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove pictures; unknown ids are no error."""
        self._begin(self._description.payload)
        with _engine(f"{self.path}: cannot write"):
            self._shard.update(engine.UpdateOperation.delete_points([_uuid(point_id) for point_id in ids]))

    def flush(self) -> None:
        """Bring everything written so far onto the disk."""
        with _engine(f"{self.path}: cannot write"):
            self._shard.flush()

    def settle(self) -> None:
        """Declare the writing finished: build the search index where it pays, flush, put it on record."""
        with _engine(f"{self.path}: cannot write"):
            self._shard.optimize()
            self._shard.flush()
        if not self.settled:
            self._describe(replace(self._description, settled=True))
        self._writing = False

    def payloads(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """(id, payload) of every picture, in the order of ids."""
        offset = None
        while True:
            records, offset = self._shard.scroll(
                engine.ScrollRequest(offset=offset, limit=SCROLL, with_payload=True, with_vector=False)
            )
            for record in records:
                yield _id(record), self._out(record.payload)
            if offset is None:
                return

    def payload(self, point_id: str) -> dict[str, Value] | None:
        """What is stored with one picture; None if the gallery does not hold it."""
        found = self._shard.retrieve([_uuid(point_id)], with_payload=True, with_vector=False)
        return self._out(found[0].payload) if found else None

    def check_filter(self, where: Filter) -> None:
        """Raise BadQuery if `where` names an unknown key or gives a value of the wrong type."""
        check_filter(where, self._description.payload)

    def search(self, asked: Search) -> list[Scored]:
        """Best first; equal scores in the order of ids. Raises BadQuery for a bad filter or payload key.

        What is promised across pages: ranks.answers."""
        return self.search_many([asked])[0]

    def search_many(self, asked: Sequence[Search]) -> list[list[Scored]]:
        """Row for row what `search` gives; the engine ranks them together."""
        for search in asked:
            check_search(search, self.payload_kinds, self.vectors)
        found = answers(asked, self._ranked)
        with _engine(f"{self.path}: cannot be searched"):
            return [self._scored(search, hits) for search, hits in zip(asked, found, strict=True)]

    def _ranked(self, asked: Sequence[tuple[Search, int]]) -> list[list[Ranked]]:
        """The so many best of each search, by an engine that knows no payload but the group key."""
        requests = [
            engine.QueryRequest(
                limit=depth,
                query=engine.Query.Nearest(search.vector.tolist(), using=search.name),
                filter=_filter(search.where, self._description.payload),
                params=_params(depth, search.walk, exact=search.exact),
                with_payload=False if search.group_by is None else [search.group_by],
            )
            for search, depth in asked
        ]
        with _engine(f"{self.path}: cannot be searched"):
            came = self._shard.query_batch(engine.QueryBatchRequest(requests)) if requests else []
        return [
            [
                Ranked(
                    _id(hit),
                    max(-1.0, min(1.0, hit.score)),
                    self._group(hit.payload, search.group_by),
                )
                for hit in hits
            ]
            for (search, _), hits in zip(asked, came, strict=True)
        ]

    def _scored(self, asked: Search, hits: Sequence[Ranked]) -> list[Scored]:
        """Hits with what is stored with them; one that was deleted meanwhile is left out."""
        wanted = True if asked.payload is None else list(asked.payload) or False
        if not wanted and not asked.with_vectors:
            return [Scored(hit.id, hit.score, {}) for hit in hits]
        records = {
            _id(record): record
            for record in self._shard.retrieve(
                [_uuid(hit.id) for hit in hits], wanted, [asked.name] if asked.with_vectors else False
            )
        }
        return [
            Scored(
                hit.id,
                hit.score,
                self._out(record.payload),
                _vector(record, asked.name) if asked.with_vectors else None,
            )
            for hit in hits
            if (record := records.get(hit.id))
        ]

    def ping(self) -> None:
        """A search of the cheapest kind, for health: raises GalleryError if the gallery does not answer."""
        with _engine(f"{self.path}: cannot be searched"):
            self._shard.scroll(engine.ScrollRequest(limit=1, with_payload=False, with_vector=False))

    def close(self) -> None:
        """Flush and let go of the directory. Closing twice is no error."""
        if self._lock.held:
            self._shard.flush()
            self._shard.close()
            self._lock.release()

    def __enter__(self) -> "EmbeddedGallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _learned(self, payloads: Iterable[Payload]) -> dict[str, Kind]:
        kinds = self._description.payload
        for payload in payloads:
            kinds = learn(kinds, payload)
        return kinds

    def _begin(self, kinds: Mapping[str, Kind]) -> None:
        """Before a write: a new generation once per opening, and new payload keys on record and indexed."""
        old = self._description.payload
        if self._writing and kinds == old:
            return
        description = replace(self._description, format=directory.format_of(kinds), payload=dict(kinds), settled=False)
        if not self._writing:
            birth, count = description.generation.rsplit("-", 1)
            description = replace(description, generation=f"{birth}-{int(count) + 1}")
        self._describe(description)
        self._writing = True
        with _engine(f"{self.path}: cannot write"):
            indexed = self._shard.info().payload_schema  # may lag behind `old` after a kill just here
            for key, kind in kinds.items():
                if key in indexed and old.get(key) == kind:
                    continue
                if key in indexed:
                    self._shard.update(engine.UpdateOperation.delete_field_index(key))
                self._shard.update(engine.UpdateOperation.create_field_index(key, _INDEX_OF[kind]))

    def _group(self, payload: Mapping[str, Any] | None, key: str | None) -> str | int | None:
        value = self._out(payload).get(key) if key else None
        return value if isinstance(value, str | int) else None

    def _describe(self, description: Description) -> None:
        directory.write(self.path, description)
        self._description = description

    def _in(self, payload: Payload) -> dict[str, Any]:
        return {key: stored(value, self._description.payload[key]) for key, value in payload.items()}

    def _out(self, payload: Mapping[str, Any] | None) -> dict[str, Value]:
        return given_back(payload, self._description.payload)


def _config(dim: int, vectors: Sequence[str], index: IndexSettings) -> engine.EdgeConfig:
    """One segment: several would each be walked, for the same recall at more time."""
    return _settings(
        dim,
        vectors,
        hnsw_config=engine.HnswIndexConfig(index.m, index.ef_construct, full_scan_threshold=FULL_SCAN_KB),
        quantization_config=engine.ScalarQuantizationConfig(engine.ScalarType.Int8, quantile=INT8_QUANTILE)
        if index.int8
        else None,
        optimizers=engine.EdgeOptimizersConfig(default_segment_number=1, max_segment_size=MAX_SEGMENT_KB),
    )


def _settings(dim: int, vectors: Sequence[str], **more: Any) -> engine.EdgeConfig:
    """What a gallery is opened with. What is not said here stays as it was when the gallery was made."""
    cosine = engine.EdgeVectorParams(size=dim, distance=engine.Distance.Cosine)
    return engine.EdgeConfig(vectors=dict.fromkeys(vectors, cosine), max_search_threads=SEARCHERS, **more)


def _params(depth: int, walk: Walk, *, exact: bool) -> engine.SearchParams:
    return engine.SearchParams(
        hnsw_ef=max(walk.ef, depth),
        exact=exact,
        quantization=engine.QuantizationSearchParams(
            ignore=exact or not walk.int8, rescore=walk.rescore, oversampling=walk.oversampling
        ),
    )


def _filter(where: Filter, kinds: Mapping[str, Kind]) -> engine.Filter | None:
    """The engine's filter for a `where` that `check_filter` let pass; None for an empty one."""
    if not where:
        return None
    return engine.Filter(
        must=[_part(part, kinds) for part in where.all_of],
        min_should=engine.MinShould([_part(part, kinds) for part in where.any_of], where.at_least)
        if where.any_of
        else None,
        must_not=[_part(part, kinds) for part in where.none_of],
    )


def _part(part: Condition | Filter, kinds: Mapping[str, Kind]) -> Any:
    match part:
        case Filter():
            return _filter(part, kinds) or engine.Filter()
        case HasId(ids):
            return engine.HasIdCondition({_uuid(point_id) for point_id in ids})
        case Missing(key):
            return engine.IsEmptyCondition(key)
        case Equals(key, value) if kinds[key] == "number":  # the engine matches floats by range only
            return engine.FieldCondition(key, range=engine.RangeFloat(gte=float(value), lte=float(value)))
        case Equals(key, value) if kinds[key] == "time":  # the same instant, however it is written
            return engine.FieldCondition(key, range=engine.RangeDateTime(gte=str(value), lte=str(value)))
        case Equals(key, value):
            return engine.FieldCondition(key, match=engine.MatchValue(stored(value, kinds[key])))
        case AnyOf(key, values):
            return engine.FieldCondition(key, match=engine.MatchAny([stored(value, kinds[key]) for value in values]))
        case NoneOf(key, values):  # the engine's own "except" holds for a list that has any other value besides
            return engine.Filter(must_not=[_part(AnyOf(key, values), kinds), engine.IsEmptyCondition(key)])
        case Between(key=key):
            return _range(part, kinds[key])
        case Says(key, words):
            # Without a text index the engine splits and lowers the words of each candidate's text itself. A key can
            # have one index only, and that for whole texts answers the commoner conditions.
            return engine.FieldCondition(key, match=engine.MatchText(words))
        case Near(key, latitude, longitude, radius_m):
            circle = engine.GeoRadius(engine.GeoPoint(longitude, latitude), radius_m)
            return engine.FieldCondition(key, geo_radius=circle)
        case _:
            assert_never(part)


def _range(between: Between, kind: Kind) -> Any:
    key = between.key
    nothing = engine.HasIdCondition(set())
    if kind == "time":
        span = times.span(above=between.above, least=between.least, below=between.below, most=between.most)
        return engine.FieldCondition(key, range=engine.RangeDateTime(gte=span[0], lte=span[1])) if span else nothing
    whole = between if kind == "number" else between.of_integers()
    if whole is None:
        return nothing
    bounds = engine.RangeFloat(gt=whole.above, gte=whole.least, lt=whole.below, lte=whole.most)
    return engine.FieldCondition(key, range=bounds)


def _vector(record: engine.Record, name: str) -> NDArray[np.float32]:
    held: Any = record.vector  # by name, as every gallery's vectors are named
    return np.asarray(held[name], np.float32)


def _id(point: "engine.Record | engine.ScoredPoint") -> str:
    return cast(UUID, point.id).hex  # as every id is stored


def _uuid(point_id: str) -> str:
    return str(UUID(point_id))


@contextmanager
def _engine(what: str) -> Iterator[None]:
    """Turn the engine's bare exceptions into a GalleryError that begins with `what`."""
    try:
        yield
    except Exception as error:
        raise GalleryError(f"{what}: {error}") from error
