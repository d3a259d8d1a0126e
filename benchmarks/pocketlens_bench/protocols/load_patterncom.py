"""PatternCom's files: patternnet.csv (path, -, class; spaces between), PatternCom/{attribute}.csv (file, attribute,
value; commas between, no header), and PatternNet's pictures."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import BadSet, Shelf, check_count, first_of, read_lines, unique, with_pictures
from pocketlens_bench.protocols.task import Query, Task

ATTRIBUTES = ("color", "context", "density", "existence", "quantity", "shape")
GALLERY = 30_400
MERGED = {  # class as merged, and the attribute for which the choice of words merges too
    "denseresidential": ("residential", "density"), "sparseresidential": ("residential", "density"),
    "closedroad": ("road", "shape"), "intersection": ("road", "shape"),
    "bridge": ("roadpass", "context"), "overpass": ("roadpass", "context"),
    "ferryterminal": ("pier", "existence"), "harbor": ("pier", "existence"),
    "parkingspace": ("parking", "existence"), "parkinglot": ("parking", "existence"),
}  # fmt: skip
HEADER = {"filename", "file", "image", "attribute", "value", "path"}


def load_patterncom(root: Path, reading: Reading) -> list[Task]:
    """One task; a query's group is its attribute. Raises BadSet."""
    listing = first_of(root, "patternnet.csv", "PatternNet/patternnet.csv")
    listed = list(_listed(listing))
    gallery = unique((name for name, _ in listed), listing)
    paths = dict(listed)
    notes = check_count("gallery pictures", len(gallery), GALLERY, listing, reading)
    queries = [query for attribute in ATTRIBUTES for query in _queries(root, attribute, paths, notes)]
    task = Task(name="patternnet", gallery=gallery, queries=tuple(queries), notes=tuple(notes))
    if not reading.pictures:
        return [task]
    shelf = Shelf(first_of(listing.parent, "images", "."))
    at = {PurePosixPath(found).name: found for found in shelf.every()}  # the name alone counts, in whatever folder
    return [with_pictures(task, {name: shelf.find(at.get(name, name)) for name in gallery}, reading)]


def class_of(file: str) -> str:
    """A picture's class: its name up to the first digit."""
    return file[: next((at for at, letter in enumerate(file) if letter.isdigit()), len(file))]


def merged(kind: str, attribute: str | None = None) -> str:
    """The class as merged; with an attribute only where that one's words merge."""
    name, of = MERGED.get(kind, (kind, attribute))
    return name if attribute is None or of == attribute else kind


def _listed(listing: Path) -> Iterator[tuple[str, str]]:
    for number, line in read_lines(listing):
        fields = line.split()
        if len(fields) < 3:
            raise BadSet(f"{listing}, line {number}: expected path, -, class with spaces between, found {line[:60]!r}")
        yield PurePosixPath(fields[0]).name, fields[0]


def _queries(root: Path, attribute: str, paths: Mapping[str, str], notes: list[str]) -> Iterator[Query]:
    file = first_of(root, f"PatternCom/{attribute}.csv", f"PatternNet/PatternCom/{attribute}.csv", f"{attribute}.csv")
    value_of = _values(file, paths, notes)
    words: dict[str, dict[str, None]] = defaultdict(dict)
    right: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, value in value_of.items():
        words[merged(class_of(name), attribute)][value] = None
        right[merged(class_of(name)), value].add(name)
    shared = {key: frozenset(names) for key, names in right.items()}
    for name, value in value_of.items():
        for other in words[merged(class_of(name), attribute)]:
            if other != value:
                yield Query(
                    id=f"{attribute}/{name}/{other}", reference=name, texts=(other,), group=attribute,
                    relevant=shared[merged(class_of(name)), other],
                )  # fmt: skip


def _values(file: Path, paths: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Value by picture; a picture that is there twice keeps its last, as in the official code, and is noted."""
    values: dict[str, str] = {}
    for number, line in read_lines(file):
        try:
            fields = [field.strip() for field in next(csv.reader([line]))]
        except csv.Error as error:
            raise BadSet(f"{file}, line {number}: {error}") from error
        if len(fields) < 3 or not all(fields[:3]):
            raise BadSet(
                f"{file}, line {number}: expected file, attribute, value with commas between, found {line[:60]!r}"
            )
        if number == 1 and HEADER & {field.lower() for field in fields}:
            raise BadSet(f"{file}, line 1 is a header, which the official code would read as data: delete it")
        name = PurePosixPath(fields[0]).name
        if name not in paths:
            raise BadSet(
                f"{file}, line {number}: {name} is not in patternnet.csv; the official code would misalign here"
            )
        if name in values:
            notes.append(f"{file.name}: {name} is there twice, its last value counts")
        values[name] = fields[2]
    return values
