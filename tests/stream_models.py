"""Networks for cameras, in plain torch with random weights: what delta convolution is tried on."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, a batch norm and a leaky ReLU in place, as in Darknet."""
    layers = (
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.LeakyReLU(0.1, True),
    )
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (arXiv 1505.04597) with padded convolutions, what came down concatenated with what goes up."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64), classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(self.pair(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.join = nn.ModuleList(self.pair(2 * a, a) for a in widths[:-1])
        self.classifier = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def pair(channels: int, out: int) -> nn.Sequential:
        """Two 3 x 3 convolutions with ReLU."""
        first, second = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes, H, W)."""
        seen = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            seen.append(x)
        for block, up, skipped in reversed(list(zip(self.join, self.up, seen[:-1], strict=True))):
            x = block(torch.cat([skipped, up(x)], 1))
        return self.classifier(x)


class YoloV3Tiny(nn.Module):
    """YOLOv3-tiny (arXiv 1804.02767): two grids of boxes; `width` is that of the first layer, 16 in the original."""

    def __init__(self, width: int = 16, classes: int = 80) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(7)]
        self.early = nn.Sequential(convolution(3, width))
        for a, b in pairwise(widths[:5]):
            self.early.extend([nn.MaxPool2d(2), convolution(a, b)])
        same = nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)
        self.late = nn.Sequential(
            nn.MaxPool2d(2), convolution(widths[4], widths[5]), *same, convolution(widths[5], widths[6]),
            convolution(widths[6], widths[4], 1),
        )  # fmt: skip
        outputs = 3 * (5 + classes)
        self.coarse = nn.Sequential(convolution(widths[4], widths[5]), nn.Conv2d(widths[5], outputs, 1))
        self.lateral = nn.Sequential(convolution(widths[4], widths[3], 1), nn.Upsample(scale_factor=2))
        self.fine = nn.Sequential(convolution(widths[3] + widths[4], widths[4]), nn.Conv2d(widths[4], outputs, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W), multiples of 32 -> grids (B, 3 (5 + classes), H / 32, W / 32) and of twice that size."""
        early = self.early(x)
        late = self.late(early)
        return [self.coarse(late), self.fine(torch.cat([self.lateral(late), early], 1))]
