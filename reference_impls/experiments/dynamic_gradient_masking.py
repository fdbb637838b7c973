"""Experiments on dynamic gradient masking, in the benchmark of continual learning.

- `split-digits`: a part of the updates under DER++, of single weights and of input channels, and a random part.
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
from reference_impls.hosts.continual import ContinualTraining
from reference_impls.study import TECHNIQUE, Study
from reference_impls.techniques.dynamic_gradient_masking import DynamicGradientMasking

UPDATING = DynamicGradientMasking()
RANDOM = "random masks"


def updating(training: Any, seed: int, **knobs: Any) -> Handle:
    """The technique, its draws following from the seed."""
    return UPDATING.apply(training, **{"interval": 5, "seed": seed, **knobs})


def run_updating(study: Study[ContinualPlan]) -> Record:
    """Accuracy against the share of weights that a step leaves as they are, with the controls."""
    plan, ways = study.plan, list[Way]()
    for sparsity, pattern in [*((value, "element") for value in plan.values), (0.75, "channel")]:
        knobs = {"sparsity": sparsity, "pattern": pattern}
        one = partial(updating, **knobs)
        ways.append(Way(TECHNIQUE, knobs, one, sparsity))
        ways.append(Way(RANDOM, knobs, partial(updating, **knobs, choice="random")))
        if pattern == "element":
            ways += benchmark.equal_cost(plan, knobs, one)
    return benchmark.compare(
        study,
        UPDATING,
        ways,
        knobs=("sparsity", "pattern"),
        controls={RANDOM: "As many weights are updated as often, drawn at random.", **benchmark.EQUAL_COST},
        null=before_training,
        finished=True,
        notes=(
            "Masks of elements save no MACs on dense kernels; what they would save stands in the table.",
            "Masks are made anew every five steps, each epoch having sixteen.",
        ),
    )


def before_training(training: ContinualTraining) -> dict[str, float]:
    """The measure of the network before it has learnt anything."""
    return {"before training": UPDATING.measure(training).value}


SCENARIOS = (
    benchmark.task(
        "split-digits",
        "A small network that learns digits two classes at a time by a part of its updates",
        run_updating,
        full=replace(benchmark.FULL, values=(0.8, 0.95)),
        smoke=replace(benchmark.SMOKE, values=(0.8,)),
    ),
)
