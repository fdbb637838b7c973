"""Latency tables: the latency of a network is predicted as the sum of what its parts take, each measured once.

A search looks at thousands of networks made of a few hundred different parts (a block of a kind, at a stage, of a
width). Measuring the parts is affordable; measuring every network is not. The sum leaves out whatever parts do to one
another (caches, allocation, changes of layout), so it has to be compared with whole networks: `prediction_error`.

A table is any mapping from parts to costs. `measure_table` takes milliseconds on the machine at hand; a table of exact
operation counts serves where results must not depend on a machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reference_impls.accounting.timing import REPETITIONS, repeat


@dataclass(frozen=True)
class LatencyTable:
    """What each part costs; the parts of a network add up. Raises ValueError for a cost that is none."""

    costs: Mapping[Hashable, float]
    unit: str = "ms"

    def __post_init__(self) -> None:
        for part, cost in self.costs.items():
            if not (math.isfinite(cost) and cost >= 0):
                raise ValueError(f"the cost of {part!r} must be finite and not negative, got {cost!r}")

    def __call__(self, parts: Iterable[Hashable]) -> float:
        """Predicted cost of a network made of these parts. Raises: ValueError that names a part not in the table."""
        total = 0.0
        for part in parts:
            if part not in self.costs:
                raise ValueError(f"the table holds no {part!r}: measure it together with the {len(self.costs)} others")
            total += self.costs[part]
        return total


def measure_table(
    parts: Mapping[Hashable, Callable[[], object]],
    *,
    repetitions: int = REPETITIONS,
    threads: int = 1,
    percentile: float = 50,
) -> LatencyTable:
    """Milliseconds of each part, all of them measured in the same interleaved rounds.

    Each call runs the part once, on an input of the shape that it has in a network; rounds as in `timing.repeat`. On a
    machine with other work a low `percentile` is nearer to a part's own time than the median: a long call is
    interrupted more often than a short one, so medians of parts do not add up to those of networks.
    Raises: ValueError for no parts.
    """
    calls = {str(number): call for number, call in enumerate(parts.values())}
    times = repeat(calls, repetitions=repetitions, threads=threads).values()
    return LatencyTable({part: float(np.percentile(t, percentile)) for part, t in zip(parts, times, strict=True)})


def prediction_error(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """How well sums of parts tell whole networks: mean of |predicted - measured| / measured, and the correlation.

    Raises: ValueError unless there are as many predictions as measurements, and at least two.
    """
    if len(predicted) != len(measured) or len(measured) < 2:
        raise ValueError(f"at least two pairs are needed, got {len(predicted)} predictions, {len(measured)} measured")
    p, m = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    return float(np.mean(np.abs(p - m) / m)), float(np.corrcoef(p, m)[0, 1])
