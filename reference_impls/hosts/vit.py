"""Adapter to vision transformers of timm's structure, in plain torch.

A block has `norm1`, `attn` with `proj`, `num_heads` and `qkv` (or `q_proj`, `k_proj`, `v_proj`), `norm2` and `mlp`. It
may have besides

- norms of queries and keys (`q_norm`, `k_norm`), of the heads' output (`norm`), and a gate on it (`gate`);
- biases apart from the projection, as in BEiT and EVA (`q_bias`, `k_bias`, `v_bias`), and fewer keys than queries;
- layer scale (`ls1`, `ls2`; `gamma_1`, `gamma_2`) and stochastic depth (`drop_path1`, `drop_path2`; `drop_path`);
- positions in attention: a table of biases for each pair of places, its own (`relative_position_bias_table`,
  `rel_pos`) or the model's (`shared_rel_pos`, `rel_pos_bias`), or rotary embeddings that the model gives (`rope`);
- its norms after attention and MLP, or after the sums, instead of before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract import generator
from reference_impls.hosts.block import Block, Positions, weights

_SHARED = ("shared_rel_pos", "shared_rel_pos_bias", "rel_pos_bias")
"""Names under which models give their blocks a bias for each pair of tokens, (1, H, N, N)."""
_PROJECTIONS = ("attn.q_proj", "attn.k_proj", "attn.v_proj")


class VitBlock(Block):
    """A block of timm's structure."""

    PARTS = (
        *("norm1", "attn.qkv", *_PROJECTIONS, "attn.q_norm", "attn.k_norm", "attn.rel_pos.mlp", "attn.norm"),
        *("attn.gate", "attn.proj", "attn.proj_drop", "ls1", "drop_path1"),
        *("norm2", "mlp", "ls2", "drop_path2", "drop_path"),
    )
    TENSORS = (
        *("attn.q_bias", "attn.k_bias", "attn.v_bias", "gamma_1", "gamma_2"),
        *("attn.relative_position_bias_table", "attn.relative_position_index"),
        *("attn.rel_pos.relative_position_bias_table", "attn.rel_pos.relative_position_index"),
        "attn.rel_pos.rel_coords_log",
    )
    LEFT_OUT = ("attn.attn_drop",)
    TOKENS = "x"
    NORMS = ("before", "behind", "after")

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.in_front(x, "norm1")
        if "attn.qkv" in self._parts:
            y = self.part("attn.qkv")(x)  # (B, N, 3 H d)
            if (bias := self.tensor("attn.q_bias")) is not None:
                value_bias, key_bias = self.tensor("attn.v_bias"), self.tensor("attn.k_bias")
                key_bias = torch.zeros_like(bias) if key_bias is None else key_bias
                y = y + torch.cat((bias, key_bias, value_bias))
            q, k, v = y.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, d) each
        else:
            d = self.width // self.heads
            q, k, v = (self.part(path)(x).unflatten(2, (-1, d)).transpose(1, 2) for path in _PROJECTIONS)
        q, k = self.through(q, "attn.q_norm"), self.through(k, "attn.k_norm")
        if k.shape[1] != self.heads:  # fewer keys and values than queries
            k, v = (y.repeat_interleave(self.heads // y.shape[1], 1) for y in (k, v))
        return q, k, v

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.through(y, "attn.norm")
        if "attn.gate" in self._parts:
            y = y * self.part("attn.gate")(self.in_front(x, "norm1")).sigmoid()
        y = self._scaled(self.through(y, "attn.proj", "attn.proj_drop"), "gamma_1")
        return self.joined(x, y, "norm1", "ls1", "drop_path1", "drop_path")

    def mlp(self, x: Tensor) -> Tensor:
        y = self._scaled(self.through(self.in_front(x, "norm2"), "mlp"), "gamma_2")
        return self.joined(x, y, "norm2", "ls2", "drop_path2", "drop_path")

    def _scaled(self, y: Tensor, path: str) -> Tensor:
        return y if (gamma := self.tensor(path)) is None else gamma * y

    # Positions --------------------------------------------------------------------------------------------------------

    def positions(self, tokens: int, given: Mapping[str, Any]) -> Positions:
        bias, rotary = self._own_bias(), None
        for name in _SHARED if "attn.rel_pos" not in self._inner else ():  # timm's own module overrides the model's
            if (shared := given.get(name)) is not None:
                shared = _with_batch(shared)
                bias = shared if bias is None else bias + shared
        if (rope := given.get("rope")) is not None:
            sin, cos = _with_batch(rope).chunk(2, -1)
            nowhere = (*cos.shape[:2], tokens - cos.shape[2], cos.shape[3])
            rotary = torch.cat((cos.new_ones(nowhere), cos), 2), torch.cat((sin.new_zeros(nowhere), sin), 2)
        return Positions(bias, rotary)

    def _own_bias(self) -> Tensor | None:
        """(1, H, N, N), of the block's own table."""
        if "attn.rel_pos" in self._inner:
            return self.module.attn.rel_pos.get_bias()
        table, index = (self.tensor(f"attn.relative_position_{name}") for name in ("bias_table", "index"))
        if table is None or index is None:
            return None
        tokens = math.isqrt(index.numel())
        return table[index.flatten()].view(1, tokens, tokens, -1).permute(0, 3, 1, 2)

    def rotated(self, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if getattr(self.module.attn, "rotate_half", False):
            return super().rotated(y, cos, sin)
        turned = torch.stack((-y[..., 1::2], y[..., ::2]), -1).flatten(-2)  # neighbours as real and imaginary parts
        return (y * cos + turned * sin).to(y.dtype)

    def grid(self) -> int | None:
        if "attn.rel_pos" in self._inner:
            return self.module.attn.rel_pos.window_area + self.module.attn.rel_pos.prefix_tokens
        return None if (index := self.tensor("attn.relative_position_index")) is None else math.isqrt(index.numel())

    def takes(self, name: str) -> bool:
        return name == "rope" or name in _SHARED

    def example(self, x: Tensor) -> dict[str, Any]:
        draws, tokens, d = generator(1), x.shape[1], self.width // self.heads
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_SHARED, (1, self.heads, tokens, tokens))
        shapes |= {"rope": (tokens - getattr(self.module.attn, "num_prefix_tokens", 0), 2 * d)}
        return {name: torch.randn(shape, generator=draws).to(x) for name, shape in shapes.items() if self.accepts(name)}

    # Shape ------------------------------------------------------------------------------------------------------------

    @property
    def heads(self) -> int:
        return self.module.attn.num_heads

    @property
    def width(self) -> int:
        return self.module.attn.proj.in_features

    @property
    def input_width(self) -> int:
        return self.part("attn.qkv" if "attn.qkv" in self._parts else _PROJECTIONS[0]).in_features

    @property
    def scale(self) -> float:
        scale = getattr(self.module.attn, "scale", None)
        return super().scale if scale is None else scale

    @property
    def dropout(self) -> float:
        return getattr(getattr(self.module.attn, "attn_drop", None), "p", 0.0)

    @property
    def attention_weights(self) -> int:
        return weights(*(self.part(path) for path in ("attn.qkv", *_PROJECTIONS, "attn.gate", "attn.proj")))


def _with_batch(x: Tensor) -> Tensor:
    """(N, M), (H, N, M) or (B, H, N, M) -> (1 or B, 1 or H, N, M)."""
    return x.reshape(1, -1, *x.shape[-2:]) if x.ndim < 4 else x


def fits(module: nn.Module) -> bool:
    """Whether a module is built like such a block."""

    def has(owner: Any, kind: type, *names: str) -> bool:
        return all(isinstance(getattr(owner, name, None), kind) for name in names)

    attn = getattr(module, "attn", None)
    projections = has(attn, nn.Linear, "qkv") or has(attn, nn.Linear, "q_proj", "k_proj", "v_proj")
    blocks = has(module, nn.Module, "norm1", "norm2", "mlp") and hasattr(attn, "num_heads")
    return blocks and projections and has(attn, nn.Linear, "proj")
