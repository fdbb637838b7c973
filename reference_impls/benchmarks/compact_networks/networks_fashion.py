"""Where whole networks meet: all trained from scratch by one recipe on Fashion-MNIST, beside MobileNetV2.

Images are padded to 32 x 32 pixels. At that size the published networks, which halve the image five times, would end on
a single pixel, so all of them halve it four times here: every stem has a stride of 2, the first stage works on 16 x 16
pixels and the last one on 2 x 2. (MobileNetV2 gives up the stride of its second stage for it.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.accounting.record import Measured, Record
from reference_impls.accounting.saving import left_out
from reference_impls.benchmarks.compact_networks.searches import LAST, deployed
from reference_impls.contract import generator
from reference_impls.data.controls import shuffled_pixels, white_noise
from reference_impls.data.splits import TITLES, Part, split, standardised
from reference_impls.layers.conv import ConvNorm
from reference_impls.models.mobilenet_v2 import MobileNetV2, scaled
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.study import BASELINE, Plan, Study, contenders, measure_calls, over_items, pooled, table
from reference_impls.study.training import Recipe, accuracy, forward, seeded, train, trained
from reference_impls.techniques.efficientformer.skeleton import TwoHeads
from reference_impls.techniques.latency_driven_slimming.search import Moves, random_path

SIDE = 32
EQUAL_MACS, SHORTER, AT_RANDOM = "MobileNetV2 at equal MACs", "shorter training", "random architecture"
CONTROLS = {
    EQUAL_MACS: "MobileNetV2, as narrow or as wide as makes it take as many MACs as the network.",
    SHORTER: "The baseline, in so few steps that its training takes as many MACs; of networks that take fewer.",
    AT_RANDOM: "Of its search space, what moves drawn at random reach at no more MACs; another one each seed.",
}


@dataclass(frozen=True)
class Contender:
    """A network that takes part.

    `build(seed)`: untrained, for grey images of 32 x 32 pixels and 10 classes. `at_random(seed)`: another one of the
    same search space, of at most as many MACs; None for a network that no search of ours found.
    """

    network: str
    build: Callable[[int], nn.Module]
    at_random: Callable[[int], nn.Module] | None = None
    search: str = ""
    """What finding it took."""
    found_in: str = ""
    """The committed record of its search, "technique/scenario", which says what that cost."""


def found_by_search(
    network: str,
    space: Any,
    found: Any,
    make: Callable[[Any, Any], nn.Module],
    moves: Moves[Any],
    how: str,
    *,
    found_in: str,
) -> Contender:
    """What a search found in a space, beside what random moves reach.

    `make(space, choice)` builds a network. `how`: the scenario that found it, and what that took; `found_in`: its
    record.
    """

    def at_random(seed: int) -> nn.Module:
        most = space.total(found).macs
        steps = random_path(space.largest(), moves, lambda choice: -space.total(choice).macs, -most, generator(seed))
        return seeded(seed, lambda: make(space, steps[-1][1]))

    search = f"found by the first seed of {how}. Neither the training of the supernet nor the walk is in its MACs."
    return Contender(network, lambda seed: seeded(seed, lambda: make(space, found)), at_random, search, found_in)


def search_macs(found_in: str) -> int:
    """What the committed record "technique/scenario" of a search leaves out."""
    file = Path(__file__).parents[2] / "results" / f"{found_in}.json"
    return left_out(Record.from_json(file.read_bytes()))


@dataclass(frozen=True, kw_only=True)
class FashionPlan(Plan):
    images: int
    test: int
    recipe: Recipe
    multiplier: float = 0.35
    """Width of the baseline, among the contenders by its MACs."""
    batch: int = 64
    needs: tuple[str, ...] = ("fashion-mnist",)


FASHION = {
    "smoke": FashionPlan(repetitions=3, images=256, test=256, recipe=Recipe(1, 4e-3, 64)),
    "full": FashionPlan(seeds=(0, 1, 2), images=4000, test=4000, recipe=Recipe(4, 4e-3, 64)),
}


class OnSmallImages(nn.Module):
    """An EfficientFormer made for twice the side, whose stem halves its images once instead of twice."""

    def __init__(self, network: TwoHeads) -> None:
        super().__init__()
        stem = network.stem
        self.stem = nn.Sequential(ConvNorm(network.config.in_channels, network.config.widths[0], 3, 2), stem.act)
        self.network = network
        network.stem = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, S, S) -> logits (B, classes)."""
        x = self.stem(x)
        for stage in self.network.stages:
            x = stage(x)
        logits: Tensor = self.network.forward_head(self.network.pool(x))  # type: ignore[assignment]
        return logits


def mobilenet(multiplier: float) -> MobileNetV2:
    """MobileNetV2 for 32 x 32 pixels; widths are multiples of 4, and the last layer's is scaled as well."""
    last = scaled(1280, multiplier)
    return MobileNetV2(multiplier, 10, in_channels=1, strides=(1, 1, 2, 2, 1, 2, 1), step=4, last=last)


@cache
def multiplier_for(macs: int) -> float:
    """The width, in hundredths, at which MobileNetV2 comes nearest to so many MACs."""

    def size(hundredths: int) -> int:
        with torch.device("meta"):
            return closed_form(mobilenet(hundredths / 100), (1, SIDE, SIDE)).macs

    widths = range(2, 101)
    above = bisect_left(widths, macs, key=size)
    return min(widths[max(above - 1, 0) : above + 1], key=lambda hundredths: abs(size(hundredths) - macs)) / 100


def macs_of(network: nn.Module) -> int:
    """Counted MACs for one image."""
    with count() as tally:
        forward(network.eval(), torch.zeros(1, 1, SIDE, SIDE))()
    return tally.macs


def meet(study: Study[FashionPlan]) -> Record:
    """Accuracy, MACs, parameters and wall-clock of every contender, of MobileNetV2, and of the controls."""
    plan = study.plan
    parts = split("fashion-mnist", plan.images, test=plan.test)
    parts = standardised(parts.mapped(lambda x: F.pad(x, [(SIDE - x.shape[-1]) // 2] * 4)))
    batch = parts.test.x[: plan.batch]
    sent = [(name, one) for name, those in contenders(study.owner, study.scenario.name).items() for one in those]
    calls = defaultdict[tuple[str, str | None], list[Callable[[], object]]](list)
    sizes: dict[tuple[str, str | None], list[Any]] = {}

    def add(series: str, knobs: dict[str, str], build: Callable[[], nn.Module], share: float = 1.0) -> None:
        network = knobs.get("network")
        study.progress(f"train {series} {network or ''}", plan.seeds.index(seed), len(plan.seeds))
        model = _trained(build, parts.train, plan.recipe, seed, share)
        study.add(series, knobs, score=accuracy(model, *parts.test))
        sizes.setdefault((series, network), [network, series, sum(p.numel() for p in model.parameters()), share])
        calls[series, network].append(forward(deployed(model), batch))

    dense = partial(mobilenet, plan.multiplier)
    whole = macs_of(dense())
    for seed in plan.seeds:
        add(BASELINE, {}, dense)
        for name, one in sent:
            macs, knobs = macs_of(one.build(seed)), {"network": one.network}
            add(name, knobs, partial(one.build, seed))
            add(EQUAL_MACS, knobs, partial(mobilenet, multiplier_for(macs)))
            if macs < whole:
                add(SHORTER, knobs, dense, share=macs / whole)
            if one.at_random:
                add(AT_RANDOM, knobs, partial(one.at_random, seed))
    numbered = {f"{key} {n}": call for key, those in calls.items() for n, call in enumerate(those)}
    units = dict.fromkeys(numbered, len(batch))
    costs = measure_calls(numbered, units=units, repetitions=plan.repetitions, threads=study.context.threads)
    for key, those in calls.items():
        knobs = {"network": key[1]} if key[1] else {}
        study.add(key[0], knobs, cost=pooled([costs[f"{key} {n}"] for n in range(len(those))]))
    study.prepare("training", "training every network by one recipe", held="shared")
    for name, one in sent:
        if one.found_in:
            macs = search_macs(one.found_in)
            study.prepare("search", f"the search for the {one.network}", macs, technique=name)
    likeness = over_items(neighbour_similarity(parts.test.x).tolist())
    nulls = {"pixels in random order": shuffled_pixels(batch), "white noise": white_noise(batch)}
    return study.record(
        data=f"{TITLES['fashion-mnist']}, padded to {SIDE} x {SIDE} pixels: {len(parts.train.x):,} images to train on, "
        f"{len(parts.test.x):,} to test",
        model=f"the baseline is MobileNetV2 x{plan.multiplier:g}; every network has a stem of stride 2 and halves its "
        "images four times",
        unit=f"one image, in a batch of {plan.batch}",
        knobs=("network",),
        metric="accuracy",
        controls=CONTROLS,
        redundancy=Measured(
            **dict(likeness),
            measure="likeness of neighbouring pixels",
            null={name: neighbour_similarity(x).mean().item() for name, x in nulls.items()},
        ),
        notes=(
            (
                f"All networks are trained from scratch by one recipe: AdamW, {plan.recipe.epochs} epochs in batches "
                f"of {plan.recipe.batch_size}, learning rate {plan.recipe.lr:g}, no augmentation, no teacher."
            ),
            "The batch was chosen for the baseline: it does better on the test images with 64 than with 128.",
            (
                "At 32 pixels the five halvings of the published networks would end on one pixel. The stems of the "
                "EfficientFormers have a stride of 2 instead of 4, MobileNetV2's second stage one of 1 instead of 2."
            ),
            (
                "Batch norms are folded and weights channels last for the timing; MACs, bytes and time are over the "
                "networks of all seeds."
            ),
            *(f"{one.network}: {one.search}" for _, one in sent if one.search),
        ),
        tables={
            "networks": table(
                "Parameters as trained, and the share of the recipe's steps that the training had; of random "
                "architectures, that of the first seed.",
                ("network", "variant", "parameters", "steps"),
                list(sizes.values()),
            )
        },
    )


def _trained(build: Callable[[], nn.Module], part: Part, recipe: Recipe, seed: int, share: float) -> nn.Module:
    """The network trained with a seed, in a share of the recipe's steps; from the cache if it was before."""
    network = seeded(seed, build)
    if share < 1:
        shown = round(share * recipe.epochs * len(part.x))
        part, recipe = part.rows(torch.arange(shown) % len(part.x)), replace(recipe, epochs=1)
    return trained(
        "networks-fashion",
        {"network": str(network), "recipe": recipe, "shown": len(part.x), "seed": seed},
        lambda: seeded(seed, build).to(memory_format=LAST),
        lambda network: train(network, *part, recipe, seed=seed),
    )
