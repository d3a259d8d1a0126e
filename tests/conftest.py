"""What tests share: one tiny training and the bundle made of it (seconds on one core), and the golden pictures.

Tests run in several processes (pytest-xdist), which share what one of them makes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# Processes that each take all cores wait for one another. Libraries read this when they are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned all lessons of the TINY recipe: set, teacher, student, heads, baseline."""

    def learn(folder: Path) -> None:
        # Imported here: the tests of the light rooms must not load torch.
        import torch
        from pocketlens_training.loop import machine, progress_bar
        from pocketlens_training.sample import TINY, learn_sample

        torch.set_num_threads(1)
        learn_sample(folder, TINY, where=machine("cpu"), progress=progress_bar())

    return _made_once("run", learn, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_siblings(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, and beside its student one of two tokens."""

    def learn(folder: Path) -> None:
        from pocketlens_training.further import learn_siblings
        from pocketlens_training.loop import machine, progress_bar

        shutil.copytree(tiny_run, folder)
        learn_siblings(folder, [2], where=machine("cpu"), progress=progress_bar())

    return _made_once("siblings", learn, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle exported from it."""

    def export(folder: Path) -> None:
        from pocketlens_export.bundle import export_bundle

        export_bundle(tiny_run, folder, name="tiny", exact_only=True)

    return _made_once("bundle", export, tmp_path_factory)


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden pictures, drawn once for every test that shows them to something."""

    def draw(folder: Path) -> None:
        from golden_pictures import golden_pictures

        golden_pictures(folder)

    return _made_once("pictures", draw, tmp_path_factory)


@pytest.fixture(scope="session")
def edge_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The self-contained `pocketlens-edge`, packed here (half a minute) or named by $POCKETLENS_EDGE_BINARY."""
    if named := os.environ.get("POCKETLENS_EDGE_BINARY"):
        return Path(named).absolute()
    if missing := _packing_lacks():
        pytest.skip(f"no self-contained program can be packed here: {missing}")

    def pack(folder: Path) -> None:
        spec = Path(__file__).parents[1] / "edge/binary/pocketlens-edge.spec"
        options = ["--noconfirm", "--log-level", "WARN", "--distpath", folder, "--workpath", folder / "work"]
        alone = {key: value for key, value in os.environ.items() if key not in ("BUNDLE", "POCKETLENS_BUNDLE")}
        packed = subprocess.run(
            [sys.executable, "-m", "PyInstaller", *options, spec],
            env=alone,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert packed.returncode == 0, packed.stderr[-3000:]
        shutil.rmtree(folder / "work")

    return _made_once("packed", pack, tmp_path_factory) / "pocketlens-edge" / "pocketlens-edge"


def _packing_lacks() -> str:
    """What `make edge-binary` would refuse too, in words; empty if nothing."""
    if importlib.util.find_spec("PyInstaller") is None:
        return "PyInstaller is not installed; it comes with pocketlens[binary]"
    if sys.platform == "linux" and not shutil.which("objcopy"):
        return "there is no objcopy; it comes with the system's binutils"
    if not (sysconfig.get_config_var("Py_ENABLE_SHARED") or sysconfig.get_config_var("PYTHONFRAMEWORK")):
        return "this Python was built without its shared library"
    return ""


@pytest.fixture(scope="session")
def nvidia() -> ModuleType:
    """tests/nvidia/fake.py: a stand-in for TensorRT and CUDA, and the published list of what its parser takes."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("nvidia_fake", Path(__file__).parent / "nvidia" / "fake.py")
    assert spec is not None and spec.loader is not None
    fake = sys.modules["nvidia_fake"] = module_from_spec(spec)
    spec.loader.exec_module(fake)
    return fake


def _made_once(name: str, make: Callable[[Path], None], factory: pytest.TempPathFactory) -> Path:
    """A folder that the first process makes; the others wait for it. Nobody writes into it afterwards."""
    from filelock import FileLock

    alone = "PYTEST_XDIST_WORKER" not in os.environ
    home = factory.getbasetemp() if alone else factory.getbasetemp().parent
    folder = home / f"tiny-{name}"
    with FileLock(home / f"tiny-{name}.lock"):
        if not (home / f"tiny-{name}.done").exists():
            make(folder)
            (home / f"tiny-{name}.done").touch()
    return folder


LONG = ("training", "export", "journeys", "benchmarks", "web")  # folders, longest files first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: processes take whole files, and one that begins last is waited for by all the others."""
    home = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(home).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)
