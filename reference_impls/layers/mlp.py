"""The part of a block that works on each position alone: on tokens, and on feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, chained, closed_form
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.weights import initialise_small


class Mlp(nn.Module):
    """Two linear layers with a GELU between them: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


@closed_form.register
def _(mlp: Mlp, shape: Shape) -> Footprint:
    return chained(shape, mlp.fc1, mlp.fc2)


class FeedForward(nn.Module):
    """1x1 convolutions on a feature map; with `local`, a depthwise 3x3 in between mixes neighbours.

    (B, C, H, W) -> (B, C, H, W). `local` is the unified feed-forward part of EfficientFormerV2.
    """

    def __init__(self, channels: int, hidden: int, *, local: bool = False) -> None:
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden)
        self.mid = ConvNorm(hidden, hidden, 3, groups=hidden) if local else None
        self.fc2 = ConvNorm(hidden, channels)
        self.act = nn.GELU()
        initialise_small(self.fc1.conv, self.fc2.conv)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        if self.mid is not None:
            x = self.act(self.mid(x))
        return self.fc2(x)


@closed_form.register
def _(part: FeedForward, shape: Shape) -> Footprint:
    return chained(shape, part.fc1, part.mid, part.fc2)
