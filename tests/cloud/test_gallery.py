"""The embedded gallery against numpy, and its directory against misuse."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.filters import carrying
from pocketlens_cloud.gallery.interface import Point, Scored, Search
from pocketlens_cloud.gallery.payload import MAX_PAYLOAD_BYTES, learn
from pocketlens_wire.errors import BadQuery, GalleryError

DIM = 16
COSINE = 1e-5  # the engine's float32 dot products


def unit(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def payload(i: int) -> dict:
    return {
        "file": f"{i}.png",
        "colour": ["red", "green", "blue"][i % 3],
        "n": i % 7,
        "price": i / 4,
        "new": i % 2 == 0,
    }


def name(i: int) -> str:
    return f"{i:032x}"


def nearest(gallery: EmbeddedGallery, query: np.ndarray, top: int, where: dict | None = None) -> list[Scored]:
    return gallery.search(Search(vector=query, name="original", top=top, where=carrying(where or {})))


def fill(path: Path) -> tuple[EmbeddedGallery, np.ndarray, np.ndarray]:
    """300 pictures; (gallery, original vectors, union vectors)."""
    original, union = unit(300, 0), unit(300, 1)
    gallery = EmbeddedGallery.create(path, dim=DIM, vectors=["original", "union"], gallery_space="gs-1")
    gallery.upsert([Point(name(i), {"original": original[i], "union": union[i]}, payload(i)) for i in range(300)])
    gallery.settle()
    return gallery, original, union


@pytest.fixture
def filled(tmp_path):
    """A gallery to write to."""
    gallery, original, union = fill(tmp_path / "g")
    yield gallery, original, union
    gallery.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A gallery to read only."""
    gallery, original, union = fill(tmp_path_factory.mktemp("shared") / "g")
    yield gallery, original, union
    gallery.close()


@pytest.mark.parametrize("exact", [False, True])
def test_search_is_brute_force_on_a_small_gallery(shared, exact):
    gallery, *tables = shared
    for query in unit(10, 2):
        for vector, table in zip(("original", "union"), tables, strict=True):
            scores = table @ query
            best = np.argsort(-scores)[:20]
            hits = gallery.search(Search(vector=query, name=vector, top=20, exact=exact))
            assert [hit.id for hit in hits] == [name(i) for i in best]
            assert np.abs(np.array([hit.score for hit in hits]) - scores[best]).max() < COSINE
            assert [hit.payload for hit in hits] == [payload(i) for i in best]


@pytest.mark.parametrize(
    "where",
    [
        {"colour": "red"},
        {"n": 3},
        {"price": 2.5},
        {"price": 2},  # an integer asked of a number key
        {"new": True},
        {"new": False},
        {"file": "7.png"},
        {"colour": "blue", "n": 2, "new": True},
        {"colour": "mauve"},
    ],
)
def test_filters_are_brute_force_too(shared, where):
    gallery, original, _ = shared
    query = unit(1, 3)[0]
    fits = [i for i in range(300) if all(payload(i)[key] == value for key, value in where.items())]
    wanted = sorted(fits, key=lambda i: -(original[i] @ query))
    hits = nearest(gallery, query, 300, where)
    assert [hit.id for hit in hits] == [name(i) for i in wanted]


def test_payload_comes_back_with_its_types(shared):
    gallery, *_ = shared
    stored = dict(gallery.payloads())
    assert stored == {name(i): payload(i) for i in range(300)}
    assert all(type(stored[name(i)][key]) is type(value) for i in range(9) for key, value in payload(i).items())
    assert gallery.payload_keys == ["colour", "file", "n", "new", "price"]
    assert gallery.payload_kinds["new"] == "flag"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"size": "m"}, "filter key `size` is unknown; this gallery knows `colour`, `file`, `n`, `new`, `price`"),
        ({"x" * 500: 1}, "`" + "x" * 57 + "...`"),
        ({"n": "3"}, "filter key `n` holds integer; text `'3'` came"),
        ({"n": 3.0}, "filter key `n` holds integer; number `3.0` came"),
        ({"n": True}, "filter key `n` holds integer; flag `True` came"),
        ({"new": 1}, "filter key `new` holds flag; integer `1` came"),
        ({"price": float("nan")}, "filter key `price` holds number; something else `nan` came"),
    ],
)
def test_a_filter_the_gallery_cannot_answer_is_a_bad_query(shared, where, message):
    with pytest.raises(BadQuery) as caught:
        shared[0].check_filter(carrying(where))
    assert message in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at threads in /proc")
@pytest.mark.parametrize("opened", ["made", "opened"])
def test_a_search_wakes_no_other_thread(tmp_path, opened):
    """The engine holds Python's lock while it searches: threads of its own would hold up all others until they run."""
    gallery, _, _ = fill(tmp_path / "g")
    if opened == "opened":
        gallery.close()
        gallery = EmbeddedGallery.open(tmp_path / "g")
    time.sleep(0.2)  # what opened it goes to sleep
    before = switches()
    for seed in range(20):
        nearest(gallery, unit(1, seed)[0], 5)
    after = switches()
    gallery.close()
    theirs = [thread for thread in after if thread[1].startswith("edge-search")]
    assert theirs, "the engine's threads have another name now"
    assert [after[thread] - before.get(thread, 0) for thread in theirs] == [0] * len(theirs)


def switches() -> dict[tuple[str, str], int]:
    """How often each thread of this process, by number and name, gave its processor away."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        counts = re.findall(r"ctxt_switches:\t(\d+)", (thread / "status").read_text())
        found[thread.name, (thread / "comm").read_text().strip()] = sum(map(int, counts))
    return found


def test_upsert_replaces_and_delete_removes(filled):
    gallery, original, union = filled
    gallery.upsert([Point(name(5), {"original": original[6], "union": union[6]}, {"file": "new.png"})])
    gallery.set_payload(name(7), {"file": "seven.png", "n": 1})
    gallery.delete([name(8), name(9999)])
    stored = dict(gallery.payloads())
    assert gallery.size == len(stored) == 299
    assert stored[name(5)] == {"file": "new.png"}
    assert stored[name(7)] == {"file": "seven.png", "n": 1}
    assert {hit.id for hit in nearest(gallery, original[6], 2)} == {name(5), name(6)}


def test_generation_changes_with_every_opening_that_writes_and_only_then(filled, tmp_path):
    gallery, *_ = filled
    path, first = gallery.path, gallery.generation
    assert gallery.settled
    gallery.close()
    with EmbeddedGallery.open(path) as again:
        assert (again.generation, again.size, again.settled) == (first, 300, True)
        again.settle()
        assert again.generation == first
        again.delete([name(1)])
        assert again.generation != first
        assert not again.settled
    with EmbeddedGallery.open(path) as again:
        assert not again.settled
        again.settle()
    with EmbeddedGallery.open(path) as again:
        assert again.settled
        assert again.gallery_space == "gs-1"


def test_an_integer_key_that_meets_a_number_becomes_a_number_key(filled):
    gallery, original, union = filled
    gallery.upsert([Point(name(5), {"original": original[5], "union": union[5]}, payload(5) | {"n": 2.5})])
    assert gallery.payload_kinds["n"] == "number"
    hits = nearest(gallery, original[0], 300, {"n": 3.0})
    assert {hit.id for hit in hits} == {name(i) for i in range(300) if i % 7 == 3}
    assert type(hits[0].payload["n"]) is float
    assert [hit.id for hit in nearest(gallery, original[0], 9, {"n": 2.5})] == [name(5)]


def test_keys_of_every_allowed_shape_can_be_filtered(filled):
    gallery, original, union = filled
    keys = {"in-stock": 1, "größe": "m", "_": True, "ключ": 0.5, "K" * 64: -3}
    gallery.upsert([Point(name(3), {"original": original[3], "union": union[3]}, keys)])
    for key, value in keys.items():
        assert [hit.id for hit in nearest(gallery, original[0], 9, {key: value})] == [name(3)]


def test_a_gallery_says_the_oldest_format_that_can_say_its_payload(filled):
    gallery, original, union = filled
    description = gallery.path / "gallery.json"
    assert json.loads(description.read_text())["format"] == 1
    at = {"lat": 52.5, "lon": 13.4}
    told = {"when": "2026-01-31T12:00:00+01:00", "at": at, "tags": ["a", "b"], "sizes": [1, 2], "one": ["a"]}
    gallery.upsert([Point(name(3), {"original": original[3], "union": union[3]}, told)])
    gallery.set_payload(name(4), {"one": "a", "at": {"lat": -90, "lon": 180}})
    assert json.loads(description.read_text())["format"] == 2
    gallery.close()
    with EmbeddedGallery.open(gallery.path) as again:
        stored = dict(again.payloads())
        assert (stored[name(3)], stored[name(4)]) == (told, {"one": "a", "at": {"lat": -90, "lon": 180}})
        kinds = again.payload_kinds
        assert [kinds[key] for key in told] == ["time", "place", "texts", "integers", "texts"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456-11:30"], "time"),
        (["May", "2026-01-31T12:00:00Z"], "text"),
        (["2026-01-31"], "text"),
        (["2026-01-31T12:00:00"], "text"),  # no offset: nobody knows when
        (["2026-02-30T12:00:00Z"], "text"),
        (["2026-01-31T12:00:00.1234567Z"], "text"),  # more digits than are kept
        (["0001-01-01T00:00:00+01:00"], "text"),  # in UTC before the first year
        (["red", ["red", "blue"], "2026-01-31T12:00:00Z"], "texts"),
        ([["2026-01-31T12:00:00Z"]], "texts"),
        ([1, [1, 2]], "integers"),
        ([[1], 1], "integers"),
        ([1, 2.5, 1], "number"),
        ([{"lat": 1, "lon": -180.0}], "place"),
    ],
)
def test_the_first_values_of_a_key_say_its_type(values, kind):
    kinds = {}
    for value in values:
        kinds = learn(kinds, {"k": value})
    assert kinds == {"k": kind}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"original": np.ones(DIM, np.float32)}, "vector `union` must have shape (16,); nothing came"),
        ({"original": np.ones(3, np.float32)}, "shape (3,) came"),
        ({"original": np.full(DIM, np.nan, np.float32)}, "zero or not finite"),
        ({"original": np.zeros(DIM, np.float32)}, "zero or not finite"),
    ],
)
def test_vectors_that_would_poison_the_gallery_are_refused(shared, vectors, message):
    with pytest.raises(GalleryError) as caught:
        shared[0].upsert([Point(name(1), vectors)])
    assert message in str(caught.value)
    assert shared[0].size == 300


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a.b": 1}, "payload key `a.b`: use at most 64 letters"),
        ({'q"': 1}, "use at most 64 letters"),
        ({"": 1}, "use at most 64 letters"),
        ({"k": []}, "payload key `k`: values are text"),
        ({"k": [1, "a"]}, "values are text"),
        ({"k": [True]}, "values are text"),
        ({"k": [1.5]}, "values are text"),
        ({"k": [[1]]}, "values are text"),
        ({"k": {"lat": 91, "lon": 0}}, "values are text"),
        ({"k": {"lat": 1, "lon": float("nan")}}, "values are text"),
        ({"k": {"lat": True, "lon": 1}}, "values are text"),
        ({"k": {"lat": 1, "lon": 1, "alt": 1}}, "values are text"),
        ({"t": "May"}, "payload key `t` holds time elsewhere; text `'May'` came"),
        ({"t": ["2026-01-31T12:00:00Z"]}, "holds time elsewhere; texts"),
        ({"i": 2.5}, "payload key `i` holds integers elsewhere; number `2.5` came"),
        ({"k": None}, "values are text"),
        ({"k": 2**63}, "values are text"),
        ({"k": float("inf")}, "values are text"),
        ({"n": "three"}, "payload key `n` holds integer elsewhere; text `'three'` came"),
        ({"k": "x" * MAX_PAYLOAD_BYTES}, f"{MAX_PAYLOAD_BYTES} bytes"),
    ],
)
def test_payload_that_could_not_be_filtered_is_refused(bad, message):
    with pytest.raises(GalleryError) as caught:
        learn({"n": "integer", "t": "time", "i": "integers"}, bad)
    assert message in str(caught.value)


def test_a_second_process_is_refused_with_the_holders_pid(filled):
    gallery, *_ = filled
    code = (
        "import sys, pathlib; from pocketlens_cloud.gallery.embedded import EmbeddedGallery; "
        "EmbeddedGallery.open(pathlib.Path(sys.argv[1]))"
    )
    second = subprocess.run([sys.executable, "-c", code, str(gallery.path)], capture_output=True, text=True)
    assert f"is open in another process (pid {os.getpid()})" in second.stderr
    with pytest.raises(GalleryError, match=f"pid {os.getpid()}"):
        EmbeddedGallery.open(gallery.path)
    gallery.close()
    assert subprocess.run([sys.executable, "-c", code, str(gallery.path)]).returncode == 0


def test_a_killed_writer_loses_nothing_it_was_told_is_in_and_frees_the_gallery(tmp_path):
    """kill -9 right after upsert returned, before any flush: the engine's log has it."""
    code = """
import sys; from pathlib import Path; import numpy as np
from pocketlens_cloud.gallery.embedded import EmbeddedGallery
from pocketlens_cloud.gallery.interface import Point
gallery = EmbeddedGallery.create(Path(sys.argv[1]), dim=4, vectors=["original"], gallery_space="gs-1")
for i in range(10**9):
    gallery.upsert([Point(f"{i:032x}", {"original": np.ones(4, np.float32)}, {"file": str(i)})])
    print(i, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "g")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.3)
    writer.kill()
    last = int(writer.communicate()[0].splitlines()[-1])
    with EmbeddedGallery.open(tmp_path / "g") as gallery:
        stored = dict(gallery.payloads())
        assert not gallery.settled
        assert len(stored) in (last + 1, last + 2)  # the last upsert may not have been told any more
        assert {int(key, 16) for key in stored} == set(range(len(stored)))
        assert all(stored[name(i)] == {"file": str(i)} for i in range(last + 1))


def test_an_unwritable_place_is_a_plain_error(public_place, without_rights):
    closed = public_place / "closed"
    closed.mkdir()
    (public_place / "file").touch()
    closed.chmod(0o555)
    for path in (closed, closed / "g", public_place / "file" / "g"):
        with without_rights(), pytest.raises(GalleryError, match=r"cannot write to .*Choose a directory you may"):
            EmbeddedGallery.create(path, dim=4, vectors=["original"], gallery_space="gs-1")


def test_an_unwritable_gallery_is_a_plain_error(public_place, without_rights):
    EmbeddedGallery.create(public_place / "g", dim=4, vectors=["original"], gallery_space="gs-1").close()
    for mode in (0o555, 0o000):
        for path in (*(public_place / "g").iterdir(), public_place / "g"):
            path.chmod(mode & (0o777 if path.is_dir() else 0o666))
        with without_rights(), pytest.raises(GalleryError, match="cannot write to"):
            EmbeddedGallery.open(public_place / "g")
        (public_place / "g").chmod(0o755)


def test_a_closed_gallery_does_not_answer(filled):
    gallery, *_ = filled
    gallery.ping()
    gallery.close()
    with pytest.raises(GalleryError, match="cannot be searched"):
        gallery.ping()


def test_what_is_no_gallery_is_said_to_be_none(tmp_path):
    with pytest.raises(GalleryError, match=r"no gallery in .*pocketlens-cloud index"):
        EmbeddedGallery.open(tmp_path)
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(GalleryError, match=r"is not empty \(it holds holiday.txt\)"):
        EmbeddedGallery.create(tmp_path, dim=4, vectors=["original"], gallery_space="gs-1")


def test_an_unfinished_creation_is_begun_again(tmp_path):
    EmbeddedGallery.create(tmp_path / "g", dim=4, vectors=["original"], gallery_space="gs-1").close()
    (tmp_path / "g" / "gallery.json").rename(tmp_path / "g" / "gallery.json.new")
    with EmbeddedGallery.create(tmp_path / "g", dim=8, vectors=["original"], gallery_space="gs-1") as gallery:
        assert gallery.dim == 8
    with pytest.raises(GalleryError, match="already holds a gallery"):
        EmbeddedGallery.create(tmp_path / "g", dim=4, vectors=["original"], gallery_space="gs-1")


def test_a_damaged_or_newer_description_is_named(filled):
    gallery, *_ = filled
    gallery.close()
    file = gallery.path / "gallery.json"
    whole = json.loads(file.read_text())
    for text, message in (
        ("{", "is damaged"),
        (json.dumps(whole | {"colour": 1}), "is damaged"),
        (json.dumps(whole | {"format": 3}), "format 3 is newer"),
    ):
        file.write_text(text)
        with pytest.raises(GalleryError, match=message):
            EmbeddedGallery.open(gallery.path)
    file.write_text(json.dumps(whole))
    EmbeddedGallery.open(gallery.path).close()  # and the lock was let go each time
