"""Layer freezing: blocks stop being updated from the front, so that the backward pass ends before them.

Papers
    brock-2017-freezeout: FreezeOut, arXiv 1706.04983: each layer's learning rate is annealed over its own time.
    yuan-2022-layer: SpFDE, arXiv 2209.11204: one more block at every update of the masks, from a first epoch that
    follows from the operations to be saved, until two thirds are frozen; four schemes compared.

Idea
    Front layers settle early. A block that is frozen leaves the optimiser (a gradient of zero would still move it, by
    momentum and weight decay), its gradients are off, and its batch norm stays in eval mode, so that weights, state
    and statistics are equal bit for bit from then on. While all blocks before it are frozen too, it needs no backward
    pass and keeps no activations. A frozen block after an active one saves its weight gradient only.

A schedule is data: for each epoch the blocks that are frozen in it. In a loop of your own:

    freezing = Freezing(model.children(), optimiser, single_shot(epochs, start=10, interval=1, most=4))
    ...                                                   # your loop; model.train() does not wake a frozen batch norm
    freezing.epoch_ended(epoch)                           # once after every epoch
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import UnsupportedHost, warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.hosts.training import Part, Run, Training, check_training, ledger, saved
from reference_impls.redundancy.cross_step_similarity import settled_weights

Timeline = tuple[tuple[int, ...], ...]
"""For each epoch the blocks that are frozen in it."""
Scheme = Literal["single-shot", "single-shot & resume", "periodic", "delayed periodic"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
Count = Literal["convention", "executed"]

# --------------------------------------------------------------------------------------------------------------------
# Schedules


def single_shot(epochs: int, start: int, interval: int, most: int) -> Timeline:
    """The first block freezes after `start` epochs, one more every `interval`, `most` in the end; none thaws."""
    ages = (max(0, (epoch - start) // interval + 1) for epoch in range(epochs))
    return tuple(tuple(range(min(age, most))) for age in ages)


def resumed(epochs: int, start: int, interval: int, most: int, last: int) -> Timeline:
    """As `single_shot`, with all blocks active again in the `last` epochs."""
    return single_shot(epochs, start, interval, most)[: epochs - last] + ((),) * last


def periodic(epochs: int, front: int, middle: int, delay: int = 0) -> Timeline:
    """The `front` blocks are updated in one epoch of four, the `middle` ones in one of two, after `delay` epochs.

    Periods are powers of two, so that all blocks before a frozen one are always frozen too.
    """
    part = {0: 0, 1: front + middle, 2: front, 3: front + middle}
    return tuple(tuple(range(0 if epoch < delay else part[(epoch - delay) % 4])) for epoch in range(epochs))


def candidates(scheme: Scheme, epochs: int, interval: int, most: int) -> Iterator[Timeline]:
    """All schedules of a scheme: by its first epoch, or by the sizes of its parts."""
    if scheme == "single-shot":
        yield from (single_shot(epochs, start, interval, most) for start in range(epochs, 0, -1))
    elif scheme == "single-shot & resume":
        last = max(1, epochs // 8)
        yield from (resumed(epochs, start, interval, most, last) for start in range(epochs - last, 0, -1))
    else:
        delay = epochs // 4 if scheme == "delayed periodic" else 0
        yield from (
            periodic(epochs, front, middle, delay) for front in range(most + 1) for middle in range(most + 1 - front)
        )


def share_saved(
    training: Training,
    timeline: Timeline,
    count: Count = "convention",
    trace: Mapping[str, Any] | None = None,
    work: dict[tuple[int, ...], Any] | None = None,
) -> float:
    """Share of the MACs of the whole training that a schedule saves, by the papers' convention or as executed.

    trace, work: what else is done in the training, such as its masks, and a cache, as in `hosts.training.ledger`.
    """
    base = dict(trace or {})
    costs = [getattr(ledger(training, one, work), count) for one in (base, {**base, "frozen": timeline})]
    return float(1 - costs[1] / costs[0])


def solve(
    training: Training,
    target: float,
    scheme: Scheme = "single-shot",
    interval: int = 1,
    count: Count = "convention",
    trace: Mapping[str, Any] | None = None,
) -> Timeline:
    """The schedule of a scheme that saves least above the target, with two thirds of the blocks to freeze.

    Raises: ValueError for a target that no schedule of the scheme reaches, with the largest that one does.
    """
    most, work = len(list(training.model.children())) * 2 // 3, dict[tuple[int, ...], Any]()
    tried = candidates(scheme, training.epochs, interval, most)
    found = [(share_saved(training, one, count, trace, work), one) for one in tried]
    enough = [one for one in found if one[0] >= target - 1e-12]
    if not enough:
        largest = max(share for share, _ in found)
        raise ValueError(f"saving {target:g} is out of reach: {scheme} saves at most {largest:.4f} of this training")
    return min(enough, key=lambda one: one[0])[1]


# --------------------------------------------------------------------------------------------------------------------
# Freezing


class Freezing(Part):
    """Freezes and thaws blocks between epochs as a timeline says, whatever optimiser updates them.

    `before(blocks)` is called with the numbers of blocks that are about to freeze, `after` with those that thaw.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        optimiser: torch.optim.Optimizer,
        timeline: Timeline,
        before: Callable[[Sequence[int]], None] = lambda blocks: None,
        after: Callable[[Sequence[int]], None] = lambda blocks: None,
    ) -> None:
        self.blocks, self.optimiser, self.timeline = list(blocks), optimiser, timeline
        if wrong := {i for still in timeline for i in still if not 0 <= i < len(self.blocks)}:
            raise ValueError(f"the timeline freezes block {min(wrong)}, but there are {len(self.blocks)}, from 0 on")
        self.before, self.after = before, after
        self._groups = [list(group["params"]) for group in optimiser.param_groups]
        self._hooks: dict[int, Any] = {}
        self._freeze(timeline[0])

    @property
    def frozen(self) -> tuple[int, ...]:
        """The blocks that are frozen now."""
        return tuple(sorted(self._hooks))

    def lifetimes(self) -> list[float]:
        """Epochs until a block is updated for the last time; at least one."""
        active = [
            [epoch for epoch, still in enumerate(self.timeline) if i not in still] for i in range(len(self.blocks))
        ]
        return [float(max(epochs, default=0) + 1) for epochs in active]

    def epoch_ended(self, epoch: int) -> None:
        """Freeze and thaw what the next epoch asks for."""
        if epoch + 1 < len(self.timeline):
            now, then = set(self.frozen), set(self.timeline[epoch + 1])
            self.before(sorted(then - now))
            self._freeze(self.timeline[epoch + 1])
            self.after(sorted(now - then))

    def _freeze(self, still: Sequence[int]) -> None:
        for i, block in enumerate(self.blocks):
            if i in still and i not in self._hooks:
                for parameter in block.requires_grad_(False).parameters():
                    parameter.grad = None
                    self.optimiser.state.pop(parameter, None)
                self._hooks[i] = block.register_forward_pre_hook(_stay_in_eval)
                block.eval()
            elif i not in still and i in self._hooks:
                self._hooks.pop(i).remove()
                block.requires_grad_(True).train()
        gone = {id(parameter) for i in still for parameter in self.blocks[i].parameters()}
        for group, whole in zip(self.optimiser.param_groups, self._groups, strict=True):
            group["params"] = [parameter for parameter in whole if id(parameter) not in gone]

    def detach(self) -> None:
        """Thaw everything."""
        self._freeze(())

    def state_dict(self) -> dict[str, Any]:
        """What is frozen."""
        return {"frozen": list(self.frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Freeze the same blocks; load the optimiser's state afterwards, which is that of the others."""
        self._freeze(tuple(state["frozen"]))


def _stay_in_eval(block: nn.Module, inputs: Any) -> None:
    """Before a frozen block's forward: `model.train()` may have put its batch norm back into training."""
    if block.training:
        block.eval()


def settled(training: Training) -> dict[str, float]:
    """For each block, how settled its weights are at half time of a training: `settled_weights`.

    A block without weights has nothing to save and is left out.
    """
    run = Run(training)
    steps = training.epochs * -(-len(training.x) // training.batch_size)
    run.advance(steps // 2)
    half = [_weights(block) for block in run.blocks]
    run.advance()
    return {
        f"block {i}": settled_weights(half[i], _weights(block)) for i, block in enumerate(run.blocks) if half[i].numel()
    }


def _weights(block: nn.Module) -> torch.Tensor:
    """All parameters of two axes or more, in a row."""
    found = [p.detach().double().flatten() for p in block.parameters() if p.ndim > 1]
    return torch.cat(found) if found else torch.zeros(0)


# --------------------------------------------------------------------------------------------------------------------
# On the contract


class LayerFreezing(Technique):
    """Freezing of blocks in a training, on a schedule solved for a share of MACs to be saved."""

    id = "layer-freezing"
    execution = "real"
    knobs: ClassVar = {
        "saving": Number(0.2, low=0, high=0.66, about="share of the MACs of the whole training to be saved"),
        "scheme": Choice(
            "single-shot",
            options=("single-shot", "single-shot & resume", "periodic", "delayed periodic"),
            about="when blocks freeze and whether they thaw",
        ),
        "interval": Integer(1, low=1, about="epochs between the freezing of two blocks"),
        "count": Choice(
            "convention",
            options=("convention", "executed"),
            about="what the saving is a share of: three products per layer and step, or what dense kernels execute",
        ),
    }
    waivers: ClassVar = {
        "execution-is-as-declared": "The schedule is a budget set before training and follows from no data."
    }

    def settings(self) -> list[Setting]:
        return [Setting("saving 0", {"saving": 0.0}, off=True)] + [
            Setting(f"saving {saving:g}", {"saving": saving}) for saving in (0.05, 0.15, 0.25)
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Mean over blocks of how little their weights still move in the second half of a plain training."""
        where = settled(check_training(self.id, target))
        return Redundancy(sum(where.values()) / len(where), "how near the weights are at half time to the end", where)

    def attach(self, target: Any, saving: float, scheme: Scheme, interval: int, count: Count) -> Handle:
        """A training whose blocks freeze; `handle.target.fit()` does it, and the trace holds the timeline.

        Raises: UnsupportedHost for what is no training in float32 or has fewer than two blocks; ValueError for a saving
        out of reach, with the largest one that the scheme reaches.
        """
        training = check_training(self.id, target)
        if len(list(training.model.children())) < 2:
            raise UnsupportedHost(self.id, training.model, "two blocks or more, the children of the network")
        timeline = solve(training, saving, scheme, interval, count) if saving else ((),) * training.epochs
        if not any(timeline):
            warn_no_effect(self.id, "with this saving no block freezes")
        return Handle(training.plus(partial(_freezing, timeline=timeline)), trace=lambda: {"frozen": list(timeline)})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.training.ledger`: of frozen blocks the forward pass is left, once all before them are frozen."""
        return saved(target, trace)


def _freezing(model: nn.Module, optimiser: torch.optim.Optimizer, timeline: Timeline) -> Freezing:
    return Freezing(model.children(), optimiser, timeline)
