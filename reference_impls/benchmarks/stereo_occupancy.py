"""Stereo occupancy: which cells before two cameras are occupied, from one rectified pair.

The data are made scenes (`data.stereo_scenes`), for their occupancy is exact: cells that share volume with a box of
which something is seen. A network is trained once for each way of matching (`METHODS`) and seed; what a technique does
to it is measured on test scenes. The controls show whether the geometry of the pair is used at all: the left image
twice, the right image of another scene, a network that was trained on left images alone, the mean occupancy of the
training scenes, an empty grid, and semi-global matching put into voxels. Motorcycle and Aloe are the real pairs: what
networks of made scenes find there is scored against the surfaces that their disparities show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Measured, Table
from reference_impls.contract import Handle, generator, replacement
from reference_impls.data import assets
from reference_impls.data.stereo import Camera, Pair, aloe, motorcycle
from reference_impls.data.stereo_scenes import CAMERA, SIZE, draw_scene, render
from reference_impls.models.semi_global_matching import semi_global_matching
from reference_impls.study import (
    Plan,
    Recipe,
    Scenario,
    Study,
    cached,
    forward,
    measured,
    over_items,
    over_seeds,
    paired,
    seeded,
    table,
    train,
    trained,
)
from reference_impls.techniques.octree_occupancy_decoding import (
    OctreeOccupancyDecoding,
    Skip,
    decode,
    decode_masked,
    grids,
    shares_of,
)
from reference_impls.techniques.sparse_disparity_cost_volume import asked, depth_levels, uniform_levels
from reference_impls.techniques.stereo_occupancy_voxels.grid import HIT, Grid, chamfer, iou, levels, recall, voxelise
from reference_impls.techniques.stereo_occupancy_voxels.lifted import LIFTED, LiftedStereoNet, sparse_loss

ID = "stereo-occupancy"
task = partial(Scenario, benchmark=ID)
GRID = Grid.in_front(8.0)
"""8 m with 64 cells of 0.125 m along a side, a quarter of the paper's grid, as far as the made scenes reach."""
CLOSE = Grid((-1.6, -1.6, 1.9), 0.05)
"""A cube of 3.2 m around what the Motorcycle pair shows."""
DEEP = Grid((-4.0, -6.4, 2.6), 0.125)
"""A cube of 8 m that holds the nearer half of what the Aloe pair shows, by a calibration that is not certain."""
ALOE = "opencv-stereo"
"""The asset that the Aloe pair is in."""
DEPTHS = depth_levels(CAMERA.focal, CAMERA.baseline, GRID.depths())
ALL = uniform_levels(48)
"""Up to 188 pixels, as published."""
METHODS: Mapping[str, tuple[tuple[int, ...], bool]] = {
    "depths": (DEPTHS, True),
    "12 even": (uniform_levels(12, 4), True),
    "24 even": (uniform_levels(24, 2), True),
    "all levels": (ALL, True),
    "monocular": (DEPTHS, False),
}
"""Name -> the levels of the cost volume, and whether the right image is looked at."""


RECIPE = Recipe(3, lr=1e-2, batch_size=4, weight_decay=0.01)


class Scenes(NamedTuple):
    """Pairs (N, 2, 3, H, W) of 8 bits, and their occupancy (N, 64, 64, 64) bool."""

    pairs: Tensor
    truth: Tensor


@dataclass(frozen=True, kw_only=True)
class OccupancyPlan(Plan):
    train: int = 320
    test: int = 40
    recipe: Recipe = RECIPE
    thresholds: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    varied: int = 0
    """Further scenes, over which the spread of single pairs is measured."""


FULL = OccupancyPlan(seeds=(0, 1, 2, 3), varied=100, needs=(ALOE,))
SMALL = OccupancyPlan(repetitions=2, train=8, test=2, recipe=replace(RECIPE, epochs=1), thresholds=(0.25, 0.5))
TEST_SEED = 1_000_000


@cache
def scenes(count: int, first: int = 0, untextured: float = 0.25) -> Scenes:
    """Scenes with the seeds from `first` on, seen with noise and another exposure on the right; cached.

    untextured: the share of them whose boxes have one colour each.
    """
    spec = {"count": count, "first": first, "untextured": untextured, "grid": GRID, "camera": CAMERA, "version": 2}

    def make() -> dict[str, Tensor]:
        pairs, truth = [], []
        for n in range(count):
            scene = draw_scene(first + n, untextured=n < untextured * count)
            view = render(scene, noise=0.01, gain=0.9 + 0.2 * (n % 5) / 4)
            pairs.append((torch.stack([view.left, view.right]) * 255).round().byte())
            truth.append(in_view(scene.occupied(GRID.edges(), view.ids.unique())))
        return {"pairs": torch.stack(pairs), "truth": torch.stack(truth)}

    return Scenes(**cached("stereo-scenes", spec, make))


def in_view(cells: Tensor) -> Tensor:
    """The cells (64, 64, 64) whose centres the left camera sees."""
    column, row, _ = CAMERA.project(GRID.centres()).unbind(-1)
    seen = (column >= 0) & (column <= SIZE[1] - 1) & (row >= 0) & (row <= SIZE[0] - 1)
    return cells & seen


class OnPairs(nn.Module):
    """A network on the pairs of one camera: (B, 2, 3, H, W) of 8 bits or in [0, 1] -> occupancies; what is trained.

    In training mode it gives what its decoder is given, for the loss decides which cells are computed.
    """

    where: Tensor

    def __init__(self, levels: Sequence[int], stereo: bool = True) -> None:
        super().__init__()
        self.network = LiftedStereoNet(levels, stereo=stereo)
        self.register_buffer("where", CAMERA.project(GRID.coarser(GRID.size // LIFTED).centres()).float(), False)

    def forward(self, pairs: Tensor, level: int | None = None) -> Any:
        pairs = pairs.float() / 255 if pairs.dtype == torch.uint8 else pairs
        if self.training:
            return self.network.encode(pairs[:, 0], pairs[:, 1], self.where)
        stop = {} if level is None else {"level": level}
        return self.network(pairs[:, 0], pairs[:, 1], self.where, **stop)


def jitter(pairs: Tensor, draws: torch.Generator) -> Tensor:
    """Pairs in [0, 1] whose exposure and colours are drawn at random, alike in both images."""
    gain = 0.8 + 0.4 * torch.rand(len(pairs), 1, 3, 1, 1, generator=draws)
    return (pairs.float() / 255 * gain).clamp(0, 1)


def fitted(
    method: str, plan: OccupancyPlan, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> OnPairs:
    """The network of a method of matching, trained with a seed: from the cache, or from where it was cut off."""
    shifts, stereo = METHODS[method]
    spec = {"levels": shifts, "stereo": stereo, "train": plan.train, "recipe": plan.recipe, "seed": seed, "version": 4}
    key = hashlib.sha256(json.dumps(spec, sort_keys=True, default=asdict).encode()).hexdigest()[:16]
    resume = assets.cache_folder() / "checkpoints" / f"stereo-occupancy-{key}.resume"

    return trained(
        "stereo-occupancy",
        spec,
        lambda: seeded(seed, lambda: OnPairs(shifts, stereo)),
        lambda model: fit(model, scenes(plan.train), plan.recipe, seed, progress, resume),
    )


def fit(
    model: OnPairs,
    data: Scenes,
    recipe: Recipe,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    resume: Path | None = None,
) -> OnPairs:
    """Train on scenes with `sparse_loss`; the heads begin at the shares of occupied cells of the scenes.

    Cells are refined that are occupied, or thought so.
    """
    model.network.decoder.begin_at(shares_of(levels(data.truth)))

    def loss(given: Any, truth: Tensor) -> Tensor:
        grids = levels(truth)
        return sparse_loss(decode(model.network.decoder, given[0], HIT, given[1], truth=grids), grids)

    how: dict[str, Any] = {"seed": seed, "loss": loss, "augment": jitter, "progress": progress, "resume": resume}
    return train(model, data.pairs, data.truth, recipe, **how)


# --------------------------------------------------------------------------------------------------------------------
# What a grid is worth, scene by scene

METRIC = "IoU of 64 x 64 x 64 cells"
GATES = (0.5, 0.25)
"""Occupancies from which on a cell is refined: that from which on it counts, as in the paper, and a lower one."""
SIZES = (8, 16, 32, 64)
Predict = Callable[[Tensor], list[Tensor]]
"""Pairs (1, 2, 3, H, W) -> occupancies (1, n, n, n), coarse to fine; perhaps not down to the finest."""
LEVELS = "By level, the mean over scenes of IoU and of the share of occupied cells that are found."


class Scores(NamedTuple):
    """Of N scenes: IoU and recall of each level, (N, 4); of the finest Chamfer distance in m^2 and emptiness, (N,)."""

    iou: Tensor
    recall: Tensor
    chamfer: Tensor
    empty: Tensor

    @property
    def finest(self) -> list[float]:
        """IoU of the finest grid, scene by scene."""
        return self.iou[:, -1].tolist()


def evaluated(predict: Predict, data: Scenes, pairs: Tensor | None = None) -> Scores:
    """The scores of what is predicted from the pairs of `data`, or from others in their place.

    A grid that was not computed is filled from the last that was. Empty predictions are scored like any other.
    """
    rows = []
    for pair, truth in zip(data.pairs if pairs is None else pairs, data.truth, strict=True):
        rows.append(scored(forward(predict, pair[None])(), truth, GRID.cell))
    return Scores(*(torch.stack(column) for column in zip(*rows, strict=True)))


def scored(found: Sequence[Tensor], truth: Tensor, cell: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scores of one pair. found: (1, n, n, n) each; truth: (64, 64, 64) bool; cell: metres, of the finest grid."""
    cells = [grid[0] >= HIT for grid in found]
    while len(cells) < len(SIZES):
        cells.append(refined(cells[-1]))
    both = list(zip(cells, levels(truth), strict=True))
    ious, recalls = (torch.tensor([f(a, b) for a, b in both]) for f in (iou, recall))
    return ious, recalls, torch.tensor(chamfer(*both[-1], cell)), ~cells[-1].any()


def refined(cells: Tensor) -> Tensor:
    """The grid (n, n, n) with each cell as 8."""
    for axis in range(3):
        cells = cells.repeat_interleave(2, axis)
    return cells


def means(scores: Sequence[Scores]) -> Scores:
    """The mean over seeds, scene by scene."""
    return Scores(*(torch.stack([x.double() for x in column]).mean(0) for column in zip(*scores, strict=True)))


def best_gate(models: Sequence[OnPairs], learnt: Scenes, gates: Sequence[float], count: int = 12) -> float:
    """The threshold from which on cells are refined that gives the best IoU on the last of the training scenes."""
    some, octree = Scenes(*(x[-count:] for x in learnt)), OctreeOccupancyDecoding()

    def score(gate: float) -> float:
        total = 0.0
        for model in models:
            with octree.apply(model, threshold=gate) as handle:
                total += float(evaluated(handle.target, some).iou[:, -1].mean())
        return total

    return max(gates, key=score)


def left_twice(pairs: Tensor) -> Tensor:
    """Pairs without any disparity."""
    return pairs[:, :1].expand_as(pairs)


def others_right(pairs: Tensor) -> Tensor:
    """Pairs whose right image is that of the next scene."""
    return torch.stack([pairs[:, 0], pairs[:, 1].roll(1, 0)], 1)


def matched(left: Tensor, right: Tensor, camera: Camera, grid: Grid) -> list[Tensor]:
    """Semi-global matching of a pair (3, H, W) put into voxels: the surfaces that it sees, (1, n, n, n) each."""
    farthest = grid.low[2] + grid.size * grid.cell
    reach = int(camera.disparity(torch.tensor(max(grid.low[2], farthest / 8)))) + 1
    disparity = semi_global_matching(left, right, min(reach, left.shape[2] // 2))
    return [cells[None].float() for cells in levels(voxelise(camera.back_project(disparity), grid))]


def matched_pair(real: Real) -> list[Tensor]:
    """`matched` for a real pair."""
    return matched(real.pair.left, real.pair.right, real.pair.camera, real.grid)


def semi_global(pairs: Tensor) -> list[Tensor]:
    """`matched` for a pair of the made scenes."""
    left, right = pairs[0].float() / 255
    return matched(left, right, CAMERA, GRID)


def gain(scores: Scores, others: Scores) -> Interval:
    """Mean difference of IoU over the scenes, with its bootstrap interval."""
    return over_items((scores.iou[:, -1] - others.iou[:, -1]).tolist())


def by_level(scores: Mapping[str, Scores]) -> Table:
    """A row for each variant and level."""
    rows = [
        [name, size, over_items(one.iou[:, n].tolist()), over_items(one.recall[:, n].tolist())]
        for name, one in scores.items()
        for n, size in enumerate(SIZES)
    ]
    return table(LEVELS, ("variant", "cells", "IoU", "recall"), rows)


def by_seed(scores: Mapping[str, Sequence[Scores]], best: str) -> Table:
    """The mean IoU of the finest grid of each seed, and what the best gains over each variant, paired by seed.

    Variants of which fewer networks were trained than of the best are left out.
    """
    whole = {name: found for name, found in scores.items() if len(found) == len(scores[best])}
    means_ = {name: [float(one.iou[:, -1].mean()) for one in found] for name, found in whole.items()}
    rows = [[name, *values, None if name == best else paired(means_[best], values)] for name, values in means_.items()]
    seeds = [f"seed {n}" for n in range(len(means_[best]))]
    return table(f"IoU of the finest grid. Gain: of {best}, with its t interval.", ("variant", *seeds, "gain"), rows)


def summary(scores: Mapping[str, Scores], best: str) -> Table:
    """IoU, Chamfer distance, empty predictions, and what the best gains over each, paired by scene."""
    rows = [
        [
            name,
            over_items(one.iou[:, -1].tolist()),
            over_items(one.chamfer.tolist()),
            float(one.empty.double().mean()),
            gain(scores[best], one) if name != best else None,
        ]
        for name, one in scores.items()
    ]
    about = f"Of the finest grid, over scenes; empty predictions count. Gain: IoU of {best} minus the variant's."
    return table(about, ("variant", "IoU", "Chamfer (m^2)", "empty", "gain"), rows)


def free_space(models: Sequence[OnPairs], data: Scenes) -> Measured:
    """Share of the finest cells that lie in free cells of a coarser level, by the network; of white noise too."""
    octree = OctreeOccupancyDecoding()
    found = [octree.measure(model, (pair[None],)) for model in models[:1] for pair in data.pairs[:8]]
    names = {where for one in found for where in one.where}
    found = [replace(one, where={name: one.where.get(name, 1.0) for name in sorted(names)}) for one in found]
    return measured(found, interval=over_items)


def training(study: Study[OccupancyPlan], method: str) -> int:
    """MACs of one training: those of one step, forward and backward, times the steps."""
    plan, size = study.plan, study.plan.recipe.batch_size
    shifts, stereo = METHODS[method]
    first = Scenes(*(x[:size] for x in scenes(plan.train)))
    with count() as tally:
        fit(seeded(0, lambda: OnPairs(shifts, stereo)), first, replace(plan.recipe, epochs=1))
    return tally.macs * plan.recipe.epochs * -(-plan.train // size)


def masked(model: OnPairs, threshold: float) -> Handle:
    """The model with dense layers that see 0 outside live cells: what octree decoding gives, with nothing skipped."""
    return Handle(model, undo=replacement.replace(model.network.decoder, partial(_masked, threshold), "masked"))


def _masked(
    threshold: float, decoder: Any, dense: Any, x: Tensor, skips: Sequence[Skip] = (), level: int | None = None
) -> list[Tensor]:
    return decode_masked(decoder, x, threshold, skips, level)


def random_cells(model: OnPairs, threshold: float) -> Handle:
    """Octree decoding of the model's network that refines as many cells as `threshold` would keep, drawn at random."""
    return Handle(model, undo=replacement.replace(model.network.decoder, partial(_random, threshold), "random cells"))


def _random(
    threshold: float, decoder: Any, dense: Any, x: Tensor, skips: Sequence[Skip] = (), level: int | None = None
) -> list[Tensor]:
    counts = [one.kept / len(one.cells.index) for one in decode(decoder, x, threshold, skips, level)]
    draws, chosen, open_ = generator(0), list[Tensor](), torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
    for share in counts:
        chosen.append(open_ & (torch.rand(open_.shape, generator=draws) < share))
        open_ = torch.stack([refined(cells) for cells in chosen[-1]])
    found = decode(decoder, x, 1.0, skips, level, truth=chosen)
    return grids(decoder, found, level)


def sparsity(plan: OccupancyPlan, data: Scenes) -> Table:
    """How many cells are occupied, level by level: of the scenes, and of the real pairs that are at hand."""
    real = {"Motorcycle": voxelise(motorcycle().points(), CLOSE)}
    if ALOE in plan.needs:
        real["Aloe"] = voxelise(aloe().points(), DEEP)
    made = [grid.float().mean((1, 2, 3)).tolist() for grid in levels(data.truth)]
    shares = [[float(cells.float().mean()) for cells in levels(one)] for one in real.values()]
    rows = [[size, over_items(made[n]), *(share[n] for share in shares)] for n, size in enumerate(SIZES)]
    return table("Share of occupied cells.", ("cells", "made scenes", *real), rows)


# --------------------------------------------------------------------------------------------------------------------
# What needs no network, and the real pair


def prior(train: Scenes) -> list[Tensor]:
    """The mean occupancy of the training scenes, cut where the IoU with them is best, (1, n, n, n) each."""
    mean = train.truth.float().mean(0)

    def fits(cut: float) -> float:
        return sum(iou(mean >= cut, truth) for truth in train.truth[:32])

    best = max(torch.linspace(0.02, max(float(mean.max()), 0.04), 8).tolist(), key=fits)
    return [cells[None].float() for cells in levels(mean >= best)]


def empty() -> list[Tensor]:
    """Nothing is occupied."""
    return [torch.zeros(1, size, size, size) for size in SIZES]


REAL_SIDE = 16 / 3
"""Metres: the cube before the Motorcycle pair, two thirds of the made scenes' in scale."""
REAL = (
    "Cells that hold a visible surface are the truth, while the networks learnt whole boxes; intervals are over seeds."
)


class Real(NamedTuple):
    """A real pair at the size of the made ones, the cube that it is measured in, and the cells with surfaces there."""

    pair: Pair
    grid: Grid
    truth: Tensor
    """(64, 64, 64) bool."""

    def levels(self, step: float | None = None) -> tuple[int, ...]:
        """Levels at depths of the cube: every fourth bound of its cells, or `step` metres apart from the camera on."""
        camera, far = self.pair.camera, self.grid.low[2] + self.grid.size * self.grid.cell
        if step is not None:
            return asked(camera.focal, camera.baseline, step, far)
        return depth_levels(camera.focal, camera.baseline, self.grid.depths())


def real_pairs(plan: OccupancyPlan) -> dict[str, Real]:
    """Motorcycle, and Aloe where the plan needs its asset."""
    found = {"Motorcycle": (motorcycle().fitted(160, 334), Grid((-REAL_SIDE / 2, -REAL_SIDE / 2, 0.0), REAL_SIDE / 64))}
    if ALOE in plan.needs:
        found["Aloe"] = (aloe().fitted(*SIZE), DEEP)
    centred = {name: (pair.centred(), grid) for name, (pair, grid) in found.items()}
    return {name: Real(pair, grid, voxelise(pair.points(), grid)) for name, (pair, grid) in centred.items()}


def on_pair(model: OnPairs, real: Real, shifts: Sequence[int] | None = None) -> list[Tensor]:
    """What a network makes of the pair of another camera: with its own projection of the cells, and its own levels.

    shifts: the levels to match at, by default those of the cube's depths.
    """
    camera, grid = real.pair.camera, real.grid
    where = camera.project(grid.coarser(grid.size // LIFTED).centres()).float()
    call = partial(model.network, levels=real.levels() if shifts is None else shifts)
    return forward(call, real.pair.left[None], real.pair.right[None], where)()


def on_pairs(
    models: Sequence[OnPairs],
    attach: Callable[[OnPairs], Handle],
    pairs: Mapping[str, Real],
    shifts: Callable[[Real], Sequence[int] | None] = lambda real: None,
) -> dict[str, list[list[Tensor]]]:
    """Of each real pair, what the network of each seed finds with something attached to it."""
    found: dict[str, list[list[Tensor]]] = {name: [] for name in pairs}
    for model in models:
        with attach(model) as handle:
            for name, real in pairs.items():
                found[name].append(on_pair(handle.target, real, shifts(real)))
    return found


def real_scores(real: Real, predictions: Sequence[Sequence[Tensor]]) -> Scores:
    """The scores of what several seeds predict for a real pair, one row each."""
    rows = [scored(found, real.truth, real.grid.cell) for found in predictions]
    return Scores(*(torch.stack(column) for column in zip(*rows, strict=True)))


def real_table(pairs: Mapping[str, Real], found: Mapping[str, Mapping[str, Sequence[Sequence[Tensor]]]]) -> Table:
    """IoU and recall on the real pairs. found: of each variant, of each pair, what each seed predicts."""
    rows = []
    for name, real in pairs.items():
        for variant, predictions in found.items():
            scores = real_scores(real, predictions[name])
            for n, size in enumerate(SIZES):
                distance = over_seeds(scores.chamfer.tolist()) if size == SIZES[-1] else None
                spread = (over_seeds(x[:, n].tolist()) for x in (scores.iou, scores.recall))
                rows.append([name, variant, size, *spread, distance])
    return table(REAL, ("pair", "variant", "cells", "IoU", "recall", "Chamfer (m^2)"), rows)
