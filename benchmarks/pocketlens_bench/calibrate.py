"""What a server's parts cost when each is alone: the text tower, the checks, the search, a call that does nothing.

So a simulation can be held against a served run without having seen it. Times of the tower and of the checks are the
thread's own processor time, which others' work on the machine distorts less. Called by plan_check.py."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from time import perf_counter, thread_time
from typing import Any

import numpy as np
from pocketlens_cloud.service import Service
from pocketlens_cloud.towers import Row, buckets
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.serving import Asker, Split, bound_to
from pocketlens_bench.simulate import Costs, Seconds

ROUNDS = 12  # of each group of the tower's
QUESTIONS = 300  # whose checks and searches are timed


def costs_of(
    service: Service,
    rows: Sequence[Row],
    requests: Sequence[bytes],
    split: Split,
    *,
    most_tokens: int,
    seconds: float,
    threads: int,
) -> Costs:
    """Tower, checks and searches by themselves, on the measured processors; what a call costs besides is `way`'s.

    threads: of one run of the tower; more than one do not work in the thread that asks, so the clock tells then."""
    with bound_to(split.measured):
        clock = thread_time if threads == 1 else perf_counter
        run_s, token_s, scatter = tower(service.read, grouped(rows, most_tokens), clock)
        check_s, finish_s = by_hand(service, requests[:QUESTIONS])
        full = [each for each in grouped(rows, most_tokens) if len(each) * len(each[0].ids) > most_tokens // 2]
        speeds = side_by_side(service.read, full, len(split.measured), seconds, clock)
    return Costs(run_s=run_s, token_s=token_s, scatter=scatter, speeds=speeds, check_s=check_s, finish_s=finish_s)


def grouped(rows: Sequence[Row], most_tokens: int) -> list[list[Row]]:
    """Runs of one row up to as many as `most_tokens` hold, rows of a run of like length."""
    order = sorted(rows, key=lambda row: len(row.ids))
    found = []
    for most_rows in (1, 2, 4, 8, 16):
        groups = list(buckets([len(row.ids) for row in order], most_rows=most_rows, most_tokens=most_tokens))
        found += [[order[at] for at in group] for group in groups[:: max(1, len(groups) // 12)]]
    return found


def tower(
    read: Callable[[Sequence[Row]], Any], groups: Sequence[Sequence[Row]], clock: Callable[[], float] = perf_counter
) -> tuple[float, float, Seconds]:
    """Seconds of a run and of a token, fitted to each group's median, and how far single runs lie from the fit."""
    took = np.array([[_timed(read, group, clock) for _ in range(ROUNDS)] for group in groups])  # (groups, rounds)
    tokens = np.array([len(group) * max(len(row.ids) for row in group) for group in groups], float)
    run_s, token_s = fitted(tokens, np.median(took, axis=1))
    return run_s, token_s, (took / (run_s + token_s * tokens)[:, None]).ravel()


def fitted(tokens: Seconds, took_s: Seconds) -> tuple[float, float]:
    """run and token with least relative error of run + token x tokens; neither below 0."""
    design = np.stack([1 / took_s, tokens / took_s], axis=1)
    run_s, token_s = np.linalg.lstsq(design, np.ones(len(tokens)), rcond=None)[0]
    if run_s < 0:
        return 0.0, float(np.mean(took_s / tokens))
    return float(run_s), float(max(token_s, 0.0))


def by_hand(service: Service, requests: Sequence[bytes]) -> tuple[Seconds, Seconds]:
    """Seconds of each question's checks, and of its heads, search and reply."""
    check_s, finish_s = [], []
    for content in requests:
        request = pb.SearchRequest.FromString(content)
        began = thread_time()
        question = service.check(request)
        check_s.append(thread_time() - began)
        texts = service.read(question.plan.rows)
        read = perf_counter()  # the gallery's engine has threads of its own
        service.finish(question, texts, 0.0).SerializeToString()
        finish_s.append(perf_counter() - read)
    return np.array(check_s), np.array(finish_s)


def side_by_side(
    read: Callable[[Sequence[Row]], Any], groups: Sequence[Sequence[Row]], most: int, seconds: float,
    clock: Callable[[], float],
) -> tuple[float, ...]:  # fmt: skip
    """How fast each of 1 .. `most` runs goes beside the others, 1 being alone."""
    took = [_a_run(read, groups, threads, seconds, clock) for threads in range(1, most + 1)]
    return tuple(min(1.0, took[0] / each) for each in took)


def _a_run(
    read: Callable[[Sequence[Row]], Any], groups: Sequence[Sequence[Row]], threads: int, seconds: float,
    clock: Callable[[], float],
) -> float:  # fmt: skip
    """Seconds of a run by `clock`, while `threads` of them are under way."""

    def work(thread: int) -> tuple[int, float]:
        turn, done, began = cycle([*groups[thread:], *groups[:thread]]), 0, clock()
        while perf_counter() < until:
            read(next(turn))
            done += 1
        return done, clock() - began

    with ThreadPoolExecutor(threads) as pool:
        until = perf_counter() + seconds
        parts = list(pool.map(work, range(threads)))
    return sum(took for _, took in parts) / max(1, sum(done for done, _ in parts))


def way(asker: Asker, seconds: float, at_once: int) -> tuple[float, float]:
    """(processor seconds of the server for a call that does nothing, what is left of its time when it is alone).

    Linux only: the processor's time is read from /proc."""
    calls = asker.doing_nothing()
    alone = [one.took_s for one in calls.closed(1, seconds) if one.status == "OK"]
    before = asker.server.processor_s()
    many = [one for one in calls.closed(at_once, seconds) if one.status == "OK"]
    loop_s = (asker.server.processor_s() - before) / len(many)
    return loop_s, max(0.0, float(np.median(alone)) - loop_s)


def _timed(read: Callable[[Sequence[Row]], Any], rows: Sequence[Row], clock: Callable[[], float]) -> float:
    began = clock()
    read(rows)
    return clock() - began
