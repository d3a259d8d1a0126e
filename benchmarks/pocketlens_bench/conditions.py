"""Under what a number was measured: machine, versions, bundle, time.

Owns the card that every result carries, so that a number found later can be traced. Called by accuracy.py and
latency.py."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_wire.manifest import read_edge

PACKAGES = ("pocketlens", "numpy", "pillow", "onnxruntime", "grpcio", "qdrant-edge-py", "tokenizers")


def load_now() -> float | None:
    """Processes that want to run, mean of the last minute: others' work distorts times. None where unknown."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def conditions(bundle: Path, *, load: float | None, **more: Any) -> dict[str, Any]:
    """The card: what `more` says, then bundle ids, machine and versions; all JSON."""
    edge = read_edge(bundle)
    _, cloud = open_cloud_half(bundle)
    return {
        **more,
        "bundle": {
            "name": cloud.name,
            "encoder": edge.encoder,
            "token_space": edge.token_space,
            "gallery_space": cloud.gallery_space,
            "tokens": edge.token_count,
            "token_width": edge.token_width,
            "dim": cloud.dim,
        },
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_at_start": load,
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    """The processor's name, as well as this system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
