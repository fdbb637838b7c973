"""Blocks of transformers as the axes see them: which products they hold, and their keys and attention weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract.precision import widened
from reference_impls.hosts.chains import leading_tokens
from reference_impls.report.engine import Block, Edit, View
from reference_impls.report.watch import Call, Site, short


def token_blocks(view: View) -> list[Block]:
    """Blocks on tokens that hold an attention."""
    return [block for block in view.blocks if block.tokens and attention_sites(view, block)]


def attention_sites(view: View, block: Block) -> list[Site]:
    """The products of a block that mix tokens."""
    return [s for s in sites_of(view, block) if s.type in ("attention", "matmul")]


def sites_of(view: View, block: Block) -> list[Site]:
    """The products inside a block, in the order in which they run."""
    return [s for s in view.sites.values() if inside(s.module, block.name)]


def inside(module: str, name: str) -> bool:
    """Whether a module is a block or stands in it."""
    return module == name or module.startswith(f"{name}.")


def prefix_of(view: View, block: Block, tokens: int) -> int:
    """Leading tokens that stand for no place; 1 where the model does not say and the others make a square."""
    found = leading_tokens(view.model, block.chain) if block.chain else 0
    if found:
        return min(found, tokens)
    return int(math.isqrt(tokens) ** 2 != tokens and math.isqrt(tokens - 1) ** 2 == tokens - 1)


def is_causal(view: View) -> bool:
    """Whether tokens attend to those before them only: found out by what the attention was asked for."""
    return bool(view.shared.get("causal"))


class Watching(Edit):
    """Knows which block runs, and catches the keys and the attention weights in it."""

    def __init__(self, view: View, *, with_weights: bool) -> None:
        super().__init__()
        self.view, self.with_weights = view, with_weights
        self.blocks = token_blocks(view)
        self.keys: Tensor | None = None
        """(B, N, d), of the block that runs, averaged over heads."""
        self.attention: Tensor | None = None
        """(B, H, N, N) of the block that runs."""
        self.tokens = 0
        """Of the block that runs."""
        self._by_name = {block.name: block for block in self.blocks}

    def block_of(self, module: str) -> Block | None:
        """The block that a module stands in."""
        parts = module.split(".")
        for end in range(len(parts), 0, -1):
            if (found := self._by_name.get(".".join(parts[:end]))) is not None:
                return found
        return None

    def operands(self, call: Call) -> dict[str, Tensor]:
        kind = call.site.type
        if kind == "attention" and self.block_of(call.site.module):
            q, k = call.operand("query"), call.operand("key")
            self.keys = k.mean(1)
            if self.with_weights:
                logits = widened(q) @ widened(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
                if (mask := call.named.get("attn_mask")) is not None:
                    logits = logits + mask
                if call.named.get("is_causal"):
                    logits = logits.masked_fill(torch.ones_like(logits[0, 0]).triu(1).bool(), -torch.inf)
                self._keep(logits.softmax(-1))
        elif kind == "matmul" and self.keys is None and self.block_of(call.site.module):
            right = call.operand("mat2" if "mat2" in call.named else "batch2")  # (B H, d, N)
            if right.ndim == 3 and len(right) % call.batch == 0:
                heads = right.reshape(call.batch, -1, *right.shape[1:])
                self.keys = heads.mean(1).transpose(1, 2)
        return {}

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        if self.with_weights and short(func) == "_softmax" and out.ndim in (3, 4) and self.block_of(module):
            assert self.batch is not None
            self._keep(out if out.ndim == 4 else out.view(self.batch.items, -1, *out.shape[1:]))
        return out

    def _keep(self, weights: Tensor) -> None:
        """Weights (B, H, N, N) of the block that runs; those of windows, or over channels, are none of its tokens."""
        if weights.shape[-1] == weights.shape[-2] == self.tokens:
            self.attention = weights

    def hooks(self, model: nn.Module) -> list[Any]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            self.keys = self.attention = None
            self.tokens = given.shape[1]

        handles = [block.module.register_forward_pre_hook(enter, with_kwargs=True) for block in self.blocks]
        for block in self.blocks:
            handles.append(block.module.register_forward_hook(lambda m, a, out, b=block: self._leave(b, out)))
        return handles

    def _leave(self, block: Block, out: Any) -> Any:
        tokens = out[0] if isinstance(out, tuple | list) else out
        changed = self.left(block, tokens)
        if changed is None:
            return None
        return type(out)((changed, *out[1:])) if isinstance(out, tuple | list) else changed

    def left(self, block: Block, tokens: Tensor) -> Tensor | None:
        """The tokens (B, N, C) with which the next block goes on; None for those given."""
        return None


def account_tokens(edit: Edit, view: View, block: Block, total: int, attended: int, left: int) -> None:
    """What a block saves whose attention works on `attended` of its `total` tokens, and whose MLP on `left`."""
    assert edit.batch is not None
    after_attention = 0
    for site in sites_of(view, block):
        dense = view.per_item(site.name)
        if site.type in ("attention", "matmul"):
            after_attention, share = 1, (attended / total) ** 2
        else:
            share = (attended if after_attention < 2 else left) / total
            after_attention += after_attention > 0
        edit.save(site.name, torch.full((edit.batch.items,), dense * (1 - share)))
