"""Dimension-consistent design: a network computes on maps first and on tokens last, and changes its layout once.

References:
  li-2022-efficientformer: Li, Yuan, Wen, Hu, Evangelidis, Tulyakov, Wang, Ren. EfficientFormer: Vision Transformers at
    MobileNet Speed. NeurIPS 2022, arXiv 2206.01191. The design, its two blocks MB4D and MB3D, the stem.

The idea: near the image, neighbouring pixels repeat, so mixing them needs no attention: a parameter-free mean of 3x3
neighbours is enough, and it works on maps (B, C, H, W), on which convolutions with folded batch normalisation are fast.
Only the last blocks, on 49 tokens, attend. In between the map is flattened once, so no block pays for a reshape.

    x = Stem(48, nn.ReLU)(images)                        # (B, 3, 224, 224) -> (B, 48, 56, 56)
    x = MapBlock(48, Pooling(), FeedForward(48, 192))(x) # MB4D: maps in, maps out
    x = Flatten()(x)                                     # (B, C, 7, 7) -> (B, 49, C), once
    x = TokenBlock(448, TokenAttention(448, (7, 7)), 1792)(x)  # MB3D: tokens in, tokens out

A finished network that attends in every block can be run in this order too (`DimensionConsistentDesign`): in its first
blocks the mean of 3x3 neighbours takes the place of the attention matrix. Where all tokens agree that changes nothing,
since every mean of equal values is the same.

    with DimensionConsistentDesign().apply(model, pooled=2):
        logits = model(images)

The parts that EfficientFormerV2 shares (`ConvNorm`, `PositionBias`, `FeedForward`, `MapBlock`, ...) are here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import (
    Handle,
    Redundancy,
    Setting,
    Technique,
    UnsupportedHost,
    check_range,
    warn_no_effect,
)
from reference_impls.hosts.substitution import Substitution, inputs_of, modules_of, saved
from reference_impls.redundancy.spatial_similarity import neighbour_similarity

Size = tuple[int, int]  # height and width of a map


@dataclass(frozen=True)
class Cost:
    """Exact size and work of a part of a network: parameters, and multiply-accumulates for one image."""

    parameters: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs)


# --------------------------------------------------------------------------------------------------------------------
# Parts


class ConvNorm(nn.Module):
    """A convolution with bias, then batch normalisation: (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).

    The bias in front of a normalisation changes nothing, but it is part of the published networks and their weights.
    """

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def fused(self) -> nn.Conv2d:
        """The convolution that equals both in evaluation mode."""
        return nn.utils.fuse_conv_bn_eval(self.conv, self.bn)


def conv_cost(channels: int, out: int, positions: int, kernel: int = 1, groups: int = 1, *, norm: bool = True) -> Cost:
    """Cost of a `ConvNorm`, or of a plain convolution with bias, that writes `positions` pixels."""
    weights = channels // groups * out * kernel**2
    return Cost(weights + (3 if norm else 1) * out, weights * positions)


def fold_batch_norm(network: nn.Module) -> None:
    """Put one convolution in the place of every `ConvNorm` of a network in evaluation mode, in place."""
    for name, child in network.named_children():
        if isinstance(child, ConvNorm):
            setattr(network, name, child.fused())
        else:
            fold_batch_norm(child)


class LayerScale(nn.Module):
    """Scales the channels of a map (B, C, H, W) or of tokens (B, N, C) by a learned vector that starts small."""

    def __init__(self, channels: int, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma if x.ndim == 3 else self.gamma.view(1, -1, 1, 1))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the branch of an image with probability `rate` and scales up the others."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate) if self.rate < 1 else keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class PositionBias(nn.Module):
    """A learned bias for each head and each distance between query and key: -> (heads, N_q, N_k).

    `table` (heads, h * w) holds a value for each |dy|, |dx| on a map of `size` = (h, w) keys; queries sit on every
    `stride`-th row and column. It is looked up in every pass, so nothing is stale after new weights are loaded. For a
    map of another size the table is stretched bilinearly, distance 0 staying distance 0.
    """

    index: Tensor  # (N_q, N_k), column of the table

    def __init__(self, heads: int, size: Size, stride: int = 1) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.table = nn.Parameter(torch.zeros(heads, math.prod(size)))
        self.register_buffer("index", distance_index(size, stride), persistent=False)

    def forward(self, size: Size) -> Tensor:
        table, index = self.table, self.index
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


# --------------------------------------------------------------------------------------------------------------------
# Maps


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with an activation: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, channels: int, act: type[nn.Module], in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, channels // 2, 3, 2)
        self.conv2 = ConvNorm(channels // 2, channels, 3, 2)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))))


def stem_cost(channels: int, positions: int, in_channels: int = 3) -> Cost:
    """Cost of a `Stem` that writes `positions` pixels."""
    half = channels // 2
    return conv_cost(in_channels, half, 4 * positions, 3) + conv_cost(half, channels, positions, 3)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, out, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pooling(nn.Module):
    """The mixer without parameters: the mean of the 3x3 neighbours inside the map, minus the pixel itself."""

    def forward(self, x: Tensor) -> Tensor:
        return neighbourhood_mean(x) - x


def neighbourhood_mean(x: Tensor) -> Tensor:
    """Mean of the 3x3 neighbours inside the map, the pixel itself among them: (B, C, H, W) -> (B, C, H, W)."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class FeedForward(nn.Module):
    """1x1 convolutions on a map; with `local`, a depthwise 3x3 in between mixes neighbours (V2's unified FFN)."""

    def __init__(self, channels: int, hidden: int, *, local: bool = False) -> None:
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden)
        self.mid = ConvNorm(hidden, hidden, 3, groups=hidden) if local else None
        self.fc2 = ConvNorm(hidden, channels)
        self.act = nn.GELU()
        for layer in (self.fc1, self.fc2):
            _small(layer.conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        if self.mid is not None:
            x = self.act(self.mid(x))
        return self.fc2(x)


def feed_forward_cost(channels: int, hidden: int, positions: int, *, local: bool = False) -> Cost:
    """Cost of a `FeedForward` on `positions` pixels, its layer scale included."""
    mid = conv_cost(hidden, hidden, positions, 3, hidden) if local else Cost()
    outer = conv_cost(channels, hidden, positions) + conv_cost(hidden, channels, positions)
    return outer + mid + Cost(channels)


class MapBlock(nn.Module):
    """MB4D: x + mixer(x), then x + mlp(x), on maps (B, C, H, W); each branch scaled, and dropped at `drop_path`.

    `mixer` is `Pooling` in V1; in V2 it is attention, or None, where the feed-forward part mixes neighbours itself.
    """

    def __init__(
        self, channels: int, mixer: nn.Module | None, mlp: nn.Module, drop_path: float = 0.0, layer_scale: float = 1e-5
    ) -> None:
        super().__init__()
        self.token_mixer, self.mlp = mixer, mlp
        self.ls1 = LayerScale(channels, layer_scale) if mixer is not None else None
        self.ls2 = LayerScale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.token_mixer is not None and self.ls1 is not None:
            x = x + self.drop_path(self.ls1(self.token_mixer(x)))
        return x + self.drop_path(self.ls2(self.mlp(x)))


# --------------------------------------------------------------------------------------------------------------------
# Tokens


class Flatten(nn.Module):
    """The one change of layout: (B, C, H, W) -> (B, H * W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def as_map(x: Tensor, size: Size) -> Tensor:
    """Tokens (B, H * W, C) of a map of `size` = (H, W) -> (B, C, H, W); a map is returned as it is."""
    return x if x.ndim == 4 else x.transpose(1, 2).unflatten(2, size)


class TokenAttention(nn.Module):
    """Multi-head attention on tokens (B, N, C) of a map of `size`, with position bias and wide values.

    Each head has keys of `key_dim` and values of `ratio` times as many channels; the projection `qkv` lays them out
    head by head. Another number of tokens is taken as a square map, see `PositionBias`.
    """

    def __init__(self, channels: int, size: Size, heads: int = 8, key_dim: int = 32, ratio: int = 4) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.size = heads, key_dim, ratio * key_dim, size
        self.qkv = nn.Linear(channels, heads * (2 * key_dim + self.value_dim))
        self.proj = nn.Linear(heads * self.value_dim, channels)
        self.bias = PositionBias(heads, size)
        _small(self.qkv)
        _small(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, 2 * key_dim + value_dim)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        size = self.size if x.shape[1] == math.prod(self.size) else (math.isqrt(x.shape[1]),) * 2
        scores = q @ k.transpose(2, 3) * self.key_dim**-0.5 + self.bias(size)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def token_attention_cost(channels: int, size: Size, heads: int = 8, key_dim: int = 32, ratio: int = 4) -> Cost:
    """Cost of a `TokenAttention`, with the layer normalisation in front of it and its layer scale."""
    tokens = math.prod(size)
    inner, wide = heads * (2 + ratio) * key_dim, heads * ratio * key_dim
    products = tokens**2 * heads * (1 + ratio) * key_dim
    linear = (inner + wide) * channels
    return Cost(linear + inner + channels + heads * tokens + 3 * channels, linear * tokens + products)


class Mlp(nn.Module):
    """Two linear layers on tokens: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.act = nn.GELU()
        _small(self.fc1)
        _small(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def mlp_cost(channels: int, hidden: int, tokens: int) -> Cost:
    """Cost of an `Mlp`, with the layer normalisation in front of it and its layer scale."""
    linear = 2 * channels * hidden
    return Cost(linear + hidden + channels + 3 * channels, linear * tokens)


class TokenBlock(nn.Module):
    """MB3D: x + attention(norm(x)), then x + mlp(norm(x)), on tokens (B, N, C); scaled and dropped as in `MapBlock`."""

    def __init__(
        self, channels: int, mixer: nn.Module, hidden: int, drop_path: float = 0.0, layer_scale: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.token_mixer, self.mlp = mixer, Mlp(channels, hidden)
        self.ls1, self.ls2 = LayerScale(channels, layer_scale), LayerScale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


def _small(layer: nn.Linear | nn.Conv2d) -> None:
    """The published initialisation: a truncated normal of deviation 0.02, no bias."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


# --------------------------------------------------------------------------------------------------------------------
# On a network that attends in every block


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """Tokens (B, H * W, C) as a map (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def pooled_values(attention: TokenAttention, x: Tensor) -> Tensor:
    """The output of `attention` with the mean of 3x3 neighbours as its matrix: (B, N, C) -> (B, N, C).

    Values and the last projection stay; queries, keys and scores are not computed. With equal tokens the output is that
    of attention, whose rows are means as well.
    """
    value = value_rows(attention)
    values = F.linear(x, attention.qkv.weight[value], attention.qkv.bias[value])
    return attention.proj(neighbourhood_mean(to_map(values, attention.size)).flatten(2).transpose(1, 2))


def value_rows(attention: TokenAttention) -> Tensor:
    """Which rows of the joint projection make values, head by head: bool, one for each row."""
    one_head = torch.arange(2 * attention.key_dim + attention.value_dim) >= 2 * attention.key_dim
    return one_head.repeat(attention.heads)


class DimensionConsistentDesign(Technique):
    """Pooling first, attention last, on networks of `TokenAttention`. Knobs: see `apply`."""

    id = "dimension-consistent-design"
    execution = "real"

    def settings(self) -> list[Setting]:
        return [
            Setting("attention everywhere", {"pooled": 0}, off=True),
            Setting("pooling where neighbours agree", {"threshold": 0.9}, adaptive=True),
            Setting("pooling in the first block", {"pooled": 1}),
            Setting("pooling in two blocks", {"pooled": 2}),
            Setting("pooling everywhere", {"pooled": None}),
        ]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """Cosine of a token with the mean of its 4 neighbours, over the tokens that reach attention, and its modules.

        The formula is `spatial_similarity.neighbour_similarity`, with the mean token of each datum subtracted: 0 for
        independent tokens, 1 for equal ones. `where` holds it for each module.
        """
        attentions = _attentions(target)
        seen = inputs_of(attentions, target, inputs)
        where = {
            name or "attention": neighbour_similarity(to_map(x, attentions[name].size)).mean().item()
            for name, x in seen.items()
        }
        return Redundancy(sum(where.values()) / len(where), "cosine of a token with its neighbours' mean", where)

    def apply(self, target: nn.Module, *, pooled: int | None = None, threshold: float | None = None) -> Handle:
        """Mix the first `pooled` attention modules (None: all) by the mean of 3x3 neighbours, see `pooled_values`.

        threshold: only the data whose tokens have at least this `neighbour_similarity` there. The trace holds of each
        module what was `substituted`: the shape of its input, and for how many data of the batch.

        Raises: UnsupportedHost for a network without `TokenAttention`; TypeError or ValueError for a bad knob.
        """
        attentions = _attentions(target)
        if pooled is not None:
            check_range("pooled", pooled, 0, integer=True)
        if threshold is not None:
            check_range("threshold", threshold, 0, 1)
        if pooled == 0:
            warn_no_effect(self.id, "pooled is 0")
        chosen = None if threshold is None else lambda a, x: neighbour_similarity(to_map(x, a.size)) >= threshold
        run = Substitution(dict(islice(attentions.items(), pooled)), pooled_values, chosen)
        return Handle(target, undo=run.undo, trace=run.trace)

    def saving(self, target: nn.Module, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """For each datum and module that pools, with N tokens of C channels, keys of K and values of V channels in all
        heads together:

            2 C K N  +  (K + V) N^2.
        """

        def saving(attention: TokenAttention, shape: torch.Size) -> int:
            tokens, channels = shape[1:]
            keys, values = attention.heads * attention.key_dim, attention.heads * attention.value_dim
            return 2 * channels * keys * tokens + (keys + values) * tokens**2

        return saved(_attentions(target), trace, saving)


def _attentions(target: object) -> dict[str, TokenAttention]:
    found = modules_of(target, TokenAttention)
    if not found:
        raise UnsupportedHost(DimensionConsistentDesign.id, target, "a network with `TokenAttention`")
    return found
