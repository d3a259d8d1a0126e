"""What is said about pictures: JSON lines, read strictly, each mistake with its file and line number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class BadLines(ValueError):
    """A JSON lines file that cannot be learned from: names file, line, what was expected and what came."""


@dataclass(frozen=True)
class Captioned:
    """A picture and what people say of it. group: pictures of one group are shown in one batch, so that their
    differences are learned. attributes: what is known of it, for diagnostics alone."""

    image: str
    captions: tuple[str, ...]
    group: str | None
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Edited:
    """A picture, a caption of another one, and the words that lead from that to this."""

    image: str
    caption: str
    edit: str


@dataclass(frozen=True)
class Triplet:
    """A composed query and the pictures that answer it."""

    reference: str
    text: str
    targets: tuple[str, ...]
    caption: str | None
    """What the target shows, if it is known: then a query of words alone can be learned too."""
    exclude: tuple[str, ...] = ()
    """Pictures that are no answer and no mistake: they are taken out of what is searched."""


@dataclass(frozen=True)
class Told:
    """A caption without a picture, and what one might say to change it."""

    caption: str
    edits: tuple[str, ...]


def digest_of(path: Path) -> str:
    """SHA-256 over a file; of a missing one, which is named when it is read, of nothing."""
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()


def read_pairs(path: Path) -> tuple[list[Captioned], list[Edited]]:
    """{"image", "captions": [...], "group"?, "attributes"?} and {"image", "caption", "edit"}, in any order."""
    plain: dict[str, Captioned] = {}
    edited = []
    for where, line in _lines(path):
        if "edit" in line:
            _known(where, line, {"image", "caption", "edit"})
            edited.append(
                Edited(_text(where, line, "image"), _text(where, line, "caption"), _text(where, line, "edit"))
            )
            continue
        if "caption" in line:
            raise BadLines(
                f"{where}: key 'caption' goes with an 'edit'; captions of the picture are a list, 'captions'"
            )
        _known(where, line, {"image", "captions", "group", "attributes"})
        captions = _texts(where, line, "captions")
        group = None if line.get("group") is None else str(line["group"])
        attributes = line.get("attributes") or {}
        if not isinstance(attributes, dict):
            raise BadLines(f"{where}: key 'attributes' must be an object, came {json.dumps(attributes)[:60]}")
        image = _text(where, line, "image")
        if (known := plain.get(image)) is not None:  # a line for each caption, as some sets have it
            captions, group = (*known.captions, *captions), known.group or group
            attributes = {**known.attributes, **attributes}
        plain[image] = Captioned(image, captions, group, attributes)
    if not plain:
        raise BadLines(f'{path}: no line with a picture and its captions: {{"image": "a.jpg", "captions": ["..."]}}')
    return list(plain.values()), edited


def read_triplets(path: Path) -> list[Triplet]:
    """{"reference", "text", "target"} or {"reference", "text", "targets": [...]}; "caption" of the target is
    optional."""
    found = []
    for where, line in _lines(path):
        _known(where, line, {"id", "reference", "text", "target", "targets", "caption", "exclude"})
        targets = _texts(where, line, "targets") if "targets" in line else (_text(where, line, "target"),)
        caption = _text(where, line, "caption") if line.get("caption") is not None else None
        exclude = _texts(where, line, "exclude") if line.get("exclude") else ()
        found.append(Triplet(_text(where, line, "reference"), _text(where, line, "text"), targets, caption, exclude))
    if not found:
        raise BadLines(f'{path}: no triplet: {{"reference": "a.jpg", "text": "in red", "target": "b.jpg"}}')
    return found


def read_told(path: Path) -> list[Told]:
    """{"caption", "edits": [...]}; "edits" may be missing."""
    found = []
    for where, line in _lines(path):
        _known(where, line, {"caption", "edits"})
        edits = _texts(where, line, "edits") if "edits" in line else ()
        found.append(Told(_text(where, line, "caption"), edits))
    if not found:
        raise BadLines(f'{path}: no caption: {{"caption": "a red mug", "edits": ["make it blue"]}}')
    return found


def read_sketches(path: Path) -> list[tuple[str, str]]:
    """{"sketch", "photo"}: names of sketches and of the photos they were drawn after."""
    found = []
    for where, line in _lines(path):
        _known(where, line, {"sketch", "photo"})
        found.append((_text(where, line, "sketch"), _text(where, line, "photo")))
    if not found:
        raise BadLines(f'{path}: no sketch: {{"sketch": "s.png", "photo": "p.jpg"}}')
    return found


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, the object on it), blank lines left out."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                where = f"{path}:{number}"
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise BadLines(f"{where}: not JSON ({error})") from error
                if not isinstance(line, dict):
                    raise BadLines(f"{where}: a JSON object is expected, came {text.strip()[:60]}")
                yield where, line
    except OSError as error:
        raise BadLines(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise BadLines(f"{path}: not UTF-8 at byte {error.start}") from error


def _known(where: str, line: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(line.keys() - known):
        raise BadLines(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _text(where: str, line: dict[str, Any], key: str) -> str:
    value = line.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadLines(f"{where}: key {key!r} must be a text, came {json.dumps(value)[:60]}")
    return _whole(where, key, value)


def _texts(where: str, line: dict[str, Any], key: str) -> tuple[str, ...]:
    value = line.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadLines(f"{where}: key {key!r} must be a list of texts, came {json.dumps(value)[:60]}")
    if wrong := [each for each in value if not isinstance(each, str) or not each.strip()]:
        raise BadLines(f"{where}: key {key!r} must be a list of texts, holds {json.dumps(wrong[0])[:60]}")
    return tuple(_whole(where, key, each) for each in value)


def _whole(where: str, key: str, text: str) -> str:
    """The same text. Raises BadLines for half a character, which JSON can spell and no file or model can take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadLines(f"{where}: key {key!r} holds half a character, {json.dumps(text)[:60]}") from error
    return text
