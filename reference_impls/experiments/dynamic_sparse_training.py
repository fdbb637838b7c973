"""Experiments on dynamic sparse training, in the benchmark of sparse training.

- `sparse-digits`: four ways to move masks of elements, and masks that never move, at high sparsity.
- `wide-digits`: masks of input channels in a wide network, where they save time.
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
from reference_impls.techniques.dynamic_sparse_training import DynamicSparseTraining

SPARSE = DynamicSparseTraining()
STATIC = "static masks"
METHODS = ("set", "rigl", "em", "em&s")
KNOBS = ("sparsity", "method", "pattern")
CONTROLS = {STATIC: "The masks that were drawn first never move.", **benchmark.EQUAL_COST}


def applied(training: Training, seed: int, **knobs: Any) -> Handle:
    """Sparse training whose masks follow from the seed."""
    return SPARSE.apply(training, seed=seed, **knobs)


def way(sparsity: float, method: str, pattern: str) -> Way:
    """The technique with these knobs."""
    knobs = {"sparsity": sparsity, "method": method, "pattern": pattern}
    return Way(TECHNIQUE, knobs, partial(applied, **knobs), sparsity)


def controls(plan: TrainingPlan, of: Way) -> list[Way]:
    """Masks that never move, and dense trainings of equal cost, beside a variant."""
    still = Way(STATIC, of.knobs, partial(applied, **{**of.knobs, "method": "static"}))
    return [still, *benchmark.equal_cost(plan, of.knobs, 1 - of.knobs["sparsity"])]


def initial(training: Training) -> dict[str, float]:
    """Hoyer's sparsity of the weights before training, of the same layers."""
    return {"before training": SPARSE.measure(training).value}


def run_elements(study: Study[TrainingPlan]) -> Record:
    """Accuracy against sparsity and method, with masks of elements; and one point with masks of channels."""
    plan, ways = study.plan, list[Way]()
    for sparsity in plan.values:
        tried = [way(sparsity, method, "element") for method in METHODS]
        ways += [*tried, *controls(plan, tried[-1])]
    channels = way(0.5, "set", "channel")
    return benchmark.compare(
        study,
        SPARSE,
        [*ways, channels, *controls(plan, channels)],
        knobs=KNOBS,
        controls=CONTROLS,
        null=initial,
        finished=True,
        notes=(
            "Masks of elements save no MACs on dense kernels; what they would save stands in the table.",
            "First convolution and classifier are dense; masks move after every epoch but the last.",
        ),
    )


def run_channels(study: Study[TrainingPlan]) -> Record:
    """Time and accuracy of a wide network with masks of input channels, beside masks of elements."""
    plan, ways = study.plan, [way(0.9, "set", "element")]
    for sparsity in plan.values:
        one = way(sparsity, "set", "channel")
        ways += [one, *controls(plan, one)]
    return benchmark.compare(
        study,
        SPARSE,
        ways,
        knobs=KNOBS,
        controls=CONTROLS,
        null=initial,
        finished=True,
        notes=("Each layer multiplies its active input channels only, forward and backward.",),
    )


SCENARIOS = (
    benchmark.task(
        "sparse-digits",
        "A small network trained sparse from scratch on digits",
        run_elements,
        full=replace(benchmark.FULL, values=(0.9, 0.98)),
        smoke=replace(benchmark.SMOKE, values=(0.9,)),
    ),
    benchmark.task(
        "wide-digits",
        "A wide network trained on some of its input channels",
        run_channels,
        full=replace(benchmark.FULL, width=48, train=300, epochs=4, seeds=(0, 1, 2), values=(0.5, 0.75)),
        smoke=replace(benchmark.SMOKE, width=16, values=(0.5,)),
    ),
)
