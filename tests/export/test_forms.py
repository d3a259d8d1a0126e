"""Further forms of an encoder: only what still finds the same goes in, and the service accepts what went in."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from pocketlens_cloud import doctor as cloud_doctor
from pocketlens_cloud.compose import Composer
from pocketlens_cloud.towers import ImageTower, TextTower
from pocketlens_edge.doctor import examine, replay
from pocketlens_edge.encoder import Encoder
from pocketlens_export import forms, gate, mistakes, quantize, towers
from pocketlens_export.cli import app
from pocketlens_export.gate import Judge, composed, interval, needed, some, themselves
from pocketlens_export.parity_page import write_page
from pocketlens_export.quantize import Nearness, Recipe, Tried, smallest_first
from pocketlens_training.material import open_images
from pocketlens_training.sets.lines import BadLines, read_triplets
from pocketlens_training.sets.sources import Files
from pocketlens_wire.bundle import default_bundle
from pocketlens_wire.manifest import FORMS, read_cloud, read_edge
from pocketlens_wire.pictures import PictureSpec, fit
from typer.testing import CliRunner

IDS = ("fp32", "fp16", "int8", "int8.symmetric")


@pytest.fixture(scope="module")
def images(tiny_run: Path) -> Path:
    return tiny_run / "set" / "pairs.jsonl"


@pytest.fixture(scope="module")
def grown(images: Path, tmp_path_factory) -> tuple[Path, dict]:
    """The sample bundle with all forms, by the command, and the report: the tiny one finds too little to be judged."""
    out = tmp_path_factory.mktemp("forms") / "bundle"
    ran = CliRunner().invoke(
        app, ["quantize", str(default_bundle()), "--images", str(images), "-o", str(out), "--count", "64", "--json"]
    )
    assert ran.exit_code == 0, ran.stderr
    return out, json.loads(ran.stdout)


def test_every_form_is_in_the_bundle_and_both_halves_name_it(grown) -> None:
    bundle, _ = grown
    edge, cloud = read_edge(bundle), read_cloud(bundle)
    assert set(edge.graphs) == set(FORMS)
    assert {edge.graphs[form].encoder for form in FORMS} <= set(cloud.encoders)
    assert len({edge.graphs[form].encoder for form in IDS}) == len(IDS)
    for form in ("fp32", "int8"):  # the same numbers in another file
        assert edge.graphs[f"{form}.ort"].encoder == edge.graphs[form].encoder
    assert edge.graphs["int8"].bytes < 0.5 * edge.graphs["fp32"].bytes
    assert edge.report is not None and json.loads((bundle / "edge" / edge.report.file).read_text())["format"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_runs_on_the_device_and_replays_its_golden_vectors(grown, form: str) -> None:
    bundle, _ = grown
    encoder = Encoder.load(bundle, precision=form)
    assert encoder.form == form and replay(encoder, bundle / "edge").ok
    assert all(check.ok for check in examine(bundle, precision=form))


def test_int8_reads_grey_levels_and_rounds_nothing_small(grown) -> None:
    """Behind the last convolution only products with trained weights are int8, and the first reads the picture."""
    graph = onnx.load(grown[0] / "edge" / "encoder.int8.onnx").graph
    kinds = [node.op_type for node in graph.node]
    makers = {name: node.op_type for node in graph.node for name in node.output}
    weights = {each.name for each in graph.initializer}
    last = max(place for place, kind in enumerate(kinds) if kind == "Conv")
    behind = [node for node in graph.node[last + 1 :] if node.op_type in ("Softmax", "LayerNormalization", "Add")]
    assert behind and not any(makers.get(node.input[0]) == "DequantizeLinear" for node in behind[1:])
    products = [node for node in graph.node[last + 1 :] if node.op_type in ("Gemm", "MatMul")]
    trained = [node for node in products if makers.get(node.input[1]) == "DequantizeLinear"]
    assert trained and all(node.input[1] not in weights for node in products)
    assert "BatchNormalization" not in kinds and "Cast" not in kinds


def test_int8_is_near_but_another(grown) -> None:
    bundle, _ = grown
    pixels = np.load(bundle / "edge" / "golden.npz")["pixels"]
    exact, int8, half = (
        Encoder.load(bundle, precision=form).encode_pixels(pixels) for form in ("fp32", "int8", "fp16")
    )
    assert 0.97 < quantize.cosines(int8, exact).min() < 0.99999
    assert quantize.cosines(half, exact).min() > 0.9999


def test_the_report_says_what_was_tried_and_found(grown) -> None:
    _, report = grown
    assert [form["form"] for form in report["forms"]] == list(FORMS)
    for form in report["forms"]:
        assert set(form["changes"]) == {"zero-shot", "tuned"} and set(form["p50_ms"]) == {"1", "4"}
    assert all(change["change"] == 0 for change in report["forms"][0]["changes"].values())
    symmetric = [each["recipe"]["symmetric"] for each in report["tried"]]
    assert (symmetric.count(False), symmetric.count(True)) == (12, 3)
    assert sum(each["changes"] is not None for each in report["tried"]) >= 2
    assert report["gate"]["by"] == "pictures that shall find themselves"
    assert report["gate"]["questions"] >= needed()


def test_forms_made_anew_from_the_same_are_the_same_encoders(grown, images: Path, tmp_path: Path, monkeypatch) -> None:
    """An id follows from the original and the file, not from what lay there before."""
    monkeypatch.setattr(quantize, "RANGES", {"minmax": quantize.RANGES["minmax"]})
    monkeypatch.setattr(towers, "STATIC", towers.STATIC[:1])
    code, said = quantized(grown[0], "--images", images, "-o", tmp_path / "one")
    assert code == 0, said
    code, said = quantized(tmp_path / "one", "--images", images, "-o", tmp_path / "two")
    assert code == 0, said
    one, two = (read_edge(tmp_path / name).graphs for name in ("one", "two"))
    assert {form: graph.encoder for form, graph in one.items()} == {form: graph.encoder for form, graph in two.items()}


def test_the_int8_of_tensorrt_has_no_zero_points_and_float_biases(grown) -> None:
    model = onnx.load(grown[0] / "edge" / "encoder.int8.symmetric.onnx")
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    quantised = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantised) > 20
    for node in quantised:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8 and not zero_point.any(), node.name
    weights = [constants[node.input[0]] for node in quantised if node.input[0] in constants]
    assert {weight.dtype for weight in weights} == {np.dtype(np.int8)} and all(w.ndim >= 2 for w in weights)


def test_without_a_symmetric_form_that_passes_the_bundle_goes_without(
    grown, images: Path, tmp_path: Path, monkeypatch
) -> None:
    """One that lay there before is not kept either."""
    monkeypatch.setattr(quantize, "RANGES", {"minmax": quantize.RANGES["minmax"]})
    monkeypatch.setattr(towers, "STATIC", towers.STATIC[:1])
    plain = forms.find_int8

    def none_symmetric(*args, symmetric: bool = False, **options) -> quantize.Search:
        found = plain(*args, symmetric=symmetric, **options)
        return replace(found, chosen=None, layers=[("node_first", 0.5)]) if symmetric else found

    monkeypatch.setattr(forms, "find_int8", none_symmetric)
    ran = CliRunner().invoke(
        app, ["quantize", str(grown[0]), "--images", str(images), "-o", str(tmp_path / "out"), "--count", "32"]
    )
    assert ran.exit_code == 0, ran.stderr
    said = " ".join(ran.stdout.split())
    assert "No int8 encoder for TensorRT: no int8 form passes" in said and "node_first" in said
    made = read_edge(tmp_path / "out")
    assert "int8" in made.graphs and "int8.symmetric" not in made.graphs
    assert not list((tmp_path / "out" / "edge").glob("*symmetric*"))
    assert "Layers to blame for TensorRT" in (tmp_path / "out" / "edge" / made.page.file).read_text()


def test_a_bundle_that_was_there_is_not_touched(grown) -> None:
    assert read_edge(default_bundle()).graphs["fp32"] == read_edge(grown[0]).graphs["fp32"]


def test_a_conversion_that_went_wrong_is_left_out(grown, images: Path, tmp_path: Path, monkeypatch) -> None:
    """Half precision and ONNX Runtime's format pass no gate on recall: they must be their original's numbers."""
    bundle, _ = grown
    manifest = read_edge(bundle)
    held = {form: bundle / "edge" / manifest.graphs[form].file for form in ("fp32", "fp32.ort", "int8", "fp16")}
    judge = Judge(bundle, themselves(some(open_images(images)[0], 64)), kind="pictures that shall find themselves")
    good = forms._read_all(held, manifest, judge)
    assert list(good[0]) == list(held) and good[1] == {}
    swapped = {**held, "fp16": held["int8"], "fp32.ort": bundle / "edge" / manifest.graphs["int8.ort"].file}
    tokens, left_out = forms._read_all(swapped, manifest, judge)
    assert set(tokens) == {"fp32", "int8"} and set(left_out) == {"fp16", "fp32.ort"}
    assert "of a token's length off" in left_out["fp16"]


# --- the gate


def test_a_question_asked_again_brings_no_certainty(tiny_bundle: Path, tiny_run: Path, tmp_path: Path) -> None:
    world = tiny_run / "set"
    lines = [json.loads(line) for line in (world / "questions.jsonl").read_text().splitlines()[:12]]
    for line in lines:
        line["reference"] = str(world / line["reference"])
        line["targets"] = [str(world / name) for name in line["targets"]]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines * 40))
    assert len(Judge(tiny_bundle, composed(file), kind="composed questions")) == 12
    copies = Files(world, ["photos-0000.tar/000.png", "photos-0000.tar/001.png"] * 30)
    assert len(Judge(tiny_bundle, themselves(copies), kind="pictures")) == 2


def test_no_certainty_from_few_questions() -> None:
    assert interval(lost=0, gained=0, asked=needed())[0] >= -gate.ALLOWED
    assert interval(lost=0, gained=0, asked=needed() - 1)[0] < -gate.ALLOWED
    low, high = interval(lost=30, gained=10, asked=1000)
    # Agresti and Min 2005 by hand: n* = 1002, b* = 30.5, c* = 10.5
    change = (10.5 - 30.5) / 1002
    half = 1.959964 * ((41 - 20**2 / 1002) ** 0.5) / 1002
    assert (low, high) == pytest.approx((100 * (change - half), 100 * (change + half)))


def test_the_interval_holds_what_it_promises() -> None:
    """Of many draws with a true loss of 1 point, about 95 % of the intervals hold it."""
    random = np.random.default_rng(1)
    asked, held = 800, 0
    for _ in range(2000):
        lost, gained, _ = random.multinomial(asked, [0.03, 0.02, 0.95])
        low, high = interval(lost=int(lost), gained=int(gained), asked=asked)
        held += low <= -1.0 <= high
    assert 0.93 < held / 2000 < 0.97


@pytest.fixture(scope="module")
def judge(tiny_bundle: Path, tiny_run: Path) -> Judge:
    asked = composed(tiny_run / "set" / "questions.jsonl")
    return Judge(tiny_bundle, asked, kind="composed questions")


def test_the_judge_finds_what_the_service_finds(judge: Judge, tiny_bundle: Path) -> None:
    composer = Composer.load(tiny_bundle)
    for mode in judge.modes:
        first = judge.firsts(mode)[0]
        vectors = judge._vectors[composer.vector_of(mode)]
        best = np.argsort(-(composer.compose(judge.tokens[0], judge.words[0], mode).vector @ vectors.T))[:10]
        assert len(set(first.tolist()) & set(best.tolist())) >= 9  # a near tie may fall otherwise


def test_another_pictures_tokens_are_noticed(judge: Judge) -> None:
    same = judge.changes(judge.tokens)
    assert all(change.change == 0 and change.overlap == 1 for change in same.values())
    assert all(change.shared == [0] * 10 + [len(judge)] for change in same.values())
    other = judge.changes(np.roll(judge.tokens, 1, axis=0))
    assert all(change.overlap < 0.9 and change.low < -gate.ALLOWED for change in other.values())


def test_a_worse_tower_is_noticed(judge: Judge, tiny_bundle: Path) -> None:
    """Another text tower's queries and another image tower's vectors come before the same questions."""
    folder = tiny_bundle / "cloud"
    text, image = TextTower(folder, read_cloud(folder)), ImageTower(folder, read_cloud(folder))
    same = [judge.changes(composer=judge.composer.with_tower(text)), judge.changes(vectors=judge.vectors(image))]
    assert all(change.overlap == 1 for changes in same for change in changes.values())

    class Deaf:
        def run(self, rows):
            return np.roll(text.run(rows), 1, axis=1)

    class Blind:
        def vectors(self, pixels):
            return image.vectors(pixels // 64)

    worse = [judge.changes(composer=judge.composer.with_tower(Deaf())), judge.changes(vectors=judge.vectors(Blind()))]
    assert all(change.overlap < 0.9 for changes in worse for change in changes.values())


def test_questions_of_which_none_can_be_asked_are_refused(tiny_bundle: Path, tmp_path: Path, tiny_run: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"reference": "no.png", "text": "in red", "targets": ["nor.png"]}\n')
    with pytest.raises(BadLines, match="none of the pictures to search can be read"):
        Judge(tiny_bundle, composed(file), kind="composed questions")


def test_questions_that_do_not_need_their_picture_judge_nothing(
    tiny_bundle: Path, images: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """All ask with the same picture: whose tokens they get makes no difference."""
    world = tiny_run / "set"
    one = read_triplets(world / "questions.jsonl")[0]
    line = {"reference": str(world / one.reference), "targets": [str(world / one.targets[0])]}
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({**line, "text": f"in red {n}"}) + "\n" for n in range(400)))
    code, said = quantized(tiny_bundle, "--images", images, "--questions", file, "-o", tmp_path / "out")
    assert code == 1 and "another picture's sentence" in said and "cannot judge" in said
    assert not (tmp_path / "out").exists()


# --- what is refused


def quantized(*options: object) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["quantize", *map(str, options), "--count", "32"])
    return ran.exit_code, ran.stderr


def test_if_no_form_passes_nothing_is_left_and_layers_are_blamed(
    tiny_bundle: Path, images: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(gate.Change, "passes", property(lambda _: False))
    monkeypatch.setattr(quantize, "RANGES", {"minmax": quantize.RANGES["minmax"]})
    code, said = quantized(tiny_bundle, "--images", images, "-o", tmp_path / "out")
    assert code == 1 and "no int8 form passes" in said
    blamed = [line for line in said.splitlines() if "node_" in line and line.startswith("  ")]
    losses = [float(line.split()[0]) for line in blamed]
    assert len(blamed) > 5 and losses == sorted(losses, reverse=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_pictures_to_quantise_with(tiny_bundle: Path, tmp_path: Path, tiny_run: Path, count: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = Files(tiny_run / "set", [f"photos-0000.tar/{n:03d}.png" for n in range(count)])
    for number in range(count):
        (folder / f"{number}.png").write_bytes(pictures.read(number))
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    code, said = quantized(tiny_bundle, "--images", folder, "-o", tmp_path / "out")
    assert code == 1 and f"{count} pictures to quantise with can be read" in said and "torn.jpg" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_refused(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    code, said = quantized(tiny_bundle, "--images", images, "-o", tmp_path)
    assert code == 1 and "exists" in said


def test_a_graph_that_is_none_is_refused(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "edge" / "encoder.fp32.onnx").write_bytes(b"no graph")
    code, said = quantized(bundle, "--images", images, "-o", tmp_path / "out")
    assert code == 1 and "encoder.fp32.onnx" in said and len(said.splitlines()) == 1


# --- recipes


def tried(size: int, near: float) -> Tried:
    recipe = Recipe(channels=False, ranges="minmax", pictures=64)
    found = Nearness(least=near, percentile_1=near, mean=near, quantiles=[near] * 51)
    return Tried(recipe=recipe, path=Path(), bytes=size, near=found)


def test_the_smallest_goes_first_and_among_equals_the_nearest() -> None:
    small, near, large = tried(1000, 0.9), tried(1040, 0.99), tried(1200, 0.999)
    assert smallest_first([large, small, near]) == [near, small, large]


def test_sensitive_layers_are_spared_one_after_the_other() -> None:
    recipe = Recipe(channels=True, ranges="minmax", pictures=64)
    spared = [len(each.spared) for each in quantize.sparing(recipe, [f"layer {n}" for n in range(9)])]
    assert spared == [1, 2, 4, 8]
    assert replace(recipe, spared=("a",)) != recipe and "1 sensitive" in str(replace(recipe, spared=("a",)))


def test_each_picture_shall_find_itself() -> None:
    asked = themselves(Files(Path(), ["a.png", "b.png"]))
    assert list(asked.targets) == [["a.png"], ["b.png"]] and list(asked.words) == ["", ""]
    assert forms.REPORT == "parity.json"


# --- the service's towers, mistakes, the page


def test_towers_in_int8_serve_and_index(grown) -> None:
    bundle, report = grown
    cloud = read_cloud(bundle)
    for tower in report["towers"]:
        assert tower["said"] is not None, tower
        assert tower["bytes"]["int8"] < 0.5 * tower["bytes"]["fp32"]
    assert set(cloud.text_tower) == set(cloud.image_tower) == {"fp32", "int8"}
    assert all(finding.ok for finding in cloud_doctor.examine(bundle))
    tokens = np.load(bundle / "edge" / "golden.npz")["sentence"][0]
    exact, int8 = (
        Composer.load(bundle, precision=precision).compose(tokens, "in red", "tuned").vector
        for precision in ("fp32", "int8")
    )
    assert 0.97 < float(exact @ int8) < 1 - 1e-7


def test_mistakes_are_made_and_seen(grown) -> None:
    _, report = grown
    made = {each["name"]: each for each in report["mistakes"]}
    for name in ("another picture's sentence", "BGR for RGB", "rows and columns swapped"):
        assert made[name]["caught"] and made[name]["cosine"] < 0.9, name
    assert "int8 with ranges of noise" in made
    # Drawn as large as the encoder takes them, and square: to fit them otherwise changes nothing.
    assert not {"resized without antialiasing", "squash in place of crop"} & made.keys()


def test_only_what_the_gate_refuses_is_called_caught(grown) -> None:
    _, report = grown
    for each in report["mistakes"]:
        worst = min(change["low"] for change in each["changes"].values())
        assert each["caught"] == (worst < -report["gate"]["allowed"])


@pytest.mark.parametrize("how", ["crop", "squash"])
def test_without_antialiasing_other_pixels_come(how: str) -> None:
    """The same place of the picture: a smooth one comes out nearly the same, a fine grid does not."""
    spec = PictureSpec(32, how)
    slope = np.tile(np.linspace(0, 255, 200, dtype=np.uint8)[None, :, None], (120, 1, 3))
    grid = np.tile(((np.indices((120, 200)).sum(0) % 2) * 255).astype(np.uint8)[..., None], (1, 1, 3))
    smooth, fine = (
        np.abs(mistakes._aliased(Image.fromarray(each), spec).astype(int) - fit(Image.fromarray(each), spec)).max()
        for each in (slope, grid)
    )
    assert smooth <= 8 and fine > 60


def test_the_page_shows_what_the_report_says(grown, tmp_path: Path) -> None:
    bundle, report = grown
    page = (bundle / "edge" / read_edge(bundle).page.file).read_text()
    assert page.count("<svg") == 4 and "<script" not in page and "http:" not in page and "https:" not in page
    for form in report["forms"]:
        assert f"<th>{form['form']}<td>{form['bytes'] / 1e3:,.0f}" in page
    for each in report["mistakes"]:
        assert html.escape(each["name"]) in page
    assert "int8 passes" in page and "chosen" in page


def test_the_page_of_a_refusal_names_layers_and_escapes_names(grown, tmp_path: Path) -> None:
    report = json.loads(json.dumps(grown[1]))
    report["forms"] = [form for form in report["forms"] if not form["form"].startswith("int8")]
    report |= {
        "name": "<b>&",
        "no_int8": "no <int8> form",
        "layers": [{"layer": "node_<conv>", "lost": 0.01}],
        "tried": [],
    }
    report["towers"][0] |= {"said": None}
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "no &lt;int8&gt; form" in page and "node_&lt;conv&gt;" in page
    assert "<b>&" not in page and "none passed" in page
