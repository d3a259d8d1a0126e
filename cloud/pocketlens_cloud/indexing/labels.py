"""Payload that is to be stored with pictures: the lines of payload.jsonl."""

import json
from collections.abc import Mapping
from pathlib import Path

from pocketlens_wire.errors import GalleryError

from pocketlens_cloud.gallery.payload import Kind, Value, clip, excess, learn_kinds
from pocketlens_cloud.indexing.names import FILE_KEY, PAYLOAD_FILE, lines_of

Labels = dict[str, Value]


def default_payload(folder: Path) -> Path | None:
    """DIR/payload.jsonl if it is there."""
    path = folder / PAYLOAD_FILE
    return path if path.is_file() else None


def read_payload(path: Path | None, kinds: Mapping[str, Kind]) -> dict[str, Labels]:
    """Payload by file name from lines {"file": ..., "payload": {key: text, number, true or false}}.

    `kinds`: types the gallery has already given to keys. A payload may be too large: that is its picture's trouble, and
    told with it (run.py). Raises GalleryError naming the line."""
    payloads: dict[str, Labels] = {}
    if path is None:
        return payloads
    try:
        lines = lines_of(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, payload = _payload_line(line)
            whole = {FILE_KEY: name, **payload}
            kinds = learn_kinds(kinds, whole)
            excess(whole)  # raises for text that UTF-8 cannot hold
        except (GalleryError, ValueError) as error:
            raise GalleryError(f"{path}, line {number}: {error}") from error
        if name in payloads:
            raise GalleryError(f"{path}, line {number}: {clip(name)} has a line already")
        payloads[name] = payload
    return payloads


def _payload_line(line: str) -> tuple[str, Labels]:
    raw = json.loads(line)
    if not isinstance(raw, dict) or raw.keys() != {"file", "payload"}:
        raise ValueError('expected {"file": "name", "payload": {...}} and no other keys')
    name, payload = raw["file"], raw["payload"]
    if not isinstance(name, str) or not isinstance(payload, dict):
        raise ValueError("`file` must be text and `payload` an object")
    if FILE_KEY in payload:
        raise ValueError(f"payload key `{FILE_KEY}` is taken by the picture's own name")
    return name, payload
