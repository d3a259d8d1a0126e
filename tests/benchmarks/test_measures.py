"""Measures against values worked out by hand."""

import numpy as np
import pytest
from pocketlens_bench.protocols import measures
from pocketlens_bench.protocols.measures import by_name
from pocketlens_bench.shelf import marked, pessimistic

TEN_WRONG = list(range(10))
X, Y, Z = 100, 101, 102  # relevant
A, B = 0, 1  # not


def measured(name, ranked, relevant):
    return by_name(marked([ranked], [relevant]), np.array([len(set(relevant))]), [name])[name][0]


@pytest.mark.parametrize(
    ("k", "ranked", "relevant", "expected"),
    [
        (1, [X, A], {X}, 1.0),
        (1, [A, X], {X}, 0.0),
        (2, [A, X], {X}, 1.0),  # the k-th rank counts
        (10, [*TEN_WRONG, X], {X}, 0.0),  # the k+1st does not
        (10, [*TEN_WRONG[:9], X], {X}, 1.0),
        (5, [A, X, Y], {X, Y, Z}, 1.0),  # any relevant one is enough, and more are no more
        (5, [], {X}, 0.0),
    ],
)
def test_recall(k, ranked, relevant, expected):
    assert measured(f"R@{k}", ranked, relevant) == expected


@pytest.mark.parametrize(
    ("k", "ranked", "relevant", "expected"),
    [
        (10, [X], {X}, 1.0),
        (10, [A, B, 2, X], {X}, 1 / 4),
        (10, [*TEN_WRONG, X], {X}, 0.0),
        (10, [X, A, Y], {X, Y}, (1 / 1 + 2 / 3) / 2),
        (10, [A, X, B], {X, Y, Z}, (1 / 2) / 3),  # what is not found still divides
        (10, [A, X, B, Y, Z], {X, Y, Z}, (1 / 2 + 2 / 4 + 3 / 5) / 3),
        (2, [X, Y, Z], {X, Y, Z}, 1.0),  # more relevant than places: k divides
        (2, [A, Y, Z], {X, Y, Z}, (1 / 2) / 2),
        (10, [X, A], [X, X], 1.0),  # a relevant id named twice is one
    ],
)
def test_average_precision(k, ranked, relevant, expected):
    assert measured(f"mAP@{k}", ranked, relevant) == pytest.approx(expected, abs=1e-12)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="without relevant"):
        marked([[A]], [[]])
    with pytest.raises(ValueError, match="ranked twice"):
        marked([[A, B, A]], [[A]])
    with pytest.raises(ValueError, match="no such measure"):
        measured("nDCG@10", [A], [A])


def test_queries_and_measures_are_kept_apart():
    hits = marked([[X, A], [A, B, Y], [A]], [{X}, {Y}, {Z}])
    found = by_name(hits, np.ones(3), ("R@1", "R@10", "mAP@10"))
    assert {name: values.tolist() for name, values in found.items()} == {
        "R@1": [1, 0, 0], "R@10": [1, 1, 0], "mAP@10": [1, pytest.approx(1 / 3), 0],
    }  # fmt: skip
    with pytest.raises(ValueError, match="shorter"):
        marked([[X], [Y]], [{X}])


def test_ties_count_against_us():
    all_equal = [(place, 0.5) for place in [X, *TEN_WRONG]]  # the relevant one first, as some loaders have it
    ranked = pessimistic(all_equal, {X})
    assert ranked[-1] == X
    assert measured("R@10", ranked, {X}) == 0.0
    assert pessimistic([(A, 0.5), (X, 0.9), (B, 0.9)], {X}) == [B, X, A]
    assert pessimistic([(A, 0.5), (X, np.nextafter(0.5, 1))], {X}) == [X, A]  # larger by a hair is larger


def test_the_families_of_average_precision_differ_where_they_should():
    none, late = np.zeros((1, 3), bool), np.array([[False, True, True]])
    assert (
        measures.plain_ap(none, 0)[0] == measures.trapezoid_ap(none, 0)[0] == measures.interpolated_ap(none, 2)[0] == 0
    )
    assert measures.plain_ap(late, 2)[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert measures.plain_ap(late, 2, 2)[0] == pytest.approx(1 / 4)
    assert measures.trapezoid_ap(late, 2)[0] == pytest.approx(((0 / 1 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert measures.interpolated_ap(late, 2)[0] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert measures.hits_over(late, 1, 1)[0] == 0 and measures.hits_over(late, 10, 10)[0] == 0.2
    assert measures.last_hit(late)[0] == 3 and measures.last_hit(none)[0] == 0
    assert measures.plain_ap(np.zeros((2, 0), bool), 1).tolist() == [0, 0]
