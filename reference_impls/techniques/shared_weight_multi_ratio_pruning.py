"""Shared-weight multi-ratio pruning: one tensor of weights and one soft mask stand for networks of several ratios.

Papers
    gong-2022-all: All-in-One, arXiv 2212.05122, from its abstract and its framework figure: a learned soft mask S of
    the shape of the weights, nested hard masks [S > t_k], a batch norm for each ratio, gradients of all ratios summed.
    yu-2019-slimmable: Slimmable Neural Networks, arXiv 1812.08928: switchable batch norm, and why it is needed.
    bengio-2013-estimating: arXiv 1308.3432: the straight-through estimator.

Idea
    A ratio keeps the groups with the highest soft mask, exactly so many as it asks for, so that the masks are nested.
    Groups are single weights, or channels of feature maps: a filter and what reads its output, scored by the mean of S
    over both, which makes the kept part of every layer a rectangle of rows and columns. The hard mask is used forward,
    and its gradient goes straight through to S. Once trained, channels are put in the order of their scores. Then a
    sub-model is the front of every tensor, a view of the one storage, and runs on dense kernels with fewer MACs.

In a loop of your own:

    shared = SharedNetwork(model, ratios=(0, 0.25, 0.5, 0.75))
    optimiser = torch.optim.AdamW(shared.parameters(), 1e-3)         # S is among the parameters
    for x, y in batches:
        optimiser.zero_grad()
        summed_loss(shared.every(x), y).backward()                   # one pass of each ratio
        optimiser.step()
    small = shared.finish().sub_model(0.75)                          # a plain network
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from reference_impls.accounting.closed_form import closed_form
from reference_impls.contract import Handle, Redundancy, Setting, Technique
from reference_impls.contract.errors import UnsupportedHost, check_range, nearest, warn_no_effect
from reference_impls.contract.knobs import Number
from reference_impls.contract.precision import widened
from reference_impls.contract.replacement import replace
from reference_impls.redundancy.irrelevance import hoyer
from reference_impls.techniques.dynamic_sparse_training import active_count, top

ID = "shared-weight-multi-ratio-pruning"
Granularity = Literal["channel", "element"]
Score = Literal["soft", "magnitude"]
Norms = Literal["own", "one"]
Layer = nn.Conv2d | nn.Linear
_BY_CHANNEL = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten,
)  # fmt: skip
"""Modules that treat every channel by itself, so that fewer channels pass through them as they are."""

# --------------------------------------------------------------------------------------------------------------------
# Which layers, which groups


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """The ratios, ascending, each a share of the groups that is pruned. Raises ValueError for others than in [0, 1)."""
    for ratio in ratios:
        check_range("ratio", ratio, 0, 1)
    if not ratios or list(ratios) != sorted(set(ratios)) or ratios[-1] >= 1:
        raise ValueError(f"ratios must ascend, from 0 or more to less than 1, got {tuple(ratios)}")
    return tuple(map(float, ratios))


def chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that a network of nested `nn.Sequential` runs one after the other, by name.

    Raises: UnsupportedHost for another network, or for a part that mixes channels in a way that is not known here.
    """
    if type(model) is not nn.Sequential:
        raise UnsupportedHost(ID, model, "an nn.Sequential for masks of channels; masks of elements take any network")
    found = list(_leaves(model))
    for name, part in found:
        plain = type(part) in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, *_BY_CHANNEL)
        if not plain or part._forward_hooks or part._forward_pre_hooks:
            raise UnsupportedHost(ID, model, f"plain layers without hooks, but {name} is a {type(part).__name__}")
        if isinstance(part, nn.Conv2d) and part.groups > 1:
            raise UnsupportedHost(ID, model, f"convolutions without groups for masks of channels, but {name} has them")
    if len({id(part) for _, part in found}) < len(found):
        raise UnsupportedHost(ID, model, "every layer once: one that runs twice cannot be sliced")
    return found


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, part in model._modules.items():
        assert part is not None
        if type(part) is nn.Sequential:
            yield from _leaves(part, f"{prefix}{name}.")
        else:
            yield prefix + name, part


def prunable(model: nn.Module, granularity: Granularity) -> list[str]:
    """Names of the layers that masks lie on: with elements all but the first and the last, with channels every one.

    Raises: UnsupportedHost for networks of fewer than two layers with channels, three with elements, and as `chain`.
    """
    modules = chain(model) if granularity == "channel" else list(model.named_modules())
    found = [name for name, part in modules if isinstance(part, nn.Conv2d | nn.Linear)]
    if len(found) < (2 if granularity == "channel" else 3):
        needs = "two" if granularity == "channel" else "three"
        raise UnsupportedHost(ID, model, f"{needs} convolutions or linear layers or more for masks of {granularity}s")
    return found if granularity == "channel" else found[1:-1]


# --------------------------------------------------------------------------------------------------------------------
# The network


class SharedNetwork(nn.Module):
    """A copy of a network whose weights serve several pruning ratios, each with batch norms of its own.

    ratios: shares of the groups that are pruned, ascending. score: what ranks the groups, the learned soft mask or the
    magnitude of the weights. norms: `own` for each ratio, or `one` for all. The last two are there to be compared.

    Calling it runs the least pruned sub-model, or the one of `ratio`. It swaps tensors for the time of a call:
    let threads run sub-models. Raises: ValueError for ratios that do not ascend
    in [0, 1) or that leave a layer nothing; UnsupportedHost for networks that it cannot prune.
    """

    def __init__(
        self,
        model: nn.Module,
        ratios: Sequence[float],
        granularity: Granularity = "channel",
        *,
        score: Score = "soft",
        norms: Norms = "own",
    ) -> None:
        super().__init__()
        self.ratios, self.granularity, self.finished = check_ratios(ratios), granularity, False
        self.names = prunable(model, granularity)
        self.plain = copy.deepcopy(model)
        weights = [layer.weight.detach() for layer in self.layers()]
        self.soft = nn.ParameterList([_relative(w) for w in weights] if score == "soft" else [])
        self.norm_names = [name for name, part in self.plain.named_modules() if isinstance(part, _BatchNorm)]
        others = len(self.ratios) - 1 if norms == "own" else 0
        self.norms = nn.ModuleList(nn.ModuleList(map(copy.deepcopy, self._plain_norms())) for _ in range(others))
        """Batch norms of all ratios but the first, which has those of `plain`."""
        self.levels: list[Tensor] = []
        for name, size in zip(self.names, self.sizes(), strict=False):
            for ratio in self.ratios:
                try:
                    active_count(size, ratio)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.levels = [fn(one) for one in self.levels]
        return self

    def layers(self) -> list[Layer]:
        """The layers that masks lie on, in their order."""
        return [self.plain.get_submodule(name) for name in self.names]  # type: ignore[misc]

    def _plain_norms(self) -> list[nn.Module]:
        return [self.plain.get_submodule(name) for name in self.norm_names]

    def sizes(self) -> list[int]:
        """Groups of each mask: elements of each layer, or channels of each feature map between two layers."""
        if self.granularity == "element":
            return [layer.weight.numel() for layer in self.layers()]
        return [len(layer.weight) for layer in self.layers()[:-1]]

    def kept(self, k: int) -> list[int]:
        """Groups of each mask that ratio `k` keeps."""
        return [active_count(size, self.ratios[k]) for size in self.sizes()]

    def index(self, ratio: float) -> int:
        """Which of the ratios it is. Raises ValueError for another, with those that there are."""
        if ratio not in self.ratios:
            raise ValueError(f"the network has no ratio {ratio:g}{nearest('', map('{:g}'.format, self.ratios))}")
        return self.ratios.index(ratio)

    def scores(self) -> list[Tensor]:
        """What ranks the groups of each mask: (n,), in float32 or wider."""
        found = list(self.soft) or [_relative(layer.weight) for layer in self.layers()]
        found = [widened(one) for one in found]
        if self.granularity == "element":
            return [one.flatten() for one in found]
        rows = [one.flatten(1).mean(1) for one in found[:-1]]
        return [(a + _by_column(b, len(a)).mean((0, 2))) / 2 for a, b in zip(rows, found[1:], strict=True)]

    def gates(self, k: int) -> list[Tensor]:
        """Hard masks of ratio `k` over the groups, 0 or 1: (n,). Before `finish` their gradient goes to `scores`."""
        if self.finished:
            counts = self.kept(k)
            if self.granularity == "element":
                return [(one.flatten() > k).float() for one in self.levels]
            devices = [layer.weight.device for layer in self.layers()]
            return [(torch.arange(n, device=d) < c).float() for n, c, d in zip(self.sizes(), counts, devices)]  # noqa: B905
        hard = [_hard(one.detach(), c) for one, c in zip(self.scores(), self.kept(k), strict=True)]
        if not self.soft:
            return hard
        return [mask + (one - one.detach()) for mask, one in zip(hard, self.scores(), strict=True)]

    def weights(self, k: int) -> dict[str, Tensor]:
        """Masked weights of ratio `k` by the name of their layer."""
        layers, gates = self.layers(), [gate.to(self.layers()[0].weight) for gate in self.gates(k)]
        if self.granularity == "element":
            return {n: m.weight * g.view_as(m.weight) for n, m, g in zip(self.names, layers, gates, strict=True)}
        found = {}
        for i, (name, layer) in enumerate(zip(self.names, layers, strict=True)):
            weight = layer.weight
            if i < len(gates):
                weight = weight * gates[i].view(-1, *[1] * (weight.ndim - 1))
            if i > 0:
                weight = (_by_column(weight, len(gates[i - 1])) * gates[i - 1].view(1, -1, 1)).view_as(weight)
            found[name] = weight
        return found

    def norms_of(self, k: int) -> list[nn.Module]:
        """The batch norms of ratio `k`, in the order of `norm_names`."""
        return list(self.norms[k - 1]) if k and len(self.norms) else self._plain_norms()  # type: ignore[arg-type]

    def _run(self, x: Tensor, k: int) -> Tensor:
        tensors = {f"{name}.weight": weight for name, weight in self.weights(k).items()}
        for name, norm in zip(self.norm_names, self.norms_of(k), strict=True):
            tensors |= {f"{name}.{key}": value for key, value in [*norm.named_parameters(), *norm.named_buffers()]}
        return functional_call(self.plain, tensors, (x,))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, ratio: float | None = None) -> Tensor:
        """Outputs for x (B, ...) of the sub-model of a ratio, the least pruned by default."""
        return self._run(x, 0 if ratio is None else self.index(ratio))

    def every(self, x: Tensor) -> list[Tensor]:
        """Outputs for x (B, ...) of each ratio, for the summed loss."""
        return [self._run(x, k) for k in range(len(self.ratios))]

    @torch.no_grad()
    def finish(self) -> Self:
        """End the training: fix the masks, put channels in the order of their scores, in place, and go to eval mode.

        What each sub-model computes stays the same. The soft mask is done with.
        """
        if not self.finished:
            orders = [one.argsort(descending=True, stable=True) for one in self.scores()]
            if self.granularity == "element":
                self.levels = [self._levels(i, order) for i, order in enumerate(orders)]
            else:
                self._reorder(orders)
            self.soft, self.finished = nn.ParameterList(), True
        return self.eval().requires_grad_(False)

    def _levels(self, i: int, order: Tensor) -> Tensor:
        """For each element the number of ratios that keep it: 8 bits, in the shape of the weight."""
        levels = torch.zeros(len(order), dtype=torch.uint8, device=order.device)
        for k in range(len(self.ratios)):
            levels[order[: self.kept(k)[i]]] += 1
        return levels.view_as(self.layers()[i].weight)

    def _reorder(self, orders: Sequence[Tensor]) -> None:
        layers = self.layers()
        for i, order in enumerate(orders):
            after = layers[i + 1].weight
            for x in (layers[i].weight, layers[i].bias):
                if x is not None:
                    x.copy_(x[order])
            after.copy_(_by_column(after, len(order))[:, order].reshape(after.shape))
        for k in range(len(self.norms) + 1):
            for name, norm in zip(self.norm_names, self.norms_of(k), strict=True):
                for x in [*norm.parameters(), *norm.buffers()]:
                    if x.ndim:
                        x.copy_(x[orders[self._map(name)]])

    def _map(self, norm: str) -> int:
        """Which feature map a batch norm of a chain is on."""
        names = [name for name, _ in chain(self.plain)]
        return sum(names.index(layer) < names.index(norm) for layer in self.names) - 1

    def sub_model(self, ratio: float) -> nn.Module:
        """The network of a ratio, in eval mode. All sub-models share the storage of the one tensor of each weight.

        With channels it is plain layers on the front of each tensor; with elements a product with the mask comes before
        each product of a layer, which saves nothing on dense kernels. Raises ValueError before `finish`.
        """
        if not self.finished:
            raise ValueError("the soft mask still moves: call finish() before sub_model()")
        k = self.index(ratio)
        shared = {id(p): p for p in self.plain.parameters()}
        model: nn.Module = copy.deepcopy(self.plain, memo=shared)
        for name, norm in zip(self.norm_names, self.norms_of(k), strict=True):
            _put(model, name, norm)
        if self.granularity == "element":
            for name, levels in zip(self.names, self.levels, strict=True):
                layer = model.get_submodule(name)
                layer.register_buffer("levels", levels)
                replace(layer, partial(_masked, k), ID)
        else:
            counts = self.kept(k)
            for i, name in enumerate(self.names):
                _put(model, name, _front(self.layers()[i], counts[i - 1] if i else None, (*counts, None)[i], self, i))
            for name, norm in zip(self.norm_names, self.norms_of(k), strict=True):
                _put(model, name, _front_norm(norm, counts[self._map(name)]))
        return model.eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """What a device keeps: weights once, batch norms of each ratio, and for elements 8 bits each."""
        if not self.finished:
            raise ValueError("the soft mask still moves: call finish() before state()")
        norms = [[_compact(norm, self._length(k, n)) for n, norm in zip(self.norm_names, self.norms_of(k))]  # noqa: B905
                 for k in range(1, len(self.norms) + 1)]  # fmt: skip
        return {"ratios": self.ratios, "plain": self.plain.state_dict(), "norms": norms, "levels": self.levels}

    def _length(self, k: int, norm: str) -> int | None:
        return self.kept(k)[self._map(norm)] if self.granularity == "channel" else None

    def save(self, file: Path) -> None:
        """Write `state` to a file, wholly or not at all."""
        part = file.with_suffix(f".{os.getpid()}.part")
        torch.save(self.state(), part)
        part.replace(file)


def load(file: Path, model: nn.Module, granularity: Granularity = "channel") -> SharedNetwork:
    """The finished network of a file, given a network of the same layers. Raises ValueError for one of other layers."""
    state = torch.load(file, weights_only=True)
    if {n: x.shape for n, x in model.state_dict().items()} != {n: x.shape for n, x in state["plain"].items()}:
        raise ValueError(f"{file} is of another model: names or shapes of its tensors differ")
    norms: Norms = "own" if state["norms"] or len(state["ratios"]) == 1 else "one"
    shared = SharedNetwork(model, state["ratios"], granularity, score="magnitude", norms=norms)
    shared.plain.load_state_dict(state["plain"])
    with torch.no_grad():
        for found, parts in zip(state["norms"], shared.norms, strict=True):
            for values, norm in zip(found, parts, strict=True):  # type: ignore[arg-type]
                for name, x in norm.state_dict().items():
                    (x[: len(values[name])] if x.ndim else x).copy_(values[name])
    shared.levels, shared.finished = list(state["levels"]), True
    return shared.eval().requires_grad_(False)


def summed_loss(outputs: Sequence[Tensor], y: Tensor, distilled: float = 0.0) -> Tensor:
    """Sum of the cross entropies of all ratios, whose gradient is the sum of theirs (gong-2022-all#c4).

    outputs: (B, classes) for each ratio, the least pruned first; y: (B,). distilled: weight of a further term, the
    cross entropy of each pruned ratio with what the least pruned one says, which is no part of the paper's figure.
    """
    loss = torch.stack([F.cross_entropy(one, y) for one in outputs]).sum()
    if distilled and len(outputs) > 1:
        said = outputs[0].detach().softmax(1)
        loss = loss + distilled * torch.stack([F.cross_entropy(one, said) for one in outputs[1:]]).sum()
    return loss


class Jointly(nn.Module):
    """A shared network as one that gives the outputs of every ratio, for loops that call a model and then a loss."""

    def __init__(self, shared: SharedNetwork) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.shared.every(x)


def _relative(weight: Tensor) -> Tensor:
    """Magnitudes (C_out, C_in, ...) over their mean: where the soft mask starts."""
    size = widened(weight.detach()).abs()
    return size / size.mean().clamp_min(1e-30)


def _by_column(weight: Tensor, columns: int) -> Tensor:
    """A weight (C_out, C_in, ...) as (C_out, channels that it reads, what it has for each)."""
    return weight.reshape(len(weight), columns, -1)


def _hard(score: Tensor, count: int) -> Tensor:
    return top(score, count, among=torch.ones_like(score, dtype=torch.bool)).to(score)


def _put(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, part)


def _view(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach(), requires_grad=False)


def _front(layer: Layer, columns: int | None, rows: int | None, shared: SharedNetwork, i: int) -> nn.Module:
    """The layer on its first input channels and with its first outputs, its tensors views of those of `layer`."""
    made, whole = copy.copy(layer), layer.weight
    made._parameters = dict(layer._parameters)
    if columns is not None:
        whole = whole[:, : columns * (whole.shape[1] // shared.sizes()[i - 1])]
    made.weight = _view(whole[:rows])
    made.bias = None if layer.bias is None else _view(layer.bias[:rows])
    if isinstance(made, nn.Conv2d):
        made.in_channels, made.out_channels = made.weight.shape[1], made.weight.shape[0]
    else:
        made.in_features, made.out_features = made.weight.shape[1], made.weight.shape[0]
    return made


def _front_norm(norm: Any, channels: int) -> nn.Module:
    made = copy.copy(norm)
    made._parameters = {n: None if p is None else _view(p[:channels]) for n, p in norm._parameters.items()}
    made._buffers = {n: b[:channels] if b is not None and b.ndim else b for n, b in norm._buffers.items()}
    made.num_features = channels
    return made  # type: ignore[no-any-return]


def _compact(norm: nn.Module, channels: int | None) -> dict[str, Tensor]:
    """The tensors of a batch norm, without the channels that its ratio does not have."""
    return {name: (x[:channels].clone() if x.ndim else x) for name, x in norm.state_dict().items()}


def _masked(k: int, layer: Any, dense: Any, x: Tensor) -> Tensor:
    """In the place of a layer's forward: with the weights that ratio `k` keeps."""
    weight = layer.weight * (layer.levels > k).to(layer.weight)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)  # type: ignore[no-any-return]


# --------------------------------------------------------------------------------------------------------------------
# On the contract


class MultiRatioPruning(Technique):
    """The sub-model of one ratio of a finished `SharedNetwork`."""

    id = "shared-weight-multi-ratio-pruning"
    execution = "real"
    knobs: ClassVar = {
        "ratio": Number(0.5, low=0, high=0.999, about="share of the groups that is pruned: a ratio it has")
    }
    waivers: ClassVar = {"execution-is-as-declared": "The ratio is chosen before the run and follows from no data."}

    def settings(self) -> list[Setting]:
        pruned = [Setting(f"ratio {ratio:g}", {"ratio": ratio}) for ratio in (0.25, 0.5, 0.75)]
        return [Setting("ratio 0", {"ratio": 0.0}, off=True), *pruned]

    def measure(self, target: Any, inputs: Any = None) -> Redundancy:
        """Mean over masks of Hoyer's sparsity of the magnitudes of their groups: how few of them hold the norm."""
        shared = check_shared(self.id, target)
        sizes = [widened(layer.weight).abs() for layer in shared.layers()]
        groups = (
            [s.flatten() for s in sizes]
            if shared.granularity == "element"
            else [s.flatten(1).sum(1) for s in sizes[:-1]]
        )
        where = {name: hoyer(one) for name, one in zip(shared.names, groups, strict=False)}
        return Redundancy(sum(where.values()) / len(where), f"Hoyer's sparsity of the {shared.granularity}s", where)

    def attach(self, target: Any, ratio: float) -> Handle:
        """`handle.target` is the sub-model; the target stays as it is. The trace holds the groups that are kept.

        Raises: UnsupportedHost for what is no finished SharedNetwork; ValueError for a ratio that it does not have.
        """
        shared = check_shared(self.id, target)
        if not (k := shared.index(ratio)):
            warn_no_effect(self.id, "this is the least pruned sub-model")
        return Handle(shared.sub_model(ratio), trace=lambda: {"kept": shared.kept(k), "ratio": ratio})

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """MACs of the least pruned network minus those of the sub-model: none with elements, on dense kernels."""
        first, now = (
            closed_form(target.sub_model(r), tuple(inputs.shape[1:])) for r in (target.ratios[0], trace["ratio"])
        )
        return len(inputs) * (first.macs - now.macs)


def check_shared(technique: str, target: object) -> SharedNetwork:
    """The target, if it is a finished shared network. Raises UnsupportedHost otherwise."""
    if not isinstance(target, SharedNetwork) or not target.finished:
        raise UnsupportedHost(technique, target, "a SharedNetwork that was trained jointly and finished by finish()")
    return target
