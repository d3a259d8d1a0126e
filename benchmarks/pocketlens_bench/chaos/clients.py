"""A process that asks questions when they are due, and judges the answers.

Imports only the device's room, so that it starts quickly. Called by asking.py."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, sleep

from pocketlens_edge.client import AsyncClient, Client
from pocketlens_wire.errors import PocketlensError
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.chaos.judging import Asked, Right, judged, name_of

THREADS = 64  # questions that a process may have open; more wait, and are late


@dataclass(frozen=True)
class Plan:
    """What an asking process is to do. questions: serialised; due: seconds after the start."""

    server: str
    client: str
    questions: tuple[bytes, ...]
    due: tuple[float, ...]
    right: Right
    timeout_s: float


def carried_out(plan: Plan) -> list[Asked]:
    return _in_threads(plan) if plan.client == "Client" else asyncio.run(_in_tasks(plan))


def _requests(plan: Plan) -> list[pb.SearchRequest]:
    return [pb.SearchRequest.FromString(each) for each in plan.questions]


def _in_threads(plan: Plan) -> list[Asked]:
    requests = _requests(plan)
    with (
        Client(plan.server, token_space=requests[0].token_space, timeout_s=plan.timeout_s) as client,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        start = perf_counter()

        def one(which: int, due: float, woke_s: float) -> Asked:
            lag = perf_counter() - start - due
            said = judged(lambda: client.ask(requests[which]), plan.right, which)
            return Asked(due, lag, perf_counter() - start - due, *said, woke_s=woke_s)

        asked = []
        for number, due in enumerate(plan.due):
            sleep(max(0.0, start + due - perf_counter()))
            asked.append(pool.submit(one, number % len(requests), due, perf_counter() - start - due))
        return [each.result() for each in asked]


async def _in_tasks(plan: Plan) -> list[Asked]:
    requests = _requests(plan)
    async with AsyncClient(plan.server, token_space=requests[0].token_space, timeout_s=plan.timeout_s) as client:
        start = perf_counter()

        asked = list[Asked]()

        async def one(which: int, due: float) -> None:
            lag, generation, words = perf_counter() - start - due, "", ""
            try:
                answer = await client.ask(requests[which])
                said, generation = plan.right.verdict(answer, which), answer.generation
            except PocketlensError as error:
                said, words = name_of(error), str(error)
            asked.append(Asked(due, lag, perf_counter() - start - due, said, words, generation, woke_s=lag))

        async with asyncio.TaskGroup() as under_way:  # begun when due: all begun at once are late
            for number, due in enumerate(plan.due):
                await asyncio.sleep(max(0.0, start + due - perf_counter()))
                under_way.create_task(one(number % len(requests), due))
        return sorted(asked, key=lambda one: one.due)
