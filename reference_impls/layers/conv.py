"""Convolutions with their normalisation, and what mobile networks build of them. All on feature maps (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from reference_impls.accounting.closed_form import composed

Activation = type[nn.Module] | None


class ConvNorm(nn.Module):
    """A convolution with bias, then batch normalisation: (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).

    The bias before a normalisation changes nothing, but it is part of the published networks and their weights.
    """

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def conv_norm_act(
    channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: Activation = nn.ReLU6
) -> nn.Sequential:
    """A convolution without bias, batch norm, and an activation unless `act` is None."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([act()] if act else []))


ConvNormAct = Callable[..., nn.Sequential]
"""What makes the convolutions of a network: `conv_norm_act`, or a relative with other padding or names."""


class InvertedResidual(nn.Module):
    """Expand the channels, filter each on its own, project back; add the input where the shapes allow.

    (B, C, H, W) -> (B, C', H / stride, W / stride); sandler-2018-mobilenetv2.
    """

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int, expansion: int, conv: ConvNormAct = conv_norm_act
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        self.residual = stride == 1 and channels == out
        self.expand = conv(channels, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = conv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = conv(hidden, out, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with an activation: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, channels: int, act: type[nn.Module], in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, channels // 2, 3, 2)
        self.conv2 = ConvNorm(channels // 2, channels, 3, 2)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, out, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


composed(ConvNorm, "conv", "bn")
composed(InvertedResidual, "expand", "depthwise", "project")
composed(Stem, "conv1", "conv2")
composed(Downsample, "conv")
