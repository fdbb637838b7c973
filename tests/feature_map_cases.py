"""Cases of techniques on feature maps: maps before attention, and what coarse attention must agree with."""

from __future__ import annotations

import cmath
from collections.abc import Iterator
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import Case, Expectation, generator
from reference_impls.layers.layout import Size
from reference_impls.layers.residual import FeedForward, MapBlock
from reference_impls.layers.weights import randomise_parameters
from reference_impls.study import fork_seed
from reference_impls.techniques.stride_attention import MapAttention, cell_means, coarsen_bias

Kind = Literal["typical", "redundant", "null"]
CHANNELS = 12


def three_maps(kind: Kind, size: Size, seed: int) -> Tensor:
    """Constant maps (redundant) or chessboards (null), a random number for each channel; typical: a map of noise, one
    in between, and a smooth one. (3, CHANNELS, H, W)
    """
    draws = generator(seed)
    if kind == "typical":
        noise = torch.randn(3, CHANNELS, *size, generator=draws)
        smooth = F.interpolate(noise[..., :2, :2], size=size, mode="bilinear")
        return torch.stack([noise[0], 0.2 * noise[1] + smooth[1], smooth[2]])
    fields = 1 - 2 * ((torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2)
    level = torch.randn(3, CHANNELS, 1, 1, generator=draws)
    return level * (fields if kind == "null" else torch.ones(size))


def map_case(kind: Kind, seed: int, device: str) -> Case:
    """`MapAttention` on constant maps (redundant) or chessboards (null), which give constant maps or chessboards again:
    without position bias and with even sides, what a query gathers depends on its own colour alone. Typical: two blocks
    with random statistics and biases.
    """
    with fork_seed(seed):
        target: nn.Module = tiny_attention()
        if kind == "typical":
            mixers = (target, tiny_attention())
            blocks = (
                MapBlock(CHANNELS, mixer, FeedForward(CHANNELS, 24, local=True), layer_scale=1.0) for mixer in mixers
            )
            target = randomise_parameters(nn.Sequential(*blocks))
    x = three_maps(kind, (8, 8), seed)
    return Case(target.eval().to(device), x.to(device), run=lambda model, x: model(x))


def waves() -> Tensor:
    """Two feature maps (2, 12, 16, 16) of waves with 3 and 4 cycles; 4 is the limit of half the resolution."""
    turns = 2 * torch.pi * torch.arange(16) / 16
    return torch.stack([torch.cos(cycles * turns) for cycles in (3, 4)]).view(2, 1, 1, 16).repeat(1, CHANNELS, 16, 1)


def tiny_attention(size: Size = (8, 8)) -> MapAttention:
    """Attention of two heads on 12 channels."""
    return MapAttention(CHANNELS, size, heads=2, key_dim=4, ratio=2)


def mean_of_cells(matrix: Tensor, size: Size, rows: int, columns: int) -> Tensor:
    """Means of (..., N, N) over cells of the map (H, W), by plain loops: (..., n, m)."""

    def cells(factor: int) -> list[list[int]]:
        corners = product(range(0, size[0], factor), range(0, size[1], factor))
        return [[(i + a) * size[1] + j + b for a in range(factor) for b in range(factor)] for i, j in corners]

    means = [[matrix[..., r, :][..., c].mean((-2, -1)) for c in cells(columns)] for r in cells(rows)]
    return torch.stack([torch.stack(row, -1) for row in means], -2)


def coarse_scores_are_means(rows: int, columns: int, seed: int, device: str) -> Iterator[Expectation]:
    """That averaging the map averages the scores: by loops over the full scores, and from the coarse maps."""
    with fork_seed(seed):
        attention = randomise_parameters(tiny_attention()).double().eval().to(device)
        x = torch.randn(2, CHANNELS, 8, 8, dtype=torch.float64).to(device)
    bias = attention.bias((8, 8))

    def scores(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        q, k = (y.flatten(2).unflatten(1, (attention.heads, -1)) for y in (attention.q(queries), attention.k(keys)))
        return q.transpose(2, 3) @ k * attention.key_dim**-0.5 + bias

    with torch.no_grad():
        coarse = scores(cell_means(x, rows), cell_means(x, columns), coarsen_bias(bias, (8, 8), rows, columns))
        yield Expectation("scores of cells", mean_of_cells(scores(x, x, bias), (8, 8), rows, columns), coarse)


def energy_share(maps: list[list[list[float]]], factor: int) -> float:
    """`over_resolution` of one datum (C, H, W) by plain sums: its Fourier coefficients one after the other."""
    height, width = len(maps[0]), len(maps[0][0])
    below = total = kept = 0.0

    def weight(frequency: int, size: int) -> float:
        frequency, limit = min(frequency, size - frequency), size / factor / 2
        return 1.0 if frequency < limit else 0.5 if frequency == limit else 0.0

    for v, u in list(product(range(height), range(width)))[1:]:
        turns = {
            (i, j): cmath.exp(2j * cmath.pi * (v * i / height + u * j / width))
            for i, j in product(range(height), range(width))
        }
        energy = sum(abs(sum(channel[i][j] * turn for (i, j), turn in turns.items())) ** 2 for channel in maps)
        share = weight(v, height) * weight(u, width)
        below, total, kept = below + share * energy, total + energy, kept + share
    white = kept / (height * width - 1)
    return min(max((below / total - white) / (1 - white), 0.0), 1.0)
