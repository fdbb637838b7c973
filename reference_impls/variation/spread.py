"""How much a time varies, and how many samples a statement about its tail needs.

A percentile has a named method, for methods differ in the tail. P99 of fewer than 100 samples is refused, since it is
their maximum under another name, and below 1,000 it is flagged as sparse; the same for other percentiles, by the
number of samples that are expected beyond them (1 and 10). Frames of a stream are not independent, so intervals
resample blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from reference_impls.accounting.record import Interval

Method = Literal["linear", "inverted_cdf", "median_unbiased", "loadgen"]
"""numpy's names, and `loadgen`: sorted[floor(n q)], counted from 0, as MLPerf's LoadGen takes it."""
LEAST, DENSE = 1, 10
"""Samples expected beyond a percentile, below which it is refused and flagged."""
Samples = Sequence[float] | NDArray[np.float64]


class TooFewSamples(ValueError):
    """A percentile that so few samples cannot show."""


@dataclass(frozen=True)
class Spread:
    """Times of one stage, in the unit of the samples. What needs more samples than there are is None."""

    n: int
    mean: float
    std: float | None
    """With n - 1 in the denominator."""
    minimum: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    maximum: float
    mad: float
    """Median of the distances from the median."""
    method: Method
    sparse: tuple[str, ...]
    """Percentiles that rest on fewer than ten samples beyond them."""

    @property
    def range(self) -> float:
        return self.maximum - self.minimum

    @property
    def variation(self) -> float | None:
        """Coefficient of variation, std / mean; None where the mean is 0 or there is one sample."""
        return None if self.std is None or self.mean == 0 else self.std / self.mean

    @property
    def predictability(self) -> float | None:
        """P99 - P50."""
        return None if self.p99 is None else self.p99 - self.p50


def spread(samples: Samples, *, method: Method = "linear") -> Spread:
    """The spread of samples. Raises: ValueError for no samples, or for one that is not finite."""
    values = checked(samples)
    tails: dict[int, float | None] = {}
    sparse = []
    for q in (90, 95, 99):
        try:
            tails[q] = percentile(values, q, method=method)
        except TooFewSamples:
            tails[q] = None
            continue
        if len(values) < needed(q, DENSE):
            sparse.append(f"P{q}")
    median = percentile(values, 50, method=method) if len(values) > 1 else float(values[0])
    return Spread(
        n=len(values), mean=float(values.mean()), std=float(values.std(ddof=1)) if len(values) > 1 else None,
        minimum=float(values.min()), p50=median, p90=tails[90], p95=tails[95], p99=tails[99],
        maximum=float(values.max()), mad=float(np.median(np.abs(values - np.median(values)))),
        method=method, sparse=tuple(sparse),
    )  # fmt: skip


def percentile(samples: Samples, q: float, *, method: Method = "linear") -> float:
    """The q-th percentile, q in [0, 100].

    Raises: TooFewSamples if fewer than one sample is expected beyond it; ValueError for no or for bad samples.
    """
    values = checked(samples)
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, got {q}")
    if len(values) < (least := needed(q, LEAST)):
        raise TooFewSamples(f"P{q:g} of {len(values)} samples is no percentile: take at least {least}")
    if method == "loadgen":
        return float(np.sort(values)[min(math.floor(len(values) * q / 100), len(values) - 1)])
    return float(np.percentile(values, q, method=method))


def needed(q: float, beyond: int) -> int:
    """Samples of which at least `beyond` are expected beyond the q-th percentile, on its nearer side."""
    tail = min(q, 100 - q)
    return 1 if tail == 0 else math.ceil(100 * beyond / tail - 1e-9)


def checked(samples: Samples) -> NDArray[np.float64]:
    """Samples as an array. Raises: ValueError that says which is not finite."""
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a row of samples is needed, got shape {values.shape}")
    if not (finite := np.isfinite(values)).all():
        raise ValueError(f"sample {int(np.argmin(finite))} is {values[np.argmin(finite)]}: times must be finite")
    return values


# --- intervals of samples that follow one another


def correlation_length(samples: Samples) -> int:
    """The first lag at which the autocorrelation is no larger than that of noise, 2 / sqrt(n)."""
    values = checked(samples) - np.mean(samples)
    n, power = len(values), float(values @ values)
    if power == 0:
        return 1
    for lag in range(1, n):
        if abs(float(values[lag:] @ values[:-lag])) / power <= 2 / math.sqrt(n):
            return lag
    return n


def interval(
    samples: Samples,
    statistic: Callable[[NDArray[np.float64]], float],
    *,
    block: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """A statistic with its 95 % interval by the circular block bootstrap.

    block: samples that stay together, by default the `correlation_length`, so that a resample is as dependent as the
    stream. Raises: ValueError for a block that is longer than the samples.
    """
    values = checked(samples)
    n = len(values)
    length = correlation_length(values) if block is None else block
    if not 1 <= length <= n:
        raise ValueError(f"a block has between 1 and {n} samples, got {length}")
    starts = np.random.default_rng(seed).integers(0, n, (resamples, math.ceil(n / length)))
    drawn = (starts[..., None] + np.arange(length)).reshape(resamples, -1)[:, :n] % n
    value = statistic(values)
    low, high = np.percentile([statistic(values[rows]) for rows in drawn], [2.5, 97.5]).tolist()
    return Interval(value=value, low=min(low, value), high=max(high, value), n=n)


# --- how many samples a statement about a percentile needs

CONFIDENCE: Final = 0.99
"""That of MLPerf's early stopping."""


def queries(p: float, over: int = 0, *, confidence: float = CONFIDENCE) -> int:
    """Samples that show that a share `p` of all stays below a limit, when `over` of them lie above it.

    The least n with P[at most `over` of n above | a share 1 - p is above] <= 1 - confidence, as in MLPerf's early
    stopping: 459 for P99 and none above, 662 for one.
    Raises: ValueError for a share outside (0, 1) or a negative number.
    """
    if not (0 < p < 1 and 0 < confidence < 1):
        raise ValueError(f"share and confidence lie strictly between 0 and 1, got {p} and {confidence}")
    if over < 0:
        raise ValueError(f"a number of samples above the limit cannot be negative, got {over}")
    low, high = over, over + 1
    while _at_most(over, high, 1 - p) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _at_most(over, middle, 1 - p) <= 1 - confidence else (middle, high)
    return high


def violations(n: int, p: float, *, confidence: float = CONFIDENCE) -> int | None:
    """The most of n samples that may lie above a limit that a share `p` stays below; None where n is too small."""
    if queries(p, 0, confidence=confidence) > n:
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if queries(p, middle, confidence=confidence) <= n else (low, middle)
    return low


def certified(samples: Samples, p: float, *, confidence: float = CONFIDENCE) -> float:
    """The least sample below which a share `p` of all lies, at that confidence: MLPerf's early-stopping estimate.

    The t-th largest for t = `violations`, so that t - 1 samples are discarded, as LoadGen counts them.
    Raises: TooFewSamples if the samples cannot show it, with how many would.
    """
    values = np.sort(checked(samples))
    allowed = violations(len(values), p, confidence=confidence)
    if not allowed:
        raise TooFewSamples(
            f"{len(values)} samples cannot certify a share of {p:g} at {confidence:g}: "
            f"take at least {queries(p, 1, confidence=confidence)}"
        )
    return float(values[len(values) - allowed])


def _at_most(k: int, n: int, p: float) -> float:
    """P[a binomial of n draws with probability p is at most k]."""
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    )
    return math.fsum(map(math.exp, logs))
