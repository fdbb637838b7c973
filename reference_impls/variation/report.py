"""The table of a profile: how much each stage varies, and what share of the whole variation is its.

A stage that runs several times in a frame counts by its sum; one that does not run counts 0. What runs in the frame's
own thread partitions its wall time, and its shares add up to 1 with what no stage covers; what runs beside it, in other
threads and processes, is shown without a share. Frames that failed, or on which a clock went back, are counted and left
out, as are those of the warm-up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reference_impls.variation.attribution import UNATTRIBUTED, constant, decomposition, shares
from reference_impls.variation.clocks import WALL, Clocks
from reference_impls.variation.profiler import Profiler, Span
from reference_impls.variation.spread import Method, Spread, TooFewSamples, spread

MS = 1e-6
"""Milliseconds in a nanosecond."""


@dataclass(frozen=True)
class Row:
    """One stage over the frames, in milliseconds."""

    path: tuple[str, ...]
    """Its name after those of the stages around it; empty for the whole frame."""
    wall: Spread
    cpu: float | None
    """Mean on the processor."""
    queue: float | None
    """Mean wait for one."""
    share: float | None
    """Of the variance of the frame; None for what does not partition it, or where nothing varies."""
    p99_if_constant: float | None
    """P99 of the frame if this stage always took its mean."""


@dataclass(frozen=True)
class Report:
    """What a profile shows."""

    frames: int
    """On which the numbers rest."""
    rows: tuple[Row, ...]
    """The whole frame, then its stages in the order in which they begin, then what no stage covers."""
    decomposition: Mapping[str, float]
    """Shares of processor, run queue and rest in the variance of the frame; empty unless all clocks were read."""
    missed: float | None
    """Share of the frames above the deadline, where one was given."""
    overhead_us: float
    """What marking one stage costs here, in microseconds."""
    left_out: Mapping[str, int]
    """Why -> how many frames or stages are not in the numbers."""

    def to_rows(self) -> list[dict[str, Any]]:
        """The table as a list of dicts, one a stage: `pandas.DataFrame(report.to_rows())`."""
        return [
            {
                "stage": " / ".join(row.path) or "frame",
                "n": row.wall.n, "mean_ms": row.wall.mean, "p50_ms": row.wall.p50, "p99_ms": row.wall.p99,
                "p99_minus_p50_ms": row.wall.predictability, "variation": row.wall.variation,
                "cpu_ms": row.cpu, "queue_ms": row.queue, "share": row.share,
                "p99_if_constant_ms": row.p99_if_constant,
            }
            for row in self.rows
        ]  # fmt: skip

    def to_text(self) -> str:
        """The table for a terminal."""
        columns = ("stage", "mean ms", "P50", "P99", "P99-P50", "cpu ms", "queue ms", "share", "P99 if constant")
        lines = [columns]
        for row in self.rows:
            name = "  " * len(row.path) + (row.path[-1] if row.path else "frame")
            flag = "*" if "P99" in row.wall.sparse else ""
            wall = (
                _ms(row.wall.mean),
                _ms(row.wall.p50),
                _ms(row.wall.p99) + flag,
                _ms(row.wall.predictability) + flag,
            )
            share = "" if row.share is None else f"{row.share:.1%}"
            steady = _ms(row.p99_if_constant) if len(row.path) == 1 else ""
            lines.append((name, *wall, _ms(row.cpu), _ms(row.queue), share, steady))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        number = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        how = f"percentiles by the method {self.rows[0].wall.method}"
        text += ["", f"{number}; {how}; a stage costs {self.overhead_us:.1f} us"]
        if any(row.wall.p99 is None for row in self.rows):
            text.append("- P99: of fewer than 100 frames it would be no percentile")
        elif any("P99" in row.wall.sparse for row in self.rows):
            text.append("* fewer than 1,000 frames: sparse in the tail")
        if self.decomposition:
            parts = ", ".join(f"{name} {share:.1%}" for name, share in self.decomposition.items())
            text.append(f"variance of the frame: {parts}")
        if self.missed is not None:
            text.append(f"deadline missed by {self.missed:.2%} of the frames")
        text += [f"left out: {why}: {number}" for why, number in self.left_out.items()]
        smallest = min((row.wall.mean for row in self.rows[1:] if row.wall.mean > 0), default=None)
        if smallest is not None and self.overhead_us / 1000 > 0.05 * smallest:
            text.append("the smallest stage is short beside what marking it costs: join it with another")
        return "\n".join(text)


def report(
    spans: Iterable[Span],
    *,
    warmup: int = 0,
    deadline: float | None = None,
    method: Method = "linear",
    clocks: Clocks = WALL,
) -> Report:
    """The report of a profile.

    warmup: frames at the beginning of each process that do not count. deadline: of a frame, in milliseconds. clocks:
    those that were read, for the cost of marking a stage.
    Raises: ValueError where no frame is left.
    """
    all_spans = list(spans)
    left_out: Counter[str] = Counter()
    whole = _frames(all_spans, warmup, left_out)
    if not whole:
        why = "; ".join(f"{reason}: {number}" for reason, number in left_out.items())
        raise ValueError(f"no frame is left to report{f': {why}' if why else ', mark one with `profiler.frame()`'}")
    own, beside = _stages(all_spans, whole, left_out)
    total = [span.passed.wall * MS for span in whole.values()]
    top = {path: series for path, series in own.items() if len(path) == 1}
    walls = {path[0]: [r[0] for r in series] for path, series in top.items()}
    varies = len(total) > 1 and float(np.var(total)) > 0
    parts = shares(walls, total) if varies else {}
    rest = (np.asarray(total) - np.sum(list(walls.values()), axis=0)).tolist() if walls else total
    rows = [_row((), [_of(span) for span in whole.values()], method)]
    for path, series in own.items():
        share = parts.get(path[0]) if len(path) == 1 else None
        rows.append(_row(path, series, method, share, total if len(path) == 1 else None))
    if walls:
        blank: list[_Times] = [(value, None, None) for value in rest]
        rows.append(_row((UNATTRIBUTED,), blank, method, parts.get(UNATTRIBUTED), total))
    rows += [_row((*path[:-1], f"{path[-1]} (beside)"), series, method) for path, series in beside.items()]
    return Report(
        frames=len(total), rows=tuple(rows), decomposition=_decomposition(list(whole.values())) if varies else {},
        missed=None if deadline is None else float(np.mean(np.asarray(total) > deadline)),
        overhead_us=overhead(clocks), left_out=dict(left_out),
    )  # fmt: skip


_Times = tuple[float, float | None, float | None]
"""Wall, processor and queue in milliseconds."""
_Key = tuple[int, int | None]
"""Process and number of a frame."""


def _frames(spans: Sequence[Span], warmup: int, left_out: Counter[str]) -> dict[_Key, Span]:
    """Whole frames that count, in their order; why the others do not goes into `left_out`."""
    seen: Counter[int] = Counter()
    kept: dict[_Key, Span] = {}
    for span in sorted((s for s in spans if s.name is None), key=lambda s: s.start):
        seen[span.process] += 1
        if span.failed:
            left_out[f"frames that failed ({span.failed})"] += 1
        elif min(part for part in span.passed if part is not None) < 0:
            left_out["frames on which a clock went back"] += 1
        elif seen[span.process] <= warmup:
            left_out["frames of the warm-up"] += 1
        else:
            kept[span.process, span.frame] = span
    return kept


def _stages(
    spans: Sequence[Span], whole: Mapping[_Key, Span], left_out: Counter[str]
) -> tuple[dict[tuple[str, ...], list[_Times]], dict[tuple[str, ...], list[_Times]]]:
    """Time of each stage in each frame: in the frame's own thread, and beside it."""
    place = {key: n for n, key in enumerate(whole)}
    threads = {key: span.thread for key, span in whole.items()}
    own: dict[tuple[str, ...], list[_Times]] = {}
    beside: dict[tuple[str, ...], list[_Times]] = {}
    for span in sorted((s for s in spans if s.name is not None), key=lambda s: s.start):
        key = (span.process, span.frame)
        if span.frame is None:
            left_out["stages outside of frames"] += 1
        if key not in place:
            continue
        if span.passed.wall < 0:
            left_out["stages on which a clock went back"] += 1
            continue
        table = own if threads[key] == span.thread else beside
        assert span.name is not None
        series = table.setdefault((*span.path, span.name), [(0.0, None, None)] * len(place))
        series[place[key]] = _add(series[place[key]], _of(span))
    return own, beside


def _of(span: Span) -> _Times:
    wall, cpu, queue = span.passed
    return wall * MS, None if cpu is None else cpu * MS, None if queue is None else queue * MS


def _add(a: _Times, b: _Times) -> _Times:
    def both(x: float | None, y: float | None) -> float | None:
        return y if x is None else x if y is None else x + y

    return a[0] + b[0], both(a[1], b[1]), both(a[2], b[2])


def _row(
    path: tuple[str, ...],
    series: Sequence[_Times],
    method: Method,
    share: float | None = None,
    total: Sequence[float] | None = None,
) -> Row:
    wall = [times[0] for times in series]
    steady = None
    if total is not None:
        try:
            steady = constant(wall, total, method=method)
        except TooFewSamples:
            steady = None
    return Row(path, spread(wall, method=method), _mean(series, 1), _mean(series, 2), share, steady)


def _mean(series: Sequence[_Times], clock: int) -> float | None:
    known = [value for times in series if (value := times[clock]) is not None]
    return sum(known) / len(series) if known else None


def _decomposition(frames: Sequence[Span]) -> dict[str, float]:
    walls, cpus, queues = zip(*(span.passed for span in frames), strict=True)
    return {} if None in cpus or None in queues else decomposition(walls, cpus, queues)


def overhead(clocks: Clocks = WALL, *, repetitions: int = 1000) -> float:
    """Median time that marking one empty stage takes here, in microseconds."""
    profiler, taken = Profiler(clocks), []
    for _ in range(repetitions):
        begin = time.perf_counter_ns()
        with profiler.stage("empty"):
            pass
        taken.append(time.perf_counter_ns() - begin)
    return float(np.median(taken)) / 1000


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"
