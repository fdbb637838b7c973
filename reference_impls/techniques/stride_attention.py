"""Stride attention: attend on a map of half the resolution, and interpolate the result.

References:
  li-2023-rethinking: Li, Hu, Wen, Evangelidis, Salahi, Wang, Tulyakov, Ren. Rethinking Vision Transformers for
    MobileNet Size and Speed (EfficientFormerV2). ICCV 2023, arXiv 2212.08059. Stride attention,
    talking heads, local values.

The idea: what attention adds to a map is smooth, so a quarter of the pixels is enough to compute it. A depthwise
convolution of stride 2 makes the small map, all of attention runs there (a sixteenth of the query-key products), and
bilinear interpolation brings the result back. Beside it, a depthwise convolution of the values is added to what
attention mixes. Scores also pass through two 1x1 convolutions across heads (talking heads), one before the softmax
and one after it, so the rows of the mixing matrix need not sum to 1.

    attend = MapAttention(96, (14, 14), stride=2)        # attention on 7 x 7 = 49 tokens
    y = attend(x)                                        # (B, 96, 14, 14) -> (B, 96, 14, 14)

A network whose attention was trained at full resolution can be run so too (`StrideAttention`): the map is averaged
instead of convolved, and each position bias becomes the mean of those that it stands for.

    with StrideAttention().apply(model, stride=2):
        logits = model(images)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, chained, closed_form
from reference_impls.contract import Choice, Handle, Integer, Number, Redundancy, Setting, Technique, generator
from reference_impls.contract.errors import UnsupportedHost, warn_no_effect
from reference_impls.hosts.probe import refuse_look_alikes
from reference_impls.hosts.substitution import Substitution, inputs_of, modules_of, saved
from reference_impls.layers.attention import PositionBias
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.layout import Size
from reference_impls.layers.norm import normalises_by_batch
from reference_impls.redundancy.inputs import mean_share
from reference_impls.redundancy.over_resolution import over_resolution


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


@closed_form.register
def _(attention: MapAttention, shape: Shape) -> Footprint:
    start = chained(shape, attention.stride_conv)
    q, k, v = (closed_form(layer, start.shape) for layer in (attention.q, attention.k, attention.v))
    tokens = math.prod(v.shape[1:])
    talk = chained((attention.heads, tokens, tokens), attention.talking_head1, attention.talking_head2)
    mix = Footprint(attention.bias.table.numel(), tokens**2 * (q.shape[0] + v.shape[0]))
    projected = v.shape[1:] if attention.project_first else shape[1:]
    out = closed_form(attention.v_local, v.shape) + closed_form(attention.proj, (v.shape[0], *projected))
    return start + q + k + v + talk + mix + out + Footprint(shape=shape)


# --------------------------------------------------------------------------------------------------------------------
# On a network whose attention was trained at full resolution


FIXED = "batch norm in evaluation mode: its statistics would depend on which maps are coarse, and measuring moves them"


@dataclass(frozen=True)
class Coarseness:
    """How many times coarser than the map its queries, its keys with their values, and its local values are, per axis.

    Raises ValueError for local values that are neither at full resolution nor on the grid of the keys.
    """

    queries: int = 1
    keys: int = 1
    local: int = 1

    def __post_init__(self) -> None:
        if self.local not in (1, self.keys):
            raise ValueError(f"local values are computed at full resolution or with the keys, got {self}")


def attend_coarsely(attention: MapAttention, x: Tensor, coarse: Coarseness) -> Tensor:
    """What `attention` (of stride 1) gives with coarser queries, keys or local values: (B, C, H, W) -> (B, C, H, W).

    Maps are coarsened by averaging cells, see `coarse_values`, and brought back by bilinear interpolation before
    the activation.
    """
    size, (mixed, local) = x.shape[2:], coarse_values(attention, x, coarse)
    together = mixed.shape == local.shape
    y = resize(mixed + local, size) if together else resize(mixed, size) + resize(local, size)
    return attention.proj(attention.act(y))


def coarse_values(attention: MapAttention, x: Tensor, coarse: Coarseness) -> tuple[Tensor, Tensor]:
    """`MapAttention.attend` with coarser queries, keys or local values: what attention mixes, and the local values.

    Queries, keys and values are linear in x in evaluation mode, so averaging x averages them; position biases are
    averaged alike. The score of two cells is therefore the mean score of their positions. The bias of the talking heads
    after the softmax is a weight that every key gets, so it counts for all positions that a coarse key stands for.
    With that, equal positions give what they give at full resolution.
    """
    size = (x.shape[2], x.shape[3])
    values = attention.v(cell_means(x, coarse.local))
    local = attention.v_local(values)
    values = values if coarse.local == coarse.keys else cell_means(values, coarse.keys)
    queries, keys = attention.q(cell_means(x, coarse.queries)), attention.k(cell_means(x, coarse.keys))
    q, k, v = (y.flatten(2).unflatten(1, (attention.heads, -1)) for y in (queries, keys, values))
    scores = q.transpose(2, 3) @ k * attention.key_dim**-0.5  # (B, heads, n, m)
    scores = scores + coarsen_bias(attention.bias(size), size, coarse.queries, coarse.keys)
    talk = attention.talking_head2
    weights = attention.talking_head1(scores).softmax(-1)
    mix = F.conv2d(weights, talk.weight, talk.bias * (math.prod(size) / k.shape[-1]))
    return (v @ mix.transpose(2, 3)).flatten(1, 2).unflatten(2, queries.shape[2:]), local


def coarsen_bias(bias: Tensor, size: Size, queries: int, keys: int) -> Tensor:
    """Position biases between cells, the means of those between their positions: (heads, N, N) -> (heads, n, m)."""
    bias = cell_means(bias.unflatten(2, size), keys).flatten(2)  # (heads, N, m)
    return cell_means(bias.transpose(1, 2).unflatten(2, size), queries).flatten(2).transpose(1, 2)


def coarse_macs(attention: MapAttention, size: Size, coarse: Coarseness) -> int:
    """Closed form of the MACs of `attend_coarsely` on one map of `size`."""
    layers = (getattr(layer, "conv", layer) for layer in (attention.proj, attention.q, attention.v))  # perhaps folded
    (channels, keys, values), heads = (int(layer.out_channels) for layer in layers), attention.heads
    n, m, local = (math.prod(strided(size, factor)) for factor in (coarse.queries, coarse.keys, coarse.local))
    linear = channels * (keys * (n + m) + values * (local + math.prod(size))) + 9 * values * local
    return linear + n * m * (keys + values + 2 * heads**2)


def cell_means(maps: Tensor, factor: int) -> Tensor:
    """Means of cells of `factor` x `factor` positions: (B, C, H, W) -> (B, C, ceil(H / factor), ceil(W / factor)).

    Where the factor does not divide a side, the last cells are smaller. Factor 1 gives the maps as they are.
    """
    return maps if factor == 1 else F.avg_pool2d(maps, factor, ceil_mode=True)


def full_attentions(technique: str, target: object) -> dict[str, MapAttention]:
    """The `MapAttention` modules of stride 1 in a network, by name. UnsupportedHost if there is none."""
    found = modules_of(target, MapAttention, lambda attention: attention.stride_conv is None)
    if not found:
        raise UnsupportedHost(technique, target, "a network with `MapAttention` of stride 1")
    return found


def checked_attentions(technique: str, target: nn.Module, *, fixed: bool) -> dict[str, MapAttention]:
    """The same, run once to see that they compute what `attend_coarsely` rebuilds.

    `fixed`: batch norms must be in evaluation mode. UnsupportedHost that says what is otherwise.
    """
    found = full_attentions(technique, target)
    if fixed and normalises_by_batch(target):
        raise UnsupportedHost(technique, target, FIXED)
    whole = partial(attend_coarsely, coarse=Coarseness())
    refuse_look_alikes(technique, target, MapAttention, found, whole, _few_maps)
    return found


def _few_maps(attention: MapAttention) -> Tensor:
    layer = getattr(attention.q, "conv", attention.q)  # perhaps folded
    return torch.randn(1, layer.in_channels, *attention.bias.size, generator=generator(0))


def coarse_handle(
    technique: str,
    target: nn.Module,
    attentions: Mapping[str, MapAttention],
    coarse: Coarseness,
    threshold: float | None,
) -> Handle:
    """The target with coarse attention, on all maps or on those whose `over_resolution` reaches the threshold."""
    factor = max(coarse.queries, coarse.keys)
    chosen = None if threshold is None else partial(_is_over_resolved, factor, threshold)
    run = Substitution(technique, attentions, partial(attend_coarsely, coarse=coarse), chosen)
    return Handle(target, undo=run.undo, trace=lambda: run.trace() | {"coarse": coarse})


def _is_over_resolved(factor: int, threshold: float, attention: MapAttention, x: Tensor) -> Tensor:
    if normalises_by_batch(attention):  # the mode was changed since `apply`
        raise RuntimeError(f"a threshold needs {FIXED}")
    return over_resolution(x, factor) >= threshold


def coarse_saving(attentions: Mapping[str, MapAttention], trace: Mapping[str, Any]) -> int:
    """Closed form of what the run that left the trace of a `coarse_handle` saved; 0 for an empty trace."""

    def saving(attention: MapAttention, shape: torch.Size) -> int:
        size = (shape[2], shape[3])
        return coarse_macs(attention, size, Coarseness()) - coarse_macs(attention, size, trace["coarse"])

    return saved(attentions, trace, saving)


class StrideAttention(Technique):
    """Stride attention on networks with `MapAttention` at full resolution."""

    id = "stride-attention"
    execution = "real"
    trains = True
    knobs: ClassVar = {
        "stride": Integer(2, low=1, about="how many times coarser the map is on which attention runs, along each axis"),
        "local": Choice(
            "coarse", options=("coarse", "full"), about="resolution of local values; `coarse`: the paper's"
        ),
        "threshold": Number(None, low=0, high=1, optional=True, about="only maps of at least this `over_resolution`"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("stride 1", {"stride": 1}, off=True),
            Setting("stride 2 where 0.9 is coarse", {"stride": 2, "local": "full", "threshold": 0.9}, adaptive=True),
            Setting("stride 2, local values at full resolution", {"stride": 2, "local": "full"}),
            Setting("stride 2", {"stride": 2}),
            Setting("stride 4", {"stride": 4}),
        ]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """Share of energy that a grid of half the resolution holds, of what attention adds to the map.

        With E(f) the energy at frequency f of the attended values A V, summed over channels and without the mean, the
        share S = E(below the Nyquist limit of the coarse grid) / E(all) of a map becomes

            max(0, (S - S0) / (1 - S0)),    S0 the share of white noise, (n - 1) / (N - 1),

        so that white noise and a chessboard measure 0 and a constant map 1 (`redundancy.over_resolution`). The value is
        the mean over maps and modules. `where` holds it for each module ("attended blocks.2.token_mixer"), and the same
        of the module's input, which is what `threshold` compares with ("input ..."), and of its local values.
        """
        attentions, where = checked_attentions(self.id, target, fixed=True), dict[str, float]()
        for name, x in inputs_of(attentions, target, inputs).items():
            with torch.no_grad():
                mixed, local = attentions[name].attend(x)
            for what, maps in (("attended", mixed), ("input", x), ("local", local)):
                where[f"{what} {name}".strip()] = mean_share(over_resolution(maps))
        value = sum(share for what, share in where.items() if what.startswith("attended")) / len(attentions)
        return Redundancy(value, "share of attended energy below half resolution", where)

    def attach(self, target: nn.Module, stride: int, local: str, threshold: float | None) -> Handle:
        """Attend on a map `stride` times coarser, and interpolate the result.

        The threshold looks at the input of attention, map by map. The trace holds `coarse`, and of each module what was
        `substituted`: the shape of its input, for how many maps.

        Raises: UnsupportedHost without `MapAttention` of stride 1, for one that computes something else, or for a
        threshold in training.
        """
        attentions = checked_attentions(self.id, target, fixed=threshold is not None)
        if stride == 1:
            warn_no_effect(self.id, "stride is 1")
            return Handle(target)
        coarse = Coarseness(stride, stride, stride if local == "coarse" else 1)
        return coarse_handle(self.id, target, attentions, coarse, threshold)

    def saving(self, target: nn.Module, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """For each coarsened map, what `coarse_macs` gives at full resolution minus what it gives as run.

        With N positions, n of them on the coarse map, C channels, keys of K and values of V channels in H heads:

            C (2 K + V) (N - n)  +  9 V (N - n)  +  (K + V + 2 H^2) (N^2 - n^2).
        """
        return coarse_saving(full_attentions(self.id, target), trace)
