"""Over-resolution: how much of a map is still there when it is sampled on a coarser grid.

Two measures, both without the mean over positions, which every grid holds. `kept_detail` is the share of the variance
that survives the round trip to the coarser grid and back, both by bilinear interpolation, with a filter against
aliasing on the way down: 1 for a map without detail, and for white noise about the share of the numbers that is left.

`over_resolution` asks of the map alone, whatever the filter: the share of its energy at frequencies below the Nyquist
limit of a grid `factor` times coarser along each axis, scaled so that white noise gives 0 and a constant map 1:

    max(0, (share - share of white noise) / (1 - share of white noise))

A wave exactly at the limit is one number on the coarse grid and two on the fine one, so it counts half. Then the share
of white noise is (n - 1) / (N - 1) for n coarse and N fine positions, sizes divisible by the factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract.errors import check_range
from reference_impls.contract.precision import near_one, widened
from reference_impls.redundancy.inputs import measurable


def coarsen(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) sampled at `size` = (h, w), without aliasing, in float32 or wider: (B, C, h, w), same dtype."""
    if maps.shape[2:] == size:
        return maps
    small = F.interpolate(widened(maps), size=size, mode="bilinear", align_corners=False, antialias=True)
    return small.to(maps.dtype)


def kept_detail(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of the variance of each datum of maps (B, C, H, W) that sampling at `size` keeps: (B,) in [0, 1].

    K = max(0, 1 - sum (x - x')^2 / sum (x - mean x)^2) with x' the map after the round trip, the mean over positions,
    and the sums over channels and positions; a constant map keeps everything.
    Raises ValueError for a wrong shape, no positions, or values that are not finite.
    """
    maps = near_one(measurable("maps", maps, "B C H W"), (1, 2, 3))
    back = F.interpolate(coarsen(maps, size), size=maps.shape[2:], mode="bilinear", align_corners=False)
    lost = (maps - back).square().sum((1, 2, 3))
    total = (maps - maps.mean((2, 3), keepdim=True)).square().sum((1, 2, 3))
    # What rounding leaves of a constant map is no detail.
    noise = math.prod(maps.shape[1:]) * (8 * torch.finfo(maps.dtype).eps * maps.abs().amax((1, 2, 3))).square()
    return torch.where(total <= noise, torch.ones_like(total), (1 - lost / total.clamp(min=1e-30)).clamp(0, 1))


def coarsest(maps: Tensor, sizes: Sequence[tuple[int, int]], tolerance: float) -> tuple[int, int]:
    """The smallest of `sizes` at which every datum of maps (B, C, H, W) keeps at least 1 - `tolerance` of its variance.

    Sizes are tried from the smallest on; the map's own size is the answer if none will do.
    Raises ValueError for a wrong shape, values that are not finite, or a bad tolerance.
    """
    check_range("tolerance", tolerance, 0, 1)
    enough = (size for size in sorted(sizes) if bool((kept_detail(maps, size) >= 1 - tolerance).all()))
    return next(enough, (maps.shape[2], maps.shape[3]))


def over_resolution(maps: Tensor, factor: int = 2) -> Tensor:
    """Scaled share of energy of each of maps (B, C, H, W) that a grid `factor` times coarser holds: (B,) in [0, 1].

    Energy is that of the Fourier coefficients, summed over channels and without the mean of each.
    Raises TypeError or ValueError for a wrong shape, no positions, values that are not finite, or a factor below 2.
    """
    maps = near_one(measurable("maps", maps, "B C H W"), (1, 2, 3))
    check_range("factor", factor, 2, integer=True)
    energy = spectrum(maps)
    held = held_frequencies(maps.shape[2], factor)[:, None] * held_frequencies(maps.shape[3], factor)
    white = (held.sum().item() - 1) / max(held.numel() - 1, 1)
    below, total = (energy * held.to(energy)).sum((1, 2)), energy.sum((1, 2))
    share = torch.where(total > 0, below / total.clamp(min=torch.finfo(total.dtype).tiny), 1.0)
    return ((share - white) / (1 - white)).clamp(0, 1)


def spectrum(maps: Tensor) -> Tensor:
    """Energy of maps (B, C, H, W) at each frequency, summed over channels, 0 for the mean: (B, H, W)."""
    maps = widened(maps)
    if not len(maps):  # which Fourier transforms refuse
        return maps.new_zeros(0, *maps.shape[2:])
    scale = maps.abs().amax((2, 3), keepdim=True)
    detail = maps - maps.mean((2, 3), keepdim=True)
    # What rounding leaves of a constant channel is no detail.
    detail = detail.masked_fill(detail.abs() <= 8 * torch.finfo(maps.dtype).eps * scale, 0)
    return torch.fft.fft2(detail, norm="forward").abs().square().sum(1)


def held_frequencies(size: int, factor: int) -> Tensor:
    """How much of each frequency of an axis of `size` positions a grid `factor` times coarser holds: (size,)."""
    frequency, limit = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64).abs(), size / (2 * factor)
    return (frequency < limit).double() + 0.5 * (frequency == limit)


def low_band_channels(maps: Tensor, share: float = 0.99) -> Tensor:
    """Share of the channels of each map that half the grid holds: E(up(pool x))^2 / E x^2 >= `share`: (B,) in [0, 1].

    maps: (B, C, H, W). With a share a of such channels an octave convolution saves 0.75 a (2 - a) of its MACs
    (chen-2019-drop). A channel of zeros counts; a map with a side of 1 has no half.
    """
    maps = near_one(measurable("maps", maps, "B C H W"), (1, 2, 3))
    check_range("share", share, 0, 1)
    if min(maps.shape[2:]) < 2:
        return maps.new_zeros(len(maps), dtype=torch.float64)
    low = F.interpolate(F.avg_pool2d(maps, 2, ceil_mode=True), size=maps.shape[2:], mode="nearest")
    kept, total = low.square().sum((2, 3)), maps.square().sum((2, 3))
    return (kept >= share * total).double().mean(1)


def octave_saving(share: float) -> float:
    """MACs that an octave convolution saves with this share of its channels on half the grid: 0.75 a (2 - a)."""
    return 0.75 * share * (2 - share)
