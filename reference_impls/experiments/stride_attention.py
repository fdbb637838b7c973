"""Experiments of stride attention: cases for the conformance checks, and small networks on Fashion-MNIST.

- `fill-tokens`: networks trained with attention on 64 tokens, run on fewer; and which frequencies attention adds.
- `fill-mixers`, `classify-mixers`: other strides and other mixers, each trained for itself.
- `fill-projection-order`: projecting before the interpolation, which the paper does not try.
- `s0-latency`: MACs and wall-clock of EfficientFormerV2-S0 at 224 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Control, Measured, Point, Record
from reference_impls.accounting.timing import speed_up
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.data import images
from reference_impls.experiments.efficient_nets import (
    CHANNELS,
    CLASSIFY,
    FASHION,
    FILL,
    GRID,
    WIDTHS,
    Task,
    coarse_scores_are_means,
    costs_of,
    described,
    filled,
    fitted,
    hidden_patches,
    key,
    map_case,
    map_network,
    measured,
    paired_difference,
    scores,
    seeds,
    small_attention,
    some_images,
    sweep,
    unit,
    whole,
    without_gradients,
)
from reference_impls.experiments.harness import (
    Context,
    Scenario,
    fork_seed,
    over_items,
    over_seeds,
    predict,
    record,
)
from reference_impls.experiments.token_merging import correlation
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.pooling import Pooling
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.models.vit import imagenet_normalise
from reference_impls.redundancy.over_resolution import over_resolution, spectrum
from reference_impls.techniques.efficientformer_v2 import build
from reference_impls.techniques.stride_attention import (
    Coarseness,
    MapAttention,
    StrideAttention,
    attend_coarsely,
    cell_means,
    coarse_values,
    full_attentions,
    resize,
    strided,
)

TECHNIQUE = StrideAttention()

# --------------------------------------------------------------------------------------------------------------------
# Cases


class StrideAttentionCases(Cases):
    """Attention on constant maps, on chessboards, and on what is in between (`efficient_nets.map_case`)."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        return map_case(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = map_case("typical", seed, device)
        x = case.inputs
        with TECHNIQUE.apply(case.target, stride=2, threshold=0.5) as handle:
            without_gradients(handle.target, x)
            _, chosen = handle.trace["substituted"]["0.token_mixer"]
        by_hand = [energy_share(one.double().tolist(), 2) for one in x]
        yield Expectation(
            "share below half resolution", torch.tensor(by_hand), over_resolution(x.double()).float().cpu()
        )
        yield Expectation("maps coarsened", torch.tensor(sum(s >= 0.5 for s in by_hand)), torch.tensor(chosen))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        yield from coarse_scores_are_means(2, 2, seed, device)
        with fork_seed(seed):
            x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=device)
        yield Expectation("mean of a map", x.mean((2, 3)), cell_means(x, 2).mean((2, 3)))
        case = map_case("redundant", seed, device)
        attention, flat = case.target, case.inputs
        with torch.no_grad():
            coarse = attend_coarsely(attention, flat, Coarseness(2, 2, 1))
            yield Expectation("result on constant maps", attention(flat), coarse)

    def invalid(self, device: str) -> Iterable[Invalid]:
        target = map_case("typical", 0, device).target
        x = map_case("typical", 0, device).inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        strided = MapAttention(CHANNELS, (8, 8), 2, 4, 2, stride=2).to(device)
        yield Invalid("half a stride", lambda: TECHNIQUE.apply(target, stride=1.5), "stride must be an integer")
        yield Invalid("stride 0", lambda: TECHNIQUE.apply(target, stride=0), "stride must be an integer")
        yield Invalid("another place of local values", lambda: TECHNIQUE.apply(target, local="none"), "local must be")
        yield Invalid("threshold above 1", lambda: TECHNIQUE.apply(target, threshold=1.1), "threshold must be")
        yield Invalid("inputs with NaN", lambda: TECHNIQUE.measure(target, x), "not finite")
        yield Invalid("a vector", lambda: over_resolution(x[0, 0, 0]), "must have shape (B, C, H, W)")
        yield Invalid("attention that strides already", lambda: TECHNIQUE.apply(strided), "`MapAttention` of stride 1")
        yield Invalid("local values coarser than keys", lambda: Coarseness(2, 1, 2), "local values are computed")


def energy_share(maps: list[list[list[float]]], factor: int) -> float:
    """`over_resolution` of one datum (C, H, W) by plain sums: its Fourier coefficients one after the other."""
    height, width = len(maps[0]), len(maps[0][0])
    below = total = kept = 0.0

    def weight(frequency: int, size: int) -> float:
        frequency, limit = min(frequency, size - frequency), size / factor / 2
        return 1.0 if frequency < limit else 0.5 if frequency == limit else 0.0

    for v in range(height):
        for u in range(width):
            if u == v == 0:
                continue
            energy = 0.0
            for channel in maps:
                turns = (
                    (2 * math.pi * (v * i / height + u * j / width), channel[i][j])
                    for i in range(height)
                    for j in range(width)
                )
                real, imaginary = map(sum, zip(*((x * math.cos(t), x * math.sin(t)) for t, x in turns), strict=True))
                energy += real**2 + imaginary**2
            share = weight(v, height) * weight(u, width)
            below, total, kept = below + share * energy, total + energy, kept + share
    white = kept / (height * width - 1)
    return min(max((below / total - white) / (1 - white), 0.0), 1.0)


CASES = StrideAttentionCases()

# --------------------------------------------------------------------------------------------------------------------
# What the scenarios share: trained networks, and what attention adds to their maps

ABOUT = "a small EfficientFormerV2: patches of 4 x 4 pixels, 2 blocks of 32 channels on 8 x 8 with mixers"
MIXERS: dict[str, Callable[[], nn.Module | None]] = {
    "stride 1": small_attention,
    "stride 2": partial(small_attention, 2),
    "stride 4": partial(small_attention, 4),
    "stride 2, projected first": partial(small_attention, 2, project_first=True),
    "none": lambda: None,
    "mean 3x3": Pooling,
    "depthwise 3x3": lambda: ConvNorm(WIDTHS[0], WIDTHS[0], 3, groups=WIDTHS[0]),
}
PLACES = ("input", "attended", "local")
"""Where energy is looked at: what reaches attention, what it mixes, and its local values."""


def networks(ctx: Context, mixer: str, task: Task = FILL) -> list[nn.Module]:
    """The network with this mixer, trained once for each seed."""
    return fitted(ctx, task, f"mixer-{key(mixer)}", partial(map_network, task, MIXERS[mixer]))


def spectra(models: Sequence[nn.Module], x: Tensor) -> dict[str, Any]:
    """Share of the energy at each frequency (half cycles of the map, 1 to 4 along the worse axis), by place."""
    size, rows = GRID[0], {place: [] for place in PLACES}
    frequency = torch.fft.fftfreq(size, 1 / size).abs()
    ring = torch.maximum(frequency[:, None], frequency[None, :])
    for model in models:
        shares: dict[str, list[Tensor]] = {place: [] for place in PLACES}
        attentions = full_attentions(TECHNIQUE.id, model)
        for name, seen in inputs_of(attentions, model, whole(x)).items():
            with torch.no_grad():
                mixed, local = attentions[name].attend(seen)
            for place, maps in zip(PLACES, (seen, mixed, local), strict=True):
                energy = spectrum(maps).sum(0)
                shares[place].append(
                    torch.stack([energy[ring == f].sum() for f in range(1, size // 2 + 1)]) / energy.sum()
                )
        for place, values in shares.items():
            rows[place].append(torch.stack(values).mean(0))
    return {f"spectrum_{place}": tuple(torch.stack(v).mean(0).tolist()) for place, v in rows.items()}


# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: accuracy against the number of tokens


def shuffled_cells(model: nn.Module, stride: int) -> None:
    """Attach stride attention whose cells are positions drawn at random, not neighbours; local values stay in place.

    Positions are shuffled before the map is coarsened and put back behind the interpolation, their biases with them.
    """
    for attention in full_attentions(TECHNIQUE.id, model).values():
        order = torch.randperm(math.prod(GRID), generator=torch.Generator().manual_seed(0))
        attention.forward = partial(_shuffled, attention, order, Coarseness(stride, stride, 1))


def _shuffled(attention: MapAttention, order: Tensor, coarse: Coarseness, x: Tensor) -> Tensor:
    def move(maps: Tensor, order: Tensor) -> Tensor:
        return maps.flatten(2)[..., order].view_as(maps)

    back = order.argsort()
    names = ("q", "k", "v", "talking_head1", "talking_head2", "act", "proj", "heads", "key_dim")
    elsewhere = SimpleNamespace(**{name: getattr(attention, name) for name in names})
    elsewhere.bias = lambda size: attention.bias(size)[:, order][:, :, order]
    elsewhere.v_local = lambda values: move(attention.v_local(move(values, back)), order)
    return move(attend_coarsely(elsewhere, move(x, order), coarse), back)


def picture(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """For the figures: an image (1, 1, 32, 32), filled in; and what the first attention adds to it, seen as a whole.

    Of one channel, that of the largest variance among the attended values. `strided` is the same from 16 tokens.
    """
    inputs = hidden_patches(image)
    name, attention = next(iter(full_attentions(TECHNIQUE.id, model).items()))
    x = inputs_of({name: attention}, model, whole(image))[name]
    with torch.no_grad():
        attended, local = attention.attend(x)
        coarse, _ = coarse_values(attention, x, Coarseness(2, 2, 1))
    channel = int(attended.var((0, 2, 3)).argmax())
    shown = {"seen": inputs[:, 0], "hidden": inputs[:, 1], "filled": without_gradients(model, inputs)[:, 0]}
    shown |= {"attended": attended[:, channel], "strided": resize(coarse, GRID)[:, channel], "local": local[:, channel]}
    return {
        f"picture_{what}": tuple(tuple(round(v, 3) for v in row) for row in x[0].tolist()) for what, x in shown.items()
    }


def run_tokens(ctx: Context) -> Record:
    """How well networks trained at full resolution fill in patches, against the stride that attention is run with."""
    models = networks(ctx, "stride 1")
    strides = (2, 4, 8)
    attach: dict[str, Callable[[nn.Module], object]] = {"dense": lambda model: None}
    for local in ("full", "coarse"):
        attach |= {f"{local} {s}": partial(TECHNIQUE.apply, stride=s, local=local) for s in strides}
    attach |= {f"shuffled {s}": partial(shuffled_cells, stride=s) for s in strides}
    twins, values = sweep(ctx, models, attach)
    x = some_images(ctx)
    costs = costs_of(ctx, twins, hidden_patches(x))
    redundancy, extra = measured(models, TECHNIQUE, x)

    def points(kind: str, local: str) -> tuple[Point, ...]:
        left = {s: math.prod(strided(GRID, s)) for s in strides}
        return tuple(
            costs[f"{kind} {s}"].point(
                {"stride": s, "local": local},
                filled(values[f"{kind} {s}"]),
                samples=left[s],
                redundancy=1 - left[s] / math.prod(GRID),
            )
            for s in strides
        )

    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="fill-tokens",
        title="Attention trained on 64 tokens and run on 16, 4 or 1: filling in hidden patches",
        data=described(ctx) + ", half of their patches hidden",
        model=ABOUT,
        unit=unit(ctx),
        knobs=("stride", "local"),
        baseline=costs["dense"].arm(filled(values["dense"]), samples=math.prod(GRID)),
        points=points("full", "full"),
        controls=[
            Control(
                name="cells of random positions",
                about="As many tokens, each the mean of positions drawn at random instead of neighbours.",
                points=points("shuffled", "full"),
            ),
            Control(
                name="local values on the coarse map",
                about="As in the paper, where the network is trained so: local values are strided too.",
                points=points("coarse", "coarse"),
            ),
        ],
        redundancy=redundancy,
        seeds=seeds(ctx),
        notes=(
            "Training knew nothing of strides: the technique is applied to the finished networks.",
            "extra.measured_* holds a row (mean over the networks, and its 95 % interval) for each of measured_places.",
            "extra.paired_neighbours_* is what cells of neighbours gain over random ones, seed by seed.",
            "extra.spectrum_* is the share of energy whose higher frequency along an axis is 1, 2, 3, 4 cycles a map.",
        ),
        extra=extra
        | {f"paired_neighbours_{s}": paired_difference(values[f"full {s}"], values[f"shuffled {s}"]) for s in strides}
        | spectra(models, x)
        | picture(models[0], x[:1]),
    )


# --------------------------------------------------------------------------------------------------------------------
# Equal training: which mixer, which stride, which order


def run_mixers(ctx: Context, task: Task, title: str, strides: Sequence[int], others: Sequence[str]) -> Record:
    """How well networks do a task that differ in the mixer of their blocks, each trained for itself."""
    names = ("stride 1", *(f"stride {s}" for s in strides), *others)
    models = {name: networks(ctx, name, task) for name in names}
    values = {name: scores(ctx, task, f"mixer-{key(name)}", trained) for name, trained in models.items()}
    qualities = {name: over_seeds(task.metric, found) for name, found in values.items()}
    costs = costs_of(ctx, {name: trained[-1] for name, trained in models.items()}, task.inputs(some_images(ctx)))
    redundancy, extra = measured(models["stride 1"], TECHNIQUE, some_images(ctx), task)
    abouts = {
        "none": "Nothing in the place of attention: no position learns of another.",
        "mean 3x3": "The mean of 3x3 neighbours minus the position, as in EfficientFormer V1.",
        "depthwise 3x3": "A depthwise 3x3 convolution.",
    }
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario=f"{task.name}-mixers",
        title=title,
        data=described(ctx),
        model=ABOUT,
        unit=unit(ctx),
        knobs=("stride",),
        baseline=costs["stride 1"].arm(qualities["stride 1"], samples=math.prod(GRID)),
        points=[
            costs[f"stride {s}"].point({"stride": s}, qualities[f"stride {s}"], samples=math.prod(strided(GRID, s)))
            for s in strides
        ],
        controls=[
            Control(
                name=f"mixer {name}", about=abouts[name], points=(costs[name].point({"mixer": name}, qualities[name]),)
            )
            for name in others
        ],
        redundancy=redundancy,
        seeds=seeds(ctx),
        notes=(
            "Every network is trained from the start with its own mixer, by the same recipe and in the same order.",
            "Strided networks are those of the paper: a depthwise convolution of the stride, local values on its map.",
            "extra.paired_* is the difference to stride 1 with the same seed: mean, and 95 % interval.",
            "Redundancy is that of the networks with attention at full resolution, on whole images.",
        ),
        extra=extra | {f"paired_{key(n)}": paired_difference(values[n], values["stride 1"]) for n in names[1:]},
    )


def swap_order(model: nn.Module) -> None:
    """Let every strided attention of a trained network project in front of its interpolation."""
    for module in model.modules():
        if isinstance(module, MapAttention) and module.stride_conv is not None:
            module.project_first = True


def run_order(ctx: Context) -> Record:
    """Projecting before the interpolation instead of behind it: trained so, or swapped in finished networks."""
    published, first = "stride 2", "stride 2, projected first"
    models = {name: networks(ctx, name) for name in (published, first)}
    values = {name: scores(ctx, FILL, f"mixer-{key(name)}", trained) for name, trained in models.items()}
    qualities = {name: over_seeds(FILL.metric, found) for name, found in values.items()}
    swapped, after = sweep(ctx, models[published], {"swapped": swap_order})
    last = {name: trained[-1] for name, trained in models.items()}
    costs = costs_of(ctx, last | swapped, hidden_patches(some_images(ctx)))
    redundancy, _ = measured(networks(ctx, "stride 1"), TECHNIQUE, some_images(ctx))
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="fill-projection-order",
        title="Projecting before the interpolation: filling in hidden patches",
        data=described(ctx) + ", half of their patches hidden",
        model=ABOUT,
        unit=unit(ctx),
        knobs=("project_first",),
        baseline=costs[published].arm(qualities[published]),
        points=[costs[first].point({"project_first": True}, qualities[first])],
        controls=[
            Control(
                name="swapped in finished networks",
                about="Trained in the published order, run in the other one, with nothing trained again.",
                points=(costs["swapped"].point({"project_first": True}, filled(after["swapped"])),),
            )
        ],
        redundancy=redundancy,
        seeds=seeds(ctx),
        notes=(
            "Convolutions of 1x1 and batch norm commute with bilinear interpolation; the GELU in between does not.",
            "extra.s0_* are EfficientFormerV2-S0 at 224 pixels with random weights, one image, in both orders.",
            "extra.paired_projected_first is the difference to the published order with the same seed.",
        ),
        extra={"paired_projected_first": paired_difference(values[first], values[published])} | s0_in_both_orders(ctx),
    )


def s0_in_both_orders(ctx: Context) -> dict[str, Any]:
    """MACs and time of EfficientFormerV2-S0 for one image of 224 x 224, published and projecting first."""
    with fork_seed(0):
        models = {name: build("s0", project_first=name == "first").eval() for name in ("published", "first")}
        x = torch.randn(1, 3, 224, 224)
    costs = costs_of(ctx, models, x, repetitions=101)
    faster = speed_up(costs["published"].samples, costs["first"].samples)
    return {
        "s0_macs": tuple(float(costs[name].macs) for name in models),
        "s0_milliseconds": tuple(costs[name].wall_ms.median for name in models),
        "s0_speed_up": (faster.ratio, faster.low, faster.high),
    }


# --------------------------------------------------------------------------------------------------------------------
# The clock


def run_s0(ctx: Context) -> Record:
    """MACs and time of EfficientFormerV2-S0 whose attention at stride 16 runs at full resolution, or strided."""
    with fork_seed(0):
        model = build("s0", strides=(1, 1, 1, 1), layer_scale=1.0).eval()
        published = build("s0").eval()
    _, photos = images.photos(224)
    x = imagenet_normalise(photos[:1] if ctx.smoke else photos)
    at_16 = [name for name in full_attentions(TECHNIQUE.id, model) if name.startswith("stages.2.")]
    stage = "stages.2"
    arms = {"dense": lambda m: None} | {
        f"stride {s}": lambda m, s=s: TECHNIQUE.apply(m.get_submodule(stage), stride=s) for s in (2, 7)
    }
    twins = {}
    for name, attach in arms.items():
        twins[name] = copy_sharing_weights(model)
        attach(twins[name])
    costs = costs_of(ctx, twins | {"published": published}, x[:1], repetitions=51)
    dense = predict(twins["dense"], x)
    quality = {
        name: over_items("correlation of logits", map(correlation, dense, predict(one, x)))
        for name, one in twins.items()
    }
    ratios = {s: speed_up(costs["dense"].samples, costs[f"stride {s}"].samples) for s in (2, 7)}
    found = [TECHNIQUE.measure(model, one[None]) for one in x]
    value = float(np.mean([f.value for f in found]))
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario="s0-latency",
        title="EfficientFormerV2-S0 at 224 pixels: attention on 14 x 14 against 7 x 7 tokens",
        data=f"{len(x)} photos of scikit-image and scikit-learn, 224 x 224 pixels",
        model=f"EfficientFormerV2-S0 with random weights, {len(at_16)} attention blocks on 14 x 14 at full resolution",
        unit="one image, in a batch of 1",
        knobs=("stride",),
        baseline=costs["dense"].arm(quality["dense"], samples=196),
        points=[
            costs[f"stride {s}"].point({"stride": s}, quality[f"stride {s}"], samples=math.prod(strided((14, 14), s)))
            for s in (2, 7)
        ],
        redundancy=Measured(measure=found[0].measure, value=value, where={}),
        seeds=(0,),
        notes=(
            "Random weights: time and MACs are those of any S0, the quality and the measure say nothing.",
            "extra.published_* is S0 as published: a depthwise convolution of stride 2 instead of the mean of cells.",
            "extra.speed_up holds the stride, the median ratio of paired repetitions and its 95 % interval.",
        ),
        extra={
            "published_macs": float(costs["published"].macs),
            "published_milliseconds": costs["published"].wall_ms.median,
            "speed_up": tuple((float(s), r.ratio, r.low, r.high) for s, r in ratios.items()),
        },
    )


SCENARIOS = (
    Scenario("fill-tokens", "Small EfficientFormerV2 that fills in patches, against its tokens", run_tokens, FASHION),
    Scenario(
        "fill-mixers",
        "The same, trained with other mixers",
        partial(
            run_mixers,
            task=FILL,
            title="Mixers at equal training: filling in hidden patches",
            strides=(2, 4),
            others=("none", "mean 3x3", "depthwise 3x3"),
        ),
        FASHION,
    ),
    Scenario(
        "classify-mixers",
        "Small EfficientFormerV2 that tells clothes apart, trained with other mixers",
        partial(
            run_mixers,
            task=CLASSIFY,
            title="Mixers at equal training: telling clothes apart",
            strides=(2,),
            others=("none", "depthwise 3x3"),
        ),
        FASHION,
    ),
    Scenario("fill-projection-order", "The first, projecting before the interpolation", run_order, FASHION),
    Scenario("s0-latency", "EfficientFormerV2-S0 at 224 pixels: wall-clock of a single image", run_s0),
)
