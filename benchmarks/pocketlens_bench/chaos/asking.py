"""Clients that ask at a stated rate whatever is done to the servers meanwhile, and judge every answer.

Two processes, half of the rate each: threads that share a `Client`, and tasks that share an `AsyncClient`, as a user
has them, with their own retries. Questions are due at times drawn in advance, answered or not. Called by the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar, final

from pocketlens_edge.client import Client
from pocketlens_edge.patience import ask_patiently
from pocketlens_wire.errors import Overloaded, TooLate, Unavailable
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.chaos.clients import Plan, carried_out
from pocketlens_bench.chaos.judging import Asked, Hits, Right, hits_of, tally
from pocketlens_bench.load import arrivals

CLIENTS = ("Client", "AsyncClient")
PATIENCE_S = 30.0  # with a question whose answer a part cannot do without
PASSING = (TooLate, Overloaded, Unavailable)

_Answer = TypeVar("_Answer")


def patiently(ask: Callable[[], _Answer]) -> _Answer:
    """The answer to a question that sets up a part, or looks how it ended: it is no measurement, so it is tried again.

    Raises PocketlensError; of those that pass, the last."""
    return ask_patiently(ask, PATIENCE_S, again=PASSING)


def answers(server: str, questions: Sequence[bytes], *, timeout_s: float) -> tuple[str, list[Hits]]:
    """What a server answers when nothing disturbs it: its generation, and the hits of each question, asked patiently.

    Raises PocketlensError."""
    requests = [pb.SearchRequest.FromString(each) for each in questions]
    with Client(server, token_space=requests[0].token_space, timeout_s=timeout_s) as client:
        found = [patiently(lambda: client.ask(request)) for request in requests]  # noqa: B023
    return found[-1].generation, [hits_of(answer) for answer in found]


@final
class Asking:
    """The processes at work."""

    def __init__(self, futures: dict[str, Future[list[Asked]]]) -> None:
        self._futures = futures

    def over(self, after_s: float = 0.0) -> bool:
        """Wait so long, or until all have asked everything; whether they have."""
        return not wait(self._futures.values(), timeout=after_s).not_done

    def rows(self) -> list[dict[str, Any]]:
        """Waits until all is answered. A row for each kind of client."""
        return [tally(name, future.result()) for name, future in self._futures.items()]

    def generations(self) -> dict[str, int]:
        """Answers by the generation that they said they are of."""
        found: dict[str, int] = {}
        for future in self._futures.values():
            for one in future.result():
                if one.generation:
                    found[one.generation] = found.get(one.generation, 0) + 1
        return found


@contextmanager
def asking(
    server: str,
    questions: tuple[bytes, ...],
    right: Right,
    *,
    rate: float,
    seconds: float,
    timeout_s: float,
    seed: int,
    kinds: Sequence[str] = CLIENTS,
) -> Iterator[Asking]:
    """`rate` questions a second of all clients together, for so long."""
    with ProcessPoolExecutor(len(kinds), get_context("spawn")) as pool:
        futures = {}
        for turn, client in enumerate(kinds):
            due = arrivals(rate / len(kinds), seconds, seed + turn)
            futures[client] = pool.submit(carried_out, Plan(server, client, questions, due, right, timeout_s))
        yield Asking(futures)
