"""A bundle on benchmarks in the layouts of others: small ones, made of the sample world's pictures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pocketlens_bench.cli import app
from pocketlens_bench.lab import Lab
from pocketlens_bench.protocols.task import Where
from pocketlens_bench.submissions import circo, cirr
from pocketlens_bench.vault import Vault, opened, stored
from pocketlens_samples.queries import composed_set
from pocketlens_wire.bundle import default_bundle

QUERIES, GALLERY = 10, 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder of g00.jpg ..., q00.jpg ..., the composed set)."""
    folder = tmp_path_factory.mktemp("world")
    found = composed_set(queries=QUERIES, gallery=GALLERY)
    for i, picture in enumerate(found.gallery):
        Image.fromarray(picture.pixels()).save(folder / f"g{i:02d}.jpg", quality=92)
    for i, query in enumerate(found.queries):
        Image.fromarray(query.anchor.pixels()).save(folder / f"q{i:02d}.jpg", quality=92)
    return folder, found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def linked(target, world):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(world)


@pytest.fixture
def own(world, tmp_path):
    folder, found = world
    linked(tmp_path / "pictures", folder)
    lines = [
        {"reference": f"q{i:02d}.jpg", "text": query.text, "targets": [f"g{place:02d}.jpg" for place in places]}
        for i, (query, places) in enumerate(zip(found.queries, found.relevant, strict=True))
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "gallery.txt").write_text("\n".join(f"g{i:02d}.jpg" for i in range(GALLERY)))
    return tmp_path


def run(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        app([str(one) for one in arguments])
    said = capsys.readouterr()
    return left.value.code, said


def measured(arguments, cache, capsys):
    code, said = run(["accuracy", *arguments, "--cache", cache, "--threads", 2, "--json"], capsys)
    assert code == 0, said.err
    return json.loads(said.out)


def test_own_queries_end_to_end(own, cache, capsys):
    result = measured(["--set", "jsonl", "--root", own], cache, capsys)
    (table,) = result["tables"]
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["words only", "picture only", "sum", "zero-shot", "tuned"]
    assert (table["queries"], table["gallery"]) == (QUERIES, GALLERY)
    assert rows["zero-shot"]["R@5"]["value"] >= 90 > rows["words only"]["R@1"]["value"]
    assert rows["tuned"]["against"] == "union"
    assert {(each["of"], each["over"]) for each in table["differences"]} >= {("zero-shot", "sum")}
    assert result["conditions"]["bundle"]["token_space"]


def test_what_we_write_scores_as_we_scored(own, cache, capsys, tmp_path):
    result = measured(
        ["--set", "jsonl", "--root", own, "--rankings", tmp_path / "out", "--mode", "zero-shot"], cache, capsys
    )
    file = tmp_path / "out" / "jsonl-zero-shot.jsonl"
    assert result["written"] == [file.name]
    code, said = run(["score", "jsonl", "--ranking", file, "--annotations", own, "--json"], capsys)
    assert code == 0, said.err
    ours, scored = result["tables"][0]["rows"][0], json.loads(said.out)["tables"][0]["rows"][0]
    assert {name: scored[name] for name in scored if name != "name"} == {
        name: ours[name] for name in scored if name != "name"
    }


def test_a_limited_run_says_so(own, cache, capsys):
    result = measured(["--set", "jsonl", "--root", own, "--limit", 4, "--mode", "words"], cache, capsys)
    assert result["limited"] and result["tables"][0]["queries"] == 4
    code, said = run(
        ["accuracy", "--set", "jsonl", "--root", own, "--limit", 4, "--cache", cache, "--mode", "words"], capsys
    )
    assert code == 0 and "not a benchmark number" in said.out


def test_an_unreadable_picture_is_refused_by_name_unless_allowed(own, cache, capsys, world):
    (own / "pictures").unlink()
    (own / "pictures").mkdir()
    for file in world[0].iterdir():
        (own / "pictures" / file.name).symlink_to(file)
    (own / "pictures" / "g07.jpg").unlink()
    (own / "pictures" / "g07.jpg").write_bytes(b"no picture")
    arguments = ["accuracy", "--set", "jsonl", "--root", own, "--cache", cache, "--mode", "words", "--json"]
    code, said = run(arguments, capsys)
    assert code == 1 and "g07.jpg for one" in said.err and "--allow-missing 1" in said.err
    code, said = run([*arguments, "--allow-missing", 1], capsys)
    table = json.loads(said.out)["tables"][0]
    assert (code, table["missing"], table["gallery"]) == (0, ["g07.jpg"], GALLERY - 1)


@pytest.fixture
def cirr_root(world, tmp_path):
    folder, found = world
    linked(tmp_path / "dev", folder)
    pairs = []
    for i, (query, places) in enumerate(zip(found.queries, found.relevant, strict=True)):
        names = [f"q{i:02d}", f"g{places[0]:02d}", *(f"g{n:02d}" for n in range(GALLERY) if n not in places)][:6]
        pairs.append({
            "pairid": 100 + i, "reference": names[0], "target_hard": names[1], "target_soft": {names[1]: 1.0},
            "caption": query.text, "img_set": {"id": i, "members": names, "reference_rank": 0, "target_rank": 1},
        })  # fmt: skip
    (tmp_path / "captions").mkdir()
    (tmp_path / "image_splits").mkdir()
    (tmp_path / "captions/cap.rc2.val.json").write_text(json.dumps(pairs))
    for pair in pairs:
        del pair["target_hard"], pair["target_soft"], pair["img_set"]["target_rank"]
    (tmp_path / "captions/cap.rc2.test1.json").write_text(json.dumps(pairs))
    names = [*(f"g{i:02d}" for i in range(GALLERY)), *(f"q{i:02d}" for i in range(QUERIES))]
    for split in ("val", "test1"):
        paths = {name: f"./dev/{name}.jpg" for name in names}
        (tmp_path / f"image_splits/split.rc2.{split}.json").write_text(json.dumps(paths))
    return tmp_path


def test_cirr_under_both_protocols_and_its_submission(cirr_root, cache, capsys, tmp_path):
    options = [
        "--set",
        "cirr",
        "--root",
        cirr_root,
        "--any-size",
        "--mode",
        "zero-shot",
        "--submission",
        tmp_path / "up",
    ]
    result = measured(options, cache, capsys)
    hard, soft = result["tables"]
    assert hard["rows"][0]["R_subset@1"]["value"] >= 80
    assert hard["rows"][0]["R@1"] == soft["rows"][0]["R@1"]
    assert any("instead of the official 4,181" in said for said in result["left_out"])
    recall = json.loads((tmp_path / "up/cirr-val-zero-shot.recall.json").read_text())
    assert (recall.pop("version"), recall.pop("metric")) == ("rc2", "recall")
    assert all(
        len(names) == len(set(names)) == 50 and f"q{int(pair) - 100:02d}" not in names for pair, names in recall.items()
    )
    subset = json.loads((tmp_path / "up/cirr-val-zero-shot.recall_subset.json").read_text())
    assert subset["metric"] == "recall_subset" and all(len(subset[pair]) == 3 for pair in recall)


def test_a_split_without_public_truth_gives_files_and_no_figures(cirr_root, cache, capsys, tmp_path):
    options = ["--set", "cirr", "--protocol", "cirr", "--split", "test1", "--root", cirr_root, "--any-size"]
    result = measured([*options, "--mode", "tuned", "--submission", tmp_path / "up"], cache, capsys)
    assert "R@1" not in result["tables"][0]["rows"][0]
    assert any("the truth of this split is not public" in said for said in result["left_out"])
    assert len(json.loads((tmp_path / "up/cirr-test1-tuned.recall.json").read_text())) == QUERIES + 2


def test_circo_submission_is_the_official_one():
    from pocketlens_bench.protocols.ranking import from_lists
    from pocketlens_bench.protocols.task import Query, Task

    golden = Path(__file__).parent / "golden"
    with np.load(golden / "circo_submission.npz") as arrays:
        order, ids = arrays["order"], arrays["gallery_ids"]
    queries = tuple(Query(id=str(i), reference=None) for i in range(len(order)))
    task = Task(name="test", gallery=tuple(map(str, ids.tolist())), queries=queries)
    came = circo([from_lists(task, queries, order.tolist())])["submission"]
    wanted = json.loads((golden / "circo_submission.submission.json").read_text())
    assert came == {query: [int(name) for name in names] for query, names in wanted.items()}


def test_cirr_submission_is_in_the_order_of_the_queries():
    assert list(cirr([])["recall"]) == ["version", "metric"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "cirrr"], 2, "no such set"),
        (["--set", "cirr"], 2, "needs --root"),
        (["--set", "cirr", "--root", ".", "--mode", "magic"], 2, "no such row"),
        (["--set", "cirr", "--root", ".", "--protocol", "circo"], 2, "no protocol of this set"),
        (["--set", "cirr", "--root", "/nowhere"], 1, "is not a folder"),
    ],
)
def test_wrong_use_is_one_plain_line(arguments, code, words, capsys, cache):
    came, said = run(["accuracy", *arguments, "--cache", cache], capsys)
    assert came == code and words in said.err and "Traceback" not in said.err


# --- the vault


@pytest.fixture(scope="module")
def lab():
    return Lab.open(default_bundle(), threads=2)


def vault_of(folder, lab):
    return Vault(folder, lab.composer.manifest.targets, lab.composer.manifest.dim)


def keep(lab, folder, pictures):
    with vault_of(folder, lab) as vault:
        keys, troubles = stored(lab, vault, pictures, lambda *_: None)
        assert not troubles
        return keys, vault.vectors(list(keys.values()), "original")


def test_a_picture_is_encoded_once_and_a_changed_one_anew(lab, world, tmp_path, monkeypatch):
    pictures = {f"g{i:02d}": Where(world[0] / f"g{i:02d}.jpg") for i in range(5)}
    keys, vectors = keep(lab, tmp_path / "v", pictures)
    assert np.allclose(vectors, lab.image([where.file.read_bytes() for where in pictures.values()]), atol=1e-6)
    calls = []
    true = type(lab.tower).vectors
    monkeypatch.setattr(
        type(lab.tower), "vectors", lambda tower, pixels: calls.append(len(pixels)) or true(tower, pixels)
    )
    again, same = keep(lab, tmp_path / "v", pictures)
    assert not calls and again == keys and np.array_equal(same, vectors)
    changed = tmp_path / "g00.jpg"
    changed.write_bytes((world[0] / "q00.jpg").read_bytes())
    keep(lab, tmp_path / "v", {**pictures, "g00": Where(changed)})
    assert calls == [1]


def test_a_part_of_a_picture_is_another_picture(lab, world, tmp_path):
    file = world[0] / "g00.jpg"
    keys, vectors = keep(lab, tmp_path / "v", {"whole": Where(file), "part": Where(file, (10.0, 20.0, 60.0, 50.0))})
    assert keys["whole"] != keys["part"] and not np.array_equal(*vectors)


def test_a_box_may_reach_out_of_the_picture_and_becomes_a_square(world):
    part = opened((world[0] / "g00.jpg").read_bytes(), Where(world[0] / "g00.jpg", (-20.0, 0.0, 40.0, 30.0)), 96)
    assert part.size == (60, 60)
    pixels = np.asarray(part)
    assert not pixels[:, :20].any() and not pixels[:15].any() and pixels[15:45, 20:].any()


def test_a_torn_tail_is_cut_off(lab, world, tmp_path):
    pictures = {f"g{i:02d}": Where(world[0] / f"g{i:02d}.jpg") for i in range(4)}
    keys, vectors = keep(lab, tmp_path / "v", pictures)
    for name in ("keys.bin", "vectors.f32"):
        with (tmp_path / "v" / name).open("ab") as file:
            file.write(b"torn" * 30)
    with (tmp_path / "v" / "vectors.f32").open("rb+") as file:
        file.truncate(len(vectors) * 2 * vectors.shape[1] * 4 - 1)  # the last row is not whole
    again, same = keep(lab, tmp_path / "v", pictures)
    assert again == keys and np.array_equal(same[:3], vectors[:3]) and np.allclose(same[3], vectors[3], atol=1e-6)
    assert (tmp_path / "v" / "keys.bin").stat().st_size == 32 * 4


KILLED = """
import sys
from pathlib import Path
from pocketlens_bench import vault
from pocketlens_bench.lab import Lab
from pocketlens_bench.protocols.task import Where
from pocketlens_wire.bundle import default_bundle
import os, signal
vault.BATCH = 4
lab = Lab.open(default_bundle(), threads=1)
pictures = {file.stem: Where(file) for file in sorted(Path(sys.argv[1]).glob("g*.jpg"))}
def on_progress(stage, done, total):
    if done >= 20:
        os.kill(os.getpid(), signal.SIGKILL)
with vault.Vault(Path(sys.argv[2]), lab.composer.manifest.targets, lab.composer.manifest.dim) as kept:
    vault.stored(lab, kept, pictures, on_progress)
"""


def test_a_killed_run_keeps_what_it_had(lab, world, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, world[0], tmp_path / "v"], capture_output=True, timeout=60)
    assert killed.returncode == -9, killed.stderr
    with vault_of(tmp_path / "v", lab) as vault:
        assert len(vault._row) == 20
