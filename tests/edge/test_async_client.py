"""The client of asyncio: the blocking one's questions, answers and errors, for many tasks, and cancellable."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from pocketlens_edge import AsyncClient, Client, Mode
from pocketlens_edge.connection import ATTEMPTS, open_async_channel
from pocketlens_wire.errors import (
    BadQuery,
    GalleryError,
    Overloaded,
    ServerFault,
    SpaceMismatch,
    TooLate,
    Unavailable,
)
from pocketlens_wire.v1 import retrieval_pb2 as pb


def ask(server: str, encoder: Any, question: Callable[[AsyncClient], Awaitable[Any]], **options: Any) -> Any:
    """What `question` gives on a client of its own, in a loop of its own."""

    async def run() -> Any:
        async with AsyncClient(server, encoder, **options) as client:
            return await question(client)

    return asyncio.run(run())


def test_it_asks_and_understands_as_the_blocking_client_does(server, service, encoder, tokens):
    asked = {"top": 2, "mode": Mode.ZERO_SHOT, "where": {"colour": "red", "count": 2}}
    service.notes = ["unknown word: frobnicated"]
    there = ask(server, encoder, lambda client: client.search(tokens, "make it red", **asked))
    with Client(server, encoder) as client:
        here = client.search(tokens, "make it red", **asked)
    assert service.requests[0] == service.requests[1]
    assert there.times_ms.pop("round_trip") > 0
    assert here.times_ms.pop("round_trip") > 0
    assert there == here
    assert ask(server, encoder, lambda client: client.describe()) == service.description


def test_both_take_the_same_arguments():
    for method in ("__init__", "search", "ask"):
        one, other = (inspect.signature(getattr(kind, method)).parameters for kind in (Client, AsyncClient))
        assert list(one) == list(other)
        assert [each.default for each in one.values()] == [each.default for each in other.values()]


def test_many_tasks_share_one_client(server, service, encoder, tokens):
    async def many(client: AsyncClient) -> list[Any]:
        return await asyncio.gather(*(client.search(tokens, f"word {i}") for i in range(50)))

    answers = ask(server, encoder, many, timeout_s=30)
    assert all(len(answer.hits) == 2 for answer in answers)
    assert {request.words for request in service.requests} == {f"word {i}" for i in range(50)}


STATUSES = [
    (grpc.StatusCode.INVALID_ARGUMENT, "unknown filter key `colr`", "", BadQuery, "unknown filter key `colr`"),
    (grpc.StatusCode.FAILED_PRECONDITION, "ts-a is not ts-b", "", SpaceMismatch, "ts-a is not ts-b"),
    (grpc.StatusCode.FAILED_PRECONDITION, "no pictures", "GalleryError", GalleryError, "no pictures"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", "", Overloaded, "busy"),
    (grpc.StatusCode.INTERNAL, "boom", "", ServerFault, "failed on this question"),
    (grpc.StatusCode.UNIMPLEMENTED, "", "", ServerFault, "does not offer"),
]


@pytest.mark.parametrize(("code", "details", "kind", "error", "sentence"), STATUSES)
def test_each_status_is_an_error_and_a_sentence(server, service, encoder, tokens, code, details, kind, error, sentence):
    service.failures.append((code, details, kind))

    async def twice(client: AsyncClient) -> Any:
        with pytest.raises(error) as caught:
            await client.search(tokens, "red")
        assert type(caught.value) is error
        assert sentence in str(caught.value)
        assert "StatusCode" not in str(caught.value)
        assert service.calls == 1
        return await client.search(tokens, "red")

    assert ask(server, encoder, twice).hits, "the next good question is answered"


def test_what_cannot_be_asked_is_not_sent(server, service, encoder, tokens):
    broken = tokens.copy()
    broken[2, 17] = np.nan
    for tokens_, options, message in (
        (broken, {}, "finite"),
        (None, {}, "Nothing to search"),
        (None, {"top": 0}, "top"),
    ):
        with pytest.raises(BadQuery, match=message):
            ask(server, encoder, lambda client, t=tokens_, o=options: client.search(t, "red" if o else "", **o))
    assert service.calls == 0


def test_unavailable_is_tried_again_and_then_given_up(server, service, encoder, tokens):
    service.failures.extend([(grpc.StatusCode.UNAVAILABLE, "warming up", "")] * 2)
    assert ask(server, encoder, lambda client: client.search(tokens, "red")).hits
    assert service.calls == 3
    service.failures.extend([(grpc.StatusCode.UNAVAILABLE, "warming up", "")] * 9)
    with pytest.raises(Unavailable, match="warming up"):
        ask(server, encoder, lambda client: client.search(tokens, "red"))
    assert service.calls == 3 + ATTEMPTS


def test_no_server_there(encoder, tokens):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unavailable, match=rf"^{address}: No Pocketlens server answers there"):
        ask(address, encoder, lambda client: client.search(tokens, "red"))


def test_the_deadline_passes(server, service, encoder, tokens):
    service.delay_s = 0.5
    with pytest.raises(TooLate, match=r"0\.1 s allowed"):
        ask(server, encoder, lambda client: client.search(tokens, "red"), timeout_s=0.1)


def test_a_cancelled_task_ends_at_once_and_the_client_lives(server, service, encoder, tokens):
    service.delay_s = 0.5

    async def cancel(client: AsyncClient) -> Any:
        task = asyncio.create_task(client.search(tokens, "red"))
        while not service.calls:
            await asyncio.sleep(0.01)
        start = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.perf_counter() - start < 0.3
        service.delay_s = 0
        return await client.search(tokens, "red")

    assert ask(server, encoder, cancel).hits


def test_a_callers_own_timeout_holds(server, service, encoder, tokens):
    service.delay_s = 0.5

    async def impatient(client: AsyncClient) -> None:
        async with asyncio.timeout(0.1):
            await client.search(tokens, "red")

    with pytest.raises(TimeoutError):
        ask(server, encoder, impatient)


def test_the_loop_is_free_while_a_question_is_out(server, service, encoder, tokens):
    service.delay_s = 0.2

    async def both(client: AsyncClient) -> int:
        task, turns = asyncio.create_task(client.search(tokens, "red")), 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0.005)
        return turns

    assert ask(server, encoder, both) > 5


def test_a_client_may_be_made_before_there_is_a_loop(server, encoder, tokens):
    client = AsyncClient(server, encoder)

    async def use() -> Any:
        async with client:
            return await client.search(tokens)

    assert asyncio.run(use()).hits


def test_a_closed_client_says_so(server, service, encoder, tokens):
    async def use() -> None:
        client = AsyncClient(server, encoder)
        await client.close()
        await client.search(tokens)

    with pytest.raises(ValueError, match="closed"):
        asyncio.run(use())
    assert service.calls == 0


def test_a_channel_can_be_handed_in_and_stays_open(server, encoder, tokens):
    async def use() -> int:
        async with open_async_channel(server) as channel:
            answers = []
            for _ in range(2):
                async with AsyncClient("x:1", encoder, channel=channel) as client:
                    answers.append(await client.search(tokens))
        return sum(len(answer.hits) for answer in answers)

    assert asyncio.run(use()) == 4


@pytest.mark.parametrize("options", [{"server": "localhost"}, {"timeout_s": 0}])
def test_wrong_arguments_are_refused_at_once_and_outside_of_a_loop(server, encoder, options):
    with pytest.raises(BadQuery):
        AsyncClient(options.pop("server", server), encoder, **options)


class Here:
    """An answerer of this process that notes in which thread it is asked."""

    def __init__(self, token_space: str) -> None:
        self.token_space = token_space
        self.threads: list[str] = []

    def search(self, request: pb.SearchRequest) -> pb.SearchReply:
        self.threads.append(threading.current_thread().name)
        if request.words == "wrong":
            raise BadQuery("no")
        return pb.SearchReply(token_space=self.token_space, hits=[pb.Hit(id="a")])

    def describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        return pb.DescribeReply(gallery_size=1)


def test_an_answerer_of_this_process_is_asked_without_holding_up_the_loop(encoder, toy, tokens):
    here = Here(toy.token_space)
    answer = ask(here, encoder, lambda client: client.search(tokens, "red"))
    assert answer.hits
    assert (answer.request_bytes, answer.envelope_bytes) == (0, 0), "nothing was sent"
    assert here.threads != [threading.current_thread().name]
    assert ask(here, encoder, lambda client: client.describe()).gallery_size == 1
    with pytest.raises(BadQuery, match=r"^no$"):
        ask(here, encoder, lambda client: client.search(tokens, "wrong"))
    with Client(here, encoder) as client:
        assert client.search(tokens, "red").request_bytes == 0
        assert client.describe().gallery_size == 1
