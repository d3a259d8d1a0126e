"""Rows of tokens without their padding: of a transformer's work nearly all is done token by token, and a padding token
costs as much as any other.

Owns the way from padded rows to one sequence of all their tokens and back, and attention between the two: rows are
padded for attention alone, which is a small part of the work at the lengths of texts. The order of tokens within a row,
and so what a token sees, stays as it was. Called by from_open_clip.py."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@final
class Packing:
    """Which places of rows (rows, length) hold tokens: those up to and with `end` int64 (rows,)."""

    def __init__(self, end: Tensor, length: int) -> None:
        self._holds = holds = torch.arange(length, device=end.device)[None] <= end[:, None]
        self._places = holds.flatten().nonzero().squeeze(1)  # (tokens,)
        self._tokens = (holds.flatten().cumsum(0) - 1).view_as(holds)  # which token stands there; padding repeats one
        self._ends = self._tokens.gather(1, end[:, None])  # (rows, 1)

    def pack(self, rows: Tensor) -> Tensor:
        """(1, tokens, width) of (rows, length, width)."""
        return rows.flatten(0, 1).index_select(0, self._places)[None]

    def unpack(self, tokens: Tensor) -> Tensor:
        """(rows, length, width) of (1, tokens, width). What stands at padding is of another token: mask it."""
        return tokens[0].index_select(0, self._tokens.flatten()).unflatten(0, self._tokens.shape)

    def ends(self, tokens: Tensor) -> Tensor:
        """The end tokens (rows, 1, width) of (1, tokens, width)."""
        return tokens[0].index_select(0, self._ends.flatten())[:, None]

    def attended(self, attention: nn.MultiheadAttention, tokens: Tensor, mask: Tensor) -> Tensor:
        """Self-attention of (1, tokens, width) within each row. mask: (length, length), added to the scores."""
        made = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
        queries, keys, values = self.unpack(made).chunk(3, -1)
        return attention.out_proj(self.pack(_seen(queries, keys, values, mask, attention.num_heads)))

    def attended_at_the_end(self, attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
        """What `attended` gives at the end tokens alone, which see all tokens of their row: (rows, 1, width)."""
        width = tokens.shape[2]
        of_queries, of_others = attention.in_proj_weight.tensor_split([width])
        bias = (None, None) if attention.in_proj_bias is None else attention.in_proj_bias.tensor_split([width])
        queries = F.linear(self.ends(tokens), of_queries, bias[0])
        keys, values = self.unpack(F.linear(tokens, of_others, bias[1])).chunk(2, -1)
        return attention.out_proj(_seen(queries, keys, values, self._holds[:, None, None], attention.num_heads))


def _seen(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Attention (rows, places, width) by so many heads. mask: added to the scores, or where there is something."""
    split = [each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (queries, keys, values)]
    return F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=mask).transpose(1, 2).flatten(2)
