"""One tiny training and the bundle made of it, shared by the tests of school and customs: seconds on one core.

Tests run in several processes (pytest-xdist), which share what one of them makes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

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

        export_bundle(tiny_run, folder, name="tiny")

    return _made_once("bundle", export, tmp_path_factory)


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
