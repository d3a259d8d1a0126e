"""The most memory that a process has taken which does nothing but run one graph: `python -m ... GRAPH SIDE THREADS`.

A process of its own, for a runtime gives nothing back. Prints bytes; without a graph, what Python, numpy and ONNX
Runtime take alone. Called by zoo.py."""

import sys
from pathlib import Path

import numpy as np
from pocketlens_edge.encoder import PIXELS, SENTENCE
from pocketlens_edge.runtime import Graph

RUNS = 5


def peak_bytes() -> int:
    """The most this process has held. On Linux not ru_maxrss, which begins with what the parent held at the fork."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(arguments: list[str]) -> None:
    if arguments:
        file, side, threads = arguments
        graph = Graph(Path(file), threads=int(threads))
        pixels = np.zeros((1, int(side), int(side), 3), np.uint8)
        for _ in range(RUNS):
            graph.run([SENTENCE], {PIXELS: pixels})
    print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
