"""Adapter to vision transformers of timm's structure, in plain torch.

A block has `norm1`, `attn` with `qkv`, `proj` and `num_heads` (and perhaps `q_norm`, `k_norm`, `norm`), `norm2` and
`mlp`, and perhaps layer scale (`ls1`, `ls2`) and stochastic depth (`drop_path1`, `drop_path2`; `drop_path` for both).
"""

from __future__ import annotations

from torch import Tensor, nn

from reference_impls.hosts.block import Block, weights


class VitBlock(Block):
    """A block of timm's structure."""

    PARTS = (
        *("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.norm", "attn.proj", "attn.proj_drop"),
        *("ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2", "drop_path"),
    )
    LEFT_OUT = ("attn.attn_drop",)
    TOKENS = "x"

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.through(x, "norm1", "attn.qkv")  # (B, N, 3 H d)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, d) each
        return self.through(q, "attn.q_norm"), self.through(k, "attn.k_norm"), v

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.through(y, "attn.norm", "attn.proj", "attn.proj_drop", "ls1", "drop_path1", "drop_path")

    def mlp(self, x: Tensor) -> Tensor:
        return x + self.through(x, "norm2", "mlp", "ls2", "drop_path2", "drop_path")

    @property
    def heads(self) -> int:
        return self.module.attn.num_heads

    @property
    def width(self) -> int:
        return self.module.attn.proj.in_features

    @property
    def scale(self) -> float:
        scale = getattr(self.module.attn, "scale", None)
        return super().scale if scale is None else scale

    @property
    def dropout(self) -> float:
        return getattr(getattr(self.module.attn, "attn_drop", None), "p", 0.0)

    @property
    def attention_weights(self) -> int:
        return weights(self.module.attn.qkv, self.module.attn.proj)


def fits(module: nn.Module) -> bool:
    """Whether a module is built like such a block."""
    attn = getattr(module, "attn", None)
    return all(isinstance(getattr(module, part, None), nn.Module) for part in ("norm1", "norm2", "mlp", "attn")) and (
        all(isinstance(getattr(attn, part, None), nn.Linear) for part in ("qkv", "proj")) and hasattr(attn, "num_heads")
    )
