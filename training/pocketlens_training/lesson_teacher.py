"""Lessons 1 and 2, the teacher: first pictures and captions, then that a later phrase overrides an earlier one.

Lesson 2 is text-side edit supervision, which pretrained CLIP models do not have; results on the sample world are
therefore not zero-shot composed retrieval in the papers' sense, although the student sees no triplet."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pocketlens_samples.catalogue import Edit, Spec, apply, is_held_out, random_edits
from pocketlens_samples.language import caption, edit_phrase
from torch import Tensor

from pocketlens_training.loop import train
from pocketlens_training.losses import contrast, hit_rate
from pocketlens_training.pictures import shifted
from pocketlens_training.school import School
from pocketlens_training.text import composed_prompt

PREFIXES = ("a photo of ", "a photo of ", "a picture of ", "")
PARTIAL_SHARE = 0.15  # captions that leave attributes out, as people's do
PLAIN_SHARE = 0.4  # of lesson 2: plain captions, so that lesson 1 is not forgotten


def learn_teacher(school: School) -> None:
    """Both towers on drawn pictures and fresh captions (CLIP: Radford et al. 2021)."""
    recipe = school.recipe

    def loss_of(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        numbers = school.pairs(rng, recipe.batch)
        image = F.normalize(school.image(shifted(school.photos.take(numbers), rng)), dim=1)
        text = F.normalize(school.text([plain_text(school.photos.specs[n], rng) for n in numbers]), dim=1)
        scale = school.teacher.scale()
        return contrast(image, text, scale), {"matched": hit_rate(image, text), "scale": scale.item()}

    train(
        "teacher", school.teacher, school.teacher.parameters(), loss_of, steps=recipe.teacher_steps,
        rate=recipe.teacher_rate, seed=recipe.seed, folder=school.folder, progress=school.progress,
    )  # fmt: skip


def learn_edits(school: School) -> None:
    """The text tower alone, against locked image vectors (LiT: Zhai et al. 2022). Leaves the teacher frozen."""
    recipe, teacher = school.recipe, school.teacher
    vectors = torch.empty(0) if school.done("edits") else F.normalize(school.teacher_vectors(), dim=1)
    teacher.image.requires_grad_(False)

    def loss_of(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        numbers = school.pairs(rng, recipe.batch)
        image = vectors[torch.from_numpy(numbers)].to(school.device)
        specs = [school.photos.specs[n] for n in numbers]
        texts = [plain_text(s, rng) if rng.random() < PLAIN_SHARE else edited_text(s, rng) for s in specs]
        text = F.normalize(school.text(texts), dim=1)
        return contrast(image, text, teacher.scale()), {"matched": hit_rate(text, image)}

    train(
        "edits", teacher, teacher.parameters(), loss_of, steps=recipe.edit_steps, rate=recipe.edit_rate,
        seed=recipe.seed + 1, folder=school.folder, progress=school.progress,
    )  # fmt: skip
    teacher.requires_grad_(False).eval()


def plain_text(spec: Spec, rng: np.random.Generator) -> str:
    """A caption with one of the usual beginnings."""
    return PREFIXES[rng.integers(len(PREFIXES))] + caption(spec, rng, partial=bool(rng.random() < PARTIAL_SHARE))


def edited_text(wanted: Spec, rng: np.random.Generator) -> str:
    """A caption of another item and the words that turn it into `wanted`; text only, no second picture."""
    while True:
        away = random_edits(wanted, 1 + int(rng.random() < 0.35), rng)
        source = apply(wanted, away)
        if not is_held_out(source):
            break
    back = tuple(Edit(edit.attribute, getattr(wanted, edit.attribute)) for edit in away)
    return composed_prompt(edit_phrase(source, back, rng), picture=True).replace("{sentence}", caption(source, rng))
