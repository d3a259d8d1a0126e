"""Judging by a matrix product: percent per query, paired differences, intervals."""

import numpy as np
import pytest
from pocketlens_bench.protocols.figures import over_queries
from pocketlens_bench.questions import Questions, figures, mean_of, minus


def asked(cosines, relevant):
    """Questions whose gallery pictures are the axes, so that a query vector is its cosines."""
    cosines = np.array(cosines, np.float32)
    gallery = {"original": np.eye(cosines.shape[1], dtype=np.float32)}
    kind = Questions(
        key="hand", title="by hand", pictures=(), words=("",) * len(cosines), relevant=relevant, gallery=gallery
    )
    return kind.judged(cosines)


def test_a_hand_worked_ranking():
    descending = np.linspace(1, 0, 12)
    judged = asked([descending, descending], ((0, 2, 11), (10,)))
    assert judged["R@1"].tolist() == [100, 0]
    assert judged["R@10"].tolist() == [100, 0]
    # Query 0: relevant at ranks 1, 3 and 12; precisions 1 and 2/3 among the first ten, over min(3, 10).
    assert judged["mAP@10"] == pytest.approx([100 * (1 + 2 / 3) / 3, 0])


def test_ties_count_against_us():
    judged = asked([[0.5] * 12], ((0,),))
    assert [judged[name][0] for name in ("R@1", "R@10", "mAP@10")] == [0, 0, 0]


def test_figures_are_those_of_the_protocols():
    values = np.random.default_rng(3).random(40) * 100
    judged = {"R@1": values, "R@10": values, "mAP@10": values}
    expected = over_queries("x", "", values).measured(seed=5)
    for name in judged:
        came = figures(judged, seed=5)[name]
        assert (came["value"], came["low"], came["high"]) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )


def test_differences_and_means_are_query_by_query():
    one, two = {"R@1": np.array([100.0, 0.0])}, {"R@1": np.array([0.0, 0.0])}
    assert minus(one, two)["R@1"].tolist() == [100, 0]
    assert mean_of([one, two])["R@1"].tolist() == [50, 0]
