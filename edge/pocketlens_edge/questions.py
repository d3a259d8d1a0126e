"""Build the question that leaves the device.

Owns the search request: what is in it, and the checks that make it not worth sending. Called by client.py and the
command line; knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.limits import MAX_REACH, MAX_REQUEST_BYTES, MAX_TOP, MAX_WEIGHT
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_edge.conditions import Where, on_the_wire, unicode


class Mode(StrEnum):
    """How the cloud composes: `zero-shot` against original gallery vectors, `tuned` against union vectors."""

    ZERO_SHOT = "zero-shot"
    TUNED = "tuned"


@dataclass(frozen=True)
class Modifier:
    """Words and how much of them: weight -2 to 2. Those of weight 1 are read as one text, in their order; others move
    the query towards what they add, or, below 0, away from it."""

    words: str
    weight: float = 1.0


def unwanted(words: str) -> Modifier:
    """Not this: words that the query is moved away from."""
    return Modifier(words, -1.0)


_WIRE_MODE = {Mode.ZERO_SHOT: pb.MODE_ZERO_SHOT, Mode.TUNED: pb.MODE_TUNED}
_MODE_NAME = {wire: str(mode) for mode, wire in _WIRE_MODE.items()}


def mode_name(mode: pb.Mode) -> str:
    """`zero-shot` or `tuned`; a mode this version does not know is `unknown`."""
    return _MODE_NAME.get(mode, "unknown")


def wire_mode(mode: Mode | None) -> pb.Mode:
    """The wire's name of a mode; None is the server's choice. Raises BadQuery for a mode that is none."""
    if mode is not None and mode not in _WIRE_MODE:
        raise BadQuery(f"mode is {mode!r}; it is one of {', '.join(Mode)}, or None for the server's choice.")
    return _WIRE_MODE[mode] if mode else pb.MODE_UNSPECIFIED


def question(
    *,
    token_space: str,
    encoder_id: str,
    tokens: NDArray[np.float32] | None,
    words: str,
    encoding: Encoding,
    top: int,
    mode: Mode | None,
    where: Where,
    modifiers: Sequence[Modifier | str] = (),
    least_score: float | None = None,
    skip: int = 0,
    group_by: str | None = None,
    group_size: int = 1,
    payload: Sequence[str] | None = None,
    rerank: bool = False,
) -> pb.SearchRequest:
    """The request for `tokens` float32 (count, width), or None, and `words`.

    Raises BadQuery for what the server would only refuse, or what cannot be put on the wire: nothing asked,
    tokens that are not finite (`tokens.pack` looks), text that is not Unicode, a number out of its range, a mode
    that is none, an oversize request."""
    further = [wire_modifier(modifier) for modifier in modifiers]
    if tokens is None and not words.strip() and not any(_adds(modifier) for modifier in further):
        raise BadQuery("Nothing to search for. Give a picture, words, or both.")
    check_page(top, skip)
    flat, tree = on_the_wire(where)
    request = pb.SearchRequest(
        token_space=token_space,
        words=unicode(words, "the words"),
        mode=wire_mode(mode),
        top=top,
        filter=flat,
        modifiers=further,
        skip=skip,
        group_by=unicode(group_by or "", "the key to group by"),
        group_size=check_group_size(group_size) if group_by else 0,
        rerank=rerank,
    )
    if tree.ByteSize():
        request.where.CopyFrom(tree)
    if least_score is not None:
        request.least_score = check_score(least_score)
    if payload is not None:
        request.payload.CopyFrom(projection(payload))
    if tokens is not None:
        request.encoder = encoder_id
        request.sentence.CopyFrom(pack(tokens, encoding))
    if (size := request.ByteSize()) > MAX_REQUEST_BYTES:
        raise BadQuery(
            f"The request has {size:,} bytes; the limit is {MAX_REQUEST_BYTES:,}. Shorten the words or the filters."
        )
    return request


def wire_modifier(given: Modifier | str) -> pb.Modifier:
    """The wire form of a modifier, words alone having weight 1. Raises BadQuery for a weight out of range."""
    modifier = Modifier(given) if isinstance(given, str) else given
    if not -MAX_WEIGHT <= modifier.weight <= MAX_WEIGHT:
        raise BadQuery(f"the weight of a modifier is {modifier.weight}; it must be -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}.")
    words = unicode(modifier.words, "the words")
    if modifier.weight == 1:
        return pb.Modifier(words=words)
    return pb.Modifier(words=words, weight=modifier.weight)


def _adds(modifier: pb.Modifier) -> bool:
    return bool(modifier.words.strip()) and (not modifier.HasField("weight") or modifier.weight > 0)


def check_page(top: int, skip: int) -> None:
    """Raise BadQuery for a page that no server gives."""
    if not 1 <= top <= MAX_TOP:
        raise BadQuery(f"top is {top}; ask for 1 to {MAX_TOP} hits.")
    if not 0 <= skip <= MAX_REACH - top:
        raise BadQuery(f"skip is {skip}; it must not be negative, and skip and top together at most {MAX_REACH:,}.")


def check_group_size(size: int) -> int:
    """`size`. Raises BadQuery for one that no server gives."""
    if not 1 <= size <= MAX_TOP:
        raise BadQuery(f"group_size is {size}; a group has 1 to {MAX_TOP} hits.")
    return size


def check_score(score: float) -> float:
    """`score`. Raises BadQuery for what is no cosine."""
    if not -1 <= score <= 1:
        raise BadQuery(f"least_score is {score}; it must be -1 to 1.")
    return score


def projection(keys: Sequence[str]) -> pb.Projection:
    """Payload keys in the wire's form."""
    if isinstance(keys, str):
        raise BadQuery(f"payload is {keys!r}; it must be a list of keys.")
    return pb.Projection(keys=[unicode(key, "a payload key") for key in keys])
