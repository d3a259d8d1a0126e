"""Light encoders: the sample world's own, and any of timm's that gives a map of places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketlens_training.teachers.towers import Residual, convolution, normalised

TINY = {"tiny-s": (8, 16, 32, 64), "tiny": (16, 32, 64, 96), "tiny-l": (24, 48, 96, 160)}
"""Channels of the four stages of the sample world's own encoders."""


class CannotStudy(ValueError):
    """A backbone that cannot be a student: says which, why, and what to do instead."""


class Backbone(nn.Module):
    """`pixels` uint8 (batch, side, side, 3) RGB -> map (batch, places, channels), rows of the picture first."""

    channels: int
    side: int
    """Pixels it was made for."""


class Tiny(Backbone):
    """The sample world's own: a map at a sixteenth of the picture's side."""

    def __init__(self, widths: Sequence[int], side: int) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.channels, self.side = fourth, side
        self.body = nn.Sequential(
            convolution(3, first, 2), convolution(first, second, 2), convolution(second, third, 2), Residual(third),
            convolution(third, fourth, 2), Residual(fourth),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.body(normalised(pixels).contiguous(memory_format=torch.channels_last))
        return x.permute(0, 2, 3, 1).flatten(1, 2)


class Timm(Backbone):
    """One of timm's models before its pooling; its pixels' mean and deviation inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, side: int) -> None:
        super().__init__()
        self.body = model
        pixels = model.pretrained_cfg
        self.side = side or int(pixels["input_size"][-1])
        self.register_buffer("mean", 255 * torch.tensor(pixels["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(pixels["std"])[:, None, None], persistent=False)
        model.eval()
        with torch.enable_grad():  # a caller may have turned it off
            features = model.forward_features(torch.zeros(1, 3, self.side, self.side))
            features.sum().backward()
        shape = features.shape
        for parameter in model.parameters():  # layers behind the map learn nothing; several GPUs want to know which
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.channels = int(model.num_features)
        self._kind = _kind(shape, self.channels)
        self._skip = int(getattr(model, "num_prefix_tokens", 0)) if self._kind == "sequence" else 0

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.body.forward_features((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        if self._kind == "channels first":
            return x.permute(0, 2, 3, 1).flatten(1, 2)
        return x.flatten(1, 2) if self._kind == "channels last" else x[:, self._skip :]


def make_backbone(name: str, *, side: int = 0, pretrained: bool = True) -> Backbone:
    """The backbone called `name`: one of TINY, a model of timm (`efficientnet_b0`), or that with weights of your own
    (`efficientnet_b0@FILE.safetensors`). side: pixels; 0 takes what it was made for (96 for TINY). pretrained: fetch
    timm's published weights. Raises CannotStudy."""
    if name in TINY:
        return Tiny(TINY[name], side or 96)
    model, _, file = name.partition("@")
    try:
        import timm
    except ImportError as missing:
        raise CannotStudy(f"{name}: timm is not installed: pip install 'pocketlens[teachers]'") from missing
    if model not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{model.split('_')[0]}*")[:6])
        raise CannotStudy(
            f"{name}: neither {', '.join(TINY)} nor a model of timm{f'; near it: {near}' if near else ''}"
        )
    return Timm(_timm(timm, name, model, file, pretrained=pretrained and not file, side=side), side)


def _timm(timm: Any, name: str, model: str, file: str, *, pretrained: bool, side: int) -> Any:
    sized = {"img_size": side} if side and _takes_size(timm, model) else {}
    try:
        made = timm.create_model(model, pretrained=pretrained, num_classes=0, **sized)
    except (OSError, RuntimeError) as error:
        raise CannotStudy(
            f"{name}: its published weights cannot be fetched ({str(error).splitlines()[0]}). Without a network name "
            f"a file, {model}@FILE.safetensors, or begin without weights: --from-scratch"
        ) from error
    if not hasattr(made, "forward_features"):
        raise CannotStudy(f"{name}: gives no map of places before its pooling")
    if file:
        _load(name, made, Path(file))
    return made


def _takes_size(timm: Any, model: str) -> bool:
    return bool(timm.get_pretrained_cfg(model) and timm.get_pretrained_cfg(model).fixed_input_size)


def _load(name: str, made: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise CannotStudy(f"{name}: no file {file}")
    try:
        tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # each library has its own kinds
        raise CannotStudy(f"{name}: {file} does not hold tensors alone ({str(error).splitlines()[0][:200]})") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CannotStudy(f"{name}: {file} does not hold tensors alone, by name")
    wanted = made.state_dict()
    mine = {key: value for key, value in tensors.items() if key in wanted}
    lacking = sorted(wanted.keys() - mine.keys())
    bent = sorted(key for key, value in mine.items() if value.shape != wanted[key].shape)
    if lacking or bent:
        said = [f"lacks {lacking[0]} and {len(lacking) - 1} more"] if lacking else []
        said += [f"has {bent[0]} as {tuple(mine[bent[0]].shape)}"] if bent else []
        raise CannotStudy(f"{name}: {file} is of another architecture: it {'; it '.join(said)}")
    made.load_state_dict(mine)


def _kind(shape: Sequence[int], channels: int) -> str:
    if len(shape) == 3 and shape[2] == channels:
        return "sequence"
    if len(shape) == 4 and shape[1] == channels:
        return "channels first"
    if len(shape) == 4 and shape[3] == channels:
        return "channels last"
    raise CannotStudy(f"its map has the shape {tuple(shape)}, of which none is its {channels} channels")
