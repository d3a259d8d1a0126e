"""A conversation as a program and as a person has it, against a service that remembers what was said."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from PIL import Image
from pocketlens_edge import AsyncClient, Client, Equals, Modifier, unwanted
from pocketlens_wire.errors import BadQuery, Overloaded, ServerFault, SpaceMismatch, TooLate, Unavailable
from pocketlens_wire.v1 import retrieval_pb2 as pb


def modifiers(message: pb.ConverseRequest) -> list[tuple[str, float]]:
    held = message.open.modifiers if message.HasField("open") else [message.turn.add]
    return [(each.words, each.weight if each.HasField("weight") else 1.0) for each in held]


def test_the_tokens_travel_once_and_with_the_first_words(client, service, tokens):
    with client.converse(tokens) as talk:
        assert service.said == []
        first = talk.say("in red")
        second = talk.say(unwanted("striped"))
    opened, further = service.said
    assert opened.open.sentence.count == 4
    assert modifiers(opened) == [("in red", 1.0)]
    assert modifiers(further) == [("striped", -1.0)]
    assert (first.number, second.number) == (1, 2)
    assert [(each.turn, each.words, each.weight) for each in second.in_force] == [(1, "in red", 1), (2, "striped", -1)]
    assert [hit.score for hit in first.answer.hits] == [0.5, 0.25]
    assert second.answer.request_bytes == further.ByteSize() < 30 < first.answer.request_bytes
    assert second.answer.times_ms["round_trip"] > 0


def test_every_kind_of_turn_says_what_it_should(client, service, tokens):
    with client.converse(client.question(tokens, "in red", top=2)) as talk:
        talk.look()
        talk.say(Modifier("big", 0.5))
        talk.replace(2, "small")
        talk.replace(2, None)
        talk.back()
        talk.back(3)
        talk.back_to(2)
        talk.change(where=Equals("colour", "red"), top=1, skip=0, least_score=-1, group_by="", group_size=2, payload=[])
        talk.change(where={})
    opened, *turns = service.said
    assert (opened.open.words, opened.open.top, list(opened.open.modifiers)) == ("in red", 2, [])
    small = pb.Modifier(words="small")
    where = pb.Filter(all_of=[pb.Clause(condition=pb.Condition(key="colour", equals=pb.Value(text="red")))])
    assert [turn.turn for turn in turns] == [
        pb.Turn(add=pb.Modifier(words="big", weight=0.5)),
        pb.Turn(replace=pb.Replace(turn=2, modifier=small)),
        pb.Turn(replace=pb.Replace(turn=2)),
        pb.Turn(back=1),
        pb.Turn(back=3),
        pb.Turn(back_to=2),
        pb.Turn(where=where, top=1, skip=0, least_score=-1, group_by="", group_size=2, payload=pb.Projection()),
        pb.Turn(where=pb.Filter()),
    ]


def test_changing_comes_after_a_first_look(client, service, tokens):
    with client.converse(tokens) as talk:
        assert talk.change(top=1).number == 2
        with pytest.raises(BadQuery, match="has begun"):
            talk.look()


def test_what_cannot_be_said_is_not_sent(client, service, tokens):
    with client.converse(tokens) as talk:
        for wrong in (talk.back, lambda: talk.replace(1, "red"), lambda: talk.say(" ")):
            with pytest.raises(BadQuery):
                wrong()
        assert service.said == []
        talk.look()
        for wrong in (
            lambda: talk.back(0),
            lambda: talk.back_to(-1),
            lambda: talk.say(Modifier("red", float("nan"))),
            lambda: talk.say(Modifier("red", 2.5)),
            lambda: talk.say("caf\udce9"),
            lambda: talk.change(top=0),
            lambda: talk.change(skip=-1),
            lambda: talk.change(least_score=float("nan")),
            lambda: talk.change(payload="colour"),
        ):
            with pytest.raises(BadQuery):
                wrong()
        assert len(service.said) == 1
        assert talk.say("red").number == 2


def test_a_refused_turn_leaves_the_talk_as_it_was(client, tokens):
    with client.converse(tokens) as talk:
        talk.say("in red")
        with pytest.raises(BadQuery, match="the query is empty"):
            talk.say("no")
        with pytest.raises(Overloaded) as caught:
            talk.say("later")
        assert caught.value.retry_after_s == 0.25
        assert not talk.over
        assert [each.words for each in talk.in_force] == ["in red"]
        assert talk.say("big").number == 4


def test_what_ends_it_is_met_again_by_every_further_turn(client, tokens):
    with client.converse(tokens) as talk:
        talk.say("in red")
        for _ in range(2):
            with pytest.raises(SpaceMismatch, match="the spaces are not one"):
                talk.say("end")
            assert talk.over
    with pytest.raises(SpaceMismatch):
        talk.say("big")
    with client.converse(tokens) as talk, pytest.raises(Unavailable, match="ended the conversation"):
        talk.say("bye")
    with client.converse(tokens) as closed:
        pass
    with pytest.raises(BadQuery, match="is over"):
        closed.say("red")


def test_a_turn_has_the_deadline_of_a_question(server, service, tokens, toy):
    ids = {"token_space": toy.token_space, "encoder_id": toy.encoder_id}
    with Client(server, timeout_s=0.3, **ids) as client, client.converse(tokens) as talk:
        talk.say("in red")
        with pytest.raises(TooLate, match=r"0\.3 s allowed"):
            talk.say("wait")
        service.go_on.set()
        assert talk.over


def test_nobody_there(tokens, toy):
    with (
        Client("127.0.0.1:1", token_space=toy.token_space, encoder_id=toy.encoder_id) as client,
        client.converse(tokens) as talk,
        pytest.raises(Unavailable, match="No Pocketlens server answers there"),
    ):
        talk.say("in red")


def test_no_thread_outlives_a_conversation(client, tokens):
    def waiting() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if "consume" in thread.name.lower()}

    before = waiting()
    for _ in range(3):
        with client.converse(tokens) as talk:
            talk.say("in red")
        with pytest.raises(SpaceMismatch), client.converse(tokens) as talk:
            talk.say("end")
    for thread in waiting() - before:
        thread.join(5)
    assert waiting() <= before


def test_asyncio_says_the_same(server, service, tokens, toy):
    async def talking() -> list:
        async with AsyncClient(server, token_space=toy.token_space, encoder_id=toy.encoder_id, timeout_s=1) as client:
            async with client.converse(tokens) as talk:
                turns = [await talk.say("in red"), await talk.say(unwanted("striped")), await talk.back()]
                with pytest.raises(BadQuery, match="the query is empty"):
                    await talk.say("no")
                turns.append(await talk.change(top=1))
                with pytest.raises(SpaceMismatch, match="the spaces are not one"):
                    await talk.say("end")
                assert talk.over
            async with client.converse(tokens) as talk:
                await talk.look()
                with pytest.raises(TooLate):
                    await talk.say("wait")
                service.go_on.set()
            async with client.converse(tokens) as talk:
                with pytest.raises(Unavailable, match="ended the conversation"):
                    await talk.say("bye")
            return turns

    turns = asyncio.run(talking())
    assert [turn.number for turn in turns] == [1, 2, 3, 5]
    assert modifiers(service.said[1]) == [("striped", -1.0)]


def test_asyncio_says_why_a_turn_met_the_servers_end(replicas, tokens, toy):
    """A loop that was busy has not heard of the end, so that it sends a message, and that fails."""

    async def talking(server: grpc.Server, address: str) -> None:
        ids = {"token_space": toy.token_space, "encoder_id": toy.encoder_id}
        async with AsyncClient(address, **ids) as client, client.converse(tokens) as talk:
            await talk.look()
            server.stop(grace=0).wait()
            time.sleep(0.2)  # blocks the loop: gRPC's own thread, which nothing tells of, hears of the end meanwhile
            with pytest.raises(Unavailable, match=f"^{address}: No Pocketlens server answers there"):
                await talk.say("in red")
            assert talk.over

    for server, _, address in replicas:
        asyncio.run(talking(server, address))


def test_asyncio_lets_a_turn_be_cancelled(server, service, tokens, toy):
    async def talking() -> None:
        ids = {"token_space": toy.token_space, "encoder_id": toy.encoder_id}
        async with AsyncClient(server, **ids) as client, client.converse(tokens) as talk:
            await talk.look()
            waiting = asyncio.ensure_future(talk.say("wait"))
            while len(service.said) < 2:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            service.go_on.set()

    asyncio.run(talking())


def test_a_server_too_old_for_a_question_is_not_believed(client, service, tokens):
    service.edition = 0
    assert client.search(tokens, "red", where={"colour": "red"}).hits
    for further in (
        {"modifiers": ["big"]}, {"where": Equals("colour", "red"), "skip": 1}, {"least_score": 0.0}, {"payload": []},
        {"group_by": "colour"}, {"rerank": True},
    ):  # fmt: skip
        with pytest.raises(ServerFault, match="is too old for this question"):
            client.search(tokens, "red", **further)


# --- on the command line


@pytest.fixture
def talk(run, server, photo, monkeypatch):
    """Pipe lines into `converse`."""

    def talking(*lines: str, options: tuple = ()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("converse", photo, "-s", server, *options)

    return talking


def test_lines_piped_in_are_turns(talk, service):
    ran = talk(
        "in red", "/not striped", "/weigh 0.5 big", "/back", "/where colour=red 'price<5'", "/top 3", "/quit", "x"
    )
    assert ran.code == 0, ran.err
    assert "turn 2: in red (1), not striped (2)" in ran.out
    assert ran.out.count("one.png") == 6
    assert [message.turn.WhichOneof("change") for message in service.said[1:]] == ["add", "add", "back", None, None]
    assert [clause.condition.key for clause in service.said[4].turn.where.all_of] == ["colour", "price"]


def test_json_is_one_line_a_turn_also_for_errors(talk):
    ran = talk("in red", "no", "/nonsense", "/next", options=("--json",))
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line.get("turn") for line in lines] == [1, None, None, 3]
    assert lines[0]["in_force"] == [{"turn": 1, "words": "in red", "weight": 1.0}]
    assert lines[1] == {"error": {"kind": "BadQuery", "message": "the query is empty"}}
    assert "/nonsense` is no command: /back" in lines[2]["error"]["message"]
    assert [hit["rank"] for hit in lines[3]["hits"]] == [11, 12]
    assert ran.code == 1, "a turn was refused"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_quit_after_a_refused_turn_leaves_with_1(talk, service, options):
    ran = talk("in blue", "/weigh 5 red", "/quit", "never said", options=options)
    assert (ran.code, len(service.said)) == (1, 1)  # the opening, which "in blue" went with
    assert "must be -2 to 2" in ran.out + ran.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/weigh much red", "takes a number"),
        ("/weigh 3 red", "must be -2 to 2"),
        ("/back x", "takes a whole number"),
        ("/replace 1", "takes a turn and words"),
        ("/where 'colour", "a quotation is not closed"),
        ("/where colour", "is not key=value"),
        ("/page 0", "at least 1"),
        ("/mode fast", "one of zero-shot, tuned"),
        ("/not", "Nothing was said"),
        ("/drop", "whole number of at least 0; nothing came"),
        ("/weigh", "takes a number; nothing came"),
        ("/nexr", "/back, /drop, /group, /help, /least, /mode, /next, /not, /page, /quit, /replace, /to"),
    ],
)
def test_a_line_that_means_nothing_is_told_so(talk, service, line, said):
    ran = talk("", line)
    assert (ran.code, said in ran.err, len(service.said)) == (1, True, 1), ran.err


def test_what_ends_it_ends_the_command(talk):
    ran = talk("in red", "end", "big")
    assert ran.code == 1
    assert ran.err.strip() == "pocketlens-edge: the spaces are not one"


def test_words_alone_and_a_sheet(run, server, service, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/not dotted\n/help\n"))
    sheet = tmp_path / "turns.png"
    ran = run("converse", "-t", "a hat", "-t", "in red", "-s", server, "--sheet", sheet)
    assert ran.code == 0, ran.err
    assert "/weigh W WORDS" in ran.err
    opened = service.said[0].open
    assert (opened.words, [each.words for each in opened.modifiers], opened.HasField("sentence")) == (
        "a hat", ["in red"], False,
    )  # fmt: skip
    assert np.asarray(Image.open(sheet)).shape[0] > 400  # two rows


def test_wrong_usage(run, photo):
    assert "give a PICTURE" in run("converse").err
    assert "name a picture file" in run("converse", "-").err
    assert "asks no server" in run("converse", photo, "--local-gallery", "x", "-s", "127.0.0.1:9").err


def test_search_takes_more_words_and_pages(run, server, service, photo):
    options = ("-t", "in red", "-t", "big", "--not", "striped", "--where", "price<50", "--top", "5", "--page", "3")
    ran = run("search", photo, "-s", server, *options, "--least-score", "0.1", "--keys", "count, colour", "--rerank")
    assert ran.code == 0, ran.err
    (asked,) = service.requests
    assert [(each.words, each.weight) for each in asked.modifiers] == [("big", 0), ("striped", -1)]
    assert (asked.words, asked.skip, list(asked.payload.keys)) == ("in red", 10, ["count", "colour"])
    assert (asked.rerank, round(asked.least_score, 3)) == (True, 0.1)
    assert asked.where.all_of[0].condition.between.below == 50
    assert re.search(r"rank\s+id\s+file\s+count\s+colour\s+score", ran.out)
    assert re.search(r"11\s+a{12}\s+one\.png\s+2\s+0\.500", ran.out)
    ran = run("search", photo, "-s", server, "--group-by", "colour", "--group-size", "2", "--json")
    assert (service.requests[1].group_by, service.requests[1].group_size) == ("colour", 2)
    assert [hit["rank"] for hit in ran.json["hits"]] == [1, 2]
    for wrong, said in [
        (("--page", "201"), "--page is at most 200"),
        (("--top", "1000", "--page", "3"), "--page 3 with --top 1000 ends at hit 3,000"),
        (("--group-size", "3"), "name the key with --group-by"),
    ]:
        ran = run("search", photo, "-s", server, *wrong)
        assert (ran.code, said in ran.err, len(service.requests)) == (2, True, 2), ran.err
