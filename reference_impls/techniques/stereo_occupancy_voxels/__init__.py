"""StereoVoxelNet: obstacles from a stereo pair as occupied voxels, without a disparity map in between.

References:
  li-2023-stereovoxelnet: Li, Li, Akmandor, Jiang, Wang, Padır. StereoVoxelNet: Real-Time Obstacle Detection Based on
    Occupancy Voxels from a Stereo Camera Using Deep Neural Networks. ICRA 2023, arXiv 2209.08459.

The pair is matched only at disparities to which the depths of the voxels belong (`sparse_disparity_cost_volume`), and
the grid grows coarse to fine, so that free space need not be computed (`octree_occupancy_decoding`) and a coarser grid
can be had for less.

    network = build("voxel")                             # the published one: 5,403,731 parameters, 14.24 GMACs
    grids = network(left, right)                         # (B, 3, 400, 880) twice -> occupancies of 8, 16, 32, 64 cells
    grids = network(left, right, level=1)                # those of 8 and 16 cells, and nothing more is computed
    level = next_level(grids[-1], level=1)               # the robot's policy

`LiftedStereoNet` is a small network for other cameras and little data. `Grid`, `voxelise` and the metrics are in
`grid`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.contract import (
    Handle,
    Integer,
    Number,
    Redundancy,
    Setting,
    Technique,
    UnsupportedHost,
    warn_no_effect,
)
from reference_impls.contract.replacement import replace
from reference_impls.techniques.octree_occupancy_decoding import OctreeDecoder, OctreeOccupancyDecoding
from reference_impls.techniques.stereo_occupancy_voxels.grid import Grid, voxelise
from reference_impls.techniques.stereo_occupancy_voxels.lifted import LIFTED, LiftedStereoNet
from reference_impls.techniques.stereo_occupancy_voxels.network import VOLUMES, StereoVoxelNet, build, next_level

OCTREE = OctreeOccupancyDecoding()
FINEST = 3


class StereoOccupancyVoxels(Technique):
    """A finished network for stereo occupancy that leaves out free space, and stops at the level that is needed."""

    id = "stereo-occupancy-voxels"
    execution = "real"
    knobs: ClassVar = {
        "threshold": Number(0.5, low=0, high=1, about="occupancy from which on a cell is refined; 0 refines all"),
        "level": Integer(3, low=0, high=3, about="the last level computed: 8, 16, 32 or 64 cells along a side"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("every cell", {"threshold": 0.0}, off=True),
            Setting("occupied cells", {"threshold": 0.5}, adaptive=True),
            Setting("up to 32 cells", {"threshold": 0.5, "level": 2}),
            Setting("up to 8 cells", {"threshold": 0.5, "level": 0}),
        ]

    @torch.no_grad()
    def measure(self, target: nn.Module, inputs: Any) -> Redundancy:
        """Share of the finest cells inside free ones of a coarser level: see `OctreeOccupancyDecoding.measure`."""
        _lifted(self.id, target)
        return OCTREE.measure(target, inputs)

    def attach(self, target: nn.Module, threshold: float, level: int) -> Handle:
        """Both in place, for what runs the network without a level of its own. The trace is that of octree decoding.

        A `StereoVoxelNet` takes `level` alone, with `threshold` 0: in its decoder a cell has several parents. Levels
        that are not computed are absent from the result.
        """
        networks = _networks(self.id, target) if threshold == 0 else _lifted(self.id, target)
        if threshold == 0 and level == FINEST:
            warn_no_effect(self.id, "every cell of every level is computed")
            return Handle(target)
        octree = OCTREE.apply(target, threshold=threshold) if threshold else Handle(target)
        stops = [replace(one, partial(_stopped, level), self.id) for one in networks.values() if level < FINEST]

        def undo() -> None:
            for stop in stops:
                stop()
            octree.undo()

        return Handle(target, undo=undo, trace=lambda: octree.trace)

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """What octree decoding saves of the levels that are computed, and the closed form of those that are not."""
        total = OCTREE.saving(target, inputs, trace)
        for name, run in trace.items():
            decoder = target.get_submodule(name)
            size, first = 8, run["computed"][0]
            for level, refine in enumerate(decoder.refinements, start=1):
                step = closed_form(refine, (refine.split.in_channels, size, size, size)).macs // (8 * size**3)
                if level > run["last"]:
                    total += (first << 3 * level) * (step + decoder.widths[level])
                size *= 2
        return total


def _networks(technique: str, target: Any) -> dict[str, nn.Module]:
    found = {} if not isinstance(target, nn.Module) else dict(target.named_modules())
    found = {name: one for name, one in found.items() if isinstance(one, StereoVoxelNet | LiftedStereoNet)}
    if not found:
        raise UnsupportedHost(technique, target, "a `StereoVoxelNet` or a `LiftedStereoNet`")
    return found


def _lifted(technique: str, target: Any) -> dict[str, nn.Module]:
    found = _networks(technique, target)
    for one in found.values():
        if not isinstance(one.decoder, OctreeDecoder):
            needs = "threshold 0, or a decoder whose kernel and stride are 2, as that of `LiftedStereoNet`"
            raise UnsupportedHost(technique, one, needs)
    return found


def _stopped(level: int, network: nn.Module, below: Callable[..., list[Tensor]], *args: Any, **kwargs: Any) -> Any:
    """In the place of a network's forward: up to `level`, unless the call says where to stop."""
    return below(*args, **{"level": level} | kwargs)
