"""Small models and data for the redundancy report, with redundancy that is known exactly; a process can build them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.models.vit import VisionTransformer


class Residual(nn.Module):
    """x + f(x) on maps; with `idle` its last convolution gives nothing."""

    def __init__(self, width: int, idle: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        if idle:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.relu(self.first(x)))


class Small(nn.Module):
    """A residual network on (B, 3, H, W), whose head is functional."""

    def __init__(self, width: int = 8, idle: tuple[bool, ...] = (False, False, False), classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(*(Residual(width, one) for one in idle))
        self.weight = nn.Parameter(torch.randn(classes, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.blocks(F.relu(self.stem(x))).mean((2, 3)), self.weight)


def small(**options: object) -> Small:
    """The network with weights of seed 0, in evaluation mode."""
    torch.manual_seed(0)
    return Small(**options).eval()  # type: ignore[arg-type]


def vit(depth: int = 3, *, positions: bool = True) -> VisionTransformer:
    """A vision transformer on 3 x 32 x 32 with 64 patches, weights of seed 0."""
    torch.manual_seed(0)
    model = VisionTransformer(image_size=32, patch_size=4, num_classes=5, dim=32, depth=depth, num_heads=4)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5 if p.ndim == 2 else 0.1)
        if not positions:
            model.pos_embed.zero_()
    return model.eval()


def images(n: int = 16, side: int = 32, seed: int = 0) -> Tensor:
    """Independent noise (n, 3, side, side)."""
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def clips(n: int = 3, frames: int = 8, side: int = 32, patch: int = 8) -> list[Tensor]:
    """Still clips (T, 3, side, side) in which a patch in a corner is new in each frame; none with patch 0."""
    found = []
    for seed in range(n):
        clip = images(1, side, seed).repeat(frames, 1, 1, 1)
        clip[:, :, :patch, :patch] = images(frames, side, 100 + seed)[:, :, :patch, :patch]
        found.append(clip)
    return found


def stream() -> list[Tensor]:
    """Clips for a process of its own."""
    return clips(2)


def pictures() -> list[Tensor]:
    """Images, a quarter of which occur twice."""
    x = images(12)
    return [torch.cat([x, x[:4]])]
