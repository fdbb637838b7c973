"""Feature maps: small networks of EfficientFormer's parts on Fashion-MNIST, whose positions mix in cheaper ways.

Two tasks: to classify the images, and to reconstruct patches of them that are masked at random. The second needs what
these techniques are about: whether other positions, near or far, tell what a position holds. A classifier that averages
over positions in the end does well without any mixing. Images of 28 x 28 pixels are padded with zeros to 32 x 32, not
enlarged: interpolated pixels would be redundant by construction. (The small budget does use enlarged digits, so nothing
is to be read from what it measures.) Patches of 4 x 4 pixels make a feature map of 8 x 8 positions.

A finished network runs with less (`finished`), or networks are trained each for itself (`add`). The controls of
finished attention are the same for all: cells of random positions instead of neighbours, and fewer keys instead of
fewer queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.record import Measured, Record, Table
from reference_impls.contract import Redundancy, generator
from reference_impls.data import images
from reference_impls.data.controls import phase_scrambled, white_noise
from reference_impls.data.splits import TITLES, Labelled, Part, Split, split
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.layout import Size
from reference_impls.layers.residual import FeedForward, MapBlock
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.redundancy.over_resolution import over_resolution
from reference_impls.study import (
    BASELINE,
    Plan,
    Recipe,
    Study,
    accuracy,
    contenders,
    forward,
    measured,
    over_seeds,
    predict,
    seeded,
    table,
    train,
    trained,
)
from reference_impls.techniques.stride_attention import (
    Coarseness,
    MapAttention,
    attend_coarsely,
    coarse_handle,
    full_attentions,
    strided,
)

GRID: Size = (8, 8)
"""Size of the feature map of patches."""
WIDTHS = (32, 64)
HEADS, KEY_DIM = 4, 8
LAYER_SCALE = 1.0
"""Where it starts. The papers' 1e-5 keeps the branches of so short a training shut."""


@dataclass(frozen=True, kw_only=True)
class FeatureMapPlan(Plan):
    data: Labelled
    train: int
    test: int
    recipe: Recipe
    batch: int
    """Test images on which redundancy, MACs and time are measured."""


SMOKE = FeatureMapPlan(repetitions=3, data="digits", train=640, test=100, recipe=Recipe(1, 1e-2, 32), batch=16)
FULL = FeatureMapPlan(
    repetitions=25, seeds=(0, 1, 2), needs=("fashion-mnist",), data="fashion-mnist", train=6000, test=2000,
    recipe=Recipe(5, 1e-2, 64), batch=64,
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Data


def prepare(x: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) in [0, 1] -> padded to 32 x 32, with about the mean 0 and the deviation 1.

    Those of fewer than 28 pixels are first enlarged to 28.
    """
    if x.shape[-1] < 28:
        x = F.interpolate(x, size=(28, 28), mode="bilinear")
    margin = (32 - x.shape[-1]) // 2
    return (F.pad(x, (margin,) * 4) - 0.286) / 0.353


@cache
def images_of(plan: FeatureMapPlan) -> Split:
    """The images of a plan, (N, 1, 32, 32)."""
    return split(plan.data, plan.train, test=plan.test).mapped(prepare)


def batch_of(plan: FeatureMapPlan) -> Tensor:
    """The first test images: (batch, 1, 32, 32)."""
    return images_of(plan).test.x[: plan.batch]


def mask(x: Tensor, draws: torch.Generator, share: float = 0.5) -> Tensor:
    """Images (B, 1, 32, 32) with patches of 4 x 4 hidden at random, and which pixels are: (B, 2, 32, 32)."""
    hidden = (torch.rand(len(x), 1, *GRID, generator=draws) < share).to(x)
    hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.cat([x * (1 - hidden), hidden], 1)


def masked(x: Tensor) -> Tensor:
    """`mask`, always the same patches."""
    return mask(x, generator(0))


def unmasked(x: Tensor) -> Tensor:
    """Images (B, 1, 32, 32) with no patch hidden, as `mask` gives them: (B, 2, 32, 32)."""
    return mask(x, generator(0), share=0)


def photo_crops(number: int) -> Tensor:
    """Grey crops of natural photos, prepared like the images: (number, 1, 32, 32)."""
    _, photos = images.photos(256)
    crops = photos.mean(1, keepdim=True).unfold(2, 32, 32).unfold(3, 32, 32)  # (7, 1, 8, 8, 32, 32)
    crops = crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return prepare(crops[torch.randperm(len(crops), generator=generator(0))[:number]])


NULLS: Mapping[str, Callable[[Tensor], Tensor]] = {"phases scrambled": phase_scrambled, "white noise": white_noise}


def kinds_of(plan: FeatureMapPlan) -> dict[str, Tensor]:
    """What redundancy is measured on: the plan's images, natural photos, and the nulls, each (batch, 1, 32, 32)."""
    x = batch_of(plan)
    return {TITLES[plan.data]: x, "photos": photo_crops(len(x)), **{name: null(x) for name, null in NULLS.items()}}


# --------------------------------------------------------------------------------------------------------------------
# Tasks


@dataclass(frozen=True)
class Task:
    """What networks are trained to do, and how well they do it."""

    name: str
    metric: str
    channels: int
    """Of the network's input."""
    inputs: Callable[[Tensor], Tensor]
    """Images (B, 1, 32, 32) -> what the network is tested on, always the same."""
    whole: Callable[[Tensor], Tensor]
    """The same with nothing taken from the images: what redundancy is measured on."""
    score: Callable[[Callable[[Tensor], Tensor], Split], float]
    fit: Callable[..., nn.Module]
    """`fit(model, part, recipe, seed=, progress=)` trains in place."""


def explained_variance(model: Callable[[Tensor], Tensor], parts: Split) -> float:
    """Share of the variance of the test images' hidden pixels that a reconstruction explains, 1 at best.

    1 - (sum of squared errors) / (sum of squared differences from the mean training image), over hidden pixels.
    """
    x = parts.test.x
    inputs = masked(x)
    error = (predict(model, inputs) - x).square().sum()
    return 1 - (error / (inputs[:, 1:] * (x - parts.train.x.mean(0))).square().sum()).item()


def fit_reconstruction(model: nn.Module, part: Part, recipe: Recipe, **how: Any) -> nn.Module:
    """Train to reconstruct patches, others masked in every batch."""
    return train(model, part.x, part.x, recipe, loss=F.mse_loss, augment=mask, **how)


def fit_classes(model: nn.Module, part: Part, recipe: Recipe, **how: Any) -> nn.Module:
    """Train to tell the ten classes."""
    return train(model, *part, recipe, **how)


RECONSTRUCT = Task(
    "reconstruct",
    "explained variance of hidden pixels",
    2,
    masked,
    unmasked,
    explained_variance,
    fit_reconstruction,
)
CLASSIFY = Task(
    "classify", "accuracy", 1, lambda x: x, lambda x: x, lambda m, parts: accuracy(m, *parts.test), fit_classes
)


# --------------------------------------------------------------------------------------------------------------------
# Networks


class Reconstruction(nn.Module):
    """Masked images (B, 2, 32, 32) as from `mask` with what `network` makes of the hidden pixels: (B, 1, 32, 32)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        image, hidden = x[:, :1], x[:, 1:]
        made: Tensor = self.network(x)
        return image + hidden * made


def patches(channels: int) -> nn.Module:
    """Patches of 4 x 4 pixels as positions: (B, channels, 32, 32) -> (B, 32, 8, 8)."""
    return nn.Conv2d(channels, WIDTHS[0], 4, 4)


def inpainter(width: int, side: int) -> nn.Sequential:
    """Batch norm, and each position as `side` x `side` pixels: (B, width, H, W) -> (B, 1, H side, W side)."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, side**2, 1), nn.PixelShuffle(side))


def classifier(width: int, classes: int = 10) -> nn.Sequential:
    """Batch norm, the mean over the feature map, and a linear layer: (B, width, H, W) -> (B, classes)."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def map_block(width: int, mixer: nn.Module | None) -> MapBlock:
    """A block whose feed-forward part has no depthwise convolution, so that its mixer alone mixes positions."""
    return MapBlock(width, mixer, FeedForward(width, 2 * width), layer_scale=LAYER_SCALE)


def small_attention(stride: int = 1, *, project_first: bool = False) -> MapAttention:
    """The attention of the small networks."""
    return MapAttention(WIDTHS[0], GRID, HEADS, KEY_DIM, stride=stride, project_first=project_first)


def map_network(task: Task, mixer: Callable[[], nn.Module | None], down: nn.Module | None = None) -> nn.Module:
    """A small EfficientFormerV2 on patches: two blocks of 32 channels on 8 x 8 with this mixer.

    With `down`, that and a block of 64 channels without mixer on 4 x 4 follow.
    """
    width, wide = WIDTHS
    layers: list[nn.Module] = [patches(task.channels), *(map_block(width, mixer()) for _ in range(2))]
    if down is not None:
        layers += [down, map_block(wide, None)]
    if task is CLASSIFY:
        return nn.Sequential(*layers, classifier(wide if down else width))
    return Reconstruction(nn.Sequential(*layers, inpainter(wide, 8) if down else inpainter(width, 4)))


ABOUT = "a small EfficientFormerV2: patches of 4 x 4 pixels, 2 blocks of 32 channels on 8 x 8 with mixers"


def networks(
    study: Study[FeatureMapPlan], name: str, build: Callable[[], nn.Module], task: Task = RECONSTRUCT
) -> list[nn.Module]:
    """The network called `name`, trained for the task once with each seed, or the same ones from the cache."""
    plan, part, models = study.plan, images_of(study.plan).train, []
    for seed in plan.seeds:
        fresh = partial(seeded, seed, build)
        told = partial(study.progress, f"train {name}, seed {seed}")
        spec = {
            "network": {key: list(value.shape) for key, value in fresh().state_dict().items()},
            "layer scale": LAYER_SCALE,
            "data": plan.data,
            "images": len(part.x),
            "recipe": plan.recipe,
            "seed": seed,
        }
        fit = partial(task.fit, part=part, recipe=plan.recipe, seed=seed, progress=told)
        models.append(trained(f"{task.name}-{name.replace(', ', '-').replace(' ', '-')}", spec, fresh, fit))
    return models


def attention_networks(study: Study[FeatureMapPlan], task: Task = RECONSTRUCT) -> list[nn.Module]:
    """The networks with attention at full resolution, one for each seed."""
    return networks(study, "stride 1", partial(map_network, task, small_attention), task)


# --------------------------------------------------------------------------------------------------------------------
# What is measured


def add(
    study: Study[FeatureMapPlan],
    series: str,
    knobs: Mapping[str, Any],
    models: Sequence[nn.Module],
    *,
    task: Task = RECONSTRUCT,
    samples: int | None = None,
    redundancy: float | None = None,
) -> None:
    """Add a variant by its networks, one for each seed: how well they do the task, and the last one's cost."""
    inputs = task.inputs(batch_of(study.plan))
    score = [task.score(model, images_of(study.plan)) for model in models]
    study.add(
        series, knobs, forward(models[-1], inputs), units=len(inputs), score=score, samples=samples,
        redundancy=redundancy,
    )  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A way for finished networks to compute less: `attach(model)` applies it for good."""

    knobs: Mapping[str, Any]
    attach: Callable[[nn.Module], object]
    samples: int | None = None
    redundancy: float | None = None


def coarser(knobs: Mapping[str, Any], factor: int, attach: Callable[[nn.Module], object]) -> Contender:
    """A contender that leaves the positions of a feature map `factor` times coarser along each axis."""
    left = math.prod(strided(GRID, factor))
    return Contender(knobs, attach, left, 1 - left / math.prod(GRID))


def finished(
    study: Study[FeatureMapPlan],
    models: Sequence[nn.Module],
    series: Mapping[str, Sequence[Contender]],
    *,
    samples: int | None = None,
) -> None:
    """Add the models as the baseline, and what each contender of each series makes of copies of them; then measure."""
    add(study, BASELINE, {}, models, samples=samples)
    every = [(name, contender) for name, sent in series.items() for contender in sent]
    for done, (name, contender) in enumerate(every):
        copies = [copy_sharing_weights(model) for model in models]
        for model in copies:
            contender.attach(model)
        add(study, name, contender.knobs, copies, samples=contender.samples, redundancy=contender.redundancy)
        study.progress("contenders", done + 1, len(every))
    study.measure()


def measured_by_place(
    study: Study[FeatureMapPlan],
    models: Sequence[nn.Module],
    measure: Callable[[nn.Module, Tensor], Redundancy],
    task: Task = RECONSTRUCT,
) -> tuple[Measured, Table]:
    """Redundancy of whole images over the networks, its nulls, and each place's for each kind of image.

    For networks that reconstruct also that of images with half of their patches hidden. The place is the first word of
    a part: "attended 2.token_mixer" -> "attended".
    """
    inputs = {name: task.whole(x) for name, x in kinds_of(study.plan).items()}
    if task is RECONSTRUCT:
        inputs["half hidden"] = masked(batch_of(study.plan))
    found = {name: [measure(model, x) for model in models] for name, x in inputs.items()}
    real = found[TITLES[study.plan.data]]
    places = dict.fromkeys(part.split(" ")[0] for part in real[0].where)

    def mean_at(place: str, one: Redundancy) -> float:
        return float(np.mean([share for part, share in one.where.items() if part.split(" ")[0] == place]))

    lines = [
        [name, place, over_seeds([mean_at(place, one) for one in by_seed])]
        for name, by_seed in found.items()
        for place in places
    ]
    null = {name: float(np.mean([one.value for one in found[name]])) for name in NULLS}
    about = "Redundancy measured at each place of the network, on each kind of image."
    return measured(real, null), table(about, ("images", "place", "redundancy"), lines)


def record(study: Study[FeatureMapPlan], task: Task = RECONSTRUCT, **rest: Any) -> Record:
    """The record of a scenario of this benchmark: `Study.record` with its data, unit and metric."""
    plan = study.plan
    return study.record(
        data=f"{TITLES[plan.data]}, 28 x 28 pixels padded to 32 x 32: {plan.train:,} images to train for "
        f"{plan.recipe.epochs} epochs, {plan.test:,} others to test"
        + (", half of their patches hidden" if task is RECONSTRUCT else ""),
        unit=f"one image, in a batch of {plan.batch}",
        metric=task.metric,
        **rest,
    )


# --------------------------------------------------------------------------------------------------------------------
# Controls of finished attention


class Reordered(nn.Module):
    """`module` on feature maps (B, C, H, W) whose positions stand in another order: put back, run, reordered again."""

    def __init__(self, module: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.module, self.order, self.back = module, order, order.argsort()

    def forward(self, x: Tensor) -> Tensor:
        return reordered(self.module(reordered(x, self.back)), self.order)


class ReorderedBias(nn.Module):
    """The position bias between positions in another order: (heads, N, N)."""

    def __init__(self, bias: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.bias, self.order = bias, order

    def forward(self, size: Size) -> Tensor:
        bias: Tensor = self.bias(size)
        return bias[:, self.order][:, :, self.order]


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) with their positions in another order (N,)."""
    return x.flatten(2)[..., order].view_as(x)


def random_cells(coarse: Coarseness) -> Callable[[nn.Module], None]:
    """Attaches coarse attention whose cells are positions drawn at random, not neighbours; local values stay in place.

    Positions are put into a random order before the map is coarsened and put back behind the interpolation, their
    biases with them.
    """

    def attach(model: nn.Module) -> None:
        order = torch.randperm(math.prod(GRID), generator=generator(0))
        for attention in full_attentions("random-cells", model).values():
            elsewhere = copy_sharing_weights(attention)
            elsewhere.add_module("v_local", Reordered(attention.v_local, order))
            elsewhere.add_module("bias", ReorderedBias(attention.bias, order))
            module: nn.Module = attention
            module.forward = lambda x, elsewhere=elsewhere: reordered(
                attend_coarsely(elsewhere, reordered(x, order), coarse), order.argsort()
            )

    return attach


def coarse_attention(coarse: Coarseness) -> Callable[[nn.Module], object]:
    """Attaches coarse attention on cells of neighbours, for good."""
    return lambda model: coarse_handle(model, full_attentions("coarse-attention", model), coarse, None)


FACTORS = (2, 4, 8)
RANDOM_CELLS, RANDOM_QUERIES, FEWER_KEYS = "cells of random positions", "queries of random cells", "fewer keys"


def meet(study: Study[FeatureMapPlan]) -> Record:
    """Every contender on the same finished networks with attention at full resolution, in one interleaved run."""
    models = attention_networks(study)
    nulls = {
        RANDOM_CELLS: [coarser({"factor": f}, f, random_cells(Coarseness(f, f))) for f in FACTORS],
        RANDOM_QUERIES: [coarser({"factor": f}, f, random_cells(Coarseness(f))) for f in FACTORS],
        FEWER_KEYS: [coarser({"factor": f}, f, coarse_attention(Coarseness(1, f))) for f in FACTORS],
    }
    finished(study, models, {**contenders(study.owner, study.scenario.name), **nulls}, samples=math.prod(GRID))
    redundancy, by_place = measured_by_place(study, models, _reaching_attention)
    return record(
        study,
        model=ABOUT + ", attention at full resolution",
        knobs=("factor",),
        controls={
            RANDOM_CELLS: "As many queries and keys, each the mean of positions drawn at random instead of neighbours.",
            RANDOM_QUERIES: "As many queries, each the mean of positions drawn at random; all keys.",
            FEWER_KEYS: "As many keys and values left, of all queries.",
        },
        redundancy=redundancy,
        notes=(
            "The networks were trained with all queries and keys: each technique is applied to the same finished ones.",
            "factor: how many times coarser than the feature map, along each axis.",
            "Local values stay at full resolution.",
        ),
        tables={"redundancy by place": by_place},
    )


def _reaching_attention(model: nn.Module, inputs: Tensor) -> Redundancy:
    """The share of energy that half the resolution holds of what reaches attention: what `threshold` compares with."""
    seen = inputs_of(full_attentions("feature-maps", model), model, inputs)
    where = {f"input {name}": over_resolution(x).mean().item() for name, x in seen.items()}
    return Redundancy(float(np.mean(list(where.values()))), "share of input energy below half resolution", where)
