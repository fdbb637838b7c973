"""Experiments of dimension-consistent design, most of them on small networks in the benchmark of compact networks.

- `fill-pooling`: networks trained with attention in every block, run with pooling in its place; and how alike
  neighbours are at each stage.
- `fill-placement`: attention in other blocks, each network trained for itself.
- `layout`: latency of the same blocks on feature maps and on tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Interval, Record, Table
from reference_impls.benchmarks.compact_networks import feature_map_task as task
from reference_impls.benchmarks.compact_networks import feature_maps as fm
from reference_impls.contract import Redundancy, generator
from reference_impls.hosts.substitution import Substitution, modules_of
from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.conv import Downsample
from reference_impls.layers.layout import Flatten, Size, as_map
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.layers.pooling import Pooling
from reference_impls.layers.residual import FeedForward, MapBlock, TokenBlock
from reference_impls.layers.weights import randomise_parameters
from reference_impls.redundancy.over_resolution import kept_detail
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.study import (
    BASELINE,
    TECHNIQUE,
    Plan,
    Study,
    fork_seed,
    forward,
    measured,
    over_seeds,
    table,
)
from reference_impls.techniques.dimension_consistent_design import DimensionConsistentDesign, pooled_values, value_rows

DESIGN = DimensionConsistentDesign()

# --------------------------------------------------------------------------------------------------------------------
# Networks of four blocks: two on 8 x 8, two on 4 x 4

ABOUT = "a small EfficientFormer: patches of 4 x 4 pixels, 2 blocks of 32 channels on 8 x 8, then 2 of 64 on 4 x 4"
SIZES = (fm.GRID, fm.GRID, (4, 4), (4, 4))
STAGES = ("pixels", "patches", "block 1", "block 2", "block 3", "block 4")


class ToMap(nn.Module):
    """Tokens (B, H * W, C) as a map (B, C, H, W) of `size`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return as_map(x, self.size)


def network(kinds: str) -> fm.Reconstruction:
    """A small EfficientFormer whose four blocks mix by attention on tokens (a), pooling on maps (p) or not at all (n).

    The layout changes wherever a block needs the other one. Each position on 4 x 4 gives 8 x 8 pixels in the end.
    """
    layers, on_tokens = OrderedDict[str, nn.Module](patches=fm.patches(2)), False
    for i, (kind, size) in enumerate(zip(kinds, SIZES, strict=True)):
        width = fm.WIDTHS[i // 2]
        if on_tokens and (kind != "a" or i == 2):
            layers[f"to_map{i}"], on_tokens = ToMap(SIZES[i - 1]), False
        if i == 2:
            layers["down"] = Downsample(*fm.WIDTHS)
        if kind == "a" and not on_tokens:
            layers[f"flatten{i}"], on_tokens = Flatten(), True
        if kind == "a":
            mixer = TokenAttention(width, size, fm.HEADS, fm.KEY_DIM)
            layers[f"block{i}"] = TokenBlock(width, mixer, 2 * width, layer_scale=fm.LAYER_SCALE)
        else:
            layers[f"block{i}"] = fm.map_block(width, Pooling() if kind == "p" else None)
    if on_tokens:
        layers["to_map"] = ToMap(SIZES[-1])
    layers["inpainter"] = fm.inpainter(fm.WIDTHS[1], 8)
    return fm.Reconstruction(nn.Sequential(layers))


def networks(study: Study[fm.FeatureMapPlan], kinds: str) -> list[nn.Module]:
    """The network with these blocks, trained once for each seed."""
    return fm.networks(study, f"blocks {kinds}", partial(network, kinds))


@torch.no_grad()
def stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The feature maps (B, C, H, W) of images x (B, 1, 32, 32), no patch hidden, at each of `STAGES`."""
    maps, x = [x], fm.unmasked(x)
    for name, layer in model.get_submodule("network").named_children():
        x = layer(x)
        if name == "patches" or name.startswith("block"):
            maps.append(x if x.ndim == 4 else as_map(x, SIZES[int(name.removeprefix("block"))]))
    return maps


def kept_at_half(maps: Tensor) -> Tensor:
    """Share of the variance of each of maps (B, C, H, W) that half the resolution keeps: (B,)."""
    return kept_detail(maps, (maps.shape[2] // 2, maps.shape[3] // 2))


def by_stage(study: Study[fm.FeatureMapPlan], models: Sequence[nn.Module]) -> Table:
    """Similarity of neighbours, and detail kept at half the resolution, at each stage, for each kind of image."""
    lines = []
    for kind, x in fm.kinds_of(study.plan).items():
        seen = [stages(model, x) for model in models]
        for i, stage in enumerate(STAGES):
            both = [
                over_seeds([measure(maps[i]).mean().item() for maps in seen])
                for measure in (neighbour_similarity, kept_at_half)
            ]
            lines.append([kind, stage, *both])
    return table(
        "Cosine of neighbours, and share of the variance that half the resolution keeps, of images with no patch "
        "hidden.",
        ("images", "stage", "similarity", "kept"),
        lines,
    )


# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: pooling in the place of attention


def unmixed_values(attention: TokenAttention, x: Tensor) -> Tensor:
    """`pooled_values` without pooling: every token keeps its own value."""
    value = value_rows(attention)
    y: Tensor = attention.proj(nn.functional.linear(x, attention.qkv.weight[value], attention.qkv.bias[value]))
    return y


def substitute(cheap: Callable[[TokenAttention, Tensor], Tensor], which: slice) -> Callable[[nn.Module], object]:
    """Puts `cheap` in the place of some of the attention modules of a model, for good."""

    def attach(model: nn.Module) -> object:
        return Substitution(dict(list(modules_of(model, TokenAttention).items())[which]), cheap)

    return attach


def run_pooling(study: Study[fm.FeatureMapPlan]) -> Record:
    """Networks trained with attention in all blocks, against the number of blocks that pool instead."""
    models = networks(study, "aaaa")

    def pooled(attach: Callable[[int], Callable[[nn.Module], object]]) -> list[fm.Contender]:
        return [fm.Contender({"pooled": n}, attach(n), redundancy=n / len(SIZES)) for n in (1, 2, 3, 4)]

    series = {
        TECHNIQUE: pooled(lambda n: partial(DESIGN.apply, pooled=n)),
        "the last blocks": pooled(lambda n: substitute(pooled_values, slice(-n, None))),
        "no mixing": pooled(lambda n: substitute(unmixed_values, slice(n))),
    }
    fm.finished(study, models, series)
    redundancy, by_place = fm.measured_by_place(study, models, DESIGN.measure)
    return fm.record(
        study,
        model=ABOUT + ", attention in all of them",
        knobs=("pooled",),
        controls={
            "the last blocks": "As many blocks pool, from the end.",
            "no mixing": "Tokens of the first blocks keep their values.",
        },
        redundancy=redundancy,
        notes=("The networks were trained without it: the technique is applied to the finished networks.",),
        tables={"redundancy by place": by_place, "by stage": by_stage(study, models)},
    )


# --------------------------------------------------------------------------------------------------------------------
# Equal training: where attention is placed


def run_placement(study: Study[fm.FeatureMapPlan]) -> Record:
    """Networks that differ in which blocks attend, each trained for itself."""
    dense = networks(study, "aaaa")
    fm.add(study, BASELINE, {}, dense)
    fm.add(study, TECHNIQUE, {"pooled": 2}, networks(study, "ppaa"), redundancy=0.5)
    fm.add(study, TECHNIQUE, {"pooled": 4}, networks(study, "pppp"), redundancy=1.0)
    fm.add(study, "attention first", {"pooled": 2}, networks(study, "aapp"))
    fm.add(study, "nothing first", {"pooled": 0}, networks(study, "nnaa"))
    study.measure()
    redundancy, _ = fm.measured_by_place(study, dense, DESIGN.measure)
    return fm.record(
        study,
        model=ABOUT,
        knobs=("pooled",),
        controls={
            "attention first": "Attention in the two blocks on 8 x 8, pooling in those on 4 x 4.",
            "nothing first": "No mixer in the two blocks on 8 x 8, attention in those on 4 x 4.",
        },
        redundancy=redundancy,
        notes=(
            "Every network is trained from the start, by the same recipe and in the same order.",
            "Blocks on tokens have layer norm and linear layers, blocks on maps batch norm and 1x1 convolutions.",
        ),
    )


# --------------------------------------------------------------------------------------------------------------------
# The layout: one change, or one in every block


class PooledTokens(nn.Module):
    """What a folded `MapBlock` with `Pooling` computes, on tokens (B, N, C): linear layers, a map for the pooling only.

    `norms`: with a layer normalisation in front of either part, as blocks on tokens have; then the result differs.
    """

    def __init__(self, block: MapBlock, size: Size, *, norms: bool) -> None:
        super().__init__()
        assert block.ls1 is not None
        channels = block.ls2.gamma.numel()
        self.norm1, self.norm2 = (nn.LayerNorm(channels) if norms else nn.Identity() for _ in range(2))
        self.size, self.pool, self.ls1, self.ls2 = size, Pooling(), block.ls1, block.ls2
        self.fc1, self.fc2 = (_linear(conv) for conv in block.mlp.modules() if isinstance(conv, nn.Conv2d))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.pool(as_map(self.norm1(x), self.size)).flatten(2).transpose(1, 2).contiguous()
        x = x + self.ls1(mixed)
        return x + self.ls2(self.fc2(self.act(self.fc1(self.norm2(x)))))


def _linear(conv: nn.Conv2d) -> nn.Linear:
    """The linear layer on tokens that does what a 1x1 convolution does on maps."""
    layer = nn.Linear(conv.in_channels, conv.out_channels)
    layer.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    return layer


class ThereAndBack(nn.Module):
    """Changes the layout of a map (B, C, H, W) to tokens and back, copying both times."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        return tokens.transpose(1, 2).contiguous().unflatten(2, x.shape[2:])


def layouts(size: Size, channels: int, depth: int) -> dict[str, nn.Sequential]:
    """The same pooling blocks in four forms, from maps (B, C, H, W) to maps."""
    with fork_seed(0):
        blocks = [
            randomise_parameters(MapBlock(channels, Pooling(), FeedForward(channels, 4 * channels), layer_scale=0.5))
            for _ in range(depth)
        ]
    maps = nn.Sequential(*blocks).eval()
    fold_batch_norm(maps)

    def on_tokens(norms: bool) -> nn.Sequential:
        return nn.Sequential(Flatten(), *(PooledTokens(b, size, norms=norms) for b in blocks), ToMap(size)).eval()

    return {
        "tokens": on_tokens(False),
        "maps": maps,
        "there and back": nn.Sequential(*(nn.Sequential(ThereAndBack(), b) for b in blocks)).eval(),
        "tokens with layer norms": on_tokens(True),
    }


def run_layout(study: Study[Plan]) -> Record:
    """Latency of four pooling blocks as in the second stage of EfficientFormer-L1, on feature maps and on tokens."""
    size, channels, depth = (28, 28), 96, 4
    models = layouts(size, channels, depth)
    x = torch.randn(1, channels, *size, generator=generator(0))
    reference = forward(models["tokens"], x)()
    controls = {
        "there and back": "On maps, but each block first copies its map to the layout of tokens and back.",
        "tokens with layer norms": "On tokens, with a layer norm in front of either part; its result is another one.",
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
