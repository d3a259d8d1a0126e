"""Metrics against values worked out by hand."""

import numpy as np
import pytest
from pocketlens_bench.metrics import average_precision_at, judge, mean, pessimistic, recall_at

TEN_WRONG = list("abcdefghij")


@pytest.mark.parametrize(
    ("k", "ranked", "relevant", "expected"),
    [
        (1, ["x", "a"], {"x"}, 1.0),
        (1, ["a", "x"], {"x"}, 0.0),
        (2, ["a", "x"], {"x"}, 1.0),  # the k-th rank counts
        (10, [*TEN_WRONG, "x"], {"x"}, 0.0),  # the k+1st does not
        (10, [*TEN_WRONG[:9], "x"], {"x"}, 1.0),
        (5, ["a", "x", "y"], {"x", "y", "z"}, 1.0),  # any relevant one is enough, and more are no more
        (5, [], {"x"}, 0.0),
    ],
)
def test_recall(k, ranked, relevant, expected):
    assert recall_at(k, ranked, relevant) == expected


@pytest.mark.parametrize(
    ("k", "ranked", "relevant", "expected"),
    [
        (10, ["x"], {"x"}, 1.0),
        (10, ["a", "b", "c", "x"], {"x"}, 1 / 4),
        (10, [*TEN_WRONG, "x"], {"x"}, 0.0),
        (10, ["x", "a", "y"], {"x", "y"}, (1 / 1 + 2 / 3) / 2),
        (10, ["a", "x", "b"], {"x", "y", "z"}, (1 / 2) / 3),  # what is not found still divides
        (10, ["a", "x", "b", "y", "z"], {"x", "y", "z"}, (1 / 2 + 2 / 4 + 3 / 5) / 3),
        (2, ["x", "y", "z"], {"x", "y", "z"}, 1.0),  # more relevant than places: k divides
        (2, ["a", "y", "z"], {"x", "y", "z"}, (1 / 2) / 2),
        (10, ["x", "a"], ["x", "x"], 1.0),  # a relevant id named twice is one
    ],
)
def test_average_precision(k, ranked, relevant, expected):
    assert average_precision_at(k, ranked, relevant) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [recall_at, average_precision_at])
def test_what_cannot_be_judged_is_refused(metric):
    with pytest.raises(ValueError, match="without relevant ids"):
        metric(10, ["a"], [])
    with pytest.raises(ValueError, match="ranked twice"):
        metric(10, ["a", "b", "a"], ["a"])


def test_judge_keeps_queries_and_metrics_apart():
    rankings = [["x", "a"], ["a", "b", "y"], ["a"]]
    relevant = [{"x"}, {"y"}, {"z"}]
    table = judge(("R@1", "R@10", "mAP@10"), rankings, relevant)
    assert table.tolist() == [[1, 1, 1], [0, 1, pytest.approx(1 / 3)], [0, 0, 0]]
    with pytest.raises(ValueError, match="shorter"):
        judge(("R@1",), rankings, relevant[:2])


def test_ties_count_against_us():
    all_equal = [(name, 0.5) for name in ["x", *TEN_WRONG]]  # the relevant one first, as some loaders have it
    ranked = pessimistic(all_equal, {"x"})
    assert ranked[-1] == "x"
    assert recall_at(10, ranked, {"x"}) == 0.0
    assert pessimistic([("a", 0.5), ("x", 0.9), ("b", 0.9)], {"x"}) == ["b", "x", "a"]
    assert pessimistic([("a", 0.5), ("x", np.nextafter(0.5, 1))], {"x"}) == ["x", "a"]  # larger by a hair is larger


def test_the_interval_is_as_wide_as_theory_says():
    values = np.repeat([0.0, 1.0], 200)
    measured = mean(values, seed=3)
    half = 1.96 * np.sqrt(0.25 / 400)
    assert measured.value == 0.5
    assert measured.high - 0.5 == pytest.approx(half, rel=0.15)
    assert 0.5 - measured.low == pytest.approx(half, rel=0.15)
    assert mean(values, seed=3) == measured
    assert mean(values, seed=4) != measured


def test_differences_are_paired():
    a = np.repeat([0.0, 1.0], 200)
    better = mean(a + 0.1 - a, seed=0)  # better by the same on every query: no doubt about it
    assert (better.low, better.high) == pytest.approx((0.1, 0.1))
