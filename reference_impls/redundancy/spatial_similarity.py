"""Spatial similarity: how close the parts of one datum (tokens, patches, positions) are to one another.

The measure of a datum with parts t_1 ... t_N is the mean over i of max(0, max_{j != i} cos(t_i, t_j)): 0 when all parts
are mutually orthogonal (or opposed), 1 when every part has an identical twin.

A mean shared by all parts raises every cosine without making any part replaceable, so the measure comes in two forms:
raw, which is what techniques that match by cosine see, and centred, with the mean part of the datum subtracted first.

All of it is computed in float32 or wider, whatever the dtype of the parts.

Where parts lie on a grid, `neighbour_similarity` asks less: whether a position looks like those beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract import check_range, generator
from reference_impls.contract.precision import near_one, widened, without_autocast
from reference_impls.redundancy.inputs import checked, measurable


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


# --------------------------------------------------------------------------------------------------------------------
# Rows that could share a product, and channels that follow from others


@dataclass(frozen=True)
class Reuse:
    """Rows of a product in groups of equal signatures: what each group's mean could stand for (ning-2019-adaptive)."""

    group: Tensor
    """(R,) int64, the group of each row."""
    groups: int
    bits: int

    @property
    def ratio(self) -> float:
        """r_c, groups over rows, in (0, 1]; 1 where there are no rows."""
        return self.groups / len(self.group) if len(self.group) else 1.0

    def mean(self, rows: Tensor) -> Tensor:
        """The mean row of each row's group: (R, D) -> (R, D)."""
        sums = rows.new_zeros(self.groups, rows.shape[1]).index_add_(0, self.group, rows)
        counts = rows.new_zeros(self.groups).index_add_(0, self.group, rows.new_ones(len(rows)))
        return (sums / counts[:, None]).index_select(0, self.group)

    def saved(self, outputs: int) -> float:
        """Share of the MACs of a product with `outputs` columns, 1 - H / N - r_c: hashing is a product with H."""
        return 1 - self.bits / outputs - self.ratio


def row_reuse(rows: Tensor, bits: int, seed: int = 0, scope: Tensor | None = None) -> Reuse:
    """Group rows (R, D) by the signs of `bits` random projections (locality-sensitive hashing).

    scope: (R,) int64; rows of different scopes never share a group, such as those of different data.
    Raises: ValueError for other shapes, values that are not finite, or bits outside [1, 62].
    """
    check_range("bits", bits, 1, 62, integer=True)
    checked("rows", rows, "R D")
    directions = torch.randn(rows.shape[1], bits, generator=generator(seed)).to(rows.device)
    with without_autocast(rows):
        signs = (widened(rows) @ directions) > 0  # (R, H)
    powers = 2.0 ** torch.arange(bits, device=rows.device, dtype=torch.float64)
    exact = bits <= 52  # of which every sum is a number of 64 bits with floating point
    signature = (signs.double() @ powers).long() if exact else (signs.long() * powers.long()).sum(1)
    if scope is not None:  # scopes and signatures as one integer, of which rows are grouped faster than of two
        _, signature = signature.unique(return_inverse=True)
        signature = scope.to(rows.device) * (len(rows) + 1) + signature
    unique, group = signature.unique(return_inverse=True)
    return Reuse(group, len(unique), bits)


class ChannelStatistics:
    """Covariance of the channels of rows, summed up as they come: memory C^2 (delve's layer saturation works so)."""

    def __init__(self) -> None:
        self.n = 0
        self._mean: Tensor | None = None
        self._moment: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Rows (R, C), in float64."""
        rows = rows.double()
        mean, n = rows.mean(0), len(rows)
        centred = rows - mean
        moment = centred.T @ centred
        if self._mean is None or self._moment is None:
            self.n, self._mean, self._moment = n, mean, moment
            return
        both, apart = self.n + n, mean - self._mean
        self._moment += moment + torch.outer(apart, apart) * (self.n * n / both)
        self._mean = self._mean + apart * (n / both)
        self.n = both

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        assert self._mean is not None
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(C, C), divided by n."""
        assert self._moment is not None
        return self._moment / max(self.n, 1)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (C,), largest first and not negative, and their vectors (C, C) in columns."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.flip(0).clamp(min=0), vectors.flip(1)


def rank_for(eigenvalues: Tensor, share: float = 0.99) -> int:
    """k: the fewest directions that hold `share` of the variance; eigenvalues (C,), largest first. 0 without variance.

    Directions of rounding (below 1e-9 of the largest) never count.
    """
    check_range("share", share, 0, 1, low_open=True)
    if not len(eigenvalues) or eigenvalues[0] <= 0:
        return 0
    real = eigenvalues * (eigenvalues > 1e-9 * eigenvalues[0])
    held = real.cumsum(0) / real.sum()
    return min(int((held < share - 1e-9).sum()) + 1, len(eigenvalues))


def channel_redundancy(eigenvalues: Tensor, share: float = 0.99) -> float:
    """(C - k) / (C - 1): 0 when every channel has variance of its own, 1 when all follow from one."""
    channels = len(eigenvalues)
    if channels < 2:
        return 0.0
    return min((channels - max(rank_for(eigenvalues, share), 1)) / (channels - 1), 1.0)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the eigenvalues as shares: between 1 and C."""
    share = eigenvalues / eigenvalues.sum().clamp(min=torch.finfo(eigenvalues.dtype).tiny)
    return float((-torch.xlogy(share, share).sum()).exp())


def correlated_pairs(covariance: Tensor, at_least: float = 0.95) -> float:
    """Share of the pairs of channels with |correlation| above a limit: covariance (C, C) -> [0, 1]."""
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    varies = deviation > 0
    if int(varies.sum()) < 2:
        return 0.0
    correlation = (covariance / deviation[:, None] / deviation)[varies][:, varies]
    above = (correlation.abs() > at_least).sum() - len(correlation)
    return float(above) / (len(correlation) * (len(correlation) - 1))
