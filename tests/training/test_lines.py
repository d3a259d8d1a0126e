"""JSON lines are read strictly: every mistake is a sentence that begins with file and line number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pocketlens_training.sets.lines import (
    BadLines,
    Captioned,
    Edited,
    Told,
    Triplet,
    read_pairs,
    read_sketches,
    read_told,
    read_triplets,
)

PAIR = {"image": "a.jpg", "captions": ["a red mug"]}
TRIPLET = {"reference": "a.jpg", "text": "in red", "target": "b.jpg"}
TOLD = {"caption": "a red mug"}
SKETCH = {"sketch": "s.png", "photo": "p.jpg"}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "lines.jsonl"
    path.write_text("".join(line + "\n" if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_pairs_and_edits_in_any_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"image": "a.jpg", "caption": "a blue mug", "edit": "make it red"},
        "",
        {**PAIR, "group": 7, "attributes": {"colour": "red"}},
        "   ",
        {"image": "b.jpg", "captions": ["one", "two"], "group": None, "attributes": None},
    )
    plain, edited = read_pairs(path)
    assert plain == [
        Captioned("a.jpg", ("a red mug",), "7", {"colour": "red"}),
        Captioned("b.jpg", ("one", "two"), None, {}),
    ]
    assert edited == [Edited("a.jpg", "a blue mug", "make it red")]


def test_triplets_with_one_target_or_several(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {**TRIPLET, "id": "7", "caption": "a red mug"},
        {"reference": "a.jpg", "text": "x", "targets": ["b.jpg", "c.jpg"], "caption": None},
    )
    assert read_triplets(path) == [
        Triplet("a.jpg", "in red", ("b.jpg",), "a red mug"),
        Triplet("a.jpg", "x", ("b.jpg", "c.jpg"), None),
    ]


def test_told_with_and_without_edits(tmp_path: Path) -> None:
    path = written(tmp_path, TOLD, {"caption": "x", "edits": ["a", "b"]})
    assert read_told(path) == [Told("a red mug", ()), Told("x", ("a", "b"))]


def test_sketches(tmp_path: Path) -> None:
    assert read_sketches(written(tmp_path, SKETCH)) == [("s.png", "p.jpg")]


def test_any_script_and_any_line_end(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes('{"caption": "ein grüner 猫"}\r\n{"caption": "zwei"}'.encode())
    assert [one.caption for one in read_told(path)] == ["ein grüner 猫", "zwei"]


MISTAKES: list[tuple[Callable, dict, object, str]] = [
    (read_pairs, PAIR, "{", "not JSON"),
    (read_pairs, PAIR, "[1]", "a JSON object is expected, came [1]"),
    (read_pairs, PAIR, '"text"', "a JSON object is expected"),
    (read_pairs, PAIR, {**PAIR, "imge": 1}, "unknown key 'imge'; known are attributes, captions, group, image"),
    (read_pairs, PAIR, {"captions": ["x"]}, "key 'image' must be a text, came null"),
    (read_pairs, PAIR, {**PAIR, "image": 7}, "key 'image' must be a text, came 7"),
    (read_pairs, PAIR, {**PAIR, "image": "  "}, "key 'image' must be a text"),
    (read_pairs, PAIR, {"image": "a.jpg"}, "key 'captions' must be a list of texts, came null"),
    (read_pairs, PAIR, {**PAIR, "captions": "one"}, "key 'captions' must be a list of texts, came \"one\""),
    (read_pairs, PAIR, {**PAIR, "captions": []}, "key 'captions' must be a list of texts, came []"),
    (read_pairs, PAIR, {**PAIR, "captions": ["x", 3]}, "key 'captions' must be a list of texts, holds 3"),
    (read_pairs, PAIR, {**PAIR, "captions": ["x", ""]}, "key 'captions' must be a list of texts, holds \"\""),
    (read_pairs, PAIR, {**PAIR, "attributes": ["red"]}, "key 'attributes' must be an object"),
    (read_pairs, PAIR, {**PAIR, "edit": "x"}, "unknown key 'captions'; known are caption, edit, image"),
    (read_pairs, PAIR, {"image": "a.jpg", "edit": "x"}, "key 'caption' must be a text, came null"),
    (read_pairs, PAIR, {"image": "a.jpg", "caption": "x", "edit": ""}, "key 'edit' must be a text"),
    (read_triplets, TRIPLET, {**TRIPLET, "targt": 1}, "unknown key 'targt'"),
    (read_triplets, TRIPLET, {"reference": "a", "text": "x"}, "key 'target' must be a text, came null"),
    (read_triplets, TRIPLET, {"reference": "a", "text": "x", "targets": []}, "key 'targets' must be a list"),
    (read_triplets, TRIPLET, {"text": "x", "target": "b"}, "key 'reference' must be a text"),
    (read_triplets, TRIPLET, {"reference": "a", "target": "b"}, "key 'text' must be a text"),
    (read_triplets, TRIPLET, {**TRIPLET, "caption": 3}, "key 'caption' must be a text, came 3"),
    (read_told, TOLD, {"edits": ["x"]}, "key 'caption' must be a text"),
    (read_told, TOLD, {**TOLD, "edits": []}, "key 'edits' must be a list of texts, came []"),
    (read_told, TOLD, {**TOLD, "edit": "x"}, "unknown key 'edit'"),
    (read_sketches, SKETCH, {"sketch": "s"}, "key 'photo' must be a text"),
    (read_sketches, SKETCH, {"photo": "s"}, "key 'sketch' must be a text"),
    (read_sketches, SKETCH, {**SKETCH, "pencil": 2}, "unknown key 'pencil'"),
]


@pytest.mark.parametrize(("read", "good", "wrong", "said"), MISTAKES)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, read, good, wrong, said) -> None:
    path = written(tmp_path, good, "", wrong, good)
    with pytest.raises(BadLines) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("read", [read_pairs, read_triplets, read_told, read_sketches])
def test_files_that_hold_nothing_or_cannot_be_read(tmp_path: Path, read) -> None:
    empty = written(tmp_path, "")
    with pytest.raises(BadLines, match=r"lines\.jsonl: no .*: \{"):  # and an example line
        read(empty)
    with pytest.raises(BadLines, match=r"none\.jsonl: cannot be read \(No such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(BadLines, match="cannot be read"):
        read(tmp_path)
    empty.write_bytes(b'{"caption": "caf\xe9"}\n')
    with pytest.raises(BadLines, match="not UTF-8 at byte 16"):
        read(empty)


def test_edits_alone_are_no_set(tmp_path: Path) -> None:
    path = written(tmp_path, {"image": "a.jpg", "caption": "x", "edit": "y"})
    with pytest.raises(BadLines, match="no line with a picture and its captions"):
        read_pairs(path)


def test_lines_of_one_picture_are_one_picture(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"image": "a.jpg", "captions": ["a mug"]}\n{"image": "b.jpg", "captions": ["a hat"]}\n'
        '{"image": "a.jpg", "captions": ["a red mug"], "group": "g"}\n'
    )
    plain, _ = read_pairs(file)
    assert [(one.image, one.captions, one.group) for one in plain] == [
        ("a.jpg", ("a mug", "a red mug"), "g"),
        ("b.jpg", ("a hat",), None),
    ]
