"""Data sieving: train on a part of the data, and regularly exchange its easiest examples for removed ones.

Papers
    yuan-2022-layer: SpFDE, arXiv 2209.11204, where it is called circular data sieving.
    toneva-2019-empirical: arXiv 1812.05159: forgetting events.
    yuan-2021-mest: MEST, arXiv 2110.14032: easy examples removed once, never to return.

Idea
    An example that the network keeps classifying rightly teaches it little. A share of the data is left out at random;
    after every interval the examples of the rest that were forgotten least, changes from right to wrong between two
    presentations within the interval, change places with removed ones. The counts come from the forward passes of the
    training itself. The removed set is a queue: what left first returns first, and once all that were removed first
    have been back, it is shuffled after each update. So the cost is known beforehand, and every example is seen.

In a loop of your own:

    sieve = Sieving(len(data), removed=0.2, exchanged=0.1, epochs=epochs)
    for index in sieve.examples().split(batch): ...          # any order
        sieve.seen(index, outputs, y[index])                 # outputs of the training's own forward pass
    sieve.epoch_ended(epoch)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from reference_impls.contract import Handle, Redundancy, Setting, Technique, generator
from reference_impls.contract.errors import check_range, warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.hosts.training import Part, Training, check_training, saved
from reference_impls.redundancy.irrelevance import learnt_share

Easiness = Literal["forgetting", "random"]
Reentry = Literal["queue", "none"]
NEVER_LEARNT = 1 << 30
"""Stands for the count of an example that was never classified rightly: it counts as the hardest."""


def forgetting_events(right: Tensor) -> Tensor:
    """(N,) changes from right to wrong in a history (T, N) of presentations; `NEVER_LEARNT` where none was right."""
    events = (right[:-1] & ~right[1:]).sum(0)
    return events.masked_fill(~right.any(0), NEVER_LEARNT)


def easiest(counts: Tensor, number: int, draws: torch.Generator) -> Tensor:
    """Positions (number,) of the lowest counts (N,), of equal ones any."""
    shuffled = torch.randperm(len(counts), generator=draws)
    return shuffled[counts[shuffled].argsort(stable=True)[:number]]


class Sieving(Part):
    """The examples of each epoch, `active`, and the queue of those left out, `removed`.

    examples: of the whole set. removed, exchanged: shares of all examples, and of the active ones in each update.
    Raises: ValueError where no example would be left.
    """

    def __init__(
        self,
        examples: int,
        *,
        removed: float,
        exchanged: float,
        epochs: int,
        interval: int = 1,
        easiness: Easiness = "forgetting",
        reentry: Reentry = "queue",
        seed: int = 0,
        log: list[int] | None = None,
    ) -> None:
        out = int(removed * examples + 1e-9)
        if out >= examples:
            raise ValueError(f"removed {removed:g} of {examples} examples leaves none to train on")
        self.epochs, self.interval, self.easiness, self.reentry = epochs, interval, easiness, reentry
        self.draws = generator(seed)
        order = torch.randperm(examples, generator=self.draws)
        self.removed, self.active = order[:out], order[out:].sort().values
        self.exchanged = min(int(exchanged * len(self.active) + 1e-9), out) if reentry == "queue" else 0
        self.waiting = out
        """How many of those removed first have not been back."""
        self.last = torch.zeros(examples, dtype=torch.bool)
        self.learnt = torch.zeros(examples, dtype=torch.bool)
        self.events = torch.zeros(examples, dtype=torch.long)
        self.log = [] if log is None else log
        self.log[:] = [len(self.active)]

    def examples(self) -> Tensor:
        """The active examples, in ascending order."""
        return self.active

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        """Count forgetting events of the examples `index` (B,) from outputs (B, classes) and classes y (B,)."""
        index, right = index.cpu(), (outputs.argmax(1) == y).cpu()
        self.events[index] += (self.last[index] & ~right).long()
        self.last[index] = right
        self.learnt[index] |= right

    def epoch_ended(self, epoch: int) -> None:
        """Exchange where it is due after this epoch, which counts from 0, and never after the last."""
        if (epoch + 1) % self.interval == 0 and epoch + 1 < self.epochs:
            if self.exchanged:
                self._exchange()
            for counts in (self.events, self.last, self.learnt):
                counts.zero_()
        self.log.append(len(self.active))

    def _exchange(self) -> None:
        counts = self.events.masked_fill(~self.learnt, NEVER_LEARNT)[self.active]
        counts = counts if self.easiness == "forgetting" else torch.zeros_like(counts)
        goes = torch.zeros(len(self.active), dtype=torch.bool)
        goes[easiest(counts, self.exchanged, self.draws)] = True
        back, rest = self.removed[: self.exchanged], self.removed[self.exchanged :]
        self.removed = torch.cat([rest, self.active[goes]])
        self.active = torch.cat([self.active[~goes], back]).sort().values
        self.waiting = max(0, self.waiting - self.exchanged)
        if not self.waiting:
            self.removed = self.removed[torch.randperm(len(self.removed), generator=self.draws)]

    def state_dict(self) -> dict[str, Any]:
        """Both sets, the counts of the interval, the generator."""
        tensors = {name: getattr(self, name).clone() for name in ("removed", "active", "last", "learnt", "events")}
        return {**tensors, "waiting": self.waiting, "draws": self.draws.get_state(), "log": list(self.log)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for a state of a data set of another size."""
        if len(state["events"]) != len(self.events):
            raise ValueError(f"the checkpoint is of {len(state['events'])} examples, not {len(self.events)}")
        for name in ("removed", "active", "last", "learnt", "events"):
            setattr(self, name, state[name].clone())
        self.waiting = state["waiting"]
        self.draws.set_state(state["draws"])
        self.log[:] = state["log"]


class _History(Part):
    """Notes which examples were right in each epoch."""

    def __init__(self, examples: int) -> None:
        self.right = [torch.zeros(examples, dtype=torch.bool)]

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        self.right[-1][index.cpu()] = (outputs.argmax(1) == y).cpu()

    def epoch_ended(self, epoch: int) -> None:
        self.right.append(torch.zeros_like(self.right[0]))


def history(training: Training) -> Tensor:
    """(epochs, N) whether each example was classified rightly when the plain training presented it."""
    run = training.plus(lambda model, optimiser: _History(len(training.x))).run()
    run.advance()
    part = run.parts[-1]
    assert isinstance(part, _History)
    return torch.stack(part.right[:-1])


class DataSieving(Technique):
    """Circular data sieving of the examples of a training."""

    id = "data-sieving"
    execution = "real"
    exploits: ClassVar = {"easy-items": {"removed": "dropped"}}
    knobs: ClassVar = {
        "removed": Number(0.2, low=0, high=0.95, about="share of the examples that are left out at any time"),
        "exchanged": Number(0.1, low=0, high=1, about="share of the active examples that change sides in an update"),
        "interval": Integer(2, low=1, about="epochs between two updates, in which forgetting is counted"),
        "easiness": Choice("forgetting", options=("forgetting", "random"), about="which examples go out"),
        "reentry": Choice(
            "queue", options=("queue", "none"), about="whether removed examples return, first in first out"
        ),
        "seed": Integer(0, low=0, about="of the first split, of ties and of shuffles"),
    }
    waivers: ClassVar = {
        "execution-is-as-declared": "The share removed is a budget set before training and follows from no data."
    }

    def settings(self) -> list[Setting]:
        return [Setting("removed 0", {"removed": 0.0}, off=True)] + [
            Setting(f"removed {removed:g}", {"removed": removed}) for removed in (0.1, 0.25, 0.5)
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Share of the examples that a plain training classifies rightly from some epoch before the last on: those
        that are learnt and not forgotten again.
        """
        share = learnt_share(history(check_training(self.id, target)))
        return Redundancy(share, "share of examples learnt before the last epoch")

    def attach(
        self,
        target: Any,
        removed: float,
        exchanged: float,
        interval: int,
        easiness: Easiness,
        reentry: Reentry,
        seed: int,
    ) -> Handle:
        """A training on a sieved part of its data; `handle.target.fit()` does it.

        The trace holds the number of examples of each epoch.

        Raises: UnsupportedHost for what is no training in float32; ValueError where no example is left.
        """
        training = check_training(self.id, target)
        n = len(training.x)
        check_range("removed", removed, 0, 1)
        if not int(removed * n + 1e-9):
            warn_no_effect(self.id, f"removed {removed:g} of {n} examples is none")
        log: list[int] = []
        part = partial(
            _sieving,
            examples=n,
            removed=removed,
            exchanged=exchanged,
            epochs=training.epochs,
            interval=interval,
            easiness=easiness,
            reentry=reentry,
            seed=seed,
            log=log,
        )
        return Handle(training.plus(part), trace=lambda: {"examples": log[: training.epochs]})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.training.ledger`: examples left out, in each epoch, times MACs of a step on one."""
        return saved(target, trace)


def _sieving(model: nn.Module, optimiser: torch.optim.Optimizer, examples: int, **knobs: Any) -> Sieving:
    return Sieving(examples, **knobs)
