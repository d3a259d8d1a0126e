"""A question that can be followed: the trace it is sent with, and the server's name for a request that failed."""

import asyncio
import re

import grpc
import pytest
from pocketlens_edge.client import AsyncClient, Client
from pocketlens_edge.traces import traceparent
from pocketlens_wire.errors import ServerFault

FORM = r"00-[0-9a-f]{32}-[0-9a-f]{16}-01"


@pytest.fixture
def headers(service, monkeypatch) -> list[dict[str, str]]:
    """What came with each search."""
    came, search = [], service.Search

    def noting(request, context):
        came.append(dict(context.invocation_metadata()))
        return search(request, context)

    monkeypatch.setattr(service, "Search", noting)
    monkeypatch.delenv("TRACEPARENT", raising=False)
    return came


def test_each_question_has_a_trace_of_its_own_and_only_where_that_was_asked(headers, server, toy, tokens):
    ids = {"token_space": toy.token_space, "encoder_id": toy.encoder_id}

    async def ask_too() -> None:
        async with AsyncClient(server, **ids, trace=traceparent) as client:
            await client.search(tokens)

    with Client(server, **ids, trace=traceparent) as client:
        client.search(tokens)
        client.search(tokens)
    asyncio.run(ask_too())
    with Client(server, **ids) as client:
        client.search(tokens)
    sent = [each.get("traceparent", "") for each in headers]
    assert all(re.fullmatch(FORM, each) for each in sent[:3])
    assert len({each.split("-")[1] for each in sent[:3]}) == 3
    assert sent[3] == ""


def test_the_command_tells_the_trace_and_goes_on_with_the_environments(headers, server, run, photo, monkeypatch):
    ran = run("search", photo, "-s", server, "--trace", "--json")
    assert ran.code == 0
    assert ran.err.strip() == f"trace {headers[0]['traceparent'].split('-')[1]}"
    assert ran.json["hits"]
    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    monkeypatch.setenv("POCKETLENS_TRACE", "1")
    assert run("search", photo, "-s", server).err.strip() == f"trace {'ab' * 16}"
    assert headers[1]["traceparent"].split("-")[1] == "ab" * 16
    monkeypatch.setenv("POCKETLENS_TRACE", "0")
    assert run("search", photo, "-s", server).err == ""


@pytest.fixture
def failing(service, monkeypatch) -> None:
    """The server names the request, and fails on it."""

    def fail(request, context):
        context.set_trailing_metadata((("x-request-id", "r-17"),))
        context.abort(grpc.StatusCode.INTERNAL, "the server failed")

    monkeypatch.setattr(service, "Search", fail)


def test_a_failure_of_the_servers_tells_its_name_for_the_request(failing, client, tokens):
    with pytest.raises(ServerFault, match="`r-17`"):
        client.search(tokens)
