"""One thing that the doctor examined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketlens_wire.errors import PocketlensError


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing examined. warn: well enough, but to be known. said: for people, one line. facts: the same and more
    for programs."""

    name: str
    ok: bool
    warn: bool = False
    said: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


def failed(name: str, error: PocketlensError, facts: Mapping[str, Any] | None = None) -> Check:
    """The check that an error ended."""
    return Check(name=name, ok=False, said=str(error), facts={**(facts or {}), "kind": type(error).__name__})
