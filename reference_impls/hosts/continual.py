"""Continual learning as a target: tasks of a few classes each, one after the other, and a buffer of earlier examples.

    handle = DynamicDataRemoval().apply(ContinualTraining(network, x, y, tasks=((0, 1), (2, 3)), epochs=10))
    network = handle.target.fit()

A task is its classes; its examples are those of these classes. Experience replay (ER) adds the loss on a draw from
the buffer to that on the current examples; DER++ keeps the outputs of each example as they were when it was stored, and
adds the squared distance to them on a second draw. The loss on current examples is over the task's own classes, that on
rehearsed ones over all.

References
    wang-2022-sparcl (arXiv 2209.09476): the masked loss, rehearsal from the second task on, and the count of operations
        that leaves the backward passes of rehearsed examples out.
    buzzega-2020-dark (arXiv 2004.07211): DER++, and the reservoir, in which each example presented so far is equally
        likely to be.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract.errors import UnsupportedHost, check_range
from reference_impls.contract.technique import generator
from reference_impls.hosts.training import Gradients, Layer, Ledger, Run, Training, check_single, layers

Rehearsal = Literal["none", "er", "der++"]
DRAWS: Mapping[str, int] = {"none": 0, "er": 1, "der++": 2}
"""Draws from the buffer in a step, each passed through the network."""


@dataclass(frozen=True)
class ContinualTraining(Training):
    """Tasks to be learnt one after the other: SGD at a constant rate, all choices following from the seed.

    Raises: as `Training`; ValueError for a task without examples, and for a class of no task or of two.
    """

    epochs: int = 2
    """Of each task."""
    lr: float = 0.03
    momentum: float = 0.0
    weight_decay: float = 0.0
    tasks: tuple[tuple[int, ...], ...] = ()
    """The classes of each task."""
    rehearsal: Rehearsal = "der++"
    buffer: int = 100
    """Examples that the buffer holds, at most."""
    rehearsed: int = 32
    """Examples in a draw, at most."""
    replay_weight: float = 0.5
    """Of the cross-entropy on rehearsed examples, beta of DER++."""
    distillation_weight: float = 0.1
    """Of the squared distance to stored outputs, alpha of DER++."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rehearsal not in DRAWS:
            raise ValueError(f"rehearsal must be {' or '.join(map(repr, DRAWS))}, got {self.rehearsal!r}")
        check_range("buffer", self.buffer, 1, integer=True)
        check_range("rehearsed", self.rehearsed, 1, integer=True)
        classes = [one for task in self.tasks for one in task]
        if not classes or len({*classes}) < len(classes):
            raise ValueError(f"tasks must hold each class once, as in ((0, 1), (2, 3)), got {self.tasks}")
        if strange := sorted({*self.y.unique().tolist()} - {*classes}):
            raise ValueError(f"y of the training holds class {strange[0]}, which is in no task of {self.tasks}")
        for task in range(len(self.tasks)):
            if not len(self.examples_of(task)):
                raise ValueError(f"task {task} is empty: no example is of the classes {self.tasks[task]}")

    def examples_of(self, task: int) -> Tensor:
        """Indices (n,) of the examples of a task."""
        return torch.isin(self.y.cpu(), torch.tensor(self.tasks[task])).nonzero().flatten()

    def run(self) -> ContinualRun:
        """The training about to begin."""
        return ContinualRun(self)


def check_continual(technique: str, target: object) -> ContinualTraining:
    """The target, if it is a continual training in float32. Raises UnsupportedHost otherwise."""
    if not isinstance(target, ContinualTraining):
        raise UnsupportedHost(technique, target, "a hosts.continual.ContinualTraining: a network with tasks of classes")
    check_single(technique, target)
    return target


class Reservoir:
    """At most `size` of the examples that were shown so far, each of them equally likely, with what was stored beside.

    Raises: ValueError for a size below 1.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        check_range("size of the buffer", size, 1, integer=True)
        self.size, self.shown, self.draws = size, 0, generator(seed)
        self.stored: tuple[Tensor, ...] = ()
        """(size, ...) each: inputs, classes, outputs as they were; the first `len` rows count."""

    def __len__(self) -> int:
        return min(self.shown, self.size)

    def add(self, *rows: Tensor) -> None:
        """Show examples (B, ...), with what is to be kept beside them, in their order (Vitter's algorithm R)."""
        if not self.stored:
            self.stored = tuple(torch.zeros(self.size, *row.shape[1:], dtype=row.dtype).to(row.device) for row in rows)
        n = len(rows[0])
        number = torch.arange(self.shown, self.shown + n, dtype=torch.float64)
        drawn = (torch.rand(n, dtype=torch.float64, generator=self.draws) * (number + 1)).floor()
        places = torch.where(number < self.size, number, drawn).long().tolist()
        for i in range(n):
            if (place := places[i]) < self.size:
                for kept, row in zip(self.stored, rows, strict=True):
                    kept[place] = row[i]
        self.shown += n

    def draw(self, n: int) -> tuple[Tensor, ...]:
        """`n` different examples, or all: rows (n, ...) of each thing stored. Raises ValueError for an empty buffer."""
        if not self.shown:
            raise ValueError("the buffer is empty: add examples before drawing")
        chosen = torch.randperm(len(self), generator=self.draws)[:n]
        return tuple(kept[chosen] for kept in self.stored)

    def state_dict(self) -> dict[str, Any]:
        """What is stored, how many were shown, the generator."""
        return {"stored": tuple(map(Tensor.clone, self.stored)), "shown": self.shown, "draws": self.draws.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for a buffer of another size."""
        if state["stored"] and len(state["stored"][0]) != self.size:
            raise ValueError(f"the checkpoint's buffer holds {len(state['stored'][0])} examples, not {self.size}")
        self.stored = tuple(map(Tensor.clone, state["stored"]))
        self.shown = state["shown"]
        self.draws.set_state(state["draws"])


def own_classes(outputs: Tensor, classes: Sequence[int]) -> Tensor:
    """Outputs (B, classes) with those of other tasks at minus infinity: their cross-entropy gives them no gradient."""
    others = torch.ones(outputs.shape[1], dtype=torch.bool, device=outputs.device)
    others[list(classes)] = False
    return outputs.masked_fill(others, -torch.inf)


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss, of the parameters that it reaches, by name; `.grad` stays as it is."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def whole_gradients(training: ContinualTraining) -> tuple[Gradients, Gradients | None]:
    """Gradients of the network as it is: on all examples of the last task, and on those of earlier ones, if any."""
    model, last = copy.deepcopy(training.model).requires_grad_(True).eval(), training.tasks[-1]
    mine = torch.isin(training.y, torch.tensor(last, device=training.y.device))
    with torch.enable_grad():
        current = gradients(model, F.cross_entropy(own_classes(model(training.x[mine]), last), training.y[mine]))
        if len(training.tasks) == 1:
            return current, None
        return current, gradients(model, F.cross_entropy(model(training.x[~mine]), training.y[~mine]))


class ContinualRun(Run):
    """A continual training in progress; epochs count over all tasks, those that parts are told within one."""

    training: ContinualTraining

    def __init__(self, training: ContinualTraining) -> None:
        self.memory = Reservoir(training.buffer, training.seed)
        super().__init__(training)
        self.epochs = training.epochs * len(training.tasks)
        self._start_task()
        self._order = self._batches()

    @property
    def task(self) -> int:
        """The task that is being learnt, from 0 on; the last one when all are."""
        return min(self.epoch // self.training.epochs, len(self.training.tasks) - 1)

    def _examples(self) -> Tensor:
        return self.training.examples_of(self.task)

    def _split(self, index: Tensor) -> tuple[Tensor, ...]:
        return index.tensor_split(steps_of(len(index), self.training.batch_size))

    def _set_rates(self) -> None:
        """The rate is constant."""

    def _start_task(self) -> None:
        """The optimiser forgets, and the parts hear of it."""
        self.optimiser.state.clear()
        for part in self.parts:
            part.task_started(self.task, self._examples())

    def advance_task(self) -> None:
        """Train to the end of this task."""
        end = self.epoch - self.epoch % self.training.epochs + self.training.epochs
        while self.epoch < min(end, self.epochs):
            self.advance(len(self._order) - self.step)

    def _learn(self, index: Tensor) -> Tensor:
        x, y = self._inputs(index), self.training.y[index]
        outputs = self._forward(x)
        own = own_classes(outputs, self.training.tasks[self.task])
        current = gradients(self.model, F.cross_entropy(own, y))
        loss = self._rehearse()
        rehearsed = None if loss is None else gradients(self.model, loss)
        for name, p in self.model.named_parameters():
            p.grad = _sum(current.get(name), (rehearsed or {}).get(name))
        for part in self.parts:
            part.before_step(current, rehearsed)
        self.optimiser.step()
        self.memory.add(x, y, outputs.detach())
        return outputs

    def _rehearse(self) -> Tensor | None:
        """The loss on earlier examples, from the second task on."""
        said = self.training
        if said.rehearsal == "none" or not self.task:
            return None
        x, y, _ = self.memory.draw(said.rehearsed)
        loss = said.replay_weight * F.cross_entropy(self.model(x), y)
        if said.rehearsal == "der++":
            x, _, outputs = self.memory.draw(said.rehearsed)
            loss = loss + said.distillation_weight * F.mse_loss(self.model(x), outputs)
        return loss

    def _end_epoch(self) -> None:
        for part in self.parts:
            part.epoch_ended(self.epoch % self.training.epochs)
        self.epoch, self.step = self.epoch + 1, 0
        if self.epoch < self.epochs and self.epoch % self.training.epochs == 0:
            self._start_task()
        self._order = self._batches()

    def state_dict(self) -> dict[str, Any]:
        """As of a `Run`, with the buffer."""
        return {**super().state_dict(), "memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same training. Raises ValueError as a `Run`, and for a buffer of another size."""
        if "memory" not in state:
            raise ValueError("the checkpoint is of a training without tasks: it has no buffer")
        self.memory.load_state_dict(state["memory"])
        super().load_state_dict(state)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


# --------------------------------------------------------------------------------------------------------------------
# How well it is remembered


@torch.no_grad()
def task_accuracy(model: torch.nn.Module, x: Tensor, y: Tensor, tasks: Sequence[Sequence[int]]) -> Tensor:
    """(2, tasks) accuracy on the examples x (N, ...) of each task: among all classes, and among the task's own.

    The model is asked in eval mode, and left in the mode it was in. Raises ValueError for a task without examples.
    """
    mode = model.training
    outputs = model.eval()(x)
    model.train(mode)
    found = torch.zeros(2, len(tasks), dtype=torch.float64)
    for i, classes in enumerate(tasks):
        mine = torch.isin(y, torch.tensor(classes, device=y.device))
        if not mine.any():
            raise ValueError(f"task {i} is empty: no example to test is of the classes {tuple(classes)}")
        for j, asked in enumerate((outputs[mine], own_classes(outputs[mine], classes))):
            found[j, i] = (asked.argmax(1) == y[mine]).double().mean()
    return found


def forgetting(accuracies: Tensor) -> float:
    """Mean over all tasks but the last of the best accuracy after an earlier task minus that after the last one.

    accuracies: (tasks learnt, tasks). Chaudhry and others (arXiv 1801.10112), equation 3; 0 for a single task.
    """
    if len(accuracies) < 2:
        return 0.0
    best = accuracies[:-1].max(0).values
    return float((best - accuracies[-1])[:-1].mean())


# --------------------------------------------------------------------------------------------------------------------
# What it costs


def steps_of(examples: int, batch_size: int) -> int:
    """Steps of an epoch of so many examples, in batches of equal size to within one: none is of a single leftover."""
    return -(-examples // batch_size)


def presentations(training: ContinualTraining, examples: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """For each epoch of so many examples, of each step: how many of the task's own and of the buffer's are passed."""
    shown, draws = 0, DRAWS[training.rehearsal]
    for epoch, n in enumerate(examples):
        steps, number = [], steps_of(n, training.batch_size)
        for step in range(number):
            current = n // number + (step < n % number)
            held = min(shown, training.buffer, training.rehearsed)
            steps.append((current, draws * held if epoch >= training.epochs else 0))
            shown += current
        yield steps


def ledger(training: ContinualTraining, trace: Mapping[str, Any]) -> Ledger:
    """The closed form of a run from what its parts decided; a trace without anything is that of a plain run.

    trace: `examples`, how many each epoch has; `active`, for each sparse layer its active groups in each epoch, of so
    many as `groups` says, and the `pattern` of these; `updated`, for each layer the groups whose weights a step with a
    gradient mask updates, of so many as `update groups` says, and the `update pattern`; `refreshed`, every how many
    steps of an epoch, from its first on, this mask is made from the gradients of all active weights; and `judged`, the
    epochs whose last step needs all of these too.

    By the papers' convention a step costs current examples three products of a layer and rehearsed ones their forward
    product, weights outside the mask nothing, and only updated weights a gradient (wang-2022-sparcl#c7, #c8).
    """
    tasks = range(len(training.tasks))
    whole = [len(training.examples_of(task)) for task in tasks for _ in range(training.epochs)]
    work = layers(training)
    executed = sparse = convention = 0
    for epoch, steps in enumerate(presentations(training, trace.get("examples", whole))):
        costs = [_costs(name, layer, trace, epoch) for name, layer in work.items()]
        for step, (n, r) in enumerate(steps):
            last = step == len(steps) - 1 and epoch in trace.get("judged", ())
            full = last or step % trace.get("refreshed", 1) == 0
            for one in costs:
                executed += (n + r) * (one.executed if full or not one.skips else one.narrow)
                sparse += (n + r) * (one.sparse if full else one.sparse_narrow)
                convention += n * (2 * one.active + one.updated) + r * one.active
    return Ledger(executed, sparse, convention)


@dataclass(frozen=True)
class _Costs:
    """MACs of a layer for one example in an epoch."""

    active: int
    updated: int
    executed: int
    narrow: int
    sparse: int
    sparse_narrow: int
    skips: bool


def _costs(name: str, layer: Layer, trace: Mapping[str, Any], epoch: int) -> _Costs:
    groups, updates = trace.get("groups", {}), trace.get("update groups", {})
    active = layer.macs // groups[name] * trace["active"][name][epoch] if name in groups else layer.macs
    updated = layer.macs // updates[name] * trace["updated"][name] if name in updates else active
    runs = active if trace.get("pattern") == "channel" else layer.macs
    back = 1 + layer.input_gradient
    return _Costs(
        active=active,
        updated=updated,
        executed=runs * layer.passes,
        narrow=runs * back + updated * layer.weight_gradient,
        sparse=active * layer.passes,
        sparse_narrow=active * back + updated * layer.weight_gradient,
        skips=trace.get("update pattern") == "channel",
    )


def saved(training: ContinualTraining, trace: Mapping[str, Any]) -> int:
    """MACs that the run which left `trace` did not execute of a plain one."""
    return ledger(training, {}).executed - ledger(training, trace).executed
