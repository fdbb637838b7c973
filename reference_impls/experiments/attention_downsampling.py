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
from reference_impls.models.small_maps import GRID, HEADS, KEY_DIM, WIDTHS, map_network
from reference_impls.study import BASELINE, TECHNIQUE
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling, DualPathDownsample
from reference_impls.techniques.stride_attention import Coarseness, cell_means, strided

DOWN = AttentionDownsampling()
TOKENS = math.prod(GRID)

# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: fewer queries, or fewer keys

FEWER_QUERIES = fm.coarser("factor", lambda f, model: DOWN.apply(model, factor=f))
BOTH = "fewer queries and keys"


def run_queries(study: fm.FeatureMapStudy) -> Record:
    """Networks trained with all queries and keys, against how many are left of each."""
    models = fm.attention_networks(study)
    series = {
        TECHNIQUE: FEWER_QUERIES,
        fm.FEWER_KEYS: fm.WITH_FEWER_KEYS,
        BOTH: fm.coarser("factor", lambda f, model: fm.coarse_attention(model, Coarseness(f, f))),
    }
    fm.finished(study, models, series, samples=TOKENS)
    return fm.record(
        study,
        models,
        DOWN.measure,
        model=fm.ABOUT,
        knobs=("factor",),
        controls={
            fm.FEWER_KEYS: "As many keys and values left, of all queries.",
            BOTH: "Both, as in stride attention with local values at full resolution.",
        },
        notes=("The networks were trained without it: " + fm.FINISHED,),
    )


# --------------------------------------------------------------------------------------------------------------------
# Equal training: what halves the feature map


class Halving(AttentionDown):
    """`AttentionDown` with more queries, or fewer keys.

    Queries stand on every `stride`-th row and column; with 1 their results are averaged over cells of 2 x 2. The keys,
    and the values that are attended to, are averaged over cells of `cell` x `cell`.
    """

    def __init__(
        self, channels: int, out: int, size: Size, heads: int, key_dim: int, *, stride: int = 2, cell: int = 1
    ) -> None:
        super().__init__(channels, out, size, heads, key_dim)
        self.stride, self.cell = stride, cell
        self.q.local.stride = (stride, stride)
        self.bias = PositionBias(heads, strided(size, cell), stride // cell)

    def forward(self, x: Tensor) -> Tensor:
        values, keys = self.v(x), self.k(cell_means(x, self.cell))
        queries = self.q.proj(self.q.local(x) + x[:, :, :: self.stride, :: self.stride])
        attended = cell_means(values, self.cell)
        q, k, v = (y.flatten(2).unflatten(1, (self.heads, -1)) for y in (queries, keys, attended))
        scores = q.transpose(2, 3) @ k * self.key_dim**-0.5 + self.bias((keys.shape[2], keys.shape[3]))
        mixed = (v @ scores.softmax(-1).transpose(2, 3)).flatten(1, 2).unflatten(2, queries.shape[2:])
        y: Tensor = self.proj(self.act(cell_means(mixed, 2 // self.stride) + self.v_local(values)))
        return y


DOWNSAMPLINGS: dict[str, dict[str, int] | None] = {
    "all queries": {"stride": 1},
    "fewer queries": {},
    "fewer queries and keys": {"cell": 2},
    "convolution alone": None,
}


def halving_network(name: str) -> nn.Module:
    """The small network whose map one of `DOWNSAMPLINGS` halves beside a convolution, without any other mixer."""
    down: nn.Module = Downsample(*WIDTHS)
    if (how := DOWNSAMPLINGS[name]) is not None:
        down = DualPathDownsample(*WIDTHS, GRID, HEADS, KEY_DIM)
        down.attn = Halving(*WIDTHS, GRID, HEADS, KEY_DIM, **how)
    return map_network(lambda: None, down)


def run_downsampling(study: fm.FeatureMapStudy) -> Record:
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
    return fm.record(
        study,
        fm.attention_networks(study),
        DOWN.measure,
        by_place=False,
        model="a small EfficientFormerV2 without other mixers: 2 blocks of 32 channels on 8 x 8, 1 of 64 on 4 x 4",
        knobs=("factor",),
        controls=controls,
        notes=(
            "The baseline has a query at each of 64 positions and averages the results of 4; it has the same weights.",
            fm.TRAINED,
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
