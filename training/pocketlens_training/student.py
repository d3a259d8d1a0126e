"""The light student: a small convolutional encoder and the adaptive token learner.

Source of the idea: Image2Sentence (ISA), ICLR 2024, arXiv 2403.01431. Its equations were not available to us;
the token learner is our reconstruction ("ISA-style"), not the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketlens_training.towers import Residual, convolution, normalised


class LightEncoder(nn.Module):
    """Pixels to a feature map (batch, places, width) at a sixteenth of the picture's side."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.body = nn.Sequential(
            convolution(3, first, 2), convolution(first, second, 2), convolution(second, third, 2), Residual(third),
            convolution(third, fourth, 2), Residual(fourth),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.body(normalised(pixels).contiguous(memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention of queries over places; the output projection starts at zero."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, queries: Tensor, places: Tensor) -> Tensor:
        batch, count, width = queries.shape
        query = self.query(queries).view(batch, count, self.heads, -1).transpose(1, 2)
        key, value = self.key_value(places).view(batch, places.shape[1], 2, self.heads, -1).unbind(2)
        mixed = F.scaled_dot_product_attention(query, key.transpose(1, 2), value.transpose(1, 2))
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class TokenLearner(nn.Module):
    """Feature map (batch, places, channels) -> sentence tokens (batch, k, word_width).

    Learned queries compete for places: softmax over the *token* axis, then each token's weights are divided by
    their sum, so a token is a convex combination of places. One block of cross-attention, MLP and self-attention
    refines them; the output is scaled to the median norm of the text tower's word embeddings."""

    def __init__(self, channels: int, tokens: int, word_width: int, width: int = 128) -> None:
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(tokens, width) * 0.5)
        self.start = nn.Linear(width, width)
        self.cross_norm, self.mlp_norm, self.self_norm, self.out_norm = (nn.LayerNorm(width) for _ in range(4))
        self.cross = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.mix = Attention(width)
        self.out = nn.Linear(width, word_width)
        self.gain = nn.Parameter(torch.ones(()))

    def attention(self, x: Tensor) -> Tensor:
        """Weights (batch, k, places) of already projected places; each token's sum to 1."""
        logits = self.queries @ x.transpose(1, 2) / x.shape[2] ** 0.5
        share = logits.softmax(1)
        return share / share.sum(2, keepdim=True).clamp(min=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        x = self.norm(self.project(features))
        tokens = self.start(self.attention(x) @ x) + self.queries
        tokens = tokens + self.cross(self.cross_norm(tokens), x)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        normed = self.self_norm(tokens)
        tokens = tokens + self.mix(normed, normed)
        return self.gain * self.out(self.out_norm(tokens))

    def match_norm(self, word_norm: float) -> None:
        """Scale the output so that a fresh token is about `word_norm` long (the median of real words)."""
        with torch.no_grad():
            # The input of `out` is layer-normalised: variance 1 in each of its numbers.
            expected = float(self.out.weight.square().sum().sqrt())
            self.out.weight.mul_(word_norm / expected)
            self.out.bias.zero_()


class Student(nn.Module):
    """`pixels` uint8 (batch, side, side, 3) RGB -> `sentence` float32 (batch, k, word_width)."""

    def __init__(self, widths: Sequence[int], tokens: int, word_width: int) -> None:
        super().__init__()
        self.encoder = LightEncoder(widths)
        self.learner = TokenLearner(widths[-1], tokens, word_width)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.learner(self.encoder(pixels))
