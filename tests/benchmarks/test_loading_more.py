"""GeneCIS and PatternCom, in small files of the real form."""

import json
from dataclasses import replace

import pytest
from PIL import Image
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_bench.protocols.load_genecis import grown
from pocketlens_bench.protocols.load_patterncom import ATTRIBUTES, class_of, merged
from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import BadSet

SMALL = Reading(any_size=True, pictures=False)


def genecis(root, task="change_object", **changed):
    def item(number):
        return (
            {"val_image_id": number}
            if task.endswith("object")
            else {"image_id": number, "instance_bbox": [10, 20, 30, 40]}
        )

    template = {"reference": item(1), "target": item(2), "gallery": [item(3), item(2)], "condition": "bus"}
    file = root / "genecis" / f"{task}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([{**template, **changed}]))
    return root


def test_a_target_among_its_own_distractors_is_right_only_in_its_place(tmp_path):
    (task,) = PROTOCOLS["genecis"].load(genecis(tmp_path), SMALL)
    (query,) = task.queries
    assert task.gallery == ("2", "3", "2#2")
    assert (query.relevant, query.candidates) == ({"2"}, {"2", "3", "2#2"})
    assert sum("its file is not there" in note for note in task.notes) == 3


def test_pictures_of_both_kinds_are_found(tmp_path):
    genecis(tmp_path)
    genecis(tmp_path, "focus_attribute")
    for number in (1, 2, 3):
        for file in (tmp_path / f"val2017/{number:012d}.jpg", tmp_path / f"VG_100K_all/{number}.jpg"):
            file.parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16)).save(file)
    attribute, thing = PROTOCOLS["genecis"].load(tmp_path, replace(SMALL, pictures=True))
    assert (attribute.name, thing.name) == ("focus_attribute", "change_object")
    assert thing.pictures["2#2"].file == thing.pictures["2"].file
    assert (
        attribute.pictures["2@10,20,30,40#2"].box == attribute.pictures["2@10,20,30,40"].box == grown((10, 20, 30, 40))
    )


def test_a_part_grows_to_the_left_and_up_alone_as_officially():
    assert grown((100, 200, 10, 20)) == (93, 186, 110, 220)
    assert grown((0, 0, 10, 20)) == (0, 0, 17, 34)  # at the picture's edge it grows the other way


@pytest.mark.parametrize(
    ("task", "changed", "words"),
    [
        ("change_object", {"gallery": []}, "`gallery` is empty"),
        ("change_object", {"condition": 3}, "`condition` must be text"),
        ("focus_attribute", {"target": {"image_id": 2, "instance_bbox": [1, 2, 3]}}, "`instance_bbox` must be"),
        ("focus_attribute", {"target": {"image_id": 2}}, "key `instance_bbox` is missing"),
    ],
)
def test_crooked_templates_are_refused(tmp_path, task, changed, words):
    with pytest.raises(BadSet, match=words):
        PROTOCOLS["genecis"].load(genecis(tmp_path, task, **changed), SMALL)


FILES = ("closedroad1.jpg", "closedroad2.jpg", "intersection1.jpg", "harbor1.jpg")


def patterncom(root, **lines):
    (root / "PatternCom").mkdir(exist_ok=True)
    (root / "patternnet.csv").write_text("".join(f"PatternNet/images/x/{name} 0 {class_of(name)}\n" for name in FILES))
    for attribute in ATTRIBUTES:
        (root / f"PatternCom/{attribute}.csv").write_text("\n".join(lines.get(attribute, [])))
    return root


def test_every_other_value_of_the_merged_class_is_asked_for(tmp_path):
    rows = ["closedroad1.jpg,shape,straight", "closedroad2.jpg,shape,curved", "intersection1.jpg,shape,cross"]
    (task,) = PROTOCOLS["patterncom"].load(patterncom(tmp_path, shape=rows, color=rows), SMALL)
    asked = {(query.group, query.reference, query.texts[0]): query.relevant for query in task.queries}
    assert asked["shape", "closedroad1.jpg", "cross"] == {"intersection1.jpg"}  # shape's words merge roads
    assert ("color", "closedroad1.jpg", "cross") not in asked  # colour's do not
    assert asked["color", "closedroad1.jpg", "curved"] == {"closedroad2.jpg"}
    assert len(task.gallery) == 4
    assert merged("harbor") == "pier" and merged("harbor", "shape") == "harbor"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["filename,attribute,value"], "line 1 is a header"),
        (["closedroad1.jpg,shape"], "expected file, attribute, value"),
        (["ghost1.jpg,shape,round"], "ghost1.jpg is not in patternnet.csv"),
    ],
)
def test_crooked_attribute_files_are_refused_by_line(tmp_path, rows, words):
    with pytest.raises(BadSet, match=words):
        PROTOCOLS["patterncom"].load(patterncom(tmp_path, shape=rows), SMALL)


def test_the_last_of_two_values_counts_and_is_noted(tmp_path):
    rows = ["closedroad1.jpg,shape,straight", "closedroad1.jpg,shape,curved", "closedroad2.jpg,shape,straight"]
    (task,) = PROTOCOLS["patterncom"].load(patterncom(tmp_path, shape=rows), SMALL)
    assert {query.reference: query.texts for query in task.queries}["closedroad1.jpg"] == ("straight",)
    assert any("closedroad1.jpg is there twice" in note for note in task.notes)
