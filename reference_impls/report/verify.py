"""Predicted against achieved: our own implementations at the suggested knobs, in a process of their own.

What a report predicts is written down and hashed before any technique is applied. A separate process then builds the
model and the data again, applies one technique at its starting knobs, counts the MACs of both by the counter that the
atlas counts everything with, times them by turns, and compares their outputs. It knows nothing of the prediction.

    target = Target(model="package.module:build", data="package.module:loader")
    checked = verify(result, target, folder)
    checked.table

`build()` gives the model, with its weights, and `loader()` what `report` was given; both are called without arguments.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field
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
from reference_impls.report.result import Kind, Result, Share
from reference_impls.report.run import evaluating
from reference_impls.report.sample import Sample, draw
from reference_impls.report.suggestions import shaped

POINTS = 0.05
"""Largest difference of the shares of MACs that counts as agreement."""
TIMED_BATCHES = 2
"""Batches, or clips, that are timed."""
FILE: Final = "predictions.json"


class Target(Model):
    """Where a process finds what is measured: names of functions, such as "package.module:build"."""

    model: Text
    data: Text
    inputs: Text | None = None
    answer: Text | None = None


class Prediction(Model):
    """What a report says of a technique before it is applied."""

    technique: Text
    axis: Text
    knobs: dict[Text, Knob]
    macs_saved: Interval
    ceiling_time: Share | None
    """Share of time; None where a training is saved."""
    error: Interval | None
    flips: Interval | None
    items: Units
    """Items that it was made on."""


class Predictions(Model):
    """All of a report."""

    model: Text
    data: Text
    kind: Kind
    asked: Units
    seed: Count
    predictions: tuple[Prediction, ...]

    def to_json(self) -> str:
        """Stable: what is hashed."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    @property
    def sha256(self) -> str:
        """Of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


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


class Checked(Model):
    """One technique: predicted and achieved."""

    prediction: Prediction
    achieved: Achieved | None
    failed: Text = ""
    """What the process said if it failed."""

    @property
    def points(self) -> float | None:
        """Achieved minus predicted share of MACs."""
        return None if self.achieved is None else self.achieved.macs_saved - self.prediction.macs_saved.value

    @property
    def agrees(self) -> bool | None:
        """Within five points."""
        return None if self.points is None else abs(self.points) <= POINTS

    @property
    def below_ceiling(self) -> bool | None:
        """Whether the achieved saving of time lies below the ceiling; None without one."""
        ceiling, time = self.prediction.ceiling_time, self.achieved and self.achieved.time_saved
        return None if ceiling is None or not time else time.value <= max(ceiling, 0.0)


class Verification(Model):
    """All techniques that a report suggests and that apply."""

    sha256: Text = Field(pattern="^[0-9a-f]{64}$")
    """Of the predictions, taken before anything was applied."""
    checked: tuple[Checked, ...]

    @property
    def table(self) -> str:
        """One line a technique, for a terminal."""
        lines = [
            f"{'technique':32}{'MACs predicted':>15}{'achieved':>10}{'ceiling of time':>17}{'achieved':>10}  flips"
        ]
        for one in self.checked:
            p, a = one.prediction, one.achieved
            ceiling = "" if p.ceiling_time is None else f"{p.ceiling_time:.1%}"
            if a is None:
                lines.append(f"{p.technique:32}{p.macs_saved.value:>15.1%}  failed: {one.failed}")
                continue
            time = "" if a.time_saved is None else f"{a.time_saved.value:.1%}"
            flipped = "" if a.flips is None else f"{a.flips:.1%}"
            name = f"{p.technique:32}"
            lines.append(f"{name}{p.macs_saved.value:>15.1%}{a.macs_saved:>10.1%}{ceiling:>17}{time:>10}  {flipped}")
        return "\n".join(lines)


def predictions(result: Result, techniques: Sequence[str] | None = None) -> Predictions:
    """What a report predicts of the techniques that it suggests, apply, and really leave work out.

    techniques: ids; all by default. A technique that several axes suggest is taken where it saves most.
    """
    best: dict[str, Prediction] = {}
    for found in result.findings:
        point = found.at_budget
        for one in found.suggestions:
            wanted = techniques is None or one.technique in techniques
            selects = found.location == "dataset" and "embeddings" in load(one.technique).knobs
            applies = one.applies or (one.applies is None and selects and one.knobs)
            if point is None or not wanted or not applies or one.execution != "real" or found.saves == "bits":
                continue
            made = Prediction(
                technique=one.technique,
                axis=found.axis,
                knobs=one.knobs,
                macs_saved=point.macs_saved,
                ceiling_time=point.time_saved,
                error=point.error,
                flips=point.flips,
                items=point.n,
            )
            known = best.get(one.technique)
            if known is None or known.macs_saved.value < made.macs_saved.value:
                best[one.technique] = made
    data = result.data
    return Predictions(
        model=result.model.name,
        data=data.name,
        kind=data.kind,
        asked=data.asked,
        seed=result.seed,
        predictions=tuple(best.values()),
    )


def verify(
    result: Result,
    target: Target,
    folder: Path | str,
    *,
    techniques: Sequence[str] | None = None,
    repetitions: int = 15,
    timeout: float | None = 1800,
) -> Verification:
    """Write and hash the predictions, then apply each technique in a process of its own.

    The folder gets `predictions.json`, `predictions.sha256` and `verification.json`. Raises: ValueError where nothing
    that the report suggests applies.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = predictions(result, techniques)
    if not made.predictions:
        raise ValueError("nothing that this report suggests applies to the model, so there is nothing to verify")
    (folder / FILE).write_text(made.to_json(), encoding="utf-8")
    (folder / "predictions.sha256").write_text(f"{made.sha256}  {FILE}\n", encoding="utf-8")
    checked = tuple(_apart(made, one, target, folder, repetitions, timeout) for one in made.predictions)
    found = Verification(sha256=made.sha256, checked=checked)
    (folder / "verification.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return found


def _apart(
    made: Predictions, one: Prediction, target: Target, folder: Path, repetitions: int, timeout: float | None
) -> Checked:
    """Run a technique in a process that is told its knobs, and not what is expected of it."""
    order = {
        "target": target.model_dump(),
        "technique": one.technique,
        "knobs": one.knobs,
        "kind": made.kind,
        "asked": made.asked,
        "items": one.items,
        "seed": made.seed,
        "repetitions": repetitions,
        "threads": torch.get_num_threads(),
    }
    wanted, given = folder / f"{one.technique}.order.json", folder / f"{one.technique}.achieved.json"
    wanted.write_text(json.dumps(order), encoding="utf-8")
    given.unlink(missing_ok=True)
    command = [sys.executable, "-m", "reference_impls.report.verify", str(wanted), str(given)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Checked(prediction=one, achieved=None, failed=f"took longer than {timeout:g} s")
    if ended.returncode or not given.exists():
        said = " ".join((ended.stderr.strip().splitlines() or ["no word"])[-1].split())
        return Checked(prediction=one, achieved=None, failed=said[:1000])
    achieved = Achieved.model_validate_json(given.read_text(encoding="utf-8"))
    wanted.unlink()
    given.unlink()
    return Checked(prediction=one, achieved=achieved)


# --------------------------------------------------------------------------------------------------------------------
# In the process of its own


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
    outputs = Outputs()
    with torch.no_grad(), count() as left:
        for steps in batches:
            handle.reset()
            for step in steps:
                outputs.add(*view.reading(step.call(handle.target), step))
    joined, start = Outputs(), 0
    for steps in batches:
        parts = slice(start, start + len(steps))
        joined.add(torch.cat(outputs.values[parts]), torch.cat(outputs.answers[parts]))
        start += len(steps)
    error, decided = errors(view.dense, joined), flips(view.dense, joined, view.reading.decision)
    times = _times(view.model, handle, batches[:TIMED_BATCHES], repetitions)
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
    )


def _steps(batch: Batch, stateful: bool) -> Sequence[Batch]:
    """What one call is given: a whole batch, or of a stream one frame after the other."""
    if not stateful:
        return [batch]
    return [batch.part(slice(i, i + 1)) for i in range(batch.items)]


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
    """`python -m reference_impls.report.verify ORDER ACHIEVED`: what `verify` starts."""
    order = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    Path(arguments[1]).write_text(achieve(order).model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
