"""Other people's models, seen in the terms that techniques need.

A technique that works inside a transformer asks `transformer_blocks(model)` for the model's blocks and replaces what
they compute. Each family of models has its adapter, which goes by structure, so nothing but torch is imported:

- `hosts/vit.py`: plain torch and timm vision transformers (and `reference_impls.models.vit`);
- `hosts/transformers.py`: Hugging Face ViT, DeiT, DINOv2 and what shares their layers.
"""

from __future__ import annotations

from torch import nn

from reference_impls.hosts import transformers, vit
from reference_impls.hosts.block import Block

__all__ = ["NEEDS", "Block", "transformer_blocks"]

NEEDS = (
    "a transformer whose blocks are pre-norm attention and MLP: a plain torch or timm ViT "
    "(blocks with norm1, attn.qkv, attn.proj, attn.num_heads, norm2, mlp) or a Hugging Face ViT, DeiT or DINOv2"
)


def transformer_blocks(model: object) -> list[Block] | None:
    """The blocks of a transformer in the order in which they run, or None if no adapter knows this model."""
    if not isinstance(model, nn.Module):
        return None
    for adapter in (vit, transformers):
        blocks = adapter.blocks(model)
        if blocks:
            return blocks
    return None
