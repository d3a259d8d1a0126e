"""One tiny training and the bundle made of it, shared by the tests of school and customs: seconds on one core."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned all lessons of the TINY recipe: set, teacher, student, heads, baseline."""
    # Imported here: the tests of the light rooms must not load torch.
    import torch
    from pocketlens_training.loop import machine, progress_bar
    from pocketlens_training.sample import TINY, learn_sample

    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("run")
    learn_sample(folder, TINY, where=machine("cpu"), progress=progress_bar())
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle exported from it."""
    from pocketlens_export.bundle import export_bundle

    folder = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(tiny_run, folder, name="tiny")
    return folder
