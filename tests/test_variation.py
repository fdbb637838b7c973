"""The profiler of time variation: marks, spread, shares, fusion, prediction, trace and command."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reference_impls.variation import (
    ALL,
    WALL,
    Arrival,
    Clocks,
    Profiler,
    Reading,
    ScriptedClock,
    Span,
    TooFewSamples,
    accuracy,
    constant,
    decomposition,
    fit,
    load,
    percentile,
    queries,
    report,
    shares,
    spread,
    synchronise,
    violations,
    write_trace,
)
from reference_impls.variation.fusion import Policy, chosen, run
from reference_impls.variation.live import BranchDied, Branches
from reference_impls.variation.prediction import last_value
from reference_impls.variation.report import overhead
from reference_impls.variation.spread import certified, correlation_length, interval, needed
from reference_impls.variation.trace import trace_events
from tests.interrupted import hear_interrupts
from tools.cli import main

MS = 1_000_000
ROOT = Path(__file__).parents[1]


def scripted(*readings: int) -> Profiler:
    return Profiler(Clocks(wall=ScriptedClock(readings)))


def frames(stages: dict[str, list[int]], gap: list[int] | None = None) -> list[Span]:
    """A profile in which each frame runs these stages one after the other, each for so many milliseconds."""
    n = len(next(iter(stages.values())))

    def readings() -> Iterator[int]:
        now = 0
        for i in range(n):
            yield now * MS
            for times in stages.values():
                yield now * MS
                now += times[i]
                yield now * MS
            now += gap[i] if gap else 0
            yield now * MS

    profiler = Profiler(Clocks(wall=ScriptedClock(readings())))
    for _ in range(n):
        with profiler.frame():
            for name in stages:
                with profiler.stage(name):
                    pass
    return profiler.spans


# --- marks


def test_a_stage_takes_what_the_clock_says() -> None:
    profiler = scripted(0, 10, 30, 35, 100, 130)
    with profiler.frame(proposals=3) as frame:
        with profiler.stage("backbone"):
            pass
        frame.count(boxes=2)
        with profiler.stage("head") as head:
            assert head.name == "head"
    backbone, head_, whole = profiler.spans
    assert (backbone.start, backbone.passed) == (10, Reading(20))
    assert (head_.start, head_.passed) == (35, Reading(65))
    assert (whole.name, whole.start, whole.passed) == (None, 0, Reading(130))
    assert whole.counts == {"proposals": 3, "boxes": 2}
    assert {s.frame for s in profiler.spans} == {0}


def test_stages_nest_and_failures_close_them() -> None:
    profiler = Profiler()
    with pytest.raises(KeyError), profiler.frame(), profiler.stage("outer"), profiler.stage("inner"):
        raise KeyError("x")
    inner, outer, whole = profiler.spans
    assert (inner.name, inner.path, inner.failed) == ("inner", ("outer",), "KeyError")
    assert (outer.name, outer.path, outer.failed) == ("outer", (), "KeyError")
    assert whole.failed == "KeyError"
    with profiler.frame(), profiler.stage("next"):
        pass
    assert (profiler.spans[-2].path, profiler.spans[-2].frame) == ((), 1), "the failed stages have been left"


def test_a_function_is_a_stage_each_time_it_is_called() -> None:
    profiler = Profiler()

    @profiler.stage("twice")
    def twice(n: int) -> int:
        """Doubles."""
        return twice(n - 1) + 2 if n else 0

    with profiler.frame():
        assert twice(2) == 4
    assert [s.path for s in profiler.spans[:3]] == [("twice", "twice"), ("twice",), ()]
    assert twice.__doc__ == "Doubles."


def test_what_cannot_be_a_stage_is_said() -> None:
    profiler = Profiler()

    async def later() -> None: ...

    def some() -> Iterator[int]:
        yield 1

    for function in (later, some):
        with pytest.raises(TypeError, match="only begins when it is called"):
            profiler.stage("x")(function)
    with pytest.raises(TypeError, match="a frame is one item"):
        profiler.frame()(len)
    stage = profiler.stage("once")
    with stage:
        pass
    with pytest.raises(RuntimeError, match="entered before"), stage:
        pass
    with pytest.raises(ValueError, match="'proposals' must be finite, got nan"):
        profiler.frame(proposals=math.nan)
    with profiler.frame() as frame, pytest.raises(ValueError, match="'n' must be finite"):
        frame.count(n=math.inf)


def test_threads_do_not_mix() -> None:
    profiler = Profiler(ALL)
    inside = threading.Barrier(2)

    def work(name: str) -> None:
        with profiler.frame(), profiler.stage(name):
            inside.wait()
            with profiler.stage("inner"):
                inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_thread = {s.thread: [] for s in profiler.spans}
    for s in profiler.spans:
        by_thread[s.thread].append(s)
    assert len(by_thread) == 2
    for own in by_thread.values():
        inner, outer, whole = own
        assert inner.path == (outer.name,)
        assert inner.frame == outer.frame == whole.frame
    assert {own[1].frame for own in by_thread.values()} == {0, 1}


def test_a_worker_takes_part_in_a_frame_beside_it() -> None:
    profiler = Profiler()

    def work() -> None:
        with profiler.stage("on its own"):
            pass
        with frame.stage("part"), profiler.stage("deeper"):
            pass

    for _ in range(2):
        with profiler.frame() as frame, profiler.stage("wait"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    found = {s.name: s for s in profiler.spans[:4]}
    assert found["on its own"].frame is None
    assert (found["part"].frame, found["part"].path) == (0, ())
    assert (found["deeper"].frame, found["deeper"].path) == (0, ("part",))
    rows = {row.path: row for row in report(profiler.spans).rows}
    assert rows["part (beside)",].share is None
    assert rows["wait",].share is not None
    assert report(profiler.spans).left_out == {"stages outside of frames": 2}


def test_a_thread_that_dies_in_a_stage_leaves_it_and_the_others_go_on() -> None:
    profiler = Profiler()

    def dies() -> None:
        with contextlib.suppress(ZeroDivisionError), frame.stage("dies"):
            1 / 0  # noqa: B018

    for _ in range(2):
        with profiler.frame() as frame:
            thread = threading.Thread(target=dies)
            thread.start()
            with profiler.stage("goes on"):
                thread.join()
    assert sorted((s.name, s.failed) for s in profiler.spans if s.name) == [
        ("dies", "ZeroDivisionError"), ("dies", "ZeroDivisionError"), ("goes on", ""), ("goes on", ""),
    ]  # fmt: skip
    found = report(profiler.spans)
    assert (found.frames, found.left_out) == (2, {})
    assert [row.path for row in found.rows] == [(), ("goes on",), ("unattributed",), ("dies (beside)",)]


def test_a_stage_that_ends_in_another_thread_keeps_the_wall_clock_alone() -> None:
    profiler = Profiler(Clocks(cpu=lambda: 1))
    stage = profiler.stage("handed over")
    stage.__enter__()
    thread = threading.Thread(target=stage.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    (span,) = profiler.spans
    assert span.passed.wall > 0
    assert span.passed.cpu is None


def test_the_clock_of_the_run_queue_is_that_of_the_calling_thread() -> None:
    if ALL.queue is None:
        pytest.skip("this system keeps no run-queue time")

    def of_this_thread() -> int:
        return int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1])

    readings: list[tuple[int, int, int]] = []

    def read() -> None:
        readings.append((ALL.queue(), of_this_thread(), ALL.queue()))

    read()
    for _ in range(2):  # a second thread must not go on with the file of the first
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    for before, own, after in readings:
        assert 0 <= before <= own <= after
    assert ALL.names == ("wall", "cpu", "queue")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_keeps_its_own_stages_and_not_its_parents(tmp_path: Path) -> None:
    script = f"""
import os
from reference_impls.variation import ALL, Profiler
profiler = Profiler(ALL, log={str(tmp_path / "log")!r})
with profiler.frame(), profiler.stage("parent"):
    if not (child := os.fork()):
        with profiler.stage("child"):
            pass
    else:
        os.waitpid(child, 0)
if child:
    with profiler.stage("dies"):
        os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    found = {s.name: s for s in load(tmp_path / "log")}
    assert set(found) == {"parent", "child", None, "dies"}
    assert found["child"].process != found["parent"].process
    assert found["dies"].failed == "never ended"
    assert found["parent"].failed == found["child"].failed == ""
    assert [e["ph"] for e in trace_events(found.values()) if e["name"] == "dies"] == ["B"]


def test_a_log_that_was_cut_is_read_and_one_that_is_none_is_named(tmp_path: Path) -> None:
    profiler = Profiler(log=tmp_path)
    with profiler.frame(), profiler.stage("a"):
        pass
    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_text()
    file.write_text(whole[: whole.rindex("\n", 0, -1) + 9])
    assert [(s.name, s.failed) for s in load(tmp_path)] == [(None, "never ended"), ("a", "")]
    file.write_text(whole + "[1, 2]\n")
    with pytest.raises(ValueError, match=r"line 5: not a span"):
        load(tmp_path)


# --- spread


@pytest.mark.parametrize("method", ["linear", "inverted_cdf", "median_unbiased"])
def test_percentiles_are_those_of_numpy(method: str) -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    for q in (1, 50, 90, 99, 99.9):
        assert percentile(values, q, method=method) == np.percentile(values, q, method=method)


def test_loadgen_takes_the_sample_at_the_floor() -> None:
    values = list(range(800))[::-1]
    assert percentile(values, 90, method="loadgen") == 720
    assert percentile(values, 99, method="loadgen") == 792
    assert percentile([5.0], 100, method="loadgen") == 5


def test_the_spread_of_five_worked_out_by_hand() -> None:
    found = spread([2, 4, 4, 4, 6])
    assert (found.n, found.mean, found.minimum, found.maximum, found.range) == (5, 4, 2, 6, 4)
    assert found.std == math.sqrt(8 / 4), "n - 1 in the denominator"
    assert found.variation == pytest.approx(math.sqrt(2) / 4)
    assert (found.p50, found.mad) == (4, 0)
    assert found.p90 is found.p99 is found.predictability is None
    one = spread([3.0])
    assert (one.mean, one.p50, one.std, one.variation) == (3, 3, None, None)
    assert spread([0.0, 0.0]).variation is None


def test_tails_need_samples() -> None:
    for n in (99, 100, 999, 1000):
        found = spread(range(1, n + 1))
        assert (found.p99 is None) == (n < 100), n
        assert ("P99" in found.sparse) == (100 <= n < 1000), n
    with pytest.raises(TooFewSamples, match="P99 of 99 samples is no percentile: take at least 100"):
        percentile(range(99), 99)
    assert [needed(q, 1) for q in (50, 90, 99, 99.9, 1)] == [2, 10, 100, 1000, 100]
    assert needed(0, 1) == needed(100, 1) == 1


@pytest.mark.parametrize(
    ("samples", "says"),
    [([], "a row of samples"), ([[1.0]], "a row"), ([1, math.nan], "sample 1 is nan"), ([math.inf], "sample 0 is inf")],
)
def test_bad_samples_are_named(samples: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spread(samples)


def test_how_many_samples_a_tail_needs_is_that_of_loadgen() -> None:
    assert (queries(0.99, 0), queries(0.99, 1), queries(0.9, 1)) == (459, 662, 64)
    assert violations(458, 0.99) is None
    assert (violations(459, 0.99), violations(661, 0.99), violations(662, 0.99)) == (0, 0, 1)
    values = np.random.default_rng(1).permutation(800)
    assert certified(values, 0.9) == 740, "59 are discarded"
    with pytest.raises(TooFewSamples, match="take at least 662"):
        certified(values[:661], 0.99)
    for bad in (0, 1, -0.1):
        with pytest.raises(ValueError, match="strictly between"):
            queries(bad)
    with pytest.raises(ValueError, match="cannot be negative"):
        queries(0.9, -1)


@pytest.mark.parametrize("over", [0, 1, 5])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.97])
def test_the_number_of_samples_is_the_least_by_exact_fractions(p: float, over: int) -> None:
    from fractions import Fraction

    def at_most(n: int) -> Fraction:
        q = 1 - Fraction(str(p))
        return sum((math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(over + 1)), Fraction(0))

    n = queries(p, over)
    assert at_most(n) <= Fraction(1, 100) < at_most(n - 1)


def test_intervals_of_a_dependent_stream_are_wider() -> None:
    draws = np.random.default_rng(2)
    noise = draws.normal(size=600)
    walk = np.convolve(noise, np.ones(20) / 20**0.5, mode="same")
    assert correlation_length(noise) == 1
    assert 5 <= correlation_length(walk) <= 40
    blocks, single = interval(walk, np.mean), interval(walk, np.mean, block=1)
    assert blocks.high - blocks.low > 2 * (single.high - single.low)
    assert blocks == interval(walk, np.mean), "seeded"
    assert correlation_length([3.0, 3.0]) == 1
    with pytest.raises(ValueError, match="between 1 and 2 samples, got 3"):
        interval([1, 2], np.mean, block=3)


def test_the_order_of_frames_changes_the_correlation_alone() -> None:
    walk = np.cumsum(np.random.default_rng(3).normal(size=300)) + 100
    mixed = np.random.default_rng(4).permutation(walk)
    assert spread(mixed).p99 == spread(walk).p99
    assert spread(mixed).std == pytest.approx(spread(walk).std)
    assert correlation_length(mixed) < correlation_length(walk)


# --- shares


def test_shares_worked_out_by_hand() -> None:
    stages = {"a": [1, 3], "b": [2, 2], "c": [0, 1]}
    assert shares(stages, [4, 8]) == {"a": 0.5, "b": 0, "c": 0.25, "unattributed": 0.25}
    assert shares({"up": [1, 5], "down": [4, 3]}, [5, 8]) == pytest.approx(
        {"up": 4 / 3, "down": -1 / 3, "unattributed": 0}
    )


def test_shares_sum_to_one_whatever_the_stages() -> None:
    draws = np.random.default_rng(5)
    stages = {str(n): draws.gamma(2, size=50) for n in range(5)}
    total = sum(stages.values()) + draws.gamma(1, size=50)
    assert sum(shares(stages, total).values()) == pytest.approx(1, abs=1e-12)


def test_an_injected_delay_is_found_where_it_is() -> None:
    stages = {"decode": [2] * 20, "backbone": [5] * 20, "head": [3] * 20}
    slow = {**stages, "backbone": [5 + 4 * (n % 4 == 0) for n in range(20)]}
    before, after = report(frames(stages)), report(frames(slow))
    rows = {row.path: row for row in after.rows}
    assert {path: row.share for path, row in rows.items()} == {
        (): None, ("decode",): 0, ("backbone",): 1, ("head",): 0, ("unattributed",): 0,
    }  # fmt: skip
    shift = {row.path: row.wall.mean - old.wall.mean for row, old in zip(after.rows, before.rows, strict=True)}
    assert shift == pytest.approx(
        {(): 1, ("backbone",): 1, ("decode",): 0, ("head",): 0, ("unattributed",): 0}, abs=1e-9
    )
    assert [row.share for row in before.rows[1:]] == [None] * 4, "nothing varies"


def test_a_gap_is_unattributed_and_nested_stages_count_once() -> None:
    found = report(frames({"a": [1, 1, 1]}, gap=[0, 2, 4]))
    assert {row.path[0]: row.share for row in found.rows[1:]} == {"a": 0, "unattributed": 1}
    profiler = scripted(
        *(t * MS for t in (0, 0, 0, 2, 2, 3, 3, 3)), *(t * MS for t in (10, 10, 10, 16, 16, 17, 17, 17))
    )
    for _ in range(2):
        with profiler.frame(), profiler.stage("outer"):
            for _ in range(2):
                with profiler.stage("inner"):
                    pass
    rows = {row.path: row for row in report(profiler.spans).rows}
    assert rows["outer", "inner"].wall.maximum == pytest.approx(7)
    assert rows["outer", "inner"].share is None
    assert rows["outer",].share == pytest.approx(1)


def test_what_a_constant_stage_would_leave() -> None:
    a = [0.0] * 99 + [100.0]
    b = [float(n) for n in range(100)]
    total = [x + y for x, y in zip(a, b, strict=True)]
    assert constant(b, total, q=100) == pytest.approx(100 + np.mean(b))
    assert constant(a, total, q=100) == 99 + 1
    assert constant(a, a, q=99) == np.mean(a)
    with pytest.raises(TooFewSamples):
        constant(a[:50], total[:50])


def test_wall_time_is_computing_waiting_and_the_rest() -> None:
    cpu, queue = [1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 6.0, 6.0]
    wall = [c + q + 1 for c, q in zip(cpu, queue, strict=True)]
    found = decomposition(wall, cpu, queue)
    assert found == pytest.approx({"cpu": 1 / 37, "queue": 36 / 37, "residual": 0})


@pytest.mark.parametrize(
    ("stages", "total", "says"),
    [
        ({"a": [1]}, [1], "single frame"),
        ({"a": [1, 2]}, [1, 2, 3], "'a' has 2 times, the total 3"),
        ({"a": [1, 2]}, [3, 3], "does not vary"),
        ({"unattributed": [1, 2]}, [3, 4], "no stage can be called"),
        ({"a": [1, math.nan]}, [3, 4], "sample 1 is nan"),
    ],
)
def test_shares_that_cannot_be_are_explained(stages: dict[str, list[float]], total: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        shares(stages, total)


# --- the report


def test_frames_that_do_not_count_are_counted() -> None:
    spans = frames({"a": [9, 1, 2, 3]})
    profiler = Profiler()
    with pytest.raises(OSError), profiler.frame(), profiler.stage("a"):
        raise OSError
    backwards = scripted(50, 40)
    with backwards.frame():
        pass
    found = report([*spans, *profiler.spans, *backwards.spans], warmup=1, deadline=2.5)
    assert found.left_out == {
        "frames of the warm-up": 1, "frames that failed (OSError)": 1, "frames on which a clock went back": 1,
    }  # fmt: skip
    assert found.frames == 3
    assert found.rows[0].wall.mean == pytest.approx(2)
    assert found.missed == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no frame is left to report: frames of the warm-up: 4"):
        report(spans, warmup=4)
    with pytest.raises(ValueError, match="mark one with"):
        report([])


def test_a_single_frame_has_times_and_no_spread() -> None:
    found = report(frames({"a": [3]}), deadline=2)
    assert (found.frames, found.missed, found.decomposition) == (1, 1, {})
    assert [(row.wall.mean, row.wall.std, row.wall.p99, row.share) for row in found.rows[:2]] == [
        (pytest.approx(3), None, None, None),
    ] * 2  # fmt: skip
    assert "1 frame; percentiles" in found.to_text()


def test_the_table_says_what_it_rests_on() -> None:
    text = report(frames({"read": [1, 2] * 60, "net": [5, 6] * 60}), clocks=WALL).to_text()
    assert "120 frames; percentiles by the method linear" in text
    assert "sparse in the tail" in text
    assert "no percentile" not in text
    assert "no percentile" in report(frames({"read": [1, 2]})).to_text()
    rows = report(frames({"read": [1, 2]})).to_rows()
    assert [row["stage"] for row in rows] == ["frame", "read", "unattributed"]
    assert rows[1]["mean_ms"] == pytest.approx(1.5)


def test_the_costs_of_marks_are_measured() -> None:
    assert overhead(WALL, repetitions=50) > 0
    assert overhead(ALL, repetitions=50) > 0


# --- the trace


def test_the_trace_nests_and_adds_up(tmp_path: Path) -> None:
    spans = frames({"a": [1, 2], "b": [3, 4]})
    file = tmp_path / "trace.json"
    write_trace(spans, file)
    events = json.loads(file.read_text())["traceEvents"]
    assert {e["ph"] for e in events} == {"X"}
    whole = [e for e in events if e["cat"] == "frame"]
    assert [e["dur"] for e in whole] == [4000, 6000]
    for e in events:
        if e["cat"] == "stage":
            outer = whole[e["args"]["frame"]]
            assert outer["ts"] <= e["ts"] <= e["ts"] + e["dur"] <= outer["ts"] + outer["dur"]
    assert sum(e["dur"] for e in events if e["name"] == "b") / 1000 == pytest.approx(7)
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)


def test_a_trace_that_cannot_be_written_leaves_everything(tmp_path: Path) -> None:
    spans = frames({"a": [1]})
    with pytest.raises(OSError, match="cannot write the trace"):
        write_trace(spans, tmp_path / "no" / "trace.json")
    (tmp_path / "full").mkdir()
    with pytest.raises(OSError, match="cannot write the trace"):
        write_trace(spans, tmp_path / "full")
    assert list(tmp_path.iterdir()) == [tmp_path / "full"], "and nothing half-written"
    assert len(spans) == 2


# --- prediction


def test_a_latency_that_is_affine_in_counts_is_found_exactly() -> None:
    proposals, points = [0, 10, 20, 30], [5, 0, 5, 0]
    times = [7 + 2 * a + 3 * b for a, b in zip(proposals, points, strict=True)]
    found = fit({"proposals": proposals, "points": points}, times)
    assert found.base == pytest.approx(7)
    assert found.each == pytest.approx({"proposals": 2, "points": 3})
    assert found({"proposals": 100, "points": 1}) == pytest.approx(210)
    with pytest.raises(ValueError, match="needs the counts points"):
        found({"proposals": 1})


def test_shuffled_counts_predict_no_better_than_the_mean() -> None:
    draws = np.random.default_rng(6)
    counts = draws.integers(0, 100, 400)
    times = 5 + 0.2 * counts + draws.normal(scale=0.3, size=400)
    train, test = slice(0, 200), slice(200, 400)

    def score(c: np.ndarray) -> float:
        found = fit({"n": c[train]}, times[train])
        return accuracy([found({"n": n}) for n in c[test]], times[test])

    by_mean = accuracy([times[train].mean()] * 200, times[test])
    assert score(counts) > 0.95
    assert score(draws.permutation(counts)) < by_mean + 0.02
    assert accuracy(last_value(times[test]), times[test]) < score(counts)


@pytest.mark.parametrize(
    ("counts", "times", "says"),
    [
        ({"n": [1, 2]}, [1, 2, 3], "2 values of 'n' for 3 times"),
        ({"n": [2, 2]}, [1, 2], "must vary"),
        ({"n": [1, 2, 3], "m": [2, 4, 6]}, [1, 2, 3], "must vary, each in its own way"),
        ({"n": [1]}, [2], "do not determine"),
    ],
)
def test_a_fit_that_cannot_be_is_explained(counts: dict[str, list[float]], times: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit(counts, times)


def test_accuracy_by_hand() -> None:
    assert accuracy([9, 22], [10, 20]) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="positive"):
        accuracy([1], [0])
    assert last_value([3, 5, 4]) == [3, 3, 5]


# --- fusion


def stream(name: str, *messages: tuple[float, float]) -> list[Arrival]:
    return [Arrival(time, name, stamp) for time, stamp in messages]


def test_three_streams_worked_out_by_hand() -> None:
    arrivals = [
        *stream("boxes", (0.10, 0.00), (0.20, 0.10), (0.30, 0.20)),
        *stream("mask", (0.15, 0.02), (0.42, 0.21)),
        *stream("lanes", (0.05, 0.01), (0.25, 0.11), (0.33, 0.19)),
    ]
    fused, dropped = synchronise(arrivals, ["boxes", "mask", "lanes"], slop=0.05)
    assert [(f.time, dict(f.stamps)) for f in fused] == [
        (0.15, {"boxes": 0.00, "mask": 0.02, "lanes": 0.01}),
        (0.42, {"boxes": 0.20, "mask": 0.21, "lanes": 0.19}),
    ]
    assert [f.delay for f in fused] == pytest.approx([0.15, 0.23])
    assert [f.skew for f in fused] == pytest.approx([0.02, 0.02])
    assert [(d.stream, d.stamp) for d in dropped] == [("boxes", 0.10), ("lanes", 0.11)]


def test_slop_zero_asks_for_equal_stamps_and_a_full_queue_drops_the_oldest() -> None:
    a = stream("a", (1, 1), (2, 2), (3, 3))
    fused, dropped = synchronise([*a, *stream("b", (4, 1), (5, 2.5), (6, 3))], ["a", "b"], slop=0)
    assert [f.stamps["a"] for f in fused] == [1, 3]
    assert [(d.stream, d.stamp) for d in dropped] == [("a", 2), ("b", 2.5)]
    fused, dropped = synchronise([*a, *stream("b", (4, 1), (6, 3))], ["a", "b"], slop=0, queue=2)
    assert [f.stamps["a"] for f in fused] == [3]
    assert [(d.stream, d.stamp) for d in dropped] == [("a", 1), ("a", 2), ("b", 1)]


def test_the_nearest_set_is_taken_and_a_message_serves_once() -> None:
    arrivals = [*stream("a", (1, 0.9), (2, 1.02)), *stream("b", (3, 1.0), (4, 0.95))]
    fused, dropped = synchronise(arrivals, ["a", "b"], slop=0.2)
    assert [dict(f.stamps) for f in fused] == [{"a": 1.02, "b": 1.0}, {"a": 0.9, "b": 0.95}]
    assert dropped == []


@pytest.mark.parametrize(
    ("streams", "slop", "says"),
    [(["a"], 1, "two or more"), (["a", "a"], 1, "two or more"), (["a", "c"], 1, "'b'"), (["a", "b"], -1, "negative")],
)
def test_a_fusion_that_cannot_be_is_explained(streams: list[str], slop: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        synchronise([*stream("a", (1, 1)), *stream("b", (1, 1))], streams, slop=slop)


@pytest.mark.parametrize("bad", [(math.nan, 1), (1, math.nan), (math.inf, 1)])
def test_a_message_without_finite_times_is_named(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"finite times, got Arrival\(.*stream='b'"):
        synchronise([*stream("a", (1, 1)), *stream("b", bad)], ["a", "b"], slop=1)


TIMES = {"fast": [1.0] * 12, "slow": [3.0] * 12}


def test_branches_by_themselves_compute_what_is_never_fused() -> None:
    every = run(TIMES, period=1, policy="every", queue=100)
    assert [f.delay for f in every.fused] == [3 + 2 * n for n in range(12)], "the queue grows without end"
    latest = run(TIMES, period=1, policy="latest", queue=100)
    assert latest.computed == {"fast": tuple(range(12)), "slow": (0, 3, 6, 9, 11)}
    assert (latest.wasted, latest.drop_ratio) == (7, pytest.approx(7 / 12))
    together = run(TIMES, period=1, policy="coordinated")
    assert together.computed == {"fast": (0, 3, 6, 9, 11), "slow": (0, 3, 6, 9, 11)}
    assert (together.wasted, together.drop_ratio) == (0, pytest.approx(7 / 12))
    assert [f.stamps["fast"] for f in together.fused] == [f.stamps["fast"] for f in latest.fused]
    assert [f.delay for f in together.fused] == [3, 3, 3, 3, 4]


def test_a_deadline_skips_what_is_too_old() -> None:
    outcome = run(TIMES, period=1, policy="deadline", deadline=2, queue=100)
    assert outcome.computed["slow"] == (0, 1, 4, 7, 10)
    for earlier, later in pairwise(outcome.fused):
        assert earlier.time < later.time
    assert all(f.delay >= 3 for f in outcome.fused), "never sooner than the slowest branch"


def test_a_frame_that_would_miss_its_deadline_is_taken_by_none() -> None:
    times = {"a": [1.0, 9.0, 1.0, 1.0], "b": [1.0] * 4}
    without = run(times, period=2, policy="coordinated", deadline=3)
    assert max(f.delay for f in without.fused) == 9
    knowing = run(times, period=2, policy="coordinated", deadline=3, predicted=times)
    assert knowing.computed == {"a": (0, 2, 3), "b": (0, 2, 3)}
    assert {f.delay for f in knowing.fused} == {1}


@pytest.mark.parametrize(
    ("times", "period", "says"),
    [
        ({"a": [1.0], "b": [1.0, 2.0]}, 1, "one time for each"),
        ({"a": [], "b": []}, 1, "there must be a frame"),
        ({"a": [1.0], "b": [math.nan]}, 1, "finite and positive"),
        ({"a": [1.0], "b": [1.0]}, 0, "period must be positive"),
        ({"a": [1.0], "b": [1.0]}, math.nan, "positive and finite, got nan"),
    ],
)
def test_branches_that_cannot_be_are_explained(times: dict[str, list[float]], period: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(times, period=period)


def test_deadlines_and_predictions_that_cannot_be_are_explained() -> None:
    with pytest.raises(ValueError, match="the deadline must be a number, got nan"):
        run(TIMES, period=1, policy="deadline", deadline=math.nan)
    for predicted in ({"slow": [1.0]}, {"other": [1.0] * 12}):
        with pytest.raises(ValueError, match="give one a frame, of a branch that runs"):
            run(TIMES, period=1, policy="coordinated", deadline=2, predicted=predicted)


def test_a_fusion_is_never_older_than_its_slowest_branch() -> None:
    draws = random.Random(7)
    for policy in ("every", "latest", "deadline", "coordinated"):
        times = {name: [draws.uniform(0.2, 3) for _ in range(50)] for name in "abc"}
        outcome = run(times, period=1, policy=policy, deadline=2, queue=100)
        for f in outcome.fused:
            n = round(f.stamps["a"])
            assert f.delay >= max(series[n] for series in times.values()) - 1e-9
        assert outcome.wasted >= 0


# --- the command

SCRIPT = """
import sys
from reference_impls.variation import frame, stage

@stage("post")
def post():
    return sum(range(100))

for n in range(int(sys.argv[1])):
    with frame() as f:
        with stage("decode"):
            sum(range(100 * n))
        f.count(boxes=n)
        post()
"""


def test_the_command_shows_a_script_and_writes_the_trace(tmp_path: Path) -> None:
    script, trace = tmp_path / "script.py", tmp_path / "out.json"
    script.write_text(SCRIPT)
    outcome = CliRunner().invoke(main, ["profile", "--json", "-o", str(trace), "--warmup", "1", str(script), "6"])
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout)
    assert told["frames"] == 5
    assert [row["stage"] for row in told["stages"]] == ["frame", "decode", "post", "unattributed"]
    assert sum(row["share"] for row in told["stages"][1:]) == pytest.approx(1)
    assert told["left_out"] == {"frames of the warm-up": 1}
    assert len(json.loads(trace.read_text())["traceEvents"]) == 18


def test_a_script_that_fails_loses_nothing(tmp_path: Path) -> None:
    script, trace = tmp_path / "script.py", tmp_path / "out.json"
    script.write_text(SCRIPT + "\nwith frame(), stage('bad'):\n    raise SystemExit(3)\n")
    outcome = CliRunner().invoke(main, ["profile", "-o", str(trace), str(script), "2"])
    assert outcome.exit_code == 1
    assert "frames that failed (SystemExit): 1" in outcome.stdout
    assert "ended with 3" in outcome.stderr
    assert trace.exists()


def test_a_trace_that_cannot_be_written_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    missing = CliRunner().invoke(main, ["profile", "-o", str(tmp_path / "no" / "out.json"), str(script), "2"])
    assert (missing.exit_code, missing.stdout) == (2, ""), "before the script runs"
    assert "no trace can be written to" in missing.stderr
    (trace := tmp_path / "out.json").mkdir()
    script.write_text(SCRIPT + f"\nimport os; os.mkdir({str(tmp_path / 'late.json')!r})\n")
    late = CliRunner().invoke(main, ["profile", "-o", str(tmp_path / "late.json"), str(script), "2"])
    assert late.exit_code == 1
    assert "2 frames" in late.stdout
    elsewhere = Path(late.stderr.rsplit("it is in ", 1)[1].strip())
    assert len(json.loads(elsewhere.read_text())["traceEvents"]) == 6
    elsewhere.unlink()
    elsewhere.parent.rmdir()
    taken = CliRunner().invoke(main, ["profile", "-o", str(trace), str(script), "2"])
    assert taken.exit_code == 2
    assert "is a directory" in taken.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_profile_shows_what_it_has(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "\nimport os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "tools.cli", "profile", "-o", str(tmp_path / "out.json"), str(script), "3"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=hear_interrupts)
    assert ended.returncode == 1
    assert "3 frames" in ended.stdout
    assert "was interrupted; the numbers are of what it recorded until then" in ended.stderr
    assert len(json.loads((tmp_path / "out.json").read_text())["traceEvents"]) == 9


def test_a_script_without_marks_is_told_how(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('nothing')")
    outcome = CliRunner().invoke(main, ["profile", str(script)])
    assert outcome.exit_code == 2
    assert "marked no stage" in outcome.stderr
    script.write_text(SCRIPT)
    quiet = subprocess.run([sys.executable, str(script), "3"], capture_output=True, text=True, check=False)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", ""), "without the command the marks do nothing"


# --- branches in processes of their own


def bright() -> Callable[[torch.Tensor], float]:
    return lambda frame: float(frame.mean())


def dies_at_a_dark_frame() -> Callable[[torch.Tensor], float]:
    return lambda frame: float(frame.mean()) if frame.mean() > 0 else os._exit(3)


def hangs_at_a_dark_frame() -> Callable[[torch.Tensor], object]:
    return lambda frame: None if frame.mean() > 0 else time.sleep(600)


def never_begins() -> Callable[[torch.Tensor], object]:
    return time.sleep(600)


def cannot_begin() -> Callable[[torch.Tensor], object]:
    raise FileNotFoundError("no weights")


def light(*dark: int, number: int = 6) -> torch.Tensor:
    frames = torch.ones(number, 3, 4, 4)
    frames[list(dark)] = 0
    return frames


def test_live_branches_fuse_every_frame_and_a_death_is_told() -> None:
    with Branches({"sound": bright, "dying": dies_at_a_dark_frame}, light(3)) as branches:
        live = branches.run(period=1, policy="every", patience=60)
        assert live.outcome.computed == {"sound": tuple(range(6)), "dying": (0, 1, 2)}
        assert [one.stamps["sound"] for one in live.outcome.fused] == [0, 1, 2]
        assert live.died == {"dying": "it ended with exit code 3"}
        assert live.outcome.wasted == 3
        assert all(took >= 0 for took in live.latencies["sound"].values())
        assert branches.run(period=1, policy="every", patience=60).died == live.died


def test_a_branch_that_hangs_is_ended_at_the_limit() -> None:
    with Branches({"sound": bright, "hanging": hangs_at_a_dark_frame}, light(1, number=3)) as branches:
        live = branches.run(period=1, policy="every", patience=1)
    assert live.unfinished["hanging"] in (0, 1), "every frame is taken up, however late: the dark one is the next"
    assert set(live.outcome.computed["hanging"]) <= {0}


def test_a_branch_that_cannot_begin_is_named() -> None:
    with pytest.raises(BranchDied, match="'lost' did not begin: it ended with exit code 1"), Branches(
        {"lost": cannot_begin}, light()
    ):  # fmt: skip
        pass
    with pytest.raises(BranchDied, match=r"'late' did not begin: it was not ready after 0\.1 s"), Branches(
        {"late": never_begins}, light(), patience=0.1
    ):  # fmt: skip
        pass


@pytest.mark.parametrize(
    ("policy", "by_hand"),
    [
        ("every", [("fast", 1)]),
        ("latest", [("fast", 3)]),
        ("deadline", [("fast", 2)]),
        ("coordinated", []),
    ],
)
def test_what_a_free_branch_takes_up(policy: Policy, by_hand: list[tuple[str, int]]) -> None:
    branches = {"slow": (False, [0]), "fast": (True, [0])}
    assert chosen(branches, 4, 35.0, period=10, policy=policy, deadline=20) == by_hand


def test_coordinated_branches_take_the_newest_together_and_leave_out_what_will_be_late() -> None:
    branches = {"slow": (True, [0]), "fast": (True, [0])}
    both = [("slow", 3), ("fast", 3)]
    late = {"slow": [1.0, 1.0, 1.0, 16.0]}
    assert chosen(branches, 4, 35.0, period=10, policy="coordinated") == both
    assert chosen(branches, 4, 35.0, period=10, policy="coordinated", deadline=20, predicted=late) == []
    assert chosen(branches, 4, 35.0, period=10, policy="coordinated", deadline=21, predicted=late) == both
    assert chosen({"slow": (True, [3]), "fast": (True, [3])}, 4, 35.0, period=10, policy="coordinated") == []
