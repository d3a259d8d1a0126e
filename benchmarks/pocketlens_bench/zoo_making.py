"""The zoo's inhabitants: students and image towers with drawn weights, exported and quantised as a bundle's are.

Weights do not change what a network costs. Statistics of batch normalisation are those of drawn pictures, so that
activations are neither dead nor endless and a range can be quantised. Each lies in a folder of its own, with a card
written last, so what was made whole is not made again. Needs torch, timm and open_clip. Called by zoo.py."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pocketlens_export import graphs, quantize, tidy
from pocketlens_export.forms import half_precision, runtime_format
from pocketlens_export.graphs import OPSET, write_pixels_graph
from pocketlens_export.quantize import Bench, Recipe
from pocketlens_samples.queries import Picture
from pocketlens_samples.training_set import specifications
from pocketlens_training.cost import multiply_adds, parameters
from pocketlens_training.students import backbones, student, token_learner
from pocketlens_training.students.backbones import make_backbone
from pocketlens_training.students.student import Student, learner_of_size
from pocketlens_wire.pictures import PictureSpec, fit
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

TOKENS = 4
CALIBRATED = 64  # drawn pictures for ranges, and for the statistics of batch normalisation
HELD_OUT = 32  # others, on which int8 is compared with fp32
BATCH = 16
SKETCHES = 5  # every fifth picture is a sketch
LIBRARIES = ("torch", "timm", "open-clip-torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")
SOURCES = (graphs, tidy, quantize, backbones, student, token_learner)
CARD = "card.json"


class Tower(nn.Module):
    """An image tower of open_clip: `pixels` uint8 (batch, side, side, 3) -> unit vector (batch, dim)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: str) -> None:
        super().__init__()
        with _quietly():  # it warns that no published weights were loaded, which is what is wanted
            whole: Any = open_clip.create_model(model)
        self.visual = whole.visual
        pixels: Any = open_clip.get_model_preprocess_cfg(whole)
        self.side = int(np.max(pixels["size"]))
        self.register_buffer("mean", 255 * torch.tensor(pixels["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(pixels["std"])[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.visual((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std), dim=1)


def made(name: str, width: int, folder: Path, *, seed: int) -> dict[str, Any]:
    """The card of an inhabitant, which lies in `folder` in every form; made unless it lies there already.

    name: a student's backbone, or an image tower of open_clip if `width` is 0. width: of a student's tokens."""
    wanted = {"name": name, "width": width, "seed": seed, "made_by": fingerprint()}
    card = folder / CARD
    if card.is_file() and (there := json.loads(card.read_text()))["wanted"] == wanted:
        return there
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = _make(name, width, folder, seed)
    waiting = folder / f".{CARD}"
    waiting.write_text(json.dumps({"wanted": wanted, **found}, indent=2))
    waiting.rename(card)
    return json.loads(card.read_text())


@cache
def fingerprint() -> str:
    """Of the code and the libraries that make graphs: other code makes other graphs."""
    text = "".join(inspect.getsource(module) for module in SOURCES) + Path(__file__).read_text()
    return hashlib.sha256("".join([text, *map(version, LIBRARIES)]).encode()).hexdigest()[:16]


def _make(name: str, width: int, folder: Path, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    module, side = _student(name, width) if width else _tower(name)
    unread = sum(each.numel() for each in module.parameters() if not each.requires_grad)  # timm's layers behind the map
    squares = drawn(CALIBRATED + HELD_OUT, side, seed)
    settle(module, squares[:CALIBRATED])
    if not width:  # training's parallel branches become one convolution, as its makers run it
        module = reparameterize_model(module)
    fp32 = folder / "encoder.fp32.onnx"
    write_pixels_graph(module, fp32, side=side, outputs=["sentence"])
    half_precision(fp32, folder / "encoder.fp16.onnx")
    recipes = []
    with TemporaryDirectory(prefix="pocketlens-zoo-") as place:
        bench = Bench(fp32, squares[:CALIBRATED], squares[CALIBRATED:], Path(place))
        for recipe in recipes_of(bench):
            file = f"encoder.int8.{len(recipes)}.onnx"
            tried = bench.try_out(recipe, "tried")
            shutil.copyfile(tried.path, folder / file)
            recipes.append({
                "file": file, "recipe": asdict(recipe), "says": str(recipe), "ort_bytes": _ort_bytes(folder / file),
                "near": {"mean": tried.near.mean, "least": tried.near.least},
            })  # fmt: skip
    with torch.no_grad(), whole_attention():
        macs = multiply_adds(module, torch.zeros(1, side, side, 3, dtype=torch.uint8))
    return {
        "side": side, "opset": OPSET, "parameters": parameters(module) - unread, "multiply_adds": macs,
        "recipes": recipes, "ort_bytes": _ort_bytes(fp32),
    }  # fmt: skip


def _ort_bytes(graph: Path) -> int:
    """Of the same graph in ONNX Runtime's own format."""
    with TemporaryDirectory(prefix="pocketlens-zoo-") as place:
        runtime_format(graph, Path(place) / "graph.ort")
        return (Path(place) / "graph.ort").stat().st_size


def recipes_of(bench: Bench) -> list[Recipe]:
    """Those of the quantiser whose ranges are plain: which is quickest does not hang on the ranges."""
    return [each for each in bench.recipes() if each.ranges == "minmax" and each.pictures == CALIBRATED]


def _student(name: str, width: int) -> tuple[nn.Module, int]:
    encoder = make_backbone(name, pretrained=False)
    return Student(encoder, learner_of_size(name, encoder.channels, width, tokens=TOKENS)), encoder.side


def _tower(name: str) -> tuple[nn.Module, int]:
    tower = Tower(name)
    return tower, tower.side


def drawn(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Pictures of the sample world as squares (count, side, side, 3)."""
    spec = PictureSpec(side=side, fit="crop")
    pictures = (
        Picture(str(number), each, seed + number, "photo" if number % SKETCHES else "sketch")
        for number, each in enumerate(specifications(count, seed))
    )
    return np.stack([fit(Image.fromarray(picture.pixels()), spec) for picture in pictures])


@torch.no_grad()
def settle(module: nn.Module, squares: NDArray[np.uint8]) -> None:
    """Give batch normalisation the statistics of these pictures."""
    module.eval()
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for start in range(0, len(squares) if norms else 0, BATCH):
        module(torch.from_numpy(squares[start : start + BATCH]))
    module.eval()


@contextmanager
def whole_attention() -> Iterator[None]:
    """torch runs attention in one piece when nothing learns, and counts nothing of it then."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quietly() -> Iterator[None]:
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "timm", "open-clip-torch", "onnx", "onnxslim")}
