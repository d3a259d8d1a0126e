"""The simulation against closed forms of queueing theory, and against the rules of the service it stands for."""

from dataclasses import replace
from math import factorial

import numpy as np
import pytest
from pocketlens_bench.load import arrivals
from pocketlens_bench.simulate import Costs, House, queue_times, simulate, slowest_of
from pocketlens_cloud.serving.batching import Limits

ONE_BY_ONE = House(batch=Limits(most_rows=1), most_inside=10**9, patience_s=1e9)
RUN_S = 0.01


def due_at(rate: float, questions: int, seed: int = 1):
    return np.array(arrivals(rate, 1.3 * questions / rate, seed)[:questions])


def draws(questions: int, seed: int = 2):
    return np.random.default_rng(seed).exponential(RUN_S, questions)


# --- one queue


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_queue_waits_as_long_as_theory_says(load):
    due = due_at(load / RUN_S, 100_000)
    random = queue_times(due, draws(len(due)), 1).mean()
    even = queue_times(due, np.full(len(due), RUN_S), 1).mean()
    assert random == pytest.approx(RUN_S / (1 - load), rel=0.06)  # M/M/1
    assert even == pytest.approx(RUN_S * (1 + load / (2 * (1 - load))), rel=0.03)  # M/D/1, Pollaczek and Khinchine


def test_a_queue_before_three_waits_as_erlang_says():
    servers, load = 3, 2.1
    due = due_at(load / RUN_S, 100_000)
    terms = [load**k / factorial(k) for k in range(servers)]
    last = load**servers / factorial(servers) * servers / (servers - load)
    waits = last / (sum(terms) + last) * RUN_S / (servers - load)
    assert queue_times(due, draws(len(due)), servers).mean() == pytest.approx(RUN_S + waits, rel=0.05)


def test_the_slowest_of_many_is_as_theory_says():
    times = np.random.default_rng(3).exponential(1.0, 200_000)
    for shards in (1, 4, 30):
        mean = slowest_of(times, shards, 100_000, np.random.default_rng(4)).mean()
        assert mean == pytest.approx(sum(1 / k for k in range(1, shards + 1)), rel=0.02)  # harmonic


# --- the server


@pytest.mark.parametrize("runs", [1, 2])
def test_without_batches_the_tower_is_that_queue_question_by_question(runs):
    """Also that no work is lost and none waits beside a free run: one idle moment would move every time after it."""
    due, even = due_at(1.4 / RUN_S if runs == 2 else 0.8 / RUN_S, 3000), RUN_S
    house = replace(ONE_BY_ONE, batch=Limits(most_rows=1, runs=runs))
    came = simulate(due, [(16,)], Costs(run_s=even, token_s=0, speeds=(1.0,) * runs), house)
    assert came.sojourn_s == pytest.approx(queue_times(due, np.full(len(due), even), runs))
    assert came.tower_work_s == pytest.approx(len(due) * even)
    if runs == 1:
        assert came.tower_busy_s == pytest.approx(came.tower_work_s)


def test_a_server_of_random_runs_waits_as_theory_says():
    due = due_at(60, 20_000)
    came = simulate(due, [(8,)], Costs(run_s=RUN_S, token_s=0, scatter=draws(5000) / RUN_S), ONE_BY_ONE)
    assert came.sojourn_s.mean() == pytest.approx(RUN_S / (1 - 0.6), rel=0.1)


@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 1.0, 1.0)])
def test_what_shares_pythons_lock_shares_one_processor(speeds):
    """M/G/1 with processor sharing: the mean time is work / (1 - load), whatever the work's distribution; further
    processors do not help."""
    house = replace(ONE_BY_ONE, hands=10**6)
    due = due_at(60, 12_000)
    for check_s in (np.full(1, RUN_S), draws(5000)):
        came = simulate(due, [(8,)], Costs(run_s=0, token_s=0, check_s=check_s, speeds=speeds), house)
        assert came.sojourn_s.mean() == pytest.approx(check_s.mean() / (1 - 60 * check_s.mean()), rel=0.08)


def test_runs_share_processors_with_what_holds_the_lock():
    """One processor, a check and a run at once: each takes twice as long."""
    house = replace(ONE_BY_ONE, batch=Limits(most_rows=1))
    costs = Costs(run_s=1.0, token_s=0, check_s=np.full(1, 1.0))
    alone = simulate(np.zeros(1), [(8,)], costs, house).sojourn_s
    both = simulate(np.array([0.0, 1.0]), [(8,)], costs, house).sojourn_s
    assert alone == pytest.approx([2.0])
    assert both == pytest.approx([3.0, 3.0])  # the first's run and the second's check share 1 s .. 3 s
    two = simulate(np.array([0.0, 1.0]), [(8,)], replace(costs, speeds=(1.0, 1.0)), house).sojourn_s
    assert two == pytest.approx([2.0, 2.0])


def test_what_is_inside_on_average_is_rate_times_stay():
    """Little's law, exactly: both sides are counted apart."""
    due = due_at(900, 4000)
    costs = Costs(run_s=0.001, token_s=5e-5, check_s=np.full(1, 2e-4), finish_s=np.full(1, 1e-3), speeds=(1.0, 0.9))
    elsewhere = replace(costs, away_s=np.full(1, 1e-6))  # so that the loop searches not, and lets in at once who comes
    came = simulate(due, [(8,), (30,), (16, 9, 8)], elsewhere, House(batch=Limits(runs=2)))
    answered = came.sojourn_s[~np.isnan(came.sojourn_s)]
    assert 0 < len(answered) < len(due)  # some were turned away
    assert came.mean_inside * came.ended == pytest.approx(answered.sum())


def test_a_full_house_turns_away_as_many_as_theory_says():
    """M/M/1/K: share turned away with room for K."""
    room, load = 5, 0.9
    due = due_at(load / RUN_S, 20_000)
    costs = Costs(run_s=RUN_S, token_s=0, scatter=draws(5000) / RUN_S)
    came = simulate(due, [(8,)], costs, replace(ONE_BY_ONE, most_inside=room))
    expected = (1 - load) * load**room / (1 - load ** (room + 1))
    assert np.isnan(came.sojourn_s).mean() == pytest.approx(expected, abs=0.01)


def test_who_would_wait_too_long_is_turned_away_and_the_others_are_answered_at_full_speed():
    costs = Costs(run_s=0.001, token_s=1e-4)
    a_run = 0.001 + 128 * 1e-4  # 8 rows of 16 tokens
    most = 8 / a_run
    due = due_at(10 * most, 20_000)
    came = simulate(due, [(16,)], costs)
    row = came.row(1, due[-1] - 1)
    assert np.sum(~np.isnan(came.sojourn_s)) / came.ended == pytest.approx(most, rel=0.02)
    assert row["rows_a_run"] == pytest.approx(8, rel=0.02)
    assert row["shed_share"] == pytest.approx(0.9, abs=0.01)
    assert row["p99_ms"] < 1e3 * (House().patience_s + 3 * a_run)
    calm = simulate(due_at(0.5 * most, 3000), [(16,)], costs).row(0, 3)
    assert calm["shed_share"] == 0 and calm["rows_a_run"] < 3


def test_rows_are_grouped_by_length_as_the_service_groups_them():
    """Two lengths far apart never share a run: 7 short rows and one long one are two runs."""
    due = np.zeros(9)
    lengths = [(100,), *[(8,)] * 7, (100,)]
    came = simulate(due, lengths, Costs(run_s=1.0, token_s=0), replace(ONE_BY_ONE, batch=Limits()))
    assert came.runs == 3  # the first alone, since it found nobody; then the short ones or the long one
    assert sorted(came.sojourn_s)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("packs", "tokens"), [(True, 36 + 40 + 40 + 36), (False, 36 + 3 * 40)])
def test_a_tower_that_packs_is_not_charged_for_padding(packs, tokens):
    """The first row finds nobody; the other three share a run."""
    house = House(batch=Limits(kept=0, packs=packs, most_tokens=1000))
    came = simulate(np.zeros(4), [(36,), (40,), (40,), (36,)], Costs(run_s=0, token_s=0.001), house)
    assert (came.runs, came.rows) == (2, 4)
    assert came.tower_work_s == pytest.approx(0.001 * tokens)


def test_a_hand_that_waits_for_a_search_elsewhere_does_nothing_else():
    due = due_at(200, 1000)
    costs = Costs(run_s=1e-6, token_s=0, away_s=np.full(1, 0.05))
    row = simulate(due, [(8,)], costs, replace(ONE_BY_ONE, hands=4)).row(0, due[-1])
    assert row["achieved_per_s"] == pytest.approx(4 / 0.05, rel=0.03)


def test_the_same_seed_gives_the_same_times():
    due = due_at(500, 500)
    costs = Costs(run_s=0.001, token_s=1e-5, scatter=np.array([0.9, 1.0, 1.3]))
    once, again, other = (simulate(due, [(8,), (20,)], costs, seed=seed).sojourn_s for seed in (1, 1, 2))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_who_comes_to_a_full_line_before_the_loop_is_ended_and_the_others_are_answered_at_full_speed():
    a_call = 0.004
    due = due_at(10 / a_call, 20_000)
    costs = Costs(run_s=1e-4, token_s=0, loop_s=a_call)
    came = simulate(due, [(8,)], costs, House(batch=Limits(runs=2)))
    answered = came.sojourn_s[~np.isnan(came.sojourn_s)]
    assert len(answered) == pytest.approx(came.ended / a_call, rel=0.05)
    assert 256 * a_call / 2 < np.median(answered) < 520 * a_call
    endless = simulate(due, [(8,)], costs, House(batch=Limits(runs=2), pending=(10**6, 10**7)))
    assert np.nanmedian(endless.sojourn_s) > 10 * np.median(answered)
