"""CIRR's files: captions/cap.rc2.{split}.json, image_splits/split.rc2.{split}.json, and the pictures they name."""

from pathlib import Path

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.queries import CirrQuery
from pocketlens_bench.protocols.reading import (
    BadSet,
    Entry,
    all_judged,
    check_count,
    entries,
    first_of,
    known,
    read_json,
    safe,
    with_pictures,
)
from pocketlens_bench.protocols.task import Task

OFFICIAL = {"val": (4181, 2297), "test1": (4148, 2315), "train": (None, 16939)}  # queries, gallery
FOLDERS = ("", "cirr/", "CIRR/")
GROUP = 6  # pictures in a query's group, the reference among them


def load_cirr(root: Path, reading: Reading, *, soft: bool = False) -> list[Task]:
    """One task: `val` (the default), or `test1`, whose truth is on the server. soft: every query must have its soft
    targets. Raises BadSet."""
    split = reading.split or "val"
    captions = first_of(root, *(f"{folder}captions/cap.rc2.{split}.json" for folder in FOLDERS))
    listing = first_of(root, *(f"{folder}image_splits/split.rc2.{split}.json" for folder in FOLDERS))
    paths = _paths(listing)
    gallery = tuple(paths)
    there = frozenset(gallery)
    queries = tuple(_query(entry, there) for entry in entries(captions))
    seen: set[str] = set()
    for query in queries:
        if query.id in seen:
            raise BadSet(f"{captions}: pair {query.id} is there twice")
        seen.add(query.id)
        if soft and not query.soft:
            raise BadSet(f"{captions}: pair {query.id} has no `target_soft`, so it cannot be judged by soft targets")
    all_judged(queries, captions)
    counts = OFFICIAL.get(split, (None, None))
    notes = check_count("queries", len(queries), counts[0], captions, reading)
    notes += check_count("gallery pictures", len(gallery), counts[1], listing, reading)
    task = Task(name=split, gallery=gallery, queries=queries, notes=tuple(notes))
    if not reading.pictures:
        return [task]
    home = _home(root, next(iter(paths.values()), ""))
    files = {name: home / path for name, path in paths.items()}
    return [with_pictures(task, {name: file if file.is_file() else None for name, file in files.items()}, reading)]


def _paths(listing: Path) -> dict[str, str]:
    """Relative path of each picture, in the file's order."""
    found = read_json(listing)
    if not isinstance(found, dict) or not all(isinstance(path, str) for path in found.values()):
        raise BadSet(f"{listing}: expected an object of picture paths by name")
    return {name: str(safe(path, f"{listing}, `{name}`")) for name, path in found.items()}


def _home(root: Path, path: str) -> Path:
    """The folder that the paths of the listing start from."""
    for folder in ("", "cirr/img_raw", "img_raw", "cirr", "CIRR"):
        if (root / folder / path).is_file() or (path and (root / folder / path.partition("/")[0]).is_dir()):
            return root / folder
    return root


def _query(entry: Entry, gallery: frozenset[str]) -> CirrQuery:
    reference, group = entry.text("reference"), entry.entry("img_set")
    members = frozenset(group.list_of("members", str))
    target = entry.text("target_hard") if entry.has("target_hard") else None
    if len(members) != GROUP or reference not in members:
        raise entry.wrong(f"`members` must be {GROUP} different pictures with the reference among them")
    if target is not None and (target not in members or target == reference):
        raise entry.wrong(f"`target_hard` {target} is not another picture of the group")
    known(members, gallery, entry.where, "picture")
    soft = entry.numbers("target_soft") if entry.has("target_soft") else {}
    known(soft, gallery, entry.where, "soft target")
    if beyond := [name for name, value in soft.items() if not -1 <= value <= 1]:
        raise entry.wrong(f"`target_soft`, `{beyond[0]}` must be -1 to 1, found {soft[beyond[0]]:g}")
    return CirrQuery(
        id=str(entry.whole("pairid")), reference=reference, texts=(entry.text("caption"),), members=members,
        relevant=frozenset([target] if target else []), exclude=frozenset([reference]),
        soft=soft,
    )  # fmt: skip
