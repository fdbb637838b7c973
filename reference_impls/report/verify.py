"""Predicted against achieved: our own implementations at the suggested knobs, in a process of their own.

What a report predicts is written down and hashed before any technique is applied. A separate process (`achieve`) then
builds the model and the data again and applies one technique at its starting knobs; it knows nothing of the prediction.

    target = Target(model="package.module:build", data="package.module:loader")
    checked = verify(result, target, folder)
    checked.table

`build()` gives the model, with its weights, and `loader()` what `report` was given; both are called without arguments.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from pydantic import Field

from reference_impls.accounting.record import Count, Interval, Knob, Model, Text, Units
from reference_impls.contract.registry import load
from reference_impls.report import achieve
from reference_impls.report.achieve import Achieved, Target
from reference_impls.report.result import Kind, Result, Share

POINTS = 0.05
"""Largest difference of the shares of MACs that counts as agreement."""
FILE: Final = "predictions.json"
PROGRAM: Final = achieve.__name__
"""What the process of a technique runs."""
KEEPS_MEMORY: Final = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""Environment in which glibc keeps what is freed. Otherwise it depends on what a process did before whether large
activations are asked of the system in every run, which the dense model then pays for and a smaller one does not."""


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
    command = [sys.executable, "-m", PROGRAM, str(wanted), str(given)]
    try:
        surroundings = {**KEEPS_MEMORY, **os.environ}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=surroundings)
    except subprocess.TimeoutExpired:
        return Checked(prediction=one, achieved=None, failed=f"took longer than {timeout:g} s")
    if ended.returncode or not given.exists():
        said = " ".join((ended.stderr.strip().splitlines() or ["no word"])[-1].split())
        return Checked(prediction=one, achieved=None, failed=said[:1000])
    achieved = Achieved.model_validate_json(given.read_text(encoding="utf-8"))
    wanted.unlink()
    given.unlink()
    return Checked(prediction=one, achieved=achieved)
