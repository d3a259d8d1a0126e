"""Filters, pages and projections as weapons."""

import math
from collections.abc import Callable
from typing import Any

from pocketlens_wire import limits
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.hostile.case import ANSWERED, REFUSED, Case, case
from pocketlens_bench.hostile.target import Target

Act = Callable[[Target], str]


def _clause(**fields: Any) -> pb.Clause:
    return pb.Clause(condition=pb.Condition(**fields))


def _where(kind: str | None, **test: Any) -> Act:
    """One condition on a key whose values are of that kind; None: on no key."""
    return lambda to: to.search(where=pb.Filter(all_of=[_clause(key=to.key_of(kind) if kind else "", **test)]))


def _missing(to: Target) -> pb.Clause:
    return _clause(key=to.facts.payload_keys[0], missing=pb.Missing())


def _nested(depth: int) -> Act:
    def act(to: Target) -> str:
        tree = pb.Filter(all_of=[_missing(to)])
        for _ in range(depth - 1):
            tree = pb.Filter(none_of=[pb.Clause(filter=tree)])
        return to.search(where=tree)

    return act


def _values(*given: str | int) -> pb.Values:
    return pb.Values(
        values=[pb.Value(text=each) if isinstance(each, str) else pb.Value(integer=each) for each in given]
    )


def _later(to: Target) -> str:
    """A test with field number 127, which no version has yet."""
    condition = pb.Condition.FromString(pb.Condition(key=to.key_of("text")).SerializeToString() + b"\xfa\x07\x01x")
    return to.search(where=pb.Filter(all_of=[pb.Clause(condition=condition)]))


CASES: list[Case] = [
    case("filters", "unknown-key", "a key the gallery does not have", REFUSED,
         lambda to: to.search(filter=[pb.Condition(key="no_such_key", equals=pb.Value(text="x"))])),
    case("filters", "hostile-key", "a key of quotes, dots, NUL and control codes", REFUSED,
         lambda to: to.search(filter=[pb.Condition(key="a\x1b[31m.\"'\0[]", equals=pb.Value(text="x"))])),
    case("filters", "endless-key", "a key of 9,000 letters", REFUSED,
         lambda to: to.search(filter=[pb.Condition(key="k" * 9000, equals=pb.Value(text="x"))])),
    case("filters", "wrong-type", "text for a number", REFUSED, _where("number", equals=pb.Value(text="x"))),
    case("filters", "flag-for-integer", "a flag for an integer", REFUSED,
         _where("integer", equals=pb.Value(flag=True))),
    case("filters", "range-of-text", "bounds of a text", REFUSED, _where("text", between=pb.Between(least=1))),
    case("filters", "place-of-text", "a circle around a text", REFUSED,
         _where("text", near=pb.Near(latitude=1, longitude=1, radius_m=1))),
    case("filters", "no-value", "a condition without a test", REFUSED, _where("text")),
    case("filters", "later-test", "a test of a later version", REFUSED, _later),
    case("filters", "empty-clause", "a clause of nothing", REFUSED,
         lambda to: to.search(where=pb.Filter(all_of=[pb.Clause()]))),
    case("filters", "thousand-clauses", "1,000 clauses", REFUSED,
         lambda to: to.search(where=pb.Filter(any_of=[_missing(to)] * 1000))),
    case("filters", "sixty-four-clauses", "as many clauses as may be", ANSWERED,
         lambda to: to.search(where=pb.Filter(any_of=[_missing(to)] * limits.MAX_CONDITIONS, none_of=[]))),
    case("filters", "as-deep-as-may-be", "filters in filters, as deep as may be", ANSWERED,
         _nested(limits.MAX_FILTER_DEPTH)),
    case("filters", "one-too-deep", "filters in filters, one deeper", REFUSED, _nested(limits.MAX_FILTER_DEPTH + 1)),
    case("filters", "forty-deep", "filters in filters, 40 deep", REFUSED, _nested(40)),
    case("filters", "many-values", "257 values in a list", REFUSED, _where("integer", any_of=_values(*range(257)))),
    case("filters", "no-values", "a list without values", REFUSED, _where("integer", any_of=_values())),
    case("filters", "mixed-values", "texts and integers in one list", REFUSED,
         _where("integer", any_of=_values(1, "x"))),
    case("filters", "much-text", "20,000 bytes of texts", REFUSED, _where("text", any_of=_values(*["x" * 400] * 50))),
    case("filters", "largest-integers", "the ends of 64 bits", ANSWERED,
         _where("integer", any_of=_values(2**63 - 1, -(2**63)))),
    case("filters", "nan", "equal to NaN", REFUSED, _where("number", equals=pb.Value(number=math.nan))),
    case("filters", "bound-nan", "a bound that is NaN", REFUSED, _where("number", between=pb.Between(least=math.nan))),
    case("filters", "bound-infinite", "a bound that is infinite", REFUSED,
         _where("number", between=pb.Between(most=math.inf))),
    case("filters", "bounds-crossed", "from 5 to 1", ANSWERED, _where("number", between=pb.Between(least=5, most=1))),
    case("filters", "largest-bound", "a bound of 1.8e308", ANSWERED,
         _where("number", between=pb.Between(most=1.7976931348623157e308))),
    case("filters", "no-bounds", "between nothing and nothing", REFUSED, _where("number", between=pb.Between())),
    case("filters", "says-nothing", "words of blanks", REFUSED, _where("text", says=" \t\n")),
    case("filters", "says-everything", "16,000 bytes of words", ANSWERED, _where("text", says="x " * 8000)),
    case("filters", "says-pattern", "a pattern that would run for ever", ANSWERED,
         _where("text", says="(a+)+$ .* [[[ \\")),
    case("filters", "beyond-the-pole", "a place at latitude 91", REFUSED,
         _where("place", near=pb.Near(latitude=91, longitude=0, radius_m=1))),
    case("filters", "place-nan", "a place that is NaN", REFUSED,
         _where("place", near=pb.Near(latitude=math.nan, longitude=0, radius_m=1))),
    case("filters", "radius-endless", "a radius without end", REFUSED,
         _where("place", near=pb.Near(latitude=0, longitude=0, radius_m=math.inf))),
    case("filters", "pole-itself", "all the earth around the pole", ANSWERED,
         _where("place", near=pb.Near(latitude=90, longitude=180, radius_m=limits.MAX_RADIUS_M))),
    case("filters", "bad-id", "an id that is no id", REFUSED, _where(None, has_id=pb.Ids(ids=["../../etc/passwd"]))),
    case("filters", "three-of-two", "at least 3 of 2", REFUSED,
         lambda to: to.search(where=pb.Filter(any_of=[_missing(to)] * 2, at_least=3))),
    case("filters", "at-least-all", "at least 2**32 - 1", REFUSED,
         lambda to: to.search(where=pb.Filter(any_of=[_missing(to)], at_least=2**32 - 1))),
    case("filters", "top-nothing", "no hits wanted", REFUSED, lambda to: to.search(top=0)),
    case("filters", "top-endless", "2**32 - 1 hits wanted", REFUSED, lambda to: to.search(top=2**32 - 1)),
    case("filters", "skip-wraps", "skip and top whose sum is small in 32 bits", REFUSED,
         lambda to: to.search(skip=2**32 - 5)),
    case("filters", "groups-of-numbers", "groups by a key of numbers", REFUSED,
         lambda to: to.search(group_by=to.key_of("number"))),
    case("filters", "groups-too-large", "more hits by groups than may be", REFUSED,
         lambda to: to.search(group_by=to.key_of("text"), group_size=2**32 - 1)),
    case("filters", "score-nan", "a least score that is NaN", REFUSED, lambda to: to.search(least_score=math.nan)),
    case("filters", "payload-endless", "257 keys of payload", REFUSED,
         lambda to: to.search(payload=pb.Projection(keys=[to.facts.payload_keys[0]] * 257))),
]  # fmt: skip
