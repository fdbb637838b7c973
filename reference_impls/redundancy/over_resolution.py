"""Over-resolution: how much of a map is still there when it is sampled on a coarser grid.

The measure is the share of the variance over positions that survives the round trip to the coarser grid and back, both
by bilinear interpolation, with a filter against aliasing on the way down: 1 for a map without detail, and for white
noise about the share of the numbers that is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract.errors import check_range, check_tensor

Size = tuple[int, int]


def coarsen(maps: Tensor, size: Size) -> Tensor:
    """Maps (B, C, H, W) sampled at `size` = (h, w), without aliasing: (B, C, h, w)."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)


def kept_detail(maps: Tensor, size: Size) -> Tensor:
    """Share of the variance of each datum of maps (B, C, H, W) that sampling at `size` keeps: (B,) in [0, 1].

    K = max(0, 1 - sum (x - x')^2 / sum (x - mean x)^2) with x' the map after the round trip, the mean over positions,
    and the sums over channels and positions; a constant map keeps everything.
    Raises ValueError for a wrong shape or values that are not finite.
    """
    check_tensor("maps", maps, "B C H W")
    back = F.interpolate(coarsen(maps, size), size=maps.shape[2:], mode="bilinear", align_corners=False)
    lost = (maps - back).square().sum((1, 2, 3))
    total = (maps - maps.mean((2, 3), keepdim=True)).square().sum((1, 2, 3))
    # What rounding leaves of a constant map is no detail.
    noise = maps[0].numel() * (8 * torch.finfo(maps.dtype).eps * maps.abs().amax((1, 2, 3))).square()
    return torch.where(total <= noise, torch.ones_like(total), (1 - lost / total.clamp(min=1e-30)).clamp(0, 1))


def coarsest(maps: Tensor, sizes: Sequence[Size], tolerance: float) -> Size:
    """The smallest of `sizes` at which every datum of maps (B, C, H, W) keeps at least 1 - `tolerance` of its variance.

    Sizes are tried from the smallest on; the map's own size is the answer if none will do.
    Raises ValueError for a wrong shape, values that are not finite, or a bad tolerance.
    """
    check_range("tolerance", tolerance, 0, 1)
    for size in sorted(sizes):
        if bool((kept_detail(maps, size) >= 1 - tolerance).all()):
            return size
    return maps.shape[2], maps.shape[3]
