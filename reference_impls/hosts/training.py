"""A training run as a target: a network of blocks, labelled data, SGD, and the parts that techniques put into it.

    handle = DynamicSparseTraining().apply(Training(network, x, y, epochs=20), sparsity=0.9)
    network = handle.target.fit()

A `Training` is a description, which techniques extend and never change; `Run` does it, from and to any step. The blocks
of a network are its children, in the order in which they run. What a run costs is told in closed form by `layers`, from
the shapes and from which gradients autograd needs; the dispatch counter (`accounting.count`) knows nothing of it.

References
    yuan-2022-layer (arXiv 2209.11204): a cosine learning rate of each block over its own active epochs, and the order
    of what is done at the end of an epoch: sieve, prune and grow, freeze.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.count import uncounted
from reference_impls.contract.errors import UnsupportedHost, check_range, check_tensor
from reference_impls.contract.technique import generator

Gradients = Mapping[str, Tensor]
"""Name of each parameter that a loss reaches -> its gradient."""


class Part:
    """What a technique does in a run; every method may be left as it is."""

    def examples(self) -> Tensor | None:
        """Indices of the examples of the next epoch; None: all."""
        return None

    def lifetimes(self) -> Sequence[float] | None:
        """For each block, the epochs over which its learning rate falls to zero; None: all epochs of the run."""
        return None

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        """After a step on the examples `index` (B,), whose outputs (B, classes) the step has computed."""

    def epoch_ended(self, epoch: int) -> None:
        """After the last step of an epoch, which counts from 0; the gradients of that step are still there."""

    def task_started(self, task: int, examples: Tensor) -> None:
        """Before the first step on a task of several (`hosts.continual`), whose examples are (n,); epochs count from 0
        again.
        """

    def before_step(self, current: Gradients, rehearsed: Gradients | None) -> None:
        """There, before a step: gradients of the loss on the task's own examples, and on rehearsed ones if any are."""

    def detach(self) -> None:
        """Leave the network as plain as it was."""

    def state_dict(self) -> dict[str, Any]:
        """All that the part carries from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; called before the optimiser's state is loaded."""


@dataclass(frozen=True)
class Training:
    """A training run to be done: SGD with momentum and a cosine learning rate, all choices following from the seed.

    Raises: TypeError, ValueError for data that do not fit one another, an empty set, or classes that no output has.
    """

    model: nn.Module
    """Its children are blocks that run one after the other; it is copied, never changed."""
    x: Tensor
    """(N, ...) inputs"""
    y: Tensor
    """(N,) int64, their classes"""
    epochs: int = 2
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0
    parts: tuple[Callable[[nn.Module, torch.optim.Optimizer], Part], ...] = ()

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 1, integer=True)
        check_range("batch_size", self.batch_size, 1, integer=True)
        check_tensor("y of the training", self.y, "N", floating=False)
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(f"as many labels as inputs are needed, and one or more: {len(self.x)} and {len(self.y)}")
        if self.y.dtype != torch.int64 or int(self.y.min()) < 0:
            raise ValueError(f"y of the training must hold classes from 0 on as int64, got {self.y.dtype}")

    def plus(self, part: Callable[[nn.Module, torch.optim.Optimizer], Part]) -> Training:
        """The same with one more part, after those that are there."""
        return replace(self, parts=(*self.parts, part))

    def run(self) -> Run:
        """The training about to begin."""
        return Run(self)

    def fit(self) -> nn.Module:
        """The trained network, in eval mode."""
        run = self.run()
        run.advance()
        return run.finish()


def check_training(technique: str, target: object) -> Training:
    """The target, if it is a training in float32. Raises UnsupportedHost otherwise."""
    if not isinstance(target, Training) or type(target) is not Training:
        raise UnsupportedHost(technique, target, "a hosts.training.Training: a network of blocks with its data")
    check_single(technique, target)
    return target


def check_single(technique: str, target: Training) -> None:
    """Raise UnsupportedHost unless model and data are in float32."""
    kinds = {target.x.dtype, *(p.dtype for p in target.model.parameters())}
    narrowed = torch.is_autocast_enabled(target.x.device.type)
    if kinds != {torch.float32} or narrowed:
        needs = "model and data in float32, without autocast: a whole training in another precision is another training"
        raise UnsupportedHost(technique, target, needs)


class Run:
    """A training in progress; `advance` it, and take `state_dict` whenever you like."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.model = copy.deepcopy(training.model).requires_grad_(True).train()
        self.blocks = list(self.model.children())
        groups = [{"params": list(block.parameters())} for block in self.blocks]
        self.optimiser = torch.optim.SGD(
            groups, training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
        self.parts = [build(self.model, self.optimiser) for build in training.parts]
        self.epochs = training.epochs
        self.epoch = self.step = 0
        self._order = self._batches()

    def _batches(self) -> tuple[Tensor, ...]:
        """The batches of this epoch, which follow from the seed, its number and the parts."""
        chosen = [one for part in self.parts if (one := part.examples()) is not None]
        index = chosen[-1] if chosen else self._examples()
        draws = generator(self.training.seed + 1_000_003 * self.epoch)
        return self._split(index[torch.randperm(len(index), generator=draws)])

    def _split(self, index: Tensor) -> tuple[Tensor, ...]:
        """The shuffled examples (n,) of an epoch, in batches."""
        return index.split(self.training.batch_size)

    def _examples(self) -> Tensor:
        """Indices of the examples of this epoch, where no part chooses."""
        return torch.arange(len(self.training.x))

    def _set_rates(self) -> None:
        now = self.epoch + self.step / len(self._order)
        whole = [float(self.training.epochs)] * len(self.blocks)
        lives = [one for part in self.parts if (one := part.lifetimes()) is not None]
        for group, life in zip(self.optimiser.param_groups, lives[-1] if lives else whole, strict=True):
            group["lr"] = self.training.lr * (1 + math.cos(math.pi * min(now / life, 1))) / 2

    def advance(self, steps: int | None = None) -> None:
        """Train so many steps more, or to the end."""
        y = self.training.y
        with torch.enable_grad():
            while self.epoch < self.epochs and steps != 0:
                index = self._order[self.step].to(y.device)
                self._set_rates()
                outputs = self._learn(index)
                for part in self.parts:
                    part.seen(index, outputs.detach(), y[index])
                self.step += 1
                steps = None if steps is None else steps - 1
                if self.step == len(self._order):
                    self._end_epoch()

    def _inputs(self, index: Tensor) -> Tensor:
        return self.training.x[index].to(next(self.model.parameters()).dtype)

    def _forward(self, x: Tensor) -> Tensor:
        """Outputs on inputs (B, ...) of the training. Raises ValueError for a class that none of them stands for."""
        outputs: Tensor = self.model(x)
        highest = int(self.training.y.max()) if self.epoch == self.step == 0 else 0
        if highest >= outputs.shape[1]:
            raise ValueError(f"y of the training holds class {highest} of {outputs.shape[1]} from 0 on")
        return outputs

    def _learn(self, index: Tensor) -> Tensor:
        """A step of the optimiser on the examples `index` (B,); returns their outputs (B, classes)."""
        outputs = self._forward(self._inputs(index))
        self.optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(outputs, self.training.y[index]).backward()
        self.optimiser.step()
        return outputs

    def _end_epoch(self) -> None:
        for part in self.parts:
            part.epoch_ended(self.epoch)
        self.epoch, self.step = self.epoch + 1, 0
        self._order = self._batches()

    def finish(self) -> nn.Module:
        """The network as it is now, plain and in eval mode."""
        for part in self.parts:
            part.detach()
        self.optimiser.zero_grad(set_to_none=True)
        return self.model.requires_grad_(True).eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run follows from, its data and knobs aside."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "parts": [part.state_dict() for part in self.parts],
                "at": (self.epoch, self.step),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same training. Raises ValueError for one of another model or other parts."""
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        if {name: tensor.shape for name, tensor in state["model"].items()} != shapes:
            raise ValueError("the checkpoint is of another model: names or shapes of its tensors differ")
        if len(state["parts"]) != len(self.parts):
            raise ValueError(f"the checkpoint has {len(state['parts'])} parts, the training {len(self.parts)}")
        self.model.load_state_dict(state["model"])
        for part, one in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(one)
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.step = state["at"]
        self._order = self._batches()

    def save(self, file: Path) -> None:
        """Write the state to a file, wholly or not at all."""
        part = file.with_suffix(f".{os.getpid()}.part")
        torch.save(self.state_dict(), part)
        part.replace(file)


# --------------------------------------------------------------------------------------------------------------------
# What a run costs


@dataclass(frozen=True)
class Layer:
    """A layer's MACs of a forward pass of one example, and what its backward pass needs."""

    block: int
    macs: int
    weight_gradient: bool
    input_gradient: bool

    @property
    def passes(self) -> int:
        """Products of the layer's size in a step: forward, and one for each gradient that is needed."""
        return 1 + self.weight_gradient + self.input_gradient


def layers(training: Training, frozen: Collection[int] = ()) -> dict[str, Layer]:
    """Each convolution and linear layer of the network by name, with the blocks `frozen` frozen."""
    model = copy.deepcopy(training.model).requires_grad_(True).eval()
    for i, block in enumerate(model.children()):
        block.requires_grad_(i not in frozen)
    found: dict[str, Layer] = {}

    def look(name: str, module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        positions = output.numel() // (module.out_channels if isinstance(module, nn.Conv2d) else module.out_features)
        block = [child for child, _ in model.named_children()].index(name.split(".")[0])
        needs = module.weight.requires_grad, inputs[0].requires_grad
        found[name] = Layer(block, positions * module.weight.numel(), *needs)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, i, o, name=name: look(name, m, i, o))
    with uncounted(), torch.enable_grad():
        model(training.x[:1].to(next(model.parameters()).dtype))
    return found


@dataclass(frozen=True)
class Ledger:
    """MACs of a whole run, counted three ways."""

    executed: int
    """As dense kernels do it: masks of elements save nothing, masks of channels and all else do."""
    sparse: int
    """As kernels would that use every zero of the masks."""
    convention: int
    """As the papers count: three products in each layer, one in a frozen one, times its density (yuan-2022-layer)."""

    @property
    def convention_flops(self) -> int:
        """The papers' floating point operations: two for each MAC."""
        return 2 * self.convention


def ledger(
    training: Training, trace: Mapping[str, Any], work: dict[tuple[int, ...], dict[str, Layer]] | None = None
) -> Ledger:
    """The closed form of a run from what its parts decided; a trace without anything is that of a plain run.

    trace: `frozen`, the frozen blocks of each epoch; `examples`, how many each epoch has; `active`, for each sparse
    layer its active groups in each epoch, of so many as `groups` says, and the `pattern` of these.
    work: `layers` by frozen blocks, filled in here, for whoever asks often.
    """
    frozen = trace.get("frozen", [()] * training.epochs)
    examples = trace.get("examples", [len(training.x)] * training.epochs)
    groups, active = trace.get("groups", {}), trace.get("active", {})
    skips = trace.get("pattern") == "channel"
    work = {} if work is None else work
    work |= {still: layers(training, still) for still in {*frozen} - work.keys()}
    executed = sparse = convention = 0
    for epoch, (still, n) in enumerate(zip(frozen, examples, strict=True)):
        for name, layer in work[still].items():
            one = layer.macs // groups[name] * active[name][epoch] if name in groups else layer.macs
            executed += n * layer.passes * (one if skips else layer.macs)
            sparse += n * layer.passes * one
            convention += n * (1 if layer.block in still else 3) * one
    return Ledger(executed, sparse, convention)


def saved(training: Training, trace: Mapping[str, Any]) -> int:
    """MACs that the run which left `trace` did not execute of a plain one."""
    return ledger(training, {}).executed - ledger(training, trace).executed
