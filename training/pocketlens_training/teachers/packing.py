"""Rows of tokens without their padding: of a transformer's work nearly all is done token by token, and a padding token
costs as much as any other.

Owns the way from padded rows to one sequence of all their tokens and back, and attention between the two: rows are
padded for attention alone, which is a small part of the work at the lengths of texts. The order of tokens within a row,
and so what a token sees, stays as it was. Called by from_open_clip.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNSEEN = 60.0  # by how much the score of what is not seen lies below that of the row's first token


@final
class Packing:
    """Which places of rows (rows, length) hold tokens: those up to and with `end` int64 (rows,)."""

    def __init__(self, end: Tensor, length: int) -> None:
        self._holds = holds = torch.arange(length, device=end.device)[None] <= end[:, None]
        self._places = holds.flatten().nonzero().squeeze(1)  # (tokens,)
        self._tokens = (holds.flatten().cumsum(0) - 1).view_as(holds)  # which token stands there; padding repeats one
        self._ends = self._tokens.gather(1, end[:, None])  # (rows, 1)

    def pack(self, rows: Tensor) -> Tensor:
        """(tokens, width) of (rows, length, width)."""
        return rows.flatten(0, 1).index_select(0, self._places)

    def unpack(self, tokens: Tensor) -> Tensor:
        """(rows, length, width) of (tokens, width). What stands at padding is of another token: mask it."""
        return tokens.index_select(0, self._tokens.flatten()).unflatten(0, self._tokens.shape)

    def ends(self, tokens: Tensor) -> Tensor:
        """The end tokens (rows, width) of (tokens, width)."""
        return tokens.index_select(0, self._ends.flatten())

    def attended(self, attention: nn.MultiheadAttention, tokens: Tensor, sees: Tensor) -> Tensor:
        """Self-attention of (tokens, width) within each row. sees: bool (length, length), which token sees which."""
        queries, keys, values = (self.unpack(part(tokens)) for part in _parts(attention))
        return attention.out_proj(self.pack(_seen(queries, keys, values, sees, attention.num_heads)))

    def attended_at_the_end(self, attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
        """What `attended` gives at the end tokens alone, which see all tokens of their row: (rows, width)."""
        of_queries, of_keys, of_values = _parts(attention)
        queries = of_queries(self.ends(tokens))[:, None]
        keys, values = self.unpack(of_keys(tokens)), self.unpack(of_values(tokens))
        sees = self._holds[:, None, None]
        return attention.out_proj(_seen(queries, keys, values, sees, attention.num_heads).squeeze(1))


def _parts(attention: nn.MultiheadAttention) -> list[Callable[[Tensor], Tensor]]:
    """What makes queries, keys and values of tokens, each by itself: cutting one product apart takes longer."""
    biases = (None, None, None) if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    weights = attention.in_proj_weight.chunk(3)
    return [partial(F.linear, weight=weight, bias=bias) for weight, bias in zip(weights, biases, strict=True)]


def _seen(queries: Tensor, keys: Tensor, values: Tensor, sees: Tensor, heads: int) -> Tensor:
    """Attention (rows, places, width) by so many heads, of which each query sees the row's first token at least.

    What it does not see weighs e^-UNSEEN of the first token at most, which float32 does not add up. With -inf, as is
    usual, ONNX Runtime's softmax gives subnormal numbers, which takes processors five times as long."""
    queries, keys, values = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (queries, keys, values))
    scores = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
    scores = scores.where(sees, scores[..., :1] - UNSEEN)
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
