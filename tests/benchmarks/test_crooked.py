"""Crooked annotations, rankings, folders and results: none of them gives a number, or a traceback, in silence."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image
from pocketlens_bench.cli import app
from pocketlens_bench.protocols import ranking
from pocketlens_bench.protocols.reading import BadSet, Shelf
from pocketlens_bench.report.compare import compared
from pocketlens_bench.report.page import page_of
from pocketlens_bench.report.results import BadResult, read_result

NAMES = [f"dev-{group}-{member}-img0" for group in range(3) for member in range(6)]
QUERIES = 6


def cirr_entry(number, **changed):
    members = NAMES[6 * (number % 3) : 6 * (number % 3) + 6]
    return {
        "pairid": number, "reference": members[0], "target_hard": members[1], "target_soft": {members[1]: 1.0},
        "caption": "c", "img_set": {"members": members},
    } | changed  # fmt: skip


def cirr(root, entries=None):
    for folder in ("captions", "image_splits"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    entries = entries or [cirr_entry(number) for number in range(QUERIES)]
    (root / "captions" / "cap.rc2.val.json").write_text(json.dumps(entries))
    (root / "image_splits" / "split.rc2.val.json").write_text(json.dumps({name: f"dev/{name}.png" for name in NAMES}))
    return root


def lines(file, rankings):
    file.write_text("\n".join(json.dumps({"query": str(q), "ranking": names}) for q, names in rankings.items()))
    return file


def whole(number, first=1):
    """A whole ranking, the hard target at place `first`."""
    entry = cirr_entry(number)
    others = [name for name in NAMES if name not in (entry["reference"], entry["target_hard"])]
    return [*others[: first - 1], entry["target_hard"], *others[first - 1 :]]


def run(*arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app([str(one) for one in arguments])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def score(root, file, *more, capsys, protocol="cirr"):
    arguments = ["score", protocol, "--ranking", file, "--annotations", root, "--any-size", *more]
    return run(*arguments, capsys=capsys)


def refused(root, file, *more, capsys, protocol="cirr"):
    code, _, err = score(root, file, *more, capsys=capsys, protocol=protocol)
    assert code == 1 and "Traceback" not in err and len(err.strip().splitlines()) == 1, err
    return err


# --- figures that are not known


def test_a_subsets_recall_is_not_that_of_the_few_whole_rankings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ranking, "CELLS", 2 * len(NAMES))  # two queries a block
    short = {number: whole(number, 2)[:5] for number in range(QUERIES - 1)}
    file = lines(tmp_path / "mine.jsonl", {**short, QUERIES - 1: whole(QUERIES - 1)})
    code, out, _ = score(cirr(tmp_path), file, "--allow-short", "--json", capsys=capsys)
    assert code == 0
    (row,) = json.loads(out)["tables"][0]["rows"]
    assert "R@5" in row and not any(name.startswith("R_subset") for name in row)


def test_a_whole_ranking_is_compared_with_a_short_one(tmp_path, capsys):
    root = cirr(tmp_path)
    mine = lines(tmp_path / "mine.jsonl", {number: whole(number) for number in range(QUERIES)})
    theirs = lines(tmp_path / "theirs.jsonl", {number: whole(number, 3)[:7] for number in range(QUERIES)})
    for pair in ((mine, theirs), (theirs, mine)):
        code, out, err = score(root, pair[0], "--against", pair[1], "--allow-short", capsys=capsys)
        assert code == 0, err
        assert "not known" in out


def test_one_query_proves_nothing(tmp_path, capsys):
    root = cirr(tmp_path, [cirr_entry(0)])
    mine = lines(tmp_path / "a.jsonl", {0: whole(0)})
    theirs = lines(tmp_path / "b.jsonl", {0: whole(0, 9)})
    _, out, _ = score(root, mine, "--against", theirs, "--json", capsys=capsys)
    assert json.loads(out)["tables"][0]["differences"][0]["R@1"]["beyond_noise"] is False


# --- annotations


@pytest.mark.parametrize(
    ("protocol", "change", "said"),
    [
        ("cirr", {"target_hard": None}, "`target_hard` must be text"),
        ("cirr-soft", {"target_soft": {}}, "pair 3 has no `target_soft`"),
        ("cirr-soft", {"target_soft": {NAMES[1]: 7}}, "must be -1 to 1, found 7"),
        ("cirr-soft", {"target_soft": {"nobody": 1.0}}, "soft target nobody is not in the gallery"),
        ("cirr-soft", {"target_soft": {NAMES[1]: 10**400}}, "beyond all floating numbers"),
        ("cirr", {"caption": "\ud800"}, "holds half of a character"),
    ],
)
def test_a_crooked_entry_is_refused(tmp_path, capsys, protocol, change, said):
    entries = [cirr_entry(number, **(change if number == 3 else {})) for number in range(QUERIES)]
    root = cirr(tmp_path, entries)
    assert said in refused(root, lines(tmp_path / "r.jsonl", {0: whole(0)}), capsys=capsys, protocol=protocol)


def test_truth_that_is_missing_for_some_is_no_miss(tmp_path, capsys):
    entries = [cirr_entry(number) for number in range(QUERIES)]
    del entries[2]["target_hard"]
    said = refused(cirr(tmp_path, entries), lines(tmp_path / "r.jsonl", {0: whole(0)}), capsys=capsys)
    assert "1 of 6 queries have no right answer (2)" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "key `a` is there twice"),
        ('[{"pairid": NaN}]', "NaN is no number of JSON's"),
        ("[" * 100_000, "recursion"),
        ("[" + "9" * 5_000 + "]", "Exceeds the limit"),
        ("[]", "hold no query"),
    ],
)
def test_json_is_read_strictly(tmp_path, capsys, text, said):
    root = cirr(tmp_path)
    (root / "captions" / "cap.rc2.val.json").write_text(text)
    assert said in refused(root, lines(tmp_path / "r.jsonl", {0: whole(0)}), capsys=capsys)


def test_a_split_that_chooses_nothing_is_refused(tmp_path, capsys):
    (tmp_path / "queries.jsonl").write_text('{"text": "x", "targets": ["a.jpg"]}')
    said = refused(tmp_path, tmp_path / "r.jsonl", "--split", "nonsense", capsys=capsys, protocol="jsonl")
    assert "jsonl has no splits" in said


# --- rankings


def test_other_forms_of_file_are_named(tmp_path, capsys):
    root, file = cirr(tmp_path), tmp_path / "r.jsonl"
    file.write_text('{"qid": "1", "rank": []}\n{"qid": "2", "rank": []}\n')
    assert "line 1: expected" in refused(root, file, capsys=capsys)
    file.write_text('[{"query": "1"}]')
    assert "a JSON list" in refused(root, file, capsys=capsys)
    file.write_bytes(gzip.compress(b"{}"))
    assert "is compressed: unpack it" in refused(root, file, capsys=capsys)
    lines(file, {0: ["nobody"]})
    assert "ids look like dev-0-0-img0" in refused(root, file, capsys=capsys)
    lines(file, {77: ["nobody"]})
    assert "query 77 is not in the benchmark (val); ids look like 0" in refused(root, file, capsys=capsys)


def test_names_of_files_are_no_markup(tmp_path, capsys):
    root, full = cirr(tmp_path), {number: whole(number) for number in range(QUERIES)}
    one, other = (lines(tmp_path / f"model[{letter}].jsonl", full) for letter in "ab")
    code, out, _ = score(root, one, "--against", other, capsys=capsys)
    assert code == 0 and "model[a]" in out and "model[b]" in out


def test_own_rankings_score_without_gallery_txt(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "queries.jsonl").write_text('{"text": "x", "targets": ["a.png"]}')
    file = tmp_path / "r.jsonl"
    file.write_text('{"query": "1", "ranking": ["c.png", "a.png", "b.png"]}')
    code, _, err = score(tmp_path, file, capsys=capsys, protocol="jsonl")
    assert code == 0, err


# --- picture folders


def test_linked_folders_are_listed_and_loops_end(tmp_path):
    home, away = tmp_path / "pictures", tmp_path / "away"
    for folder in (home, away):
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(folder / f"{folder.name}.png")
    (home / "linked").symlink_to(away)
    (away / "back").symlink_to(home)
    assert Shelf(home).every() == ["linked/away.png", "pictures.png"]


def test_a_name_means_one_file(tmp_path):
    for name in ("a.png", "a.jpg", "a.png.jpg", "b.webp"):
        (tmp_path / name).write_bytes(b"")
    shelf = Shelf(tmp_path)
    assert shelf.find("a.png") == tmp_path / "a.png"
    assert shelf.find("b.jpg") == shelf.find("b") == tmp_path / "b.webp"
    assert len(shelf.every()) == 4
    with pytest.raises(BadSet, match=r"a may be a\.jpg or a\.png"):
        shelf.find("a")


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    try:
        (tmp_path / "caf\udce9.png").write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(BadSet, match="is not UTF-8; rename it"):
        Shelf(tmp_path)


# --- runs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "jsonl", "--submission", "out"], "jsonl has no test server"),
        (["--set", "cirr", "--submission", "out", "--limit", "5"], "a server wants every query"),
        (["--set", "cirr", "--rankings", __file__], "is a file"),
    ],
)
def test_what_would_not_be_written_is_refused_first(tmp_path, capsys, arguments, said):
    code, _, err = run("accuracy", "--root", tmp_path, *arguments, capsys=capsys)
    assert code == 2 and said in " ".join(err.split()).replace("│ ", "")


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_equal_pictures_have_equal_scores(tmp_path, capsys, ties):
    """Also where a matrix product rounds equal columns differently, as at the end of a block of columns."""
    home = tmp_path / "pictures"
    home.mkdir()
    rng = np.random.default_rng(0)
    for name in ["ref.png", *(f"p{i:02d}.png" for i in range(18))]:
        pixels = (
            rng.integers(0, 256, (32, 32, 3), np.uint8) if name == "ref.png" else np.full((32, 32, 3), 90, np.uint8)
        )
        Image.fromarray(pixels).save(home / name)
    (tmp_path / "gallery.txt").write_text("\n".join(sorted(path.name for path in home.glob("p*.png"))))
    queries = [{"reference": "ref.png", "text": "a red mug", "targets": [f"p{i:02d}.png"]} for i in (0, 9, 17)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    code, out, err = run(
        "accuracy", "--set", "jsonl", "--root", tmp_path, "--cache", tmp_path / "cache", "--ties", ties, "--json",
        capsys=capsys,
    )  # fmt: skip
    assert code == 0, err
    for row in json.loads(out)["tables"][0]["rows"]:
        assert row["R@5"]["value"] == (0 if ties == "pessimistic" else 100), row["name"]


# --- results


def scored(tmp_path, name, first, capsys, **more):
    root, out = cirr(tmp_path), tmp_path / f"{name}.json"
    file = lines(tmp_path / f"{name}.jsonl", {number: whole(number, first(number)) for number in range(QUERIES)})
    code, _, err = score(root, file, "--per-query", "--out", out, capsys=capsys, **more)
    assert code == 0, err
    return out


def test_values_that_do_not_count_and_category_means_are_paired(tmp_path, capsys):
    out = scored(tmp_path, "a", lambda number: 1 + number % 3, capsys)
    data = json.loads(out.read_text())
    table, row = data["tables"][0], data["tables"][0]["rows"][0]
    values = [100.0, 0.0, None, 0.0, 100.0, 100.0]
    table["averaged"] = {
        "R@1": {"group": [0, 0, 1, 1, 1, 1], "groups": ["x", "y"], "weights": [0.5, 0.5], "group_decimals": None}
    }
    row["per_query"]["R@1"] = values
    row["R@1"] = {"value": (50 + 200 / 3) / 2, "low": 0.0, "high": 100.0}
    out.write_text(json.dumps(data))
    result = read_result(out)
    found = {each["name"]: each for each in compared(result, result, everything=True, scatter=0.1, seed=0)["rows"]}
    same = next(each for name, each in found.items() if name.endswith("R@1") and "subset" not in name)
    assert "paired" in same["by"] and same["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conditions": []}, "`conditions`|conditions should be an object"),
        ({"tables": [{"key": "cirr", "title": "x", "queries": 1, "gallery": 1, "rows": []}]}, "a table without rows"),
        ({"honesty": "\ud800"}, "half of a character"),
    ],
)
def test_crooked_results_are_refused(tmp_path, capsys, change, said):
    out = scored(tmp_path, "a", lambda number: 1, capsys)
    out.write_text(json.dumps(json.loads(out.read_text()) | change))
    with pytest.raises(BadResult, match=said):
        page_of([read_result(out)], tmp_path / "page.md")


def test_numbers_beyond_all_are_refused(tmp_path, capsys):
    out = scored(tmp_path, "a", lambda number: 1, capsys)
    out.write_text(out.read_text().replace('"value": 100.0', '"value": 1' + "0" * 400))
    with pytest.raises(BadResult, match="should be a number"):
        page_of([read_result(out)], tmp_path / "page.md")
    out.write_text("[" * 100_000)
    with pytest.raises(BadResult, match="not a results file"):
        read_result(out)
