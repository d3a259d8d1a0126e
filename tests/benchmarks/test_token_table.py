"""The token table through the real parts, and who may be in it."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pocketlens_bench.report.console_tables import print_tokens
from pocketlens_bench.students import SHIPPED, gathered
from pocketlens_bench.token_table import PRECISIONS, measure, received, request_bytes
from pocketlens_bench.world import Sizes
from pocketlens_edge.encoder import Encoder
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import read_edge, write
from rich.console import Console

TINY = Sizes(queries=20, gallery=200, sketches=20, sketch_gallery=100)
COUNTS = sorted({read_edge(folder).token_count for folder in [default_bundle(), *SHIPPED.glob("*/")]})


@pytest.fixture(scope="module")
def result():
    return measure(default_bundle(), sizes=TINY, threads=1)


def test_every_student_asks_in_every_precision(result):
    names = [f"k={count}, {precision}" for count in COUNTS for precision in PRECISIONS]
    assert [table["key"] for table in result["tables"]] == ["composed", "picture", "sketch"]
    for table in result["tables"]:
        assert [row["name"] for row in table["rows"]] == names
        assert {row["name"]: row["offered"] for row in table["rows"]}["k=4, int2"] is False
    assert [student["tokens"] for student in result["students"]] == COUNTS
    assert [student["own"] for student in result["students"]].count(True) == 1
    assert result["left_out"] == []


def test_fewer_bits_and_fewer_tokens_are_fewer_bytes(result):
    for table in result["tables"]:
        rows = {(row["tokens"], row["precision"]): row for row in table["rows"]}
        for count in COUNTS:
            sizes = [rows[count, precision]["request_bytes"] for precision in PRECISIONS]
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[-1] == sizes[-2]  # a fitted scale takes no more room than another
        assert [rows[count, "int8"]["token_bytes"] for count in COUNTS] == [count * (192 + 4) for count in COUNTS]
        assert rows[4, "int2"]["token_bytes"] == 4 * (48 + 4)


def test_figures_are_percent_and_differences_are_paired(result):
    table = result["tables"][0]
    rows = {row["name"]: row for row in table["rows"]}
    for row in table["rows"]:
        assert 0 <= row["R@10"]["low"] <= row["R@10"]["value"] <= row["R@10"]["high"] <= 100
    for row in table["differences"]:
        apart = rows[row["of"]]["mAP@10"]["value"] - rows[row["over"]]["mAP@10"]["value"]
        assert row["mAP@10"]["value"] == pytest.approx(apart)
    assert [row["over"] for row in table["differences"] if row["about"] == "tokens"] == ["k=4, int8"] * (
        len(COUNTS) - 1
    )


def test_what_is_printed_names_rows_bytes_and_what_is_not_offered(result):
    page = io.StringIO()
    print_tokens(Console(file=page, width=80), result)
    shown = page.getvalue()
    assert "k=4, int2 *" in shown
    assert "not offered on the wire" in shown
    assert "one training per number of tokens" in shown
    assert "…" not in shown
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_two_bits_know_three_values():
    tokens = [np.array([[1.0, 0.6, 0.4, -0.4, -0.6, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.2]], np.float32)]
    (came,) = received(tokens, "int2")
    assert came.dtype == np.float32
    assert came[0].tolist() == [1, 1, 0, 0, -1, -1]
    assert came[1] == pytest.approx([0, 0, 0, 0, 0, 0.2])
    (three,) = received(tokens, "int3")
    assert three[0] == pytest.approx([1, 2 / 3, 1 / 3, -1 / 3, -2 / 3, -1])


def test_a_fitted_scale_leaves_less_error_than_the_codecs():
    tokens = [np.random.default_rng(0).standard_normal((4, 192)).astype(np.float32)]
    (rule,), (fitted,) = received(tokens, "int2"), received(tokens, "int2 fitted")
    assert np.square(fitted - tokens[0]).sum() < 0.5 * np.square(rule - tokens[0]).sum()
    assert all(len(np.unique(np.abs(row))) == 2 for row in fitted)
    assert not received([np.zeros((1, 4), np.float32)], "int2 fitted")[0].any()


def test_request_bytes_of_an_offered_precision_are_those_of_the_message():
    encoder = Encoder.load(default_bundle())
    tokens = np.ones((4, 192), np.float32)
    of_tokens, of_request = request_bytes(encoder, tokens, "but red", "int8")
    assert of_tokens == 4 * (192 + 4)
    assert of_tokens + 40 < of_request < of_tokens + 100
    assert request_bytes(encoder, tokens, "but red", "int2")[0] == 4 * (48 + 4)


def foreign(folder, tmp_path, **changed):
    """A copy of a device half that says something else of itself."""
    copy = tmp_path / "foreign"
    shutil.copytree(folder, copy)
    write(replace(read_edge(folder), **changed), copy)
    return copy


def test_a_student_of_another_token_space_is_refused_if_named_and_told_if_shipped(tmp_path, monkeypatch):
    other = foreign(SHIPPED / "k2", tmp_path, token_space="ts-0123456789abcdef")
    with pytest.raises(BadBundle, match="its tokens are of ts-0123456789abcdef"):
        gathered(default_bundle(), [other])
    monkeypatch.setattr("pocketlens_bench.students.SHIPPED", tmp_path)
    students, left_out = gathered(default_bundle())
    assert [student.tokens for student in students] == [4]
    assert len(left_out) == 1
    assert left_out[0].startswith("shipped student foreign: its tokens are of")


def test_two_students_with_as_many_tokens_are_refused():
    with pytest.raises(BadBundle, match="two students with 4 tokens"):
        gathered(default_bundle(), [default_bundle()])
