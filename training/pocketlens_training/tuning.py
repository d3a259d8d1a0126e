"""The heads of the tuned mode, on triplets: what a query becomes and what a gallery picture becomes, trained together,
beside the control that has the same query head and leaves the gallery as it is. Their difference is the target's, the
rest is the triplets'."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pocketlens_wire.errors import BadPicture
from pocketlens_wire.spaces import digest_arrays
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketlens_training.compositions import STATES, TransAgg, make_composition
from pocketlens_training.features import list_unreadable
from pocketlens_training.loop import Schedule, save_atomically, train, write_json
from pocketlens_training.losses import contrast, hit_rate, twins
from pocketlens_training.reading import Reader
from pocketlens_training.recipe import differing
from pocketlens_training.sets.feed import digest, look, pixels_of
from pocketlens_training.sets.lines import BadLines, Triplet, digest_of, read_triplets
from pocketlens_training.sets.pixels import square
from pocketlens_training.sets.sources import Files
from pocketlens_training.students.student import Student, student_picture
from pocketlens_training.targets import make_target
from pocketlens_training.teachers.teacher import Teacher

HEADS, CONTROL, CARD, BEGUN = "heads", "heads-control", "heads.json", "heads-recipe.json"
UNREADABLE = "triplets-unreadable.csv"
CHUNK = 128
FEWEST = 16  # triplets


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """Every number of the heads' training."""

    seed: int = 20261121
    composition: str = "gated"
    """What a query becomes: gated, transagg, or one that needs no training (plain, pdv:1.2, slerp:0.8, sum:0.5)."""
    target: str = "union-gated"
    """What a gallery picture becomes: original, sum, union (as published), union-light, union-gated."""
    batch: int = 256
    steps: int = 800
    rate: float = 1e-3
    incomplete: float = 0.1
    """Share of queries of words alone (where the triplet has a caption), and as many of a picture alone."""


class Heads(nn.Module):
    """A query head and a target head."""

    def __init__(self, query: nn.Module, target: nn.Module) -> None:
        super().__init__()
        self.query, self.target = query, target

    def forward(self, batch: dict[str, Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and targets (batch, dim) as they are trained on each other."""
        as_trained = getattr(self.target, "as_trained", self.target)
        with torch.autocast(wanted.device.type, enabled=False):  # they are small: float32 costs nothing
            return run_composition(self.query, batch), as_trained(wanted)


def make_heads(recipe: HeadRecipe, empty_raw: Tensor) -> Heads:
    """Fresh heads; empty_raw (dim,): the raw text feature of the empty prompt. Raises ValueError for a bad name."""
    return Heads(make_composition(recipe.composition, empty_raw.numel()), make_target(recipe.target, empty_raw))


def tune(
    student: Student, teacher: Teacher, triplets: Path | None, folder: Path, recipe: HeadRecipe, *, reader: Reader,
    where: Accelerator, progress: Progress, workers: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Make HEADS and CONTROL in `folder`, and CARD, which it returns. triplets: None where nothing is to be learned.

    Raises BadLines; ValueError for a bad name, missing triplets, or a folder that holds heads of another recipe."""
    made = {
        "format": 1,
        "recipe": asdict(recipe),
        "triplets": None if triplets is None else triplets.name,
        "triplets_sha256": None if triplets is None else digest_of(triplets),
        "pictures": None if triplets is None else content_of_triplets(triplets),
    }
    _claim(folder, made)
    control = replace(recipe, target="original")
    if triplets is None:
        with torch.no_grad():
            empty_raw = reader.raw([""])[0].cpu()
        for lesson, one in ((HEADS, recipe), (CONTROL, control)):
            heads = make_heads(one, empty_raw)
            if has_to_learn(heads):
                raise ValueError(
                    f"{one.composition} with target {one.target} is learned from triplets: name a file, --triplets"
                )
            write_json(folder / BEGUN, made)
            save_atomically(heads.state_dict(), folder / f"{lesson}.safetensors")
    else:
        features = TripletFeatures.of(
            student, teacher, triplets, made["pictures"], folder, recipe, reader, where, progress, workers
        )
        for lesson, one in ((HEADS, recipe), (CONTROL, control)):
            torch.manual_seed(recipe.seed)
            heads = make_heads(one, features.empty_raw)
            write_json(folder / BEGUN, made)  # not before all that may be refused
            learn(heads, features, teacher, one, lesson, folder, where, progress)
    write_json(folder / CARD, made)
    return made


def _claim(folder: Path, made: dict[str, Any]) -> None:
    """Raises ValueError when `folder` holds heads of another recipe, finished or not."""
    begun = folder / BEGUN
    if begun.is_file() and json.loads(begun.read_text()) != made:
        was = json.loads(begun.read_text())["recipe"]
        raise ValueError(
            f"{folder} holds heads of another recipe, triplets or pictures "
            f"({differing(was, made['recipe']) or 'what the files hold'}); "
            f"remove {HEADS}* to make them anew"
        )


def has_to_learn(heads: Heads) -> bool:
    return any(parameter.requires_grad for parameter in heads.parameters())


def learn(
    heads: Heads, features: TripletFeatures, teacher: Teacher, recipe: HeadRecipe, lesson: str, folder: Path,
    where: Accelerator, progress: Progress,
) -> None:  # fmt: skip
    """Train `heads` on frozen features; heads without anything to learn are saved as they are."""
    if not has_to_learn(heads):
        save_atomically(heads.state_dict(), folder / f"{lesson}.safetensors")
        return

    def loss_of(module: Any, _micro: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        batch, wanted = features.draw(recipe, rng)
        query, image = module(batch, wanted)
        several = batch["query"][:, None] == batch["query"]  # targets of one query
        same = twins(F.normalize(wanted, dim=1)) | several.fill_diagonal_(False)
        return contrast(query, image, teacher.scale, same=same), {"matched": hit_rate(query, image)}

    train(
        lesson, heads, loss_of, Schedule(steps=recipe.steps, rate=recipe.rate, seed=recipe.seed + 3), folder=folder,
        where=where, progress=progress,
    )  # fmt: skip
    heads.requires_grad_(False).eval()


def run_composition(query: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The query (batch, dim), whichever inputs its composition takes."""
    if isinstance(query, TransAgg):
        return query(*(batch[name] for name in STATES))
    return query(batch["composed"], batch["picture"], batch["words"])


def needs_states(composition: str) -> bool:
    return composition == "transagg"


@torch.no_grad()
def query_features(
    reader: Reader, sentence: Tensor | None, words: list[str], *, states: bool = False
) -> dict[str, Tensor]:
    """What compositions take, of queries with `sentence` (batch, k, width) and words: unit features and, if asked for,
    the projected states of the rows of words alone and of the picture alone."""
    if sentence is None:
        alone = reader.unit([reader.words(each) for each in words])
        return {"composed": alone, "picture": reader.unit([""]).expand_as(alone), "words": alone}
    said = [reader.words(each) for each in words]
    pictured = [reader.alone] * len(words)
    found = {
        "composed": reader.unit([reader.composed(each) for each in words], sentence),
        "picture": reader.unit(pictured, sentence),
        "words": reader.unit(said),
    }
    if states:
        for name, texts, tokens in (("words", said, None), ("picture", pictured, sentence)):
            found |= {f"{name}_{key}": value for key, value in reader.states(texts, tokens).items()}
    return found


class TripletFeatures:
    """Frozen features of triplets, on the CPU; each (triplets, ...)."""

    def __init__(self, tensors: dict[str, Tensor], where: Accelerator) -> None:
        self.tensors, self.where = tensors, where
        self.empty_raw = tensors.pop("empty_raw")
        self.empty = {"composed": F.normalize(self.empty_raw, dim=0)}

    def __len__(self) -> int:
        return len(self.tensors["composed"])

    @classmethod
    def of(
        cls, student: Student, teacher: Teacher, triplets: Path, content: str, folder: Path, recipe: HeadRecipe,
        reader: Reader, where: Accelerator, progress: Progress, workers: int,
    ) -> TripletFeatures:  # fmt: skip
        """Computed once, then read from disk. content: what names the pictures by what they hold."""
        states = needs_states(recipe.composition)
        weights = digest_arrays({name: tensor.cpu().numpy() for name, tensor in student.state_dict().items()})
        made_of = f"2 {digest_of(triplets)} {content} {weights} {teacher.id} {teacher.text_id}"  # 2: this file's layout
        key = hashlib.sha256(made_of.encode()).hexdigest()[:12]
        path = folder / f"triplets-{key}{'-states' if states else ''}.safetensors"
        with where.main_process_first():
            if not path.exists():
                tensors, bad = _encode(student, teacher, triplets, reader, where, progress, workers, states=states)
                list_unreadable(folder / UNREADABLE, bad)
                save_atomically(tensors, path)
        return cls(load_file(path), where)

    def draw(self, recipe: HeadRecipe, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """A batch of queries and the raw image features (batch, dim) they want. Some queries lack a part: words alone
        want their target said in full, a picture alone wants itself."""
        numbers = torch.from_numpy(rng.choice(len(self), min(recipe.batch, len(self)), replace=False))
        device = self.where.device
        batch = {key: value[numbers].to(device) for key, value in self.tensors.items()}
        batch = {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}
        wanted = batch.pop("target_raw").clone()
        anchor, caption = batch.pop("anchor_raw"), batch.pop("caption")
        kind = torch.from_numpy(rng.random(len(numbers))).to(device)
        if "words_states" in batch:
            return batch, wanted  # a part that lacks would need states of its own
        told = caption.abs().sum(1) > 0
        words_only, picture_only = (kind < recipe.incomplete) & told, kind > 1 - recipe.incomplete
        empty = self.empty["composed"].to(device)
        batch["words"][words_only] = caption[words_only]
        batch["composed"][words_only] = caption[words_only]
        batch["picture"][words_only] = empty
        batch["composed"][picture_only] = batch["picture"][picture_only]
        batch["words"][picture_only] = empty
        wanted[picture_only] = anchor[picture_only]
        return batch, wanted


def _pictures(file: Path, listed: list[Triplet]) -> Files:
    """Each picture of the triplets once."""
    names = dict.fromkeys(name for one in listed for name in (one.reference, *one.targets))
    return Files(file.parent, list(names))


def content_of_triplets(triplets: Path) -> str:
    """What names the pictures of a file of triplets by what they hold, unreadable ones too: 16 hex digits."""
    source, held = _pictures(triplets, read_triplets(triplets)), hashlib.sha256()
    for number in range(len(source)):
        try:
            held.update(digest(source.read(number)))
        except BadPicture:
            held.update(b"unreadable")
    return held.hexdigest()[:16]


@torch.no_grad()
def _encode(
    student: Student, teacher: Teacher, file: Path, reader: Reader, where: Accelerator, progress: Progress,
    workers: int, *, states: bool,
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:  # fmt: skip
    listed = read_triplets(file)
    source, spec = _pictures(file, listed), student_picture(student, teacher)
    names = source.names
    bar = progress.add_task("triplets", total=len(names), note="")
    raw: dict[str, Tensor] = {}
    sentences: dict[str, Tensor] = {}
    references = {one.reference for one in listed}
    bad: list[tuple[str, str]] = []
    student.to(where.device).eval()
    for looked in look(source, teacher.picture, workers=workers):
        good = [one for one in looked if one.pixels is not None]
        bad += [(names[one.number], str(one.problem)) for one in looked if one.pixels is None]
        if good:
            vectors = teacher.image(pixels_of(good).to(where.device))[0].float().cpu()
            raw |= {names[one.number]: vector for one, vector in zip(good, vectors, strict=True)}
        seen = [one for one in good if names[one.number] in references]
        if seen and spec != teacher.picture:
            seen = [one._replace(pixels=square(source.read(one.number), spec)) for one in seen]
        if seen:
            tokens = student(pixels_of(seen).to(where.device)).float().cpu()
            sentences |= {names[one.number]: each for one, each in zip(seen, tokens, strict=True)}
        progress.advance(bar, len(looked))
    numbered = [
        (number, one, target)
        for number, one in enumerate(listed)
        for target in one.targets
        if one.reference in sentences and target in raw
    ]
    rows = [(one, target) for _, one, target in numbered]
    if len(rows) < FEWEST:
        first = f"; the first that cannot: {bad[0][1]}" if bad else ""
        raise BadLines(f"{file}: {len(rows)} triplets whose pictures can be read; at least {FEWEST} are needed{first}")
    if lost := sum(len(one.targets) for one in listed) - len(rows):
        said = f"{file}: {lost:,} triplets are left out: {UNREADABLE} lists their unreadable pictures"
        progress.console.print(said, markup=False)
    parts = [
        _features_of(rows[i : i + CHUNK], sentences, reader, where, states=states) for i in range(0, len(rows), CHUNK)
    ]
    tensors = {key: _joined([part[key] for part in parts]) for key in parts[0]}
    tensors["query"] = torch.tensor([number for number, _, _ in numbered])
    tensors["anchor_raw"] = torch.stack([raw[one.reference] for one, _ in rows])
    tensors["target_raw"] = torch.stack([raw[target] for _, target in rows])
    tensors["empty_raw"] = reader.raw([""])[0].cpu()
    return tensors, bad


def _features_of(
    rows: list[tuple[Triplet, str]], sentences: dict[str, Tensor], reader: Reader, where: Accelerator, *, states: bool
) -> dict[str, Tensor]:
    sentence = torch.stack([sentences[one.reference] for one, _ in rows]).to(where.device)
    found = query_features(reader, sentence, [one.text for one, _ in rows], states=states)
    told = [one.caption for one, _ in rows]
    caption = reader.unit([each or "" for each in told])
    caption[torch.tensor([each is None for each in told], device=caption.device)] = 0
    found["caption"] = caption
    return {key: value.half().cpu() if key.endswith("states") else value.cpu() for key, value in found.items()}


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor of parts whose second axis may differ in length: states and masks are padded."""
    if parts[0].ndim < 2 or len({part.shape[1] for part in parts}) == 1:
        return torch.cat(parts)
    longest = max(part.shape[1] for part in parts)
    padded = [F.pad(part, (*[0, 0] * (part.ndim - 2), 0, longest - part.shape[1])) for part in parts]
    return torch.cat(padded)
