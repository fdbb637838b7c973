"""Latency from what a model has counted by then: proposals, points, tokens kept.

T = a + sum_j b_j n_j by least squares: once a two-stage detector knows its number of proposals, the rest of
its time follows (liu-2022-prophet). It is worth having where it beats the two predictors that need no count: the mean,
and the last value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reference_impls.variation.spread import checked


@dataclass(frozen=True)
class Fit:
    """A latency that is affine in counts."""

    base: float
    """Of an item that counts nothing, in the unit of the times."""
    each: Mapping[str, float]
    """What one more of each count adds."""

    def __call__(self, counts: Mapping[str, float]) -> float:
        """The latency of an item with these counts. Raises: ValueError that names a count that is missing."""
        if missing := self.each.keys() - counts.keys():
            raise ValueError(f"the fit needs the counts {', '.join(sorted(missing))}")
        return self.base + sum(each * counts[name] for name, each in self.each.items())


def fit(counts: Mapping[str, Sequence[float]], times: Sequence[float]) -> Fit:
    """Least squares over items. counts: one number an item, under the name of each count.

    Raises: ValueError for counts and times of different lengths, or where the counts do not determine the fit (too few
    items, a count that never changes, counts that follow one another).
    """
    target = checked(times)
    columns = {name: checked(values) for name, values in counts.items()}
    for name, values in columns.items():
        if len(values) != len(target):
            raise ValueError(f"{len(values)} values of {name!r} for {len(target)} times: give one an item")
    matrix = np.column_stack([np.ones_like(target), *columns.values()])
    solution, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=None)
    if rank < matrix.shape[1]:
        raise ValueError(
            f"{len(target)} items do not determine the effect of {', '.join(columns) or 'nothing'}: "
            "the counts must vary, each in its own way"
        )
    base, *each = solution.tolist()
    return Fit(base, dict(zip(columns, each, strict=True)))


def accuracy(predicted: Sequence[float], actual: Sequence[float]) -> float:
    """1 - mean of |actual - predicted| / actual (liu-2022-prophet); negative for a bad predictor.

    Raises: ValueError for times of different lengths, or that are not positive.
    """
    p, t = checked(predicted), checked(actual)
    if len(p) != len(t):
        raise ValueError(f"{len(p)} predictions for {len(t)} times")
    if (t <= 0).any():
        raise ValueError("times must be positive: a relative error of none is not defined")
    return float(1 - np.mean(np.abs(t - p) / t))


def last_value(times: Sequence[float]) -> list[float]:
    """Each time predicted by the one before it, the first by itself."""
    values = checked(times).tolist()
    return [values[0], *values[:-1]]
