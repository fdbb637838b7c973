"""Feature maps that outlive a frame, and the windows that layers read of them.

Maps are stored with channels last, so that a position is one contiguous row of C values: gathering a tile with its halo
and writing it back are `index_select` and `index_copy_` of rows. A margin of zeros around the map serves as the zero
padding of the layers that read it. A set of positions is a vector of their numbers, image by image, row by row.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.hosts.operators import Axis

Margin = tuple[int, ...]
"""Zeros around a stored map: top, bottom, left, right."""


@dataclass(frozen=True)
class TransposedAxis(Axis):
    """How a transposed convolution spreads along one axis: input i reaches the outputs from i * stride - padding on.

    Tiles begin at multiples of the stride.
    """

    def extent(self, outputs: int) -> int:
        return (outputs - 1 + self.padding) // self.stride + self.lead + 1

    @property
    def lead(self) -> int:
        return (self.dilation * (self.kernel - 1) - self.padding) // self.stride

    def advance(self, tile: int) -> int:
        return tile // self.stride

    def span(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.div(first, self.stride, rounding_mode="floor") - self.lead
        return start, torch.div(last + self.padding, self.stride, rounding_mode="floor") + 1


POINTWISE = (Axis(), Axis())


@dataclass(frozen=True)
class Shape:
    """A feature map of B x H x W positions."""

    batch: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.batch * self.height * self.width


class FeatureMap:
    """A stored feature map: `data` (B, top + H + bottom, left + W + right, C) and its interior without the margin."""

    def __init__(
        self, shape: Shape, channels: int, margin: Margin, like: Tensor, dtype: torch.dtype | None = None
    ) -> None:
        self.shape, self.channels = shape, channels
        self.top, bottom, self.left, right = margin
        height, width = self.top + shape.height + bottom, self.left + shape.width + right
        image, row, column = (torch.arange(n, device=like.device) for n in (shape.batch, shape.height, shape.width))
        place = (image[:, None, None] * height + row[:, None] + self.top) * width + column + self.left
        self.place = place.flatten()  # (positions,) where each position's row of values is stored
        self.all = torch.arange(shape.positions, device=like.device)
        self._hold(like.new_zeros(shape.batch, height, width, channels, dtype=dtype))

    def _hold(self, data: Tensor) -> None:
        self.data, self.rows = data, data.view(-1, self.channels)
        self.interior = data[:, self.top :, self.left :][:, : self.shape.height, : self.shape.width]  # (B, H, W, C)

    def zeros_like(self) -> FeatureMap:
        """A feature map of zeros with the same layout."""
        other = copy.copy(self)
        other._hold(torch.zeros_like(self.data))
        return other

    def bare(self) -> FeatureMap:
        """A feature map of zeros of the same shape, without a margin."""
        return FeatureMap(self.shape, self.channels, (0, 0, 0, 0), self.data)

    def read(self, positions: Tensor) -> Tensor:
        """Values at (n,) positions, copied: (n, C)."""
        if positions is self.all:
            return self.interior.clone(memory_format=torch.contiguous_format).view(-1, self.channels)
        return self.rows.index_select(0, self.place.index_select(0, positions))

    def write(self, positions: Tensor, values: Tensor) -> None:
        """Overwrite the values at (n,) positions with (n, C)."""
        if positions is self.all:
            self.interior.copy_(values.view(self.interior.shape))
        else:
            self.rows.index_copy_(0, self.place.index_select(0, positions), values)

    def clear(self, positions: Tensor) -> None:
        """Set the values at (n,) positions to zero."""
        self.rows.index_fill_(0, self.place.index_select(0, positions), 0)


class Windows:
    """What a layer reads of a stored map, for its outputs in tiles of T x T: each tile's window, halo included."""

    def __init__(self, source: FeatureMap, shape: Shape, axes: tuple[Axis, Axis], tile: int) -> None:
        self.source, self.shape, self.axes = source, shape, axes
        (vertical, horizontal), device = axes, source.data.device
        self.size = vertical.extent(tile), horizontal.extent(tile)
        tiles = shape.batch, -(-shape.height // tile), -(-shape.width // tile)
        image, down, across = (torch.arange(n, device=device) for n in tiles)
        self.count = math.prod(tiles)

        _, height, width, _ = source.data.shape
        y = source.top - vertical.lead + down * vertical.advance(tile)
        x = source.left - horizontal.lead + across * horizontal.advance(tile)
        self.first = ((image[:, None, None] * height + y[:, None]) * width + x).flatten()  # (tiles,) of the window
        self.offset = _raster(*self.size, width, device)  # (h * w,) from a window's first row to each of its rows

        place = (image[:, None, None] * shape.height + down[:, None] * tile) * shape.width + across * tile
        self.positions = place.flatten()[:, None] + _raster(tile, tile, shape.width, device)  # (tiles, T * T)
        rows, columns = (torch.arange(n * tile, device=device) for n in (len(down), len(across)))
        on_map = (rows < shape.height)[:, None] & (columns < shape.width)
        on_map = on_map.view(len(down), tile, len(across), tile).transpose(1, 2).reshape(-1, tile * tile)
        self.on_map = on_map.repeat(shape.batch, 1)  # (tiles, T * T)
        self.ragged = bool(shape.height % tile or shape.width % tile)
        self.ranges = (
            _ranges(vertical, shape.height, tile, source.shape.height, device),
            _ranges(horizontal, shape.width, tile, source.shape.width, device),
        )

    def reached(self, changed: Tensor) -> Tensor:
        """Numbers of the tiles whose window holds a changed position. changed: (B, H, W) bool of the source."""
        for axis in (2, 1):
            start, stop = self.ranges[axis - 1]
            before = F.pad(changed.cumsum(axis, dtype=torch.int32), (1, 0) if axis == 2 else (0, 0, 1, 0))
            changed = before.index_select(axis, stop) > before.index_select(axis, start)
        return changed.flatten().nonzero()[:, 0]

    def gather(self, tiles: Tensor, rows: Tensor) -> Tensor:
        """Windows of the given tiles out of the rows of a map laid out as the source: (n, h, w, C), copied."""
        index = (self.first.index_select(0, tiles)[:, None] + self.offset).view(-1)
        return rows.index_select(0, index).view(len(tiles), *self.size, -1)

    def unpack(self, tiles: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (m,) and values (m, C) of the outputs (n, T, T, C) of tiles, without what lies beyond the map."""
        positions, values = self.positions.index_select(0, tiles).view(-1), outputs.reshape(-1, outputs.shape[-1])
        if self.ragged:
            kept = self.on_map.index_select(0, tiles).view(-1).nonzero()[:, 0]
            positions, values = positions.index_select(0, kept), values.index_select(0, kept)
        return positions, values

    def positions_of(self, tiles: Tensor) -> Tensor:
        """The positions (m,) of tiles, without what lies beyond the map."""
        positions = self.positions.index_select(0, tiles).view(-1)
        return positions[self.on_map.index_select(0, tiles).view(-1)] if self.ragged else positions

    def whole(self, data: Tensor) -> Tensor:
        """The window of the whole map, padding included: (B, h, w, C), a view of `data`, laid out as the source."""
        y, x = self.axes
        window = data[:, self.source.top - y.padding :, self.source.left - x.padding :]
        return window[:, : y.extent(self.shape.height), : x.extent(self.shape.width)]


def _raster(height: int, width: int, pitch: int, device: torch.device) -> Tensor:
    down, across = (torch.arange(n, device=device) for n in (height, width))
    return (down[:, None] * pitch + across).flatten()


def _ranges(axis: Axis, outputs: int, tile: int, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each tile of a line of outputs, the first source position that it reads, and the one after the last."""
    first = torch.arange(0, outputs, tile, device=device)
    last = (first + tile).clamp(max=outputs) - 1
    start, stop = axis.span(first, last)
    return start.clamp(0, positions), stop.clamp(0, positions)


def margin(source: Shape, shape: Shape, axes: tuple[Axis, Axis], tile: int) -> Margin:
    """Zeros needed around `source`, so that the window of every tile lies on what is stored."""
    sides = []
    for axis, have, want in zip(axes, (source.height, source.width), (shape.height, shape.width), strict=True):
        reach = axis.extent(-(-want // tile) * tile) - axis.lead
        sides += [max(0, axis.lead), max(0, reach - have)]
    return tuple(sides)
