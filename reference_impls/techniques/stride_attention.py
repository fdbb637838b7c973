"""Stride attention: attend on a map of half the resolution, and interpolate the result.

References:
  li-2023-rethinking: Li, Hu, Wen, Evangelidis, Salahi, Wang, Tulyakov, Ren. Rethinking Vision Transformers for
    MobileNet Size and Speed (EfficientFormerV2). ICCV 2023, arXiv 2212.08059. Stride attention,
    talking heads, local values.

The idea: what attention adds to a map is smooth, so a quarter of the pixels is enough to compute it. A depthwise
convolution of stride 2 makes the small map, all of attention runs there (a sixteenth of the query-key products), and
bilinear interpolation brings the result back. Beside it, a depthwise convolution of the values is added to what
attention mixes. Scores also pass through two 1x1 convolutions across heads (talking heads), one in front of the softmax
and one behind it, so the rows of the mixing matrix need not sum to 1.

    attend = MapAttention(96, (14, 14), stride=2)        # attention on 7 x 7 = 49 tokens
    y = attend(x)                                        # (B, 96, 14, 14) -> (B, 96, 14, 14)
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.techniques.dimension_consistent_design import ConvNorm, Cost, PositionBias, Size, conv_cost


class MapAttention(nn.Module):
    """Multi-head attention on a map (B, C, H, W) of `size` = (H, W), with talking heads and local values.

    With `stride` > 1 it runs on the map of size ceil(H / stride), ceil(W / stride) and is interpolated back. Published,
    the projection comes after the interpolation, where most of the pixels that it works on are interpolated ones;
    `project_first` has it in front. Other sizes of map than `size` are taken, see `PositionBias`.
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        heads: int = 8,
        key_dim: int = 32,
        ratio: int = 4,
        stride: int = 1,
        *,
        project_first: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.key_dim, self.project_first = heads, key_dim, project_first
        keys, values = heads * key_dim, heads * key_dim * ratio
        self.stride_conv = ConvNorm(channels, channels, 3, stride, groups=channels) if stride > 1 else None
        self.q = ConvNorm(channels, keys)
        self.k = ConvNorm(channels, keys)
        self.v = ConvNorm(channels, values)
        self.v_local = ConvNorm(values, values, 3, groups=values)
        self.talking_head1 = nn.Conv2d(heads, heads, 1)
        self.talking_head2 = nn.Conv2d(heads, heads, 1)
        self.act = nn.GELU()
        self.proj = ConvNorm(values, channels)
        self.bias = PositionBias(heads, strided(size, stride))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What attention mixes, and the local values: both (B, heads * value_dim, h, w), on the strided map."""
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        size = (x.shape[2], x.shape[3])
        values = self.v(x)
        q, k, v = (y.flatten(2).unflatten(1, (self.heads, -1)) for y in (self.q(x), self.k(x), values))
        scores = q.transpose(2, 3) @ k * self.key_dim**-0.5 + self.bias(size)  # (B, heads, N, N)
        mix = self.talking_head2(self.talking_head1(scores).softmax(-1))
        return (v @ mix.transpose(2, 3)).flatten(1, 2).unflatten(2, size), self.v_local(values)

    def forward(self, x: Tensor) -> Tensor:
        mixed, local = self.attend(x)
        y = mixed + local
        if self.project_first:
            return resize(self.proj(self.act(y)), x.shape[2:])
        return self.proj(self.act(resize(y, x.shape[2:])))


def resize(x: Tensor, size: Size) -> Tensor:
    """Bilinear interpolation to `size`; a map (B, C, H, W) that has that size already is returned as it is."""
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def strided(size: Size, stride: int) -> Size:
    """Size of a map (H, W) after a convolution of `stride`."""
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def map_attention_cost(
    channels: int,
    size: Size,
    heads: int = 8,
    key_dim: int = 32,
    ratio: int = 4,
    stride: int = 1,
    *,
    project_first: bool = False,
) -> Cost:
    """Cost of a `MapAttention`, its layer scale included."""
    keys, values = heads * key_dim, heads * key_dim * ratio
    tokens = math.prod(strided(size, stride))
    cost = conv_cost(channels, channels, tokens, 3, channels) if stride > 1 else Cost()
    cost += conv_cost(channels, keys, tokens) + conv_cost(channels, keys, tokens) + conv_cost(channels, values, tokens)
    cost += conv_cost(values, values, tokens, 3, values)
    talk = conv_cost(heads, heads, tokens**2, norm=False)
    cost += talk + talk + Cost(heads * tokens, tokens**2 * (keys + values))
    return cost + conv_cost(values, channels, tokens if project_first else math.prod(size)) + Cost(channels)
