"""What indexing calls things: a picture's id, its key in the payload, files beside a gallery."""

import hashlib
from typing import Final

PAYLOAD_FILE: Final = "payload.jsonl"
JOURNAL_FILE: Final = "journal.jsonl"
FILE_KEY: Final = "file"  # payload key every indexed picture has: its name in the source


def content_id(data: bytes) -> str:
    """Id of a picture: the first 32 hex digits of the SHA-256 of its file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def lines_of(data: bytes) -> list[str]:
    """The lines of a text in UTF-8, which end in LF or CR LF and nowhere else: str.splitlines also cuts at U+0085,
    U+2028 and others, which may stand in a JSON text and in a file's name. Raises UnicodeDecodeError."""
    return [line.removesuffix("\r") for line in data.decode("utf-8").split("\n")]


def printable(name: str) -> str:
    """A name as UTF-8 can hold it; equal to `name` unless the name on disk is not UTF-8."""
    return name.encode("utf-8", "replace").decode()
