"""Torch modules to ONNX graphs with the bundle's signatures: named tensors, dynamic batch, length and k.

Owns what each graph takes and gives; the numbers come from training, the files are judged by parity.py."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from pocketlens_training.teachers.teacher import ImageModule, TextModule
from pocketlens_wire.manifest import PACKS
from torch import Tensor, nn
from torch.export import Dim

from pocketlens_export.tidy import tidy

OPSET = 20
Shapes = tuple[dict[int, Dim] | None, ...]


class UnitText(nn.Module):
    """Text tower whose output has length 1."""

    def __init__(self, tower: TextModule) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self,
        token_ids: Tensor,
        sentence: Tensor,
        sentence_start: Tensor,
        sentence_length: Tensor,
        end: Tensor,
    ) -> Tensor:
        return F.normalize(self.tower(token_ids, sentence, sentence_start, sentence_length, end), dim=1)


class RawAndUnitImage(nn.Module):
    """Image tower with both of its features and the map before pooling (the symmetric baseline reads that)."""

    def __init__(self, tower: ImageModule) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raw, places = self.tower(pixels)
        return raw, F.normalize(raw, dim=1), places


def write_graph(
    module: nn.Module,
    path: Path,
    *,
    inputs: dict[str, Tensor],
    outputs: Sequence[str],
    dynamic: Shapes,
) -> None:
    """Export `module` in evaluation mode to `path`; `dynamic` names the free axes of each input, in order."""
    module = module.eval().float()
    with warnings.catch_warnings(), _quiet("torch.onnx"), _quiet("onnxscript"):
        # The exporter warns of its own internals; what matters is judged by parity on the written file.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        ClearMetadataAndDocStringPass()(program.model)  # every node carries a stack trace: this machine's folders
        program.save(str(path), external_data=False)
    tidy(path)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence one logger below ERROR for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_pixels_graph(module: nn.Module, path: Path, *, side: int, outputs: Sequence[str]) -> None:
    """A graph from `pixels` uint8 (batch, side, side, 3)."""
    pixels = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    write_graph(module, path, inputs={"pixels": pixels}, outputs=outputs, dynamic=({0: Dim("batch")},))


def write_text_tower(tower: TextModule, path: Path, *, width: int, context: int, fixed_length: bool = False) -> None:
    """The text tower with free batch, length (2 to `context`, or always `context`) and k."""
    inputs = {
        "token_ids": torch.ones(2, context if fixed_length else 9, dtype=torch.int64),
        "sentence": torch.randn(2, 4, width),
        "sentence_start": torch.tensor([2, 3]),
        "sentence_length": torch.tensor([4, 2]),
        "end": torch.tensor([8, 7]),
    }
    batch, length, k = Dim("batch"), Dim("length", min=2, max=context), Dim("k")
    free: Shapes = (
        {0: batch} if fixed_length else {0: batch, 1: length},
        {0: batch, 1: k},
        {0: batch},
        {0: batch},
        {0: batch},
    )
    write_graph(UnitText(tower), path, inputs=inputs, outputs=["text"], dynamic=free)
    if tower.packs:
        _note_packing(path)


def _note_packing(path: Path) -> None:
    """Say in the graph that it reads no padding."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {PACKS: "yes"})
    onnx.save(model, path)


def write_rows_graph(
    module: nn.Module, path: Path, *, inputs: Sequence[str], shape: tuple[int, ...], output: str
) -> None:
    """A graph from float32 inputs (batch, *shape) to one output: heads, and the symmetric baseline."""
    batch = Dim("batch")
    write_graph(
        module,
        path,
        inputs={name: F.normalize(torch.randn(2, *shape), dim=-1) for name in inputs},
        outputs=[output],
        dynamic=tuple({0: batch} for _ in inputs),
    )
