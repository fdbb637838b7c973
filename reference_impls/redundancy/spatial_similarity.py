"""Spatial similarity: how close the parts of one datum (tokens, patches, positions) are to one another.

The measure of a datum with parts t_1 ... t_N is the mean over i of max(0, max_{j != i} cos(t_i, t_j)): 0 when all parts
are mutually orthogonal (or opposed), 1 when every part has an identical twin.

A mean shared by all parts raises every cosine without making any part replaceable, so the measure comes in two forms:
raw, which is what techniques that match by cosine see, and centred, with the mean part of the datum subtracted first.

All of it is computed in float32 or wider, whatever the dtype of the parts.

Where parts lie on a grid, `neighbour_similarity` asks less: whether a position looks like those beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract.precision import near_one, without_autocast
from reference_impls.redundancy.inputs import measurable


def centre(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) of float32 or wider, not empty, without their mean over N; each datum scaled to about 1."""
    tokens = near_one(tokens, (1, 2))
    scale = tokens.abs().amax((1, 2), keepdim=True)
    tokens = tokens - tokens.mean(1, keepdim=True)
    # Identical tokens leave rounding errors, not directions.
    return tokens.masked_fill(tokens.abs() <= 8 * torch.finfo(tokens.dtype).eps * scale, 0)


def directions(tokens: Tensor, *, centred: bool = False) -> Tensor:
    """Unit vectors of tokens (B, N, D), optionally with the mean over N subtracted first: (B, N, D + 1).

    The last coordinate is 1 for a zero vector, else 0, so that a zero vector is identical to zero vectors and
    orthogonal to all others. Raises TypeError or ValueError for a wrong shape, no values, or values not finite.
    """
    tokens = measurable("tokens", tokens, "B N D")
    tokens = near_one(centre(tokens) if centred else tokens, 2)
    zero = (tokens == 0).all(-1, keepdim=True).to(tokens.dtype)
    return torch.cat([F.normalize(tokens, dim=-1, eps=torch.finfo(tokens.dtype).tiny), zero], dim=-1)


def best_match(tokens: Tensor, *, centred: bool = False) -> Tensor:
    """Cosine of each token (B, N, D) with the most similar other token of the same datum: (B, N) in [-1, 1].

    A datum of a single token has no other: 0. Raises ValueError for a wrong shape or values that are not finite.
    """
    unit = directions(tokens, centred=centred)
    if unit.shape[1] < 2:
        return unit.new_zeros(unit.shape[:2])
    with without_autocast(unit):
        cosine = unit @ unit.transpose(1, 2)  # (B, N, N)
    cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return cosine.amax(2).clamp(-1, 1)


def spatial_similarity(tokens: Tensor, *, centred: bool = False) -> Tensor:
    """Mean best-match cosine of the tokens (B, N, D) of each datum, negative ones counted as 0: (B,) in [0, 1]."""
    return best_match(tokens, centred=centred).clamp(min=0).mean(1)


def neighbour_similarity(maps: Tensor, *, centred: bool = True) -> Tensor:
    """Mean cosine of each position of maps (B, C, H, W) with the mean of its up to four neighbours: (B,) in [0, 1].

    1 where the map is constant or changes slowly, 0 for independent noise; a negative mean counts as 0. `centred`
    subtracts the mean position of the map first. Raises ValueError for a wrong shape or values that are not finite.
    """
    maps = measurable("maps", maps, "B C H W")
    if maps.shape[2] * maps.shape[3] < 2:
        return maps.new_zeros(maps.shape[0])
    tokens = maps.flatten(2).transpose(1, 2)  # (B, H * W, C)
    tokens = centre(tokens) if centred else near_one(tokens, (1, 2))  # sums of neighbours do not overflow then
    grid = F.pad(tokens.transpose(1, 2).view_as(maps), (1, 1, 1, 1))
    beside = grid[..., :-2, 1:-1] + grid[..., 2:, 1:-1] + grid[..., 1:-1, :-2] + grid[..., 1:-1, 2:]
    beside = beside.flatten(2).transpose(1, 2)  # the sum of the neighbours points where their mean does
    return (directions(tokens) * directions(beside)).sum(2).mean(1).clamp(0, 1)
