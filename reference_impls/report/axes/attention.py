"""What hardly anything attends to: tokens that could stop, and keys that could be evicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.contract.precision import widened
from reference_impls.redundancy.irrelevance import attention_irrelevance
from reference_impls.report.axes.base import Axis, Setting
from reference_impls.report.axes.transformer import Watching, account_tokens, is_causal, prefix_of, token_blocks
from reference_impls.report.batches import Batch
from reference_impls.report.engine import Block, Edit, Probe, View
from reference_impls.report.watch import Call, short

QUERIES = 16
"""Queries of each head whose attention the measure looks at."""


class _MassProbe(Watching, Probe):
    """1 - least share of keys that holds 95 % of the attention, in each block, of some of the queries."""

    def __init__(self, view: View) -> None:
        super().__init__(view, with_weights=False)

    def operands(self, call: Call) -> dict[str, Tensor]:
        if call.site.type == "attention" and self.block_of(call.site.module):
            q, k = call.operand("query"), call.operand("key")
            step = max(1, q.shape[2] // QUERIES)
            logits = widened(q[:, :, ::step]) @ widened(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
            if (mask := call.named.get("attn_mask")) is not None:
                logits = logits + (mask[..., ::step, :] if mask.shape[-2] == q.shape[2] else mask)
            if call.named.get("is_causal"):
                later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
                logits = logits.masked_fill(later[::step], -torch.inf)
            self.attention = logits.softmax(-1)
        return {}

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        if short(func) == "_softmax" and out.ndim in (3, 4) and self.block_of(module):
            assert self.batch is not None
            weights = out if out.ndim == 4 else out.view(self.batch.items, -1, *out.shape[1:])
            self.attention = weights[:, :, :: max(1, weights.shape[2] // QUERIES)].clone()
        return out

    def left(self, block: Block, tokens: Tensor) -> None:
        if self.attention is not None and len(self.attention) == len(tokens):
            weights = self.attention.nan_to_num()  # a query of padding may see nothing
            self.note(block.name, attention_irrelevance(weights), block.macs)


class Dropping(Watching):
    """After three of the blocks the tokens with the least attention stop: nobody attends to them, and they stay as is.

    keep: share of the tokens that go on at each of these blocks (liang-2022-evit has them at a quarter, a half and
    three quarters of the depth). Importance is the mean attention that a token gets, over heads and queries that go on.
    """

    def __init__(self, view: View, keep: float) -> None:
        super().__init__(view, with_weights=True)
        self.keep = keep
        depth = len(self.blocks)
        self.stages = {self.blocks[int(depth * part)].name for part in (0.25, 0.5, 0.75)} if depth > 1 else set()
        self.alive: Tensor | None = None
        self.stopped: Tensor | None = None

    def begin(self, batch: Batch) -> Batch:
        self.alive = self.stopped = None
        return super().begin(batch)

    def operands(self, call: Call) -> dict[str, Tensor]:
        super().operands(call)
        if call.site.type != "attention" or self.alive is None or not self.block_of(call.site.module):
            return {}
        q, k = call.operand("query"), call.operand("key")
        if k.shape[2] != self.alive.shape[1]:
            return {}
        mask = torch.zeros(len(q), 1, 1, k.shape[2], dtype=q.dtype, device=q.device)
        mask = mask.masked_fill(~self.alive[:, None, None], -torch.inf)
        if self.attention is not None:
            seen = self.attention * self.alive[:, None, None].to(self.attention.dtype)
            self.attention = seen / seen.sum(-1, keepdim=True).clamp(min=1e-30)
        old = call.named.get("attn_mask")
        mask = mask if old is None else mask + old
        return {"attn_mask": mask.expand(len(q), q.shape[1] if mask.shape[1] != 1 else 1, q.shape[2], k.shape[2])}

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        found = super().after(func, args, out, module)
        if self.alive is not None and short(func) == "_softmax" and self.block_of(module):
            assert self.batch is not None
            weights = out if out.ndim == 4 else out.view(self.batch.items, -1, *out.shape[1:])
            if weights.shape[-1] == self.alive.shape[1]:
                weights.mul_(self.alive[:, None, None].to(out.dtype))
                weights.div_(weights.sum(-1, keepdim=True).clamp(min=1e-30))
        return found

    def hooks(self, model: nn.Module) -> list[Any]:
        handles = super().hooks(model)

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            self.stopped = given if self.alive is not None else None

        return [*handles, *(b.module.register_forward_pre_hook(enter, with_kwargs=True) for b in self.blocks)]

    def left(self, block: Block, tokens: Tensor) -> Tensor | None:
        total, alive = tokens.shape[1], self.alive
        before = total if alive is None else int(alive[0].sum())
        if alive is not None and self.stopped is not None:
            tokens = torch.where(alive[..., None], tokens, self.stopped)
        if block.name in self.stages and self.attention is not None:
            prefix = max(prefix_of(self.view, block, total), 0)
            queries = torch.ones_like(tokens[..., 0]) if alive is None else alive.to(tokens.dtype)
            importance = (self.attention.mean(1) * queries[..., None]).sum(1) / queries.sum(1, keepdim=True)
            importance[:, :prefix] = torch.inf
            if alive is not None:
                importance = importance.masked_fill(~alive, -torch.inf)
            keep = prefix + math.ceil(self.keep * (before - prefix))
            kept = importance.topk(max(keep, 1), dim=1).indices
            self.alive = torch.zeros_like(importance, dtype=torch.bool).scatter_(1, kept, True)
            self.spend(calls=8, gather_bytes=2 * tokens.numel() * tokens.element_size())
        after = total if self.alive is None else int(self.alive[0].sum())
        account_tokens(self, self.view, block, total, before, after)
        return tokens if alive is not None else None


class Attended(Axis):
    """Tokens that hardly any other attends to."""

    id = "attended-tokens"
    title = "Tokens that hardly any other attends to"
    relation, location, granularity = "irrelevance", "tokens", "token"
    measure = "1 - least share of keys that holds 95 % of the attention of a query"
    source = "reference_impls.redundancy.irrelevance:attention_irrelevance"
    shrinks = True

    def unfit(self, view: View) -> str | None:
        return None if token_blocks(view) else "the model has no blocks with attention over tokens"

    def probe(self, view: View) -> Probe:
        return _MassProbe(view)

    def settings(self, view: View) -> list[dict[str, Any]]:
        per_token = view.reading.decision == "token" or is_causal(view)
        return (
            [] if per_token or len(token_blocks(view)) < 4 else [{"keep": k} for k in (0.95, 0.9, 0.8, 0.7, 0.5, 0.3)]
        )

    def edit(self, view: View, setting: Setting) -> Edit:
        return Dropping(view, setting["keep"])

    def notes(self, view: View) -> list[str]:
        if not self.settings(view):
            return ["Dropping was not simulated: every token has an answer of its own, or there are too few blocks."]
        return []


class _Fewest(Watching):
    """In each attention the keys with the least mean weight are left out; a share `keep` stays."""

    def __init__(self, view: View, keep: float) -> None:
        super().__init__(view, with_weights=True)
        self.keep = keep

    def _mask(self, weights: Tensor) -> Tensor:
        """(B, 1, Q, K) of 0 and 1: keys that stay, never a query's own."""
        got = weights.mean(1).sum(1)  # (B, K)
        if is_causal(self.view):
            got = got / torch.arange(got.shape[1], 0, -1, device=got.device)
            got[:, :4] = torch.inf  # the first keys hold what no other should get (xiao-2024-streaming)
        keep = max(1, math.ceil(self.keep * got.shape[1]))
        kept = torch.zeros_like(got).scatter_(1, got.topk(keep, dim=1).indices, 1.0)[:, None, None]
        own = torch.eye(weights.shape[2], weights.shape[3], device=got.device)[None, None]
        return torch.maximum(kept.expand(-1, 1, weights.shape[2], -1), own)

    def operands(self, call: Call) -> dict[str, Tensor]:
        super().operands(call)
        if call.site.type != "attention" or self.attention is None or not self.block_of(call.site.module):
            return {}
        q = call.operand("query")
        mask = self._mask(self.attention).to(q.dtype).log()
        if call.named.get("is_causal"):
            mask = mask.masked_fill(torch.ones_like(mask[0, 0]).triu(1).bool(), -torch.inf)
        old = call.named.get("attn_mask")
        changed = {"attn_mask": mask if old is None else mask + old}
        return changed | ({"is_causal": False} if call.named.get("is_causal") else {})

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        super().after(func, args, out, module)
        if short(func) == "_softmax" and self.attention is not None and self.block_of(module):
            weights = self.attention * self._mask(self.attention).to(out.dtype)
            out.copy_((weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)).view_as(out))
        return out

    def account(self, call: Call, out: Any) -> None:
        if call.site.type in ("attention", "matmul") and self.block_of(call.site.module):
            self.save(call.site.name, torch.full((call.batch,), (1 - self.keep) * call.cost(out)))
            self.spend(calls=6, gather_bytes=2 * self.keep * call.x.numel() * call.x.element_size())


class Keys(Axis):
    """Keys of attention that could be evicted."""

    id = "attended-keys"
    title = "Keys of attention with hardly any mass"
    relation, location, granularity = "irrelevance", "kv_cache", "token"
    measure = "1 - least share of keys that holds 95 % of the attention of a query"
    source = "reference_impls.redundancy.irrelevance:attention_irrelevance"

    def unfit(self, view: View) -> str | None:
        return None if token_blocks(view) else "the model has no blocks with attention over tokens"

    def probe(self, view: View) -> Probe:
        return _MassProbe(view)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"keep": k} for k in (0.9, 0.75, 0.5, 0.25)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return _Fewest(view, setting["keep"])

    def notes(self, view: View) -> list[str]:
        return ["Keys also take memory and its traffic in decoding, which MACs do not show."]


AXES: Sequence[type[Axis]] = (Attended, Keys)
