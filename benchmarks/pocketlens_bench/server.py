"""A real server as a process of its own, on loopback.

Owns starting it, waiting for it, and stopping it. Called by latency.py and others."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

from pocketlens_wire.errors import ServerFault

PATIENCE_S = 60.0  # for a server to become ready; a loaded machine needs a few seconds
GRACE_S = 15.0  # to finish after SIGTERM


@dataclass(frozen=True)
class Running:
    """address: HOST:PORT. started: perf_counter() just before the process was made; ready_s: until its ready file.
    is_alive: whether the process still runs."""

    address: str
    started: float
    ready_s: float
    pid: int
    is_alive: Callable[[], bool]

    def processor_s(self) -> float:
        """Seconds that its threads have worked so far. Linux only."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(
    bundle: Path,
    gallery: Path | Sequence[object],
    *,
    threads: int,
    more: Sequence[object] = (),
    processors: Sequence[int] = (),
) -> Iterator[Running]:
    """`pocketlens-cloud serve` upon `gallery`, told to remember no text, since a measurement asks again.

    gallery: a folder, or the options that name one; more: further options; processors: those it may use, all if none is
    named. Raises ServerFault, quoting its last words, if it does not come up."""
    where = ("--gallery", gallery) if isinstance(gallery, Path) else gallery
    command = [*program(), "serve", *where, "--bundle", bundle, "--port", 0, "--remember", 0, *more]
    with _running([*command, "--threads", threads, "--log-level", "warning"], processors) as running:
        yield running


@contextmanager
def serving_uploads(bundle: Path, gallery: Path, *, threads: int) -> Iterator[Running]:
    """The upload server of the comparison, upon a gallery that no other process has. Raises ServerFault."""
    command = [sys.executable, "-m", "pocketlens_bench.uploads", "--gallery", gallery, "--bundle", bundle]
    with _running([*command, "--threads", threads]) as running:
        yield running


@contextmanager
def _running(command: list[object], processors: Sequence[int] = ()) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="pocketlens-bench-server-") as folder:
        ready, log = Path(folder) / "ready", Path(folder) / "log"
        with log.open("wb") as out:
            started = perf_counter()
            whole = list(map(str, [*command, "--ready-file", ready]))
            process = subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            if processors and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, processors)  # while it has one thread: those to come are bound too
        try:
            address = _wait(process, ready, log, started)
            yield Running(address, started, perf_counter() - started, process.pid, lambda: process.poll() is None)
        finally:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def program() -> list[object]:
    """How a user starts it: the command beside this Python, else the module."""
    script = Path(sys.executable).with_name("pocketlens-cloud")
    return [script] if script.exists() else [sys.executable, "-m", "pocketlens_cloud"]


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path, started: float) -> str:
    while (code := process.poll()) is None and perf_counter() - started < PATIENCE_S:
        if ready.is_file() and (address := ready.read_text(encoding="utf-8").strip()):
            return address
        sleep(0.002)
    said = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-500:] or "nothing"
    if code is None:
        raise ServerFault(f"the server to be measured did not come up within {PATIENCE_S:g} s. It said: {said}")
    raise ServerFault(
        f"the server to be measured ended with code {code}, {perf_counter() - started:.1f} s after its start. "
        f"It said: {said}"
    )
