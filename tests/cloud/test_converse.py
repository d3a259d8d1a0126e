"""Conversations over the real gRPC stack: each turn is the whole question it stands for; bad ones harm nothing."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from pocketlens_cloud.conversation import Conversation
from pocketlens_cloud.service import Service
from pocketlens_cloud.serving import front, keys
from pocketlens_cloud.serving.door import Door, DoorInterceptor
from pocketlens_wire import limits
from pocketlens_wire.errors import KIND_METADATA
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub

NO_COLOUR = pb.Clause(condition=pb.Condition(key="colour", missing=pb.Missing()))
NAN = np.full(24, np.nan, "<f4").tobytes()
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Talk:
    """One conversation: a message out, its reply in."""

    def __init__(self, running, metadata=None) -> None:
        self._said: queue.SimpleQueue = queue.SimpleQueue()
        self.call = running.stub.Converse(iter(self._said.get, None), timeout=20, metadata=metadata)

    def send(self, message: pb.ConverseRequest) -> None:
        self._said.put(message)

    def ask(self, message: pb.ConverseRequest) -> pb.ConverseReply:
        self.send(message)
        return next(self.call)

    def turn(self, **fields) -> pb.ConverseReply:
        return self.ask(pb.ConverseRequest(turn=pb.Turn(**fields)))

    def ending(self) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            next(self.call)
        return caught.value

    def close(self) -> None:
        self._said.put(None)
        self.call.cancel()


@pytest.fixture
def talk(running):
    talk = Talk(running)
    yield talk
    talk.close()


def opening(toy, **changes) -> pb.ConverseRequest:
    return pb.ConverseRequest(open=toy.request(**changes))


def modifier(words: str, weight: float | None = None) -> pb.Modifier:
    return pb.Modifier(words=words, weight=weight)


def where(key: str, **value) -> pb.Filter:
    return pb.Filter(all_of=[pb.Clause(condition=pb.Condition(key=key, equals=pb.Value(**value)))])


def admitted(running, toy) -> Talk:
    """A conversation, as soon as there is room for one."""
    deadline = time.monotonic() + 10
    while True:
        talk = Talk(running)
        talk.send(opening(toy))
        try:
            assert next(talk.call).turn == 1
            return talk
        except grpc.RpcError:  # not yet
            assert time.monotonic() < deadline


def hits(reply: pb.SearchReply) -> list[tuple[str, float]]:
    return [(hit.id, round(hit.score, 5)) for hit in reply.hits]


def in_force(reply: pb.ConverseReply) -> list[tuple[int, str]]:
    return [(each.turn, each.modifier.words) for each in reply.state.modifiers]


def test_each_turn_is_answered_as_the_whole_question_would_be(toy, running, talk):
    def asked(**fields):
        return hits(running.search(toy.request(**{"words": None, **fields})))

    said = talk.ask(opening(toy, words="in red"))
    assert (said.turn, in_force(said), said.state.mode) == (1, [(1, "in red")], pb.MODE_TUNED)
    assert hits(said.reply) == asked(modifiers=[modifier("in red")]) == asked(words="in red")

    said = talk.turn(add=modifier("on grass"))
    assert in_force(said) == [(1, "in red"), (2, "on grass")]
    assert hits(said.reply) == asked(words="in red, on grass")

    said = talk.turn(add=modifier("dotted", -1))
    assert said.state.modifiers[2].modifier.weight == -1
    away = [modifier("in red"), modifier("on grass"), modifier("dotted", -1)]
    assert hits(said.reply) == asked(modifiers=away)
    assert hits(said.reply) != asked(words="in red, on grass")

    said = talk.turn(replace=pb.Replace(turn=1, modifier=modifier("in blue")))
    assert in_force(said) == [(1, "in blue"), (2, "on grass"), (3, "dotted")]
    assert hits(said.reply) == asked(modifiers=[modifier("in blue"), *away[1:]])

    said = talk.turn(where=where("colour", text="red"), top=3)
    assert said.state.where == where("colour", text="red")
    assert hits(said.reply) == asked(
        modifiers=[modifier("in blue"), *away[1:]], where=where("colour", text="red"), top=3
    )
    first = said

    second = talk.turn(skip=3)
    assert (second.state.skip, second.state.top) == (3, 3)
    both = asked(modifiers=[modifier("in blue"), *away[1:]], where=where("colour", text="red"), top=6)
    assert hits(first.reply) + hits(second.reply) == both

    said = talk.turn(replace=pb.Replace(turn=3), mode=pb.MODE_ZERO_SHOT, group_by="count")
    assert (in_force(said), said.state.skip, said.reply.mode) == (
        [(1, "in blue"), (2, "on grass")],
        0,
        pb.MODE_ZERO_SHOT,
    )
    assert len({hit.group.integer for hit in said.reply.hits}) == len(said.reply.hits) == 3
    assert talk.turn(where=pb.Filter(), group_by="").state == pb.State(
        modifiers=said.state.modifiers, top=3, mode=pb.MODE_ZERO_SHOT, since=8, before=7
    )


def test_going_back_undoes_and_can_be_gone_on_from(toy, talk):
    first = talk.ask(opening(toy, words=None))
    second = talk.turn(add=modifier("in red"))
    third = talk.turn(add=modifier("on grass"), top=7)
    assert (third.state.since, third.state.before) == (3, 2)
    back = talk.turn(back=1)
    assert (back.turn, back.state, hits(back.reply)) == (4, second.state, hits(second.reply))
    again = talk.turn(back=1)
    assert (again.turn, again.state, hits(again.reply)) == (5, first.state, hits(first.reply))
    other = talk.turn(add=modifier("in blue"))
    assert (in_force(other), other.state.before) == ([(6, "in blue")], 1)
    there = talk.turn(back_to=3)
    assert (there.state, hits(there.reply)) == (third.state, hits(third.reply))
    both = talk.turn(back=2, top=2)
    assert (in_force(both), both.state.top, both.state.before) == ([], 2, 1)
    assert talk.turn(back_to=7).state == third.state  # a turn that led back stands for what it led to


BAD_TURNS: dict[str, tuple[dict, str]] = {
    "nothing": ({}, "changes nothing"),
    "back before the first": ({"back": 3}, "3 turns back is before the beginning: there are 1 to go back"),
    "back by none": ({"back": 0}, "at least 1"),
    "back for ever": ({"back": 2**32 - 1}, "before the beginning"),
    "back to no turn": ({"back_to": 0}, "no turn 0"),
    "back to a turn to come": ({"back_to": 3}, "no turn 3 to go back to; there are 1 to 2"),
    "replacing what is not there": ({"replace": pb.Replace(turn=9)}, "no words of turn 9 are in force"),
    "no words": ({"add": modifier(" \n")}, "adds no words"),
    "weight NaN": ({"add": modifier("red", math.nan)}, "weight is -2 to 2; nan came"),
    "weight infinite": ({"add": modifier("red", -math.inf)}, "weight is -2 to 2"),
    "weight huge": ({"add": modifier("red", 2.01)}, "weight is -2 to 2"),
    "words too many bytes": ({"add": modifier("é" * 2049)}, "4096 bytes"),
    "unknown key": ({"where": where("size", text="m")}, "this gallery knows `colour`"),
    "wrong type": ({"where": where("count", text="3")}, "holds integer"),
    "1,000 clauses": ({"where": pb.Filter(any_of=[NO_COLOUR] * 1000)}, "may have 64 conditions"),
    "top huge": ({"top": 2**32 - 1}, "top must be 1 to 1000"),
    "page too deep": ({"skip": 1996}, "reach at most 2000 hits"),
    "mode 99": ({"mode": 99}, "mode number 99"),
    "score NaN": ({"least_score": math.nan}, "least_score must be -1 to 1"),
    "group key unknown": ({"group_by": "size"}, "group key `size` is unknown"),
    "payload unknown": ({"payload": pb.Projection(keys=["size"])}, "payload key `size` is unknown"),
    "group size alone": ({"group_size": 3}, "group_by is missing"),
}


@pytest.mark.parametrize("case", BAD_TURNS)
def test_a_bad_turn_is_answered_changes_nothing_and_the_talk_goes_on(toy, talk, case):
    talk.ask(opening(toy, words=None))
    before = talk.turn(add=modifier("in red"))
    fields, said = BAD_TURNS[case]
    bad = talk.turn(**fields)
    assert (bad.turn, bad.WhichOneof("outcome"), bad.error.kind) == (3, "error", "BadQuery")
    assert said in bad.error.message
    assert len(bad.error.message) < 600
    assert bad.state == before.state
    after = talk.turn(add=modifier("on grass"))
    assert in_force(after) == [(2, "in red"), (4, "on grass")]
    assert hits(talk.turn(back=1).reply) == hits(before.reply)


def test_too_many_modifiers_are_refused_and_fewer_go_on(toy, talk):
    talk.ask(opening(toy, words=None))
    for _ in range(limits.MAX_MODIFIERS):
        assert talk.turn(add=modifier("red")).HasField("reply")
    assert "may have 8 modifiers" in talk.turn(add=modifier("blue")).error.message
    assert talk.turn(replace=pb.Replace(turn=2, modifier=modifier("hat"))).HasField("reply")


def test_a_message_of_no_known_kind_and_a_second_opening_are_bad_turns(toy, talk):
    talk.ask(opening(toy))
    for message in (pb.ConverseRequest(), opening(toy)):
        assert "opened by its first message" in talk.ask(message).error.message
    newer = pb.Turn.FromString(pb.Turn().SerializeToString() + b"\xf8\x07\x01")  # field 127, of a later version
    assert "changes nothing that this server knows" in talk.ask(pb.ConverseRequest(turn=newer)).error.message
    assert talk.turn(add=modifier("red")).turn == 5


ENDS: dict[str, tuple[Callable, grpc.StatusCode, str, str]] = {
    "another space": (
        lambda toy: opening(toy, token_space="ts-" + "9" * 16),
        grpc.StatusCode.FAILED_PRECONDITION, "SpaceMismatch", "ts-9999999999999999",
    ),
    "another encoder": (
        lambda toy: opening(toy, encoder="enc-" + "9" * 16),
        grpc.StatusCode.FAILED_PRECONDITION, "SpaceMismatch", "enc-9999999999999999",
    ),
    "nothing asked": (lambda toy: opening(toy, sentence=None, words=None), INVALID, "BadQuery", "the query is empty"),
    "only what is unwanted": (
        lambda toy: opening(toy, sentence=None, words=None, modifiers=[modifier("red", -1)]),
        INVALID, "BadQuery", "the query is empty",
    ),
    "tokens NaN": (
        lambda toy: opening(toy, sentence=pb.Sentence(encoding=1, count=2, width=12, data=NAN)),
        INVALID, "BadQuery", "must be finite",
    ),
    "a turn first": (lambda toy: pb.ConverseRequest(turn=pb.Turn(back=1)), INVALID, "BadQuery", "must open it"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_an_opening_that_cannot_be_one_ends_it_with_a_status(toy, running, talk, case):
    message, status, kind, said = ENDS[case]
    talk.send(message(toy))
    ended = talk.ending()
    assert (ended.code(), said in ended.details()) == (status, True), ended.details()
    assert dict(ended.trailing_metadata())[KIND_METADATA] == kind
    assert running.search(toy.request()).hits


def test_bytes_that_are_no_message_end_it(toy, running):
    call = running.channel.stream_stream("/pocketlens.v1.Retrieval/Converse")
    good = opening(toy).SerializeToString()
    replies = call(iter([good, b"\xff" * 9]), timeout=10)
    assert pb.ConverseReply.FromString(next(replies)).turn == 1
    with pytest.raises(grpc.RpcError, match=r"not a valid pocketlens\.v1\.ConverseRequest message") as caught:
        next(replies)
    assert caught.value.code() is INVALID


def test_turns_and_bytes_of_a_conversation_are_bounded(toy, running, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TURNS", 3)
    talk = Talk(running)
    talk.ask(opening(toy))
    talk.turn(back=1)  # a refused turn counts as well
    talk.turn(add=modifier("red"))
    talk.send(pb.ConverseRequest(turn=pb.Turn(back=1)))
    ended = talk.ending()
    assert (ended.code(), "has 3 turns" in ended.details()) == (INVALID, True)
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_CONVERSATION_BYTES", 2000)
    talk = Talk(running)
    talk.ask(opening(toy))
    assert talk.turn(add=modifier("red " * 200)).HasField("reply")
    talk.send(pb.ConverseRequest(turn=pb.Turn(add=modifier("red " * 300))))
    ended = talk.ending()
    assert (ended.code(), "2,000 bytes in all" in ended.details()) == (INVALID, True)


def test_who_says_nothing_for_long_is_told_so(toy, running, monkeypatch):
    monkeypatch.setattr(limits, "MAX_IDLE_S", 0.1)
    talk = Talk(running)
    assert talk.ask(opening(toy)).turn == 1
    ended = talk.ending()
    assert ended.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing was said" in ended.details()
    talk.close()


def test_who_does_not_take_replies_is_let_go(toy, running, monkeypatch):
    monkeypatch.setattr(front, "MAX_CONVERSATIONS", 1)
    turns = [pb.ConverseRequest(turn=pb.Turn(top=39 + i % 2)) for i in range(limits.MAX_TURNS - 1)]
    small_window = [("grpc.http2.bdp_probe", 0)]  # 64 KiB, far less than what 99 replies have
    with grpc.insecure_channel(running.address, options=small_window) as channel:
        monkeypatch.setattr(limits, "MAX_IDLE_S", 0.3)
        talking = RetrievalStub(channel).Converse(iter([opening(toy), *turns]), timeout=20)
        assert next(talking).turn == 1
        talk = admitted(running, toy)  # only once the other one was let go
        with pytest.raises(grpc.RpcError) as caught:
            list(talking)
        assert (caught.value.code(), "no reply was taken" in caught.value.details()) == (
            grpc.StatusCode.DEADLINE_EXCEEDED, True,
        )  # fmt: skip
    talk.close()


def test_who_sends_much_at_once_is_answered_one_by_one(toy, service, serve, monkeypatch):
    inside, most, lock = 0, 0, threading.Lock()
    check, finish = Service.check, Service.finish

    def entering(self, request):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        return check(self, request)

    def leaving(self, *given):
        nonlocal inside
        try:
            return finish(self, *given)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(Service, "check", entering)
    monkeypatch.setattr(Service, "finish", leaving)
    with serve(service) as running:
        turns = [pb.ConverseRequest(turn=pb.Turn(top=1 + i % 9)) for i in range(60)]
        replies = list(running.stub.Converse(iter([opening(toy), *turns]), timeout=20))
    assert [reply.turn for reply in replies] == list(range(1, 62))
    assert [len(reply.reply.hits) for reply in replies[1:]] == [1 + i % 9 for i in range(60)]
    assert most == 1


def test_only_so_many_talk_at_once_and_who_leaves_makes_room(toy, running, monkeypatch):
    monkeypatch.setattr(front, "MAX_CONVERSATIONS", 1)
    talk = Talk(running)
    talk.ask(opening(toy))
    other = Talk(running)
    other.send(opening(toy))
    ended = other.ending()
    assert ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(ended.trailing_metadata())[KIND_METADATA] == "Overloaded"
    assert running.search(toy.request()).hits  # who talks takes nothing from who searches
    talk.close()
    admitted(running, toy).close()


def test_a_server_that_stops_says_so_to_those_who_talk(toy, service, serve):
    with serve(service) as running:
        talk = Talk(running)
        talk.ask(opening(toy))
        running.tell_to_stop()
        ended = talk.ending()
        assert ended.code() is grpc.StatusCode.UNAVAILABLE
        assert "the server stops" in ended.details()
        assert running.ended.wait(5)


def test_a_turn_that_is_shed_says_when_to_come_again(toy, running, talk, monkeypatch):
    before = talk.ask(opening(toy))
    monkeypatch.setattr(front, "MAX_INSIDE", 0)
    shed = talk.turn(add=modifier("hat"))
    monkeypatch.undo()
    assert (shed.error.kind, shed.error.retry_after_ms > 0, shed.state) == ("Overloaded", True, before.state)
    assert in_force(talk.turn(add=modifier("hat"))) == [(1, "in red"), (3, "hat")]


def test_behind_the_door_a_conversation_needs_the_scope_of_a_search(toy, service, serve, tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    (searching, _), (indexing, _) = keys.new(file, ["search"]), keys.new(file, ["index"])
    with serve(service, interceptors=[DoorInterceptor(Door(keys=keys.Keys(file)))]) as running:

        def asked(text: str | None) -> Talk:
            talk = Talk(running, metadata=[("authorization", f"Bearer {text}")] if text else None)
            talk.send(opening(toy))
            return talk

        assert asked(None).ending().code() is grpc.StatusCode.UNAUTHENTICATED
        assert asked(indexing).ending().code() is grpc.StatusCode.PERMISSION_DENIED
        talk = asked(searching)
        assert next(talk.call).turn == 1
        assert talk.turn(back=1).error.kind == "BadQuery"
        talk.send(pb.ConverseRequest())
        assert next(talk.call).error.kind == "BadQuery"
        monkeypatch.setattr(limits, "MAX_IDLE_S", 0.1)
        assert talk.turn(add=modifier("hat")).turn == 4
        assert talk.ending().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        talk.close()


def _changed(file: Path, **fields) -> None:
    """Change what is kept of the only key."""
    held = json.loads(file.read_bytes())
    held["keys"][0] |= fields
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(held))
    beside.replace(file)


YESTERDAY = "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"revoked": YESTERDAY}, grpc.StatusCode.UNAUTHENTICATED, f"was revoked on {YESTERDAY}"),
        ({"expires": YESTERDAY}, grpc.StatusCode.UNAUTHENTICATED, f"expired on {YESTERDAY}"),
        ({"hash": "0" * 64}, grpc.StatusCode.UNAUTHENTICATED, "does not know the key"),
        ({"scopes": ["index"]}, grpc.StatusCode.PERMISSION_DENIED, "needs scope search"),
    ],
    ids=["revoked", "expired", "replaced", "scope"],
)
def test_a_key_that_is_no_longer_good_ends_the_conversation_at_its_next_turn(
    toy, service, serve, tmp_path, change, code, said
):
    file = tmp_path / "keys.json"
    text, _ = keys.new(file, ["search"])
    with serve(service, interceptors=[DoorInterceptor(Door(keys=keys.Keys(file)))]) as running:
        talk = Talk(running, metadata=[("authorization", f"Bearer {text}")])
        talk.ask(opening(toy))
        _changed(file, note="still good")
        assert talk.turn(add=modifier("hat")).turn == 2
        _changed(file, **change)
        talk.send(pb.ConverseRequest(turn=pb.Turn(add=modifier("dotted"))))
        ended = talk.ending()
        assert (ended.code(), said in ended.details()) == (code, True)
        assert text not in ended.details()
        talk.close()


def test_a_talk_without_a_picture(toy, running, talk):
    talk.ask(opening(toy, sentence=None, encoder=None, words="red hat"))
    said = talk.turn(add=modifier("dotted", -0.5))
    words = [modifier("red hat"), modifier("dotted", -0.5)]
    alone = running.search(toy.request(sentence=None, encoder=None, words=None, modifiers=words))
    assert hits(said.reply) == hits(alone)
    gone = talk.turn(replace=pb.Replace(turn=1))
    assert (gone.error.kind, in_force(gone)) == ("BadQuery", [(1, "red hat"), (2, "dotted")])


def test_conditions_of_the_opening_go_on_until_others_come(toy, talk):
    flat = [pb.Condition(key="colour", equals=pb.Value(text="red"))]
    said = talk.ask(opening(toy, filter=flat, where=where("sold", flag=True), top=40))
    assert len(said.reply.hits) == 7
    assert [clause.condition.key for clause in said.state.where.all_of] == ["colour", "sold"]
    assert len(talk.turn(add=modifier("hat")).reply.hits) == 7
    assert len(talk.turn(where=where("count", integer=3)).reply.hits) == 10
    assert len(talk.turn(where=pb.Filter()).reply.hits) == 40


def test_tokens_travel_once(toy):
    sentence = pack(toy.sentence(0), Encoding.INT8)
    assert opening(toy, sentence=sentence).ByteSize() > sentence.ByteSize()
    assert pb.ConverseRequest(turn=pb.Turn(add=modifier("in blue"))).ByteSize() < 20


def test_a_long_filter_is_held_once_however_many_turns_leave_it():
    """What a conversation holds is bounded by the bytes that were said in it."""
    many = pb.Filter(all_of=[pb.Clause(condition=pb.Condition(key="n", any_of=pb.Values(
        values=[pb.Value(integer=value) for value in range(250)])))])  # fmt: skip
    opening = pb.SearchRequest(token_space="t", words="red", top=3, where=many, payload=pb.Projection(keys=["n"]))
    opening.MergeFromString(b"\xfa\x3f\x05later")  # a field of a later version
    talk = Conversation()
    asked = [talk.take(pb.ConverseRequest(open=opening))]
    talk.answered(pb.SearchReply(mode=pb.MODE_TUNED))
    for top in (4, 5, 6):
        asked.append(talk.take(pb.ConverseRequest(turn=pb.Turn(top=top))))
        said = talk.answered(pb.SearchReply(mode=pb.MODE_TUNED))
        assert said.state.where == many
    assert [each.where for each in asked] == [many] * 4 and asked[-1].payload.keys == ["n"]
    standings = talk._standings
    assert len({id(each.where) for each in standings}) == len({id(each.payload) for each in standings}) == 1
    assert all(each.asked.ByteSize() < 20 for each in standings)
    anew = talk.take(pb.ConverseRequest(turn=pb.Turn(where=pb.Filter(), payload=pb.Projection())))
    assert not anew.HasField("where") and anew.HasField("payload") and not anew.payload.keys
    assert not talk.answered(pb.SearchReply()).state.HasField("where")
