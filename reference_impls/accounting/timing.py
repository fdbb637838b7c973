"""The timing protocol: wall-clock of several arms, measured so that they can be compared on a shared machine.

Every round runs each arm once, starting with another arm than the round before, so that a slow spell of the machine
hits all arms alike and none always runs on the caches of the same neighbour. Warm-up rounds come first and are thrown
away. The number of threads is set, and restored afterwards; the garbage collector is off; work on CUDA is waited for.
Published numbers take at least 15 repetitions, give the median with percentiles, and compare two arms by the ratio
within each round (`speed_up`), which the machine's slow drifts leave alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from reference_impls.accounting.record import WallTime

REPETITIONS = 15
"""The least number of repetitions behind a published wall-clock."""

Variants = Mapping[str, Callable[[], object]]
"""Label -> a call that does the arm's whole work."""


def interleave(
    variants: Variants, *, repetitions: int = REPETITIONS, warmup: int = 3, threads: int = 1, units: int = 1
) -> dict[str, WallTime]:
    """Wall-clock of each arm in milliseconds per unit of work; the arguments are those of `repeat`."""
    times = repeat(variants, repetitions=repetitions, warmup=warmup, threads=threads, units=units)
    return {label: wall_time(samples) for label, samples in times.items()}


def repeat(
    variants: Variants, *, repetitions: int = REPETITIONS, warmup: int = 3, threads: int = 1, units: int = 1
) -> dict[str, list[float]]:
    """Wall-clock of every repetition in milliseconds per unit; repetition i of all arms belongs to the same round.

    Args:
        arms: what to time; each call does the arm's whole work.
        repetitions: timed rounds.
        warmup: rounds before them that are not timed.
        threads: threads that torch may use, for the time of the measurement.
        units: units of work that one call does (images in the batch, say).

    Raises: ValueError for no arms, or for numbers that are too small.
    """
    if not variants:
        raise ValueError("there are no arms to time: give at least one label with its call")
    for name, value, least in (("repetitions", repetitions, 1), ("warmup", warmup, 0), ("units", units, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    labels = list(variants)
    times: dict[str, list[float]] = {label: [] for label in labels}
    with _steady(threads):
        for round_ in range(-warmup, repetitions):
            first = round_ % len(labels)
            for label in labels[first:] + labels[:first]:
                elapsed = _elapsed(variants[label])
                if round_ >= 0:
                    times[label].append(elapsed / units)
    return times


def wall_time(samples: Sequence[float]) -> WallTime:
    """Median and percentiles of repetitions in milliseconds."""
    p10, median, p90, p99 = (float(p) for p in np.percentile(samples, [10, 50, 90, 99]))
    return WallTime(median=median, p10=p10, p90=p90, p99=p99, n=len(samples))


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster an arm is than the baseline."""

    ratio: float
    """Median over the rounds of (time of the baseline) / (time of the arm); below 1 the arm is slower."""
    low: float
    """Lower end of the 95 % bootstrap interval of that median."""
    high: float
    """Upper end."""


def speed_up(baseline: Sequence[float], variant: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> SpeedUp:
    """Speed-up of `arm` over `baseline`, two lists of the same `repeat`: pairs of the same round are compared.

    Raises: ValueError if the lists are empty or not of the same length.
    """
    if len(baseline) != len(variant) or not variant:
        raise ValueError(
            f"paired repetitions are needed: got {len(baseline)} of the baseline and {len(variant)} of the arm; "
            "take both from one call of `repeat`"
        )
    ratios = np.asarray(baseline, dtype=float) / np.asarray(variant, dtype=float)
    generator = np.random.default_rng(seed)
    medians = np.median(generator.choice(ratios, size=(resamples, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return SpeedUp(float(np.median(ratios)), float(low), float(high))


@contextmanager
def _steady(threads: int) -> Iterator[None]:
    """Set the threads of torch and keep the garbage collector quiet; restore both."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()


def _elapsed(call: Callable[[], object]) -> float:
    """Milliseconds that `call` takes, until CUDA has finished too where it is in use."""
    _synchronize()
    start = time.perf_counter_ns()
    result = call()
    _synchronize()
    elapsed = (time.perf_counter_ns() - start) / 1e6
    del result  # after the clock stopped: freeing a large result is not the arm's work
    return elapsed


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
