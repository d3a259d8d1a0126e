"""The small gated fusion: ours, the query head and the light target head are made of it."""

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
