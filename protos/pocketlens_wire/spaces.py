"""Ids that say what belongs together, minted once, at export.

A token space says what sentence tokens mean, a gallery space where gallery vectors lie, an encoder id which
student made the tokens. Equal widths are not compatibility; equal ids are. Called by export; everyone else
only compares.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["token-space", "gallery-space", "encoder"]

_PREFIX: dict[str, str] = {"token-space": "ts-", "gallery-space": "gs-", "encoder": "enc-"}
_ID_HEX_DIGITS = 16  # 64 bits: chance of two of a million ids colliding is 3e-8


def digest_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and values; order, layout, endianness are no matter.

    Two mappings agree exactly when they hold the same names with bit-equal little-endian values.
    Raises TypeError for arrays of Python objects, whose bytes are addresses.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; only plain numbers have a digest")
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        head = json.dumps([name, little.dtype.str, list(array.shape)]).encode()
        digest.update(len(head).to_bytes(8, "little"))
        digest.update(head)
        digest.update(little.tobytes())
    return digest.hexdigest()


def mint(kind: Kind, parts: Mapping[str, str]) -> str:
    """Id of a space or encoder: prefix ("ts-", "gs-", "enc-") + 16 hex digits over kind and parts.

    parts: everything the meaning depends on, by name (digests of weights, tokenizer, prompts, picture spec).
    Raises ValueError for an unknown kind or no parts, TypeError for a part that is not a string.
    """
    if kind not in _PREFIX:
        raise ValueError(f"unknown kind of id {kind!r}; one of {sorted(_PREFIX)}")
    if not parts:
        raise ValueError(f"no parts: the {kind} id needs at least one part to stand for")
    for name, part in parts.items():
        if not isinstance(name, str) or not isinstance(part, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"part {name!r} of the {kind} id must be a string, came {type(part).__name__}")
    canonical = json.dumps({"kind": kind, "parts": dict(parts)}, sort_keys=True, separators=(",", ":"))
    return _PREFIX[kind] + hashlib.sha256(canonical.encode()).hexdigest()[:_ID_HEX_DIGITS]
