"""What the points of a record save beside its baseline: arithmetic on records, without torch.

A headline looks at the cheapest point that loses little quality, beside the best that goes without the technique.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from reference_impls.accounting.record import Control, Interval, Point, Quality, Record, Variant

SMALL_LOSS: Final = 0.01
"""Share of the baseline's quality that a point of a headline may lose."""


def loss(baseline: Quality, quality: Quality) -> float:
    """How much worse than the baseline, in the metric's own unit; negative when better."""
    difference = baseline.value - quality.value
    return difference if quality.higher_is_better else -difference


def cheapest(record: Record, points: Iterable[Point], allowed: float = SMALL_LOSS) -> Point | None:
    """The point with the fewest MACs of those that lose at most `allowed` of the baseline's quality and save any."""
    base = record.baseline
    limit = allowed * abs(base.quality.value)
    good = [p for p in points if p.macs < base.macs and loss(base.quality, p.quality) <= limit]
    return min(good, key=lambda p: p.macs, default=None)


def best_point(record: Record, allowed: float = SMALL_LOSS, technique: str | None = None) -> Point | None:
    """The cheapest point of the sweep; of one technique where several meet."""
    return cheapest(record, (p for p in record.points if technique is None or p.technique == technique), allowed)


def best_control(record: Record, allowed: float = SMALL_LOSS) -> tuple[Control, Point] | None:
    """The cheapest point of all controls, and whose it is: what goes without the technique's insight."""
    found = [(control, p) for control in record.controls if (p := cheapest(record, control.points, allowed))]
    return min(found, key=lambda one: one[1].macs, default=None)


def macs_saved(record: Record, variant: Variant) -> float:
    """Share of the baseline's MACs that a variant does not execute; negative when it executes more."""
    return 1 - variant.macs / record.baseline.macs if record.baseline.macs else 0.0


def speed_up(record: Record, variant: Variant) -> Interval:
    """Time of the baseline over that of the variant: over paired rounds where the record has it (`variant.speed_up`),
    else the ratio of the median times, without an interval."""
    if variant.speed_up is not None:
        return variant.speed_up
    median = variant.wall_ms.median
    return Interval(value=record.baseline.wall_ms.median / median if median else 1.0)


def has_random_weights(record: Record) -> bool:
    """Whether the model of the record is untrained, so that its quality says nothing."""
    return "random weights" in (record.model or "")
