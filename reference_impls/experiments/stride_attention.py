"""Experiments of stride attention, most of them on small networks in the benchmark of compact networks.

- `fill-tokens`: networks trained with attention on 64 tokens, run on fewer; and which frequencies attention adds.
- `fill-mixers`, `classify-mixers`: other strides and other mixers, each trained for itself.
- `fill-projection-order`: projecting before the interpolation, which the paper does not try.
- `s0-latency`: MACs and wall-clock of EfficientFormerV2-S0 at 224 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks.compact_networks import feature_map_task as task
from reference_impls.benchmarks.compact_networks import feature_maps as fm
from reference_impls.data import images
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.pooling import Pooling
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.models.vit import imagenet_normalise
from reference_impls.redundancy.over_resolution import spectrum
from reference_impls.study import (
    BASELINE,
    TECHNIQUE,
    Plan,
    Study,
    correlation,
    fork_seed,
    forward,
    measure_calls,
    measured,
    over_items,
    predict,
    seeded,
    table,
)
from reference_impls.techniques.efficientformer_v2 import build
from reference_impls.techniques.stride_attention import (
    Coarseness,
    MapAttention,
    StrideAttention,
    coarse_values,
    full_attentions,
    resize,
    strided,
)

STRIDE = StrideAttention()
TOKENS = math.prod(fm.GRID)
OTHER_MIXERS: Mapping[str, Callable[[], nn.Module | None]] = {
    "none": lambda: None,
    "mean 3x3": Pooling,
    "depthwise 3x3": lambda: ConvNorm(fm.WIDTHS[0], fm.WIDTHS[0], 3, groups=fm.WIDTHS[0]),
}
ABOUT_MIXERS = {
    "none": "Nothing in the place of attention: no position learns of another.",
    "mean 3x3": "The mean of 3x3 neighbours minus the position, as in EfficientFormer V1.",
    "depthwise 3x3": "A depthwise 3x3 convolution.",
}

# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: quality against the number of tokens


def on_fewer_tokens(stride: int, local: str) -> Callable[[nn.Module], object]:
    """Attaches stride attention to a model, for good."""
    return partial(STRIDE.apply, stride=stride, local=local)


def run_tokens(study: Study[fm.FeatureMapPlan]) -> Record:
    """Networks trained at full resolution, against the stride that attention is run with."""
    models = fm.attention_networks(study)
    coarse_local = "local values on the coarse map"
    series = {
        TECHNIQUE: [fm.coarser({"stride": s, "local": "full"}, s, on_fewer_tokens(s, "full")) for s in fm.FACTORS],
        fm.RANDOM_CELLS: [
            fm.coarser({"stride": s, "local": "full"}, s, fm.random_cells(Coarseness(s, s))) for s in fm.FACTORS
        ],
        coarse_local: [
            fm.coarser({"stride": s, "local": "coarse"}, s, on_fewer_tokens(s, "coarse")) for s in fm.FACTORS
        ],
    }
    fm.finished(study, models, series, samples=TOKENS)
    redundancy, by_place = fm.measured_by_place(study, models, STRIDE.measure)
    x = fm.batch_of(study.plan)
    return fm.record(
        study,
        model=fm.ABOUT,
        knobs=("stride", "local"),
        controls={
            fm.RANDOM_CELLS: "As many tokens, each the mean of positions drawn at random instead of neighbours.",
            coarse_local: "As in the paper, where the network is trained so: local values are strided too.",
        },
        redundancy=redundancy,
        notes=("The networks were trained without strides: the technique is applied to the finished networks.",),
        tables={"redundancy by place": by_place, "spectrum": spectra(models, x)},
        pictures=picture(models[0], x[:1]),
    )


def spectra(models: Sequence[nn.Module], x: Tensor) -> Table:
    """Energy by frequency of what reaches attention, of what it mixes, and of its local values.

    Mean share over models and modules, at 1 to 4 cycles per feature map along the axis with more.
    """
    size = fm.GRID[0]
    frequency = torch.fft.fftfreq(size, 1 / size).abs()
    ring = torch.maximum(frequency[:, None], frequency[None, :])
    found: dict[str, list[Tensor]] = {"input": [], "attended": [], "local": []}
    for model in models:
        attentions = full_attentions(STRIDE.id, model)
        for name, seen in inputs_of(attentions, model, fm.unmasked(x)).items():
            with torch.no_grad():
                mixed, local = attentions[name].attend(seen)
            for place, maps in zip(found, (seen, mixed, local), strict=True):
                energy = spectrum(maps).sum(0)
                rings = torch.stack([energy[ring == cycles].sum() for cycles in range(1, size // 2 + 1)])
                found[place].append(rings / energy.sum())
    return table(
        "Share of the energy whose higher frequency along an axis is so many cycles per feature map.",
        ("place", "cycles", "share"),
        [
            [place, cycles, share]
            for place, shares in found.items()
            for cycles, share in enumerate(torch.stack(shares).mean(0).tolist(), 1)
        ],
    )


def picture(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """For the figures: an image (1, 1, 32, 32), reconstructed; and what the first attention adds to it, unmasked.

    Of one channel, that of the largest variance among the attended values. `strided` is the same from 16 tokens.
    """
    inputs = fm.masked(image)
    name, attention = next(iter(full_attentions(STRIDE.id, model).items()))
    x = inputs_of({name: attention}, model, fm.unmasked(image))[name]
    with torch.no_grad():
        attended, local = attention.attend(x)
        coarse, _ = coarse_values(attention, x, Coarseness(2, 2))
    channel = int(attended.var((0, 2, 3)).argmax())
    shown = {"seen": inputs[:, 0], "hidden": inputs[:, 1], "reconstructed": forward(model, inputs)()[:, 0]}
    shown |= {
        "attended": attended[:, channel],
        "strided": resize(coarse, fm.GRID)[:, channel],
        "local": local[:, channel],
    }
    return {what: x[0] for what, x in shown.items()}


# --------------------------------------------------------------------------------------------------------------------
# Equal training: which mixer, which stride, which order


def strided_networks(
    study: Study[fm.FeatureMapPlan], stride: int, on: fm.Task = fm.RECONSTRUCT, *, project_first: bool = False
) -> list[nn.Module]:
    """The networks with strided attention as in the paper, trained so."""
    name = f"stride {stride}" + (", projected first" if project_first else "")
    mixer = partial(fm.small_attention, stride, project_first=project_first)
    return fm.networks(study, name, partial(fm.map_network, on, mixer), on)


def run_mixers(study: Study[fm.FeatureMapPlan], on: fm.Task, strides: Sequence[int], others: Sequence[str]) -> Record:
    """Networks that differ in the mixer of their blocks, each trained for itself."""
    dense = fm.attention_networks(study, on)
    fm.add(study, BASELINE, {}, dense, task=on, samples=TOKENS)
    for s in strides:
        left = math.prod(strided(fm.GRID, s))
        fm.add(study, TECHNIQUE, {"stride": s}, strided_networks(study, s, on), task=on, samples=left)
    for name in others:
        models = fm.networks(study, f"mixer {name}", partial(fm.map_network, on, OTHER_MIXERS[name]), on)
        fm.add(study, f"mixer {name}", {"mixer": name}, models, task=on)
    study.measure()
    redundancy, by_place = fm.measured_by_place(study, dense, STRIDE.measure, on)
    return fm.record(
        study,
        on,
        model=fm.ABOUT,
        knobs=("stride",),
        controls={f"mixer {name}": ABOUT_MIXERS[name] for name in others},
        redundancy=redundancy,
        notes=(
            "Every network is trained from the start with its own mixer, by the same recipe and in the same order.",
            "Strided networks are those of the paper: a depthwise convolution of the stride, local values on its map.",
            "Redundancy is that of the networks with attention at full resolution, on whole images.",
        ),
        tables={"redundancy by place": by_place},
    )


def swap_order(model: nn.Module) -> None:
    """Let every strided attention of a trained network project in front of its interpolation."""
    for module in model.modules():
        if isinstance(module, MapAttention) and module.stride_conv is not None:
            module.project_first = True


@dataclass(frozen=True, kw_only=True)
class OrderPlan(fm.FeatureMapPlan):
    s0_repetitions: int


def run_order(study: Study[OrderPlan]) -> Record:
    """Projecting before the interpolation instead of behind it: trained so, or swapped in finished networks."""
    published, swapped = strided_networks(study, 2), "swapped in finished networks"
    first = {"project_first": True}
    series = {swapped: [fm.Contender(first, swap_order)]}
    fm.add(study, TECHNIQUE, first, strided_networks(study, 2, project_first=True))
    fm.finished(study, published, series)
    redundancy, _ = fm.measured_by_place(study, fm.attention_networks(study), STRIDE.measure)
    return fm.record(
        study,
        model=fm.ABOUT,
        knobs=("project_first",),
        controls={swapped: "Trained in the published order, run in the other one, with nothing trained again."},
        redundancy=redundancy,
        notes=(
            "Convolutions of 1x1 and batch norm commute with bilinear interpolation; the GELU in between does not.",
        ),
        tables={"EfficientFormerV2-S0": s0_in_both_orders(study.plan.s0_repetitions)},
    )


def s0_in_both_orders(repetitions: int) -> Table:
    """MACs and time of EfficientFormerV2-S0 for one image of 224 x 224, as published and projecting first."""
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    names = {"as published": False, "projected first": True}
    models = {name: seeded(0, partial(build, "s0", project_first=first)).eval() for name, first in names.items()}
    calls = {name: forward(model, x) for name, model in models.items()}
    costs = measure_calls(calls, units=dict.fromkeys(calls, 1), repetitions=repetitions)
    published = costs["as published"]
    return table(
        "The whole network at 224 pixels with random weights, one image, in both orders.",
        ("order", "MACs", "ms", "speed-up"),
        [
            [name, cost.macs, cost.wall_ms.median, None if cost is published else cost.speed_up_over(published)]
            for name, cost in costs.items()
        ],
    )


# --------------------------------------------------------------------------------------------------------------------
# Latency


@dataclass(frozen=True, kw_only=True)
class LatencyPlan(Plan):
    photos: int | None = None


def run_s0(study: Study[LatencyPlan]) -> Record:
    """EfficientFormerV2-S0 whose attention at stride 16 runs at full resolution, or strided."""
    with fork_seed(0):
        model = build("s0", strides=(1, 1, 1, 1), layer_scale=1.0).eval()
        published = build("s0").eval()
    x = imagenet_normalise(images.photos(224)[1][: study.plan.photos])
    at_16 = [name for name in full_attentions(STRIDE.id, model) if name.startswith("stages.2.")]
    networks = {"dense": model, "published": published}
    for stride in (2, 7):
        networks[f"stride {stride}"] = copy_sharing_weights(model)
        STRIDE.apply(networks[f"stride {stride}"].get_submodule("stages.2"), stride=stride)
    calls = {name: forward(network, x[:1]) for name, network in networks.items()}
    costs = measure_calls(calls, units=dict.fromkeys(calls, 1), repetitions=study.plan.repetitions)
    dense, own = predict(model, x), costs["published"]

    def add(series: str, knobs: Mapping[str, int], name: str, tokens: int) -> None:
        quality = over_items(map(correlation, dense, predict(networks[name], x)))
        study.add(series, knobs, quality=quality, samples=tokens, cost=costs[name])

    add(BASELINE, {}, "dense", 196)
    for stride in (2, 7):
        add(TECHNIQUE, {"stride": stride}, f"stride {stride}", math.prod(strided((14, 14), stride)))
    return study.record(
        data=f"{len(x)} photos of scikit-image and scikit-learn, 224 x 224 pixels",
        model=f"EfficientFormerV2-S0 with random weights, {len(at_16)} attention blocks on 14 x 14 at full resolution",
        unit="one image, in a batch of 1",
        knobs=("stride",),
        metric="correlation of logits",
        redundancy=measured([STRIDE.measure(model, one[None]) for one in x], interval=over_items),
        notes=("Random weights: time and MACs are those of any S0, the quality and the measure say nothing.",),
        tables={
            "as published": table(
                "S0 as published: a depthwise convolution of stride 2 instead of the mean of cells.",
                ("network", "MACs", "ms"),
                [["EfficientFormerV2-S0", own.macs, own.wall_ms.median]],
            )
        },
    )


CONTENDERS = {
    "compact-networks/feature-maps": tuple(fm.coarser({"factor": s}, s, on_fewer_tokens(s, "full")) for s in fm.FACTORS)
}
SCENARIOS = (
    task(
        "fill-tokens",
        "Attention trained on 64 tokens and run on 16, 4 or 1: reconstruction of masked patches",
        run_tokens,
    ),
    task(
        "fill-mixers",
        "Mixers at equal training: reconstruction of masked patches",
        partial(run_mixers, on=fm.RECONSTRUCT, strides=(2, 4), others=("none", "mean 3x3", "depthwise 3x3")),
    ),
    task(
        "classify-mixers",
        "Mixers at equal training: classifying Fashion-MNIST",
        partial(run_mixers, on=fm.CLASSIFY, strides=(2,), others=("none", "depthwise 3x3")),
    ),
    task(
        "fill-projection-order",
        "Projecting before the interpolation: reconstruction of masked patches",
        run_order,
        full=OrderPlan(**vars(fm.FULL), s0_repetitions=101),
        smoke=OrderPlan(**vars(fm.SMOKE), s0_repetitions=3),
    ),
    task(
        "s0-latency",
        "EfficientFormerV2-S0 at 224 pixels: attention on 14 x 14 against 7 x 7 tokens",
        run_s0,
        full=LatencyPlan(repetitions=51),
        smoke=LatencyPlan(repetitions=3, photos=1),
    ),
)
