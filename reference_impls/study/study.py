"""A study: the variants of a scenario, counted and timed together, and the record that comes of it.

A variant is named by its series (the baseline, the technique, a control) and its knobs: no label is made, nor parsed.
Variants are added with what they deliver, once for each seed or at once, then measured in one interleaved run:

    for seed in study.plan.seeds:
        model = train(seed)
        study.add(BASELINE, call=forward(model, batch), units=len(batch), score=accuracy(model, x, y))
        for r in study.plan.rs:
            merged = attached(model, r)
            study.add(TECHNIQUE, {"r": r}, forward(merged, batch), units=len(batch), score=accuracy(merged, x, y))
    study.measure()
    return study.record(data="...", unit="one image", knobs=("r",), metric="accuracy", redundancy=...)
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from reference_impls.accounting.count import Tally, count
from reference_impls.accounting.preparation import heard
from reference_impls.accounting.record import (
    Control,
    Interval,
    Items,
    Measured,
    Point,
    Preparation,
    Preparing,
    Quality,
    Record,
    Shared,
    Table,
    WallTime,
)
from reference_impls.accounting.record import Variant as VariantRecord
from reference_impls.accounting.timing import Streams, repeat, repeat_items, speed_up, wall_time
from reference_impls.contract import Redundancy
from reference_impls.study import intervals
from reference_impls.study.machine import machine, versions
from reference_impls.study.plan import Context, Plan, Scenario

P_co = TypeVar("P_co", bound=Plan, covariant=True)
Knobs = Mapping[str, bool | int | float | str]
LEAST_ITEMS = 100
"""Below it there is no 99th percentile."""
BASELINE, TECHNIQUE = "baseline", "technique"
"""Series that every record has. Any other series is a control, or in a benchmark the technique whose id it is."""


@dataclass(frozen=True)
class Cost:
    """What one unit of work cost: counted once, timed interleaved with the other variants."""

    macs: int
    bytes: int
    uncounted: tuple[str, ...]
    samples: tuple[float, ...]
    """Milliseconds of each round; round i of all variants was measured together."""

    @property
    def wall_ms(self) -> WallTime:
        """Median and percentiles of the rounds."""
        return wall_time(self.samples)

    def speed_up_over(self, other: Cost) -> Interval | None:
        """How many times faster than `other`, from paired rounds; None if the rounds do not pair.

        Where a cost pools several networks of the same rounds, each of them is paired.
        """
        times, rest = divmod(len(self.samples), len(other.samples))
        return None if rest else speed_up(other.samples * times, self.samples)

    def plus(self, macs: int) -> Cost:
        """With MACs that the counter cannot see, such as those of a library outside torch, added."""
        return replace(self, macs=self.macs + macs)


def pooled(costs: Sequence[Cost]) -> Cost:
    """One cost of several networks, such as those that the seeds found: means of counts, and all rounds."""
    return Cost(
        macs=round(float(np.mean([cost.macs for cost in costs]))),
        bytes=round(float(np.mean([cost.bytes for cost in costs]))),
        uncounted=tuple(sorted({name for cost in costs for name in cost.uncounted})),
        samples=tuple(sample for cost in costs for sample in cost.samples),
    )


@dataclass
class Variant:
    """One configuration of a study."""

    series: str
    knobs: dict[str, Any]
    call: Callable[[], object] | None = None
    units: int = 1
    """Units of work that one call does."""
    scores: list[float] = field(default_factory=list)
    """What it delivers, seed by seed."""
    quality: Interval | None = None
    """What it delivers, where that is no mean over seeds."""
    stream: Callable[[], Iterable[Callable[[], object]]] | None = None
    """Begins a stream of single items, one call each, where the spread over items is asked."""
    items: Items | None = None
    samples: int | None = None
    redundancy: float | None = None
    cost: Cost | None = None


class Study(Generic[P_co]):
    """The variants of one scenario in one budget.

    plan: the scenario's sizes in this budget. owner: id of the technique, or of the benchmark where several meet.
    """

    def __init__(self, owner: str, scenario: Scenario, context: Context) -> None:
        self.owner, self.scenario, self.context = owner, scenario, context
        self.plan: P_co = scenario.plan(context.budget)  # type: ignore[assignment]  # the scenario's own subclass
        self._variants: dict[tuple[str, tuple[tuple[str, Any], ...]], Variant] = {}
        self._counted, self._excluded, self._shared = list[Preparation](), list[Preparation](), list[Shared]()

    @property
    def device(self) -> str:
        """Torch device to measure on."""
        return self.context.device

    def progress(self, label: str, done: int, total: int) -> None:
        """Tell how far the study is."""
        self.context.progress(label, done, total)

    def add(
        self,
        series: str,
        knobs: Knobs | None = None,
        call: Callable[[], object] | None = None,
        *,
        units: int = 1,
        stream: Callable[[], Iterable[Callable[[], object]]] | None = None,
        score: float | Sequence[float] | None = None,
        quality: Interval | None = None,
        items: Items | None = None,
        samples: int | None = None,
        redundancy: float | None = None,
        cost: Cost | None = None,
    ) -> None:
        """Add a variant, or to the variant of the same series and knobs: scores gather, everything else is replaced.

        Args:
            series: `BASELINE`, `TECHNIQUE`, or the name of a control.
            call: does the work of `units` units; counted and timed by `measure`.
            stream: begins a stream of the same items for all variants that have one, a call for each item; `measure`
                tells from it how cost varies from item to item. For techniques whose work follows the data.
            score: what it delivers for the next seed, or for several.
            quality: what it delivers with its interval, where it is not a mean over seeds.
            items, samples, redundancy: as in the record; `items` where the spread was measured elsewhere.
            cost: what it costs, where that was measured elsewhere (`cost`, `pooled`).
        """
        knobs = dict(knobs or {})
        variant = self._variants.setdefault((series, tuple(sorted(knobs.items()))), Variant(series, knobs))
        if score is not None:
            variant.scores += np.atleast_1d(score).tolist()
        if call is not None:
            variant.call, variant.units = call, units
        others: dict[str, Any] = {"stream": stream, "items": items, "quality": quality, "samples": samples}
        others |= {"redundancy": redundancy, "cost": cost}
        for name, value in others.items():
            if value is not None:
                setattr(variant, name, value)

    def prepare(
        self,
        kind: Preparing,
        what: str,
        macs: int | None = None,
        *,
        held: Literal["counted", "excluded", "shared"] = "excluded",
        technique: str | None = None,
    ) -> None:
        """Say of a preparation where its cost is: `record` refuses a study in which one was heard of and not said.

        Args:
            kind, what: of the preparation; `what` follows the words "left out:".
            macs: of all of it, once; may be absent only for a shared one.
            held: `counted` in the MACs of every point, `excluded` from them, or `shared`: the baseline needs it as
                well, or a control alone.
            technique: whose it is, in a benchmark where several meet.
        Raises: ValueError without MACs for what is not shared.
        """
        if held == "shared":
            self._shared.append(Shared(kind=kind, what=what, macs=macs))
        elif macs is None:
            raise ValueError(f"say how many MACs {what} takes: what is {held} has a size")
        else:
            said = self._counted if held == "counted" else self._excluded
            said.append(Preparation(kind=kind, what=what, macs=macs, technique=technique))

    def variant(self, series: str, **knobs: Any) -> Variant:
        """The variant of a series with these knobs. Raises LookupError that says which there are."""
        key = (series, tuple(sorted(knobs.items())))
        if key not in self._variants:
            there = "; ".join(f"{s} {dict(k)}" if k else s for s, k in self._variants)
            raise LookupError(f"the study has no variant {series!r} with {knobs}; there are: {there or 'none'}")
        return self._variants[key]

    def series(self, name: str) -> list[Variant]:
        """The variants of a series, in the order in which they were added."""
        return [v for (series, _), v in self._variants.items() if series == name]

    def measure(self, repetitions: int | None = None) -> None:
        """Count and time every variant that has a call and no cost yet, all of them in the same interleaved rounds.

        Figures are per unit of work. `repetitions`: rounds, in the place of the plan's.
        """
        waiting = {str(n): v for n, v in enumerate(self._variants.values()) if v.call and v.cost is None}
        calls = {label: v.call for label, v in waiting.items() if v.call}
        units = {label: v.units for label, v in waiting.items()}
        rounds = self.plan.repetitions if repetitions is None else repetitions
        for label, cost in measure_calls(calls, units=units, repetitions=rounds, threads=self.context.threads).items():
            waiting[label].cost = cost
        streams = {str(n): v for n, v in enumerate(self._variants.values()) if v.stream and v.items is None}
        found = measure_items({n: v.stream for n, v in streams.items() if v.stream}, threads=self.context.threads)
        for label, items in found.items():
            streams[label].items = items

    def cost(self, series: str, **knobs: Any) -> Cost:
        """What a variant cost. Raises LookupError before it was measured."""
        variant = self.variant(series, **knobs)
        if variant.cost is None:
            raise LookupError(f"the variant {series!r} with {knobs} was not measured: call `measure` first")
        return variant.cost

    def record(
        self,
        *,
        metric: str,
        higher_is_better: bool = True,
        controls: Mapping[str, str] | None = None,
        other_input: Collection[str] = (),
        pictures: Mapping[str, Any] | None = None,
        **said: Any,
    ) -> Record:
        """The record of everything that was added and measured, with paired speed-ups and gains.

        Args:
            metric, higher_is_better: what the scores are.
            controls: series -> what differs from the technique's own points.
            other_input: those of the controls that work on other input.
            pictures: name -> array, saved beside the record.
            said: the other fields of the `Record`: `data`, `unit`, `knobs`, `redundancy`, perhaps `model`, `notes`, ...
        Raises: ValueError for a series that is neither the technique's nor a control that is said here, and for a
            preparation that was heard of and that `prepare` was not told of.
        """
        controls = dict(controls or {})
        joint, where, budget = self.scenario.benchmark == self.owner, self.scenario, self.context.budget
        rest = {v.series for v in self._variants.values()} - {BASELINE, *controls}
        if unsaid := rest - {TECHNIQUE} if not joint else set():
            raise ValueError(f"say in `controls` what these series are: {', '.join(sorted(unsaid))}")
        prepared: tuple[Preparation | Shared, ...] = (*self._counted, *self._excluded, *self._shared)
        if unsaid := {str(kind) for kind in heard() - {one.kind for one in prepared}}:
            raise ValueError(
                f"the study runs a {', a '.join(sorted(unsaid))}, and nothing says if the variants' cost holds it: "
                'tell `study.prepare`, such as study.prepare("embedding", "embedding the texts", macs)'
            )
        fields = partial(self._fields, metric=metric, higher_is_better=higher_is_better, controls=list(controls))

        def points(names: Collection[str], joint: bool = False) -> tuple[Point, ...]:
            chosen = [v for v in self._variants.values() if v.series in names]
            return tuple(Point(**fields(v), knobs=v.knobs, technique=v.series if joint else None) for v in chosen)

        record = Record(
            technique=None if joint else self.owner,
            benchmark=where.benchmark,
            scenario=where.name,
            title=where.title,
            budget=budget,
            baseline=VariantRecord(**fields(self.baseline)),
            points=points(rest, joint),
            controls=tuple(
                Control(name=n, about=about, points=points({n}), other_input=n in other_input)
                for n, about in controls.items()
            ),
            counted=tuple(self._counted),
            excluded=tuple(self._excluded),
            shared=tuple(self._shared),
            pictures=tuple(pictures or ()),
            seeds=self.plan.seeds,
            device=self.device,
            machine=machine(self.device, self.context.threads),
            versions=versions(),
            command=f"redundancy run {self.owner} --scenario {where.name} --budget {budget} --device {self.device}",
            date=datetime.date.today().isoformat(),
            **said,
        )
        record.arrays.update({name: np.asarray(x, dtype=np.float32) for name, x in (pictures or {}).items()})
        return record

    @property
    def baseline(self) -> Variant:
        """The baseline: the fastest, once measured, where there are several dense ways to the result."""
        return min(self.series(BASELINE), key=lambda v: v.cost.wall_ms.median if v.cost else 0.0)

    def _fields(self, variant: Variant, metric: str, higher_is_better: bool, controls: Sequence[str]) -> dict[str, Any]:
        base = self.baseline
        if variant.cost is None or base.cost is None:
            raise ValueError(f"{variant.series} {variant.knobs} was not measured: call `measure`, or give its cost")
        if variant.quality is None and not variant.scores:
            raise ValueError(f"{variant.series} {variant.knobs} has neither a score nor a quality")
        found = variant.quality or intervals.over_seeds(variant.scores)
        return {
            "macs": variant.cost.macs,
            "bytes": variant.cost.bytes,
            "uncounted": variant.cost.uncounted,
            "wall_ms": variant.cost.wall_ms,
            "speed_up": None if variant is base else variant.cost.speed_up_over(base.cost),
            "quality": Quality(**dict(found), metric=metric, higher_is_better=higher_is_better),
            "gain": self._gains(variant, controls),
            "items": variant.items,
            "samples": variant.samples,
            "redundancy": variant.redundancy,
        }

    def _gains(self, variant: Variant, controls: Sequence[str]) -> dict[str, Interval]:
        """Paired by seed: over the baseline, and of the technique's points over each control with the same knobs."""
        others = {} if variant.series == BASELINE else {BASELINE: self.baseline}
        if variant.series not in (BASELINE, *controls):
            knobs = tuple(sorted(variant.knobs.items()))
            others |= {name: self._variants[name, knobs] for name in controls if (name, knobs) in self._variants}
        return {
            name: intervals.paired(variant.scores, other.scores)
            for name, other in others.items()
            if len(variant.scores) == len(other.scores) > 1
        }


def measure_calls(
    calls: Mapping[str, Callable[[], object]], *, units: Mapping[str, int], repetitions: int, threads: int = 1
) -> dict[str, Cost]:
    """Count every call once, and time all of them in interleaved rounds; all figures are per unit of work."""
    if not calls:
        return {}
    costs, tallies = {}, dict[str, Tally]()
    for label, call in calls.items():
        with count() as tallies[label]:
            call()
    times = repeat(calls, repetitions=repetitions, threads=threads)
    for label, tally in tallies.items():
        macs, moved = round(tally.macs / units[label]), round(tally.bytes / units[label])
        samples = tuple(sample / units[label] for sample in times[label])
        costs[label] = Cost(macs, moved, tuple(sorted(tally.uncounted)), samples)
    return costs


def measure_items(streams: Streams, *, threads: int = 1) -> dict[str, Items]:
    """How the cost of items varies in each stream: MACs counted in a first pass, time in three more, side by side.

    Streams of fewer than 100 items are left out: they have no 99th percentile.
    """
    counted = {label: list(map(_macs, begin())) for label, begin in streams.items()}
    long_ = {label: begin for label, begin in streams.items() if len(counted[label]) >= LEAST_ITEMS}
    times = repeat_items(long_, threads=threads) if long_ else {}
    return {label: items for label, ms in times.items() if (items := items_of(counted[label], ms))}


def items_of(macs: Sequence[float], ms: Sequence[float]) -> Items | None:
    """The spread of single items, one number each; None for fewer than 100, which have no 99th percentile."""
    if len(ms) < LEAST_ITEMS:
        return None
    (macs_p50, macs_p99), (ms_p50, ms_p99) = (np.percentile(x, [50, 99]).tolist() for x in (macs, ms))
    return Items(n=len(ms), macs_p50=macs_p50, macs_p99=macs_p99, ms_p50=ms_p50, ms_p99=ms_p99)


def _macs(call: Callable[[], object]) -> int:
    with count() as tally:
        call()
    return tally.macs


def measured(
    found: Sequence[Redundancy],
    null: Mapping[str, float] | None = None,
    *,
    interval: Callable[[Sequence[float]], Interval] = intervals.over_seeds,
) -> Measured:
    """Redundancy measured once for each seed, or with `intervals.over_items` for each data item, and its nulls."""
    mean = interval([one.value for one in found])
    ends = {} if mean.low is None or mean.high is None else {"low": max(mean.low, 0.0), "high": min(mean.high, 1.0)}
    where = {name: float(np.mean([one.where[name] for one in found])) for name in found[0].where}
    return Measured(**dict(mean) | ends, measure=found[0].measure, where=where, null=dict(null or {}))


def table(about: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table of a record: `columns` are its names, a cell is a number, a word, an `Interval` or None."""
    return Table(about=about, columns=tuple(columns), rows=tuple(tuple(row) for row in rows))
