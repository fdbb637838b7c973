"""Two findings at once: savings of families overlap, so they are never added but simulated in one run."""

from __future__ import annotations

from itertools import combinations

from reference_impls.report.axes.base import simulated
from reference_impls.report.curves import point
from reference_impls.report.engine import Together
from reference_impls.report.findings import Measuring
from reference_impls.report.result import Finding, Joint

TRIED = 2
"""Pairs that are simulated, at most, until one keeps the budget."""


def joint(found: Measuring) -> Joint | None:
    """The pair of compatible findings that saves most, at the settings at which each keeps the budget alone.

    Most time that can be realised; of findings that save none, most MACs.
    """
    usable = [
        f for f in found.findings if f.best is not None and f.saves == "inference" and found.axes[f.axis].compatible
    ]
    pairs = [
        pair
        for pair in combinations(usable, 2)
        if (pair[0].location, pair[0].granularity) != (pair[1].location, pair[1].granularity)
    ]
    pairs.sort(key=lambda pair: (_left(*(f.ceiling_time or 0.0 for f in pair)), _left(*(f.ceiling_macs for f in pair))))
    tried = None
    for pair in pairs[:TRIED]:
        tried = _together(found, *pair)
        if tried.within_budget:
            return tried
    return tried


def _left(a: float, b: float) -> float:
    """What two shares leave together, at best."""
    return (1 - max(a, 0.0)) * (1 - max(b, 0.0))


def _together(found: Measuring, a: Finding, b: Finding) -> Joint:
    view = found.view
    settings = [dict(f.curve[f.best].setting) for f in (a, b) if f.best is not None]
    axes = [found.axes[f.axis] for f in (a, b)]
    found.clock.say(f"{a.axis} and {b.axis} together")
    edits = [axis.edit(view, setting) for axis, setting in zip(axes, settings, strict=True)]
    outcome = simulated(axes[0], view, Together(edits, view.per_item), {}, found.whole, found.clock.tick)
    at = point(outcome, found.whole, found.budget, found.seed, None)
    assert at.error is not None
    return Joint(
        axes=(a.axis, b.axis),
        settings=(settings[0], settings[1]),
        macs_saved=at.macs_saved,
        alone=(a.ceiling_macs, b.ceiling_macs),
        error=at.error,
        flips=at.flips,
        within_budget=at.within_budget,
    )
