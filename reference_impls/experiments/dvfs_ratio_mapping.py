"""Experiments on the mapping of frequencies to pruning ratios, in the benchmark of several ratios.

- `fashion-levels`: latency and accuracy over emulated levels of frequency, on Fashion-MNIST.
"""

from __future__ import annotations

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import multi_ratio as benchmark
from reference_impls.benchmarks.multi_ratio import RatioPlan
from reference_impls.study import Study
from reference_impls.techniques.dvfs_ratio_mapping import RatioMapping

MAPPING = RatioMapping()


def run_levels(study: Study[RatioPlan]) -> Record:
    """The mapping by measured latency, by MACs, and none."""
    return benchmark.levels(study, MAPPING)


SCENARIOS = (
    benchmark.task(
        "fashion-levels", "Latency of a network on Fashion-MNIST over levels of frequency", run_levels, *benchmark.WIDE
    ),
)
