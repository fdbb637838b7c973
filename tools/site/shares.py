"""What a variant costs, and what quality it keeps, in per cent of the baseline of its own record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reference_impls.accounting.record import Record, Variant
from reference_impls.accounting.saving import (
    ONCE,
    end_to_end,
    has_random_weights,
    is_error,
    is_exact,
    loss,
    speed_up,
)


@dataclass(frozen=True)
class Cost:
    """What the horizontal axis of a figure shows, per cent of the baseline's."""

    id: str
    name: str
    label: str
    of: Callable[[Record, Variant], float | None]


def _macs(record: Record, variant: Variant) -> float | None:
    """What is done once holds its preparation."""
    if not record.baseline.macs:
        return None
    share = 1 - end_to_end(record, variant) if record.work in ONCE else variant.macs / record.baseline.macs
    return 100 * share


def _bytes(record: Record, variant: Variant) -> float | None:
    return 100 * variant.bytes / record.baseline.bytes if record.baseline.bytes else None


def _spread(record: Record, variant: Variant) -> float | None:
    items, base = variant.items, record.baseline.items
    if items is None or base is None or not base.macs_p50:
        return None
    return 100 * (items.macs_p99 - items.macs_p50) / base.macs_p50


COSTS = (
    Cost("macs", "MACs", "MACs, % of the baseline's", _macs),
    Cost("time", "Wall-clock", "wall-clock, % of the baseline's", lambda r, v: 100 / speed_up(r, v).value),
    Cost("bytes", "Bytes moved", "bytes read and written, % of the baseline's", _bytes),
    Cost("spread", "Spread", "P99 - P50 of the MACs of an item, % of the baseline's median", _spread),
)


def kept(record: Record, variant: Variant) -> float | None:
    """Quality as a share of the baseline's in per cent; None where it has none, as an error beside an error of 0."""
    base = record.baseline.quality
    if has_random_weights(record) and not is_error(base):
        return None
    if base.value == 0:
        return 100.0 if is_exact(record, variant) else None
    return 100 * (1 - loss(base, variant.quality) / abs(base.value))
