"""The layers of a delta network, each with the state that it keeps from frame to frame.

A stage computes `value = linear(sources) + bias`, then `f(value)`. What it has told its consumers so far stands in
`sent`; the difference between f(value) and `sent` is what a truncation withheld, and it is sent as soon as it, with
what has been added to it, exceeds the threshold. So errors stay bounded by the thresholds and do not accumulate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.redundancy.temporal_similarity import tile_maximum
from reference_impls.techniques.delta_convolution.tiles import POINTWISE, Axis, Grid, TileMap, Windows, margin

DENSE = -1
"""In a stage's log: the whole map was computed, not single tiles."""


@dataclass(frozen=True)
class Knobs:
    """See `DeltaConvolution.apply`."""

    threshold: float
    tile: int
    min_profitable: float
    update: Literal["delta", "value"]


class Stage:
    """A layer on maps: one or more sources, a linear part, and an activation or none.

    Subclasses say how the linear part acts on windows of the sources; `nonlinear` ones (max pooling) need values.
    """

    macs = 0
    """Multiply-accumulates an output position."""
    nonlinear = False
    axes: tuple[Axis, Axis] = POINTWISE

    def __init__(self, name: str, sources: list[Stage], knobs: Knobs, activation: nn.Module | None = None) -> None:
        self.name, self.sources, self.knobs, self.activation = name, sources, knobs, activation
        self.consumers: list[Stage] = []
        for source in sources:
            source.consumers.append(self)
        self.log: list[int] = []  # tiles computed in each frame, or DENSE
        self.grid: Grid
        self.tiles: Tensor  # (n,) int64: tiles that changed in this frame
        self.mask: Tensor  # (B, rows, columns) bool: the same as a mask
        self.packed: Tensor  # (n, T, T, C): their differences, or their values, as `knobs.update` says

    # The linear part, for subclasses ------------------------------------------------------------------------------

    def channels(self) -> int:
        """Channels of the output."""
        return self.sources[0].sent.channels

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        """windows: (n, h, w, C), halo included, no further padding -> (n, h', w', C')."""
        return windows

    def inside(self, windows: Tensor, tiles: Tensor) -> Tensor:
        """Prepare gathered windows; max pooling marks what lies beyond the map."""
        return windows

    def whole(self) -> Tensor:
        """`linear` of the sources' whole maps, with bias: (B, H, W, C)."""
        return self.linear(self.windows.whole(self.windows.source.data), bias=True)

    # State --------------------------------------------------------------------------------------------------------

    def shape(self) -> None:
        """Derive the grid from the sources' grids."""
        source = self.sources[0].grid
        height, width = (axis.size_out(n) for axis, n in zip(self.axes, (source.height, source.width), strict=True))
        if min(height, width) < 1:
            raise ValueError(f"the frame is too small: nothing of it is left at {self.name}")
        self.grid = Grid(source.batch, height, width, min(self.knobs.tile, max(height, width)))

    def allocate(self, like: Tensor) -> None:
        """Make the stored maps; every stage knows its grid by now."""
        self.log = []
        needs = [margin(self.grid, c.grid, c.axes) for c in self.consumers if not isinstance(c, GlobalAverage)]
        sides = tuple(map(max, zip(*needs, (0, 0, 0, 0), strict=True)))
        self.sent = TileMap(self.grid, self.channels(), sides, like)  # type: ignore[arg-type]
        self.truncates = self.activation is not None or self.nonlinear
        accumulates = self.knobs.update == "delta" and self.activation is not None and not self.nonlinear
        self.value = TileMap(self.grid, self.channels(), (0, 0, 0, 0), like) if accumulates else self.sent
        self.delta: TileMap | None = None  # zero but for this frame's differences; made when a consumer has a halo
        self.delta_tiles: Tensor | None = None
        if self.sources:
            self.windows = Windows(self.sources[0].sent, self.grid, self.axes)

    def begin(self) -> None:
        """The first frame: compute the whole map, bias included."""
        value = self.whole()
        if self.value is not self.sent:
            self.value.interior.copy_(value)
        result = self._activate(value)
        self.limit = self.knobs.threshold * result.std(correction=0).item() if self.truncates else 0.0
        self.sent.interior.copy_(result)
        self.log.append(DENSE)

    @property
    def moved(self) -> bool:
        """Something changed in this frame."""
        return len(self.tiles) > 0

    def output(self) -> Tensor:
        """What the stage has sent, as the host would give it: (B, C, H, W), a copy."""
        return self.sent.interior.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    # One frame ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Bring the stored maps up to date with what the sources sent in this frame."""
        self.mask = self.windows.reached(self.sources[0].mask)
        if self.windows.pointwise:
            self.tiles = self.sources[0].tiles
        else:
            self.tiles = self.mask.flatten().nonzero()[:, 0]
        self._update()

    def _update(self) -> None:
        if not len(self.tiles):
            self.log.append(0)
            return
        share = len(self.tiles) * self.grid.tile**2 / self.grid.positions
        dense = share >= 1 if self.windows.pointwise else share > 1 - self.knobs.min_profitable
        self.log.append(DENSE if dense else len(self.tiles))
        if dense:
            value = self.grid.pack(self.whole(), self.tiles)
        elif self.knobs.update == "delta" and not self.nonlinear:
            change = self.sent.blank_outside(self.linear(self._differences(), bias=False), self.tiles)
            if self.activation is None:  # what is sent is the value itself, so the change goes on as it is
                self.sent.write(self.tiles, self.sent.read(self.tiles).add_(change))
                self.packed = change
                return
            value = self.value.read(self.tiles).add_(change)
        else:
            value = self.sent.blank_outside(self.linear(self._values(), bias=True), self.tiles)
        if self.value is not self.sent:
            self.value.write(self.tiles, value)
        self._send(self.sent.blank_outside(self._activate(value), self.tiles))

    def _send(self, result: Tensor) -> None:
        """Compare with what the consumers know, and tell them of the tiles that moved by more than the limit."""
        change = None
        if self.truncates or self.knobs.update == "delta":
            change = result - self.sent.read(self.tiles)
        if self.truncates:
            kept = change.abs().amax((1, 2, 3)) > self.limit
            if not bool(kept.all()):
                self.mask = torch.zeros_like(self.mask)
                self.tiles, result, change = self.tiles[kept], result[kept], change[kept]
                self.mask.view(-1)[self.tiles] = True
        self.sent.write(self.tiles, result)
        self.packed = change if self.knobs.update == "delta" else result

    def _activate(self, value: Tensor) -> Tensor:
        return value if self.activation is None else self.activation(value)

    def _values(self) -> Tensor:
        """Windows of what the source has sent in all."""
        source = self.sources[0]
        if self.windows.pointwise and self.knobs.update == "value":
            return source.packed
        return self.inside(self.windows.gather(self.tiles), self.tiles)

    def _differences(self) -> Tensor:
        """Windows of what the source sent in this frame, zero where it sent nothing."""
        source = self.sources[0]
        return source.packed if self.windows.pointwise else self.windows.gather(self.tiles, source.delta_rows())

    def delta_rows(self) -> Tensor:
        """Rows of a map, laid out as `sent`, that holds this frame's differences and zeros elsewhere."""
        if self.delta is None:
            self.delta = self.sent.twin()
        if self.delta_tiles is not self.tiles:
            if self.delta_tiles is not None:
                self.delta.clear(self.delta_tiles)
            self.delta.write(self.tiles, self.packed)
            self.delta_tiles = self.tiles
        return self.delta.rows


class Source(Stage):
    """The frames as they come in: compared tile by tile with what has been sent before."""

    def __init__(self, name: str, knobs: Knobs) -> None:
        super().__init__(name, [], knobs)

    def start(self, frame: Tensor) -> None:
        """Take the grid from the first frame: (B, C, H, W)."""
        batch, _, height, width = frame.shape
        self.grid = Grid(batch, height, width, min(self.knobs.tile, max(height, width)))

    def receive(self, frame: Tensor) -> None:
        """frame: (B, C, H, W)."""
        self.frame = self.grid.aligned(frame.permute(0, 2, 3, 1))  # (B, H', W', C)

    def channels(self) -> int:
        return self.frame.shape[-1]

    def begin(self) -> None:
        self.sent.aligned.copy_(self.frame)
        self.difference = torch.empty_like(self.frame)
        self.limit = self.knobs.threshold * self.sent.interior.std(correction=0).item()
        self.log.append(DENSE)

    def step(self) -> None:
        torch.sub(self.frame, self.sent.aligned, out=self.difference)
        self.mask = tile_maximum(self.difference.abs_(), self.grid.tile) > self.limit
        self.tiles = self.mask.flatten().nonzero()[:, 0]
        self.log.append(len(self.tiles))
        if len(self.tiles):
            values = self.grid.pack(self.frame, self.tiles)
            self.packed = values - self.sent.read(self.tiles) if self.knobs.update == "delta" else values
            self.sent.write(self.tiles, values)


class Convolution(Stage):
    """A convolution, with a batch norm that follows folded into its weight and bias."""

    def __init__(
        self,
        name: str,
        source: Stage,
        knobs: Knobs,
        layer: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
    ) -> None:
        super().__init__(name, [source], knobs)
        weight = layer.weight.detach()
        bias = layer.bias.detach() if layer.bias is not None else weight.new_zeros(len(weight))
        if norm is not None:
            scale, shift = scale_and_shift(norm)
            weight, bias = weight * scale[:, None, None, None], bias * scale + shift
        self.weight, self.bias, self.groups = weight.contiguous(memory_format=torch.channels_last), bias, layer.groups
        padding = same_padding(layer)
        axes = zip(layer.kernel_size, layer.stride, padding, layer.dilation, strict=True)
        self.axes = tuple(Axis(*axis) for axis in axes)  # type: ignore[assignment]
        self.macs = weight.numel()

    def channels(self) -> int:
        return len(self.weight)

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        if self.macs == len(self.weight) * windows.shape[-1] and self.axes == POINTWISE:
            flat, weight = windows.reshape(-1, windows.shape[-1]), self.weight.flatten(1)
            out = F.linear(flat, weight, self.bias if bias else None)
            return out.view(*windows.shape[:-1], -1)
        (_, sy, _, dy), (_, sx, _, dx) = ((a.kernel, a.stride, a.padding, a.dilation) for a in self.axes)
        x = windows.permute(0, 3, 1, 2)  # channels last in memory
        out = F.conv2d(x, self.weight, self.bias if bias else None, (sy, sx), 0, (dy, dx), self.groups)
        return out.permute(0, 2, 3, 1)


class Affine(Stage):
    """A batch norm that no convolution can take in: differences are scaled, and only values are shifted."""

    def __init__(
        self, name: str, source: Stage, knobs: Knobs, norm: nn.BatchNorm2d
    ) -> None:
        super().__init__(name, [source], knobs)
        self.scale, self.shift = scale_and_shift(norm)

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        return windows * self.scale + self.shift if bias else windows * self.scale


class Activation(Stage):
    """An activation on its own."""


class Addition(Stage):
    """A residual addition: both sides' changes, on the tiles where either changed."""

    def whole(self) -> Tensor:
        a, b = (source.sent.interior for source in self.sources)
        return a + b

    def step(self) -> None:
        a, b = self.sources
        self.mask = a.mask | b.mask
        self.tiles = self.mask.flatten().nonzero()[:, 0]
        self._update()

    def _values(self) -> Tensor:
        a, b = self.sources
        return a.sent.read(self.tiles).add_(b.sent.read(self.tiles))

    def _differences(self) -> Tensor:
        total = self.sent.data.new_zeros(len(self.tiles), self.grid.tile, self.grid.tile, self.sent.channels)
        for source in self.sources:
            if len(source.tiles):
                total.index_add_(0, torch.searchsorted(self.tiles, source.tiles), source.packed)
        return total


class AveragePool(Stage):
    """Average pooling over windows that the padding is part of."""

    def __init__(self, name: str, source: Stage, knobs: Knobs, axes: tuple[Axis, Axis]) -> None:
        super().__init__(name, [source], knobs)
        self.axes = axes

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        kernel, stride = ([getattr(axis, part) for axis in self.axes] for part in ("kernel", "stride"))
        return F.avg_pool2d(windows.permute(0, 3, 1, 2), kernel, stride).permute(0, 2, 3, 1)


class MaxPool(Stage):
    """Max pooling: from the values, because the maximum of differences says nothing."""

    nonlinear = True

    def __init__(self, name: str, source: Stage, knobs: Knobs, axes: tuple[Axis, Axis]) -> None:
        super().__init__(name, [source], knobs)
        self.axes = axes

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        kernel, stride, dilation = ([getattr(a, part) for a in self.axes] for part in ("kernel", "stride", "dilation"))
        return F.max_pool2d(windows.permute(0, 3, 1, 2), kernel, stride, 0, dilation).permute(0, 2, 3, 1)

    def allocate(self, like: Tensor) -> None:
        super().allocate(like)
        on_map = self.sources[0].sent.twin()
        on_map.interior.fill_(1)
        self.beyond = on_map.rows[:, :1] == 0  # (rows, 1)

    def inside(self, windows: Tensor, tiles: Tensor) -> Tensor:
        if all(axis.padding == 0 for axis in self.axes):
            return windows
        return windows.masked_fill_(self.windows.gather(tiles, self.beyond), -torch.inf)

    def whole(self) -> Tensor:
        kernel, stride, padding, dilation = (
            [getattr(a, part) for a in self.axes] for part in ("kernel", "stride", "padding", "dilation")
        )
        x = self.sources[0].sent.interior.permute(0, 3, 1, 2)
        return F.max_pool2d(x, kernel, stride, padding, dilation).permute(0, 2, 3, 1)


class GlobalAverage(Stage):
    """The mean of each channel: it moves by the sum of the differences over the number of positions."""

    def __init__(self, name: str, source: Stage, knobs: Knobs, keep_axes: bool) -> None:
        super().__init__(name, [source], knobs)
        self.keep_axes = keep_axes

    def shape(self) -> None:
        self.grid = self.sources[0].grid

    def allocate(self, like: Tensor) -> None:
        self.log = []

    def begin(self) -> None:
        self.mean = self.sources[0].sent.interior.mean((1, 2))  # (B, C)

    def step(self) -> None:
        source = self.sources[0]
        self.tiles = source.tiles
        if not self.moved:
            return
        if self.knobs.update == "value":
            self.begin()
        else:
            _, rows, columns = self.grid.shape
            moved = source.packed.sum((1, 2)) / (self.grid.height * self.grid.width)
            self.mean.index_add_(0, source.tiles // (rows * columns), moved)

    def output(self) -> Tensor:
        """(B, C, 1, 1), or (B, C)."""
        return self.mean[:, :, None, None] if self.keep_axes else self.mean


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as x * scale + shift; both (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def same_padding(layer: nn.Conv2d) -> tuple[int, int]:
    """The layer's padding in positions."""
    if layer.padding == "same":
        spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return spans[0] // 2, spans[1] // 2
    return (0, 0) if layer.padding == "valid" else tuple(layer.padding)  # type: ignore[return-value]
