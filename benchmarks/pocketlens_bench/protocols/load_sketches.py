"""The file lists of SAKE and ZSE-SBIR: photos and sketches of the unseen classes of Sketchy, TU-Berlin, QuickDraw.

A line is a relative path, a space and a class number; paths hold spaces too, so the last one counts."""

from dataclasses import dataclass
from pathlib import Path

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import BadSet, check_count, first_of, read_lines, safe, unique, with_pictures
from pocketlens_bench.protocols.task import Query, Task

SKETCHY = ("all_photo_filelist_zero.txt", "sketch_tx_000000000000_ready_filelist_zero.txt")


@dataclass(frozen=True, slots=True)
class Lists:
    """Where a set's lists are, below `home` or below the root itself, and how long they officially are."""

    home: str
    folders: tuple[str, ...]
    photos: str
    sketches: str
    queries: int
    gallery: int


LISTS = {
    "sketchy-25": Lists("Sketchy", ("zeroshot1",), *SKETCHY, 15_229, 17_101),
    "sketchy-21": Lists("Sketchy", ("zeroshot0", "zeroshot2"), *SKETCHY, 12_694, 12_553),
    "tuberlin": Lists(
        "TUBerlin", ("zeroshot",), "ImageResized_ready_filelist_zero.txt", "png_ready_filelist_zero.txt", 2_400, 27_989
    ),
    "quickdraw": Lists("QuickDraw", ("zeroshot",), "all_photo_zero.txt", "sketch_zero.txt", 92_291, 54_151),
}


def load_sketches(root: Path, reading: Reading, name: str) -> list[Task]:
    """One task: every sketch of the unseen classes against all their photos. Raises BadSet."""
    lists = LISTS[name]
    if reading.split not in ("", "zero"):
        raise BadSet(f"{root}: split {reading.split!r} is unknown; the unseen classes are the split `zero`")
    photo_file, sketch_file = _list(root, lists, lists.photos), _list(root, lists, lists.sketches)
    photos, sketches = _lines(photo_file), _lines(sketch_file)
    gallery = unique((path for path, _ in photos), photo_file)
    unique((path for path, _ in sketches), sketch_file)
    of_class: dict[str, list[str]] = {}
    for path, number in photos:
        of_class.setdefault(number, []).append(path)
    relevant = {number: frozenset(paths) for number, paths in of_class.items()}
    queries = tuple(
        Query(id=path, reference=path, relevant=relevant.get(number, frozenset()), group=number)
        for path, number in sketches
    )
    notes = check_count("sketches", len(queries), lists.queries, sketch_file, reading)
    notes += check_count("photos", len(gallery), lists.gallery, photo_file, reading)
    task = Task(name=name, gallery=gallery, queries=queries, notes=tuple(notes))
    if not reading.pictures:
        return [task]
    return [with_pictures(task, _files(root, lists, [path for path, _ in (*photos, *sketches)]), reading)]


def _list(root: Path, lists: Lists, file: str) -> Path:
    return first_of(root, *(f"{home}{folder}/{file}" for home in (f"{lists.home}/", "") for folder in lists.folders))


def _lines(file: Path) -> list[tuple[str, str]]:
    """Path and class number of each line."""
    found: list[tuple[str, str]] = []
    for at, line in read_lines(file):
        path, _, number = line.strip().rpartition(" ")
        if not path or not number.isdecimal():
            raise BadSet(f"{file}, line {at}: expected a path, a space and a class number, found {line[:60]!r}")
        found.append((str(safe(path, f"{file}, line {at}")), number))
    return found


def _files(root: Path, lists: Lists, paths: list[str]) -> dict[str, Path | None]:
    """The paths start from the set's own folder, or from the one above it."""
    homes = [home for home in (root / lists.home, root, root.parent) if home.is_dir()]
    return {path: next((home / path for home in homes if (home / path).is_file()), None) for path in paths}
