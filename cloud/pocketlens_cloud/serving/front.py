"""Where questions wait, whichever way they came.

Owns how many may be in the house, when one is turned away, and the order check -> text tower -> search. What a question
means is service.py's, which rows are read together batching.py's, what it came through server.py's and gateway.py's."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from pocketlens_wire.errors import Overloaded, TooLate
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.service import Service
from pocketlens_cloud.serving.batching import Batcher, Limits

HANDS: Final = 4  # threads that check questions and search; the text tower has its own
MAX_INSIDE: Final = 256  # questions in the house before new ones are turned away, whatever they wait for
MIN_RETRY_S: Final = 0.05
PATIENCE_S: Final = 0.1  # expected wait before the text tower beyond which new questions are turned away

_Result = TypeVar("_Result")
Until = float  # time.monotonic() of a deadline; inf for none


class Front:
    """The two methods of pocketlens.v1.Retrieval, as coroutines around a Service."""

    def __init__(self, service: Service, hands: ThreadPoolExecutor, readers: ThreadPoolExecutor, batch: Limits) -> None:
        """`hands`: threads for checks and searches; `readers`: for the text tower, at least `batch.runs`."""
        self._service, self._hands = service, hands
        self.batcher = Batcher(service.read, readers, batch)
        self.inside = 0
        self.shed = 0

    async def describe(self, _request: pb.DescribeRequest, _context: Any) -> pb.DescribeReply:
        return self._service.describe()

    async def search(self, request: pb.SearchRequest, context: Any) -> pb.SearchReply:
        return await self.ask(request, _until(context))

    async def ask(self, request: pb.SearchRequest, until: Until) -> pb.SearchReply:
        """One question, whichever way it came: those from the page wait in the same queue as gRPC's.

        Raises Overloaded before any work is done, TooLate once `until` has passed; what service.py raises."""
        if time.monotonic() >= until:
            raise TooLate("the deadline had passed when the question arrived")
        self._turn_away_if_full(until)
        self.inside += 1
        try:
            question = await self._by_hand(self._service.check, request)
            texts, took_s = await self.batcher.read(question.plan.rows, until)
            return await self._by_hand(self._service.finish, question, texts, took_s)
        finally:
            self.inside -= 1

    def _turn_away_if_full(self, until: Until) -> None:
        wait_s = self.batcher.expected_wait_s
        if self.inside >= MAX_INSIDE:
            why = f"{self.inside} questions are in the house already"
        elif wait_s > PATIENCE_S:
            why = f"a new question would wait {wait_s * 1e3:.0f} ms for its turn"
        elif time.monotonic() + wait_s >= until:
            why = f"a new question would wait {wait_s * 1e3:.0f} ms for its turn, longer than its deadline"
        else:
            return
        self.shed += 1
        raise Overloaded(f"{why}: try again in a moment", retry_after_s=max(wait_s, MIN_RETRY_S))

    async def _by_hand(self, work: Callable[..., _Result], *given: object) -> _Result:
        """`work` in a thread. A cancelled call cancels it: work that has not begun never begins."""
        return await asyncio.get_running_loop().run_in_executor(self._hands, work, *given)


def _until(context: Any) -> Until:
    """When the call's deadline passes."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining
