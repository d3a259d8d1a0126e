"""Properties of the borders: whatever comes, an answer or a documented refusal, never a fault of ours.

The same examples every run; POCKETLENS_FUZZ=20000 tries so many of each, drawn anew."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from fuzz import border
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pocketlens_wire.v1 import retrieval_pb2 as pb

MANY = int(os.environ.get("POCKETLENS_FUZZ", "0"))
KEPT = Path(__file__).parent / "found"


def examples(count: int) -> settings:
    """So many here; as many as POCKETLENS_FUZZ says, and others each time, where that is set."""
    quiet = list(HealthCheck)
    return settings(
        max_examples=MANY or count, derandomize=not MANY, deadline=None, database=None, suppress_health_check=quiet
    )


# --- messages with the right structure and the wrong values

TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", "red", "colour", "count", "price", "sold", "at", "tags", "\0", "{sentence}", "é" * 3000]),
    st.sampled_from([f"{n:032x}" for n in range(3)]),
)
NUMBER = st.one_of(st.floats(width=32), st.floats(), st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e308, 1e-320]))
FEW = st.sampled_from([0, 1, 2, 3, 10, 2**31 - 1, 2**32 - 1])
SCALAR: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: TEXT,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_UINT32: FEW,
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-3, 5),
    FieldDescriptor.CPPTYPE_DOUBLE: NUMBER,
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
}


def one_of_field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type._concrete_class, depth - 1)
    return st.binary(max_size=40) if field.type == FieldDescriptor.TYPE_BYTES else SCALAR[field.cpp_type]


@st.composite
def messages(draw: Any, kind: type[Message], depth: int = 5) -> Message:
    """Any message of a type, its fields as their types and hardly as their rules have them."""
    made = kind()
    for field in kind.DESCRIPTOR.fields:
        deeper = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
        if (deeper and depth <= 0) or draw(st.integers(0, 2)):
            continue
        count = draw(st.integers(0, 3)) if field.is_repeated else 1
        for _ in range(count):
            value = draw(one_of_field(field, depth))
            if deeper:
                part = getattr(made, field.name)
                (part.add() if field.is_repeated else part).CopyFrom(value)
            elif field.is_repeated:
                getattr(made, field.name).append(value)
            else:
                setattr(made, field.name, value)
    return made


@st.composite
def nearly_good(draw: Any) -> pb.SearchRequest:
    """A good question with a few fields in the place of others."""
    request = border.question()
    odd = draw(messages(pb.SearchRequest))
    for field, value in odd.ListFields():
        if draw(st.booleans()):
            request.ClearField(field.name)
            held = getattr(request, field.name)
            if field.is_repeated:
                held.extend(value)
            elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                held.CopyFrom(value)
            else:
                setattr(request, field.name, value)
    return request


@st.composite
def damaged(draw: Any) -> bytes:
    """A good question's bytes with some of them changed, left out, doubled or put in."""
    whole = bytearray(border.question(where=FILTER, modifiers=[pb.Modifier(words="x", weight=1)]).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(whole)))
        end = place + draw(st.integers(0, 8))
        match draw(st.integers(0, 2)):
            case 0:
                whole[place:end] = draw(st.binary(max_size=8))
            case 1:
                del whole[place:end]
            case _:
                whole[place:place] = whole[place:end]
    return bytes(whole)


FILTER = pb.Filter(
    any_of=[
        pb.Clause(condition=pb.Condition(key="price", between=pb.Between(least=0, most=9))),
        pb.Clause(filter=pb.Filter(none_of=[pb.Clause(condition=pb.Condition(key="colour", says="red"))])),
    ]
)


@examples(250)
@given(nearly_good())
def test_a_question_of_odd_fields_is_answered_or_refused(request):
    border.call(request.SerializeToString())


@examples(250)
@given(messages(pb.Filter, 7))
def test_a_filter_is_applied_or_refused(tree):
    border.call(border.question(where=tree).SerializeToString())


@examples(200)
@given(damaged())
def test_damaged_bytes_are_answered_or_refused(body):
    border.call(body)


@examples(100)
@given(st.binary(max_size=300), st.sampled_from([border.SEARCH, border.DESCRIBE]))
def test_random_bytes_are_answered_or_refused(body, method):
    border.call(body, method)


def test_a_question_cut_off_anywhere_is_answered_or_refused():
    whole = border.question(where=FILTER, payload=pb.Projection(keys=["count"])).SerializeToString()
    assert border.call(whole) is not None
    for size in range(len(whole)):
        border.call(whole[:size])


@examples(80)
@given(st.lists(messages(pb.Turn), max_size=5), st.binary(max_size=20))
def test_a_conversation_of_odd_turns_goes_on_or_ends_as_documented(turns, rest):
    opening = pb.ConverseRequest(open=border.question())
    said = [opening, *(pb.ConverseRequest(turn=turn) for turn in turns)]
    border.converse([*(each.SerializeToString() for each in said), rest])


@examples(150)
@given(
    st.one_of(damaged(), st.binary(max_size=200), st.just(bytes(70_000))),
    st.sampled_from(["application/x-protobuf", "application/json", "", "a" * 500, "\xff;\0"]),
    st.sampled_from(["/v1/search", "/v1/describe"]),
    st.integers(1, 5),
)
def test_a_body_over_http_is_answered_or_refused(body, kind, path, pieces):
    border.http(body, kind=kind, path=path, pieces=pieces)


@examples(300)
@given(messages(pb.Sentence))
def test_tokens_are_finite_numbers_or_refused(sentence):
    border.tokens(sentence.SerializeToString())


@examples(150)
@given(st.binary(max_size=200))
def test_messages_of_gallery_add_are_read_or_refused(body):
    border.gallery_message(body)


# --- pictures


def saved(kind: str, mode: str = "RGB", **how: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 14)).convert(mode).save(file, kind, **how)
    return file.getvalue()


SEEDS = [
    saved("JPEG", progressive=True), saved("PNG", "P"), saved("WEBP"), saved("GIF", "P"), saved("BMP"),
    saved("TIFF", compression="tiff_lzw"), saved("PPM"), saved("JPEG", "CMYK"), saved("TIFF", "I;16"),
]  # fmt: skip


@examples(300)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0), st.binary(max_size=5)), max_size=6), st.integers(0))
def test_a_damaged_file_is_a_picture_or_refused(seed, changes, end):
    data = bytearray(seed)
    for place, new in changes:
        at = place % len(data)
        data[at : at + len(new)] = new
    border.picture(bytes(data[: end % (2 * len(data)) + 1]))


# --- what was found before

BORDERS = {
    "messages": border.call, "filters": border.call, "http": border.http, "tokens": border.tokens,
    "pictures": border.picture, "gallery": border.gallery_message,
}  # fmt: skip


@pytest.mark.parametrize("file", sorted(KEPT.glob("*/*")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_was_found_once_stays_mended(file):
    BORDERS[file.parent.name](file.read_bytes())
