"""The ground truth of ROxford5k and RParis6k, as JSON: gnd_roxford5k.json, gnd_rparis6k.json, and jpg/.

The official file is a pickle, and opening a pickle runs what is in it; so it is refused, with how to convert it."""

from pathlib import Path

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.queries import LandmarkQuery
from pocketlens_bench.protocols.reading import (
    BadSet,
    Boxes,
    Entry,
    Shelf,
    check_count,
    first_of,
    read_json,
    safe,
    unique,
    with_pictures,
)
from pocketlens_bench.protocols.task import Task

FOLDERS = {"roxford": "roxford5k", "rparis": "rparis6k"}
GALLERY = {"roxford": 4993, "rparis": 6322}
QUERIES = 70
CORNERS = 4
CONVERT = (
    "python -c \"import json, pickle; g = pickle.load(open('{0}.pkl', 'rb')); json.dump(g, open('{0}.json', 'w'), "
    'default=lambda value: value.tolist())"'
)


def load_landmarks(root: Path, reading: Reading, name: str) -> list[Task]:
    """One task. A query's picture is cut to its box. Raises BadSet."""
    file = _truth(root, name)
    whole = Entry(str(file), read_json(file))
    listed = whole.list_of("imlist", str)
    gallery = unique((str(safe(picture, str(file))) for picture in listed), file)
    asked = whole.list_of("qimlist", str)
    truths = [Entry(f"{file}, `gnd` {place}", item) for place, item in enumerate(whole.list_of("gnd", dict))]
    if len(truths) != len(asked):
        raise BadSet(f"{file}: {len(asked)} names in `qimlist`, but {len(truths)} entries in `gnd`")
    queries = tuple(
        _query(truth, str(safe(picture, str(file))), gallery) for picture, truth in zip(asked, truths, strict=True)
    )
    unique((query.id for query in queries), file)
    notes = check_count("queries", len(queries), QUERIES, file, reading)
    notes += check_count("gallery pictures", len(gallery), GALLERY[name], file, reading)
    task = Task(name=name, gallery=gallery, queries=queries, notes=tuple(notes))
    if not reading.pictures:
        return [task]
    shelf = Shelf(first_of(file.parent, "jpg"))
    places = {picture: shelf.find(picture) for picture in gallery}
    places |= {query.reference or "": shelf.find(query.id) for query in queries}
    boxes: Boxes = {query.reference or "": _box(truth) for query, truth in zip(queries, truths, strict=True)}
    return [with_pictures(task, places, reading, boxes)]


def _truth(root: Path, name: str) -> Path:
    folder = FOLDERS[name]
    file = f"gnd_{folder}"
    homes = ("", f"{folder}/", f"datasets/{folder}/")
    for home in homes:
        if (root / f"{home}{file}.pkl").is_file() and not (root / f"{home}{file}.json").is_file():
            raise BadSet(
                f"{root / home / file}.pkl is a pickle, and opening one runs what is in it. If you trust it, convert "
                f"it once in its folder: {CONVERT.format(file)}"
            )
    return first_of(root, *(f"{home}{file}.json" for home in homes))


def _query(truth: Entry, picture: str, gallery: tuple[str, ...]) -> LandmarkQuery:
    sets = {key: _named(truth, key, gallery) for key in ("easy", "hard", "junk")}
    if both := sorted((sets["easy"] & sets["hard"]) | ((sets["easy"] | sets["hard"]) & sets["junk"])):
        raise truth.wrong(f"{both[0]} is in two of `easy`, `hard` and `junk`")
    _box(truth)
    # the query is a part of its picture, so it is not the gallery picture of that name
    return LandmarkQuery(
        id=picture, reference=f"{picture}#query", relevant=sets["easy"] | sets["hard"],
        easy=sets["easy"], hard=sets["hard"], junk=sets["junk"],
    )  # fmt: skip


def _named(truth: Entry, key: str, gallery: tuple[str, ...]) -> frozenset[str]:
    places = truth.list_of(key, int)
    for place in places:
        if not 0 <= place < len(gallery):
            raise truth.wrong(f"`{key}` names picture {place}; there are {len(gallery):,}, counted from 0")
    return frozenset(gallery[place] for place in places)


def _box(truth: Entry) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels."""
    box = found = truth.numbers_in("bbx")
    if len(found) != CORNERS or not (box[0] < box[2] and box[1] < box[3]):
        raise truth.wrong(f"`bbx` must be left, top, right, bottom in pixels, found {found}")
    return (box[0], box[1], box[2], box[3])
