"""Runtime and hardware: threads, garbage and memory of the process, and what else runs on the machine."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from reference_impls.accounting.record import Record
from reference_impls.benchmarks.time_variation.conditions import Condition, Step, VariationPlan, observe, recorded
from reference_impls.benchmarks.time_variation.pipelines import classified, described, scenes
from reference_impls.models.efficientnet_lite import efficientnet_lite0
from reference_impls.study import Study
from reference_impls.variation import Profiler


def runtime(study: Study[VariationPlan]) -> Record:
    """Runtime: threads, the garbage collector, and memory that is new to the process, under a network of fixed work."""
    plan, network = study.plan, efficientnet_lite0().eval()
    frames = scenes(plan)
    steps = [classified(network, frame) for frame in frames]

    def littered(step: Step) -> Step:
        def run(profiler: Profiler) -> Any:
            litter: list[Any] = []
            for _ in range(2000):
                litter.append([litter])  # circles, which only the collector frees
            return step.run(profiler)

        return Step(run)

    def fresh(step: Step) -> Step:
        def run(profiler: Profiler) -> Any:
            with profiler.stage("new memory"):
                torch.empty(16_000_000).fill_(1.0)
            return step.run(profiler)

        return Step(run)

    conditions = [
        Condition("one thread", steps),
        Condition("two threads", steps, partial(_threads, 2)),
        Condition("garbage in circles", [littered(step) for step in steps], _collecting),
        Condition("new memory for each frame", [fresh(step) for step in steps]),
    ]
    seen = observe(conditions, plan)
    return recorded(study, conditions, seen, data=described(plan), model="EfficientNet-Lite0",
                    notes=(_rights(),))  # fmt: skip


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _collecting() -> Iterator[None]:
    before = gc.get_threshold()
    gc.enable()
    gc.set_threshold(700, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()


def neighbours(study: Study[VariationPlan]) -> Record:
    """Hardware: alone, beside a busy process on the same core, on another core, and beside one that moves memory; and
    what the scheduler makes of priorities on the same core."""
    plan, network = study.plan, efficientnet_lite0().eval()
    steps = [classified(network, frame) for frame in scenes(plan)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    conditions = [Condition("alone", steps, partial(_beside, None, cores, cores[:1]))]
    same_core: dict[str, Callable[[Any], None]] = {
        "busy neighbour, same core": _busy,
        "neighbour of the lowest priority": _nice,
        "neighbour of the idle class": _when_idle,
    }
    if cores:
        conditions += [
            Condition(name, steps, partial(_beside, work, cores, cores[:1])) for name, work in same_core.items()
        ]
    if len(cores) > 1:
        other = cores[1:2]
        conditions.append(Condition("busy neighbour, other core", steps, partial(_beside, _busy, cores, other)))
        conditions.append(Condition("neighbour that moves memory", steps, partial(_beside, _copying, cores, other)))
    seen = observe(conditions, plan)
    who = "The neighbour has the same priority, but for two on the same core: the lowest (nice 19), and SCHED_IDLE."
    return recorded(study, conditions, seen, data=described(plan), model="EfficientNet-Lite0, held on the first core",
                    notes=(_rights(), who))  # fmt: skip


@contextlib.contextmanager
def _beside(work: Callable[[Any], None] | None, cores: list[int], where: list[int]) -> Iterator[None]:
    """This process on its first core, and beside it a process that works on the cores `where`."""
    neighbour = None
    if cores:
        os.sched_setaffinity(0, cores[:1])
    try:
        if work is not None:
            context = multiprocessing.get_context("fork")
            begun = context.Event()
            neighbour = context.Process(target=_on, args=(where, work, begun), daemon=True)
            neighbour.start()
            if not begun.wait(10):
                raise RuntimeError(f"the neighbour {work.__name__} did not begin in 10 s: this machine does not let it")
        yield
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.join()
        if cores:
            os.sched_setaffinity(0, cores)


def _on(where: list[int], work: Callable[[Any], None], begun: Any) -> None:
    os.sched_setaffinity(0, where)
    work(begun)


def _busy(begun: Any) -> None:
    begun.set()
    while True:
        sum(range(10_000))


def _nice(begun: Any) -> None:
    os.nice(19)
    _busy(begun)


def _when_idle(begun: Any) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _busy(begun)


def _copying(begun: Any) -> None:
    source = np.ones(32_000_000 // 8)
    target = np.empty_like(source)
    begun.set()
    while True:
        np.copyto(target, source)


def _rights() -> str:
    """What of the hardware this process can neither read nor set."""
    governor = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    missing = [] if os.path.exists(governor) else ["the frequency of the processor can be neither read nor set"]  # noqa: PTH110
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except (AttributeError, OSError):
        missing.append("real-time priorities need rights that are missing")
    return f"Not varied on this machine: {'; '.join(missing)}." if missing else "Frequency and priorities were left."
