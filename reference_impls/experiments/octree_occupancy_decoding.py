"""Experiments of octree occupancy decoding.

- `scenes-threshold`: a trained stereo network on test scenes, over the threshold at which cells are refined.
- `decoder-64`, `decoder-128`: the decoder alone, of which a given share of the cells is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks import stereo_occupancy as benchmark
from reference_impls.contract import Handle, Redundancy, generator
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, forward, measured, seeded, table
from reference_impls.study.intervals import over_items
from reference_impls.techniques.octree_occupancy_decoding import (
    OctreeDecoder,
    OctreeOccupancyDecoding,
    decode,
    decode_masked,
    grids,
)

OCTREE = OctreeOccupancyDecoding()

# --------------------------------------------------------------------------------------------------------------------
# In a trained network

RANDOM, EVERY = "random cells", "every cell"


def run_scenes(study: Study[benchmark.OccupancyPlan]) -> Record:
    """A trained network whose decoder refines every cell, or those at or above a threshold."""
    plan = study.plan
    data = benchmark.scenes(plan.test, benchmark.TEST_SEED)
    models = [benchmark.fitted("depths", plan, seed) for seed in plan.seeds]
    study.prepare("training", "training the network, for either decoding", held="shared")
    timed = data.pairs[:: max(1, plan.test // 8)][:8]

    def add(series: str, knobs: dict[str, Any], attach: Callable[[benchmark.OnPairs], Any]) -> benchmark.Scores:
        found = []
        for model in models:
            with attach(model) as handle:
                found.append(benchmark.evaluated(handle.target, data))
        scores = benchmark.means(found)

        @torch.no_grad()
        def call() -> None:
            with attach(models[0]) as handle:
                for pair in timed:
                    handle.target(pair[None])

        study.add(series, knobs, call, units=len(timed), quality=over_items(scores.finest))
        return scores

    rows = {"dense, masked": add(BASELINE, {}, partial(benchmark.masked, threshold=0.5))}
    rows[EVERY] = add(EVERY, {"threshold": 0.0}, Handle)
    for threshold in plan.thresholds:
        at = partial(OCTREE.apply, threshold=threshold)
        rows[f"threshold {threshold:g}"] = add(TECHNIQUE, {"threshold": threshold}, at)
        study.progress("thresholds", len(rows) - 2, len(plan.thresholds))
        kept = partial(benchmark.random_cells, threshold=threshold)
        add(RANDOM, {"threshold": threshold}, kept)
    study.measure()
    dense = study.cost(BASELINE).macs
    for variant in (*study.series(TECHNIQUE), *study.series(RANDOM)):
        variant.redundancy = max(0.0, 1 - study.cost(variant.series, **variant.knobs).macs / dense)
    truth = benchmark.sparsity(plan, data)
    return study.record(
        data=f"{plan.test} made stereo scenes of 160 x 320 pixels; {plan.train} others to train on",
        model=f"LiftedStereoNet, {sum(p.numel() for p in models[0].parameters()):,} parameters, with a decoder from "
        "8 to 64 cells along a side",
        unit="one pair",
        knobs=("threshold",),
        metric=benchmark.METRIC,
        controls={
            RANDOM: "As many cells are refined at each level, drawn at random.",
            EVERY: "All cells of all levels, though in training none but live ones were refined.",
        },
        redundancy=benchmark.free_space(models, data),
        notes=(
            "The scenes are made: boxes over a plane, with exact occupancy. Intervals are over the scenes.",
            "In training, cells are refined that are occupied, or thought so; in use, those that are thought so.",
            "The baseline computes every cell and sets to 0 what is not live at threshold 0.5, which gives the same.",
            "The MACs are those of the whole network; the features and the cost volume are in them.",
        ),
        tables={"levels": benchmark.by_level(rows), "occupied": truth},
    )


# --------------------------------------------------------------------------------------------------------------------
# The decoder alone


@dataclass(frozen=True, kw_only=True)
class DecoderPlan(Plan):
    size: int
    """Cells along a side of the finest grid."""
    first: int = 8
    shares: tuple[float, ...] = (0.01, 0.05, 0.2, 1.0)
    """Of the cells of every gated level that are kept."""


def kept_cells(sizes: Sequence[int], share: float, seed: int = 0) -> list[Tensor]:
    """Grids (1, n, n, n), bool, with that share of cells, each among the children of the coarser one's."""
    draws, found = generator(seed), list[Tensor]()
    for size in sizes:
        open_ = benchmark.refined(found[-1][0]) if found else torch.ones([size] * 3, dtype=torch.bool)
        places = open_.flatten().nonzero()[:, 0]
        wanted = min(len(places), max(1, math.ceil(share * size**3)))
        cells = torch.zeros(size**3, dtype=torch.bool)
        cells[places[torch.randperm(len(places), generator=draws)[:wanted]]] = True
        found.append(cells.view(1, size, size, size))
    return found


def run_decoder(study: Study[DecoderPlan]) -> Record:
    """A decoder with random weights, of which a share of the cells of every gated level is kept."""
    plan = study.plan
    steps = (plan.size // plan.first).bit_length() - 1
    widths = ((32, 16, 8, 4) + (4,) * steps)[: steps + 1]
    decoder = seeded(0, lambda: OctreeDecoder(widths)).eval().requires_grad_(False).to(study.device)
    x = torch.randn(1, widths[0], *[plan.first] * 3, generator=generator(0)).to(study.device)
    study.add(BASELINE, {}, forward(decoder, x), quality=Interval(value=0.0))
    rows = []
    for share in plan.shares:
        kept = [cells.to(study.device) for cells in kept_cells([plan.first << n for n in range(steps + 1)], share)]

        @torch.no_grad()
        def call(kept: Sequence[Tensor] = kept) -> list[Tensor]:
            return grids(decoder, decode(decoder, x, 1.0, truth=kept))

        error = float((call()[-1] - decode_masked(decoder, x, 1.0, truth=kept)[-1]).abs().max())
        found = decode(decoder, x, 1.0, truth=kept)
        rows += [[share, one.cells.size, len(one.cells.index), one.kept] for one in found]
        study.add(TECHNIQUE, {"kept": share}, call, quality=Interval(value=error))
    study.measure()
    dense = study.cost(BASELINE).macs
    for variant in study.series(TECHNIQUE):
        variant.redundancy = max(0.0, 1 - study.cost(TECHNIQUE, **variant.knobs).macs / dense)
    noise = Redundancy(OCTREE.measure(decoder, x).value, "share of the finest cells inside free ones")
    return study.record(
        data=f"normal noise on a grid of {plan.first}; the cells to keep are drawn, {steps} levels of them",
        model=f"a decoder with random weights, from {plan.first} to {plan.size} cells along a side, widths "
        f"{', '.join(map(str, widths))}",
        unit="one grid, looking up neighbours and writing the grids included",
        work="layer",
        knobs=("kept",),
        given=("kept",),
        metric="largest error against dense layers with everything else set to 0",
        higher_is_better=False,
        redundancy=measured([noise], {"everything kept": 0.0}),
        notes=("Baseline: torch's dense transposed and plain 3-D convolutions of the same weights, without masks.",),
        tables={"cells": table("Cells of each level.", ("kept share", "cells", "computed", "kept"), rows)},
    )


SMALL = DecoderPlan(repetitions=3, size=16, first=4, shares=(0.05, 1.0))
SCENARIOS = (
    benchmark.task(
        "scenes-threshold", "A trained stereo network that refines only cells thought occupied", run_scenes,
        smoke=benchmark.SMALL, full=benchmark.FULL,
    ),
    benchmark.task(
        "decoder-64", "A decoder up to 64 cells along a side, a share of the cells kept", run_decoder,
        smoke=SMALL, full=DecoderPlan(size=64),
    ),
    benchmark.task(
        "decoder-128", "A decoder up to 128 cells along a side, a share of the cells kept", run_decoder,
        smoke=SMALL, full=DecoderPlan(size=128),
    ),
)  # fmt: skip
