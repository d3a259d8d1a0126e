"""Asking again while a server has no answer: how long the pauses are, and when patience ends.

A busy server says when to come again. Called by batch on the command line, outbox.py and chaos."""

from __future__ import annotations

from collections.abc import Callable
from random import uniform
from time import monotonic, sleep
from typing import TypeVar

from pocketlens_wire.errors import Overloaded, PocketlensError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LEAST_PAUSE_S = 0.05  # whatever a server says: one that has too much to do is not asked in a loop
_SPREAD = 1.5  # devices turned away together do not come again together

Given = TypeVar("Given")
Pause = Callable[[float], object]  # waits for so many seconds; what it raises ends the asking


def ask_patiently(
    ask: Callable[[], Given],
    patience_s: float,
    *,
    again: tuple[type[PocketlensError], ...] = (Overloaded,),
    pause: Pause | None = None,
) -> Given:
    """What `ask` gives; after an error of `again` it is asked once more, until `patience_s` have passed.

    A busy server is asked when it said that it expects to have room, or up to half as long again later, and not at all
    where that is beyond patience; after other errors the pauses double, and the last question is asked when patience
    ends. Raises the last error; with 0 s of patience, the first."""
    end, next_s = monotonic() + patience_s, _FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except again as error:
            left_s = end - monotonic()
            if left_s <= 0:
                raise
            if isinstance(error, Overloaded):
                least_s = max(error.retry_after_s, _LEAST_PAUSE_S)
                if least_s > left_s:
                    raise
                wait_s = uniform(least_s, min(_SPREAD * least_s, left_s))
            else:
                wait_s, next_s = min(next_s, left_s), min(2 * next_s, _LONGEST_PAUSE_S)
        (pause or sleep)(wait_s)
