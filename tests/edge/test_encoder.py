"""Picture to tokens: the golden tolerance has teeth, and a bundle that is not whole is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from pocketlens_edge.doctor import replay
from pocketlens_edge.encoder import Encoder
from pocketlens_edge.runtime import CPU, Graph, full_provider_name
from pocketlens_wire.errors import BadBundle, BadPicture
from pocketlens_wire.pictures import fit, open_picture


def test_golden_is_reproduced_and_the_tolerance_has_teeth(encoder, bundle, toy):
    replayed = replay(encoder, bundle / "edge")
    assert replayed.ok
    assert replayed.pictures == 6
    assert replayed.max_angle_deg < 0.001
    pixels = toy.golden_pixels()
    truth = toy.reference(pixels)
    mistakes = {
        "BGR": pixels[..., ::-1],
        "mirrored": pixels[:, :, ::-1],
        "one grey level brighter": pixels + (pixels < 255).astype(np.uint8),
    }
    for mistake, wrong in mistakes.items():
        difference = np.abs(encoder.encode_pixels(np.ascontiguousarray(wrong)) - truth).max()
        assert difference > 10 * toy.tolerance, mistake


def test_one_picture_is_its_row_of_a_batch(encoder, toy):
    pixels = toy.golden_pixels()
    batch = encoder.encode_pixels(pixels)
    assert batch.shape == (6, toy.count, toy.width)
    assert batch.dtype == np.float32
    alone = encoder.encode(Image.fromarray(pixels[3]))
    np.testing.assert_allclose(alone, batch[3], atol=toy.tolerance)


def test_a_timed_encode_gives_the_same_tokens_and_every_stage(encoder, photo, toy):
    encoded = encoder.encode_timed(photo)
    picture = open_picture(photo, near=toy.side)
    np.testing.assert_array_equal(encoded.tokens, encoder.encode(picture))
    assert list(encoded.times_ms) == ["open", "fit", "encode"]
    assert all(ms > 0 for ms in encoded.times_ms.values())
    assert fit(picture, encoder.manifest.picture).shape == (toy.side, toy.side, 3)


def test_an_empty_batch_is_an_empty_answer(encoder, toy):
    none = np.zeros((0, toy.side, toy.side, 3), np.uint8)
    assert encoder.encode_pixels(none).shape == (0, toy.count, toy.width)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 16, 16, 3), np.uint8),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
    ],
)
def test_other_pixels_are_the_callers_mistake(encoder, pixels):
    with pytest.raises(ValueError, match="pixels must be uint8"):
        encoder.encode_pixels(pixels)


def test_a_bad_picture_is_named(encoder):
    with pytest.raises(BadPicture, match=r"^the upload: the file is empty"):
        encoder.encode_timed(b"", name="the upload")


def test_the_half_alone_is_a_bundle(bundle):
    assert Encoder.load(bundle / "edge").manifest == Encoder.load(bundle).manifest


def test_the_provider_is_the_cpu_unless_asked_and_is_said(encoder, bundle):
    assert encoder.provider == CPU
    assert encoder.threads == 1
    assert full_provider_name("cpu") == CPU
    assert Encoder.load(bundle, providers=["CPU"], threads=2).threads == 2
    with pytest.raises(BadBundle, match=r"`warp` is not in this ONNX Runtime .* offers .*CPU"):
        Encoder.load(bundle, providers=["warp"])


def test_a_precision_the_bundle_lacks_is_refused(bundle):
    with pytest.raises(BadBundle, match="no int8 encoder; this bundle has fp32"):
        Encoder.load(bundle, precision="int8")


def test_a_flipped_byte_is_refused_naming_the_file(own_bundle):
    flip_byte(own_bundle / "edge" / "encoder.fp32.onnx")
    with pytest.raises(BadBundle, match=r"encoder\.fp32\.onnx: altered since export"):
        Encoder.load(own_bundle)


def test_a_graph_that_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BadBundle, match=r"broken\.onnx: not a graph that ONNX Runtime"):
        Graph(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pixels", "image", "expected input `pixels` tensor\\(uint8\\), found `image`"),
        ("sentence", "tokens", "expected output `sentence` tensor\\(float\\), found `tokens`"),
    ],
)
def test_tensors_are_found_by_name_only(tmp_path, toy, old, new, message):
    graph = toy.graph()
    for node in graph.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for tensor in (*graph.graph.input, *graph.graph.output):
        tensor.name = new if tensor.name == old else tensor.name
    toy.write_edge(tmp_path / "edge", graph=graph)
    with pytest.raises(BadBundle, match=message):
        Encoder.load(tmp_path)


def test_tokens_that_are_not_numbers_stay_here(tmp_path, toy):
    graph = toy.graph()
    weights = next(tensor for tensor in graph.graph.initializer if tensor.name == "weights")
    values = onnx.numpy_helper.to_array(weights).copy()
    values[5, 7] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(values, "weights"))
    toy.write_edge(tmp_path / "edge", graph=graph)
    with pytest.raises(BadBundle, match="not finite"):
        Encoder.load(tmp_path).encode_pixels(toy.golden_pixels())


def test_a_graph_that_gives_another_shape_than_its_manifest_is_refused(tmp_path, toy):
    graph = toy.graph()
    shape = next(tensor for tensor in graph.graph.initializer if tensor.name == "shape")
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 8, 96], np.int64), "shape"))
    graph.graph.output[0].type.tensor_type.shape.ClearField("dim")
    toy.write_edge(tmp_path / "edge", graph=graph)
    with pytest.raises(BadBundle, match=r"shape \(6, 8, 96\); its manifest says \(6, 4, 192\)"):
        Encoder.load(tmp_path).encode_pixels(toy.golden_pixels())


def test_the_device_stays_light_and_help_stays_quick():
    """What each door loads, in a fresh interpreter."""
    loaded = modules_after("import pocketlens_edge.encoder, pocketlens_edge.client, pocketlens_edge.show")
    assert loaded.isdisjoint({"torch", "onnx", "qdrant_edge", "tokenizers", "pocketlens_cloud"})
    for_help = modules_after(
        "from pocketlens_edge.cli import app\ntry: app(['search', '--help'])\nexcept SystemExit: pass"
    )
    assert for_help.isdisjoint({"onnxruntime", "numpy", "grpc", "PIL", "google.protobuf"})


def modules_after(code: str) -> set[str]:
    show = "\nimport sys, json; print('\\n' + json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)
