"""Residual blocks and their parts: a mixer, then two layers on each position alone, both scaled and perhaps dropped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, chained, closed_form, composed, pointwise
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.weights import initialise_small


class LayerScale(nn.Module):
    """Scales the channels of a feature map (B, C, H, W) or of tokens (B, N, C) by a learned vector that starts small.

    touvron-2021-going, Eq. 2.
    """

    def __init__(self, channels: int, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma if x.ndim == 3 else self.gamma.view(1, -1, 1, 1))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the branch of an image with probability `rate` and scales up the others."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate) if self.rate < 1 else keep)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


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


class MapBlock(nn.Module):
    """MB4D: x + mixer(x), then x + mlp(x), on feature maps (B, C, H, W); each branch scaled, dropped at `drop_path`.

    `mixer` is `Pooling` in EfficientFormer; in its second version it is attention, or None, where the feed-forward part
    mixes neighbours itself.
    """

    def __init__(
        self, channels: int, mixer: nn.Module | None, mlp: nn.Module, drop_path: float = 0.0, layer_scale: float = 1e-5
    ) -> None:
        super().__init__()
        self.token_mixer, self.mlp = mixer, mlp
        self.ls1 = LayerScale(channels, layer_scale) if mixer is not None else None
        self.ls2 = LayerScale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.token_mixer is not None and self.ls1 is not None:
            x = x + self.drop_path(self.ls1(self.token_mixer(x)))
        return x + self.drop_path(self.ls2(self.mlp(x)))

    def branches(self, shape: Shape) -> tuple[Footprint, Footprint]:
        """Closed forms of both branches, the mixer's and the feed-forward part's."""
        return chained(shape, self.token_mixer, self.ls1), chained(shape, self.mlp, self.ls2)


class TokenBlock(nn.Module):
    """MB3D: x + attention(norm(x)), then x + mlp(norm(x)), on tokens (B, N, C); scaled and dropped as in `MapBlock`."""

    def __init__(
        self, channels: int, mixer: nn.Module, hidden: int, drop_path: float = 0.0, layer_scale: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.token_mixer, self.mlp = mixer, Mlp(channels, hidden)
        initialise_small(self.mlp.fc1, self.mlp.fc2)
        self.ls1, self.ls2 = LayerScale(channels, layer_scale), LayerScale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def branches(self, shape: Shape) -> tuple[Footprint, Footprint]:
        """Closed forms of both branches, the mixer's and the MLP's, each with its normalisation."""
        return chained(shape, self.norm1, self.token_mixer, self.ls1), chained(shape, self.norm2, self.mlp, self.ls2)


@closed_form.register
def _(block: MapBlock | TokenBlock, shape: Shape) -> Footprint:
    mixing, feeding = block.branches(shape)
    return mixing + feeding


composed(Mlp, "fc1", "fc2")
composed(FeedForward, "fc1", "mid", "fc2")
pointwise(LayerScale, DropPath)
