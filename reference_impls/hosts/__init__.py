"""Other people's models, seen in the terms that techniques need.

A technique that works inside a transformer asks `transformer_blocks(id, model)` for the model's blocks and replaces
what they compute. Each family of models has its adapter, which goes by structure, so nothing but torch is imported:

- `hosts/vit.py`: vision transformers of timm's structure (and `reference_impls.models.vit`);
- `hosts/multihead.py`: blocks around `nn.MultiheadAttention`, of torch itself, torchvision and CLIP;
- `hosts/transformers.py`: Hugging Face ViT, DeiT, DINOv2, DINOv3, BEiT, CLIP, SigLIP and what shares their layers.

What an adapter does not account for is refused (`hosts/trial.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from reference_impls.contract import UnsupportedHost
from reference_impls.contract.replacement import replaced_by
from reference_impls.hosts import multihead, transformers, vit
from reference_impls.hosts.block import Block
from reference_impls.hosts.chains import chains, leading_tokens
from reference_impls.hosts.trial import check as check_block

__all__ = ["NEEDS", "Block", "transformer_blocks"]

NEEDS = (
    "a transformer whose blocks are attention and MLP on tokens that all attend to each other, not within windows: "
    "a ViT of timm's structure (blocks with norm1, attn.qkv, attn.proj, attn.num_heads, norm2, mlp), one around "
    "nn.MultiheadAttention (torch, torchvision, CLIP), or one of Hugging Face (ViT, DeiT, DINO, BEiT, ViT-MAE, the "
    "vision towers of CLIP and SigLIP)"
)
ADAPTERS: tuple[tuple[Callable[[nn.Module], bool], type[Block]], ...] = (
    (vit.fits, vit.VitBlock),
    *((kind.fits, kind) for kind in multihead.LAYOUTS),
    (transformers.fits, transformers.HuggingFaceBlock),
)


def transformer_blocks(technique: str, model: object, prefix: int | None = None, check: bool = True) -> list[Block]:
    """The blocks of all chains of a transformer in the order in which they run.

    `prefix`: number of leading tokens that stand for no place in the datum; None: as many as the model's parameters
    say. `technique` is whose id an error names. Without `check`, blocks are only told by their structure.

    Raises: UnsupportedHost for a model that no adapter knows, for a block that an adapter would rebuild otherwise than
    it is, and for leading tokens that nobody knows of.
    """
    found: list[Block] = []
    if isinstance(model, nn.Module):
        for fits, adapter in ADAPTERS:
            for name, modules in chains(model, fits):
                leading = leading_tokens(model, name) if prefix is None else prefix
                if leading is None:
                    needs = f"to be told its number of leading tokens: prefix=..., for the blocks in {name!r}"
                    raise UnsupportedHost(technique, model, needs)
                chain, last = len(found), len(modules) - 1
                found += [adapter(module, leading, chain, i, i == last) for i, module in enumerate(modules)]
    if not found:
        raise UnsupportedHost(technique, model, NEEDS + _instead(model))
    return _checked(technique, model, found) if check else found


def _instead(model: object) -> str:
    """What the longest chain of modules of one class consists of, for an error."""
    everything = chains(model, lambda _: True) if isinstance(model, nn.Module) else ()
    alike = [(name, modules) for name, modules in everything if len({type(module) for module in modules}) == 1]
    name, modules = max(alike, key=lambda chain: len(chain[1]), default=("", []))
    return f", but {name!r} holds {type(modules[0]).__name__}" if name else ""


def _checked(technique: str, model: nn.Module, blocks: list[Block]) -> list[Block]:
    """The blocks, if each is what its adapter takes it for. UnsupportedHost, which names the part, otherwise."""
    if len({id(block.module) for block in blocks}) < len(blocks):
        raise UnsupportedHost(technique, model, "blocks that run once each, but some are used again")
    if any(getattr(getattr(module, "config", None), "output_attentions", False) for module in model.modules()):
        raise UnsupportedHost(technique, model, "not to be asked for attention maps (config.output_attentions)")
    compared: dict[object, Block] = {}
    for block in blocks:
        if others := set(replaced_by(block.module)) - {technique}:
            raise UnsupportedHost(technique, model, f"blocks that no other technique replaces ({', '.join(others)})")
        if (why := check_block(block, compared)) is not None:
            raise UnsupportedHost(technique, model, why)
    return blocks
