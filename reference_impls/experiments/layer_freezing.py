"""Experiments on layer freezing, in the benchmark of sparse training.

- `freeze-digits`: a dense network whose blocks freeze, by share saved and by scheme, front first or in another order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import sparse_training as benchmark
from reference_impls.benchmarks.sparse_training import TrainingPlan, Way
from reference_impls.contract import Handle, generator
from reference_impls.hosts.training import Training
from reference_impls.study import TECHNIQUE, Study
from reference_impls.techniques.layer_freezing import SCHEMES, Freezing, LayerFreezing, solve

FREEZE = LayerFreezing()
BACKWARDS, SHUFFLED = "back first", "random order"


def reordered(training: Training, seed: int, saving: float, scheme: str, order: str) -> Handle:
    """The timeline of these knobs with other blocks in the place of the front ones; the classifier stays active."""
    timeline = solve(training, saving, scheme)  # type: ignore[arg-type]
    blocks = len(list(training.model.children())) - 1
    new = range(blocks)[::-1] if order == BACKWARDS else torch.randperm(blocks, generator=generator(seed)).tolist()
    other = tuple(tuple(new[i] for i in still) for still in timeline)
    part = lambda model, optimiser: Freezing(model.children(), optimiser, other)  # noqa: E731
    return Handle(training.plus(part), trace=lambda: {"frozen": list(other)})


def frozen(training: Training, seed: int, **knobs: Any) -> Handle:
    """The technique, whose schedule draws nothing."""
    return FREEZE.apply(training, **knobs)


def run_freezing(study: Study[TrainingPlan]) -> Record:
    """Accuracy against the share saved, with the controls, and the four schemes at one share."""
    plan, ways = study.plan, list[Way]()
    for saving in plan.values:
        knobs = {"saving": saving, "scheme": SCHEMES[0]}
        ways.append(Way(TECHNIQUE, knobs, partial(frozen, **knobs)))
        ways += [Way(order, knobs, partial(reordered, **knobs, order=order)) for order in (BACKWARDS, SHUFFLED)]
        ways += benchmark.equal_cost(plan, knobs, 1 - saving)
    for scheme in SCHEMES[1:]:
        knobs = {"saving": plan.values[0], "scheme": scheme}
        ways.append(Way(TECHNIQUE, knobs, partial(frozen, **knobs)))
    return benchmark.compare(
        study,
        FREEZE,
        ways,
        knobs=("saving", "scheme"),
        controls={
            BACKWARDS: "As many blocks freeze at the same times, from the last one before the classifier.",
            SHUFFLED: "As many blocks freeze at the same times, in an order drawn at random.",
            **benchmark.EQUAL_COST,
        },
        null=lambda training: {"labels at random": FREEZE.measure(benchmark.labels_at_random(training)).value},
        notes=(
            "The saving is a share by the papers' convention; the schedule that saves least above it is taken.",
            "A frozen block after an active one saves its weight gradient only.",
            "Each block's cosine learning rate falls to zero over the epochs in which it is active.",
        ),
        tables=lambda data: {
            "backward": benchmark.backward(benchmark.dense(plan, plan.seeds[0], data[plan.seeds[0]]), plan.timed)
        },
    )


SCENARIOS = (
    benchmark.task(
        "freeze-digits",
        "A small network on digits whose blocks freeze one after the other",
        run_freezing,
        full=replace(benchmark.FULL, values=(0.15, 0.25)),
        smoke=replace(benchmark.SMOKE, values=(0.05,)),
    ),
)
