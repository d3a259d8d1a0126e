"""Early evaluation: figures on held-out pictures that show what a loss hides.

There is a plateau on which a sentence carries little but the background while the loss looks well; `finds_itself` and
the share of attributes of the nearest other picture show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from pocketlens_wire.pictures import PictureSpec
from rich.progress import Progress
from torch import Tensor

from pocketlens_training.features import teacher_vectors
from pocketlens_training.material import Material
from pocketlens_training.reading import Reader, reader_of
from pocketlens_training.sets.feed import look
from pocketlens_training.sets.lines import BadLines, Triplet, read_triplets
from pocketlens_training.sets.pixels import square
from pocketlens_training.sets.sources import Files
from pocketlens_training.students.student import Student, student_picture

ASKED = 500  # pictures whose sentences are tried; of a file of questions the first that are asked
AMONG = 4000  # pictures they are searched among
CHUNK = 128


class Probe:
    """The held-out pictures and questions of a run."""

    def __init__(
        self, material: Material, questions: Path | None, *, where: Accelerator, workers: int, progress: Progress
    ) -> None:
        self.material, self.where = material, where
        self.reader = reader_of(material.teacher, where, exact=True)
        self.asked = material.held[:ASKED]
        others = material.kept[: max(0, AMONG - len(material.held))]
        self.among = np.concatenate([material.held, others])
        known = material.attributes
        self.known = [known.get(material.photos.names[material.numbers[row]], {}) for row in self.among]
        self.questions = (
            None if questions is None
            else Questions(questions, material, self.reader, where=where, workers=workers, progress=progress)
        )  # fmt: skip
        self._pixels: dict[tuple[PictureSpec, bytes], Tensor] = {}  # students of a run may see other sides

    def figures(self, student: Student) -> dict[str, float]:
        """`finds_itself`: share of held-out pictures whose sentence finds that very picture among AMONG. For each known
        attribute, the share of sentences whose nearest *other* picture has the same. With questions, `recall@10`."""
        own = self._self(self.sentences(student, self.asked)) if len(self.asked) else {}
        return {**own, **({} if self.questions is None else self.questions.figures(student))}

    @torch.no_grad()
    def _self(self, sentences: Tensor) -> dict[str, float]:
        reader, among = self.reader, F.normalize(self.material.raw[torch.from_numpy(self.among)], dim=1)
        text = torch.cat([reader.unit([reader.alone] * len(some), some) for some in sentences.split(CHUNK)]).cpu()
        scores = text @ among.T
        own = torch.arange(len(text))  # the asked are the first among them
        found = scores[own, own] >= scores.max(1).values  # a copy of it is as good
        figures = {"finds_itself": float(found.float().mean())}
        scores[own, own] = -1
        nearest = scores.argmax(1).tolist()
        for name in self.known[0]:
            same = [self.known[i].get(name) == self.known[n].get(name) for i, n in enumerate(nearest)]
            figures[f"same {name}"] = float(np.mean(same))
        return figures

    @torch.no_grad()
    def sentences(self, student: Student, rows: np.ndarray) -> Tensor:
        """Sentences (rows, k, width) on the device of the pictures as the device makes them."""
        material = self.material
        parts = []
        for start in range(0, len(rows), CHUNK):
            spec, some = student_picture(student, material.teacher), rows[start : start + CHUNK]
            key = (spec, some.tobytes())
            if key not in self._pixels:
                photos = material.photos
                made = [square(photos.read(n), spec, name=photos.names[n]) for n in material.numbers[some].tolist()]
                self._pixels[key] = torch.from_numpy(np.stack(made))
            parts.append(sentences_of(student, self._pixels[key], self.where))
        return torch.cat(parts)


class Questions:
    """Composed queries and the pictures they search: all that the file names."""

    def __init__(
        self, file: Path, material: Material, reader: Reader, *, where: Accelerator, workers: int, progress: Progress
    ) -> None:
        self.material, self.where, self.reader = material, where, reader
        asked = read_triplets(file)[:ASKED]
        listed = file.parent / "gallery.txt"
        names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
        names = list(dict.fromkeys([*names, *(name for one in asked for name in one.targets)]))
        gallery = Files(file.parent, names)
        bar = progress.add_task("questions", total=len(names), note="")
        seen = teacher_vectors(
            material.teacher, gallery, material.cache / "features", device=where.device, workers=workers,
            on_done=lambda count: progress.advance(bar, count),
        )  # fmt: skip
        self.vectors = F.normalize(seen.raw, dim=1)
        row_of = {names[number]: row for row, number in enumerate(seen.numbers)}
        references = Files(file.parent, list(dict.fromkeys(one.reference for one in asked)))
        looked = [one for some in look(references, material.teacher.picture, workers=workers) for one in some]
        torn = [(references.names[one.number], one.problem) for one in looked if one.problem is not None]
        material.unreadable += [*seen.unreadable, *torn]
        unseen = {name for name, _ in torn}
        self.asked: list[Triplet] = [
            one for one in asked if one.reference not in unseen and any(name in row_of for name in one.targets)
        ]
        if not self.asked:
            raise BadLines(f"{file}: no question whose reference and a target can be read")
        if seen.unreadable or torn:
            progress.console.print(
                f"{file}: {len(seen.unreadable) + len(torn)} pictures cannot be read; {len(asked) - len(self.asked)} "
                f"of {len(asked)} questions are left out of the log",
                markup=False,
            )
        progress.console.print(f"{len(self.asked)} questions, searched among {len(names)} pictures", markup=False)
        self.relevant = [rows_named(one.targets, row_of) for one in self.asked]
        self.excluded = [rows_named(one.exclude, row_of) for one in self.asked]
        self.references = Files(file.parent, [one.reference for one in self.asked])
        self._pixels: dict[PictureSpec, list[Tensor]] = {}

    @torch.no_grad()
    def figures(self, student: Student) -> dict[str, float]:
        spec = student_picture(student, self.material.teacher)
        if spec not in self._pixels:
            starts = range(0, len(self.asked), CHUNK)
            parts = [range(start, min(start + CHUNK, len(self.asked))) for start in starts]
            made = [np.stack([self._square(n, spec) for n in numbers]) for numbers in parts]
            self._pixels[spec] = [torch.from_numpy(pixels) for pixels in made]
        hits = []
        for i, pixels in enumerate(self._pixels[spec]):
            some = self.asked[i * CHUNK : i * CHUNK + len(pixels)]
            sentences = sentences_of(student, pixels, self.where)
            text = self.reader.unit([self.reader.composed(one.text) for one in some], sentences).cpu()
            scores = text @ self.vectors.T
            for row, excluded in zip(scores, self.excluded[i * CHUNK :], strict=False):
                row[list(excluded)] = -torch.inf
            first = scores.topk(min(10, len(self.vectors)), dim=1).indices.tolist()
            relevant = self.relevant[i * CHUNK : i * CHUNK + len(pixels)]
            hits += [bool(wanted & set(ten)) for wanted, ten in zip(relevant, first, strict=True)]
        return {"recall@10": float(np.mean(hits))}

    def _square(self, number: int, spec: PictureSpec) -> NDArray[np.uint8]:
        return square(self.references.read(number), spec, name=self.references.names[number])


def rows_named(names: Sequence[str], row_of: Mapping[str, int]) -> set[int]:
    return {row_of[name] for name in names if name in row_of}


def sentences_of(student: Student, pixels: Tensor, where: Accelerator) -> Tensor:
    """Sentences float32 (batch, k, width), on the device."""
    with where.autocast():
        return student(pixels.to(where.device)).float()
