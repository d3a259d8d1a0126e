"""Sketch and landmark benchmarks: file lists and ground truth, right and crooked, in small folders of their form."""

import json

import pytest
from PIL import Image
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_bench.protocols.load_sketches import LISTS
from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import BadSet

SMALL = Reading(any_size=True, pictures=False)
PHOTOS = ("photo/hot air balloon/a.jpg 0", "photo/hot air balloon/b.jpg 0", "photo/bat/c.jpg 1")
SKETCHES = ("sketch/hot air balloon/s.png 0", "sketch/bat/t.png 1", "sketch/cow/u.png 2")


def sketches(home, name, photos=PHOTOS, folder=None):
    lists = LISTS[name]
    at = home / (folder or lists.folders[0])
    at.mkdir(parents=True)
    (at / lists.photos).write_text("\n".join(photos), encoding="utf-8")
    (at / lists.sketches).write_text("\n".join(SKETCHES), encoding="utf-8")


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(file)


def refused(name, root, reading=SMALL):
    with pytest.raises(BadSet) as said:
        PROTOCOLS[name].load(root, reading)
    return str(said.value)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("inside", [True, False])
def test_sketches_find_photos_of_their_class(tmp_path, name, inside):
    sketches(tmp_path / LISTS[name].home if inside else tmp_path, name)
    (task,) = PROTOCOLS[name].load(tmp_path, SMALL)
    assert task.gallery == ("photo/hot air balloon/a.jpg", "photo/hot air balloon/b.jpg", "photo/bat/c.jpg")
    assert [len(query.relevant) for query in task.queries] == [2, 1, 0]
    assert task.queries[0].reference == "sketch/hot air balloon/s.png" and task.queries[0].texts == ()
    assert "3 sketches instead of the official" in task.notes[0]


def test_the_second_sketchy_split_is_found_under_sakes_name(tmp_path):
    sketches(tmp_path / "Sketchy", "sketchy-21", folder="zeroshot2")
    assert len(PROTOCOLS["sketchy-21"].load(tmp_path, SMALL)[0].queries) == 3
    assert "holds none of Sketchy/zeroshot1/" in refused("sketchy-25", tmp_path)


@pytest.mark.parametrize("above", [True, False])
def test_sketch_paths_start_from_the_set_or_from_above_it(tmp_path, above):
    sketches(tmp_path / "QuickDraw", "quickdraw")
    for line in (*PHOTOS, *SKETCHES):
        picture((tmp_path if above else tmp_path / "QuickDraw") / line.rpartition(" ")[0])
    for root in (tmp_path, tmp_path / "QuickDraw"):
        (task,) = PROTOCOLS["quickdraw"].load(root, Reading(any_size=True))
        assert len(task.pictures) == 6 and not task.missing


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("photo/bat/c.jpg", "line 1: expected a path, a space and a class number"),
        ("photo/bat/c.jpg bat", "line 1: expected a path, a space and a class number"),
        ("../c.jpg 1", "line 1: '../c.jpg' is not a path below"),
        (PHOTOS[1], "b.jpg is in the gallery twice"),
    ],
)
def test_crooked_lists_are_refused_by_line(tmp_path, line, words):
    sketches(tmp_path, "tuberlin", (line, *PHOTOS[1:]))
    assert words in refused("tuberlin", tmp_path)


def landmarks(root, home="", **changed):
    truth = {"bbx": [1.5, 2, 10, 12], "easy": [0], "hard": [2], "junk": [1], **changed}
    at = root / home
    at.mkdir(parents=True, exist_ok=True)
    whole = {"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [truth]}
    (at / "gnd_roxford5k.json").write_text(json.dumps(whole), encoding="utf-8")
    return at


@pytest.mark.parametrize("home", ["", "roxford5k", "datasets/roxford5k"])
def test_landmarks_in_each_layout_with_the_query_cut_to_its_box(tmp_path, home):
    at = landmarks(tmp_path, home)
    for name in "abcq":
        picture(at / "jpg" / f"{name}.jpg")
    (task,) = PROTOCOLS["roxford"].load(tmp_path, Reading(any_size=True))
    (query,) = task.queries
    assert (query.easy, query.hard, query.junk, query.relevant) == ({"a"}, {"c"}, {"b"}, {"a", "c"})
    assert task.pictures[query.reference].box == (1.5, 2, 10, 12) and task.pictures["a"].box is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"easy": [3]}, "`gnd` 0: `easy` names picture 3; there are 3"),
        ({"easy": [0, 1]}, "b is in two of"),
        ({"bbx": [1, 2, 3]}, "`bbx` must be left, top, right, bottom"),
        ({"bbx": [5, 2, 3, 4]}, "`bbx` must be left, top, right, bottom"),
        ({"hard": ["c"]}, "`hard` must hold int only"),
    ],
)
def test_crooked_landmarks_are_refused(tmp_path, changed, words):
    landmarks(tmp_path, **changed)
    assert words in refused("roxford", tmp_path)


def test_a_pickle_is_not_opened_but_explained(tmp_path):
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(b"")
    assert "opening one runs what is in it" in refused("roxford", tmp_path)


def test_missing_photos_leave_the_gallery_only_when_allowed(tmp_path):
    sketches(tmp_path, "tuberlin")
    for line in (*PHOTOS[:2], *SKETCHES):
        picture(tmp_path / line.rpartition(" ")[0])
    assert "1 of 6 pictures were not found (photo/bat/c.jpg)" in refused("tuberlin", tmp_path, Reading(any_size=True))
    (task,) = PROTOCOLS["tuberlin"].load(tmp_path, Reading(any_size=True, allow_missing=1))
    assert task.missing == ("photo/bat/c.jpg",) and len(task.queries) == 2
