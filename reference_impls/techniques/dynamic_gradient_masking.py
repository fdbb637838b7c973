"""Dynamic gradient masking: only the gradients that matter to the new task or to remembered ones are applied.

Papers
    wang-2022-sparcl: SparCL, arXiv 2209.09476, section on dynamic gradient masking (DGM).

Idea
    Every so many steps each layer keeps the share of its gradients whose importance is highest; in the steps up to the
    next revision these weights alone are updated. Not the gradient alone is masked but the update: whatever the
    optimiser does by momentum, second moments or weight decay, weights outside the mask and their state stay bit for
    bit as they were.

Masks of elements save nothing on dense kernels. With masks of input channels the layer computes the gradients of the
weights of these channels only, in the steps between two revisions.

In a loop of your own:

    masking = GradientMasking(model, optimiser, sparsity=0.8)
    ...  # in every step, with `gradients` of hosts.continual; `.grad` holds their sum as usual:
    masking.before_step(gradients(model, loss), gradients(model, loss_on_buffer) if task else None)
    optimiser.step()
    ...  # after every epoch, so that the next one starts with a new mask:
    masking.epoch_ended(epoch)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from reference_impls.contract import Handle, Redundancy, Setting, Technique, generator
from reference_impls.contract.errors import warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.contract.replacement import replace
from reference_impls.hosts.continual import ContinualTraining, check_continual, saved, whole_gradients
from reference_impls.hosts.training import Gradients, Part
from reference_impls.redundancy.irrelevance import hoyer
from reference_impls.techniques.dynamic_sparse_training import (
    Pattern,
    active_count,
    by_group,
    sparse_layers,
    spread,
    top,
)
from reference_impls.techniques.task_aware_dynamic_masking import gradient_importance

Choosing = Literal["importance", "random"]
ID = "dynamic-gradient-masking"


class GradientMasking(Part):
    """Masks on the updates of a network in training: made every `interval` steps of an epoch, its first step included.

    sparsity: share of all weights of a layer that a step leaves as they are. masks: the masks (n,) of the weights
    themselves, by layer, inside which those of the gradients lie; of elements. Layers are those of `SparseTraining`.

    Raises: as `SparseTraining`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        sparsity: float,
        interval: int = 30,
        alpha: float = 0.5,
        beta: float = 0.5,
        pattern: Pattern = "element",
        choice: Choosing = "importance",
        masks: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.pattern, self.choice, self.interval, self.alpha, self.beta = pattern, choice, interval, alpha, beta
        self.layers, self.optimiser = sparse_layers(model, pattern), optimiser
        self.weight_masks = {} if masks is None else masks
        self.draws = generator(seed)
        self.step = 0
        """Of the epoch."""
        self.masks: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._before: dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]] = {}
        self._undo: list[Callable[[], None]] = []
        for name, layer in self.layers.items():
            groups = layer.weight.numel() if pattern == "element" else layer.weight.shape[1]
            self.counts[name] = active_count(groups, sparsity)
            self.masks[name] = torch.ones(groups, dtype=torch.bool, device=layer.weight.device)
            if pattern == "channel" and self.counts[name] < groups:
                self._undo.append(replace(layer, partial(_narrow, self, name), ID))
        self._undo.append(optimiser.register_step_pre_hook(self._remember).remove)
        self._undo.append(optimiser.register_step_post_hook(self._restore).remove)

    @property
    def due(self) -> bool:
        """Whether the next step makes new masks."""
        return self.step % self.interval == 0

    def before_step(self, current: Gradients, rehearsed: Gradients | None) -> None:
        """Make new masks where they are due. Raises ValueError for a gradient that is missing."""
        if self.due:
            for name, layer in self.layers.items():
                self.masks[name] = self._chosen(name, layer.weight, current, rehearsed)
        self.step += 1

    def _chosen(self, name: str, weight: Tensor, current: Gradients, rehearsed: Gradients | None) -> Tensor:
        active = self.weight_masks.get(name, torch.ones_like(self.masks[name]))
        if self.choice == "random":
            return top(torch.rand(len(active), generator=self.draws).to(active.device), self.counts[name], active)
        key = f"{name}.weight"
        memory, beta = (None, 0.0) if rehearsed is None else (rehearsed.get(key), self.beta)
        score = gradient_importance(weight, current.get(key), memory, self.alpha, beta, self.pattern)
        return top(score, self.counts[name], active)

    def _remember(self, *_: Any) -> None:
        """Before the optimiser's step: zero the other gradients, and keep what the step must not change."""
        if not self.step:
            raise ValueError("no step of this epoch was announced: call `before_step` before the optimiser's step")
        for name, layer in self.layers.items():
            inside = self.masks[name] & self.weight_masks.get(name, self.masks[name])
            if inside.all():
                continue
            mask = spread(inside, layer.weight, self.pattern)
            if layer.weight.grad is not None:
                layer.weight.grad.mul_(mask)
            state = {key: one.clone() for key, one in _elementwise(self.optimiser, layer.weight).items()}
            self._before[name] = mask, layer.weight.detach().clone(), state

    @torch.no_grad()
    def _restore(self, *_: Any) -> None:
        """After it: outside the masks, weights and state are what they were, and state that is new is zero."""
        for name, (mask, before, state) in self._before.items():
            weight = self.layers[name].weight
            weight.copy_(torch.where(mask, weight, before))
            for key, one in _elementwise(self.optimiser, weight).items():
                one.copy_(torch.where(mask, one, state.get(key, torch.zeros_like(one))))
        self._before.clear()

    def epoch_ended(self, epoch: int) -> None:
        """The next step makes new masks."""
        self.step = 0

    def detach(self) -> None:
        """Let go of optimiser and layers."""
        while self._undo:
            self._undo.pop()()

    def state_dict(self) -> dict[str, Any]:
        """Masks, step and generator."""
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        return {"masks": masks, "step": self.step, "draws": self.draws.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for masks of other layers."""
        if {n: m.shape for n, m in state["masks"].items()} != {n: m.shape for n, m in self.masks.items()}:
            raise ValueError("the checkpoint is of another model: names or sizes of its gradient masks differ")
        self.masks.update({name: mask.clone() for name, mask in state["masks"].items()})
        self.step = state["step"]
        self.draws.set_state(state["draws"])


def _elementwise(optimiser: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    state = optimiser.state.get(weight, {})
    return {key: one for key, one in state.items() if isinstance(one, Tensor) and one.shape == weight.shape}


def _narrow(masking: GradientMasking, name: str, layer: nn.Module, dense: Any, x: Tensor) -> Any:
    """In the place of a layer's forward: between two revisions, weights of masked channels get no gradient."""
    if masking.due or not torch.is_grad_enabled():
        return dense(x)
    index = masking.masks[name].nonzero().flatten()
    return _SomeChannels.apply(x, layer.weight, layer.bias, index, layer)  # type: ignore[no-untyped-call]


class _SomeChannels(torch.autograd.Function):
    """A convolution or linear layer whose weight gradient is computed for the input channels `index` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, layer: Any) -> Tensor:
        ctx.save_for_backward(x, weight, index)
        ctx.layer = layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, index = ctx.saved_tensors
        whole, layer = torch.zeros_like(weight), ctx.layer
        needs_x, _, needs_bias = ctx.needs_input_grad[:3]
        some = x.index_select(-1 if isinstance(layer, nn.Linear) else 1, index)
        if isinstance(layer, nn.Linear):
            back, flat = grad @ weight if needs_x else None, grad.flatten(0, -2)
            whole[:, index] = flat.T @ some.flatten(0, -2)
            return back, whole, flat.sum(0) if needs_bias else None, None, None
        shape, dims = {"input_size": x.shape, "weight": weight}, (layer.stride, layer.padding, layer.dilation)
        back = conv2d_input(**shape, grad_output=grad, **_dims(dims)) if needs_x else None
        size = weight[:, index].shape
        whole[:, index] = conv2d_weight(some, size, grad, **_dims(dims))
        return back, whole, grad.sum((0, 2, 3)) if needs_bias else None, None, None


def _dims(dims: tuple[Any, Any, Any]) -> dict[str, Any]:
    return dict(zip(("stride", "padding", "dilation"), dims, strict=True))


class DynamicGradientMasking(Technique):
    """Continual training that updates a part of the weights in each step."""

    id = "dynamic-gradient-masking"
    execution = "real"
    knobs: ClassVar = {
        "sparsity": Number(0.8, low=0, high=0.999, about="share of each layer's weights that a step does not update"),
        "interval": Integer(30, low=1, about="steps between two revisions of the masks, counted in each epoch"),
        "alpha": Number(
            0.5, low=0, low_open=True, about="weight of the gradient on current examples in the importance"
        ),
        "beta": Number(0.5, low=0, about="weight of the gradient on rehearsed examples in the importance"),
        "choice": Choice("importance", options=("importance", "random"), about="how the weights to update are chosen"),
        "pattern": Choice(
            "element",
            options=("element", "channel"),
            about="what is masked: single weights, which saves no time on dense kernels, or a layer's input channels",
        ),
        "seed": Integer(0, low=0, about="of masks at random"),
    }
    waivers: ClassVar = {
        "execution-is-as-declared": "The share masked is a budget set before training and follows from no data."
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("sparsity 0", {"sparsity": 0.0}, off=True),
            Setting("sparsity 0.8, elements", {"sparsity": 0.8}),
            Setting("sparsity 0.5, channels", {"sparsity": 0.5, "pattern": "channel"}),
            Setting("sparsity 0.75, channels", {"sparsity": 0.75, "pattern": "channel"}),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Mean over the layers of Hoyer's sparsity of the gradients' importance for the last task: how few hold it.

        The importance is that of `gradient_importance` with equal factors, on all examples of the last task, those of
        earlier ones standing for the buffer.
        """
        training = check_continual(self.id, target)
        current, memory = whole_gradients(training)
        where = {}
        for name in sparse_layers(training.model):
            key = f"{name}.weight"
            score = by_group(current[key], "element")
            where[name] = hoyer(score if memory is None else score + by_group(memory[key], "element"))
        return Redundancy(sum(where.values()) / len(where), "Hoyer's sparsity of the gradients", where)

    def attach(
        self,
        target: Any,
        sparsity: float,
        interval: int,
        alpha: float,
        beta: float,
        choice: Choosing,
        pattern: Pattern,
        seed: int,
    ) -> Handle:
        """A continual training with masked updates; `handle.target.fit()` does it.

        The trace holds how many groups of each layer a step updates, of how many.

        Raises: UnsupportedHost for what is no continual training in float32; ValueError for a sparsity that leaves a
        layer no update.
        """
        training = check_continual(self.id, target)
        trace = update_trace(training, sparsity, interval, pattern)
        if sparsity == 0:
            warn_no_effect(self.id, "with sparsity 0 every weight is updated")
        part = partial(
            GradientMasking, sparsity=sparsity, interval=interval, alpha=alpha, beta=beta, pattern=pattern,
            choice=choice, seed=seed,
        )  # fmt: skip
        return Handle(training.plus(part), trace=lambda: trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.continual.ledger`: nothing with masks of elements, which dense kernels compute in full."""
        return saved(target, trace)


def update_trace(training: ContinualTraining, sparsity: float, interval: int, pattern: Pattern) -> dict[str, Any]:
    """What gradient masks update, for `hosts.continual.ledger`. Raises ValueError as `SparseTraining`."""
    found = sparse_layers(training.model, pattern)
    groups = {n: m.weight.numel() if pattern == "element" else m.weight.shape[1] for n, m in found.items()}
    updated = {}
    for name, count in groups.items():
        try:
            updated[name] = active_count(count, sparsity)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return {"update groups": groups, "updated": updated, "update pattern": pattern, "refreshed": interval}
