"""One training in one folder: the recipe, the pictures, the models, and how each is run on a batch.

Owns what all lessons share and their order; the lessons themselves lie in lesson_*.py, the loop in loop.py.
Weights, logs, recipe and pictures lie in the run folder and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pocketlens_samples.language import vocabulary
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor

from pocketlens_training.loop import autocast, save_atomically
from pocketlens_training.pictures import PictureStore, specifications
from pocketlens_training.recipe import Recipe
from pocketlens_training.student import Student, TokenLearner
from pocketlens_training.text import UNK, Rows, build_tokenizer, load_tokenizer, rows
from pocketlens_training.towers import Teacher

CHUNK = 500  # pictures or texts encoded at once where no gradient is needed


class School:
    """The state the lessons share. Making one writes the recipe and the tokenizer; it trains nothing.

    Raises ValueError when `folder` was begun with another recipe."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, progress: Progress) -> None:
        self.recipe, self.folder, self.device, self.progress = recipe, folder, device, progress
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / "recipe.json"
        if written.exists() and Recipe.read(written) != recipe:
            raise ValueError(
                f"{folder} was begun with another recipe ({written}); give the "
                "options it was begun with (--tiny, --seed), choose another folder, or delete it"
            )
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

    def draw_pictures(self) -> None:
        """Draw what is missing on disk."""
        for store in (self.photos, self.sketches):
            bar = self.progress.add_task(store.kind, total=len(store), note="")
            store.draw(lambda count, bar=bar: self.progress.advance(bar, count))

    def done(self, lesson: str) -> bool:
        """Whether the lesson's final weights are there."""
        return (self.folder / f"{lesson}.safetensors").exists()

    def rows_of(self, texts: list[str], tokens: int = 0) -> Rows:
        """Rows on the device. Raises ValueError for a word outside the vocabulary: a training text must be known."""
        built = rows(self.tokenizer, texts, context=self.recipe.context, tokens=tokens)
        unknown = (built.token_ids == UNK).any(1)
        if unknown.any():
            raise ValueError(f"a training text holds a word outside the vocabulary: {texts[int(unknown.argmax())]!r}")
        return built.to(self.device)

    def text(self, texts: list[str], sentence: Tensor | None = None) -> Tensor:
        """Raw text features (batch, dim) of `texts`; `sentence` (batch, k, width) fills their "{sentence}"."""
        built = self.rows_of(texts, 0 if sentence is None else sentence.shape[1])
        if sentence is None:
            sentence = torch.zeros(len(texts), 1, self.recipe.word_width, device=self.device)
        with autocast(self.device):
            out = self.teacher.text(built.token_ids, sentence, built.sentence_start, built.sentence_length, built.end)
        return out.float()

    def pixels(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels on the device, uint8 (batch, side, side, 3)."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)

    def image(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Raw image features (batch, dim) of the large tower."""
        with autocast(self.device):
            return self.teacher.image(self.pixels(pixels))[0].float()

    def sentences(self, pixels: NDArray[np.uint8], student: Student) -> Tensor:
        """The sentences (batch, k, width) of `student`."""
        with autocast(self.device):
            return student(self.pixels(pixels)).float()

    def pairs(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Numbers of `count` photos, neighbours side by side."""
        first = rng.choice(len(self.photos) // 2, count // 2, replace=False) * 2
        return np.stack([first, first + 1], 1).reshape(-1)

    @torch.no_grad()
    def teacher_vectors(self) -> Tensor:
        """Raw image features float32 (pictures, dim) of all photos; computed once, then read from disk."""
        path = self.folder / "photo_vectors.safetensors"
        if path.exists():
            return load_file(path)["image_raw"]
        bar = self.progress.add_task("vectors", total=len(self.photos), note="")
        self.teacher.eval()
        parts = []
        for start in range(0, len(self.photos), CHUNK):
            numbers = np.arange(start, min(start + CHUNK, len(self.photos)))
            # float32: these are targets, and bfloat16 noise in a target cannot be unlearned
            parts.append(self.teacher.image(self.pixels(self.photos.take(numbers)))[0].cpu())
            self.progress.advance(bar, len(numbers))
        save_atomically({"image_raw": torch.cat(parts)}, path)
        return torch.cat(parts)
