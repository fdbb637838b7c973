"""Tokens that resemble others of their datum: found by their keys, merged as token merging does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract.precision import widened
from reference_impls.redundancy.inputs import finite
from reference_impls.redundancy.spatial_similarity import spatial_similarity
from reference_impls.report.axes.base import Axis, Setting
from reference_impls.report.axes.transformer import (
    Watching,
    account_tokens,
    attention_sites,
    is_causal,
    prefix_of,
    token_blocks,
)
from reference_impls.report.batches import Batch
from reference_impls.report.engine import Block, Edit, Probe, View


class _KeyProbe(Watching, Probe):
    """Best match of centred keys, leading tokens left out, in each block."""

    def __init__(self, view: View) -> None:
        super().__init__(view, with_weights=False)

    def left(self, block: Block, tokens: Tensor) -> None:
        keys = self.keys if self.keys is not None and self.keys.shape[1] == tokens.shape[1] else tokens
        keys = keys[:, prefix_of(self.view, block, tokens.shape[1]) :]
        if keys.shape[1] > 1 and finite(keys):
            self.note(block.name, spatial_similarity(keys, centred=True), block.macs)


class Groups(NamedTuple):
    """Tokens of each datum that stand for several: n groups of N tokens."""

    anchor: Tensor
    """(B, n) one token of each group."""
    group: Tensor
    """(B, N) the group of each token."""
    size: Tensor
    """(B, n)."""


def alone(tokens: Tensor) -> Groups:
    """Every token on its own."""
    batch, n = tokens.shape[:2]
    each = torch.arange(n, device=tokens.device).expand(batch, n)
    return Groups(each, each, torch.ones(batch, n, device=tokens.device))


def merge(tokens: Tensor, keys: Tensor, groups: Groups, r: int, prefix: int) -> tuple[Tensor, Groups]:
    """The r most similar pairs of groups become one each, with the mean of their tokens (bolya-2023-tome).

    tokens: (B, N, C); keys: (B, N, d). Groups at even places are merged into those at odd places. Members of a group
    hold the same tokens afterwards, so attention sees them as one of its size: proportional attention.
    """
    n = groups.anchor.shape[1]
    unit = F.normalize(widened(_at(keys, groups.anchor)), dim=-1)
    a, b = torch.arange(0, n, 2, device=tokens.device), torch.arange(1, n, 2, device=tokens.device)
    score = unit[:, a] @ unit[:, b].transpose(1, 2)  # (B, A, B)
    if prefix:
        score[:, (a < prefix).nonzero()[:, 0]] = -torch.inf
        score[:, :, (b < prefix).nonzero()[:, 0]] = -torch.inf
    best, target = score.max(2)
    order = best.argsort(stable=True, dim=1, descending=True)
    gone, kept = order[:, :r], order[:, r:].sort(1).values
    into = target.gather(1, gone)  # (B, r) among the odd ones
    h, size = _at(tokens, groups.anchor), groups.size
    ha, hb, sa, sb = h[:, a], h[:, b], size[:, a], size[:, b]
    weight = sa.gather(1, gone)
    total = sb.scatter_add(1, into, weight)
    sums = (hb * sb[..., None].to(h.dtype)).scatter_add(
        1, into[..., None].expand(-1, -1, h.shape[2]), _at(ha, gone) * weight[..., None].to(h.dtype)
    )
    mean = sums / total[..., None].to(h.dtype)
    left = len(a) - r
    new = torch.empty(len(h), n, dtype=torch.long, device=h.device)  # group -> new group
    new[:, 1::2] = left + torch.arange(len(b), device=h.device)
    even = torch.empty(len(h), len(a), dtype=torch.long, device=h.device)
    even.scatter_(1, kept, torch.arange(left, device=h.device).expand(len(h), left))
    even.scatter_(1, gone, into + left)
    new[:, 0::2] = even
    anchor = torch.cat([groups.anchor[:, a].gather(1, kept), groups.anchor[:, b]], 1)
    found = Groups(anchor, new.gather(1, groups.group), torch.cat([sa.gather(1, kept), total], 1))
    return _at(torch.cat([_at(ha, kept), mean], 1), found.group), found


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, n, C) of x (B, N, C) at index (B, n)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class Merging(Watching):
    """Token merging with r pairs a block; the MACs are those of a model whose MLP already has the fewer tokens."""

    def __init__(self, view: View, r: int) -> None:
        super().__init__(view, with_weights=False)
        self.r = r
        self.groups: dict[str, Groups] = {}

    def begin(self, batch: Batch) -> Batch:
        self.groups = {}
        return super().begin(batch)

    def left(self, block: Block, tokens: Tensor) -> Tensor | None:
        total, prefix = tokens.shape[1], prefix_of(self.view, block, tokens.shape[1])
        groups = self.groups.get(block.chain) or alone(tokens)
        before = groups.anchor.shape[1]
        r = min(self.r, (before - prefix) // 2)
        keys = self.keys if self.keys is not None and self.keys.shape[1] == total else tokens
        if r > 0:
            tokens, groups = merge(tokens, keys, groups, r, prefix)
        self.groups[block.chain] = groups
        account_tokens(self, self.view, block, total, before, groups.anchor.shape[1])
        if r > 0:
            matching = (before // 2) * (before - before // 2) * keys.shape[2]
            self._save(attention_sites(self.view, block)[0].name, -matching)
            self.spend(calls=15, gather_bytes=3 * tokens.numel() * tokens.element_size())
        return tokens if r > 0 else None

    def _save(self, site: str, macs: float) -> None:
        assert self.batch is not None
        self.save(site, torch.full((self.batch.items,), float(macs)))


class Tokens(Axis):
    """Tokens that resemble other tokens of their datum."""

    id = "tokens"
    title = "Tokens that resemble other tokens of the same datum"
    relation, location, granularity = "spatial_similarity", "tokens", "token"
    measure = "mean best-match cosine of the centred keys of each block"
    source = "reference_impls.redundancy.spatial_similarity:spatial_similarity"
    shrinks = True

    def unfit(self, view: View) -> str | None:
        return None if token_blocks(view) else "the model has no blocks with attention over tokens"

    def probe(self, view: View) -> Probe:
        return _KeyProbe(view)

    def settings(self, view: View) -> list[dict[str, Any]]:
        if is_causal(view):
            return []
        blocks = token_blocks(view)
        tokens = view.shared["tokens"][blocks[0].name]
        found = {max(1, round(share * tokens / len(blocks))) for share in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85)}
        return [{"r": r} for r in sorted(found)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return Merging(view, setting["r"])

    def notes(self, view: View) -> list[str]:
        if is_causal(view):
            return ["Tokens of a causal model were compared, but merging them was not simulated: order would be lost."]
        return []


AXES: Sequence[type[Axis]] = (Tokens,)
