"""Experiments of the sparse disparity cost volume.

- `scenes-levels`: a stereo network trained with all levels, of which only those that depths ask for are computed.
- `trained-levels`: networks trained with 12 levels at depths, and with 12, 24 or 48 even ones.
- `volume-paper`: the cost volume alone at the paper's size, with 12 levels at depths against 12, 24 and 48 even ones.
- `volume-small`: the same for features of 12 x 60 positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reference_impls.accounting.record import Interval, Measured, Record
from reference_impls.benchmarks import stereo_occupancy as benchmark
from reference_impls.contract import Handle, generator
from reference_impls.data.stereo_scenes import CAMERA
from reference_impls.hosts.substitution import modules_of
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, forward, over_items, seeded, table
from reference_impls.techniques.octree_occupancy_decoding import OctreeOccupancyDecoding
from reference_impls.techniques.sparse_disparity_cost_volume import (
    CostVolume,
    FoldedMatching,
    MatchingCost,
    SparseDisparityCostVolume,
    asked,
    keep_levels,
    spared,
)
from reference_impls.techniques.stereo_occupancy_voxels.network import VOLUMES

SPARSE, OCTREE = SparseDisparityCostVolume(), OctreeOccupancyDecoding()
Attach = Callable[[benchmark.OnPairs], Handle]
EVEN = "even disparities"
FAR = 8.0

# --------------------------------------------------------------------------------------------------------------------
# In a trained network


@dataclass(frozen=True, kw_only=True)
class LevelsPlan(benchmark.OccupancyPlan):
    steps: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Distances of the depths, in metres."""


def at_depths(model: benchmark.OnPairs, step: float) -> Handle:
    """The model with the levels that depths ask for, `step` metres apart."""
    return SPARSE.apply(model, focal=CAMERA.focal, baseline=CAMERA.baseline, step=step, far=FAR)


def evenly(model: benchmark.OnPairs, count: int) -> Handle:
    """The model with `count` of its levels at even steps of disparity, the first and the last among them."""
    wanted = torch.linspace(0, benchmark.ALL[-1], count).round().int().tolist()
    return keep_levels(EVEN, model, modules_of(model, CostVolume), wanted)


def gate(models: Sequence[benchmark.OnPairs], plan: benchmark.OccupancyPlan) -> tuple[float, Attach]:
    """The threshold that suits the networks best on training scenes, and what leaves out free cells by it."""
    chosen = benchmark.best_gate(models, benchmark.scenes(plan.train), benchmark.GATES)
    return chosen, partial(OCTREE.apply, threshold=chosen)


def told(threshold: float) -> str:
    """The note on the gate."""
    return (
        f"Cells with an occupancy below {threshold} are not refined in any variant; training scenes and the networks "
        f"with all levels chose it of {benchmark.GATES}."
    )


def run_scenes(study: Study[LevelsPlan]) -> Record:
    """A network trained with every level of the cost volume, run with fewer."""
    plan = study.plan
    data = benchmark.scenes(plan.test, benchmark.TEST_SEED)
    models = [benchmark.fitted("all levels", plan, seed) for seed in plan.seeds]
    study.prepare("training", "training the network with all levels", held="shared")
    threshold, live = gate(models, plan)
    timed = data.pairs[:: max(1, plan.test // 2)][:2]
    real = benchmark.real_pairs(plan)
    on_real = {"all levels": benchmark.on_pairs(models, live, real, lambda one: benchmark.ALL)}

    def add(series: str, knobs: dict[str, Any], attach: Attach) -> benchmark.Scores:
        found = []
        for model in models:
            with attach(model) as handle, live(model):
                found.append(benchmark.evaluated(handle.target, data))
        scores = benchmark.means(found)
        each = [float(one.iou[:, -1].mean()) for one in found]

        @torch.no_grad()
        def call() -> None:
            with attach(models[0]) as handle, live(models[0]):
                for pair in timed:
                    handle.target(pair[None])

        study.add(series, knobs, call, units=len(timed), quality=over_items(scores.finest), score=each)
        return scores

    rows = {"all levels": add(BASELINE, {}, Handle)}
    counts = {}
    for step in plan.steps:
        wanted = asked(CAMERA.focal, CAMERA.baseline, step, FAR)
        with at_depths(models[0], step) as handle:
            forward(handle.target, timed[:1])()
            counts[step] = len(handle.trace["network.volume"]["levels"])
        rows[f"depths {step:g} m apart"] = add(TECHNIQUE, {"step": step}, partial(at_depths, step=step))
        rows[f"{counts[step]} even disparities"] = add(EVEN, {"step": step}, partial(evenly, count=counts[step]))
        study.variant(TECHNIQUE, step=step).redundancy = spared(benchmark.ALL, wanted)
        shifts = partial(benchmark.Real.levels, step=step)
        on_real[f"depths {step:g} m apart"] = benchmark.on_pairs(models, live, real, shifts)
        study.progress("steps", len(counts), len(plan.steps))
    study.measure()
    levels = [[step, count, len(benchmark.ALL)] for step, count in counts.items()]
    where = {f"{step:g} m": spared(benchmark.ALL, asked(CAMERA.focal, CAMERA.baseline, step, FAR)) for step in counts}
    return study.record(
        data=f"{plan.test} made stereo scenes of 160 x 320 pixels; {plan.train} others to train on; the real pairs "
        f"{' and '.join(real)}",
        model=f"LiftedStereoNet, trained with {len(benchmark.ALL)} levels; f B = "
        f"{CAMERA.focal * CAMERA.baseline:.1f} pixel metres",
        unit="one pair",
        knobs=("step",),
        metric=benchmark.METRIC,
        controls={EVEN: "As many of the levels, at even steps of disparity."},
        redundancy=Measured(
            value=where[f"{plan.steps[-2]:g} m"],
            measure="share of levels that no depth asks for",
            where=where,
            null={"every level asked for": spared(benchmark.ALL, benchmark.ALL)},
        ),
        notes=(
            "Trained with all levels; one that is left out takes the costs of the nearest computed one.",
            told(threshold),
            "The scenes are made; means over seeds of the network, intervals over the scenes.",
            "Products of similarities are made element by element and are in no MACs; their convolutions are.",
        ),
        tables={
            "levels": benchmark.by_level(rows),
            "computed": table("Levels that are computed.", ("step", "levels", "of"), levels),
            "real pairs": benchmark.real_table(real, on_real),
        },
    )


# --------------------------------------------------------------------------------------------------------------------
# Networks that were trained with their levels


@dataclass(frozen=True, kw_only=True)
class TrainedPlan(benchmark.OccupancyPlan):
    even: tuple[int, ...] = (12, 24)
    """Numbers of even levels beside all of them."""
    once: tuple[int, ...] = (24,)
    """Those of which one seed is trained."""


def run_trained(study: Study[TrainedPlan]) -> Record:
    """The same network trained with each set of levels, as the paper compares them."""
    plan = study.plan
    data = benchmark.scenes(plan.test, benchmark.TEST_SEED)
    study.prepare("training", "training each network, the baseline's as well", held="shared")
    timed = data.pairs[:: max(1, plan.test // 2)][:2]
    real = benchmark.real_pairs(plan)
    threshold, live = gate([benchmark.fitted("all levels", plan, seed) for seed in plan.seeds], plan)
    seeds: dict[str, list[benchmark.Scores]] = {}
    on_real: dict[str, dict[str, list[list[Tensor]]]] = {}
    chosen = [("depths", TECHNIQUE, {"levels": len(benchmark.DEPTHS)})]
    chosen += [(f"{count} even", EVEN, {"levels": count}) for count in plan.even]
    for method, series, knobs in [("all levels", BASELINE, {}), *chosen]:
        every = benchmark.METHODS[method][0]
        some = plan.seeds[:1] if len(every) in plan.once else plan.seeds
        models = [benchmark.fitted(method, plan, seed) for seed in some]
        shifts = None if series == TECHNIQUE else every
        name = f"{len(every)} {'at depths' if series == TECHNIQUE else 'even'}"
        seeds[name] = found = []
        for model in models:
            with live(model) as handle:
                found.append(benchmark.evaluated(handle.target, data))
        on_real[name] = benchmark.on_pairs(models, live, real, lambda one, shifts=shifts: shifts)  # type: ignore[misc]

        @torch.no_grad()
        def call(model: benchmark.OnPairs = models[0]) -> None:
            with live(model) as handle:
                for pair in timed:
                    handle.target(pair[None])

        scores = benchmark.means(found)
        each = [float(one.iou[:, -1].mean()) for one in found]
        redundancy = None if series == BASELINE else spared(benchmark.ALL, every)
        said: dict[str, Any] = {"quality": over_items(scores.finest), "score": each, "redundancy": redundancy}
        study.add(series, knobs, call, units=len(timed), **said)
        study.progress("levels", len(seeds), 1 + len(chosen))
    study.measure()
    rows = {name: benchmark.means(found) for name, found in seeds.items()}
    ours = f"{len(benchmark.DEPTHS)} at depths"
    where = {name: spared(benchmark.ALL, benchmark.METHODS[method][0]) for method, name in zip(
        ("all levels", "depths", *(f"{count} even" for count in plan.even)), seeds, strict=True)}  # fmt: skip
    return study.record(
        data=f"{plan.test} made stereo scenes of 160 x 320 pixels; {plan.train} others to train on; the real pairs "
        f"{' and '.join(real)}",
        model=f"LiftedStereoNet, trained with each set of levels (baseline: {len(benchmark.ALL)} even ones)",
        unit="one pair",
        knobs=("levels",),
        metric=benchmark.METRIC,
        controls={EVEN: "Trained with levels at even steps of disparity, up to those of all levels."},
        redundancy=Measured(
            value=where[ours],
            measure="share of levels that no depth asks for",
            where=where,
            null={"every level asked for": spared(benchmark.ALL, benchmark.ALL)},
        ),
        notes=(
            told(threshold),
            "On real pairs levels at depths are those of the pair's camera.",
            "The scenes are made; means over seeds of each network, intervals over the scenes.",
            f"Of {', '.join(f'{count} even levels' for count in plan.once)} one seed was trained.",
        ),
        tables={
            "levels": benchmark.by_level(rows),
            "variants": benchmark.summary(rows, ours),
            "seeds": benchmark.by_seed(seeds, ours),
            "real pairs": benchmark.real_table(real, on_real),
        },
    )


# --------------------------------------------------------------------------------------------------------------------
# The cost volume alone


@dataclass(frozen=True, kw_only=True)
class VolumePlan(Plan):
    size: tuple[int, int] = (100, 220)
    """Rows and columns of the features."""


LOOP = "level by level"


def run_volume(study: Study[VolumePlan]) -> Record:
    """Cost volumes with the published matching, random weights: all levels in one wide map, or in a loop."""
    plan = study.plan
    match = FoldedMatching(seeded(0, MatchingCost).eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    draws = generator(0)
    features = torch.randn(2, 1, 32, *plan.size, generator=draws)
    left, right = (x.to(memory_format=torch.channels_last) for x in features)
    for name, levels in VOLUMES.items():
        volume = CostVolume(levels, match)
        whole, loop = forward(volume, left, right), forward(volume.loop, left, right)
        error = Interval(value=float((whole() - loop()).abs().max()))
        if name == "full48":
            study.add(BASELINE, {}, whole, quality=error)
        else:
            redundancy = 1 - len(levels) / len(VOLUMES["full48"])
            study.add(TECHNIQUE, {"levels": name}, whole, quality=error, redundancy=redundancy)
        study.add(LOOP, {"levels": name}, loop, quality=Interval(value=0.0))
    study.measure()
    every = VOLUMES["full48"]
    where = {name: spared(every, levels) for name, levels in VOLUMES.items()}
    rows = [[name, len(levels), ", ".join(map(str, levels))] for name, levels in VOLUMES.items() if name != "full48"]
    return study.record(
        data=f"normal noise for features of {plan.size[0]} x {plan.size[1]} positions, as of images of "
        f"{4 * plan.size[0]} x {4 * plan.size[1]}",
        model="the published matching of 64 interleaved channels, with random weights, in its form for inference",
        unit="one pair of feature maps",
        work="layer",
        knobs=("levels",),
        metric="largest error against the loop over levels",
        higher_is_better=False,
        controls={LOOP: "One level after the other, each on the columns that have a partner."},
        redundancy=Measured(
            value=where["voxel"],
            measure="share of levels that no depth asks for",
            where=where,
            null={"every level asked for": spared(every, every)},
        ),
        notes=(
            "Levels are those of the calibration of DrivingStereo: f = 1003.556 pixels, B = 0.54 m, depths 2 m apart.",
            "What fewer levels are worth to the encoder after them is a matter of training, and is not measured here.",
        ),
        tables={"levels": table("Shifts in columns of the features.", ("volume", "count", "levels"), rows)},
    )


SCENARIOS = (
    benchmark.task(
        "scenes-levels", "A trained stereo network that matches at the disparities of depths only", run_scenes,
        smoke=LevelsPlan(**vars(benchmark.SMALL) | {"steps": (0.5, 2.0)}), full=LevelsPlan(**vars(benchmark.FULL)),
    ),
    benchmark.task(
        "trained-levels", "Stereo networks trained with levels at depths, or with even ones", run_trained,
        smoke=TrainedPlan(**vars(benchmark.SMALL) | {"even": (12,)}), full=TrainedPlan(**vars(benchmark.FULL)),
    ),
    benchmark.task(
        "volume-paper", "The published cost volume: 12 levels at depths, and 12, 24 or 48 even ones", run_volume,
        smoke=VolumePlan(repetitions=3, size=(12, 60)), full=VolumePlan(repetitions=15),
    ),
    benchmark.task(
        "volume-small", "The published cost volume on small maps, where several levels stand side by side", run_volume,
        smoke=VolumePlan(repetitions=3, size=(12, 60)), full=VolumePlan(repetitions=31, size=(12, 60)),
    ),
)  # fmt: skip
