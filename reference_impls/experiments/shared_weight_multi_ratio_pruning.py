"""Experiments on shared-weight multi-ratio pruning, in the benchmark of several ratios.

- `digits-channels`: channels of a small network on digits, which run as slices on dense kernels.
- `digits-elements`: single weights of the same network at high ratios, which save nothing there.
- `fashion-channels`: channels, on Fashion-MNIST.
"""

from __future__ import annotations

from dataclasses import replace

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import multi_ratio as benchmark
from reference_impls.benchmarks.multi_ratio import RatioPlan
from reference_impls.study import Study
from reference_impls.techniques.shared_weight_multi_ratio_pruning import MultiRatioPruning

PRUNING = MultiRatioPruning()
HIGH = (0.0, 0.75, 0.95)


def run_channels(study: Study[RatioPlan]) -> Record:
    """Ratios of channels, each physically sliced."""
    notes = ("A ratio is a share of the channels of every feature map; weights and MACs fall with its square.",)
    return benchmark.curves(study, PRUNING, notes)


def run_elements(study: Study[RatioPlan]) -> Record:
    """Ratios of single weights."""
    return benchmark.curves(study, PRUNING, ("Masks of elements save no MACs on dense kernels.",))


SCENARIOS = (
    benchmark.task(
        "digits-channels", "A small network on digits at four ratios of channels", run_channels, *benchmark.DIGITS
    ),
    benchmark.task(
        "digits-elements",
        "A small network on digits at three ratios of single weights",
        run_elements,
        full=replace(benchmark.FULL, granularity="element", ratios=HIGH, train=500),
        smoke=replace(benchmark.SMOKE, granularity="element", ratios=(0.0, 0.9)),
    ),
    benchmark.task(
        "fashion-channels",
        "A small network on Fashion-MNIST at four ratios of channels",
        run_channels,
        full=replace(
            benchmark.FULL, data="fashion-mnist", needs=("fashion-mnist",), train=1000, test=2000, epochs=5
        ),
        smoke=benchmark.SMOKE,
    ),
)  # fmt: skip
