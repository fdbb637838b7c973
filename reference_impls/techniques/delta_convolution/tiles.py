"""Feature maps that outlive a frame, cut into tiles.

Maps are stored with channels last, so that a position is one contiguous row of C values: gathering a tile with its halo
and writing it back are `index_select` and `index_copy_` of rows. A margin of zeros around the map serves as the zero
padding of the layers that read it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Axis:
    """How a layer slides along one axis of its input."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def span(self) -> int:
        """Positions from the first to the last tap."""
        return self.dilation * (self.kernel - 1) + 1

    def size_out(self, size: int) -> int:
        """Length of the output for an input of length `size`."""
        return (size + 2 * self.padding - self.span) // self.stride + 1

    def extent(self, tile: int) -> int:
        """Length of the input that `tile` neighbouring outputs read."""
        return (tile - 1) * self.stride + self.span


POINTWISE = (Axis(), Axis())


@dataclass(frozen=True)
class Grid:
    """A map of B x H x W positions in square tiles; tiles are numbered image by image, row by row."""

    batch: int
    height: int
    width: int
    tile: int

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(B, rows of tiles, columns of tiles)."""
        return self.batch, -(-self.height // self.tile), -(-self.width // self.tile)

    @cached_property
    def count(self) -> int:
        """Number of tiles."""
        return self.batch * self.shape[1] * self.shape[2]

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.batch * self.height * self.width

    @property
    def ragged(self) -> bool:
        """The last tiles reach beyond the map."""
        return bool(self.height % self.tile or self.width % self.tile)

    def aligned(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C) filled up with zeros to whole tiles, contiguous."""
        _, rows, columns = self.shape
        below, right = rows * self.tile - x.shape[1], columns * self.tile - x.shape[2]
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        return x.contiguous()

    def pack(self, x: Tensor, tiles: Tensor) -> Tensor:
        """The given tiles of a whole map. x: (B, H, W, C); tiles: (n,) int64. Returns (n, T, T, C)."""
        (batch, rows, columns), size = self.shape, self.tile
        x = self.aligned(x)
        if len(tiles) == self.count:
            return x.view(batch, rows, size, columns, size, -1).transpose(2, 3).reshape(self.count, size, size, -1)
        line = torch.arange(size, device=x.device)
        place = (line[:, None] * columns * size + line).flatten()  # (T * T,) rows of a tile, relative to its first
        first = tiles // columns * columns * size**2 + tiles % columns * size
        return x.view(-1, x.shape[-1]).index_select(0, (first[:, None] + place).view(-1)).view(len(tiles), size, size, -1)


class TileMap:
    """One stored map: `data` (B, top + H' + bottom, left + W' + right, C), H' and W' being whole tiles."""

    def __init__(self, grid: Grid, channels: int, margin: tuple[int, int, int, int], like: Tensor) -> None:
        self.grid, self.channels = grid, channels
        self.top, bottom, self.left, right = margin
        batch, rows, columns = grid.shape
        shape = (batch, self.top + rows * grid.tile + bottom, self.left + columns * grid.tile + right, channels)
        self.data = like.new_zeros(shape)
        self.rows = self.data.view(-1, channels)  # (B * padded H * padded W, C)
        self.own = Windows(self, grid, POINTWISE)

    @property
    def aligned(self) -> Tensor:
        """The tiles as one map, without the margin: (B, H', W', C), a view."""
        _, rows, columns = self.grid.shape
        size = self.grid.tile
        return self.data[:, self.top : self.top + rows * size, self.left : self.left + columns * size]

    @property
    def interior(self) -> Tensor:
        """The map itself: (B, H, W, C), a view."""
        return self.aligned[:, : self.grid.height, : self.grid.width]

    def read(self, tiles: Tensor) -> Tensor:
        """The given tiles, copied: (n, T, T, C)."""
        return self.own.gather(tiles, self.rows)

    def write(self, tiles: Tensor, packed: Tensor) -> None:
        """Overwrite the given tiles with packed (n, T, T, C)."""
        self.rows.index_copy_(0, self.own.index(tiles), packed.reshape(-1, self.channels))

    def clear(self, tiles: Tensor) -> None:
        """Set the given tiles to zero."""
        self.rows.index_fill_(0, self.own.index(tiles), 0)

    def twin(self) -> TileMap:
        """A map of zeros with the same layout."""
        other = copy.copy(self)
        other.data = torch.zeros_like(self.data)
        other.rows = other.data.view(-1, self.channels)
        return other

    @cached_property
    def outside(self) -> Tensor:
        """Which positions of each tile of an image lie beyond the map: (rows * columns, T, T, 1) bool."""
        one = Grid(1, self.grid.height, self.grid.width, self.grid.tile)
        ones = self.data.new_ones(1, one.height, one.width, 1)
        return one.pack(ones, torch.arange(one.count, device=ones.device)) == 0

    def blank_outside(self, packed: Tensor, tiles: Tensor) -> Tensor:
        """Set to zero, in place, what a layer computed beyond the edge of the map."""
        return packed.masked_fill_(self.outside[tiles % len(self.outside)], 0) if self.grid.ragged else packed


class Windows:
    """What a layer reads of a stored map: for each output tile the input window it depends on, halo included."""

    def __init__(self, source: TileMap, grid: Grid, axes: tuple[Axis, Axis]) -> None:
        self.source, self.grid, self.axes = source, grid, axes
        self.pointwise = axes == POINTWISE
        self.size = tuple(axis.extent(grid.tile) for axis in axes)  # (height, width) of a window
        device = source.data.device
        _, height, width, _ = source.data.shape
        image, row, column = (torch.arange(n, device=device) for n in grid.shape)
        steps = [grid.tile * axis.stride for axis in axes]
        top, left = source.top - axes[0].padding, source.left - axes[1].padding
        first = (image[:, None, None] * height + top + row[:, None] * steps[0]) * width + left + column * steps[1]
        self.first = first.flatten()  # (tiles,) row of the window's first position
        down, across = (torch.arange(n, device=device) for n in self.size)
        self.offset = (down[:, None] * width + across).flatten()
        self.ranges = [
            self._source_tiles(axis, count, limit)
            for axis, count, limit in zip(axes, grid.shape[1:], source.grid.shape[1:], strict=True)
        ]

    def _source_tiles(self, axis: Axis, count: int, limit: int) -> tuple[Tensor, Tensor]:
        """First of the `limit` source tiles in a line, and the one after the last, that each of `count` windows touch."""
        size = self.source.grid.tile
        start = torch.arange(count, device=self.source.data.device) * self.grid.tile * axis.stride - axis.padding
        stop = (start + axis.extent(self.grid.tile) - 1) // size + 1
        return (start // size).clamp(0, limit), stop.clamp(0, limit)

    def index(self, tiles: Tensor) -> Tensor:
        """Rows of the source that the windows of the given tiles consist of: (n * window positions,)."""
        return (self.first[tiles, None] + self.offset).view(-1)

    def gather(self, tiles: Tensor, rows: Tensor | None = None) -> Tensor:
        """Windows of the given output tiles, copied: (n, h, w, C); `rows` replaces the source's own rows."""
        rows = self.source.rows if rows is None else rows
        return rows.index_select(0, self.index(tiles)).view(len(tiles), *self.size, -1)

    def whole(self, data: Tensor) -> Tensor:
        """The one window of the whole map, padding included: (B, h, w, C), a view of `data`."""
        (y, x), source = self.axes, self.source
        top, left = source.top - y.padding, source.left - x.padding
        return data[:, top : top + y.extent(self.grid.height), left : left + x.extent(self.grid.width)]

    def reached(self, mask: Tensor) -> Tensor:
        """Output tiles whose window touches a source tile in `mask` (B, rows, columns); a mask of output tiles."""
        if self.pointwise:
            return mask
        for axis, (start, stop) in enumerate(self.ranges, start=1):
            total = F.pad(mask.cumsum(axis), (1, 0) if axis == 2 else (0, 0, 1, 0))  # tiles in the mask before each
            mask = total.index_select(axis, stop) > total.index_select(axis, start)
        return mask


def margin(source: Grid, grid: Grid, axes: tuple[Axis, Axis]) -> tuple[int, int, int, int]:
    """Zeros needed around the whole tiles of `source`, so that every window of `grid` lies on stored ground."""
    sides = []
    for axis, have, want in zip(axes, source.shape[1:], grid.shape[1:], strict=True):
        last = (want * grid.tile - 1) * axis.stride - axis.padding + axis.span
        sides += [axis.padding, max(0, last - have * source.tile)]
    top, bottom, left, right = sides
    return top, bottom, left, right
