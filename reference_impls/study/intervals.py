"""Means with their 95 % intervals: over seeds, over data items, over pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from reference_impls.accounting.record import Interval

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, 1 to 10 degrees of freedom."""


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over independent units with its t interval (no interval for a single one)."""
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(value=mean)
    half = T_975[min(n - 2, len(T_975) - 1)] * float(np.std(values, ddof=1)) / n**0.5
    return Interval(value=mean, low=mean - half, high=mean + half, n=n)


def over_items(values: Iterable[float], *, seed: int = 0) -> Interval:
    """Mean over data items with its bootstrap interval (1,000 resamples)."""
    items = np.asarray(list(values), dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(items), (1000, len(items)))
    mean = float(items.mean())
    low, high = np.percentile(items[draws].mean(1), [2.5, 97.5]).tolist()
    return Interval(value=mean, low=min(low, mean), high=max(high, mean), n=len(items))


def over_rounds(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Median over timed rounds with its bootstrap interval (1,000 resamples)."""
    rounds = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(rounds), (1000, len(rounds)))
    median = float(np.median(rounds))
    low, high = np.percentile(np.median(rounds[draws], axis=1), [2.5, 97.5]).tolist()
    return Interval(value=median, low=min(low, median), high=max(high, median), n=len(rounds))


def paired(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Mean of values - others, pair by pair, with its t interval."""
    return over_seeds([a - b for a, b in zip(values, others, strict=True)])
