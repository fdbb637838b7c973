"""Task-aware dynamic masking: a sparse network through a sequence of tasks, by what matters to the new and to the old.

Papers
    wang-2022-sparcl: SparCL, arXiv 2209.09476, section on task-aware dynamic masking (TDM).
    yuan-2021-mest: MEST, arXiv 2110.14032: removing more than is due and growing back at random.

Idea
    A weight is worth its magnitude, and what the losses on the task's own and on remembered examples would change if it
    changed. At the start of a task the masks grow above their target, so that the new task finds room; within it the
    least important weights are removed at regular epochs, and as many grow at random; towards its end nothing grows.

Masks, their counts and the masked optimiser are those of `dynamic_sparse_training`. In a loop of your own:

    masking = TaskAwareMasking(model, optimiser, sparsity=0.75, epochs=epochs)
    for task, examples in enumerate(tasks):
        masking.task_started(task, examples)
        ...  # for every step, before optimiser.step(), with `gradients` of hosts.continual:
        masking.before_step(gradients(model, loss), gradients(model, loss_on_buffer) if task else None)
        ...  # after every epoch of the task, counted from 0:
        masking.epoch_ended(epoch)
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
from reference_impls.hosts.continual import ContinualTraining, check_continual, saved, whole_gradients
from reference_impls.hosts.training import Gradients
from reference_impls.redundancy.irrelevance import hoyer
from reference_impls.techniques.dynamic_sparse_training import (
    Bounds,
    Method,
    Pattern,
    SparseTraining,
    active_count,
    by_group,
    sparse_layers,
    top,
)

SETTLED = 0.9
"""Share of a task's epochs after which nothing grows: epoch 45 of 50 in the authors' code."""


def timeline(sparsity: float, progress: float, *, inter: float, intra: float) -> Bounds:
    """What to prune and to grow to at a share of a task, 0 at its start.

    The published run for 0.75 grows to 0.74 at a task's start, then prunes to 0.76 and grows to 0.75.
    """
    if progress == 0:
        return Bounds(sparsity, max(sparsity - inter, 0.0))
    return Bounds(sparsity, sparsity) if progress >= SETTLED else Bounds(sparsity + intra, sparsity)


def gradient_importance(
    weight: Tensor, current: Tensor | None, rehearsed: Tensor | None, alpha: float, beta: float, pattern: Pattern
) -> Tensor:
    """Continual gradient importance alpha |dL/dw| + beta |dL_M/dw| of each group (n,) of a weight (C_out, C_in, ...).

    current, rehearsed: gradients of the losses on the task's own examples and on the buffer's (wang-2022-sparcl,
    equation 3). Raises ValueError where a gradient is missing whose factor is not zero: it never counts as zero.
    """
    score = torch.zeros_like(by_group(weight, pattern))
    for what, factor, gradient in (("the current task", alpha, current), ("the buffer", beta, rehearsed)):
        if factor:
            if gradient is None:
                raise ValueError(f"no gradient of the loss on {what} to judge weights by: call `before_step` with it")
            score = score + factor * by_group(gradient, pattern)
    return score


def continual_importance(
    weight: Tensor, current: Tensor | None, rehearsed: Tensor | None, alpha: float, beta: float, pattern: Pattern
) -> Tensor:
    """Continual weight importance (n,): the magnitude of each group and its `gradient_importance` (equation 1)."""
    return by_group(weight, pattern) + gradient_importance(weight, current, rehearsed, alpha, beta, pattern)


class TaskAwareMasking(SparseTraining):
    """Masks that move within and between tasks. Before there is a buffer to rehearse from, importance is without it.

    epochs: of a task. interval: epochs between two updates. inter, intra: shares of a layer's weights by which a mask
    exceeds its target at a task's start, and is below it before it grows again; without both, masks never move.

    Raises: as `SparseTraining`; ValueError where a mask would not be back at its target by the end of a task.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        sparsity: float,
        epochs: int,
        inter: float = 0.01,
        intra: float = 0.01,
        alpha: float = 0.5,
        beta: float = 0.5,
        pattern: Pattern = "element",
        interval: int = 1,
        seed: int = 0,
        log: dict[str, list[int]] | None = None,
    ) -> None:
        check_timeline(sparsity, inter, intra, interval, epochs)
        self.alpha, self.beta, self.begun = alpha, beta, False
        self.current: Gradients = {}
        self.rehearsed: Gradients | None = None
        method = Method(partial(timeline, inter=inter, intra=intra) if inter or intra else None)
        super().__init__(
            model, optimiser, sparsity=sparsity, epochs=epochs, method=method, pattern=pattern, interval=interval,
            seed=seed, log=log,
        )  # fmt: skip

    def first(self, weight: Tensor) -> Tensor:
        """The largest weights as they were drawn."""
        size = by_group(weight, self.pattern)
        return top(size, active_count(len(size), self.sparsity), torch.ones_like(size, dtype=torch.bool))

    def task_started(self, task: int, examples: Tensor) -> None:
        """Grow above the target."""
        self.update(0.0)
        for name, mask in self.masks.items():
            self.log[name][-1] = int(mask.sum())

    def before_step(self, current: Gradients, rehearsed: Gradients | None) -> None:
        """Keep the gradients of both losses, for the importance of weights when masks move next."""
        self.current, self.rehearsed, self.begun = current, rehearsed, True

    def importance(self, name: str) -> Tensor:
        """See `continual_importance`. Before the first step of all, when nothing is removed, it is the magnitude."""
        key = f"{name}.weight"
        memory, beta = (None, 0.0) if self.rehearsed is None else (self.rehearsed.get(key), self.beta)
        expanding = not self.begun and int(self.masks[name].sum()) <= active_count(len(self.masks[name]), self.sparsity)
        alpha = 0.0 if expanding else self.alpha
        return continual_importance(self.layers[name].weight, self.current.get(key), memory, alpha, beta, self.pattern)


def check_timeline(sparsity: float, inter: float, intra: float, interval: int, epochs: int) -> None:
    """Raise ValueError for shares that leave nothing, or masks that a task of so many epochs does not bring back."""
    check_range("inter", inter, 0, 1)
    check_range("intra", intra, 0, 1)
    if intra and sparsity + intra >= 1:
        raise ValueError(f"sparsity {sparsity:g} and intra {intra:g} leave no weight before masks grow again")
    if inter and interval >= epochs:
        raise ValueError(
            f"a task of {epochs} epochs has no update within it at an interval of {interval}: masks that grew at its "
            "start would not return to their target; shorten the interval, or set inter to 0"
        )


def updates(training: ContinualTraining, interval: int) -> list[int]:
    """The epochs, over all tasks, at whose end masks move."""
    epochs = range(training.epochs * len(training.tasks))
    return [e for e in epochs if (e % training.epochs + 1) % interval == 0 and (e + 1) % training.epochs]


def planned(
    training: ContinualTraining,
    groups: Mapping[str, int],
    sparsity: float,
    *,
    inter: float,
    intra: float,
    interval: int,
) -> dict[str, list[int]]:
    """The active groups of each layer in each epoch of all tasks, as the timeline prescribes them."""
    grown = min(interval, training.epochs)  # epochs of a task before its masks are back at their target
    found = {}
    for name, n in groups.items():
        most = active_count(n, timeline(sparsity, 0.0, inter=inter, intra=intra).grow)
        task = [most] * grown + [active_count(n, sparsity)] * (training.epochs - grown)
        found[name] = task * len(training.tasks)
    return found


class TaskAwareDynamicMasking(Technique):
    """Continual training of a sparse network, masks of elements or of input channels."""

    id = "task-aware-dynamic-masking"
    execution = "real"
    knobs: ClassVar = {
        "sparsity": Number(0.75, low=0, high=0.999, about="share of the weights of each sparse layer that are zero"),
        "inter": Number(
            0.01, low=0, high=0.5, about="share of the weights that grow above the target at a task's start"
        ),
        "intra": Number(0.01, low=0, high=0.5, about="share of the weights that are removed and grown in an update"),
        "alpha": Number(0.5, low=0, about="weight of the gradient on current examples in the importance"),
        "beta": Number(0.5, low=0, about="weight of the gradient on rehearsed examples in the importance"),
        "interval": Integer(1, low=1, about="epochs between two updates of the masks within a task"),
        "pattern": Choice(
            "element",
            options=("element", "channel"),
            about="what is dropped: single weights, which saves no time on dense kernels, or a layer's input channels",
        ),
        "seed": Integer(0, low=0, about="of what grows at random"),
    }
    waivers: ClassVar = {
        "execution-is-as-declared": "The sparsity is a budget set before training and follows from no data."
    }

    def settings(self) -> list[Setting]:
        wide: dict[str, Any] = {"pattern": "channel", "inter": 0.25, "intra": 0.125}
        return [
            Setting("sparsity 0", {"sparsity": 0.0}, off=True),
            Setting("sparsity 0.75, elements", {"sparsity": 0.75}),
            Setting("sparsity 0.5, channels", {"sparsity": 0.5, **wide}),
            Setting("sparsity 0.75, channels", {"sparsity": 0.75, **wide}),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Mean over the sparse layers of Hoyer's sparsity of the importance for the last task: how few weights hold it.

        The importance is that of `continual_importance` with factors 1/2, on all examples of the last task, those of
        earlier ones standing for the buffer.
        """
        training = check_continual(self.id, target)
        current, memory = whole_gradients(training)
        where = {}
        for name, layer in sparse_layers(training.model).items():
            key = f"{name}.weight"
            found = None if memory is None else memory[key]
            score = continual_importance(
                layer.weight, current[key], found, 0.5, 0.0 if memory is None else 0.5, "element"
            )
            where[name] = hoyer(score)
        return Redundancy(sum(where.values()) / len(where), "Hoyer's sparsity of the importance", where)

    def attach(
        self,
        target: Any,
        sparsity: float,
        inter: float,
        intra: float,
        alpha: float,
        beta: float,
        interval: int,
        pattern: Pattern,
        seed: int,
    ) -> Handle:
        """A continual training with masks; `handle.target.fit()` does it.

        The trace holds the active groups of each layer in each epoch of all tasks, and of how many.

        Raises: UnsupportedHost for what is no continual training in float32; ValueError for a sparsity that leaves a
        layer nothing, and for tasks too short for masks to return to their target.
        """
        training = check_continual(self.id, target)
        if sparsity == 0:
            warn_no_effect(self.id, "with sparsity 0 every weight is active")
            inter = intra = 0.0
        log, base = dict[str, list[int]](), mask_trace(training, sparsity, intra, pattern)
        check_timeline(sparsity, inter, intra, interval, training.epochs)
        part = partial(
            TaskAwareMasking, sparsity=sparsity, epochs=training.epochs, inter=inter, intra=intra, alpha=alpha,
            beta=beta, pattern=pattern, interval=interval, seed=seed, log=log,
        )  # fmt: skip
        active = planned(training, base["groups"], sparsity, inter=inter, intra=intra, interval=interval)
        return Handle(training.plus(part), trace=lambda: {**base, "active": log or active})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.continual.ledger`: nothing with masks of elements, which dense kernels compute in full."""
        return saved(target, trace)


def mask_trace(training: ContinualTraining, sparsity: float, intra: float, pattern: Pattern) -> dict[str, Any]:
    """What is known of masks beforehand, for `hosts.continual.ledger`. Raises ValueError as `SparseTraining`."""
    found = sparse_layers(training.model, pattern)
    groups = {n: m.weight.numel() if pattern == "element" else m.weight.shape[1] for n, m in found.items()}
    for name, count in groups.items():
        try:
            active_count(count, sparsity)
            active_count(count, sparsity + intra if sparsity else sparsity)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return {"groups": groups, "pattern": pattern}
