"""A cube of voxels before a camera: which cells points fall into, and how well one grid agrees with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LOSS_WEIGHTS = (0.30, 0.27, 0.23, 0.20)
"""Of the levels 8, 16, 32 and 64, in the official training of hierarchical networks."""
HIT = 0.5
"""Occupancy from which on a cell counts as occupied."""


@dataclass(frozen=True)
class Grid:
    """A cube in the camera's coordinates: x to the right, y down, z forward, in metres.

    `low`: its lowest corner; a cell holds its lower bounds and not its upper ones. `size`: cells along a side.
    """

    low: tuple[float, float, float]
    cell: float
    size: int = 64

    @classmethod
    def in_front(cls, side: float, size: int = 64, near: float = 0.0, below: float = 1 / 32) -> Grid:
        """A cube of `side` metres from depth `near` on, centred on the axis, with the share `below` under the camera.

        32 m with 64 cells are the published grid for DrivingStereo: x in [-16, 16), y in [-31, 1), z in [0, 32).
        """
        return cls((-side / 2, -side * (1 - below), near), side / size, size)

    def coarser(self, times: int = 2) -> Grid:
        """The same cube with cells `times` as long. Raises ValueError if they do not divide it."""
        if self.size % times:
            raise ValueError(f"{self.size} cells along a side cannot be put together by {times}")
        return Grid(self.low, self.cell * times, self.size // times)

    def edges(self) -> Tensor:
        """(3, size + 1) bounds of the cells along x, y and z."""
        return torch.tensor(self.low, dtype=torch.float64)[:, None] + self.cell * torch.arange(self.size + 1.0)

    def centres(self) -> Tensor:
        """(size, size, size, 3) centres of the cells."""
        middle = self.edges()[:, :-1] + self.cell / 2
        return torch.stack(torch.meshgrid(*middle, indexing="ij"), -1)

    def depths(self, every: int = 4) -> Tensor:
        """Depths at which to match: the upper bound of the first cell, then every fourth, as published."""
        steps = torch.arange(1, self.size, every, dtype=torch.float64)
        return self.low[2] + self.cell * steps


def voxelise(points: Tensor, grid: Grid) -> Tensor:
    """The cells (n, n, n), bool, that hold at least one of the points (N, 3). Points outside the cube are left out.

    Raises: ValueError for another shape, or for points that are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must have shape (N, 3), got {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("points must be finite: leave out the pixels without a disparity")
    index = ((points.double() - points.new_tensor(grid.low).double()) / grid.cell).floor().long()
    index = index[((index >= 0) & (index < grid.size)).all(1)]
    cells = torch.zeros([grid.size] * 3, dtype=torch.bool, device=points.device)
    cells[tuple(index.T)] = True
    return cells


def levels(cells: Tensor, count: int = 4) -> list[Tensor]:
    """Grids (..., n, n, n), bool, coarse to fine: a coarse cell is occupied if one of its 8 finer ones is."""
    found = [cells]
    while len(found) < count:
        fine = found[0].flatten(0, -4).unsqueeze(1).float() if cells.ndim > 3 else found[0][None, None].float()
        found.insert(0, F.max_pool3d(fine, 2).bool().view(*cells.shape[:-3], *[fine.shape[-1] // 2] * 3))
    return found


def soft_iou(probability: Tensor, truth: Tensor) -> Tensor:
    """(sum p g + 1) / (sum (p + g - p g) + 1) over everything that is given, as the official training has it."""
    both = probability * truth
    return (both.sum() + 1) / ((probability + truth - both).sum() + 1)


def occupancy_loss(
    probabilities: Sequence[Tensor], truths: Sequence[Tensor], weights: Sequence[float] = LOSS_WEIGHTS
) -> Tensor:
    """Sum over the levels of weight times (1 - soft IoU of the batch). Grids (B, n, n, n), coarse to fine."""
    losses = [w * (1 - soft_iou(p, t.to(p))) for w, p, t in zip(weights, probabilities, truths, strict=True)]
    return torch.stack(losses).sum()


# --------------------------------------------------------------------------------------------------------------------
# Metrics of one datum: grids (n, n, n), bool


def iou(found: Tensor, truth: Tensor) -> float:
    """Cells in both over cells in either; 1 if both are empty. The official test has `smoothed_iou`."""
    either = int((found | truth).sum())
    return int((found & truth).sum()) / either if either else 1.0


def smoothed_iou(found: Tensor, truth: Tensor) -> float:
    """The official test's IoU, with 1 added to both numbers: an empty grid then scores above 0."""
    return (int((found & truth).sum()) + 1) / (int((found | truth).sum()) + 1)


def recall(found: Tensor, truth: Tensor) -> float:
    """Share of the occupied cells that are found; 1 if there are none."""
    due = int(truth.sum())
    return int((found & truth).sum()) / due if due else 1.0


def chamfer(found: Tensor, truth: Tensor, cell: float) -> float:
    """Squared distance to the nearest occupied cell of the other grid, in m^2: the mean each way, both added.

    An empty grid against one that is not has no nearest cell: each of the others then counts the squared diagonal of
    the cube. Such data must be counted; the official test drops them.
    """
    if not found.any() or not truth.any():
        return 0.0 if bool(found.any()) == bool(truth.any()) else 3 * (cell * found.shape[0]) ** 2
    return sum(float(cell**2 * _squares(b)[a].double().mean()) for a, b in ((found, truth), (truth, found)))


def _squares(cells: Tensor) -> Tensor:
    """Of every cell (n, n, n), the squared distance to the nearest occupied one, in cells: exact, axis by axis."""
    line = torch.arange(len(cells), dtype=torch.float32, device=cells.device)
    apart = (line[:, None] - line) ** 2
    squares = torch.where(cells, 0.0, torch.inf)
    for _ in range(3):  # the nearest along the last axis, which then becomes the first
        squares = torch.stack([(plane[:, None] + apart).amin(-1) for plane in squares]).movedim(-1, 0)
    return squares
