"""Dynamic sparse training: a fixed number of active weights, whose places move while the network trains.

Papers
    mocanu-2018-scalable: SET, arXiv 1707.04780: drop by magnitude, grow at random.
    evci-2020-rigging: RigL, arXiv 1911.11134: grow where the dense gradient is largest, less and less.
    yuan-2021-mest: MEST, arXiv 2110.14032: elastic mutation (EM), and with a soft memory bound (EM&S).
    yuan-2022-layer: SpFDE, arXiv 2209.11204, whose engine is EM&S with every layer but the first sparse.

Idea
    Each sparse layer has a mask over its groups of weights, single elements or whole input channels. Every few epochs
    the most important active groups stay and others become active, at weight zero. Counts are exact: they come from
    `top`, never from a percentile. After each step weights and optimiser state are zero outside the mask, so that no
    momentum moves a dropped weight, and a grown one starts without a past.

Masks of elements save nothing on dense kernels: a masked product costs what a dense one does. Masks of input channels
do: the layer gathers the active channels and multiplies smaller matrices, forward and backward.

In a loop of your own, three lines are enough:

    sparse = SparseTraining(model, optimiser, sparsity=0.9, epochs=epochs)   # after the optimiser is made
    ...                                                                       # your loop; masks hold by themselves
    sparse.epoch_ended(epoch)                                                 # once after every epoch

With the Trainer of transformers, given the optimiser by `optimizers=(optimiser, None)`, the third is a callback,
`callbacks=[hosts.trainer.callback(sparse)]`, which saves the masks in every checkpoint too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.contract import Handle, Redundancy, Setting, Technique, generator
from reference_impls.contract.errors import UnsupportedHost, check_range, warn_no_effect
from reference_impls.contract.knobs import Choice, Integer, Number
from reference_impls.contract.replacement import replace
from reference_impls.hosts.training import Part, check_training, saved
from reference_impls.redundancy.irrelevance import hoyer

Pattern = Literal["element", "channel"]
Growth = Literal["random", "gradient"]
ID = "dynamic-sparse-training"

# --------------------------------------------------------------------------------------------------------------------
# Rules: masks are boolean vectors over the groups of a layer


def active_count(groups: int, sparsity: float) -> int:
    """Active groups of so many, to the nearest. Raises ValueError where none would be left."""
    check_range("sparsity", sparsity, 0, 1)
    if (count := round((1 - sparsity) * groups)) < 1:
        raise ValueError(f"sparsity {sparsity:g} leaves none of {groups} groups of weights: the layer is too small")
    return count


def top(score: Tensor, count: int, among: Tensor) -> Tensor:
    """Mask (n,) of the `count` highest scores (n,) among the positions `among` (n,); of equal ones the first."""
    count = min(count, int(among.sum()))
    if count <= 0:
        return torch.zeros_like(among)
    score = score.masked_fill(~among, -torch.inf)
    least = score.topk(count, sorted=False).values.min()  # a selection: sorting all would cost more than a step
    mask, equal = score > least, ((score == least) & among).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask


def drop(mask: Tensor, importance: Tensor, count: int) -> Tensor:
    """The most important `count` of the active groups (all, where fewer are active): (n,)."""
    return top(importance, count, among=mask)


def grow(mask: Tensor, count: int, draws: torch.Generator, gradient: Tensor | None = None) -> Tensor:
    """The mask with free groups made active until `count` are: at random, or where the gradient (n,) is largest."""
    score = torch.rand(len(mask), generator=draws).to(mask.device) if gradient is None else gradient
    return mask | top(score, count - int(mask.sum()), among=~mask)


def by_group(values: Tensor, pattern: Pattern) -> Tensor:
    """Magnitude of each group of a tensor in the shape of a weight (C_out, C_in, ...): (n,)."""
    size = values.detach().abs()
    return size.flatten() if pattern == "element" else size.transpose(0, 1).flatten(1).sum(1)


def spread(mask: Tensor, like: Tensor, pattern: Pattern) -> Tensor:
    """The mask (n,) over the elements of a weight, broadcast to its shape."""
    return mask.view_as(like) if pattern == "element" else mask.view(1, -1, *[1] * (like.ndim - 2))


# --------------------------------------------------------------------------------------------------------------------
# Methods: what sparsity to prune and to grow to, as data


class Bounds(NamedTuple):
    """Sparsities of an update: prune to the first, then grow to the second."""

    prune: float
    grow: float


@dataclass(frozen=True)
class Method:
    """How a mask moves. `bounds(sparsity, progress)`, with progress in [0, 1); None: it never moves."""

    bounds: Callable[[float, float], Bounds] | None
    growth: Growth = "random"
    gradient_weight: float = 0.0
    """Weight of the gradient in the importance |w| + weight |g|."""


def _constant(sparsity: float, progress: float, share: float = 0.3) -> Bounds:
    return Bounds(1 - (1 - sparsity) * (1 - share), sparsity)


def _cosine(sparsity: float, progress: float, share: float = 0.3, end: float = 0.75) -> Bounds:
    share = share * (1 + math.cos(math.pi * progress / end)) / 2 if progress < end else 0.0
    return Bounds(1 - (1 - sparsity) * (1 - share), sparsity)


def _elastic(sparsity: float, progress: float) -> Bounds:
    return Bounds(sparsity + _stage(progress, 0.2, 0.1, 0) * (1 - sparsity), sparsity)


def _soft(sparsity: float, progress: float) -> Bounds:
    return Bounds(sparsity, sparsity - _stage(progress, 0.2, 0.1, 0) * (1 - sparsity))


def _stage(progress: float, *values: float) -> float:
    """MEST's three stages of a run of 160 epochs, which end at epochs 90, 120 and 160."""
    return values[0] if progress < 90 / 160 else values[1] if progress < 120 / 160 else values[2]


METHODS: Mapping[str, Method] = {
    "static": Method(None),
    "set": Method(_constant),
    "rigl": Method(_cosine, growth="gradient"),
    "em": Method(_elastic, gradient_weight=0.5),
    "em&s": Method(_soft, gradient_weight=0.5),
}
"""At a sparsity of 0.9 `em` prunes to 0.92, 0.91, 0.90 and `em&s` grows to 0.88, 0.89, 0.90 (yuan-2021-mest#c1)."""

# --------------------------------------------------------------------------------------------------------------------
# The kernel


class SparseTraining(Part):
    """Masks on a network in training: held after each step of its optimiser, moved by `epoch_ended`.

    Every convolution and linear layer is sparse but the first, and the last, which classifies. Raises: ValueError for a
    sparsity outside [0, 1) or that leaves a layer nothing; UnsupportedHost for a network of two layers or fewer, and
    for grouped convolutions with masks of channels.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        sparsity: float,
        epochs: int,
        method: str | Method = "em&s",
        pattern: Pattern = "element",
        interval: int = 1,
        seed: int = 0,
        log: dict[str, list[int]] | None = None,
    ) -> None:
        self.method = METHODS[method] if isinstance(method, str) else method
        self.pattern, self.sparsity = pattern, sparsity
        self.epochs, self.interval, self.optimiser = epochs, interval, optimiser
        self.layers = sparse_layers(model, pattern)
        self.log = {} if log is None else log
        self.draws = generator(seed)
        self.settled: set[str] = set()
        self.masks: dict[str, Tensor] = {}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._undo: list[Callable[[], None]] = []
        for name, layer in self.layers.items():
            self.masks[name] = self.first(layer.weight)
            self.log[name] = [int(self.masks[name].sum())]
            if pattern == "channel":
                self._undo.append(replace(layer, partial(_gathered, self.masks, name), ID))
        self._gradients: dict[str, Tensor | None] = {}
        self.enforce()
        self._undo.append(optimiser.register_step_post_hook(self._stepped).remove)

    def groups(self, weight: Tensor) -> int:
        """Groups of a weight (C_out, C_in, ...)."""
        return weight.numel() if self.pattern == "element" else weight.shape[1]

    def first(self, weight: Tensor) -> Tensor:
        """The mask (n,) that the training of a weight (C_out, C_in, ...) starts with: drawn at random."""
        groups = self.groups(weight)
        empty = torch.zeros(groups, dtype=torch.bool, device=weight.device)
        return grow(empty, active_count(groups, self.sparsity), self.draws)

    def _stepped(self, *_: Any) -> None:
        """After a step: hold the masks, and the gradients, which a loop may take away before the epoch's end."""
        self._gradients = {name: layer.weight.grad for name, layer in self.layers.items()}
        self.enforce()

    def _factor(self, name: str, weight: Tensor) -> Tensor:
        """A mask as 0 and 1 over the elements of its weight, kept while it is the same: booleans are slow factors."""
        mask = self.masks[name]
        if name not in self._factors or self._factors[name][0] is not mask:
            self._factors[name] = mask, spread(mask, weight, self.pattern).to(weight)
        return self._factors[name][1]

    @torch.no_grad()
    def enforce(self) -> None:
        """Zero weights, and optimiser state of their shape, outside the masks."""
        held, factors = list[Tensor](), list[Tensor]()
        for name, layer in self.layers.items():
            tensors = [layer.weight, *_state(self.optimiser, layer.weight)]
            held += tensors
            factors += [self._factor(name, layer.weight)] * len(tensors)
        torch._foreach_mul_(held, factors)

    def epoch_ended(self, epoch: int) -> None:
        """Prune and grow where that is due after this epoch, which counts from 0, and never after the last."""
        if (epoch + 1) % self.interval == 0 and epoch + 1 < self.epochs:
            self.update((epoch + 1) / self.epochs)
        for name, mask in self.masks.items():
            self.log[name].append(int(mask.sum()))

    def update(self, progress: float) -> None:
        """Prune and grow all masks that move, at this share of the training.

        Raises ValueError without a gradient that is needed to judge weights by, before any mask has moved.
        """
        if self.method.bounds is None:
            return
        bounds = self.method.bounds(self.sparsity, progress)
        moving = [name for name in self.layers if name not in self.settled]
        importance = {name: self.importance(name) for name in moving}
        growth = {name: self._gradient(name) if self.method.growth == "gradient" else None for name in moving}
        for name in moving:  # in order, since each draws
            kept = drop(self.masks[name], importance[name], active_count(len(self.masks[name]), bounds.prune))
            grown = grow(kept, active_count(len(kept), bounds.grow), self.draws, growth[name])
            self._set(name, kept, grown)

    def importance(self, name: str) -> Tensor:
        """What the groups (n,) of a layer are judged by when masks are pruned."""
        size = by_group(self.layers[name].weight, self.pattern)
        weight = self.method.gradient_weight
        return size + weight * self._gradient(name) if weight else size

    def _gradient(self, name: str) -> Tensor:
        """Magnitude of the last step's gradient, by group (n,)."""
        if (found := self._gradients.get(name)) is None:
            raise ValueError(f"{name} has no gradient to judge its weights by: take a step of the optimiser")
        return by_group(found, self.pattern)

    @torch.no_grad()
    def _set(self, name: str, kept: Tensor, mask: Tensor) -> None:
        """New masks; what was dropped, and grown again, starts at zero and without a past."""
        weight = self.layers[name].weight
        for tensor in (weight, *_state(self.optimiser, weight)):
            tensor.mul_(spread(kept, weight, self.pattern))
        self.masks[name] = mask

    def settle(self, names: Iterable[str]) -> None:
        """Bring layers to their target, and never move their masks again: before they freeze."""
        for name in names:
            if name in self.layers and name not in self.settled:
                weight, mask = self.layers[name].weight, self.masks[name]
                kept = drop(mask, by_group(weight, self.pattern), active_count(len(mask), self.sparsity))
                self._set(name, kept, kept)
                self.log[name][-1] = int(kept.sum())
                self.settled.add(name)

    def unsettle(self, names: Iterable[str]) -> None:
        """Let masks move again: of layers that thaw."""
        self.settled -= set(names)

    def detach(self) -> None:
        """Let go of the optimiser, and run whole layers again, whose weights stay zero outside the masks."""
        while self._undo:
            self._undo.pop()()

    def state_dict(self) -> dict[str, Any]:
        """Masks, generator and what is settled; the weights are in the model's."""
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        log = {name: list(counts) for name, counts in self.log.items()}
        return {"masks": masks, "draws": self.draws.get_state(), "settled": sorted(self.settled), "log": log}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for masks of other layers."""
        if {n: m.shape for n, m in state["masks"].items()} != {n: m.shape for n, m in self.masks.items()}:
            raise ValueError("the checkpoint is of another model: names or sizes of its masks differ")
        self.masks.update({name: mask.clone() for name, mask in state["masks"].items()})
        self.draws.set_state(state["draws"])
        self.settled = set(state["settled"])
        self.log.update({name: list(counts) for name, counts in state["log"].items()})


def sparse_layers(model: nn.Module, pattern: Pattern = "element") -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that masks lie on, by name: all but the first and the last. Raises as `SparseTraining`."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    chosen = dict(list(found.items())[1:-1])
    if not chosen:
        raise UnsupportedHost(ID, model, "three convolutions or linear layers or more: the first and last stay dense")
    if pattern == "channel" and any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in chosen.values()):
        raise UnsupportedHost(ID, model, "convolutions without groups for masks of input channels")
    return chosen


def _state(optimiser: torch.optim.Optimizer, weight: Tensor) -> list[Tensor]:
    """What the optimiser carries for each element of a weight: momentum, second moments."""
    state = optimiser.state.get(weight, {})
    return [one for one in state.values() if isinstance(one, Tensor) and one.shape == weight.shape]


def _gathered(masks: Mapping[str, Tensor], name: str, layer: nn.Module, dense: Any, x: Tensor) -> Tensor:
    """In the place of a layer's forward: on its active input channels, of x (B, C, H, W) or (..., C)."""
    index = masks[name].nonzero().flatten()
    weight = layer.weight.index_select(1, index)
    if isinstance(layer, nn.Linear):
        return F.linear(x.index_select(-1, index), weight, layer.bias)
    assert isinstance(layer, nn.Conv2d)
    x = x.index_select(1, index)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# On the contract


class DynamicSparseTraining(Technique):
    """Sparse training of a network from scratch, masks of elements or of input channels."""

    id = "dynamic-sparse-training"
    execution = "real"
    knobs: ClassVar = {
        "sparsity": Number(0.9, low=0, high=0.999, about="share of the weights of each sparse layer that are zero"),
        "method": Choice(
            "em&s", options=("static", "set", "rigl", "em", "em&s"), about="how masks move: not at all, as SET, RigL..."
        ),
        "pattern": Choice(
            "element",
            options=("element", "channel"),
            about="what is dropped: single weights, which saves no time on dense kernels, or a layer's input channels",
        ),
        "interval": Integer(1, low=1, about="epochs between two updates of the masks"),
        "seed": Integer(0, low=0, about="of the first masks, and of what grows at random"),
    }
    waivers: ClassVar = {
        "execution-is-as-declared": "The sparsity is a budget set before training and follows from no data."
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("sparsity 0", {"sparsity": 0.0}, off=True),
            Setting("sparsity 0.75, elements", {"sparsity": 0.75}),
            Setting("sparsity 0.5, channels", {"sparsity": 0.5, "pattern": "channel", "method": "set"}),
            Setting("sparsity 0.75, channels", {"sparsity": 0.75, "pattern": "channel", "method": "set"}),
        ]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Mean over the sparse layers of Hoyer's sparsity of their weights: how few of them hold the norm."""
        training = check_training(self.id, target)
        where = {name: hoyer(layer.weight) for name, layer in sparse_layers(training.model).items()}
        return Redundancy(sum(where.values()) / len(where), "Hoyer's sparsity of the weights", where)

    def attach(self, target: Any, sparsity: float, method: str, pattern: Pattern, interval: int, seed: int) -> Handle:
        """A training with sparse layers; `handle.target.fit()` does it.

        The trace holds the active groups of each layer in each epoch, and of how many.

        Raises: UnsupportedHost for what is no training in float32; ValueError for a sparsity that leaves a layer
        nothing, and for growth by gradient with channels, whose dense gradient is never computed.
        """
        training = check_training(self.id, target)
        if METHODS[method].growth == "gradient" and pattern == "channel":
            raise ValueError("method 'rigl' grows by the dense gradient, which pattern 'channel' never computes")
        found = sparse_layers(training.model, pattern)
        groups = {n: m.weight.numel() if pattern == "element" else m.weight.shape[1] for n, m in found.items()}
        for name, count in groups.items():
            try:
                active_count(count, sparsity)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if sparsity == 0:
            warn_no_effect(self.id, "with sparsity 0 every weight is active")
        log: dict[str, list[int]] = {}
        part = partial(
            SparseTraining,
            sparsity=sparsity,
            epochs=training.epochs,
            method=method if sparsity else "static",
            pattern=pattern,
            interval=interval,
            seed=seed,
            log=log,
        )
        return Handle(training.plus(part), trace=lambda: {"active": log, "groups": groups, "pattern": pattern})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """See `hosts.training.ledger`: nothing with masks of elements, whose products dense kernels compute in full."""
        return saved(target, trace)
