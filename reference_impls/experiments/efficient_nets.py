"""What the experiments of stride attention, attention downsampling and dimension-consistent design share.

Small networks of EfficientFormer's parts, the two tasks that they are trained for, and what is measured on them.

The tasks are to tell the classes of Fashion-MNIST, and to fill in patches of its images that are hidden at random. The
second needs what this family of techniques is about: whether other positions, near or far, tell what a position holds.
A classifier that averages over positions in the end does well without any mixing. Images of 28 x 28 pixels are padded
with zeros to 32 x 32, not enlarged: interpolated pixels would be redundant by construction. (The small budget does use
enlarged digits, so nothing is to be read from what it measures.) Patches of 4 x 4 pixels make a map of 8 x 8 positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.record import Measured, Quality
from reference_impls.contract import Case, Expectation, Redundancy, Technique
from reference_impls.data import images
from reference_impls.data.controls import phase_scrambled, white_noise
from reference_impls.experiments.harness import (
    Context,
    Cost,
    cached,
    fork_seed,
    measure_arms,
    over_seeds,
    predict,
    train,
    trained,
)
from reference_impls.layers.layout import Size
from reference_impls.layers.residual import FeedForward, MapBlock
from reference_impls.layers.weights import copy_sharing_weights, randomise_parameters
from reference_impls.techniques.stride_attention import MapAttention, cell_means, coarsen_bias

GRID: Size = (8, 8)
"""Size of the map of patches."""
WIDTHS = (32, 64)
HEADS, KEY_DIM = 4, 8
LAYER_SCALE = 1.0
"""Where it starts. The papers' 1e-5 keeps the branches of so short a training shut."""


# --------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Recipe:
    """Every choice, besides the network and the seed, that its weights follow from."""

    images: int
    epochs: int
    tested: int
    lr: float = 1e-2
    batch_size: int = 64


FASHION = {"full": ("fashion-mnist",)}  # the small budget makes do with digits, which are always there
NULLS = ("phases scrambled", "white noise")
RECIPES = {
    "smoke": Recipe(images=640, epochs=1, tested=100, batch_size=32),
    "full": Recipe(images=6000, epochs=5, tested=2000),
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
    """Fashion-MNIST, in the small budget digits, as the recipe takes it: x_train (N, 1, 32, 32), y_train, x, y."""
    if recipe is RECIPES["smoke"]:
        x_train, y_train, x, y = images.digits()
        x_train, x = (F.interpolate(part, size=(28, 28), mode="bilinear") for part in (x_train, x))
    else:
        x_train, y_train, x, y = images.fashion_mnist()
    n, m = recipe.images, recipe.tested
    return prepare(x_train[:n]), y_train[:n], prepare(x[:m]), y[:m]


def some_images(ctx: Context) -> Tensor:
    """The first 64 test images (16 in the small budget), on which redundancy, MACs and time are measured."""
    return fashion(RECIPES[ctx.budget])[2][: 16 if ctx.smoke else 64]


def unit(ctx: Context) -> str:
    """What costs are given for, for the record."""
    return f"one image, in a batch of {len(some_images(ctx))}"


def described(ctx: Context) -> str:
    """The data in a line, for the record."""
    r = RECIPES[ctx.budget]
    return (
        f"{'digits of scikit-learn' if ctx.smoke else 'Fashion-MNIST'}, 28 x 28 pixels padded to 32 x 32: "
        f"{r.images:,} images to train for {r.epochs} epochs, "
        f"{r.tested:,} others to test"
    )


def hide(x: Tensor, generator: torch.Generator, share: float = 0.5) -> Tensor:
    """Images (B, 1, 32, 32) with patches of 4 x 4 hidden at random, and which pixels are: (B, 2, 32, 32)."""
    hidden = (torch.rand(len(x), 1, *GRID, generator=generator) < share).to(x)
    hidden = hidden.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.cat([x * (1 - hidden), hidden], 1)


def hidden_patches(x: Tensor, share: float = 0.5) -> Tensor:
    """`hide`, always the same patches."""
    return hide(x, torch.Generator().manual_seed(0), share)


def photo_crops(number: int = 64) -> Tensor:
    """Grey crops of natural photos, prepared like the clothes: (number, 1, 32, 32)."""
    _, photos = images.photos(256)
    crops = photos.mean(1, keepdim=True).unfold(2, 32, 32).unfold(3, 32, 32)  # (7, 1, 8, 8, 32, 32)
    crops = crops.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return prepare(crops[torch.randperm(len(crops), generator=torch.Generator().manual_seed(0))[:number]])


def looked_at(x: Tensor) -> dict[str, Tensor]:
    """The images that redundancy is measured on: x (B, 1, 32, 32) of the task, natural photos, and the nulls."""
    return {
        "clothes": x,
        "photos": photo_crops(len(x)),
        NULLS[0]: phase_scrambled(x),
        NULLS[1]: white_noise(x),
    }


def whole(x: Tensor) -> Tensor:
    """Images (B, 1, 32, 32) with no patch hidden, as `hide` gives them: (B, 2, 32, 32)."""
    return hidden_patches(x, share=0)


# --------------------------------------------------------------------------------------------------------------------
# Networks and their tasks


class FillIn(nn.Module):
    """Fills the hidden patches of images, (B, 2, 32, 32) as from `hide`, with what `network` paints: (B, 1, 32, 32)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        image, hidden = x[:, :1], x[:, 1:]
        return image + hidden * self.network(x)


def patches(channels: int) -> nn.Module:
    """Patches of 4 x 4 pixels as positions: (B, channels, 32, 32) -> (B, 32, 8, 8)."""
    return nn.Conv2d(channels, WIDTHS[0], 4, 4)


def painter(width: int, side: int) -> nn.Sequential:
    """Batch norm, and each position painted as `side` x `side` pixels: (B, width, H, W) -> (B, 1, H side, W side)."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, side**2, 1), nn.PixelShuffle(side))


def classifier(width: int, classes: int = 10) -> nn.Sequential:
    """Batch norm, the mean over the map, and a linear layer: (B, width, H, W) -> (B, classes)."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def map_block(width: int, mixer: nn.Module | None) -> MapBlock:
    """A block whose feed-forward part has no depthwise convolution, so that its mixer alone mixes positions."""
    return MapBlock(width, mixer, FeedForward(width, 2 * width), layer_scale=LAYER_SCALE)


def small_attention(stride: int = 1, *, project_first: bool = False) -> MapAttention:
    """The attention of the small networks."""
    return MapAttention(WIDTHS[0], GRID, HEADS, KEY_DIM, stride=stride, project_first=project_first)


@dataclass(frozen=True)
class Task:
    """What networks are trained to do, and how well they do it."""

    name: str
    metric: str
    inputs: Callable[[Tensor], Tensor]
    """Images (B, 1, 32, 32) -> what the network is tested on, always the same."""
    whole: Callable[[Tensor], Tensor]
    """The same with nothing taken from the images: what redundancy is measured on."""
    score: Callable[[nn.Module, Recipe], float]
    train: Callable[[nn.Module, Recipe, int, Callable[[int, int], None]], nn.Module]


def share_filled(model: nn.Module, recipe: Recipe) -> float:
    """Share of the variance of the test images' hidden pixels that is filled in rightly, 1 at best.

    1 - (sum of squared errors) / (sum of squared differences from the mean training image), over hidden pixels.
    """
    x_train, _, x, _ = fashion(recipe)
    inputs = hidden_patches(x)
    error = (predict(model, inputs) - x).square().sum()
    return 1 - (error / (inputs[:, 1:] * (x - x_train.mean(0))).square().sum()).item()


def train_to_fill(model: nn.Module, recipe: Recipe, seed: int, progress: Callable[[int, int], None]) -> nn.Module:
    """Train to fill patches that are hidden anew in every batch."""
    x, _, _, _ = fashion(recipe)
    return train(model, x, x, **_training(recipe, seed), loss=F.mse_loss, augment=hide, progress=progress)


def accuracy(model: nn.Module, recipe: Recipe) -> float:
    """Share of the test images that the network puts in the right class."""
    _, _, x, y = fashion(recipe)
    return (predict(model, x).argmax(1) == y).double().mean().item()


def train_to_classify(model: nn.Module, recipe: Recipe, seed: int, progress: Callable[[int, int], None]) -> nn.Module:
    """Train to tell the ten classes."""
    x, y, _, _ = fashion(recipe)
    return train(model, x, y, **_training(recipe, seed), progress=progress)


def _training(recipe: Recipe, seed: int) -> dict[str, Any]:
    return {"epochs": recipe.epochs, "lr": recipe.lr, "batch_size": recipe.batch_size, "seed": seed}


FILL = Task("fill", "variance of hidden pixels filled in", hidden_patches, whole, share_filled, train_to_fill)
CLASSIFY = Task("classify", "accuracy", lambda x: x, lambda x: x, accuracy, train_to_classify)


def map_network(task: Task, mixer: Callable[[], nn.Module | None], down: nn.Module | None = None) -> nn.Module:
    """A small EfficientFormerV2 on patches: two blocks of 32 channels on 8 x 8 with this mixer.

    With `down`, that and a block of 64 channels without mixer on 4 x 4 follow.
    """
    width, wide = WIDTHS
    layers: list[nn.Module] = [patches(2 if task is FILL else 1), *(map_block(width, mixer()) for _ in range(2))]
    if down is not None:
        layers += [down, map_block(wide, None)]
    if task is CLASSIFY:
        return nn.Sequential(*layers, classifier(wide if down else width))
    return FillIn(nn.Sequential(*layers, painter(wide, 8) if down else painter(width, 4)))


def fitted(ctx: Context, task: Task, name: str, build: Callable[[], nn.Module]) -> list[nn.Module]:
    """The network called `name`, trained for the task once with each seed, or the same ones from the cache."""
    recipe, models = RECIPES[ctx.budget], []
    for seed in seeds(ctx):

        def fresh(seed: int = seed) -> nn.Module:
            with fork_seed(seed):
                return build()

        def fit(model: nn.Module, seed: int = seed) -> nn.Module:
            return task.train(model, recipe, seed, lambda done, of: ctx.progress(f"{name}, seed {seed}", done, of))

        spec = {"task": task.name, "network": str(fresh()), "recipe": dataclasses.asdict(recipe), "seed": seed}
        spec["layer_scale"] = LAYER_SCALE
        models.append(trained(f"efficient-{task.name}-{name}", spec, fresh, fit))
    return models


def scores(ctx: Context, task: Task, name: str, models: Sequence[nn.Module]) -> list[float]:
    """How well each of the networks called `name` does the task, from the cache if they were tested before."""
    recipe = RECIPES[ctx.budget]
    weights = [hashlib.sha256(b"".join(v.numpy().tobytes() for v in m.state_dict().values())) for m in models]
    spec = {
        "recipe": dataclasses.asdict(recipe),
        "weights": [w.hexdigest() for w in weights],
        "network": str(models[0]),
    }
    values = cached(
        f"efficient-{task.name}-{name}", spec, lambda: torch.tensor([task.score(m, recipe) for m in models]).double()
    )
    return values.tolist()


# --------------------------------------------------------------------------------------------------------------------
# What scenarios measure


def sweep(
    ctx: Context, models: Sequence[nn.Module], arms: Mapping[str, Callable[[nn.Module], object]]
) -> tuple[dict[str, nn.Module], dict[str, list[float]]]:
    """Of each arm, which attaches something to twins of the models: the last twin, and how well each fills patches."""
    twins, values = {}, {}
    for done, (name, attach) in enumerate(arms.items()):
        values[name] = []
        for model in models:
            twins[name] = copy_sharing_weights(model)
            attach(twins[name])
            values[name].append(FILL.score(twins[name], RECIPES[ctx.budget]))
        ctx.progress("arms", done + 1, len(arms))
    return twins, values


def filled(values: Sequence[float]) -> Quality:
    """How well networks fill in patches, over their seeds."""
    return over_seeds(FILL.metric, values)


def costs_of(ctx: Context, models: Mapping[str, nn.Module], x: Tensor, repetitions: int = 25) -> dict[str, Cost]:
    """Every network counted and timed on the same inputs, for each of them."""
    return measure_arms(
        {name: partial(without_gradients, model, x) for name, model in models.items()},
        units=len(x),
        repetitions=3 if ctx.smoke else repetitions,
        threads=ctx.threads,
    )


def measured(
    models: Sequence[nn.Module], technique: Technique, x: Tensor, task: Task = FILL
) -> tuple[Measured, dict[str, Any]]:
    """Redundancy of whole images x over the networks, its nulls, and each place's for each kind of image.

    For networks that fill in patches also that of x with half of its patches hidden.
    """
    inputs = {name: task.whole(images) for name, images in looked_at(x).items()}
    if task is FILL:
        inputs["half hidden"] = hidden_patches(x)
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
# Cases: maps in front of attention

Kind = Literal["typical", "redundant", "null"]
CHANNELS = 12


def chessboards(number: int, channels: int, size: Size, generator: torch.Generator) -> Tensor:
    """Maps (number, channels, H, W) of one random number a channel, with the sign of the field of a chessboard."""
    fields = 1 - 2 * ((torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2)
    return torch.randn(number, channels, 1, 1, generator=generator) * fields


def map_case(kind: Kind, seed: int, device: str) -> Case:
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
            target = randomise_parameters(nn.Sequential(*blocks))
            noise = torch.randn(3, CHANNELS, 8, 8, generator=generator)
            smooth = F.interpolate(noise[..., :2, :2], size=8, mode="bilinear")
            inputs = torch.stack([noise[0], 0.2 * noise[1] + smooth[1], smooth[2]])
        else:
            target = tiny_attention()
            if kind == "null":
                inputs = chessboards(3, CHANNELS, (8, 8), generator)
            else:
                inputs = torch.randn(3, CHANNELS, 1, 1, generator=generator).expand(-1, -1, 8, 8).contiguous()
    return Case(target.eval().to(device), inputs.to(device), run=without_gradients)


def tiny_attention(size: Size = (8, 8)) -> MapAttention:
    """Attention of two heads on 12 channels."""
    return MapAttention(CHANNELS, size, heads=2, key_dim=4, ratio=2)


@torch.no_grad()
def without_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """model(x)."""
    return model(x)


def full_scores(attention: MapAttention, x: Tensor) -> Tensor:
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


def coarse_scores_are_means(rows: int, columns: int, seed: int, device: str) -> Iterator[Expectation]:
    """That averaging the map averages the scores: by loops over the full scores, and from the coarse maps."""
    with fork_seed(seed):
        attention = randomise_parameters(tiny_attention()).double().eval().to(device)
        x = torch.randn(2, CHANNELS, 8, 8, dtype=torch.float64).to(device)
    with torch.no_grad():
        q, k = attention.q(cell_means(x, rows)), attention.k(cell_means(x, columns))
        q, k = (y.flatten(2).unflatten(1, (attention.heads, -1)) for y in (q, k))
        bias = coarsen_bias(attention.bias((8, 8)), (8, 8), rows, columns)
        coarse = q.transpose(2, 3) @ k * attention.key_dim**-0.5 + bias
        yield Expectation("scores of cells", mean_of_cells(full_scores(attention, x), (8, 8), rows, columns), coarse)
