"""The question and its answer, over the real gRPC stack: limits, retries, statuses, bytes."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from pocketlens_edge.client import ATTEMPTS, ENVELOPE_BYTES, Client, Tls, open_channel
from pocketlens_edge.conditions import as_mapping, from_value, parse_filter, to_value
from pocketlens_edge.questions import Mode, question
from pocketlens_wire.errors import (
    BadBundle,
    BadQuery,
    GalleryError,
    Overloaded,
    ServerFault,
    SpaceMismatch,
    TooLate,
    Unavailable,
)
from pocketlens_wire.limits import MAX_TOP
from pocketlens_wire.tokens import Encoding, unpack
from pocketlens_wire.v1 import retrieval_pb2 as pb

KEY = "plk_0123456789ab_" + "x" * 43
EIGHT_WORDS = "make it red and put flowers in it"


def ask(**changes) -> pb.SearchRequest:
    defaults = {
        "token_space": "ts-0123456789abcdef",
        "encoder_id": "enc-0123456789abcdef",
        "tokens": None,
        "words": "red",
        "encoding": Encoding.INT8,
        "top": 10,
        "mode": None,
        "where": {},
    }
    return question(**{**defaults, **changes})


# --- the question


def test_the_question_says_everything(client, service, tokens):
    answer = client.search(tokens, "make it red", top=2, mode=Mode.ZERO_SHOT, where={"colour": "red", "count": 2})
    (request,) = service.requests
    assert request.token_space == client.token_space
    assert request.encoder == client.encoder_id
    assert request.words == "make it red"
    assert request.mode == pb.MODE_ZERO_SHOT
    assert request.top == 2
    assert {c.key: from_value(c.equals) for c in request.filter} == {"colour": "red", "count": 2}
    assert request.sentence.encoding == pb.TOKEN_ENCODING_INT8
    np.testing.assert_allclose(unpack(request.sentence), tokens, atol=np.abs(tokens).max() / 127)
    assert answer.request_bytes == request.ByteSize()


def test_words_alone_carry_no_sentence_and_no_encoder(client, service):
    client.search(None, "two hats")
    assert not service.requests[0].HasField("sentence")
    assert service.requests[0].encoder == ""
    assert service.requests[0].token_space


@pytest.mark.parametrize("encoding", list(Encoding))
def test_every_encoding_arrives(server, service, tokens, toy, encoding):
    with Client(server, token_space=toy.token_space, encoder_id=toy.encoder_id, encoding=encoding) as client:
        client.search(tokens)
    unpack(service.requests[0].sentence)


def test_the_promised_size_of_a_question(tokens):
    request = ask(tokens=tokens, words=EIGHT_WORDS)
    assert tokens.shape == (4, 192)
    assert len(EIGHT_WORDS.split()) == 8
    assert request.ByteSize() + ENVELOPE_BYTES < 1200


def test_the_envelope_is_what_a_counting_proxy_sees(service, server, tokens, toy):
    with CountingProxy(server) as proxy:
        with Client(proxy.address, token_space=toy.token_space, encoder_id=toy.encoder_id) as client:
            answer = client.search(tokens, EIGHT_WORDS)
        envelope = proxy.settled() - answer.request_bytes
    opening = 80  # HTTP/2 preface and settings: stated as not counted
    assert envelope <= answer.envelope_bytes + opening
    assert answer.envelope_bytes - 60 <= envelope


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_tokens_that_are_not_finite_are_never_sent(client, service, tokens, bad):
    broken = tokens.copy()
    broken[2, 17] = bad
    with pytest.raises(BadQuery, match="finite"):
        client.search(broken, "red")
    assert service.calls == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": "  "}, "Give a picture, words, or both"),
        ({"top": 0}, "ask for 1 to 1000 hits"),
        ({"top": -1}, "ask for 1 to 1000 hits"),
        ({"top": MAX_TOP + 1}, "ask for 1 to 1000 hits"),
        ({"words": "a" * 70_000}, r"70,\d+ bytes; the limit is 65,536"),
        ({"words": "caf\udce9"}, "the words cannot be read as Unicode"),
        ({"where": {"colour": "r\udce9d"}}, "filter `colour` cannot be read as Unicode"),
        ({"where": {"count": 2**63}}, "filter `count` is 9223372036854775808"),
        ({"where": {"price": float("nan")}}, "filter `price` is nan"),
        ({"tokens": np.zeros((0, 192), np.float32)}, "0 tokens"),
        ({"tokens": np.zeros(192, np.float32)}, "matrix"),
    ],
)
def test_what_cannot_be_asked_is_not_sent(changes, message):
    with pytest.raises(BadQuery, match=message):
        ask(**changes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("count=2", 2),
        ("count=-3", -3),
        ("price=2.50", 2.5),
        ("price=1e3", 1000.0),
        ("part=true", True),
        ("part=False", False),
        ("colour=red", "red"),
        ('size="2"', "2"),
        ("size='true'", "true"),
        ("note=a=b", "a=b"),
        ("ground=wooden table", "wooden table"),
        ("version=1.2.3", "1.2.3"),
        ("word=nan", "nan"),
    ],
)
def test_a_filter_value_is_typed_by_its_look(text, value):
    parsed = (as_mapping(parse_filter([text])) or {})[text.partition("=")[0]]
    assert parsed == value
    assert type(parsed) is type(value)
    assert from_value(to_value("key", parsed)) == value


@pytest.mark.parametrize("texts", [["colour"], ["=red"], ["colour="], ["count=1", "count=2"]])
def test_a_filter_that_is_none_is_refused(texts):
    with pytest.raises(BadQuery):
        parse_filter(texts)


# --- the answer


def test_the_answer_in_plain_values(client, service, tokens):
    service.notes = ["unknown word: frobnicated"]
    answer = client.search(tokens, "red")
    assert [hit.score for hit in answer.hits] == [0.5, 0.25]
    assert answer.hits[0].payload == {"file": "one.png", "count": 2}
    assert answer.hits[1].payload == {"file": "two.png", "part": True}
    assert answer.mode == "tuned"
    assert answer.notes == ["unknown word: frobnicated"]
    assert list(answer.times_ms) == ["check", "queue", "text_tower", "heads", "search", "total", "round_trip"]
    assert answer.times_ms["round_trip"] > 0


def test_describe(client):
    assert client.describe().gallery_size == 3000


def test_a_channel_can_be_handed_in_and_stays_open(server, tokens, toy):
    with open_channel(server) as channel:
        for _ in range(2):
            with Client("x:1", token_space=toy.token_space, encoder_id=toy.encoder_id, channel=channel) as client:
                assert client.search(tokens).hits


# --- what can go wrong on the way

STATUSES = [
    (grpc.StatusCode.INVALID_ARGUMENT, "unknown filter key `colr`", "", BadQuery, "unknown filter key `colr`"),
    (grpc.StatusCode.FAILED_PRECONDITION, "ts-a is not ts-b", "", SpaceMismatch, "ts-a is not ts-b"),
    (grpc.StatusCode.FAILED_PRECONDITION, "no pictures", "GalleryError", GalleryError, "no pictures"),
    (grpc.StatusCode.FAILED_PRECONDITION, "flipped byte", "BadBundle", BadBundle, "flipped byte"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", "", Overloaded, "busy"),
    (grpc.StatusCode.INTERNAL, "boom", "", ServerFault, "failed on this question"),
    (grpc.StatusCode.UNKNOWN, "", "", ServerFault, "failed on this question"),
    (grpc.StatusCode.UNIMPLEMENTED, "", "", ServerFault, "does not offer"),
    (grpc.StatusCode.DEADLINE_EXCEEDED, "", "", TooLate, "in time"),
]


@pytest.mark.parametrize(("code", "details", "kind", "error", "sentence"), STATUSES)
def test_each_status_is_an_error_and_a_sentence_and_is_not_retried(
    client, service, tokens, code, details, kind, error, sentence
):
    service.failures.append((code, details, kind))
    with pytest.raises(error) as caught:
        client.search(tokens, "red")
    assert type(caught.value) is error
    assert sentence in str(caught.value)
    assert "StatusCode" not in str(caught.value)
    assert service.calls == 1
    assert client.search(tokens, "red").hits, "the next good question is answered"


@pytest.mark.parametrize(("said", "after_s"), [("250", 0.25), ("", 1.0), ("-1", 1.0), ("soon", 1.0), ("9" * 400, 1.0)])
def test_a_busy_server_says_when_to_ask_again(client, service, tokens, said, after_s):
    service.failures.append((grpc.StatusCode.RESOURCE_EXHAUSTED, "the house is full", "Overloaded"))
    service.retry_after = said
    with pytest.raises(Overloaded) as caught:
        client.search(tokens, "red")
    assert caught.value.retry_after_s == after_s


def test_unavailable_is_tried_again_and_then_answered(client, service, tokens):
    service.failures.extend([(grpc.StatusCode.UNAVAILABLE, "warming up", "")] * 2)
    assert client.search(tokens, "red").hits
    assert service.calls == 3


def test_unavailable_for_good_is_given_up_after_all_attempts(client, service, tokens):
    service.failures.extend([(grpc.StatusCode.UNAVAILABLE, "warming up", "")] * 9)
    with pytest.raises(Unavailable, match="warming up"):
        client.search(tokens, "red")
    assert service.calls == ATTEMPTS


def test_no_server_there(tokens, toy):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    message = rf"^{address}: No Pocketlens server answers there"
    with (
        Client(address, token_space=toy.token_space, encoder_id=toy.encoder_id) as client,
        pytest.raises(Unavailable, match=message),
    ):
        client.search(tokens, "red")


def test_the_deadline_passes(server, service, tokens, toy):
    service.delay_s = 0.5
    with Client(server, token_space=toy.token_space, encoder_id=toy.encoder_id, timeout_s=0.1) as client:
        start = time.perf_counter()
        with pytest.raises(TooLate, match=r"0\.1 s allowed"):
            client.search(tokens, "red")
    assert time.perf_counter() - start < 0.5


def test_a_server_that_is_no_server_ends_in_time(tokens, toy):
    """A port that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            Client(address, token_space=toy.token_space, encoder_id=toy.encoder_id, timeout_s=0.3) as client,
            pytest.raises((TooLate, Unavailable), match=address),
        ):
            client.search(tokens, "red")


def test_a_proxy_in_the_environment_is_not_for_this_machine(server, tokens, toy, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with Client(server, token_space=toy.token_space, encoder_id=toy.encoder_id) as client:
        assert client.search(tokens).hits


def test_of_two_replicas_the_one_that_is_left_answers(replicas, tokens, toy):
    both = ",".join(address for _, _, address in replicas)
    with Client(both, token_space=toy.token_space, encoder_id=toy.encoder_id, api_key=KEY) as client:
        client.search(tokens, "red")
        ((server, first, _),) = [each for each in replicas if each[1].calls]
        (second,) = [service for _, service, _ in replicas if service is not first]
        server.stop(grace=0).wait()
        for _ in range(3):
            assert client.search(tokens, "red").hits
    assert (first.calls, second.calls) == (1, 3)


def test_a_call_under_way_when_its_replica_goes_is_asked_of_the_other(replicas, tokens, toy):
    both = ",".join(address for _, _, address in replicas)
    for _, service, _ in replicas:
        service.delay_s = 0.3
    with (
        Client(both, token_space=toy.token_space, encoder_id=toy.encoder_id) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        asked = threads.submit(client.search, tokens, "red")
        while not (at := [each for each in replicas if each[1].calls]):
            time.sleep(0.001)
        at[0][0].stop(grace=0)
        assert asked.result(10).hits
    assert [service.calls for _, service, _ in replicas] == [1, 1]


def test_clients_are_spread_over_replicas(replicas, tokens, toy):
    both = ",".join(address for _, _, address in replicas)
    for _ in range(40):  # all at one by chance: once in 5e11
        with Client(both, token_space=toy.token_space, encoder_id=toy.encoder_id) as client:
            client.search(tokens, "red")
    assert all(service.calls for _, service, _ in replicas)


@pytest.mark.parametrize(
    ("servers", "tls", "words"),
    [
        ("a.example:1,b.example:1", None, "one name in DNS"),
        ("127.0.0.1:1,[::1]:1", None, "all by IPv6"),
        ("127.0.0.1:1,", None, "server `` is not HOST:PORT"),
        ("127.0.0.1:1,127.0.0.1:2", Tls(), "checked against one name"),
    ],
)
def test_servers_that_could_not_be_asked_as_one_are_refused(servers, tls, words):
    with pytest.raises(BadQuery, match=words):
        open_channel(servers, tls)


def test_a_key_goes_unencrypted_to_no_replica_elsewhere():
    with pytest.raises(BadQuery, match=r"10\.0\.0\.5:1: a key is not sent"):
        Client("127.0.0.1:1,10.0.0.5:1", token_space="ts", api_key=KEY)


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":50551", "http://localhost:50551", "a b:1", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(BadQuery, match="not HOST:PORT"):
        open_channel(address)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_timeout_must_be_positive(timeout_s, toy):
    with pytest.raises(BadQuery, match="more than 0"):
        Client("127.0.0.1:1", token_space=toy.token_space, encoder_id=toy.encoder_id, timeout_s=timeout_s)


class CountingProxy:
    """A TCP relay that counts the bytes on their way up."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._count = 0

    def __enter__(self) -> CountingProxy:
        self._relay = threading.Thread(target=self._serve)
        self._relay.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._relay.join()
        self._listener.close()

    def settled(self) -> int:
        """Bytes so far, once no more come."""
        before = -1
        while before != self._count:
            before = self._count
            time.sleep(0.05)
        return self._count

    def _serve(self) -> None:
        device, _ = self._listener.accept()
        with device, socket.create_connection(self._target) as cloud:
            down = threading.Thread(target=self._pump, args=(cloud, device, False))
            down.start()
            self._pump(device, cloud, True)
            down.join()

    def _pump(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(65536):
                self._count += len(data) if up else 0
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # the other side has gone
            pass
