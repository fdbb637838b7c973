"""The techniques of a benchmark side by side: what each saves at the same quality, beside the best control."""

from __future__ import annotations

from itertools import groupby

from reference_impls.accounting.record import Interval, Knob, Model, Quality, Record, Variant
from reference_impls.accounting.saving import (
    SMALL_LOSS,
    best_control,
    best_point,
    has_random_weights,
    macs_saved,
    speed_up,
)

from .knowledge import Knowledge


class Saving(Model):
    """What one setting saves."""

    name: str
    """Id of the technique, or name of the control."""
    knobs: dict[str, Knob]
    """The setting."""
    quality: Quality
    """What it delivers."""
    macs_saved: float
    """Share of the baseline's MACs."""
    speed_up: Interval
    """Time of the baseline over its time."""
    paired: bool
    """Whether `speed_up` comes from paired rounds; else it is the ratio of the median times, without an interval."""


class Row(Model):
    """One technique in one record."""

    technique: str
    """Id of the entry."""
    scenario: str
    """The record: its scenario."""
    device: str
    """Where the time was measured."""
    baseline: Quality
    """Quality of the baseline."""
    random_weights: bool
    """Whether the model is untrained: its time counts, its quality does not."""
    best: Saving | None
    """The cheapest setting at a small loss; absent where there is none."""
    control: Saving | None
    """The best control at the same loss; absent where there is none."""
    controls: int
    """Number of the controls that were tried."""


class Group(Model):
    """What can be compared: same data, model, unit and metric."""

    data: str
    model: str | None
    unit: str
    metric: str
    rows: tuple[Row, ...]


class Comparison(Model):
    """A benchmark."""

    benchmark: str
    """Its id."""
    allowed_loss: float
    """Share of the baseline's quality that a setting may lose."""
    groups: tuple[Group, ...]
    """By metric and data, in the order of the scenarios."""


def compare(knowledge: Knowledge, benchmark: str, allowed: float = SMALL_LOSS) -> Comparison:
    """Every record of a benchmark, those first in which several techniques meet."""
    records = [r for r in knowledge.records if r.benchmark == benchmark]
    order = {_key(r): n for n, r in reversed(list(enumerate(records)))}
    groups = groupby(sorted(records, key=lambda r: order[_key(r)]), key=_key)
    found = []
    for (data, model, unit, metric), members in groups:
        rows = tuple(row for record in members for row in _rows(record, allowed))
        found.append(Group(data=data, model=model, unit=unit, metric=metric, rows=rows))
    return Comparison(benchmark=benchmark, allowed_loss=allowed, groups=tuple(found))


def _key(record: Record) -> tuple[str, str | None, str, str]:
    return record.data, record.model, record.unit, record.baseline.quality.metric


def _rows(record: Record, allowed: float) -> list[Row]:
    control = best_control(record, allowed)
    beside = _saving(record, control[0].name, control[1].knobs, control[1]) if control else None
    techniques = [record.technique] if record.technique else list(dict.fromkeys(p.technique for p in record.points))
    rows = []
    for technique in filter(None, techniques):
        best = best_point(record, allowed, None if record.technique else technique)
        rows.append(
            Row(
                technique=technique,
                scenario=record.scenario,
                device=record.device,
                baseline=record.baseline.quality,
                random_weights=has_random_weights(record),
                best=_saving(record, technique, best.knobs, best) if best else None,
                control=beside,
                controls=len(record.controls),
            )
        )
    return rows


def _saving(record: Record, name: str, knobs: dict[str, Knob], variant: Variant) -> Saving:
    return Saving(
        name=name,
        knobs=knobs,
        quality=variant.quality,
        macs_saved=macs_saved(record, variant),
        speed_up=speed_up(record, variant),
        paired=variant.speed_up is not None,
    )
