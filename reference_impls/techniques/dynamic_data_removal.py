"""Dynamic data removal: within each task of a continual learner, examples that are learnt go out until the task ends.

Papers
    wang-2022-sparcl: SparCL, arXiv 2209.09476, section on dynamic data removal (DDR).
    toneva-2019-empirical: arXiv 1812.05159: forgetting events.

Idea
    A task starts with all of its examples. After each of the first windows of epochs, as many of those that were
    forgotten least within the window go out for the rest of the task; nothing returns before it ends. So the number of
    presentations is known beforehand. The counts are those of `data_sieving`, whose exchange this is without a return.

In a loop of your own:

    removal = DataRemoval(len(data), removed=0.3, removals=4, epochs=epochs, interval=5)
    for task, examples in enumerate(tasks):              # indices of its examples
        removal.task_started(task, examples)
        for epoch in range(epochs):
            for index in removal.examples().split(batch):        # any order
                removal.seen(index, outputs, y[index])           # outputs of the training's own forward pass
            removal.epoch_ended(epoch)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import check_range, warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.hosts.continual import ContinualTraining, check_continual, saved
from reference_impls.redundancy.irrelevance import learnt_share
from reference_impls.techniques.data_sieving import NEVER_LEARNT, Easiness, Sieving, easiest, history


class DataRemoval(Sieving):
    """The examples of the task that are still in use, `active`, and those that went out, `removed`.

    examples: of all tasks. removed: share of a task's examples that is out after the last removal. removals, interval:
    after how many windows of so many epochs examples go out. epochs: of a task.

    Raises: ValueError where nothing would be left to train on, and where a task ends before its last removal.
    """

    def __init__(
        self,
        examples: int,
        *,
        removed: float,
        removals: int,
        epochs: int,
        interval: int = 1,
        easiness: Easiness = "forgetting",
        seed: int = 0,
        log: list[int] | None = None,
    ) -> None:
        check_range("removed", removed, 0, 1)
        if removed == 1:
            raise ValueError("removed 1 leaves no example of a task to train on")
        if removals * interval >= epochs:
            raise ValueError(
                f"{removals} removals, one after every {interval} epochs, need tasks of {removals * interval + 1} "
                f"epochs or more, not {epochs}"
            )
        self.share, self.removals = removed, removals
        super().__init__(
            examples, removed=0.0, exchanged=0.0, epochs=removals * interval + 1, interval=interval, easiness=easiness,
            reentry="none", seed=seed, log=log,
        )  # fmt: skip

    def task_started(self, task: int, examples: Tensor) -> None:
        """All of the task's examples (n,) are in use."""
        self.active, self.removed = examples.sort().values, examples[:0]
        self.exchanged = removed_at_once(len(examples), self.share, self.removals)
        self.log[-1] = len(self.active)

    def _exchange(self) -> None:
        counts = self.events.masked_fill(~self.learnt, NEVER_LEARNT)[self.active]
        counts = counts if self.easiness == "forgetting" else torch.zeros_like(counts)
        goes = torch.zeros(len(self.active), dtype=torch.bool)
        goes[easiest(counts, self.exchanged, self.draws)] = True
        self.removed = torch.cat([self.removed, self.active[goes]])
        self.active = self.active[~goes]

    def state_dict(self) -> dict[str, Any]:
        """As of `Sieving`, with the number that a removal takes from this task."""
        return {**super().state_dict(), "exchanged": self.exchanged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for a state of a data set of another size."""
        super().load_state_dict(state)
        self.exchanged = state["exchanged"]


def removed_at_once(examples: int, removed: float, removals: int) -> int:
    """How many of a task's examples go out in each of so many removals, the share `removed` after the last."""
    return int(removed * examples / removals + 1e-9)


def scheduled(training: ContinualTraining, removed: float, removals: int, interval: int) -> list[int]:
    """Examples in use in each epoch of all tasks: n - j k after j removals of k."""
    found = []
    for task in range(len(training.tasks)):
        n = len(training.examples_of(task))
        k = removed_at_once(n, removed, removals)
        found += [n - k * min(epoch // interval, removals) for epoch in range(training.epochs)]
    return found


class DynamicDataRemoval(Technique):
    """Removal of learnt examples within each task of a continual training."""

    id = "dynamic-data-removal"
    execution = "real"
    knobs: ClassVar = {
        "removed": Number(0.3, low=0, high=0.95, about="share of a task's examples that is out after the last removal"),
        "removals": Integer(1, low=1, about="in how many parts they go out"),
        "interval": Integer(1, low=1, about="epochs before each removal, in which forgetting is counted"),
        "easiness": Choice("forgetting", options=("forgetting", "random"), about="which examples go out"),
        "seed": Integer(0, low=0, about="of ties, and of removal at random"),
    }
    waivers: ClassVar = {
        "execution-is-as-declared": "The share removed is a budget set before training and follows from no data."
    }

    def settings(self) -> list[Setting]:
        return [Setting("removed 0", {"removed": 0.0}, off=True)] + [
            Setting(f"removed {removed:g}", {"removed": removed, "removals": 2}) for removed in (0.25, 0.5, 0.75)
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Share of the examples that a plain run classifies rightly in the last two epochs of their own task.

        Raises ValueError for tasks of one epoch.
        """
        training = check_continual(self.id, target)
        if training.epochs < 2:
            raise ValueError("two epochs or more of each task are needed to see whether an example stays learnt")
        right, where = history(training), {}
        for task in range(len(training.tasks)):
            mine, end = training.examples_of(task), (task + 1) * training.epochs
            where[f"task {task}"] = learnt_share(right[:end, mine])
        return Redundancy(sum(where.values()) / len(where), "share of examples learnt before their task ends", where)

    def attach(
        self, target: Any, removed: float, removals: int, interval: int, easiness: Easiness, seed: int
    ) -> Handle:
        """A continual training on fewer and fewer of a task's examples; `handle.target.fit()` does it.

        The trace holds the number of examples of each epoch of all tasks.

        Raises: UnsupportedHost for what is no continual training in float32; ValueError for tasks that end before the
        last removal.
        """
        training = check_continual(self.id, target)
        n, log = len(training.x), list[int]()
        knobs: dict[str, Any] = {"removed": removed, "removals": removals, "interval": interval}
        DataRemoval(n, epochs=training.epochs, **knobs)
        if not any(
            removed_at_once(len(training.examples_of(t)), removed, removals) for t in range(len(training.tasks))
        ):
            warn_no_effect(self.id, f"removed {removed:g} in {removals} parts is no example of any task")
        part = partial(_removal, examples=n, epochs=training.epochs, easiness=easiness, seed=seed, log=log, **knobs)
        examples = scheduled(training, removed, removals, interval)
        return Handle(training.plus(part), trace=lambda: {"examples": log[: len(examples)] or examples})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.continual.ledger`: presentations left out, and the rehearsal beside them, times MACs of each."""
        return saved(target, trace)


def _removal(model: nn.Module, optimiser: torch.optim.Optimizer, examples: int, **knobs: Any) -> DataRemoval:
    return DataRemoval(examples, **knobs)
