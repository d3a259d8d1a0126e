"""Run one ONNX graph, tensors addressed by name.

The only file of this room that imports onnxruntime. Says which execution provider really runs;
what the tensors mean is known to towers.py and compose.py."""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

# ONNX Runtime reports its use to its maker unless it is told not to before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pocketlens_wire.errors import BadBundle, ServerFault

# Other providers only by name: some call a remote service (Azure), some compile for minutes (TensorRT).
PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
NICENESS = 10  # of a server's text tower; 19 is the most
MAX_THREADS = 4  # rows here are few and short; more threads cost more in waking up than they bring


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stand_back() -> None:
    """Let a server's other threads go before this one and those it starts: the text tower needs a processor all the
    time, transport and event loop often and briefly, and in a full house would wait for it longer than they work."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.nice(NICENESS)


@final
class Graph:
    """One loaded graph. `run` may be called from several threads at once."""

    def __init__(self, path: Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        """Load `path`. `threads`: CPU threads inside one run; `providers`: ONNX Runtime execution
        providers, best first (default: those of PREFERRED that this installation has).

        Raises BadBundle for a file that is no graph, ServerFault for a provider that is not there."""
        here = onnxruntime.get_available_providers()
        wanted = list(providers or (name for name in PREFERRED if name in here))
        if missing := [name for name in wanted if name not in here]:
            raise ServerFault(f"provider {missing[0]} is not in this onnxruntime; it has {', '.join(here)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or min(MAX_THREADS, cores())
        # Threads that spin after a run starve the gallery's: search p95 12.7 ms against 0.7 on 4 busy cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only; fall-backs are reported through `provider`
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise BadBundle(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {_first_line(error)}"
            ) from error
        self.path = path

    @property
    def provider(self) -> str:
        """The execution provider that runs this graph, e.g. CPUExecutionProvider."""
        return self._session.get_providers()[0]

    @property
    def properties(self) -> Mapping[str, str]:
        """What the graph says of itself, as whoever wrote it chose."""
        return self._session.get_modelmeta().custom_metadata_map

    def require(self, *, inputs: Collection[str], outputs: Collection[str]) -> "Graph":
        """Return self if the graph takes exactly `inputs` and gives at least `outputs`; else BadBundle."""
        takes = {tensor.name for tensor in self._session.get_inputs()}
        gives = {tensor.name for tensor in self._session.get_outputs()}
        if takes != set(inputs) or not gives >= set(outputs):
            raise BadBundle(
                f"{self.path}: expected inputs {sorted(inputs)} and outputs {sorted(outputs)}; "
                f"the graph has inputs {sorted(takes)} and outputs {sorted(gives)}"
            )
        return self

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """The named outputs for the named inputs, in the order of `outputs`."""
        return cast(list[NDArray[np.float32]], self._session.run(list(outputs), dict(feeds)))


def version() -> str:
    """Version of ONNX Runtime."""
    return onnxruntime.__version__


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
