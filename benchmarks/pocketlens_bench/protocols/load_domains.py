"""Domain conversion's lists: Pic2Word's of ImageNet-R, and FREEDOM's of ImageNet-R, NICO++, MiniDomainNet, LTLL."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import BadSet, check_count, first_of, read_lines, safe, unique, with_pictures
from pocketlens_bench.protocols.task import Query, Task

STYLES = ("cartoon", "origami", "toy", "sculpture")  # of labels below 1000, 2000, 3000, 4000
PER_STYLE = 1000  # Pic2Word's label is class + 1000 x style
PHOTOS, PICTURES = 10_000, 16_983
HOMES = ("data/imgnet/", "imgnet/", "")
WORDS = {  # by the file's name of a domain, where the query says another word; data set by data set
    "imagenet_r": {"real": "photo"},
    "nico": {"dim": "dimlight"},
    "minidomainnet": {"real": "photo"},
    "ltll": {"New": "Today", "Old": "Archive"},
}
SIZES = {  # queries, database
    "imagenet_r": (16_983, 16_983), "nico": (8_723, 80_134), "minidomainnet": (2_520, None), "ltll": (488, 488),
}  # fmt: skip
COLUMNS = 3
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Item:
    """A picture with its domain and class."""

    path: str
    domain: str
    kind: str


def load_imagenet_r(root: Path, reading: Reading) -> list[Task]:
    """One task: every photo for each of four styles; a query's group is the style. Raises BadSet."""
    asked_file = first_of(root, *(f"{home}imgnet_real_query.txt" for home in HOMES))
    listed_file = first_of(root, *(f"{home}imgnet_targets.txt" for home in HOMES))
    asked, listed = _labelled(asked_file), _labelled(listed_file)
    gallery = unique((path for path, _ in listed), listed_file)
    unique((path for path, _ in asked), asked_file)
    right = _together([(label, path) for path, label in listed])
    queries = tuple(
        Query(
            id=f"{path}>{style}", reference=path, texts=(style,), group=style,
            relevant=right.get(label + PER_STYLE * place, frozenset()),
        )
        for place, style in enumerate(STYLES)
        for path, label in asked
    )  # fmt: skip
    notes = check_count("query photos", len(asked), PHOTOS, asked_file, reading)
    notes += check_count("gallery pictures", len(gallery), PICTURES, listed_file, reading)
    task = Task(name="imagenet-r", gallery=gallery, queries=queries, notes=tuple(notes))
    return [_placed(task, [path for path, _ in (*asked, *listed)], [root, root / "data", root.parent], reading)]


def load_freedom(root: Path, reading: Reading, dataset: str) -> list[Task]:
    """One task: every query picture for each other domain; its group is `source>target`. Raises BadSet."""
    homes = (f"data/{dataset}/", f"{dataset}/", "")
    full = dataset in ("imagenet_r", "ltll")  # one list, queries and database alike
    asked_file, listed_file = (
        first_of(root, *(f"{home}{'full' if full else part}_files.csv" for home in homes))
        for part in ("query", "database")
    )
    asked, listed = _items(asked_file), _items(listed_file)
    gallery = unique((item.path for item in listed), listed_file)
    unique((item.path for item in asked), asked_file)
    right = _together([((item.domain, item.kind), item.path) for item in listed])
    domains = sorted({item.domain for item in listed})
    words = {domain: WORDS[dataset].get(domain, domain) for domain in domains}
    for item in asked:
        if item.domain not in words:
            raise BadSet(f"{asked_file}: {item.path} is of domain {item.domain!r}, which the database does not have")
    queries = tuple(
        Query(
            id=f"{item.path}>{words[target]}", reference=item.path, texts=(words[target],),
            group=f"{words[item.domain]}>{words[target]}", relevant=right.get((target, item.kind), frozenset()),
        )
        for target in domains
        for item in asked
        if item.domain != target
    )  # fmt: skip
    notes = check_count("query pictures", len(asked), SIZES[dataset][0], asked_file, reading)
    notes += check_count("gallery pictures", len(gallery), SIZES[dataset][1], listed_file, reading)
    task = Task(name=dataset, gallery=gallery, queries=queries, notes=tuple(notes))
    paths = [item.path for item in (*asked, *listed)]
    return [_placed(task, paths, [listed_file.parent, root, root / "data", root.parent], reading)]


def _together(pairs: Sequence[tuple[_Key, str]]) -> dict[_Key, frozenset[str]]:
    """The paths of each key."""
    found: dict[_Key, list[str]] = {}
    for key, path in pairs:
        found.setdefault(key, []).append(path)
    return {key: frozenset(paths) for key, paths in found.items()}


def _labelled(file: Path) -> list[tuple[str, int]]:
    """Path and label of each line."""
    found: list[tuple[str, int]] = []
    for at, line in read_lines(file):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal():
            raise BadSet(f"{file}, line {at}: expected a path, a space and a label, found {line[:60]!r}")
        found.append((str(safe(path, f"{file}, line {at}")), int(label)))
    return found


def _items(file: Path) -> list[Item]:
    found: list[Item] = []
    for at, line in read_lines(file):
        columns = line.split(" ")
        if len(columns) != COLUMNS:
            raise BadSet(f"{file}, line {at}: expected path, domain and class with spaces between, found {line[:60]!r}")
        found.append(Item(str(safe(columns[0], f"{file}, line {at}")), columns[1], columns[2]))
    return found


def _placed(task: Task, paths: Sequence[str], homes: Sequence[Path], reading: Reading) -> Task:
    if not reading.pictures:
        return task
    return with_pictures(
        task,
        {path: next((home / path for home in homes if (home / path).is_file()), None) for path in paths},
        reading,
    )
