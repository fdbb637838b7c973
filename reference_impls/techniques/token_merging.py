"""Token merging (ToMe): similar tokens of a transformer are averaged into one, block by block, without training.

References:
  bolya-2023-token: Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman. Token Merging: Your ViT But Faster. ICLR 2023,
    arXiv 2210.09461. Sections 3 and 3.1-3.2: bipartite soft matching, token size, proportional attention (Eq. 1).
  bolya-2023-stable: Bolya, Hoffman. Token Merging for Fast Stable Diffusion. CVPR workshops 2023,
    arXiv 2303.17604: unmerging, for outputs that need every token.

The idea: the keys of attention already say what a token contains. Between attention and MLP of each block, the tokens
are split by position into two sets, A and B. Each token of A finds its most similar one in B, and the r best pairs
merge into their mean, weighted by the number of patches each token stands for. That number, its size s, also enters
the next attention as log s, so that a merged token weighs as much as the tokens it stands for. Nothing is learnt.

    match = bipartite_soft_matching(keys.mean(1), r)     # which token merges into which
    x, size = merge(x, size, match)                      # (B, N, D) -> (B, N - r, D)
    y = unmerge(x, match)                                # every token gets the value of its group: (B, N, D)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import (
    Handle,
    Integer,
    Number,
    Redundancy,
    Setting,
    Switch,
    Technique,
    UnsupportedHost,
    check_range,
    check_tensor,
    warn_no_effect,
)
from reference_impls.hosts import NEEDS, Block, transformer_blocks
from reference_impls.hosts.substitution import inputs_of
from reference_impls.redundancy.spatial_similarity import spatial_similarity

# --------------------------------------------------------------------------------------------------------------------
# The algorithm on tensors


@dataclass(frozen=True)
class Match:
    """Which of N tokens stay, and which merge into one that stays. Kept tokens keep their order.

    `kept`: (B, N - r) positions of the tokens that stay. `source`: (B, r) positions of those that merge, and `target`:
    (B, r) index in `kept` of the token each merges into. `group`: (B, N) index in `kept` where each token ends.
    """

    kept: Tensor
    source: Tensor
    target: Tensor
    group: Tensor

    @classmethod
    def of(cls, source: Tensor, partner: Tensor, tokens: int) -> Match:
        """The match in which `source` (B, r) merge into `partner` (B, r), both positions among `tokens` tokens."""
        stays = torch.ones(source.shape[0], tokens, dtype=torch.bool, device=source.device).scatter_(1, source, False)
        index = stays.cumsum(1) - 1  # (B, N): a staying token's index among those that stay
        target = index.gather(1, partner)
        kept = stays.nonzero()[:, 1].view(source.shape[0], -1)
        return cls(kept, source, target, index.scatter(1, source, target))


def bipartite_soft_matching(
    metric: Tensor, r: int | None = None, *, prefix: int = 0, threshold: float | None = None
) -> Match | None:
    """The r most similar pairs between the tokens at even and at odd positions (bolya-2023-token, Section 3).

    metric: (B, N, C), what tokens are compared by, such as their keys averaged over heads. The first `prefix` tokens
    (class token) are left out. Set A holds the others at even positions, B at odd ones; each token of A draws an edge
    to its most similar token of B by cosine, and the r edges with the highest cosine are kept, but never more than half
    of the tokens (r=None: that half). With `threshold`, only edges whose cosine reaches it count; a batch stays
    rectangular, so the datum with the fewest such edges decides.

    Returns None when nothing merges. Raises ValueError for a wrong shape, values that are not finite, or a bad knob.
    """
    check_tensor("metric", metric, "B N C", finite=False)
    check_range("prefix", prefix, 0, integer=True)
    if r is not None:
        check_range("r", r, 0, integer=True)
    if threshold is not None:
        check_range("threshold", threshold, -1, 1)
    half = max(metric.shape[1] - prefix, 0) // 2
    r = half if r is None else min(r, half)
    if r == 0:
        return None
    unit = F.normalize(metric[:, prefix:], dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)  # (B, |A|) each
    check_tensor("cosines of metric", best, "B A")  # a value that is not finite shows in all cosines of its token
    if threshold is not None:
        r = min(r, int((best >= threshold).sum(1).min()))
        if r == 0:
            return None
    a = best.topk(r, dim=1).indices  # (B, r)
    return Match.of(prefix + 2 * a, prefix + 2 * partner.gather(1, a) + 1, metric.shape[1])


def matching_macs(tokens: int, prefix: int, channels: int) -> int:
    """Closed form of the MACs of one `bipartite_soft_matching` on one datum: the cosines of A with B."""
    free = tokens - prefix
    return (free - free // 2) * (free // 2) * channels


def tokens_left(tokens: int, r: int, blocks: int, prefix: int = 1) -> list[int]:
    """Closed form of the number of tokens behind each block, leading tokens included, where each merges r."""
    left = [tokens]
    for _ in range(blocks):
        left.append(left[-1] - min(r, (left[-1] - prefix) // 2))
    return left[1:]


def merge(x: Tensor, size: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """Merge the matched tokens x: (B, N, D) into size-weighted means (Section 3, "Tracking token size").

    size: (B, N), the number of patches each token stands for. Returns tokens (B, N - r, D) and sizes (B, N - r).
    The mean is written as a correction to the kept token, x_b + sum_a (s_a / s) (x_a - x_b): equal tokens merge without
    any rounding error, and tokens that take no part stay equal bit for bit. Raises ValueError for a wrong shape.
    """
    check_tensor("x", x, "B N D", finite=False)
    check_tensor("size", size, f"{x.shape[0]} {x.shape[1]}", finite=False)
    kept, merged = rows(x, match.kept), rows(x, match.source)  # (B, N - r, D), (B, r, D)
    merged_size = size.gather(1, match.source)
    size = size.gather(1, match.kept).scatter_add(1, match.target, merged_size)  # (B, N - r)
    weight = merged_size / size.gather(1, match.target)
    shift = weight.unsqueeze(-1) * (merged - rows(kept, match.target))
    return kept.scatter_add(1, match.target.unsqueeze(-1).expand_as(shift), shift), size


def unmerge(x: Tensor, match: Match) -> Tensor:
    """Give every token the value of the one it merged into: (B, N - r, D) -> (B, N, D) (bolya-2023-stable)."""
    return rows(x, match.group)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, i]] for x: (B, N, D) and index: (B, M) -> (B, M, D), copied row by row."""
    first = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, index.shape)


# --------------------------------------------------------------------------------------------------------------------
# The technique on a transformer

Choose = Callable[[Tensor, int | None, Block], Match | None]
Combine = Callable[[Tensor, Tensor, Match], tuple[Tensor, Tensor]]


@dataclass
class _Run:
    """What one pass through the blocks has done so far."""

    size: Tensor | None = None  # (B, N), None while no token has merged
    group: Tensor | None = None  # (B, N of the input), index of the token that each original token is now in
    tokens: list[tuple[int, int]] = field(default_factory=list)  # in front of and behind the merge of each block
    matched: list[bool] = field(default_factory=list)  # whether each block compared its tokens
    batch: int = 0


class Merging:
    """Merges tokens inside the blocks of a transformer, until `undo()`.

    `schedule`: how many tokens each block merges at most (0: none, None: up to half). After the last block every
    original token gets the value of its group, so the model's output keeps its shape. `match(metric, r, block)` picks
    the pairs, and `combine` merges them; experiments put their controls in their place.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        schedule: Sequence[int | None],
        *,
        match: Choose,
        combine: Combine = merge,
        proportional: bool = True,
    ) -> None:
        self.blocks, self.schedule, self.proportional = blocks, schedule, proportional
        self.match, self.combine = match, combine
        self.run = _Run()
        self._undo = [block.replace(partial(self._forward, i)) for i, block in enumerate(blocks)]

    def undo(self) -> None:
        """Give the blocks back their own forward."""
        for undo in reversed(self._undo):
            undo()

    def trace(self) -> dict[str, Any]:
        """Of the last run: `batch`; of each block its `tokens` (before, after) and whether it `matched`; and if any
        tokens merged, the `group` (B, N) of each original token."""
        run = self.run
        trace = {"batch": run.batch, "tokens": tuple(run.tokens), "matched": tuple(run.matched)}
        return trace if run.group is None else {**trace, "group": run.group}

    def _forward(self, i: int, x: Tensor) -> Tensor:
        if i == 0:
            self.run = _Run(batch=x.shape[0])
        run, block, r, before = self.run, self.blocks[i], self.schedule[i], x.shape[1]
        if r == 0 and run.size is None:
            x = block.original(x)
        else:
            bias = run.size.log()[:, None, None, :] if self.proportional and run.size is not None else None
            y, keys = block.attention(x, bias)  # (B, N, D), (B, H, N, d)
            x = x + y
            match = None if r == 0 else self.match(keys.mean(1), r, block)
            if match is not None:
                size = x.new_ones(x.shape[:2]) if run.size is None else run.size
                x, run.size = self.combine(x, size, match)
                run.group = match.group if run.group is None else match.group.gather(1, run.group)
            x = x + block.mlp(x)
        run.tokens.append((before, x.shape[1]))
        run.matched.append(r != 0 and before > block.prefix + 1)
        if i == len(self.blocks) - 1 and run.group is not None:
            x = rows(x, run.group)
        return x


class TokenMerging(Technique):
    """ToMe on vision transformers."""

    id = "token-merging"
    execution = "real"
    trains = True
    knobs: ClassVar = {
        "r": Integer(
            8,
            low=0,
            optional=True,
            listed=True,
            about="tokens merged per block, or a list with a number for each block; None: as many as `threshold` lets",
        ),
        "threshold": Number(
            None, low=-1, high=1, optional=True, about="merge only pairs whose keys have at least this cosine"
        ),
        "proportional": Switch(True, about="add log s to the attention logits, so that a token weighs as its patches"),
    }

    def settings(self) -> list[Setting]:
        fixed = [Setting(f"r={r}", {"r": r}, off=r == 0) for r in (0, 1, 2, 4)]
        return [*fixed, Setting("cosine 0.9", {"r": None, "threshold": 0.9}, adaptive=True)]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """Mean best-match cosine of centred keys, over the tokens and blocks of the dense model.

        The formula is `spatial_similarity` on the keys averaged over heads, class token left out, with the mean key of
        the image subtracted: keys share a large mean that says nothing of the image. `where` holds it for each block,
        and the raw cosine, which is what ToMe compares, as "raw block 0" and so on.
        """
        blocks = {block.name: block for block in _blocks(target)}
        seen = inputs_of({name: block.module for name, block in blocks.items()}, target, inputs)
        with torch.no_grad():
            keys = {name: block.qkv(seen[name])[1].mean(1)[:, block.prefix :] for name, block in blocks.items()}
        where = {name: spatial_similarity(key, centred=True).mean().item() for name, key in keys.items()}
        value = sum(where.values()) / len(where)
        where |= {f"raw {name}": spatial_similarity(key).mean().item() for name, key in keys.items()}
        return Redundancy(value=value, measure="mean best-match cosine of centred keys", where=where)

    def attach(
        self, target: nn.Module, r: int | Sequence[int] | None, threshold: float | None, proportional: bool
    ) -> Handle:
        """Merge tokens in every block. The handle's trace holds the tokens of each block and the group of each token.

        Raises: UnsupportedHost for a model without transformer blocks; ValueError for a list of another length than the
        blocks, or neither `r` nor `threshold`.
        """
        blocks = _blocks(target)
        schedule = list(r) if isinstance(r, Sequence) else [r] * len(blocks)
        if len(schedule) != len(blocks):
            raise ValueError(f"r must hold a number for each of the {len(blocks)} blocks, got {len(schedule)}")
        if threshold is None and None in schedule:
            raise ValueError("r=None merges as many tokens as threshold lets, so it needs a threshold")
        if not any(number is None or number > 0 for number in schedule):
            warn_no_effect(self.id, "r is 0 in every block")

        def match(metric: Tensor, number: int | None, block: Block) -> Match | None:
            return bipartite_soft_matching(metric, number, prefix=block.prefix, threshold=threshold)

        merging = Merging(blocks, schedule, match=match, proportional=proportional)
        return Handle(target, undo=merging.undo, trace=merging.trace)

    def saving(self, target: nn.Module, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """Closed form of the saving of a batch, from the tokens (n, m) in front of and behind the merge of each block.

        With N tokens in the dense model, blocks of width D and hidden width D' save for each image

            4 (N - n) D^2  +  2 (N^2 - n^2) D  +  2 (N - m) D D'  -  |A| |B| d

        MACs: projections, attention, MLP, and the cost of the matching where there was one.
        """
        blocks, dense = _blocks(target), trace["tokens"][0][0]
        saved = 0
        for block, (before, after), matched in zip(blocks, trace["tokens"], trace["matched"], strict=True):
            saved += block.attention_macs(dense) - block.attention_macs(before)
            saved += block.mlp_macs(dense) - block.mlp_macs(after)
            if matched:
                saved -= matching_macs(before, block.prefix, block.width // block.heads)
        return saved * trace["batch"]


def _blocks(target: object) -> list[Block]:
    blocks = transformer_blocks(target)
    if blocks is None:
        raise UnsupportedHost(TokenMerging.id, target, NEEDS)
    return blocks
