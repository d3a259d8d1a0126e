"""Who may import whom: import-linter's contracts hold, and they cover every room."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def test_the_contracts_are_kept():
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_contracts_cover_every_room():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    rooms = {Path(path).name for path in settings["hatch"]["build"]["targets"]["wheel"]["packages"]}
    linter = settings["importlinter"]
    assert set(linter["root_packages"]) == rooms
    (layers,) = (contract["layers"] for contract in linter["contracts"] if contract["type"] == "layers")
    assert {room.strip() for layer in layers for room in layer.split("|")} == rooms
