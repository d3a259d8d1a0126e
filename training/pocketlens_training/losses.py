"""Losses, each a function of unit vectors; sources beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast(left: Tensor, right: Tensor, scale: Tensor, bank: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of paired unit rows (batch, dim), as in CLIP (Radford et al. 2021).

    bank: (n, dim) further negatives for the left rows only. With a frozen teacher's vectors on the right this is
    our reading of ISA's global contrastive distillation; the paper's exact form was not available to us."""
    logits = scale * left @ right.T
    labels = torch.arange(len(left), device=left.device)
    wider = logits if bank is None else torch.cat([logits, scale * left @ bank.T], 1)
    return (F.cross_entropy(wider, labels) + F.cross_entropy(logits.T, labels)) / 2


def without(bank: Tensor, wanted: Tensor) -> Tensor:
    """The rows of `bank` (n, dim) that are no wanted vector themselves: a positive must not be its own negative."""
    return bank[(bank @ wanted.T).max(1).values < 0.999]


def angle_loss(left: Tensor, right: Tensor) -> Tensor:
    """Mean 1 - cosine of paired unit rows (batch, dim)."""
    return (1 - (left * right).sum(1)).mean()


def hit_rate(left: Tensor, right: Tensor) -> float:
    """Share of left rows whose own right row is the nearest in the batch: a figure for the log, not a loss."""
    own = torch.arange(len(left), device=left.device)
    return (left @ right.T).argmax(1).eq(own).float().mean().item()
