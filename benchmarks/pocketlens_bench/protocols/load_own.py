"""Own queries: queries.jsonl beside a folder of pictures.

    {"id": "q1", "reference": "cups/a.jpg", "text": "in red", "targets": ["cups/b.jpg"], "exclude": ["cups/a.jpg"]}

`id` (the line's number where it is absent), `reference` or `text` (one of them at least), `targets` (or `target`),
`exclude`; a `caption`, which training reads, is passed over. Paths
are relative to the pictures' folder: ROOT/pictures if there is one, else ROOT. gallery.txt, a path a line, names the
gallery; without it every picture is in it."""

import json
from pathlib import Path

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import (
    BadSet,
    Entry,
    Shelf,
    first_of,
    known,
    parsed,
    read_lines,
    safe,
    unique,
    with_pictures,
)
from pocketlens_bench.protocols.task import Query, Task

QUERIES, GALLERY, PICTURES = "queries.jsonl", "gallery.txt", "pictures"


def load_own(root: Path, reading: Reading) -> list[Task]:
    """One task. Where rankings are scored and the pictures are not at hand either, and no gallery.txt says which they
    were, the gallery is what the queries name. Raises BadSet naming the line."""
    file = first_of(root, QUERIES)
    queries = _queries(file)
    shelf = Shelf(root / PICTURES if (root / PICTURES).is_dir() else root)
    listed = root / GALLERY
    notes: list[str] = []
    if listed.is_file():
        gallery = unique((str(safe(line.strip(), f"{listed}, line {at}")) for at, line in read_lines(listed)), listed)
    elif shelf.every() or reading.pictures:
        gallery = tuple(shelf.every())
    else:
        gallery = tuple(sorted({name for query in queries for name in query.relevant | query.exclude}))
        notes.append(
            "the gallery is what the queries name: give gallery.txt, or rankings of other pictures are refused"
        )
    if reading.pictures and not gallery:
        raise BadSet(f"{shelf.folder} holds no pictures; those that {QUERIES} names are looked for there")
    there = frozenset(gallery)
    for query in queries:
        known(sorted(query.relevant | query.exclude), there, f"{file}, query {query.id}", "picture")
    task = Task(name="own", gallery=gallery, queries=tuple(queries), notes=tuple(notes))
    if not reading.pictures:
        return [task]
    needed = [*gallery, *(query.reference for query in queries if query.reference)]
    return [with_pictures(task, {name: shelf.find(name) for name in needed}, reading)]


def _queries(file: Path) -> list[Query]:
    queries: dict[str, Query] = {}
    for number, line in read_lines(file):
        where = f"{file}, line {number}"
        try:
            entry = Entry(where, parsed(line))
        except json.JSONDecodeError as error:
            raise BadSet(f"{where}: not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise BadSet(f"{where}: {error}") from error
        query = _query(entry, number)
        if query.id in queries:
            raise BadSet(f"{where}: id {query.id} is there twice")
        queries[query.id] = query
    if not queries:
        raise BadSet(f"{file} holds no query")
    return list(queries.values())


def _query(entry: Entry, number: int) -> Query:
    entry.only("id", "reference", "text", "target", "targets", "exclude", "caption")  # as training's files have them
    reference = str(safe(entry.text("reference"), entry.where)) if entry.has("reference") else None
    text = entry.text("text").strip() if entry.has("text") else ""
    if reference is None and not text:
        raise entry.wrong("neither `reference` nor `text`: there is nothing to ask")
    if entry.has("target") and entry.has("targets"):
        raise entry.wrong("`target` and `targets`: give one of them")
    targets = [entry.text("target")] if entry.has("target") else entry.list_of("targets", str)
    if not targets:
        raise entry.wrong("`targets` is empty: a query without a right answer cannot be judged")
    names = {
        key: frozenset(str(safe(name, entry.where)) for name in found)
        for key, found in (
            ("targets", targets),
            ("exclude", entry.list_of("exclude", str) if entry.has("exclude") else []),
        )
    }
    if both := sorted(names["targets"] & names["exclude"]):
        raise entry.wrong(f"{both[0]} is a target and excluded")
    return Query(
        id=entry.text("id") if entry.has("id") else str(number), reference=reference, texts=(text,) if text else (),
        relevant=names["targets"], exclude=names["exclude"],
    )  # fmt: skip
