"""Token reduction: what a transformer loses when it goes on with fewer tokens.

Three tasks: accuracy of small trained ViTs on digits and Fashion-MNIST; agreement of a pretrained ViT's saliency map
with the dense network's, on photos; wall-clock of a ViT-S/16. A technique sends a `Method` for each way of its own, and
the controls are the same for all: as many tokens merged at random, and as many thrown away at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Measured, Record, Table
from reference_impls.contract import Handle, Redundancy, Technique, generator
from reference_impls.data import images
from reference_impls.data.controls import shuffled_pixels, uniform_noise
from reference_impls.data.splits import TITLES, Labelled, split
from reference_impls.hosts import Block, transformer_blocks
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.models.vit import (
    VisionTransformer,
    imagenet_normalise,
    saliency_vit_s14,
    small_vit,
    vit_small_patch16_224,
)
from reference_impls.study import (
    BASELINE,
    TECHNIQUE,
    Plan,
    Recipe,
    Scenario,
    Study,
    accuracy,
    correlation,
    forward,
    measured,
    over_items,
    seeded,
    table,
    train,
    trained,
)
from reference_impls.techniques.token_merging import Combine, Match, Merging, merge, rows

ID = "token-reduction"
task = partial(Scenario, benchmark=ID)


@dataclass(frozen=True)
class Method:
    """A way of losing tokens: `attach(model, value)` applies it for good with one value of its main knob."""

    name: str
    attach: Callable[[nn.Module, Any], object]
    about: str = ""
    """What differs from the technique, for a control."""


def chance_match(draws: torch.Generator) -> Callable[[Tensor, int | None, Block], Match]:
    """Pairs of two halves of the tokens drawn at random, as many as token merging takes."""

    def match(metric: Tensor, r: int | None, block: Block) -> Match:
        batch, tokens = metric.shape[:2]
        half = (tokens - block.prefix) // 2
        r = half if r is None else min(r, half)
        a = torch.rand(batch, tokens - block.prefix - half, generator=draws).topk(r, dim=1).indices
        b = torch.randint(half, (batch, r), generator=draws)
        return Match.of(*((block.prefix + 2 * i + j).to(metric.device) for j, i in enumerate((a, b))), tokens)

    return match


def drop(x: Tensor, size: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """In the place of `merge`: the matched tokens are thrown away, the others stay as they are."""
    return rows(x, match.kept), size.gather(1, match.kept)


def _by_chance(model: nn.Module, r: int, combine: Combine) -> Merging:
    blocks = transformer_blocks(model)
    assert blocks is not None
    return Merging(blocks, [r] * len(blocks), match=chance_match(generator(0)), combine=combine)


RANDOM_MERGING = Method(
    "random merging",
    partial(_by_chance, combine=merge),
    "As many tokens merge, into a partner drawn at random; sizes and proportional attention as in the technique.",
)
RANDOM_DROPPING = Method(
    "random dropping", partial(_by_chance, combine=drop), "As many tokens are drawn at random and thrown away."
)


def attached(model: nn.Module, method: Method, value: Any) -> nn.Module:
    """A copy of `model`, with the same weights, to which the method is applied for good."""
    model = copy_sharing_weights(model)
    method.attach(model, value)
    return model


def controls_of(methods: Sequence[Method]) -> dict[str, str]:
    """What the controls are, for the record."""
    return {method.name: method.about for method in methods if method.name != TECHNIQUE}


def redundancy_of(
    technique: Technique, model: nn.Module, x: Tensor, null: Mapping[str, Tensor]
) -> tuple[Measured, Table]:
    """The technique's measure over the images x: (B, C, H, W), and on null images; and both of its forms by block."""
    found = [technique.measure(model, image[None]) for image in x]
    nulls = {name: technique.measure(model, images) for name, images in null.items()}

    def centred(one: Redundancy) -> Redundancy:
        where = {name: value for name, value in one.where.items() if not name.startswith("raw")}
        return Redundancy(one.value, one.measure, where)

    whole = measured([centred(one) for one in found], {n: f.value for n, f in nulls.items()}, interval=over_items)
    every = measured(found).where
    lines = [
        [number, images, where[block], where[f"raw {block}"]]
        for images, where in {"data": every, **{name: one.where for name, one in nulls.items()}}.items()
        for number, block in enumerate(whole.where)
    ]
    about = "Mean best-match cosine of keys, less the mean key of the image (centred) and as they are (raw)."
    return whole, table(about, ("block", "images", "centred", "raw"), lines)


def tokens_left(model: nn.Module, tokens: int, r: int) -> list[int]:
    """Closed form of the number of tokens behind each block, class token included, for a model with one."""
    left = [tokens]
    for _ in transformer_blocks(model) or ():
        left.append(left[-1] - min(r, (left[-1] - 1) // 2))
    return left[1:]


# --------------------------------------------------------------------------------------------------------------------
# Accuracy of small ViTs

DIGITS_VIT = {"image_size": 8, "patch_size": 1, "in_channels": 1, "num_classes": 10}
DIGITS_VIT |= {"dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
FASHION_VIT = DIGITS_VIT | {"image_size": 28, "patch_size": 4, "dim": 64}


@dataclass(frozen=True, kw_only=True)
class ClassificationPlan(Plan):
    data: Labelled
    recipe: Recipe
    rs: tuple[int, ...]
    train: int | None = None
    test: int | None = None
    architecture: Mapping[str, Any] = field(default_factory=lambda: DIGITS_VIT)


DIGITS = {
    "smoke": ClassificationPlan(repetitions=5, data="digits", recipe=Recipe(12, 3e-3, 32), rs=(4, 8, 12, 16)),
    "full": ClassificationPlan(
        repetitions=25, seeds=(0, 1, 2, 3, 4), data="digits", recipe=Recipe(30, 2e-3, 32), rs=(2, 4, 8, 12, 16)
    ),
}
FASHION = {
    "smoke": ClassificationPlan(
        repetitions=5, needs=("fashion-mnist",), data="fashion-mnist", recipe=Recipe(1, 2e-3, 64), rs=(4, 8, 12),
        train=6000, test=2000, architecture=FASHION_VIT,
    ),
    "full": ClassificationPlan(
        repetitions=25, seeds=(0, 1, 2), needs=("fashion-mnist",), data="fashion-mnist", recipe=Recipe(2, 2e-3, 64),
        rs=(2, 4, 8, 12, 16), test=2000, architecture=FASHION_VIT,
    ),
}  # fmt: skip


def trained_vit(study: Study[ClassificationPlan], seed: int) -> VisionTransformer:
    """A small ViT trained with a seed, or the same one from the cache."""
    plan, part = study.plan, split(study.plan.data, study.plan.train).train.to(study.device)
    spec = {"architecture": plan.architecture, "recipe": plan.recipe, "samples": len(part.x), "seed": seed}
    told = partial(study.progress, f"train seed {seed}")
    return trained(
        f"vit-{plan.data}",
        spec,
        lambda: seeded(seed, lambda: small_vit(**plan.architecture)).to(study.device),
        lambda model: train(model, part.x, part.y, plan.recipe, seed=seed, progress=told),
    )


def classification(study: Study[ClassificationPlan], technique: Technique, methods: Sequence[Method]) -> Record:
    """Accuracy against r of a small ViT over several trainings, and the cost of one image."""
    plan = study.plan
    parts = split(plan.data, plan.train, test=plan.test)
    test = parts.test.to(study.device)
    batch = test.x[:64]
    for seed in plan.seeds:
        model = trained_vit(study, seed)
        tokens = model.pos_embed.shape[1]
        study.add(BASELINE, {}, forward(model, batch), units=len(batch), score=accuracy(model, *test))
        for method in methods:
            for r in plan.rs:
                merged = attached(model, method, r)
                study.add(
                    method.name,
                    {"r": r},
                    forward(merged, batch),
                    units=len(batch),
                    score=accuracy(merged, *test),
                    redundancy=1 - tokens_left(model, tokens, r)[-1] / tokens,
                )
    study.measure()
    nulls = {"white noise": uniform_noise(batch), "shuffled pixels": shuffled_pixels(batch)}
    redundancy, by_block = redundancy_of(technique, model, batch, nulls)
    return study.record(
        data=f"{TITLES[plan.data]}, {batch.shape[-1]} x {batch.shape[-1]} pixels: {len(parts.train.x):,} to train, "
        f"accuracy on {len(test.x):,} others",
        model=f"ViT of {len(model.blocks)} blocks, width {plan.architecture['dim']}, "
        f"{tokens} tokens with the class token",
        unit="one image, in a batch of 64",
        knobs=("r",),
        metric="accuracy",
        controls=controls_of(methods),
        redundancy=redundancy,
        notes=(
            "Accuracy is the mean over independently trained models; MACs and time are of the last one.",
            "The models were trained without merging: the technique is applied to the finished model.",
        ),
        tables={"similarity by block": by_block},
    )


# --------------------------------------------------------------------------------------------------------------------
# Agreement of a pretrained network with itself


@dataclass(frozen=True, kw_only=True)
class SaliencyPlan(Plan):
    values: tuple[float, ...]
    """Of the knob that is swept."""
    photos: int | None = None
    needs: tuple[str, ...] = ("saliency-vit-s14",)


@torch.no_grad()
def one_by_one(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The model's output for each of x: (B, ...), computed one by one."""
    return [model(item[None]) for item in x]


def saliency(
    study: Study[SaliencyPlan],
    technique: Technique,
    methods: Sequence[Method],
    apply: Callable[[nn.Module, Any], Handle],
    knob: str,
    picture: Callable[[nn.Module, Tensor], dict[str, Any]] | None = None,
) -> Record:
    """Agreement of the saliency maps of photos with the dense network's, against one knob of the technique.

    `apply(model, value)` is the technique; its trace holds the `tokens` of each block. `picture` makes the figures.
    """
    names, photos = images.photos(224)
    names, photos = names[: study.plan.photos], photos[: study.plan.photos]
    x = imagenet_normalise(photos).to(study.device)
    model = saliency_vit_s14().to(study.device)
    dense, total = one_by_one(model, x), model.backbone.pos_embed.shape[1]
    same_cost = x[:1] if knob == "r" else x  # with a fixed r every photo costs the same
    noise = imagenet_normalise(uniform_noise(photos)).to(study.device)
    agree = partial(map, correlation, dense)
    study.add(BASELINE, {}, partial(one_by_one, model, same_cost), units=len(same_cost), samples=total,
              quality=over_items(agree(dense)))  # fmt: skip
    lines = []
    for value in study.plan.values:
        left = _tokens_behind(apply, model, x, value)
        for method in methods:
            merged = attached(model, method, value)
            got = one_by_one(merged, x)
            study.add(
                method.name,
                {knob: value},
                partial(one_by_one, merged, same_cost),
                units=len(same_cost),
                quality=over_items(agree(got)),
                samples=round(float(np.mean(left))),
                redundancy=1 - float(np.mean(left)) / total,
            )
            if method.name == TECHNIQUE:
                error = float(np.mean([(a - b).abs().mean().item() for a, b in zip(dense, got, strict=True)]))
                lines.append([value, error, min(_tokens_behind(apply, model, noise, value)), *left])
    study.measure()
    null = {"white noise": noise, "shuffled pixels": imagenet_normalise(shuffled_pixels(photos)).to(study.device)}
    redundancy, by_block = redundancy_of(technique, model, x, null)
    about = (
        "Mean absolute error of the saliency map, and tokens left behind the last block: of white noise (fewest), and "
        "of each photo."
    )
    return study.record(
        data=f"{len(x)} photos of scikit-image and scikit-learn ({', '.join(names)}), 224 x 224 pixels",
        model="pretrained ViT-S/14 with a convolutional saliency decoder, 24.3 M parameters, 257 tokens",
        unit="one photo, in a batch of 1",
        knobs=(knob,),
        metric="correlation with the dense map",
        controls=controls_of(methods),
        redundancy=redundancy,
        notes=(
            "Agreement with the dense network, not accuracy: the photos have no saliency labels.",
            "Tokens are unmerged behind the last block, since the decoder needs every patch; it stays dense.",
            f"The interval is a bootstrap over only {len(x)} photos.",
        ),
        tables={
            "similarity by block": by_block,
            "tokens left": table(about, (knob, "mean absolute error", "white noise", *names), lines),
        },
        pictures=picture(model, x[:1]) if picture else None,
    )


def _tokens_behind(apply: Callable[[nn.Module, Any], Handle], model: nn.Module, x: Tensor, value: Any) -> list[int]:
    """Tokens left behind the last block, for each image on its own."""
    left = []
    with apply(model, value) as handle:
        for image in x:
            forward(model, image[None])()
            left.append(handle.trace["tokens"][-1][1])
    return left


# --------------------------------------------------------------------------------------------------------------------
# Latency


@dataclass(frozen=True, kw_only=True)
class LatencyPlan(Plan):
    batch: int
    rs: tuple[int, ...]
    controls_at: tuple[int, ...] = (13,)


def latency(study: Study[LatencyPlan], technique: Technique, methods: Sequence[Method]) -> Record:
    """Wall-clock and MACs of a ViT-S/16 at 224 pixels, against the same model with torch's fused attention."""
    plan = study.plan
    model = seeded(0, vit_small_patch16_224).eval().to(study.device)
    _, photos = images.photos(224)
    x = imagenet_normalise(photos).to(study.device)
    batch = x[torch.arange(plan.batch) % len(x)]
    dense, tokens = one_by_one(model, x), model.pos_embed.shape[1]
    study.add(BASELINE, {}, forward(model, batch), units=plan.batch, quality=over_items(map(correlation, dense, dense)))
    for method in methods:
        for r in plan.rs if method.name == TECHNIQUE else plan.controls_at:
            merged = attached(model, method, r)
            study.add(
                method.name,
                {"r": r},
                forward(merged, batch),
                units=plan.batch,
                quality=over_items(map(correlation, dense, one_by_one(merged, x))),
                redundancy=1 - tokens_left(model, tokens, r)[-1] / tokens,
            )
    study.measure()
    noise = {"white noise": imagenet_normalise(uniform_noise(photos)[:2]).to(study.device)}
    redundancy, by_block = redundancy_of(technique, model, batch[:4], noise)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return study.record(
        data=f"{len(photos)} photos of scikit-image and scikit-learn, 224 x 224 pixels, repeated to fill the batch",
        model=f"ViT-S/16 with random weights, {parameters:.2f} M parameters, {tokens} tokens",
        unit=f"one image, in a batch of {plan.batch}",
        knobs=("r",),
        metric="correlation of logits",
        controls=controls_of(methods),
        redundancy=redundancy,
        notes=(
            "Random weights: the time and the MACs are those of any ViT-S/16, the quality says nothing.",
            "The baseline uses torch's fused attention.",
        ),
        tables={"similarity by block": by_block},
    )
