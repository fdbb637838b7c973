"""Small networks of EfficientFormer's parts on images of 32 x 32 pixels, whose patches make a feature map of 8 x 8.

They classify grey images, or reconstruct patches of them that are hidden (`data.masking`). A mixer that is a technique
is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.conv import Downsample
from reference_impls.layers.layout import Flatten, Size, ToMap, as_map
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.layers.pooling import Pooling
from reference_impls.layers.residual import FeedForward, MapBlock, TokenBlock
from reference_impls.layers.weights import randomise_parameters

GRID: Size = (8, 8)
"""Size of the feature map of patches."""
WIDTHS = (32, 64)
HEADS, KEY_DIM = 4, 8
LAYER_SCALE = 1.0
"""Where it starts. The papers' 1e-5 keeps the branches of so short a training shut."""


class Reconstruction(nn.Module):
    """Masked images (B, 2, 32, 32) with what `network` makes of the hidden pixels: (B, 1, 32, 32)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        image, hidden = x[:, :1], x[:, 1:]
        made: Tensor = self.network(x)
        return image + hidden * made


def patches(channels: int) -> nn.Module:
    """Patches of 4 x 4 pixels as positions: (B, channels, 32, 32) -> (B, 32, 8, 8)."""
    return nn.Conv2d(channels, WIDTHS[0], 4, 4)


def inpainter(width: int, side: int) -> nn.Sequential:
    """Batch norm, and each position as `side` x `side` pixels: (B, width, H, W) -> (B, 1, H side, W side)."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, side**2, 1), nn.PixelShuffle(side))


def map_block(width: int, mixer: nn.Module | None) -> MapBlock:
    """A block whose feed-forward part has no depthwise convolution, so that its mixer alone mixes positions."""
    return MapBlock(width, mixer, FeedForward(width, 2 * width), layer_scale=LAYER_SCALE)


def map_network(
    mixer: Callable[[], nn.Module | None], down: nn.Module | None = None, *, classify: bool = False
) -> nn.Module:
    """A small EfficientFormerV2 on patches: two blocks of 32 channels on 8 x 8 with this mixer.

    With `down`, that and a block of 64 channels without mixer on 4 x 4 follow. It reconstructs, or classifies.
    """
    width, wide = WIDTHS
    layers = [patches(1 if classify else 2), *(map_block(width, mixer()) for _ in range(2))]
    if down is not None:
        layers += [down, map_block(wide, None)]
    last = wide if down else width
    if classify:
        head = nn.Sequential(nn.BatchNorm2d(last), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10))
        return nn.Sequential(*layers, head)
    return Reconstruction(nn.Sequential(*layers, inpainter(last, 8 if down else 4)))


# --------------------------------------------------------------------------------------------------------------------
# Networks of four blocks: two of 32 channels on 8 x 8, two of 64 on 4 x 4

SIZES = (GRID, GRID, (4, 4), (4, 4))
STAGES = ("pixels", "patches", "block 1", "block 2", "block 3", "block 4")


def four_blocks(kinds: str) -> Reconstruction:
    """A small EfficientFormer whose four blocks mix by attention on tokens (a), pooling on maps (p) or not at all (n).

    The layout changes wherever a block needs the other one. Each position on 4 x 4 gives 8 x 8 pixels in the end.
    """
    layers, on_tokens = OrderedDict[str, nn.Module](patches=patches(2)), False
    for i, (kind, size) in enumerate(zip(kinds, SIZES, strict=True)):
        width = WIDTHS[i // 2]
        if on_tokens and (kind != "a" or i == 2):
            layers[f"to_map{i}"], on_tokens = ToMap(SIZES[i - 1]), False
        if i == 2:
            layers["down"] = Downsample(*WIDTHS)
        if kind == "a" and not on_tokens:
            layers[f"flatten{i}"], on_tokens = Flatten(), True
        if kind == "a":
            mixer = TokenAttention(width, size, HEADS, KEY_DIM)
            layers[f"block{i}"] = TokenBlock(width, mixer, 2 * width, layer_scale=LAYER_SCALE)
        else:
            layers[f"block{i}"] = map_block(width, Pooling() if kind == "p" else None)
    if on_tokens:
        layers["to_map"] = ToMap(SIZES[-1])
    layers["inpainter"] = inpainter(WIDTHS[1], 8)
    return Reconstruction(nn.Sequential(layers))


@torch.no_grad()
def stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The feature maps (B, C, H, W) of masked images x (B, 2, 32, 32) in `four_blocks` at each of `STAGES`."""
    maps = [x[:, :1]]
    for name, layer in model.get_submodule("network").named_children():
        x = layer(x)
        if name == "patches" or name.startswith("block"):
            maps.append(x if x.ndim == 4 else as_map(x, SIZES[int(name.removeprefix("block"))]))
    return maps


# --------------------------------------------------------------------------------------------------------------------
# Pooling blocks in either layout


class TokenPooling(nn.Module):
    """`Pooling` on tokens (B, N, C) of a map of `size`, copied back to their layout."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, self.pool = size, Pooling()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(as_map(x, self.size)).flatten(2).transpose(1, 2).contiguous()


def on_tokens(block: MapBlock, size: Size, *, norms: bool) -> TokenBlock:
    """What a folded `MapBlock` with `Pooling` computes, on tokens (B, N, C): linear layers, a map for the pooling only.

    `norms`: with a layer normalisation before either part, as blocks on tokens have; then the result differs.
    """
    first, second = (conv for conv in block.mlp.modules() if isinstance(conv, nn.Conv2d))
    made = TokenBlock(first.in_channels, TokenPooling(size), first.out_channels).to(first.weight)
    assert block.ls1 is not None
    made.ls1, made.ls2 = block.ls1, block.ls2
    for linear, conv in ((made.mlp.fc1, first), (made.mlp.fc2, second)):
        linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    if not norms:
        made.norm1, made.norm2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    return made


class ThereAndBack(nn.Module):
    """Changes the layout of a map (B, C, H, W) to tokens and back, copying both times."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        return tokens.transpose(1, 2).contiguous().unflatten(2, x.shape[2:])


def layouts(size: Size, channels: int, depth: int) -> dict[str, nn.Sequential]:
    """The same pooling blocks with random weights in four forms, from maps (B, C, H, W) to maps."""
    blocks = [
        randomise_parameters(MapBlock(channels, Pooling(), FeedForward(channels, 4 * channels), layer_scale=0.5))
        for _ in range(depth)
    ]
    maps = nn.Sequential(*blocks).eval()
    fold_batch_norm(maps)
    forms = {
        "tokens": nn.Sequential(Flatten(), *(on_tokens(b, size, norms=False) for b in blocks), ToMap(size)),
        "maps": maps,
        "there and back": nn.Sequential(*(nn.Sequential(ThereAndBack(), b) for b in blocks)),
        "tokens with layer norms": nn.Sequential(
            Flatten(), *(on_tokens(b, size, norms=True) for b in blocks), ToMap(size)
        ),
    }
    return {name: form.eval() for name, form in forms.items()}
