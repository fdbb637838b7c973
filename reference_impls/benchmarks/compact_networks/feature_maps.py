"""Feature maps: small networks of EfficientFormer's parts on Fashion-MNIST, whose positions mix in cheaper ways.

Two tasks: to classify the images, and to reconstruct patches of them that are masked at random. The second needs what
these techniques are about: whether other positions, near or far, tell what a position holds. A classifier that averages
over positions in the end does well without any mixing.

A finished network runs with less (`finished`), or networks are trained each for itself (`add`). The controls of
finished attention are the same for all: cells of random positions instead of neighbours, and fewer keys instead of
fewer queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.record import Record, Table
from reference_impls.contract import Redundancy, generator
from reference_impls.data.controls import phase_scrambled, white_noise
from reference_impls.data.masking import mask, masked, padded_split, photo_crops, unmasked
from reference_impls.data.splits import TITLES, Labelled, Part, Split
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.models.small_maps import GRID, HEADS, KEY_DIM, LAYER_SCALE, WIDTHS, map_network
from reference_impls.redundancy.over_resolution import over_resolution
from reference_impls.study import BASELINE, Plan, Study, contenders, measured, over_seeds, table
from reference_impls.study.training import Recipe, accuracy, forward, predict, seeded, train, trained
from reference_impls.techniques.stride_attention import (
    Coarseness,
    MapAttention,
    attend_coarsely,
    coarse_handle,
    full_attentions,
    strided,
)

NULLS = {"phases scrambled": phase_scrambled, "white noise": white_noise}
ABOUT = "a small EfficientFormerV2: patches of 4 x 4 pixels, 2 blocks of 32 channels on 8 x 8 with mixers"
FINISHED = "the technique is applied to the finished networks."
TRAINED = "Every network is trained from the start, by the same recipe and in the same order."


@dataclass(frozen=True, kw_only=True)
class FeatureMapPlan(Plan):
    data: Labelled
    train: int
    test: int
    recipe: Recipe
    batch: int
    """Test images on which redundancy, MACs and time are measured."""

    @property
    def images(self) -> Split:
        """To train and to test on, (N, 1, 32, 32)."""
        return padded_split(self.data, self.train, self.test)

    @property
    def first(self) -> Tensor:
        """The batch, (batch, 1, 32, 32)."""
        return self.images.test.x[: self.batch]

    def kinds(self) -> dict[str, Tensor]:
        """What redundancy is measured on: the images, natural photos, and the nulls, each (batch, 1, 32, 32)."""
        nulls = {name: null(self.first) for name, null in NULLS.items()}
        return {TITLES[self.data]: self.first, "photos": photo_crops(len(self.first)), **nulls}


FeatureMapStudy = Study[FeatureMapPlan]
SMOKE = FeatureMapPlan(repetitions=3, data="digits", train=640, test=100, recipe=Recipe(1, 1e-2, 32), batch=16)
FULL = FeatureMapPlan(
    repetitions=25, seeds=(0, 1, 2), needs=("fashion-mnist",), data="fashion-mnist", train=6000, test=2000,
    recipe=Recipe(5, 1e-2, 64), batch=64,
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------------------
# Tasks and the networks that are trained for them


@dataclass(frozen=True)
class Task:
    """What networks are trained to do: to reconstruct patches that are hidden (`hides`), or to tell the classes."""

    name: str
    metric: str
    hides: bool

    def inputs(self, x: Tensor, *, whole: bool = False) -> Tensor:
        """Images (B, 1, 32, 32) as the network takes them, always the same; `whole`: with no patch hidden."""
        if not self.hides:
            return x
        return unmasked(x) if whole else masked(x)

    def fit(self, model: nn.Module, part: Part, recipe: Recipe, **how: Any) -> nn.Module:
        """Train in place; other patches are hidden in every batch."""
        if self.hides:
            return train(model, part.x, part.x, recipe, loss=F.mse_loss, augment=mask, **how)
        return train(model, *part, recipe, **how)

    def score(self, model: Callable[[Tensor], Tensor], parts: Split) -> float:
        """How well it is done on the test images."""
        return explained_variance(model, parts) if self.hides else accuracy(model, *parts.test)


RECONSTRUCT = Task("reconstruct", "explained variance of hidden pixels", hides=True)
CLASSIFY = Task("classify", "accuracy", hides=False)


def explained_variance(model: Callable[[Tensor], Tensor], parts: Split) -> float:
    """Share of the variance of the test images' hidden pixels that a reconstruction explains, 1 at best.

    1 - (sum of squared errors) / (sum of squared differences from the mean training image), over hidden pixels.
    """
    x = parts.test.x
    inputs = masked(x)
    error = (predict(model, inputs) - x).square().sum()
    return 1 - (error / (inputs[:, 1:] * (x - parts.train.x.mean(0))).square().sum()).item()


def small_attention(stride: int = 1, *, project_first: bool = False) -> MapAttention:
    """The attention of the small networks."""
    return MapAttention(WIDTHS[0], GRID, HEADS, KEY_DIM, stride=stride, project_first=project_first)


def networks(
    study: FeatureMapStudy, name: str, build: Callable[[], nn.Module], task: Task = RECONSTRUCT
) -> list[nn.Module]:
    """The network called `name`, trained for the task once with each seed, or the same ones from the cache."""
    plan, part, models = study.plan, study.plan.images.train, []
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


def mixing_networks(
    study: FeatureMapStudy, name: str, mixer: Callable[[], nn.Module | None], task: Task = RECONSTRUCT
) -> list[nn.Module]:
    """`map_network` with this mixer, trained for the task."""
    return networks(study, name, partial(map_network, mixer, classify=not task.hides), task)


def attention_networks(study: FeatureMapStudy, task: Task = RECONSTRUCT) -> list[nn.Module]:
    """The networks with attention at full resolution, one for each seed."""
    return mixing_networks(study, "stride 1", small_attention, task)


# --------------------------------------------------------------------------------------------------------------------
# What is measured


def add(
    study: FeatureMapStudy,
    series: str,
    knobs: Mapping[str, Any],
    models: Sequence[nn.Module],
    task: Task = RECONSTRUCT,
    **rest: Any,
) -> None:
    """Add a variant by its networks, one for each seed: how well they do the task, and the last one's cost."""
    inputs = task.inputs(study.plan.first)
    score = [task.score(model, study.plan.images) for model in models]
    study.add(series, knobs, forward(models[-1], inputs), units=len(inputs), score=score, **rest)


@dataclass(frozen=True)
class Contender:
    """A way for finished networks to compute less: `attach(model)` applies it for good."""

    knobs: Mapping[str, Any]
    attach: Callable[[nn.Module], object]
    samples: int | None = None
    redundancy: float | None = None


def coarser(knob: str, attach: Callable[[int, nn.Module], object], **others: Any) -> tuple[Contender, ...]:
    """Contenders that leave the feature map 2, 4 and 8 times coarser along each axis; `attach(factor, model)`."""
    left = {factor: math.prod(strided(GRID, factor)) for factor in (2, 4, 8)}
    return tuple(
        Contender({knob: factor, **others}, partial(attach, factor), few, 1 - few / math.prod(GRID))
        for factor, few in left.items()
    )


def finished(
    study: FeatureMapStudy, models: Sequence[nn.Module], series: Mapping[str, Sequence[Contender]], **rest: Any
) -> None:
    """Add the models as the baseline, and what each contender of each series makes of copies of them; then measure."""
    add(study, BASELINE, {}, models, **rest)
    every = [(name, contender) for name, sent in series.items() for contender in sent]
    for done, (name, one) in enumerate(every, 1):
        copies = [copy_sharing_weights(model) for model in models]
        for model in copies:
            one.attach(model)
        add(study, name, one.knobs, copies, samples=one.samples, redundancy=one.redundancy)
        study.progress("contenders", done, len(every))
    study.measure()


def record(
    study: FeatureMapStudy,
    models: Sequence[nn.Module],
    measure: Callable[[nn.Module, Tensor], Redundancy],
    task: Task = RECONSTRUCT,
    *,
    by_place: bool = True,
    tables: Mapping[str, Table] | None = None,
    **rest: Any,
) -> Record:
    """The record of a scenario of this benchmark: `Study.record` with its data, unit, metric and redundancy.

    Redundancy is that of whole images over the models, with its nulls; `by_place`: with a table of each place's for
    each kind of image, and for networks that reconstruct for images with half of their patches hidden. The place is the
    first word of a part: "attended 2.token_mixer" -> "attended".
    """
    plan = study.plan
    study.prepare("training", "training every network by one recipe", held="shared")
    inputs = {name: task.inputs(x, whole=True) for name, x in plan.kinds().items()}
    if task.hides:
        inputs["half hidden"] = masked(plan.first)
    found = {name: [measure(model, x) for model in models] for name, x in inputs.items()}
    real = found[TITLES[plan.data]]

    def mean_at(place: str, one: Redundancy) -> float:
        return float(np.mean([share for part, share in one.where.items() if part.split(" ")[0] == place]))

    places = dict.fromkeys(part.split(" ")[0] for part in real[0].where)
    table_by_place = table(
        "Redundancy measured at each place of the network, on each kind of image.",
        ("images", "place", "redundancy"),
        [[name, at, over_seeds([mean_at(at, one) for one in those])] for name, those in found.items() for at in places],
    )
    return study.record(
        data=f"{TITLES[plan.data]}, 28 x 28 pixels padded to 32 x 32: {plan.train:,} images to train for "
        f"{plan.recipe.epochs} epochs, {plan.test:,} others to test"
        + (", half of their patches hidden" if task.hides else ""),
        unit=f"one image, in a batch of {plan.batch}",
        metric=task.metric,
        redundancy=measured(real, {name: float(np.mean([one.value for one in found[name]])) for name in NULLS}),
        tables=({"redundancy by place": table_by_place} if by_place else {}) | dict(tables or {}),
        **rest,
    )


# --------------------------------------------------------------------------------------------------------------------
# Controls of finished attention


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) with their positions in another order (N,)."""
    return x.flatten(2)[..., order].view_as(x)


def random_cells(model: nn.Module, coarse: Coarseness) -> None:
    """Attach coarse attention whose cells are positions drawn at random, not neighbours; local values stay in place.

    Positions are put into a random order before the map is coarsened and put back after the interpolation, their
    biases with them.
    """
    order = torch.randperm(math.prod(GRID), generator=generator(0))
    back = order.argsort()
    for attention in full_attentions("random-cells", model).values():
        attention.v_local.register_forward_pre_hook(lambda _, args: (reordered(args[0], back),))
        attention.v_local.register_forward_hook(lambda _, args, local: reordered(local, order))
        attention.bias.register_forward_hook(lambda _, args, bias: bias[:, order][:, :, order])
        module: nn.Module = attention
        module.forward = lambda x, attention=attention: reordered(
            attend_coarsely(attention, reordered(x, order), coarse), order.argsort()
        )


def coarse_attention(model: nn.Module, coarse: Coarseness) -> None:
    """Attach coarse attention on cells of neighbours, for good."""
    coarse_handle("coarse-attention", model, full_attentions("coarse-attention", model), coarse, None)


RANDOM_CELLS, RANDOM_QUERIES, FEWER_KEYS = "cells of random positions", "queries of random cells", "fewer keys"
WITH_FEWER_KEYS = coarser("factor", lambda f, model: coarse_attention(model, Coarseness(1, f)))


def meet(study: FeatureMapStudy) -> Record:
    """Every contender on the same finished networks with attention at full resolution, in one interleaved run."""
    models = attention_networks(study)
    nulls = {
        RANDOM_CELLS: coarser("factor", lambda f, model: random_cells(model, Coarseness(f, f))),
        RANDOM_QUERIES: coarser("factor", lambda f, model: random_cells(model, Coarseness(f))),
        FEWER_KEYS: WITH_FEWER_KEYS,
    }
    finished(study, models, {**contenders(study.owner, study.scenario.name), **nulls}, samples=math.prod(GRID))
    return record(
        study,
        models,
        _reaching_attention,
        model=ABOUT + ", attention at full resolution",
        knobs=("factor",),
        controls={
            RANDOM_CELLS: "As many queries and keys, each the mean of positions drawn at random instead of neighbours.",
            RANDOM_QUERIES: "As many queries, each the mean of positions drawn at random; all keys.",
            FEWER_KEYS: "As many keys and values left, of all queries.",
        },
        notes=(
            "The networks were trained with all queries and keys: each technique is applied to the same finished ones.",
            "factor: how many times coarser than the feature map, along each axis.",
            "Local values stay at full resolution.",
        ),
    )


def _reaching_attention(model: nn.Module, inputs: Tensor) -> Redundancy:
    """The share of energy that half the resolution holds of what reaches attention: what `threshold` compares with."""
    seen = inputs_of(full_attentions("feature-maps", model), model, inputs)
    where = {f"input {name}": over_resolution(x).mean().item() for name, x in seen.items()}
    return Redundancy(float(np.mean(list(where.values()))), "share of input energy below half resolution", where)
