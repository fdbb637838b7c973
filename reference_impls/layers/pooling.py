"""Means over positions: of neighbours, which mixes them without parameters, and of all, before a classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, closed_form, pointwise


class Pooling(nn.Module):
    """The mixer without parameters: the mean of the 3x3 neighbours inside the feature map, minus the pixel itself."""

    def forward(self, x: Tensor) -> Tensor:
        return neighbourhood_mean(x) - x


def neighbourhood_mean(x: Tensor) -> Tensor:
    """Mean of the 3x3 neighbours inside the feature map, the pixel itself among them: (B, C, H, W) -> (B, C, H, W)."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


pointwise(Pooling)


class Head(nn.Module):
    """Normalisation, the mean over positions, and a linear classifier: (B, N, C) or (B, C, H, W) -> (B, classes)."""

    def __init__(self, norm: Callable[[int], nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.linear(x.mean(1) if x.ndim == 3 else x.mean((2, 3)))


@closed_form.register
def _(head: Head, shape: Shape) -> Footprint:
    return closed_form(head.norm, shape) + closed_form(head.linear, (shape[1 if len(shape) == 2 else 0],))
