"""EfficientNet-Lite0 in plain torch, with its pretrained ImageNet weights.

References:
  tan-2019-efficientnet (arXiv 1905.11946): the architecture. The Lite variant, published with TensorFlow's TPU models
  in 2020, drops squeeze-and-excitation, uses ReLU6 instead of Swish, and keeps the stem and the head at fixed widths.
  sandler-2018-mobilenetv2 (arXiv 1801.04381): the inverted residual blocks.

The weights were trained in TensorFlow, whose "same" padding at stride 2 pads one pixel more below and to the right. It
is written as a `ZeroPad2d` of its own, right for inputs whose sides are multiples of 32. Every step is a module of
`torch.nn`, but for the additions of the residual connections, so that `torch.fx` traces the network.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import composed
from reference_impls.data import assets
from reference_impls.layers.conv import Activation, InvertedResidual

# repeats, kernel, stride of the first, expansion, width
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def same_conv_norm_act(
    channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: Activation = nn.ReLU6
) -> nn.Sequential:
    """A convolution without bias, batch norm and an activation (unless None), padded as TensorFlow's "same"."""
    total = kernel - stride  # exact for inputs that are multiples of the stride
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers["pad"] = nn.ZeroPad2d((total // 2, total - total // 2) * 2)
    padding = 0 if stride > 1 else kernel // 2
    layers["conv"] = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(out, eps=1e-3, momentum=0.01)
    if act:
        layers["act"] = act()
    return nn.Sequential(layers)


class EfficientNetLite0(nn.Module):
    """The network: `stem`, 16 `blocks`, `head`, `pool`, `classifier`; 4,652,008 parameters with 1,000 classes."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = same_conv_norm_act(3, 32, 3, stride=2)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, width in STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(channels, width, kernel, step, expansion, same_conv_norm_act))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = same_conv_norm_act(channels, 1280)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, 1280, H / 32, W / 32)."""
        return self.head(self.blocks(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W), H and W multiples of 32 -> logits (B, classes)."""
        return self.classifier(self.dropout(self.flatten(self.pool(self.forward_features(x)))))


composed(EfficientNetLite0, "stem", "blocks", "head", "pool", "flatten", "classifier")


def normalise(x: Tensor) -> Tensor:
    """Images in [0, 1] -> what the weights expect: (255 x - 127) / 128."""
    return (x * 255 - 127) / 128


def efficientnet_lite0(pretrained: bool = True) -> EfficientNetLite0:
    """EfficientNet-Lite0 in evaluation mode, with ImageNet-1k weights if `pretrained`. Use `normalise` on its input.

    Licence of the weights: Apache-2.0, trained by the authors of TensorFlow's TPU models (Apache-2.0), converted by
    ML Illustrated (Apache-2.0); the asset `efficientnet-lite0`. Trained on ImageNet-1k.
    Raises: MissingAsset.
    """
    model = EfficientNetLite0().eval()
    if pretrained:
        file = assets.path("efficientnet-lite0") / "efficientnet-lite0-57934424.pth"
        weights = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict({_rename(key): value for key, value in weights.items()})
    return model


def _rename(key: str) -> str:
    """A parameter's name in the checkpoint -> its name here."""
    part, _, rest = key.partition(".")
    if part == "_blocks":
        index, layer, name = rest.split(".")
        ours = [f"{part}.{kind}" for part in ("expand", "depthwise", "project") for kind in ("conv", "norm")]
        theirs = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
        return f"blocks.{index}.{ours[theirs.index(layer)]}.{name}"
    ours = ["stem.conv", "stem.norm", "head.conv", "head.norm", "classifier"]
    return f"{ours[('_conv_stem', '_bn0', '_conv_head', '_bn1', '_fc').index(part)]}.{rest}"
