"""Anyone's rankings: four forms of file, every crooked one refused by file and line, two rankings compared."""

import json

import numpy as np
import pytest
from pocketlens_bench.cli import app
from pocketlens_bench.protocols import PROTOCOLS
from pocketlens_bench.protocols.protocol import Reading
from pocketlens_bench.protocols.ranking import Ties
from pocketlens_bench.rankings import BadRanking, read
from pocketlens_bench.score import named

PICTURES = tuple(f"p{i}.jpg" for i in range(8))


@pytest.fixture
def root(tmp_path):
    lines = [
        {"id": "one", "text": "x", "targets": ["p1.jpg"], "exclude": ["p0.jpg"]},
        {"id": "two", "text": "y", "targets": ["p2.jpg", "p3.jpg"]},
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "gallery.txt").write_text("\n".join(PICTURES))
    return tmp_path


ORDERS = {"one": [0, 4, 1, 2, 3, 5, 6, 7], "two": [3, 0, 2, 1, 4, 5, 6, 7]}
SCORES = {name: [1 - 0.1 * order.index(place) for place in range(8)] for name, order in ORDERS.items()}


def as_lines(root, *, scores=False, **changed):
    lines = []
    for name, order in ORDERS.items():
        line = {"query": name, "ranking": [PICTURES[place] for place in order]}
        if scores:
            line["scores"] = [SCORES[name][place] for place in order]
        lines.append({**line, **changed.get(name, {})})
    file = root / "ranking.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines if line))
    return file


def as_trec(root):
    file = root / "run.txt"
    file.write_text("".join(
        f"{name} Q0 {PICTURES[place]} {rank} {SCORES[name][place]} tag\n"
        for name, order in ORDERS.items() for rank, place in enumerate(order, 1)
    ))  # fmt: skip
    return file


def as_scores(root):
    file = root / "scores.npz"
    shuffled = [3, 1, 0, 2, 7, 6, 5, 4]
    scores = np.array([[SCORES[name][place] for place in shuffled] for name in ("two", "one")])
    np.savez(file, queries=["two", "one"], gallery=[PICTURES[place] for place in shuffled], scores=scores)
    return file


def as_order(root):
    file = root / "order.npz"
    np.savez(file, queries=["one", "two"], gallery=PICTURES, order=np.array([ORDERS["one"], ORDERS["two"]]))
    return file


def as_submission(root):
    file = root / "submission.json"
    file.write_text(json.dumps({name: [PICTURES[place] for place in order] for name, order in ORDERS.items()}))
    return file


def figures(root, file, **options):
    protocol = PROTOCOLS["jsonl"]
    tasks = protocol.load(root, Reading(pictures=False))
    return {figure.name: figure.value for figure in protocol.judge(tasks, read(file, protocol, tasks, **options))}


@pytest.mark.parametrize("write", [as_lines, as_trec, as_scores, as_order, as_submission])
def test_every_form_of_file_gives_the_same_figures(root, write):
    came = figures(root, write(root))
    assert came["R@1"] == 50  # p0 is excluded from the first query, so p4 leads it; the second begins with p3
    assert came["R@5"] == 100
    assert came["mAP@5"] == pytest.approx(100 * (1 / 2 + (1 + 2 / 3) / 2) / 2)


@pytest.mark.parametrize(("ties", "wanted"), [(Ties.PESSIMISTIC, 0), (Ties.OPTIMISTIC, 100), (Ties.BY_ID, 50)])
def test_scores_decide_and_ties_go_by_the_named_policy(root, ties, wanted):
    file = as_lines(root, scores=True, one={"scores": [0.0] * 8}, two={"scores": [0.0] * 8})
    assert figures(root, file, ties=ties)["R@1"] == wanted  # by id: p1 is first without p0, p0 leads the other


def test_scores_contradict_the_list_and_win(root):
    assert figures(root, as_lines(root, one={"scores": list(range(8))}))["R@1"] == 50
    file = as_lines(root, one={"scores": [0, 0, 9, 0, 0, 0, 0, 0]})
    assert figures(root, file)["R@1"] == 100


def refused(root, file, **options):
    with pytest.raises(BadRanking) as said:
        figures(root, file, **options)
    return str(said.value)


@pytest.mark.parametrize(
    ("two", "words"),
    [
        ({"query": "three"}, "line 2: query three is not in the benchmark"),
        ({"query": "one"}, "line 2: query one was ranked before, in "),
        ({"ranking": ["p9.jpg", *PICTURES]}, "line 2: query two ranks p9.jpg, which is not in the gallery"),
        ({"ranking": [*PICTURES, "p1.jpg"]}, "line 2: query two ranks p1.jpg twice"),
        ({"ranking": list(PICTURES[:3])}, "line 2: query two ranks 3 pictures, jsonl looks at 8"),
        ({"scores": [float("nan")] * 8}, "line 2: query two has a score that is nan"),
        ({"scores": [float("inf")] * 8}, "line 2: query two has a score that is inf"),
        ({"scores": [10**400] * 8}, "line 2: query two has a score beyond all floating numbers"),
        ({"scores": [1.0]}, "line 2: query two has 8 pictures and 1 scores"),
        ({"scores": ["a"] * 8}, "line 2: `scores` must be a list of numbers"),
        ({"ranking": "p1.jpg"}, "line 2: `ranking` must be a list of ids"),
        ({"task": "dress"}, "line 2: task 'dress' is unknown"),
        ({"rank": 1}, "line 2: unknown key `rank`"),
    ],
)
def test_crooked_lines_are_refused_by_line(root, two, words):
    assert words in refused(root, as_lines(root, two=two))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('{"query": "one", "ranking": [}', "line 1: not JSON"),
        ("one Q0 p1.jpg 1 0.5", "line 1: expected `query Q0 picture rank score tag`, found 5 fields"),
        ("one Q0 p1.jpg 1 high tag", "line 1: score 'high' is not a number"),
        ('{"version": "rc2", "metric": "recall_subset", "1": ["a"]}', "recall_subset file"),
        ('{"one": "p1.jpg"}', "entry one: expected a list of ids"),
        ('{"one": [], "two": [], "one": []}', "line 1: `one` is there twice"),
        ('{"query": ' + "[" * 200_000, "line 1: maximum recursion depth"),
        ("one Q0 p1.jpg 1 0.5 tag\n\none Q0 p9.jpg 2 0.4 tag", "line 3: query one ranks p9.jpg, which is not in"),
        ("one Q0 p1.jpg 1 0.5 tag\none Q0 p2.jpg 2 nan tag", "line 2: query one has a score that is nan"),
        ('{"query": "one", "ranking": []}\n{"query": "\udcff"}', "line 2: not UTF-8 text"),
    ],
)
def test_files_that_are_no_rankings_are_refused(root, text, words):
    file = root / "file"
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert words in refused(root, file)


def test_a_picture_twice_in_a_run_is_named_with_both_lines(root):
    file = as_trec(root)
    file.write_text(file.read_text() + "two Q0 p1.jpg 9 0.0 tag\n")
    assert "line 9: query two ranks p1.jpg twice, again in line 17" in refused(root, file)


@pytest.mark.parametrize("prefix", ["", "own/"])
def test_ids_of_a_run_may_hold_slashes(root, prefix):
    for file in (root / "queries.jsonl", as_trec(root)):
        file.write_text(file.read_text().replace('"one"', '"cat/one"').replace("one Q0", f"{prefix}cat/one Q0"))
    assert figures(root, root / "run.txt")["R@5"] == 100


def test_missing_queries_are_counted_and_named(root):
    file = root / "half.jsonl"
    file.write_text(json.dumps({"query": "one", "ranking": list(PICTURES)}))
    assert "1 of 2 queries of own have no ranking: two" in refused(root, file)


def test_short_rankings_count_as_misses_where_allowed(root):
    file = as_lines(root, two={"ranking": ["p0.jpg"]})
    assert figures(root, file, allow_short=True)["R@50"] == 50


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"scores": np.full((2, 8), np.nan)}, "row 0: query one has a score that is not finite, for picture p0.jpg"),
        ({"scores": np.zeros((2, 7))}, "expected (2, 8)"),
        ({"scores": np.zeros((2, 8), int)}, "must be floating numbers"),
        ({"order": np.full((2, 3), 9)}, "must be whole numbers"),
        ({"order": np.zeros((1, 8), int)}, "must be whole numbers (2, depth)"),
        ({"order": np.zeros((3, 8), int)}, "must be whole numbers (2, depth)"),
        ({"order": np.zeros((2, 8), int)}, "row 0: query one ranks p0.jpg twice"),
        ({"queries": 1}, "query ids must be a row of text or numbers"),
        ({"queries": ["one", "one"], "scores": np.zeros((2, 8))}, "query one is there twice"),
        ({"gallery": [*PICTURES[:7], "zz"], "scores": np.zeros((2, 8))}, "picture zz is not in the benchmark"),
        ({}, "has no array `order`"),
    ],
)
def test_crooked_arrays_are_refused(root, arrays, words):
    file = root / "arrays.npz"
    np.savez(file, **{"queries": ["one", "two"], "gallery": PICTURES, **arrays})
    assert words in refused(root, file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_what_is_no_archive_is_refused(root, content):
    file = root / "arrays.npz"
    file.write_bytes(content)
    assert "is not an archive of plain arrays" in refused(root, file)


def test_a_pickle_in_an_archive_is_not_opened(root):
    file = root / "arrays.npz"
    np.savez(file, queries=np.array(["one", {}], object), gallery=PICTURES, order=np.zeros((2, 1), int))
    assert "is not an archive of plain arrays" in refused(root, file)


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app([str(one) for one in arguments])
    return left.value.code, capsys.readouterr()


def test_two_rankings_are_compared_query_by_query(root, capsys):
    worse = as_lines(root, one={"ranking": list(PICTURES[::-1])}).rename(root / "worse.jsonl")
    best = root / "best.npz"
    np.savez(
        best, queries=["one", "two"], gallery=PICTURES, order=np.array([[1, *ORDERS["one"][3:]], ORDERS["two"][:6]])
    )
    options = ["--annotations", root, "--json", "--per-query", "--allow-short"]
    code, said = run(["score", "jsonl", "--ranking", worse, "--against", best, *options], capsys)
    result = json.loads(said.out)
    (table,) = result["tables"]
    first = table["differences"][0]["R@1"]
    assert code == 0
    assert (first["value"], first["queries_worse"], first["queries_alike"]) == (-50, 1, 1)
    assert first["low"] <= -50 <= first["high"] and not first["beyond_noise"]  # two queries prove nothing
    assert table["query_ids"] == ["own/one", "own/two"]
    assert table["rows"][0]["per_query"]["R@1"] == [0, 100]
    assert result["conditions"]["bundle"] is None
    assert "best: 2 rankings end early; what they lack counts as missed" in result["left_out"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    assert named([tmp_path / "a/run.txt", tmp_path / "b/run.txt"]) == ["a/run.txt", "b/run.txt"]
    assert named([tmp_path / "run.txt", tmp_path / "run.npz"]) == ["run.txt", "run.npz"]
    assert named([tmp_path / "a/mine.txt", tmp_path / "b/theirs.txt"]) == ["mine", "theirs"]


def test_score_prints_what_it_counted(root, capsys):
    code, said = run(["score", "jsonl", "--ranking", as_lines(root), "--annotations", root], capsys)
    assert code == 0
    assert "plain" not in said.err and "denominators:" in said.out and "R@10" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["score", "cirrr", "--ranking", "x", "--annotations", "."], 2, "no such protocol"),
        (["score", "cirr", "--ranking", "x", "--annotations", "/nowhere"], 1, "is not a folder"),
        (["protocols", "cirrr"], 2, "no such protocol"),
    ],
)
def test_wrong_use_is_one_plain_line(arguments, code, words, capsys):
    came, said = run(arguments, capsys)
    assert came == code and words in said.err and "Traceback" not in said.err


def test_protocols_tell_what_they_count(capsys):
    code, said = run(["protocols", "--json"], capsys)
    assert code == 0
    assert {one["name"] for one in json.loads(said.out)} == set(PROTOCOLS)
