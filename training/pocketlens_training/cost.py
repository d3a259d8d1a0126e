"""What a module costs: parameters, and multiply-adds of one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def multiply_adds(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of convolutions, matrix products and attention, counted by torch (which counts two FLOPs each)."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2
