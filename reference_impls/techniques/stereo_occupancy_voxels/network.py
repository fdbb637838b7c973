"""The published network, StereoVoxelNet, with its four cost volumes: exact to the parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reference_impls.layers.conv import InvertedResidual, conv_norm_act
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.techniques.sparse_disparity_cost_volume import (
    STRIDE,
    CostVolume,
    FoldedMatching,
    MatchingCost,
    depth_levels,
    uniform_levels,
)
from reference_impls.techniques.stereo_occupancy_voxels.grid import Grid

FOCAL, BASELINE = 1003.556, 0.54
"""Of DrivingStereo at half size, in pixels and metres."""
SIZE = (400, 880)
"""Height and width of the published input; its encoder ends in 3 x 7 positions only for this one or nearly this."""
VOLUMES = {
    "voxel": depth_levels(FOCAL, BASELINE, Grid.in_front(32.0).depths()),
    "uniform12": uniform_levels(12, 4),
    "uniform24": uniform_levels(24, 2),
    "full48": uniform_levels(48),
}


class Separable(nn.Module):
    """Two depthwise separable convolutions beside an identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first, self.second = separable(channels, out, stride, dilation), separable(out, out, 1, dilation)[:-1]
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else conv_norm_act(channels, out, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


def separable(channels: int, out: int, stride: int, dilation: int) -> nn.Sequential:
    """A depthwise 3x3 convolution and a 1x1 one, each with batch norm and ReLU6."""
    depthwise = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, channels, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(channels), nn.ReLU6(), *conv_norm_act(channels, out))


class Features(nn.Module):
    """Features at a quarter of the resolution, of MobileStereoNet: (B, 3, H, W) -> (B, 32, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__()
        stem = [InvertedResidual(*shape, 3) for shape in ((3, 32, 3, 2), (32, 32, 3, 1), (32, 32, 3, 1))]
        self.stem = nn.Sequential(*(layer for block in stem for layer in (block, nn.ReLU())))
        self.early = nn.Sequential(*(Separable(32, 32) for _ in range(3)))
        self.quarter = nn.Sequential(Separable(32, 32, 2), *(Separable(32, 32) for _ in range(15)))
        self.wide = nn.Sequential(Separable(32, 64), *(Separable(64, 64) for _ in range(2)))
        self.dilated = nn.Sequential(*(Separable(64, 64, dilation=2) for _ in range(3)))
        reduce = (*conv_norm_act(160, 128, act=nn.ReLU), *conv_norm_act(128, 64, act=nn.ReLU))
        self.reduce = nn.Sequential(*reduce, nn.Conv2d(64, 32, 1))

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.quarter(self.early(self.stem(x)))
        wide = self.wide(quarter)
        return self.reduce(torch.cat([quarter, wide, self.dilated(wide)], 1))


class Encoder(nn.Module):
    """Costs to a code: (B, D, 100, 220) -> (B, 128)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(levels, 64, 6, 2, (2, 10)), nn.Conv2d(64, 128, 4, 4), nn.Conv2d(128, 256, 4, 4)]
        )
        self.linears = nn.ModuleList([nn.Linear(256 * 3 * 7, 512), nn.Linear(512, 512), nn.Linear(512, 128)])

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x).relu()
        x = x.flatten(1)
        for linear in self.linears:
            x = linear(x).relu()
        return x


class Decoder(nn.Module):
    """The published decoder, dense: a code (B, 128) -> occupancies of 8, 16, 32 and 64 cells along a side.

    Its transposed convolutions have kernel 6 and stride 2: a child has up to 27 parents, so cells cannot be left out
    exactly. `OctreeDecoder` is the form in which they can.
    """

    def __init__(self) -> None:
        super().__init__()
        grow = ((128, 64, 5, 0, 2), (64, 32, 5, 1, 2), (32, 16, 6, 1, 3), (16, 8, 6, 1, 3))
        self.grow = nn.ModuleList(self._stage(*stage) for stage in grow)
        self.heads = nn.ModuleList(nn.Conv3d(width, 1, 1, bias=False) for width in (32, 16, 8))
        self.last = nn.ConvTranspose3d(8, 1, 6, 2, 2)

    @staticmethod
    def _stage(channels: int, out: int, kernel: int, padding: int, after: int) -> nn.Sequential:
        layers = (
            nn.ConvTranspose3d(channels, out, kernel, 2, padding, bias=False),
            nn.Conv3d(out, out, after, bias=False),
        )
        return nn.Sequential(*(part for layer in layers for part in (layer, nn.BatchNorm3d(out), nn.ReLU())))

    def forward(self, code: Tensor, level: int | None = None) -> list[Tensor]:
        x = self.grow[0](code[:, :, None, None, None])
        grids = list[Tensor]()
        for stage, head in zip(self.grow[1:], self.heads, strict=True):
            x = stage(x)
            grids.append(head(x)[:, 0].sigmoid())
            if level == len(grids) - 1:
                return grids
        return [*grids, self.last(x)[:, 0].sigmoid()]


class StereoVoxelNet(nn.Module):
    """A rectified pair to occupancies, coarse to fine: (B, 3, 400, 880) twice -> 4 grids (B, n, n, n), n = 8 ... 64.

    `levels`: shifts of the cost volume; see `build`. The images are normalised as ImageNet's.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.features, self.volume = Features(), CostVolume(levels, MatchingCost(64))
        self.encoder, self.decoder = Encoder(len(levels)), Decoder()

    def forward(
        self, left: Tensor, right: Tensor, *, level: int | None = None, levels: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Occupancies of the grids up to `level`, by default all four; finer ones are not computed.

        `levels`: shifts for another camera, as many as the network has.
        """
        check_pair(left, right)
        if level is not None and level not in range(4):
            raise ValueError(f"level must be 0, 1, 2 or 3, got {level}")
        if levels is not None and len(levels) != len(self.volume.levels):
            raise ValueError(f"the encoder takes {len(self.volume.levels)} levels, got {len(levels)}")
        left, right = self.features(left), self.features(right)
        costs = self.volume(left, right, levels)[:, 0]
        if costs.shape[2:] != tuple(n // STRIDE for n in SIZE):
            raise ValueError(f"the encoder takes images of {SIZE[0]} x {SIZE[1]} pixels: crop or pad them to it")
        return self.decoder(self.encoder(costs), level)


class ResidualInParts(nn.Module):
    """A folded `InvertedResidual` that makes its hidden channels some at a time: the same, but for rounding.

    At half the resolution of the image its hidden map is the largest of the network, and to get the memory for it takes
    as long as to fill it.
    """

    def __init__(self, block: InvertedResidual, parts: int = 3) -> None:
        super().__init__()
        expand, depthwise, project = (part[0] for part in (block.expand, block.depthwise, block.project))  # type: ignore[index]
        self.bias, self.parts = project.bias, nn.ModuleList()
        for some in torch.arange(depthwise.out_channels).chunk(parts):
            n = len(some)
            widen, mix = nn.Conv2d(expand.in_channels, n, 1), nn.Conv2d(n, n, 3, padding=1, groups=n)
            narrow = nn.Conv2d(n, project.out_channels, 1, bias=False)
            for new, old in ((widen, expand), (mix, depthwise)):
                new.weight, new.bias = nn.Parameter(old.weight[some]), nn.Parameter(old.bias[some])
            narrow.weight = nn.Parameter(project.weight[:, some])
            self.parts.append(nn.Sequential(widen, nn.ReLU6(), mix, nn.ReLU6(), narrow))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.bias[:, None, None]
        for part in self.parts:
            y += part(x)
        return y


def for_inference(network: StereoVoxelNet) -> StereoVoxelNet:
    """The network, in place, as it is fastest, with the same grids but for rounding; for evaluation only.

    Its batch norms are folded, its activations overwrite their input, channels stand last in memory, which is how
    depthwise convolutions want them, the groups of the matching are those of grouped convolutions, and the widest maps
    are made in parts.
    """
    network.eval().requires_grad_(False)
    fold_batch_norm(network)
    for n in (2, 4):
        network.features.stem[n] = ResidualInParts(network.features.stem[n])  # type: ignore[arg-type]
    network.requires_grad_(False)
    network.volume.match = FoldedMatching(network.volume.match)  # type: ignore[arg-type]
    for convs in (network.features, network.volume):
        convs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in network.modules():
        if isinstance(part, nn.ReLU | nn.ReLU6):
            part.inplace = True
    return network


def check_pair(left: Tensor, right: Tensor, stride: int = STRIDE) -> None:
    """Raise ValueError or TypeError unless these are images (B, 3, H, W) of pairs, H and W multiples of `stride`."""
    for name, image in (("left", left), ("right", right)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise TypeError(f"the {name} image must be a floating point tensor (B, 3, H, W)")
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"the {name} image must have shape (B, 3, H, W), got {tuple(image.shape)}")
    if left.shape != right.shape:
        raise ValueError(f"both images must have the same size, got {tuple(left.shape)} and {tuple(right.shape)}")
    if any(n % stride for n in left.shape[2:]):
        raise ValueError(
            f"height and width must be multiples of {stride}, got {tuple(left.shape[2:])}: crop or pad them"
        )


def build(variant: str) -> StereoVoxelNet:
    """StereoVoxelNet with random weights and the cost volume `voxel`, `uniform12`, `uniform24` or `full48`.

    `voxel` matches at the depths of the voxels, the others at even steps of disparity up to 44, 46 and 47 columns.
    """
    if variant not in VOLUMES:
        raise ValueError(f"no cost volume is called {variant!r}; there are: {', '.join(VOLUMES)}")
    return StereoVoxelNet(VOLUMES[variant])


def next_level(occupancy: Tensor, level: int, finest: int = 3) -> int:
    """The level to compute for the next pair, by the robot's policy.

    One coarser if no cell of the near half of the present grid (n, n, n) is occupied, else one finer.
    """
    near = occupancy[..., : occupancy.shape[-1] // 2]
    return max(level - 1, 0) if not bool((near >= 0.5).any()) else min(level + 1, finest)
