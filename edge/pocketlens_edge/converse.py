"""A conversation: one picture, whose tokens travel once, and words that refine turn by turn.

Owns what is said in it and how a reply is read, for both clients. Turns are numbered by the server's count of messages,
which is ours. Called through client.py; the line to whoever answers is handed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, Self

from pocketlens_wire.errors import STATUS_OF, BadQuery, Overloaded, PocketlensError, ServerFault
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_edge.answers import Answer, answer_of
from pocketlens_edge.conditions import Where, on_the_wire, unicode
from pocketlens_edge.questions import (
    Mode,
    Modifier,
    check_group_size,
    check_page,
    check_score,
    mode_name,
    projection,
    wire_mode,
    wire_modifier,
)

_KINDS = {kind.__name__: kind for kind in STATUS_OF}


@dataclass(frozen=True, kw_only=True)
class InForce:
    """Words that count, and the turn that they came with."""

    turn: int
    words: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn, answered.

    number: from 1, the opening. in_force: the words that count after it, in the order in which they are read. before:
    the turn to which going back one leads, 0 for none. mode, top, skip: as the server understands them."""

    number: int
    in_force: list[InForce]
    before: int
    mode: str
    top: int
    skip: int
    answer: Answer


class Line(Protocol):
    """The way to whoever answers: one reply to each message."""

    def exchange(self, message: pb.ConverseRequest) -> pb.ConverseReply: ...
    def close(self) -> None: ...


class AsyncLine(Protocol):
    """The same in asyncio."""

    async def exchange(self, message: pb.ConverseRequest) -> pb.ConverseReply: ...
    async def close(self) -> None: ...


class Conversation:
    """A question refined turn by turn. A context manager; not to be shared by threads.

    Every method asks and gives the turn's answer. A PocketlensError of a turn that the server did not understand or
    could not answer leaves everything as it was: say something else. After one that ends the conversation (another
    space, no server, a deadline) every further turn meets it again."""

    def __init__(self, opening: pb.SearchRequest, line: Line, *, server: str, sends: bool) -> None:
        """opening: the question to begin with, asked with the first turn. sends: whether anything leaves the device."""
        self._script, self._line = _Script(opening, server, sends=sends), line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it. Nothing can be said afterwards."""
        self._script.end()
        self._line.close()

    @property
    def in_force(self) -> list[InForce]:
        """The words that count."""
        return self._script.in_force

    @property
    def over(self) -> bool:
        """Whether nothing more can be said."""
        return self._script.over

    def look(self) -> Turn:
        """Ask the opening question as it is. Raises BadQuery later than that."""
        return self._turn(self._script.look())

    def say(self, words: Modifier | str) -> Turn:
        """Refine: more words, or with a negative weight "not this". The first ones go with the opening."""
        return self._turn(self._script.say(words))

    def replace(self, turn: int, words: Modifier | str | None) -> Turn:
        """Other words in place of those of `turn`; None takes them out."""
        return self._turn(self._script.replace(turn, words))

    def back(self, turns: int = 1) -> Turn:
        """Undo what the last turns changed."""
        return self._turn(self._script.back(turns))

    def back_to(self, turn: int) -> Turn:
        """Back to how it was after `turn`."""
        return self._turn(self._script.back_to(turn))

    def change(
        self,
        *,
        where: Where | None = None,
        top: int | None = None,
        skip: int | None = None,
        mode: Mode | None = None,
        least_score: float | None = None,
        group_by: str | None = None,
        group_size: int | None = None,
        payload: Sequence[str] | None = None,
        rerank: bool | None = None,
    ) -> Turn:
        """Change what else is asked; None leaves it as it is. `where` replaces all conditions; {} takes them away, as
        "" does groups and -1 a least score. Without `skip` the answer is the first page."""
        asked = turn_of(
            where=where,
            top=top,
            skip=skip,
            mode=mode,
            least_score=least_score,
            group_by=group_by,
            group_size=group_size,
            payload=payload,
            rerank=rerank,
        )
        if not self._script.opened:
            self.look()
        return self._turn(self._script.further(asked))

    def _turn(self, message: pb.ConverseRequest) -> Turn:
        self._script.check_open()
        start = perf_counter()
        try:
            reply = self._line.exchange(message)
        except PocketlensError as error:
            self._script.end(error)
            raise
        return self._script.read(message, reply, 1e3 * (perf_counter() - start))


class AsyncConversation:
    """`Conversation` for asyncio: the same turns, answers and errors. An asynchronous context manager, of one task."""

    def __init__(self, opening: pb.SearchRequest, line: AsyncLine, *, server: str, sends: bool) -> None:
        """As `Conversation`."""
        self._script, self._line = _Script(opening, server, sends=sends), line

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Conversation.close`."""
        self._script.end()
        await self._line.close()

    @property
    def in_force(self) -> list[InForce]:
        """The words that count."""
        return self._script.in_force

    @property
    def over(self) -> bool:
        """Whether nothing more can be said."""
        return self._script.over

    async def look(self) -> Turn:
        """As `Conversation.look`."""
        return await self._turn(self._script.look())

    async def say(self, words: Modifier | str) -> Turn:
        """As `Conversation.say`."""
        return await self._turn(self._script.say(words))

    async def replace(self, turn: int, words: Modifier | str | None) -> Turn:
        """As `Conversation.replace`."""
        return await self._turn(self._script.replace(turn, words))

    async def back(self, turns: int = 1) -> Turn:
        """As `Conversation.back`."""
        return await self._turn(self._script.back(turns))

    async def back_to(self, turn: int) -> Turn:
        """As `Conversation.back_to`."""
        return await self._turn(self._script.back_to(turn))

    async def change(
        self,
        *,
        where: Where | None = None,
        top: int | None = None,
        skip: int | None = None,
        mode: Mode | None = None,
        least_score: float | None = None,
        group_by: str | None = None,
        group_size: int | None = None,
        payload: Sequence[str] | None = None,
        rerank: bool | None = None,
    ) -> Turn:
        """As `Conversation.change`."""
        asked = turn_of(
            where=where,
            top=top,
            skip=skip,
            mode=mode,
            least_score=least_score,
            group_by=group_by,
            group_size=group_size,
            payload=payload,
            rerank=rerank,
        )
        if not self._script.opened:
            await self.look()
        return await self._turn(self._script.further(asked))

    async def _turn(self, message: pb.ConverseRequest) -> Turn:
        self._script.check_open()
        start = perf_counter()
        try:
            reply = await self._line.exchange(message)
        except PocketlensError as error:
            self._script.end(error)
            raise
        return self._script.read(message, reply, 1e3 * (perf_counter() - start))


def turn_of(
    *,
    where: Where | None,
    top: int | None,
    skip: int | None,
    mode: Mode | None,
    least_score: float | None,
    group_by: str | None,
    group_size: int | None,
    payload: Sequence[str] | None,
    rerank: bool | None,
) -> pb.Turn:
    """A turn that changes what is not None. Raises BadQuery for what no server understands."""
    check_page(1 if top is None else top, skip or 0)
    turn = pb.Turn(top=top, skip=skip, mode=wire_mode(mode), rerank=rerank)
    if where is not None:
        flat, tree = on_the_wire(where)
        turn.where.all_of.extend(pb.Clause(condition=condition) for condition in flat)
        turn.where.MergeFrom(tree)
        turn.where.SetInParent()
    if least_score is not None:
        turn.least_score = check_score(least_score)
    if group_by is not None:
        turn.group_by = unicode(group_by, "the key to group by")
    if group_size is not None:
        turn.group_size = check_group_size(group_size)
    if payload is not None:
        turn.payload.CopyFrom(projection(payload))
    return turn


class _Script:
    """What is said, and what was understood."""

    def __init__(self, opening: pb.SearchRequest, server: str, *, sends: bool) -> None:
        self._opening, self._server, self._sends = opening, server, sends
        self._ended: PocketlensError | None = None
        self.opened = False
        self.in_force: list[InForce] = []

    @property
    def over(self) -> bool:
        return self._ended is not None

    def look(self) -> pb.ConverseRequest:
        if self.opened:
            raise BadQuery("the conversation has begun: say what should change.")
        return pb.ConverseRequest(open=self._opening)

    def say(self, words: Modifier | str) -> pb.ConverseRequest:
        modifier = wire_modifier(words)
        if not modifier.words.strip():
            raise BadQuery("Nothing was said. Give words.")
        if self.opened:
            return self.further(pb.Turn(add=modifier))
        opening = pb.SearchRequest()
        opening.CopyFrom(self._opening)
        opening.modifiers.append(modifier)
        return pb.ConverseRequest(open=opening)

    def replace(self, turn: int, words: Modifier | str | None) -> pb.ConverseRequest:
        modifier = None if words is None else wire_modifier(words)
        return self._later(pb.Turn(replace=pb.Replace(turn=_number(turn), modifier=modifier)))

    def back(self, turns: int) -> pb.ConverseRequest:
        return self._later(pb.Turn(back=_number(turns)))

    def back_to(self, turn: int) -> pb.ConverseRequest:
        return self._later(pb.Turn(back_to=_number(turn)))

    def further(self, turn: pb.Turn) -> pb.ConverseRequest:
        return pb.ConverseRequest(turn=turn)

    def _later(self, turn: pb.Turn) -> pb.ConverseRequest:
        if not self.opened:
            raise BadQuery("the conversation has not begun: there is nothing to go back to or to replace.")
        return self.further(turn)

    def check_open(self) -> None:
        """Raise what ended the conversation, if anything did."""
        if self._ended is not None:
            raise self._ended

    def end(self, error: PocketlensError | None = None) -> None:
        self._ended = self._ended or error or BadQuery("the conversation is over: open another one.")

    def read(self, message: pb.ConverseRequest, reply: pb.ConverseReply, took_ms: float) -> Turn:
        """The turn. Raises the error that it was refused with."""
        self.opened = True
        self.in_force = [
            InForce(turn=each.turn, words=each.modifier.words, weight=_weight(each.modifier))
            for each in reply.state.modifiers
        ]
        if reply.WhichOneof("outcome") != "reply":
            raise _error(reply.error)
        sent = message.ByteSize() if self._sends else 0
        answer = answer_of(reply.reply, self._opening, server=self._server, round_trip_ms=took_ms, request_bytes=sent)
        return Turn(
            number=reply.turn,
            in_force=self.in_force,
            before=reply.state.before,
            mode=mode_name(reply.state.mode),
            top=reply.state.top,
            skip=reply.state.skip,
            answer=answer,
        )


def _error(told: pb.TurnError) -> PocketlensError:
    message = told.message or "The turn was not answered."
    kind = _KINDS.get(told.kind, ServerFault)
    return Overloaded(message, retry_after_s=told.retry_after_ms / 1e3) if kind is Overloaded else kind(message)


def _weight(modifier: pb.Modifier) -> float:
    return modifier.weight if modifier.HasField("weight") else 1.0


def _number(turn: int) -> int:
    if not 1 <= turn < 2**32:
        raise BadQuery(f"turn {turn} is none: turns are counted from 1.")
    return turn
