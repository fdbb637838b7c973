"""Figures and words for notebooks, made from records: committed results, trade-off curves, bars, intervals.

Colours are matplotlib's cycle, which the site replaces by those of its theme.
"""

from __future__ import annotations

import html
import json
import random
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from reference_impls.accounting.closed_form import Footprint
from reference_impls.accounting.pictures import load
from reference_impls.accounting.record import Interval, Point, Record, Table, Variant
from reference_impls.accounting.saving import speed_up

TURNABLE = "application/vnd.atlas.turnable+html"
"""Type of an output that the site shows with its own script and style, for it is ours."""
RESULTS = Path(__file__).parent / "results"
GREYS = ("0.45", "0.6", "0.7", "0.8")
COSTS: Mapping[str, Callable[[Variant], float]] = {
    "MACs": lambda v: float(v.macs),
    "milliseconds": lambda v: v.wall_ms.median,
    "samples": lambda v: float("nan" if v.samples is None else v.samples),
}


def style() -> None:
    """One thread, seeded random numbers, and the look of all notebooks; call it first.

    Where figures cannot be shown, because there is no display, it says so.
    """
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what libraries draw from the global generator
    torch.manual_seed(0)
    if plt.get_backend().lower() == "agg":
        print("No display: figures are not shown. Run this in Jupyter, or set MPLBACKEND.", file=sys.stderr)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    plt.rcParams.update({"legend.frameon": False, "figure.autolayout": True})


def committed(owner: str, scenario: str) -> Record:
    """The committed record of a scenario. Raises FileNotFoundError that says which there are."""
    file = RESULTS / owner / f"{scenario}.json"
    if not file.exists():
        there = ", ".join(sorted(f"{f.parent.name}/{f.stem}" for f in RESULTS.glob(f"{owner}/*.json")))
        raise FileNotFoundError(f"there is no result {owner}/{scenario}; there are: {there or 'none of ' + owner}")
    return Record.from_json(file.read_bytes())


def pictures(record: Record) -> dict[str, np.ndarray[Any, Any]]:
    """The pictures of a record: those just made, or those beside the committed one."""
    return record.arrays or load(RESULTS / record.owner / f"{record.scenario}.json")


def interval(one: Interval | None, form: str = ".3f", scale: float = 1.0) -> str:
    """A value with its interval in words, such as "1.63 (95 %: 1.61 to 1.66)"; `scale` multiplies it."""
    if one is None:
        return "not measured"
    value = format(scale * one.value, form)
    if one.low is None or one.high is None:
        return value
    return f"{value} (95 %: {scale * one.low:{form}} to {scale * one.high:{form}})"


def knobs(point: Point) -> str:
    """The knobs of a point in words, such as "r 13, threshold 0.9"."""
    texts = {name: f"{value:g}" if isinstance(value, float) else value for name, value in point.knobs.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def select(points: Iterable[Point], **knobs: Any) -> list[Point]:
    """The points with these knobs."""
    return [p for p in points if all(p.knobs.get(name) == value for name, value in knobs.items())]


def series(record: Record, technique: str | None = None) -> dict[str, Sequence[Point]]:
    """The points of the technique (of each technique where several meet), then of the controls, by name."""
    name = technique or record.owner.replace("-", " ")
    mine = {p.technique or name: [q for q in record.points if q.technique == p.technique] for p in record.points}
    return {**mine, **{control.name: control.points for control in record.controls}}


def ends(values: Sequence[Interval]) -> np.ndarray[Any, Any]:
    """Distances of the interval ends from the values, as matplotlib's error bars take them: (2, N)."""
    return np.array([[v.value - (v.value if v.low is None else v.low) for v in values],
                     [(v.value if v.high is None else v.high) - v.value for v in values]])  # fmt: skip


def trade_off(
    axis: Axes,
    record: Record,
    cost: str | Callable[[Variant], float] = "MACs",
    *,
    lines: Mapping[str, Sequence[Point]] | None = None,
    relative: bool = True,
) -> None:
    """Quality against cost: a line for each series with its intervals, controls in grey, and the baseline.

    cost: "MACs", "milliseconds" or "samples", as a share of the baseline's if `relative`; or any other number that
    follows from a variant. lines: the series to draw, all by default.
    """
    of, base = COSTS[cost] if isinstance(cost, str) else cost, record.baseline
    whole = of(base) if relative and isinstance(cost, str) else 1.0
    controls = {control.name for control in record.controls}
    greys, styles = iter(GREYS * 3), iter(("--", ":", "-.") * 4)
    for name, points in (lines or series(record)).items():
        ordered = sorted(points, key=of)
        look: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.3, "label": name}
        if name in controls:
            look |= {"color": next(greys), "linestyle": next(styles)}
        qualities = [p.quality for p in ordered]
        axis.errorbar([of(p) / whole for p in ordered], [q.value for q in qualities], ends(qualities), **look)
    axis.plot(of(base) / whole, base.quality.value, "D", color="black", markersize=5, label="baseline")
    if isinstance(cost, str):
        axis.set(xlabel=f"{cost}, share of the baseline's" if relative else f"{cost} per {record.unit}")
    axis.set(ylabel=base.quality.metric)


def trade_offs(
    record: Record, lines: Mapping[str, Sequence[Point]] | None = None, costs: Sequence[str] = ("MACs", "milliseconds")
) -> None:
    """`trade_off` against several costs, side by side, with one legend."""
    figure, axes = plt.subplots(1, len(costs), figsize=(9, 3.4), sharey=True)
    for axis, cost in zip(axes, costs, strict=True):
        trade_off(axis, record, cost, lines=lines)
        axis.set(ylabel="" if axis is not axes[0] else record.baseline.quality.metric)
    axes[-1].legend(fontsize=8)
    figure.suptitle(record.title, fontsize=10)
    figure.tight_layout()
    plt.show()


def panels(
    records: Mapping[str, Record],
    cost: str | Callable[[Variant], float],
    label: str,
    ticks: Sequence[int],
    *,
    powers_of_two: bool = False,
) -> list[Axes]:
    """`trade_off` of several records side by side, by their titles, such as a full one and one run now: the axes."""
    axes = list(plt.subplots(1, len(records), figsize=(10, 3.4))[1])
    for axis, (title, record) in zip(axes, records.items(), strict=True):
        trade_off(axis, record, cost, relative=False)
        if powers_of_two:
            axis.set_xscale("log", base=2)
        axis.set(xlabel=label, xticks=ticks, xticklabels=ticks, title=title)
        axis.set(ylabel=axis.get_ylabel() if axis is axes[0] else "")
    return axes


def beside(records: Sequence[Record], technique: str, **knobs: Any) -> None:
    """`trade_off` of several records, side by side over one legend: the points with these knobs."""
    figure, axes = plt.subplots(1, len(records), figsize=(9, 4), sharey=True)
    for axis, record in zip(axes, records, strict=True):
        lines = {name: select(points, **knobs) for name, points in series(record, technique).items()}
        trade_off(axis, record, lines=lines)
        axis.set(title=record.data.partition(":")[0], ylim=(0, 1.05))
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=3)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    plt.show()


def bars(axis: Axes, values: Mapping[str, Interval | float], *, label: str = "", form: str = ".3g") -> None:
    """A horizontal bar for each name with its interval and its value, the first on top."""
    given = [v if isinstance(v, Interval) else Interval(value=v) for v in values.values()]
    places = np.arange(len(given))[::-1]
    axis.barh(places, [v.value for v in given], xerr=ends(given), height=0.7, capsize=2)
    for place, value in zip(places, given, strict=True):
        text, where = f"{value.value:{form}}", ("axes fraction", "data")
        axis.annotate(text, (1.02, place), xycoords=where, va="center", fontsize=8)
    axis.set_yticks(places, list(values))
    axis.set(xlabel=label)


def shares(networks: Mapping[str, Mapping[str, Footprint]]) -> None:
    """Parameters and MACs of networks given by the closed forms of their parts, and a bar of the parts' shares each."""
    figure, axis = plt.subplots(figsize=(7.5, 2.8))
    for place, (network, parts) in enumerate(networks.items()):
        left, whole = 0.0, sum(parts.values(), Footprint())
        print(f"{network}: {whole.parameters:,} parameters, {whole.macs:,} MACs")
        for number, (name, part) in enumerate(parts.items()):
            share = part.macs / whole.macs
            axis.barh(place, share, left=left, color=f"C{number}", label=name if place == 0 else None)
            if share > 0.03:
                axis.text(left + share / 2, place, f"{share:.0%}", ha="center", va="center", color="white", fontsize=8)
            left += share
    axis.set(yticks=range(len(networks)), yticklabels=list(networks), xlabel="share of the MACs", xlim=(0, 1))
    axis.invert_yaxis()
    axis.legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    plt.show()


def grouped_bars(axis: Axes, table: Table, group: str, within: str, value: str) -> None:
    """Upright bars of a table's column `value`: for each word of the column `group` one for each word of `within`."""
    rows = table.records()
    groups, bars_ = (list(dict.fromkeys(row[column] for row in rows)) for column in (group, within))
    width = 0.8 / len(bars_)
    for i, name in enumerate(bars_):
        given = [row[value] for row in rows if row[within] == name]
        places = np.arange(len(groups)) + (i - (len(bars_) - 1) / 2) * width
        axis.bar(places, [v.value for v in given], width, yerr=ends(given), capsize=2, label=name)
    axis.set_xticks(range(len(groups)), [name.replace(" ", "\n", 1) for name in groups], fontsize=8)
    axis.legend(fontsize=8)


def variants(record: Record, baseline: str) -> dict[str, Interval]:
    """The quality of every network of a comparison by its name and MACs, the baseline first; for `bars`."""
    named = {baseline: record.baseline}
    for name, points in series(record).items():
        for point in points:
            named[f"{name}, {knobs(point)}" if len(points) > 1 or point in record.points else name] = point
    return {f"{name} ({v.macs / 1e6:.2f} M MACs)": v.quality for name, v in named.items()}


def annotate_apart(axis: Axes, labels: Iterable[tuple[str, tuple[float, float]]], size: float = 8) -> None:
    """Write a text beside each point, where it stands on none of those before; the limits of the axis must be set."""
    taken: list[tuple[float, float, float, float]] = []
    for text, point in labels:
        x, y = axis.transData.transform(point) * 72 / axis.figure.dpi  # in points, as the offsets
        wide, high = 0.62 * size * len(text), 1.25 * size
        for dx, dy in ((4, -9), (4, 3), (-4 - wide, 3), (-4 - wide, -9), (4, -20), (4, 14), (4, -31), (4, 25)):
            box = (x + dx, y + dy - 2, x + dx + wide, y + dy - 2 + high)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                break
        taken.append(box)
        axis.annotate(text, point, xytext=(dx, dy), textcoords="offset points", fontsize=size)


def times(record: Record, short: Mapping[str, str]) -> None:
    """Time of whole networks, compiled and eager, against their MACs and the record's quality; then the ratios.

    `short`: parts of names -> what stands for them in the figure, where timm's networks are left out.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
    controls = [point for control in record.controls for point in control.points if "timm" not in control.name]
    labels: dict[Axes, list[tuple[str, tuple[float, float]]]] = {axis: [] for axis in axes}
    for point, colour in [(p, "C0") for p in record.points] + [(p, "C1") for p in controls]:
        label, compiled = str(point.knobs["model"]), point.knobs["form"] == "compiled"
        for long, abbreviation in short.items():
            label = label.replace(long, abbreviation)
        for axis, x in zip(axes, (point.macs / 1e9, point.quality.value), strict=True):
            axis.plot(x, point.wall_ms.median, "o" if compiled else "x", color=colour)
            if compiled:
                labels[axis].append((label, (x, point.wall_ms.median)))
    axes[0].set(xlabel="billion MACs", ylabel=f"ms for {record.unit}", xlim=(0, None), ylim=(0, None))
    axes[1].set(xlabel=record.baseline.quality.metric, xlim=(0, None))
    for axis in axes:
        annotate_apart(axis, labels[axis])
    for marker, form in (("o", "compiled"), ("x", "eager")):
        axes[1].plot([], [], marker, color="black", label=form)
    axes[1].legend()
    figure.tight_layout()
    plt.show()
    print(record.machine.cpu, "|", record.notes[0])
    rows = record.tables["time ratios"].records()
    for row in (row for row in rows if row["network"] not in {other["over"] for other in rows}):
        print(f"time of {row['network']} over {row['over']}, {row['form']}: {interval(row['ratio'], '.2f')}")


def gains(record: Record, over: str, form: str = "+.4f", scale: float = 1.0) -> None:
    """Print what each point gains over a control or the baseline, paired by seed."""
    for point in record.points:
        if over in point.gain:
            print(f"{knobs(point)}: {interval(point.gain[over], form, scale)} over {over}")


def networks(record: Record, baseline: str, technique: str, **knobs: Any) -> None:
    """Print quality, MACs and time of the baseline, and of all points with these knobs."""
    named: dict[str, Variant] = {baseline: record.baseline}
    for name, points in series(record, technique).items():
        named |= {f"{name}, {record.knobs[0]} {p.knobs[record.knobs[0]]:g}": p for p in select(points, **knobs)}
    for name, one in named.items():
        quality = interval(one.quality, ".4f")
        print(f"{name:32} {quality}, {one.macs / 1e6:.2f} M MACs, {one.wall_ms.median:.3f} ms for {record.unit}")


def latency(record: Record) -> None:
    """Print MACs and time of every point against the baseline's, with the speed-up of paired rounds."""
    base = record.baseline
    print(f"{record.unit}; baseline {base.macs / 1e6:,.1f} M MACs, {base.wall_ms.median:.4g} ms; {record.machine.cpu}")
    for name, points in series(record).items():
        for point in points:
            faster = interval(speed_up(record, point), ".2f")
            fewer = base.macs / point.macs if point.macs else float("inf")
            print(f"  {name}, {knobs(point)}: {fewer:.2f} x fewer MACs, {faster} x as fast")


# --------------------------------------------------------------------------------------------------------------------
# Cells in space

Cells = np.ndarray[Any, Any]
"""A grid (n, n, n) of occupancies along x (right), y (down) and z (forward)."""
LAYER_COLOURS = (
    ("--atlas-technique-1", "#0072b2"),
    ("--atlas-control-1", "#d55e00"),
    ("--atlas-technique-2", "#009e73"),
)


def space(axis: Any, layers: Mapping[str, Cells], least: float = 0.5) -> None:
    """Occupied cells on an axis with `projection="3d"`; a colour for each layer, and a thousand cells of it at most."""
    for number, (name, cells) in enumerate(layers.items()):
        occupied = np.argwhere(np.asarray(cells) >= least)
        x, y, z = (occupied[:: 1 + len(occupied) // 1000] / len(cells)).T
        axis.scatter(x, z, 1 - y, s=4, marker="s", color=f"C{number}", label=name, alpha=0.6, linewidths=0)
    axis.set(xlim=(0, 1), ylim=(0, 1), zlim=(0, 1), xticks=[], yticks=[], zticks=[])
    axis.set(xlabel="right", ylabel="forward", zlabel="up")
    axis.view_init(elev=22, azim=-72)


class Turnable:
    """Occupied cells that a reader can turn: a drawing with its script inside, in notebooks and on the site."""

    def __init__(self, layers: Mapping[str, Cells], least: float = 0.5) -> None:
        self.layers = {
            name: (len(cells), np.argwhere(np.asarray(cells) >= least).tolist()) for name, cells in layers.items()
        }

    def html(self) -> str:
        """A fragment of HTML that needs nothing else."""
        named = list(zip(self.layers.items(), LAYER_COLOURS, strict=False))
        drawn = [
            {"size": size, "cells": cells, "variable": variable, "colour": colour}
            for (_, (size, cells)), (variable, colour) in named
        ]
        legend = " ".join(
            f'<span style="color:var({variable}, {colour})">&#9632;</span> {html.escape(name)}'
            for (name, _), (variable, colour) in named
        )
        text = Path(__file__).with_name("turnable.html").read_text(encoding="utf-8")
        label = html.escape(", ".join(self.layers))
        return Template(text).substitute(label=label, legend=legend, layers=json.dumps(drawn, separators=(",", ":")))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        counts = ", ".join(f"{name}: {len(cells)} cells" for name, (_, cells) in self.layers.items())
        return {TURNABLE: self.html(), "text/html": self.html(), "text/plain": counts}


# --------------------------------------------------------------------------------------------------------------------
# Drawings one after the other


class Flipbook:
    """Drawings shown one after the other, endlessly; one of them stands still in print and where motion is unwanted.

    drawings: the inside of an SVG picture each, of `size` (width, height); `label` says what they show, `seconds` how
    long each one is seen, `still` which of them stands.
    """

    def __init__(
        self, drawings: Sequence[str], size: tuple[int, int], label: str, seconds: float = 0.7, still: int = 0
    ) -> None:
        self.drawings, self.size, self.label, self.seconds, self.still = drawings, size, label, seconds, still

    def html(self) -> str:
        """A fragment of HTML that needs nothing else."""
        name = f"atlas-flip-{zlib.crc32(''.join(self.drawings).encode()):08x}"
        whole, share = self.seconds * len(self.drawings), 100 / len(self.drawings)
        groups = "".join(
            f'<g{" data-still" * (n == self.still)} style="animation-delay:{n * self.seconds:g}s">{one}</g>'
            for n, one in enumerate(self.drawings)
        )
        style = (
            f"@keyframes {name}{{0%{{visibility:visible}}{share:.4g}%{{visibility:hidden}}100%{{visibility:hidden}}}}"
            f"#{name}>g{{visibility:hidden;animation:{name} {whole:g}s steps(1) infinite}}"
            f"@media print,(prefers-reduced-motion:reduce){{#{name}>g{{animation:none}}"
            f"#{name}>g[data-still]{{visibility:visible}}}}"
        )
        return (
            f'<style>{style}</style><svg id="{name}" class="atlas-plot" viewBox="0 0 {self.size[0]} {self.size[1]}" '
            f'role="img" aria-label="{html.escape(self.label)}" style="max-width:{self.size[0]}px">{groups}</svg>'
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {TURNABLE: self.html(), "text/html": self.html(), "text/plain": self.label}
