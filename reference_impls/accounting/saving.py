"""What the points of a record save beside its baseline, and the headline of several records: without torch.

A headline looks at the cheapest point that loses little quality, beside the best that goes without the technique. It
never flatters: what a technique needs before its work is in it where the work is done once, and said where it repeats;
one range spans one kind of work; what follows from random weights is no quality.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from reference_impls.accounting.record import Control, Interval, Point, Quality, Record, Variant, Work

SMALL_LOSS: Final = 0.01
"""Share of the baseline's quality that a point of a headline may lose."""
ROUNDING: Final = 1e-5
"""An error beside a baseline of none that is no larger comes of rounding in float32: the result is exact."""
ONCE: Final = frozenset({"training", "selection"})
"""Kinds of work that are done once for each preparation, so that this is a part of their cost."""


def loss(baseline: Quality, quality: Quality) -> float:
    """How much worse than the baseline, in the metric's own unit; negative when better."""
    difference = baseline.value - quality.value
    return difference if quality.higher_is_better else -difference


def is_error(quality: Quality) -> bool:
    """Whether this quality of a baseline is an error of 0: the results of the variants are compared with its own."""
    return not quality.higher_is_better and quality.value == 0


def is_exact(record: Record, variant: Variant) -> bool:
    """Whether a variant gives the baseline's own result, rounding aside."""
    return is_error(record.baseline.quality) and abs(variant.quality.value) <= ROUNDING


def cheapest(record: Record, points: Iterable[Point], allowed: float = SMALL_LOSS) -> Point | None:
    """The point with the fewest MACs of those that lose at most `allowed` of the baseline's quality and save any.

    An error of 0 has no share: beside such a baseline only exact results lose nothing.
    """
    base = record.baseline
    limit = ROUNDING if is_error(base.quality) else allowed * abs(base.quality.value)
    good = [p for p in points if p.macs < base.macs and loss(base.quality, p.quality) <= limit]
    return min(good, key=lambda p: p.macs, default=None)


def best_point(record: Record, allowed: float = SMALL_LOSS, technique: str | None = None) -> Point | None:
    """The cheapest point of the sweep; of one technique where several meet."""
    return cheapest(record, (p for p in record.points if technique is None or p.technique == technique), allowed)


def rivals(record: Record) -> list[Control]:
    """The controls that work on the same input."""
    return [control for control in record.controls if not control.other_input]


def best_control(record: Record, allowed: float = SMALL_LOSS) -> tuple[Control, Point] | None:
    """The cheapest point of all controls on the same input, and whose it is: what goes without the insight."""
    found = [(control, p) for control in rivals(record) if (p := cheapest(record, control.points, allowed))]
    return min(found, key=lambda one: one[1].macs, default=None)


def macs_saved(record: Record, variant: Variant) -> float:
    """Share of the baseline's MACs that a variant does not execute; negative when it executes more."""
    return 1 - variant.macs / record.baseline.macs if record.baseline.macs else 0.0


def tails(record: Record, variant: Variant) -> tuple[float, float] | None:
    """P99 - P50 of the MACs of single items, of a variant and of the baseline, as shares of the median item's of the
    baseline; None where the record does not tell both."""
    own, base = variant.items, record.baseline.items
    if own is None or base is None or not base.macs_p50:
        return None
    return (own.macs_p99 - own.macs_p50) / base.macs_p50, (base.macs_p99 - base.macs_p50) / base.macs_p50


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


# --------------------------------------------------------------------------------------------------------------------
# What is left out


def left_out(record: Record, technique: str | None = None) -> int:
    """MACs of the preparations that no point holds; of one technique where several meet."""
    return sum(one.macs for one in record.excluded if technique is None or one.technique in (None, technique))


def end_to_end(record: Record, variant: Variant, *, uses: float = 1.0, work: float = 1.0) -> float:
    """Share of the MACs saved when every preparation counts; negative where that costs more than it saves.

    Args:
        uses: units that share one preparation. work: how many times as large the unit is, its preparation aside.
    """
    own, before = sum(one.macs for one in record.counted), sum(one.macs or 0 for one in record.shared)
    dense = work * record.baseline.macs + before / uses
    spent = work * max(variant.macs - own, 0) + min(own, variant.macs) + (before + left_out(record)) / uses
    return 1 - spent / dense if dense else 0.0


def uses_to_pay(record: Record, variant: Variant) -> float | None:
    """Units that must share what is left out before the variant saves anything; None where it never does."""
    gain = record.baseline.macs - variant.macs
    return left_out(record) / gain if gain > 0 else None


def work_to_pay(record: Record, variant: Variant) -> float | None:
    """How many times as large a single unit must be before the variant saves anything; None where it never does."""
    own = min(sum(one.macs for one in record.counted), variant.macs)
    gain = record.baseline.macs - (variant.macs - own)
    return (own + left_out(record)) / gain if gain > 0 else None


# --------------------------------------------------------------------------------------------------------------------
# Headlines


@dataclass(frozen=True)
class Best:
    """What one record saves at a small loss, for each input that its sweep knows (`Record.given`)."""

    record: Record
    points: tuple[Point | None, ...]
    """The cheapest; None for an input with which nothing is saved."""
    controls: tuple[tuple[Control, Point] | None, ...]
    """The best control of each input, likewise."""

    @property
    def saved(self) -> tuple[float, ...]:
        """Share of the MACs, in the order of `points`; 0 where nothing is saved. Work that is done once holds what its
        preparation costs."""
        once = self.record.work in ONCE
        shares = ((end_to_end if once else macs_saved)(self.record, p) if p else 0.0 for p in self.points)
        return tuple(max(share, 0.0) for share in shares)

    @property
    def found(self) -> list[Point]:
        """The points without those that are none."""
        return [p for p in self.points if p]

    @property
    def exact(self) -> bool:
        """Whether what is saved costs nothing but rounding."""
        return bool(self.found) and all(is_exact(self.record, p) for p in self.found)


@dataclass(frozen=True)
class Headline:
    """What the records of an entry say of one kind of work."""

    work: Work
    bests: tuple[Best, ...]
    """In the order of the records."""
    random_weights: int
    """Records that are left out, for the quality of an untrained network says nothing."""


def best(record: Record, allowed: float = SMALL_LOSS) -> Best:
    """What a record saves at a small loss."""
    inputs = dict.fromkeys(_input(record, point) for point in record.points)
    points = {one: [p for p in record.points if _input(record, p) == one] for one in inputs}
    beside = {
        one: record.model_copy(
            update={
                "controls": tuple(
                    control.model_copy(update={"points": same})
                    for control in record.controls
                    if (same := tuple(p for p in control.points if _input(record, p) == one))
                )
            }
        )
        for one in inputs
    }
    return Best(
        record,
        tuple(cheapest(record, points[one], allowed) for one in inputs),
        tuple(best_control(beside[one], allowed) for one in inputs),
    )


def _input(record: Record, point: Point) -> tuple[Any, ...]:
    return tuple(point.knobs.get(name) for name in record.given)


def headlines(records: Sequence[Record]) -> list[Headline]:
    """The headlines of an entry, a kind of work each: `network` first. The points of the records are the entry's own.

    Site, command and export all say what is found here.
    """
    found = []
    for work in get_args(Work):
        there = [r for r in records if r.work == work]
        told = [r for r in there if not has_random_weights(r) or is_error(r.baseline.quality)]
        if there:
            found.append(Headline(work, tuple(map(best, told)), len(there) - len(told)))
    return found
