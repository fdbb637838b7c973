"""Octree occupancy decoding: a grid of occupancy grows coarse to fine, and free cells are never refined.

References:
  li-2023-stereovoxelnet: Li, Li, Akmandor, Jiang, Wang, Padır. StereoVoxelNet: Real-Time Obstacle Detection Based on
    Occupancy Voxels from a Stereo Camera Using Deep Neural Networks. ICRA 2023, arXiv 2209.08459. The decoder.
  Tatarchenko, Dosovitskiy, Brox. Octree Generating Networks. ICCV 2017, arXiv 1703.09438. The idea of it.

A head gives every live cell an occupancy. Cells below the threshold end there; each of the others is split into its 8
children by a transposed convolution of kernel and stride 2, which is one product of matrices, for every child has
exactly one parent. The children of a level then mix by a submanifold convolution: only live cells are computed, and
only live neighbours are looked at.

    decoder = OctreeDecoder((32, 16, 8, 4))              # from 8 cells along a side to 64
    grids = decoder(x)                                   # (B, 32, 8, 8, 8) -> occupancies (B, n, n, n), n = 8 ... 64
    with OctreeOccupancyDecoding().apply(decoder, threshold=0.5) as handle:
        grids = decoder(x)                               # 0 where nothing was computed
        handle.trace                                     # how many cells were computed and kept at each level
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, closed_form
from reference_impls.contract import Handle, Number, Redundancy, Setting, Technique, UnsupportedHost, warn_no_effect
from reference_impls.contract.errors import check_tensor
from reference_impls.contract.replacement import refuse_capture, replace
from reference_impls.hosts.substitution import modules_of

Skip = Tensor | None
"""Features (B, C, n, n, n) that are added to the cells of a level, such as those of an encoder."""


@dataclass(frozen=True)
class Cells:
    """Live cells of one level of a grid with `size` cells along a side."""

    index: Tensor
    """(N, 4): datum of the batch, then x, y, z."""
    size: int
    batch: int

    def flat(self, border: int = 0) -> Tensor:
        """(N,) position of each cell in a batch of grids with `border` more cells on every side."""
        side, at = self.size + 2 * border, self.index + self.index.new_tensor([0, border, border, border])
        return ((at[:, 0] * side + at[:, 1]) * side + at[:, 2]) * side + at[:, 3]

    def children(self) -> Cells:
        """The 8 children of every cell, those of a cell one after the other."""
        corner = torch.cartesian_prod(*[torch.arange(2, device=self.index.device)] * 3)  # (8, 3)
        offset = nn.functional.pad(corner, (1, 0))
        scale = self.index.new_tensor([1, 2, 2, 2])
        index = (self.index * scale)[:, None] + offset
        return Cells(index.flatten(0, 1), 2 * self.size, self.batch)

    def neighbours(self) -> Tensor:
        """(N, 27) rows of the neighbours of every cell, itself among them; N where a neighbour is not live."""
        count, side = len(self.index), self.size + 2
        at = self.flat(border=1)
        rows = torch.full((self.batch * side**3,), count, dtype=torch.int32, device=at.device)
        rows[at] = torch.arange(count, dtype=torch.int32, device=at.device)
        step = torch.cartesian_prod(*[torch.arange(-1, 2, device=at.device)] * 3)
        near = at[:, None] + (step * step.new_tensor([side * side, side, 1])).sum(1)
        return rows[near]

    def gather(self, grid: Tensor) -> Tensor:
        """(N, C) features of the cells in a grid (B, C, n, n, n)."""
        return grid.movedim(1, -1).flatten(0, 3)[self.flat()]

    def grid(self, rows: Tensor) -> Tensor:
        """(B, n, n, n) values of the cells (N,); 0 elsewhere."""
        values = rows.new_zeros(self.batch * self.size**3)
        return values.index_put((self.flat(),), rows).view(self.batch, *[self.size] * 3)


class Refine(nn.Module):
    """Twice as many cells along each side: split every cell into 8, mix the children with their neighbours.

    (B, C, n, n, n) -> (B, C', 2n, 2n, 2n).
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.split = nn.ConvTranspose3d(channels, out, 2, 2, bias=False)
        self.split_norm = nn.BatchNorm3d(out)
        self.mix = nn.Conv3d(out, out, 3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm3d(out)

    def forward(self, x: Tensor, skip: Skip = None) -> Tensor:
        y = self.split(x)
        y = self.split_norm(y if skip is None else y + skip).relu()
        return self.mix_norm(self.mix(y)).relu()

    def live(self, rows: Tensor, cells: Cells, skip: Skip = None) -> Tensor:
        """The same of live cells only: features of their parents (N / 8, C) -> (N, C')."""
        weight = self.split.weight.permute(0, 2, 3, 4, 1)  # (C, 2, 2, 2, C'): the children in the order of `children`
        y = (rows @ weight.flatten(1)).view(-1, self.split.out_channels)
        y = _norm(self.split_norm, y if skip is None else y + cells.gather(skip)).relu()
        empty = nn.functional.pad(y, (0, 0, 0, 1))  # one more row of zeros: what is not live
        near = empty.index_select(0, cells.neighbours().flatten()).view(len(y), -1)
        kernel = self.mix.weight.permute(2, 3, 4, 1, 0).reshape(-1, self.mix.out_channels)
        return _norm(self.mix_norm, near @ kernel).relu()


def _norm(norm: nn.BatchNorm3d, rows: Tensor) -> Tensor:
    return norm(rows.t()[None, :, :, None, None])[0, :, :, 0, 0].t()


@closed_form.register
def _(part: Refine, shape: Shape) -> Footprint:
    cells = 8 * math.prod(shape[1:])
    macs = cells * (part.split.weight.numel() // 8 + part.mix.weight.numel())
    size = tuple(2 * n for n in shape[1:])
    return Footprint(sum(p.numel() for p in part.parameters()), macs, (part.mix.out_channels, *size))


class OctreeDecoder(nn.Module):
    """A coarse-to-fine decoder whose levels each have a head: (B, widths[0], n, n, n) -> one occupancy per level.

    The occupancies are (B, n, n, n), (B, 2n, 2n, 2n), ...: probabilities in [0, 1]. `skips`: for each level but the
    first, what is added to its cells as they are split. `level`: the last level to compute, all by default.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if not widths:
            raise ValueError("a decoder needs the width of at least one level")
        self.widths = tuple(widths)
        self.heads = nn.ModuleList(nn.Conv3d(width, 1, 1) for width in widths)
        self.refinements = nn.ModuleList(map(Refine, widths, widths[1:]))

    def forward(self, x: Tensor, skips: Sequence[Skip] = (), level: int | None = None) -> list[Tensor]:
        self.check(x)
        grids = [self.heads[0](x)[:, 0].sigmoid()]
        for head, refine, skip in self.steps(skips, level):
            x = refine(x, skip)
            grids.append(head(x)[:, 0].sigmoid())
        return grids

    @torch.no_grad()
    def begin_at(self, shares: Sequence[float]) -> None:
        """Set the biases of the heads so that each level begins with the share of occupied cells that is due there.

        shares: of each level, strictly between 0 and 1 (`shares_of`). A head that begins far from it spends its first
        epochs on the way, for an optimiser moves a bias by no more than its rate in a step (as in Lin and others, Focal
        Loss for Dense Object Detection, arXiv 1708.02002, section 4.1).
        Raises: ValueError for another number of shares, or for 0 or 1.
        """
        if len(shares) != len(self.heads):
            raise ValueError(f"there are {len(self.heads)} levels, got {len(shares)} shares")
        for head, share in zip(self.heads, shares, strict=True):
            if not 0 < share < 1:
                raise ValueError(f"a share must lie between 0 and 1, got {share:g}")
            nn.init.constant_(head.bias, _logit(share))  # type: ignore[arg-type]

    def check(self, x: Tensor) -> None:
        """Raise unless x are features of a cubic grid with the width of the first level."""
        if x.ndim != 5 or x.shape[1] != self.widths[0] or len(set(x.shape[2:])) != 1:
            raise ValueError(f"x must have shape (B, {self.widths[0]}, n, n, n), got {tuple(x.shape)}")

    def steps(self, skips: Sequence[Skip], level: int | None) -> list[tuple[nn.Module, Refine, Skip]]:
        """What leads from each level to the next: the next one's head, the refinement, what is added."""
        last = len(self.refinements) if level is None else level
        if not 0 <= last <= len(self.refinements):
            raise ValueError(f"level must be in [0, {len(self.refinements)}], got {level}")
        padded = [*skips, *[None] * last][:last]
        return list(zip(self.heads[1:], self.refinements, padded, strict=False))  # type: ignore[arg-type]


@closed_form.register
def _(decoder: OctreeDecoder, shape: Shape) -> Footprint:
    total = closed_form_of_head(decoder, 0, math.prod(shape[1:]))
    for level, refine in enumerate(decoder.refinements, start=1):
        step = closed_form(refine, shape)
        shape = step.shape
        total += step + closed_form_of_head(decoder, level, math.prod(shape[1:]))
    return total


def closed_form_of_head(decoder: OctreeDecoder, level: int, cells: int) -> Footprint:
    """The head of a level on so many cells."""
    return Footprint(decoder.widths[level] + 1, decoder.widths[level] * cells)


def shares_of(truth: Sequence[Tensor]) -> list[float]:
    """Of each level, the share of occupied cells among those that decoding by the truth computes.

    truth: one (B, n, n, n) bool for each level, coarse to fine. All cells of the first level are computed, and the 8
    children of each occupied one after it.
    """
    occupied = [int(cells.sum()) for cells in truth]
    computed = [truth[0].numel(), *(8 * count for count in occupied)]
    return [a / max(b, 1) for a, b in zip(occupied, computed, strict=False)]


@dataclass(frozen=True)
class Decoded:
    """What octree decoding computed at one level."""

    cells: Cells
    probability: Tensor
    """(N,) occupancy of each live cell."""
    kept: int
    """Cells at or above the threshold; those of all levels but the last are refined."""

    @property
    def grid(self) -> Tensor:
        """Occupancies (B, n, n, n), 0 where nothing was computed."""
        return self.cells.grid(self.probability)


def decode(
    decoder: OctreeDecoder,
    x: Tensor,
    threshold: float,
    skips: Sequence[Skip] = (),
    level: int | None = None,
    truth: Sequence[Tensor] = (),
) -> list[Decoded]:
    """The levels of `decoder` on x (B, C, n, n, n), of which only children of kept cells are computed.

    A cell is kept when its occupancy is at least `threshold`, or when it is occupied in `truth`, one (B, n, n, n) bool
    for each level: for training, where a cell that is wrongly thought free must still be learnt. Never give it in use.
    What is returned ends at the level at which nothing is kept.
    """
    decoder.check(x)
    every = torch.cartesian_prod(*[torch.arange(n, device=x.device) for n in (len(x), *x.shape[2:])])
    cells, found = Cells(every, x.shape[2], len(x)), list[Decoded]()
    rows = cells.gather(x)
    least = _logit(threshold)

    def judge(head: Any) -> Tensor:
        logits = nn.functional.linear(rows, head.weight.flatten(1), head.bias)[:, 0]
        keep = logits.detach().float() >= least
        if truth:
            keep |= truth[len(found)].flatten()[cells.flat()]
        found.append(Decoded(cells, logits.sigmoid(), int(keep.sum())))
        return keep

    keep = judge(decoder.heads[0])
    for head, refine, skip in decoder.steps(skips, level):
        if not found[-1].kept:
            break
        cells = Cells(cells.index[keep], cells.size, cells.batch).children()
        rows = refine.live(rows[keep], cells, skip)
        keep = judge(head)
    return found


def decode_masked(
    decoder: OctreeDecoder,
    x: Tensor,
    threshold: float,
    skips: Sequence[Skip] = (),
    level: int | None = None,
    truth: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The grids of `decode` by dense layers: everything is computed, then set to 0 wherever nothing is live.

    What octree decoding must equal, and what it costs to leave the skipping out.
    """
    decoder.check(x)
    live, least = x.new_ones(len(x), 1, *x.shape[2:], dtype=torch.bool), _logit(threshold)
    logits = decoder.heads[0](x)
    found = [logits[:, 0].sigmoid()]
    for n, (head, refine, skip) in enumerate(decoder.steps(skips, level)):
        keep = live & (logits.float() >= least)
        if truth:
            keep |= live & truth[n][:, None]
        live = nn.functional.interpolate(keep.float(), scale_factor=2).bool()
        y = refine.split(x * keep)
        y = refine.split_norm(y if skip is None else y + skip).relu() * live
        x = refine.mix_norm(refine.mix(y)).relu() * live
        logits = head(x)
        found.append((logits.sigmoid() * live)[:, 0])
    return found


def _logit(threshold: float) -> float:
    return -math.inf if threshold <= 0 else math.inf if threshold >= 1 else math.log(threshold / (1 - threshold))


def grids(decoder: OctreeDecoder, found: Sequence[Decoded], level: int | None = None) -> list[Tensor]:
    """The occupancies of every level as `OctreeDecoder` returns them; 0 wherever nothing was computed."""
    first = found[0]
    levels = len(decoder.steps((), level)) + 1
    empty = [
        first.probability.new_zeros(first.cells.batch, *[first.cells.size << n] * 3) for n in range(len(found), levels)
    ]
    return [one.grid for one in found] + empty


class OctreeOccupancyDecoding(Technique):
    """Octree decoding in every `OctreeDecoder` of a network."""

    id = "octree-occupancy-decoding"
    execution = "real"
    knobs: ClassVar = {"threshold": Number(0.5, low=0, high=1, about="occupancy from which on a cell is refined")}

    def settings(self) -> list[Setting]:
        return [
            Setting("every cell", {"threshold": 0.0}, off=True),
            Setting("occupied cells", {"threshold": 0.5}, adaptive=True),
            Setting("surely occupied cells", {"threshold": 0.9}, adaptive=True),
        ]

    @torch.no_grad()
    def measure(self, target: nn.Module, inputs: Any) -> Redundancy:
        """Share of the finest cells that lie in a cell with an occupancy below 0.5 at a coarser level.

        `where` holds the share of free cells at each level, of those that are computed there.
        """
        where, shares = dict[str, float](), list[float]()
        for name, found in self._runs(target, inputs, 0.5).items():
            finest = found[-1].cells.batch * (found[0].cells.size << len(self._decoders(target)[name].refinements)) ** 3
            reached = len(found) == len(self._decoders(target)[name].heads)
            shares.append(1 - len(found[-1].cells.index) / finest if reached else 1.0)
            for one in found:
                where[f"{name} {one.cells.size}".strip()] = 1 - one.kept / len(one.cells.index)
        return Redundancy(sum(shares) / len(shares), "share of the finest cells inside free ones", where)

    def _runs(self, target: nn.Module, inputs: Any, threshold: float) -> dict[str, list[Decoded]]:
        """What each decoder computes when the target runs on the inputs."""
        seen: dict[str, list[Decoded]] = {}
        undo = [
            replace(decoder, partial(_seen, threshold, seen, name), self.id)
            for name, decoder in self._decoders(target).items()
        ]
        try:
            target(*inputs) if isinstance(inputs, tuple | list) else target(check_tensor("inputs", inputs, "B C X Y Z"))
        finally:
            for one in undo:
                one()
        return seen

    def _decoders(self, target: Any) -> dict[str, OctreeDecoder]:
        found = modules_of(target, OctreeDecoder)
        if not found:
            needs = (
                "an `OctreeDecoder`, whose kernel and stride are 2: with a larger kernel a child has several parents"
            )
            raise UnsupportedHost(self.id, target, needs)
        return found

    def attach(self, target: nn.Module, threshold: float) -> Handle:
        """Refine kept cells only, in place. The trace holds of each decoder, level by level, `computed` and `kept`."""
        decoders = self._decoders(target)
        if threshold == 0:
            warn_no_effect(self.id, "threshold is 0")
            return Handle(target)
        trace: dict[str, Any] = {}
        undo = [replace(one, partial(_live, threshold, trace, name), self.id) for name, one in decoders.items()]

        def restore() -> None:
            for one in undo:
                one()

        return Handle(target, undo=restore, trace=lambda: trace)

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Sum over levels of (n - N) (C C' + 27 C^2 + C): n cells of C channels, N computed, C' channels of parents."""
        total = 0
        for name, run in trace.items():
            decoder = self._decoders(target)[name]
            for level, refine in enumerate(decoder.refinements, start=1):
                cells = run["computed"][0] << 3 * level
                computed = run["computed"][level] if level < len(run["computed"]) else 0
                if level <= run["last"]:
                    each = refine.split.weight.numel() // 8 + refine.mix.weight.numel() + decoder.widths[level]
                    total += (cells - computed) * each
        return total


def _live(
    threshold: float,
    trace: dict[str, Any],
    name: str,
    decoder: OctreeDecoder,
    dense: Callable[..., list[Tensor]],
    x: Tensor,
    skips: Sequence[Skip] = (),
    level: int | None = None,
) -> list[Tensor]:
    """In the place of the decoder's forward."""
    refuse_capture("which cells are refined depends on the data", "with threshold 0")
    found = decode(decoder, x, threshold, skips, level)
    trace[name] = {
        "computed": [len(one.cells.index) for one in found],
        "kept": [one.kept for one in found],
        "last": len(decoder.steps((), level)),
    }
    return grids(decoder, found, level)


def _seen(
    threshold: float, seen: dict[str, list[Decoded]], name: str, decoder: Any, dense: Any, x: Tensor, *rest: Any
) -> list[Tensor]:
    seen[name] = decode(decoder, x, threshold, *rest)
    return grids(decoder, seen[name])
