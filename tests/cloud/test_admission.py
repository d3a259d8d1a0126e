"""Each key's share: what is let in, what it pays, what it is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pocketlens_cloud.serving.admission import Buckets, Rate
from pocketlens_wire.errors import Overloaded

FOUR = Rate(per_s=4, burst=8)


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def asked(buckets: Buckets, caller: str, rows: int = 1, rate: Rate = FOUR) -> bool:
    try:
        buckets.let_in(caller, rate)
    except Overloaded:
        return False
    buckets.pay(caller, rate, rows - 1)
    return True


def test_a_burst_then_the_rate_and_when_to_come_again():
    clock = Clock()
    buckets = Buckets(now=clock)
    assert [asked(buckets, "a") for _ in range(9)] == [True] * 8 + [False]
    with pytest.raises(Overloaded, match="key a may ask 4 rows a second") as caught:
        buckets.let_in("a", FOUR)
    clock.at += caught.value.retry_after_s
    assert asked(buckets, "a") and not asked(buckets, "a")


def test_one_callers_flood_leaves_the_others_alone():
    buckets = Buckets(now=Clock())
    assert sum(asked(buckets, "loud") for _ in range(1000)) == 8
    assert asked(buckets, "quiet")


def test_a_question_of_many_rows_is_owed_for():
    clock = Clock()
    buckets = Buckets(now=clock)
    assert asked(buckets, "a", rows=20)  # 12 owed
    clock.at += 3
    assert not asked(buckets, "a")
    clock.at += 0.25
    assert asked(buckets, "a")


@pytest.mark.parametrize("rate", [Rate(per_s=0.5, burst=1), Rate(per_s=4, burst=1)])
def test_questions_that_come_together_are_let_in_one_by_one(rate):
    clock = Clock()
    buckets = Buckets(now=clock)
    buckets.let_in("a", rate)
    with pytest.raises(Overloaded) as caught:
        buckets.let_in("a", rate)  # before the first has paid for its other rows
    clock.at += caught.value.retry_after_s
    buckets.let_in("a", rate)


def test_what_is_remembered_is_bounded():
    buckets = Buckets(now=Clock(), most=3)
    for caller in "abcd":
        assert asked(buckets, caller, rows=8)
    assert [asked(buckets, caller, rows=8) for caller in "dca"] == [False, False, True]  # a was forgotten


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 12)), max_size=60))
def test_never_more_than_the_burst_and_the_rate_and_the_last_questions_rows(steps):
    clock = Clock()
    buckets, began, got = Buckets(now=clock), clock.at, 0
    for pause, rows in steps:
        clock.at += pause
        if asked(buckets, "a", rows=rows):
            got += rows
        assert got <= FOUR.burst + FOUR.per_s * (clock.at - began) + 12 + 1e-6
