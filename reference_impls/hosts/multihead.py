"""Adapters to blocks around `nn.MultiheadAttention`: torch's own encoder, torchvision's ViT, CLIP and its kin.

The weights of `nn.MultiheadAttention` are read, not called, as the module itself does. Each layout of the block around
it has its class; norms may stand before attention and MLP, or after the sums.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.hosts.block import Block, weights

_WEIGHTS = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


class MultiheadBlock(Block):
    """A block around `nn.MultiheadAttention`."""

    ATTENTION: ClassVar[str]
    """Name of the attention."""
    NORM: ClassVar[tuple[str, str]]
    """Names of the norms of attention and MLP."""
    BEHIND: ClassVar[tuple[str, ...]]
    """Names of what follows attention."""
    MLP: ClassVar[tuple[str, ...]]
    """Names of what the MLP consists of, in order, and what follows it."""
    HIDES = True

    def __init_subclass__(cls) -> None:
        cls.PARTS = (*cls.NORM, *cls.BEHIND, *cls.MLP)
        cls.TENSORS = tuple(f"{cls.ATTENTION}.{name}" for name in _WEIGHTS)

    def __init__(self, module: nn.Module, prefix: int, chain: int, index: int, last: bool) -> None:
        super().__init__(module, prefix, chain, index, last)
        self.batch_first = self._attention.batch_first

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether a module is built like such a block."""
        others = (*cls.NORM, cls.MLP[0])
        return isinstance(getattr(module, cls.ATTENTION, None), nn.MultiheadAttention) and (
            all(isinstance(getattr(module, name, None), nn.Module) for name in others)
        )

    @property
    def _attention(self) -> nn.MultiheadAttention:
        return getattr(self.module, self.ATTENTION)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self._attention
        y = F.linear(self.in_front(x, self.NORM[0]), attention.in_proj_weight, attention.in_proj_bias)  # (B, N, 3 H d)
        q, k, v = y.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        out = self._attention.out_proj
        return self.joined(x, F.linear(y, out.weight, out.bias), self.NORM[0], *self.BEHIND)

    def mlp(self, x: Tensor) -> Tensor:
        return self.joined(x, self.in_front(x, self.NORM[1]), self.NORM[1], *self.MLP)

    def unfit(self) -> str | None:
        if type(self._attention).forward is not nn.MultiheadAttention.forward:
            return f"nn.MultiheadAttention as it is, but {self.name} has a {type(self._attention).__name__}"
        return super().unfit()

    @property
    def heads(self) -> int:
        return self._attention.num_heads

    @property
    def width(self) -> int:
        return self._attention.embed_dim

    @property
    def input_width(self) -> int:
        return self._attention.embed_dim

    @property
    def dropout(self) -> float:
        return self._attention.dropout

    @property
    def attention_weights(self) -> int:
        return self._attention.in_proj_weight.numel() + self._attention.out_proj.weight.numel()

    @property
    def mlp_weights(self) -> int:
        return weights(*(self.part(name) for name in self.MLP))


class EncoderLayer(MultiheadBlock):
    """`nn.TransformerEncoderLayer`."""

    ATTENTION, NORM, BEHIND = "self_attn", ("norm1", "norm2"), ("dropout1",)
    MLP = ("linear1", "activation", "dropout", "linear2", "dropout2")
    TOKENS = "src"
    NORMS = ("before", "after")

    def mlp(self, x: Tensor) -> Tensor:
        y = self.through(self.in_front(x, "norm2"), "linear1")
        y = self.through(self.module.activation(y), "dropout", "linear2")  # a function or a module
        return self.joined(x, y, "norm2", "dropout2")


class TorchvisionBlock(MultiheadBlock):
    """torchvision's `EncoderBlock`."""

    ATTENTION, NORM, BEHIND, MLP = "self_attention", ("ln_1", "ln_2"), ("dropout",), ("mlp",)
    TOKENS = "input"


class ClipBlock(MultiheadBlock):
    """The residual attention block of CLIP and OpenCLIP."""

    ATTENTION, NORM, BEHIND, MLP = "attn", ("ln_1", "ln_2"), ("ls_1",), ("mlp", "ls_2")
    TOKENS = "x"


class PlainBlock(MultiheadBlock):
    """A block with timm's names around `nn.MultiheadAttention`."""

    ATTENTION, NORM, BEHIND = "attn", ("norm1", "norm2"), ("ls1", "drop_path1", "drop_path")
    MLP = ("mlp", "ls2", "drop_path2", "drop_path")
    TOKENS = "x"
    NORMS = ("before", "behind", "after")


LAYOUTS = (EncoderLayer, TorchvisionBlock, ClipBlock, PlainBlock)
