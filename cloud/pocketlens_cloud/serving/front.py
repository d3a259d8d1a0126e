"""Where questions wait, whichever way they came.

Owns how many may be in the house, when one is turned away (each key's share is admission.py's), and the order check ->
text tower -> search. What a question means is service.py's, which rows are read together batching.py's, what it came
through server.py's and gateway.py's."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire import limits
from pocketlens_wire.errors import Overloaded, PocketlensError, ServerFault, TooLate, Unavailable
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_cloud.conversation import Conversation
from pocketlens_cloud.service import Question, Service
from pocketlens_cloud.serving import keys
from pocketlens_cloud.serving.admission import Buckets, Rate
from pocketlens_cloud.serving.batching import Batcher, Limits
from pocketlens_cloud.serving.hands import Hands

HANDS: Final = 16  # threads for checks and long or far searches, most of them asleep; the text tower has its own
MAX_INSIDE: Final = 256  # questions in the house before new ones are turned away, whatever they wait for
MIN_RETRY_S: Final = 0.05
MAX_RETRY_S: Final = 2.0
PATIENCE_S: Final = 0.1  # expected wait before the text tower beyond which new questions are turned away
TURN_OF_LOOP_S: Final = 0.005  # of searches in one turn of the event loop, beyond which threads do them
TURN_S: Final = 10.0  # that one turn of a conversation has, since a conversation itself has no deadline
MAX_CONVERSATIONS: Final = 128  # open at once: each is a stream that waits for a person

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
Read = Callable[[], Awaitable[pb.ConverseRequest | None]]
LetGo = Callable[[PocketlensError], object]
Until = float  # time.monotonic() of a deadline; inf for none


class Front:
    """The methods of pocketlens.v1.Retrieval, as coroutines around a Service."""

    def __init__(self, service: Service, hands: Executor, readers: Executor, batch: Limits) -> None:
        """`hands`: for checks, and searches long or far; `readers`: for the text tower, at least `batch.runs`."""
        self._service, self._hands = service, Hands(hands, HANDS)
        self.batcher = Batcher(service.read, readers, batch)
        self._buckets = Buckets()
        self.inside = 0
        self._coming = 0  # of them, those whose rows are not in the queue yet, though they will be
        self.conversations = 0
        self._next_back = 0.0  # time.monotonic() until which room is spoken for by those who were turned away
        self._turn_s = 0.0  # of searches in the present turn of the loop
        self._closing = asyncio.Event()

    async def describe(self, _request: pb.DescribeRequest, _context: Any) -> pb.DescribeReply:
        return self._service.describe()

    async def search(self, request: pb.SearchRequest, context: Any) -> pb.SearchReply:
        return await self.ask(request, _until(context))

    async def ask(self, request: pb.SearchRequest, until: Until) -> pb.SearchReply:
        """One question, whichever way it came: those from the page wait in the same queue as gRPC's.

        Raises Overloaded before any work is done, TooLate once `until` has passed; what service.py raises."""
        if time.monotonic() >= until:
            raise TooLate("the deadline had passed when the question arrived")
        if refused := self.refusal(until):
            raise refused
        key = keys.current()
        rate = Rate(key.rate, max(1.0, key.burst or key.rate)) if key and key.rate else None
        if key and rate:
            self._buckets.let_in(key.id, rate)
        self.inside += 1
        try:
            question = await self._checked(request)
            if key and rate:
                self._buckets.pay(key.id, rate, len(question.plan.rows) - 1)
            texts, took_s = await self.batcher.read(question.plan.rows, until)
            return await self._finished(question, texts, took_s)
        finally:
            self.inside -= 1

    async def _finished(self, question: Question, texts: NDArray[np.float32], took_s: float) -> pb.SearchReply:
        """A quick end here, since handing it over and back takes longer; but no more of them in one turn of the loop
        than others can wait for: a run of the tower may end many questions at once."""
        if self._turn_s > TURN_OF_LOOP_S or not self._service.finishes_quickly(question):
            return await self._hands.do(self._service.finish, question, texts, took_s)
        if not self._turn_s:
            asyncio.get_running_loop().call_soon(self._begin_turn)
        began = time.perf_counter()
        try:
            return self._service.finish(question, texts, took_s)
        finally:
            self._turn_s += time.perf_counter() - began

    def _begin_turn(self) -> None:
        self._turn_s = 0.0

    async def _checked(self, request: pb.SearchRequest) -> Question:
        self._coming += 1
        try:
            return await self._hands.do(self._service.check, request)
        finally:
            self._coming -= 1

    async def converse(self, read: Read, let_go: LetGo, context: Any) -> AsyncIterator[pb.ConverseReply]:
        """Answer message after message; the next one is taken in only after the reply to the one before has left, so
        that who sends faster than that meets the transport's own flow control.

        `read` gives None at the end; `let_go` is called when a reply is not taken for long. Raises Overloaded when too
        many converse, TooLate when nothing is said for long, Unavailable when the server stops, Unauthenticated and
        NotAllowed once the caller's key is no longer good; BadQuery and SpaceMismatch as conversation.py says."""
        if self.conversations >= MAX_CONVERSATIONS:
            raise Overloaded(f"{self.conversations} conversations are open already: try again in a while")
        self.conversations += 1
        try:
            conversation = Conversation()
            while message := await self._next(read()):
                keys.judge_again()
                reply = await self._turn(conversation, message, _until(context))
                with _leaving_in_time(let_go):
                    yield reply
        finally:
            self.conversations -= 1

    async def _turn(self, conversation: Conversation, message: pb.ConverseRequest, until: Until) -> pb.ConverseReply:
        try:
            request = conversation.take(message)
            return conversation.answered(await self.ask(request, min(until, time.monotonic() + TURN_S)))
        except PocketlensError as error:
            reply = conversation.refused(error)
            if isinstance(error, ServerFault):
                log.error("a turn failed", exc_info=error)
            return reply

    async def _next(self, saying: Awaitable[_Result]) -> _Result:
        """What the other side says, waited for as long as it may be silent."""
        said, closing = asyncio.ensure_future(saying), asyncio.ensure_future(self._closing.wait())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait((said, closing), timeout=limits.MAX_IDLE_S, return_when=first)
            if said.done():
                return said.result()
            if closing.done():
                raise Unavailable("the server stops: open the conversation again in a moment")
            raise TooLate(f"nothing was said for {limits.MAX_IDLE_S} s, which ends a conversation")
        finally:
            said.cancel()
            closing.cancel()

    def end_conversations(self) -> None:
        """Let none wait for its next message any longer; a turn under way is answered."""
        self._closing.set()

    @property
    def wait_s(self) -> float:
        """What a question that came now would wait for its turn, behind those in the queue and on their way there."""
        return self.batcher.wait_s(self._coming)

    def refusal(self, until: Until = float("inf")) -> Overloaded | None:
        """Why a question with the deadline `until` is turned away now; None: let it in."""
        wait_s = self.wait_s
        if self.inside >= MAX_INSIDE:
            why = f"{self.inside} questions are in the house already"
        elif wait_s > PATIENCE_S:
            why = f"a new question would wait {wait_s * 1e3:.0f} ms for its turn"
        elif time.monotonic() + wait_s >= until:
            why = f"a new question would wait {wait_s * 1e3:.0f} ms for its turn, longer than its deadline"
            return Overloaded(f"{why}: allow more time", retry_after_s=max(wait_s, MIN_RETRY_S))
        else:
            return None
        return Overloaded(f"{why}: try again in a moment", retry_after_s=self._come_again_s(wait_s))

    def _come_again_s(self, wait_s: float) -> float:
        """When there will be room for one more: those turned away are told times as far apart as questions are read,
        so that they do not all come again to a house that is full of the others."""
        now, wait_s = time.monotonic(), max(wait_s, MIN_RETRY_S)
        apart_s = wait_s / max(1, self.batcher.waiting + self._coming or self.inside)
        self._next_back = min(max(now + wait_s, self._next_back + apart_s), now + MAX_RETRY_S)
        return self._next_back - now


@contextmanager
def _leaving_in_time(let_go: LetGo) -> Iterator[None]:
    """Let go, and cancel this task, unless what it yields inside is taken in time."""
    task = asyncio.current_task()
    assert task is not None

    def give_up() -> None:
        let_go(TooLate(f"no reply was taken for {limits.MAX_IDLE_S} s, which ends a conversation"))
        task.cancel()

    giving_up = asyncio.get_running_loop().call_later(limits.MAX_IDLE_S, give_up)
    try:
        yield
    finally:
        giving_up.cancel()


def _until(context: Any) -> Until:
    """When the call's deadline passes."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining
