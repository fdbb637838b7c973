"""The timing protocol: wall-clock of several variants, measured so that they can be compared on a shared machine.

Every round runs each variant once, starting with another one than the round before, so that a slow spell of the
machine hits all variants alike and none always runs on the caches of the same neighbour. Warm-up rounds are thrown
away. The number of threads is set, and restored afterwards; the garbage collector is off; work on CUDA is waited for.
Published numbers take at least 15 repetitions, give the median with percentiles, and compare two variants by the ratio
within each round (`speed_up`), which the machine's slow drifts leave alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from reference_impls.accounting.record import Interval, WallTime

REPETITIONS = 15
"""The least number of repetitions for a published wall-clock."""

Variants = Mapping[str, Callable[[], object]]
"""Label -> a call that does the variant's whole work."""


def repeat(
    variants: Variants, *, repetitions: int = REPETITIONS, warmup: int = 3, threads: int = 1
) -> dict[str, list[float]]:
    """Wall-clock of every repetition in milliseconds; repetition i of all variants belongs to the same round.

    repetitions, warmup: rounds that are timed, and rounds before them that are not. threads: of torch, meanwhile.
    Raises: ValueError for no variants, or for numbers that are too small.
    """
    if not variants:
        raise ValueError("there are no variants to time: give at least one label with its call")
    for name, value, least in (("repetitions", repetitions, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    labels, times = list(variants), {label: list[float]() for label in variants}
    with _steady(threads):
        for round_ in range(-warmup, repetitions):
            first = round_ % len(labels)
            for label in labels[first:] + labels[:first]:
                elapsed = _elapsed(variants[label])
                if round_ >= 0:
                    times[label].append(elapsed)
    return times


Streams = Mapping[str, Callable[[], Iterable[Callable[[], object]]]]
"""Label -> what begins a stream: calls that each do the work of one item, in their order."""


def repeat_items(streams: Streams, *, repetitions: int = 3, threads: int = 1) -> dict[str, list[float]]:
    """Milliseconds of every item of streams, each the median over the repetitions.

    All streams go through their items side by side: item i of each is timed in the same round, the first one by turns.
    Raises: ValueError for no streams, or for streams of different lengths.
    """
    if not streams or repetitions < 1:
        raise ValueError("give at least one stream, and at least one repetition")
    rounds: dict[str, list[list[float]]] = {label: [] for label in streams}
    with _steady(threads):
        for _ in range(repetitions):
            begun = {label: list(begin()) for label, begin in streams.items()}
            if len({len(calls) for calls in begun.values()}) != 1:
                lengths = ", ".join(f"{label!r}: {len(calls)}" for label, calls in begun.items())
                raise ValueError(f"streams that are compared have the same items, got {lengths}")
            labels, taken = list(begun), {label: list[float]() for label in begun}
            for n in range(len(begun[labels[0]])):
                first = n % len(labels)
                for label in labels[first:] + labels[:first]:
                    taken[label].append(_elapsed(begun[label][n]))
            for label, times in taken.items():
                rounds[label].append(times)
    return {label: np.median(times, axis=0).tolist() for label, times in rounds.items()}


def wall_time(samples: Sequence[float]) -> WallTime:
    """Median and percentiles of repetitions in milliseconds."""
    p10, median, p90, p99 = (float(p) for p in np.percentile(samples, [10, 50, 90, 99]))
    return WallTime(median=median, p10=p10, p90=p90, p99=p99, n=len(samples))


def speed_up(baseline: Sequence[float], variant: Sequence[float]) -> Interval:
    """How many times faster `variant` is than `baseline`, two lists of the same `repeat`; below 1 it is slower.

    Median of the ratios within each round, with its 95 % bootstrap interval (2,000 resamples).
    Raises: ValueError if the lists are empty or not of the same length.
    """
    if len(baseline) != len(variant) or not variant:
        raise ValueError(
            f"paired repetitions are needed: got {len(baseline)} of the baseline and {len(variant)} of the variant; "
            "take both from one call of `repeat`"
        )
    ratios = np.asarray(baseline, dtype=float) / np.asarray(variant, dtype=float)
    draws = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5]).tolist()
    return Interval(value=float(np.median(ratios)), low=low, high=high, n=len(ratios))


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
    del result  # after the clock stopped: freeing a large result is not the variant's work
    return elapsed


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
