"""The audit log: who, what, when; never words, tokens or keys; and what happens when it cannot be written."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import certificates
import grpc
import pytest
from pocketlens_cloud.cli import app
from pocketlens_cloud.serving import audit, gateway, keys
from pocketlens_cloud.serving.audit import Audit, Visit
from pocketlens_cloud.serving.door import Door, DoorInterceptor
from pocketlens_cloud.serving.keys import Keys
from pocketlens_cloud.serving.tls import ServerTls, TlsFiles
from pocketlens_edge import Client, Tls
from pocketlens_wire.errors import ServerFault
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from typer.testing import CliRunner

SEARCH, CHANGE = "/pocketlens.v1.Retrieval/Search", "/toy.Changes/Change"


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def steps() -> list[str]:
    """What happened, in order: `synced`, `changed`."""
    return []


@pytest.fixture
def watched(serve, service, tmp_path, steps) -> Callable[..., Any]:
    """`with watched(Audit) as running:` a server with keys, an audit log and a call that changes something."""

    def changes(server: grpc.aio.Server) -> None:
        async def change(request: bytes, _context: Any) -> bytes:
            steps.append("changed")
            if request == b"fail":
                raise ServerFault("the change failed")
            return b"done"

        handler = {"Change": grpc.unary_unary_rpc_method_handler(change)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("toy.Changes", handler)])

    def start(log: Audit | None) -> Any:
        door = Door(keys=Keys(tmp_path / "keys.json"), audit=log)
        return serve(service, interceptors=[DoorInterceptor(door)], further=[changes])

    return start


@pytest.fixture
def asker(tmp_path) -> tuple[str, str]:
    text, key = keys.new(tmp_path / "keys.json", ["search"])
    return text, key.id


@pytest.fixture
def admin(tmp_path) -> tuple[str, str]:
    text, key = keys.new(tmp_path / "keys.json", ["admin"])
    return text, key.id


def change(running, text: str | None, request: bytes = b"") -> bytes:
    metadata = (("authorization", f"Bearer {text}"),) if text else ()
    return running.channel.unary_unary(CHANGE)(request, timeout=10, metadata=metadata)


def search(running, toy, text: str, **more: Any) -> None:
    running.stub.Search(toy.request(**more), timeout=10, metadata=[("authorization", f"Bearer {text}")])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_change_leaves_its_trace_on_the_disk_before_it_happens(watched, log, admin, asker, steps, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(audit.os, "fsync", lambda at: (steps.append("synced"), real(at))[1])
    text, key = admin
    with Audit(log) as kept, watched(kept) as running:
        assert change(running, text) == b"done"
        with pytest.raises(grpc.RpcError, match="the change failed"):
            change(running, text, b"fail")
        with pytest.raises(grpc.RpcError, match="needs scope admin"):
            change(running, asker[0])
    assert steps == ["synced", "changed", "synced"] * 2
    told = lines(log)
    assert [(line["event"], line["key"], line.get("status")) for line in told] == [
        ("begin", key, None), ("end", key, "OK"),
        ("begin", key, None), ("end", key, "INTERNAL"),
        ("refused", asker[1], "PERMISSION_DENIED"),
    ]  # fmt: skip
    assert {(line["method"], line["scope"], line["certificate"]) for line in told} == {(CHANGE, "admin", None)}
    assert all(line["peer"].startswith("127.0.0.1:") for line in told)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_questions_are_counted_and_nothing_of_them_is_told(watched, log, asker, admin, toy):
    with Audit(log) as kept, watched(kept) as running:
        for _ in range(3):
            search(running, toy, asker[0], words="dotted grass")
        with pytest.raises(grpc.RpcError):
            search(running, toy, asker[0], top=0)
        with pytest.raises(grpc.RpcError):
            search(running, toy, admin[0])
        assert log.read_text() == ""
    (line,) = lines(log)
    assert line["event"] == "counts" and line["since"] <= line["at"]
    counts = {(each["key"], each["method"], each["status"]): each["calls"] for each in line["counts"]}
    assert counts == {
        (asker[1], SEARCH, "OK"): 3,
        (asker[1], SEARCH, "INVALID_ARGUMENT"): 1,
        (admin[1], SEARCH, "PERMISSION_DENIED"): 1,
    }


def test_each_question_has_a_line_if_asked_for_without_its_words(watched, log, asker, toy):
    with Audit(log, each_search=True) as kept, watched(kept) as running:
        search(running, toy, asker[0], words="dotted grass")
        with pytest.raises(grpc.RpcError):
            search(running, toy, asker[0], words="dotted grass", top=0)
    told = lines(log)
    assert [(line["event"], line["key"], line["status"]) for line in told] == [
        ("question", asker[1], "OK"),
        ("question", asker[1], "INVALID_ARGUMENT"),
    ]
    assert {tuple(line) for line in told} == {
        ("at", "event", "key", "certificate", "peer", "method", "scope", "status")
    }
    held = log.read_text()
    assert asker[0].split("_", 2)[2] not in held and "dotted" not in held


def test_strangers_cannot_fill_the_disk(watched, log, admin):
    with Audit(log, each_search=True) as kept, watched(kept) as running:
        for _ in range(20):
            with pytest.raises(grpc.RpcError):
                change(running, None)
    (line,) = lines(log)
    (count,) = line["counts"]
    assert count == {"key": None, "certificate": None, "method": CHANGE, "status": "UNAUTHENTICATED", "calls": 20}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_refuses_changes_and_answers_searches(watched, asker, admin, steps, toy, caplog):
    with Audit(Path("/dev/full"), each_search=True) as kept, watched(kept) as running:
        search(running, toy, asker[0])
        with pytest.raises(grpc.RpcError) as caught:
            change(running, admin[0])
        search(running, toy, asker[0])
    failed: Any = caught.value
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert "cannot be written (No space left on device): index and admin calls are refused" in failed.details()
    assert steps == []
    said = [each.message for each in caplog.records if "audit log" in each.message]
    assert len(said) == 1 and "/dev/full" in said[0], "once, not for every line"


def test_when_there_is_room_again_changes_are_taken_and_what_was_lost_is_told(watched, log, admin, monkeypatch):
    """The disk takes half a line, then nothing, then all: no line is glued to another."""
    real, left = os.write, [30, 0, 0]

    with Audit(log) as kept, watched(kept) as running:

        def scarce(at: int, data: bytes) -> int:
            room = left.pop(0) if left and at == kept._descriptor else len(data)
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(at, data[:room])

        monkeypatch.setattr(audit.os, "write", scarce)
        for _ in range(2):  # each has two lines: that it begins, that it was refused
            with pytest.raises(grpc.RpcError, match="No space left"):
                change(running, admin[0])
        assert change(running, admin[0]) == b"done"
    torn, *whole = log.read_bytes().splitlines()
    assert len(torn) == 30
    told = [json.loads(line) for line in whole]
    assert [line["event"] for line in told] == ["refused", "begin", "end"]
    assert sum(line.get("lost_lines", 0) for line in told) == 3


def test_lines_are_lost_rather_than_memory(log, monkeypatch):
    monkeypatch.setattr(audit, "MAX_WAITING", 0)
    visit = Visit(method=CHANGE, scope="admin", peer="127.0.0.1:1", key="k")
    with Audit(log) as kept:
        with pytest.raises(ServerFault, match="far behind"):
            asyncio.run(kept.begin(visit))
        monkeypatch.setattr(audit, "MAX_WAITING", 9)
        asyncio.run(kept.begin(visit))
    (line,) = lines(log)
    assert line["lost_lines"] == 1


def test_a_log_that_was_moved_away_begins_anew(watched, log, admin, tmp_path):
    with Audit(log) as kept, watched(kept) as running:
        change(running, admin[0])
        log.rename(tmp_path / "audit.1")
        change(running, admin[0])
    assert lines(tmp_path / "audit.1")[0]["event"] == "begin"
    assert [line["event"] for line in lines(log)][-2:] == ["begin", "end"]
    assert len(lines(log)) + len(lines(tmp_path / "audit.1")) == 4


def test_counts_are_written_every_minute(log, monkeypatch):
    async def run() -> None:
        kept.end(Visit(method=SEARCH, scope="search", peer="127.0.0.1:1"), "OK", was_let_in=True)
        while not log.read_text():
            await asyncio.sleep(0.01)

    monkeypatch.setattr(audit, "COUNTS_EVERY_S", 0.01)
    with Audit(log) as kept:
        asyncio.run(asyncio.wait_for(run(), 10))
        assert len(lines(log)) == 1


def test_a_log_that_cannot_be_opened_is_said_at_the_start(tmp_path):
    with pytest.raises(ServerFault, match=r"audit log .*: cannot be opened \(No such file"):
        Audit(tmp_path / "none" / "audit.jsonl")


def test_the_page_s_questions_are_counted_too(serve, service, toy, log, tmp_path):
    (tmp_path / "index.html").write_text("the page")
    site = gateway.Site(page={"index.html": tmp_path / "index.html"}, bundle={}, thumbnails=None)
    found: list[int] = []
    with Audit(log) as kept:
        door = Door(audit=kept)

        def beside(front: Any) -> Any:
            return gateway.serving(front, site, host="127.0.0.1", port=0, on_ready=found.append, door=door)

        with serve(service, beside=beside):
            line = http.client.HTTPConnection("127.0.0.1", found[0], timeout=10)
            body = toy.request().SerializeToString()
            line.request("POST", "/v1/search", body, {"Content-Type": "application/x-protobuf"})
            assert line.getresponse().status == 200
            line.close()
    (told,) = lines(log)
    assert [(each["method"], each["status"], each["calls"]) for each in told["counts"]] == [("/v1/search", "OK", 1)]


# --- all of it


needs_openssl = pytest.mark.skipif(not certificates.HAS_OPENSSL, reason="makes certificates with openssl")


@needs_openssl
def test_who_showed_a_certificate_is_told_by_its_name(serve, service, tmp_path, log):
    certificates.authority(tmp_path, "ca")
    for name in ("server", "camera-3"):
        certificates.certificate(tmp_path, name)
    files = TlsFiles(certificate=tmp_path / "server.pem", key=tmp_path / "server.key", clients=tmp_path / "ca.pem")
    own = Tls(ca=tmp_path / "ca.pem", certificate=tmp_path / "camera-3.pem", key=tmp_path / "camera-3.key")
    with Audit(log, each_search=True) as kept:
        seams = {"credentials": ServerTls(files).credentials(), "interceptors": [DoorInterceptor(Door(audit=kept))]}
        with (
            serve(service, **seams) as running,
            Client(running.address, token_space="ts-" + "0" * 16, tls=own) as client,
        ):
            client.search(None, "in red")
    (line,) = lines(log)
    assert (line["certificate"], line["key"], line["status"]) == ("camera-3", None, "OK")


@needs_openssl
def test_serve_with_everything(toy, indexed, tmp_path, log, asker):
    """The command: encrypted, asking for keys, keeping its log; asked by the other command."""
    shutil.copytree(indexed, tmp_path / "gallery")
    (tmp_path / "gallery" / "gallery.lock").unlink(missing_ok=True)
    certificates.authority(tmp_path, "ca")
    certificates.certificate(tmp_path, "server")
    (tmp_path / "device.key").write_text(asker[0])
    command = [
        sys.executable, "-W", "error", "-m", "pocketlens_cloud", "serve", "--gallery", "gallery", "--port", "0",
        "--ready-file", "address", "--tls-cert", "server.pem", "--tls-key", "server.key", "--keys", "keys.json",
        "--audit-log", log.name, "--log-format", "json",
    ]  # fmt: skip
    outer = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}  # the device sets it too
    server = subprocess.Popen(
        command, cwd=tmp_path, env=outer | {"POCKETLENS_BUNDLE": str(toy.bundle)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "address").exists():
            assert server.poll() is None and time.monotonic() < deadline, server.communicate()
            time.sleep(0.01)
        address = (tmp_path / "address").read_text()
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")  # a handshake that fails, until the server hangs up
            with suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass
        ask = ["describe", "--server", address, "--json", "--ca", str(tmp_path / "ca.pem")]
        told = CliRunner().invoke(app, [*ask, "--api-key-file", str(tmp_path / "device.key")])
        assert json.loads(told.stdout)["token_space"] == toy.token_space, told.output
        credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())
        with grpc.secure_channel(address, credentials) as channel, pytest.raises(grpc.RpcError, match="none came"):
            RetrievalStub(channel).Search(toy.request(), timeout=10)
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=20)
        assert server.returncode == 0, said
    finally:
        server.kill()
        server.communicate()
    (line,) = lines(log)
    assert [(each["key"], each["status"], each["calls"]) for each in line["counts"]] == [
        (asker[1], "OK", 1),
        (None, "UNAUTHENTICATED", 1),
    ]
    assert asker[0] not in "".join(said)
    *logged, last = said[1].splitlines()
    assert last == "stopped"
    told = [json.loads(each) for each in logged]  # gRPC's core wrote no line of its own between them
    assert [each["method"] for each in told if "method" in each] == ["Describe", "Search"]
