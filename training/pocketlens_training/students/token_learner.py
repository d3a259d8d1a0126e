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
    """Multi-head attention of queries over places; the output projection starts at zero.

    Rows of all pictures lie below each other, and the products are written out: such a graph has half as many nodes
    once exported, and a device runs them one by one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, queries: Tensor, places: Tensor, batch: int) -> Tensor:
        """Queries (batch * count, width) over places (batch * places, width)."""
        query, key, value = (
            rows.reshape(batch, -1, self.heads, rows.shape[1] // self.heads)
            for rows in (self.query(queries), *self.key_value(places).chunk(2, 1))
        )
        logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) / query.shape[3] ** 0.5
        mixed = logits.softmax(3) @ value.transpose(1, 2)
        return self.out(mixed.transpose(1, 2).flatten(2).flatten(0, 1))


class Block(nn.Module):
    """Tokens (batch * k, width) look at the places (batch * places, width), think, and look at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_norm, self.mlp_norm, self.self_norm = (nn.LayerNorm(width) for _ in range(3))
        self.cross = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.mix = Attention(width, heads)

    def forward(self, tokens: Tensor, places: Tensor, batch: int) -> Tensor:
        tokens = tokens + self.cross(self.cross_norm(tokens), places, batch)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        normed = self.self_norm(tokens)
        return tokens + self.mix(normed, normed, batch)


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
        batch, count = features.shape[0], len(self.queries)
        rows = self.norm(self.project(features.flatten(0, 1)))  # (batch * places, width)
        x = rows.unflatten(0, features.shape[:2])
        attention = self.attention(x)
        first = self.start((attention @ x).flatten(0, 1)).unflatten(0, (batch, count)) + self.queries
        tokens = first.flatten(0, 1)
        for block in self.blocks:
            tokens = block(tokens, rows, batch)
        out = self.out(self.out_norm(tokens)).unflatten(0, (batch, count))
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
