"""EfficientFormer: a vision transformer that pools on maps first and attends on 49 tokens last.

References:
  li-2022-efficientformer: Li, Yuan, Wen, Hu, Evangelidis, Tulyakov, Wang, Ren. EfficientFormer: Vision Transformers at
    MobileNet Speed. NeurIPS 2022, arXiv 2206.01191. Variants L1, L3 and L7.

The network is a composition of `dimension_consistent_design`: a stem of stride 4, four stages of blocks on maps at
strides 4, 8, 16 and 32, and, behind the one flattening, blocks with attention at the end. Widths and depths were found
by `latency_driven_slimming`. Two heads are trained, one on labels and one on a teacher's; their mean is the prediction.

    model = build("l1").eval()                           # 12,289,928 parameters, 1,291,284,736 operations at 224 pixels
    logits = model(images)                               # (B, 3, 224, 224) -> (B, 1000)
    deployed = model.fuse()                              # batch norm folded, heads merged: equal outputs
    load_timm(model, timm_state_dict)                    # ImageNet weights, for who has them
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract import check_tensor
from reference_impls.techniques.dimension_consistent_design import (
    Cost,
    Downsample,
    FeedForward,
    Flatten,
    MapBlock,
    Pooling,
    Size,
    Stem,
    TokenAttention,
    TokenBlock,
    as_map,
    conv_cost,
    feed_forward_cost,
    fold_batch_norm,
    mlp_cost,
    stem_cost,
    token_attention_cost,
)

STRIDES = (4, 8, 16, 32)
"""Pixels of the image for each pixel of the map, stage by stage."""


def check_stages(widths: Sequence[int], depths: Sequence[int], attention: Sequence[int]) -> None:
    """Raise ValueError unless there are four stages whose attention blocks fit."""
    if not len(widths) == len(depths) == len(attention) == len(STRIDES):
        raise ValueError(f"a network has {len(STRIDES)} stages, got widths {widths}, depths {depths}, {attention=}")
    if min(depths) < 1 or min(widths) < 2 or any(not 0 <= a <= d for a, d in zip(attention, depths, strict=True)):
        raise ValueError(
            f"every stage needs a block, and no more attention than blocks: {widths=}, {depths=}, {attention=}"
        )


def check_size(name: str, size: Size) -> None:
    """Raise ValueError unless both sides are multiples of 32."""
    if any(n < STRIDES[-1] or n % STRIDES[-1] for n in size):
        raise ValueError(f"{name} must be a multiple of {STRIDES[-1]} pixels in height and width, got {size}")


@dataclass(frozen=True)
class Config:
    """What an EfficientFormer is made of; of each of the four stages its width, depth, and attention blocks at its end.

    Attention is of fixed resolution, so the network takes square images of `img_size` pixels only.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    attention: tuple[int, ...]
    mlp_ratio: float = 4
    heads: int = 8
    key_dim: int = 32
    value_ratio: int = 4
    img_size: int = 224
    in_channels: int = 3
    drop_path: float = 0.0
    layer_scale: float = 1e-5

    def __post_init__(self) -> None:
        check_stages(self.widths, self.depths, self.attention)
        check_size("img_size", (self.img_size, self.img_size))

    def sizes(self) -> list[Size]:
        """Height and width of the map of each stage."""
        return [(self.img_size // stride, self.img_size // stride) for stride in STRIDES]


VARIANTS = {
    "l1": Config((48, 96, 224, 448), (3, 2, 6, 4), (0, 0, 0, 1)),
    "l3": Config((64, 128, 320, 512), (4, 4, 12, 6), (0, 0, 0, 4)),
    "l7": Config((96, 192, 384, 768), (6, 6, 18, 8), (0, 0, 0, 8)),
}


def build(variant: str | Config, num_classes: int = 1000, distillation: bool = True, **options: Any) -> EfficientFormer:
    """An EfficientFormer with random weights: `l1`, `l3`, `l7`, or any `Config`.

    `distillation`: with the second head, trained on a teacher. `features_only=True`: no head; the output is the list of
    the four stages' maps. Other options replace fields of the `Config` (`img_size`, `drop_path`, `in_channels`, ...).
    Raises ValueError for an unknown variant or a bad option.
    """
    features_only = options.pop("features_only", False)
    return EfficientFormer(
        configure(variant, VARIANTS, options), num_classes, distillation, features_only=features_only
    )


# --------------------------------------------------------------------------------------------------------------------
# What both versions share


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

    Images (B, 3, H, W) -> logits (B, classes), the mean of both heads; while training, the pair of logits. Without
    `distillation` there is one head; with `features_only` there is none, and the maps of the stages are returned.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        classes: int,
        width: int,
        distillation: bool,
        features_only: bool,
    ) -> None:
        super().__init__()
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.features_only = features_only
        self.norm: nn.Module = nn.Identity() if features_only else norm
        self.head = None if features_only else _head(width, classes)
        self.head_dist = _head(width, classes) if distillation and not features_only else None

    def check_images(self, x: Tensor) -> Size:
        """The height and width of images that the network can take; ValueError for others."""
        raise NotImplementedError

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
        logits = self.head(pooled)
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
        if network.head is not None and network.head_dist is not None:
            with torch.no_grad():
                network.head.weight.add_(network.head_dist.weight).div_(2)
                network.head.bias.add_(network.head_dist.bias).div_(2)
            network.head_dist = None
        return network


def _head(width: int, classes: int) -> nn.Linear:
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def head_cost(width: int, classes: int, distillation: bool) -> Cost:
    """Cost of the normalisation and the heads."""
    heads = 2 if distillation else 1
    return Cost(heads * (width + 1) * classes + 2 * width, heads * width * classes)


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
# The first version


class EfficientFormer(TwoHeads):
    """EfficientFormer on images (B, 3, img_size, img_size); see `build` and `TwoHeads`."""

    def __init__(
        self, config: Config, num_classes: int = 1000, distillation: bool = True, *, features_only: bool = False
    ) -> None:
        stages, previous, rates = [], config.widths[0], drop_rates(config.drop_path, config.depths)
        for j, (width, depth, size) in enumerate(zip(config.widths, config.depths, config.sizes(), strict=True)):
            hidden, blocks = int(width * config.mlp_ratio), list[nn.Module]()
            for _ in range(depth - config.attention[j]):
                mlp = FeedForward(width, hidden)
                blocks.append(MapBlock(width, Pooling(), mlp, next(rates), config.layer_scale))
            if config.attention[j]:
                blocks.append(Flatten())
            for _ in range(config.attention[j]):
                mixer = TokenAttention(width, size, config.heads, config.key_dim, config.value_ratio)
                blocks.append(TokenBlock(width, mixer, hidden, next(rates), config.layer_scale))
            stages.append(Stage(Downsample(previous, width) if j else None, blocks))
            previous = width
        stem, norm = Stem(config.widths[0], nn.ReLU, config.in_channels), nn.LayerNorm(previous)
        super().__init__(stem, stages, norm, num_classes, previous, distillation, features_only)
        self.config = config

    def check_images(self, x: Tensor) -> Size:
        side = self.config.img_size
        check_tensor("images", x, f"B {self.config.in_channels} {side} {side}", finite=False)
        return side, side

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).transpose(1, 2)).mean(1)


def cost(config: Config, num_classes: int = 1000, distillation: bool = True) -> dict[str, Cost]:
    """Closed form of the cost by part; `sum(cost(...).values(), Cost())` is the whole network's."""
    sizes = config.sizes()
    parts = dict.fromkeys(("stem", "feed-forward", "mixers", "downsampling", "heads"), Cost())
    parts["stem"] = stem_cost(config.widths[0], sizes[0][0] * sizes[0][1], config.in_channels)
    for j, (width, size) in enumerate(zip(config.widths, sizes, strict=True)):
        positions, hidden = size[0] * size[1], int(width * config.mlp_ratio)
        if j:
            parts["downsampling"] += conv_cost(config.widths[j - 1], width, positions, 3)
        for i in range(config.depths[j]):
            if i < config.depths[j] - config.attention[j]:
                parts["mixers"] += Cost(width)  # the layer scale of the pooling
                parts["feed-forward"] += feed_forward_cost(width, hidden, positions)
            else:
                parts["mixers"] += token_attention_cost(width, size, config.heads, config.key_dim, config.value_ratio)
                parts["feed-forward"] += mlp_cost(width, hidden, positions)
    parts["heads"] = head_cost(config.widths[-1], num_classes, distillation)
    return parts


# --------------------------------------------------------------------------------------------------------------------
# Weights of timm

_NAMES = {
    r"^stem\.conv(\d)": r"stem.conv\1.conv",
    r"^stem\.norm(\d)": r"stem.conv\1.bn",
    r"\.downsample\.conv\.": ".downsample.conv.conv.",
    r"\.downsample\.norm\.": ".downsample.conv.bn.",
    r"\.mlp\.norm(\d)\.": r".mlp.fc\1.bn.",
    r"\.attention_biases$": ".bias.table",
}


def load_timm(model: EfficientFormer, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of timm's `efficientformer_l1`, `_l3` or `_l7` into the same variant, key for key.

    Raises ValueError, with nothing loaded, that names what is missing, left over, or of another shape.
    """
    names = {key: renamed(key, _NAMES) for key in state_dict if not key.endswith(".attention_bias_idxs")}  # a constant
    for key, name in names.items():
        if f"{key.rsplit('.', 2)[0]}.norm1.running_mean" in state_dict:  # the MLP of a block on maps
            names[key] = re.sub(r"\.mlp\.(fc\d)\.(weight|bias)$", r".mlp.\1.conv.\2", name)
    load_exactly(model, {name: state_dict[key] for key, name in names.items()}, VARIANTS)


def renamed(key: str, names: Mapping[str, str]) -> str:
    """The key after every substitution (pattern -> replacement) of `names`."""
    for pattern, replacement in names.items():
        key = re.sub(pattern, replacement, key)
    return key


def load_exactly(model: TwoHeads, state_dict: Mapping[str, Tensor], variants: Mapping[str, Any]) -> None:
    """Load a state dict that fits in every key and shape; else ValueError says what does not fit, and loads nothing."""
    own = model.state_dict()
    wrong = {
        "missing": [key for key in own if key not in state_dict],
        "unexpected": [key for key in state_dict if key not in own],
        "of another shape": [
            f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
            for key, value in state_dict.items()
            if key in own and value.shape != own[key].shape
        ],
    }
    if any(wrong.values()):
        found = [
            f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' * (len(keys) > 3)}"
            for what, keys in wrong.items()
            if keys
        ]
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
