"""Attention downsampling: halve a map by attention whose queries are subsampled and whose keys are not.

References:
  li-2023-rethinking: Li, Hu, Wen, Evangelidis, Salahi, Wang, Tulyakov, Ren. Rethinking Vision Transformers for
    MobileNet Size and Speed (EfficientFormerV2). ICCV 2023, arXiv 2212.08059. Dual-path attention downsampling.
  graham-2021-levit: Graham, El-Nouby, Touvron, Stock, Joulin, Jégou, Douze. LeViT: a Vision Transformer in ConvNet's
    Clothing for Faster Inference. arXiv 2104.01136. Attention with fewer queries than keys, between stages.

The idea: the small map needs one query for each of its own pixels only, a quarter of the input's, but each of them may
look at every pixel of the input. A convolution of stride 2 runs beside it, and the two are added.

    down = DualPathDownsample(96, 176, (14, 14))
    y = down(x)                                          # (B, 96, 14, 14) -> (B, 176, 7, 7): 49 queries, 196 keys

Attention that must keep the size of its map can subsample its queries too (`AttentionDownsampling`): queries are
averaged over cells, keys and values stay, and the results are interpolated.

    with AttentionDownsampling().apply(model, factor=2):
        logits = model(images)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, chained, closed_form, composed
from reference_impls.contract import Handle, Integer, Number, Redundancy, Setting, Technique, warn_no_effect
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.attention import PositionBias
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.layout import Size
from reference_impls.redundancy.inputs import mean_share
from reference_impls.redundancy.over_resolution import over_resolution
from reference_impls.techniques.stride_attention import (
    Coarseness,
    checked_attentions,
    coarse_handle,
    coarse_saving,
    full_attentions,
)


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


composed(LocalQuery, "local", "proj")


@closed_form.register
def _(part: AttentionDown, shape: Shape) -> Footprint:
    q, k, v = (closed_form(layer, shape) for layer in (part.q, part.k, part.v))
    products = math.prod(q.shape[1:]) * math.prod(shape[1:]) * (q.shape[0] + v.shape[0])
    return q + k + v + Footprint(part.bias.table.numel(), products) + chained(v.shape, part.v_local, part.proj)


class DualPathDownsample(nn.Module):
    """A 3x3 convolution of stride 2 plus `AttentionDown`: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def __init__(self, channels: int, out: int, size: Size, heads: int = 8, key_dim: int = 16, ratio: int = 4) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, out, 3, 2)
        self.attn = AttentionDown(channels, out, size, heads, key_dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.attn(x)


@closed_form.register
def _(part: DualPathDownsample, shape: Shape) -> Footprint:
    return closed_form(part.conv, shape) + closed_form(part.attn, shape)


# --------------------------------------------------------------------------------------------------------------------
# On a network whose attention was trained with all queries


class AttentionDownsampling(Technique):
    """Fewer queries than keys in networks with `MapAttention` at full resolution."""

    id = "attention-downsampling"
    execution = "real"
    trains = True
    knobs: ClassVar = {
        "factor": Integer(2, low=1, about="how many times coarser the queries are than the map, along each axis"),
        "threshold": Number(None, low=0, high=1, optional=True, about="only maps of at least this `over_resolution`"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("all queries", {"factor": 1}, off=True),
            Setting("a quarter of them where 0.9 is coarse", {"factor": 2, "threshold": 0.9}, adaptive=True),
            Setting("a quarter of the queries", {"factor": 2}),
            Setting("a sixteenth of the queries", {"factor": 4}),
        ]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """Share of the energy of the queries that a grid of half the resolution holds.

        `redundancy.over_resolution` of the maps of queries (B, heads * key_dim, H, W): 0 for white noise and for a
        chessboard, 1 for equal queries everywhere. The value is the mean over maps and modules. `where` holds it for
        each module ("queries blocks.2.token_mixer"), and the same of the keys, and of the module's input, which is what
        `threshold` compares with.
        """
        attentions, where = checked_attentions(self.id, target, fixed=True), dict[str, float]()
        for name, x in inputs_of(attentions, target, inputs).items():
            with torch.no_grad():
                queries, keys = attentions[name].q(x), attentions[name].k(x)
            for what, maps in (("queries", queries), ("keys", keys), ("input", x)):
                where[f"{what} {name}".strip()] = mean_share(over_resolution(maps))
        value = sum(share for what, share in where.items() if what.startswith("queries")) / len(attentions)
        return Redundancy(value, "share of query energy below half resolution", where)

    def attach(self, target: nn.Module, factor: int, threshold: float | None) -> Handle:
        """Average the queries over cells of `factor` x `factor` positions; keys and values stay at full resolution.

        The threshold looks at the input of attention, map by map. The trace is that of `coarse_handle`.

        Raises: UnsupportedHost without `MapAttention` of stride 1, for one that computes something else, or for a
        threshold in training.
        """
        attentions = checked_attentions(self.id, target, fixed=threshold is not None)
        if factor == 1:
            warn_no_effect(self.id, "factor is 1")
            return Handle(target)
        return coarse_handle(self.id, target, attentions, Coarseness(queries=factor), threshold)

    def saving(self, target: nn.Module, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """For each map with n instead of N queries, of C channels, with keys of K and values of V channels in H heads:

        C K (N - n)  +  (K + V + 2 H^2) N (N - n).
        """
        return coarse_saving(full_attentions(self.id, target), trace)
