"""What a distillation is given: every number of it, with its meaning; saved in the run folder beside the weights.

The prompts are here too, because all teachers and students of this version share them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from pocketlens_wire.manifest import Prompts

from pocketlens_training.sets.pixels import VARIATIONS

PROMPTS = Prompts(
    composed="a photo of {sentence}, {words}",
    picture="a photo of {sentence}",
    words="{words}",
)
Record = TypeVar("Record")
GCD = ("contrast", "relational", "both", "cosine")
LAR = ("none", "map", "match")
LEAST_SIDE = 16  # below, a map has less than one place
SKETCHES = ("none", "edges", "drawn", "drawn-own")


@dataclass(frozen=True, kw_only=True)
class DistilRecipe:
    """Steps in optimiser steps, rates AdamW's peaks. `pocketlens-bench ablation` compares them."""

    seed: int = 20261121
    student: str = "tiny"
    """The backbone: tiny-s, tiny, tiny-l, or a model of timm."""
    pretrained: bool = True
    """Whether a timm backbone begins with its published weights."""
    side: int = 0
    """Pixels a side that the device makes; 0: what the backbone was made for."""
    tokens: int = 4
    """Sentence tokens a picture becomes (k)."""
    anchors: int = 0
    """Words whose mixtures tokens are (vocabulary-anchored); 0: free tokens."""
    batch: int = 256
    accumulate: int = 1
    """Micro-batches of that size whose mean gradient one step takes."""
    steps: int = 3000
    rate: float = 0.0
    """0: 2e-3 for the sample world's own backbones, 3e-4 for timm's."""
    backbone_factor: float = 0.0
    """On the rate, of the backbone's parameters. 0: 1 for the sample world's own, a third for timm's."""
    average: float = 0.999
    """Decay of the running mean of the weights, which is what is kept; 0: the last weights are."""
    variation: str = "shift"
    """What is done to a picture each time it is seen: none, shift, crop, crop-mirror."""
    gcd: str = "contrast"
    """Global contrastive distillation: contrast (InfoNCE), relational (KL over a bank), both, cosine."""
    bank: int = 4096
    """Frozen teacher vectors beside the batch."""
    teacher_scale: float = 20.0
    """On image-image cosines of the relational form."""
    lar: str = "none"
    """Local alignment regularisation: none, map (of the teacher's places), match (BLIP's matching head)."""
    lar_weight: float = 1.0
    composition_weight: float = 10.0
    """Of composition distillation; it needs a file of captions with edits. 0: off."""
    sketches: str = "drawn"
    """none; edges: edge maps of the photos, pulled to the photo's vector; drawn: given sketches, pulled to their
    photo's vector; drawn-own: pulled to the vector the teacher gives the sketch itself. Without a file of sketches,
    drawn is none."""
    sketch_share: float = 0.2
    """Of a batch that is sketches."""
    pale: bool = True
    """Whether half of the sketches are given less contrast."""
    held_out: int = 1000
    """Pictures kept from training for the figures in the log; at most a tenth of all."""

    def __post_init__(self) -> None:
        for key, choices in (("gcd", GCD), ("lar", LAR), ("sketches", SKETCHES), ("variation", VARIATIONS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}, came {getattr(self, key)!r}")
        if self.batch < 2 or self.steps < 1 or self.accumulate < 1:
            raise ValueError("batch must be at least 2, steps and accumulate at least 1")
        if self.gcd in ("relational", "both") and self.bank < 2:
            raise ValueError(f"gcd {self.gcd} compares with a bank: bank must be at least 2, came {self.bank}")
        if not 0 <= self.sketch_share < 1:
            raise ValueError(f"sketch_share must be 0 to 1, came {self.sketch_share}")
        photos = self.batch - (0 if self.sketches == "none" else round(self.batch * self.sketch_share))
        if photos < 2:
            raise ValueError(
                f"sketch_share {self.sketch_share} leaves {photos} photos in a batch of {self.batch}; at least 2 are "
                "needed: a larger batch or a smaller share"
            )
        if 0 < self.side < LEAST_SIDE:
            raise ValueError(f"side must be at least {LEAST_SIDE} pixels, or 0 for the student's own, came {self.side}")
        if self.lar == "map" and self.variation.startswith("crop"):
            raise ValueError(
                "lar map needs what the teacher saw: its places lie elsewhere in a crop; use shift or none"
            )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, raw: dict[str, Any], where: str) -> DistilRecipe:
        """Raises ValueError, naming keys, for a recipe of another version."""
        return strictly(cls, raw, where)


def strictly(kind: type[Record], raw: dict[str, Any], where: str) -> Record:
    """The record of `raw`. Raises ValueError, naming keys, for one of another version."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if raw.keys() != known:
        raise ValueError(
            f"{where}: recipe keys missing {sorted(known - raw.keys())}, unknown {sorted(raw.keys() - known)}; begin "
            "in a new folder"
        )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()})


def differing(was: dict[str, Any], asked: dict[str, Any]) -> str:
    """What differs between two recipes, for a person."""
    return ", ".join(f"{key} {was.get(key)} there, {asked[key]} asked" for key in asked if was.get(key) != asked[key])
