"""The teacher's two towers: a residual image tower and a causal text tower that takes sentence tokens.

Owns the architecture and its forward pass, which is also what export traces; knows no loss and no data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketlens_training.reading import Rows
from pocketlens_training.teachers.teacher import ImageModule, TextModule


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU. (ReLU because GELU costs more than the convolution on a CPU.)"""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (batch, side, side, 3) to float32 (batch, 3, side, side), about -1 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


class ImageTower(ImageModule):
    """The sample world's large image tower, residual, pooled by attention."""

    def __init__(self, widths: Sequence[int], dim: int, heads: int = 4) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.body = nn.Sequential(
            convolution(3, first, 2), convolution(first, first),
            convolution(first, second, 2), Residual(second), Residual(second),
            convolution(second, third, 2), Residual(third), Residual(third),
            convolution(third, fourth, 2), Residual(fourth),
        )  # fmt: skip
        self.query = nn.Parameter(torch.randn(1, heads, 1, fourth // heads) * 0.02)
        self.key_value = nn.Linear(fourth, 2 * fourth)
        self.project = nn.Linear(2 * fourth, dim)
        self.heads = heads

    def places(self, pixels: Tensor) -> Tensor:
        """The feature map before pooling, float (batch, places, width)."""
        x = self.body(normalised(pixels).contiguous(memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2)

    def pool(self, x: Tensor) -> Tensor:
        """Places (batch, places, width) to the raw feature (batch, dim)."""
        batch, places, width = x.shape
        key, value = self.key_value(x).view(batch, places, 2, self.heads, width // self.heads).unbind(2)
        attended = F.scaled_dot_product_attention(
            self.query.expand(batch, -1, -1, -1), key.transpose(1, 2), value.transpose(1, 2)
        )
        return self.project(torch.cat([attended.flatten(1), x.mean(1)], 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places(pixels)
        return self.pool(places), places


class TextBlock(nn.Module):
    """Pre-norm causal self-attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        projected = self.query_key_value(self.before_attention(x))
        query, key, value = projected.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attended(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class TextTower(TextModule):
    """Causal text tower. The sentence is placed by position, so no text a user types can reach its slots."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(context, width) * 0.01)
        self.blocks = nn.ModuleList([TextBlock(width, width // 32) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.words.weight, std=0.05)

    def forward(
        self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor, end: Tensor
    ) -> Tensor:
        """Read at the end token."""
        x = self._states(token_ids, sentence, sentence_start, sentence_length)
        last = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return self.project(self.norm(last))

    def projected(
        self,
        token_ids: Tensor,
        sentence: Tensor,
        sentence_start: Tensor,
        sentence_length: Tensor,
        end: Tensor,  # noqa: ARG002
    ) -> Tensor:
        return self.project(self.norm(self._states(token_ids, sentence, sentence_start, sentence_length)))

    def _states(self, token_ids: Tensor, sentence: Tensor, sentence_start: Tensor, sentence_length: Tensor) -> Tensor:
        x = self.with_sentence(token_ids, sentence, sentence_start, sentence_length)
        x = x + self.positions[: token_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x


class Towers(nn.Module):
    """Both towers and the temperature of their contrast."""

    def __init__(
        self, *, widths: Sequence[int], vocabulary: int, context: int, word_width: int, text_layers: int, dim: int
    ) -> None:
        super().__init__()
        self.image = ImageTower(widths, dim)
        self.text = TextTower(vocabulary, context, word_width, text_layers, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(15.0)))

    def scale(self) -> Tensor:
        """Factor on cosines before the softmax, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=100.0)

    def forward(self, pixels: Tensor | None, rows: Rows) -> tuple[Tensor | None, Tensor]:
        """Raw features (batch, dim) of pictures, if there are some, and of texts without a sentence."""
        sentence = torch.zeros(len(rows.end), 1, self.text.words.embedding_dim, device=rows.end.device)
        text = self.text(rows.token_ids, sentence, rows.sentence_start, rows.sentence_length, rows.end)
        return None if pixels is None else self.image(pixels)[0], text
