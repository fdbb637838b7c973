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

    match = bipartite_soft_matching(keys.mean(1), r, prefix=1)    # which token merges into which
    x, size = merge(x, size, match)                               # (B, N, D) -> (B, N - r, D)
    y = unmerge(x, match)                                         # every token gets the value of its group: (B, N, D)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reference_impls.contract import (
    Handle,
    Integer,
    Number,
    Redundancy,
    Setting,
    Switch,
    Technique,
    check_range,
    check_tensor,
    warn_no_effect,
)
from reference_impls.contract.precision import near_one, widened, without_autocast
from reference_impls.contract.replacement import original_forward, refuse_capture, replace
from reference_impls.hosts import Block, transformer_blocks
from reference_impls.hosts.block import NOWHERE, Positions
from reference_impls.hosts.tokens import carried, reduced, rows, whole
from reference_impls.redundancy.inputs import mean_share
from reference_impls.redundancy.spatial_similarity import spatial_similarity

# --------------------------------------------------------------------------------------------------------------------
# The algorithm on tensors


@dataclass(frozen=True)
class Match:
    """Which of N tokens stay, in their new order, and which r merge into one that stays.

    `order`: (B, N) the positions of the tokens that stay, then of those that merge. `target`: (B, r) index among the
    former of the token that each of the latter merges into.
    """

    order: Tensor
    target: Tensor

    @property
    def left(self) -> int:
        """Number of tokens that stay, N - r."""
        return self.order.shape[1] - self.target.shape[1]

    @property
    def kept(self) -> Tensor:
        """(B, N - r) positions of the tokens that stay."""
        return self.order[:, : self.left]

    @property
    def source(self) -> Tensor:
        """(B, r) positions of the tokens that merge."""
        return self.order[:, self.left :]

    @property
    def group(self) -> Tensor:
        """(B, N) index in `kept` where each token ends."""
        return self.spread(torch.arange(self.left, device=self.order.device).expand(self.order.shape[0], -1))

    def spread(self, values: Tensor) -> Tensor:
        """Give every token the value of the one it merged into: (B, N - r) -> (B, N)."""
        ends = torch.cat((values, values.gather(1, self.target)), 1)
        return torch.empty_like(ends).scatter(1, self.order, ends)

    @classmethod
    def of(cls, source: Tensor, partner: Tensor, tokens: int) -> Match:
        """The match in which `source` (B, r) merge into `partner` (B, r), both positions among `tokens` tokens.

        The tokens that stay keep their order.
        """
        stays = torch.ones(source.shape[0], tokens, dtype=torch.bool, device=source.device).scatter(1, source, False)
        kept = stays.sort(dim=1, descending=True, stable=True).indices[:, : tokens - source.shape[1]]
        return cls(torch.cat((kept, source), 1), (stays.cumsum(1) - 1).gather(1, partner))


def bipartite_soft_matching(
    metric: Tensor,
    r: int | None = None,
    *,
    prefix: int = 0,
    threshold: float | None = None,
    keep_order: bool = False,
    split_behind_prefix: bool = False,
) -> Match | None:
    """The r most similar pairs between the tokens at even and at odd positions (bolya-2023-token, Section 3).

    metric: (B, N, C), what tokens are compared by, such as their keys averaged over heads. Over the whole sequence, set
    A holds the tokens at even positions and B those at odd ones; each token of A draws an edge to its most similar one
    of B by cosine, and the r edges with the highest cosine are kept, but never more than half of the tokens after the
    prefix (r=None: that half). The first `prefix` tokens (class token, then a distillation token) are protected: those
    in A do not merge, and nothing merges into those in B. With `threshold`, only edges whose cosine reaches it count; a
    batch stays rectangular, so the datum with the fewest such edges decides. Cosines are taken in float32.

    The tokens that stay are ordered as in the official code: the protected ones, what is left of A (by position;
    without a prefix, by falling cosine), then B. `keep_order` leaves them in the order of the sequence instead, and
    `split_behind_prefix` begins A at the first token after the prefix.

    Returns None when nothing merges. Raises ValueError for a wrong shape, values that are not finite, or a bad knob.
    """
    check_tensor("metric", metric, "B N C")
    check_range("prefix", prefix, 0, integer=True)
    if r is not None:
        check_range("r", r, 0, integer=True)
    if threshold is not None:
        check_range("threshold", threshold, -1, 1)
    metric = near_one(widened(metric), (1, 2)) if metric.numel() else metric
    return Matching(threshold, keep_order, split_behind_prefix)(metric, r, prefix)


@dataclass(frozen=True)
class Matching:
    """`bipartite_soft_matching` with its options set, for keys that are known to be of the right shape."""

    threshold: float | None = None
    keep_order: bool = False
    split_behind_prefix: bool = False

    def __call__(self, metric: Tensor, r: int | None, prefix: int) -> Match | None:
        """The match of metric: (B, N, C)."""
        tokens = metric.shape[1]
        half = max(tokens - prefix, 0) // 2
        r = half if r is None else min(r, half)
        if r == 0:
            return None
        first_a, first_b = _first(prefix, self.split_behind_prefix)
        best, partner = _best_cosines(metric, first_a, first_b)  # (B, |A|) each
        if self.threshold is not None:
            refuse_capture("how many tokens merge under a threshold depends on the data", "with a fixed r")
            r = min(r, int((best >= self.threshold).sum(1).min())) if len(best) else 0
            if r == 0:
                return None
        edges = best.argsort(dim=1, descending=True)  # (B, |A|)
        partner = partner.gather(1, edges[:, :r])
        edges = first_a + 2 * edges
        source, unmerged = edges[:, :r], edges[:, r:]
        if self.keep_order:
            return Match.of(source, first_b + 2 * partner, tokens)
        if prefix:
            unmerged = unmerged.sort(dim=1).values
        positions = torch.arange(tokens, device=edges.device).expand(edges.shape[0], -1)
        order = torch.cat((positions[:, :prefix], unmerged, positions[:, first_b::2], source), 1)
        return Match(order, partner + (prefix + unmerged.shape[1]))


def _first(prefix: int, split_behind_prefix: bool) -> tuple[int, int]:
    """Positions of the first tokens of A and of B that are not protected."""
    if split_behind_prefix:
        return prefix, prefix + 1
    return prefix + prefix % 2, prefix + 1 - prefix % 2


def _best_cosines(metric: Tensor, first_a: int, first_b: int) -> tuple[Tensor, Tensor]:
    """Highest cosine of each token of A with any of B, and which of B that is: (B, |A|) each."""
    with without_autocast(metric):
        metric = widened(metric.detach())
        unit = metric / torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp_min(1e-12)
        best, partner = (unit[:, first_a::2] @ unit[:, first_b::2].transpose(1, 2)).max(-1)
    return best, partner


def _ones(x: Tensor) -> Tensor:
    """A size of 1 for each token of x: (B, N, D), in at least single precision."""
    return torch.ones(x.shape[:2], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def matching_macs(tokens: int, prefix: int, channels: int, split_behind_prefix: bool = False) -> int:
    """Closed form of the MACs of one `bipartite_soft_matching` on one datum: the cosines of A with B."""
    a, b = (len(range(first, tokens, 2)) for first in _first(prefix, split_behind_prefix))
    return a * b * channels


def tokens_left(tokens: int, r: int, blocks: int, prefix: int = 1) -> list[int]:
    """Closed form of the number of tokens after each block, leading tokens included, where each merges r."""
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
    left, x, size = match.left, rows(x, match.order), size.gather(1, match.order)
    kept, merged = x[:, :left], x[:, left:]  # (B, N - r, D), (B, r, D)
    size, merged_size = size[:, :left], size[:, left:]
    size = size.scatter_add(1, match.target, merged_size)  # (B, N - r)
    weight = (merged_size / size.gather(1, match.target)).to(x.dtype)
    shift = weight.unsqueeze(-1) * (merged - rows(kept, match.target))
    return kept.scatter_add(1, match.target.unsqueeze(-1).expand_as(shift), shift), size


def unmerge(x: Tensor, match: Match) -> Tensor:
    """Give every token the value of the one it merged into: (B, N - r, D) -> (B, N, D) (bolya-2023-stable)."""
    return rows(x, match.group)


# --------------------------------------------------------------------------------------------------------------------
# The technique on a transformer

Choose = Callable[[Tensor, int | None, int], Match | None]
"""Of metric, r and prefix."""
Combine = Callable[[Tensor, Tensor, Match], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Merged:
    """What has merged in the blocks so far. It travels with the tokens."""

    batch: int
    size: Tensor | None = None
    """(B, n) number of patches that each token stands for; None while no token has merged."""
    matches: tuple[Match, ...] = ()
    tokens: tuple[tuple[int, int], ...] = ()
    """Before and after the merge of each block."""
    matched: tuple[bool, ...] = ()
    """Whether each block compared its tokens."""

    @property
    def group(self) -> Tensor | None:
        """(B, N) index of the token that each original token is now in; None while no token has merged."""
        if not self.matches:
            return None
        group = self.matches[-1].group
        for match in reversed(self.matches[:-1]):
            group = match.spread(group)
        return group

    def whole(self, tokens: int) -> int:
        """N, of which `tokens` are left."""
        return self.tokens[0][0] if self.tokens else tokens

    @property
    def anchor(self) -> Tensor:
        """(B, n) the original token that each token grew from."""
        anchor = self.matches[0].kept
        for match in self.matches[1:]:
            anchor = anchor.gather(1, match.kept)
        return anchor


class Merging:
    """Merges tokens inside the blocks of a transformer, until `undo()`.

    `schedule`: how many tokens each block merges at most (0: none, None: up to half). To whoever reads the tokens
    outside of the blocks, every original token has the value of its group. `match(metric, r, prefix)` picks the pairs,
    and `combine` merges them; experiments put their controls in their place.
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
        self.log, rule = Log(), Rule(match, combine, proportional)
        steps = [Step(block, r, rule, self.log) for block, r in zip(blocks, schedule, strict=True)]
        self._undo = [replace(step.block.module, step, TokenMerging.id) for step in steps]

    def undo(self) -> None:
        """Give the blocks back their own forward."""
        for undo in reversed(self._undo):
            undo()

    def trace(self) -> dict[str, Any]:
        """Of the last run: `batch`; of each block its `tokens` (before, after) and whether it `matched`; and if any
        tokens merged, the `group` (B, N) of each original token; with several chains, that of the last chain."""
        runs = [self.log.of[chain] for chain in sorted(self.log.of)]
        parts = {name: tuple(one for run in runs for one in getattr(run, name)) for name in ("tokens", "matched")}
        group = runs[-1].group if runs else None
        trace = {"batch": runs[-1].batch if runs else 0, **parts}
        return trace if group is None else {**trace, "group": group}


@dataclass(frozen=True)
class Rule:
    """How tokens merge."""

    match: Choose
    combine: Combine
    proportional: bool


@dataclass
class Log:
    """What the last run of each chain of blocks did, by the number of its first block among all."""

    of: dict[int, Merged] = field(default_factory=dict)


@dataclass
class Step:
    """What one block computes while its technique applies: attention, merging, MLP."""

    block: Block
    r: int | None
    rule: Rule
    log: Log

    def __call__(self, module: nn.Module, below: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of the forward of `module`, with its arguments; `below` is that forward."""
        block = self.block.of(module)
        given, extra = block.read(args, kwargs)
        x, run = carried(given, block.batch_first)
        if run is None:
            if block.index:
                raise NotImplementedError(
                    f"{block.name} was given tokens that no longer tell how they merged: something between the blocks "
                    "changes them, or the chain was not run from its first block"
                )
            run = Merged(x.shape[0])
        before = x.shape[1]
        if self.r == 0 and not run.matches:
            args, rest = block.written(args, kwargs, x)
            x, size, matches = block.tokens(original_forward(module)(*args, **rest)), None, run.matches
        else:
            x, size, matches = self._merged(block, x, run, block.positions(run.whole(before), extra))
        matched = self.r != 0 and before > block.prefix + 1
        run = Merged(run.batch, size, matches, (*run.tokens, (before, x.shape[1])), (*run.matched, matched))
        if not torch.compiler.is_exporting():
            self.log.of[block.chain] = run
        hand_over = whole if block.last else reduced
        return block.returned(hand_over(x, run, block.batch_first))

    def _merged(
        self, block: Block, x: Tensor, run: Merged, positions: Positions
    ) -> tuple[Tensor, Tensor | None, tuple[Match, ...]]:
        """The tokens after the block, their sizes, and all matches so far."""
        size, matches, bias = run.size, run.matches, None
        if matches and positions != NOWHERE:
            positions = positions.of(run.anchor, run.group, self.rule.proportional)
        if size is not None and self.rule.proportional and positions.bias is None:
            bias = size.log()[:, None, None, :]
        x, keys = block.attention(x, bias, positions)  # (B, n, D), (B, H, n, d)
        if self.r != 0:
            metric = keys.mean(1)
            if not any(run.matched) and not torch.compiler.is_compiling():
                check_tensor("norms of keys", widened(metric).norm(dim=-1), "B N")
            if (match := self.rule.match(metric, self.r, block.prefix)) is not None:
                size = _ones(x) if size is None else size
                x, size = self.rule.combine(x, size, match)
                matches = (*matches, match)
        return block.mlp(x), size, matches


class TokenMerging(Technique):
    """ToMe on vision transformers."""

    id = "token-merging"
    execution = "real"
    trains = True
    exploits: ClassVar = {"tokens": {"r": "r"}}
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
        "prefix": Integer(
            None,
            low=0,
            high=1024,
            optional=True,
            about="leading tokens that never merge (class and distillation tokens); None: as many as the model says",
        ),
        "keep_order": Switch(False, about="keep tokens in the order of the sequence; the paper puts A before B"),
        "split_behind_prefix": Switch(
            False, about="split into A and B after the leading tokens; the paper splits the whole sequence"
        ),
    }

    def settings(self) -> list[Setting]:
        fixed = [Setting(f"r={r}", {"r": r}, off=r == 0) for r in (0, 1, 2, 4)]
        return [*fixed, Setting("cosine 0.9", {"r": None, "threshold": 0.9}, adaptive=True)]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """Mean best-match cosine of centred keys, over the tokens and blocks of the dense model.

        The formula is `spatial_similarity` on the keys averaged over heads, class token left out, with the mean key of
        the image subtracted: keys share a large mean that says nothing about the image. `where` holds it for each
        block, and the raw cosine, which is what ToMe compares, as "raw block 0" and so on.
        """
        keys = _keys(transformer_blocks(self.id, target), target, inputs)
        where = {name: mean_share(spatial_similarity(key, centred=True)) for name, key in keys.items()}
        value = sum(where.values()) / len(where)
        where |= {f"raw {name}": mean_share(spatial_similarity(key)) for name, key in keys.items()}
        return Redundancy(value=value, measure="mean best-match cosine of centred keys", where=where)

    def attach(
        self,
        target: nn.Module,
        r: int | Sequence[int] | None,
        threshold: float | None,
        proportional: bool,
        prefix: int | None,
        keep_order: bool,
        split_behind_prefix: bool,
    ) -> Handle:
        """Merge tokens in every block. The handle's trace holds the tokens of each block and the group of each token.

        Raises: UnsupportedHost for a model without transformer blocks, or with something in them that merged tokens
        would get wrong; ValueError for a list of another length than the blocks, or neither `r` nor `threshold`.
        """
        blocks = transformer_blocks(self.id, target, prefix)
        schedule = list(r) if isinstance(r, Sequence) else [r] * len(blocks)
        if len(schedule) != len(blocks):
            raise ValueError(f"r must hold a number for each of the {len(blocks)} blocks, got {len(schedule)}")
        if threshold is None and None in schedule:
            raise ValueError("r=None merges as many tokens as threshold lets, so it needs a threshold")
        if not any(number is None or number > 0 for number in schedule):
            warn_no_effect(self.id, "r is 0 in every block")
        match = Matching(threshold, keep_order, split_behind_prefix)
        merging = Merging(blocks, schedule, match=match, proportional=proportional)
        options = {"prefix": prefix, "split_behind_prefix": split_behind_prefix}
        return Handle(target, undo=merging.undo, trace=lambda: options | merging.trace())

    def saving(self, target: nn.Module, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """Closed form of the saving of a batch, from the tokens (n, m) before and after the merge of each block.

        With N tokens in the dense model, blocks of width D and hidden width D' save for each image

            4 (N - n) D^2  +  2 (N^2 - n^2) D  +  2 (N - m) D D'  -  |A| |B| d

        MACs: projections, attention, MLP, and the cost of the matching where there was one.
        """
        blocks = transformer_blocks(self.id, target, trace["prefix"], check=False)
        saved, dense, split = 0, 0, trace["split_behind_prefix"]
        for block, (before, after), matched in zip(blocks, trace["tokens"], trace["matched"], strict=True):
            dense = before if block.index == 0 else dense
            saved += block.attention_macs(dense) - block.attention_macs(before)
            saved += block.mlp_macs(dense) - block.mlp_macs(after)
            if matched:
                saved -= matching_macs(before, block.prefix, block.width // block.heads, split)
        return saved * trace["batch"]


@torch.no_grad()
def _keys(blocks: Sequence[Block], target: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The keys of each block in a run of the dense model, averaged over heads, leading tokens left out: (B, N, d)."""
    keys: dict[str, Tensor] = {}

    def listen(block: Block) -> RemovableHandle:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            keys[block.name] = block.of(module).keys(args, kwargs).mean(1)[:, block.prefix :]

        return block.module.register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [listen(block) for block in blocks]
    try:
        target(inputs)
    finally:
        for one in hooks:
            one.remove()
    return keys
