"""Students that write a picture as other numbers of tokens than the bundle's own.

A student is the device's half of a bundle. Owns which are meant when nobody named any (those in `students/`, which were
trained beside the sample bundle's own by the same recipe), and the proof that the bundle's text tower reads them: the
token space is the same. Called by token_table.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pocketlens_cloud.bundle import open_cloud_half
from pocketlens_edge.encoder import Encoder
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import CloudManifest, EdgeManifest, read_edge

SHIPPED = Path(__file__).parent / "students"


@dataclass(frozen=True, kw_only=True)
class Student:
    """One student. multiply_adds: of one picture, where its report says them."""

    encoder: Encoder
    is_own: bool  # the bundle's own
    multiply_adds: int | None

    @property
    def tokens(self) -> int:
        return self.encoder.manifest.token_count


def gathered(bundle: Path, named: Sequence[Path] | None = None) -> tuple[list[Student], list[str]]:
    """The bundle's own student and the others, fewest tokens first; and why any of the shipped ones is left out.

    named: device halves; None: the shipped ones. Raises BadBundle when a named one is not for this bundle's text
    tower, or two have the same number of tokens."""
    _, cloud = open_cloud_half(bundle)
    others = sorted(SHIPPED.glob("*/")) if named is None else named
    students, left_out = [_opened(bundle, is_own=True)], []
    for folder in others:
        problem = _foreign(read_edge(folder), cloud)
        if problem and named is None:
            left_out.append(f"shipped student {folder.name}: {problem}")
        elif problem:
            raise BadBundle(f"{folder}: {problem}. Export a student of the bundle's own training.")
        else:
            students.append(_opened(folder, is_own=False))
    students.sort(key=lambda student: student.tokens)
    for fewer, more in pairwise(students):
        if fewer.tokens == more.tokens:
            raise BadBundle(
                f"two students with {more.tokens} tokens ({fewer.encoder.encoder_id}, "
                f"{more.encoder.encoder_id}); name one of each number with --student"
            )
    return students, left_out


def _opened(folder: Path, *, is_own: bool) -> Student:
    return Student(encoder=Encoder.load(folder, threads=1), is_own=is_own, multiply_adds=_multiply_adds(folder))


def _foreign(student: EdgeManifest, cloud: CloudManifest) -> str | None:
    """Why the cloud half cannot read this student's tokens; None if it can."""
    if student.token_space != cloud.token_space:
        return (
            f"its tokens are of {student.token_space}, the text tower of bundle {cloud.name} reads {cloud.token_space}"
        )
    if student.token_count > cloud.max_tokens:
        return f"it writes {student.token_count} tokens, bundle {cloud.name} takes at most {cloud.max_tokens}"
    return None


def _multiply_adds(folder: Path) -> int | None:
    try:
        report: Any = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return int(report["cost"]["student"]["multiply_adds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
