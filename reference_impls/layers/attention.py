"""Attention on tokens of a feature map, and the position bias that its relatives share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, chained, closed_form
from reference_impls.layers.layout import Size
from reference_impls.layers.weights import initialise_small


class PositionBias(nn.Module):
    """A learned bias for each head and each distance between query and key: -> (heads, N_q, N_k).

    `table` (heads, h * w) holds a value for each |dy|, |dx| on a feature map of `size` = (h, w) keys; queries sit on
    every `stride`-th row and column. It is looked up in every pass, so nothing is stale after new weights are loaded.
    For a feature map of another size the table is stretched bilinearly, distance 0 staying distance 0.
    """

    index: Tensor  # (N_q, N_k), column of the table

    def __init__(self, heads: int, size: Size, stride: int = 1) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.table = nn.Parameter(torch.zeros(heads, math.prod(size)))
        self.register_buffer("index", distance_index(size, stride), persistent=False)

    def forward(self, size: Size) -> Tensor:
        table: Tensor = self.table
        index = self.index
        if size != self.size:
            grid = table.unflatten(1, self.size).unsqueeze(0)
            table = F.interpolate(grid, size=size, mode="bilinear", align_corners=True)[0].flatten(1)
            index = distance_index(size, self.stride).to(index.device)
        return table.index_select(1, index.flatten()).unflatten(1, index.shape)


def distance_index(size: Size, stride: int = 1) -> Tensor:
    """|dy| * w + |dx| from each query, on every `stride`-th position, to each key of a map (h, w): (N_q, N_k)."""
    y, x = (torch.arange(n) for n in size)
    dy = (y[::stride, None] - y).abs()  # (h / stride, h)
    dx = (x[::stride, None] - x).abs()
    return (dy[:, None, :, None] * size[1] + dx[None, :, None, :]).flatten(2).flatten(0, 1)


class TokenAttention(nn.Module):
    """Multi-head attention on tokens (B, N, C) of a feature map of `size`, with position bias and wide values.

    Each head has keys of `key_dim` and values of `ratio` times as many channels; the projection `qkv` lays them out
    head by head. Another number of tokens is taken as a square feature map, see `PositionBias`.
    """

    def __init__(self, channels: int, size: Size, heads: int = 8, key_dim: int = 32, ratio: int = 4) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.size = heads, key_dim, ratio * key_dim, size
        self.qkv = nn.Linear(channels, heads * (2 * key_dim + self.value_dim))
        self.proj = nn.Linear(heads * self.value_dim, channels)
        self.bias = PositionBias(heads, size)
        initialise_small(self.qkv, self.proj)

    def grid(self, tokens: int) -> Size:
        """Size of the feature map of this many tokens. Raises ValueError unless they are `size` or a square."""
        if tokens == math.prod(self.size):
            return self.size
        side = math.isqrt(tokens)
        if side**2 != tokens or not tokens:
            raise ValueError(f"{tokens} tokens make no feature map: {math.prod(self.size)} or a square are needed")
        return side, side

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, 2 * key_dim + value_dim)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        scores = q @ k.transpose(2, 3) * self.key_dim**-0.5 + self.bias(self.grid(x.shape[1]))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@closed_form.register
def _(part: TokenAttention, shape: Shape) -> Footprint:
    projected = closed_form(part.qkv, shape)
    mixed = Footprint(
        part.bias.table.numel(),
        shape[0] ** 2 * part.heads * (part.key_dim + part.value_dim),
        (shape[0], part.heads * part.value_dim),
    )
    return projected + mixed + chained(mixed.shape, part.proj)
