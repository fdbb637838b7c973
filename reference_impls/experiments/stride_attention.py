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
from reference_impls.contract import generator
from reference_impls.data import images
from reference_impls.data.masking import masked, unmasked
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.pooling import Pooling
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.models.small_maps import GRID, WIDTHS
from reference_impls.models.vit import imagenet_normalise
from reference_impls.redundancy.over_resolution import spectrum
from reference_impls.study import BASELINE, TECHNIQUE, Cost, Plan, Study, measure_calls, measured, over_items, table
from reference_impls.study.training import correlation, forward, predict, seeded
from reference_impls.techniques import stride_attention as technique
from reference_impls.techniques.efficientformer_v2 import build
from reference_impls.techniques.stride_attention import Coarseness, MapAttention, StrideAttention, full_attentions

STRIDE = StrideAttention()
TOKENS, WIDTH = math.prod(GRID), WIDTHS[0]

# --------------------------------------------------------------------------------------------------------------------
# Fixed weights: quality against the number of tokens


def on_fewer_tokens(stride: int, model: nn.Module) -> None:
    """Attach stride attention with local values at full resolution, for good."""
    STRIDE.apply(model, stride=stride, local="full")


def run_tokens(study: fm.FeatureMapStudy) -> Record:
    """Networks trained at full resolution, against the stride that attention is run with."""
    models = fm.attention_networks(study)
    coarse_local = "local values on the coarse map"
    series = {
        TECHNIQUE: fm.coarser("stride", on_fewer_tokens, local="full"),
        fm.RANDOM_CELLS: fm.coarser("stride", lambda s, m: fm.random_cells(m, Coarseness(s, s)), local="full"),
        coarse_local: fm.coarser("stride", lambda s, m: STRIDE.apply(m, stride=s, local="coarse"), local="coarse"),
    }
    fm.finished(study, models, series, samples=TOKENS)
    return fm.record(
        study,
        models,
        STRIDE.measure,
        model=fm.ABOUT,
        knobs=("stride", "local"),
        controls={
            fm.RANDOM_CELLS: "As many tokens, each the mean of positions drawn at random instead of neighbours.",
            coarse_local: "As in the paper, where the network is trained so: local values are strided too.",
        },
        notes=("The networks were trained without strides: " + fm.FINISHED,),
        tables={"spectrum": spectra(models, study.plan.first)},
        pictures=picture(models[0], study.plan.first[:1]),
    )


def spectra(models: Sequence[nn.Module], x: Tensor) -> Table:
    """Energy by frequency of what reaches attention, of what it mixes, and of its local values.

    Mean share over models and modules, at 1 to 4 cycles per feature map along the axis with more.
    """
    cycles = range(1, GRID[0] // 2 + 1)
    frequency = torch.fft.fftfreq(GRID[0], 1 / GRID[0]).abs()
    ring = torch.maximum(frequency[:, None], frequency[None, :])
    found: dict[str, list[Tensor]] = {"input": [], "attended": [], "local": []}
    for model in models:
        attentions = full_attentions(STRIDE.id, model)
        for name, seen in inputs_of(attentions, model, unmasked(x)).items():
            for place, maps in zip(found, (seen, *forward(attentions[name].attend, seen)()), strict=True):
                energy = spectrum(maps).sum(0)
                found[place].append(torch.stack([energy[ring == c].sum() for c in cycles]) / energy.sum())
    shares = {place: torch.stack(those).mean(0).tolist() for place, those in found.items()}
    return table(
        "Share of the energy whose higher frequency along an axis is so many cycles per feature map.",
        ("place", "cycles", "share"),
        [[place, *one] for place, those in shares.items() for one in zip(cycles, those, strict=True)],
    )


def picture(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """For the figures: an image (1, 1, 32, 32), reconstructed; and what the first attention adds to it, unmasked.

    Of one channel, that of the largest variance among the attended values. `strided` is the same from 16 tokens.
    """
    inputs = masked(image)
    name, attention = next(iter(full_attentions(STRIDE.id, model).items()))
    x = inputs_of({name: attention}, model, unmasked(image))[name]
    attended, local = forward(attention.attend, x)()
    coarse, _ = forward(technique.coarse_values, attention, x, Coarseness(2, 2))()
    channel = int(attended.var((0, 2, 3)).argmax())
    added = {"attended": attended, "strided": technique.resize(coarse, GRID), "local": local}
    shown = {"seen": inputs[0, 0], "hidden": inputs[0, 1], "reconstructed": forward(model, inputs)()[0, 0]}
    return shown | {what: maps[0, channel] for what, maps in added.items()}


# --------------------------------------------------------------------------------------------------------------------
# Equal training: which mixer, which stride, which order

OTHER_MIXERS: Mapping[str, tuple[Callable[[], nn.Module | None], str]] = {
    "none": (lambda: None, "Nothing in the place of attention: no position learns of another."),
    "mean 3x3": (Pooling, "The mean of 3x3 neighbours minus the position, as in EfficientFormer V1."),
    "depthwise 3x3": (lambda: ConvNorm(WIDTH, WIDTH, 3, groups=WIDTH), "A depthwise 3x3 convolution."),
}


def strided_networks(
    study: fm.FeatureMapStudy, stride: int, on: fm.Task = fm.RECONSTRUCT, *, project_first: bool = False
) -> list[nn.Module]:
    """The networks with strided attention as in the paper, trained so."""
    name = f"stride {stride}" + (", projected first" if project_first else "")
    return fm.mixing_networks(study, name, partial(fm.small_attention, stride, project_first=project_first), on)


def run_mixers(study: fm.FeatureMapStudy, on: fm.Task, strides: Sequence[int], others: Sequence[str]) -> Record:
    """Networks that differ in the mixer of their blocks, each trained for itself."""
    dense = fm.attention_networks(study, on)
    fm.add(study, BASELINE, {}, dense, on, samples=TOKENS)
    for s in strides:
        fm.add(
            study,
            TECHNIQUE,
            {"stride": s},
            strided_networks(study, s, on),
            on,
            samples=math.prod(technique.strided(GRID, s)),
        )
    for name in others:
        models = fm.mixing_networks(study, f"mixer {name}", OTHER_MIXERS[name][0], on)
        fm.add(study, f"mixer {name}", {"mixer": name}, models, on)
    study.measure()
    return fm.record(
        study,
        dense,
        STRIDE.measure,
        on,
        model=fm.ABOUT,
        knobs=("stride",),
        controls={f"mixer {name}": OTHER_MIXERS[name][1] for name in others},
        notes=(
            "Every network is trained from the start with its own mixer, by the same recipe and in the same order.",
            "Strided networks are those of the paper: a depthwise convolution of the stride, local values on its map.",
            "Redundancy is that of the networks with attention at full resolution, on whole images.",
        ),
    )


def swap_order(model: nn.Module) -> None:
    """Let every strided attention of a trained network project before its interpolation."""
    for module in model.modules():
        if isinstance(module, MapAttention) and module.stride_conv is not None:
            module.project_first = True


def run_order(study: fm.FeatureMapStudy) -> Record:
    """Projecting before the interpolation instead of after it: trained so, or swapped in finished networks."""
    published, swapped, first = strided_networks(study, 2), "swapped in finished networks", {"project_first": True}
    fm.add(study, TECHNIQUE, first, strided_networks(study, 2, project_first=True))
    fm.finished(study, published, {swapped: [fm.Contender(first, swap_order)]})
    return fm.record(
        study,
        fm.attention_networks(study),
        STRIDE.measure,
        by_place=False,
        model=fm.ABOUT,
        knobs=("project_first",),
        controls={swapped: "Trained in the published order, run in the other one, with nothing trained again."},
        notes=(
            "Convolutions of 1x1 and batch norm commute with bilinear interpolation; the GELU in between does not.",
        ),
        tables={"EfficientFormerV2-S0": s0_in_both_orders(4 * study.plan.repetitions + 1)},  # one image is noisier
    )


def s0_in_both_orders(repetitions: int) -> Table:
    """MACs and time of EfficientFormerV2-S0 for one image of 224 x 224, as published and projecting first."""
    x = torch.randn(1, 3, 224, 224, generator=generator(0))
    networks = [seeded(0, partial(build, "s0", project_first=first)).eval() for first in (False, True)]
    published, first = time_one(networks, x, repetitions)
    return table(
        "The whole network at 224 pixels with random weights, one image, in both orders.",
        ("order", "MACs", "ms", "speed-up"),
        [
            ["as published", published.macs, published.wall_ms.median, None],
            ["projected first", first.macs, first.wall_ms.median, first.speed_up_over(published)],
        ],
    )


# --------------------------------------------------------------------------------------------------------------------
# Latency


def time_one(networks: Sequence[nn.Module], x: Tensor, repetitions: int) -> list[Cost]:
    """What each network costs on x, a single image."""
    calls = {str(n): forward(network, x) for n, network in enumerate(networks)}
    return list(measure_calls(calls, units=dict.fromkeys(calls, 1), repetitions=repetitions).values())


@dataclass(frozen=True, kw_only=True)
class LatencyPlan(Plan):
    photos: int | None = None


def run_s0(study: Study[LatencyPlan]) -> Record:
    """EfficientFormerV2-S0 whose attention at stride 16 runs at full resolution, or technique.strided."""
    model = seeded(0, partial(build, "s0", strides=(1, 1, 1, 1), layer_scale=1.0)).eval()
    x = imagenet_normalise(images.photos(224)[1][: study.plan.photos])
    at_16 = [name for name in full_attentions(STRIDE.id, model) if name.startswith("stages.2.")]
    networks, dense = {1: model, 2: copy_sharing_weights(model), 7: copy_sharing_weights(model)}, predict(model, x)
    for stride in (2, 7):
        STRIDE.apply(networks[stride].get_submodule("stages.2"), stride=stride)
    own, *costs = time_one([seeded(0, partial(build, "s0")).eval(), *networks.values()], x[:1], study.plan.repetitions)
    for (stride, network), cost in zip(networks.items(), costs, strict=True):
        series, knobs = (BASELINE, {}) if stride == 1 else (TECHNIQUE, {"stride": stride})
        quality = over_items(map(correlation, dense, predict(network, x)))
        study.add(series, knobs, quality=quality, samples=math.prod(technique.strided((14, 14), stride)), cost=cost)
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


FILL = "reconstruction of masked patches"
CONTENDERS = {"compact-networks/feature-maps": fm.coarser("factor", on_fewer_tokens)}
SCENARIOS = (
    task("fill-tokens", f"Attention trained on 64 tokens and run on 16, 4 or 1: {FILL}", run_tokens),
    task(
        "fill-mixers",
        f"Mixers at equal training: {FILL}",
        partial(run_mixers, on=fm.RECONSTRUCT, strides=(2, 4), others=tuple(OTHER_MIXERS)),
    ),
    task(
        "classify-mixers",
        "Mixers at equal training: classifying Fashion-MNIST",
        partial(run_mixers, on=fm.CLASSIFY, strides=(2,), others=("none", "depthwise 3x3")),
    ),
    task("fill-projection-order", f"Projecting before the interpolation: {FILL}", run_order),
    task(
        "s0-latency",
        "EfficientFormerV2-S0 at 224 pixels: attention on 14 x 14 against 7 x 7 tokens",
        run_s0,
        full=LatencyPlan(repetitions=51),
        smoke=LatencyPlan(repetitions=3, photos=1),
    ),
)
