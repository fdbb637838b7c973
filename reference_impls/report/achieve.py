"""What a technique achieves on a model that is built anew: a process of its own, which knows no prediction.

It applies the technique at the knobs that it is told, counts the MACs of both by the counter that the atlas counts
everything with, times them by turns, and compares their outputs.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Count, Finite, Interval, Knob, Model, Text, Units
from reference_impls.accounting.timing import repeat, speed_up
from reference_impls.contract import NoEffectWarning, Technique
from reference_impls.contract.registry import load
from reference_impls.report.axes.data import centred_outputs
from reference_impls.report.batches import Batch
from reference_impls.report.engine import View
from reference_impls.report.measuring import dense
from reference_impls.report.outputs import Outputs, errors, flips
from reference_impls.report.progress import Clock
from reference_impls.report.result import Share
from reference_impls.report.run import evaluating
from reference_impls.report.sample import Sample, draw
from reference_impls.report.suggestions import shaped

TIMED_BATCHES = 2
"""Batches, or clips, that are timed, at most."""
ROUND_S = 10.0
"""Seconds that one run of the technique may take while it is timed: of a slow one fewer steps are."""


class Target(Model):
    """Where a process finds what is measured: names of functions, such as "package.module:build"."""

    model: Text
    data: Text
    inputs: Text | None = None
    answer: Text | None = None


class Achieved(Model):
    """What a technique did, in a process that knows no prediction."""

    technique: Text
    knobs: dict[Text, Knob]
    macs_dense: Count
    """Counted, of all items."""
    macs: Count
    macs_saved: Share
    time_saved: Interval | None
    """1 - time / time of the dense model, from paired rounds; None where a training is saved."""
    error: Finite | None
    flips: Finite | None
    items: Units
    timed: Count | None = None
    """Items that were timed."""


def achieve(order: dict[str, Any]) -> Achieved:
    """Apply a technique at its knobs to a model that is built anew, and count, time and compare both."""
    torch.set_num_threads(order["threads"])
    target = Target(**order["target"])
    model: nn.Module = named(target.model)()
    technique = load(order["technique"])
    with evaluating(model):
        inputs = named(target.inputs) if target.inputs else None
        sample = draw(model, named(target.data)(), order["kind"], order["asked"], inputs)
        answer = named(target.answer) if target.answer else None
        view = dense(model, sample, answer, order["seed"], Clock()).view
        if "embeddings" in technique.knobs:
            return _selected(view, technique, order["knobs"])
        return _applied(view, view.sample.first(order["items"]), technique, order["knobs"], order["repetitions"])


def named(name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names. Raises: ValueError that says what is missing."""
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"{name!r} names no function: write it as package.module:function")
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise ValueError(f"{module} has no function {function!r}")
    return found  # type: ignore[no-any-return]


def _selected(view: View, technique: Technique, knobs: dict[str, Any]) -> Achieved:
    """A technique that selects from a data set, by the model's outputs as embeddings."""
    items = view.sample.items
    handle = technique.apply(list(range(items)), embeddings=centred_outputs(view), **knobs)
    kept, whole = len(handle.target), int(view.macs.sum())
    left = round(whole * kept / items)
    return Achieved(
        technique=technique.id,
        knobs=knobs,
        macs_dense=whole,
        macs=left,
        macs_saved=1 - kept / items,
        time_saved=None,
        error=None,
        flips=None,
        items=items,
    )


def _applied(view: View, sample: Sample, technique: Technique, knobs: dict[str, Any], repetitions: int) -> Achieved:
    """A technique that changes the model, or follows a stream with it."""
    batches = [list(_steps(batch, technique.stateful)) for batch in sample.batches]
    with torch.no_grad(), count() as spent:
        for step in (step for steps in batches for step in steps):
            step.call(view.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        handle = technique.apply(view.model, **shaped(technique, view, knobs))
    outputs, began = Outputs(), time.perf_counter()
    with torch.no_grad(), count() as left:
        for steps in batches:
            handle.reset()
            for step in steps:
                outputs.add(*view.reading(step.call(handle.target), step))
    each = (time.perf_counter() - began) / sum(map(len, batches))
    joined, start = Outputs(), 0
    for steps in batches:
        parts = slice(start, start + len(steps))
        joined.add(torch.cat(outputs.values[parts]), torch.cat(outputs.answers[parts]))
        start += len(steps)
    error, decided = errors(view.dense, joined), flips(view.dense, joined, view.reading.decision)
    some = _short(batches[:TIMED_BATCHES], int(ROUND_S / each))
    times = _times(view.model, handle, some, repetitions)
    handle.undo()
    return Achieved(
        technique=technique.id,
        knobs=knobs,
        macs_dense=spent.macs,
        macs=left.macs,
        macs_saved=1 - left.macs / spent.macs,
        time_saved=times,
        error=float(error.mean()),
        flips=None if decided is None else float(decided.mean()),
        items=sample.items,
        timed=sum(step.items for steps in some for step in steps),
    )


def _steps(batch: Batch, stateful: bool) -> Sequence[Batch]:
    """What one call is given: a whole batch, or of a stream one frame after the other."""
    if not stateful:
        return [batch]
    return [batch.part(slice(i, i + 1)) for i in range(batch.items)]


def _short(batches: Sequence[Sequence[Batch]], most: int) -> list[Sequence[Batch]]:
    """About `most` steps, from the first ones on; two of the first clip at least, where it has them."""
    some: list[Sequence[Batch]] = []
    for steps in batches:
        left = most - sum(map(len, some))
        if some and left < 2:
            break
        some.append(steps[: max(left, 2)])
    return some


def _times(model: nn.Module, handle: Any, batches: Sequence[Sequence[Batch]], repetitions: int) -> Interval:
    """1 - 1 / speed-up, by turns; where the technique changes the model in place, the dense one is a copy of it."""
    if handle.target is model:
        fast = copy.deepcopy(model)  # with the technique in it
        handle.undo()
        base = model
    else:
        base, fast = model, handle.target

    def through(one: nn.Module) -> Callable[[], object]:
        def call() -> None:
            with torch.no_grad():
                for steps in batches:
                    if one is fast:
                        handle.reset()
                    for step in steps:
                        step.call(one)

        return call

    calls = {"dense": through(base), "technique": through(fast)}
    taken = repeat(calls, repetitions=repetitions, warmup=2, threads=torch.get_num_threads())
    ratio = speed_up(taken["dense"], taken["technique"])
    low, high = (1 - 1 / end if end else None for end in (ratio.low, ratio.high))
    return Interval(value=1 - 1 / ratio.value, low=low, high=high, n=ratio.n)


def main(arguments: Sequence[str]) -> None:
    """`python -m reference_impls.report.achieve ORDER ACHIEVED`: what `verify` starts."""
    order = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    Path(arguments[1]).write_text(achieve(order).model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
