"""Experiments on All-in-One, in the benchmark of several ratios.

- `all-in-one-fashion`: one network for all levels of frequency, beside one that never switches and a network for each.
"""

from __future__ import annotations

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import multi_ratio as benchmark
from reference_impls.benchmarks.multi_ratio import RatioPlan
from reference_impls.study import Study
from reference_impls.techniques.all_in_one_pruning import AllInOne

ALL = AllInOne()


def run_system(study: Study[RatioPlan]) -> Record:
    """Latency, accuracy and storage of one network for all levels."""
    return benchmark.levels(study, ALL, apart=True)


SCENARIOS = (
    benchmark.task(
        "all-in-one-fashion", "One network on Fashion-MNIST for all levels of frequency", run_system, *benchmark.WIDE
    ),
)
