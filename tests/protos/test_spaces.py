"""Ids: the same things give the same id everywhere; anything that changes a meaning changes it."""

import hashlib

import numpy as np
import pytest
from pocketlens_wire.spaces import digest_arrays, mint


def test_the_digest_is_the_documented_one():
    head = b'["w", "<f4", [1, 2]]'
    wanted = hashlib.sha256(len(head).to_bytes(8, "little") + head + bytes.fromhex("0000803f 000000c0")).hexdigest()
    assert digest_arrays({"w": np.array([[1, -2]], np.float32)}) == wanted


def test_order_layout_and_endianness_do_not_matter():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    vector = np.array([7, 8], np.int64)
    same = [
        {"a": matrix, "b": vector},
        {"b": vector, "a": matrix},
        {"a": np.asfortranarray(matrix), "b": vector},
        {"a": matrix.astype(">f4"), "b": vector.astype(">i8")},
        {"a": np.repeat(matrix, 2, axis=1)[:, ::2], "b": vector},
    ]
    assert len({digest_arrays(each) for each in same}) == 1


def test_names_types_shapes_and_values_matter():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    different = [
        {},
        {"a": matrix},
        {"b": matrix},
        {"a": matrix.T},
        {"a": matrix.reshape(3, 2)},
        {"a": matrix.astype(np.float64)},
        {"a": matrix.view(np.int32)},
        {"a": matrix + 1},
        {"a": matrix[:1], "b": matrix[1:]},
        {"a": np.negative(matrix * 0)},  # -0 is other bits than 0
        {"a": matrix * 0},
    ]
    assert len({digest_arrays(each) for each in different}) == len(different)


def test_a_scalar_is_not_a_vector_of_one():
    assert digest_arrays({"a": np.float32(1)}) != digest_arrays({"a": np.ones(1, np.float32)})  # type: ignore[dict-item]


def test_objects_have_no_digest():
    with pytest.raises(TypeError, match="'names' holds Python objects"):
        digest_arrays({"names": np.array(["x", None], dtype=object)})


def test_ids_are_stable_across_versions():
    canonical = b'{"kind":"token-space","parts":{"prompt":"a photo of {sentence}","weights":"00ff"}}'
    parts = {"weights": "00ff", "prompt": "a photo of {sentence}"}
    assert mint("token-space", parts) == "ts-" + hashlib.sha256(canonical).hexdigest()[:16]


def test_kind_and_parts_matter_and_order_does_not():
    ids = {
        mint("token-space", {"a": "1", "b": "2"}),
        mint("token-space", {"b": "2", "a": "1"}),
        mint("gallery-space", {"a": "1", "b": "2"}),
        mint("encoder", {"a": "1", "b": "2"}),
        mint("encoder", {"a": "1b", "b": "2"}),
        mint("encoder", {"a": "1", "c": "2"}),
    }
    assert len(ids) == 5
    assert {each.split("-")[0] for each in ids} == {"ts", "gs", "enc"}
    assert {len(each.split("-")[1]) for each in ids} == {16}


def test_an_id_of_nothing_or_of_something_else_is_refused():
    with pytest.raises(ValueError, match="at least one part"):
        mint("encoder", {})
    with pytest.raises(ValueError, match="unknown kind of id 'colour-space'"):
        mint("colour-space", {"a": "1"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="part 'a' of the encoder id must be a string, came int"):
        mint("encoder", {"a": 1})  # type: ignore[dict-item]
