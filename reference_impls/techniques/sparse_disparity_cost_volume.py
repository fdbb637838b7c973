"""Sparse disparity cost volume: match a stereo pair at the disparities of evenly spaced depths only.

References:
  li-2023-stereovoxelnet: Li, Li, Akmandor, Jiang, Wang, Padır. StereoVoxelNet: Real-Time Obstacle Detection Based on
    Occupancy Voxels from a Stereo Camera Using Deep Neural Networks. ICRA 2023, arXiv 2209.08459. The cost volume.

A point at depth Z appears in the right image d = f B / Z pixels to the left of where the left image has it, for a focal
length f in pixels and a baseline B in metres. Disparities in even steps are therefore dense in depth nearby and sparse
far away; a grid of voxels asks for even steps of depth. Of 48 disparities at a quarter of the resolution 11 are left
for the calibration of DrivingStereo, beside the one without shift.

    levels = depth_levels(1003.556, 0.54, depths=torch.arange(0.5, 32, 2.0))     # 0 4 5 6 7 8 9 11 13 16 21 30
    volume = CostVolume(levels, MatchingCost(64))
    costs = volume(left, right)                          # features (B, 32, H, W) twice -> (B, 1, 12, H, W)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.contract import Handle, Number, Redundancy, Setting, Technique, UnsupportedHost, warn_no_effect
from reference_impls.contract.errors import check_range, check_tensor
from reference_impls.contract.replacement import replace
from reference_impls.hosts.substitution import modules_of
from reference_impls.layers.norm import folded

STRIDE, MAX_DISPARITY = 4, 192.0
"""Of the published network: its features have a quarter of the resolution, and disparities end at 192 pixels."""
LONGEST_BASELINE = 5.0
WIDEST = 2**18
"""Numbers of the largest map in which levels are matched side by side: 1 MB of float32, as a core keeps close by."""


def depth_levels(
    focal: float, baseline: float, depths: Tensor, stride: int = STRIDE, max_disparity: float = MAX_DISPARITY
) -> tuple[int, ...]:
    """Shifts of the features that belong to depths (K,) in metres, in ascending order, and the one without shift.

    round(f B / (stride z)) for each depth z with f B / z <= `max_disparity`, each once. `focal` in pixels of the image,
    `baseline` in metres.
    Raises: ValueError for a baseline that can only be in millimetres, or for depths that are not positive.
    """
    check_range("focal", focal, 0, low_open=True)
    check_range("baseline", baseline, 0, low_open=True)
    if baseline > LONGEST_BASELINE:
        raise ValueError(f"baseline must be in metres, got {baseline:g}: is it in millimetres ({baseline / 1000:g} m)?")
    if not depths.numel() or not bool((depths > 0).all()):
        raise ValueError("depths must be positive, in metres, and at least one")
    disparities = focal * baseline / depths.double()
    shifts = (disparities[disparities <= max_disparity] / stride).round().long()
    return tuple(sorted({0, *shifts.tolist()}))


def uniform_levels(count: int, step: int = 1) -> tuple[int, ...]:
    """`count` shifts in even steps, from the one without shift on."""
    return tuple(range(0, count * step, step))


def interleave(left: Tensor, right: Tensor) -> Tensor:
    """Channels of two maps (B, C, H, W) in turn: left 0, right 0, left 1, ... (B, 2C, H, W); in their memory format."""
    if left.stride(1) > 1:
        return torch.stack([left, right], 2).flatten(1, 2)
    return torch.stack([left.movedim(1, 3), right.movedim(1, 3)], 4).flatten(3).movedim(3, 1)


class MatchingCost(nn.Module):
    """A learned cost of interleaved features, pixel by pixel: (B, channels, H, W) -> (B, 1, H, W), not negative.

    The paper convolves with kernels (8, 3, 3), (4, 3, 3) and (2, 3, 3) over channels, rows and columns, each as long as
    its stride over the channels. So groups of channels never overlap, and the same is a 2-D convolution of each group
    with shared weights, which runs faster. `gaps`: columns (N,) between two images, which every layer takes as 0, as it
    does padding.
    """

    KERNELS, WIDTHS = (8, 4, 2), (8, 16, 8)

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        if channels != 64:
            raise ValueError(f"the kernels reduce 64 channels to 1, got {channels}")
        self.convs, self.norms, before = nn.ModuleList(), nn.ModuleList(), 1
        for kernel, width in zip(self.KERNELS, self.WIDTHS, strict=True):
            self.convs.append(nn.Conv2d(kernel * before, width, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(width))
            before = width
        self.project = nn.Conv2d(before, 1, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor, gaps: Tensor | None = None) -> Tensor:
        batch, _, height, width = x.shape
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x.reshape(-1, conv.in_channels, height, width)))
            x = emptied(x, gaps).relu_()
        return self.project_norm(self.project(x)).relu_().view(batch, 1, height, width)


class FoldedMatching(nn.Module):
    """A `MatchingCost` for inference: its batch norms folded, and all groups of a layer in one grouped convolution.

    The weights of the groups are the same, and are repeated. Costs and MACs are those of `match`.
    """

    def __init__(self, match: MatchingCost) -> None:
        super().__init__()
        self.convs, groups = nn.ModuleList(), 64
        for conv, norm, kernel in zip(match.convs, match.norms, match.KERNELS, strict=True):
            one, groups = folded(conv, norm), groups // kernel  # type: ignore[arg-type]
            assert one.bias is not None
            wide = nn.Conv2d(groups * one.in_channels, groups * one.out_channels, 3, padding=1, groups=groups)
            wide.weight, wide.bias = (nn.Parameter(torch.cat([x.detach()] * groups)) for x in (one.weight, one.bias))
            self.convs.append(wide)
        self.project = folded(match.project, match.project_norm)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, gaps: Tensor | None = None) -> Tensor:
        for conv in self.convs:
            x = emptied(conv(x), gaps).relu_()
        return self.project(x).relu_()


def emptied(x: Tensor, gaps: Tensor | None) -> Tensor:
    """A map (B, C, H, W) just made, with 0 in the columns `gaps`; in place, for they are few."""
    return x if gaps is None else x.index_fill_(3, gaps, 0)


class CostVolume(nn.Module):
    """Costs of matching left features with right ones at each of `levels`, whole shifts in columns of the features.

    left, right: (B, C, H, W) -> (B, G, D, H, W) with G costs of `match`, and 0 where a column has no partner.
    `match(x, gaps)` takes interleaved features (B, 2C, H, L). It runs once for many levels, which stand side by side in
    a wide map, a column of zeros between two of them, so that nothing is computed that `loop` does not compute, but for
    these columns. Maps hold no more than `WIDEST` numbers, beyond which memory takes longer than the calls that are
    saved; a level that fills one alone is matched as in `loop`.
    """

    def __init__(self, levels: Sequence[int], match: nn.Module) -> None:
        super().__init__()
        self.levels, self.match = checked_levels(levels), match

    def forward(self, left: Tensor, right: Tensor, levels: Sequence[int] | None = None) -> Tensor:
        """Costs at `levels`, by default the module's own: another camera has other ones."""
        shifts = self.check(left, right, levels)
        groups = maps(shifts, left.shape)
        if len(groups) == len(shifts):
            return self.loop(left, right, shifts)
        return torch.cat([self._wide(left, right, group) for group in groups], 2)

    def _wide(self, left: Tensor, right: Tensor, shifts: tuple[int, ...]) -> Tensor:
        """Costs of levels that go through the matching as one wide map."""
        if len(shifts) == 1:
            return self.loop(left, right, shifts)
        width, gap = left.shape[3], torch.zeros_like(left[..., :1])
        wide_left = torch.cat([part for shift in shifts for part in (left[..., shift:], gap)], 3)
        wide_right = torch.cat([part for shift in shifts for part in (right[..., : width - shift], gap)], 3)
        columns = packing(shifts, width)
        gaps = torch.tensor(columns, device=left.device).cumsum(0)[1::2] - 1
        costs = self.match(interleave(wide_left, wide_right), gaps).split(columns, 3)[::2]
        return torch.stack([nn.functional.pad(one, (n, 0)) for one, n in zip(costs, shifts, strict=True)], 2)

    def loop(self, left: Tensor, right: Tensor, levels: Sequence[int] | None = None) -> Tensor:
        """The same, readable: level by level, on the columns that have a partner."""
        volume = []
        for shift in self.check(left, right, levels):
            x = interleave(left[..., shift:], right[..., : right.shape[3] - shift])
            volume.append(nn.functional.pad(self.match(x), (shift, 0)))
        return torch.stack(volume, 2)

    def check(self, left: Tensor, right: Tensor, levels: Sequence[int] | None = None) -> tuple[int, ...]:
        """The levels, once the features fit them and each other."""
        shifts = self.levels if levels is None else checked_levels(levels)
        if left.ndim != 4 or left.shape != right.shape:
            sizes = f"{tuple(left.shape)} and {tuple(right.shape)}"
            raise ValueError(f"left and right must have the same shape (B, C, H, W), got {sizes}")
        if shifts[-1] >= left.shape[3]:
            raise ValueError(f"features with {left.shape[3]} columns cannot be shifted by {shifts[-1]}")
        return shifts


def checked_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """The levels as a tuple. Raises ValueError unless they rise from 0 or more, without repetition."""
    shifts = tuple(int(level) for level in levels)
    if not shifts or shifts[0] < 0 or list(shifts) != sorted(set(shifts)):
        raise ValueError(f"levels must be whole shifts in ascending order, from 0 on, got {tuple(levels)}")
    return shifts


def side_by_side(levels: Sequence[int], width: int, columns: int) -> list[tuple[int, ...]]:
    """The levels in groups whose columns, separators included, are no more than `columns`, or one level each."""
    groups, taken = [list[int]()], 0
    for level in levels:
        taken += width - level + 1
        if groups[-1] and taken > columns:
            groups.append([])
            taken = width - level + 1
        groups[-1].append(level)
    return [tuple(group) for group in groups]


def maps(levels: Sequence[int], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The levels in groups that are matched at once, for features of `shape` (B, C, H, W)."""
    _, channels, height, width = shape
    return side_by_side(levels, width, WIDEST // max(1, 2 * channels * height))


def matched_columns(levels: Sequence[int], shape: Sequence[int]) -> int:
    """Columns of all these maps: those with a partner, and the separators of maps with several levels."""
    separators = sum(len(group) for group in maps(levels, shape) if len(group) > 1)
    return sum(shape[3] - level for level in levels) + separators


def packing(levels: Sequence[int], width: int) -> list[int]:
    """Columns of each level in a wide map, and the one that separates it from the next, in turn."""
    return [columns for level in levels for columns in (width - level, 1)]


# --------------------------------------------------------------------------------------------------------------------
# On a network that was trained with more levels


MOST = 100_000
"""Depths of a grid; an image has far fewer disparities."""


class SparseDisparityCostVolume(Technique):
    """In every `CostVolume` of a network, costs at the disparities of evenly spaced depths only.

    The layers after the volume keep their shape: a level that is left out takes the costs of the nearest computed one.
    """

    id = "sparse-disparity-cost-volume"
    execution = "real"
    trains = True
    knobs: ClassVar = {
        "focal": Number(1003.556, low=0, low_open=True, about="focal length in pixels of the image"),
        "baseline": Number(0.54, low=0, high=5.0, low_open=True, about="baseline in metres"),
        "step": Number(2.0, low=0, about="distance of the depths in metres; 0 keeps every level"),
        "far": Number(32.0, low=0, low_open=True, about="depth at which the grid ends, in metres"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("every level", {"step": 0.0}, off=True),
            Setting("depths 2 m apart", {"step": 2.0}, adaptive=True),
            Setting("depths 8 m apart", {"step": 8.0}),
        ]

    def measure(self, target: nn.Module, inputs: Any) -> Redundancy:
        """Share of the levels beyond the first that no depth asks for, 2 m apart up to 32 m with the default camera.

        `where` holds it for each volume. For a camera of your own see `spared`.
        """
        defaults = {name: knob.default for name, knob in self.knobs.items()}
        for x in inputs if isinstance(inputs, tuple | list) else (inputs,):
            check_tensor("inputs", x, "B C H W")
        where = {name: spared(one.levels, asked(**defaults)) for name, one in self._volumes(target).items()}
        return Redundancy(sum(where.values()) / len(where), "share of levels that no depth asks for", where)

    def _volumes(self, target: Any) -> dict[str, CostVolume]:
        found = modules_of(target, CostVolume)
        if not found:
            raise UnsupportedHost(self.id, target, "a `CostVolume`")
        return found

    def attach(self, target: nn.Module, focal: float, baseline: float, step: float, far: float) -> Handle:
        """Compute those levels only, in place. The trace holds of each volume the `levels` and the last `shape`."""
        volumes = self._volumes(target)
        if step == 0:
            warn_no_effect(self.id, "step is 0")
            return Handle(target)
        return keep_levels(self.id, target, volumes, asked(focal, baseline, step, far))

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """H times the columns that are not matched, separators included, times the MACs of a column's pixel."""
        total = 0
        for name, run in trace.items():
            volume, (batch, _, height, _) = self._volumes(target)[name], run["shape"]
            every, computed = (matched_columns(some, run["shape"]) for some in (run["every"], run["levels"]))
            total += batch * height * (every - computed) * pixel_macs(volume.match)
        return total


def pixel_macs(match: nn.Module) -> int:
    """MACs of a `MatchingCost`, folded or not, for a pixel: each convolution once for each group of channels."""
    if isinstance(match, FoldedMatching):
        return sum(conv.weight.numel() for conv in (*match.convs, match.project))  # type: ignore[misc, union-attr]
    if not isinstance(match, MatchingCost):
        raise TypeError(f"{type(match).__name__} has no closed form")
    channels, total = 64, match.project.weight.numel()
    for conv, kernel in zip(match.convs, match.KERNELS, strict=True):
        channels //= kernel
        total += channels * conv.weight.numel()  # type: ignore[union-attr, operator]
    return total


def asked(focal: float, baseline: float, step: float, far: float) -> tuple[int, ...]:
    """Levels of the depths step / 4, step / 4 + step, ... below `far`: the published 0.5, 2.5, ... for 2 and 32 m.

    Raises ValueError for more than `MOST` depths.
    """
    if far > step * MOST:
        raise ValueError(f"step must be at least far / {MOST} = {far / MOST:g} metres, got {step}")
    return depth_levels(focal, baseline, torch.arange(step / 4, max(far, step / 2), step, dtype=torch.float64))


def computed(levels: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Those of the levels that are nearest to a wanted one."""
    return tuple(sorted({min(levels, key=lambda level: (abs(level - one), level)) for one in wanted}))


def spared(levels: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of the levels beyond the first that need not be computed."""
    return (len(levels) - len(computed(levels, wanted))) / max(len(levels) - 1, 1)


def keep_levels(technique: str, target: Any, volumes: Mapping[str, CostVolume], wanted: Sequence[int]) -> Handle:
    """Compute only the levels that are nearest to a wanted one, in each of the volumes of `target`, in place."""
    trace: dict[str, Any] = {}
    undo = [replace(one, partial(_nearest, tuple(wanted), trace, name), technique) for name, one in volumes.items()]

    def restore() -> None:
        for one in undo:
            one()

    return Handle(target, undo=restore, trace=lambda: trace)


def _nearest(
    wanted: tuple[int, ...],
    trace: dict[str, Any],
    name: str,
    volume: CostVolume,
    dense: Callable[..., Tensor],
    left: Tensor,
    right: Tensor,
    levels: Sequence[int] | None = None,
) -> Tensor:
    """In the place of the volume's forward."""
    every = volume.check(left, right, levels)
    some = computed(every, wanted)
    trace[name] = {"levels": some, "every": every, "shape": tuple(left.shape)}
    source = [min(range(len(some)), key=lambda n: (abs(some[n] - level), n)) for level in every]
    costs = dense(left, right, some)
    return costs if some == every else costs[:, :, source]
