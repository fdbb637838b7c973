"""A classical lane finder: edges, and the straight lines that most of them vote for. Its work follows the edge points.

No network and no weights: a stand-in, in pipelines of perception, for lane detectors that work on raw points. For n
edge points and T directions the vote takes exactly 2 n T multiply-accumulates beside the two filters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Lanes(nn.Module):
    """The strongest lines in the lower half of a picture. edge: least slope of grey values, which are in [0, 1]."""

    sobel: Tensor
    directions: Tensor

    def __init__(self, *, lines: int = 4, edge: float = 0.25, directions: int = 60) -> None:
        super().__init__()
        self.lines, self.edge = lines, edge
        x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
        self.register_buffer("sobel", torch.stack([x, x.T])[:, None])
        angles = torch.arange(directions) * (torch.pi / directions)
        self.register_buffer("directions", torch.stack([angles.cos(), angles.sin()]))

    def points(self, image: Tensor) -> Tensor:
        """Edge points (n, 2) of the lower half of (1, 3, H, W): x and y in its pixels."""
        grey = image.mean(1, keepdim=True)[..., image.shape[-2] // 2 :, :]
        slope = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), self.sobel).square().sum(1).sqrt()[0]
        return (slope >= self.edge).nonzero().flip(1).to(image.dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, lines, 3): angle of the normal in radians, distance from the corner, and votes.

        The corner is the upper left one of the lower half. Raises: ValueError for another shape.
        """
        if image.ndim != 4 or image.shape[:2] != (1, 3):
            raise ValueError(f"one picture (1, 3, H, W) is needed, got {tuple(image.shape)}")
        return self.lines_of(self.points(image), image.shape[-2:])

    def lines_of(self, points: Tensor, size: tuple[int, ...]) -> Tensor:
        """The lines of edge points (n, 2) in a picture of the size (H, W); as `forward`."""
        furthest, number = int(sum(side**2 for side in size) ** 0.5) + 1, self.directions.shape[1]
        distance = (points @ self.directions).round().long() + furthest  # (n, T)
        cell = distance * number + torch.arange(number, device=points.device)
        votes = torch.bincount(cell.flatten(), minlength=2 * furthest * number)
        most, where = votes.topk(self.lines)
        angle = (where % number) * (torch.pi / number)
        return torch.stack([angle, (where // number - furthest).to(angle), most.to(angle)], 1)[None]
