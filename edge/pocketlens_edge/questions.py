"""Build the question that leaves the device.

Owns the search request: what is in it, and the checks that make it not worth sending. Also the filter
language of the command line. Called by client.py and cli.py; knows no network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.limits import MAX_REQUEST_BYTES, MAX_TOP
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb

Scalar = str | int | float | bool  # one payload value

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_INT64 = range(-(2**63), 2**63)


class Mode(StrEnum):
    """How the cloud composes: `zero-shot` against original gallery vectors, `tuned` against union vectors."""

    ZERO_SHOT = "zero-shot"
    TUNED = "tuned"


_WIRE_MODE = {Mode.ZERO_SHOT: pb.MODE_ZERO_SHOT, Mode.TUNED: pb.MODE_TUNED}
_MODE_NAME = {wire: str(mode) for mode, wire in _WIRE_MODE.items()}


def mode_name(mode: pb.Mode) -> str:
    """`zero-shot` or `tuned`; a mode this version does not know is `unknown`."""
    return _MODE_NAME.get(mode, "unknown")


def question(
    *,
    token_space: str,
    encoder_id: str,
    tokens: NDArray[np.float32] | None,
    words: str,
    encoding: Encoding,
    top: int,
    mode: Mode | None,
    where: Mapping[str, Scalar],
) -> pb.SearchRequest:
    """The request for `tokens` float32 (count, width), or None, and `words`.

    Raises BadQuery for what the server would only refuse, or what cannot be put on the wire: nothing asked,
    tokens that are not finite (`tokens.pack` looks), text that is not Unicode, `top` outside 1 to MAX_TOP, a mode
    that is none, an oversize request."""
    if tokens is None and not words.strip():
        raise BadQuery("Nothing to search for. Give a picture, words, or both.")
    if not 1 <= top <= MAX_TOP:
        raise BadQuery(f"top is {top}; ask for 1 to {MAX_TOP} hits.")
    if mode is not None and mode not in _WIRE_MODE:
        raise BadQuery(f"mode is {mode!r}; it is one of {', '.join(Mode)}, or None for the server's choice.")
    request = pb.SearchRequest(
        token_space=token_space,
        words=_text(words, "the words"),
        mode=_WIRE_MODE[mode] if mode else pb.MODE_UNSPECIFIED,
        top=top,
        filter=[_condition(key, value) for key, value in where.items()],
    )
    if tokens is not None:
        request.encoder = encoder_id
        request.sentence.CopyFrom(pack(tokens, encoding))
    if (size := request.ByteSize()) > MAX_REQUEST_BYTES:
        raise BadQuery(
            f"The request has {size:,} bytes; the limit is {MAX_REQUEST_BYTES:,}. Shorten the words or the filters."
        )
    return request


def _condition(key: str, value: Scalar) -> pb.Condition:
    return pb.Condition(key=_text(key, "a filter key"), equals=to_value(key, value))


def parse_filter(texts: list[str]) -> dict[str, Scalar]:
    """`["count=2", "part=true", "colour=red"]` to `{"count": 2, "part": True, "colour": "red"}`.

    Values are typed by their look: whole number, number, true/false, else text; quotes force text.
    Raises BadQuery for what is not key=value, and for a key given twice."""
    where: dict[str, Scalar] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise BadQuery(f"filter `{text}` is not key=value, as in colour=red.")
        if key in where:
            raise BadQuery(f"filter key `{key}` is given twice; a picture has one value of each.")
        where[key] = _typed(value)
    return where


def _typed(value: str) -> Scalar:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if _INTEGER.fullmatch(value):
        return int(value)
    if _NUMBER.fullmatch(value):
        return float(value)
    return value


def to_value(key: str, value: Scalar) -> pb.Value:
    """The wire form of one filter value. Raises BadQuery, naming `key`, for a number the wire cannot hold."""
    match value:
        case bool():  # before int: True is an int too
            return pb.Value(flag=value)
        case int() if value in _INT64:
            return pb.Value(integer=value)
        case float() if math.isfinite(value):
            return pb.Value(number=value)
        case str():
            return pb.Value(text=_text(value, f"filter `{key}`"))
        case _:
            raise BadQuery(f"filter `{key}` is {value!r}; a value is text, true/false or a finite number of 64 bits.")


def from_value(value: pb.Value) -> Scalar:
    """The Python form of one payload value; one of a kind this version does not know is empty text."""
    match value.WhichOneof("kind"):
        case "flag":
            return value.flag
        case "integer":
            return value.integer
        case "number":
            return value.number
        case _:
            return value.text


def _text(text: str, what: str) -> str:
    """`text`, if it is Unicode: a terminal with another encoding hands over lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadQuery(f"{what} cannot be read as Unicode text; check the terminal's encoding.") from None
    return text
