"""The four lessons of the sample training, each a pure function of the recipe and the lessons before.

teacher (pictures and captions) -> edits (text tower alone) -> student (unlabelled pictures) -> heads (triplets).
Owns the order, the losses and what each lesson may see; the loop itself lies in loop.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketlens_samples.catalogue import Edit, Spec, apply, is_held_out, random_edits, random_spec
from pocketlens_samples.language import caption, edit_phrase, vocabulary
from pocketlens_samples.queries import training_triplets
from pocketlens_training.heads import QueryHead, TargetHead
from pocketlens_training.loop import autocast, save_atomically, train
from pocketlens_training.pictures import PictureStore, shifted, specifications
from pocketlens_training.recipe import Recipe
from pocketlens_training.student import Student, TokenLearner
from pocketlens_training.text import UNK, Rows, build_tokenizer, composed_prompt, load_tokenizer, rows
from pocketlens_training.towers import Teacher

PREFIXES = ("a photo of ", "a photo of ", "a picture of ", "")


def contrast(left: Tensor, right: Tensor, scale: Tensor, bank: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of unit rows (batch, dim); `bank` (n, dim) are further negatives for the left rows."""
    logits = scale * left @ right.T
    labels = torch.arange(len(left), device=left.device)
    wider = logits if bank is None else torch.cat([logits, scale * left @ bank.T], 1)
    return (F.cross_entropy(wider, labels) + F.cross_entropy(logits.T, labels)) / 2


class School:
    """One training in one folder: weights, logs, recipe and pictures lie there and nowhere else."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, progress: Progress) -> None:
        self.recipe, self.folder, self.device, self.progress = recipe, folder, device, progress
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / "recipe.json"
        if written.exists() and Recipe.read(written) != recipe:
            raise ValueError(f"{folder} was begun with another recipe ({written}); choose another folder or delete it")
        recipe.write(written)
        if not (folder / "tokenizer.json").exists():
            build_tokenizer(vocabulary()).save(str(folder / "tokenizer.json"))
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")
        specs = specifications(recipe.pictures, recipe.seed)
        self.photos = PictureStore(folder / "pictures", "photos", specs, recipe.seed)
        self.sketches = PictureStore(folder / "pictures", "sketches", specs[: recipe.sketches], recipe.seed)
        torch.manual_seed(recipe.seed)
        self.teacher = Teacher(recipe, self.tokenizer.get_vocab_size()).to(device)
        self.student = Student(recipe.student_widths, recipe.tokens, recipe.word_width).to(device)
        self.symmetric = TokenLearner(recipe.teacher_widths[-1], recipe.tokens, recipe.word_width).to(device)

    def learn(self) -> None:
        """All lessons in order; each is skipped when its weights are there."""
        self.draw_pictures()
        self.learn_teacher()
        self.learn_edits()
        self.photo_vectors = self.teacher_vectors()
        self.learn_student()
        self.learn_heads()
        self.learn_symmetric()

    def draw_pictures(self) -> None:
        for store in (self.photos, self.sketches):
            bar = self.progress.add_task(store.kind, total=len(store), note="")
            store.draw(lambda count, bar=bar: self.progress.advance(bar, count))

    # What every lesson shares

    def rows_of(self, texts: list[str], tokens: int = 0) -> Rows:
        built = rows(self.tokenizer, texts, context=self.recipe.context, tokens=tokens)
        if (built.token_ids == UNK).any():
            unknown = next(text for text, ids in zip(texts, built.token_ids, strict=True) if (ids == UNK).any())
            raise ValueError(f"a training text holds a word outside the vocabulary: {unknown!r}")
        return built.to(self.device)

    def text(self, texts: list[str], sentence: Tensor | None = None) -> Tensor:
        """Raw text features (batch, dim) of `texts`; `sentence` (batch, k, width) fills their "{sentence}"."""
        built = self.rows_of(texts, 0 if sentence is None else sentence.shape[1])
        if sentence is None:
            sentence = torch.zeros(len(texts), 1, self.recipe.word_width, device=self.device)
        with autocast(self.device):
            out = self.teacher.text(
                built.token_ids, sentence, built.sentence_start, built.sentence_length, built.end
            )
        return out.float()

    def pixels(self, pixels: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)

    def image(self, pixels: NDArray[np.uint8]) -> Tensor:
        with autocast(self.device):
            return self.teacher.image(self.pixels(pixels)).float()

    def sentences(self, pixels: NDArray[np.uint8]) -> Tensor:
        with autocast(self.device):
            return self.student(self.pixels(pixels)).float()

    def pairs(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Numbers of `count` photos, neighbours side by side."""
        first = rng.choice(len(self.photos) // 2, count // 2, replace=False) * 2
        return np.stack([first, first + 1], 1).reshape(-1)

    # Lesson 1: pictures and captions (CLIP: Radford et al. 2021, symmetric InfoNCE)

    def learn_teacher(self) -> None:
        def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            numbers = self.pairs(rng, self.recipe.batch)
            image = F.normalize(self.image(shifted(self.photos.take(numbers), rng)), dim=1)
            texts = [self.plain_text(self.photos.specs[n], rng) for n in numbers]
            text = F.normalize(self.text(texts), dim=1)
            scale = self.teacher.scale()
            loss = contrast(image, text, scale)
            hit = (image @ text.T).argmax(1).eq(torch.arange(len(image), device=self.device)).float().mean()
            return loss, {"matched": hit.item(), "scale": scale.item()}

        train(
            "teacher", self.teacher, self.teacher.parameters(), loss_of, steps=self.recipe.teacher_steps,
            rate=self.recipe.teacher_rate, seed=self.recipe.seed, folder=self.folder, progress=self.progress,
        )  # fmt: skip

    def plain_text(self, spec: Spec, rng: np.random.Generator) -> str:
        return PREFIXES[rng.integers(len(PREFIXES))] + caption(spec, rng, partial=bool(rng.random() < 0.15))

    # Lesson 2: a later phrase overrides an earlier one (locked image tower: LiT, Zhai et al. 2022)

    def learn_edits(self) -> None:
        done = (self.folder / "edits.safetensors").exists()
        vectors = torch.empty(0) if done else self.teacher_vectors()
        self.teacher.image.requires_grad_(False)

        def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            numbers = self.pairs(rng, self.recipe.batch)
            image = F.normalize(vectors[numbers].to(self.device), dim=1)
            specs = [self.photos.specs[n] for n in numbers]
            texts = [self.plain_text(s, rng) if rng.random() < 0.4 else self.edited_text(s, rng) for s in specs]
            text = F.normalize(self.text(texts), dim=1)
            hit = (text @ image.T).argmax(1).eq(torch.arange(len(image), device=self.device)).float().mean()
            return contrast(image, text, self.teacher.scale()), {"matched": hit.item()}

        train(
            "edits", self.teacher, self.teacher.parameters(), loss_of, steps=self.recipe.edit_steps,
            rate=self.recipe.edit_rate, seed=self.recipe.seed + 1, folder=self.folder, progress=self.progress,
        )  # fmt: skip
        self.teacher.requires_grad_(False).eval()

    def edited_text(self, wanted: Spec, rng: np.random.Generator) -> str:
        """A caption of another item and the words that turn it into `wanted`; text only, no second picture."""
        while True:
            away = random_edits(wanted, 1 + int(rng.random() < 0.35), rng)
            source = apply(wanted, away)
            if not is_held_out(source):
                break
        back = tuple(Edit(edit.attribute, getattr(wanted, edit.attribute)) for edit in away)
        described = caption(source, rng)
        words = edit_phrase(source, back, rng)
        return composed_prompt(words, picture=True).replace("{sentence}", described)

    @torch.no_grad()
    def teacher_vectors(self) -> Tensor:
        """Raw image features float32 (pictures, dim) of all photos, computed once per image tower."""
        path = self.folder / "photo_vectors.safetensors"
        if path.exists():
            return load_file(path)["image_raw"]
        bar = self.progress.add_task("vectors", total=len(self.photos), note="")
        self.teacher.eval()
        parts = []
        for start in range(0, len(self.photos), 500):
            numbers = np.arange(start, min(start + 500, len(self.photos)))
            # float32: these are targets, and bfloat16 noise in a target cannot be unlearned
            parts.append(self.teacher.image(self.pixels(self.photos.take(numbers))).float().cpu())
            self.progress.advance(bar, len(numbers))
        save_atomically({"image_raw": torch.cat(parts)}, path)
        return torch.cat(parts)

    # Lesson 3: the student. GCD and composition distillation through the frozen text tower

    def learn_student(self) -> None:
        sketched = int(self.recipe.batch * self.recipe.sketch_share)

        def read(rng: np.random.Generator) -> tuple[Tensor, NDArray[np.int64], int]:
            photos = rng.choice(len(self.photos), self.recipe.batch - sketched, replace=False)
            drawn = rng.choice(len(self.sketches), sketched, replace=False)
            pixels = np.concatenate([self.photos.take(photos), self.sketches.take(drawn)])
            return self.sentences(shifted(pixels, rng)), np.concatenate([photos, drawn]), len(photos)

        self.distil("student", self.student, self.student.learner, read, self.recipe.student_steps, self.student_finds)
        self.student.requires_grad_(False).eval()

    def learn_symmetric(self) -> None:
        """The baseline: the same token learner, k, losses and steps upon the *large* tower's feature map."""
        count = min(self.recipe.symmetric_pictures, len(self.photos))
        places = None if (self.folder / "symmetric.safetensors").exists() else self.teacher_places(count)

        def read(rng: np.random.Generator) -> tuple[Tensor, NDArray[np.int64], int]:
            numbers = rng.choice(count, self.recipe.batch, replace=False)
            with autocast(self.device):
                sentence = self.symmetric(places[torch.from_numpy(numbers)].to(self.device).float())
            return sentence.float(), numbers, len(numbers)

        self.distil("symmetric", self.symmetric, self.symmetric, read, self.recipe.symmetric_steps, None)

    def distil(
        self,
        stage: str,
        module: nn.Module,
        learner: TokenLearner,
        read: Callable[[np.random.Generator], tuple[Tensor, NDArray[np.int64], int]],
        steps: int,
        validate: Callable[[], dict[str, float]] | None,
    ) -> None:
        """Train `module` to write sentences that the frozen text tower reads as the large tower's vector.

        `read` gives sentences (batch, k, width), the photo number of each, and how many of them, from the first,
        are photos (the rest are sketches, which have no caption to compose with)."""
        recipe = self.recipe
        targets = F.normalize(self.photo_vectors, dim=1)
        learner.match_norm(float(self.teacher.text.words.weight.norm(dim=1).median()))
        captions = None if (self.folder / f"{stage}.safetensors").exists() else CaptionBank(self)
        scale = self.teacher.scale().detach()

        def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            sentence, numbers, photos = read(rng)
            # Global contrastive distillation: the sentence read by the text tower meets the large tower's vector.
            text = F.normalize(self.text([composed_prompt("", picture=True)] * len(sentence), sentence), dim=1)
            wanted = targets[numbers].to(self.device)
            bank = targets[rng.choice(len(targets), min(recipe.bank, len(targets)), replace=False)].to(self.device)
            loss = contrast(text, wanted, scale, self.without(bank, wanted))
            figures = {"gcd": loss.item(), "cosine": (text * wanted).sum(1).mean().item()}
            if step % 2 == 0 and captions is not None:
                alike = captions.composition(sentence[:photos], wanted[:photos], rng)
                figures["composition"] = alike.item()
                loss = loss + recipe.composition_weight * alike
            return loss, figures

        train(
            stage, module, module.parameters(), loss_of, steps=steps, rate=recipe.student_rate,
            seed=recipe.seed + 2, folder=self.folder, progress=self.progress, validate=validate,
        )  # fmt: skip

    @torch.no_grad()
    def teacher_places(self, count: int) -> Tensor:
        """The large tower's feature maps float16 (count, places, width) of the first photos, held in memory."""
        bar = self.progress.add_task("places", total=count, note="")
        parts = []
        for start in range(0, count, 500):
            numbers = np.arange(start, min(start + 500, count))
            with autocast(self.device):
                parts.append(self.teacher.image.places(self.pixels(self.photos.take(numbers))).half().cpu())
            self.progress.advance(bar, len(numbers))
        return torch.cat(parts)

    @staticmethod
    def without(bank: Tensor, wanted: Tensor) -> Tensor:
        """The bank less the rows that are (almost) a wanted vector itself: those are no negatives."""
        return bank[(bank @ wanted.T).max(1).values < 0.999]

    @torch.no_grad()
    def student_finds(self) -> dict[str, float]:
        """Does a photo's sentence find that photo among 4,000? Past the plateau this is above 0.5."""
        numbers = np.arange(min(512, len(self.photos)))
        among = F.normalize(self.photo_vectors[:4000], dim=1).to(self.device)
        text = F.normalize(
            self.text([composed_prompt("", picture=True)] * len(numbers), self.sentences(self.photos.take(numbers))),
            dim=1,
        )
        rank = (text @ among.T).argmax(1).cpu()
        return {"finds_itself": (rank == torch.from_numpy(numbers)).float().mean().item()}

    # Lesson 4: heads of the tuned mode, UNION beside its control

    def learn_heads(self) -> None:
        features = self.triplet_features()
        empty = self.empty_feature()
        for name, target in (("union", TargetHead(empty)), ("control", None)):
            heads = nn.ModuleDict({"query": QueryHead(self.recipe.dim)})
            if target is not None:
                heads["target"] = target
            heads.to(self.device)

            def loss_of(
                step: int, rng: np.random.Generator, heads: nn.ModuleDict = heads
            ) -> tuple[Tensor, dict[str, float]]:
                numbers = rng.choice(len(features["composed"]), min(self.recipe.batch, len(features["composed"])), False)
                batch = {key: value[numbers].to(self.device) for key, value in features.items()}
                composed, picture, words, wanted = self.some_incomplete(batch, empty, rng)
                query = heads["query"](composed, picture, words)
                image = heads["target"](wanted) if "target" in heads else F.normalize(wanted, dim=1)
                hit = (query @ image.T).argmax(1).eq(torch.arange(len(query), device=self.device)).float().mean()
                return contrast(query, image, self.teacher.scale().detach()), {"matched": hit.item()}

            train(
                f"heads-{name}", heads, heads.parameters(), loss_of, steps=self.recipe.head_steps,
                rate=self.recipe.head_rate, seed=self.recipe.seed + 3, folder=self.folder, progress=self.progress,
            )  # fmt: skip

    @torch.no_grad()
    def empty_feature(self) -> Tensor:
        """e0: unit text feature (1, dim) of the empty prompt."""
        return F.normalize(self.text([""]), dim=1)

    @staticmethod
    def some_incomplete(
        batch: dict[str, Tensor], empty: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A tenth of the queries lose their picture or their words, as users' do; their target follows suit."""
        composed, picture, words, wanted = (
            batch[key].clone() for key in ("composed", "picture", "words", "target_raw")
        )
        kind = torch.from_numpy(rng.random(len(composed))).to(composed.device)
        words_only, picture_only = kind < 0.1, kind > 0.9
        words[words_only] = batch["target_caption"][words_only]
        composed[words_only] = words[words_only]
        picture[words_only] = empty
        composed[picture_only] = picture[picture_only]
        words[picture_only] = empty
        wanted[picture_only] = batch["anchor_raw"][picture_only]
        return composed, picture, words, wanted

    @torch.no_grad()
    def triplet_features(self) -> dict[str, Tensor]:
        """Frozen features of the triplets, each (triplets, dim), computed once."""
        path = self.folder / "triplet_features.safetensors"
        if path.exists():
            return load_file(path)
        triplets = training_triplets(self.recipe.triplets, self.recipe.seed)
        rng = np.random.default_rng([self.recipe.seed, 4])
        bar = self.progress.add_task("triplets", total=len(triplets), note="")
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(triplets), 250):
            some = triplets[start : start + 250]
            anchors = np.stack([t.anchor.pixels() for t in some])
            sentence = self.student(self.pixels(anchors)).float()
            texts = [t.text for t in some]
            told = [self.plain_text(t.target.spec, rng) for t in some]
            parts.append(
                {
                    "composed": F.normalize(self.text([composed_prompt(t, picture=True) for t in texts], sentence), dim=1),
                    "picture": F.normalize(self.text([composed_prompt("", picture=True)] * len(some), sentence), dim=1),
                    "words": F.normalize(self.text([composed_prompt(t, picture=False) for t in texts]), dim=1),
                    "target_caption": F.normalize(self.text(told), dim=1),
                    "anchor_raw": self.teacher.image(self.pixels(anchors)).float(),
                    "target_raw": self.teacher.image(self.pixels(np.stack([t.target.pixels() for t in some]))).float(),
                }
            )
            self.progress.advance(bar, len(some))
        features = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
        save_atomically(features, path)
        return features


class CaptionBank:
    """Captions without pictures, and the words one could add to each: the language side of composition distillation.

    For an unlabelled picture the frozen teacher names the nearest caption; then text(sentence + words) is pulled to
    text(caption + words). No picture is paired with anything, so the student still sees no triplet. [ours]"""

    def __init__(self, school: School) -> None:
        self.school = school
        rng = np.random.default_rng([school.recipe.seed, 5])
        self.specs = [random_spec(rng, held_out=False) for _ in range(school.recipe.caption_bank)]
        self.captions = [caption(spec, rng) for spec in self.specs]
        bar = school.progress.add_task("captions", total=len(self.captions), note="")
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.captions), 500):
                some = ["a photo of " + text for text in self.captions[start : start + 500]]
                parts.append(F.normalize(school.text(some), dim=1))
                school.progress.advance(bar, len(some))
        self.vectors = torch.cat(parts)

    def composition(self, sentence: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Mean 1 - cos between text(sentence + words) and text(nearest caption + words).

        sentence (batch, k, width); image (batch, dim) unit teacher vectors of the same pictures."""
        nearest = (image @ self.vectors.T).argmax(1).tolist()
        words = [edit_phrase(self.specs[n], random_edits(self.specs[n], 1, rng), rng) for n in nearest]
        prompts = [composed_prompt(w, picture=True) for w in words]
        with torch.no_grad():
            told = [p.replace("{sentence}", self.captions[n]) for p, n in zip(prompts, nearest, strict=True)]
            wanted = F.normalize(self.school.text(told), dim=1)
        composed = F.normalize(self.school.text(prompts, sentence), dim=1)
        return (1 - (composed * wanted).sum(1)).mean()
