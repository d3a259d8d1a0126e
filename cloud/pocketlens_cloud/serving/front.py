"""Where questions wait, whichever way they came.

Owns how many may be in the house, and the threads models run in; what a question means is service.py's, what it came
through is server.py's and gateway.py's."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pocketlens_wire.errors import Overloaded, TooLate
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.service import Service

WORKERS: Final = 2  # model runs at once; each uses several threads itself
MAX_WAITING: Final = 128  # questions in the house before new ones are turned away


class Front:
    """The two methods of pocketlens.v1.Retrieval, as coroutines around a Service."""

    def __init__(self, service: Service, pool: ThreadPoolExecutor) -> None:
        self._service, self._pool = service, pool
        self._waiting = 0

    async def describe(self, _request: pb.DescribeRequest, _context: Any) -> pb.DescribeReply:
        return self._service.describe()

    async def search(self, request: pb.SearchRequest, context: Any) -> pb.SearchReply:
        return await self.ask(request, _deadline(context))

    async def ask(self, request: pb.SearchRequest, is_too_late: Callable[[], bool]) -> pb.SearchReply:
        """One question, whichever way it came: those from the page wait in the same queue as gRPC's."""
        if is_too_late():
            raise TooLate("the deadline had passed when the question arrived")
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} questions are waiting already: try again in a moment")
        question = self._service.check(request)
        self._waiting += 1
        try:
            # A cancelled call cancels this future: work that has not begun never begins.
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._service.answer, question, is_too_late
            )
        finally:
            self._waiting -= 1


def _deadline(context: Any) -> Callable[[], bool]:
    """A question anyone may ask from any thread: has this call's deadline passed?"""
    remaining = context.time_remaining()
    if remaining is None:
        return lambda: False
    until = time.monotonic() + remaining
    return lambda: time.monotonic() >= until
