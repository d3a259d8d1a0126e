"""Loaders: every layout they accept, and every crooked file refused by name. The files are made here, in the form of
the real ones."""

import json
from dataclasses import replace

import pytest
from PIL import Image
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_bench.protocols.load_circo import LISTING
from pocketlens_bench.protocols.load_fashioniq import CATEGORIES, texts
from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import BadSet
from pocketlens_bench.protocols.task import Query, Task

SMALL = Reading(any_size=True, pictures=False)


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(file)


def refused(name, root, reading=SMALL):
    with pytest.raises(BadSet) as said:
        PROTOCOLS[name].load(root, reading)
    return str(said.value)


# --- FashionIQ


def fashioniq(root, captions="captions", splits="image_splits", split="val"):
    for category in CATEGORIES:
        pairs = [
            {"candidate": "A", "target": "B", "captions": ["is red.", "Has sleeves, "]},
            {"candidate": "B", "target": "C", "captions": ["is blue", ""]},
        ]
        if split == "test":
            pairs = [{key: pair[key] for key in ("candidate", "captions")} for pair in pairs]
        write(root / captions / f"cap.{category}.{split}.json", pairs)
        write(root / splits / f"split.{category}.{split}.json", ["C", "A", "B", "D"])
    return root


@pytest.mark.parametrize("captions", ["captions", "json", "data/captions"])
def test_fashioniq_original_split_in_each_layout(tmp_path, captions):
    tasks = PROTOCOLS["fashioniq"].load(fashioniq(tmp_path, captions), SMALL)
    assert [task.name for task in tasks] == list(CATEGORIES)
    assert tasks[0].gallery == ("C", "A", "B", "D")  # the file's order
    assert tasks[0].queries[0].texts == ("is red and Has sleeves", "Has sleeves and is red")
    assert tasks[0].queries[1].texts == ("is blue",)
    assert tasks[0].queries[0].exclude == frozenset()
    assert "2 queries instead of the official 2,017" in tasks[0].notes[0]


def test_fashioniq_val_protocol_has_a_query_per_caption_and_a_smaller_gallery(tmp_path):
    task = PROTOCOLS["fashioniq-val"].load(fashioniq(tmp_path), SMALL)[0]
    assert task.gallery == ("A", "B", "C")
    assert [query.texts for query in task.queries] == [("is red.",), ("Has sleeves,",), ("is blue",)]
    assert all(query.exclude == {query.reference} for query in task.queries)


def test_fashioniq_test_split_has_no_targets(tmp_path):
    task = PROTOCOLS["fashioniq"].load(fashioniq(tmp_path, split="test"), replace(SMALL, split="test"))[0]
    assert task.queries[0].relevant == frozenset()
    with pytest.raises(ValueError, match="no query has a known answer"):
        PROTOCOLS["fashioniq"].judge([task], [[]])
    assert "needs targets" in refused("fashioniq-val", tmp_path, replace(SMALL, split="test"))


def test_captions_are_joined_both_ways_and_stripped_at_their_ends():
    assert texts(["is red.", " is long?"]) == ("is red and is long", "is long and is red")
    assert texts(["", " . "]) == ()


def test_sizes_other_than_the_official_ones_are_refused_unless_allowed(tmp_path):
    said = refused("fashioniq", fashioniq(tmp_path), replace(SMALL, any_size=False))
    assert "2 queries, the official benchmark has 2,017" in said and "--any-size" in said


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ("{", "line 1: not JSON"),
        ({"a": 1}, "expected a list of entries"),
        ([3], "entry 0: expected an object, found int 3"),
        ([{"candidate": "A", "target": "B"}], "entry 0: key `captions` is missing"),
        ([{"candidate": 7, "target": "B", "captions": ["a", "b"]}], "`candidate` must be text, found int 7"),
        ([{"candidate": "A", "target": "B", "captions": ["a"]}], "two texts, found 1"),
        ([{"candidate": "A", "target": "B", "captions": ["a", 2]}], "`captions` must hold str only"),
        ([{"candidate": "A", "target": "X", "captions": ["a", "b"]}], "entry 0: picture X is not in the gallery"),
    ],
)
def test_crooked_captions_are_refused_by_file_and_entry(tmp_path, pairs, words):
    fashioniq(tmp_path)
    write(tmp_path / "captions/cap.dress.val.json", pairs)
    said = refused("fashioniq", tmp_path)
    assert words in said and "cap.dress.val.json" in said


def test_a_picture_that_is_twice_in_the_gallery_is_refused(tmp_path):
    write(fashioniq(tmp_path) / "image_splits/split.dress.val.json", ["A", "B", "C", "A"])
    assert "A is in the gallery twice" in refused("fashioniq", tmp_path)


def test_missing_pictures_are_named_and_refused_unless_so_many_are_allowed(tmp_path):
    fashioniq(tmp_path)
    for name in ("A.jpg", "B.PNG", "C.jpeg"):
        picture(tmp_path / "images" / name)
    said = refused("fashioniq", tmp_path, replace(SMALL, pictures=True))
    assert "1 of 4 pictures were not found (D)" in said and "--allow-missing 1" in said
    task = PROTOCOLS["fashioniq"].load(tmp_path, replace(SMALL, pictures=True, allow_missing=1))[0]
    assert (task.gallery, task.missing) == (("C", "A", "B"), ("D",))
    assert task.pictures["B"].file.name == "B.PNG"
    (tmp_path / "images" / "C.jpeg").unlink()
    task = PROTOCOLS["fashioniq"].load(tmp_path, replace(SMALL, pictures=True, allow_missing=2))[0]
    assert [query.id for query in task.queries] == ["0"]  # the other's only target is missing
    assert "and with them 1 queries" in task.notes[-1]


# --- CIRR


def cirr(root, folder="", split="val", **changed):
    members = [f"dev-{i}" for i in range(6)]
    pair = {
        "pairid": 12, "reference": "dev-0", "target_hard": "dev-1", "target_soft": {"dev-1": 1.0, "dev-2": -1},
        "caption": "more bottles", "img_set": {"id": 1, "members": members, "reference_rank": 0, "target_rank": 1},
    }  # fmt: skip
    if split == "test1":
        pair = {key: pair[key] for key in ("pairid", "reference", "caption", "img_set")}
    write(root / folder / f"captions/cap.rc2.{split}.json", [{**pair, **changed}])
    write(
        root / folder / f"image_splits/split.rc2.{split}.json",
        {name: f"./dev/{name}.png" for name in [*members, "dev-9"]},
    )
    return root


@pytest.mark.parametrize("folder", ["", "cirr", "CIRR"])
@pytest.mark.parametrize("pictures", ["", "img_raw", "cirr/img_raw"])
def test_cirr_in_each_layout(tmp_path, folder, pictures):
    cirr(tmp_path, folder)
    for name in [f"dev-{i}" for i in (0, 1, 2, 3, 4, 5, 9)]:
        picture(tmp_path / pictures / "dev" / f"{name}.png")
    (task,) = PROTOCOLS["cirr"].load(tmp_path, Reading(any_size=True))
    (query,) = task.queries
    assert (query.id, query.exclude, query.relevant) == ("12", {"dev-0"}, {"dev-1"})
    assert len(query.members) == 6 and query.soft["dev-2"] == -1
    assert task.pictures["dev-9"].file.is_file()


def test_cirr_test_split_needs_no_truth(tmp_path):
    (task,) = PROTOCOLS["cirr"].load(cirr(tmp_path, split="test1"), replace(SMALL, split="test1"))
    assert task.queries[0].relevant == frozenset() and len(task.queries[0].members) == 6


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pairid": "12"}, "`pairid` must be a whole number, found str"),
        ({"target_hard": "dev-9"}, "`target_hard` dev-9 is not another picture of the group"),
        ({"target_hard": "dev-0"}, "is not another picture of the group"),
        ({"img_set": {"members": ["dev-0", "dev-1"]}}, "6 different pictures"),
        ({"target_soft": {"dev-1": True}}, "`target_soft`, `dev-1` must be a number"),
    ],
)
def test_crooked_cirr_pairs_are_refused(tmp_path, changed, words):
    assert words in refused("cirr", cirr(tmp_path, **changed))


def test_a_path_that_leaves_the_folder_is_refused(tmp_path):
    cirr(tmp_path)
    write(tmp_path / "image_splits/split.rc2.val.json", {f"dev-{i}": "./../../etc/passwd" for i in range(6)})
    assert "is not a path below the pictures' folder" in refused("cirr", tmp_path)


def test_a_folder_that_is_not_the_benchmarks_says_what_was_looked_for(tmp_path):
    assert "holds none of captions/cap.rc2.val.json, cirr/captions" in refused("cirr", tmp_path)
    assert "is not a folder" in refused("cirr", tmp_path / "nowhere")


# --- CIRCO


def circo(root, *changed):
    one = {
        "id": 0, "reference_img_id": 7, "target_img_id": 8, "relative_caption": "has two", "shared_concept": "a cat",
        "gt_img_ids": [8, 9], "semantic_aspects": ["cardinality", "colour"],
    }  # fmt: skip
    write(root / "annotations/val.json", [{**one, **change} for change in changed or ({},)])
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (7, 8, 9, 10)]
    write(root / "COCO2017_unlabeled" / LISTING, {"images": images})
    return root


def test_circo_keeps_its_reference_and_names_unknown_aspects(tmp_path):
    (task,) = PROTOCOLS["circo"].load(circo(tmp_path), SMALL)
    (query,) = task.queries
    assert (query.reference, query.target, query.relevant, query.exclude) == ("7", "8", {"8", "9"}, frozenset())
    assert any("unknown semantic aspect 'colour'" in note for note in task.notes)
    assert query.texts == ("has two",)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"id": 3}, "`id` is 3, but ids count up from 0"),
        ({"target_img_id": 10}, "`target_img_id` 10 is not among `gt_img_ids`"),
        ({"gt_img_ids": [8, 77]}, "picture 77 is not in the gallery"),
        ({"relative_caption": None}, "`relative_caption` must be text"),
    ],
)
def test_crooked_circo_queries_are_refused(tmp_path, changed, words):
    assert words in refused("circo", circo(tmp_path, changed))


# --- own queries


def own(root, *lines, gallery=None):
    write(root / "queries.jsonl", "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    for name in ("a.jpg", "cups/b.png", "cups/c.jpg"):
        picture(root / name)
    if gallery is not None:
        write(root / "gallery.txt", "\n".join(gallery))
    return root


def test_own_queries_over_a_folder(tmp_path):
    lines = (
        {"reference": "a.jpg", "text": "in red", "targets": ["cups/b.png"], "exclude": ["a.jpg"]},
        {"id": "w", "text": "a cup", "targets": ["cups/c.jpg"]},
    )
    (task,) = PROTOCOLS["jsonl"].load(own(tmp_path, *lines), Reading())
    assert task.gallery == ("a.jpg", "cups/b.png", "cups/c.jpg")
    assert [query.id for query in task.queries] == ["1", "w"]
    assert task.queries[1].reference is None
    (task,) = PROTOCOLS["jsonl"].load(own(tmp_path, *lines[1:], gallery=["cups/c.jpg"]), Reading())
    assert task.gallery == ("cups/c.jpg",)


def test_own_queries_may_be_those_of_a_training(tmp_path):
    line = {"reference": "a.jpg", "text": "in red", "target": "cups/b.png", "caption": "a red cup"}
    (task,) = PROTOCOLS["jsonl"].load(own(tmp_path, line), Reading())
    assert task.queries[0].relevant == {"cups/b.png"}


def test_own_queries_without_pictures_say_where_they_were_looked_for(tmp_path):
    root = own(tmp_path, {"reference": "a.jpg", "text": "in red", "targets": ["cups/b.png"]})
    (root / "pictures").mkdir()
    assert "pictures holds no pictures; those that queries.jsonl names are" in refused("jsonl", root, Reading())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "line 1: not JSON"),
        ({"targets": ["a.jpg"]}, "line 1: neither `reference` nor `text`"),
        ({"text": "x", "targets": []}, "`targets` is empty"),
        ({"text": "x", "targets": ["nowhere.jpg"]}, "picture nowhere.jpg is not in the gallery"),
        ({"text": "x", "targets": ["a.jpg"], "exclude": ["a.jpg"]}, "a.jpg is a target and excluded"),
        ({"text": "x", "targets": ["../a.jpg"]}, "is not a path below"),
        ({"text": "x", "target": "a.jpg", "targets": ["a.jpg"]}, "`target` and `targets`: give one of them"),
        ({"text": "x", "targets": ["a.jpg"], "wanted": 1}, "unknown key `wanted`"),
        ({"reference": "z.jpg", "targets": ["a.jpg"]}, "1 of 4 pictures were not found (z.jpg)"),
    ],
)
def test_crooked_own_queries_are_refused_by_line(tmp_path, line, words):
    assert words in refused("jsonl", own(tmp_path, line), Reading())


def test_an_id_twice_and_no_query_at_all_are_refused(tmp_path):
    line = {"id": "q", "text": "x", "targets": ["a.jpg"]}
    assert "line 2: id q is there twice" in refused("jsonl", own(tmp_path, line, line), Reading())
    assert "holds no query" in refused("jsonl", own(tmp_path), Reading())


def test_every_protocol_states_itself():
    for protocol in PROTOCOLS.values():
        assert all(vars(protocol.states).values()) and protocol.headline and protocol.title


def test_a_query_is_left_out_with_its_reference():
    from pocketlens_bench.protocols.reading import without

    queries = (
        Query(id="a", reference="r", relevant=frozenset("x")),
        Query(id="b", reference="s", relevant=frozenset("xy")),
    )
    task = without(Task(name="t", gallery=("r", "s", "x", "y"), queries=queries), frozenset("rx"))
    assert [(query.id, query.relevant) for query in task.queries] == [("b", frozenset("y"))]
