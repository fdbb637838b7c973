"""Which techniques of the atlas exploit a finding, and the values of their knobs to start from.

Nothing is listed here: each implementation says which axes find what it exploits (`Technique.exploits`).
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from reference_impls.contract import NoEffectWarning, Technique, UnsupportedHost
from reference_impls.contract.registry import PACKAGE, ids, load, module_name
from reference_impls.report.engine import View
from reference_impls.report.result import Suggestion


@functools.cache
def exploiting() -> Mapping[str, tuple[Technique, ...]]:
    """Axis -> the implementations that exploit what it finds, by their ids."""
    found: dict[str, tuple[Technique, ...]] = {}
    for name in ids():
        spec = importlib.util.find_spec(f"{PACKAGE}.{module_name(name)}")
        if spec is None or spec.origin is None or "exploits" not in Path(spec.origin).read_text(encoding="utf-8"):
            continue  # not imported for nothing
        technique = load(name)
        for axis in technique.exploits:
            found[axis] = (*found.get(axis, ()), technique)
    return found


def suggestions(axis: str, location: str, setting: Mapping[str, Any] | None, view: View) -> tuple[Suggestion, ...]:
    """What to try for an axis, at the setting that keeps the budget; `location` is the finding's."""
    found = []
    for technique in exploiting().get(axis, ()):
        knobs = knobs_for(technique, axis, setting or {})
        applies, needs = (None, "") if location == "dataset" else _tried(technique, view, knobs)
        found.append(
            Suggestion(technique=technique.id, knobs=knobs, execution=technique.execution, applies=applies, needs=needs)
        )
    return tuple(found)


def knobs_for(technique: Technique, axis: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The technique's knobs at a setting of the axis; values that a knob does not take are left out."""
    knobs = {}
    for knob, name in technique.exploits[axis].items():
        if name in setting:
            try:
                technique.knobs[knob].check(knob, setting[name])
            except (TypeError, ValueError):
                continue
            knobs[knob] = setting[name]
    return knobs


def shaped(technique: Technique, view: View, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs, with the shape of a frame where the technique wants to check the model on one."""
    x = view.sample.batches[0].main
    extra = {"frame_shape": (1, *x.shape[1:])} if "frame_shape" in technique.knobs and x.ndim == 4 else {}
    return {**knobs, **extra}


def _tried(technique: Technique, view: View, knobs: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether `apply` takes the model; what it says if not."""
    model: nn.Module = view.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            technique.apply(model, **shaped(technique, view, knobs)).undo()
    except UnsupportedHost as error:
        return False, " ".join(str(error).split())[:1000]
    except Exception as error:
        return None, f"apply failed: {type(error).__name__}: {' '.join(str(error).split())[:900]}"
    return True, ""
