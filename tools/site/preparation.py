"""What a technique needs before its work: where its cost is, and from where on it pays, as a curve."""

from __future__ import annotations

from typing import Final

from reference_impls.accounting.record import Point, Record
from reference_impls.accounting.saving import cheapest, end_to_end, left_out, uses_to_pay, work_to_pay

from ..headlines import knobs
from ..numbers import number, prefix, quantity
from . import figures
from .figures import Axis, Mark, Series
from .markup import Html
from .templates import render

STEPS: Final = (0.6, 0.7, 0.8, 1.0, 1.3, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""Places of the curve, as multiples of where it begins to pay."""
USES, WORK = "shared by so many units", "a unit so many times as large"


def block(record: Record, name: str) -> Html:
    """The preparations of a record, and for what its figures leave out the curve of the saving from end to end; empty
    where there are none. `name` prefixes the ids of the figure."""
    if not (record.counted or record.excluded or any(one.macs for one in record.shared)):
        beforehand = "; ".join(one.what for one in record.shared)
        return Html("<p>Beforehand, and no cost of the technique: {}.</p>").format(beforehand) if beforehand else Html()
    rows = [
        *(("left out", one.what, quantity(one.macs, "MACs")) for one in record.excluded),
        *(("in every point", one.what, quantity(one.macs, "MACs")) for one in record.counted),
        *(("no cost of the technique", s.what, quantity(s.macs, "MACs") if s.macs else "") for s in record.shared),
    ]
    point = cheapest(record, record.points) or min(record.points, key=lambda p: p.macs)
    pays = _pays(record, point)
    return render(
        "preparation.html", record=record, rows=rows, pays=pays, setting=knobs(point),
        times=number(left_out(record) / record.baseline.macs) if record.excluded and record.baseline.macs else "",
        total=quantity(left_out(record), "MACs"), figure=_curve(record, point, name) if pays else "",
    )  # fmt: skip


def _pays(record: Record, point: Point) -> list[tuple[str, str]]:
    """(what, from which number on) the technique saves anything from end to end."""
    uses, work = uses_to_pay(record, point), work_to_pay(record, point)
    if not record.excluded:
        return []
    rows = [(f"units ({record.unit}) that share it", number(uses, 4))] if uses else []
    return rows + [(what, number(here * work, 4)) for what, here in record.grows.items() if work]


def _curve(record: Record, point: Point, name: str) -> Html:
    """Share of the MACs saved from end to end, against how often the preparation is used, or how large the work is."""
    found = []
    for what, start in ((USES, uses_to_pay(record, point)), (WORK, work_to_pay(record, point))):
        if start and (what == USES or record.grows):
            marks = []
            for times in STEPS:
                x = times * start
                saved = end_to_end(record, point, **{"uses" if what == USES else "work": x})
                marks.append(Mark(x=x, y=100 * saved, tooltip=f"{number(x)}: {number(100 * saved)} % saved"))
            found.append(Series(what, "technique", marks))
    starts = ", ".join(f"{series.name}: {number(series.marks[STEPS.index(1.0)].x)}" for series in found)
    divisor, _ = prefix(max(mark.x for series in found for mark in series.marks))
    label = {1e3: "thousands of times", 1e6: "millions of times", 1e9: "billions of times"}.get(divisor, "times")
    return figures.trade_off(
        found, Axis(label, divisor, positive=True), Axis("MACs saved from end to end, %"),
        title=f"When it pays: {record.title}", description=f"Nothing is saved below, {starts}.", name=name,
    )  # fmt: skip
