"""Adapter to vision transformers of timm's structure, in plain torch.

A block has `norm1`, `attn` with `qkv`, `proj` and `num_heads` (and perhaps `q_norm`, `k_norm`), `norm2` and `mlp`, and
perhaps layer scale (`ls1`, `ls2`) and stochastic depth (`drop_path1`, `drop_path2`).
"""

from __future__ import annotations

from torch import Tensor, nn

from reference_impls.hosts.block import Block, chains, linears

_AS_IS = nn.Identity()


class VitBlock(Block):
    """A block of timm's structure."""

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.module.attn
        qkv = attn.qkv(self.module.norm1(x))  # (B, N, 3 H d)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, d) each
        return getattr(attn, "q_norm", _AS_IS)(q), getattr(attn, "k_norm", _AS_IS)(k), v

    def project(self, y: Tensor) -> Tensor:
        attn = self.module.attn
        y = getattr(attn, "proj_drop", _AS_IS)(attn.proj(getattr(attn, "norm", _AS_IS)(y)))
        return self.through(y, "ls1", "drop_path1")

    def mlp(self, x: Tensor) -> Tensor:
        return self.through(self.module.mlp(self.module.norm2(x)), "ls2", "drop_path2")

    @property
    def heads(self) -> int:
        return self.module.attn.num_heads

    @property
    def scale(self) -> float:
        return getattr(self.module.attn, "scale", super().scale)

    @property
    def attention_linears(self) -> list[nn.Linear]:
        return [self.module.attn.qkv, self.module.attn.proj]

    @property
    def mlp_linears(self) -> list[nn.Linear]:
        return linears(self.module.mlp)


def _is_block(module: nn.Module) -> bool:
    attn = getattr(module, "attn", None)
    return all(isinstance(getattr(module, part, None), nn.Module) for part in ("norm1", "norm2", "mlp", "attn")) and (
        all(isinstance(getattr(attn, part, None), nn.Linear) for part in ("qkv", "proj")) and hasattr(attn, "num_heads")
    )


def _prefix(model: nn.Module) -> int:
    """Class, distillation and register tokens: timm states their number, else the class token's attribute tells."""
    if hasattr(model, "num_prefix_tokens"):
        return int(model.num_prefix_tokens)
    return sum(getattr(model, name, None) is not None for name in ("cls_token", "dist_token"))


def blocks(model: nn.Module) -> list[Block] | None:
    """The blocks of the first chain of such blocks in `model`."""
    for name, chain in chains(model, _is_block):
        owner = model.get_submodule(name.rpartition(".")[0])
        return [VitBlock(f"block {i}", module, _prefix(owner)) for i, module in enumerate(chain)]
    return None
