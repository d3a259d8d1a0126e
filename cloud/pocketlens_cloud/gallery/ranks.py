"""From an engine's best pictures to the hits that were asked for: ties, pages, groups. Knows no engine.

An engine ranks by score and leaves open which of several equal ones it gives; here every answer is given one order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pocketlens_cloud.gallery.filters import Equals, Filter, Missing, NoneOf
from pocketlens_cloud.gallery.interface import Search
from pocketlens_cloud.gallery.payload import Scalar

STEP = 16  # an engine is asked for 16, 32, 64 ... hits: neighbouring pages are mostly cut from one and the same ranking
MAX_DEPTH = 4096  # hits an engine is asked for beyond what is wanted, to see the end of a run of equal scores


@dataclass(frozen=True)
class Ranked:
    """A picture and its score; `group`: its value under the search's group key, where there is one."""

    id: str
    score: float
    group: Scalar | None = None


Rank = Callable[[Sequence[tuple[Search, int]]], list[list[Ranked]]]
"""An engine: for each search and number its so many best, in any order, without skipping, least score or groups."""


def answers(asked: Sequence[Search], rank: Rank) -> list[list[Ranked]]:
    """The hits of each search: best first, equal scores in the order of ids, `skip` left out, `least_score` kept.

    Equal scores keep that order across pages as well, as long as no more than MAX_DEPTH pictures share one score.
    Where an engine walks an index instead of comparing with every picture, pages fit together if they are cut from
    the same ranking (those that end within the same power of two times STEP); beyond, a page may repeat or lack a
    picture that another walk found or missed."""
    plain = iter(_hits([search for search in asked if search.group_by is None], rank))
    return [next(plain) if search.group_by is None else _grouped(search, rank) for search in asked]


def _hits(asked: Sequence[Search], rank: Rank) -> list[list[Ranked]]:
    found: list[list[Ranked] | None] = [None] * len(asked)
    depths = [_depth(search.skip + search.top) for search in asked]
    bounds = [depth + MAX_DEPTH for depth in depths]
    while open_ones := [i for i, hits in enumerate(found) if hits is None]:
        for i, ranking in zip(open_ones, rank([(asked[i], depths[i]) for i in open_ones]), strict=True):
            certain, whole = _certain(ranking, depths[i], asked[i].least_score)
            if len(certain) >= asked[i].skip + asked[i].top or whole or depths[i] > bounds[i]:
                best = certain if len(certain) >= asked[i].skip + asked[i].top else _ordered(ranking, asked[i])
                found[i] = best[asked[i].skip : asked[i].skip + asked[i].top]
            depths[i] *= 2
    return [hits for hits in found if hits is not None]


def _grouped(asked: Search, rank: Rank) -> list[Ranked]:
    """The best hits of the best groups. Each further ranking leaves out the groups that are known, so that it finds
    another one or there is none: at most `skip` + `top` rankings. Pictures without the key are in no group."""
    assert asked.group_by is not None
    leaders: dict[Scalar, Ranked] = {}
    wanted, depth = asked.skip + asked.top, _depth(asked.skip + asked.top)
    bound = depth + MAX_DEPTH
    while len(leaders) < wanted:
        (ranking,) = rank([(replace(asked, where=_beyond(asked, list(leaders))), depth)])
        certain, whole = _certain(ranking, depth, asked.least_score)
        if not certain and not whole and depth <= bound:
            depth *= 2  # all of them share one score
            continue
        for hit in certain or _ordered(ranking, asked):
            if hit.group is not None:
                leaders.setdefault(hit.group, hit)
        if whole:
            break
    chosen = list(leaders.items())[asked.skip : wanted]
    if asked.group_size == 1:
        return [hit for _, hit in chosen]
    each = replace(asked, group_by=None, top=asked.group_size, skip=0)
    of_groups = _hits([replace(each, where=_within(asked, group)) for group, _ in chosen], rank)
    return _by_score([hit for hits in of_groups for hit in hits])


def _beyond(asked: Search, known: list[Scalar]) -> Filter:
    """`asked.where`, and a value under the group key that is not known yet."""
    assert asked.group_by is not None
    if not known:
        return Filter(all_of=(asked.where,), none_of=(Missing(asked.group_by),))
    return Filter(all_of=(asked.where, NoneOf(asked.group_by, cast(Any, tuple(known)))))


def _within(asked: Search, group: Scalar) -> Filter:
    assert asked.group_by is not None
    return Filter(all_of=(asked.where, Equals(asked.group_by, group)))


def _depth(wanted: int) -> int:
    depth = STEP
    while depth <= wanted:  # one more than wanted shows whether the last one has equals
        depth *= 2
    return depth


def _certain(ranking: Sequence[Ranked], depth: int, least: float | None) -> tuple[list[Ranked], bool]:
    """The hits whose place is settled, and whether they are all there are.

    Where the engine gave as many as it was asked for, those that share the last score may have equals beyond."""
    ordered = _by_score(ranking)
    kept = ordered if least is None else [hit for hit in ordered if hit.score >= least]
    if len(ordered) < depth or len(kept) < len(ordered):
        return kept, True
    last = ordered[-1].score
    return [hit for hit in kept if hit.score > last], False


def _ordered(ranking: Sequence[Ranked], asked: Search) -> list[Ranked]:
    least = asked.least_score
    return _by_score(ranking if least is None else [hit for hit in ranking if hit.score >= least])


def _by_score(hits: Sequence[Ranked]) -> list[Ranked]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))
