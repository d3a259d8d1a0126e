"""Early evaluation: figures on held-out pictures that show what a loss hides.

There is a plateau on which a sentence carries little but the background while the loss looks well; `finds_itself` and
the share of attributes of the nearest other picture show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pocketlens_wire.pictures import PictureSpec
from rich.progress import Progress
from torch import Tensor

from pocketlens_training.features import teacher_vectors
from pocketlens_training.sets.lines import Triplet, read_triplets
from pocketlens_training.sets.pixels import square
from pocketlens_training.sets.sources import Files
from pocketlens_training.students.student import Student, student_picture

if TYPE_CHECKING:
    from pocketlens_training.material import Material

ASKED = 500  # pictures whose sentences are tried
AMONG = 4000  # pictures they are searched among
CHUNK = 128


class Probe:
    """The held-out pictures and questions of a run."""

    def __init__(
        self, material: Material, attributes: Mapping[str, Mapping[str, Any]], questions: Path | None, *,
        where: Accelerator, workers: int, progress: Progress,
    ) -> None:  # fmt: skip
        self.material, self.where = material, where
        self.asked = material.held[:ASKED]
        others = material.kept[: max(0, AMONG - len(material.held))]
        self.among = np.concatenate([material.held, others])
        self.known = [attributes.get(material.photos.names[material.numbers[row]], {}) for row in self.among]
        self.questions = (
            None if questions is None
            else Questions(questions, material, where=where, workers=workers, progress=progress)
        )  # fmt: skip
        self._pixels: dict[tuple[PictureSpec, bytes], Tensor] = {}  # students of a run may see other sides

    def figures(self, student: torch.nn.Module) -> dict[str, float]:
        """`finds_itself`: share of held-out pictures whose sentence finds that very picture among AMONG. For each known
        attribute, the share of sentences whose nearest *other* picture has the same. With questions, `recall@10`."""
        if not isinstance(student, Student):
            return {}
        own = self._self(self.sentences(student, self.asked)) if len(self.asked) else {}
        return {**own, **({} if self.questions is None else self.questions.figures(student))}

    @torch.no_grad()
    def _self(self, sentences: Tensor) -> dict[str, float]:
        reader, among = self.material.reader, F.normalize(self.material.raw[torch.from_numpy(self.among)], dim=1)
        text = torch.cat([reader.unit([reader.alone] * len(some), some) for some in sentences.split(CHUNK)]).cpu()
        scores = text @ among.T
        own = torch.arange(len(text))  # the asked are the first among them
        figures = {"finds_itself": float((scores.argmax(1) == own).float().mean())}
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
                made = [square(material.photos.read(int(n)), spec) for n in material.numbers[some]]
                self._pixels[key] = torch.from_numpy(np.stack(made))
            parts.append(sentences_of(student, self._pixels[key], self.where))
        return torch.cat(parts)


class Questions:
    """Composed queries and the pictures they search: all that the file names."""

    def __init__(self, file: Path, material: Material, *, where: Accelerator, workers: int, progress: Progress) -> None:
        self.material, self.where, self.file = material, where, file
        self.asked: list[Triplet] = read_triplets(file)
        listed = file.parent / "gallery.txt"
        names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
        names = list(dict.fromkeys([*names, *(name for one in self.asked for name in one.targets)]))
        gallery = Files(file.parent, names)
        bar = progress.add_task("questions", total=len(names), note="")
        seen = teacher_vectors(
            material.teacher, gallery, material.cache / "features", device=where.device, workers=workers,
            on_done=lambda count: progress.advance(bar, count),
        )  # fmt: skip
        self.vectors = F.normalize(seen.raw, dim=1)
        row_of = {names[number]: row for row, number in enumerate(seen.numbers)}
        self.relevant = [{row_of[name] for name in one.targets if name in row_of} for one in self.asked]
        self.references = Files(file.parent, [one.reference for one in self.asked])
        self._pixels: dict[PictureSpec, list[Tensor]] = {}

    @torch.no_grad()
    def figures(self, student: Student) -> dict[str, float]:
        spec = student_picture(student, self.material.teacher)
        if spec not in self._pixels:
            starts = range(0, len(self.asked), CHUNK)
            parts = [range(start, min(start + CHUNK, len(self.asked))) for start in starts]
            made = [np.stack([square(self.references.read(n), spec) for n in numbers]) for numbers in parts]
            self._pixels[spec] = [torch.from_numpy(pixels) for pixels in made]
        reader = self.material.reader
        hits = []
        for i, pixels in enumerate(self._pixels[spec]):
            some = self.asked[i * CHUNK : i * CHUNK + len(pixels)]
            sentences = sentences_of(student, pixels, self.where)
            text = reader.unit([reader.composed(one.text) for one in some], sentences).cpu()
            first = (text @ self.vectors.T).topk(min(10, len(self.vectors)), dim=1).indices.tolist()
            relevant = self.relevant[i * CHUNK : i * CHUNK + len(pixels)]
            hits += [bool(wanted & set(ten)) for wanted, ten in zip(relevant, first, strict=True)]
        return {"recall@10": float(np.mean(hits))}


def sentences_of(student: Student, pixels: Tensor, where: Accelerator) -> Tensor:
    """Sentences float32 (batch, k, width), on the device."""
    with where.autocast():
        return student(pixels.to(where.device)).float()
