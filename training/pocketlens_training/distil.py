"""The distillation: unlabelled pictures, a frozen teacher, and its frozen text tower in the loop.

What the text tower reads in the student's sentence is pulled to the image tower's vector of the same picture (GCD);
with captions at hand, also to what it reads in the nearest caption under the same change of words (composition
distillation); optionally the places a token looks at are compared (LAR). Sketches are pulled to the vector of their
photo, because a teacher need never have seen a sketch. No triplet is seen. The symmetric baselines are taught by the
very same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from pocketlens_training import losses
from pocketlens_training.features import list_unreadable
from pocketlens_training.loop import Schedule, train, write_json
from pocketlens_training.material import UNREADABLE, Material, Sources, gather
from pocketlens_training.places import grid_of, teacher_places
from pocketlens_training.probe import Probe
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.run import LESSON, RUN, account, content_of, first_made, refuse_another
from pocketlens_training.sets.feed import Feed
from pocketlens_training.sets.kept import MOST_BYTES, KeptPixels, keep_pixels
from pocketlens_training.sets.pixels import Ask, VariedPictures
from pocketlens_training.sets.sources import Source
from pocketlens_training.students.backbones import TINY
from pocketlens_training.students.student import Student, make_student, student_picture
from pocketlens_training.students.token_learner import Reading
from pocketlens_training.teachers.naming import load_teacher
from pocketlens_training.teachers.teacher import Teacher

CENTRED = 1024  # pictures whose mean place LAR takes off


class Distiller(nn.Module):
    """A student, and the linear map that LAR needs while training."""

    def __init__(self, student: nn.Module, *, width: int = 0, teacher_width: int = 0) -> None:
        super().__init__()
        self.student = student
        self.project = nn.Linear(width, teacher_width, bias=False) if teacher_width else None

    def forward(self, seen: Tensor) -> Reading:
        reading = self.student.read(seen)  # type: ignore[operator]
        if self.project is None:
            return reading
        return Reading(reading.sentence, reading.attention, self.project(reading.first))


def distil(
    teacher_name: str,
    sources: Sources,
    folder: Path,
    recipe: DistilRecipe,
    *,
    where: Accelerator,
    progress: Progress,
    workers: int = 0,
    cache: Path | None = None,
    keep_bytes: int = MOST_BYTES,
) -> Student:
    """Train a student of the teacher `teacher_name` into `folder`. Killed anywhere, the same call goes on.

    cache: folder of teacher vectors that runs may share; by default within `folder`. Raises CannotTeach, CannotStudy,
    NoPictures, BadLines, NotFinite, CannotSave, ValueError for a folder begun otherwise."""
    teacher = load_teacher(teacher_name)
    check_fits(teacher, recipe)
    sources.check()
    cache = cache or folder
    asked = account(folder, teacher_name, teacher, sources, recipe, cache, where)
    refuse_another(folder, asked)
    torch.manual_seed(recipe.seed)
    student = make_student(
        recipe.student, teacher, tokens=recipe.tokens, side=recipe.side, pretrained=recipe.pretrained,
        anchors=recipe.anchors,
    )  # fmt: skip
    if (words := student.learner.anchors) is not None and len(words) < recipe.anchors:
        said = f"the teacher has {len(words):,} whole words, not {recipe.anchors:,}: tokens are mixtures of all of them"
        progress.console.print(said, markup=False)
    material = gather(teacher, sources, recipe, where=where, progress=progress, workers=workers, cache=cache)
    with where.main_process_first():  # the others find its vectors kept
        probe = Probe(material, sources.questions, where=where, workers=workers, progress=progress)
    asked["content"] = content_of(sources, material)
    refuse_another(folder, asked)
    if where.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, first_made(folder, asked))  # only now: what cannot be learned has begun nothing
        list_unreadable(folder / UNREADABLE, material.unreadable)
    learn(
        student, material, recipe, folder, probe=probe, where=where, progress=progress, workers=workers,
        keep_bytes=keep_bytes,
    )  # fmt: skip
    return student


def check_fits(teacher: Teacher, recipe: DistilRecipe) -> None:
    """Raises ValueError for a loss that this teacher cannot give."""
    if recipe.lar == "match" and teacher.matching is None:
        raise ValueError(f"{teacher.name} has no matching head, which lar match needs; use lar map")


def learn(
    student: Student, material: Material, recipe: DistilRecipe, folder: Path, *, probe: Probe | None = None,
    where: Accelerator, progress: Progress, workers: int = 0, keep_bytes: int = MOST_BYTES,
) -> None:  # fmt: skip
    """The lesson itself, on gathered material. Leaves the student frozen. keep_bytes: squares are kept on disk where
    they take no more than that, and decoded at every step where they take more or are cropped."""
    plan = Plan(material, recipe, where.process_index)
    spec, keep = student_picture(student, material.teacher), 0 if recipe.variation.startswith("crop") else keep_bytes
    with where.main_process_first():

        def kept(source: Source | None, numbers: NDArray[np.int64], content: str) -> KeptPixels | None:
            if source is None:
                return None
            return keep_pixels(
                source, numbers, content, spec, material.cache, progress=progress, workers=workers, most_bytes=keep
            )

        photos = kept(material.photos, material.numbers, material.content)
        sketches = kept(material.sketches, np.unique(material.drawn[:, 0]), material.sketch_content)
    pictures = VariedPictures(
        material.photos, spec, recipe.variation, sketches=material.sketches, pale=recipe.pale,  # type: ignore[arg-type]
        kept=photos, kept_sketches=sketches,
    )  # fmt: skip
    feed = Feed(pictures, plan.asks, device=where.device, workers=workers)
    teach(student, feed.at, plan, material, recipe, folder, probe=probe, where=where, progress=progress)


def teach(
    student: nn.Module, seen_at: Callable[[int], Tensor], plan: Plan, material: Material, recipe: DistilRecipe,
    folder: Path, *, probe: Probe | None = None, where: Accelerator, progress: Progress, lesson: str = LESSON,
) -> None:  # fmt: skip
    """Train anything with `read(seen) -> Reading`, shown `seen_at(micro-batch)`, by the losses of `recipe`."""
    terms = _Terms(student, plan, material, recipe, where, progress)
    rate = recipe.rate or (2e-3 if recipe.student in TINY else 3e-4)
    factor = recipe.backbone_factor or (1.0 if recipe.student in TINY else 1 / 3)

    def loss_of(module: Any, micro: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        reading: Reading = module(seen_at(micro))
        return terms.loss(reading, micro, rng)

    def validate(kept: nn.Module) -> dict[str, float]:
        assert probe is not None and isinstance(kept, Distiller) and isinstance(kept.student, Student)
        return probe.figures(kept.student)

    train(
        lesson, terms.distiller, loss_of,
        Schedule(
            steps=recipe.steps, rate=rate, seed=recipe.seed + 2, slower={"student.encoder": factor},
            accumulate=recipe.accumulate, average=recipe.average,
        ),
        folder=folder, where=where, progress=progress, validate=None if probe is None else validate,
    )  # fmt: skip
    student.requires_grad_(False).eval()


class Plan:
    """Which pictures a micro-batch holds: photos first, then sketches."""

    def __init__(self, material: Material, recipe: DistilRecipe, process: int) -> None:
        self.material, self.recipe, self.process = material, recipe, process
        sketched = 0 if recipe.sketches == "none" else round(recipe.batch * recipe.sketch_share)
        if recipe.sketches.startswith("drawn") and not len(material.drawn):
            sketched = 0
        self.sketched, self.photos = sketched, recipe.batch - sketched

    def rows(self, micro: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the photos; and of the sketches: of their photos ("edges"), else places in `material.drawn`."""
        rng = np.random.default_rng([self.recipe.seed, 11, micro, self.process])
        photos = _draw(rng, self.material.kept, self.photos)
        if not self.sketched:
            return photos, photos[:0]
        if self.recipe.sketches == "edges":
            return photos, _draw(rng, self.material.kept, self.sketched)
        return photos, _draw(rng, np.arange(len(self.material.drawn)), self.sketched)

    def asks(self, micro: int) -> list[Ask]:
        photos, sketches = self.rows(micro)
        seeds = np.random.default_rng([self.recipe.seed, 12, micro, self.process]).integers(
            2**31, size=len(photos) + len(sketches)
        )
        numbers = self.material.numbers[photos].tolist()
        kinds = ["photo"] * len(photos)
        if len(sketches) and self.recipe.sketches == "edges":
            numbers += self.material.numbers[sketches].tolist()
            kinds += ["edges"] * len(sketches)
        elif len(sketches):
            numbers += self.material.drawn[sketches, 0].tolist()
            kinds += ["sketch"] * len(sketches)
        return [Ask(n, int(seed), kind) for n, seed, kind in zip(numbers, seeds, kinds, strict=True)]

    def wanted(self, micro: int) -> Tensor:
        """Raw teacher vectors (batch, dim) that the micro-batch is pulled to."""
        photos, sketches = self.rows(micro)
        material = self.material
        if self.recipe.sketches == "drawn-own" and len(sketches):
            assert material.sketch_raw is not None
            drawn = material.sketch_raw[torch.from_numpy(material.drawn[sketches, 0])]
        else:
            rows = sketches if self.recipe.sketches == "edges" else material.drawn[sketches, 1]
            drawn = material.raw[torch.from_numpy(rows)]
        return torch.cat([material.raw[torch.from_numpy(photos)], drawn])


class _Terms:
    """The losses of one recipe on one micro-batch."""

    def __init__(
        self, student: nn.Module, plan: Plan, material: Material, recipe: DistilRecipe, where: Accelerator,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.plan, self.material, self.recipe, self.device = plan, material, recipe, where.device
        self.autocast = where.autocast
        self.reader, self.scale = material.reader, material.teacher.scale
        self.unit = material.unit
        self.bank_rows = material.kept
        self.places = None
        self.matching = None
        teacher_width = 0
        if recipe.lar == "map":
            self.places = teacher_places(
                material.teacher, material.photos, material.numbers, material.content, material.cache,
                where=where, progress=progress,
            )  # fmt: skip
            teacher_width = self.places.shape[2]
            self.centre = torch.from_numpy(np.asarray(self.places[:CENTRED], np.float32).mean((0, 1))).to(where.device)
        elif recipe.lar == "match":
            self.matching = material.teacher.matching
            assert self.matching is not None  # check_fits saw to it
            self.matching.to(where.device)
            self.large = Feed(
                VariedPictures(material.photos, material.teacher.picture, "none"), self._matched, device=where.device,
                workers=0,
            )  # fmt: skip
        width: int = student.learner.queries.shape[1] if teacher_width else 0  # type: ignore
        self.distiller = Distiller(student, width=width, teacher_width=teacher_width)

    def loss(
        self, reading: Reading, micro: int, rng: np.random.Generator
    ) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        sentence = reading.sentence.float()
        wanted = F.normalize(self.plan.wanted(micro), dim=1).to(self.device)
        text = self.reader.unit([self.reader.alone] * len(sentence), sentence)
        loss = self._gcd(text, wanted, rng)
        figures: dict[str, float | Tensor] = {"gcd": loss.detach(), "cosine": (text * wanted).sum(1).mean().detach()}
        photos = self.plan.photos
        if self.recipe.composition_weight and self.material.told is not None and micro % 2 == 0:
            # Every second batch: it doubles the text tower's work.
            rows = self.plan.rows(micro)[0]
            apart = self.material.told.composition_loss(self.reader, sentence[:photos], rows, rng)
            figures["composition"] = apart.detach()
            loss = loss + self.recipe.composition_weight * apart
        if self.recipe.lar != "none":
            local = self._lar(reading, text, wanted, micro)
            figures["lar"] = local.detach()
            loss = loss + self.recipe.lar_weight * local
        return loss, figures

    def _gcd(self, text: Tensor, wanted: Tensor, rng: np.random.Generator) -> Tensor:
        kind = self.recipe.gcd
        if kind == "cosine":
            return losses.angle_loss(text, wanted) * 10.0
        others = _draw(rng, self.bank_rows, min(self.recipe.bank, len(self.bank_rows)))
        whole = self.unit[torch.from_numpy(others)].to(self.device)
        bank = losses.without(whole, wanted)
        loss = torch.zeros((), device=self.device)
        if kind in ("contrast", "both"):
            loss = loss + losses.contrast(text, wanted, self.scale, bank, losses.twins(wanted))
        if kind in ("relational", "both"):
            near = bank if len(bank) else whole  # in a small set all of the bank may be in the batch
            loss = loss + losses.relational(text, wanted, near, self.scale, teacher_scale=self.recipe.teacher_scale)
        return loss

    def _lar(self, reading: Reading, text: Tensor, wanted: Tensor, micro: int) -> Tensor:
        photos = self.plan.photos
        rows = self.plan.rows(micro)[0]
        if self.places is not None:
            places = torch.from_numpy(np.asarray(self.places[rows], np.float32)).to(self.device)
            attention = losses.regridded(
                reading.attention[:photos].float(), grid_of(reading.attention.shape[2]), grid_of(places.shape[1])
            )
            return losses.map_alignment(reading.first[:photos].float(), attention, places - self.centre)
        assert self.matching is not None
        with torch.no_grad(), self.autocast():
            seen = self.matching.look(self.large.at(micro))
        sentence = reading.sentence[:photos].float()
        likeness = self.scale * text[:photos].detach() @ wanted[:photos].T
        likeness = likeness.masked_fill(losses.twins(wanted[:photos]), -1e4)  # a duplicate is no wrong picture
        wrong_image, wrong_sentence = losses.hard_ones(likeness), losses.hard_ones(likeness.T)
        made = self.reader.maker.rows([self.reader.alone] * photos, tokens=sentence.shape[1]).to(self.device)
        with self.autocast():
            own = self.matching(made, sentence, seen)
            others = (
                self.matching(made, sentence, seen[wrong_image]),
                self.matching(made, sentence[wrong_sentence], seen),
            )
        return losses.matching(own.float(), *(logits.float() for logits in others))

    def _matched(self, micro: int) -> list[Ask]:
        return [ask for ask in self.plan.asks(micro) if ask.kind == "photo"][: self.plan.photos]


def _draw(rng: np.random.Generator, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of `rows`, none twice if there are enough."""
    return rng.choice(rows, count, replace=count > len(rows))
