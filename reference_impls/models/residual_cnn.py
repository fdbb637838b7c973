"""A small residual CNN in four stages with an exit after each, for the benchmark of early exit.

References:
  He, Zhang, Ren, Sun (arXiv 1512.03385): the basic block, two 3x3 convolutions with a shortcut.
  teerapittayanon-2016-branchynet (arXiv 1709.01686): exits between the stages.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.closed_form import Footprint, Shape, closed_form
from reference_impls.hosts.staged import Staged, StageMacs
from reference_impls.layers.conv import conv_norm_act


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet's basic block). (B, c_in, H, W) -> (B, c_out, H / stride, ...)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        first, second = conv_norm_act(c_in, c_out, 3, stride, act=nn.ReLU), conv_norm_act(c_out, c_out, 3, act=None)
        self.body = nn.Sequential(*first, *second)
        same = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm_act(c_in, c_out, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


@closed_form.register
def _(block: Block, shape: Shape) -> Footprint:
    return closed_form(block.shortcut, shape) + closed_form(block.body, shape)


def residual_cnn(size: int, width: int = 16, classes: int = 10) -> Staged:
    """A small ResNet for grey images of `size` x `size`, cut into four stages: (B, 1, size, size) -> (B, classes).

    Images of more than 16 pixels are halved by the first convolution. Each exit pools to at most 4 x 4 and is linear.
    """
    a, b, c, d = width, 2 * width, 2 * width, 4 * width
    stem = conv_norm_act(1, a, 3, 2 if size > 16 else 1, act=nn.ReLU)
    stages = [nn.Sequential(stem, Block(a, a)), Block(a, b, 2), Block(b, c), Block(c, d, 2)]
    shape: Shape = (1, size, size)
    heads, macs = [], []
    for stage in stages:
        cost = closed_form(stage, shape)
        shape = channels, height, _ = cost.shape
        side = min(4, height)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(channels * side**2, classes))
        heads.append(head)
        macs.append((cost.macs, closed_form(head, shape).macs))
    return Staged(stages, heads, StageMacs(*zip(*macs, strict=True)))
