"""MobileNetV2 in plain torch: what networks for phones are compared with.

References:
  sandler-2018-mobilenetv2 (arXiv 1801.04381): inverted residual blocks, the table of stages.

A width multiplier scales every width but that of the input, rounded to a multiple of 8; above 1 it scales the last
layer's 1,280 channels too. The parameters have timm's order and shapes (`mobilenetv2_100`, `mobilenetv2_140`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, chained, closed_form
from reference_impls.layers.conv import InvertedResidual, conv_norm_act
from reference_impls.layers.norm import fold_batch_norm

# expansion, width, repeats, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STRIDES = tuple(stage[3] for stage in STAGES)


def scaled(width: int, multiplier: float, step: int = 8) -> int:
    """`width * multiplier` rounded to the nearest multiple of `step`, but never down by more than a tenth."""
    channels = max(step, int(width * multiplier + step / 2) // step * step)
    return channels + step if channels < 0.9 * width * multiplier else channels


class MobileNetV2(nn.Module):
    """The network: `stem`, 17 `blocks`, `head`, `classifier`; 3,504,872 parameters at width 1 with 1,000 classes.

    For small images the strides of the seven stages may be lower than published, the widths multiples of a smaller
    `step`, and the last layer `last` wide.
    """

    def __init__(
        self,
        multiplier: float = 1.0,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        strides: Sequence[int] = STRIDES,
        step: int = 8,
        last: int | None = None,
    ) -> None:
        super().__init__()
        channels, last = scaled(32, multiplier, step), last or scaled(1280, max(multiplier, 1.0))
        self.stem = conv_norm_act(in_channels, channels, 3, 2)
        blocks = []
        for (expansion, width, repeats, _), stride in zip(STAGES, strides, strict=True):
            for i in range(repeats):
                out = scaled(width, multiplier, step)
                blocks.append(InvertedResidual(channels, out, 3, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_norm_act(channels, last)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, classes)."""
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))

    def fuse(self) -> MobileNetV2:
        """A copy for deployment, in evaluation mode, of equal outputs: batch norm folded."""
        network = copy.deepcopy(self).eval()
        fold_batch_norm(network)
        return network


@closed_form.register
def _(network: MobileNetV2, shape: Shape) -> Footprint:
    features = chained(shape, network.stem, network.blocks, network.head)
    return features + closed_form(network.classifier, features.shape[:1])
