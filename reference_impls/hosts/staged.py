"""Classifiers cut into stages, with an exit at every cut: what early exit needs of a model.

A stage takes the state that its predecessor left (the first one takes the inputs), a head turns a state into logits.
A state is a tensor or a nested tuple, list or dict of tensors, whose first axis is always the batch, so that samples
can leave it. What is the same for all samples stands in a `Shared`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import tensors

State = Any
"""A tensor, or a nested tuple, list or dict of tensors; the first axis of each is the batch."""


@dataclass(frozen=True)
class Shared:
    """A part of a state that is the same for all samples, and stays as it is when some of them leave."""

    value: Any


@dataclass(frozen=True)
class StageMacs:
    """What each part of a staged classifier costs, in multiply-accumulates per sample."""

    stages: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def plain(self) -> int:
        """MACs of a sample that goes to the end and meets no other exit."""
        return sum(self.stages) + self.heads[-1]

    def spent(self, left: Tensor) -> int:
        """MACs of samples that leave at `left` (B,): each pays every stage and every head up to its exit."""
        reached = [int((left >= e).sum()) for e in range(len(self.stages))]
        return sum(n * (stage + head) for n, stage, head in zip(reached, self.stages, self.heads, strict=True))


class Staged(nn.Module):
    """A classifier of E stages with a head after each.

    Called, it is the plain network: every stage, then the last head. The other heads are exits that nobody takes.

    Args:
        stages: E modules, state -> state.
        heads: E modules, state -> logits (B, C), with the same C.
        macs: cost of each part, where it is known (`count_stages` finds it).
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], macs: StageMacs | None = None) -> None:
        super().__init__()
        if len(stages) != len(heads) or len(stages) < 2:
            raise ValueError(f"a head is due after each of at least 2 stages, got {len(stages)} and {len(heads)} heads")
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.macs = macs

    def costs(self) -> StageMacs:
        """The cost of each part. ValueError if it is not known."""
        if self.macs is None:
            raise ValueError("the target does not know its MACs: set target.macs = count_stages(target, inputs)")
        return self.macs

    def forward(self, inputs: State) -> Tensor:
        """inputs -> logits of the last exit (B, C)."""
        state = inputs
        for stage in self.stages:
            state = stage(state)
        logits: Tensor = self.heads[-1](state)
        return logits

    def exits(self, inputs: State) -> Tensor:
        """inputs -> logits of every exit (E, B, C), for joint training and for offline sweeps."""
        state, logits = inputs, []
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            logits.append(head(state))
        return torch.stack(logits)


class AllExits(nn.Module):
    """A `Staged` classifier that returns the logits of every exit (E, B, C) when called: what joint training needs."""

    def __init__(self, network: Staged) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: State) -> Tensor:
        return self.network.exits(inputs)


def joint_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """BranchyNet's joint objective, the sum of every exit's cross-entropy with equal weights. logits: (E, B, C)."""
    return torch.stack([F.cross_entropy(at_exit, targets) for at_exit in logits]).sum()


def first_exits(network: Staged, depth: int) -> nn.Sequential:
    """The plain network that ends at exit number `depth`, counted from 1; it shares the weights."""
    return nn.Sequential(*network.stages[:depth], network.heads[depth - 1])


def batch_size(state: State) -> int:
    """Number of samples in a state. ValueError unless it holds a tensor and the first axes of all are equal.

    A batch without samples is a ValueError too: nothing can be decided or counted on it.
    """
    shapes = [tuple(t.shape) for t in tensors(state)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"the first axis of every tensor of a state must be the batch, got shapes {shapes}")
    if sizes == {0}:
        raise ValueError(f"the batch is empty: its tensors have shapes {shapes}")
    return shapes[0][0]


def select(state: State, samples: Tensor) -> State:
    """The same state with only these samples, (n,) int64, in their order.

    Raises: TypeError for a part of which it is unknown how samples leave it.
    """
    return _map(state, lambda t: t.index_select(0, samples))


def _map(state: State, function: Callable[[Tensor], Tensor]) -> State:
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, Mapping):
        return {name: _map(part, function) for name, part in state.items()}
    if isinstance(state, list | tuple):
        parts = [_map(part, function) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if state is None or isinstance(state, Shared | str | bool | int | float):
        return state
    raise TypeError(
        f"a state is made of tensors, tuples, lists and dicts, got a {type(state).__name__}: put what is the same for "
        "all samples into hosts.staged.Shared"
    )


@torch.no_grad()
def count_stages(network: Staged, inputs: State) -> StageMacs:
    """What each stage and head costs, counted on `inputs`. The shapes of later inputs must be the same but for B.

    Raises: ValueError for an empty batch.
    """
    n, state = batch_size(inputs), inputs
    stages, heads = [], []
    for stage, head in zip(network.stages, network.heads, strict=True):
        with count() as in_stage:
            state = stage(state)
        with count() as in_head:
            head(state)
        stages.append(in_stage.macs // n)
        heads.append(in_head.macs // n)
    return StageMacs(tuple(stages), tuple(heads))
