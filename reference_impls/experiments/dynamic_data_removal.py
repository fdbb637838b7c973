"""Experiments on dynamic data removal, in the benchmark of continual learning.

- `split-digits`: fewer and fewer examples of each task under DER++, those forgotten least or drawn at random.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import continual_learning as benchmark
from reference_impls.benchmarks.continual_learning import ContinualPlan
from reference_impls.benchmarks.sparse_training import Way
from reference_impls.contract import Handle
from reference_impls.study import TECHNIQUE, Study
from reference_impls.techniques.dynamic_data_removal import DynamicDataRemoval

REMOVAL = DynamicDataRemoval()
RANDOM = "random removal"


def removing(training: Any, seed: int, **knobs: Any) -> Handle:
    """The technique, its draws following from the seed."""
    return REMOVAL.apply(training, **{"removals": 2, "seed": seed, **knobs})


def run_removal(study: Study[ContinualPlan]) -> Record:
    """Accuracy against the share removed, with the controls."""
    plan, ways = study.plan, list[Way]()
    for removed in plan.values:
        knobs = {"removed": removed}
        one = partial(removing, **knobs, interval=plan.interval)
        ways.append(Way(TECHNIQUE, knobs, one, removed))
        ways.append(Way(RANDOM, knobs, partial(one, easiness="random")))
        ways += benchmark.equal_cost(plan, knobs, one)
    return benchmark.compare(
        study,
        REMOVAL,
        ways,
        knobs=("removed",),
        controls={RANDOM: "As many examples go out at the same epochs, drawn at random.", **benchmark.EQUAL_COST},
        null=lambda training: {"labels at random": REMOVAL.measure(benchmark.labels_at_random(training)).value},
        notes=("Two removals in each task, after two epochs each, so that an example is forgotten once at most.",),
    )


SCENARIOS = (
    benchmark.task(
        "split-digits",
        "A small network that learns digits two classes at a time on fewer of them",
        run_removal,
        full=replace(benchmark.FULL, values=(0.3, 0.6)),
        smoke=replace(benchmark.SMOKE, values=(0.3,)),
    ),
)
