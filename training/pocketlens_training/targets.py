"""What a gallery picture becomes: itself, or a blend of itself with the feature of the empty prompt.

Source: UNION (ICDMW 2025, arXiv 2511.22253; code baohl00/UNION_for_IGROT @972e0a5), whose variants "original", "sum"
and "union" these are; `UnionLight`, `GatedUnion` and a `Sum` of any weight are ours. All take the *raw* image feature
and hold the raw feature of the empty prompt, because the published blends are of raw features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketlens_training.fusion import Fusion
from pocketlens_training.t5 import T5Encoder

TINY = 1e-12  # what F.normalize holds for no length at all


class Target(nn.Module, ABC):
    """`image_raw` (batch, dim) -> unit (batch, dim). Holds `empty_raw` (1, dim), which training leaves as it is."""

    def __init__(self, empty_raw: Tensor) -> None:
        """empty_raw: (dim,) text feature of the empty prompt, not normalised."""
        super().__init__()
        self.empty_raw: Tensor
        self.register_buffer("empty_raw", empty_raw.detach().clone().float().reshape(1, -1))

    @property
    def dim(self) -> int:
        return self.empty_raw.shape[1]

    @abstractmethod
    def forward(self, image_raw: Tensor) -> Tensor: ...


class Original(Target):
    """image_raw, normalised. The empty prompt plays no part."""

    def forward(self, image_raw: Tensor) -> Tensor:
        return F.normalize(image_raw, dim=1)


class Blend(Target):
    """A target that is image_raw and empty_raw, each times a number of the picture's own, normalised."""

    @abstractmethod
    def weights(self, image_raw: Tensor) -> tuple[Tensor, Tensor]:
        """Of the image and of the empty prompt, each (batch, 1)."""

    def blended(self, image_raw: Tensor) -> Tensor:
        """The target before its length is made 1, (batch, dim)."""
        of_image, of_empty = self.weights(image_raw)
        return of_image * image_raw + of_empty * self.empty_raw

    def forward(self, image_raw: Tensor) -> Tensor:
        return F.normalize(self.blended(image_raw), dim=1)


class Sum(Blend):
    """norm(v + weight * e0), v and e0 raw. weight 1: the paper's index-time "sum"; any other: gallery shift (ours).

    The paper *trains* "sum" with other numbers, `as_trained`: each row of logits gains one constant, which softmax
    cross-entropy from query to target does not see, so it trains exactly what "original" trains. (The other half of
    a symmetric loss, from target to query, does see it.)"""

    def __init__(self, empty_raw: Tensor, weight: float = 1.0) -> None:
        super().__init__(empty_raw)
        self.weight: Tensor
        # Not in the checkpoint, as the target's name has it; but a bundle's ids are made of all tensors.
        self.register_buffer("weight", torch.tensor(weight), persistent=False)

    def weights(self, image_raw: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(image_raw[:, :1])
        return ones, self.weight * ones

    def as_trained(self, image_raw: Tensor) -> Tensor:
        """norm(v) + weight * norm(e0), not of length 1, (batch, dim)."""
        return F.normalize(image_raw, dim=1) + self.weight * F.normalize(self.empty_raw, dim=1)


class UnionExact(Blend):
    """norm(a*v + (1-a)*e0), v and e0 raw; a, any number, is read off T5 states of the sequence [v, e0]. As published.

    The widths are the paper's; `sizes` has its heads for each backbone. As in the source, a is not held within 0 and
    1, and it begins nearly the same for all pictures, anywhere about 0 as the seed has it: most targets then lie
    close to the empty prompt, and where a < 0 a picture counts against itself until training has turned it."""

    def __init__(
        self,
        empty_raw: Tensor,
        *,
        layers: int = 4,
        heads: int = 8,
        width: int = 64,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(empty_raw)
        dim = self.dim
        self.encoder = T5Encoder(dim, length=2, layers=layers, heads=heads, width=width, hidden=hidden, dropout=dropout)
        self.share = nn.Sequential(
            nn.Linear(2 * dim, 4 * dim), nn.Dropout(dropout / 2), nn.Sigmoid(),
            nn.Linear(4 * dim, dim), nn.Dropout(dropout / 2), nn.Sigmoid(),
            nn.Linear(dim, 1),
        )  # fmt: skip

    def weights(self, image_raw: Tensor) -> tuple[Tensor, Tensor]:
        states = self.encoder(torch.stack([image_raw, self.empty_raw.expand_as(image_raw)], 1))
        share = self.share(states.flatten(1))
        return share, 1 - share


class UnionLight(Blend):
    """As `UnionExact`, but a comes from a small MLP on v alone. Ours: a depends on nothing but v there as well,
    e0 being constant. Begins at a = 1, as `Original`."""

    def __init__(self, empty_raw: Tensor, hidden: int = 128) -> None:
        super().__init__(empty_raw)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)
        self.share = nn.Sequential(nn.Linear(self.dim, hidden), nn.ReLU(), last)

    def weights(self, image_raw: Tensor) -> tuple[Tensor, Tensor]:
        share = self.share(image_raw)
        return share, 1 - share


class GatedUnion(Target):
    """Gated sum of the *unit* features and a residual MLP. Ours, the bundle's first; no blend, since its residual
    leaves the plane of v and e0. Begins as `Original`."""

    def __init__(self, empty_raw: Tensor) -> None:
        super().__init__(empty_raw)
        self.fusion = Fusion(2, self.dim, max(1, self.dim // 2))

    def forward(self, image_raw: Tensor) -> Tensor:
        image = F.normalize(image_raw, dim=1)
        return self.fusion(image, F.normalize(self.empty_raw, dim=1).expand_as(image))


def sizes(dim: int) -> dict[str, int]:
    """UNION's heads, head width and hidden width at `dim`: 12 heads for CLIP ViT-L/14 (768), else 8 as published.

    Below 256, the narrowest published, ours: the widths shrink in proportion, so that a toy stays a toy."""
    return {"heads": 12 if dim == 768 else 8, "width": max(1, min(64, dim // 4)), "hidden": min(2048, 8 * dim)}


def union(empty_raw: Tensor) -> UnionExact:
    """`UnionExact` at the sizes for its dim."""
    return UnionExact(empty_raw, **sizes(empty_raw.numel()))


TARGETS: dict[str, Callable[..., Target]] = {
    "original": Original,
    "sum": Sum,
    "union": union,
    "union-light": UnionLight,
    "union-gated": GatedUnion,
}
"""Constructors from `empty_raw` (dim,)."""


def make_target(name: str, empty_raw: Tensor) -> Target:
    """The target of this name, untrained. "sum:0.5" is `Sum` of weight 0.5. Raises ValueError for another name."""
    kind, numbers = split_name(name)
    if kind not in TARGETS or len(numbers) > (kind == "sum"):
        raise ValueError(f"no target `{name}`; there are {', '.join(TARGETS)}, and sum:WEIGHT such as sum:-0.5")
    return TARGETS[kind](empty_raw, *numbers)


def split_name(name: str) -> tuple[str, list[float]]:
    """ "pdv:1.2,1.4" to ("pdv", [1.2, 1.4]). Raises ValueError where what stands after the colon is no such list."""
    kind, colon, listed = name.partition(":")
    try:
        numbers = [float(number) for number in listed.split(",")] if colon else []
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"`{name}`: after the colon stand finite numbers with commas between, not `{listed}`")
    return kind, numbers
