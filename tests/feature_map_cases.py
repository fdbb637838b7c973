"""Cases of techniques on feature maps: maps in front of attention, and what coarse attention must agree with."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


def chessboards(number: int, channels: int, size: Size, draws: torch.Generator) -> Tensor:
    """Feature maps (number, channels, H, W): a random number for each channel, with a chessboard's signs."""
    fields = 1 - 2 * ((torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2)
    return torch.randn(number, channels, 1, 1, generator=draws) * fields


def map_case(kind: Kind, seed: int, device: str) -> Case:
    """`MapAttention` on constant maps (redundant) or chessboards (null), which give constant maps or chessboards again:
    without position bias and with even sides, what a query gathers depends on its own colour alone. Typical: two blocks
    with random statistics and biases, on a map of noise, a smooth one, and one in between.
    """
    draws = generator(seed)
    with fork_seed(seed):
        if kind == "typical":
            blocks = [
                MapBlock(CHANNELS, tiny_attention(), FeedForward(CHANNELS, 24, local=True), layer_scale=1.0)
                for _ in range(2)
            ]
            target = randomise_parameters(nn.Sequential(*blocks))
            noise = torch.randn(3, CHANNELS, 8, 8, generator=draws)
            smooth = F.interpolate(noise[..., :2, :2], size=8, mode="bilinear")
            inputs = torch.stack([noise[0], 0.2 * noise[1] + smooth[1], smooth[2]])
        else:
            target = tiny_attention()
            if kind == "null":
                inputs = chessboards(3, CHANNELS, (8, 8), draws)
            else:
                inputs = torch.randn(3, CHANNELS, 1, 1, generator=draws).expand(-1, -1, 8, 8).contiguous()
    return Case(target.eval().to(device), inputs.to(device), run=lambda model, x: model(x))


def waves() -> Tensor:
    """Two feature maps (2, 12, 16, 16) of waves with 3 and 4 cycles; 4 is the limit of half the resolution."""
    turns = 2 * math.pi * torch.arange(16) / 16
    return torch.stack([torch.cos(cycles * turns) for cycles in (3, 4)]).view(2, 1, 1, 16).repeat(1, CHANNELS, 16, 1)


def tiny_attention(size: Size = (8, 8)) -> MapAttention:
    """Attention of two heads on 12 channels."""
    return MapAttention(CHANNELS, size, heads=2, key_dim=4, ratio=2)


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


def energy_share(maps: list[list[list[float]]], factor: int) -> float:
    """`over_resolution` of one datum (C, H, W) by plain sums: its Fourier coefficients one after the other."""
    height, width = len(maps[0]), len(maps[0][0])
    below = total = kept = 0.0

    def weight(frequency: int, size: int) -> float:
        frequency, limit = min(frequency, size - frequency), size / factor / 2
        return 1.0 if frequency < limit else 0.5 if frequency == limit else 0.0

    for v in range(height):
        for u in range(width):
            if u == v == 0:
                continue
            energy = 0.0
            for channel in maps:
                turns = (
                    (2 * math.pi * (v * i / height + u * j / width), channel[i][j])
                    for i in range(height)
                    for j in range(width)
                )
                real, imaginary = map(sum, zip(*((x * math.cos(t), x * math.sin(t)) for t, x in turns), strict=True))
                energy += real**2 + imaginary**2
            share = weight(v, height) * weight(u, width)
            below, total, kept = below + share * energy, total + energy, kept + share
    white = kept / (height * width - 1)
    return min(max((below / total - white) / (1 - white), 0.0), 1.0)
