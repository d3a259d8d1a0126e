"""The token codec: exact bytes, worked out by hand; error bounds; and every way a message is refused."""

import contextlib
import re

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pocketlens_wire.errors import BadQuery
from pocketlens_wire.limits import MAX_TOKEN_NORM, MAX_TOKENS, MAX_WIDTH
from pocketlens_wire.tokens import Encoding, pack, unpack
from pocketlens_wire.v1 import retrieval_pb2 as pb

ONE = "0000803f"  # 1.0 as little-endian float32
TWO = "00000040"

# (encoding, tokens, data, scales, tokens after the round trip)
GOLDEN = [
    (
        Encoding.F32,
        [[1.0, -2.0], [0.5, -0.0]],
        "0000803f 000000c0 0000003f 00000080",
        "",
        [[1.0, -2.0], [0.5, -0.0]],
    ),
    (Encoding.F16, [[1.0, -2.0], [0.5, -0.0]], "003c 00c0 0038 0080", "", [[1.0, -2.0], [0.5, -0.0]]),
    (
        Encoding.INT8,
        # scale 1, with ties 0.5 -> 0 and 1.5 -> 2; all zero; scale 2, with ties 0.5 -> 0, 1.5 -> 2, 2.5 -> 2
        [[127, -64, 0.5, 1.5], [0, 0, 0, -0.0], [-254, 1, 3, 5]],
        "7f c0 00 02  00 00 00 00  81 00 02 02",
        ONE + ONE + TWO,
        [[127, -64, 0, 2], [0, 0, 0, 0], [-254, 0, 4, 4]],
    ),
    (
        Encoding.INT4,
        # integers 7 -3 0 2 -7 and 0 7 -1 3 0, low nibble first, running on over the row's end
        [[7, -3, 0.5, 1.5, -7], [0, 14, -2, 6, 1]],
        "d7 20 09 f7 03",
        ONE + TWO,
        [[7, -3, 0, 2, -7], [0, 14, -2, 6, 0]],
    ),
    (Encoding.INT4, [[7, -7, -1]], "97 0f", ONE, [[7, -7, -1]]),  # odd count: last high nibble is 0
]


@pytest.mark.parametrize(("encoding", "tokens", "data", "scales", "back"), GOLDEN)
def test_exact_bytes(encoding, tokens, data, scales, back):
    sentence = pack(np.array(tokens, np.float32), encoding)
    assert sentence.data.hex() == data.replace(" ", "")
    assert sentence.scales.hex() == scales
    assert (sentence.count, sentence.width) == np.shape(tokens)
    came = unpack(sentence)
    assert came.dtype == np.float32
    assert came.flags.c_contiguous
    assert came.flags.writeable
    np.testing.assert_array_equal(came, np.array(back, np.float32))


def test_the_sign_of_zero_survives_in_floats():
    for encoding in (Encoding.F32, Encoding.F16):
        assert np.signbit(unpack(pack(np.array([[-0.0, 0.0]], np.float32), encoding))).tolist() == [[True, False]]


def test_exact_bytes_of_the_whole_message():
    sentence = pack(np.array([[127, -1]], np.float32))
    wanted = "0803 1001 1802 2202 7fff 2a04 0000803f".replace(" ", "")
    assert sentence.SerializeToString(deterministic=True).hex() == wanted


def test_exact_bytes_of_a_request():
    request = pb.SearchRequest(
        token_space="ts-1",
        encoder="enc-2",
        sentence=pack(np.array([[127, -1]], np.float32)),
        words="red",
        mode=pb.MODE_TUNED,
        top=10,
        filter=[pb.Condition(key="k", equals=pb.Value(integer=5))],
        gallery_space="gs-3",
    )
    wanted = (
        "0a04 74732d31  1205 656e632d32  1a10 0803 1001 1802 2202 7fff 2a04 0000803f"
        "2203 726564  2802  300a  3a07 0a01 6b 1202 1005  4204 67732d33"
    )
    assert request.SerializeToString(deterministic=True).hex() == wanted.replace(" ", "")


def test_four_tokens_of_width_768_and_64_words_stay_under_4_kb():
    tokens = np.random.default_rng(0).normal(size=(4, 768)).astype(np.float32)
    words = " ".join(["pattern"] * 64)
    sizes = {}
    for encoding in (Encoding.INT8, Encoding.INT4):
        request = pb.SearchRequest(
            token_space="ts-" + "0" * 16,
            encoder="enc-" + "0" * 16,
            sentence=pack(tokens, encoding),
            words=words,
            top=10,
        )
        sizes[encoding] = request.ByteSize()
    assert sizes[Encoding.INT8] < 4096
    assert sizes[Encoding.INT4] < 2200


# --- round trips

bounded = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=MAX_TOKENS),
    elements=st.floats(-100, 100, width=32),
)


@given(bounded)
def test_f32_is_exact(tokens):
    np.testing.assert_array_equal(unpack(pack(tokens, Encoding.F32)), tokens)


@given(bounded)
def test_f16_is_off_by_half_a_step_at_most(tokens):
    back = unpack(pack(tokens, Encoding.F16))
    assert (np.abs(back - tokens) <= np.maximum(np.abs(tokens) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize(("encoding", "levels"), [(Encoding.INT8, 127), (Encoding.INT4, 7)])
@given(tokens=bounded)
def test_integers_are_off_by_half_a_step_at_most(encoding, levels, tokens):
    sentence = pack(tokens, encoding)
    scales = np.frombuffer(sentence.scales, "<f4")
    peaks = np.abs(tokens).max(axis=1)
    usable = peaks / np.float64(levels) >= np.finfo(np.float32).tiny
    np.testing.assert_array_equal(scales, np.where(usable, peaks / np.float64(levels), 1).astype(np.float32))
    wrong = np.abs(unpack(sentence).astype(np.float64) - tokens)
    assert (wrong <= scales[:, None] * (0.5 + 1e-4)).all()  # 1e-4: the product is rounded to float32


@given(bounded, st.sampled_from(Encoding))
def test_negating_the_tokens_negates_what_arrives(tokens, encoding):
    np.testing.assert_array_equal(unpack(pack(-tokens, encoding)), -unpack(pack(tokens, encoding)))


@pytest.mark.parametrize("encoding", Encoding)
def test_layout_precision_and_byte_order_of_the_input_do_not_matter(encoding):
    tokens = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    plain = pack(tokens, encoding)
    assert pack(np.asfortranarray(tokens), encoding) == plain
    assert pack(np.repeat(tokens, 2, axis=1)[:, ::2], encoding) == plain
    assert pack(tokens.astype(np.float64), encoding) == plain
    assert pack(tokens.astype(">f4"), encoding) == plain
    assert pack(tokens, str(encoding)) == plain  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", [Encoding.INT8, Encoding.INT4])
@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-45, 1e-38])
def test_a_token_too_small_for_a_scale_is_zero_with_scale_one(encoding, tiny):
    sentence = pack(np.array([[tiny, tiny], [3, 4]], np.float32), encoding)
    assert np.frombuffer(sentence.scales, "<f4")[0] == 1.0
    assert unpack(sentence)[0].tolist() == [0, 0]


# --- what pack refuses


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.zeros((0, 4), np.float32), "0 tokens"),
        (np.zeros((MAX_TOKENS + 1, 4), np.float32), "17 tokens"),
        (np.zeros((4, 0), np.float32), "width 0"),
        (np.zeros((1, MAX_WIDTH + 1), np.float32), "width 4097"),
        (np.zeros(4, np.float32), "shape (4,)"),
        (np.zeros((1, 2, 3), np.float32), "shape (1, 2, 3)"),
        (np.zeros((2, 2), np.int8), "dtype int8"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros((2, 2), np.complex64), "dtype complex64"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([[1, np.nan]]), "token 0 holds nan at position 1"),
        (np.array([[1, 2], [np.inf, 0]]), "token 1 holds inf at position 0"),
        (np.array([[1e30, 0]]), "has length 1e+30"),
        (np.array([[1e300, 1e300]]), "has length inf"),
        (np.array([[MAX_TOKEN_NORM * 1.01, 0]]), "at most 10000"),
    ],
)
@pytest.mark.parametrize("encoding", Encoding)
def test_pack_refuses_by_name(tokens, says, encoding):
    with pytest.raises(BadQuery, match=re.escape(says)):
        pack(tokens, encoding)


def test_pack_refuses_an_unknown_encoding():
    with pytest.raises(BadQuery, match="'int2'; use one of f32, f16, int8, int4"):
        pack(np.zeros((1, 1), np.float32), "int2")  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", Encoding)
def test_a_token_just_within_the_norm_is_taken_by_both_sides(encoding):
    tokens = np.array([[MAX_TOKEN_NORM, 0]], np.float32)
    assert np.abs(unpack(pack(tokens, encoding)) - tokens).max() <= MAX_TOKEN_NORM * 1e-3


# --- what unpack refuses


def altered(encoding: Encoding, /, **fields: object) -> pb.Sentence:
    sentence = pack(np.array([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]], np.float32), encoding)
    for name, value in fields.items():
        setattr(sentence, name, value)
    return sentence


NAN, INF, MINUS_INF = "0000c07f", "0000807f", "000080ff"


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"encoding": 0}, "unknown token encoding 0"),
        ({"encoding": 99}, "unknown token encoding 99"),
        ({"count": 0}, "0 tokens"),
        ({"count": 17}, "17 tokens"),
        ({"count": 2**32 - 1}, "4294967295 tokens"),
        ({"width": 0}, "width 0"),
        ({"width": 4097}, "width 4097"),
        ({"width": 2**32 - 1}, "width 4294967295"),
        ({"count": 1}, "bytes"),
        ({"width": 5}, "bytes"),
        ({"data": b""}, "data has 0 bytes"),
        ({"data": b"\0" * 1000}, "data has 1000 bytes"),
        ({"scales": b"\0\0\x80\x3f"}, "scales has 4 bytes"),
        ({"scales": b"\0\0\x80\x3f" * 3}, "scales has 12 bytes"),
    ],
)
def test_unpack_refuses_by_name(encoding, fields, says):
    with pytest.raises(BadQuery, match=re.escape(says)):
        unpack(altered(encoding, **fields))


@pytest.mark.parametrize("encoding", [Encoding.INT8, Encoding.INT4])
@pytest.mark.parametrize("scale", ["00000000", "00000080", "000080bf", NAN, INF, MINUS_INF, "010080ff"])
def test_unpack_refuses_a_scale_that_is_not_positive_and_finite(encoding, scale):
    sentence = altered(encoding, scales=bytes.fromhex(ONE + scale))
    with pytest.raises(BadQuery, match=r"token 1 has scale .*positive and finite"):
        unpack(sentence)


@pytest.mark.parametrize("encoding", [Encoding.INT8, Encoding.INT4])
def test_unpack_refuses_a_scale_that_makes_the_token_overlong(encoding):
    sentence = altered(encoding, scales=bytes.fromhex(ONE + "ffff7f7f"))  # the largest float32
    with pytest.raises(BadQuery, match=r"token 1 has length .*e\+"):
        unpack(sentence)


@pytest.mark.parametrize("encoding", [Encoding.INT8, Encoding.INT4])
def test_unpack_refuses_scales_left_out(encoding):
    with pytest.raises(BadQuery, match=r"scales has 0 bytes; 2 tokens of width 3 as int. need 8"):
        unpack(altered(encoding, scales=b""))


@pytest.mark.parametrize("encoding", [Encoding.F32, Encoding.F16])
def test_unpack_refuses_scales_where_none_belong(encoding):
    with pytest.raises(BadQuery, match=r"scales has 8 bytes; .* need 0"):
        unpack(altered(encoding, scales=bytes.fromhex(ONE * 2)))


@pytest.mark.parametrize("number", [NAN, INF, MINUS_INF, "0100807f"])  # the last is a signalling NaN
def test_unpack_refuses_numbers_that_are_not_finite(number):
    sentence = altered(Encoding.F32)
    sentence.data = sentence.data[:8] + bytes.fromhex(number) + sentence.data[12:]
    with pytest.raises(BadQuery, match=r"token 0 holds .* at position 2"):
        unpack(sentence)


@pytest.mark.parametrize("number", ["007e", "007c", "00fc", "017c"])
def test_unpack_refuses_halves_that_are_not_finite(number):
    sentence = altered(Encoding.F16)
    sentence.data = sentence.data[:10] + bytes.fromhex(number)
    with pytest.raises(BadQuery, match=r"token 1 holds .* at position 2"):
        unpack(sentence)


def test_unpack_refuses_integers_outside_the_symmetric_range():
    with pytest.raises(BadQuery, match="int8 data holds -128; the range is -127 to 127"):
        unpack(altered(Encoding.INT8, data=b"\x80" + b"\0" * 5))
    with pytest.raises(BadQuery, match="int4 data holds -8; the range is -7 to 7"):
        unpack(altered(Encoding.INT4, data=b"\x80\0\0"))


def test_unpack_refuses_padding_that_is_not_zero():
    sentence = pack(np.array([[7, -7, -1]], np.float32), Encoding.INT4)
    sentence.data = b"\x97\x1f"
    with pytest.raises(BadQuery, match="last half byte"):
        unpack(sentence)


def test_unpack_holds_to_the_receivers_width_and_count():
    sentence = pack(np.ones((4, 3), np.float32))
    assert unpack(sentence, width=3, max_tokens=4).shape == (4, 3)
    with pytest.raises(BadQuery, match="width 3; this token space has width 5"):
        unpack(sentence, width=5)
    with pytest.raises(BadQuery, match="4 tokens; between 1 and 3"):
        unpack(sentence, max_tokens=3)


@pytest.mark.parametrize("encoding", Encoding)
def test_every_truncation_of_a_message_is_refused(encoding):
    whole = altered(encoding).SerializeToString()
    for length in range(len(whole)):
        with pytest.raises((DecodeError, BadQuery)):
            unpack(pb.Sentence.FromString(whole[:length]))


@given(
    encoding=st.sampled_from(
        [pb.TOKEN_ENCODING_F32, pb.TOKEN_ENCODING_F16, pb.TOKEN_ENCODING_INT8, pb.TOKEN_ENCODING_INT4]
    ),
    count=st.integers(1, 3),
    width=st.integers(1, 3),
    material=st.binary(min_size=48, max_size=48),
)
def test_whatever_the_bytes_say_what_is_accepted_is_finite_and_bounded(encoding, count, width, material):
    halves = {1: 8 * count * width, 2: 4 * count * width, 3: 2 * count * width, 4: count * width + 1}
    data = material[: halves[encoding] // 2]
    scales = material[-4 * count :] if encoding > pb.TOKEN_ENCODING_F16 else b""
    try:
        tokens = unpack(pb.Sentence(encoding=encoding, count=count, width=width, data=data, scales=scales))
    except BadQuery:
        return
    assert tokens.shape == (count, width)
    assert np.isfinite(tokens).all()
    assert (np.linalg.norm(tokens.astype(np.float64), axis=1) <= MAX_TOKEN_NORM * (1 + 1e-6)).all()


@given(st.binary(max_size=64))
def test_random_bytes_never_raise_anything_else(blob):
    with contextlib.suppress(DecodeError, BadQuery):  # or they happened to be a sentence
        assert np.isfinite(unpack(pb.Sentence.FromString(blob))).all()
