"""Experiments of octree occupancy decoding.

- `scenes-threshold`: a trained stereo network on test scenes, over the threshold at which cells are refined.
- `decoder-64`, `decoder-128`, `decoder-256`: the decoder alone, of which a given share of the cells is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks import stereo_occupancy as benchmark
from reference_impls.contract import Handle, Redundancy, generator
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, forward, measured, seeded, table, training
from reference_impls.study.intervals import over_items
from reference_impls.techniques.octree_occupancy_decoding import (
    OctreeDecoder,
    OctreeOccupancyDecoding,
    decode,
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
    timed = data.pairs[:: max(1, plan.test // 2)][:2]
    varied = list(benchmark.scenes(plan.varied, benchmark.TEST_SEED + plan.test).pairs) if plan.varied else []
    real = benchmark.real_pairs(plan)
    on_real: dict[str, dict[str, list[list[Tensor]]]] = {}

    def add(
        series: str, knobs: dict[str, Any], attach: Callable[[benchmark.OnPairs], Any], seeds: int = len(models)
    ) -> benchmark.Scores:
        found = []
        for model in models[:seeds]:
            with attach(model) as handle:
                found.append(benchmark.evaluated(handle.target, data))
        scores = benchmark.means(found)
        each = [float(one.iou[:, -1].mean()) for one in found]

        def on(pairs: Sequence[Tensor]) -> None:
            with attach(models[0]) as handle:
                for pair in pairs:
                    handle.target(pair[None])

        singly = training.each(lambda pair: on([pair]), varied) if series in (BASELINE, TECHNIQUE) else None
        quality = over_items(scores.finest)
        study.add(series, knobs, forward(on, timed), units=len(timed), quality=quality, score=each, stream=singly)
        return scores

    rows = {"dense, masked": add(BASELINE, {}, partial(benchmark.masked, threshold=0.5))}
    rows[EVERY] = add(EVERY, {"threshold": 0.0}, Handle)
    for threshold in plan.thresholds:
        at = partial(OCTREE.apply, threshold=threshold)
        rows[f"threshold {threshold:g}"] = add(TECHNIQUE, {"threshold": threshold}, at)
        on_real[f"threshold {threshold:g}"] = benchmark.on_pairs(models, at, real)
        study.progress("thresholds", len(rows) - 2, len(plan.thresholds))
        kept = partial(benchmark.random_cells, threshold=threshold)
        add(RANDOM, {"threshold": threshold}, kept, seeds=1)
    study.measure()
    dense = study.cost(BASELINE).macs
    for variant in (*study.series(TECHNIQUE), *study.series(RANDOM)):
        variant.redundancy = max(0.0, 1 - study.cost(variant.series, **variant.knobs).macs / dense)
    truth = benchmark.sparsity(plan, data)
    return study.record(
        data=f"{plan.test} made stereo scenes of 160 x 320 pixels; {plan.train} others to train on; the real pairs "
        f"{' and '.join(real)}",
        model=f"LiftedStereoNet, {sum(p.numel() for p in models[0].parameters()):,} parameters, with a decoder from "
        "8 to 64 cells along a side",
        unit="one pair",
        knobs=("threshold",),
        metric=benchmark.METRIC,
        controls={
            RANDOM: "As many cells are refined at each level, drawn at random; of the first seed.",
            EVERY: "All cells of all levels, though in training none but live ones were refined.",
        },
        redundancy=benchmark.free_space(models, data),
        notes=(
            "The scenes are made: boxes over a plane, with exact occupancy.",
            "Means over seeds, intervals over the scenes.",
            "In training, cells are refined that are occupied, or thought so; in use, those that are thought so.",
            "The baseline computes every cell and sets to 0 what is not live at threshold 0.5, which gives the same.",
            "The MACs are those of the whole network; the features and the cost volume are in them.",
        ),
        tables={
            "levels": benchmark.by_level(rows),
            "real pairs": benchmark.real_table(real, on_real),
            "occupied": truth,
        },
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
    planes: int = 16
    """Of a slab of the finest grid, in the dense decoder that makes one after the other."""
    whole: bool = True
    """Whether the dense decoder is timed in one piece as well."""


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


def in_slabs(decoder: OctreeDecoder, x: Tensor, planes: int, kept: Sequence[Tensor] = ()) -> list[Tensor]:
    """The grids of a decoder by dense layers, each level mixed in slabs of `planes` cells along x.

    The numbers and the MACs are those of `OctreeDecoder.forward`; no more than a slab is unfolded at once. kept: grids
    (B, n, n, n), bool, of the cells that are refined: what is outside is set to 0, as `decode_masked` does.
    """
    decoder.check(x)
    found = [decoder.heads[0](x)[:, 0].sigmoid()]
    for n, (head, refine, _) in enumerate(decoder.steps((), None)):
        live = nn.functional.interpolate(kept[n][:, None].float(), scale_factor=2) if kept else None
        y = refine.split_norm(refine.split(x)).relu()
        y = nn.functional.pad(y if live is None else y * live, (0, 0, 0, 0, 1, 1))
        slabs = [
            refine.mix_norm(nn.functional.conv3d(y[:, :, at : at + planes + 2], refine.mix.weight, padding=(0, 1, 1)))
            for at in range(0, y.shape[-1], planes)
        ]
        found.append(torch.cat([head(slab.relu_())[:, 0].sigmoid() for slab in slabs], 1))
        x = torch.cat(slabs, 2)
        if live is not None:
            x, found[-1] = x * live, found[-1] * live[:, 0]
    return found


def run_decoder(study: Study[DecoderPlan]) -> Record:
    """A decoder with random weights, of which a share of the cells of every gated level is kept."""
    plan = study.plan
    steps = (plan.size // plan.first).bit_length() - 1
    widths = ((32, 16, 8, 4) + (4,) * steps)[: steps + 1]
    decoder = seeded(0, lambda: OctreeDecoder(widths)).eval().requires_grad_(False).to(study.device)
    x = torch.randn(1, widths[0], *[plan.first] * 3, generator=generator(0)).to(study.device)
    slabs = partial(in_slabs, planes=plan.planes)
    study.add(BASELINE, {"slabs": True}, forward(slabs, decoder, x), quality=Interval(value=0.0))
    if plan.whole:
        study.add(BASELINE, {"slabs": False}, forward(decoder, x), quality=Interval(value=0.0))
    rows, free = [], list[Redundancy]()
    for share in plan.shares:
        kept = [cells.to(study.device) for cells in kept_cells([plan.first << n for n in range(steps + 1)], share)]

        @torch.no_grad()
        def call(kept: Sequence[Tensor] = kept) -> list[Tensor]:
            return grids(decoder, decode(decoder, x, 1.0, truth=kept))

        with torch.no_grad():
            error = float((call()[-1] - slabs(decoder, x, kept=kept)[-1]).abs().max())
            found = decode(decoder, x, 1.0, truth=kept)
        rows += [[share, one.cells.size, len(one.cells.index), one.kept] for one in found]
        free.append(
            Redundancy(1 - len(found[-1].cells.index) / plan.size**3, "share of the finest cells inside free ones")
        )
        study.add(TECHNIQUE, {"kept": share}, call, quality=Interval(value=error), redundancy=free[-1].value)
    study.measure()
    dense = closed_form(decoder, tuple(x.shape[1:])).macs
    return study.record(
        data=f"normal noise on a grid of {plan.first}; the cells to keep are drawn, {steps} levels of them",
        model=f"a decoder with random weights, from {plan.first} to {plan.size} cells along a side, widths "
        f"{', '.join(map(str, widths))}; {dense:,} MACs when dense",
        unit="one grid, looking up neighbours and writing the grids included",
        work="layer",
        knobs=("kept",),
        given=("kept",),
        metric="largest error against dense layers with everything else set to 0",
        higher_is_better=False,
        redundancy=measured(free[:1], {"everything kept": 0.0}),
        notes=(
            f"Baseline: the faster of torch's dense convolutions of the same weights, in one piece or in slabs of "
            f"{plan.planes} planes."
            if plan.whole
            else f"Baseline: torch's dense convolutions of the same weights in slabs of {plan.planes} planes; in one "
            "piece they would fill more than 8 GB.",
            f"The redundancy is that of the cells that are kept at {plan.shares[0]:.1%} of each gated level.",
        ),
        tables={"cells": table("Cells of each level.", ("kept share", "cells", "computed", "kept"), rows)},
    )


SMALL = DecoderPlan(repetitions=3, size=16, first=4, shares=(0.05, 1.0), planes=6)
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
    benchmark.task(
        "decoder-256", "A decoder up to 256 cells along a side, a share of the cells kept", run_decoder,
        smoke=replace(SMALL, whole=False), full=DecoderPlan(size=256, shares=(0.001, 0.01, 0.05), whole=False),
    ),
)  # fmt: skip
