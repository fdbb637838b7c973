"""Continual learning: what a small network forgets over five tasks when learning them computes less.

One task: ten classes of grey pictures, two at a time, learnt by a network with a small buffer of earlier examples (ER
or DER++). A technique sends a `Way` for each variant: what it makes of the dense learner. The score is the accuracy on
all tasks after the last one without being told the task (class-incremental); that with the task told (task-incremental)
and what was forgotten stand in a table. Costs are those of the whole training, counted and timed, and beside them the
closed forms (`hosts.continual.ledger`). Two controls are everybody's: a narrower dense network and a shorter dense
training of about the same cost by the paper's convention.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks.sparse_training import NARROWER, SHORTER, SIDE, Way
from reference_impls.contract import Handle, Redundancy, Technique, generator
from reference_impls.data.splits import TITLES, Labelled, Part, Split, split, standardised
from reference_impls.hosts.continual import ContinualTraining, Rehearsal, forgetting, ledger, task_accuracy
from reference_impls.study import BASELINE, Plan, Scenario, Study, cached, measured, over_seeds, table
from reference_impls.study.training import seeded

ID = "continual-learning"
task = partial(Scenario, benchmark=ID)
TASKS = tuple((one, one + 1) for one in range(0, 10, 2))
METHODS = {"er": "ER", "der++": "DER++"}


@dataclass(frozen=True, kw_only=True)
class ContinualPlan(Plan):
    data: Labelled = "mnist-5k"
    train: int | None = 4000
    test: int | None = 1000
    epochs: int = 6
    """Of each task."""
    interval: int = 2
    """Epochs between two updates of masks or data."""
    batch: int = 50
    """Examples in a step, and as many in each draw from the buffer."""
    width: int = 256
    """Units of each hidden layer."""
    rehearsal: Rehearsal = "der++"
    buffer: int = 100
    values: tuple[float, ...] = ()
    """Of the knob that is swept."""


FULL = ContinualPlan(seeds=(0, 1, 2, 3, 4), repetitions=2, needs=("mnist-5k",))
SMOKE = ContinualPlan(
    seeds=(0, 1), repetitions=1, data="digits", train=200, test=100, epochs=3, interval=1, batch=20, width=32, buffer=40
)


def network(width: int, classes: int = 10) -> nn.Sequential:
    """Three hidden layers with batch norm and a linear classifier: (B, 1, H, W) -> (B, classes); four blocks."""
    sizes = [(SIDE**2, width), (width, width), (width, width)]
    hidden = [nn.Sequential(nn.Flatten(), nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in sizes]
    return nn.Sequential(*hidden, nn.Sequential(nn.Linear(width, classes)))


def pictures(plan: ContinualPlan, seed: int) -> Split:
    """Pictures of 8 x 8 pixels: to train on, in each class as many, drawn by the seed, and to test."""
    whole = split(plan.data, None, 0, plan.test)
    chosen = whole.train.rows(balanced(whole.train.y, plan.train, seed))
    small = Split(chosen, chosen, whole.test).mapped(lambda x: F.adaptive_avg_pool2d(x, SIDE))
    return standardised(small)


def balanced(y: Tensor, n: int | None, seed: int) -> Tensor:
    """Indices of `n` examples, as many of each of ten classes y (N,); all for None. Raises ValueError for too few."""
    if n is None:
        return torch.arange(len(y))
    found = []
    for one in range(10):
        mine = (y == one).nonzero().flatten()
        if len(mine) < n // 10:
            raise ValueError(f"class {one} has {len(mine)} examples, not {n // 10}")
        found.append(mine[torch.randperm(len(mine), generator=generator(seed))[: n // 10]])
    return torch.cat(found)


def dense(plan: ContinualPlan, seed: int, data: Split | None = None) -> ContinualTraining:
    """The dense learner of a seed."""
    part = (data or pictures(plan, seed)).train
    return ContinualTraining(
        seeded(seed, partial(network, plan.width)), part.x, part.y, tasks=TASKS, epochs=plan.epochs,
        batch_size=plan.batch, lr=0.1, rehearsal=plan.rehearsal, buffer=plan.buffer, rehearsed=plan.batch, seed=seed,
    )  # fmt: skip


def labels_at_random(training: ContinualTraining) -> ContinualTraining:
    """The same pictures with their labels dealt out at random."""
    order = torch.randperm(len(training.y), generator=generator(training.seed))
    return replace(training, y=training.y[order])


def equal_cost(
    plan: ContinualPlan, knobs: Mapping[str, Any], apply: Callable[[ContinualTraining, int], Handle]
) -> tuple[Way, ...]:
    """The two controls whose dense training costs about what the variant `apply` does, by the paper's convention."""
    training = dense(plan, plan.seeds[0])
    handle = apply(training, plan.seeds[0])
    aim, whole = ledger(handle.target, handle.trace).convention, ledger(training, {}).convention

    def cost(width: int) -> int:
        return ledger(replace(training, model=network(width)), {}).convention

    above = 2 + bisect_left(range(2, plan.width), aim, key=cost)
    width = min(above, max(above - 1, 2), key=lambda width: abs(cost(width) - aim))
    epochs = max(1, round(plan.epochs * aim / whole))
    return (
        Way(NARROWER, knobs, partial(_narrower, width)),
        Way(SHORTER, knobs, lambda training, seed: Handle(replace(training, epochs=epochs))),
    )


def _narrower(width: int, training: Any, seed: int) -> Handle:
    return Handle(replace(training, model=seeded(seed, partial(network, width))))


EQUAL_COST = {
    NARROWER: "All layers are thinner and dense, so that training costs about the same by the paper's convention.",
    SHORTER: "The whole dense network learns each task for fewer epochs, at about the same cost by that convention.",
}


def learnt(training: ContinualTraining, test: Part) -> dict[str, Tensor]:
    """Accuracies (tasks learnt, 2, tasks) after each task, as of `task_accuracy`, and the last network's state."""
    run, found = training.run(), list[Tensor]()
    for _ in training.tasks:
        run.advance_task()
        found.append(task_accuracy(run.model, test.x, test.y, training.tasks))
    return {"accuracies": torch.stack(found), **run.finish().state_dict()}


def fitted(study: Study[ContinualPlan], way: Way, seed: int, handle: Handle, test: Part) -> dict[str, Tensor]:
    """What a way learns, from the cache where it was learnt before."""
    plan, training = study.plan, handle.target
    dense_one = way.series in (BASELINE, *EQUAL_COST)
    shapes = [tuple(p.shape) for p in training.model.parameters()]
    said = {"data": plan.data, "train": plan.train, "test": plan.test, "epochs": training.epochs, "lr": training.lr}
    memory = {"rehearsal": training.rehearsal, "buffer": training.buffer, "batch": training.batch_size}
    spec = {
        **said,
        **memory,
        "shapes": shapes,
        "technique": None if dense_one else study.owner,
        "way": BASELINE if dense_one else way.series,
        "knobs": {} if dense_one else dict(way.knobs),
        "seed": seed,
    }
    return dict(cached(ID, spec, lambda: learnt(training, test), folder="checkpoints"))


def compare(
    study: Study[ContinualPlan],
    technique: Technique,
    ways: Sequence[Way],
    *,
    knobs: tuple[str, ...],
    controls: Mapping[str, str],
    notes: Sequence[str],
    tables: Callable[[], Mapping[str, Table]] = dict,
    null: Callable[[ContinualTraining], Mapping[str, float]] = lambda training: {},
    finished: bool = False,
) -> Record:
    """Class-incremental accuracy of every way, seed by seed; the costs are those of the first seed's training.

    finished: whether the technique measures the redundancy of the trained network, not of the training from its start.
    """
    plan, found, first = study.plan, list[Redundancy](), list[Handle]()
    every = [Way(BASELINE, {}, lambda training, seed: Handle(training)), *ways]
    remembered: list[list[Tensor]] = [[] for _ in every]
    study.prepare("training", "training the network: the unit itself", held="shared")
    data = {seed: pictures(plan, seed) for seed in plan.seeds}
    for n, (seed, part) in enumerate(data.items()):
        training = dense(plan, seed, part)
        for i, way in enumerate(every):
            handle = way.apply(training, seed)
            result = fitted(study, way, seed, handle, part.test)
            remembered[i].append(result.pop("accuracies"))
            study.add(way.series, way.knobs, score=float(remembered[i][-1][-1, 0].mean()))
            if way.series == BASELINE:
                model = seeded(seed, partial(network, plan.width))
                model.load_state_dict(result)
                found.append(technique.measure(replace(training, model=model) if finished else training, None))
            if n == 0:
                first.append(handle)
                study.add(way.series, way.knobs, handle.target.fit, redundancy=way.redundancy)
            study.progress("trainings", n * len(every) + i + 1, len(data) * len(every))
    study.measure()
    costs = [ledger(handle.target, handle.trace) for handle in first]
    rows = []
    for way, one in zip(every, costs, strict=True):
        counted, share = study.cost(way.series, **way.knobs), one.convention / costs[0].convention
        executed = [counted.macs, one.executed, one.sparse, one.convention_flops, share, counted.wall_ms.median]
        rows.append([_name(way), *executed])
    about = (
        "What the whole training costs: MACs counted, by the closed form of what dense kernels execute, as kernels "
        "would that use every zero, rehearsal's backward passes included, and floating point operations by the paper's "
        "convention, which leaves these out, with their share of the dense training; and milliseconds."
    )
    columns = ("variant", "counted", "executed", "with sparse kernels", "convention", "share", "ms")
    every_table = {"ledger": table(about, columns, rows), "remembering": _remembering(every, remembered)}
    return study.record(
        data=f"{plan.train:,} pictures of {TITLES[plan.data]}, {SIDE} x {SIDE} pixels, in five tasks of two classes",
        model=(
            f"three hidden layers of {plan.width} units, batch norm, a linear classifier; {METHODS[plan.rehearsal]} "
            f"with a buffer of {plan.buffer}"
        ),
        unit=f"one training of five tasks, {plan.epochs} epochs each",
        work="training",
        grows={"epochs": plan.epochs},
        knobs=knobs,
        metric="class-incremental accuracy after the last task",
        controls=controls,
        redundancy=measured(found, null(dense(plan, plan.seeds[0], data[plan.seeds[0]]))),
        notes=notes,
        tables={**every_table, **tables()},
    )


def _name(way: Way) -> str:
    return ", ".join([way.series, *(f"{knob} {value}" for knob, value in way.knobs.items())])


def _remembering(ways: Sequence[Way], remembered: Sequence[Sequence[Tensor]]) -> Table:
    about = (
        "After the last task, means over seeds: accuracy among all classes (class-incremental) and among those of the "
        "task (task-incremental), and what was forgotten: the mean over earlier tasks of the best accuracy, among all "
        "classes, after any task before the last minus that after the last."
    )
    rows = []
    for way, found in zip(ways, remembered, strict=True):
        scores = [[float(one[-1, 0].mean()), float(one[-1, 1].mean()), forgetting(one[:, 0])] for one in found]
        rows.append([_name(way), *(over_seeds(column) for column in zip(*scores, strict=True))])
    return table(about, ("variant", "class-incremental", "task-incremental", "forgetting"), rows)
