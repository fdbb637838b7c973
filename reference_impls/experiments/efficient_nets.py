"""What the experiments of stride attention, attention downsampling and dimension-consistent design share.

Small networks of EfficientFormer's parts for Fashion-MNIST, and the data that they are trained on and looked at with.
Images of 28 x 28 pixels are padded with zeros to 32 x 32, not enlarged: interpolated pixels would be redundant by
construction. Behind the stem the map is 8 x 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.record import Measured, Quality
from reference_impls.contract import Quantity, Redundancy, Specimen, Technique
from reference_impls.data import images
from reference_impls.data.controls import phase_scrambled, white_noise
from reference_impls.experiments.harness import (
    Context,
    Cost,
    fork_seed,
    measure_arms,
    over_seeds,
    predict,
    train,
    trained,
)
from reference_impls.experiments.mobile_networks import scatter
from reference_impls.experiments.token_merging import twin
from reference_impls.techniques.dimension_consistent_design import Downsample, FeedForward, MapBlock, Size, Stem
from reference_impls.techniques.stride_attention import MapAttention, cell_means, coarsen_bias

GRID: Size = (8, 8)
"""Size of the map behind the stem."""
WIDTHS = (32, 64)
HEADS, KEY_DIM = 4, 8
DEPTH = 3
LAYER_SCALE = 0.1
"""Where it starts. The papers' 1e-5 keeps the branches of so short a training shut."""


# --------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Recipe:
    """Every choice, besides the network and the seed, that its weights follow from."""

    images: int
    epochs: int
    tested: int
    lr: float = 3e-3
    batch_size: int = 64


FASHION = {"smoke": ("fashion-mnist",), "full": ("fashion-mnist",)}
NULLS = ("phases scrambled", "white noise")
RECIPES = {
    "smoke": Recipe(images=1000, epochs=1, tested=300, batch_size=32),
    "full": Recipe(images=6000, epochs=3, tested=2500),
}


def seeds(ctx: Context) -> tuple[int, ...]:
    """The seeds of the trainings."""
    return (0,) if ctx.smoke else (0, 1, 2)


def prepare(x: Tensor) -> Tensor:
    """Grey images of 28 or 32 pixels in [0, 1] -> padded to 32 x 32, with about the mean 0 and the deviation 1."""
    margin = (32 - x.shape[-1]) // 2
    return (F.pad(x, (margin,) * 4) - 0.286) / 0.353


@cache
def fashion(recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fashion-MNIST as the recipe takes it: x_train (N, 1, 32, 32), y_train, x_test, y_test."""
    x_train, y_train, x, y = images.fashion_mnist()
    n, m = recipe.images, recipe.tested
    return prepare(x_train[:n]), y_train[:n], prepare(x[:m]), y[:m]


def described(recipe: Recipe) -> str:
    """The data in a line, for the record."""
    return (
        f"Fashion-MNIST, 28 x 28 pixels padded to 32 x 32: {recipe.images:,} to train for {recipe.epochs} epochs, "
        f"accuracy on {recipe.tested:,} others"
    )


def photo_crops(number: int = 64) -> Tensor:
    """Grey crops of natural photos, prepared like the clothes: (number, 1, 32, 32). The photos are in turn."""
    _, photos = images.photos(256)
    crops = photos.mean(1, keepdim=True).unfold(2, 32, 32).unfold(3, 32, 32)  # (7, 1, 8, 8, 32, 32)
    crops = crops.flatten(2, 3).transpose(1, 2).transpose(0, 1).flatten(0, 1)  # place by place, photo by photo
    order = torch.randperm(len(crops), generator=torch.Generator().manual_seed(0))[:number]
    return prepare(crops[order])


def looked_at(x: Tensor) -> dict[str, Tensor]:
    """The inputs that redundancy is measured on: images x (B, 1, 32, 32) of the task, natural photos, and the nulls."""
    return {
        "clothes": x,
        "photos": photo_crops(len(x)),
        NULLS[0]: phase_scrambled(x),
        NULLS[1]: white_noise(x),
    }


# --------------------------------------------------------------------------------------------------------------------
# Networks


def map_network(mixer: Callable[[], nn.Module | None], down: Callable[[], nn.Module] | None = None) -> nn.Sequential:
    """A small EfficientFormerV2: a stem, three blocks of 32 channels on 8 x 8, a downsampling, a block on 4 x 4.

    `mixer` makes what mixes in front of the feed-forward part of the last two blocks on 8 x 8. Every feed-forward part
    has its depthwise convolution, as in V2.
    """
    width, wide = WIDTHS
    blocks = [
        MapBlock(width, mixer() if i else None, FeedForward(width, 2 * width, local=True), layer_scale=LAYER_SCALE)
        for i in range(DEPTH)
    ]
    last = MapBlock(wide, None, FeedForward(wide, 2 * wide, local=True), layer_scale=LAYER_SCALE)
    return nn.Sequential(
        Stem(width, nn.GELU, in_channels=1), *blocks, Downsample(width, wide) if down is None else down(), last, head()
    )


def head(width: int = WIDTHS[1], classes: int = 10) -> nn.Sequential:
    """Batch norm, the mean over the map, and a linear layer: (B, C, H, W) -> (B, classes)."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def small_attention(stride: int = 1, *, project_first: bool = False) -> MapAttention:
    """The attention of the small networks."""
    return MapAttention(WIDTHS[0], GRID, HEADS, KEY_DIM, stride=stride, project_first=project_first)


def fitted(ctx: Context, name: str, build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network called `name`, trained by the recipe of the budget, or the same one from the cache."""
    recipe = RECIPES[ctx.budget]

    def fresh() -> nn.Module:
        with fork_seed(seed):
            return build()

    def fit(model: nn.Module) -> nn.Module:
        x, y, _, _ = fashion(recipe)
        training = {"epochs": recipe.epochs, "lr": recipe.lr, "batch_size": recipe.batch_size}
        return train(model, x, y, seed=seed, **training, progress=lambda done, of: ctx.progress(name, done, of))

    spec = {"network": str(fresh()), "recipe": dataclasses.asdict(recipe), "layer_scale": LAYER_SCALE, "seed": seed}
    return trained(f"efficient-{name}", spec, fresh, fit)


def accuracy(model: nn.Module, recipe: Recipe) -> float:
    """Share of the test images that the network gets right."""
    _, _, x, y = fashion(recipe)
    return (predict(model, x).argmax(1) == y).double().mean().item()


# --------------------------------------------------------------------------------------------------------------------
# What scenarios measure


def sweep_accuracies(
    ctx: Context, models: Sequence[nn.Module], arms: Mapping[str, Callable[[nn.Module], object]]
) -> tuple[dict[str, nn.Module], dict[str, Quality]]:
    """Of each arm, which attaches something to twins of the models: the last twin, and the accuracy over all."""
    twins, qualities = {}, {}
    for done, (name, attach) in enumerate(arms.items()):
        values = []
        for model in models:
            twins[name] = twin(model)
            attach(twins[name])
            values.append(accuracy(twins[name], RECIPES[ctx.budget]))
        qualities[name] = over_seeds("accuracy", values)
        ctx.progress("arms", done + 1, len(arms))
    return twins, qualities


def costs_of(ctx: Context, models: Mapping[str, nn.Module], x: Tensor) -> dict[str, Cost]:
    """Every network counted and timed on the same images, per image."""
    return measure_arms(
        {name: partial(without_gradients, model, x) for name, model in models.items()},
        units=len(x),
        repetitions=3 if ctx.smoke else 25,
        threads=ctx.threads,
    )


def measured(models: Sequence[nn.Module], technique: Technique, x: Tensor) -> tuple[Measured, dict[str, Any]]:
    """Redundancy of images x over the trained networks, its nulls, and each place's share for each kind of input."""
    inputs = looked_at(x)
    found = {name: [technique.measure(model, images) for model in models] for name, images in inputs.items()}
    real = found["clothes"]
    value, *ends = mean_and_interval([one.value for one in real])
    low, high = (min(max(end, 0.0), 1.0) for end in ends)
    where = {part: float(np.mean([one.where[part] for one in real])) for part in real[0].where}
    null = {name: float(np.mean([one.value for one in found[name]])) for name in NULLS}
    places = list(dict.fromkeys(part.split(" ")[0] for part in where))  # "attended 2.token_mixer" -> "attended"

    def mean_at(place: str, one: Redundancy) -> float:
        return float(np.mean([share for part, share in one.where.items() if part.split(" ")[0] == place]))

    rows = {
        f"measured_{key(name)}": tuple(mean_and_interval([mean_at(p, one) for one in by_seed]) for p in places)
        for name, by_seed in found.items()
    }
    about = Measured(measure=real[0].measure, value=value, low=low, high=high, where=where, null=null)
    return about, {"measured_places": ", ".join(places)} | rows


def key(name: str) -> str:
    """A name in words as a key of `extra`: "white noise" -> "white_noise"."""
    return name.replace(", ", "_").replace(" ", "_")


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and the ends of its 95 % interval (the mean itself for one seed)."""
    q = over_seeds("", values)
    return (q.value, q.value, q.value) if q.low is None or q.high is None else (q.value, q.low, q.high)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """Mean of values - baseline, seed by seed, and the ends of its 95 % interval."""
    return mean_and_interval([a - b for a, b in zip(values, baseline, strict=True)])


# --------------------------------------------------------------------------------------------------------------------
# Specimens: maps in front of attention

Kind = Literal["typical", "redundant", "null"]
CHANNELS = 12


def chessboards(number: int, channels: int, size: Size, generator: torch.Generator) -> Tensor:
    """Maps (number, channels, H, W) of one random number a channel, with the sign of the field of a chessboard."""
    fields = 1 - 2 * ((torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2)
    return torch.randn(number, channels, 1, 1, generator=generator) * fields


def map_specimen(kind: Kind, seed: int, device: str) -> Specimen:
    """`MapAttention` on constant maps (redundant) or chessboards (null), which give constant maps or chessboards again:
    without position bias and with even sides, what a query gathers depends on its own colour alone. Typical: two blocks
    with random statistics and biases, on a map of noise, a smooth one, and one in between.
    """
    generator = torch.Generator().manual_seed(seed)
    with fork_seed(seed):
        if kind == "typical":
            blocks = [
                MapBlock(CHANNELS, tiny_attention(), FeedForward(CHANNELS, 24, local=True), layer_scale=1.0)
                for _ in range(2)
            ]
            host = scatter(nn.Sequential(*blocks))
            noise = torch.randn(3, CHANNELS, 8, 8, generator=generator)
            smooth = F.interpolate(noise[..., :2, :2], size=8, mode="bilinear")
            inputs = torch.stack([noise[0], 0.2 * noise[1] + smooth[1], smooth[2]])
        else:
            host = tiny_attention()
            if kind == "null":
                inputs = chessboards(3, CHANNELS, (8, 8), generator)
            else:
                inputs = torch.randn(3, CHANNELS, 1, 1, generator=generator).expand(-1, -1, 8, 8).contiguous()
    return Specimen(host.eval().to(device), inputs.to(device), run=without_gradients)


def tiny_attention(size: Size = (8, 8)) -> MapAttention:
    """Attention of two heads on 12 channels."""
    return MapAttention(CHANNELS, size, heads=2, key_dim=4, ratio=2)


@torch.no_grad()
def without_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """model(x)."""
    return model(x)


def scores(attention: MapAttention, x: Tensor) -> Tensor:
    """Scores of attention in front of its talking heads, at full resolution: (B, heads, N, N)."""
    q, k = (y.flatten(2).unflatten(1, (attention.heads, -1)) for y in (attention.q(x), attention.k(x)))
    return q.transpose(2, 3) @ k * attention.key_dim**-0.5 + attention.bias((x.shape[2], x.shape[3]))


def mean_of_cells(matrix: Tensor, size: Size, rows: int, columns: int) -> Tensor:
    """Means of (..., N, N) over cells of the map (H, W), by plain loops: (..., n, m)."""

    def cells(factor: int) -> list[list[int]]:
        return [
            [(i + a) * size[1] + j + b for a in range(factor) for b in range(factor)]
            for i in range(0, size[0], factor)
            for j in range(0, size[1], factor)
        ]

    means = [[matrix[..., r, :][..., c].mean((-2, -1)) for c in cells(columns)] for r in cells(rows)]
    return torch.stack([torch.stack(row, -1) for row in means], -2)


def coarse_scores_are_means(rows: int, columns: int, seed: int, device: str) -> Iterator[Quantity]:
    """That averaging the map averages the scores: by loops over the full scores, and from the coarse maps."""
    with fork_seed(seed):
        attention = scatter(tiny_attention()).double().eval().to(device)
        x = torch.randn(2, CHANNELS, 8, 8, dtype=torch.float64).to(device)
    with torch.no_grad():
        q, k = attention.q(cell_means(x, rows)), attention.k(cell_means(x, columns))
        q, k = (y.flatten(2).unflatten(1, (attention.heads, -1)) for y in (q, k))
        bias = coarsen_bias(attention.bias((8, 8)), (8, 8), rows, columns)
        coarse = q.transpose(2, 3) @ k * attention.key_dim**-0.5 + bias
        yield Quantity("scores of cells", mean_of_cells(scores(attention, x), (8, 8), rows, columns), coarse)
