"""Sentence tokens to wire bytes and back.

Owns the byte layout of `Sentence` (v1/retrieval.proto) and every check on it. All numbers are little-endian,
tokens follow each other row by row:

    f32   count*width float32
    f16   count*width float16
    int8  count*width int8 in [-127, 127]; value = int * scale of its token, scale = max|x| / 127
    int4  two int4 in [-7, 7] a byte, low nibble first, two's complement, over all tokens in one run; if
          count*width is odd, the high nibble of the last byte is 0; scale = max|x| / 7

Rounding is to nearest, ties to even. A token that is all zero has scale 1.0 (a scale must be positive); so
has one so small that its scale would not be a normal float32 (below about 1.5e-36), which is sent as zeros.
Called by the client (pack) and the service (unpack); what pack returns, unpack accepts.
"""

from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pocketlens_wire.errors import BadQuery
from pocketlens_wire.limits import MAX_TOKEN_NORM, MAX_TOKENS, MAX_WIDTH
from pocketlens_wire.v1 import retrieval_pb2 as pb


class Encoding(StrEnum):
    """How tokens travel. int8 is the default: cosine to the original 0.9999 at a quarter of the bytes."""

    F32 = "f32"
    F16 = "f16"
    INT8 = "int8"
    INT4 = "int4"


_WIRE: Final[dict[Encoding, pb.TokenEncoding]] = {
    Encoding.F32: pb.TOKEN_ENCODING_F32,
    Encoding.F16: pb.TOKEN_ENCODING_F16,
    Encoding.INT8: pb.TOKEN_ENCODING_INT8,
    Encoding.INT4: pb.TOKEN_ENCODING_INT4,
}
_ENCODING: Final[dict[int, Encoding]] = {int(wire): encoding for encoding, wire in _WIRE.items()}
_LEVELS: Final = {Encoding.INT8: 127, Encoding.INT4: 7}  # symmetric, so that -x packs to the negative of x
_SMALLEST_SCALE: Final = float(np.finfo(np.float32).tiny)  # smallest normal number


def pack(tokens: NDArray[Any], encoding: Encoding = Encoding.INT8) -> pb.Sentence:
    """Wire form of tokens.

    tokens: (count, width) of any float dtype, byte order or layout; read as float32.
    encoding: one of Encoding, or its name.
    Raises BadQuery for anything unpack would refuse: not a float matrix, no or too many tokens, numbers that
    are not finite, a token longer than MAX_TOKEN_NORM.
    """
    encoding = _known(encoding)
    values = _checked_matrix(np.asarray(tokens))
    count, width = values.shape
    scales = b""
    if encoding is Encoding.F32:
        data = values.astype("<f4").tobytes()
    elif encoding is Encoding.F16:
        data = values.astype("<f2").tobytes()  # cannot overflow: MAX_TOKEN_NORM < 65504
    else:
        whole, scale = quantise(values, _LEVELS[encoding])
        scales = scale.astype("<f4").tobytes()
        data = whole.tobytes() if encoding is Encoding.INT8 else _join_nibbles(whole)
    sentence = pb.Sentence(encoding=_WIRE[encoding], count=count, width=width, data=data, scales=scales)
    unpack(sentence)  # rounding up may carry a token just past the norm limit: better said here than by the server
    return sentence


def unpack(sentence: pb.Sentence, *, width: int | None = None, max_tokens: int = MAX_TOKENS) -> NDArray[np.float32]:
    """Tokens from their wire form, float32 (count, width), a fresh contiguous array.

    width: numbers per token the receiver needs; None accepts any up to MAX_WIDTH.
    max_tokens: most tokens the receiver takes.
    Raises BadQuery naming what is wrong: unknown encoding, count or width out of range, bytes that do not add
    up, integers outside their range, a scale that is not positive and finite, numbers that are not finite, a
    token longer than MAX_TOKEN_NORM.
    """
    encoding = _ENCODING.get(int(sentence.encoding))
    if encoding is None:
        raise BadQuery(
            f"sentence: unknown token encoding {int(sentence.encoding)}; "
            f"use one of {', '.join(Encoding)} ({min(_ENCODING)} to {max(_ENCODING)})"
        )
    count = sentence.count
    if not 1 <= count <= max_tokens:
        raise BadQuery(f"sentence: {count} tokens; between 1 and {max_tokens} are accepted")
    if width is not None and sentence.width != width:
        raise BadQuery(f"sentence: tokens of width {sentence.width}; this token space has width {width}")
    if not 1 <= sentence.width <= MAX_WIDTH:
        raise BadQuery(f"sentence: tokens of width {sentence.width}; between 1 and {MAX_WIDTH} are accepted")
    shape = (count, sentence.width)
    _check_length(sentence.data, _data_bytes(encoding, *shape), "data", encoding, shape)
    scales_bytes = 4 * count if encoding in _LEVELS else 0
    _check_length(sentence.scales, scales_bytes, "scales", encoding, shape)

    if encoding in _LEVELS:
        whole = _integers(sentence.data, encoding, count * sentence.width)
        values = whole.reshape(shape) * _scales(sentence.scales)[:, None]
    else:
        values = np.frombuffer(sentence.data, "<f4" if encoding is Encoding.F32 else "<f2").reshape(shape)
    return _checked(values)


def _known(encoding: Encoding | str) -> Encoding:
    try:
        return Encoding(encoding)
    except ValueError:
        raise BadQuery(f"unknown token encoding {encoding!r}; use one of {', '.join(Encoding)}") from None


def _checked_matrix(tokens: NDArray[Any]) -> NDArray[np.float32]:
    if tokens.ndim != 2:
        raise BadQuery(f"sentence: tokens must be a matrix (count, width); came shape {tokens.shape}")
    if tokens.dtype.kind != "f":
        raise BadQuery(f"sentence: tokens must be floating point numbers; came dtype {tokens.dtype}")
    if not 1 <= tokens.shape[0] <= MAX_TOKENS:
        raise BadQuery(f"sentence: {tokens.shape[0]} tokens; between 1 and {MAX_TOKENS} are accepted")
    if not 1 <= tokens.shape[1] <= MAX_WIDTH:
        raise BadQuery(f"sentence: tokens of width {tokens.shape[1]}; between 1 and {MAX_WIDTH} are accepted")
    return _checked(tokens)


def _checked(tokens: NDArray[Any]) -> NDArray[np.float32]:
    """tokens (count, width) as float32, a copy. Refuses non-finite numbers and overlong tokens."""
    with np.errstate(invalid="ignore"):  # converting a signalling NaN warns; it is refused just below
        values = tokens.astype(np.float64)  # so that nothing overflows before it is looked at
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise BadQuery(f"sentence: token {row} holds {values[row, column]} at position {column}; all must be finite")
    with np.errstate(over="ignore"):  # a float64 near its limit squares to inf, which is refused below
        norms = np.sqrt(np.square(values).sum(axis=1))
    worst = int(norms.argmax())
    if norms[worst] > MAX_TOKEN_NORM * (1 + 1e-6):  # 1e-6: a scale is rounded to float32
        raise BadQuery(f"sentence: token {worst} has length {norms[worst]:.4g}; at most {MAX_TOKEN_NORM:g} is accepted")
    return values.astype(np.float32)


def quantise(values: NDArray[np.float32], levels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """values (count, width) -> whole numbers of that shape in [-levels, levels], positive scales (count,).

    The rule of int8 and int4, for any number of levels up to 127; benchmarks try others than those that travel."""
    peaks = np.abs(values).max(axis=1).astype(np.float64)
    usable = peaks / levels >= _SMALLEST_SCALE
    scales = np.where(usable, peaks / levels, 1.0).astype(np.float32)
    whole = np.rint(values.astype(np.float64) / scales.astype(np.float64)[:, None])
    return np.clip(whole, -levels, levels).astype(np.int8), scales


def _join_nibbles(whole: NDArray[np.int8]) -> bytes:
    nibbles = (whole.ravel().astype(np.int16) & 0xF).astype(np.uint8)
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()


def _data_bytes(encoding: Encoding, count: int, width: int) -> int:
    numbers = count * width
    return {
        Encoding.F32: 4 * numbers,
        Encoding.F16: 2 * numbers,
        Encoding.INT8: numbers,
        Encoding.INT4: (numbers + 1) // 2,
    }[encoding]


def _check_length(came: bytes, wanted: int, what: str, encoding: Encoding, shape: tuple[int, int]) -> None:
    if len(came) != wanted:
        raise BadQuery(
            f"sentence: {what} has {len(came)} bytes; {shape[0]} tokens of width {shape[1]} as {encoding} need {wanted}"
        )


def _integers(data: bytes, encoding: Encoding, numbers: int) -> NDArray[np.float64]:
    """data -> (numbers,) whole numbers within the encoding's range."""
    if encoding is Encoding.INT8:
        whole = np.frombuffer(data, np.int8)
    else:
        pairs = np.frombuffer(data, np.uint8)
        nibbles = np.stack([pairs & 0xF, pairs >> 4], axis=1).ravel()
        if numbers % 2 and nibbles[-1] != 0:
            raise BadQuery("sentence: the unused last half byte of int4 data must be 0")
        whole = nibbles[:numbers].astype(np.int8)
        whole = np.where(whole > 7, whole - 16, whole)
    levels = _LEVELS[encoding]
    if int(whole.min()) < -levels:
        raise BadQuery(f"sentence: {encoding} data holds {int(whole.min())}; the range is -{levels} to {levels}")
    return whole.astype(np.float64)


def _scales(data: bytes) -> NDArray[np.float64]:
    """data -> (count,) scales, positive and finite."""
    scales = np.frombuffer(data, "<f4")
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise BadQuery(f"sentence: token {row} has scale {scales[row]}; a scale must be positive and finite")
    return scales.astype(np.float64)
