"""T5's encoder stack for a handful of tokens: what UNION (targets.py) runs over picture and empty prompt.

Source: Raffel et al. 2020, in the reading of transformers' `T5Stack` (a test holds ours to it, dropout included);
written out so that the school needs no such library. Not here: word embeddings, padding, long sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS = 32
NEAR = BUCKETS // 4
"""Distances below this have a bucket each way for themselves; T5 shares the other buckets among the longer ones."""


def buckets(length: int) -> Tensor:
    """T5's bucket of each (asking, asked) pair of places, int64 (length, length); two-way, for short sequences."""
    if not 1 <= length <= NEAR:
        raise ValueError(
            f"a sequence of {length} tokens: this stack takes 1 to {NEAR}, T5's distances without rounding"
        )
    places = torch.arange(length)
    ahead = places[None, :] - places[:, None]
    return ahead.abs() + (ahead > 0) * (BUCKETS // 2)


class Attention(nn.Module):
    """Self-attention (batch, length, dim) -> same. Logits are not divided by sqrt(width): T5's first weights are."""

    def __init__(self, dim: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query, self.key, self.value = (nn.Linear(dim, heads * width, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * width, dim, bias=False)
        nn.init.normal_(self.query.weight, std=(dim * width) ** -0.5)
        for layer in (self.key, self.value):
            nn.init.normal_(layer.weight, std=dim**-0.5)
        nn.init.normal_(self.out.weight, std=(heads * width) ** -0.5)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """bias: (1, heads, length, length), added to the logits."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # each (batch, heads, length, width)
        weights = F.dropout((query @ key.transpose(2, 3) + bias).softmax(3), self.dropout, self.training)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a ReLU layer, each before its own RMS norm and beside a way around it."""

    def __init__(self, dim: int, heads: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.before_attention = nn.RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, width, dropout)
        self.before_mlp = nn.RMSNorm(dim, eps=1e-6)
        wide, narrow = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(wide.weight, std=dim**-0.5)
        nn.init.normal_(narrow.weight, std=hidden**-0.5)
        self.mlp = nn.Sequential(wide, nn.ReLU(), nn.Dropout(dropout), narrow)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.before_attention(x), bias))
        return x + self.dropout(self.mlp(self.before_mlp(x)))


class T5Encoder(nn.Module):
    """Tokens (batch, length, dim) -> states (batch, length, dim). One table of position biases serves all layers."""

    def __init__(
        self, dim: int, *, length: int, layers: int, heads: int, width: int, hidden: int, dropout: float
    ) -> None:
        """width: of a head. hidden: of the ReLU layers."""
        super().__init__()
        self.buckets: Tensor
        self.register_buffer("buckets", buckets(length), persistent=False)
        self.bias = nn.Embedding(BUCKETS, heads)
        nn.init.normal_(self.bias.weight, std=dim**-0.5)
        self.blocks = nn.ModuleList([Block(dim, heads, width, hidden, dropout) for _ in range(layers)])
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        bias = self.bias(self.buckets).permute(2, 0, 1)[None]
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x, bias)
        return self.dropout(self.norm(x))
