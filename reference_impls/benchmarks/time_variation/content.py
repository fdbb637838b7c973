"""Data and model: how much of the variation is the scene's, and how much the structure of the network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks.time_variation.branches import MODELS
from reference_impls.benchmarks.time_variation.conditions import Condition, Seen, VariationPlan, observe, recorded
from reference_impls.benchmarks.time_variation.pipelines import (
    classified,
    described,
    faces,
    fitted_and_tried,
    lines,
    merged,
    scenes,
)
from reference_impls.data import video
from reference_impls.models import mtcnn
from reference_impls.models.efficientnet_lite import efficientnet_lite0
from reference_impls.models.lanes import Lanes
from reference_impls.models.vit import saliency_vit_s14
from reference_impls.study import Study, table
from reference_impls.techniques.token_merging import TokenMerging
from reference_impls.variation import accuracy, fit, spread
from reference_impls.variation.prediction import last_value

ALIKE = 0.99
"""Cosine of the keys above which tokens merge."""


def scene(study: Study[VariationPlan]) -> Record:
    """Content: a two-stage detector on one frame again and again, on one scene, and on scenes that change; and there a
    transformer that merges the tokens which are alike."""
    plan, detector = study.plan, mtcnn.pretrained()
    merging = TokenMerging().apply(saliency_vit_s14().eval(), r=None, threshold=ALIKE)
    changing = scenes(plan)
    steady = video.clip(plan.clips[0], min(plan.frames, 100), plan.size)
    conditions = [
        Condition("one frame again", [faces(detector, changing[0])] * plan.frames),
        Condition("one scene", [faces(detector, steady[n % len(steady)][None]) for n in range(plan.frames)]),
        Condition("changing scenes", [faces(detector, frame) for frame in changing]),
        Condition("merged tokens on changing scenes", [merged(merging, frame) for frame in changing]),
    ]
    seen = observe(conditions, plan)
    return recorded(
        study, conditions, seen, data=described(plan),
        model="MTCNN, three stages, windows proposed by the first; beside it ViT-S/14, tokens merged whose keys have a "
        f"cosine above {ALIKE:g}",
        tables={"prediction": _prediction(seen["changing scenes"], *fitted_and_tried(plan))},
        notes=("Results differ between the conditions because the frames do.",),
    )  # fmt: skip


PREDICTORS = ("cost", "predictor", "accuracy on held-out frames")


def _prediction(seen: Seen, known: list[int], held: list[int]) -> Table:
    """Latency from proposals, fitted on the frames `known` and tried on `held`."""
    proposals = np.asarray([n for n, *_ in seen.results], dtype=float)
    rows = []
    for name, cost in (("MACs", seen.macs), ("processor ms", seen.cpu_ms), ("wall ms", seen.ms)):
        cost_ = np.asarray(cost, dtype=float)
        shuffled = np.random.default_rng(0).permutation(proposals)
        tried = {
            "proposals": _fitted(proposals, cost_, known, held),
            "mean": [float(cost_[known].mean())] * len(cost_[held]),
            "last value": np.asarray(last_value(cost_.tolist()))[held].tolist(),
            "shuffled proposals": _fitted(shuffled, cost_, known, held),
        }
        rows += [(name, how, accuracy(predicted, cost_[held].tolist())) for how, predicted in tried.items()]
    return table("1 - mean relative error of the predicted cost of a frame.", PREDICTORS, rows)


def _fitted(counts: np.ndarray[Any, Any], cost: np.ndarray[Any, Any], known: list[int], held: list[int]) -> list[float]:
    found = fit({"n": counts[known].tolist()}, cost[known].tolist())
    return [max(found({"n": n}), 1e-9) for n in counts[held].tolist()]


def structure(study: Study[VariationPlan]) -> Record:
    """Model: one stage of fixed work against two stages, and against raw points, on the same changing scenes."""
    plan, detector, network, finder = study.plan, mtcnn.pretrained(), efficientnet_lite0().eval(), Lanes()
    frames = scenes(plan)
    conditions = [
        Condition("one stage", [classified(network, frame) for frame in frames]),
        Condition("two stages", [faces(detector, frame) for frame in frames]),
        Condition("raw points", [lines(finder, frame) for frame in frames]),
    ]
    seen = observe(conditions, plan)
    spreads = [
        (name, what, s.mean, s.variation, _quartiles(values), s.maximum / s.p50 if s.p50 else None)
        for name, one in seen.items()
        for what, values in (("MACs", one.macs), ("processor ms", one.cpu_ms), ("wall ms", one.ms))
        for s in [spread(values)]
    ]
    columns = (
        "condition",
        "cost",
        "mean",
        "coefficient of variation",
        "middle half over median",
        "maximum over median",
    )
    about = "Spread of the frames, in work, on the processor and on the wall."
    return recorded(
        study, conditions, seen, data=described(plan), model=MODELS,
        tables={"spread": table(about, columns, spreads)},
        notes=("The models have different results; only their spread is compared.",),
    )  # fmt: skip


def _quartiles(values: Sequence[float]) -> float | None:
    """How wide the middle half is, as a share of the median."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return (high - low) / median if median else None
