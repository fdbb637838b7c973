"""From outcomes to curves: means with their bootstrap intervals, and the largest saving within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_impls.accounting.record import Interval
from reference_impls.report.axes.base import Outcome
from reference_impls.report.result import Budget, CurvePoint
from reference_impls.report.sample import Sample

RESAMPLES = 1000


def interval(values: Tensor, units: Tensor | None, seed: int, *, share: bool = False) -> Interval:
    """Mean of values (items,) with its 95 % bootstrap interval over independent units (clips, or items).

    units: (items,) number of the clip of each; None: every item on its own. share: values are shares of decisions;
    where none of n units shows a change, the upper end is that of the rule of three, 1 - 0.05^(1/n), because a
    bootstrap cannot draw what it has not seen.
    """
    x = values.double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    if units is not None and len(units) == len(x):
        keys = units.numpy()
        sums = np.array([[x[keys == k].sum(), (keys == k).sum()] for k in np.unique(keys)])
    else:
        sums = np.stack([x, np.ones_like(x)], 1)
    mean, n = float(x.mean()), len(sums)
    if n < 2:
        return Interval(value=mean)
    draws = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    totals = sums[draws].sum(1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5]).tolist()
    if share and not x.any():
        high = 1 - 0.05 ** (1 / n)
    return Interval(value=mean, low=min(low, mean), high=max(high, mean), n=n)


def units_of(sample: Sample) -> Tensor | None:
    """The clip of each item; None where items are independent."""
    if not sample.clips:
        return None
    return torch.cat([torch.full((b.items,), b.clip if b.clip is not None else -1) for b in sample.batches])


def point(outcome: Outcome, sample: Sample, budget: Budget, seed: int, time_saved: float | None) -> CurvePoint:
    """A point of a curve."""
    units = units_of(sample)
    flips = None if outcome.flips is None else interval(outcome.flips, units, seed, share=True)
    error = None if outcome.error is None else interval(outcome.error, units, seed)
    gain = None if outcome.gain is None else interval(outcome.gain, units, seed)
    spent = {
        "flips": None if flips is None else flips.value,
        "error": None if error is None else error.value,
        "metric": None if gain is None else -gain.value,
    }[budget.name]
    return CurvePoint(
        setting=dict(outcome.setting),
        macs_saved=interval(outcome.saved, units if len(outcome.saved) == sample.items else None, seed),
        time_saved=time_saved,
        error=error,
        flips=flips,
        metric=gain,
        n=len(outcome.saved),
        within_budget=spent is not None and spent <= budget.limit + 1e-12,
    )


def search(settings: Sequence[Any], measure: Callable[[int], CurvePoint]) -> dict[int, CurvePoint]:
    """Points of the curve around the budget: the middle first, then the half in which it is crossed."""
    found: dict[int, CurvePoint] = {}
    low, high = 0, len(settings) - 1
    while low <= high:
        middle = (low + high) // 2
        found[middle] = measure(middle)
        if found[middle].within_budget:
            low = middle + 1
        else:
            high = middle - 1
    return found


def best(curve: Sequence[CurvePoint]) -> int | None:
    """The index of the largest positive saving within the budget."""
    allowed = [i for i, p in enumerate(curve) if p.within_budget and p.macs_saved.value > 0]
    return max(allowed, key=lambda i: curve[i].macs_saved.value, default=None)
