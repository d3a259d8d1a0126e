"""The commands as a user meets them: exit codes, messages, signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import grpc
import pytest
from pocketlens_cloud.cli import app
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.serving import server
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalStub
from qdrant.servers import SERVERS
from typer.testing import CliRunner

SLOWER = """
import time
from pocketlens_cloud import cli, compose
swift = compose.Composer.compose
compose.Composer.compose = lambda *ask: (time.sleep(0.5), swift(*ask))[1]
cli.app()
"""


@pytest.fixture
def invoke(toy, monkeypatch):
    """Run a command in this process; the toy bundle is the default one."""
    monkeypatch.setenv("POCKETLENS_BUNDLE", str(toy.bundle))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def own_gallery(toy, pictures, tmp_path, invoke) -> Path:
    assert invoke("index", pictures, "--gallery", tmp_path / "g").exit_code == 0
    return tmp_path / "g"


@pytest.fixture
def spawn(toy, tmp_path):
    """Start `serve` on a free port in its own process; wait until it is ready."""
    started: list[subprocess.Popen] = []

    def start(
        gallery: Path | list[str], code: str = "from pocketlens_cloud.cli import app; app()"
    ) -> tuple[subprocess.Popen, str]:
        ready = tmp_path / "address"
        ready.unlink(missing_ok=True)  # a server that was killed could not
        where = ["--gallery", str(gallery)] if isinstance(gallery, Path) else gallery
        command = [sys.executable, "-W", "error", "-c", code, "serve", *where, "--port", "0"]
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            env=os.environ | {"POCKETLENS_BUNDLE": str(toy.bundle)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process, ready.read_text()

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_calls_in_flight_finish_and_ends_with_zero(toy, own_gallery, spawn, tmp_path, number):
    process, address = spawn(own_gallery, SLOWER)
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(1) as client:
        stub = RetrievalStub(channel)
        in_flight = client.submit(stub.Search, toy.request(), timeout=10)
        time.sleep(0.25)
        process.send_signal(number)
        assert len(in_flight.result().hits) == 5
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert out.startswith(f"ready on {address}: 40 pictures, token space {toy.token_space}")
    assert "ExecutionProvider" in out
    assert "Traceback" not in err
    assert not (tmp_path / "address").exists()
    EmbeddedGallery.open(own_gallery).close()


def test_while_it_serves_the_gallery_is_held_and_after_kill_9_it_opens_again(own_gallery, spawn, invoke, pictures):
    process, _ = spawn(own_gallery)
    for command in (("index", pictures, "--gallery", own_gallery), ("serve", "--gallery", own_gallery)):
        refused = invoke(*command)
        assert refused.exit_code == 2
        assert f"is open in another process (pid {process.pid})" in refused.stderr
        assert "Traceback" not in refused.output
    process.kill()
    process.wait()
    process, address = spawn(own_gallery)
    facts = json.loads(invoke("describe", "--server", address, "--json").stdout)
    assert (facts["gallery_size"], facts["default_mode"]) == (40, "MODE_TUNED")
    shown = invoke("describe", "--server", address).stdout
    assert "payload_keys  colour, count, file, price, sold" in shown
    assert "modes  zero-shot, tuned\n" in shown and "default_mode  tuned\n" in shown
    assert "unix_ms" in facts and "unix_ms" not in shown


def test_what_a_writable_server_took_survives_kill_9(own_gallery, spawn, invoke, tmp_path, draw_picture):
    draw_picture(tmp_path / "new.png", 4711)
    process, address = spawn(["--gallery", str(own_gallery), "--writable"])
    told = json.loads(invoke("add", tmp_path / "new.png", "--server", address, "--json").stdout)
    assert not told["was_there"]
    process.kill()
    process.wait()
    with EmbeddedGallery.open(own_gallery) as gallery:
        assert (gallery.size, gallery.payload(told["id"]), gallery.settled) == (41, {}, False)
    process, address = spawn(["--gallery", str(own_gallery), "--writable"])
    assert json.loads(invoke("add", tmp_path / "new.png", "--server", address, "--json").stdout)["was_there"]
    process.terminate()
    assert "Traceback" not in process.communicate(timeout=15)[1]
    with EmbeddedGallery.open(own_gallery) as gallery:
        assert gallery.settled


def test_describe_without_a_server_is_plain(invoke):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        refused = invoke("describe", "--server", address, "--timeout-s", "2")
    assert refused.exit_code == 2
    assert f"no server answers at {address}" in refused.stderr


def test_index_tells_what_it_did(invoke, pictures, tmp_path):
    first = invoke("index", pictures, "--gallery", tmp_path / "g")
    assert first.exit_code == 0
    assert f"payload from {pictures / 'payload.jsonl'}" in first.stderr
    assert "40/40 pictures" in first.stderr
    assert "40 indexed\n" in first.stdout
    again = invoke("index", pictures, "--gallery", tmp_path / "g", "--json")
    report = json.loads(again.stdout)
    assert (report["indexed"], report["skipped"], report["merged"], report["size"]) == (0, 40, 0, 40)


def test_unreadable_pictures_make_the_exit_code_one_unless_allowed(invoke, tmp_path, draw_picture):
    draw_picture(tmp_path / "p" / "good.png", 1)
    (tmp_path / "p" / "bad.png").touch()
    refused = invoke("index", tmp_path / "p", "--gallery", tmp_path / "g")
    assert refused.exit_code == 1
    assert "unreadable (1):\n  bad.png: the file is empty" in refused.stderr
    assert "1 unreadable, 0 allowed (--allow-unreadable)" in refused.stderr
    assert "1 indexed" in refused.stdout
    assert invoke("index", tmp_path / "p", "--gallery", tmp_path / "g", "--allow-unreadable", 1).exit_code == 0


def test_names_of_files_write_no_lines_and_send_no_escapes(invoke, tmp_path, draw_picture):
    """In every list of the report, and in an error; whole in JSON."""
    home, evil = tmp_path / "p", "x\n9 indexed\x1b]0;owned\x07\x1b[31m\u202e"
    for seed, name in enumerate(("copy.png", "first.png", "gone.png")):
        draw_picture(home / f"{evil}{name}", seed)
    (home / f"{evil}bad.png").touch()
    payload = [{"file": f"{evil}{name}", "payload": {"n": name}} for name in ("copy.png", "first.png", "ghost.png")]
    (home / "payload.jsonl").write_text("\n".join(map(json.dumps, payload)))
    assert invoke("index", home, "--gallery", tmp_path / "g").exit_code == 1
    (home / f"{evil}first.png").write_bytes((home / f"{evil}copy.png").read_bytes())
    (home / f"{evil}gone.png").unlink()
    told = invoke("index", home, "--gallery", tmp_path / "g")
    empty = "the file is empty. Copy or download it again."
    flat = "x?9 indexed?]0;owned??[31m?"
    for line in (f"bad.png: {empty}", f"first.png = {flat}copy.png", "gone.png", "ghost.png"):
        assert f"  {flat}{line}\n" in told.stderr
    assert all(char.isprintable() or char == "\n" for char in told.output)
    assert not [line for line in told.output.splitlines() if line.startswith("9 indexed")]
    report = json.loads(invoke("index", home, "--gallery", tmp_path / "g", "--json").stdout)
    assert report["unreadable"] == [[f"{evil}bad.png", empty]]
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo(f"{evil}.png"))
    refused = invoke("index", tmp_path / "twice.tar", "--gallery", tmp_path / "g")
    assert f"two members called {flat}.png\n" in refused.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("index", "nowhere", "--gallery", "g"), "nowhere is not a folder"),
        (("index", "empty", "--gallery", "g"), "empty holds no pictures"),
        (("index", ".", "--gallery", "g", "--bundle", "nowhere"), "nowhere"),
        (
            ("index", ".", "--gallery", "shop"),
            "shop has versions, and those are not changed; build the next one: `pocketlens-cloud gallery build shop",
        ),
        (("index", ".", "--gallery", "g", "--payload", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (("serve", "--gallery", "nowhere"), "no gallery in nowhere"),
        (
            ("serve", "--gallery", "g", "--host", "0.0.0.0"),
            "lacks encryption (--tls-cert, --tls-key) and asking who",
        ),
        (("doctor", "--bundle", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(invoke, tmp_path, draw_picture, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    draw_picture(tmp_path / "one.png", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "shop" / "v0001").mkdir(parents=True)
    (tmp_path / "shop" / "v0001" / "gallery.json").touch()
    refused = invoke(*args)
    assert refused.exit_code == (1 if args[0] == "doctor" else 2)
    assert said in refused.output
    assert "Traceback" not in refused.output


def test_doctor_proves_bundle_and_gallery(invoke, own_gallery):
    healthy = invoke("doctor", "--gallery", own_gallery)
    assert healthy.exit_code == 0, healthy.output
    for name in ("composed", "picture", "words_feature", "query", "image_raw", "image", "union"):
        assert f"ok   {name}, fp32: worst difference" in healthy.stdout
    assert "40 pictures, vectors original, union" in healthy.stdout
    assert all(finding["ok"] for finding in json.loads(invoke("doctor", "--json").stdout))


def test_doctor_finds_a_tower_that_computes_something_else(invoke, make_toy, toy, tmp_path):
    """Swapped files with matching hashes: only the golden vectors can tell."""
    import numpy as np
    from pocketlens_wire import manifest

    sick = make_toy(tmp_path / "sick")
    folder = sick.bundle / "cloud"
    with np.load(folder / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["pixels"] = arrays["pixels"][..., ::-1]  # BGR
    np.savez(folder / "golden.npz", **arrays)
    told = json.loads((folder / "manifest.json").read_text())
    told["golden"] = asdict(manifest.describe_file(folder / "golden.npz"))
    (folder / "manifest.json").write_text(json.dumps({**told, "seal": manifest._seal(told)}))
    found = invoke("doctor", "--bundle", sick.bundle, "--json")
    assert found.exit_code == 1
    assert {f["what"] for f in json.loads(found.stdout) if not f["ok"]} == {
            "image_raw, fp32", "image, fp32", "union, fp32",
        }  # fmt: skip


@pytest.mark.parametrize("command", [(), ("index",), ("serve",), ("describe",), ("doctor",), ("add",), ("remove",)])
def test_help_teaches_with_an_example(invoke, command):
    told = invoke(*command, "--help")
    assert told.exit_code == 0
    assert "pocketlens-cloud " + (command[0] if command else "index") in told.stdout


@pytest.mark.parametrize("engine", ["folder", "fake"])
def test_a_promoted_version_is_served_without_a_restart(engine, invoke, spawn, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with contextlib.ExitStack() as until_the_end:
        name, at, served = str(tmp_path / "shop"), [], tmp_path / "shop"
        if engine == "fake":
            pytest.importorskip("qdrant_client", reason="pip install 'pocketlens[qdrant]'")
            running = until_the_end.enter_context(SERVERS[engine](tmp_path))
            address, name = running.server.address, running.name
            at = ["--qdrant", address.url, "--qdrant-grpc-port", str(address.grpc_port)]
            served = [*at, "--collection", name]
        generations = []
        for _ in range(2):
            assert invoke("gallery", "build", name, pictures, *at).exit_code == 0
            generations.append(
                json.loads(invoke("gallery", "list", name, *at, "--json").stdout)["versions"][-1]["generation"]
            )
            if len(generations) == 1:
                assert invoke("gallery", "promote", name, *at, "--unverified").exit_code == 0
        _, address = spawn(served)
        with grpc.insecure_channel(address) as channel:

            def describe() -> str:
                return RetrievalStub(channel).Describe(pb.DescribeRequest(), timeout=10).generation

            assert describe() == generations[0]
            assert invoke("gallery", "promote", name, *at, "--unverified").exit_code == 0
            deadline = time.monotonic() + 30
            while describe() == generations[0]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert describe() == generations[1]


def test_serve_is_told_one_gallery(invoke):
    for arguments in ([], ["--gallery", "g", "--qdrant", "http://127.0.0.1:1"], ["--collection", "shop"]):
        assert "with --gallery" in invoke("serve", *arguments).stderr


@pytest.mark.parametrize("packs", [True, False])
def test_serve_batches_as_the_tower_reads(own_gallery, invoke, monkeypatch, packs):
    taken = []

    async def run(*_args, batch, **_more):
        taken.append(batch)

    monkeypatch.setattr(server, "run", run)
    monkeypatch.setattr(Composer, "packs", packs)
    told = invoke("serve", "--gallery", own_gallery, "--port", 0, "--runs", 2, "--remember", 3)
    assert told.exit_code == 0, told.output
    assert [(batch.packs, batch.runs, batch.kept) for batch in taken] == [(packs, 2, 3)]
