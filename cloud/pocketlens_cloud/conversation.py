"""A question that is refined turn by turn: which question each message means.

Owns what a turn changes, going back, and a conversation's bounds. Every message becomes a whole SearchRequest, so what
it means, and whether it may be asked, is said by the same code as for Search. Called by serving/front.py and local.py;
knows no threads and no transport."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import final

from pocketlens_wire import limits
from pocketlens_wire.errors import BadQuery, Overloaded, PocketlensError, SpaceMismatch
from pocketlens_wire.v1 import retrieval_pb2 as pb

_KNOWN = ("where", "top", "skip", "mode", "least_score", "group_by", "group_size", "payload", "rerank")


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """How the question stands after a turn. asked: what is short of it; where and payload: as bytes, which all turns
    that leave them share and which need no more room than they came with; modifiers: the words in their order, each
    with the turn that brought it; since: the turn that brought this about; before: the turn whose standing came
    before, 0 for none."""

    asked: pb.SearchRequest
    where: bytes
    payload: bytes | None
    modifiers: tuple[tuple[int, pb.Modifier], ...]
    since: int
    before: int


@final
class Conversation:
    """One conversation: `take` a message, ask what it gives, tell `answered` or `refused` how that went.

    turn: number of the latest message, from 1."""

    def __init__(self) -> None:
        self.turn = 0
        self._bytes = 0
        self._over = False
        self._sentence = pb.SearchRequest()  # nothing but that: it is true of all turns
        self._standings: list[_Standing] = []  # after each turn
        self._meant: _Standing | None = None

    def take(self, message: pb.ConverseRequest) -> pb.SearchRequest:
        """The question after this message; it is in force once `answered` was told.

        Raises BadQuery for a message that cannot be one; tell `refused`."""
        self.turn += 1
        self._meant = None
        self._check_bounds(message)
        if self.turn == 1:
            return self._opened(message)
        if message.WhichOneof("step") != "turn":
            raise BadQuery("a conversation is opened by its first message; a further one must be a turn that it knows")
        self._meant = _refined(message.turn, self._standings, self.turn)
        return self._whole(self._meant)

    def answered(self, reply: pb.SearchReply) -> pb.ConverseReply:
        """The reply to the message just taken, which is in force from now on."""
        assert self._meant is not None
        self._meant.asked.mode = reply.mode
        self._standings.append(self._meant)
        return pb.ConverseReply(turn=self.turn, state=_state(self._meant), reply=reply)

    def refused(self, error: PocketlensError) -> pb.ConverseReply:
        """The same for a message that failed: it changed nothing. Raises `error` if it ends the conversation: what the
        opening meets, another space, or a bound of the whole conversation."""
        if self._over or not self._standings or isinstance(error, SpaceMismatch):
            raise error
        self._standings.append(self._standings[-1])
        told = pb.TurnError(kind=type(error).__name__, message=str(error))
        if isinstance(error, Overloaded):
            told.retry_after_ms = ceil(error.retry_after_s * 1e3)
        return pb.ConverseReply(turn=self.turn, state=_state(self._standings[-1]), error=told)

    def _check_bounds(self, message: pb.ConverseRequest) -> None:
        self._bytes += message.ByteSize()
        self._over = True
        if self.turn > limits.MAX_TURNS:
            raise BadQuery(f"a conversation has {limits.MAX_TURNS} turns; open another one with what is in force")
        if self._bytes > limits.MAX_CONVERSATION_BYTES:
            raise BadQuery(
                f"the messages of a conversation may have {limits.MAX_CONVERSATION_BYTES:,} bytes in all; "
                "open another one with what is in force"
            )
        self._over = False

    def _opened(self, message: pb.ConverseRequest) -> pb.SearchRequest:
        if message.WhichOneof("step") != "open":
            raise BadQuery("the first message of a conversation must open it with a question")
        opening = message.open
        asked = pb.SearchRequest()
        asked.CopyFrom(opening)
        for held_elsewhere in ("sentence", "words", "modifiers", "filter", "where", "payload"):
            asked.ClearField(held_elsewhere)
        asked.DiscardUnknownFields()  # of any length
        self._meant = _Standing(
            asked=asked,
            where=_joined(opening).SerializeToString(),
            payload=opening.payload.SerializeToString() if opening.HasField("payload") else None,
            modifiers=tuple((1, each) for each in _modifiers(opening)),
            since=1,
            before=0,
        )
        if opening.HasField("sentence"):
            self._sentence.sentence.CopyFrom(opening.sentence)
        return opening  # as it came: what is wrong with it must be found

    def _whole(self, standing: _Standing) -> pb.SearchRequest:
        whole = pb.SearchRequest()
        whole.CopyFrom(standing.asked)
        whole.MergeFrom(self._sentence)
        if standing.where:
            whole.where.MergeFromString(standing.where)
        if standing.payload is not None:
            whole.payload.SetInParent()
            whole.payload.MergeFromString(standing.payload)
        whole.modifiers.extend(modifier for _, modifier in standing.modifiers)
        return whole


def _modifiers(opening: pb.SearchRequest) -> list[pb.Modifier]:
    words = [pb.Modifier(words=opening.words)] if opening.words.strip() else []
    return [*words, *map(_own, opening.modifiers)]


def _own(modifier: pb.Modifier) -> pb.Modifier:
    """A copy, since a part of a message keeps the whole of it in memory."""
    own = pb.Modifier()
    own.CopyFrom(modifier)
    own.DiscardUnknownFields()
    return own


def _joined(opening: pb.SearchRequest) -> pb.Filter:
    """`filter` and `where` in one: conditions that must all hold go well with the tree's own."""
    joined = pb.Filter(all_of=[pb.Clause(condition=condition) for condition in opening.filter])
    joined.MergeFrom(opening.where)
    return joined


def _refined(turn: pb.Turn, standings: list[_Standing], number: int) -> _Standing:
    """How the question stands after `turn`, the `number`-th message; `standings` are those after the ones before."""
    set_fields = [name for name in _KNOWN if _is_set(turn, name)]
    change = turn.WhichOneof("change")
    if change is None and not set_fields:
        raise BadQuery("the turn changes nothing that this server knows: add or replace words, go back, or set a field")
    standing = _changed(turn, standings, number)
    if set_fields or change not in ("back", "back_to"):
        where = turn.where.SerializeToString() if "where" in set_fields else standing.where
        payload = turn.payload.SerializeToString() if "payload" in set_fields else standing.payload
        asked = _asked_anew(turn, standing.asked, set_fields)
        return replace(standing, asked=asked, where=where, payload=payload, since=number, before=standing.since)
    return standing


def _is_set(turn: pb.Turn, name: str) -> bool:
    return turn.HasField(name) if turn.DESCRIPTOR.fields_by_name[name].has_presence else bool(getattr(turn, name))


def _changed(turn: pb.Turn, standings: list[_Standing], number: int) -> _Standing:
    """The latest standing, or the one gone back to, with the words changed."""
    latest = standings[-1]
    match turn.WhichOneof("change"):
        case "add":
            if not turn.add.words.strip():
                raise BadQuery("the turn adds no words")
            return replace(latest, modifiers=(*latest.modifiers, (number, _own(turn.add))))
        case "replace":
            return replace(latest, modifiers=_replaced(latest.modifiers, turn.replace))
        case "back":
            return _back(standings, turn.back)
        case "back_to":
            if not 1 <= turn.back_to <= len(standings):
                raise BadQuery(f"there is no turn {turn.back_to} to go back to; there are 1 to {len(standings)}")
            return standings[turn.back_to - 1]
        case _:
            return latest


def _back(standings: list[_Standing], count: int) -> _Standing:
    if count < 1:
        raise BadQuery("going back goes at least 1 turn back")
    standing, gone = standings[-1], 0
    while gone < count and standing.before:
        standing, gone = standings[standing.before - 1], gone + 1
    if gone < count:
        raise BadQuery(f"{count} turns back is before the beginning: there are {gone} to go back")
    return standing


def _replaced(
    modifiers: tuple[tuple[int, pb.Modifier], ...], change: pb.Replace
) -> tuple[tuple[int, pb.Modifier], ...]:
    """`modifiers` with those of one turn gone and the new one, if it has words, in place of the first of them."""
    places = [place for place, (turn, _) in enumerate(modifiers) if turn == change.turn]
    if not places:
        turns = ", ".join(_distinct(turn for turn, _ in modifiers)) or "none"
        raise BadQuery(f"no words of turn {change.turn} are in force; in force are those of turns: {turns}")
    kept = [each for each in modifiers if each[0] != change.turn]
    new = [(change.turn, _own(change.modifier))] if change.modifier.words.strip() else []
    return (*kept[: places[0]], *new, *kept[places[0] :])


def _distinct(turns: Iterable[int]) -> list[str]:
    return [str(turn) for turn in dict.fromkeys(turns)]


def _asked_anew(turn: pb.Turn, before: pb.SearchRequest, set_fields: list[str]) -> pb.SearchRequest:
    asked = pb.SearchRequest()
    asked.CopyFrom(before)
    asked.ClearField("skip")
    for name in set_fields:
        if name in ("where", "payload"):
            continue
        asked.ClearField(name)
        if name != "least_score" or turn.least_score != -1:
            setattr(asked, name, getattr(turn, name))
    if "group_by" in set_fields and not asked.group_by:
        asked.ClearField("group_size")
    return asked


def _state(standing: _Standing) -> pb.State:
    asked = standing.asked
    state = pb.State(
        modifiers=[pb.InForce(turn=turn, modifier=modifier) for turn, modifier in standing.modifiers],
        top=asked.top,
        skip=asked.skip,
        mode=asked.mode,
        group_by=asked.group_by,
        group_size=asked.group_size or int(bool(asked.group_by)),
        rerank=asked.rerank,
        since=standing.since,
        before=standing.before,
    )
    where = pb.Filter.FromString(standing.where)
    if where.all_of or where.any_of or where.none_of:
        state.where.CopyFrom(where)
    if asked.HasField("least_score"):
        state.least_score = asked.least_score
    return state
