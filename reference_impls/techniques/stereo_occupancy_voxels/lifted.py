"""A small stereo network to occupancy that learns from a few hundred pairs: costs are lifted into the grid by geometry.

It keeps both ideas of the paper, the cost volume at depths of the voxels and octree decoding. What lies between them
differs: the published encoder squeezes all costs through 128 numbers, which takes a large data set to learn. Here each
cell of a grid of 32 looks up the costs at the pixel and the disparity that its centre projects to (as the later
ODTFormer does), so the network works for other cameras too. It is no network of the paper, nor are its results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.layers.conv import conv_norm_act
from reference_impls.techniques.octree_occupancy_decoding import Decoded, OctreeDecoder, decode
from reference_impls.techniques.sparse_disparity_cost_volume import STRIDE, CostVolume, emptied
from reference_impls.techniques.stereo_occupancy_voxels.grid import LOSS_WEIGHTS, soft_iou
from reference_impls.techniques.stereo_occupancy_voxels.network import check_pair

LIFTED = 32
"""Cells along a side of the grid that costs are lifted into."""


class GroupSimilarity(nn.Module):
    """Products of groups of interleaved features, refined: (B, 2C, H, L) -> (B, groups, H, L)."""

    def __init__(self, groups: int = 4, hidden: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.convs = nn.ModuleList([nn.Conv2d(groups, hidden, 3, padding=1), nn.Conv2d(hidden, groups, 3, padding=1)])

    def forward(self, x: Tensor, gaps: Tensor | None = None) -> Tensor:
        left, right = x.unflatten(1, (self.groups, -1, 2)).unbind(3)
        similarity = (left * right).sum(2)
        hidden = emptied(self.convs[0](similarity), gaps).relu_()
        return similarity + self.convs[1](hidden)


def unit_groups(x: Tensor, groups: int) -> Tensor:
    """Features (B, C, H, W) of which each group of channels has length 1 at every pixel: products are cosines then."""
    parts = x.unflatten(1, (groups, -1))
    return (parts * (parts.square().sum(2, keepdim=True) + 1e-6).rsqrt()).flatten(1, 2)


class LiftedStereoNet(nn.Module):
    """A pair to occupancies of 8, 16, 32 and 64 cells along a side, for any calibration.

    `levels`: shifts of the features at which the pair is matched. `stereo`: without it the right image is ignored, as a
    control: the left one is matched with itself.
    """

    def __init__(self, levels: Sequence[int], widths: Sequence[int] = (32, 24, 12, 8), stereo: bool = True) -> None:
        super().__init__()
        groups, context = 4, 8
        self.stereo = stereo
        self.features = nn.Sequential(
            conv_norm_act(3, 8, 3, 2, act=nn.ReLU), conv_norm_act(8, 16, 3, 2, act=nn.ReLU),
            conv_norm_act(16, 16, 3, act=nn.ReLU), nn.Conv2d(16, 16, 1),
        )  # fmt: skip
        self.volume = CostVolume(levels, GroupSimilarity(groups))
        self.context = nn.Conv2d(16, context, 1)
        coarse, middle, fine, _ = widths
        self.lifted = _block(groups + context, fine, 1)
        self.down = nn.ModuleList([_block(fine, middle, 2, 2), _block(middle, coarse, 2, 2)])
        self.mix = nn.ModuleList([_block(middle, middle, 3), _block(coarse, coarse, 3)])
        self.decoder = OctreeDecoder(widths)

    def forward(
        self,
        left: Tensor,
        right: Tensor,
        where: Tensor,
        *,
        level: int | None = None,
        levels: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Occupancies of the grids (B, n, n, n) up to `level`, by default all four.

        left, right: (B, 3, H, W) in [0, 1], H and W multiples of 4. where: (32, 32, 32, 3) column, row and disparity of
        the centres of the cells of a grid of 32. `levels`: shifts for another camera.
        """
        x, skips = self.encode(left, right, where, levels)
        return self.decoder(x, skips, level)

    def encode(
        self, left: Tensor, right: Tensor, where: Tensor, levels: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What the decoder is given: features of the grid of 8, and those that it adds at 16 and 32."""
        check_pair(left, right)
        shifts = self.volume.levels if levels is None else levels
        left = self.features(left - 0.5)
        right = self.features(right - 0.5) if self.stereo else left
        cosines = (unit_groups(x, self.volume.match.groups) for x in (left, right))
        costs, context = self.volume(*cosines, levels), self.context(left)
        fine = self.lifted(lift(costs, context, where, shifts))
        middle = self.mix[0](self.down[0](fine))
        return self.mix[1](self.down[1](middle)), [middle, fine]

    def loss(self, left: Tensor, right: Tensor, where: Tensor, truth: Sequence[Tensor]) -> Tensor:
        """`sparse_loss` of a batch; only children of cells that are occupied or thought so are computed.

        truth: one (B, n, n, n) bool for each level. Cells that are not computed are free and have no part in the loss.
        """
        x, skips = self.encode(left, right, where)
        return sparse_loss(decode(self.decoder, x, 0.5, skips, truth=truth), truth)


def sparse_loss(found: Sequence[Decoded], truth: Sequence[Tensor], weights: Sequence[float] = LOSS_WEIGHTS) -> Tensor:
    """Sum over levels of weight times (1 - soft IoU + binary cross-entropy) of the cells that were computed.

    Nothing occupied was left out, so the soft IoU is that of `occupancy_loss`. The cross-entropy is not of the paper:
    it pulls every cell by itself, where the IoU of a level that is still bad has hardly a slope.
    """
    total = found[0].probability.new_tensor(0.0)
    for one, cells, weight in zip(found, truth, weights, strict=False):
        due = cells.flatten()[one.cells.flat()].to(one.probability)
        entropy = F.binary_cross_entropy(one.probability.clamp(1e-6, 1 - 1e-6), due)
        total = total + weight * (1 - soft_iou(one.probability, due) + entropy)
    return total


def lift(costs: Tensor, context: Tensor, where: Tensor, levels: Sequence[int]) -> Tensor:
    """Costs (B, G, D, H, W) and features (B, C, H, W) at the cells: (B, G + C, n, n, n); 0 outside the images.

    where: (n, n, n, 3) column, row and disparity in pixels of the image. Between two levels costs are interpolated.
    """
    height, width = context.shape[2:]
    column, row, disparity = where.to(context).unbind(-1)
    at = torch.stack([2 * column / STRIDE / (width - 1) - 1, 2 * row / STRIDE / (height - 1) - 1], -1)
    shifts = torch.tensor(levels, dtype=where.dtype, device=where.device)
    shift = disparity / STRIDE
    above = torch.searchsorted(shifts, shift.contiguous().to(shifts)).clamp(1, len(levels) - 1)
    low, high = shifts[above - 1], shifts[above]
    depth = 2 * (above - 1 + (shift - low) / (high - low)) / (len(levels) - 1) - 1
    grid = torch.cat([at, depth.to(at)[..., None]], -1).nan_to_num(2.0, 2.0, -2.0).clamp(-2, 2)
    batch = len(costs)
    sampled = F.grid_sample(costs, grid.expand(batch, *grid.shape), align_corners=True)
    flat = grid[..., :2].flatten(0, 1)
    seen = F.grid_sample(context, flat.expand(batch, *flat.shape), align_corners=True).view(batch, -1, *where.shape[:3])
    return torch.cat([sampled, seen], 1)


def _block(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    padding = kernel // 2 if stride == 1 else 0
    conv = nn.Conv3d(channels, out, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(out), nn.ReLU())
