"""A server as it is operated: started from a file, watched, told to go. The real command in its own process."""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pocketlens_cloud.cli import app
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from typer.testing import CliRunner

# The tower takes half a second where the words ask for it, so that calls are in flight when the server is told to go.
SLOWER = """
import time
from pocketlens_cloud import cli, compose
plan = compose.Composer.plan
compose.Composer.plan = lambda self, sentence, words, *rest: (
    time.sleep(0.5 * ("smaller" in words)), plan(self, sentence, words, *rest))[1]
cli.app()
"""


@pytest.fixture
def invoke(toy, monkeypatch):
    monkeypatch.setenv("POCKETLENS_BUNDLE", str(toy.bundle))
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def started(toy, indexed, tmp_path) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """(process, address of the service, address of its figures); most of its settings from a file."""
    shutil.copytree(indexed, tmp_path / "g")
    settings = {"gallery": str(tmp_path / "g"), "port": 0, "metrics": "127.0.0.1:0", "log-format": "json", "drain_s": 9}
    (tmp_path / "serve.toml").write_text("".join(f"{name} = {json.dumps(said)}\n" for name, said in settings.items()))
    ready = tmp_path / "address"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SLOWER, "serve", "--config", tmp_path / "serve.toml", "--drain-s", "1"],
        env=os.environ | {"POCKETLENS_BUNDLE": str(toy.bundle), "POCKETLENS_SERVE_READY_FILE": str(ready)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.stdout is not None
    told = re.match(r"figures on http://(127.0.0.1:\d+)/metrics\n", process.stdout.readline())
    assert told
    assert process.stdout.readline().startswith(f"ready on {ready.read_text()}: 40 pictures")
    yield process, ready.read_text(), told[1]
    process.kill()
    process.communicate()


def test_from_start_to_end(started, toy, invoke):
    process, address, figures = started
    said: queue.Queue[str] = queue.Queue()
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(4) as clients:
        stub = RetrievalStub(channel)

        def ask(words: str, **metadata: str) -> int:
            return len(stub.Search(toy.request(words=words), timeout=10, metadata=tuple(metadata.items())).hits)

        watcher = threading.Thread(target=_watch, args=(channel, said), daemon=True)
        watcher.start()
        assert said.get(timeout=5) == "SERVING"
        for _ in range(3):
            assert ask("dotted shoe") == 5
        with pytest.raises(grpc.RpcError):
            stub.Search(toy.request(words="dotted shoe", top=0), timeout=5)

        one = json.loads(invoke("top", "--metrics", figures, "--once", "--json").stdout)
        assert (one["ended"], one["healthy"], one["pictures"]) == ({"BadQuery": 1, "OK": 3}, True, 40)
        assert all(0 < one["stages_ms"]["total"][name] < 8000 for name in ("p50", "p95", "p99"))
        assert one["rss_bytes"] > 1e7
        shown = invoke("top", "--metrics", figures, "--once").stdout
        assert "healthy" in shown and "BadQuery 1, OK 3" in shown

        in_flight = clients.submit(ask, "smaller shoe")
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert said.get(timeout=5) == "NOT_SERVING"
        assert process.poll() is None
        assert ask("dotted shoe") == 5  # who was not told yet is answered as ever
        last = [clients.submit(ask, "smaller shoe") for _ in range(2)]
        assert in_flight.result() == 5
        assert [each.result() for each in last] == [5, 5]
        watcher.join(10)
        assert not watcher.is_alive()  # the server let it go
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    lines = err.splitlines()
    assert lines.pop() == "stopped"
    logged = [json.loads(line) for line in lines]
    assert not re.search("dotted|shoe|smaller", err)
    calls = [line for line in logged if line.get("method") == "Search"]
    assert [line["kind"] for line in calls] == ["OK"] * 3 + ["BadQuery"] + ["OK"] * 4
    assert len({line["request_id"] for line in calls}) == 8
    assert {"time", "level", "logger", "message", "via", "ms", "k", "hits", "text_tower_ms"} <= calls[0].keys()


def _watch(channel: grpc.Channel, said: "queue.Queue[str]") -> None:
    """What health tells those who watch, until it ends."""
    asked = health_pb2.HealthCheckRequest(service="pocketlens.v1.Retrieval")
    for told in health_pb2_grpc.HealthStub(channel).Watch(asked):
        said.put(health_pb2.HealthCheckResponse.ServingStatus.Name(told.status))


# --- settings


def test_flags_win_over_the_environment_the_environment_over_the_file_and_the_file_over_defaults(
    invoke, tmp_path, monkeypatch
):
    file = tmp_path / "serve.toml"
    file.write_text('gallery = "from-file"\nport = 1\ndrain-s = 2\nlog_level = "error"\ninsecure-listen = true\n')
    monkeypatch.setenv("POCKETLENS_SERVE_PORT", "2")
    monkeypatch.setenv("POCKETLENS_SERVE_DRAIN_S", "3")
    found = invoke("config", "--config", file, "--drain-s", "4", "--json")
    settings = {each["name"]: (each["value"], each["source"]) for each in json.loads(found.stdout)}
    assert settings["gallery"] == ("from-file", "file")
    assert settings["port"] == (2, "environment")
    assert settings["drain-s"] == (4, "command line")
    assert settings["log-level"] == ("error", "file")
    assert settings["insecure-listen"] == (True, "file")
    assert settings["host"] == ("127.0.0.1", "default")
    assert "port" in invoke("config", "--config", file).stdout


@pytest.mark.parametrize(
    ("written", "variable", "said"),
    [
        ("prot = 1", {}, "prot is no option of serve; did you mean port?"),
        ("config = 'x'", {}, "config is no option"),
        ("drain_s = 1\ndrain-s = 2", {}, "drain-s is named twice"),
        ("[serve]\nport = 1", {}, "serve.toml: serve is a table; the file is flat"),
        ("port = ", {}, "is not TOML"),
        ("workers = [1, 2]", {}, "workers is a list"),
        ("port = true", {}, "'--port' (port in {file}): 'True' is not a valid int"),
        ("port = 'x'", {}, "'--port' (port in {file}): 'x' is not a valid int"),
        ("drain-s = -1", {}, "'--drain-s' (drain-s in {file}): -1.0 is not in the range"),
        ("", {"POCKETLENS_SERVE_PORT": "abc"}, "'--port' ($POCKETLENS_SERVE_PORT): 'abc' is not a valid int"),
        ("", {"POCKETLENS_SERVE_PROT": "1"}, "$POCKETLENS_SERVE_PROT is no option of serve; did you mean"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "config"])
def test_what_is_no_setting_is_refused_by_name(invoke, tmp_path, monkeypatch, command, written, variable, said):
    (tmp_path / "serve.toml").write_text(f"gallery = 'g'\n{written}\n" if "[serve]" not in written else written)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    refused = invoke(command, "--config", tmp_path / "serve.toml")
    assert refused.exit_code == 2
    told = " ".join(refused.output.replace("│", " ").split())
    assert said.format(file=tmp_path / "serve.toml") in told
    assert told.startswith("Usage: pocketlens-cloud " + command), told


def test_secrets_are_masked(monkeypatch):
    import typer
    from pocketlens_cloud.cli.settings import MASK, effective

    program = typer.Typer(add_completion=False)
    seen = []

    @program.command()
    def one(context: typer.Context, api_key: str = "", token_space: str = "") -> None:
        seen.extend(effective(context))

    CliRunner().invoke(program, ["--api-key", "hush", "--token-space", "ts"])
    assert {each.name: each.value for each in seen} == {"api-key": MASK, "token-space": "ts"}


def test_figures_are_told_to_other_machines_only_if_that_is_said(invoke):
    refused = invoke("serve", "--gallery", "g", "--metrics", "0.0.0.0:9464")
    assert refused.exit_code == 2
    assert "--insecure-metrics" in refused.stderr


def test_top_where_nothing_is_told_is_plain(invoke):
    refused = invoke("top", "--metrics", "127.0.0.1:1", "--once")
    assert refused.exit_code == 2
    assert "no figures at 127.0.0.1:1" in refused.stderr


def test_top_at_the_port_of_the_service_is_plain(invoke, running):
    refused = invoke("top", "--metrics", running.address, "--once")
    assert (refused.exit_code, type(refused.exception)) == (2, SystemExit)
    assert f"no figures at {running.address}: start the server with `--metrics" in refused.stderr
    assert "does not speak HTTP" in refused.stderr


def test_the_settings_record_holds_every_option_of_serve():
    import typer
    from pocketlens_cloud.cli.settings import Settings

    options = {each.name for each in typer.main.get_command(app).commands["serve"].params}  # type: ignore[attr-defined]
    assert set(Settings.__dataclass_fields__) == options - {"config", "help"}
