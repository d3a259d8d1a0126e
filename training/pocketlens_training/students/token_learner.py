"""The adaptive token learner: a map of places becomes k sentence tokens, each looking somewhere.

Source of the idea: Image2Sentence (ISA), ICLR 2024, arXiv 2403.01431. Its equations were not available to us; this is
our reconstruction ("ISA-style"), not the paper's. Attention that competes across tokens: Locatello et al. 2020; Wu et
al. 2022 ("Learning token-based representation for image retrieval")."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of queries over places; the output projection starts at zero."""

    def __init__(self, width: int, heads: int) -> None:
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


class Block(nn.Module):
    """Tokens look at the places, think, and look at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_norm, self.mlp_norm, self.self_norm = (nn.LayerNorm(width) for _ in range(3))
        self.cross = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.mix = Attention(width, heads)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        tokens = tokens + self.cross(self.cross_norm(tokens), places)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        normed = self.self_norm(tokens)
        return tokens + self.mix(normed, normed)


class Reading(NamedTuple):
    """What a picture was read as, and where each token looked."""

    sentence: Tensor  # (batch, k, word_width)
    attention: Tensor  # (batch, k, places); each token's weights sum to 1
    first: Tensor  # (batch, k, width): the tokens as pooled from the places, before the blocks


class TokenLearner(nn.Module):
    """Feature map (batch, places, channels) -> sentence tokens (batch, k, word_width).

    Learned queries compete for places: softmax over the *token* axis, then each token's weights are divided by their
    sum, so a token is a convex combination of places. Blocks of cross-attention, MLP and self-attention refine them.
    Free tokens are scaled to the median norm of the text tower's words. With `anchors` (n, word_width), frozen word
    embeddings, a token is a convex mixture of those, times a learned factor (vocabulary-anchored; ours)."""

    anchors: Tensor | None

    def __init__(
        self, channels: int, tokens: int, word_width: int, *, width: int = 128, blocks: int = 1, heads: int = 4,
        anchors: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(tokens, width) * 0.5)
        self.start = nn.Linear(width, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(blocks)])
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, word_width)
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("anchors", anchors)
        if anchors is not None:
            self.sharpness = nn.Parameter(torch.tensor(1.0))

    def attention(self, x: Tensor) -> Tensor:
        """Weights (batch, k, places) of already projected places; each token's sum to 1."""
        logits = self.queries @ x.transpose(1, 2) / x.shape[2] ** 0.5
        share = logits.softmax(1)
        return share / share.sum(2, keepdim=True).clamp(min=1e-6)

    def read(self, features: Tensor) -> Reading:
        """The sentence, and what inspection and LAR want to know of it."""
        x = self.norm(self.project(features))
        attention = self.attention(x)
        first = self.start(attention @ x) + self.queries
        tokens = first
        for block in self.blocks:
            tokens = block(tokens, x)
        out = self.out(self.out_norm(tokens))
        if self.anchors is not None:
            directions = F.normalize(self.anchors, dim=1).to(out.dtype)
            out = (self.sharpness.exp() * out @ directions.T).softmax(2) @ self.anchors.to(out.dtype)
        return Reading(self.gain * out, attention, first)

    def forward(self, features: Tensor) -> Tensor:
        return self.read(features).sentence

    def match_norm(self, word_norm: float) -> None:
        """Scale fresh free tokens to about `word_norm` (the median of real words). Anchored ones are mixtures of words
        already."""
        if self.anchors is not None:
            return
        with torch.no_grad():
            # The input of `out` is layer-normalised: variance 1 in each of its numbers.
            expected = float(self.out.weight.square().sum().sqrt())
            self.out.weight.mul_(word_norm / expected)
            self.out.bias.zero_()
