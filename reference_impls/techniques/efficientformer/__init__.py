"""EfficientFormer: a vision transformer that pools on maps first and attends on 49 tokens last.

References:
  li-2022-efficientformer: Li, Yuan, Wen, Hu, Evangelidis, Tulyakov, Wang, Ren. EfficientFormer: Vision Transformers at
    MobileNet Speed. NeurIPS 2022, arXiv 2206.01191. Variants L1, L3 and L7.

The network is a `dimension_consistent_design` of `layers`: a stem of stride 4, four stages of blocks on maps at
strides 4, 8, 16 and 32, and, after the one flattening, blocks with attention at the end. Widths and depths were found
by `latency_driven_slimming`. Two heads are trained, one on labels and one on a teacher's; their mean is the prediction.

    model = build("l1").eval()                           # 12,289,928 parameters, 1,291,284,736 MACs at 224 pixels
    logits = model(images)                               # (B, 3, 224, 224) -> (B, 1000)
    deployed = model.fuse()                              # batch norm folded, heads merged: equal outputs
    load_timm(model, timm_state_dict)                    # ImageNet weights, for who has them
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.conv import Downsample, Stem
from reference_impls.layers.layout import Flatten, Size, as_tokens
from reference_impls.layers.pooling import Pooling
from reference_impls.layers.residual import FeedForward, MapBlock, TokenBlock
from reference_impls.techniques.efficientformer.skeleton import (
    ResolutionTechnique,
    Stage,
    Stages,
    TwoHeads,
    configure,
    drop_rates,
    load_exactly,
    renamed,
)


@dataclass(frozen=True)
class Config(Stages):
    """What an EfficientFormer is made of; the published networks take square images of `img_size` only."""

    mlp_ratio: float = 4


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
    config = configure(variant, VARIANTS, options)
    return EfficientFormer(config, num_classes, distillation, features_only=features_only)


class EfficientFormer(TwoHeads):
    """EfficientFormer on square images (B, 3, S, S), S a multiple of 32; see `build` and `TwoHeads`."""

    def layers(self, config: Config) -> tuple[nn.Module, list[Stage], nn.Module]:
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
        return Stem(config.widths[0], nn.ReLU, config.in_channels), stages, nn.LayerNorm(previous)

    def check_images(self, x: Tensor) -> Size:
        size = super().check_images(x)
        if size[0] != size[1]:  # attention takes its tokens as a square
            raise ValueError(f"images must be square, got {size[0]} x {size[1]} pixels")
        return size

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(as_tokens(x)).mean(1)


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


class EfficientFormerTechnique(ResolutionTechnique):
    """EfficientFormer on the contract: see `ResolutionTechnique`."""

    id = "efficientformer"
    execution = "real"
    network = EfficientFormer
