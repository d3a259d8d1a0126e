"""Lesson 4, the heads of the tuned mode: UNION-like targets, beside the control that leaves targets as they are.

Both are trained on the same few thousand triplets with the same query head, steps and rate, so that their
difference is the target's and not the triplets'."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pocketlens_samples.queries import training_triplets
from safetensors.torch import load_file
from torch import Tensor

from pocketlens_training.heads import Control, Heads
from pocketlens_training.lesson_student import ALONE
from pocketlens_training.lesson_teacher import plain_text
from pocketlens_training.loop import save_atomically, train
from pocketlens_training.losses import contrast, hit_rate
from pocketlens_training.school import CHUNK, School
from pocketlens_training.text import composed_prompt

INCOMPLETE_SHARE = 0.1  # queries of words alone, and as many of a picture alone


def learn_heads(school: School) -> None:
    """Trains "heads-union" and "heads-control"."""
    features = triplet_features(school)
    with torch.no_grad():
        empty = F.normalize(school.text([""]), dim=1)
    learn(school, "heads-union", Heads(school.recipe.dim, empty), features, empty)
    learn(school, "heads-control", Control(school.recipe.dim), features, empty)


def learn(school: School, lesson: str, heads: Heads | Control, features: dict[str, Tensor], empty: Tensor) -> None:
    """Train `heads` on frozen features."""
    recipe = school.recipe
    heads.to(school.device)
    scale = school.teacher.scale().detach()

    def loss_of(_step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        count = len(features["composed"])
        numbers = torch.from_numpy(rng.choice(count, min(recipe.batch, count), replace=False))
        batch = {key: value[numbers].to(school.device) for key, value in features.items()}
        composed, picture, words, wanted = some_incomplete(batch, empty, rng)
        query = heads.query(composed, picture, words)
        image = heads.target(wanted) if isinstance(heads, Heads) else F.normalize(wanted, dim=1)
        return contrast(query, image, scale), {"matched": hit_rate(query, image)}

    train(
        lesson, heads, heads.parameters(), loss_of, steps=recipe.head_steps, rate=recipe.head_rate,
        seed=recipe.seed + 3, folder=school.folder, progress=school.progress,
    )  # fmt: skip


def some_incomplete(
    batch: dict[str, Tensor], empty: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """composed, picture, words, raw target (batch, dim): some queries lose picture or words, as users' do.

    Words alone become a caption of the target; a picture alone has itself as target."""
    composed, picture, words, wanted = (batch[key].clone() for key in ("composed", "picture", "words", "target_raw"))
    kind = torch.from_numpy(rng.random(len(composed))).to(composed.device)
    words_only, picture_only = kind < INCOMPLETE_SHARE, kind > 1 - INCOMPLETE_SHARE
    words[words_only] = batch["target_caption"][words_only]
    composed[words_only] = words[words_only]
    picture[words_only] = empty
    composed[picture_only] = picture[picture_only]
    words[picture_only] = empty
    wanted[picture_only] = batch["anchor_raw"][picture_only]
    return composed, picture, words, wanted


@torch.no_grad()
def triplet_features(school: School) -> dict[str, Tensor]:
    """Frozen features of the triplets, each float32 (triplets, dim); computed once, then read from disk."""
    path = school.folder / "triplet_features.safetensors"
    if path.exists():
        return load_file(path)
    triplets = training_triplets(school.recipe.triplets, school.recipe.seed)
    rng = np.random.default_rng([school.recipe.seed, 4])
    bar = school.progress.add_task("triplets", total=len(triplets), note="")
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(triplets), CHUNK):
        some = triplets[start : start + CHUNK]
        anchors = np.stack([triplet.anchor.pixels() for triplet in some])
        targets = np.stack([triplet.target.pixels() for triplet in some])
        sentence = school.student(school.pixels(anchors)).float()
        composed = [composed_prompt(triplet.text, picture=True) for triplet in some]
        words = [composed_prompt(triplet.text, picture=False) for triplet in some]
        told = [plain_text(triplet.target.spec, rng) for triplet in some]
        parts.append(
            {
                "composed": F.normalize(school.text(composed, sentence), dim=1),
                "picture": F.normalize(school.text([ALONE] * len(some), sentence), dim=1),
                "words": F.normalize(school.text(words), dim=1),
                "target_caption": F.normalize(school.text(told), dim=1),
                "anchor_raw": school.teacher.image(school.pixels(anchors))[0].float(),
                "target_raw": school.teacher.image(school.pixels(targets))[0].float(),
            }
        )
        school.progress.advance(bar, len(some))
    features = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
    save_atomically(features, path)
    return features
