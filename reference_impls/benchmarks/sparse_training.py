"""Sparse training: what a small network loses when its training computes less, by masks, frozen layers or fewer data.

One task: a convolutional network trained from scratch on grey pictures, of digits or of Fashion-MNIST. A technique
sends a `Way` for each variant: what it makes of the dense training. Costs are those of the whole training, counted and
timed, and beside them the closed forms (`hosts.training.ledger`), the papers' convention among them. Two controls are
everybody's: a narrower dense network and a shorter dense training of about the same cost by that convention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from reference_impls.accounting.record import Record, Table
from reference_impls.accounting.timing import repeat
from reference_impls.contract import Handle, Redundancy, Technique, generator
from reference_impls.data.splits import TITLES, Labelled, Split, split, standardised
from reference_impls.hosts.training import Ledger, Run, Training, layers, ledger
from reference_impls.layers.conv import conv_norm_act
from reference_impls.redundancy.settling import linear_cka, structural_similarity
from reference_impls.study import BASELINE, Plan, Scenario, Study, measured, table
from reference_impls.study.intervals import over_rounds
from reference_impls.study.training import accuracy, seeded, trained
from reference_impls.techniques.layer_freezing import Freezing, Timeline

ID = "sparse-training"
task = partial(Scenario, benchmark=ID)
SIDE = 8
NARROWER, SHORTER = "narrower dense network", "shorter dense training"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Plan):
    data: Labelled = "digits"
    train: int = 400
    test: int = 360
    epochs: int = 10
    width: int = 8
    """Channels of the first two convolutions."""
    values: tuple[float, ...] = ()
    """Of the knob that is swept."""
    timed: int = 15
    """Rounds in which single steps are timed."""


FULL = TrainingPlan(seeds=(0, 1, 2, 3, 4), repetitions=3)
SMOKE = TrainingPlan(seeds=(0, 1), repetitions=1, train=192, test=100, epochs=4, timed=1)


def network(width: int, classes: int = 10) -> nn.Sequential:
    """Six 3x3 convolutions with batch norm and a linear classifier: (B, 1, H, W) -> (B, classes); seven blocks."""
    a, b, c = width, 2 * width, 4 * width
    shapes = [(1, a, 1), (a, a, 1), (a, b, 2), (b, b, 1), (b, c, 2), (c, c, 1)]
    blocks = [conv_norm_act(i, o, 3, stride, act=nn.ReLU) for i, o, stride in shapes]
    return nn.Sequential(*blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes)))


def pictures(plan: TrainingPlan, seed: int) -> Split:
    """Pictures of 8 x 8 pixels to train on, drawn by the seed, and to test."""
    whole = split(plan.data, plan.train, 0, plan.test, seed=seed)
    return standardised(whole.mapped(lambda x: F.adaptive_avg_pool2d(x, SIDE)))


def dense(plan: TrainingPlan, seed: int, data: Split | None = None) -> Training:
    """The dense training of a seed."""
    part = (data or pictures(plan, seed)).train
    model = seeded(seed, partial(network, plan.width))
    return Training(model, part.x, part.y, epochs=plan.epochs, batch_size=50, seed=seed)


def labels_at_random(training: Training) -> Training:
    """The same pictures with their labels dealt out at random."""
    order = torch.randperm(len(training.y), generator=generator(training.seed))
    return replace(training, y=training.y[order])


@dataclass(frozen=True)
class Way:
    """A variant: what it makes of a dense training, with a seed."""

    series: str
    knobs: Mapping[str, Any]
    apply: Callable[[Training, int], Handle]
    redundancy: float | None = None
    """Share of the units that it leaves out, where it says so beforehand."""


def equal_cost(plan: TrainingPlan, knobs: Mapping[str, Any], share: float) -> tuple[Way, ...]:
    """The two controls whose dense training costs about `share` of the whole one, by the papers' convention."""
    width = max(2, round(plan.width * share**0.5))
    epochs = max(1, round(plan.epochs * share))

    def narrower(training: Training, seed: int) -> Handle:
        return Handle(replace(training, model=seeded(seed, partial(network, width))))

    return (
        Way(NARROWER, knobs, narrower),
        Way(SHORTER, knobs, lambda training, seed: Handle(replace(training, epochs=epochs))),
    )


EQUAL_COST = {
    NARROWER: "All layers are thinner and dense, so that training costs about the same by the papers' convention.",
    SHORTER: "The whole dense network is trained for fewer epochs, at about the same cost by that convention.",
}


def fitted(study: Study[TrainingPlan], way: Way, seed: int, handle: Handle) -> nn.Module:
    """The network that a way trains, from the cache where it was trained before."""
    plan, training = study.plan, handle.target
    shapes = [tuple(p.shape) for p in training.model.parameters()]
    sizes = {"data": plan.data, "train": plan.train, "epochs": training.epochs, "lr": training.lr, "shapes": shapes}
    spec = {**sizes, "way": way.series, "knobs": dict(way.knobs), "seed": seed}
    return trained("sparse-training", spec, lambda: training.model, lambda _: training.fit())


def compare(
    study: Study[TrainingPlan],
    technique: Technique,
    ways: Sequence[Way],
    *,
    knobs: tuple[str, ...],
    controls: Mapping[str, str],
    notes: Sequence[str],
    tables: Callable[[Mapping[int, Split]], Mapping[str, Table]] = lambda data: {},
    null: Callable[[Training], Mapping[str, float]] = lambda training: {},
    finished: bool = False,
) -> Record:
    """Accuracy of every way, seed by seed; the costs are those of the first seed's training.

    finished: whether the technique measures the redundancy of the trained network, not of the training from its start.
    """
    plan, found, first, rows = study.plan, list[Redundancy](), list[Handle](), list[list[Any]]()
    data = {seed: pictures(plan, seed) for seed in plan.seeds}
    every = [Way(BASELINE, {}, lambda training, seed: Handle(training)), *ways]
    study.prepare("training", "training the network: the unit itself", held="shared")
    for n, (seed, part) in enumerate(data.items()):
        training = dense(plan, seed, part)
        for i, way in enumerate(every):
            handle = way.apply(training, seed)
            model = fitted(study, way, seed, handle)
            study.add(way.series, way.knobs, score=accuracy(model, part.test.x, part.test.y))
            if way.series == BASELINE:
                found.append(technique.measure(replace(training, model=model) if finished else training, None))
            if n == 0:
                first.append(handle)
                study.add(way.series, way.knobs, handle.target.fit, redundancy=way.redundancy)
            study.progress("trainings", n * len(every) + i + 1, len(data) * len(every))
    study.measure()
    for way, handle in zip(every, first, strict=True):
        costs, counted = ledger(handle.target, handle.trace), study.cost(way.series, **way.knobs)
        rows.append(_row(way, costs, counted.macs, counted.wall_ms.median))
    whole = rows[0][4]
    about = (
        "What the whole training costs: MACs counted, by the closed form of what dense kernels execute, as kernels "
        "would that use every zero, and floating point operations by the papers' convention with their share of the "
        "dense training; and milliseconds."
    )
    columns = ("variant", "counted", "executed", "with sparse kernels", "convention", "share", "ms")
    every_table = {"ledger": table(about, columns, [[*row[:5], row[4] / whole, row[5]] for row in rows])}
    return study.record(
        data=f"{plan.train:,} pictures of {TITLES[plan.data]}, {SIDE} x {SIDE} pixels, and {plan.test:,} to test",
        model=f"six 3x3 convolutions of {plan.width} to {4 * plan.width} channels, batch norm, a linear classifier",
        unit=f"one training of {plan.epochs} epochs",
        work="training",
        grows={"epochs": plan.epochs},
        knobs=knobs,
        metric="accuracy on the test pictures",
        controls=controls,
        redundancy=measured(found, null(dense(plan, plan.seeds[0], data[plan.seeds[0]]))),
        notes=notes,
        tables={**every_table, **tables(data)},
    )


def settling(training: Training, x: Tensor, sparse: Collection[str]) -> dict[str, Table]:
    """Tables of how like its end a training is after each epoch: structure of the layers `sparse`, and CKA of blocks.

    x: (N, ...) inputs on which blocks are compared.
    """
    run, weights, outputs = Run(training), list[dict[str, Tensor]](), list[list[Tensor]]()
    for epoch in range(training.epochs):
        while run.epoch == epoch:
            run.advance(1)
        weights.append({name: run.model.get_submodule(name).weight.detach().clone() for name in sparse})  # type: ignore[union-attr]
        outputs.append(_blocks(run.model, x))
    structure = [
        [e + 1, *(structural_similarity(one[n], weights[-1][n]) for n in sparse)] for e, one in enumerate(weights)
    ]
    alike = [[e + 1, *map(linear_cka, one, outputs[-1])] for e, one in enumerate(outputs)]
    return {
        "structural similarity": table(
            "Share of the larger half of each layer's weights whose places are active in the final network, by epoch.",
            ("epoch", *sparse),
            structure,
        ),
        "CKA": table(
            "Linear CKA of each block's outputs with those of the final network on test pictures, by epoch.",
            ("epoch", *(f"block {i}" for i in range(len(run.blocks)))),
            alike,
        ),
    }


@torch.no_grad()
def _blocks(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs of each block on x, in rows; batch norms as when the network is used."""
    model = copy.deepcopy(model).eval()
    found = []
    for block in model.children():
        x = block(x)
        found.append(x.flatten(1))
    return found


def backward(training: Training, repetitions: int) -> Table:
    """Table of the backward pass of a step with blocks frozen from the front: MACs, bytes kept, milliseconds."""
    x, y = training.x[: training.batch_size], training.y[: training.batch_size]
    timelines = [(tuple(range(n)),) for n in range(len(list(training.model.children())))]
    models = [Run(training.plus(partial(_frozen, timeline=one))).model for one in timelines]
    kept, calls = list[int](), dict[str, Callable[[], object]]()
    for n, model in enumerate(models):
        total = [0]
        with saved_tensors_hooks(partial(_pack, total), lambda x: x):
            F.cross_entropy(model(x), y)
        kept.append(total[0])
        calls[str(n)] = partial(_step, model, x, y)
    before = [partial(_loss, model, x, y) for model in models]
    taken = repeat({**calls, **{f"forward {n}": one for n, one in enumerate(before)}}, repetitions=repetitions)
    rows = []
    for n, timeline in enumerate(timelines):
        macs = sum((layer.passes - 1) * layer.macs for layer in layers(training, timeline[0]).values()) * len(x)
        ms = [a - b for a, b in zip(taken[str(n)], taken[f"forward {n}"], strict=True)]
        rows.append([n, macs, kept[n], over_rounds(ms)])
    about = "The backward pass of one step with blocks frozen from the front: a step less its forward pass."
    return table(about, ("frozen", "MACs", "bytes kept", "ms"), rows)


def _frozen(model: nn.Module, optimiser: torch.optim.Optimizer, timeline: Timeline) -> Freezing:
    return Freezing(model.children(), optimiser, timeline)


def _pack(total: list[int], x: Tensor) -> Tensor:
    total[0] += x.numel() * x.element_size()
    return x


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        return F.cross_entropy(model(x), y)


def _step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    _loss(model, x, y).backward()
    model.zero_grad(set_to_none=True)


def _row(way: Way, costs: Ledger, counted: int, ms: float) -> list[Any]:
    name = ", ".join([way.series, *(f"{knob} {value}" for knob, value in way.knobs.items())])
    return [name, counted, costs.executed, costs.sparse, costs.convention_flops, ms]
