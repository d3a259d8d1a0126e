"""A run folder's own account of itself: run.json says what was asked, of which teacher, on what, with what.

With it and the files it names the same command gives the same run."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pocketlens_training.loop import precision_of
from pocketlens_training.material import Material, Sources
from pocketlens_training.recipe import DistilRecipe, differing
from pocketlens_training.sets.lines import digest_of
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.teacher import Teacher

RUN = "run.json"
LESSON = "student"  # what the run was begun for


def account(
    folder: Path, teacher_name: str, teacher: Teacher, sources: Sources, recipe: DistilRecipe, cache: Path,
    where: Accelerator,
) -> dict[str, Any]:  # fmt: skip
    """What run.json says of a run in `folder`; `content_of` adds what the sources hold."""
    return {
        "format": 1,
        "teacher": portable(teacher_name, folder),
        "teacher_id": teacher.id,
        "teacher_text_id": teacher.text_id,
        "sources": sources.relative_to(folder),
        "cache": os.path.relpath(cache.absolute(), folder.absolute()),
        "recipe": recipe.as_json(),
        "loop": {"precision": precision_of(where), "processes": where.num_processes},
        "made_with": {
            "python": platform.python_version(), **versions(), "device": str(where.device),
            "threads": torch.get_num_threads(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        },
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers depend on, as far as they are installed."""
    found = {}
    for package in ("pocketlens", "torch", "numpy", "accelerate", "pillow", "timm", "open_clip_torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def content_of(sources: Sources, material: Material) -> dict[str, str]:
    """What names all that is learned from by what it holds."""
    found = {"images": material.content}
    if material.sketch_content:
        found["sketches"] = material.sketch_content
    if material.told is not None and sources.told is not None:
        found["told"] = digest_of(sources.told)[:16]
    return found


def first_made(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """`asked`, made with what the run in `folder` was begun with."""
    return asked if not (folder / RUN).exists() else {**asked, "made_with": read_run(folder)["made_with"]}


def refuse_another(folder: Path, asked: dict[str, Any]) -> None:
    """Raises ValueError, saying what differs, when `folder` was begun otherwise. How a student is trained matters until
    it is; what it was trained on is known once it was looked at."""
    if not (folder / RUN).exists():
        return
    was = read_run(folder)
    teachers = {"teacher_id": "teacher", "teacher_text_id": "text tower of the teacher"}
    keys = teachers | {"recipe": "recipe", "sources": "set of sources", "content": "content of its files"}
    if not (folder / f"{LESSON}.safetensors").exists():
        keys["loop"] = "number of processes or precision"
    for key, name in keys.items():
        if key in asked and key in was and was[key] != asked[key]:
            said = f"{was['teacher']} there" if key in teachers else differing(was[key], asked[key])
            raise ValueError(
                f"{folder} was begun with a different {name} ({said}); give the options it was begun with, or name "
                "another folder"
            )


def portable(name: str, folder: Path) -> str:
    """A teacher's name as written into a run: a file or folder in it is relative to the run."""
    before, local = _local_part(name, Path())
    return name if local is None else before + os.path.relpath(local.absolute(), folder.absolute())


def teacher_of(folder: Path) -> Teacher:
    """The teacher that run.json of `folder` names. Raises CannotTeach; ValueError when it is another one now."""
    run = read_run(folder)
    before, local = _local_part(run["teacher"], folder)
    teacher = load_teacher(run["teacher"] if local is None else f"{before}{local}")
    for half, was, now in (
        ("image tower", run["teacher_id"], teacher.id),
        ("text tower", run.get("teacher_text_id", teacher.text_id), teacher.text_id),
    ):
        if was != now:
            raise ValueError(
                f"{folder}: was distilled from the {half} {was}, but that of {run['teacher']} is {now} now; put the "
                "right teacher back, or distil again"
            )
    return teacher


def _local_part(name: str, root: Path) -> tuple[str, Path | None]:
    """What stands before a place of this machine in a teacher's name, and that place under `root`; None if it has
    none. A hub's repository has the form of a folder: it is one where one lies there."""
    kind, _, rest = name.partition(":")
    if kind == "run":
        return "run:", root / rest
    if kind == "open_clip" and "@" in rest:
        before, _, file = name.partition("@")
        return f"{before}@", root / file
    if kind == "hf" and (root / rest).is_dir():
        return "hf:", root / rest
    return name, None


def read_recipe(folder: Path) -> DistilRecipe:
    """The recipe of the run in `folder`. Raises FileNotFoundError when none was begun there."""
    return DistilRecipe.of_json(read_run(folder)["recipe"], str(folder / RUN))


def sources_of(folder: Path) -> Sources:
    """The sources of the run in `folder`."""
    return Sources.of(read_run(folder)["sources"], folder)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json."""
    if not (folder / RUN).is_file():
        raise FileNotFoundError(
            f"{folder}: no run (it has no {RUN}); begin one with `pocketlens-train distill` or "
            "`pocketlens-train sample`"
        )
    return json.loads((folder / RUN).read_text())


def cache_of(folder: Path) -> Path:
    """Where the run in `folder` keeps what its teacher made of pictures."""
    return folder / read_run(folder)["cache"]
