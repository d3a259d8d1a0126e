"""Domain conversion's lists, right and crooked, in small folders of their form."""

import pytest
from PIL import Image
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.reading import BadSet

SMALL = Reading(any_size=True, pictures=False)


def write(file, *lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines), encoding="utf-8")


def refused(name, root):
    with pytest.raises(BadSet) as said:
        PROTOCOLS[name].load(root, SMALL)
    return str(said.value)


@pytest.mark.parametrize("home", ["", "imgnet", "data/imgnet"])
def test_photos_are_asked_for_each_style(tmp_path, home):
    write(tmp_path / home / "imgnet_real_query.txt", "imgnet/real/n1/a.JPEG 7 ")
    targets = ("imgnet/r/c.jpg 7 ", "imgnet/r/t.jpg 2007 ", "imgnet/r/u.jpg 2008 ", "imgnet/real/n1/a.JPEG 6007 ")
    write(tmp_path / home / "imgnet_targets.txt", *targets)
    (task,) = PROTOCOLS["imagenet-r"].load(tmp_path, SMALL)
    right = {query.group: query.relevant for query in task.queries}
    assert right == {"cartoon": {"imgnet/r/c.jpg"}, "toy": {"imgnet/r/t.jpg"}, "origami": set(), "sculpture": set()}
    assert len(task.gallery) == 4 and task.queries[0].exclude == frozenset()


@pytest.mark.parametrize("home", ["", "nico", "data/nico"])
def test_freedom_asks_every_pair_of_domains(tmp_path, home):
    write(tmp_path / home / "query_files.csv", "q/a.jpg dim cat")
    write(tmp_path / home / "database_files.csv", "d/b.jpg rock cat", "d/c.jpg dim cat", "d/d.jpg rock dog")
    for name in ("q/a.jpg", "d/b.jpg", "d/c.jpg", "d/d.jpg"):
        (tmp_path / home / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / home / name)
    (task,) = PROTOCOLS["nico"].load(tmp_path, Reading(any_size=True))
    (query,) = task.queries
    assert (query.group, query.texts, query.relevant) == ("dimlight>rock", ("rock",), {"d/b.jpg"})
    assert len(task.pictures) == 4


def test_one_list_is_queries_and_database(tmp_path):
    write(tmp_path / "full_files.csv", "a.jpg New tower", "b.jpg Old tower")
    (task,) = PROTOCOLS["ltll"].load(tmp_path, SMALL)
    assert {query.group: query.relevant for query in task.queries} == {
        "Today>Archive": {"b.jpg"},
        "Archive>Today": {"a.jpg"},
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [("a b.jpg New x", "line 1: expected path, domain and class"), ("/a.jpg New x", "is not a path below")],
)
def test_crooked_lists_are_refused_by_line(tmp_path, line, words):
    write(tmp_path / "full_files.csv", line)
    assert words in refused("ltll", tmp_path)


def test_a_query_of_a_domain_without_pictures_is_refused(tmp_path):
    write(tmp_path / "query_files.csv", "q.jpg moon cat")
    write(tmp_path / "database_files.csv", "d.jpg rock cat")
    assert "domain 'moon'" in refused("nico", tmp_path)
