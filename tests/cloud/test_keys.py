"""Keys: who is let in, for what, and what the others are told."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import logging
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from pocketlens_cloud.cli import app
from pocketlens_cloud.serving import door, gateway, keys
from pocketlens_cloud.serving.door import Call, Door, DoorInterceptor
from pocketlens_cloud.serving.keys import Keys
from pocketlens_edge import ApiKey, AsyncClient, Client
from pocketlens_wire.api_key import read_api_key
from pocketlens_wire.errors import (
    KIND_METADATA,
    RETRY_METADATA,
    BadQuery,
    NotAllowed,
    ServerFault,
    Unauthenticated,
)
from pocketlens_wire.v1 import retrieval_pb2 as pb
from typer.testing import CliRunner

TOKEN_SPACE = "ts-" + "0" * 16


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("POCKETLENS_API_KEY", raising=False)
    return lambda *args: CliRunner().invoke(app, ["keys", *map(str, args)])


def bearer(text: str) -> list[str]:
    return [f"Bearer {text}"]


def altered(text: str) -> str:
    """A key of the right form and id, and another secret."""
    return text[:-1] + ("A" if text[-1] != "A" else "B")


# --- the file and the command


def test_a_key_is_shown_once_and_kept_as_a_hash(invoke, file):
    made = invoke(
        "new", "--keys", file, "--scope", "search", "--note", "camera 3", "--days", 90, "--rate", 10, "--burst", 5
    )
    assert made.exit_code == 0, made.output
    text = made.stdout.strip()
    found = re.fullmatch(r"plk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", text)
    assert found, text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    held = file.read_text()
    assert text not in held and text.split("_", 2)[2] not in held
    (kept,) = json.loads(held)["keys"]
    assert kept["hash"] == hashlib.sha256(text.encode()).hexdigest()
    listed = json.loads(invoke("list", "--keys", file, "--json").stdout)
    assert "hash" not in listed[0]
    assert (listed[0]["id"], listed[0]["scopes"], listed[0]["note"]) == (found[1], ["search"], "camera 3")
    assert (listed[0]["rate"], listed[0]["burst"]) == (10.0, 5)
    left = datetime.fromisoformat(listed[0]["expires"]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    assert f"{found[1]}  search, 10 rows/s, burst 5, expires " in invoke("list", "--keys", file).stdout
    assert text not in made.stderr
    assert "search|index|admin" in invoke("new", "--help").stdout


def test_check_and_revoke(invoke, file, tmp_path, monkeypatch):
    text, key = keys.new(file, ["search", "index"])
    (tmp_path / "device.key").write_text(f"{text}\n")
    good = invoke("check", "--keys", file, "--api-key-file", tmp_path / "device.key")
    assert (good.exit_code, good.stdout) == (0, f"{key.id}  search index, does not expire\n")
    assert invoke("revoke", key.id, "--keys", file).exit_code == 0
    monkeypatch.setenv("POCKETLENS_API_KEY", text)
    bad = invoke("check", "--keys", file)
    assert bad.exit_code == 1 and f"key {key.id} was revoked on 20" in bad.stderr
    assert "revoked" in invoke("list", "--keys", file).stdout
    unknown = invoke("revoke", "0" * 12, "--keys", file)
    assert unknown.exit_code == 2 and "has no key 000000000000" in unknown.stderr
    monkeypatch.delenv("POCKETLENS_API_KEY")
    assert "no key came" in invoke("check", "--keys", file).stderr
    assert "peek: use search, index, admin" in invoke("new", "--keys", file, "--scope", "peek").stderr


def test_many_makers_at_once_lose_no_key_and_the_files_mode_stays(file):
    keys.new(file, ["search"])
    file.chmod(0o640)
    with ThreadPoolExecutor(4) as makers:
        made = [future.result()[1].id for future in [makers.submit(keys.new, file, ["index"]) for _ in range(12)]]
    assert {key.id for key in keys.parse(file.read_bytes(), file)} >= set(made)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir() if path.name.endswith(".json")] == ["keys.json"]


def kept(**changes: Any) -> dict[str, Any]:
    whole = {
        "id": "0" * 12, "hash": "0" * 64, "scopes": ["search"], "created": "2026-01-01T00:00:00+00:00", "expires": None,
        "revoked": None, "rate": None, "burst": None, "note": "",
    }  # fmt: skip
    return {name: value for name, value in (whole | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),  # deeper than the parser goes
        ([], "is not a file of keys of format 1"),
        ({"format": 2, "keys": []}, "is not a file of keys of format 1"),
        ({"format": 1, "keys": {}}, "is not a file of keys"),
        ({"format": 1, "keys": [kept(note=...)]}, "key 1: must have exactly"),
        ({"format": 1, "keys": [kept(colour="red")]}, "key 1: must have exactly"),
        ({"format": 1, "keys": [kept(), kept()]}, "two keys have the same id"),
        (
            {"format": 1, "keys": [kept(id="1" * 12), kept(hash="f" * 63, scopes=["peek"])]},
            "key 2: hash, scopes cannot",
        ),
        ({"format": 1, "keys": [kept(scopes=[])]}, "scopes cannot"),
        ({"format": 1, "keys": [kept(scopes=[["search"]])]}, "scopes cannot"),
        ({"format": 1, "keys": [kept(expires="2026-01-01")]}, "expires cannot"),
        ({"format": 1, "keys": [kept(expires="soon", revoked=3)]}, "expires, revoked cannot"),
        ({"format": 1, "keys": [kept(rate=0, burst=True)]}, "rate, burst cannot"),
        ({"format": 1, "keys": [kept(note="a\nb")]}, "note cannot"),
    ],
)
def test_a_file_is_read_all_or_nothing(file, held, message):
    file.write_text(held if isinstance(held, str) else json.dumps(held))
    with pytest.raises(ServerFault, match=re.escape(message)) as caught:
        Keys(file)
    assert str(file) in str(caught.value)


def test_no_file_is_said(file):
    with pytest.raises(ServerFault, match=r"keys\.json: cannot be read \(No such file"):
        Keys(file)


# --- judging


def test_what_is_no_good_key_is_refused_with_the_reason(file):
    good, key = keys.new(file, ["search"])
    old, old_key = keys.new(file, ["search"], valid_for=timedelta(hours=1))
    now = datetime.now(UTC)
    at = SimpleNamespace(now=now)
    judge = Keys(file, now=lambda: at.now)
    assert judge.recognise(bearer(good)) == key
    assert judge.recognise([f"bearer {old}"]) == old_key
    at.now += timedelta(hours=2)
    reasons = {
        "none came": [],
        "one key, as": [good],
        "with one key": bearer(good) * 2,
        f"key {old_key.id} expired on": bearer(old),
    }
    for reason, headers in reasons.items():
        with pytest.raises(Unauthenticated, match=reason):
            judge.recognise(headers)
    alike = set()
    for wrong in (altered(good), altered(old), f"plk_{'0' * 12}_{good[17:]}", "plk_", "", "é" * 60, good + "x"):
        with pytest.raises(Unauthenticated) as caught:
            judge.recognise(bearer(wrong))
        alike.add(str(caught.value))
    assert alike == {"this server does not know the key that came: ask whoever runs it for one"}, "unknown or wrong?"


def test_every_judgement_takes_the_same_comparison_also_for_unknown_ids(file, monkeypatch):
    good, key = keys.new(file, ["search"])
    compared: list[tuple[str, str]] = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: (compared.append((a, b)), real(a, b))[1])
    judge = Keys(file)
    judge.recognise(bearer(good))
    for wrong in (altered(good), f"plk_{'0' * 12}_{good[17:]}", "nonsense"):
        with pytest.raises(Unauthenticated):
            judge.recognise(bearer(wrong))
    assert [held for _, held in compared] == [key.hash, key.hash, "0" * 64, "0" * 64]
    assert {len(made) for made, _ in compared} == {64}


def test_a_zero_hash_opens_nothing(file):
    """What an unknown id is compared with must not be a way in."""
    keys.new(file, ["search"])
    judge = Keys(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys.hmac, "compare_digest", lambda a, b: True)
        with pytest.raises(Unauthenticated):
            judge.recognise(bearer(f"plk_{'0' * 12}_{'A' * 43}"))


# --- at the door


def echo(server: grpc.aio.Server) -> None:
    """Services of other names: index/admin calls and health, answering with who called."""

    async def who(_request: bytes, _context: Any) -> bytes:
        key = keys.current()
        return key.id.encode() if key else b"nobody"

    async def each(request: bytes, context: Any) -> Any:
        for _ in range(3):
            yield await who(request, context)

    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who), "Each": grpc.unary_stream_rpc_method_handler(each)}
    names = ("toy.Unknown", "toy.Index", "grpc.health.v1.Health")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers) for name in names])


@pytest.fixture
def guarded(serve, service, file, monkeypatch):
    """A server that asks for keys, with the echo; and a caller: text of a key, service and method -> reply or error."""
    keys.new(file, ["admin"])
    monkeypatch.setattr(door, "SCOPE_OF", {**door.SCOPE_OF, "/toy.Index/": "index"})
    with serve(service, interceptors=[DoorInterceptor(Door(keys=Keys(file)))], further=[echo]) as running:
        yield running


def call(running, text: str | None, name: str, *, is_stream: bool = False) -> Any:
    kind = running.channel.unary_stream if is_stream else running.channel.unary_unary
    metadata = (("authorization", f"Bearer {text}"),) if text else ()
    answer = kind(name)(b"", timeout=10, metadata=metadata)
    return list(answer) if is_stream else answer


def refusal(running, text: str | None, name: str, *, is_stream: bool = False) -> tuple[str, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(running, text, name, is_stream=is_stream)
    failed: Any = caught.value
    return failed.code().name, dict(failed.trailing_metadata())[KIND_METADATA], failed.details()


SEARCH, DESCRIBE = "/pocketlens.v1.Retrieval/Search", "/pocketlens.v1.Retrieval/Describe"


def test_who_may_call_what(guarded, file):
    made = {scope: keys.new(file, [scope]) for scope in keys.SCOPES}
    needs = {SEARCH: "search", "/toy.Index/Who": "index", "/toy.Unknown/Who": "admin", DESCRIBE: None}
    for name, needed in needs.items():
        assert refusal(guarded, None, name)[:2] == ("UNAUTHENTICATED", "Unauthenticated")
        assert refusal(guarded, altered(made["admin"][0]), name)[:2] == ("UNAUTHENTICATED", "Unauthenticated")
        for scope, (text, key) in made.items():
            if needed not in (None, scope):
                said = f"this call needs scope {needed}; key {key.id} has {scope}"
                assert refusal(guarded, text, name) == ("PERMISSION_DENIED", "NotAllowed", said)
            elif name == SEARCH:
                assert refusal(guarded, text, name)[1] == "BadQuery", "let in; empty bytes are no question"
            else:
                assert call(guarded, text, name) == key.id.encode() or name == DESCRIBE
    admin, key = made["admin"]
    assert call(guarded, admin, "/toy.Unknown/Each", is_stream=True) == [key.id.encode()] * 3
    assert refusal(guarded, made["search"][0], "/toy.Unknown/Each", is_stream=True)[0] == "PERMISSION_DENIED"
    assert refusal(guarded, None, "/toy.Unknown/Each", is_stream=True)[0] == "UNAUTHENTICATED"


def test_health_asks_for_no_key_and_nothing_of_one_call_stays_for_the_next(guarded, file):
    text, key = keys.new(file, ["admin"])
    assert call(guarded, text, "/toy.Unknown/Who") == key.id.encode()
    assert call(guarded, None, "/grpc.health.v1.Health/Who") == b"nobody"


def test_keys_change_under_load_on_open_connections(guarded, file, toy, caplog):
    """Threads ask all the time; keys are made, revoked and a broken file is put there. Nobody with a good key fails."""
    text, _ = keys.new(file, ["search"])
    stop, failed, asked = threading.Event(), [], threading.Semaphore(0)

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                guarded.stub.Search(toy.request(), timeout=10, metadata=[("authorization", f"Bearer {text}")])
            except grpc.RpcError as error:
                failed.append(error)
            asked.release()

    def let_ask() -> None:
        for _ in range(6):
            assert asked.acquire(timeout=20)

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            let_ask()
            later, key = keys.new(file, ["admin"])
            assert call(guarded, later, "/toy.Unknown/Who") == key.id.encode()
            let_ask()
            keys.revoke(file, key.id)
            assert "was revoked on" in refusal(guarded, later, "/toy.Unknown/Who")[2]
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        let_ask()
        let_ask()
        assert "was revoked on" in refusal(guarded, later, "/toy.Unknown/Who")[2], "the keys before stay"
        file.write_bytes(whole)
        let_ask()
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert failed == []
    said = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    states = 3  # truncated, half, truncated
    assert 1 <= len([each for each in said if f"{file}: is not JSON" in each]) <= states
    assert text not in caplog.text


async def pass_by(door: Door, **facts: Any) -> None:
    facts = {"method": SEARCH, "headers": (), "peer": "192.0.2.7:4711", "is_encrypted": False} | facts
    async with door.passing(Call(**facts)):
        pass


@pytest.mark.parametrize(
    ("peer", "is_encrypted", "allow_clear", "is_taken"),
    [
        ("192.0.2.7:4711", False, False, False),
        ("192.0.2.7:4711", True, False, True),
        ("192.0.2.7:4711", False, True, True),
        ("127.0.0.1:4711", False, False, True),
        ("[::1]:4711", False, False, True),
        ("[::ffff:127.0.0.1]:4711", False, False, True),
        ("[::ffff:192.0.2.7]:4711", False, False, False),
        ("unix:", False, False, True),
        ("unknown", False, False, False),
    ],
)
def test_a_key_in_clear_is_taken_from_this_machine_alone(file, peer, is_encrypted, allow_clear, is_taken):
    text, _ = keys.new(file, ["search"])
    at = Door(keys=Keys(file), allow_clear=allow_clear)
    call = pass_by(at, headers=bearer(text), peer=peer, is_encrypted=is_encrypted)
    if is_taken:
        asyncio.run(call)
    else:
        with pytest.raises(Unauthenticated, match="not encrypted: ask over TLS"):
            asyncio.run(call)


def test_without_keys_changes_are_for_this_machine_alone():
    at = Door()
    asyncio.run(pass_by(at))
    asyncio.run(pass_by(at, method="/toy.Unknown/Who", peer="127.0.0.1:4711"))
    with pytest.raises(NotAllowed, match="has no keys, so calls that need scope admin"):
        asyncio.run(pass_by(at, method="/toy.Unknown/Who", is_encrypted=True))


# --- over HTTP


def test_the_gateway_asks_for_the_same_keys(serve, service, toy, file, tmp_path):
    search, index = (keys.new(file, [scope])[0] for scope in ("search", "index"))
    (tmp_path / "index.html").write_text("the page")
    site = gateway.Site(page={"index.html": tmp_path / "index.html"}, bundle={}, thumbnails=None)
    found: list[int] = []
    at = Door(keys=Keys(file))

    def ask(method: str, path: str, body: bytes, text: str | None) -> tuple[int, dict[str, str], bytes]:
        line = http.client.HTTPConnection("127.0.0.1", found[0], timeout=10)
        sent = {"Content-Type": "application/x-protobuf"} | ({"Authorization": f"Bearer {text}"} if text else {})
        line.request(method, path, body, sent)
        came = line.getresponse()
        told = came.status, {name.lower(): value for name, value in came.getheaders()}, came.read()
        line.close()
        return told

    def beside(front):
        return gateway.serving(front, site, host="127.0.0.1", port=0, on_ready=found.append, door=at)

    question = toy.request().SerializeToString()
    with serve(service, beside=beside):
        assert ask("GET", "/", b"", None)[0] == 200
        for method, path, body in (
            ("POST", "/v1/search", question),
            ("POST", "/v1/describe", b""),
            ("GET", "/v1/pictures/x", b""),
        ):
            status, headers, said = ask(method, path, body, None)
            assert (status, headers["www-authenticate"], json.loads(said)["kind"]) == (401, "Bearer", "Unauthenticated")
        status, _, said = ask("POST", "/v1/search", question, index)
        assert (status, json.loads(said)["kind"]) == (403, "NotAllowed")
        status, _, reply = ask("POST", "/v1/search", question, search)
        assert status == 200 and pb.SearchReply.FromString(reply).hits
        assert ask("POST", "/v1/describe", b"", index)[0] == 200


# --- the device


def test_the_device_shows_its_key_and_is_told_what_is_wrong_with_it(guarded, file):
    text, _ = keys.new(file, ["search"])
    index, index_key = keys.new(file, ["index"])
    with Client(guarded.address, token_space=TOKEN_SPACE, api_key=text) as client:
        assert client.search(None, "in red").hits

    async def ask() -> bool:
        async with AsyncClient(guarded.address, token_space=TOKEN_SPACE, api_key=ApiKey(text)) as client:
            return bool((await client.search(None, "in red")).hits)

    assert asyncio.run(ask())
    with (
        Client(guarded.address, token_space=TOKEN_SPACE) as client,
        pytest.raises(Unauthenticated, match="--api-key-file"),
    ):
        client.search(None, "in red")
    with (
        Client(guarded.address, token_space=TOKEN_SPACE, api_key=index) as client,
        pytest.raises(NotAllowed, match=f"needs scope search; key {index_key.id} has index"),
    ):
        client.search(None, "in red")


@pytest.mark.parametrize(
    "server", ["search.example.org:443", "127.evil.example:443", "192.0.2.7:50551", "localhost.example:1"]
)
def test_a_key_never_leaves_the_machine_in_clear(server, file):
    text, _ = keys.new(file, ["search"])
    for kind in (Client, AsyncClient):
        with pytest.raises(BadQuery, match="not sent over a connection that is not encrypted") as caught:
            kind(server, token_space=TOKEN_SPACE, api_key=text)
        assert text not in str(caught.value)


def test_where_a_device_has_its_key_from(tmp_path, file, monkeypatch):
    text, key = keys.new(file, ["search"])
    monkeypatch.delenv("POCKETLENS_API_KEY", raising=False)
    assert read_api_key() is None
    monkeypatch.setenv("POCKETLENS_API_KEY", f" {text}\n")
    held = read_api_key()
    assert held and held.metadata() == (("authorization", f"Bearer {text}"),)
    assert repr(held) == f"ApiKey(plk_{key.id}_...)"
    monkeypatch.setenv("POCKETLENS_API_KEY", "plk_secret")
    (tmp_path / "device.key").write_text("plk_secret")
    for source, said in ((None, "POCKETLENS_API_KEY"), (tmp_path / "device.key", "device.key")):
        with pytest.raises(BadQuery, match=f"{said}: does not hold a key") as caught:
            read_api_key(source)
        assert "plk_secret" not in str(caught.value)
    with pytest.raises(BadQuery, match=r"none\.key: the key cannot be read"):
        read_api_key(tmp_path / "none.key")


def test_describe_shows_a_key(guarded, file, monkeypatch, tmp_path):
    text, _ = keys.new(file, ["search"])
    monkeypatch.delenv("POCKETLENS_API_KEY", raising=False)
    ask = ["describe", "--server", guarded.address, "--json"]
    refused = CliRunner().invoke(app, ask)
    assert refused.exit_code == 2 and "wants a key, and none came" in refused.stderr
    (tmp_path / "device.key").write_text(text)
    told = CliRunner().invoke(app, [*ask, "--api-key-file", str(tmp_path / "device.key")])
    assert json.loads(told.stdout)["token_space"] == TOKEN_SPACE


def test_a_keys_own_rate_is_kept_and_told(guarded, file, toy):
    """A burst of two rows, then nothing for an hour; another key is not held back."""
    slow, _ = keys.new(file, ["search"], rate=1 / 3600, burst=2)
    free, _ = keys.new(file, ["search"])

    def asked(text: str) -> str:
        try:
            headers = (("authorization", f"Bearer {text}"),)
            guarded.stub.Search(toy.request(mode=pb.MODE_ZERO_SHOT), timeout=10, metadata=headers)
        except grpc.RpcError as error:
            wait_ms = int(dict(error.trailing_metadata())[RETRY_METADATA])
            return f"{error.code().name}, come again in {'hours' if wait_ms > 1_000_000 else 'a moment'}"
        return "OK"

    assert [asked(slow) for _ in range(4)] == ["OK", "OK", *2 * ["RESOURCE_EXHAUSTED, come again in hours"]]
    assert asked(free) == "OK"
    slower, _ = keys.new(file, ["search"], rate=1 / 3600)
    assert [asked(slower) for _ in range(2)] == ["OK", "RESOURCE_EXHAUSTED, come again in hours"], "a row is let in"
