"""CIRCO's files: annotations/{split}.json, and COCO 2017 unlabeled with its image_info_unlabeled2017.json."""

from pathlib import Path

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.queries import ASPECTS, CircoQuery
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
    unique,
    with_pictures,
)
from pocketlens_bench.protocols.task import Task

QUERIES = {"val": 220, "test": 800}
GALLERY = 123_403
LISTING = "annotations/image_info_unlabeled2017.json"
LISTINGS = (f"COCO2017_unlabeled/{LISTING}", LISTING, "image_info_unlabeled2017.json")
PICTURES = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017")


def load_circo(root: Path, reading: Reading) -> list[Task]:
    """One task: `val` (the default), or `test`, whose truth is on the server. Raises BadSet.

    The gallery is COCO's own listing, which is needed also where only rankings are scored."""
    split = reading.split or "val"
    file = first_of(root, f"annotations/{split}.json", f"{split}.json")
    listing = first_of(root, *LISTINGS)
    names = _listed(listing)
    gallery = unique(names, listing)
    there = frozenset(gallery)
    notes: list[str] = []
    queries = tuple(_query(entry, place, there, notes) for place, entry in enumerate(entries(file)))
    all_judged(queries, file)
    notes += check_count("queries", len(queries), QUERIES.get(split), file, reading)
    notes += check_count("gallery pictures", len(gallery), GALLERY, listing, reading)
    task = Task(name=split, gallery=gallery, queries=queries, notes=tuple(dict.fromkeys(notes)))
    if not reading.pictures:
        return [task]
    folder = first_of(root, *PICTURES)
    return [
        with_pictures(
            task, {name: path if (path := folder / names[name]).is_file() else None for name in gallery}, reading
        )
    ]


def _listed(listing: Path) -> dict[str, str]:
    """File name by picture id, in COCO's order."""
    found = read_json(listing)
    if not isinstance(found, dict) or not isinstance(found.get("images"), list):
        raise BadSet(f"{listing}: expected COCO's object with a list of `images`")
    images = [Entry(f"{listing}, image {place}", item) for place, item in enumerate(found["images"])]
    names: dict[str, str] = {}
    for image in images:
        name = str(image.whole("id"))
        if name in names:
            raise BadSet(f"{image.where}: id {name} is there twice")
        names[name] = str(safe(image.text("file_name"), image.where))
    return names


def _query(entry: Entry, place: int, gallery: frozenset[str], notes: list[str]) -> CircoQuery:
    number, reference = entry.whole("id"), str(entry.whole("reference_img_id"))
    if number != place:
        raise entry.wrong(f"`id` is {number}, but ids count up from 0 and the server goes by place")
    right = [str(name) for name in entry.list_of("gt_img_ids", int)] if entry.has("gt_img_ids") else []
    target = str(entry.whole("target_img_id")) if entry.has("target_img_id") else None
    aspects = tuple(entry.list_of("semantic_aspects", str)) if entry.has("semantic_aspects") else ()
    known([reference, *right], gallery, entry.where, "picture")
    if target is not None and target not in right:
        raise entry.wrong(f"`target_img_id` {target} is not among `gt_img_ids`")
    notes += [f"unknown semantic aspect {aspect!r}: not counted" for aspect in aspects if aspect not in ASPECTS]
    return CircoQuery(
        id=str(number), reference=reference, texts=(entry.text("relative_caption"),), relevant=frozenset(right),
        target=target, aspects=aspects,
    )  # fmt: skip
