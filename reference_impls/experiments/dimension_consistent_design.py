"""Experiments of dimension-consistent design: cases for the conformance checks, and small networks on Fashion-MNIST.

- `fill-pooling`: networks trained with attention in every block, run with pooling in its place; and how alike
  neighbours are at each stage.
- `fill-placement`: attention in other blocks, each network trained for itself.
- `layout`: the same blocks on maps and on tokens, against the clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Control, Measured, Point, Quality, Record
from reference_impls.accounting.timing import speed_up
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.experiments.efficient_nets import (
    CHANNELS,
    FASHION,
    FILL,
    GRID,
    HEADS,
    KEY_DIM,
    LAYER_SCALE,
    WIDTHS,
    FillIn,
    chessboards,
    costs_of,
    described,
    filled,
    fitted,
    hidden_patches,
    key,
    looked_at,
    map_block,
    mean_and_interval,
    measured,
    painter,
    paired_difference,
    patches,
    scores,
    seeds,
    some_images,
    sweep,
    unit,
    whole,
    without_gradients,
)
from reference_impls.experiments.harness import Context, Scenario, fork_seed, record
from reference_impls.hosts.substitution import Substitution, modules_of
from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.conv import Downsample
from reference_impls.layers.layout import Flatten, Size, as_map
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.layers.pooling import Pooling, neighbourhood_mean
from reference_impls.layers.residual import FeedForward, MapBlock, TokenBlock
from reference_impls.layers.weights import randomise_parameters
from reference_impls.redundancy.over_resolution import kept_detail
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.techniques.dimension_consistent_design import DimensionConsistentDesign, pooled_values, value_rows

TECHNIQUE = DimensionConsistentDesign()

# --------------------------------------------------------------------------------------------------------------------
# Cases


def tiny_attention() -> TokenAttention:
    """Attention of two heads on 12 channels and 6 x 6 tokens."""
    return TokenAttention(CHANNELS, (6, 6), heads=2, key_dim=4, ratio=2)


class DimensionConsistentCases(Cases):
    """Token attention on equal tokens (redundant) or a chessboard of two (null); typical: three blocks on a smooth map,
    on noise, and on something in between.
    """

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        generator = torch.Generator().manual_seed(seed)
        with fork_seed(seed):
            if kind == "typical":
                blocks = [TokenBlock(CHANNELS, tiny_attention(), 24, layer_scale=1.0) for _ in range(3)]
                target = randomise_parameters(nn.Sequential(Flatten(), *blocks))
                noise = torch.randn(3, CHANNELS, 6, 6, generator=generator)
                smooth = nn.functional.interpolate(noise[..., :2, :2], size=6, mode="bilinear")
                inputs = torch.stack([noise[0], 0.2 * noise[1] + smooth[1], smooth[2]])
            else:
                target = nn.Sequential(Flatten(), tiny_attention())
                inputs = chessboards(3, CHANNELS, (6, 6), generator)
                inputs = inputs if kind == "null" else inputs[..., :1, :1].expand(-1, -1, 6, 6).contiguous()
        return Case(target.eval().to(device), inputs.to(device), run=without_gradients)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        x = case.inputs
        with torch.no_grad():
            tokens = case.target[1].norm1(case.target[0](x))
        by_hand = torch.tensor([neighbour_cosine(one.double().tolist(), (6, 6)) for one in tokens])
        yield Expectation("similarity of neighbours", by_hand, neighbour_similarity(as_map(tokens, (6, 6))).cpu())
        with TECHNIQUE.apply(case.target, pooled=1, threshold=0.5) as handle:
            without_gradients(handle.target, x)
            _, chosen = handle.trace["substituted"]["1.token_mixer"]
        yield Expectation("data that pool", (by_hand >= 0.5).sum(), torch.tensor(chosen))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        with fork_seed(seed):
            attention = randomise_parameters(nn.Sequential(tiny_attention())).double().eval().to(device)[0]
            x = torch.randn(2, 36, CHANNELS, dtype=torch.float64).to(device)
        equal = x[:, :1].expand_as(x)
        with torch.no_grad():
            yield Expectation("result on equal tokens", attention(equal), pooled_values(attention, equal))
            yield Expectation(
                "means by hand", means_of_neighbours(as_map(x, (6, 6))), neighbourhood_mean(as_map(x, (6, 6)))
            )
            yield Expectation("layout there and back", x, Flatten()(as_map(x, (6, 6))))

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        target, x = case.target, case.inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        yield Invalid("half a block", lambda: TECHNIQUE.apply(target, pooled=1.5), "pooled must be an integer")
        yield Invalid("fewer than no block", lambda: TECHNIQUE.apply(target, pooled=-1), "pooled must be an integer")
        yield Invalid("threshold above 1", lambda: TECHNIQUE.apply(target, threshold=1.1), "threshold must be")
        yield Invalid("inputs with NaN", lambda: TECHNIQUE.measure(target, x), "not finite")
        yield Invalid("tokens without a grid", lambda: neighbour_similarity(x[0]), "must have shape (B, C, H, W)")
        yield Invalid("a network on maps", lambda: TECHNIQUE.apply(nn.Conv2d(1, 1, 1)), "`TokenAttention`")


def neighbour_cosine(tokens: list[list[float]], size: tuple[int, int]) -> float:
    """`neighbour_similarity` of one datum by plain loops over its tokens (N, C)."""
    mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
    centred = [[x - m for x, m in zip(token, mean, strict=True)] for token in tokens]
    cosines = []
    for i in range(size[0]):
        for j in range(size[1]):
            near = ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
            around = [centred[a * size[1] + b] for a, b in near if 0 <= a < size[0] and 0 <= b < size[1]]
            total = [sum(column) for column in zip(*around, strict=True)]
            token = centred[i * size[1] + j]
            dot = sum(map(float.__mul__, token, total))
            cosines.append(dot / (sum(x * x for x in token) * sum(x * x for x in total)) ** 0.5)
    return max(sum(cosines) / len(cosines), 0.0)


def means_of_neighbours(x: Tensor) -> Tensor:
    """The mean of the 3x3 window inside the map around each position, by plain loops: (B, C, H, W)."""
    out = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            out[..., i, j] = x[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
    return out


CASES = DimensionConsistentCases()

# --------------------------------------------------------------------------------------------------------------------
# Networks of four blocks: two on 8 x 8, two on 4 x 4

ABOUT = "a small EfficientFormer: patches of 4 x 4 pixels, 2 blocks of 32 channels on 8 x 8, then 2 of 64 on 4 x 4"
SIZES = (GRID, GRID, (4, 4), (4, 4))
STAGES = ("pixels", "patches", "block 1", "block 2", "block 3", "block 4")


class ToMap(nn.Module):
    """Tokens (B, H * W, C) as a map (B, C, H, W) of `size`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return as_map(x, self.size)


def network(kinds: str) -> FillIn:
    """A small EfficientFormer whose four blocks mix by attention on tokens (a), pooling on maps (p) or not at all (n).

    The layout changes wherever a block needs the other one. Each position on 4 x 4 paints 8 x 8 pixels in the end.
    """
    layers, on_tokens = OrderedDict[str, nn.Module](patches=patches(2)), False
    for i, (kind, size) in enumerate(zip(kinds, SIZES, strict=True)):
        width = WIDTHS[i // 2]
        if on_tokens and (kind != "a" or i == 2):
            layers[f"to_map{i}"], on_tokens = ToMap(SIZES[i - 1]), False
        if i == 2:
            layers["down"] = Downsample(*WIDTHS)
        if kind == "a" and not on_tokens:
            layers[f"flatten{i}"], on_tokens = Flatten(), True
        if kind == "a":
            mixer = TokenAttention(width, size, HEADS, KEY_DIM)
            layers[f"block{i}"] = TokenBlock(width, mixer, 2 * width, layer_scale=LAYER_SCALE)
        else:
            layers[f"block{i}"] = map_block(width, Pooling() if kind == "p" else None)
    if on_tokens:
        layers["to_map"] = ToMap(SIZES[-1])
    layers["painter"] = painter(WIDTHS[1], 8)
    return FillIn(nn.Sequential(layers))


def networks(ctx: Context, kinds: str) -> list[nn.Module]:
    """The network with these blocks, trained once for each seed."""
    return fitted(ctx, FILL, f"blocks-{kinds}", partial(network, kinds))


@torch.no_grad()
def stages(model: FillIn, x: Tensor) -> list[Tensor]:
    """The maps (B, C, H, W) of images x (B, 1, 32, 32), no patch hidden, at each of `STAGES`."""
    maps, x = [x], whole(x)
    for name, layer in model.network.named_children():
        x = layer(x)
        if name == "patches" or name.startswith("block"):
            maps.append(x if x.ndim == 4 else as_map(x, SIZES[int(name.removeprefix("block"))]))
    return maps


def kept_at_half(maps: Tensor) -> Tensor:
    """Share of the variance of each of maps (B, C, H, W) that half the resolution keeps: (B,)."""
    return kept_detail(maps, (maps.shape[2] // 2, maps.shape[3] // 2))


def by_stage(models: Sequence[FillIn], x: Tensor) -> dict[str, Any]:
    """Similarity of neighbours, and detail kept at half the resolution, at each stage, for each kind of image.

    Rows are stages: mean over the networks and the ends of its 95 % interval.
    """
    rows: dict[str, Any] = {"stages": ", ".join(STAGES)}
    for kind, images in looked_at(x).items():
        seen = [stages(model, images) for model in models]
        for what, measure in (("similarity", neighbour_similarity), ("kept", kept_at_half)):
            rows[f"{what}_{key(kind)}"] = tuple(
                mean_and_interval([measure(maps[i]).mean().item() for maps in seen]) for i in range(len(STAGES))
            )
    return rows


# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: pooling in the place of attention


def unmixed_values(attention: TokenAttention, x: Tensor) -> Tensor:
    """`pooled_values` without pooling: every token keeps its own value."""
    value = value_rows(attention)
    return attention.proj(nn.functional.linear(x, attention.qkv.weight[value], attention.qkv.bias[value]))


def substitute(cheap: Callable[[TokenAttention, Tensor], Tensor], which: slice) -> Callable[[nn.Module], object]:
    """Puts `cheap` in the place of some of the attention modules of a model, for good."""

    def attach(model: nn.Module) -> object:
        modules = list(modules_of(model, TokenAttention).items())[which]
        return Substitution(dict(modules), cheap)

    return attach


def run_pooling(ctx: Context) -> Record:
    """How well networks trained with attention in all blocks fill in patches, against the blocks that pool instead."""
    models = networks(ctx, "aaaa")
    counts = (1, 2, 3, 4)
    attach: dict[str, Callable[[nn.Module], object]] = {"dense": lambda model: None}
    for n in counts:
        attach |= {f"first {n}": partial(TECHNIQUE.apply, pooled=n)}
        attach |= {f"last {n}": substitute(pooled_values, slice(-n, None))}
        attach |= {f"unmixed {n}": substitute(unmixed_values, slice(n))}
    twins, values = sweep(ctx, models, attach)
    x = some_images(ctx)
    costs = costs_of(ctx, twins, hidden_patches(x))
    redundancy, extra = measured(models, TECHNIQUE, x)

    def points(which: str) -> tuple[Point, ...]:
        return tuple(
            costs[f"{which} {n}"].point({"pooled": n}, filled(values[f"{which} {n}"]), redundancy=n / len(counts))
            for n in counts
        )

    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="fill-pooling",
        title="Pooling in the place of trained attention, block by block: filling in hidden patches",
        data=described(ctx) + ", half of their patches hidden",
        model=ABOUT + ", attention in all of them",
        unit=unit(ctx),
        knobs=("pooled",),
        baseline=costs["dense"].arm(filled(values["dense"])),
        points=points("first"),
        controls=[
            Control(name="the last blocks", about="As many blocks pool, from the end.", points=points("last")),
            Control(name="no mixing", about="Tokens of the first blocks keep their values.", points=points("unmixed")),
        ],
        redundancy=redundancy,
        seeds=seeds(ctx),
        notes=(
            "Training knew nothing of it: the technique is applied to the finished networks.",
            "extra.measured_* holds a row (mean over networks, and its 95 % interval) for each of measured_places.",
            "extra.paired_* is what pooling in the first blocks gains over the last, and over no mixing, seed by seed.",
            "extra.similarity_*, extra.kept_*: the same for each of extra.stages, of images with no patch hidden.",
        ),
        extra=extra
        | by_stage(models, x)
        | {
            f"paired_{other}_{n}": paired_difference(values[f"first {n}"], values[f"{other} {n}"])
            for other in ("last", "unmixed")
            for n in counts
        },
    )


# --------------------------------------------------------------------------------------------------------------------
# Equal training: where attention is placed


def run_placement(ctx: Context) -> Record:
    """How well networks fill in patches that differ in which blocks attend, each trained for itself."""
    kinds = ("aaaa", "ppaa", "pppp", "aapp", "nnaa")
    models = {kind: networks(ctx, kind) for kind in kinds}
    values = {kind: scores(ctx, FILL, f"blocks-{kind}", trained) for kind, trained in models.items()}
    qualities = {kind: filled(found) for kind, found in values.items()}
    x = some_images(ctx)
    costs = costs_of(ctx, {kind: trained[-1] for kind, trained in models.items()}, hidden_patches(x))
    redundancy, _ = measured(models["aaaa"], TECHNIQUE, x)
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="fill-placement",
        title="Pooling first and attention last, and the other ways round: filling in hidden patches",
        data=described(ctx) + ", half of their patches hidden",
        model=ABOUT,
        unit=unit(ctx),
        knobs=("pooled",),
        baseline=costs["aaaa"].arm(qualities["aaaa"]),
        points=[
            costs["ppaa"].point({"pooled": 2}, qualities["ppaa"], redundancy=0.5),
            costs["pppp"].point({"pooled": 4}, qualities["pppp"], redundancy=1.0),
        ],
        controls=[
            Control(
                name="attention first",
                about="Attention in the two blocks on 8 x 8, pooling in those on 4 x 4.",
                points=(costs["aapp"].point({"pooled": 2}, qualities["aapp"]),),
            ),
            Control(
                name="nothing first",
                about="No mixer in the two blocks on 8 x 8, attention in those on 4 x 4.",
                points=(costs["nnaa"].point({"pooled": 0}, qualities["nnaa"]),),
            ),
        ],
        redundancy=redundancy,
        seeds=seeds(ctx),
        notes=(
            "Every network is trained from the start, by the same recipe and in the same order.",
            "Blocks on tokens have layer norm and linear layers, blocks on maps batch norm and 1x1 convolutions.",
            "extra.paired_* is the difference to attention everywhere, seed by seed: mean, 95 % interval.",
            "The four letters are the blocks in order: p pools, a attends, n does not mix.",
        ),
        extra={f"paired_{kind}": paired_difference(values[kind], values["aaaa"]) for kind in kinds[1:]},
    )


# --------------------------------------------------------------------------------------------------------------------
# The layout: one change, or one in every block


class PooledTokens(nn.Module):
    """What a folded `MapBlock` with `Pooling` computes, on tokens (B, N, C): linear layers, a map for the pooling only.

    `norms`: with a layer normalisation in front of either part, as blocks on tokens have; then the result differs.
    """

    def __init__(self, block: MapBlock, size: Size, *, norms: bool) -> None:
        super().__init__()
        channels = block.ls2.gamma.numel()
        self.norm1, self.norm2 = (nn.LayerNorm(channels) if norms else nn.Identity() for _ in range(2))
        self.size, self.pool, self.ls1, self.ls2 = size, Pooling(), block.ls1, block.ls2
        self.fc1, self.fc2 = (_linear(conv) for conv in (block.mlp.fc1, block.mlp.fc2))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.pool(as_map(self.norm1(x), self.size)).flatten(2).transpose(1, 2).contiguous()
        x = x + self.ls1(mixed)
        return x + self.ls2(self.fc2(self.act(self.fc1(self.norm2(x)))))


def _linear(conv: nn.Conv2d) -> nn.Linear:
    """The linear layer on tokens that does what a 1x1 convolution does on maps."""
    layer = nn.Linear(conv.in_channels, conv.out_channels)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1))
        layer.bias.copy_(conv.bias)
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


def run_layout(ctx: Context) -> Record:
    """Time of four pooling blocks as in the second stage of EfficientFormer-L1, on maps and on tokens."""
    size, channels, depth = (28, 28), 96, 4
    models = layouts(size, channels, depth)
    with fork_seed(0):
        x = torch.randn(1, channels, *size)
    costs = costs_of(ctx, models, x, repetitions=151)
    reference = without_gradients(models["tokens"], x)
    errors = {
        name: ((without_gradients(model, x) - reference).abs().max() / reference.abs().max()).item()
        for name, model in models.items()
    }

    def quality(name: str) -> Quality:
        return Quality(metric="largest difference of the result", value=errors[name], higher_is_better=False)

    ratios = {name: speed_up(costs["tokens"].samples, cost.samples) for name, cost in costs.items()}
    similarity = neighbour_similarity(x).mean().item()
    abouts = {
        "there and back": "On maps, but each block first copies its map to the layout of tokens and back.",
        "tokens with layer norms": "On tokens, with a layer norm in front of either part; its result is another one.",
    }
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="layout",
        title="Four pooling blocks on maps, and the same on tokens",
        data="random maps of 96 channels and 28 x 28 pixels",
        model="4 blocks as in the second stage of EfficientFormer-L1, batch norm folded, random weights",
        unit="one map, in a batch of 1",
        knobs=("layout",),
        baseline=costs["tokens"].arm(quality("tokens")),
        points=[costs["maps"].point({"layout": "maps"}, quality("maps"))],
        controls=[
            Control(name=name, about=about, points=(costs[name].point({"layout": name}, quality(name)),))
            for name, about in abouts.items()
        ],
        redundancy=Measured(measure="cosine of a token with its neighbours' mean", value=similarity),
        seeds=(0,),
        notes=(
            "The same weights in all forms: MACs are equal, and results but for the layer norms.",
            "On tokens the pooling needs a map, so each block changes the layout twice.",
            "Random maps: layout is no property of the data, and the time does not depend on them.",
            "extra.speed_up holds the median ratio of paired repetitions over the baseline and its 95 % interval.",
        ),
        extra={f"speed_up_{key(name)}": (r.ratio, r.low, r.high) for name, r in ratios.items() if name != "tokens"},
    )


SCENARIOS = (
    Scenario("fill-pooling", "Small EfficientFormer that fills in patches: pooling", run_pooling, FASHION),
    Scenario("fill-placement", "The same, trained with attention in other places", run_placement, FASHION),
    Scenario("layout", "Pooling blocks on maps and on tokens: wall-clock", run_layout),
)
