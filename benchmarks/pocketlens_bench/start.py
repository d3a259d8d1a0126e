"""How long the device's whole process takes for one query, from nothing to the request sent, and how much memory.

Owns starting the command as a user does, again and again, the server that notes when the request is there, and where
the time goes. Files lie in the system's cache: what a second query of the day meets. Called by cli/start.py."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import numpy as np
from pocketlens_samples.queries import composed_set
from pocketlens_wire.errors import ServerFault
from pocketlens_wire.manifest import EdgeManifest, read_edge
from pocketlens_wire.v1 import retrieval_pb2 as pb
from pocketlens_wire.v1.retrieval_pb2_grpc import RetrievalServicer, add_RetrievalServicer_to_server

from pocketlens_bench.conditions import conditions, load_now
from pocketlens_bench.latency import EIGHT_WORDS
from pocketlens_bench.world import OnProgress, photographed, silently

WARM_UP = 3  # rounds not counted: the files come into the system's cache
PATIENCE_S = 60
FORMS = ("fp32", "int8")  # of the encoder; those that the bundle has
PIP, BINARY = "installed with pip", "self-contained"
HONESTY = (
    "The request counts as sent when the handler of a server on the same machine has it, so connecting is in it and a "
    "network is not. Files lie in the system's cache; the first start after the machine's own takes longer. Phases are "
    "of runs of their own, with a clock inside, by the form that runs when none is named. Memory is the most that lay "
    "in the machine's at once, shared libraries and all."
)

# Runs in a small process of its own: the peak that the system tells of a process begins with that of its parent.
LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True, text=True)
ended = time.monotonic()
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
said = done.stderr.strip() if done.returncode else ""
print(json.dumps({"began": began, "ended": ended, "code": done.returncode, "said": said, "peak": peak}))
"""

# The command with a clock inside: what it imports, one library after the other, then the steps that a query takes.
CLOCK = """
import json, sys, time
marks = [("Python itself", time.monotonic())]
def mark(name): marks.append((name, time.monotonic()))
import numpy; mark("import numpy")
import PIL.Image; mark("import Pillow")
import grpc; mark("import gRPC")
import onnxruntime; mark("import ONNX Runtime")
import typer; mark("import typer")
import pocketlens_edge.client, pocketlens_edge.encoder, pocketlens_edge.cli; mark("import Pocketlens, protobuf")
def clocked(owner, name, label):
    inner = getattr(owner, name)
    def outer(*given, **named):
        mark("between")
        try: return inner(*given, **named)
        finally: mark(label)
    setattr(owner, name, outer)
clocked(pocketlens_edge.encoder, "read_edge", "verify the bundle")
clocked(onnxruntime, "InferenceSession", "load the graph")
clocked(pocketlens_edge.encoder.Encoder, "encode_timed", "open, fit, encode")
try: pocketlens_edge.cli.app(sys.argv[2:])
finally:
    with open(sys.argv[1], "w") as out: json.dump(marks, out)
"""
PHASES = (
    "Python itself", "import numpy", "import Pillow", "import gRPC", "import ONNX Runtime", "import typer",
    "import Pocketlens, protobuf", "verify the bundle", "load the graph", "open, fit, encode", "options, and between",
    "connect and send",
)  # fmt: skip


def measure(
    bundle: Path, *, rounds: int = 30, binary: Path | None = None, on_progress: OnProgress = silently
) -> dict[str, Any]:
    """Everything `pocketlens-bench start` says, as one JSON object; memory in megabytes (1e6 bytes).

    binary: the self-contained program, None to leave it out. Raises BadBundle, and ServerFault, quoting it, for a
    command that fails."""
    load, began = load_now(), perf_counter()
    manifest = read_edge(bundle)
    forms = [form for form in FORMS if form in manifest.graphs]
    programs = {PIP: _program(), **({BINARY: [str(binary)]} if binary else {})}
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-") as folder, _answering(manifest) as server:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(photographed([composed_set(queries=1, gallery=10).queries[0].anchor])[0])
        asked = ["search", str(picture), "--text", EIGHT_WORDS, "--server", server.address, "--bundle", str(bundle)]
        ways: dict[str, Callable[[], dict[str, float]]] = {
            f"{program}, {form}": _once(server, [*call, *asked, "--precision", form])
            for program, call in programs.items()
            for form in forms
        }
        marks = Path(folder) / "marks.json"
        ways["phases"] = lambda: _phases(server, marks, asked)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for turn in range(WARM_UP + rounds):
            for name, way in ways.items():
                came = way()
                if turn >= WARM_UP:
                    runs[name].append(came)
            on_progress("rounds", turn + 1, WARM_UP + rounds)
    phases = runs.pop("phases")
    card = conditions(
        bundle,
        load=load,
        seconds=round(perf_counter() - began, 1),
        threads={"device": 1},
        sizes={"rounds": rounds, "graph_bytes": {form: manifest.graphs[form].bytes for form in forms}},
    )
    card["versions"]["typer"] = version("typer")  # it reads the options, which shows
    return {
        "benchmark": "start",
        "set": "sample",
        "tables": [
            {"key": "query", "title": "One query, the whole process", "rows": [_row(*run) for run in runs.items()]},
            {"key": "phases", "title": f"Where the time goes, {PIP}", "rows": _shares(phases)},
        ],
        "binary_mb": _megabytes(binary.resolve().parent) if binary else None,
        "left_out": [] if binary else ["the self-contained program: none was named with --binary"],
        "honesty": HONESTY,
        "conditions": card,
    }


# --- the other end


class _Server(RetrievalServicer):
    """Answers at once, and notes when it was asked."""

    address: str

    def __init__(self, manifest: EdgeManifest) -> None:
        self.arrived: list[float] = []
        hits = [pb.Hit(id=f"{n:040x}", score=0.5, payload={"file": pb.Value(text=f"{n}.jpg")}) for n in range(10)]
        self.reply = pb.SearchReply(
            hits=hits, token_space=manifest.token_space, gallery_space="gs-0", mode=pb.MODE_TUNED, generation="g"
        )

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:  # noqa: N802
        del request, context
        self.arrived.append(time.monotonic())
        return self.reply


@contextmanager
def _answering(manifest: EdgeManifest) -> Iterator[_Server]:
    service = _Server(manifest)
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        add_RetrievalServicer_to_server(service, server)
        service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield service
        finally:
            server.stop(grace=None).wait()


# --- one run


def _program() -> list[str]:
    """How a user starts it: the command beside this Python, else the module."""
    script = Path(sys.executable).with_name("pocketlens-edge")
    return [str(script)] if script.exists() else [sys.executable, "-m", "pocketlens_edge"]


def _once(server: _Server, command: Sequence[str]) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        came, arrived = _launched(server, command)
        return {
            "request_ms": 1e3 * (arrived - came["began"]),
            "whole_ms": 1e3 * (came["ended"] - came["began"]),
            "peak_mb": came["peak"] / 1e6,
        }

    return run


def _phases(server: _Server, marks: Path, asked: Sequence[str]) -> dict[str, float]:
    """Milliseconds by phase of one run with a clock inside; their sum is its time to the request."""
    came, arrived = _launched(server, [sys.executable, "-c", CLOCK, str(marks), *asked])
    took, before = {str(phase): 0.0 for phase in PHASES}, came["began"]
    for name, at in json.loads(marks.read_text(encoding="utf-8")):
        took["options, and between" if name == "between" else name] += 1e3 * (at - before)
        before = at
    took["connect and send"] = 1e3 * (arrived - before)
    return took


def _launched(server: _Server, command: Sequence[str]) -> tuple[dict[str, Any], float]:
    """What the launcher tells of one run of `command`, and when its request arrived. Raises ServerFault."""
    server.arrived.clear()
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    came = json.loads(launched.stdout)
    if came["code"] != 0 or len(server.arrived) != 1:
        raise ServerFault(
            f"{Path(command[0]).name} was to ask one question and left with {came['code']} after "
            f"{len(server.arrived)}. It said: {came['said'][-300:] or 'nothing'}"
        )
    return came, server.arrived[0]


# --- figures


def _row(name: str, runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    sent = [run["request_ms"] for run in runs]
    return {
        "name": name,
        "request_ms": float(np.median(sent)),
        "request_p95_ms": float(np.quantile(sent, 0.95)),
        "whole_ms": float(np.median([run["whole_ms"] for run in runs])),
        "peak_mb": max(run["peak_mb"] for run in runs),
        "runs": [{key: round(value, 2) for key, value in run.items()} for run in runs],
    }


def _shares(runs: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    medians = {phase: float(np.median([run[phase] for run in runs])) for phase in PHASES}
    whole = sum(medians.values())
    return [{"name": phase, "phase_ms": ms, "part": ms / whole} for phase, ms in medians.items()]


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
