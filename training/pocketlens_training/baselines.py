"""Methods to compare with, on equal terms: the same teacher, pictures, steps, batch and prompt.

All of them need the *large* image tower for the query, so none runs on a device: that is what asymmetry is compared
with. symmetric: our token learner upon the large tower's map. The three others turn its one raw feature into one word:
Pic2Word (Saito et al. 2023), SEARLE's phi (Baldrati et al. 2023), LinCIR (Gu et al. 2024). What differs from the
authors' code is said at each."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketlens_training.distil import Plan, teach
from pocketlens_training.loop import Schedule, save_atomically, train
from pocketlens_training.losses import angle_loss
from pocketlens_training.material import Material
from pocketlens_training.places import teacher_places
from pocketlens_training.reading import SLOT
from pocketlens_training.recipe import DistilRecipe
from pocketlens_training.students.student import make_learner
from pocketlens_training.students.token_learner import Reading, TokenLearner

PHIS = ("pic2word", "searle", "lincir")
INVERTED = 5000  # pictures whose tokens SEARLE optimises one by one
INVERTED_AT_ONCE = 256
INVERSION_STEPS = 150  # of its 350; the cosine has flattened by then here
INVERSION_RATE = 2e-2
SEARLE_TEMPERATURE = 0.25
PHI_RATE = 1e-3  # the authors' 1e-4 is for ten and more times as many steps
# Words that LinCIR keeps: it replaces nouns, adjectives and determiners, which a tagger finds; ours are all others.
KEPT_WORDS = frozenset(
    ("of", "with", "without", "in", "on", "and", "at", "against", "by", "to", "them", "just", "is", "are", "it", "its")
)


class Symmetric(nn.Module):
    """The token learner upon the large tower's map (batch, places, width)."""

    def __init__(self, learner: TokenLearner) -> None:
        super().__init__()
        self.learner = learner

    def read(self, places: Tensor) -> Reading:
        return self.learner.read(places)

    def forward(self, places: Tensor) -> Tensor:
        return self.learner(places)


class Phi(nn.Module):
    """The raw feature (batch, dim) of a large tower -> one word (batch, 1, word_width)."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def read(self, raw: Tensor) -> Reading:
        return Reading(self.layers(raw)[:, None], torch.empty(0), torch.empty(0))

    def forward(self, raw: Tensor) -> Tensor:
        return self.layers(raw)[:, None]


def make_phi(name: str, dim: int, word_width: int) -> Phi:
    """Pic2Word's: dim -> 512 -> 512 -> word, ReLU, dropout 0.1. SEARLE's and LinCIR's: dim -> 4 dim -> 4 dim -> word,
    GELU, dropout 0.5 (both from the authors' code)."""
    if name == "pic2word":
        layers = [
            nn.Linear(dim, 512), nn.Dropout(0.1), nn.ReLU(), nn.Linear(512, 512), nn.Dropout(0.1), nn.ReLU(),
            nn.Linear(512, word_width),
        ]  # fmt: skip
    else:
        layers = [
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.5),
            nn.Linear(4 * dim, 4 * dim), nn.GELU(), nn.Dropout(0.5), nn.Linear(4 * dim, word_width),
        ]  # fmt: skip
    return Phi(nn.Sequential(*layers))


def learn_symmetric(
    material: Material, recipe: DistilRecipe, folder: Path, *, where: Accelerator, progress: Progress
) -> Symmetric:
    """Same token learner, k, losses and batch as the student; photos without variation, no sketches: its maps are
    kept."""
    places = teacher_places(
        material.teacher, material.photos, material.numbers, material.content, material.cache, where=where,
        progress=progress,
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    module = Symmetric(
        make_learner(recipe.student, places.shape[2], material.teacher, tokens=recipe.tokens, anchors=recipe.anchors)
    )
    recipe = _without_sketches(recipe)
    plan = Plan(material, recipe, where.process_index)

    def seen_at(micro: int) -> Tensor:
        return torch.from_numpy(np.asarray(places[plan.rows(micro)[0]], np.float32)).to(where.device)

    teach(module, seen_at, plan, material, recipe, folder, where=where, progress=progress, lesson="symmetric")
    return module


def learn_phi(
    name: str, material: Material, recipe: DistilRecipe, folder: Path, *, where: Accelerator, progress: Progress
) -> Phi:
    """One of PHIS. Raises ValueError for another name, and for LinCIR without captions."""
    if name not in PHIS:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(PHIS)}")
    torch.manual_seed(recipe.seed)
    phi = make_phi(name, material.teacher.dim, material.teacher.word_width)
    learner = {"pic2word": _learn_pic2word, "searle": _learn_searle, "lincir": _learn_lincir}[name]
    learner(phi, material, _without_sketches(recipe), folder, where, progress)
    phi.requires_grad_(False).eval()
    return phi


def _without_sketches(recipe: DistilRecipe) -> DistilRecipe:
    return replace(recipe, sketches="none", variation="none", lar="none")


def _learn_pic2word(
    phi: Phi, material: Material, recipe: DistilRecipe, folder: Path, where: Accelerator, progress: Progress
) -> None:
    """Symmetric InfoNCE of text(a photo of s) and the image's vector in the batch, with the teacher's own scale."""
    recipe = replace(recipe, gcd="contrast", bank=0, composition_weight=0.0, rate=recipe.rate or PHI_RATE)
    plan = Plan(material, recipe, where.process_index)

    def seen_at(micro: int) -> Tensor:
        return plan.wanted(micro).to(where.device)

    teach(phi, seen_at, plan, material, recipe, folder, where=where, progress=progress, lesson="pic2word")


def _learn_searle(
    phi: Phi, material: Material, recipe: DistilRecipe, folder: Path, where: Accelerator, progress: Progress
) -> None:
    """First a token for each of INVERTED pictures by optimisation (OTI), then phi by contrast with those tokens, both
    sides' other tokens as negatives. Its regularisation by GPT's phrases, of which we have none, is by the picture's
    vector instead: 0.75 (1 - cos(text(a photo of phi), v)); that also gives phi's words a length. One template, "a
    photo of", where the authors draw from many; no running mean of the optimised tokens."""
    rng = np.random.default_rng([recipe.seed, 21])
    rows = rng.permutation(material.kept)[:INVERTED]
    tokens = _inverted(material, rows, recipe.seed, folder, where, progress)
    raw = material.raw[torch.from_numpy(rows)]

    def loss_of(module: Any, _micro: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        some = torch.from_numpy(rng.choice(len(rows), min(recipe.batch, len(rows)), replace=False))
        word = module(raw[some].to(where.device)).float()
        made, wanted = F.normalize(word[:, 0], dim=1), F.normalize(tokens[some].to(where.device), dim=1)
        read = material.reader.unit([material.reader.alone] * len(some), word)
        image = F.normalize(raw[some], dim=1).to(where.device)
        loss = pooled_contrast(made, wanted, SEARLE_TEMPERATURE) + 0.75 * angle_loss(read, image)
        return loss, {"cosine": (made * wanted).sum(1).mean().detach()}

    train(
        "searle", phi, loss_of, _schedule(recipe),
        folder=folder, where=where, progress=progress,
    )  # fmt: skip


def _schedule(recipe: DistilRecipe) -> Schedule:
    return Schedule(
        steps=recipe.steps, rate=recipe.rate or PHI_RATE, seed=recipe.seed, decay=0.01, average=recipe.average
    )


def pooled_contrast(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways in which each row's negatives are the other rows of both sides (2B - 1 terms a denominator)."""
    labels = torch.arange(len(left), device=left.device)
    own = torch.eye(len(left), dtype=torch.bool, device=left.device)
    across = left @ right.T / temperature
    within = [(side @ side.T / temperature).masked_fill(own, -torch.inf) for side in (left, right)]
    first = F.cross_entropy(torch.cat([across, within[0]], 1), labels)
    return (first + F.cross_entropy(torch.cat([across.T, within[1]], 1), labels)) / 2


def _inverted(
    material: Material,
    rows: np.ndarray,
    seed: int,
    folder: Path,
    where: Accelerator,
    progress: Progress,
) -> Tensor:
    """Tokens float32 (rows, word_width): of each picture the word whose text is nearest to it (AdamW, 2e-2)."""
    path = folder / "searle.tokens.safetensors"
    if path.exists():
        return load_file(path)["tokens"]
    bar = progress.add_task("inversion", total=len(rows), note="")
    reader, parts = material.reader, []
    for start in range(0, len(rows), INVERTED_AT_ONCE):
        wanted = material.unit[torch.from_numpy(rows[start : start + INVERTED_AT_ONCE])].to(where.device)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        token = (torch.randn(len(wanted), 1, material.teacher.word_width, generator=generator) * 0.02).to(where.device)
        token.requires_grad_(True)
        optimiser = torch.optim.AdamW([token], lr=INVERSION_RATE, weight_decay=0.01)
        for _ in range(INVERSION_STEPS):
            loss = angle_loss(reader.unit([reader.alone] * len(wanted), token), wanted)
            optimiser.zero_grad()
            (loss * len(wanted)).backward()
            optimiser.step()
        parts.append(token.detach()[:, 0].cpu())
        progress.advance(bar, len(wanted))
    save_atomically({"tokens": torch.cat(parts)}, path)
    return torch.cat(parts)


def _learn_lincir(
    phi: Phi, material: Material, recipe: DistilRecipe, folder: Path, where: Accelerator, progress: Progress
) -> None:
    """Language only: phi of a caption's own raw text feature plus noise U(0, 1) N(0, I) stands in the caption where its
    content words were, and the raw text features before and after are compared (MSE). Ours: content words are those
    that are no function words, instead of a tagger's choice; only the longest run of them is replaced."""
    if material.told is None:
        raise ValueError("lincir learns from captions: name a file of them (--told)")
    captions = [material.reader.alone.replace(SLOT, one.caption) for one in material.told.told]
    masked = [without_content(one.caption) for one in material.told.told]
    reader = material.reader

    def loss_of(module: Any, _micro: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        some = rng.choice(len(captions), min(recipe.batch, len(captions)), replace=False)
        with torch.no_grad():
            wanted = reader.raw([captions[i] for i in some])
            noise = torch.from_numpy(rng.random((len(some), 1)) * rng.standard_normal(wanted.shape)).float()
        word = module(wanted + noise.to(where.device)).float()
        told = reader.raw([reader.alone.replace(SLOT, masked[i]) for i in some], word)
        return F.mse_loss(told, wanted), {}

    train(
        "lincir", phi, loss_of, _schedule(recipe),
        folder=folder, where=where, progress=progress,
    )  # fmt: skip


def without_content(caption: str) -> str:
    """The caption with its longest run of content words replaced by "{sentence}"."""
    words = re.findall(r"[\w'-]+|[^\w\s]", caption)
    runs: list[tuple[int, int]] = []
    start = None
    for i, word in enumerate([*words, ","]):
        content = word[0].isalnum() and word.lower() not in KEPT_WORDS
        if content and start is None:
            start = i
        elif not content and start is not None:
            runs.append((start, i))
            start = None
    if not runs:
        return SLOT
    first, last = max(runs, key=lambda run: run[1] - run[0])
    return " ".join([*words[:first], SLOT, *words[last:]])
