"""What every teacher is: a frozen image tower, a frozen text tower that takes sentence tokens, and how text reaches it.

The modules are what export traces, so they take pixels and token ids as the bundle's graphs do. The sample world's own
teacher is towers.py; the others adapt a library's model and change nothing it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from pocketlens_wire.manifest import Prompts, TextLayout
from pocketlens_wire.pictures import PictureSpec
from pocketlens_wire.spaces import digest_arrays
from tokenizers import Tokenizer
from torch import Tensor, nn

from pocketlens_training.cost import parameters


class CannotTeach(ValueError):
    """A model, file or name that cannot be a teacher: says which, why, and what to do instead."""


class ImageModule(nn.Module, ABC):
    """`pixels` uint8 (batch, side, side, 3) RGB -> features; normalisation of pixels is inside."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Raw feature (batch, dim), and the map before pooling (batch, places, width)."""


class TextModule(nn.Module, ABC):
    """Token rows with a sentence in them -> raw text feature."""

    words: nn.Embedding  # (vocabulary, width): sentence tokens lie in their space
    packs = False  # whether `forward` reads no padding, so that rows of any lengths go together at no cost

    @abstractmethod
    def forward(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor, end: Tensor
    ) -> Tensor:
        """Raw feature (batch, dim).

        token_ids int64 (batch, length); sentence float (batch, k, width); sentence_start, sentence_length (0: no
        picture) and end (place of the last id that is not padding) int64 (batch,)."""

    @abstractmethod
    def projected(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor, end: Tensor
    ) -> Tensor:
        """States (batch, length, dim) of every position, as the pooled one is projected."""

    def pooled_at(self, end: Tensor) -> Tensor:
        """The position int64 (batch,) whose state `forward` gives; here the end."""
        return end

    def with_sentence(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor
    ) -> Tensor:
        """Word embeddings (batch, length, width), the sentence's tokens in their places."""
        words = self.words(token_ids)
        slot = torch.arange(token_ids.shape[1], device=words.device)[None] - sentence_start[:, None]
        inside = (slot >= 0) & (slot < sentence_length[:, None])
        index = slot.clamp(min=0).minimum(sentence_length[:, None] - 1).clamp(min=0)
        placed = sentence.gather(1, index[:, :, None].expand(-1, -1, sentence.shape[2]))
        return torch.where(inside[:, :, None], placed.to(words.dtype), words)


class MatchingModule(nn.Module, ABC):
    """Does a sentence fit a picture? BLIP has such a head; LAR by matching asks it."""

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """What the head sees of pictures: states (batch, places, width)."""

    @abstractmethod
    def forward(self, rows: Any, sentence: Tensor, seen: Tensor) -> Tensor:
        """Logits (batch, 2); class 1 is a match. rows: reading.Rows."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model and all that is needed to run it elsewhere.

    name: as it was asked for. image, text: in evaluation mode, frozen. scale: factor on cosines before a softmax.
    context: most ids of a row. picture: how a file becomes pixels. matching: its matching head, if it has one."""

    name: str
    image: ImageModule
    text: TextModule
    scale: float
    dim: int
    context: int
    picture: PictureSpec
    layout: TextLayout
    prompts: Prompts
    tokenizer: Tokenizer
    signature: str
    """What the towers compute besides their weights: architecture, pooling, mean and deviation of pixels."""
    matching: MatchingModule | None = None

    @property
    def word_width(self) -> int:
        return self.text.words.embedding_dim

    @cached_property
    def id(self) -> str:
        """What names its image vectors: 16 hex digits over the image tower's weights, its pixels and its signature."""
        weights = digest_arrays({name: tensor.cpu().numpy() for name, tensor in self.image.state_dict().items()})
        return sha256(f"{weights} {asdict(self.picture)} {self.signature}".encode()).hexdigest()[:16]

    @cached_property
    def text_id(self) -> str:
        """What names what it reads: 16 hex digits over the text tower's weights, signature, tokenizer and layout."""
        weights = digest_arrays({name: tensor.cpu().numpy() for name, tensor in self.text.state_dict().items()})
        reads = f"{weights} {self.signature} {asdict(self.layout)} {asdict(self.prompts)} {self.tokenizer.to_str()}"
        return sha256(reads.encode()).hexdigest()[:16]

    def card(self) -> dict[str, object]:
        """What people want to know of it, JSON-ready."""
        words = self.text.words.weight.norm(dim=1).median()
        return {
            "name": self.name, "dim": self.dim, "word_width": self.word_width, "context": self.context,
            "scale": round(self.scale, 3), "median_word_norm": round(float(words), 4),
            "million_parameters": {
                "image": round(parameters(self.image) / 1e6, 1), "text": round(parameters(self.text) / 1e6, 1),
            },
            "picture": asdict(self.picture), "text": asdict(self.layout),
        }  # fmt: skip


def frozen(module: nn.Module) -> nn.Module:
    """`module` in evaluation mode, float32, without gradients."""
    return module.float().eval().requires_grad_(False)
