"""The skeleton of both EfficientFormers: stem, four stages of halving size, two heads; and how a finished one is run.

References: li-2022-efficientformer (arXiv 2206.01191), li-2023-rethinking (arXiv 2212.08059).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, chained, closed_form
from reference_impls.contract import Handle, Number, Redundancy, Setting, Switch, Technique
from reference_impls.contract.errors import UnsupportedHost, check_tensor, warn_no_effect
from reference_impls.contract.replacement import refuse_capture
from reference_impls.layers.layout import Flatten, Size, as_map
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.layers.weights import initialise_small
from reference_impls.redundancy.inputs import mean_share
from reference_impls.redundancy.over_resolution import coarsen, coarsest
from reference_impls.redundancy.spatial_similarity import neighbour_similarity

STRIDES = (4, 8, 16, 32)
"""Pixels of the image for each pixel of the map, stage by stage."""


@dataclass(frozen=True)
class Stages:
    """What both versions are made of; of each of the four stages its width, depth, and attention blocks at its end.

    `img_size`: pixels, or height and width, for which the position biases are made; other multiples of 32 are taken,
    with stretched biases.
    Raises: ValueError for another number of stages, for attention blocks or images that do not fit.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    attention: tuple[int, ...]
    _: KW_ONLY
    heads: int = 8
    key_dim: int = 32
    value_ratio: int = 4
    img_size: int | Size = 224
    in_channels: int = 3
    drop_path: float = 0.0
    layer_scale: float = 1e-5

    def __post_init__(self) -> None:
        widths, depths, attention = self.widths, self.depths, self.attention
        if not len(widths) == len(depths) == len(attention) == len(STRIDES):
            raise ValueError(f"a network has {len(STRIDES)} stages, got {widths=}, {depths=}, {attention=}")
        if min(depths) < 1 or min(widths) < 2 or any(not 0 <= a <= d for a, d in zip(attention, depths, strict=True)):
            raise ValueError(f"every stage needs a block, and no more attention than blocks: {self}")
        check_size("img_size", self.size)

    @property
    def size(self) -> Size:
        """Height and width of the image."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    def sizes(self) -> list[Size]:
        """Height and width of the feature map of each stage."""
        return [(self.size[0] // stride, self.size[1] // stride) for stride in STRIDES]


def check_size(name: str, size: Size) -> None:
    """Raise ValueError unless both sides are multiples of 32."""
    if any(n < STRIDES[-1] or n % STRIDES[-1] for n in size):
        raise ValueError(f"{name} must be a multiple of {STRIDES[-1]} pixels in height and width, got {size}")


# --------------------------------------------------------------------------------------------------------------------
# The network


class Stage(nn.Module):
    """Halve the map (the first stage does not), then the blocks."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class TwoHeads(nn.Module):
    """Stem, four stages, normalisation, mean over positions, and two linear heads.

    Images (B, C, H, W), H and W multiples of 32 -> logits (B, classes), the mean of both heads; while training, the
    pair of logits. Without `distillation` there is one head; without classes (`num_classes=0`) the heads pass on the
    mean over positions; with `features_only` there are none, and the maps of the stages are returned as they are.
    `config` is the `Config` of either version.
    """

    def __init__(
        self, config: Any, num_classes: int = 1000, distillation: bool = True, *, features_only: bool = False
    ) -> None:
        super().__init__()
        self.config, self.features_only = config, features_only
        self.stem, stages, norm = self.layers(config)
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity() if features_only else norm
        self.head = None if features_only else _head(config.widths[-1], num_classes)
        self.head_dist = _head(config.widths[-1], num_classes) if distillation and not features_only else None

    def layers(self, config: Any) -> tuple[nn.Module, list[Stage], nn.Module]:
        """Stem, stages and last normalisation of a configuration."""
        raise NotImplementedError

    def parts(self, size: Size) -> dict[str, Footprint]:
        """Closed forms by part of the network as it is, for one image of height and width `size`."""
        stem = closed_form(self.stem, (self.config.in_channels, *size))
        parts = {"stem": stem} | dict.fromkeys(("feed-forward", "mixers", "downsampling"), Footprint())
        shape = stem.shape
        for stage in self.stages:
            for name, path in stage.downsample.named_children():  # a convolution, perhaps attention beside it
                what = "downsampling" if name == "conv" else "attention downsampling"
                parts[what] = parts.get(what, Footprint()) + closed_form(path, shape)
            inside = shape = closed_form(stage.downsample, shape).shape
            for block in stage.blocks:
                if isinstance(block, Flatten):
                    inside = closed_form(block, inside).shape
                    continue
                mixing, feeding = block.branches(inside)
                parts["mixers"] += mixing
                parts["feed-forward"] += feeding
        heads = closed_form(self.norm, shape) + chained(shape[:1], self.head) + chained(shape[:1], self.head_dist)
        return parts | {"heads": heads}

    def macs(self, size: Size) -> int:
        """Closed form of the multiply-accumulates for one image of height and width `size`, with the heads it has."""
        return closed_form(self, (self.config.in_channels, *size)).macs

    def check_images(self, x: Tensor) -> Size:
        """The height and width of images; ValueError or TypeError for what the network cannot take."""
        check_tensor("images", x, f"B {self.config.in_channels} H W", finite=False)
        size = (x.shape[2], x.shape[3])
        check_size("images", size)
        return size

    def pool(self, x: Tensor) -> Tensor:
        """What the last stage returns -> the normalised mean over positions: (B, C)."""
        raise NotImplementedError

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Images -> the map (B, C, H / s, W / s) of each stage, s = 4, 8, 16, 32."""
        size = self.check_images(x)
        x, maps = self.stem(x), []
        for stage, stride in zip(self.stages, STRIDES, strict=True):
            x = as_map(stage(x), (size[0] // stride, size[1] // stride))
            maps.append(x)
        return maps

    def forward_head(self, pooled: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C) -> logits, or while training with distillation the pair (head, distillation head)."""
        assert self.head is not None
        logits: Tensor = self.head(pooled)
        if self.head_dist is None:
            return logits
        taught = self.head_dist(pooled)
        return (logits, taught) if self.training else (logits + taught) / 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor] | list[Tensor]:
        maps = self.forward_stages(x)
        return maps if self.features_only else self.forward_head(self.pool(maps[-1]))

    def fuse(self) -> TwoHeads:
        """A copy for deployment, in evaluation mode, of equal outputs: batch norm folded, the two heads one."""
        network = copy.deepcopy(self).eval()
        fold_batch_norm(network)
        if isinstance(network.head, nn.Linear) and isinstance(network.head_dist, nn.Linear):
            with torch.no_grad():
                network.head.weight.add_(network.head_dist.weight).div_(2)
                network.head.bias.add_(network.head_dist.bias).div_(2)
            network.head_dist = None
        return network


@closed_form.register
def _(network: TwoHeads, shape: Shape) -> Footprint:
    return sum(network.parts((shape[1], shape[2])).values(), Footprint())


def _head(width: int, classes: int) -> nn.Module:
    if classes == 0:
        return nn.Identity()
    head = nn.Linear(width, classes)
    initialise_small(head)
    return head


def drop_rates(maximum: float, depths: Sequence[int]) -> Iterator[float]:
    """Drop-path rate of each block in turn: linear from 0 to `maximum`."""
    total = sum(depths)
    return (maximum * i / max(total - 1, 1) for i in range(total))


def configure(variant: Any, variants: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """The configuration called `variant` (or given as such), with some of its fields replaced."""
    if isinstance(variant, str):
        if variant not in variants:
            raise ValueError(f"no variant is called {variant!r}; there are: {', '.join(variants)}")
        variant = variants[variant]
    unknown = sorted(set(options) - set(vars(variant)))
    if unknown:
        raise ValueError(f"no option is called {unknown[0]!r}; there are: {', '.join(vars(variant))}")
    return replace(variant, **options)


# --------------------------------------------------------------------------------------------------------------------
# Weights


def renamed(key: str, names: Mapping[str, str]) -> str:
    """The key after every substitution (pattern -> replacement) of `names`."""
    for pattern, replacement in names.items():
        key = re.sub(pattern, replacement, key)
    return key


def load_exactly(model: TwoHeads, state_dict: Mapping[str, Tensor], variants: Mapping[str, Any]) -> None:
    """Load a state dict that fits in every key and shape; else ValueError says what does not fit, and loads nothing."""
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    both = [key for key in given if key in own]
    wrong = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [f"{key} {given[key]} instead of {own[key]}" for key in both if given[key] != own[key]],
    }
    found = [f"{len(w)} {what}: {', '.join(w[:3])}{', ...' * (len(w) > 3)}" for what, w in wrong.items() if w]
    if found:
        raise ValueError(f"these weights do not fit; {'; '.join(found)}. {_looks_like(state_dict, variants)}")
    model.load_state_dict(dict(state_dict))


def _looks_like(state_dict: Mapping[str, Tensor], variants: Mapping[str, Any]) -> str:
    """A sentence that says which variant the weights are of, as far as their widths tell."""
    scales = [state_dict.get(f"stages.{j}.blocks.0.ls2.gamma") for j in range(len(STRIDES))]
    if any(scale is None for scale in scales):
        return "They are not of this family."
    widths = tuple(len(scale) for scale in scales)
    names = [name for name, config in variants.items() if config.widths == widths]
    return f"They look like variant {names[0]!r}." if names else f"They are of an unknown variant, of widths {widths}."


# --------------------------------------------------------------------------------------------------------------------
# A finished network in use


class Resolved(nn.Module):
    """A network that sees its images at `scale` of their size, or as coarsely as `tolerance` allows.

    Images (B, C, H, W) -> what `network` returns. `size` is the height and width that the last images were seen at:
    multiples of 32.
    """

    def __init__(self, network: TwoHeads, scale: float = 1.0, tolerance: float | None = None) -> None:
        super().__init__()
        self.network, self.scale, self.tolerance = network, scale, tolerance
        self.size = (0, 0)

    def forward(self, x: Tensor) -> Any:
        """The network's result on the images at the chosen size."""
        if self.tolerance is not None:
            refuse_capture("how small an image may be depends on it", "without a tolerance")
        self.size = size = fitted(self.network.check_images(x), self.scale)
        if self.tolerance is not None:
            self.size = size = coarsest(x, smaller_sizes(size), self.tolerance)
        return self.network(coarsen(x, size))


def fitted(size: Size, scale: float) -> Size:
    """The multiples of 32 nearest to `scale` times a height and width."""
    height, width = (max(1, round(int(n) * scale / STRIDES[-1])) * STRIDES[-1] for n in size)
    return height, width


def smaller_sizes(size: Size) -> list[Size]:
    """Sizes that an image of `size` may be seen at: its longer side at every multiple of 32 up to its own."""
    return [fitted(size, n * STRIDES[-1] / max(size)) for n in range(1, max(size) // STRIDES[-1] + 1)]


class ResolutionTechnique(Technique):
    """A finished network, deployed and on as few pixels as its images need.

    The design itself is fixed once a network is trained; what can be applied to one that is there, and undone, is the
    form in which it is deployed and the number of pixels that it sees. What the design exploits, the likeness of
    neighbours, is what decides how few these may be.
    """

    network: ClassVar[type[TwoHeads]]
    knobs: ClassVar = {
        "fuse": Switch(True, about="fold batch norm into the convolutions, and merge the two heads"),
        "scale": Number(1.0, low=0, high=1, low_open=True, about="share of the side at which images are seen"),
        "tolerance": Number(None, low=0, high=1, optional=True, about="share of variance that smaller images may lose"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("as trained", {"fuse": False}, off=True),
            Setting("fused", {}),
            Setting("three quarters of the side", {"scale": 0.75}),
            Setting("half of the side", {"scale": 0.5}),
            Setting("as coarse as the images allow", {"fuse": False, "tolerance": 0.02}, adaptive=True),
        ]

    @torch.no_grad()
    def measure(self, target: TwoHeads, inputs: Tensor) -> Redundancy:
        """How much neighbouring pixels of the images repeat: `neighbour_similarity`, centred, mean over the images.

        `where` holds the same of the map that each stage of the network makes of them.
        """
        self._check(target)
        maps = {"image": inputs} | {f"stage {j}": x for j, x in enumerate(target.forward_stages(inputs))}
        where = {name: mean_share(neighbour_similarity(x)) for name, x in maps.items()}
        return Redundancy(where["image"], "likeness of neighbouring pixels", where)

    def attach(self, target: TwoHeads, /, fuse: bool, scale: float, tolerance: float | None) -> Handle:
        """Make what runs in the target's place (`Resolved`); the target itself is not changed.

        The trace holds the `size` at which the last images were seen, and the `macs` of the network on one.
        """
        self._check(target)
        if not fuse and scale == 1 and tolerance is None:
            warn_no_effect(self.id, "the network is neither fused nor shown fewer pixels")
        runner = Resolved(target.fuse() if fuse else target, scale, tolerance)
        return Handle(runner, trace=lambda: {"size": runner.size, "macs": runner.network.macs(runner.size)})

    def saving(self, target: TwoHeads, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """Closed forms of the network on the images as they are, minus the deployed one on those that it saw."""
        full = target.macs((inputs.shape[2], inputs.shape[3]))
        return len(inputs) * (full - trace["macs"])

    def _check(self, target: Any) -> None:
        if not isinstance(target, self.network) or target.training:
            needs = f"the {self.network.__name__} that build() returns, in evaluation mode"
            raise UnsupportedHost(self.id, target, needs)
