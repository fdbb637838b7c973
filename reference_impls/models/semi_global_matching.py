"""Semi-global matching: dense disparity of a rectified pair without learning (Hirschmüller, TPAMI 2008).

Costs are the bits in which census transforms differ. Along each of four directions they are aggregated with a small
penalty for steps of one disparity and a larger one for more; the least sum wins. A pixel is kept if the right image,
matched in turn, leads back to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL_STEP, LARGE_STEP = 3.0, 20.0
CENSUS = 5


def semi_global_matching(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Disparity (H, W) of the left image in [0, `disparities`), to a fraction of a pixel; infinite where not found.

    left, right: (3, H, W) or (1, H, W) in [0, 1].
    """
    if left.shape != right.shape or left.ndim != 3:
        raise ValueError(f"both images must have the same shape (C, H, W), got {left.shape} and {right.shape}")
    a, b = (census(x.mean(0)) for x in (left, right))
    cost = matching_costs(a, b, disparities)
    total = aggregated(cost)
    found = total.argmin(0)
    mirrored = aggregated(matching_costs(b.flip(2), a.flip(2), disparities)).argmin(0).flip(1)
    column = torch.arange(left.shape[2]) - found
    back = mirrored.gather(1, column.clamp(min=0))
    kept = (column >= 0) & ((back - found).abs() <= 1)
    return torch.where(kept, refined(total, found), torch.inf)


def census(x: Tensor) -> Tensor:
    """(24, H, W) bool: whether each neighbour in 5 x 5 pixels is darker than the pixel itself. x: (H, W)."""
    half = CENSUS // 2
    around = F.unfold(F.pad(x[None, None], [half] * 4, mode="replicate"), CENSUS).view(-1, *x.shape)
    middle = CENSUS**2 // 2
    return torch.cat([around[:middle], around[middle + 1 :]]) < x - 1e-3


def matching_costs(a: Tensor, b: Tensor, disparities: int) -> Tensor:
    """(D, H, W) bits in which pixel u of a differs from pixel u - d of b; all of them where there is no such pixel."""
    cost = torch.full((disparities, *a.shape[1:]), float(len(a)))
    for d in range(min(disparities, a.shape[2])):
        cost[d, :, d:] = (a[..., d:] ^ b[..., : a.shape[2] - d]).sum(0).float()
    return cost


def aggregated(cost: Tensor) -> Tensor:
    """(D, H, W) sum over four directions of the least cost of a path that ends at each pixel and disparity."""
    total = torch.zeros_like(cost)
    for axis in (1, 2):
        slices = list(cost.unbind(axis))  # (D, W) or (D, H) each
        for order in (range(len(slices)), range(len(slices) - 1, -1, -1)):
            path: Tensor | None = None
            for n in order:
                path = slices[n] if path is None else slices[n] + _least_step(path)
                total.select(axis, n).add_(path)
    return total


def _least_step(path: Tensor) -> Tensor:
    """The least cost (D, K) of coming to each disparity from the pixel before, whose costs are `path` (D, K)."""
    best = path.amin(0)
    padded = F.pad(path, (0, 0, 1, 1), value=torch.inf)
    step = torch.minimum(padded[:-2], padded[2:]) + SMALL_STEP
    return torch.minimum(torch.minimum(path, step), best + LARGE_STEP) - best


def refined(total: Tensor, found: Tensor) -> Tensor:
    """The lowest point of the parabola through the best disparity and its neighbours, (H, W)."""
    inner = found.clamp(1, len(total) - 2)
    before, here, after = (total.gather(0, (inner + n)[None])[0] for n in (-1, 0, 1))
    bend = before + after - 2 * here
    shift = torch.where((bend > 0) & (inner == found), (before - after) / (2 * bend.clamp(min=1e-6)), 0.0)
    return found + shift.clamp(-0.5, 0.5)
