"""Our collections, filters and ids in Qdrant's terms.

Owns how a collection is laid out, which fields a payload key has and how they are indexed, and what each condition is
to a server. `models` is the client's own module of that name, handed in: only qdrant.py imports it. Asks nothing
itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, assert_never
from uuid import UUID

from pocketlens_cloud.gallery import times
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
from pocketlens_cloud.gallery.payload import Kind, stored

WORDS: Final = "-"  # before a text's key: its second copy, indexed by words; no key of a user's begins so
EACH: Final = "text"  # each of several texts lies there as {EACH: text}, to be asked one by one
WORDED: Final[tuple[Kind, ...]] = ("text", "texts")
BATCH: Final = 256  # points written in one call: about 1 MB of two vectors of width 512

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

Quantisation = Literal["none", "int8", "binary"]


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


def layout_of(models: Any, dim: int, vectors: Sequence[str], layout: CollectionSettings) -> dict[str, Any]:
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


def indexes_of(models: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Index by field. A field can have one; texts are searched whole and by words, so they have two fields."""
    by_words = models.TextIndexParams(
        type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True, on_disk=True
    )
    found = {}
    for key, kind in kinds.items():
        found |= {name: _schema(models, kind) if name == key else by_words for name in fields_of(key, kind)}
    return found


def fields_of(key: str, kind: Kind) -> list[str]:
    """Fields that are indexed for a payload key. Of `texts` some pictures have one, as before the key met a list."""
    match kind:
        case "text":
            return [key, WORDS + key]
        case "texts":
            return [key, WORDS + key, f"{WORDS}{key}[].{EACH}"]
        case _:
            return [key]


def worded(value: Any) -> Any:
    return [{EACH: text} for text in value] if isinstance(value, list) else value


def filter_of(models: Any, where: Filter, kinds: Mapping[str, Kind]) -> Any:
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
            return filter_of(models, part, kinds) or models.Filter()
        case HasId(ids):
            return models.HasIdCondition(has_id=[uuid_of(point_id) for point_id in ids])
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


def uuid_of(point_id: str) -> str:
    return str(UUID(point_id))
