"""Spatial similarity: how close the parts of one datum (tokens, patches, positions) are to one another.

The measure of a datum with parts t_1 ... t_N is the mean over i of max(0, max_{j != i} cos(t_i, t_j)): 0 when all parts
are mutually orthogonal (or opposed), 1 when every part has an identical twin.

Where the parts lie on a grid, `neighbour_similarity` compares each with the mean of its direct neighbours instead: 0
for independent parts, 1 when every part equals its surroundings.

A mean shared by all parts raises every cosine without making any part replaceable, so the measure comes in two forms:
raw, which is what techniques that match by cosine see, and centred, with the mean part of the datum subtracted first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract.errors import check_tensor


def directions(tokens: Tensor, *, centred: bool = False) -> Tensor:
    """Unit vectors of tokens (B, N, D), optionally with the mean over N subtracted first: (B, N, D + 1).

    The last coordinate is 1 for a zero vector, else 0, so that a zero vector is identical to zero vectors and
    orthogonal to all others.
    """
    check_tensor("tokens", tokens, "B N D")
    if centred:
        tokens = without_mean(tokens)
    zero = (tokens == 0).all(-1, keepdim=True).to(tokens.dtype)
    return torch.cat([F.normalize(tokens, dim=-1, eps=torch.finfo(tokens.dtype).tiny), zero], dim=-1)


def without_mean(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) minus their mean over N. Identical tokens leave exact zeros, not rounding errors."""
    scale = tokens.abs().amax((1, 2), keepdim=True)
    tokens = tokens - tokens.mean(1, keepdim=True)
    return tokens.masked_fill(tokens.abs() <= 8 * torch.finfo(tokens.dtype).eps * scale, 0)


def best_match(tokens: Tensor, *, centred: bool = False) -> Tensor:
    """Cosine of each token (B, N, D) with the most similar other token of the same datum: (B, N) in [-1, 1].

    A datum of a single token has no other: 0. Raises ValueError for a wrong shape or values that are not finite.
    """
    unit = directions(tokens, centred=centred)
    if unit.shape[1] < 2:
        return tokens.new_zeros(tokens.shape[:2])
    cosine = unit @ unit.transpose(1, 2)  # (B, N, N)
    cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return cosine.amax(2).clamp(-1, 1)


def spatial_similarity(tokens: Tensor, *, centred: bool = False) -> Tensor:
    """Mean best-match cosine of the tokens (B, N, D) of each datum, negative ones counted as 0: (B,) in [0, 1]."""
    return best_match(tokens, centred=centred).clamp(min=0).mean(1)


def neighbour_similarity(maps: Tensor, *, centred: bool = True) -> Tensor:
    """Mean cosine of the positions of each map (B, C, H, W) with the mean of their neighbours: (B,) in [0, 1].

    Neighbours are the up to 4 positions next to one, above, below, left and right. A negative mean counts as 0, and so
    does the only position of a map of one. `centred` subtracts the mean position of the datum first.

    Raises: TypeError or ValueError for a wrong shape or values that are not finite.
    """
    check_tensor("maps", maps, "B C H W")
    if maps.shape[2] * maps.shape[3] < 2:
        return maps.new_zeros(len(maps))
    tokens = maps.flatten(2).transpose(1, 2)  # (B, N, C)
    if centred:
        tokens = without_mean(tokens)
        maps = tokens.transpose(1, 2).view_as(maps)
    around = (_sum_of_neighbours(maps) / _sum_of_neighbours(torch.ones_like(maps[:1, :1]))).flatten(2).transpose(1, 2)
    return (directions(tokens) * directions(around)).sum(2).mean(1).clamp(0, 1)


def _sum_of_neighbours(maps: Tensor) -> Tensor:
    """The sum of the up to 4 neighbours of each position: (B, C, H, W) -> (B, C, H, W)."""
    x = F.pad(maps, (1, 1, 1, 1))
    return x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
