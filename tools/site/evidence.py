"""Results on a page: the headline computed from the records, trade-off figures, data tables, provenance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from reference_impls.accounting.record import Interval, Items, Point, Record, Table, Variant
from reference_impls.accounting.saving import macs_saved, speed_up, tails

from ..headlines import WORK, knobs, shown, told
from ..numbers import number, prefix, quantity, spread
from . import figures, preparation
from .figures import Axis, Mark, Series, duration
from .markup import Html
from .model import Result
from .templates import render

MAX_GROUPS = 4
"""A sweep over further knobs is drawn as one line per value of these, up to so many lines."""

NBSP = "\u00a0"
MAX_BARS = 14
"""So many parts stand in a figure; when there are more, a table holds them all."""


def headline(records: Sequence[Record], *, study: bool = False) -> list[tuple[str, str, str]]:
    """(what, value, explanation) of the strip, over the records of an entry: MACs and wall-clock of each kind of work,
    and redundancy; of a study redundancy alone."""
    if not records:
        return []
    rows = []
    for one, saves in () if study else told(records):
        what = "" if one.work == "network" else f", {WORK[one.work]}"
        rows.append((f"MACs saved{what}", saves.value, f"{saves.about}. Best control: {saves.control}"))
        found = [(best.record, p) for best in one.bests for p in best.found]
        for _, group in groupby(sorted(found, key=lambda x: x[0].device != "cpu"), key=lambda x: x[0].device):
            rows.append(_wall_clock(list(group)))
        rows += _predictability(found)
    nulls = [v for r in records for v in r.redundancy.null.values()]
    beside = f"null controls: {spread(nulls, '')}" if nulls else "no null control"
    measure = " or ".join(sorted({r.redundancy.measure for r in records}))
    rows.append(("Redundancy measured", spread([r.redundancy.value for r in records], ""), f"{measure}; {beside}"))
    return rows


def _wall_clock(found: Sequence[tuple[Record, Point]]) -> tuple[str, str, str]:
    """The strip's cell on the speed-up on one device."""
    ratios = [speed_up(r, p).value for r, p in found]
    how = "faster" if min(ratios) > 1 else "slower" if max(ratios) < 1 else "slower to faster"
    on = ", ".join(sorted({r.machine.accelerator or r.machine.cpu for r, _ in found}))
    threads = "" if found[0][0].device != "cpu" else f", {_threads(found[0][0])}"
    paired = sum(p.speed_up is not None for _, p in found)
    base = "paired rounds" if paired == len(found) else "ratio of medians"
    if 0 < paired < len(found):
        base = f"paired rounds in {paired} of {len(found)} settings, else {base}"
    interval = _ends(speed_up(*found[0])) if len(found) == 1 else ""
    more = f"{how} than the dense baseline on {on}{threads}; {base}"
    more += f", 95 % interval {interval}" if interval else ""
    if any(r.excluded for r, _ in found):
        more += "; what the MACs leave out is left out here too"
    return "Wall-clock at these settings", spread(ratios, "×"), more


def _predictability(found: Sequence[tuple[Record, Point]]) -> list[tuple[str, str, str]]:
    """The strip's cell on how cost varies from item to item, where a record tells it."""
    both = [(r.baseline.items, p.items) for r, p in found if r.baseline.items is not None and p.items is not None]
    shares = [one for r, p in found if (one := tails(r, p))]
    if not both or not shares:
        return []
    added, of_base = ([100 * share for share in column] for column in zip(*shares, strict=True))
    times = "; ".join(
        f"in time {duration(own.ms_p99 - own.ms_p50)}, of the baseline {duration(base.ms_p99 - base.ms_p50)}"
        for base, own in both
    )
    about = (
        f"of a dense item's MACs, from item to item at these settings; of the baseline {spread(of_base, f'{NBSP}%')}"
    )
    return [("P99 - P50", spread(added, f"{NBSP}%"), f"{about}; {times}")]


def block(result: Result, numbers: Html | str = "") -> Html:
    """Both trade-off panels of a result, the key of their marks, what was prepared for it, the link to the numbers, and
    where they come from."""
    record = result.record
    uncounted = {n.removeprefix("aten.").split(".")[0] for v in (record.baseline, *record.points) for n in v.uncounted}
    return render(
        "result.html", record=record, panels=_panels(result), key=_key(result), numbers=numbers,
        uncounted=sorted(uncounted), machine=_machine(record),
        preparation=preparation.block(record, f"fig-{result.anchor}-preparation"),
    )  # fmt: skip


def numbers(result: Result) -> Html:
    """The numbers of a result: those of its figures as a table, and further tables."""
    record = result.record
    variants = _variants(result)
    gains = any(v.gain for _, _, v in variants)
    paired = any(v.speed_up for _, _, v in variants)
    items = any(v.items for _, _, v in variants)
    return render(
        "numbers.html", record=record, gains=gains, paired=paired, items=items,
        rows=[(label, setting, *_cells(record, v, gains=gains, items=items)) for label, setting, v in variants],
        tables=record.tables, cell=_cell, numeric=_numeric,
    )  # fmt: skip


def first_panel(result: Result, name: str) -> Html:
    """Quality against MACs; `name` prefixes the ids of the figure."""
    return _panels(result, ("macs",), name)[0]


def redundancy_block(record: Record, name: str) -> Html:
    """The measured redundancy, part by part, with its null controls."""
    measured = record.redundancy
    nulls = [(f"null: {part}", value, True) for part, value in measured.null.items()]
    parts = [(part, value, False) for part, value in measured.where.items()]
    values = [*([("All", measured.value, False)] if len(parts) != 1 else []), *_thinned(parts), *nulls]
    figure = figures.bars([v for v in values if 0 <= v[1] <= 1], title=f"{measured.measure}: {record.title}", name=name)
    return render(
        "redundancy.html", record=record, interval=_ends(measured), figure=figure,
        outside=[v for v in values if not 0 <= v[1] <= 1],
        rows=[(part, number(value, 4)) for part, value, _ in parts] if len(parts) > MAX_BARS else [],
    )  # fmt: skip


Marks = list[tuple[Variant, str]]


def _variants(result: Result) -> list[tuple[str, str, Variant]]:
    """(label, setting, variant) of everything that was measured, in the order of the table."""
    record = result.record
    return [
        ("Baseline", "", record.baseline),
        *(("Technique", knobs(p), p) for p in record.points),
        *((f"Rival: {_words(id_)}", knobs(p), p) for id_, points in result.rivals.items() for p in points),
        *((f"Control: {c.name}", knobs(p), p) for c in record.controls for p in c.points),
    ]


def _short(text: str, most: int) -> str:
    """A name that fits beside an axis: whole words, as many as there is room for."""
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]} …"


def _panels(result: Result, shown: Sequence[str] = ("macs", "wall-clock"), name: str = "fig") -> list[Html]:
    """Quality against MACs, and against wall-clock."""
    record, variants = result.record, [v for _, _, v in _variants(result)]
    metric = record.baseline.quality.metric
    unit = _short(
        re.split(r"[,(:]| of ", record.unit.removeprefix("one "))[0].strip(), 24
    )  # the key below has all of it
    ops_divisor, ops_prefix = prefix(max(v.macs for v in variants))
    ms_divisor, ms_unit = figures.time_unit(max(v.wall_ms.p90 for v in variants))
    y = Axis(_short(metric, 28) + ("" if record.baseline.quality.higher_is_better else " (lower is better)"))
    panels = []
    for what, axis in (
        ("macs", Axis(f"{ops_prefix}MACs per {unit}", ops_divisor, positive=True)),
        ("wall-clock", Axis(f"{ms_unit} per {unit}", ms_divisor, positive=True)),
    ):
        if what not in shown:
            continue
        drawn = [
            Series(label, kind, [_mark(record, variant, text, what) for variant, text in marks], joined)
            for label, kind, marks, joined in _series(result)
        ]
        panels.append(figures.trade_off(
            drawn, axis, y, title=f"{metric} against {what}: {record.title}", description=_describe(record, what),
            name=f"{name}-{result.anchor}-{what}",
        ))  # fmt: skip
    return panels


def _series(result: Result) -> list[tuple[str, figures.Kind, Marks, bool]]:
    """(name, kind, variants with their labels, joined): one line per value of the further knobs."""
    record = result.record
    found: list[tuple[str, figures.Kind, Marks, bool]] = [
        ("baseline", "baseline", [(record.baseline, "baseline")], False)
    ]
    main, *others = record.knobs
    varying = [k for k in others if len({p.knobs[k] for p in record.points}) > 1]
    groups: dict[tuple[object, ...], list[Point]] = {}
    for point in record.points:
        groups.setdefault(tuple(point.knobs[k] for k in varying), []).append(point)
    apart = varying and len(groups) <= MAX_GROUPS and max(map(len, groups.values())) > 1
    for values, points in groups.items() if apart else [((), record.points)]:
        names = [v if isinstance(v, str) else f"{k} = {shown(v)}" for k, v in zip(varying, values, strict=False)]
        labels = [
            "/".join(shown(p.knobs[k]) for k in record.knobs)
            if varying and not apart
            else f"{main} = {shown(p.knobs[main])}"
            for p in points
        ]
        marks: Marks = list(zip(points, labels, strict=True))
        found.append((", ".join(names) or _words(result.entry), "technique", marks, bool(apart or not varying)))
    for id_, rival in result.rivals.items():
        found.append((_words(id_), "rival", [(p, "") for p in rival], len(rival) > 1))
    for control in record.controls:
        found.append((control.name, "control", [(p, "") for p in control.points], len(control.points) > 1))
    return found


def _mark(record: Record, variant: Variant, label: str, what: str) -> Mark:
    quality, wall, faster = variant.quality, variant.wall_ms, speed_up(record, variant).value
    setting = knobs(variant) if isinstance(variant, Point) else "baseline"
    tooltip = (
        f"{setting}: {quality.metric} {number(quality.value, 4)}, {quantity(variant.macs, 'MACs')} "
        f"({100 * macs_saved(record, variant):.0f} % saved), {duration(wall.median)} ({faster:.2f}×)"
    )
    interval = (quality.low, quality.high) if quality.low is not None and quality.high is not None else None
    return Mark(
        x=float(variant.macs) if what == "macs" else wall.median,
        y=quality.value,
        label=label,
        tooltip=tooltip,
        x_interval=(wall.p10, wall.p90) if what == "wall-clock" else None,
        y_interval=interval,
    )


def _describe(record: Record, what: str) -> str:
    base = record.baseline
    ends = [record.points[0], record.points[-1]] if len(record.points) > 1 else [record.points[0]]

    def cost(variant: Variant) -> str:
        return quantity(variant.macs, "MACs") if what == "macs" else duration(variant.wall_ms.median)

    points = "; ".join(f"{knobs(p)}: {cost(p)}, {number(p.quality.value)}" for p in ends)
    controls = ", ".join(c.name for c in record.controls)
    return (
        f"{base.quality.metric} against {what} per {record.unit.removeprefix('one ')}. Baseline: {cost(base)}, "
        f"{number(base.quality.value)}. Sweep from {points}." + (f" Controls: {controls}." if controls else "")
    )


def _key(result: Result) -> list[tuple[Html, str, str]]:
    """(mark, name, what it is) of every series."""
    record = result.record
    rows = [(figures.swatch("baseline"), "Baseline", "without the technique, in the best native dense way")]
    lines_of = [name for name, kind, _, _ in _series(result) if kind == "technique"]
    swept = ", ".join(record.knobs if len(lines_of) == 1 else record.knobs[:1])
    for index, name in enumerate(lines_of, start=1):
        rows.append((figures.swatch("technique", index), name[:1].upper() + name[1:], f"over {swept}"))
    for index, id_ in enumerate(result.rivals, start=1):
        rows.append((figures.swatch("rival", index), f"Rival: {_words(id_)}", "another technique, in the same run"))
    for index, control in enumerate(record.controls, start=1):
        rows.append((figures.swatch("control", index), f"Control: {control.name}", control.about))
    return rows


def _cells(record: Record, variant: Variant, *, gains: bool, items: bool) -> list[str]:
    quality, wall, ratio = variant.quality, variant.wall_ms, speed_up(record, variant)
    ends = f"{ratio.low:.2f} to {ratio.high:.2f}, " if ratio.low is not None and ratio.high is not None else ""
    paired = Html("<small>{}paired</small>").format(ends) if variant.speed_up else ""
    over = [f"{_cell(gain)} over {name}" for name, gain in variant.gain.items()]
    return [
        f"{variant.macs:,}",
        f"{100 * variant.macs / record.baseline.macs:.1f}\u00a0%" if record.baseline.macs else "",
        quantity(variant.bytes, "B"),
        _beside(number(quality.value, 4), _ends(quality, 4), quality.n),
        *([Html("<br>").join(over)] if gains else []),
        _beside(duration(wall.median), f"{duration(wall.p10)} to {duration(wall.p90)}", wall.n),
        Html("{}×{}").format(f"{ratio.value:.2f}", paired),
        number(variant.redundancy) if variant.redundancy is not None else "",
        *([_tail(variant.items)] if items else []),
    ]


def _tail(items: Items | None) -> str:
    """P99 - P50 over single items: of MACs, and of time."""
    if items is None:
        return ""
    macs, ms = items.macs_p99 - items.macs_p50, items.ms_p99 - items.ms_p50
    return _beside(quantity(macs, "MACs"), duration(ms), items.n)


def _beside(value: str, ends: str, n: int) -> Html:
    """A value with the ends of its interval and the number of what they are from, below it."""
    return Html("{}<small>{}</small>").format(value, "; ".join(filter(None, (ends, f"n = {n}"))))


def _ends(interval: Interval, digits: int = 3) -> str:
    """The ends of an interval: "0.89 to 0.91"; empty where there is none."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def _cell(value: object) -> str:
    """A cell of a table of a record."""
    if isinstance(value, Interval):
        ends = _ends(value, 4)
        return f"{number(value.value, 4)} ({ends})" if ends else number(value.value, 4)
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return number(value, 4) if isinstance(value, (int, float)) else str(value)


def _numeric(shown: Table) -> list[int]:
    """Columns of a table that hold numbers alone, without the first, which names the row."""
    columns = list(zip(*shown.rows, strict=True))[1:]
    return [i for i, column in enumerate(columns, 1) if not any(isinstance(cell, (str, bool)) for cell in column)]


def _words(entry_id: str) -> str:
    return entry_id.replace("-", " ")


def _thinned(listed: list[tuple[str, float, bool]], most: int = MAX_BARS) -> list[tuple[str, float, bool]]:
    """Evenly spaced parts when there are more than a figure can hold; the table has them all."""
    if len(listed) <= most:
        return listed
    step = (len(listed) - 1) / (most - 1)
    return [listed[round(i * step)] for i in range(most)]


def _threads(record: Record) -> str:
    return "one thread" if record.machine.threads == 1 else f"{record.machine.threads} threads"


def _machine(record: Record) -> str:
    one = record.machine
    cores = f"{one.accelerator}, {one.cores} cores of {one.cpu}" if one.accelerator else f"{one.cpu}, {one.cores} cores"
    return f"{cores}, {_threads(record)}, {one.memory_gb:.0f} GiB"
