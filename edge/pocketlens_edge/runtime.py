"""Run one ONNX graph, its tensors addressed by name.

The one place that imports onnxruntime: owns the session, threads, the choice of execution provider and the
translation of its errors. Knows nothing of pictures and manifests. Called by encoder.py and doctor.py."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

# ONNX Runtime reports its use to its maker unless it is told not to before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # pyright: ignore[reportMissingTypeStubs]  (it ships none)
from numpy.typing import NDArray
from pocketlens_wire.errors import BadBundle

CPU = "CPUExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
_SUFFIX = "ExecutionProvider"
_REMOTE = "AzureExecutionProvider"  # listed by the stock wheel; calls a web service, never ours to choose
_WARNINGS_OFF = 3  # ORT severity "error": what matters reaches us as an exception

_ort = cast("Any", onnxruntime)  # untyped; _Session says what we use of it

Tensor = NDArray[Any]


class _Node(Protocol):
    name: str
    type: str
    shape: list[int | str | None]


class _Session(Protocol):
    def get_inputs(self) -> list[_Node]: ...
    def get_outputs(self) -> list[_Node]: ...
    def get_providers(self) -> list[str]: ...
    def run(self, output_names: list[str], input_feed: dict[str, Tensor]) -> list[Tensor]: ...


class Runnable(Protocol):
    """What runs an encoder: a Graph, or a TensorRT engine (engines.py)."""

    path: Path
    threads: int
    provider: str
    inputs: dict[str, tuple[str, list[int | str | None]]]
    outputs: dict[str, tuple[str, list[int | str | None]]]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Tensor]) -> list[Tensor]: ...


def runtime_version() -> str:
    """The version of ONNX Runtime."""
    return str(_ort.__version__)


def offered_providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime, its favourite first."""
    offered = cast("list[str]", _ort.get_available_providers())
    return [name for name in offered if name != _REMOTE]


def full_provider_name(name: str) -> str:
    """The offered provider meant by `name`: `cuda`, `CUDA` and `CUDAExecutionProvider` are one.

    Raises BadBundle when this ONNX Runtime does not offer it."""
    offered = offered_providers()
    for full in offered:
        if name.lower() in (full.lower(), full.removesuffix(_SUFFIX).lower()):
            return full
    raise BadBundle(
        f"Execution provider `{name}` is not in this ONNX Runtime {runtime_version()}, which offers "
        f"{', '.join(offered)}. Install the ONNX Runtime package that has it, or leave the provider out."
    )


class Graph:
    """One loaded graph.

    Without `providers` it runs on the CPU: an accelerator changes numbers and start-up time, so it is used
    only when asked for, and then it must really start: a silent fall back to the CPU is an error.

    Attributes:
        path: the ONNX file.
        threads: threads within one operator; 0 = one per core.
        provider: the execution provider that runs it.
        inputs, outputs: (ONNX type, shape) by tensor name; a shape holds sizes, names of free axes, or None.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        providers: Sequence[str] | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """options: of providers, by full name. Raises BadBundle."""
        wanted = [full_provider_name(name) for name in providers or (CPU,)]
        if wanted[0] == TENSORRT and CUDA in offered_providers() and CUDA not in wanted:
            wanted.append(CUDA)  # for what TensorRT does not take
        self.path = path
        self.threads = threads
        self._session = _open(path, threads, [(name, dict((options or {}).get(name, {}))) for name in wanted])
        self.provider = self._session.get_providers()[0]
        if self.provider != wanted[0]:
            raise BadBundle(
                f"Asked for {wanted[0]}, but ONNX Runtime could not start it and would run {path.name} on "
                f"{self.provider}. Check the drivers, or ask for {self.provider}."
            )
        self.inputs = {node.name: (node.type, node.shape) for node in self._session.get_inputs()}
        self.outputs = {node.name: (node.type, node.shape) for node in self._session.get_outputs()}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """The named outputs, in that order. Raises BadBundle with ONNX Runtime's reason if it fails."""
        try:
            return self._session.run(list(outputs), dict(feeds))
        except Exception as error:  # its exceptions share no base class of their own
            raise BadBundle(f"{self.path}: ONNX Runtime could not run it: {_reason(error)}") from error


def _open(path: Path, threads: int, providers: list[tuple[str, dict[str, object]]]) -> _Session:
    options = _ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _WARNINGS_OFF
    try:
        # Without enable_fallback=0 it would print to stdout and start another provider.
        session = _ort.InferenceSession(str(path), sess_options=options, providers=providers, enable_fallback=0)
    except Exception as error:  # as above
        ours, on = f"ONNX Runtime {runtime_version()}", providers[0][0]
        what = f"not a graph that {ours} can open" if on == CPU else f"{ours} cannot open it on {on}"
        raise BadBundle(f"{path}: {what}: {_in_plain_words(error)}") from error
    return cast("_Session", session)


_UPGRADE = "Upgrade ONNX Runtime, or export for an older one."
_AGAIN = "Get the bundle again."

# What ONNX Runtime says of a graph that it cannot open, and what it means; {} is what the brackets found.
_PLAIN_WORDS = {
    r"Opset (\d+) is under development": f"it needs ONNX opset {{}}, which is newer. {_UPGRADE}",
    r"Unsupported model IR version: (\d+)": f"its ONNX file format {{}} is newer. {_UPGRADE}",
    r"No Op registered for (\S+)": f"it needs the operator {{}}, which is not there. {_UPGRADE}",
    r"Fatal error: ([^\s(]+)\S* is not a registered": f"it needs the operator {{}}, which is not there. {_UPGRADE}",
    r'External data path does not exist: "?([^"]+)': f"its weights lie in {{}}, which is missing. {_AGAIN}",
    r'path escapes model directory.*?: "?([^"]+)': f"its weights would lie outside the bundle, in {{}}. {_AGAIN}",
    r"Protobuf parsing failed|No graph was found|ORT model verification failed": f"the file is broken. {_AGAIN}",
    r"Invalid model\. (.+)": f"the graph is broken: {{}} {_AGAIN}",
}


def _in_plain_words(error: Exception) -> str:
    for pattern, words in _PLAIN_WORDS.items():
        if found := re.search(pattern, str(error)):
            return words.format(*found.groups())
    return _reason(error)


def _reason(error: Exception) -> str:
    """First line of ONNX Runtime's message, without its bracketed code or its own place in the source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^/\S+:\d+ [^)]*\) ", "", lines[0].rpartition("] : ")[2])[:300]
