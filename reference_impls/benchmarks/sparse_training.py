"""Sparse training: what a small network loses when its training computes less, by masks, frozen layers or fewer data.

One task: a convolutional network trained from scratch on grey pictures, of digits or of Fashion-MNIST. A technique
sends a `Way` for each variant: what it makes of the dense training. Costs are those of the whole training, counted and
timed, and beside them the closed forms (`hosts.training.ledger`), the papers' convention among them. Two controls are
everybody's: a narrower dense network and a shorter dense training of about the same cost by that convention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reference_impls.accounting.record import Record, Table
from reference_impls.contract import Handle, Redundancy, Technique, generator
from reference_impls.data.splits import TITLES, Labelled, Split, split, standardised
from reference_impls.hosts.training import Ledger, Training, ledger
from reference_impls.layers.conv import conv_norm_act
from reference_impls.study import BASELINE, Plan, Scenario, Study, measured, table
from reference_impls.study.training import accuracy, seeded, trained

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


FULL = TrainingPlan(seeds=(0, 1, 2, 3, 4), repetitions=3)
SMOKE = TrainingPlan(seeds=(0, 1), repetitions=1, train=192, test=100, epochs=4)


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


def _row(way: Way, costs: Ledger, counted: int, ms: float) -> list[Any]:
    name = ", ".join([way.series, *(f"{knob} {value}" for knob, value in way.knobs.items())])
    return [name, counted, costs.executed, costs.sparse, costs.convention_flops, ms]
