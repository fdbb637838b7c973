"""Results on a page: the headline computed from the records, trade-off figures, data tables, provenance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from reference_impls.accounting.record import Point, Quality, Record, Variant
from tools.site import figures
from tools.site.figures import Axis, Mark, Series, duration, number, quantity
from tools.site.markup import escape, table, with_code

SMALL_LOSS = 0.01
SMALL_LOSS_TEXT = "1\u00a0%"
"""The headline looks at points that lose at most this share of the baseline's quality."""
MAX_GROUPS = 4
"""A sweep over further knobs is drawn as one line per value of these, up to so many lines."""


def anchor(record: Record) -> str:
    """Where the page of its entry shows a record: the scenario, and the device where it is not the CPU."""
    kind = re.sub(r"[^a-z0-9]+", "-", record.device.partition(":")[0].lower())
    return record.scenario if kind == "cpu" else f"{record.scenario}-{kind}"


def loss(baseline: Quality, quality: Quality) -> float:
    """How much worse than the baseline, in the metric's own unit; negative when better."""
    difference = baseline.value - quality.value
    return difference if quality.higher_is_better else -difference


def best_point(record: Record, allowed: float = SMALL_LOSS) -> Point | None:
    """The cheapest point of the sweep that loses at most `allowed` of the baseline's quality and saves MACs."""
    return _cheapest(record, record.points, allowed)


def best_control(record: Record, allowed: float = SMALL_LOSS) -> Point | None:
    """The same among the points of all controls: what goes without the technique's insight."""
    return _cheapest(record, [p for control in record.controls for p in control.points], allowed)


def _cheapest(record: Record, points: Sequence[Point], allowed: float) -> Point | None:
    limit = allowed * abs(record.baseline.quality.value)
    good = [p for p in points if loss(record.baseline.quality, p.quality) <= limit and p.macs < record.baseline.macs]
    return min(good, key=lambda p: p.macs, default=None)


def saved(record: Record, point: Variant) -> float:
    """Share of the baseline's MACs that a point does not execute."""
    return 1 - point.macs / record.baseline.macs if record.baseline.macs else 0.0


def speed_up(record: Record, point: Variant) -> float:
    """Ratio of the median wall-clock times, above 1 when the point is faster."""
    return record.baseline.wall_ms.median / point.wall_ms.median if point.wall_ms.median else 1.0


def spread(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """The range of some values: "12–37 %", or one value."""
    low, high = number(min(values), digits), number(max(values), digits)
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def knobs(point: Point) -> str:
    """The knobs of a point as a reader writes them: "r = 13, start = 2"."""
    return ", ".join(f"{name} = {_value(value)}" for name, value in point.knobs.items())


def headline(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """(what, value, explanation) of the strip: MACs, wall-clock and redundancy, over the records given.

    Records of exact results, whose baseline has an error of 0, are left out where there are others: nothing can be lost
    there by degrees, and their sweep is over the input.
    """
    if not records:
        return []
    records = [r for r in records if r.baseline.quality.value] or records
    chosen = [(r, best_point(r)) for r in records]
    found = [(r, p) for r, p in chosen if p is not None]
    metrics = {r.baseline.quality.metric for r in records}
    metric = escape(metrics.pop()) if len(metrics) == 1 else "quality"
    many = f"over {len(records)} scenarios" if len(records) > 1 else escape(records[0].title)
    rows = []
    if found:
        where = "" if len(found) == len(chosen) else f"; none in {len(chosen) - len(found)} of {len(chosen)} scenarios"
        at = f"{escape(knobs(found[0][1]))}, {many}" if len(records) == 1 else many
        beside = _beside_controls([r for r, _ in found])
        rows.append(
            ("MACs saved", spread([100 * saved(r, p) for r, p in found], "\u00a0%"),
             f"at a loss of at most {SMALL_LOSS_TEXT} of the {metric}; {at}{where}{beside}")
        )  # fmt: skip
        for device, group in groupby(sorted(found, key=lambda x: x[0].device != "cpu"), key=lambda x: x[0].device):
            pairs = list(group)
            ratios = [speed_up(r, p) for r, p in pairs]
            pace = "faster" if min(ratios) > 1 else "slower" if max(ratios) < 1 else "slower to faster"
            on = ", ".join(sorted({r.machine.accelerator or r.machine.cpu for r, _ in pairs}))
            threads = "" if device != "cpu" else f", {_threads(pairs[0][0])}"
            rows.append(
                (
                    "Wall-clock at these settings",
                    spread(ratios, "×"),
                    f"{pace} than the dense baseline on {escape(on)}{threads}",
                )
            )
    else:
        rows.append(("MACs saved", "none", f"at a loss of at most {SMALL_LOSS_TEXT} of the {metric}; {many}"))
    nulls = [v for r in records for v in r.redundancy.null.values()]
    beside = f"null controls: {spread(nulls, '')}" if nulls else "no null control"
    measures = sorted({r.redundancy.measure for r in records})
    rows.append(
        ("Redundancy measured", spread([r.redundancy.value for r in records], ""), f"{escape(measures[0])}; {beside}")
    )
    return rows


def _beside_controls(records: Sequence[Record]) -> str:
    """What the best control saves at the same loss: a headline without it would flatter the technique."""
    controlled = [r for r in records if r.controls]
    if not controlled:
        return ""
    values = [100 * saved(r, p) if (p := best_control(r)) else 0.0 for r in controlled]
    return f". Best control: {spread(values, chr(0xA0) + '%')}" if any(values) else ". No control saves anything there"


def figure_block(record: Record, name: str) -> str:
    """Both trade-off panels of a record, the key of their marks, and the table of the same numbers."""
    series = _series(record)
    metric = record.baseline.quality.metric
    unit = re.split(r"[,(]| of ", record.unit.removeprefix("one "))[0].strip()  # the key below has it in full
    variants = [record.baseline, *record.points, *(p for c in record.controls for p in c.points)]
    ops_divisor, ops_prefix = figures.prefix(max(a.macs for a in variants))
    ms_divisor, ms_unit = figures.time_unit(max(a.wall_ms.p90 for a in variants))
    y = Axis(metric + ("" if record.baseline.quality.higher_is_better else " (lower is better)"))
    panels = []
    for what, axis in (
        ("macs", Axis(f"{ops_prefix}MACs per {unit}", ops_divisor, positive=True)),
        ("wall-clock", Axis(f"{ms_unit} per {unit}", ms_divisor, positive=True)),
    ):
        drawn = [
            Series(label, kind, [_mark(record, variant, text, what) for variant, text in marks], joined)
            for label, kind, marks, joined in series
        ]
        title = f"{metric} against {what}: {record.title}"
        svg = figures.trade_off(drawn, axis, y, title=title, description=_describe(record, what), name=f"{name}-{what}")
        panels.append(f'<figure class="atlas-panel-figure">{svg}</figure>')
    return (
        f'<div class="atlas-figures" data-search-exclude>{"".join(panels)}</div>{_key(record)}'
        f"<details data-search-exclude><summary>The numbers of this figure</summary>{data_table(record)}</details>"
    )


def data_table(record: Record) -> str:
    """Every arm of a record: exact MACs, bytes, quality and wall-clock with their intervals."""
    rows = [["Baseline", "", *_cells(record, record.baseline)]]
    rows += [["Technique", escape(knobs(p)), *_cells(record, p)] for p in record.points]
    rows += [
        [f"Control: {escape(c.name)}", escape(knobs(p)), *_cells(record, p)] for c in record.controls for p in c.points
    ]
    metric = escape(record.baseline.quality.metric)
    head = ["Variant", "Setting", "MACs", "of baseline", "Bytes moved", metric, "95 % interval", "Wall-clock, median",
            "p10 to p90", "Speed-up", "Share removed"]  # fmt: skip
    return table(
        head, rows, numeric=range(2, 11), caption=f"Numbers of “{escape(record.title)}”, per {escape(record.unit)}"
    )


def redundancy_block(record: Record, name: str) -> str:
    """The measured redundancy, part by part, with its null controls."""
    measured = record.redundancy
    interval = f" (95 % interval {number(measured.low)} to {number(measured.high)})" if (
        measured.low is not None and measured.high is not None) else ""  # fmt: skip
    values = [("All", measured.value, False)] if len(measured.where) != 1 else []
    values += [(part, value, False) for part, value in _thinned(list(measured.where.items()))]
    values += [(f"null: {part}", value, True) for part, value in measured.null.items()]
    in_range = [v for v in values if 0 <= v[1] <= 1]
    figure = figures.bars(in_range, title=f"{measured.measure}: {record.title}", name=name)
    rest = "".join(f"<li>{escape(part)}: {number(v)}</li>" for part, v, _ in values if not 0 <= v <= 1)
    all_rows = [
        [escape(p), number(v, 4)]
        for p, v in [*measured.where.items(), *((f"null: {p}", v) for p, v in measured.null.items())]
    ]
    numbers = table(["Part", "Value"], all_rows, numeric=[1], caption=escape(measured.measure)) if all_rows else ""
    return (
        f"<p><b>{number(measured.value)}</b>{interval}: {escape(measured.measure)}, {escape(record.data)}.</p>"
        f'<div class="atlas-figures one" data-search-exclude><figure class="atlas-panel-figure">{figure}</figure></div>'
        + (f"<ul>{rest}</ul>" if rest else "")
        + (
            f"<details data-search-exclude><summary>The numbers of this figure</summary>{numbers}</details>"
            if numbers
            else ""
        )
    )


def provenance(record: Record) -> str:
    """Where, when and with what a record was measured, and the command that measures it again."""
    machine = record.machine
    where = machine.accelerator or machine.cpu
    on = f"{escape(where)}, {machine.cores} cores of {escape(machine.cpu)}" if machine.accelerator else (
        f"{escape(where)}, {machine.cores} cores")  # fmt: skip
    seeds = ", ".join(str(s) for s in record.seeds)
    versions = ", ".join(f"{escape(k)} {escape(v)}" for k, v in record.versions.items())
    uncounted = sorted(
        {n.removeprefix("aten.").split(".")[0] for a in (record.baseline, *record.points) for n in a.uncounted}
    )
    parts = [
        f"Data: {escape(record.data)}.",
        f"Model: {escape(record.model)}." if record.model else "",
        (
            f"Measured {record.date}, {record.budget} budget, seeds {seeds}, on {on}, {_threads(record)}, "
            f"{machine.memory_gb:.0f} GiB."
        ),
        f"Versions: {versions}.",
        f"Executed, and not MACs by our count: {escape(', '.join(uncounted))}." if uncounted else "",
        f"Measure it again: <code>{escape(record.command)}</code>",
    ]
    notes = "".join(f"<li>{with_code(note)}</li>" for note in record.notes)
    return (
        f'<ul class="atlas-notes">{notes}</ul>' if notes else ""
    ) + f'<p class="atlas-meta">{"<br>".join(filter(None, parts))}</p>'


Marks = list[tuple[Variant, str]]


def _series(record: Record) -> list[tuple[str, figures.Kind, Marks, bool]]:
    """(name, kind, arms with their labels, joined): one line per value of the further knobs."""
    found: list[tuple[str, figures.Kind, Marks, bool]] = [
        ("baseline", "baseline", [(record.baseline, "baseline")], False)
    ]
    main, *others = record.knobs
    varying = [k for k in others if len({p.knobs[k] for p in record.points}) > 1]
    groups: dict[tuple[object, ...], list[Point]] = {}
    for point in record.points:
        groups.setdefault(tuple(point.knobs[k] for k in varying), []).append(point)
    if not varying or len(groups) > MAX_GROUPS or max(map(len, groups.values())) == 1:
        label = {True: f"{main} = {{}}", False: "{}"}[not varying]
        variants: Marks = [
            (
                p,
                label.format(_value(p.knobs[main]))
                if not varying
                else "/".join(_value(p.knobs[k]) for k in record.knobs),
            )
            for p in record.points
        ]
        found.append((record.owner.replace("-", " "), "technique", variants, not varying))
    else:
        for values, points in groups.items():
            name = ", ".join(
                v if isinstance(v, str) else f"{k} = {_value(v)}" for k, v in zip(varying, values, strict=True)
            )
            found.append((name, "technique", [(p, f"{main} = {_value(p.knobs[main])}") for p in points], True))
    for control in record.controls:
        found.append((control.name, "control", [(p, "") for p in control.points], len(control.points) > 1))
    return found


def _mark(record: Record, variant: Variant, label: str, what: str) -> Mark:
    quality, wall = variant.quality, variant.wall_ms
    setting = knobs(variant) if isinstance(variant, Point) else "baseline"
    tooltip = (
        f"{setting}: {quality.metric} {number(quality.value, 4)}, {quantity(variant.macs, 'MACs')} "
        f"({100 * saved(record, variant):.0f} % saved), {duration(wall.median)} ({speed_up(record, variant):.2f}×)"
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


def _key(record: Record) -> str:
    """What the marks are, in words, below the panels."""
    unit = record.unit.removeprefix("one ")
    bars = f"Per {unit}. Bars: 95 % interval of the quality, cut at the frame if wide; 10th to 90th percentile of time."
    baseline = "without the technique, in the best native dense way"
    rows = [(figures.swatch("baseline"), "Baseline", baseline)]
    lines_of = [s for s in _series(record) if s[1] == "technique"]
    swept = record.knobs if len(lines_of) == 1 else record.knobs[:1]
    for index, (name, kind, _, _) in enumerate(lines_of, start=1):
        rows.append((figures.swatch(kind, index), name[:1].upper() + name[1:], f"over {', '.join(swept)}"))
    rows += [
        (figures.swatch("control", i), f"Control: {c.name}", c.about) for i, c in enumerate(record.controls, start=1)
    ]
    lines = "".join(
        f"<div>{mark}<span><b>{escape(name)}</b>: {escape(about)}</span></div>" for mark, name, about in rows
    )
    return f'<div class="atlas-key atlas-note">{lines}<div>{escape(bars)}</div></div>'


def _cells(record: Record, variant: Variant) -> list[str]:
    quality, wall = variant.quality, variant.wall_ms
    interval = (
        f"{number(quality.low, 4)} to {number(quality.high, 4)} <small>n = {quality.n}</small>"
        if quality.low is not None and quality.high is not None
        else f"<small>n = {quality.n}</small>"
    )
    return [
        f"{variant.macs:,}".replace(",", "\u202f"),
        f"{100 * variant.macs / record.baseline.macs:.1f}\u00a0%" if record.baseline.macs else "",
        quantity(variant.bytes, "B"),
        number(quality.value, 4),
        interval,
        duration(wall.median),
        f"{duration(wall.p10)} to {duration(wall.p90)} <small>n = {wall.n}</small>",
        f"{speed_up(record, variant):.2f}×",
        number(variant.redundancy) if variant.redundancy is not None else "",
    ]


def _thinned(parts: Iterable[tuple[str, float]], most: int = 14) -> list[tuple[str, float]]:
    """Evenly spaced parts when there are more than a figure can hold; the table has them all."""
    listed = list(parts)
    if len(listed) <= most:
        return listed
    step = (len(listed) - 1) / (most - 1)
    return [listed[round(i * step)] for i in range(most)]


def _threads(record: Record) -> str:
    return "one thread" if record.machine.threads == 1 else f"{record.machine.threads} threads"


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
