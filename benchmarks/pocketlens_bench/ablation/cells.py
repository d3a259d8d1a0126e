"""What is tried.

A cell is one way of training; each differs from the base in what its name says, and in nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """kind: student (a distillation with `change`d recipe), symmetric, phi (a baseline of one word upon the large
    tower), heads (of the tuned mode, for the base student of the same seed) or free (nothing is trained)."""

    group: str
    name: str
    kind: str = "student"
    change: Mapping[str, Any] = field(default_factory=dict)
    says: str = ""

    @property
    def key(self) -> str:
        """Its folder's name."""
        return f"{self.group}-{self.name}".replace(" ", "_").replace(":", "_").replace("/", "_")


def _student(group: str, name: str, says: str = "", **change: Any) -> Cell:
    return Cell(group=group, name=name, change=change, says=says)


def _heads(composition: str, target: str) -> Cell:
    return Cell(
        group="targets", name=f"{composition} to {target}", kind="heads",
        change={"composition": composition, "target": target},
    )  # fmt: skip


CELLS: Sequence[Cell] = (
    _student(
        BASE, "base", "k 4, contrast, composition distillation, drawn sketches (half of them pale), free tokens, EMA"
    ),
    _student("tokens", "k 1", tokens=1),
    _student("tokens", "k 2", tokens=2),
    _student("tokens", "k 8", tokens=8),
    _student("gcd", "relational", gcd="relational"),
    _student("gcd", "contrast + relational", gcd="both"),
    _student("gcd", "cosine", gcd="cosine"),
    _student("gcd", "contrast, no bank", bank=0),
    _student("lar", "map", "weight 1", lar="map"),
    _student("composition", "off", composition_weight=0.0),
    _student("composition", "weight 3", composition_weight=3.0),
    _student("tokens' space", "anchored", "mixtures of the vocabulary's words", anchors=2048),
    _student("student", "tiny-s", student="tiny-s"),
    _student("student", "tiny-l", student="tiny-l"),
    _student("sketches", "none", sketches="none"),
    _student("sketches", "edge maps", sketches="edges"),
    _student("sketches", "drawn, teacher's own vector", sketches="drawn-own"),
    _student("sketches", "drawn, none pale", pale=False),
    _student("loop", "no EMA", average=0.0),
    _student("loop", "no shift", variation="none"),
    Cell(group="baselines", name="symmetric", kind="symmetric", says="the token learner upon the large tower's map"),
    Cell(group="baselines", name="Pic2Word", kind="phi", change={"phi": "pic2word"}),
    Cell(group="baselines", name="SEARLE-phi", kind="phi", change={"phi": "searle"}),
    Cell(group="baselines", name="LinCIR", kind="phi", change={"phi": "lincir"}),
    *(_heads("gated", target) for target in ("original", "sum", "union", "union-light", "union-gated")),
    *(_heads("plain", target) for target in ("union", "union-light", "union-gated")),
    _heads("transagg", "original"),
    _heads("transagg", "union"),
    Cell(group="free", name="free", kind="free", says="what needs no training, on the base student"),
)


def control_of(cell: Cell) -> Cell | None:
    """What heads that search another target are held against: the same composition searching `original`; for `plain`
    the base, whose zero-shot question is just that. None for every other cell."""
    if cell.kind != "heads" or cell.change["target"] == "original":
        return None
    if cell.change["composition"] == "plain":
        return CELLS[0]
    wanted = {"composition": cell.change["composition"], "target": "original"}
    return next(each for each in CELLS if each.kind == "heads" and each.change == wanted)


def chosen(names: Sequence[str]) -> list[Cell]:
    """The base, then cells whose group or name is among `names`, and their controls; all without names. In the order of
    CELLS. Raises ValueError for names that no cell has, telling the groups."""
    unknown = [name for name in names if not any(name in (cell.group, cell.name) for cell in CELLS)]
    if unknown:
        groups = ", ".join(dict.fromkeys(cell.group for cell in CELLS))
        raise ValueError(f"no cell is called {', '.join(unknown)}; the groups are {groups}")
    found = [cell for cell in CELLS if not names or cell.group in names or cell.name in names]
    needed = [CELLS[0], *found, *(control for cell in found if (control := control_of(cell)))]
    return [cell for cell in CELLS if cell in needed]
