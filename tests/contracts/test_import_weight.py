"""Light rooms stay light: each is loaded whole in a fresh interpreter, and what came along is looked at.

The import contracts (test_import_contracts.py) read the source; this sees what libraries drag in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING_ONLY = {"torch", "torchvision", "open_clip", "timm", "transformers", "onnx", "onnxscript"}
SERVICE_ONLY = {"tokenizers", "qdrant_edge", "qdrant_client"}
FORBIDDEN = {
    "pocketlens_wire": TRAINING_ONLY | SERVICE_ONLY | {"onnxruntime", "rich", "safetensors", "typer"},
    "pocketlens_edge": TRAINING_ONLY | SERVICE_ONLY | {"safetensors", "pocketlens_cloud", "tensorrt", "cuda"},
    "pocketlens_cloud": TRAINING_ONLY | {"safetensors", "pocketlens_edge"},
    "pocketlens_samples": TRAINING_ONLY,
}

LOAD_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
names = [name for name in names if not name.endswith(".__main__")]  # those run
for name in names:
    importlib.import_module(name)
print(len(names))
print(*sys.modules)
"""


def loaded_with(room: str) -> tuple[int, set[str]]:
    """How many modules the room has, and everything in sys.modules once all of them are loaded."""
    output = subprocess.check_output([sys.executable, "-W", "error", "-c", LOAD_ALL, room], text=True)
    count, modules = output.splitlines()
    return int(count), set(modules.split())


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_light_room_loads_nothing_heavy(room):
    count, loaded = loaded_with(room)
    assert count >= 5, "the walk found too few modules to prove anything"
    assert loaded.isdisjoint(FORBIDDEN[room]), f"{room} loads {sorted(loaded & FORBIDDEN[room])}"


def test_the_walk_would_see_a_heavy_library():
    _, loaded = loaded_with("pocketlens_training")
    assert "torch" in loaded


@pytest.mark.parametrize("first", ["pocketlens_edge.encoder", "pocketlens_cloud.compose", "pocketlens_export.forms"])
def test_the_runtime_reports_to_nobody(tmp_path: Path, first: str) -> None:
    """ONNX Runtime would keep a device id and a queue of events in the home folder and send them on."""
    program = (
        f"import {first}\n"
        "from pocketlens_wire.bundle import default_bundle\n"
        "from pocketlens_edge.encoder import Encoder\n"
        "Encoder.load(default_bundle())\n"
        "from pocketlens_cloud.compose import Composer\n"
        "Composer.load(default_bundle())\n"
    )
    clean = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=clean, check=True, timeout=120)
    assert not list(tmp_path.rglob("*onnxruntime*"))
