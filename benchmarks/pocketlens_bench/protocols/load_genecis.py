"""GeneCIS's files: genecis/{task}.json; COCO val2017 for the object tasks, parts of Visual Genome for the attribute
tasks. Tasks whose file is absent are left out and named."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import Boxes, Entry, check_count, entries, first_of, with_pictures
from pocketlens_bench.protocols.task import Query, Task

TASKS = {"focus_attribute": 2000, "change_attribute": 2112, "focus_object": 1960, "change_object": 1960}
GROWN = 0.7  # of a box's width and height, to the left and up: see `grown`
COCO = ("val2017", "coco/val2017", "COCO/val2017")
GENOME = ("VG_100K_all", "VG_100K", "visual_genome/VG_100K_all")
ABSENT = "the official code clips a grown part at the picture's right and lower edge; here what lies outside is black"


def load_genecis(root: Path, reading: Reading) -> list[Task]:
    """A task per file that is there, its gallery all candidates of all its templates. Raises BadSet."""
    folder = root / "genecis" if (root / "genecis").is_dir() else root
    there = [name for name in TASKS if (folder / f"{name}.json").is_file()]
    if not there:
        first_of(root, *(f"genecis/{name}.json" for name in TASKS))
    absent = [f"task {name}: its file is not there" for name in TASKS if name not in there]
    return [_task(root, folder / f"{name}.json", name, reading, absent) for name in there]


def grown(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of (x, y, width, height) as the official code grows it: right and lower edge are
    counted from the edges already moved, so the part grows to the left and up alone, unless it starts at 0."""
    x, y, width, height = box
    left, top = max(0.0, x - GROWN * width), max(0.0, y - GROWN * height)
    return left, top, left + (1 + GROWN) * width, top + (1 + GROWN) * height


def _task(root: Path, file: Path, name: str, reading: Reading, absent: list[str]) -> Task:
    boxes: dict[str, tuple[float, float, float, float]] = {}
    gallery: dict[str, None] = {}
    queries = []
    for number, entry in enumerate(entries(file)):
        reference = _picture(entry.entry("reference"), boxes)
        target = _picture(entry.entry("target"), boxes)
        candidates = [target, *_others(entry, boxes)]
        aliased = list(_told_apart(candidates))
        gallery.update(dict.fromkeys(aliased))
        queries.append(
            Query(
                id=str(number), reference=reference, texts=(entry.text("condition"),), group=name,
                relevant=frozenset([target]), candidates=frozenset(aliased),
            )
        )  # fmt: skip
    notes = [*absent, *check_count("templates", len(queries), TASKS[name], file, reading)]
    if boxes:
        notes.append(ABSENT)
    task = Task(name=name, gallery=tuple(gallery), queries=tuple(queries), notes=tuple(notes))
    return _placed(task, root, boxes, reading) if reading.pictures else task


def _others(entry: Entry, boxes: dict[str, tuple[float, float, float, float]]) -> Iterator[str]:
    found = entry.list_of("gallery", dict)
    if not found:
        raise entry.wrong("`gallery` is empty")
    for place, item in enumerate(found):
        yield _picture(Entry(f"{entry.where}, gallery {place}", item), boxes)


def _told_apart(names: list[str]) -> Iterator[str]:
    """The candidates, each with a name of its own: in change_object, template 19, the target is among its own
    distractors, and then only the one in the target's place is right."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"


def _picture(item: Entry, boxes: dict[str, tuple[float, float, float, float]]) -> str:
    """Id of a picture: COCO's number, or Visual Genome's and the box."""
    if item.has("val_image_id"):
        return str(item.whole("val_image_id"))
    x, y, width, height = _box(item)
    name = f"{item.whole('image_id')}@{x:g},{y:g},{width:g},{height:g}"
    boxes[name] = grown((x, y, width, height))
    return name


def _box(item: Entry) -> tuple[float, float, float, float]:
    found = item.numbers_in("instance_bbox")
    if len(found) != 4 or min(found[2:]) <= 0:
        raise item.wrong("`instance_bbox` must be x, y, width, height, the last two above 0")
    x, y, width, height = found
    return x, y, width, height


def _placed(task: Task, root: Path, boxes: Boxes, reading: Reading) -> Task:
    folder = first_of(root, *(GENOME if boxes else COCO))
    needed = [*task.gallery, *(query.reference for query in task.queries if query.reference)]
    files: dict[str, Path | None] = {}
    for name in needed:
        bare = name.partition("#")[0]
        number = bare.partition("@")[0]
        file = folder / (f"{number}.jpg" if boxes else f"{int(number):012d}.jpg")
        files[name] = file if file.is_file() else None
    parts: Mapping[str, tuple[float, float, float, float]] = {
        name: boxes[bare] for name in needed if (bare := name.partition("#")[0]) in boxes
    }
    return with_pictures(task, files, reading, parts)
