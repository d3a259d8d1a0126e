"""Means of groups' means, their intervals and paired differences."""

import numpy as np
import pytest
from pocketlens_bench.protocols import figures
from pocketlens_bench.protocols.figures import Figure, over_groups, over_queries, resamples


def test_mean_over_groups_is_not_the_mean_over_queries():
    values = np.array([100.0, 0.0, 0.0, 0.0, 100.0])
    assert over_queries("R@1", "", values).value == 40
    assert over_groups("R@1", "", values, ["dress"] * 4 + ["shirt"]).value == 62.5


def test_a_query_that_does_not_count_leaves_its_group():
    values = np.array([100.0, np.nan, 50.0])
    assert over_queries("mP@1", "", values).value == 75
    figure = over_groups("mP@1", "", values, ["a", "b", "b"])
    assert figure.group_means().tolist() == [100, 50]


def test_a_group_without_queries_that_count_is_nan():
    figure = over_groups("mAP", "", np.array([100.0, np.nan]), ["a", "b"])
    assert np.isnan(figure.value)


def test_groups_are_rounded_before_they_are_averaged_where_a_protocol_says_so():
    figure = Figure(
        name="mAP", says="", values=np.array([33.335, 66.671]), group=np.array([0, 1]), groups=("a", "b"),
        weights=np.array([0.5, 0.5]), group_decimals=1,
    )  # fmt: skip
    assert figure.value == pytest.approx((33.3 + 66.7) / 2)


def test_interval_holds_the_value_and_narrows_with_more_queries():
    rng = np.random.default_rng(0)
    few, many = (over_queries("R@1", "", 100.0 * (rng.random(n) < 0.5)).measured(seed=1) for n in (50, 5000))
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 5


def test_interval_is_that_of_the_binomial():
    measured = over_queries("R@1", "", 100.0 * (np.arange(400) % 2)).measured(seed=0)
    assert measured.high - measured.low == pytest.approx(2 * 1.96 * 50 / 20, rel=0.1)


def test_paired_difference_of_equal_rows_is_zero_and_of_a_steady_gain_has_no_width():
    values = np.random.default_rng(0).random(100)
    row, better = over_queries("R@1", "", values), over_queries("R@1", "", values + 3)
    assert row.minus(row, seed=0).high == 0
    difference = better.minus(row, seed=0)
    assert (difference.low, difference.high) == (pytest.approx(3), pytest.approx(3))


def test_rows_about_other_queries_cannot_be_compared():
    with pytest.raises(ValueError, match="not about the same queries"):
        over_groups("a", "", np.ones(2), ["x", "y"]).minus(over_groups("b", "", np.ones(2), ["y", "x"]), seed=0)


def test_queries_are_drawn_anew_within_their_groups(monkeypatch):
    monkeypatch.setattr(figures, "CELLS", 30)  # several blocks
    counts = np.concatenate(list(resamples(np.array([0, 0, 1, -1]), seed=3)))
    assert counts.shape == (figures.RESAMPLES, 4)
    assert (counts[:, :2].sum(axis=1) == 2).all()
    assert (counts[:, 2] == 1).all()
    assert not counts[:, 3].any()


def test_the_same_seed_gives_the_same_interval():
    figure = over_queries("R@1", "", np.random.default_rng(0).random(30))
    assert figure.measured(seed=5) == figure.measured(seed=5) != figure.measured(seed=6)


def test_an_interval_is_about_the_queries_that_count_alone():
    rare = over_queries("aspect", "", np.array([90.0] + [np.nan] * 9)).measured(seed=0)
    assert (rare.low, rare.value, rare.high) == (90, 90, 90)
    none = over_queries("aspect", "", np.full(3, np.nan)).measured(seed=0)
    assert np.isnan([none.low, none.value, none.high]).all()


def test_rows_that_count_other_queries_cannot_be_compared():
    with pytest.raises(ValueError, match="not about the same queries"):
        over_queries("a", "", np.array([1.0, np.nan])).minus(over_queries("b", "", np.ones(2)), seed=0)
