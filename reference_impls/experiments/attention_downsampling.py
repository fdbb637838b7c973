"""Experiments of attention downsampling on small networks in the benchmark of compact networks.

- `fill-queries`: networks trained with 64 queries and 64 keys, run with fewer of either.
- `fill-downsampling`: ways to halve a feature map, each trained for itself.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from reference_impls.accounting.record import Record
from reference_impls.benchmarks.compact_networks import feature_map_task as task
from reference_impls.benchmarks.compact_networks import feature_maps as fm
from reference_impls.layers.attention import PositionBias
from reference_impls.layers.conv import Downsample
from reference_impls.layers.layout import Size
from reference_impls.study import BASELINE, TECHNIQUE, Study
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling, DualPathDownsample
from reference_impls.techniques.stride_attention import Coarseness, cell_means, strided

DOWN = AttentionDownsampling()
TOKENS = math.prod(fm.GRID)

# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: fewer queries, or fewer keys

FEWER_QUERIES = tuple(fm.coarser({"factor": f}, f, partial(DOWN.apply, factor=f)) for f in fm.FACTORS)
BOTH = "fewer queries and keys"


def run_queries(study: Study[fm.FeatureMapPlan]) -> Record:
    """Networks trained with all queries and keys, against how many are left of each."""
    models = fm.attention_networks(study)
    series = {
        TECHNIQUE: FEWER_QUERIES,
        fm.FEWER_KEYS: [fm.coarser({"factor": f}, f, fm.coarse_attention(Coarseness(1, f))) for f in fm.FACTORS],
        BOTH: [fm.coarser({"factor": f}, f, fm.coarse_attention(Coarseness(f, f))) for f in fm.FACTORS],
    }
    fm.finished(study, models, series, samples=TOKENS)
    redundancy, by_place = fm.measured_by_place(study, models, DOWN.measure)
    return fm.record(
        study,
        model=fm.ABOUT,
        knobs=("factor",),
        controls={
            fm.FEWER_KEYS: "As many keys and values left, of all queries.",
            BOTH: "Both, as in stride attention with local values at full resolution.",
        },
        redundancy=redundancy,
        notes=("The networks were trained without it: the technique is applied to the finished networks.",),
        tables={"redundancy by place": by_place},
    )


# --------------------------------------------------------------------------------------------------------------------
# Equal training: what halves the feature map


class AllQueries(AttentionDown):
    """`AttentionDown` with a query at every position, whose results are averaged over cells of 2 x 2."""

    def __init__(self, channels: int, out: int, size: Size, heads: int, key_dim: int) -> None:
        super().__init__(channels, out, size, heads, key_dim)
        self.q.local.stride = (1, 1)
        self.bias = PositionBias(heads, size)

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x)
        queries = self.q.proj(self.q.local(x) + x)
        mixed = cell_means(attend(self, queries, self.k(x), values, self.bias((x.shape[2], x.shape[3]))), 2)
        return self.proj(self.act(mixed + self.v_local(values)))


class FewKeys(AttentionDown):
    """`AttentionDown` whose keys, and the values that are attended to, are averaged over cells of 2 x 2 too."""

    def __init__(self, channels: int, out: int, size: Size, heads: int, key_dim: int) -> None:
        super().__init__(channels, out, size, heads, key_dim)
        self.bias = PositionBias(heads, strided(size, 2))

    def forward(self, x: Tensor) -> Tensor:
        values, keys = self.v(x), self.k(cell_means(x, 2))
        bias = self.bias((keys.shape[2], keys.shape[3]))
        mixed = attend(self, self.q(x), keys, cell_means(values, 2), bias)
        return self.proj(self.act(mixed + self.v_local(values)))


def attend(down: AttentionDown, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """What the queries gather: maps of queries and of keys and values, -> (B, values, height and width of queries)."""
    q, k, v = (y.flatten(2).unflatten(1, (down.heads, -1)) for y in (queries, keys, values))
    scores = q.transpose(2, 3) @ k * down.key_dim**-0.5 + bias
    return (v @ scores.softmax(-1).transpose(2, 3)).flatten(1, 2).unflatten(2, queries.shape[2:])


DOWNSAMPLINGS: dict[str, type[AttentionDown] | None] = {
    "all queries": AllQueries,
    "fewer queries": AttentionDown,
    "fewer queries and keys": FewKeys,
    "convolution alone": None,
}


def downsampling(kind: type[AttentionDown] | None) -> nn.Module:
    """What halves the map of the small network: a strided convolution, alone or with attention beside it."""
    if kind is None:
        return Downsample(*fm.WIDTHS)
    both = DualPathDownsample(*fm.WIDTHS, fm.GRID, fm.HEADS, fm.KEY_DIM)
    both.attn = kind(*fm.WIDTHS, fm.GRID, fm.HEADS, fm.KEY_DIM)
    return both


def halving_network(name: str) -> nn.Module:
    """The small network with one of `DOWNSAMPLINGS` and no other mixer."""
    return fm.map_network(fm.RECONSTRUCT, lambda: None, downsampling(DOWNSAMPLINGS[name]))


def run_downsampling(study: Study[fm.FeatureMapPlan]) -> Record:
    """Networks that differ in what halves their feature map, each trained for itself."""

    def models(name: str) -> list[nn.Module]:
        return fm.networks(study, f"down {name}", partial(halving_network, name))

    controls = {
        BOTH: "16 queries look at the means of 16 cells; local values are those of the technique.",
        "convolution alone": "No attention beside the convolution of stride 2.",
    }
    fm.add(study, BASELINE, {}, models("all queries"), samples=TOKENS)
    fm.add(study, TECHNIQUE, {"factor": 2}, models("fewer queries"), samples=16, redundancy=0.75)
    for name in controls:
        fm.add(study, name, {"down": name}, models(name))
    study.measure()
    redundancy, _ = fm.measured_by_place(study, fm.attention_networks(study), DOWN.measure)
    return fm.record(
        study,
        model="a small EfficientFormerV2 without other mixers: 2 blocks of 32 channels on 8 x 8, 1 of 64 on 4 x 4",
        knobs=("factor",),
        controls=controls,
        redundancy=redundancy,
        notes=(
            "The baseline has a query at each of 64 positions and averages the results of 4; it has the same weights.",
            "Every network is trained from the start, by the same recipe and in the same order.",
            "Redundancy is that of the networks of `fill-queries`.",
        ),
    )


CONTENDERS = {"compact-networks/feature-maps": FEWER_QUERIES}
SCENARIOS = (
    task(
        "fill-queries",
        "Attention trained with 64 queries and run with 16, 4 or 1: reconstruction of masked patches",
        run_queries,
    ),
    task(
        "fill-downsampling",
        "From 8 x 8 to 4 x 4 by attention, at equal training: reconstruction of masked patches",
        run_downsampling,
    ),
)
