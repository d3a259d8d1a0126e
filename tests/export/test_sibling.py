"""A sibling student passes the same customs, as a device's half on its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pocketlens_cloud.compose import Composer
from pocketlens_edge.encoder import Encoder
from pocketlens_export import parity
from pocketlens_export.bundle import export_bundle
from pocketlens_export.cli import app
from pocketlens_training.checkpoint import load_run, load_sibling
from pocketlens_wire.manifest import read_cloud, read_edge
from typer.testing import CliRunner

TOKENS = 2


@pytest.fixture(scope="module")
def exported(tiny_siblings: Path, tmp_path_factory) -> tuple[Path, dict]:
    """The half, and what the command printed."""
    out = tmp_path_factory.mktemp("siblings") / "k2"
    ran = CliRunner().invoke(app, ["sibling", str(tiny_siblings), "--tokens", str(TOKENS), "-o", str(out), "--json"])
    assert ran.exit_code == 0, ran.stderr
    return out, json.loads(ran.stdout)


def test_the_half_shares_the_token_space_and_has_its_own_encoder(exported, tiny_bundle) -> None:
    out, report = exported
    half, of_the_bundle = read_edge(out), read_edge(tiny_bundle)
    assert half.token_space == of_the_bundle.token_space == report["token_space"]
    assert half.graph().encoder != of_the_bundle.graph().encoder
    assert half.token_count == TOKENS
    assert {path.name for path in out.iterdir()} == {"manifest.json", "encoder.fp32.onnx", "golden.npz", "report.json"}
    (check,) = report["parity"]
    assert check["difference"] <= check["tolerance"] < min(check["mistakes"].values()) / 10


def test_the_golden_vectors_are_torchs_and_its_tokens_can_be_composed(exported, tiny_bundle) -> None:
    out, _ = exported
    golden = np.load(out / "golden.npz")
    sentences = Encoder.load(out).encode_pixels(golden["pixels"])
    assert np.abs(sentences - golden["sentence"]).max() <= read_edge(out).graph().tolerance
    made = Composer.load(tiny_bundle).compose_batch([(sentence, "but red") for sentence in sentences], "zero-shot")
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)


def test_a_half_whose_numbers_are_another_students_is_refused(exported, tiny_siblings) -> None:
    out, _ = exported
    trained = load_run(tiny_siblings)
    given = parity.material(16, 1, trained.picture, trained.teacher.picture)
    sentence = load_sibling(trained, TOKENS)(torch.from_numpy(given.pixels)).numpy()
    assert parity.check_encoder(out, given.pixels, sentence).verdict() is None
    with pytest.raises(parity.NotEqual, match="differs from torch"):
        parity.passed([parity.check_encoder(out, given.pixels, 1.001 * sentence)])


def test_the_cloud_half_takes_it_once_it_is_named(exported, tiny_run, tmp_path) -> None:
    _, report = exported
    export_bundle(tiny_run, tmp_path / "both", name="tiny", exact_only=True, accept=[report["encoder"]])
    assert report["encoder"] in read_cloud(tmp_path / "both").encoders


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(exported, tiny_siblings, tmp_path) -> None:
    out, _ = exported
    shutil.copytree(out, tmp_path / "taken")
    for tokens, folder, words in ((TOKENS, "taken", "exists; choose another name"), (7, "new", "--tokens 7")):
        ran = CliRunner().invoke(
            app, ["sibling", str(tiny_siblings), "--tokens", str(tokens), "-o", str(tmp_path / folder)]
        )
        assert (ran.exit_code, len(ran.stderr.splitlines())) == (1, 1)
        assert words in ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}
