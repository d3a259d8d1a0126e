"""The checklist of hostile inputs: every case by name, in seven classes and an eighth for the page.

    pictures.py  files that are pictures, or say so, in all places that take them
    tokens.py    numbers that stand for a picture
    messages.py  protobuf, gRPC's envelope, compression
    words.py     text
    frames.py    HTTP/2
    doors.py     keys
    filters.py   conditions, pages, projections
    pages.py     HTTP/1.1, where the page is built

run.py tries them against a real server and looks after each whether it was harmed."""

from typing import Final

from pocketlens_bench.hostile import doors, filters, frames, messages, pages, pictures, tokens, words
from pocketlens_bench.hostile.case import Case

CHECKLIST: Final[list[Case]] = [
    *pictures.CASES, *tokens.CASES, *messages.CASES, *words.CASES, *frames.CASES, *doors.CASES, *filters.CASES,
    *pages.CASES,
]  # fmt: skip
