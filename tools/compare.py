"""The techniques of a benchmark side by side: what each saves at the same quality, beside the best control."""

from __future__ import annotations

from itertools import groupby

from reference_impls.accounting.record import Interval, Knob, Model, Point, Quality, Record
from reference_impls.accounting.saving import (
    ONCE,
    SMALL_LOSS,
    best,
    end_to_end,
    has_random_weights,
    is_exact,
    left_out,
    macs_saved,
    rivals,
    speed_up,
)

from .headlines import own_part
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
    """Share of the baseline's MACs; from end to end where the work is done once."""
    exact: bool
    """Whether nothing is lost but by rounding."""
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
    left_out: int
    """MACs of preparations that `best` does not hold: work that repeats, and needs them once."""


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
    """A row for each technique of a record, and for each input that its sweep knows."""
    techniques = [record.technique] if record.technique else list(dict.fromkeys(p.technique for p in record.points))
    rows = []
    for technique in filter(None, techniques):
        own = own_part(record, technique)
        found = best(own, allowed)
        for point, control in zip(found.points, found.controls, strict=True):
            rows.append(
                Row(
                    technique=technique,
                    scenario=record.scenario,
                    device=record.device,
                    baseline=record.baseline.quality,
                    random_weights=has_random_weights(record),
                    best=_saving(own, technique, point, whole=True) if point else None,
                    control=_saving(record, control[0].name, control[1]) if control else None,
                    controls=len(rivals(record)),
                    left_out=0 if own.work in ONCE else left_out(own),
                )
            )
    return rows


def _saving(record: Record, name: str, point: Point, *, whole: bool = False) -> Saving:
    """What a point saves; `whole`: with its preparation, where the work is done once."""
    saved = end_to_end(record, point) if whole and record.work in ONCE else macs_saved(record, point)
    return Saving(
        name=name,
        knobs=point.knobs,
        quality=point.quality,
        macs_saved=saved,
        exact=is_exact(record, point),
        speed_up=speed_up(record, point),
        paired=point.speed_up is not None,
    )
