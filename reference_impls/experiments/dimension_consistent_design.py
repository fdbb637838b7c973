"""Experiments of dimension-consistent design, most of them on small networks in the benchmark of compact networks.

- `fill-pooling`: networks trained with attention in every block, run with pooling in its place; and how alike
  neighbours are at each stage.
- `fill-placement`: attention in other blocks, each network trained for itself.
- `layout`: latency of the same blocks on feature maps and on tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Interval, Record, Table
from reference_impls.benchmarks.compact_networks import feature_map_task as task
from reference_impls.benchmarks.compact_networks import feature_maps as fm
from reference_impls.contract import Redundancy, generator
from reference_impls.data.masking import unmasked
from reference_impls.hosts.substitution import Substitution, modules_of
from reference_impls.layers.attention import TokenAttention
from reference_impls.models.small_maps import STAGES, four_blocks, layouts, stages
from reference_impls.redundancy.over_resolution import kept_detail
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, fork_seed, forward, measured, over_seeds, table
from reference_impls.techniques.dimension_consistent_design import DimensionConsistentDesign, pooled_values, value_rows

DESIGN = DimensionConsistentDesign()
ABOUT = "a small EfficientFormer: patches of 4 x 4 pixels, 2 blocks of 32 channels on 8 x 8, then 2 of 64 on 4 x 4"


def networks(study: fm.FeatureMapStudy, kinds: str) -> list[nn.Module]:
    """The network of `four_blocks`, trained once for each seed."""
    return fm.networks(study, f"blocks {kinds}", partial(four_blocks, kinds))


# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: pooling in the place of attention


def unmixed_values(attention: TokenAttention, x: Tensor) -> Tensor:
    """`pooled_values` without pooling: every token keeps its own value."""
    value = value_rows(attention)
    y: Tensor = attention.proj(nn.functional.linear(x, attention.qkv.weight[value], attention.qkv.bias[value]))
    return y


def substitute(model: nn.Module, cheap: Callable[[TokenAttention, Tensor], Tensor], which: slice) -> None:
    """Put `cheap` in the place of some of the attention modules of a model, for good."""
    Substitution(DESIGN.id, dict(list(modules_of(model, TokenAttention).items())[which]), cheap)


def run_pooling(study: fm.FeatureMapStudy) -> Record:
    """Networks trained with attention in all blocks, against the number of blocks that pool instead."""
    models = networks(study, "aaaa")
    ways: dict[str, Callable[[int, nn.Module], object]] = {
        TECHNIQUE: lambda n, model: DESIGN.apply(model, pooled=n),
        "the last blocks": lambda n, model: substitute(model, pooled_values, slice(-n, None)),
        "no mixing": lambda n, model: substitute(model, unmixed_values, slice(n)),
    }
    series = {
        name: [fm.Contender({"pooled": n}, partial(attach, n), redundancy=n / 4) for n in (1, 2, 3, 4)]
        for name, attach in ways.items()
    }
    fm.finished(study, models, series)
    return fm.record(
        study,
        models,
        DESIGN.measure,
        model=ABOUT + ", attention in all of them",
        knobs=("pooled",),
        controls={
            "the last blocks": "As many blocks pool, from the end.",
            "no mixing": "Tokens of the first blocks keep their values.",
        },
        notes=("The networks were trained without it: " + fm.FINISHED,),
        tables={"by stage": by_stage(study, models)},
    )


def kept_at_half(maps: Tensor) -> Tensor:
    """Share of the variance of each of maps (B, C, H, W) that half the resolution keeps: (B,)."""
    return kept_detail(maps, (maps.shape[2] // 2, maps.shape[3] // 2))


def by_stage(study: fm.FeatureMapStudy, models: Sequence[nn.Module]) -> Table:
    """Similarity of neighbours, and detail kept at half the resolution, at each stage, for each kind of image."""
    lines = []
    for kind, x in study.plan.kinds().items():
        seen = [stages(model, unmasked(x)) for model in models]
        for stage, *maps in zip(STAGES, *seen, strict=True):
            both = (over_seeds([of(m).mean().item() for m in maps]) for of in (neighbour_similarity, kept_at_half))
            lines.append([kind, stage, *both])
    return table(
        "Cosine of neighbours, and share of the variance that half the resolution keeps, of images with no patch "
        "hidden.",
        ("images", "stage", "similarity", "kept"),
        lines,
    )


# --------------------------------------------------------------------------------------------------------------------
# Equal training: where attention is placed


def run_placement(study: fm.FeatureMapStudy) -> Record:
    """Networks that differ in which blocks attend, each trained for itself."""
    dense = networks(study, "aaaa")
    fm.add(study, BASELINE, {}, dense)
    fm.add(study, TECHNIQUE, {"pooled": 2}, networks(study, "ppaa"), redundancy=0.5)
    fm.add(study, TECHNIQUE, {"pooled": 4}, networks(study, "pppp"), redundancy=1.0)
    fm.add(study, "attention first", {"pooled": 2}, networks(study, "aapp"))
    fm.add(study, "nothing first", {"pooled": 0}, networks(study, "nnaa"))
    study.measure()
    return fm.record(
        study,
        dense,
        DESIGN.measure,
        by_place=False,
        model=ABOUT,
        knobs=("pooled",),
        controls={
            "attention first": "Attention in the two blocks on 8 x 8, pooling in those on 4 x 4.",
            "nothing first": "No mixer in the two blocks on 8 x 8, attention in those on 4 x 4.",
        },
        notes=(
            fm.TRAINED,
            "Blocks on tokens have layer norm and linear layers, blocks on maps batch norm and 1x1 convolutions.",
        ),
    )


# --------------------------------------------------------------------------------------------------------------------
# The layout: one change, or one in every block


def run_layout(study: Study[Plan]) -> Record:
    """Latency of four pooling blocks as in the second stage of EfficientFormer-L1, on feature maps and on tokens."""
    size, channels = (28, 28), 96
    with fork_seed(0):
        models = layouts(size, channels, depth=4)
    x = torch.randn(1, channels, *size, generator=generator(0))
    reference = forward(models["tokens"], x)()
    controls = {
        "there and back": "On maps, but each block first copies its map to the layout of tokens and back.",
        "tokens with layer norms": "On tokens, with a layer norm before either part; its result is another one.",
    }
    for name, series in {"tokens": BASELINE, "maps": TECHNIQUE, **{name: name for name in controls}}.items():
        call = forward(models[name], x)
        error = ((call() - reference).abs().max() / reference.abs().max()).item()
        study.add(series, {} if series == BASELINE else {"layout": name}, call, quality=Interval(value=error))
    study.measure()
    alike = Redundancy(neighbour_similarity(x).mean().item(), "cosine of a token with its neighbours' mean")
    return study.record(
        data="random maps of 96 channels and 28 x 28 pixels",
        model="4 blocks as in the second stage of EfficientFormer-L1, batch norm folded, random weights",
        unit="one map, in a batch of 1",
        work="layer",
        knobs=("layout",),
        metric="largest difference of the result",
        higher_is_better=False,
        controls=controls,
        redundancy=measured([alike]),
        notes=(
            "The same weights in all forms: MACs are equal, and results but for the layer norms.",
            "On tokens the pooling needs a map, so each block changes the layout twice.",
            "Random maps: layout is no property of the data, and the time does not depend on them.",
        ),
    )


SCENARIOS = (
    task(
        "fill-pooling",
        "Pooling in the place of trained attention, block by block: reconstruction of masked patches",
        run_pooling,
    ),
    task(
        "fill-placement",
        "Pooling first and attention last, and the other ways round: reconstruction of masked patches",
        run_placement,
    ),
    task(
        "layout",
        "Four pooling blocks on maps, and the same on tokens",
        run_layout,
        full=Plan(repetitions=151),
        smoke=Plan(repetitions=3),
    ),
)
