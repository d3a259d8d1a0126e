"""Losses, each with its formula and source. Vectors are rows of unit length unless called raw.

t: what the text tower reads in the student's sentences; v: the frozen image tower's vectors of the same pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SAME = 0.999
"""Cosine from which two vectors are taken for one picture's."""


def contrast(
    left: Tensor, right: Tensor, scale: Tensor | float, bank: Tensor | None = None, same: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE of paired rows (batch, dim), as in CLIP (Radford et al. 2021):
    1/2 [CE(s t V^T) + CE(s v T^T)].

    bank: (n, dim) further negatives for the left rows only. With a frozen teacher's vectors on the right this is our
    reading of ISA's global contrastive distillation (GCD); the paper's exact form was not available to us. same: which
    pairs are no negatives of each other, bool (batch, batch): a picture and its sketch, a picture twice."""
    logits = scale * left @ right.T
    if same is not None:
        logits = logits.masked_fill(same, -torch.inf)
    labels = torch.arange(len(left), device=left.device)
    wider = logits if bank is None else torch.cat([logits, scale * left @ bank.T], 1)
    return (F.cross_entropy(wider, labels) + F.cross_entropy(logits.T, labels)) / 2


def relational(text: Tensor, image: Tensor, bank: Tensor, scale: Tensor | float, *, teacher_scale: float) -> Tensor:
    """KL(softmax(s_t v B^T) || softmax(s t B^T)) over a bank B (n, dim): a sentence shall be as near to other pictures
    as its own picture is (after SSP, Wu et al. 2022; the two temperatures are ours, because image-image and text-image
    cosines have different ranges). `bank` must not hold the pictures themselves."""
    wanted = (teacher_scale * image @ bank.T).log_softmax(1)
    told = (scale * text @ bank.T).log_softmax(1)
    return F.kl_div(told, wanted, reduction="batchmean", log_target=True)


def twins(rows: Tensor) -> Tensor:
    """Which pairs of frozen `rows` (batch, dim) are the same vector, bool (batch, batch); no row is its own twin."""
    same = (rows @ rows.T).detach() > SAME
    return same.fill_diagonal_(False)


def without(bank: Tensor, wanted: Tensor) -> Tensor:
    """The rows of `bank` (n, dim) that are no wanted vector themselves: a positive must not be its own negative."""
    return bank[(bank @ wanted.T).max(1).values < SAME]


def angle_loss(left: Tensor, right: Tensor) -> Tensor:
    """Mean 1 - cosine of paired rows (batch, dim)."""
    return (1 - (left * right).sum(1)).mean()


def map_alignment(first: Tensor, attention: Tensor, places: Tensor) -> Tensor:
    """LAR on maps: mean 1 - cos(P s_i, pooled_i), pooled_i = sum_j A_ij p_j.

    first: (batch, k, width) tokens as pooled from the light map, already through the linear map P; attention A:
    (batch, k, m) their weights, brought to the teacher's grid; places p: (batch, m, width) the teacher's map, its mean
    over pictures taken off (without that, maps after a ReLU agree for nothing). Our reading of ISA's local alignment
    regularisation; the paper's form was not available to us."""
    pooled = F.normalize(attention @ places, dim=2)
    return (1 - (F.normalize(first, dim=2) * pooled).sum(2)).mean()


def regridded(attention: Tensor, light: tuple[int, int], large: tuple[int, int]) -> Tensor:
    """Attention (batch, k, h*w) of a light grid on a teacher's grid, its weights summing to 1 again."""
    if light == large:
        return attention
    batch, k, _ = attention.shape
    resized = F.interpolate(attention.reshape(batch, k, *light), large, mode="area").flatten(2)
    return resized / resized.sum(2, keepdim=True).clamp(min=1e-6)


def matching(positive: Tensor, wrong_image: Tensor, wrong_sentence: Tensor) -> Tensor:
    """LAR by matching: two-way cross entropy of a frozen matching head's logits (batch, 2), class 1 a match, over each
    sentence with its own picture, with a hard wrong picture, and its picture with a hard wrong sentence (as BLIP trains
    that head: Li et al. 2022)."""
    logits = torch.cat([positive, wrong_image, wrong_sentence])
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(positive)] = 1
    return F.cross_entropy(logits, labels)


def hard_ones(similarity: Tensor) -> Tensor:
    """For each row of (batch, batch) another column, drawn by softmax of similarity: the hard negatives of BLIP."""
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return torch.multinomial(similarity.masked_fill(own, -torch.inf).softmax(1), 1).squeeze(1)


@torch.no_grad()
def hit_rate(left: Tensor, right: Tensor) -> Tensor:
    """Share of left rows whose own right row is the nearest in the batch: a figure for the log, not a loss."""
    own = torch.arange(len(left), device=left.device)
    return (left @ right.T).argmax(1).eq(own).float().mean()
