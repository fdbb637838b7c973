"""Experiments of StereoVoxelNet.

- `scenes`: a small network with both of its ideas, trained on made scenes, beside controls that expose cheating, and on
  two real pairs.
- `paper-size`: the published network in its four cost volumes and at each of its levels, MACs and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks import stereo_occupancy as benchmark
from reference_impls.benchmarks.stereo_occupancy import OnPairs, Predict, Scores
from reference_impls.contract import Handle, Redundancy
from reference_impls.data.stereo import motorcycle
from reference_impls.models.vit import imagenet_normalise
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, forward, measured, over_items, seeded
from reference_impls.techniques.stereo_occupancy_voxels import StereoOccupancyVoxels, build
from reference_impls.techniques.stereo_occupancy_voxels.grid import voxelise
from reference_impls.techniques.stereo_occupancy_voxels.network import SIZE, for_inference

VOXELS = StereoOccupancyVoxels()
LEFT_TWICE, OTHERS, MONOCULAR = "left image twice", "another scene's right image", "monocular"
PRIOR, EMPTY, SGM = "mean occupancy", "always empty", "semi-global matching"
CONTROLS = {
    LEFT_TWICE: "The same network, given the left image for the right one: nothing has a disparity.",
    OTHERS: "The same network, given the right image of the next scene.",
    MONOCULAR: "The same network trained and run on left images alone.",
    PRIOR: "The mean occupancy of the training scenes, cut where it fits them best; looks at no image.",
    EMPTY: "Nothing is occupied.",
    SGM: "Disparities of semi-global matching put into voxels: visible surfaces, ground and all; learns nothing.",
}
OURS = "stereo, occupied cells"

# --------------------------------------------------------------------------------------------------------------------
# On made scenes


def run_scenes(study: Study[benchmark.OccupancyPlan]) -> Record:
    """Both ideas in a small network, against one with all levels and dense layers, and the controls."""
    plan = study.plan
    data, learnt = benchmark.scenes(plan.test, benchmark.TEST_SEED), benchmark.scenes(plan.train)
    trained = {"depths": plan.seeds, "all levels": plan.seeds, "monocular": plan.seeds[:1]}
    models = {method: [benchmark.fitted(method, plan, seed) for seed in seeds] for method, seeds in trained.items()}
    study.progress("trained", 1, 3)
    macs = len(plan.seeds) * benchmark.training(study, "depths")
    study.prepare("training", "training the network, which the baseline needs as well", macs, held="shared")
    timed = data.pairs[:: max(1, plan.test // 2)][:2]
    seeds: dict[str, list[Scores]] = {}
    rows: dict[str, Scores] = {}

    def told(name: str, found: list[Scores]) -> dict[str, Any]:
        """What a variant delivers: intervals over the scenes, and a score for each seed."""
        seeds[name], rows[name] = found, benchmark.means(found)
        each = [float(one.iou[:, -1].mean()) for one in found]
        return {"quality": over_items(rows[name].finest), "score": each}

    def add(
        name: str,
        series: str,
        knobs: dict[str, Any],
        nets: list[OnPairs],
        attach: Callable[[OnPairs], Handle] = Handle,
        change: Callable[[Tensor], Tensor] = lambda pairs: pairs,
        items: bool = False,
    ) -> None:
        found = []
        for net in nets:
            with attach(net) as handle:
                found.append(benchmark.evaluated(handle.target, data, change(data.pairs)))
        shown = change(timed)

        @torch.no_grad()
        def call() -> None:
            with attach(nets[0]) as handle:
                for pair in shown:
                    handle.target(pair[None])

        stream = benchmark.item_stream(nets[0], attach, plan) if items else None
        study.add(series, knobs, call, units=len(shown), stream=stream, **told(name, found))

    def alone(name: str, predict: Predict, shown: Tensor = timed) -> None:
        """A control without a network, the same for every seed."""
        found = [benchmark.evaluated(predict, data)] * len(plan.seeds)

        def call() -> None:
            for pair in shown:
                predict(pair[None])

        study.add(name, at, call, units=len(shown), **told(name, found))

    gate = benchmark.best_gate(models["depths"], learnt, benchmark.GATES)
    dense = partial(benchmark.masked, threshold=gate)
    add("all levels, dense", BASELINE, {}, models["all levels"], dense, items=True)
    at = {"threshold": gate, "level": 3}
    gated = partial(VOXELS.apply, threshold=gate)
    add(OURS, TECHNIQUE, at, models["depths"], gated, items=True)
    for other in benchmark.GATES:
        if other != gate:
            elsewhere = partial(VOXELS.apply, threshold=other)
            add(f"stereo, gate {other:g}", TECHNIQUE, at | {"threshold": other}, models["depths"], elsewhere)
    for level in (2, 1, 0):
        stopped = partial(VOXELS.apply, threshold=gate, level=level)
        add(f"stereo, up to {8 << level} cells", TECHNIQUE, at | {"level": level}, models["depths"], stopped)
    study.progress("trained", 2, 3)
    add(LEFT_TWICE, LEFT_TWICE, at, models["depths"], gated, benchmark.left_twice)
    add(OTHERS, OTHERS, at, models["depths"], gated, benchmark.others_right)
    add(MONOCULAR, MONOCULAR, at, models["monocular"], gated)
    mean = benchmark.prior(learnt)
    alone(PRIOR, lambda pairs: mean)
    alone(EMPTY, lambda pairs: benchmark.empty())
    alone(SGM, benchmark.semi_global, timed[:1])
    study.measure()
    most = study.cost(BASELINE).macs
    for variant in study.series(TECHNIQUE):
        variant.redundancy = max(0.0, 1 - study.cost(TECHNIQUE, **variant.knobs).macs / most)
    real = benchmark.real_pairs(plan)
    twice = {name: one._replace(pair=replace(one.pair, right=one.pair.left)) for name, one in real.items()}
    on_real = {OURS: benchmark.on_pairs(models["depths"], gated, real)}
    on_real[LEFT_TWICE] = benchmark.on_pairs(models["depths"], gated, twice)
    on_real[SGM] = {name: [benchmark.matched_pair(one)] for name, one in real.items()}
    plain = plan.test // 4
    textures = {
        f"{name}, {kind}": Scores(*(x[part] for x in rows[name]))
        for name in (OURS, MONOCULAR, SGM)
        for kind, part in (("boxes of one colour", slice(plain)), ("textured boxes", slice(plain, None)))
        if len(rows[name].iou[part])
    }
    with gated(models["depths"][0]) as handle:
        shown = forward(handle.target, data.pairs[-1:])()
    return study.record(
        data=f"{plan.test} made stereo scenes of 160 x 320 pixels, a quarter with boxes of one colour; {plan.train} "
        f"others to train on; the real pairs {' and '.join(real)}",
        model=f"LiftedStereoNet, {sum(p.numel() for p in models['depths'][0].parameters()):,} parameters, "
        f"{len(benchmark.DEPTHS)} levels at depths (baseline: {len(benchmark.ALL)} levels)",
        unit="one pair",
        knobs=("threshold", "level"),
        metric=benchmark.METRIC,
        controls=CONTROLS,
        other_input=(LEFT_TWICE, OTHERS),
        redundancy=benchmark.free_space(models["depths"], data),
        notes=(
            "The scenes are made: boxes over a plane, occupancy exact and solid, as far as a box is seen at all.",
            f"Trained {plan.recipe.epochs} epochs; means over seeds, intervals over the scenes.",
            "Of the monocular control one seed was trained.",
            f"Training scenes chose the gate {gate} of {benchmark.GATES}; an occupancy counts from {benchmark.HIT} on.",
            "Gains of points, and those of the table of seeds, are paired by seed; those of variants by scene.",
            "A grid that is left at a coarser level is scored by its cells cut into the finest ones.",
            "Semi-global matching and the controls that look at no image multiply nothing that is counted.",
            "On real pairs the truth is what their disparities show of surfaces; the network learnt solid boxes.",
        ),
        tables={
            "variants": benchmark.summary(rows, OURS),
            "levels": benchmark.by_level(rows),
            "textures": benchmark.by_level(textures),
            "seeds": benchmark.by_seed(seeds, OURS),
            "real pairs": benchmark.real_table(real, on_real),
            "occupied": benchmark.sparsity(plan, data),
        },
        pictures={
            "left": data.pairs[-1, 0].permute(1, 2, 0) / 255,
            "found": shown[-1][0],
            "truth": data.truth[-1],
        }
        | {
            f"{name} {what}": array
            for name, one in real.items()
            for what, array in (("found", on_real[OURS][name][0][-1][0]), ("truth", one.truth))
        },
    )


# --------------------------------------------------------------------------------------------------------------------
# The published network


@dataclass(frozen=True, kw_only=True)
class PaperPlan(Plan):
    variants: tuple[str, ...] = ("voxel", "uniform12", "uniform24")
    levels: tuple[int, ...] = (3, 0)
    """Of `voxel`; the others run to the finest."""


def run_paper(study: Study[PaperPlan]) -> Record:
    """The published network with random weights on one pair: four cost volumes, and what leaving early saves."""
    plan = study.plan
    pair = motorcycle().fitted(*SIZE)
    left, right = (imagenet_normalise(image[None]) for image in (pair.left, pair.right))
    parameters: dict[str, int] = {}

    def add(series: str, knobs: dict[str, Any], variant: str, level: int = 3) -> None:
        network = seeded(0, partial(build, variant))
        parameters[variant] = sum(p.numel() for p in network.parameters())
        for_inference(network)
        size = Interval(value=parameters[variant] / 1e6)
        study.add(series, knobs, forward(partial(network, level=level), left, right), quality=size)

    add(BASELINE, {}, "full48")
    for variant in plan.variants:
        for level in plan.levels if variant == "voxel" else plan.levels[:1]:
            add(TECHNIQUE, {"variant": variant, "level": level}, variant, level)
    study.measure()
    dense = study.cost(BASELINE).macs
    for one in study.series(TECHNIQUE):
        one.redundancy = max(0.0, 1 - study.cost(TECHNIQUE, **one.knobs).macs / dense)
    truth = voxelise(motorcycle().points(), benchmark.CLOSE)
    free = Redundancy(1 - float(truth.float().mean()), "share of free cells, Motorcycle, 64 along a side")
    return study.record(
        data="the Motorcycle pair, scaled to 400 x 880 pixels; only shapes matter to the time",
        model="StereoVoxelNet with random weights",
        unit="one pair",
        knobs=("variant", "level"),
        metric="parameters in millions",
        higher_is_better=False,
        redundancy=measured([free], {"every cell occupied": 0.0}),
        notes=(
            "The baseline matches 48 even disparities.",
            "All variants are in their form for inference: batch norms folded, activations in place, channels last.",
            "The decoder is dense, as published; its kernels are larger than their stride, so no cell can be left out.",
        ),
    )


SCENARIOS = (
    benchmark.task(
        "scenes", "Occupancy of made scenes from a stereo pair, beside controls, and of two real pairs", run_scenes,
        smoke=benchmark.SMALL, full=benchmark.FULL,
    ),
    benchmark.task(
        "paper-size", "The published network: four cost volumes, the finest and the coarsest grid", run_paper,
        smoke=PaperPlan(repetitions=2, variants=("voxel",)), full=PaperPlan(repetitions=15),
    ),
)  # fmt: skip
