"""Conditions on payload: the language of the command line, and how records travel."""

from __future__ import annotations

import numpy as np
import pytest
from pocketlens_edge.conditions import (
    AnyOf,
    Between,
    Equals,
    Filter,
    HasId,
    Missing,
    Near,
    NoneOf,
    Says,
    as_mapping,
    from_value,
    on_the_wire,
    parse_filter,
)
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.v1 import retrieval_pb2 as pb

LANGUAGE = {
    "colour=red": Equals("colour", "red"),
    " colour = wooden table ": Equals("colour", "wooden table"),
    "kind=shoe|boot": AnyOf("kind", ["shoe", "boot"]),
    "count = 1 | 3": AnyOf("count", [1, 3]),
    'kind="shoe|boot"': Equals("kind", "shoe|boot"),
    "kind='a b'|\"c|d\"": AnyOf("kind", ["a b", "c|d"]),
    "price=1.5|2": Filter(any_of=[Equals("price", 1.5), Equals("price", 2)]),
    "tag!=sale": NoneOf("tag", ["sale"]),
    "count!=1|2": NoneOf("count", [1, 2]),
    "sold!=true": Filter(none_of=[Missing("sold"), Equals("sold", True)]),
    "price<50": Between(key="price", below=50),
    "price<=50": Between(key="price", most=50),
    "price > -1.5": Between(key="price", above=-1.5),
    "price>=1e3": Between(key="price", least=1000),
    "price=10..50": Between(key="price", least=10, most=50),
    "price=..50": Between(key="price", most=50),
    "price=10..": Between(key="price", least=10),
    "name=a..b": Equals("name", "a..b"),
    "name=..": Equals("name", ".."),
    "made>=2026-01-31": Between(key="made", least=1769817600),
    "made<2026-01-31T01:00+01:00": Between(key="made", below=1769817600),
    "made=2026-01-31..2026-02-01": Between(key="made", least=1769817600, most=1769904000),
    "title~red mug": Says("title", "red mug"),
    "title~'red = mug'": Says("title", "red = mug"),
    "place@48.2,16.4,5000": Near("place", 48.2, 16.4, 5000),
    "place@ -33.9, 151, 1e3": Near("place", -33.9, 151, 1000),
    "!discount": Missing("discount"),
    "note=a=b": Equals("note", "a=b"),
    "note=a<b": Equals("note", "a<b"),
}


@pytest.mark.parametrize("text", LANGUAGE)
def test_a_line_means_what_the_help_says(text):
    assert parse_filter([text]) == Filter(all_of=[LANGUAGE[text]])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "colour",
        "=red",
        "colour=",
        "price<",
        "price<cheap",
        "price>2026-13-41",
        "place@48.2,16.4",
        "place@here",
        "!",
    ],
)
def test_what_means_nothing_is_refused_with_what_would(text):
    with pytest.raises(BadQuery, match=rf"filter `{text}`"):
        parse_filter([text])


def test_one_key_may_have_several_conditions_but_one_value():
    both = parse_filter(["price>=10", "price<50", "colour=red"])
    assert both.all_of == [Between(key="price", least=10), Between(key="price", below=50), Equals("colour", "red")]
    with pytest.raises(BadQuery, match="`colour` is given twice"):
        parse_filter(["colour=red", "colour=blue"])
    assert as_mapping(both) is None
    assert as_mapping(parse_filter(["count=2", "sold=true"])) == {"count": 2, "sold": True}


def test_plain_values_travel_so_that_older_servers_know_them():
    flat, tree = on_the_wire({"colour": "red", "count": 2})
    assert [condition.key for condition in flat] == ["colour", "count"]
    assert tree == pb.Filter()
    flat, tree = on_the_wire(Filter(all_of=[Equals("colour", "red"), Missing("tag")], none_of=[Equals("count", 1)]))
    assert [condition.key for condition in flat] == ["colour"]
    assert [clause.condition.WhichOneof("test") for clause in tree.all_of] == ["missing"]
    assert tree.none_of[0].condition.equals.integer == 1


def test_every_record_has_its_form_on_the_wire():
    parts = [
        AnyOf("kind", ("shoe", "boot")),
        NoneOf("count", (1, 2)),
        Between(key="price", above=0.0, most=5),
        Says("title", "mug"),
        Near("place", 1, 2, 3),
        Missing("tag"),
        HasId(["0" * 32]),
    ]
    _, tree = on_the_wire(Filter(any_of=[*parts, Filter(all_of=parts)], at_least=2))
    tests = [clause.condition.WhichOneof("test") for clause in tree.any_of[:-1]]
    assert tests == ["any_of", "none_of", "between", "says", "near", "missing", "has_id"]
    assert tree.at_least == 2
    between = tree.any_of[2].condition.between
    assert (between.above, between.most, between.HasField("above"), between.HasField("least")) == (0, 5, True, False)
    assert len(tree.any_of[-1].filter.all_of) == len(parts)


def test_lists_and_places_of_payload_are_plain_values():
    several = pb.Values(values=[pb.Value(text="a"), pb.Value(text="b")])
    assert from_value(pb.Value(several=several)) == ["a", "b"]
    assert from_value(pb.Value(several=pb.Values(values=[pb.Value(integer=3)]))) == [3]
    assert from_value(pb.Value(place=pb.Place(latitude=48.2, longitude=16.4))) == {"lat": 48.2, "lon": 16.4}
    assert from_value(pb.Value()) == ""


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (AnyOf("kind", "shoe"), "not one text"),
        (Between(key="price"), "at least one bound"),
        (Between(key="price", least=np.nan), "finite"),
        (Filter(any_of=[Missing("a")], at_least=2), "at_least is 2; it must be 1 to the 1"),
        (Says("title", "caf\udce9"), "cannot be read as Unicode"),
        (AnyOf("count", [2**63]), "filter `count`"),
    ],
)
def test_what_cannot_travel_is_refused_here(where, message):
    with pytest.raises(BadQuery, match=message):
        on_the_wire(where)
