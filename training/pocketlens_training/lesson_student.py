"""Lesson 3, the light student: unlabelled pictures, the frozen teacher, and the frozen text tower in the loop.

Two terms: global contrastive distillation of the sentence's text feature to the large tower's vector, and, for
photos, composition distillation. Sketches are paired with the photo of the same specification, because the
teacher never saw a sketch. The symmetric baseline is taught by the very same function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pocketlens_samples.catalogue import random_edits, random_spec
from pocketlens_samples.language import caption, edit_phrase
from torch import Tensor, nn

from pocketlens_training.loop import autocast, train
from pocketlens_training.losses import angle_loss, contrast, without
from pocketlens_training.pictures import shifted
from pocketlens_training.school import CHUNK, School
from pocketlens_training.student import Student, TokenLearner
from pocketlens_training.text import composed_prompt

ALONE = composed_prompt("", picture=True)  # the prompt of a picture without words, as at inference

Batch = tuple[Tensor, NDArray[np.int64], int]
"""Sentences (batch, k, width), each one's photo number, and how many of them, from the first, are of photos."""


def learn_student(school: School) -> None:
    """Leaves the student frozen."""
    _learn(school, "student", school.student)
    school.student.requires_grad_(False).eval()


def learn_sibling(school: School, tokens: int) -> None:
    """Another student of the same teacher, that writes `tokens` tokens: same recipe, steps and pictures."""
    torch.manual_seed(school.recipe.seed)
    sibling = Student(school.recipe.student_widths, tokens, school.recipe.word_width).to(school.device)
    _learn(school, sibling_lesson(tokens), sibling)


def sibling_lesson(tokens: int) -> str:
    """The lesson, and so the checkpoint, of the student with `tokens` tokens."""
    return f"student-k{tokens}"


def _learn(school: School, lesson: str, student: Student) -> None:
    sketched = int(school.recipe.batch * school.recipe.sketch_share)

    def read(rng: np.random.Generator) -> Batch:
        photos = rng.choice(len(school.photos), school.recipe.batch - sketched, replace=False)
        drawn = rng.choice(len(school.sketches), sketched, replace=False)
        pixels = np.concatenate([school.photos.take(photos), school.sketches.take(drawn)])
        return school.sentences(shifted(pixels, rng), student), np.concatenate([photos, drawn]), len(photos)

    steps = school.recipe.student_steps
    distil(school, lesson, student, student.learner, read, steps, lambda: finds_itself(school, student))


def learn_symmetric(school: School) -> None:
    """The baseline: the same token learner, k, losses and batch upon the *large* tower's feature map."""
    count = min(school.recipe.symmetric_pictures, len(school.photos))
    places = torch.empty(0) if school.done("symmetric") else teacher_places(school, count)

    def read(rng: np.random.Generator) -> Batch:
        numbers = rng.choice(count, min(school.recipe.batch, count), replace=False)
        with autocast(school.device):
            sentence = school.symmetric(places[torch.from_numpy(numbers)].to(school.device).float())
        return sentence.float(), numbers, len(numbers)

    distil(school, "symmetric", school.symmetric, school.symmetric, read, school.recipe.symmetric_steps)


def distil(
    school: School,
    lesson: str,
    module: nn.Module,
    learner: TokenLearner,
    read: Callable[[np.random.Generator], Batch],
    steps: int,
    validate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train `module` to write sentences that the frozen text tower reads as the large tower's vector."""
    recipe = school.recipe
    targets = F.normalize(school.teacher_vectors(), dim=1)
    learner.match_norm(float(school.teacher.text.words.weight.norm(dim=1).median()))
    captions = None if school.done(lesson) else CaptionBank(school)
    scale = school.teacher.scale().detach()

    def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        sentence, numbers, photos = read(rng)
        text = F.normalize(school.text([ALONE] * len(sentence), sentence), dim=1)
        wanted = targets[torch.from_numpy(numbers)].to(school.device)
        others = rng.choice(len(targets), min(recipe.bank, len(targets)), replace=False)
        bank = without(targets[torch.from_numpy(others)].to(school.device), wanted)
        loss = contrast(text, wanted, scale, bank)
        figures = {"gcd": loss.item(), "cosine": (text * wanted).sum(1).mean().item()}
        if step % 2 == 0 and captions is not None:  # every second step: it doubles the text tower's work
            apart = captions.composition_loss(sentence[:photos], wanted[:photos], rng)
            figures["composition"] = apart.item()
            loss = loss + recipe.composition_weight * apart
        return loss, figures

    train(
        lesson, module, module.parameters(), loss_of, steps=steps, rate=recipe.student_rate, seed=recipe.seed + 2,
        folder=school.folder, progress=school.progress, validate=validate,
    )  # fmt: skip


@torch.no_grad()
def finds_itself(school: School, student: Student) -> dict[str, float]:
    """Does a photo's sentence find that photo among 4,000? The loss hides a plateau that this figure shows."""
    numbers = np.arange(min(512, len(school.photos)))
    among = F.normalize(school.teacher_vectors()[:4000], dim=1).to(school.device)
    sentences = school.sentences(school.photos.take(numbers), student)
    text = F.normalize(school.text([ALONE] * len(numbers), sentences), dim=1)
    found = (text @ among.T).argmax(1).cpu() == torch.from_numpy(numbers)
    return {"finds_itself": found.float().mean().item()}


@torch.no_grad()
def teacher_places(school: School, count: int) -> Tensor:
    """The large tower's feature maps float16 (count, places, width) of the first photos, held in memory."""
    bar = school.progress.add_task("places", total=count, note="")
    parts = []
    for start in range(0, count, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, count))
        with autocast(school.device):
            parts.append(school.teacher.image.places(school.pixels(school.photos.take(numbers))).half().cpu())
        school.progress.advance(bar, len(numbers))
    return torch.cat(parts)


class CaptionBank:
    """Captions without pictures, and words one could add to each: the language side of composition distillation.

    For an unlabelled picture the frozen teacher names the nearest caption; then text(sentence + words) is pulled
    to text(caption + words). No picture is paired with anything, so the student still sees no triplet.
    This term is ours, not ISA's."""

    def __init__(self, school: School) -> None:
        self.school = school
        rng = np.random.default_rng([school.recipe.seed, 5])
        self.specs = [random_spec(rng, held_out=False) for _ in range(school.recipe.caption_bank)]
        self.captions = [caption(spec, rng) for spec in self.specs]
        self.vectors = self._encode()

    @torch.no_grad()
    def _encode(self) -> Tensor:
        """Unit text features (captions, dim)."""
        bar = self.school.progress.add_task("captions", total=len(self.captions), note="")
        parts = []
        for start in range(0, len(self.captions), CHUNK):
            some = ["a photo of " + text for text in self.captions[start : start + CHUNK]]
            parts.append(F.normalize(self.school.text(some), dim=1))
            self.school.progress.advance(bar, len(some))
        return torch.cat(parts)

    def composition_loss(self, sentence: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Mean 1 - cosine of text(sentence + words) and text(nearest caption + words).

        sentence (batch, k, width); image (batch, dim) unit teacher vectors of the same pictures."""
        nearest = (image @ self.vectors.T).argmax(1).tolist()
        words = [edit_phrase(self.specs[n], random_edits(self.specs[n], 1, rng), rng) for n in nearest]
        prompts = [composed_prompt(each, picture=True) for each in words]
        with torch.no_grad():
            told = [prompt.replace("{sentence}", self.captions[n]) for prompt, n in zip(prompts, nearest, strict=True)]
            wanted = F.normalize(self.school.text(told), dim=1)
        return angle_loss(F.normalize(self.school.text(prompts, sentence), dim=1), wanted)
