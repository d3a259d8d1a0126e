"""What `from pocketlens_edge import ...` gives, and that it costs nothing before it is used."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pocketlens_edge
import pytest
from PIL import Image, ImageOps
from pocketlens_edge import Client, Encoder, Mode
from pocketlens_wire.errors import STATUS_OF, BadPicture, BadQuery, PocketlensError, SpaceMismatch
from pocketlens_wire.pictures import open_picture
from pocketlens_wire.v1 import retrieval_pb2 as pb

PACKAGE = Path(pocketlens_edge.__file__)


def modules_after(code: str) -> set[str]:
    show = "\nimport sys, json; print('\\n' + json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


# --- names


def test_every_name_is_there_and_is_the_modules_own():
    for name in pocketlens_edge.__all__:
        assert getattr(pocketlens_edge, name) is not None
    assert pocketlens_edge.Client is sys.modules["pocketlens_edge.client"].Client
    assert set(pocketlens_edge.__all__) <= set(dir(pocketlens_edge))


def test_type_checkers_see_the_same_names_at_the_same_places():
    """They read the imports under TYPE_CHECKING; the running program reads a table."""
    (guarded,) = (node for node in ast.parse(PACKAGE.read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == pocketlens_edge._MODULE_OF
    assert sorted(seen) == pocketlens_edge.__all__
    assert (PACKAGE.parent / "py.typed").is_file()


def test_every_error_a_user_may_meet_can_be_imported():
    names = {error.__name__ for error in (PocketlensError, *STATUS_OF)}
    assert names <= set(pocketlens_edge.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Decoder'"):
        pocketlens_edge.Decoder  # noqa: B018
    with pytest.raises(ImportError):
        from pocketlens_edge import Decoder  # noqa: F401


def test_importing_the_package_loads_nothing_and_each_name_no_more_than_it_needs():
    heavy = {"onnxruntime", "numpy", "grpc", "PIL", "google.protobuf", "asyncio"}
    assert modules_after("import pocketlens_edge").isdisjoint(heavy)
    asking = modules_after("from pocketlens_edge import Client, AsyncClient, Answer, Mode, Tls, open_gallery")
    assert asking.isdisjoint({"onnxruntime", "pocketlens_cloud", "qdrant_edge", "tokenizers"})
    assert "onnxruntime" in modules_after("from pocketlens_edge import Encoder")


# --- whose tokens


def test_a_client_takes_its_ids_from_the_encoder(server, service, encoder, toy, photo):
    with Client(server, encoder) as client:
        assert client.search(encoder.encode(photo), "red").hits
    (request,) = service.requests
    assert (request.token_space, request.encoder) == (toy.token_space, toy.encoder_id)


def test_a_client_without_ids_or_with_two_kinds_of_them_is_a_mistake(encoder, toy):
    with pytest.raises(TypeError, match="needs an encoder, or the token_space"):
        Client("x:1")
    with pytest.raises(TypeError, match="not both"):
        Client("x:1", encoder, token_space=toy.token_space)


def test_a_mode_may_be_its_name_and_must_be_one(client, service):
    client.search(None, "red", mode="tuned")
    client.search(None, "red", mode=Mode.TUNED)
    assert service.requests[0] == service.requests[1]
    with pytest.raises(BadQuery, match="mode is 'best'; it is one of zero-shot, tuned"):
        client.search(None, "red", mode="best")


def test_a_reply_of_another_token_space_is_not_believed(server, service, encoder):
    """A server that does not look at the ids it is sent."""
    with (
        Client(server, token_space="ts-ffffffffffffffff", encoder_id=encoder.encoder_id) as client,
        pytest.raises(SpaceMismatch, match=r"ts-0123456789abcdef.*ts-ffffffffffffffff.*Install the edge half"),
    ):
        client.search(None, "red")
    assert service.calls == 1


def test_a_question_can_be_made_now_and_asked_later(client, service, tokens):
    kept = client.question(tokens, "red", top=1).SerializeToString()
    assert service.calls == 0
    assert len(client.ask(pb.SearchRequest.FromString(kept)).hits) == 1
    assert service.requests[0].SerializeToString() == kept


# --- every kind of picture


def photo_bytes(turn: int = 1) -> bytes:
    """A JPEG whose EXIF asks for a turn."""
    noise = np.random.default_rng(5).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC).save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_same_picture_gives_the_same_tokens_however_it_is_handed_over(tmp_path, encoder, toy, turn):
    data = photo_bytes(turn)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    upright = np.asarray(ImageOps.exif_transpose(opened))
    ways = {
        "path": path,
        "its name": str(path),
        "open file": io.BytesIO(data),
        "Pillow": opened,
        "Pillow, converted": opened.convert("RGB"),
        "Pillow, turned by itself": ImageOps.exif_transpose(opened),
        "our own reader's": open_picture(data),
        "our own reader's, small": open_picture(data, near=toy.side),
        "frame": upright,
        "frame, seen backwards and back": upright[..., ::-1].copy()[..., ::-1],
    }
    wanted = encoder.encode(data)
    for way, picture in ways.items():
        np.testing.assert_allclose(encoder.encode(picture), wanted, atol=toy.tolerance, err_msg=way)
    if turn > 1:
        unturned = np.asarray(opened)
        assert np.abs(encoder.encode(unturned) - wanted).max() > 100 * toy.tolerance
    assert np.abs(encoder.encode(upright[..., ::-1]) - wanted).max() > 100 * toy.tolerance, "BGR would go unnoticed"


def test_a_transparent_picture_of_pillows_lies_on_white(encoder, toy):
    drawn = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    white = np.full((40, 40, 3), 255, np.uint8)
    np.testing.assert_allclose(encoder.encode(drawn), encoder.encode(white), atol=toy.tolerance)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((48, 64, 3), np.float32), r"must be uint8 of shape \(height, width, 3\), in RGB; came float32"),
        (np.zeros((3, 48, 64), np.uint8), r"came uint8 \(3, 48, 64\)"),
        (np.zeros((48, 64), np.uint8), r"came uint8 \(48, 64\)"),
        (np.zeros((48, 64, 4), np.uint8), r"came uint8 \(48, 64, 4\)"),
        (np.zeros((0, 64, 3), np.uint8), "too small"),
        (np.zeros((4, 64, 3), np.uint8), "64 x 4 pixels is too small"),
        (Image.new("RGB", (4, 64)), "4 x 64 pixels is too small"),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000, 3)), "the limit is 50 megapixels"),
    ],
)
def test_a_frame_that_is_none_is_refused(encoder, frame, message):
    with pytest.raises(BadPicture, match=message):
        encoder.encode(frame)


def test_a_broken_file_that_pillow_has_opened_is_named(encoder):
    cut = Image.open(io.BytesIO(photo_bytes()[:900]))
    with pytest.raises(BadPicture, match=r"^frame 7: the JPEG data is truncated or broken"):
        encoder.encode_timed(cut, name="frame 7")


def test_threads_may_share_an_encoder(encoder, toy):
    frames = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8) for seed in range(16)]
    alone = [encoder.encode(frame) for frame in frames]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(encoder.encode, frames))
    np.testing.assert_allclose(together, alone, atol=toy.tolerance)


def test_a_bundle_may_be_named_by_text(bundle):
    assert Encoder.load(str(bundle)).manifest == Encoder.load(bundle).manifest
