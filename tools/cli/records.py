"""A record as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .common import heading, table

if TYPE_CHECKING:
    from reference_impls.accounting.record import Interval, Record, Variant


def print_record(record: Record) -> None:
    """A record as a table, the baseline in the first line; the points say whose they are where several meet."""
    heading(f"{record.title} ({record.scenario}, {record.budget})")
    redundancy = record.redundancy
    null = "".join(f"; {name}: {value:.3f}" for name, value in redundancy.null.items())
    click.echo(f"  data: {record.data}\n  {redundancy.measure}: {redundancy.value:.3f}{null}")
    joint = () if record.technique else ("technique",)
    blank = [""] * (len(joint) + len(record.knobs) - 1)
    rows = [["baseline", *blank, *figures(record.baseline)]]
    for point in record.points:
        whose = [point.technique or ""] if joint else []
        rows.append([*whose, *(str(point.knobs[knob]) for knob in record.knobs), *figures(point)])
    for control in record.controls:
        for point in control.points:
            knobs = " ".join(str(point.knobs.get(knob, "")) for knob in record.knobs)
            rows.append([f"{control.name} {knobs}".strip(), *blank, *figures(point)])
    quality = record.baseline.quality.metric
    table((*joint, *record.knobs, "MACs", "bytes", quality, "ms (p10 to p90)", "speed-up (paired rounds)"), rows)
    for note in record.notes:
        click.echo(f"  note: {note}")


def figures(variant: Variant) -> list[str]:
    """Cost, quality and time of a variant."""
    wall = variant.wall_ms
    time = f"{wall.median:.3g} ({wall.p10:.3g} to {wall.p90:.3g})"
    speed_up = f"{interval(variant.speed_up, 3)} x" if variant.speed_up else "none"
    return [f"{variant.macs:,}", f"{variant.bytes:,}", interval(variant.quality), time, speed_up]


def interval(measured: Interval, digits: int = 4) -> str:
    """`1.63 (1.61 to 1.66)`, or the value alone."""
    if measured.low is None or measured.high is None:
        return f"{measured.value:.{digits}g}"
    return f"{measured.value:.{digits}g} ({measured.low:.{digits}g} to {measured.high:.{digits}g})"
