"""The pages of benchmarks: every technique that is measured in one, over what it costs, and its rank at a small loss.

Records of a benchmark differ in data and model, so that the figures show shares: what a variant costs and what quality
it keeps beside the baseline of its own record. A reader can look at one task alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from reference_impls.accounting.record import Point, Record
from reference_impls.accounting.saving import rivals

from ..compare import Group, Row, Saving, compare
from ..headlines import knobs
from ..numbers import number
from . import figures
from .figures import Curve
from .markup import Html, href, prose
from .model import Atlas, Page
from .parts import View
from .shares import COSTS, Cost, kept

LOSSES = (0.005, 0.01, 0.02)
"""Shares of the baseline's quality that a setting of the ranking may lose."""
LEAST = 70.0
"""Points that keep less than so many per cent of the quality stand in the tables alone."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its records."""

    atlas: Atlas
    id: str
    text: str
    """The docstring of its module."""

    @property
    def path(self) -> str:
        return f"benchmarks/{self.id}.md"

    @property
    def name(self) -> str:
        return self.id.replace("-", " ").capitalize()

    @property
    def lead(self) -> str:
        """What it asks, from the first sentence of the docstring, after its name."""
        first = self.text.partition("\n\n")[0].replace("\n", " ")
        name, _, asked = first.partition(": ")
        said = asked if asked and len(name.split()) <= 3 else first
        return said[:1].upper() + said[1:]

    @property
    def about(self) -> str:
        """The rest of the docstring."""
        return self.text.partition("\n\n")[2]

    @cached_property
    def records(self) -> list[Record]:
        return [r for r in self.atlas.knowledge.records if r.benchmark == self.id]

    @cached_property
    def techniques(self) -> list[str]:
        """Ids of the entries that have points, those with the most records first."""
        found = [t for r in self.records for t in ([r.technique] if r.technique else _of(r))]
        known = [t for t in dict.fromkeys(found) if t in self.atlas.knowledge.entries]
        return sorted(known, key=lambda t: (-found.count(t), t))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Records of one task each: same data, model, unit and metric."""
        return compare(self.atlas.knowledge, self.id).groups

    def group_of(self, record: Record) -> int:
        """Number of the record's task."""
        key = (record.data, record.model, record.unit, record.baseline.quality.metric)
        return [(g.data, g.model, g.unit, g.metric) for g in self.groups].index(key)


def _of(record: Record) -> list[str]:
    return [point.technique for point in record.points if point.technique]


def benchmarks(atlas: Atlas) -> list[Benchmark]:
    """Every benchmark, by name."""
    texts = atlas.material.benchmarks
    return [Benchmark(atlas, id_, texts.get(id_, "")) for id_ in sorted(atlas.knowledge.benchmarks)]


def pages(atlas: Atlas) -> list[Page]:
    """The page of all benchmarks, then one each."""
    found = benchmarks(atlas)
    return [*([_index(atlas, found)] if found else []), *(page(one) for one in found)]


def _index(atlas: Atlas, found: Sequence[Benchmark]) -> Page:
    return View(atlas, "benchmarks/index.md").page(
        "benchmarks.md", "Benchmarks", "reference_impls/benchmarks", found=found
    )


def page(one: Benchmark) -> Page:
    """The page of a benchmark."""
    view = View(one.atlas, one.path)
    drawn = [(cost, *_figure(one, cost)) for cost in COSTS]
    return view.page(
        "benchmark.md", one.name, f"reference_impls/benchmarks/{one.id.replace('-', '_')}", one=one,
        about=prose(one.about) if one.about else "",
        figures=[(cost, figure, hidden) for cost, figure, hidden in drawn if figure],
        swatches=[(figures.curve_swatch(i), id_, _scenarios(one, id_)) for i, id_ in enumerate(one.techniques)],
        rankings=[(allowed, list(_ranking(one, allowed))) for allowed in LOSSES], losses=LOSSES,
        tasks=[(i, g) for i, g in enumerate(one.groups)], meta={"hide": ["toc"]},
    )  # fmt: skip


def _scenarios(one: Benchmark, technique: str) -> int:
    return sum(technique in ([r.technique] if r.technique else _of(r)) for r in one.records)


# --- figures ----------------------------------------------------------------------------------------------------------


def _figure(one: Benchmark, cost: Cost) -> tuple[Html | None, int]:
    """Quality kept against a cost, and how many points of techniques the figure has no place for."""
    curves, hidden = [], 0
    for record in one.records:
        group = one.group_of(record)
        for technique in [record.technique] if record.technique else dict.fromkeys(_of(record)):
            if technique not in one.techniques:
                continue
            points = [p for p in record.points if p.technique in (None, technique)]
            marks, lost = _marks(record, points, cost, record.title)
            hidden += lost
            where = href(one.path, f"techniques/{technique}.md")
            name = one.atlas.knowledge.entries[technique].name
            number_ = one.techniques.index(technique)
            curves.append(Curve(name, number_, where, group, marks, joined=len(record.knobs) == 1))
        for control in rivals(record):
            marks, _ = _marks(record, control.points, cost, f"control, {control.name}: {record.title}")
            curves.append(Curve(control.name, None, "", group, marks, joined=False))
    drawn = [c for c in curves if c.marks]
    if not any(c.number is not None for c in drawn):
        return None, hidden
    title = f"{one.name}: quality kept against {cost.name.lower()}"
    figure = figures.overview(
        drawn, figures.Axis(cost.label, positive=True), figures.Axis("quality kept, % of the baseline's"),
        title=title, description=_described(one, cost), name=f"fig-{cost.id}", groups=range(len(one.groups)),
    )  # fmt: skip
    return figure, hidden


def _marks(record: Record, points: Sequence[Point], cost: Cost, title: str) -> tuple[list[figures.Mark], int]:
    marks, hidden = [], 0
    for point in points:
        x, y = cost.of(record, point), kept(record, point)
        if x is None or x <= 0 or y is None or y < LEAST:
            hidden += 1
            continue
        told = f"{knobs(point)}: {number(y, 4)} % of the quality at {number(x)} % of the cost ({title})"
        marks.append(figures.Mark(x, y, tooltip=told))
    return marks, hidden


def _described(one: Benchmark, cost: Cost) -> str:
    names = ", ".join(one.atlas.knowledge.entries[t].name for t in one.techniques)
    return f"Each curve is a technique on one task, in per cent of its own baseline: {names}. Against {cost.label}."


# --- ranking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """A line of the ranking."""

    row: Row
    group: int
    setting: str
    control: str

    @property
    def best(self) -> Saving | None:
        return self.row.best


def _ranking(one: Benchmark, allowed: float) -> Iterator[Ranked]:
    """Techniques on tasks at a loss, those that save the most MACs first; models with random weights come last."""
    rows = [
        Ranked(row, i, _setting(row.best), _control(row))
        for i, group in enumerate(compare(one.atlas.knowledge, one.id, allowed).groups)
        for row in group.rows
        if row.technique in one.techniques
    ]
    return iter(sorted(rows, key=lambda r: (r.row.random_weights, -(r.best.macs_saved if r.best else -1))))


def _setting(saving: Saving | None) -> str:
    if saving is None:
        return "none"
    return ", ".join(f"{name} = {value}" for name, value in saving.knobs.items()) or "one setting"


def _control(row: Row) -> str:
    if row.control is None:
        return f"none of {row.controls}" if row.controls else "none tried"
    return f"{number(100 * row.control.macs_saved)} % ({row.control.name})"
