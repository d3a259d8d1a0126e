"""Heads of the tuned mode: what a query becomes, and what a gallery picture becomes.

Source of the target: UNION (ICDMW 2025, arXiv 2511.22253), which blends the raw image feature with the raw text
feature of the empty prompt by a learned scalar from a T5-like encoder. Ours is a light relative (a gated sum and
a small MLP), because the empty prompt's feature is one constant and so the gate is a function of the image alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fusion(nn.Module):
    """Gated sum of `parts` features plus a two-layer MLP residual: (batch, dim) each -> (batch, dim), unit length.

    Starts as the first part alone (gates 1, 0, ...; residual 0), so training can only move away from the
    untuned mode where triplets say so."""

    def __init__(self, parts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(parts * dim, hidden), nn.ReLU(), nn.Dropout(0.1))
        self.residual = nn.Linear(hidden, dim)
        self.gates = nn.Linear(hidden, parts)
        for layer in (self.residual, self.gates):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.gates.bias[0] = 1.0

    def forward(self, *parts: Tensor) -> Tensor:
        hidden = self.inner(torch.cat(parts, 1))
        gates = self.gates(hidden)
        blended = self.residual(hidden)
        for i, part in enumerate(parts):
            blended = blended + gates[:, i : i + 1] * part
        return F.normalize(blended, dim=1)


class QueryHead(nn.Module):
    """`composed`, `picture`, `words` (batch, dim) unit -> `query` (batch, dim) unit."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fusion = Fusion(3, dim, dim)

    def forward(self, composed: Tensor, picture: Tensor, words: Tensor) -> Tensor:
        return self.fusion(composed, picture, words)


class TargetHead(nn.Module):
    """`image_raw` (batch, dim) -> `union` (batch, dim) unit. Holds the empty prompt's feature as a constant."""

    def __init__(self, empty: Tensor) -> None:
        super().__init__()
        self.empty: Tensor
        self.register_buffer("empty", F.normalize(empty.reshape(1, -1), dim=1))
        self.fusion = Fusion(2, empty.numel(), empty.numel() // 2)

    def forward(self, image_raw: Tensor) -> Tensor:
        image = F.normalize(image_raw, dim=1)
        return self.fusion(image, self.empty.expand_as(image))


class Heads(nn.Module):
    """Query head and target head, trained together."""

    def __init__(self, dim: int, empty: Tensor) -> None:
        super().__init__()
        self.query = QueryHead(dim)
        self.target = TargetHead(empty)


class Control(nn.Module):
    """A query head alone, trained against the targets as they are: what the triplets give without UNION."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = QueryHead(dim)
