"""Sentence tokens as weapons."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pocketlens_wire.limits import MAX_TOKEN_NORM
from pocketlens_wire.tokens import Encoding, pack
from pocketlens_wire.v1 import retrieval_pb2 as pb

from pocketlens_bench.hostile.case import ANSWERED, MISMATCH, REFUSED, Case, case
from pocketlens_bench.hostile.target import Target


def _holding(value: float, count: int = 4) -> Callable[[Target], str]:
    """All numbers are `value`, as f32."""
    return lambda to: to.search(
        sentence=pb.Sentence(
            encoding=pb.TOKEN_ENCODING_F32, count=count, width=to.facts.token_width,
            data=np.full(count * to.facts.token_width, value, "<f4").tobytes(),
        )
    )  # fmt: skip


def _but(packed: Encoding = Encoding.INT8, /, **changes: Any) -> Callable[[Target], str]:
    """Good tokens with fields changed; a function makes the new value of the old."""

    def act(to: Target) -> str:
        sentence = pack(to.tokens(), packed)
        for name, value in changes.items():
            setattr(sentence, name, value(getattr(sentence, name)) if callable(value) else value)
        return to.search(sentence=sentence)

    return act


def _scales(value: float) -> Callable[[bytes], bytes]:
    return lambda held: np.float32(value).tobytes() + held[4:]


def _of_length(length: float) -> Callable[[Target], str]:
    def act(to: Target) -> str:
        whole = to.tokens().astype(np.float64)
        whole *= length / np.linalg.norm(whole, axis=1, keepdims=True)
        return to.search(sentence=pb.Sentence(
            encoding=pb.TOKEN_ENCODING_F32, count=len(whole), width=whole.shape[1], data=whole.astype("<f4").tobytes(),
        ))  # fmt: skip

    return act


def _so_many(count: Callable[[int], int]) -> Callable[[Target], str]:
    """count: of the server's own limit."""
    return lambda to: _holding(0.5, count(to.facts.max_tokens))(to)


def _so_wide(width: int) -> Callable[[Target], str]:
    return lambda to: to.search(sentence=pack(to.tokens(width=to.facts.token_width + width), Encoding.INT8))


CASES: list[Case] = [
    case("tokens", "nan", "every number is NaN", REFUSED, _holding(math.nan)),
    case("tokens", "infinite", "every number is infinite", REFUSED, _holding(math.inf)),
    case("tokens", "minus-infinite", "every number is minus infinity", REFUSED, _holding(-math.inf)),
    case("tokens", "minus-zero", "every number is -0.0", ANSWERED, _holding(-0.0)),
    case("tokens", "all-zero", "every number is 0", ANSWERED, _holding(0.0)),
    case("tokens", "denormal", "every number is the smallest denormal", ANSWERED, _holding(1e-45)),
    case("tokens", "huge", "every number is 1e30", REFUSED, _holding(1e30)),
    case("tokens", "largest", "every number is float32's largest, whose square is infinite", REFUSED, _holding(3.4e38)),
    case("tokens", "long", "a token is as long as may be", ANSWERED, _of_length(MAX_TOKEN_NORM * 0.999)),
    case("tokens", "too-long", "a token is a little longer than may be", REFUSED, _of_length(MAX_TOKEN_NORM * 1.01)),
    case("tokens", "none", "no tokens", REFUSED, _holding(0.5, 0)),
    case("tokens", "one-too-many", "one token more than the server takes", REFUSED, _so_many(lambda most: most + 1)),
    case("tokens", "wider", "one number more than the space's width", REFUSED, _so_wide(1)),
    case("tokens", "narrower", "one number less than the space's width", REFUSED, _so_wide(-1)),
    case("tokens", "count-lies", "a count of 2**32 - 1", REFUSED, _but(count=2**32 - 1)),
    case("tokens", "width-lies", "a width of 2**32 - 1", REFUSED, _but(width=2**32 - 1)),
    case("tokens", "product-wraps", "count and width whose product is 0 in 32 bits", REFUSED,
         _but(count=65536, width=65536, data=b"", scales=b"")),
    case("tokens", "other-kind", "int8 bytes said to be float32", REFUSED, _but(encoding=pb.TOKEN_ENCODING_F32)),
    case("tokens", "no-kind", "no encoding said", REFUSED, _but(encoding=0)),
    case("tokens", "unknown-kind", "encoding 99", REFUSED, _but(encoding=99)),
    case("tokens", "odd-length", "one byte missing, no multiple of the width", REFUSED,
         _but(data=lambda held: held[:-1])),
    case("tokens", "no-bytes", "no bytes for the tokens that were announced", REFUSED, _but(data=b"")),
    case("tokens", "few-scales", "a scale less than tokens", REFUSED, _but(scales=lambda held: held[:-4])),
    case("tokens", "many-scales", "a scale more than tokens", REFUSED, _but(scales=lambda held: held + held[:4])),
    case("tokens", "needless-scales", "scales beside float16", REFUSED, _but(Encoding.F16, scales=bytes(16))),
    case("tokens", "scale-zero", "a scale of 0", REFUSED, _but(scales=_scales(0.0))),
    case("tokens", "scale-negative", "a scale below 0", REFUSED, _but(scales=_scales(-1.0))),
    case("tokens", "scale-nan", "a scale that is NaN", REFUSED, _but(scales=_scales(math.nan))),
    case("tokens", "scale-huge", "a scale that makes the token too long", REFUSED, _but(scales=_scales(3e38))),
    case("tokens", "int8-low", "-128, which int8 tokens do not have", REFUSED,
         _but(data=lambda held: b"\x80" + held[1:])),
    case("tokens", "int4-low", "-8, which int4 tokens do not have", REFUSED,
         _but(Encoding.INT4, data=lambda held: b"\x88" + held[1:])),
    case("tokens", "no-encoder", "tokens without their encoder's digest", REFUSED, lambda to: to.search(encoder=None)),
    case("tokens", "other-encoder", "tokens of an encoder the server does not know", MISMATCH,
         lambda to: to.search(encoder="enc-" + "9" * 16)),
    case("tokens", "other-space", "tokens of another space", MISMATCH,
         lambda to: to.search(token_space="ts-" + "9" * 16)),
    case("tokens", "empty", "a sentence that says nothing at all", REFUSED,
         lambda to: to.search(sentence=pb.Sentence())),
]  # fmt: skip
