"""Attention downsampling: halve a map by attention whose queries are subsampled and whose keys are not.

References:
  li-2023-rethinking: Li, Hu, Wen, Evangelidis, Salahi, Wang, Tulyakov, Ren. Rethinking Vision Transformers for
    MobileNet Size and Speed (EfficientFormerV2). ICCV 2023, arXiv 2212.08059. Dual-path attention downsampling.

The idea: the small map needs one query for each of its own pixels only, a quarter of the input's, but each of them may
look at every pixel of the input. A convolution of stride 2 runs beside it, and the two are added.

    down = DualPathDownsample(96, 176, (14, 14))
    y = down(x)                                          # (B, 96, 14, 14) -> (B, 176, 7, 7): 49 queries, 196 keys
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from reference_impls.techniques.dimension_consistent_design import ConvNorm, Cost, PositionBias, Size, conv_cost


class LocalQuery(nn.Module):
    """Queries on every second row and column: 1x1 of (depthwise 3x3 of stride 2, plus the pixel itself)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
        self.proj = ConvNorm(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.local(x) + x[:, :, ::2, ::2])


class AttentionDown(nn.Module):
    """Attention from a quarter of the pixels to all of them: (B, C, H, W) -> (B, C', ceil(H / 2), ceil(W / 2)).

    `size` = (H, W); other sizes of map are taken, see `PositionBias`.
    """

    def __init__(self, channels: int, out: int, size: Size, heads: int = 8, key_dim: int = 16, ratio: int = 4) -> None:
        super().__init__()
        self.heads, self.key_dim = heads, key_dim
        keys, values = heads * key_dim, heads * key_dim * ratio
        self.q = LocalQuery(channels, keys)
        self.k = ConvNorm(channels, keys)
        self.v = ConvNorm(channels, values)
        self.v_local = ConvNorm(values, values, 3, 2, groups=values)
        self.act = nn.GELU()
        self.proj = ConvNorm(values, out)
        self.bias = PositionBias(heads, size, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        queries, values = self.q(x), self.v(x)
        q, k, v = (y.flatten(2).unflatten(1, (self.heads, -1)) for y in (queries, self.k(x), values))
        scores = q.transpose(2, 3) @ k * self.key_dim**-0.5 + self.bias((x.shape[2], x.shape[3]))  # (B, heads, N/4, N)
        mixed = (v @ scores.softmax(-1).transpose(2, 3)).flatten(1, 2).unflatten(2, queries.shape[2:])
        return self.proj(self.act(mixed + self.v_local(values)))


class DualPathDownsample(nn.Module):
    """A 3x3 convolution of stride 2 plus `AttentionDown`: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def __init__(self, channels: int, out: int, size: Size, heads: int = 8, key_dim: int = 16, ratio: int = 4) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, out, 3, 2)
        self.attn = AttentionDown(channels, out, size, heads, key_dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.attn(x)


def attention_down_cost(channels: int, out: int, size: Size, heads: int = 8, key_dim: int = 16, ratio: int = 4) -> Cost:
    """Cost of an `AttentionDown` (without the convolution beside it)."""
    keys, values = heads * key_dim, heads * key_dim * ratio
    tokens, queries = math.prod(size), math.prod(-(-n // 2) for n in size)
    cost = conv_cost(channels, channels, queries, 3, channels, norm=False) + conv_cost(channels, keys, queries)
    cost += conv_cost(channels, keys, tokens) + conv_cost(channels, values, tokens)
    cost += conv_cost(values, values, queries, 3, values)
    cost += Cost(heads * tokens, queries * tokens * (keys + values))
    return cost + conv_cost(values, out, queries)
