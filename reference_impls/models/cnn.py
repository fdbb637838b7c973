"""A small residual CNN for small images.

Reference: he-2016-deep (arXiv 1512.03385), the basic block and the pattern of stages.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import check_range


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (he-2016-deep, Fig. 2 and Sec. 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride), rounded up."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResidualCNN(nn.Module):
    """`stem`, then four `stages` of which each but the first halves the image and doubles the channels, then `head`.

    Parameters: `width` channels in the first stage; `blocks` residual blocks a stage. Images may have any size.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        for name, size in {"in_channels": in_channels, "width": width, "blocks": blocks}.items():
            check_range(name, size, 1, integer=True)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.ModuleList()
        channels = width
        for i in range(4):
            out_channels = width * 2**i
            first = BasicBlock(channels, out_channels, stride=1 if i == 0 else 2)
            rest = (BasicBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            channels = out_channels
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)
