"""FashionIQ's files: captions/cap.{category}.{split}.json, image_splits/split.{category}.{split}.json, images/."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import (
    BadSet,
    Entry,
    Shelf,
    all_judged,
    check_count,
    entries,
    first_of,
    known,
    read_json,
    unique,
    with_pictures,
)
from pocketlens_bench.protocols.task import Query, Task

CATEGORIES = ("dress", "shirt", "toptee")
OFFICIAL = {  # queries, gallery
    ("dress", "val"): (2017, 3817), ("shirt", "val"): (2038, 6346), ("toptee", "val"): (1961, 5373),
    ("dress", "test"): (2024, 3818), ("shirt", "test"): (2038, 6346), ("toptee", "test"): (2056, 5374),
    ("dress", "train"): (5985, 11452), ("shirt", "train"): (5988, 19036), ("toptee", "train"): (6027, 16121),
}  # fmt: skip
STRIPPED = ".?, "  # from both ends of a caption, as SEARLE and CLIP4Cir do
CAPTIONS = ("captions", "json", "data/captions")
SPLITS = ("image_splits", "data/image_splits")
IMAGES = ("images", "resized_image", "data/images")


def load_fashioniq(root: Path, reading: Reading) -> list[Task]:
    """The original split: a task per category, its gallery the split file in file order. Raises BadSet."""
    split = reading.split or "val"
    shelf = Shelf(first_of(root, *IMAGES)) if reading.pictures else None
    return [_original(root, category, split, reading, shelf) for category in CATEGORIES]


def load_fashioniq_val(root: Path, reading: Reading) -> list[Task]:
    """The VAL protocol: the gallery is the sorted union of references and targets. Raises BadSet."""
    split = reading.split or "val"
    shelf = Shelf(first_of(root, *IMAGES)) if reading.pictures else None
    return [_union(root, category, split, reading, shelf) for category in CATEGORIES]


def texts(captions: Sequence[str]) -> tuple[str, ...]:
    """Both orders of the two captions; one alone where the other is empty."""
    said = [stripped for caption in captions if (stripped := caption.strip(STRIPPED))]
    return (f"{said[0]} and {said[1]}", f"{said[1]} and {said[0]}") if len(said) == 2 else tuple(said)


def _original(root: Path, category: str, split: str, reading: Reading, shelf: Shelf | None) -> Task:
    file, pairs = _pairs(root, category, split)
    names = first_of(root, *(f"{folder}/split.{category}.{split}.json" for folder in SPLITS))
    listed = read_json(names)
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise BadSet(f"{names}: expected a list of picture ids")
    gallery = unique(listed, names)
    there = frozenset(gallery)
    queries = []
    for number, (entry, reference, target, captions) in enumerate(pairs):
        known([name for name in (reference, target) if name], there, entry.where, "picture")
        queries.append(
            Query(
                id=str(number), reference=reference, texts=texts(captions), group=category,
                relevant=frozenset([target] if target else []),
            )
        )  # fmt: skip
    all_judged(queries, file)
    counts = OFFICIAL.get((category, split), (None, None))
    notes = check_count("queries", len(queries), counts[0], file, reading)
    notes += check_count("gallery pictures", len(gallery), counts[1], names, reading)
    return _placed(Task(name=category, gallery=gallery, queries=tuple(queries), notes=tuple(notes)), shelf, reading)


def _union(root: Path, category: str, split: str, reading: Reading, shelf: Shelf | None) -> Task:
    file, pairs = _pairs(root, category, split)
    if any(target is None for _, _, target, _ in pairs):
        raise BadSet(f"{file}: the VAL protocol needs targets; split {split} has none")
    gallery = tuple(sorted({name for _, reference, target, _ in pairs for name in (reference, target or "")}))
    queries = [
        Query(
            id=f"{number}-{which}", reference=reference, texts=(caption.strip(),), group=category,
            relevant=frozenset([target or ""]), exclude=frozenset([reference]),
        )
        for number, (_, reference, target, captions) in enumerate(pairs)
        for which, caption in enumerate(captions)
        if caption.strip()
    ]  # fmt: skip
    notes = check_count("pairs", len(pairs), OFFICIAL.get((category, split), (None, None))[0], file, reading)
    return _placed(Task(name=category, gallery=gallery, queries=tuple(queries), notes=tuple(notes)), shelf, reading)


def _pairs(root: Path, category: str, split: str) -> tuple[Path, list[tuple[Entry, str, str | None, list[str]]]]:
    file = first_of(root, *(f"{folder}/cap.{category}.{split}.json" for folder in CAPTIONS))
    return file, list(_read(file))


def _read(file: Path) -> Iterator[tuple[Entry, str, str | None, list[str]]]:
    for entry in entries(file):
        captions = entry.list_of("captions", str)
        if len(captions) != 2:
            raise entry.wrong(f"`captions` must hold two texts, found {len(captions)}")
        target = entry.text("target") if entry.has("target") else None
        if target == "":
            raise entry.wrong("`target` is empty")
        yield entry, entry.text("candidate"), target, captions


def _placed(task: Task, shelf: Shelf | None, reading: Reading) -> Task:
    if shelf is None:
        return task
    needed = [*task.gallery, *(query.reference for query in task.queries if query.reference)]
    return with_pictures(task, {name: shelf.find(name) for name in needed}, reading)
