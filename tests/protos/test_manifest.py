"""Manifests: what is written is read back; anything else is refused with file and key named."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from pocketlens_wire import manifest
from pocketlens_wire.errors import BadBundle
from pocketlens_wire.manifest import (
    CloudManifest,
    EdgeManifest,
    Prompts,
    TextLayout,
    describe_encoder,
    describe_file,
    describe_tower,
    resolve_half,
)
from pocketlens_wire.pictures import PictureSpec


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle of two halves whose files hold a few bytes each."""
    root = tmp_path / "bundle"
    for half, names in (
        ("edge", ["encoder.fp32.onnx", "golden.npz"]),
        ("cloud", ["tower.onnx", "golden.npz"]),
    ):
        (root / half).mkdir(parents=True)
        for name in names:
            (root / half / name).write_bytes(f"{half} {name}".encode())
    manifest.write(edge_manifest(root / "edge"), root / "edge")
    manifest.write(cloud_manifest(root / "cloud"), root / "cloud")
    return root


def edge_manifest(folder: Path) -> EdgeManifest:
    return EdgeManifest(
        name="sample",
        token_space="ts-0123456789abcdef",
        token_count=4,
        token_width=192,
        picture=PictureSpec(side=96, fit="crop"),
        graphs={"fp32": described(folder / "encoder.fp32.onnx")},
        golden=describe_file(folder / "golden.npz"),
        report=None,
        page=None,
    )


def described(path: Path) -> manifest.EncoderGraph:
    return describe_encoder(path, encoder="enc-0123456789abcdef", tolerance=1e-3)


def cloud_manifest(folder: Path) -> CloudManifest:
    tower = describe_file(folder / "tower.onnx")
    return CloudManifest(
        name="sample",
        token_space="ts-0123456789abcdef",
        gallery_space="gs-0123456789abcdef",
        encoders=["enc-0123456789abcdef"],
        token_width=192,
        max_tokens=8,
        context=48,
        dim=256,
        picture=PictureSpec(side=96, fit="squash"),
        prompts=Prompts(composed="a photo of {sentence}, {words}", picture="a photo of {sentence}", words="{words}"),
        text=TextLayout(
            begin=[1], end=[2], pad=0, slot=4, special=[0, 1, 2, 4], unknown=3, fixed_length=False, clean=["plain"]
        ),
        targets=["original", "union"],
        text_tower={"fp32": describe_tower(folder / "tower.onnx", tolerance=1e-4)},
        image_tower={"fp32": describe_tower(folder / "tower.onnx", tolerance=1)},
        query_head=tower,
        target_head=tower,
        tokenizer=tower,
        golden=describe_file(folder / "golden.npz"),
    )


READ: dict[str, Callable[[Path], Any]] = {"edge": manifest.read_edge, "cloud": manifest.read_cloud}


def test_what_is_written_is_read_back(bundle):
    assert manifest.read_edge(bundle / "edge") == edge_manifest(bundle / "edge")
    assert manifest.read_cloud(bundle / "cloud") == cloud_manifest(bundle / "cloud")


def test_the_root_of_a_bundle_serves_for_either_half(bundle):
    assert manifest.read_edge(bundle).kind == "edge"
    assert manifest.read_cloud(bundle).kind == "cloud"
    assert resolve_half(bundle, "cloud") == resolve_half(bundle / "cloud", "cloud") == bundle / "cloud"


def test_a_bundle_without_union_needs_no_heads(bundle):
    plain = replace(cloud_manifest(bundle / "cloud"), targets=["original"], query_head=None, target_head=None)
    manifest.write(plain, bundle / "cloud")
    assert manifest.read_cloud(bundle) == plain


def test_the_same_manifest_gives_the_same_bytes_and_leaves_nothing_beside(bundle):
    path = bundle / "edge" / "manifest.json"
    first = path.read_bytes()
    path.unlink()
    manifest.write(edge_manifest(bundle / "edge"), bundle / "edge")
    assert path.read_bytes() == first
    assert sorted(os.listdir(bundle / "edge")) == ["encoder.fp32.onnx", "golden.npz", "manifest.json"]
    assert list(json.loads(first))[:3] == ["format", "kind", "name"]


def test_records_are_frozen(bundle):
    record = manifest.read_edge(bundle)
    with pytest.raises(FrozenInstanceError):
        record.token_width = 1  # type: ignore[misc]


def test_names_beyond_ascii_survive(bundle):
    record = replace(edge_manifest(bundle / "edge"), name="Taschenlupe für Möbel 家具")
    manifest.write(record, bundle / "edge")
    assert manifest.read_edge(bundle) == record


# --- refusals: one change to a good manifest, and the key the message names

DROP = object()


def edited(bundle: Path, half: str, key: str, value: object) -> Path:
    path = bundle / half / "manifest.json"
    raw = json.loads(path.read_text())
    *parents, last = key.split(".")
    inner = raw
    for parent in parents:
        inner = inner[parent]
    if value is DROP:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(raw))
    return path


# --- what no id can see: a valid change by hand


@pytest.mark.parametrize(
    ("half", "key", "value"),
    [
        ("edge", "name", "another"),
        ("edge", "picture.fit", "squash"),
        ("edge", "picture.resample", "bilinear"),
        ("edge", "picture.side", 95),
        ("edge", "graphs.fp32.tolerance", 0.5),
        ("cloud", "prompts.composed", "a sketch of {sentence}, {words}"),
        ("cloud", "encoders", ["enc-0123456789abcdef", "enc-of-another"]),
        ("cloud", "text.slot", 5),
        ("cloud", "gallery_space", "gs-fedcba9876543210"),
        ("cloud", "context", 47),
    ],
)
def test_a_valid_change_by_hand_is_refused(bundle, half, key, value):
    edited(bundle, half, key, value)
    with pytest.raises(BadBundle, match="`seal` does not hold: another key was changed after export") as refusal:
        READ[half](bundle / half)
    assert "manifest.json" in str(refusal.value)


@pytest.mark.parametrize("seal", [None, "", 7, "0" * 64])
def test_a_broken_or_missing_seal_is_refused(bundle, seal):
    edited(bundle, "edge", "seal", seal)
    with pytest.raises(BadBundle, match="`seal`"):
        manifest.read_edge(bundle)
    edited(bundle, "edge", "seal", DROP)
    with pytest.raises(BadBundle, match="`seal` is missing"):
        manifest.read_edge(bundle)


def test_no_two_forms_are_one_file_and_no_two_precisions_one_encoder(bundle):
    """Else a form would answer under another's id."""
    folder = bundle / "edge"
    (folder / "int8.onnx").write_bytes(b"int8")
    good = manifest.read_edge(bundle)
    int8 = describe_encoder(folder / "int8.onnx", encoder="enc-int8", tolerance=1.0)
    fp32 = good.graphs["fp32"]
    manifest.write(replace(good, graphs={"fp32": fp32, "int8": int8}), folder)
    with pytest.raises(BadBundle, match=r"`graphs\.int8\.encoder` is that of fp32"):
        manifest.write(replace(good, graphs={"fp32": fp32, "int8": replace(int8, encoder=fp32.encoder)}), folder)
    with pytest.raises(BadBundle, match=r"`graphs\.int8\.sha256` is that of fp32"):
        manifest.write(replace(good, graphs={"fp32": fp32, "int8": replace(fp32, encoder="enc-int8")}), folder)
    manifest.write(replace(good, graphs={"fp32": fp32, "fp32.ort": replace(int8, encoder=fp32.encoder)}), folder)


def leaf_keys(cls: type, folder: Path) -> list[str]:
    made = edge_manifest(folder) if cls is EdgeManifest else cloud_manifest(folder)
    found: list[str] = []

    def walk(value: object, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else name)
        if key:
            found.append(key)

    walk(json.loads(json.dumps(made, default=lambda each: each.__dict__)), "")
    return found


@pytest.mark.parametrize(("cls", "half"), [(EdgeManifest, "edge"), (CloudManifest, "cloud")])
def test_every_key_is_needed_and_typed(bundle, cls, half):
    good = (bundle / half / "manifest.json").read_text()
    keys = leaf_keys(cls, bundle / half)
    assert len(keys) > 20
    for key in keys:
        for value in (DROP, {"neither": "this"}, [["nor", "that"]], "no" if key == "text.fixed_length" else True):
            path = edited(bundle, half, key, value)
            blamed = "graphs" if (key, value) == ("graphs.fp32", DROP) else key  # another form would do
            with pytest.raises(BadBundle, match=re.escape(str(path)) + f".*key `{re.escape(blamed)}"):
                READ[half](bundle)
            path.write_text(good)
    READ[half](bundle)


@pytest.mark.parametrize(
    ("half", "key", "value", "says"),
    [
        ("edge", "surprise", 1, "key `surprise` is unknown"),
        ("edge", "picture.surprise", 1, "key `picture.surprise` is unknown"),
        ("cloud", "text_tower.fp32.surprise", 1, "key `text_tower.fp32.surprise` is unknown"),
        ("cloud", "text_tower", {}, "key `text_tower.fp32` is missing"),
        ("cloud", "image_tower.fp32.tolerance", -1, "key `image_tower.fp32.tolerance` must be positive"),
        ("cloud", "prompts.surprise", "", "key `prompts.surprise` is unknown"),
        ("edge", "format", 3, "key `format` is 3, this Pocketlens reads 2. The bundle is newer: upgrade"),
        ("edge", "format", 1, "key `format` is 1, this Pocketlens reads 2. The bundle is older: export"),
        ("edge", "format", "1", "key `format` must be a whole number"),
        ("edge", "kind", "cloud", "is the cloud half of a bundle; the edge half is needed here"),
        ("cloud", "kind", "edge", "is the edge half of a bundle; the cloud half is needed here"),
        ("edge", "kind", "phone", "key `kind` must be \"edge\", came 'phone'"),
        ("edge", "name", "", "key `name` is empty"),
        ("edge", "token_space", "", "key `token_space` is empty"),
        ("edge", "graphs.fp32.encoder", "", "key `graphs.fp32.encoder` is empty"),
        ("edge", "token_count", 0, "key `token_count` must be 1 to 16"),
        ("edge", "token_count", 4.0, "key `token_count` must be a whole number, came 4.0"),
        ("edge", "token_width", 0, "key `token_width` must be 1 to 4096"),
        ("edge", "graphs.fp32.tolerance", 0, "key `graphs.fp32.tolerance` must be positive"),
        ("edge", "graphs.fp32.tolerance", "small", 'key `graphs.fp32.tolerance` must be a number, came "small"'),
        ("edge", "picture.side", 0, "key `picture` is wrong: side must be 1 to 4096"),
        ("edge", "picture.fit", "stretch", "key `picture` is wrong: fit must be one of crop, squash"),
        ("edge", "picture.resample", "nearest", "key `picture` is wrong: resample must be one of bicubic, bilinear"),
        ("edge", "graphs", {}, "key `graphs` is empty"),
        ("edge", "graphs.fp32", None, "key `graphs.fp32` must be an object, came null"),
        ("edge", "golden.sha256", "00", "key `golden.sha256` must be 64"),
        ("edge", "golden.sha256", "G" * 64, "key `golden.sha256` must be 64"),
        ("edge", "golden.bytes", -1, "key `golden.bytes` must not be negative"),
        ("cloud", "gallery_space", "", "key `gallery_space` is empty"),
        ("cloud", "encoders", [], "key `encoders` must list"),
        ("cloud", "encoders", [1], "key `encoders[0]` must be a string, came 1"),
        ("cloud", "max_tokens", 17, "key `max_tokens` must be 1 to 16"),
        ("cloud", "context", 9, "key `context` must be at least 10"),
        ("cloud", "dim", 0, "key `dim` must be at least 1"),
        ("cloud", "targets", [], "key `targets` must be"),
        ("cloud", "targets", ["union"], "key `targets` must be"),
        ("cloud", "targets", ["original"], "key `target_head` must be there exactly with target"),
        ("cloud", "target_head", None, "key `target_head` must be there exactly with target"),
        ("cloud", "query_head", None, "key `query_head` is needed"),
        ("cloud", "text_tower", None, "key `text_tower` must be an object, came null"),
        ("cloud", "text.fixed_length", 1, "key `text.fixed_length` must be true or false, came 1"),
        ("cloud", "text.begin", [-1], "key `text.begin` must hold token ids"),
        ("cloud", "text.begin", [1] * 41, "key `context` must be at least 50"),
        ("cloud", "text.slot", -4, "key `text.slot` must be a token id"),
        ("cloud", "text.unknown", -4, "key `text.unknown` must be a token id, 0 or more, or null"),
        ("cloud", "text.clean", ["stem"], "key `text.clean` must be of plain, ftfy, html"),
        ("cloud", "prompts.composed", "a photo of {sentence}", "key `prompts.composed` must hold"),
        ("cloud", "prompts.composed", "{sentence} {words} {words}", "key `prompts.composed` must hold"),
        ("cloud", "prompts.picture", "a photo", "key `prompts.picture` must hold {sentence} exactly once"),
        ("cloud", "prompts.words", "{words} {}", "key `prompts.words` must hold {words} exactly once"),
        ("cloud", "prompts.words", "{words!r}", "key `prompts.words` must hold"),
        ("cloud", "prompts.words", "{words} }", "key `prompts.words` must hold"),
    ],
)
def test_one_wrong_thing_is_named(bundle, half, key, value, says):
    path = edited(bundle, half, key, value)
    with pytest.raises(BadBundle, match=re.escape(says)) as refusal:
        READ[half](bundle)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    "name",
    [
        "../cloud/golden.npz",
        "sub/../../cloud/golden.npz",
        "/etc/passwd",
        "..",
        ".",
        "",
        "./golden.npz",
        "a//b",
        "golden.npz/",
        "C:\\golden.npz",
        "sub\\golden.npz",
        "golden.npz\0",
        "manifest.json",
    ],
)
def test_a_file_outside_the_half_is_refused(bundle, name):
    path = edited(bundle, "edge", "golden.file", name)
    with pytest.raises(BadBundle, match=r"key `golden\.file` must be a plain path inside") as refusal:
        manifest.read_edge(bundle)
    assert str(path) in str(refusal.value)


def test_a_link_out_of_the_half_is_refused(bundle):
    golden = bundle / "edge" / "golden.npz"
    outside = bundle / "golden.npz"
    golden.rename(outside)
    golden.symlink_to(outside)
    with pytest.raises(BadBundle, match=r"key `golden\.file` leads out of the bundle"):
        manifest.read_edge(bundle)


def test_a_bundle_reached_through_a_link_is_fine(bundle, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(bundle)
    assert manifest.read_edge(link).kind == "edge"


def test_a_missing_file_is_named(bundle):
    (bundle / "edge" / "golden.npz").unlink()
    with pytest.raises(BadBundle, match=r"edge/golden\.npz: no such file, though key `golden`"):
        manifest.read_edge(bundle)


def test_a_folder_in_a_files_place_is_named(bundle):
    (bundle / "edge" / "golden.npz").unlink()
    (bundle / "edge" / "golden.npz").mkdir()
    with pytest.raises(BadBundle, match=r"edge/golden\.npz: no such file"):
        manifest.read_edge(bundle)


def test_a_truncated_file_is_named_with_both_sizes(bundle):
    path = bundle / "edge" / "encoder.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadBundle, match=r"encoder\.fp32\.onnx: has 21 bytes, key `graphs\.fp32\.bytes`.*22"):
        manifest.read_edge(bundle)


@pytest.mark.parametrize("position", [0, 7, 21])
def test_a_flipped_bit_anywhere_is_named_with_the_digest(bundle, position):
    path = bundle / "edge" / "encoder.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadBundle, match=r"fp32\.onnx: altered since export\. sha256 is [0-9a-f]{64}"):
        manifest.read_edge(bundle)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"[]", "must hold a JSON object"),
        (b"null", "must hold a JSON object"),
        (b"{}", "key `format` is missing"),
        (b'{"format": 2, "format": 2}', "key 'format' stands twice"),
        (b'{"token_width": NaN}', "NaN is not a number JSON knows"),
        (b" " * (manifest.MAX_MANIFEST_BYTES + 1), "so not a manifest"),
    ],
)
def test_a_file_that_is_no_manifest(bundle, text, says):
    path = bundle / "edge" / "manifest.json"
    path.write_bytes(text)
    with pytest.raises(BadBundle, match=re.escape(says)) as refusal:
        manifest.read_edge(bundle)
    assert str(path) in str(refusal.value)


def test_a_newer_format_is_said_before_its_unknown_keys(bundle):
    edited(bundle, "edge", "surprise", 1)
    edited(bundle, "edge", "format", 7)
    with pytest.raises(BadBundle, match="newer: upgrade"):
        manifest.read_edge(bundle)


def test_no_bundle_there(tmp_path):
    with pytest.raises(BadBundle, match=r"nowhere: not a bundle \(no such folder\)"):
        manifest.read_edge(tmp_path / "nowhere")
    with pytest.raises(BadBundle, match=r"neither manifest\.json nor cloud/manifest\.json"):
        manifest.read_cloud(tmp_path)


def test_the_other_half_alone_is_refused(bundle):
    with pytest.raises(BadBundle, match="is the edge half of a bundle; the cloud half is needed"):
        manifest.read_cloud(bundle / "edge")


def test_nothing_is_written_that_could_not_be_read(bundle):
    before = (bundle / "edge" / "manifest.json").read_bytes()
    good = edge_manifest(bundle / "edge")
    for bad in (
        replace(good, token_count=0),
        replace(good, graphs={"fp32": replace(good.graphs["fp32"], tolerance=float("nan"))}),
        replace(good, graphs={"int3": good.graphs["fp32"]}),
        replace(good, golden=replace(good.golden, sha256="0" * 64)),
        replace(good, golden=replace(good.golden, file="absent.npz")),
        replace(good, graphs={}),
    ):
        with pytest.raises(BadBundle):
            manifest.write(bad, bundle / "edge")
    assert (bundle / "edge" / "manifest.json").read_bytes() == before


def test_the_most_exact_form_is_taken_unless_another_is_asked_for(bundle):
    good = edge_manifest(bundle / "edge")
    graph = good.graphs["fp32"]
    forms = replace(good, graphs={"int8": graph, "fp16": graph, "int8.ort": graph})
    assert forms.form() == "fp16" and forms.form("int8") == "int8"
    with pytest.raises(BadBundle, match=r"sample: no fp32 encoder; this bundle has int8, fp16, int8\.ort"):
        forms.form("fp32")
