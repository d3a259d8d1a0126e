"""Which source this package runs from: a checkout with a commit, or an installed wheel.

Owns the only question put to git. Called by conditions.py, and by report and paper to find the committed results."""

import subprocess
from pathlib import Path
from typing import Any

WAIT_S = 10  # git on a slow disk
NOT_SOURCE = (":!benchmarks/results", ":!docs", ":!*.md")  # writing these changes no result


def checkout() -> Path | None:
    """The root of the checkout this package runs from; None when it runs from an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    there = (root / ".git").exists() and (root / "benchmarks" / "pocketlens_bench").is_dir()
    return root if there else None


def commit() -> dict[str, Any]:
    """{"id": hash, "dirty": whether source differs from it}, or {"id": None, "reason": why it is not known}."""
    root = checkout()
    if root is None:
        return {"id": None, "reason": "installed, not run from a checkout; see the version"}
    try:
        found = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", *NOT_SOURCE)
    except FileNotFoundError:
        return {"id": None, "reason": "run from a checkout, but there is no git to ask"}
    except (OSError, subprocess.SubprocessError):
        return {"id": None, "reason": "run from a checkout, but git did not answer"}
    return {"id": found, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=WAIT_S
    )
    return done.stdout.strip()
