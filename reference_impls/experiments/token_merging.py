"""Experiments of token merging: cases for the conformance checks, and ViTs on digits, clothes, photos and the clock.

- `digits-vit`, `fashion-vit`: accuracy of small trained ViTs against r, with chance as the control.
- `saliency-photos`, `saliency-photos-threshold`: a pretrained ViT-S/14 on photos, agreement of its saliency map.
- `vit-small-latency`, `vit-small-latency-batch-1`: wall-clock of a ViT-S/16 at 224 pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.record import Control, Measured, Point, Quality, Record
from reference_impls.accounting.timing import speed_up
from reference_impls.contract import Case, Cases, Expectation, Handle, Invalid
from reference_impls.data import images
from reference_impls.experiments.harness import (
    Context,
    Cost,
    Scenario,
    fork_seed,
    measure_arms,
    over_items,
    over_seeds,
    predict,
    record,
    train,
    trained,
)
from reference_impls.hosts import Block, transformer_blocks
from reference_impls.models.vit import VisionTransformer, imagenet_normalise, saliency_vit_s14, vit_small_patch16_224
from reference_impls.techniques.token_merging import (
    Combine,
    Match,
    Merging,
    TokenMerging,
    bipartite_soft_matching,
    merge,
    rows,
    unmerge,
)

TECHNIQUE = TokenMerging()

# --------------------------------------------------------------------------------------------------------------------
# Cases: tiny ViTs whose patches are random, all equal, or mutually orthogonal to the keys

TINY_VIT = {"image_size": 16, "patch_size": 4, "in_channels": 1, "num_classes": 10}
TINY_VIT |= {"dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
PATCHES = 16


def small_vit(architecture: Mapping[str, Any], seed: int) -> VisionTransformer:
    """A ViT initialised for a width of 32 or 64, where the customary standard deviation of 0.02 is too small.

    Positions start from sines: neighbours begin alike, as they end up in large models trained on much data.
    """
    with fork_seed(seed):
        model = VisionTransformer(**architecture)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
    with torch.no_grad():
        model.pos_embed[:, 1:] = sine_positions(*model.patch_embed.grid_size, model.pos_embed.shape[2])
    return model.eval()


def sine_positions(height: int, width: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column at dim / 4 wavelengths up to 2 pi * 100: (height * width, dim)."""
    frequencies = 100 ** (-torch.arange(dim // 4) / (dim // 4))
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    angles = places.flatten(0, 1).unsqueeze(-1) * frequencies  # (height * width, 2, dim / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def orthogonal_vit(seed: int) -> VisionTransformer:
    """A tiny ViT in which the keys of 16 one-hot patches are mutually orthogonal (slightly opposed) in every block.

    Patch i has its one lit pixel at place i, embedding and keys copy the pixels, positions are zero, and all branches
    but the last block's add nothing, so the tokens reach every block as they are.
    """
    model = small_vit(TINY_VIT, seed)
    dim, head_dim = TINY_VIT["dim"], TINY_VIT["dim"] // TINY_VIT["num_heads"]
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.weight.copy_(torch.eye(dim, PATCHES).view_as(model.patch_embed.proj.weight))
        model.patch_embed.proj.bias.zero_()
        for block in model.blocks:
            block.attn.qkv.weight[dim : 2 * dim] = torch.eye(head_dim, dim).repeat(TINY_VIT["num_heads"], 1)
        for block in model.blocks[:-1]:
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
    return model


class TokenMergingCases(Cases):
    """Tiny ViTs on images of 16 patches: random, of equal patches without positions, or of one-hot patches."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        generator = torch.Generator().manual_seed(seed)
        model = orthogonal_vit(seed) if kind == "null" else small_vit(TINY_VIT, seed)
        patches = torch.rand(3, PATCHES, PATCHES, generator=generator)  # (B, N, pixels of a patch)
        if kind == "redundant":
            patches = patches[:, :1].expand(-1, PATCHES, -1)
            nn.init.zeros_(model.pos_embed)
        elif kind == "null":
            patches = torch.eye(PATCHES).expand(3, -1, -1)
        x = patches.unflatten(2, (1, 4, 4)).unflatten(1, (4, 4))  # (B, 4, 4, 1, 4, 4)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(3, 1, 16, 16)
        return Case(model.to(device), x.to(device), run=_run)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        generator = torch.Generator().manual_seed(seed)
        for tokens, prefix, r in ((5, 0, 2), (8, 1, 3), (9, 1, 4), (12, 2, 1), (7, 1, 100)):
            metric = torch.randn(2, tokens, 6, generator=generator).to(device)
            match = bipartite_soft_matching(metric, r, prefix=prefix)
            groups = torch.tensor([brute_force_groups(m.tolist(), r, prefix) for m in metric], device=device)
            yield Expectation(f"groups of {tokens} tokens at r={r}", groups, match.group)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 11, 4, generator=generator, dtype=torch.float64).to(device)
        size = torch.randint(1, 9, (2, 11), generator=generator).to(x)
        match = bipartite_soft_matching(x, 4, prefix=1)
        merged, merged_size = merge(x, size, match)
        yield Expectation("patches", size.sum(1), merged_size.sum(1))
        yield Expectation("weighted sum", (x * size[..., None]).sum(1), (merged * merged_size[..., None]).sum(1))
        yield Expectation("class token", x[:, 0], merged[:, 0])
        twins = x[:, [0, 1, 1, 2, 2, 3, 3]]
        match = bipartite_soft_matching(twins, 3, prefix=1)
        yield Expectation("merged twins", twins, unmerge(merge(twins, torch.ones_like(twins[..., 0]), match)[0], match))

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        bad = case.inputs.clone()
        bad[0, 0, 0, 0] = torch.nan
        keys = torch.randn(2, 9, 4, device=device)

        def run_on_nan() -> None:
            with TECHNIQUE.apply(case.target, r=2) as handle:
                case.run(handle.target, bad)

        yield Invalid("keys of rank 2", lambda: bipartite_soft_matching(keys[0], 2), "metric must have shape (B, N, C)")
        yield Invalid("integer keys", lambda: bipartite_soft_matching(keys.long(), 2), "floating point")
        yield Invalid("inputs with NaN", run_on_nan, "not finite")
        yield Invalid("a negative r", lambda: TECHNIQUE.apply(case.target, r=-1), "r must be an integer")
        yield Invalid("half an r", lambda: TECHNIQUE.apply(case.target, r=1.5), "r must be an integer")
        yield Invalid("too short a schedule", lambda: TECHNIQUE.apply(case.target, r=[1, 2]), "each of the 3 blocks")
        yield Invalid("threshold above 1", lambda: TECHNIQUE.apply(case.target, threshold=1.1), "threshold must be")
        yield Invalid("neither r nor threshold", lambda: TECHNIQUE.apply(case.target, r=None), "needs a threshold")
        yield Invalid("a convolution", lambda: TECHNIQUE.apply(nn.Conv2d(1, 1, 1), r=2), "needs a transformer")


def brute_force_groups(metric: list[list[float]], r: int, prefix: int) -> list[int]:
    """Bipartite soft matching of one datum by plain loops: for each token, the index of its group after the merge."""

    def cosine(u: list[float], v: list[float]) -> float:
        dot, norms = sum(map(float.__mul__, u, v)), [sum(map(float.__mul__, w, w)) ** 0.5 for w in (u, v)]
        return dot / (norms[0] * norms[1])

    a, b = range(prefix, len(metric), 2), range(prefix + 1, len(metric), 2)
    edges = [max((cosine(metric[i], metric[j]), i, j) for j in b) for i in a]
    into = {i: j for _, i, j in sorted(edges, reverse=True)[: min(r, len(b))]}
    kept = [i for i in range(len(metric)) if i not in into]
    return [kept.index(into.get(i, i)) for i in range(len(metric))]


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


CASES = TokenMergingCases()

# --------------------------------------------------------------------------------------------------------------------
# Controls: what is left of the result when the insight of the technique is taken away


@dataclass(frozen=True)
class Variant:
    """A way of losing r tokens in every block of a model."""

    name: str
    about: str
    attach: Callable[[nn.Module, int], object]


def chance_match(generator: torch.Generator) -> Callable[[Tensor, int | None, Block], Match]:
    """Pairs of A and B drawn at random, as many as `bipartite_soft_matching` would take."""

    def match(metric: Tensor, r: int | None, block: Block) -> Match:
        batch, tokens = metric.shape[:2]
        half = (tokens - block.prefix) // 2
        r = half if r is None else min(r, half)
        a = torch.rand(batch, tokens - block.prefix - half, generator=generator).topk(r, dim=1).indices
        b = torch.randint(half, (batch, r), generator=generator)
        return Match.of(*((block.prefix + 2 * i + j).to(metric.device) for j, i in enumerate((a, b))), tokens)

    return match


def drop(x: Tensor, size: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """In the place of `merge`: the matched tokens are thrown away, the others stay as they are."""
    return rows(x, match.kept), size.gather(1, match.kept)


def _by_chance(model: nn.Module, r: int, combine: Combine) -> Merging:
    blocks = transformer_blocks(model)
    assert blocks is not None
    match = chance_match(torch.Generator().manual_seed(0))
    return Merging(blocks, [r] * len(blocks), match=match, combine=combine)


TOME = Variant("token merging", "", lambda model, r: TECHNIQUE.apply(model, r=r))
RANDOM_MERGING = Variant(
    "random merging",
    "As many tokens merge, into a partner drawn at random; sizes and proportional attention as in the technique.",
    partial(_by_chance, combine=merge),
)
RANDOM_DROPPING = Variant(
    "random dropping", "As many tokens are drawn at random and thrown away.", partial(_by_chance, combine=drop)
)
PLAIN_ATTENTION = Variant(
    "without proportional attention",
    "The technique without log s in the attention: a merged token counts as one.",
    lambda model, r: TECHNIQUE.apply(model, r=r, proportional=False),
)


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """A copy that shares the weights, so that every arm of a measurement has its own forward and none its own cache."""
    return copy.deepcopy(model, memo={id(p): p for p in model.parameters()})


def attached(model: nn.Module, variant: Variant, r: int) -> nn.Module:
    """A twin of `model` to which the variant is applied for good."""
    model = copy_sharing_weights(model)
    variant.attach(model, r)
    return model


# --------------------------------------------------------------------------------------------------------------------
# What the scenarios share


def sweep(
    model: nn.Module, variants: Sequence[Variant], rs: Sequence[int]
) -> tuple[dict[str, nn.Module], Callable[[Variant, int], str]]:
    """Twins of the model, dense and for every variant and r, by label; and the label of a variant at r."""

    def label(variant: Variant, r: int) -> str:
        return f"{variant.name}, r={r}"

    arms = {label(v, r): attached(model, v, r) for v in variants for r in rs}
    return {"dense": model, **arms}, label


def tokens_left(model: nn.Module, tokens: int, r: int) -> list[int]:
    """Closed form of the number of tokens behind each block, class token included, for a model with one."""
    left = [tokens]
    for _ in transformer_blocks(model) or ():
        left.append(left[-1] - min(r, (left[-1] - 1) // 2))
    return left[1:]


def removed(model: nn.Module, tokens: int, r: int) -> float:
    """Share of the tokens that are gone behind the last block."""
    return 1 - tokens_left(model, tokens, r)[-1] / tokens


def measured(model: nn.Module, x: Tensor, null: Mapping[str, Tensor]) -> tuple[Measured, dict[str, Any]]:
    """The technique's measure over the images x and on null images; and by block the nulls and the raw form."""
    found = [TECHNIQUE.measure(model, image[None]) for image in x]
    quality = over_items("", [f.value for f in found])
    mean = {name: float(np.mean([f.where[name] for f in found])) for name in found[0].where}
    nulls = {name: TECHNIQUE.measure(model, images) for name, images in null.items()}
    extra: dict[str, Any] = {"similarity_raw": _raw(mean)}
    for name, found_null in nulls.items():
        key = name.replace(" ", "_")
        extra[f"similarity_{key}"] = tuple(v for k, v in found_null.where.items() if not k.startswith("raw"))
        extra[f"similarity_raw_{key}"] = _raw(found_null.where)
    return Measured(
        measure=found[0].measure,
        value=quality.value,
        low=quality.low,
        high=quality.high,
        where={name: value for name, value in mean.items() if not name.startswith("raw")},
        null={name: found_null.value for name, found_null in nulls.items()},
    ), extra


def _raw(where: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(value for name, value in where.items() if name.startswith("raw"))


def nulls(x: Tensor) -> dict[str, Tensor]:
    """Images without the redundancy of natural ones: white noise, and the same images with their pixels shuffled."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(x[0, 0].numel(), generator=generator)
    noise = torch.rand(x.shape, generator=generator)
    return {"white noise": noise.to(x), "shuffled pixels": x.flatten(2)[..., order.to(x.device)].view_as(x)}


# --------------------------------------------------------------------------------------------------------------------
# Accuracy of small ViTs

DIGITS_VIT = {"image_size": 8, "patch_size": 1, "in_channels": 1, "num_classes": 10}
DIGITS_VIT |= {"dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
FASHION_VIT = DIGITS_VIT | {"image_size": 28, "patch_size": 4, "dim": 64}
DIGITS_TRAINING = {"smoke": {"epochs": 12, "lr": 3e-3, "batch_size": 32}}
DIGITS_TRAINING |= {"full": {"epochs": 30, "lr": 2e-3, "batch_size": 32}}
FASHION_TRAINING = {"smoke": {"epochs": 1, "lr": 2e-3, "batch_size": 64}}
FASHION_TRAINING |= {"full": {"epochs": 2, "lr": 2e-3, "batch_size": 64}}


def classifier(
    ctx: Context, name: str, architecture: dict[str, Any], training: dict[str, Any], x: Tensor, y: Tensor, seed: int
) -> VisionTransformer:
    """A small ViT trained on x and y, or the same one from the cache."""
    return trained(
        name,
        {"architecture": architecture, "training": training, "samples": len(x), "seed": seed},
        build=lambda: small_vit(architecture, seed),
        train=lambda model: train(
            model,
            x,
            y,
            seed=seed,
            **training,
            progress=lambda done, total: ctx.progress(f"train {name}, seed {seed}", done, total),
        ),
    )


def classification(
    ctx: Context,
    *,
    scenario: str,
    title: str,
    data: str,
    split: images.Split,
    architecture: dict[str, Any],
    training: dict[str, Any],
    rs: Sequence[int],
    seeds: Sequence[int],
) -> Record:
    """Accuracy against r of a small ViT over several trainings, with the controls, and the cost of one image."""
    x_train, y_train, x, y = (t.to(ctx.device) for t in split)
    variants = (TOME, RANDOM_MERGING, RANDOM_DROPPING, PLAIN_ATTENTION)
    accuracy: dict[str, list[float]] = {}
    for i, seed in enumerate(seeds):
        model = classifier(ctx, scenario, architecture, training, x_train, y_train, seed).to(ctx.device)
        arms, label = sweep(model, variants, rs)
        for name, arm in arms.items():
            correct = predict(arm, x).argmax(1) == y
            accuracy.setdefault(name, []).append(correct.float().mean().item())
        ctx.progress("evaluate", i + 1, len(seeds))
    batch = x[:64]
    costs = measure_arms(
        {name: partial(_run, arm, batch) for name, arm in arms.items()},
        units=len(batch),
        repetitions=5 if ctx.smoke else 25,
        threads=ctx.threads,
    )
    tokens = model.pos_embed.shape[1]
    redundancy, extra = measured(model, x[:64], nulls(x[:64]))
    qualities = {name: over_seeds("accuracy", values) for name, values in accuracy.items()}
    series = {v: _points(v, rs, label, costs, qualities, partial(removed, model, tokens)) for v in variants}
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario=scenario,
        title=title,
        data=data,
        model=f"ViT of {len(model.blocks)} blocks, width {architecture['dim']}, {tokens} tokens with the class token",
        unit="one image, in a batch of 64",
        knobs=("r",),
        baseline=costs["dense"].arm(qualities["dense"]),
        points=series[TOME],
        controls=[Control(name=v.name, about=v.about, points=tuple(series[v])) for v in variants[1:]],
        redundancy=redundancy,
        seeds=seeds,
        notes=(
            "Accuracy is the mean over independently trained models; MACs and time are of the last one.",
            "Training knew nothing of merging: the technique is applied to the finished model.",
        ),
        extra=extra | {"accuracy_dense_by_seed": tuple(accuracy["dense"])},
    )


def _points(
    variant: Variant,
    rs: Sequence[int],
    label: Callable[[Variant, int], str],
    costs: Mapping[str, Cost],
    qualities: Mapping[str, Quality],
    share: Callable[[int], float],
) -> list[Point]:
    return [costs[label(variant, r)].point({"r": r}, qualities[label(variant, r)], redundancy=share(r)) for r in rs]


def run_digits(ctx: Context) -> Record:
    """Accuracy against r on scikit-learn's digits, one token a pixel."""
    return classification(
        ctx,
        scenario="digits-vit",
        title="A ViT with one token for each pixel, on handwritten digits",
        data="scikit-learn digits, 8 x 8 pixels: 1,437 to train, accuracy on 360 others",
        split=images.digits(),
        architecture=DIGITS_VIT,
        training=DIGITS_TRAINING[ctx.budget],
        rs=(4, 8, 12, 16) if ctx.smoke else (2, 4, 8, 12, 16),
        seeds=(0,) if ctx.smoke else (0, 1, 2, 3, 4),
    )


def run_fashion(ctx: Context) -> Record:
    """Accuracy against r on Fashion-MNIST, 49 patches."""
    x_train, y_train, x, y = images.fashion_mnist()
    if ctx.smoke:
        x_train, y_train = x_train[:6000], y_train[:6000]
    x, y = x[:2000], y[:2000]
    return classification(
        ctx,
        scenario="fashion-vit",
        title="A ViT with patches of 4 x 4 pixels, on images of clothes",
        data=f"Fashion-MNIST, 28 x 28 pixels: {len(x_train):,} to train, accuracy on {len(x):,} others",
        split=(x_train, y_train, x, y),
        architecture=FASHION_VIT,
        training=FASHION_TRAINING[ctx.budget],
        rs=(4, 8, 12) if ctx.smoke else (2, 4, 8, 12, 16),
        seeds=(0,) if ctx.smoke else (0, 1, 2),
    )


# --------------------------------------------------------------------------------------------------------------------
# Agreement of a pretrained network with itself


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of all values of two tensors."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The model's output for each image of x: (B, 3, H, W), computed one by one."""
    return [_run(model, image[None]) for image in x]


def saliency(ctx: Context, scenario: str, title: str, knob: str, settings: Sequence[float], about: str) -> Record:
    """Agreement of the saliency maps of photos with the dense network's, against one knob of the technique."""
    names, photos = images.photos(224)
    names, photos = (names[:2], photos[:2]) if ctx.smoke else (names, photos)
    x = imagenet_normalise(photos).to(ctx.device)
    model = saliency_vit_s14().to(ctx.device)
    variants = [Variant("token merging", about, lambda m, value: _apply(m, knob, value))]
    if knob == "r":
        variants += [RANDOM_MERGING, PLAIN_ATTENTION]
    arms, label = sweep(model, variants, settings)
    timed = x[:1] if knob == "r" else x  # with a fixed r every photo costs the same
    costs = measure_arms(
        {name: partial(maps, arm, timed) for name, arm in arms.items()},
        units=len(timed),
        repetitions=2 if ctx.smoke else 15,
        threads=ctx.threads,
    )
    ctx.progress("measured", 1, 2)
    dense = maps(model, x)
    agreement, error = {}, {}
    for name, arm in arms.items():
        got = maps(arm, x)
        agreement[name] = over_items("correlation with the dense map", map(correlation, dense, got))
        error[name] = float(np.mean([(a - b).abs().mean().item() for a, b in zip(dense, got, strict=True)]))
    left = {value: _tokens_of(model, x, knob, value) for value in settings}  # value -> tokens left of each photo
    total = model.backbone.pos_embed.shape[1]
    points = {
        v: [
            costs[label(v, value)].point(
                {knob: value},
                agreement[label(v, value)],
                samples=round(float(np.mean(left[value]))),
                redundancy=1 - float(np.mean(left[value])) / total,
            )
            for value in settings
        ]
        for v in variants
    }
    redundancy, extra = measured(model, x, {k: imagenet_normalise(v) for k, v in nulls(photos).items()})
    noise = imagenet_normalise(nulls(photos)["white noise"]).to(ctx.device)
    extra["photos"] = ", ".join(names)
    extra["mean_absolute_error"] = tuple(error[label(variants[0], value)] for value in settings)
    extra["tokens_left_by_photo"] = tuple(tuple(map(float, left[value])) for value in settings)
    extra["tokens_left_of_white_noise"] = tuple(map(float, (min(_tokens_of(model, noise, knob, v)) for v in settings)))
    if knob == "r":
        extra |= _picture(model, x[:1])
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario=scenario,
        title=title,
        data=f"{len(x)} photos of scikit-image and scikit-learn ({', '.join(names)}), 224 x 224 pixels",
        model="pretrained ViT-S/14 with a convolutional saliency decoder, 24.3 M parameters, 257 tokens",
        unit="one photo, in a batch of 1",
        knobs=(knob,),
        baseline=costs["dense"].arm(agreement["dense"], samples=total),
        points=points[variants[0]],
        controls=[Control(name=v.name, about=v.about, points=tuple(points[v])) for v in variants[1:]],
        redundancy=redundancy,
        seeds=(0,),
        notes=(
            "Agreement with the dense network, not accuracy: the photos have no saliency labels.",
            "Tokens are unmerged behind the last block, since the decoder needs every patch; it stays dense.",
            f"The interval is a bootstrap over only {len(x)} photos.",
        ),
        extra=extra,
    )


def _apply(model: nn.Module, knob: str, value: float) -> Handle:
    return TECHNIQUE.apply(model, r=value) if knob == "r" else TECHNIQUE.apply(model, r=None, threshold=value)


def _tokens_of(model: nn.Module, x: Tensor, knob: str, value: float) -> list[int]:
    """Tokens left behind the last block, for each image on its own."""
    left = []
    with _apply(model, knob, value) as handle:
        for image in x:
            _run(model, image[None])
            left.append(handle.trace["tokens"][-1][1])
    return left


def _picture(model: nn.Module, x: Tensor, r: int = 16) -> dict[str, Any]:
    """For the figures: which patches of the first photo merged, and its saliency maps, on the grid of patches."""
    with TECHNIQUE.apply(model, r=r) as handle:
        merged = _run(model, x)
        group = handle.trace["group"][0, 1:].view(16, 16)
    return {
        "group_r": r,
        "group_of_patch": _rows(group),
        "map_dense": _rows(nn.functional.avg_pool2d(_run(model, x), 14)[0, 0]),
        "map_merged": _rows(nn.functional.avg_pool2d(merged, 14)[0, 0]),
    }


def _rows(x: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(v), 4) for v in row) for row in x.tolist())


def run_saliency(ctx: Context) -> Record:
    """Agreement of saliency maps against r."""
    rs = (8, 16) if ctx.smoke else (4, 8, 12, 16, 20)
    title = "Saliency maps of photos by a pretrained ViT-S/14"
    return saliency(ctx, "saliency-photos", title, "r", rs, "")


def run_saliency_threshold(ctx: Context) -> Record:
    """Agreement of saliency maps against the least cosine at which tokens merge: each photo decides how many."""
    thresholds = (0.995, 0.98) if ctx.smoke else (0.998, 0.995, 0.99, 0.98)
    title = "The same, merging only keys above a cosine"
    return saliency(ctx, "saliency-photos-threshold", title, "threshold", thresholds, "")


# --------------------------------------------------------------------------------------------------------------------
# The clock


def latency(ctx: Context, scenario: str, title: str, batch: int) -> Record:
    """Wall-clock and MACs of a ViT-S/16 at 224 pixels, against the same model with torch's fused attention."""
    with fork_seed(0):
        model = vit_small_patch16_224().eval().to(ctx.device)
    _, photos = images.photos(224)
    x = imagenet_normalise(photos[torch.arange(batch) % len(photos)]).to(ctx.device)
    rs = (13,) if ctx.smoke else (8, 13, 16)
    arms, label = sweep(model, (TOME,), rs)
    arms |= sweep(model, (PLAIN_ATTENTION,), (13,))[0]
    costs = measure_arms(
        {name: partial(_run, arm, x) for name, arm in arms.items()},
        units=batch,
        repetitions=3 if ctx.smoke else 21,
        threads=ctx.threads,
    )
    dense = maps(model, imagenet_normalise(photos).to(ctx.device))
    agreement = {
        name: over_items(
            "correlation of logits", map(correlation, dense, maps(arm, imagenet_normalise(photos).to(ctx.device)))
        )
        for name, arm in arms.items()
    }
    redundancy, extra = measured(model, x[:4], {"white noise": imagenet_normalise(nulls(photos)["white noise"][:2])})
    extra["speed_up"] = tuple(
        (float(r), ratio.ratio, ratio.low, ratio.high)
        for r in rs
        for ratio in [speed_up(costs["dense"].samples, costs[label(TOME, r)].samples)]
    )
    return record(
        ctx,
        technique=TECHNIQUE.id,
        scenario=scenario,
        title=title,
        data=f"{len(photos)} photos of scikit-image and scikit-learn, 224 x 224 pixels, repeated to fill the batch",
        model="ViT-S/16 with random weights, 22.05 M parameters, 197 tokens",
        unit=f"one image, in a batch of {batch}",
        knobs=("r",),
        baseline=costs["dense"].arm(agreement["dense"]),
        points=_points(TOME, rs, label, costs, agreement, partial(removed, model, 197)),
        controls=[
            Control(
                name=PLAIN_ATTENTION.name,
                about=PLAIN_ATTENTION.about,
                points=tuple(_points(PLAIN_ATTENTION, (13,), label, costs, agreement, partial(removed, model, 197))),
            )
        ],
        redundancy=redundancy,
        seeds=(0,),
        notes=(
            "Random weights: the time and the MACs are those of any ViT-S/16, the quality says nothing.",
            "The baseline uses torch's fused attention.",
            "extra.speed_up holds r, the median ratio of paired repetitions and the ends of its 95 % interval.",
        ),
        extra=extra,
    )


SCENARIOS = (
    Scenario("digits-vit", "Small ViT on digits: accuracy against r", run_digits),
    Scenario(
        "fashion-vit",
        "Small ViT on Fashion-MNIST: accuracy against r",
        run_fashion,
        assets={"smoke": ("fashion-mnist",), "full": ("fashion-mnist",)},
    ),
    Scenario(
        "saliency-photos",
        "Pretrained ViT-S/14: saliency maps of photos against r",
        run_saliency,
        assets={"smoke": ("saliency-vit-s14",), "full": ("saliency-vit-s14",)},
    ),
    Scenario(
        "saliency-photos-threshold",
        "Pretrained ViT-S/14: saliency maps of photos against a cosine threshold",
        run_saliency_threshold,
        assets={"smoke": ("saliency-vit-s14",), "full": ("saliency-vit-s14",)},
    ),
    Scenario(
        "vit-small-latency",
        "ViT-S/16 at 224 pixels: wall-clock in a batch of 8",
        partial(latency, scenario="vit-small-latency", title="Wall-clock of a ViT-S/16, batch of 8", batch=8),
    ),
    Scenario(
        "vit-small-latency-batch-1",
        "ViT-S/16 at 224 pixels: wall-clock of a single image",
        partial(latency, scenario="vit-small-latency-batch-1", title="Wall-clock of a ViT-S/16, one image", batch=1),
    ),
)
