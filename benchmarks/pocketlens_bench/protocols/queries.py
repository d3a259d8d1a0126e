"""Queries that need more than relevant pictures to be judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketlens_bench.protocols.task import Query


@dataclass(frozen=True, kw_only=True)
class CirrQuery(Query):
    """members: the six pictures of the query's group, the reference among them. soft: the dataset authors' judgement
    of some pictures, -1 to 1."""

    members: frozenset[str] = frozenset()
    soft: Mapping[str, float] = field(default_factory=dict)


ASPECTS = (
    "cardinality", "addition", "negation", "direct_addressing", "compare_change", "comparative_statement",
    "statement_with_conjunction", "spatial_relations_background", "viewpoint",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CircoQuery(Query):
    """target: the one picture the query was written for, among the relevant ones. aspects: what its words ask for."""

    target: str | None = None
    aspects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LandmarkQuery(Query):
    """easy, hard, junk: pictures of the query's landmark, by how well it can be seen; `relevant` is easy and hard."""

    easy: frozenset[str] = frozenset()
    hard: frozenset[str] = frozenset()
    junk: frozenset[str] = frozenset()
