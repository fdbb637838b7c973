"""Experiments on data sieving, in the benchmark of sparse training.

- `sieve-digits`: a dense network trained on a sieved part of the digits, at random and without return as controls.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import sparse_training as benchmark
from reference_impls.benchmarks.sparse_training import TrainingPlan, Way
from reference_impls.contract import Handle
from reference_impls.hosts.training import Training
from reference_impls.study import TECHNIQUE, Study
from reference_impls.techniques.data_sieving import DataSieving

SIEVE = DataSieving()
RANDOM, STATIC, UPDATES = "random exchange", "no return", "as many steps"


def sieved(training: Training, seed: int, **knobs: Any) -> Handle:
    """The technique, its split following from the seed."""
    return SIEVE.apply(training, seed=seed, **knobs)


def longer(training: Training, seed: int, removed: float) -> Handle:
    """The technique for so many epochs that it takes as many steps as the whole training."""
    return SIEVE.apply(replace(training, epochs=round(training.epochs / (1 - removed))), removed=removed, seed=seed)


def run_sieving(study: Study[TrainingPlan]) -> Record:
    """Accuracy against the share left out, with the controls."""
    plan, ways = study.plan, list[Way]()
    for removed in plan.values:
        knobs = {"removed": removed}
        ways.append(Way(TECHNIQUE, knobs, partial(sieved, **knobs), removed))
        ways.append(Way(RANDOM, knobs, partial(sieved, **knobs, easiness="random")))
        ways.append(Way(STATIC, knobs, partial(sieved, **knobs, reentry="none")))
        ways.append(Way(UPDATES, knobs, partial(longer, **knobs)))
        ways += benchmark.equal_cost(plan, knobs, 1 - removed)
    return benchmark.compare(
        study,
        SIEVE,
        ways,
        knobs=("removed",),
        controls={
            RANDOM: "As many examples change sides, drawn at random.",
            STATIC: "The examples that were removed first never return.",
            UPDATES: "Sieved too, for as many steps as the whole training: nothing is saved.",
            **benchmark.EQUAL_COST,
        },
        null=lambda training: {"labels at random": SIEVE.measure(benchmark.labels_at_random(training)).value},
        notes=("Every variant but two trains for the same number of epochs, so fewer examples mean fewer steps.",),
    )


SCENARIOS = (
    benchmark.task(
        "sieve-digits",
        "A small network trained on a sieved part of the digits",
        run_sieving,
        full=replace(benchmark.FULL, values=(0.2, 0.4)),
        smoke=replace(benchmark.SMOKE, values=(0.2,)),
    ),
)
