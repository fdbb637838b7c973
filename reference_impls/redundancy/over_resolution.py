"""Over-resolution: how much of a map a coarser grid would keep.

A grid that is `factor` times coarser along each axis holds the frequencies below its own Nyquist limit, and no others.
The measure of a map is the share of its energy at those frequencies, without the mean (every grid holds that, and it
says nothing of detail), scaled so that white noise gives 0 and a constant map 1:

    value = max(0, (share - share of white noise) / (1 - share of white noise))

A component exactly at the limit is one number on the coarse grid and two on the fine one, so it counts half. Then the
share of white noise is (n - 1) / (N - 1) for n coarse and N fine positions, sizes divisible by the factor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract.errors import check_range, check_tensor


def energy_below_limit(maps: Tensor, factor: int = 2) -> tuple[Tensor, Tensor, float]:
    """Energy of maps (B, C, H, W) below the coarser grid's Nyquist limit, all of it, and white noise's share of it.

    Both energies, (B,) each, are without the mean of each channel and summed over channels, as mean squares.
    Raises: TypeError or ValueError for a wrong shape, values that are not finite, or a factor below 2.
    """
    check_tensor("maps", maps, "B C H W")
    check_range("factor", factor, 2, integer=True)
    spectrum = torch.fft.fft2(centred(maps).to(torch.promote_types(maps.dtype, torch.float32)), norm="forward")
    energy = spectrum.abs().square().sum(1)  # (B, H, W)
    keep = held_frequencies(maps.shape[2], factor)[:, None] * held_frequencies(maps.shape[3], factor)
    white = (keep.sum().item() - 1) / max(keep.numel() - 1, 1)
    return (energy * keep.to(energy)).sum((1, 2)), energy.sum((1, 2)), white


def held_frequencies(size: int, factor: int) -> Tensor:
    """How much of each frequency of an axis of `size` positions a grid `factor` times coarser holds: (size,)."""
    frequency, limit = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64).abs(), size / (2 * factor)
    return (frequency < limit).double() + 0.5 * (frequency == limit)


def over_resolution(maps: Tensor, factor: int = 2) -> Tensor:
    """The measure of each map (B, C, H, W): (B,) in [0, 1]. A constant map measures 1.

    Raises: TypeError or ValueError for a wrong shape, values that are not finite, or a factor below 2.
    """
    below, all_of_it, white = energy_below_limit(maps, factor)
    share = torch.where(all_of_it > 0, below / all_of_it.clamp(min=torch.finfo(below.dtype).tiny), 1.0)
    return ((share - white) / (1 - white)).clamp(0, 1)


def interpolation_error(maps: Tensor, factor: int = 2) -> Tensor:
    """Error of average pooling and bilinear interpolation, relative to the variance of each map (B, C, H, W): (B,).

    0 for a constant map; at most about 1 otherwise (0.82 for large maps of white noise and factor 2).
    Raises: TypeError or ValueError for a wrong shape, values that are not finite, or a factor below 2.
    """
    check_tensor("maps", maps, "B C H W")
    check_range("factor", factor, 2, integer=True)
    detail = centred(maps)
    error = (detail - refine(coarsen(detail, factor), detail.shape[2:])).square().sum((1, 2, 3))
    return error / detail.square().sum((1, 2, 3)).clamp(min=torch.finfo(maps.dtype).tiny)


def coarsen(maps: Tensor, factor: int) -> Tensor:
    """Average pooling (B, C, H, W) -> (B, C, ceil(H / factor), ceil(W / factor))."""
    return F.adaptive_avg_pool2d(maps, [-(-size // factor) for size in maps.shape[2:]])


def refine(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bilinear interpolation to (H, W) = `size`, pixels as areas (align_corners False)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def centred(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) without the mean of each channel; what rounding leaves of a constant channel becomes 0."""
    scale = maps.abs().amax((2, 3), keepdim=True)
    maps = maps - maps.mean((2, 3), keepdim=True)
    return maps.masked_fill(maps.abs() <= 8 * torch.finfo(maps.dtype).eps * scale, 0)
