"""EfficientFormerV2: all blocks on maps; depthwise convolutions mix neighbours, strided attention the rest.

References:
  li-2023-rethinking: Li, Hu, Wen, Evangelidis, Salahi, Wang, Tulyakov, Ren. Rethinking Vision Transformers for
    MobileNet Size and Speed (EfficientFormerV2). ICCV 2023, arXiv 2212.08059. Variants S0, S1, S2 and L.

The network keeps the skeleton of `efficientformer` and changes what fills it. The pooling makes room for a depthwise
3x3 convolution inside the feed-forward part; the last blocks of the last two stages attend (`stride_attention`), at
stride 16 on a map of half the resolution; and the last halving adds attention beside its convolution
(`attention_downsampling`). Widths, depths and the expansion of every feed-forward part were found by
`fine_grained_joint_search`.

    model = build("s0").eval()                           # 3,600,256 parameters, 395,892,544 MACs at 224 pixels
    logits = model(images)                               # (B, 3, H, W) -> (B, 1000), H and W multiples of 32
    deployed = model.fuse()                              # batch norm folded, heads merged: equal outputs
    load_timm(model, timm_state_dict)                    # ImageNet weights, for who has them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reference_impls.contract.precision import widened
from reference_impls.layers.conv import ConvNorm, Downsample, Stem
from reference_impls.layers.pooling import Pooling
from reference_impls.layers.residual import FeedForward, MapBlock
from reference_impls.techniques.attention_downsampling import DualPathDownsample
from reference_impls.techniques.efficientformer.skeleton import (
    STRIDES,
    ResolutionTechnique,
    Stage,
    Stages,
    TwoHeads,
    configure,
    drop_rates,
    load_exactly,
    renamed,
)
from reference_impls.techniques.stride_attention import MapAttention

Mixer = Literal["attention", "depthwise", "mean", "none"]


@dataclass(frozen=True)
class Config(Stages):
    """What an EfficientFormerV2 is made of.

    `ratios`: expansion of the feed-forward part of every block, stage by stage. `strides`: stride of the attention of
    each stage. `mixer`: what stands in the place of attention in those blocks. `dual_path`: attention beside the
    convolution before the last stage.
    """

    ratios: tuple[tuple[float, ...], ...]
    strides: tuple[int, ...] = (1, 1, 2, 1)
    mixer: Mixer = "attention"
    project_first: bool = False
    dual_path: bool = True
    down_key_dim: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if tuple(map(len, self.ratios)) != self.depths:
            raise ValueError(f"every block needs an expansion ratio: depths {self.depths}, ratios {self.ratios}")
        if self.mixer not in get_args(Mixer):
            raise ValueError(f"no mixer is called {self.mixer!r}; there are: {', '.join(get_args(Mixer))}")


def _variant(widths: str, stages: str, attention: tuple[int, ...], drop_path: float = 0.0) -> Config:
    """`stages`: the expansion ratio of every block, a digit each, stages apart by blanks."""
    ratios = tuple(tuple(map(int, digits)) for digits in stages.split())
    depths = tuple(map(len, ratios))
    return Config(tuple(map(int, widths.split())), depths, attention, ratios, drop_path=drop_path)


VARIANTS = {
    "s0": _variant("32 48 96 176", "44 44 433344 4334", (0, 0, 2, 2)),
    "s1": _variant("32 48 120 224", "444 444 443333444 443344", (0, 0, 2, 2)),
    "s2": _variant("32 64 144 288", "4444 4444 443333334444 44333344", (0, 0, 4, 4), 0.02),
    "l": _variant("40 80 192 384", "44444 44444 444433333334444 4443333444", (0, 0, 6, 6), 0.1),
}


def build(
    variant: str | Config, num_classes: int = 1000, distillation: bool = True, **options: Any
) -> EfficientFormerV2:
    """An EfficientFormerV2 with random weights: `s0`, `s1`, `s2`, `l`, or any `Config`; as `efficientformer.build`."""
    features_only = options.pop("features_only", False)
    config = configure(variant, VARIANTS, options)
    return EfficientFormerV2(config, num_classes, distillation, features_only=features_only)


class EfficientFormerV2(TwoHeads):
    """EfficientFormerV2 on images (B, 3, H, W), H and W multiples of 32; see `build` and `TwoHeads`."""

    def layers(self, config: Config) -> tuple[nn.Module, list[Stage], nn.Module]:
        stages, rates = [], drop_rates(config.drop_path, config.depths)
        for j, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            blocks = []
            for i in range(depth):
                mixer = self._mixer(config, j) if i >= depth - config.attention[j] else None
                mlp = FeedForward(width, int(width * config.ratios[j][i]), local=True)
                blocks.append(MapBlock(width, mixer, mlp, next(rates), config.layer_scale))
            stages.append(Stage(self._downsample(config, j), blocks))
        return Stem(config.widths[0], nn.GELU, config.in_channels), stages, nn.BatchNorm2d(config.widths[-1])

    @staticmethod
    def _mixer(config: Config, stage: int) -> nn.Module | None:
        width, size, stride = config.widths[stage], config.sizes()[stage], config.strides[stage]
        if config.mixer == "attention":
            shape = (config.heads, config.key_dim, config.value_ratio, stride)
            return MapAttention(width, size, *shape, project_first=config.project_first)
        if config.mixer == "depthwise":
            return ConvNorm(width, width, 3, groups=width)
        return Pooling() if config.mixer == "mean" else None

    @staticmethod
    def _downsample(config: Config, stage: int) -> nn.Module | None:
        if stage == 0:
            return None
        before, width = config.widths[stage - 1 : stage + 1]
        if stage < len(STRIDES) - 1 or not config.dual_path:
            return Downsample(before, width)
        shape = (config.heads, config.down_key_dim, config.value_ratio)
        return DualPathDownsample(before, width, config.sizes()[stage - 1], *shape)

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3))

    def fuse(self) -> EfficientFormerV2:
        """See `TwoHeads.fuse`; the last normalisation goes into the head, for it commutes with the mean over pixels."""
        network = super().fuse()
        if isinstance(network.head, nn.Linear) and isinstance(network.norm, nn.BatchNorm2d):
            bn, head = network.norm, network.head
            with torch.no_grad():
                mean, weight = widened(bn.running_mean), widened(head.weight)
                scale = bn.weight / (widened(bn.running_var) + bn.eps).sqrt()
                head.bias.copy_(head.bias + (weight * (bn.bias - mean * scale)).sum(1))
                head.weight.copy_(weight * scale)
            network.norm = nn.Identity()
        return network


def load_timm(model: EfficientFormerV2, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of timm's `efficientformerv2_s0`, `_s1`, `_s2` or `_l` into the same variant, key for key.

    Weights that were trained at another resolution have position biases of another shape: build the model with their
    `img_size`; it takes other images all the same.
    Raises ValueError, with nothing loaded, that names what is missing, left over, or of another shape.
    """
    names = {r"\.attention_biases$": ".bias.table"}
    load_exactly(model, {renamed(key, names): value for key, value in state_dict.items()}, VARIANTS)


class EfficientFormerV2Technique(ResolutionTechnique):
    """EfficientFormerV2 on the contract: see `ResolutionTechnique`."""

    id = "efficientformer-v2"
    execution = "real"
    network = EfficientFormerV2
