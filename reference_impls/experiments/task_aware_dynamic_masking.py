"""Experiments on task-aware dynamic masking, in the benchmark of continual learning.

- `split-digits`: masks of elements and of input channels under DER++, by both gradients, by magnitude, and unmoved.
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
from reference_impls.techniques.task_aware_dynamic_masking import TaskAwareDynamicMasking

MASKING = TaskAwareDynamicMasking()
STATIC, MAGNITUDE = "static masks", "by magnitude"
MOVES = {"element": {"inter": 0.02, "intra": 0.02}, "channel": {"inter": 0.1, "intra": 0.1}}


def masked(training: Any, seed: int, **knobs: Any) -> Handle:
    """The technique, its draws following from the seed."""
    return MASKING.apply(training, **{**MOVES[knobs["pattern"]], "seed": seed, **knobs})


def run_masking(study: Study[ContinualPlan]) -> Record:
    """Accuracy against sparsity, with the controls."""
    plan, ways = study.plan, list[Way]()
    for sparsity, pattern in [*((value, "element") for value in plan.values), (0.5, "channel")]:
        knobs = {"sparsity": sparsity, "pattern": pattern}
        one = partial(masked, **knobs, interval=plan.interval)
        ways.append(Way(TECHNIQUE, knobs, one, sparsity))
        ways.append(Way(STATIC, knobs, partial(one, inter=0.0, intra=0.0)))
        if pattern == "element":
            ways.append(Way(MAGNITUDE, knobs, partial(one, alpha=0.0, beta=0.0)))
            ways += benchmark.equal_cost(plan, knobs, one)
    return benchmark.compare(
        study,
        MASKING,
        ways,
        knobs=("sparsity", "pattern"),
        controls={
            STATIC: "The largest weights as they were drawn stay active; masks never move.",
            MAGNITUDE: "Masks move as often and as far, and weights are kept by magnitude alone (both factors zero).",
            **benchmark.EQUAL_COST,
        },
        null=before_training,
        finished=True,
        notes=(
            "Masks of elements save no MACs on dense kernels; what they would save stands in the table.",
            "First layer and classifier are dense.",
        ),
    )


def before_training(training: ContinualTraining) -> dict[str, float]:
    """The measure of the network before it has learnt anything."""
    return {"before training": MASKING.measure(training).value}


SCENARIOS = (
    benchmark.task(
        "split-digits",
        "A small network that learns digits two classes at a time under masks",
        run_masking,
        full=replace(benchmark.FULL, values=(0.75, 0.9)),
        smoke=replace(benchmark.SMOKE, values=(0.75,)),
    ),
)
