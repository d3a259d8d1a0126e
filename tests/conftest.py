"""One tiny training and the bundle made of it, shared by the tests of school and customs: seconds on one core."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pocketlens_training.school import School


@pytest.fixture(scope="session")
def tiny_school(tmp_path_factory: pytest.TempPathFactory) -> School:
    """A school that has learned all lessons of the TINY recipe."""
    # Imported here: the tests of the light rooms must not load torch.
    import torch
    from pocketlens_training.loop import progress_bar
    from pocketlens_training.recipe import TINY
    from pocketlens_training.sample import learn
    from pocketlens_training.school import School

    torch.set_num_threads(2)
    school = School(TINY, tmp_path_factory.mktemp("run"), torch.device("cpu"), progress_bar())
    learn(school)
    return school


@pytest.fixture(scope="session")
def tiny_run(tiny_school: School) -> Path:
    """Its run folder."""
    return tiny_school.folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle exported from it."""
    from pocketlens_export.bundle import export_bundle

    folder = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(tiny_run, folder, name="tiny")
    return folder
