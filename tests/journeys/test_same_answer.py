"""Same picture, same answer: whatever of ours is shown a golden picture makes the same tokens and finds the same.

The library, called from Python, is what the others are held against: the installed command and the self-contained
program, each a process that goes through all pictures by `batch`. The browser's are tested with the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pocketlens_bench.server import serving
from pocketlens_cloud.indexing import ingest
from pocketlens_edge.client import Client
from pocketlens_edge.encoder import Encoder
from pocketlens_samples.queries import composed_set, write_gallery
from pocketlens_wire.bundle import default_bundle

LEAST_COSINE = 0.999  # of each token with the library's
LEAST_OVERLAP = 0.99  # of the first ten hits, mean over the pictures
WORDS = "make it red"

Tokens = dict[str, NDArray[np.float32]]  # (token_count, token_width) by file name
Hits = dict[str, list[str]]  # ids by file name, best first


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """HOST:PORT of a server upon 300 pictures of the sample world."""
    at = tmp_path_factory.mktemp("world")
    write_gallery(at / "pictures", composed_set(queries=40, gallery=300).gallery, processes=1)
    ingest.index(at / "pictures", at / "gallery", default_bundle())
    with serving(default_bundle(), at / "gallery", threads=1) as server:
        yield server.address


@pytest.fixture(scope="module")
def library(golden_folder, address) -> tuple[Tokens, Hits]:
    encoder = Encoder.load(default_bundle())
    tokens, hits = Tokens(), Hits()
    with Client(address, token_space=encoder.manifest.token_space, encoder_id=encoder.encoder_id) as client:
        for picture in sorted(golden_folder.iterdir()):
            tokens[picture.name] = encoder.encode_timed(picture).tokens
            hits[picture.name] = [hit.id for hit in client.search(tokens[picture.name], WORDS).hits]
    return tokens, hits


@pytest.fixture(params=["command", "self-contained program"])
def batched(request, golden_folder, address, tmp_path) -> tuple[Tokens, Hits]:
    """What `batch` of one of them gives for all pictures."""
    if request.param == "command":
        program, environment = [sys.executable, "-m", "pocketlens_edge"], dict(os.environ)
    else:
        program, environment = [str(request.getfixturevalue("edge_binary"))], {}
    answers, folder = tmp_path / "answers.jsonl", tmp_path / "tokens"
    asked = subprocess.run(
        [*program, "batch", golden_folder, "--text", WORDS, "--server", address, "-o", answers, "--tokens", folder],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    hits = {line["file"]: [hit["id"] for hit in line["hits"]] for line in lines if "hits" in line}
    tokens = Tokens()
    for name in hits:
        with np.load(folder / f"{name}.npz") as kept:
            tokens[name] = kept["tokens"]
    return tokens, hits


def test_there_are_enough_and_of_every_kind(library):
    tokens, hits = library
    assert len(tokens) >= 200
    kinds = {name.split("-")[1] for name in tokens}
    assert kinds >= {"shape", "strip", "tiny", "huge", "exif", "alpha", "grey", "sixteen", "one", "palette", "sketch"}
    assert kinds >= {"jpeg", "cmyk", "ycck", "profile", "webp", "animated"}
    assert all(len(found) == 10 for found in hits.values())
    assert len({tuple(found) for found in hits.values()}) > 100, "the pictures hardly differ"


def test_the_same_tokens_and_the_same_hits(library, batched):
    tokens, hits = batched
    assert tokens.keys() == library[0].keys()
    far = {name: cosine for name in tokens if (cosine := _least_cosine(tokens[name], library[0][name])) < LEAST_COSINE}
    assert not far
    assert np.mean([len(set(hits[name]) & set(library[1][name])) / 10 for name in hits]) >= LEAST_OVERLAP


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("plain", "colours swapped"),
        ("exif-6-", "orientation ignored"),
        ("alpha-rgba", "transparent shown black"),
        ("shape-1024x400", "squashed"),
        ("profile-swapped", "profile applied"),
    ],
)
def test_a_classic_mistake_would_be_seen(library, golden_folder, kind, mistake):
    encoder = Encoder.load(default_bundle())
    for name, tokens in library[0].items():
        if f"-{kind}" in name:
            with Image.open(golden_folder / name) as picture:
                wrong = _mistaken(picture, mistake)
            assert _least_cosine(encoder.encode(wrong), tokens) < LEAST_COSINE, name


def _mistaken(picture: Image.Image, mistake: str) -> Image.Image:
    if mistake == "transparent shown black":
        return Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size), picture.getchannel("A"))
    rgb = Image.fromarray(np.asarray(picture.convert("RGB")))  # as it lies in the file, without what is said about it
    if mistake in ("colours swapped", "profile applied"):
        red, green, blue = rgb.split()
        return Image.merge("RGB", (blue, green, red) if mistake == "colours swapped" else (green, red, blue))
    return rgb.resize((96, 96)) if mistake == "squashed" else rgb


def _least_cosine(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The worst of the tokens, paired by place."""
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return float(((ours * theirs).sum(axis=-1) / lengths).min())
