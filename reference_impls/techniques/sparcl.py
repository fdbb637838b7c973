"""SparCL: continual learning with sparse weights, fewer examples and fewer updates, over ER or DER++.

Papers
    wang-2022-sparcl: "SparCL: Sparse Continual Learning on the Edge", arXiv 2209.09476.
    buzzega-2020-dark: DER++, arXiv 2004.07211, one of the two methods of rehearsal that it makes cheaper.

Idea
    Three savings in one training of several tasks. At the end of an epoch examples go out, then masks move, and the
    next step makes new gradient masks, which so lie inside those of the weights. The importance by which weights are
    kept and updated has a term for the task at hand and one for the buffer.

The three parts are those of `task_aware_dynamic_masking`, `dynamic_data_removal` and `dynamic_gradient_masking`; this
module composes them. Rehearsal is the target's (`hosts.continual`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.hosts.continual import check_continual, saved
from reference_impls.hosts.training import Gradients, Part
from reference_impls.techniques.data_sieving import Easiness
from reference_impls.techniques.dynamic_data_removal import DataRemoval, DynamicDataRemoval, removed_at_once, scheduled
from reference_impls.techniques.dynamic_gradient_masking import (
    Choosing,
    DynamicGradientMasking,
    GradientMasking,
    update_trace,
)
from reference_impls.techniques.task_aware_dynamic_masking import (
    TaskAwareDynamicMasking,
    TaskAwareMasking,
    check_timeline,
    mask_trace,
    planned,
    updates,
)


class SparCL(Part):
    """The three parts of a run: `removal`, `masking` and `updating`, in the order in which an epoch ends."""

    def __init__(self, removal: DataRemoval, masking: TaskAwareMasking, updating: GradientMasking) -> None:
        self.removal, self.masking, self.updating = removal, masking, updating
        self.parts: tuple[Part, ...] = (removal, masking, updating)

    def examples(self) -> Tensor:
        """Those still in use."""
        return self.removal.examples()

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        """Counts forgetting."""
        self.removal.seen(index, outputs, y)

    def task_started(self, task: int, examples: Tensor) -> None:
        """All examples are in use, and masks grow."""
        for part in self.parts:
            part.task_started(task, examples)

    def before_step(self, current: Gradients, rehearsed: Gradients | None) -> None:
        """Both kinds of masks are judged by the same gradients."""
        for part in self.parts:
            part.before_step(current, rehearsed)

    def epoch_ended(self, epoch: int) -> None:
        """Remove, prune and grow, and make new gradient masks next."""
        for part in self.parts:
            part.epoch_ended(epoch)

    def detach(self) -> None:
        """As plain as before."""
        for part in self.parts:
            part.detach()

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for part, one in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(one)


class SparCLTechnique(Technique):
    """SparCL: masks of elements on weights and updates, and data removal."""

    id = "sparcl"
    execution = "real"
    knobs: ClassVar = {
        "sparsity": Number(0.75, low=0, high=0.999, about="share of the weights of each sparse layer that are zero"),
        "gradient_sparsity": Number(
            0.8,
            low=0,
            high=0.999,
            about="share of each layer's weights that a step does not update, at least the zeros",
        ),
        "removed": Number(0.3, low=0, high=0.95, about="share of a task's examples that is out after the last removal"),
        "removals": Integer(1, low=1, about="in how many parts they go out"),
        "inter": Number(
            0.01, low=0, high=0.5, about="share of the weights that grow above the target at a task's start"
        ),
        "intra": Number(0.01, low=0, high=0.5, about="share of the weights that are removed and grown in an update"),
        "alpha": Number(
            0.5, low=0, low_open=True, about="weight of the gradient on current examples in the importance"
        ),
        "beta": Number(0.5, low=0, about="weight of the gradient on rehearsed examples in the importance"),
        "weight_importance": Choice(
            "gradients",
            options=("gradients", "magnitude"),
            about="what weights are kept by: with both gradients, or by magnitude alone, as first published",
        ),
        "easiness": Choice("forgetting", options=("forgetting", "random"), about="which examples go out"),
        "choice": Choice("importance", options=("importance", "random"), about="how the weights to update are chosen"),
        "interval": Integer(1, low=1, about="epochs between two updates of masks, and before each removal"),
        "refresh": Integer(30, low=1, about="steps between two revisions of the gradient masks, counted in each epoch"),
        "seed": Integer(0, low=0, about="of growth, and of ties"),
    }
    waivers: ClassVar = {"execution-is-as-declared": "All three savings are budgets set before training."}

    def settings(self) -> list[Setting]:
        def setting(name: str, sparsity: float, gradient: float, removed: float, off: bool = False) -> Setting:
            knobs = {"sparsity": sparsity, "gradient_sparsity": gradient, "removed": removed}
            return Setting(name, knobs, off=off)

        return [
            setting("nothing saved", 0.0, 0.0, 0.0, off=True),
            setting("sparsity 0.5, 25 % removed", 0.5, 0.6, 0.25),
            setting("sparsity 0.75, 50 % removed", 0.75, 0.8, 0.5),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Mean of the measures of the three parts: of the weights, the examples and the gradients."""
        parts = {
            "weights": TaskAwareDynamicMasking(),
            "examples": DynamicDataRemoval(),
            "gradients": DynamicGradientMasking(),
        }
        where = {name: part.measure(target, inputs).value for name, part in parts.items()}
        return Redundancy(sum(where.values()) / len(where), "mean of weights, examples and gradients", where)

    def attach(
        self,
        target: Any,
        sparsity: float,
        gradient_sparsity: float,
        removed: float,
        removals: int,
        inter: float,
        intra: float,
        alpha: float,
        beta: float,
        weight_importance: str,
        easiness: Easiness,
        choice: Choosing,
        interval: int,
        refresh: int,
        seed: int,
    ) -> Handle:
        """A continual training with all three; the trace holds what each of them leaves of every epoch.

        Raises: as the three techniques; ValueError for gradient masks that would not fit into those of the weights.
        """
        training = check_continual(self.id, target)
        if gradient_sparsity < sparsity:
            raise ValueError(
                f"gradient_sparsity {gradient_sparsity:g} is below sparsity {sparsity:g}: a step cannot update weights "
                "that are masked"
            )
        if not sparsity:
            inter = intra = 0.0
        n, epochs = len(training.x), training.epochs
        sizes = [len(training.examples_of(task)) for task in range(len(training.tasks))]
        if not gradient_sparsity and not any(removed_at_once(one, removed, removals) for one in sizes):
            warn_no_effect(self.id, "nothing is masked or left out")
        check_timeline(sparsity, inter, intra, interval, epochs)
        removal = {"removed": removed, "removals": removals, "interval": interval, "epochs": epochs}
        DataRemoval(n, **removal)  # type: ignore[arg-type]
        by_gradient = weight_importance == "gradients"
        active, examples = dict[str, list[int]](), list[int]()
        fixed = {
            **mask_trace(training, sparsity, intra, "element"),
            **update_trace(training, gradient_sparsity, refresh, "element"),
        }
        if by_gradient and (inter or intra):
            fixed["judged"] = updates(training, interval)
        part = partial(
            _sparcl,
            removal={**removal, "examples": n, "easiness": easiness, "seed": seed, "log": examples},
            masking={
                "sparsity": sparsity, "epochs": epochs, "inter": inter, "intra": intra, "interval": interval,
                "alpha": alpha * by_gradient, "beta": beta * by_gradient, "seed": seed, "log": active,
            },
            updating={
                "sparsity": gradient_sparsity, "interval": refresh, "alpha": alpha, "beta": beta, "choice": choice,
                "seed": seed,
            },
        )  # fmt: skip
        known = {
            "active": planned(training, fixed["groups"], sparsity, inter=inter, intra=intra, interval=interval),
            "examples": scheduled(training, removed, removals, interval),
        }

        def trace() -> Mapping[str, Any]:
            ran = {"active": active, "examples": examples[: epochs * len(sizes)]}
            return {**fixed, **(ran if active else known)}

        return Handle(training.plus(part), trace=trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.continual.ledger`: masks of elements save nothing on dense kernels, examples left out do."""
        return saved(target, trace)


def _sparcl(
    model: nn.Module, optimiser: Optimizer, removal: dict[str, Any], masking: dict[str, Any], updating: dict[str, Any]
) -> SparCL:
    masks = TaskAwareMasking(model, optimiser, **masking)
    return SparCL(DataRemoval(**removal), masks, GradientMasking(model, optimiser, masks=masks.masks, **updating))
