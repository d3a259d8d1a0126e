"""Under what a number was measured: command, commit, machine, versions, bundle, time.

Owns the card that every result carries, so that a number found later can be traced. The card names no folder, host or
user. Called by every measuring module."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_wire.manifest import read_edge

from pocketlens_bench.checkout import commit
from pocketlens_bench.command_line import typed_command

PACKAGES = ("pocketlens", "numpy", "pillow", "onnxruntime", "grpcio", "qdrant-edge-py", "tokenizers")


def load_now() -> float | None:
    """Processes that want to run, mean of the last minute: others' work distorts times. None where unknown."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _ticks() -> tuple[int, int] | None:
    """Time the processors of this machine have worked, and what others on its host took meanwhile; None if unknown."""
    try:
        user, nice, system, _idle, _io, irq, softirq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq, stolen


_AT_START = _ticks()


def stolen_share() -> float | None:
    """Of the time this machine wanted to work since this process began, the share that its host gave to others."""
    now = _ticks()
    if _AT_START is None or now is None:
        return None
    worked, stolen = (after - before for before, after in zip(_AT_START, now, strict=True))
    return round(stolen / max(worked + stolen, 1), 3)


def conditions(bundle: Path | None, *, load: float | None, **more: Any) -> dict[str, Any]:
    """The card: what `more` says, then command, commit, bundle ids, machine and versions; all JSON.

    bundle: None where no bundle was run, as when others' rankings are scored. Raises BadBundle."""
    typed = typed_command()
    return {
        **more,
        "command": None if typed is None else list(typed),
        "commit": commit(),
        "bundle": None if bundle is None else bundle_card(bundle),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "ram_gb": _ram_gb(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_at_start": load,
            "stolen_share": stolen_share(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def bundle_card(folder: Path) -> dict[str, Any]:
    """A bundle by its ids and sizes. Raises BadBundle."""
    edge = read_edge(folder)
    _, cloud = open_cloud_half(folder)
    return {
        "name": cloud.name,
        "encoder": edge.graph().encoder,
        "token_space": edge.token_space,
        "gallery_space": cloud.gallery_space,
        "tokens": edge.token_count,
        "token_width": edge.token_width,
        "dim": cloud.dim,
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


def _ram_gb() -> float | None:
    """Memory of the machine in gigabytes (1e9 bytes); None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None
