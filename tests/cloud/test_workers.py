"""Several workers behind one port, upon a gallery on a Qdrant server: the real command in processes of its own."""

import asyncio
import json
import operator
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import grpc
import pytest
from pocketlens_cloud.cli import app
from pocketlens_cloud.serving import gateway, metrics, workers
from pocketlens_edge.connection import _options
from pocketlens_wire.errors import ServerFault
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from qdrant.servers import SERVERS
from typer.testing import CliRunner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shares a port's connections out")
qdrant_client = pytest.importorskip("qdrant_client", reason="pip install 'pocketlens[qdrant]'")


@pytest.fixture(scope="module")
def invoke(toy) -> Iterator[Callable]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETLENS_BUNDLE", str(toy.bundle))
        patch.setenv("COLUMNS", "300")
        yield lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def served(invoke, pictures, tmp_path_factory) -> Iterator[list[str]]:
    """Options of `serve` that name a live gallery on a server."""
    home = tmp_path_factory.mktemp("qdrant")
    with SERVERS["fake"](home) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        at = ["--qdrant", running.server.address.url, "--qdrant-grpc-port", str(running.server.address.grpc_port)]
        assert invoke("gallery", "build", running.name, pictures, *at).exit_code == 0
        assert invoke("gallery", "promote", running.name, *at, "--unverified").exit_code == 0
        yield [*at, "--collection", running.name]


@dataclass
class Started:
    process: subprocess.Popen
    address: str
    figures: str
    log: Path

    def workers(self) -> list[int]:
        """Pids, beside those of Python's own helpers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.figures}{path}", timeout=10) as reply:
            return reply.read().decode()

    def told(self, figure: str, **labels: str) -> dict[str, float]:
        """Of each worker, by its number."""
        found = metrics.read(self.get("/metrics"))
        return {had["worker"]: value for name, had, value in found if name == figure and labels.items() <= had.items()}


@pytest.fixture
def started(toy, served, tmp_path) -> Iterator[Started]:
    ready = tmp_path / "address"
    code = "from pocketlens_cloud.cli import app; app()"
    log = tmp_path / "log"  # a pipe would fill up with what is logged of so many calls
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, "serve", *served, "--workers", "2", "--port", "0",
             "--ready-file", str(ready), "--metrics", "127.0.0.1:0", "--log-format", "json"],
            env=os.environ | {"POCKETLENS_BUNDLE": str(toy.bundle)},
            stdout=subprocess.PIPE, stderr=said, text=True,
        )  # fmt: skip
    until(lambda: ready.exists() or process.poll() is not None, 30)
    assert process.poll() is None, log.read_text()
    assert process.stdout is not None
    figures = process.stdout.readline().removeprefix("figures on http://").removesuffix("/metrics\n")
    assert process.stdout.readline().startswith(f"ready on {ready.read_text()}: 40 pictures")
    running = Started(process, ready.read_text(), figures, log)
    yield running
    for pid in running.workers() if process.poll() is None else ():
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()


def until(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Ended, whether anybody has asked after it or not."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_both_answer_one_that_is_killed_is_missed_by_nobody_and_comes_back_and_all_go_together(started, toy, invoke):
    over = Event()

    def ask() -> int:
        """As a device does, each time over a new connection."""
        asked, options = 0, [*_options(started.address), ("grpc.use_local_subchannel_pool", 1)]
        while not over.is_set():
            with grpc.insecure_channel(started.address, options) as channel:
                for _ in range(3):
                    assert len(RetrievalStub(channel).Search(toy.request(), timeout=10).hits) == 5
                    asked += 1
        return asked

    before = started.workers()
    assert len(before) == 2
    with ThreadPoolExecutor(3) as clients:
        asking = [clients.submit(ask) for _ in range(3)]
        try:
            until(lambda: len(started.told("pocketlens_requests_total", method="Search", kind="OK")) == 2)
            born = started.told("process_start_time_seconds")
            os.kill(before[0], signal.SIGKILL)
            until(lambda: len(started.told("pocketlens_healthy")) == 1)
            assert started.get("/readyz") == "ok\n"  # those that are left answer for all
            until(lambda: len(started.told("pocketlens_healthy")) == 2)
            again = started.told("process_start_time_seconds")
            (changed,) = (number for number in again if again[number] != born[number])
            until(lambda: started.told("pocketlens_requests_total", method="Search", kind="OK").get(changed))
        finally:
            over.set()
        assert min(each.result() for each in asking) > 0

    one = json.loads(invoke("top", "--metrics", started.figures, "--once", "--json").stdout)
    assert (one["processes"], one["healthy"], one["pictures"]) == (2, True, 40)
    assert one["ended"].keys() == {"OK"} and one["stages_ms"]["total"]["p50"] > 0

    after = started.workers()
    assert len(set(before) & set(after)) == 1
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(20) == 0
    assert all(map(is_gone, after))
    lines = started.log.read_text().splitlines()
    assert lines.pop() == "stopped"
    logged = [json.loads(line) for line in lines]
    assert [line["message"] for line in logged if line["level"] == "ERROR"] == [
        f"worker {changed} (pid {before[0]}) ended by SIGKILL; started again in 1 s"
    ]
    assert {line.get("worker") for line in logged if line.get("method") == "Search"} == {1, 2}


def test_the_port_is_theirs_alone_and_a_supervisor_that_is_killed_leaves_nobody(started, served, invoke):
    port = int(started.address.rpartition(":")[2])
    for shared in ((), ("--workers", "2")):
        refused = invoke("serve", *served, "--port", port, *shared)
        assert (refused.exit_code, "cannot listen on 127.0.0.1" in refused.stderr) == (2, True)
    left = started.workers()
    started.process.kill()
    until(lambda: all(map(is_gone, left)))


def test_what_keeps_a_worker_from_starting_is_said_once_and_ends_the_whole(served, invoke, capfd):
    ended = invoke("serve", *served[:-1], "nowhere", "--workers", "2", "--port", "0")
    assert (ended.exit_code, "worker 1 ended with exit code 2 before it was ready" in ended.stderr) == (2, True)
    assert capfd.readouterr().err.count("nowhere") == 1


def test_starts_that_always_fail_are_given_up(monkeypatch, capfd):
    monkeypatch.setattr(workers, "WAIT_S", 0.0)

    async def keep() -> None:
        supervisor = workers.Supervisor(operator.add, 1, on_ready=print, drain_s=0)  # raises TypeError
        supervisor._was_whole = True  # all have served before
        await supervisor.run()

    with pytest.raises(
        ServerFault, match="no worker serves, and 5 starts in a row have failed, the last one with exit"
    ):
        asyncio.run(keep())
    assert capfd.readouterr().err.count("TypeError: unsupported operand") == workers.TRIES


def test_several_processes_do_not_open_one_gallery_on_disk_nor_write(invoke):
    refused = invoke("serve", "--gallery", "g", "--workers", "2")
    assert refused.exit_code == 2
    assert "one process at a time may hold the gallery in g: put it on a Qdrant server" in refused.stderr
    refused = invoke("serve", "--qdrant", "http://127.0.0.1:1", "--collection", "c", "--workers", "2", "--writable")
    assert refused.exit_code == 2 and "written by one process" in refused.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_reserved_port_lets_in_who_shares_it_and_nobody_else(host):
    with workers.reserved(host, 0) as port:
        for _ in range(2):
            one, other = (gateway._listening("127.0.0.1", port, shares=True) for _ in range(2))
            with one, other, pytest.raises(ServerFault):
                gateway._listening("127.0.0.1", port, shares=False).__enter__()
            # in between, while nobody listens, nothing is taken in and nobody else gets there
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            with pytest.raises(ServerFault, match="is another program there"), workers.reserved(host, port):
                pass
            with pytest.raises(ServerFault):
                gateway._listening("127.0.0.1", port, shares=False).__enter__()
    with workers.reserved(host, port) as again:
        assert again == port
