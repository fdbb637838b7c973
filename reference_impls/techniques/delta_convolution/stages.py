"""The layers of a delta network, each with the state that it keeps from frame to frame.

A stage computes `value = linear(source) + bias` and sends `f(value)` to its consumers. What they know stands in `sent`.
The difference between f(value) and `sent` is what truncation has withheld so far; it goes out as soon as it exceeds the
threshold at some channel. So the error at a position never exceeds the threshold, and does not grow with time.

With `update="delta"` a message holds differences: linear layers transform them without bias, and a stage with an
activation accumulates them in `value`. With `update="value"` it holds the new values, and outputs are recomputed from
them. In exact arithmetic both send the same positions and store the same maps: W (x + d) + b = (W x + b) + W d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reference_impls.techniques.delta_convolution import feature_maps
from reference_impls.techniques.delta_convolution.feature_maps import POINTWISE, Axis, FeatureMap, Shape, Windows

Sides = tuple[int, int, int, int]
"""Zeros beside what a layer reads: left, right, top, bottom."""


@dataclass(frozen=True)
class Knobs:
    """The knobs of `DeltaConvolution.apply`."""

    threshold: float
    tile: int
    min_profitable: float
    update: Literal["delta", "value"]


class Message:
    """What a stage sends in one frame: the positions that changed, with their differences or new values."""

    def __init__(self, sender: FeatureMap, positions: Tensor, rows: Tensor | None, mask: Tensor | None = None) -> None:
        self.sender, self._mask = sender, mask
        self.positions = positions
        """(m,) numbers of the changed positions."""
        self.rows = rows
        """(m, C); None if nothing changed."""

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def mask(self) -> Tensor:
        """The changed positions as a mask (B, H, W)."""
        if self._mask is None:
            shape = self.sender.shape
            mask = torch.zeros(shape.positions, dtype=torch.bool, device=self.positions.device)
            self._mask = mask.index_fill_(0, self.positions, True).view(shape.batch, shape.height, shape.width)
        return self._mask


class Stage:
    """A layer on feature maps. Subclasses say what its linear part does to windows of its source, if anything."""

    macs = 0
    """Multiply-accumulates (MACs) per output position."""
    from_values = False
    """The layer is not linear: it needs the accumulated values of its source (max pooling)."""

    def __init__(self, name: str, sources: list[Stage], knobs: Knobs, axes: tuple[Axis, Axis] = POINTWISE) -> None:
        self.name, self.sources, self.knobs, self.axes = name, sources, knobs, axes
        self.activation: nn.Module | None = None
        self.readers: list[Stage] = []
        for source in sources:
            source.readers.append(self)
        self.shape: Shape
        self.sent: FeatureMap
        self.message: Message
        self.computed: list[int] = []
        """Output positions computed in each frame."""

    # What subclasses define ---------------------------------------------------------------------------------------

    def channels(self) -> int:
        """Channels of the output."""
        return self.sources[0].sent.channels

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        """(n, h, w, C) windows with their halo, channels last -> (n, h', w', C') without further padding."""
        return windows

    def whole(self) -> Tensor:
        """The linear part of the whole map, with bias: (B, H, W, C')."""
        return self.linear(self.windows.whole(self.sources[0].sent.data), bias=True)

    def sliding(self, *parts: str) -> list[list[int]]:
        """Parts of both axes, such as "kernel" or "stride", down and across."""
        return [[getattr(axis, part) for axis in self.axes] for part in parts]

    # The state ----------------------------------------------------------------------------------------------------

    def find_shape(self) -> None:
        """Derive the shape of the output from that of the source."""
        source = self.sources[0].shape
        height, width = (axis.size_out(n) for axis, n in zip(self.axes, (source.height, source.width), strict=True))
        if min(height, width) < 1:
            raise ValueError(f"the frame is too small: nothing of it is left at layer {self.name!r}")
        self.shape = Shape(source.batch, height, width)

    def allocate(self, like: Tensor) -> None:
        """Make the stored maps for a new stream; every stage knows its shape by now."""
        needs = [
            feature_maps.margin(self.shape, r.shape, r.axes, r.tile)
            for r in self.readers
            if not isinstance(r, GlobalAverage)
        ]
        top, bottom, left, right = (max(side) for side in zip(*needs, (0, 0, 0, 0), strict=True))
        self.sent = FeatureMap(self.shape, self.channels(), (top, bottom, left, right), like)
        self.truncates = self.activation is not None or self.from_values
        accumulates = self.activation is not None and self.knobs.update == "delta"
        self.value = FeatureMap(self.shape, self.channels(), (0, 0, 0, 0), like) if accumulates else self.sent
        self.differences: FeatureMap | None = None
        self.in_differences: Message | None = None
        self.computed = []
        if self.sources:
            self.windows = Windows(self.sources[0].sent, self.shape, self.axes, self.tile)

    @property
    def tile(self) -> int:
        """Side of an output tile; a map smaller than that is one tile."""
        return min(self.knobs.tile, max(self.shape.height, self.shape.width))

    def begin(self) -> None:
        """The first frame: the whole map, the bias included for the only time."""
        value = self.whole()
        if self.value is not self.sent:
            self.value.interior.copy_(value)
        result = self.activate(value)
        self.limit = self.knobs.threshold * result.std(correction=0).item() if self.truncates else 0.0
        self.sent.interior.copy_(result)
        self.message = Message(self.sent, self.sent.all, None)
        self.computed.append(self.shape.positions)

    def activate(self, value: Tensor) -> Tensor:
        """The activation, or the value itself."""
        return value if self.activation is None else self.activation(value)

    def output(self) -> Tensor:
        """What has been sent, as the model would give it: (B, C, H, W), a copy."""
        return self.sent.interior.clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)

    # One frame ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Take in what the source sent in this frame."""
        received = self.sources[0].message
        if not len(received):
            self._nothing()
        elif self.axes == POINTWISE:
            self._step_by_positions(received.positions)
        else:
            self._step_by_tiles(self.windows.reached(received.mask))

    def _nothing(self) -> None:
        self.message = Message(self.sent, self.sent.all[:0], None)
        self.computed.append(0)

    def _step_by_positions(self, positions: Tensor) -> None:
        self.computed.append(len(positions))
        delta = self.knobs.update == "delta"
        move = self._accumulate if delta else self._replace
        move(positions, self.linear(self._received(positions), bias=not delta))

    def _received(self, positions: Tensor) -> Tensor:
        """Rows that a pointwise layer works on, (m, C): what the source sent."""
        return self.sources[0].message.rows

    def _step_by_tiles(self, tiles: Tensor) -> None:
        if len(tiles) * self.tile**2 > (1 - self.knobs.min_profitable) * self.shape.positions:
            self.computed.append(self.shape.positions)
            positions, values = self.sent.all, self.whole().reshape(self.shape.positions, -1)
            if len(tiles) < self.windows.count:
                positions = self.windows.positions_of(tiles)
                values = values.index_select(0, positions)
            self._replace(positions, values)
            return
        self.computed.append(len(tiles) * self.tile**2)
        source = self.sources[0]
        if self.knobs.update == "delta" and not self.from_values:
            windows = self.windows.gather(tiles, source.difference_rows())
            self._accumulate(*self.windows.unpack(tiles, self.linear(windows, bias=False)))
        else:
            windows = self.windows.gather(tiles, source.sent.rows)
            self._replace(*self.windows.unpack(tiles, self.linear(self.pad(tiles, windows), bias=True)))

    def pad(self, tiles: Tensor, windows: Tensor) -> Tensor:
        """Give what lies beyond the source the value that the layer's padding has: zero, as stored."""
        return windows

    def _accumulate(self, positions: Tensor, change: Tensor) -> None:
        """The value moves by `change` (m, C')."""
        value = self.value.read(positions).add_(change)
        if self.activation is None:  # what is sent is the value itself, so the change goes on as it is
            self.sent.write(positions, value)
            self.message = Message(self.sent, positions, change)
        else:
            self._replace(positions, value)

    def _replace(self, positions: Tensor, value: Tensor) -> None:
        """The value becomes `value` (m, C'); send what differs from what is known by more than the limit."""
        if self.value is not self.sent:
            self.value.write(positions, value)
        result = self.activate(value)
        if self.truncates or self.knobs.update == "delta":
            change = result - self.sent.read(positions)
            if self.truncates:
                moved = (change.abs().amax(1) > self.limit).nonzero()[:, 0]
                if len(moved) < len(positions):
                    positions = positions.index_select(0, moved)
                    result, change = result.index_select(0, moved), change.index_select(0, moved)
        self.sent.write(positions, result)
        self.message = Message(self.sent, positions, change if self.knobs.update == "delta" else result)

    def difference_rows(self) -> Tensor:
        """Rows of a map, laid out as `sent`, that holds this frame's differences, and zeros everywhere else."""
        if self.differences is None:
            self.differences = self.sent.zeros_like()
        if self.in_differences is not self.message:
            if self.in_differences is not None:
                self.differences.clear(self.in_differences.positions)
            self.differences.write(self.message.positions, self.message.rows)
            self.in_differences = self.message
        return self.differences.rows


class Source(Stage):
    """The frames as they come in: compared position by position with what has been sent before."""

    def start(self, frame: Tensor) -> None:
        """Take the shape from a stream's first frame (B, C, H, W)."""
        batch, self.frame_channels, height, width = frame.shape
        self.shape = Shape(batch, height, width)

    def receive(self, frame: Tensor) -> None:
        """Take the next frame (B, C, H, W)."""
        self.frame = frame

    def channels(self) -> int:
        return self.frame_channels

    def whole(self) -> Tensor:
        return self.frame.permute(0, 2, 3, 1)

    def begin(self) -> None:
        super().begin()
        self.limit = self.knobs.threshold * self.frame.std(correction=0).item()
        self.known = self.sent.interior.permute(0, 3, 1, 2)  # (B, C, H, W), a view
        self.change = torch.empty_like(self.frame)

    def step(self) -> None:
        torch.sub(self.frame, self.known, out=self.change)
        mask = (self.change.abs_().amax(1) <= self.limit).logical_not_()  # (B, H, W); true where something is NaN
        positions = mask.flatten().nonzero()[:, 0]
        if not len(positions):
            self._nothing()
            return
        values = self.frame.permute(0, 2, 3, 1)
        if len(positions) == self.shape.positions:
            positions, values = self.sent.all, values.reshape(-1, self.frame_channels)
        elif values.is_contiguous():
            values = values.reshape(-1, self.frame_channels).index_select(0, positions)
        else:
            values = values[mask]
        check_finite(values)
        self.computed.append(len(positions))
        change = values - self.sent.read(positions) if self.knobs.update == "delta" else values
        self.sent.write(positions, values)
        self.message = Message(self.sent, positions, change, mask)


class Convolution(Stage):
    """A convolution with a batch norm that follows folded in, and zero padding before it."""

    def __init__(
        self, name: str, source: Stage, knobs: Knobs, layer: nn.Conv2d, norm: nn.BatchNorm2d | None, padding: Sides
    ) -> None:
        (left, right, top, bottom), (down, across) = padding, padding_of(layer)
        y = Axis(layer.kernel_size[0], layer.stride[0], top + down, layer.dilation[0], bottom + down)
        x = Axis(layer.kernel_size[1], layer.stride[1], left + across, layer.dilation[1], right + across)
        super().__init__(name, [source], knobs, (y, x))
        fused = layer if norm is None else fuse_conv_bn_eval(layer, norm)
        weight, self.groups = fused.weight.detach(), layer.groups
        self.bias = weight.new_zeros(len(weight)) if fused.bias is None else fused.bias.detach()
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.macs = weight.numel()

    def channels(self) -> int:
        return len(self.weight)

    def allocate(self, like: Tensor) -> None:
        expected, given = self.weight.shape[1] * self.groups, self.sources[0].sent.channels
        if expected != given:
            raise ValueError(f"layer {self.name!r} reads {expected} channels, but the frame brings it {given}")
        super().allocate(like)

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        b = self.bias if bias else None
        if self.axes == POINTWISE and self.groups == 1:
            return F.linear(windows, self.weight.flatten(1), b)
        rows = windows.dim() == 2
        x = windows[:, :, None, None] if rows else windows.permute(0, 3, 1, 2)  # channels last in memory
        stride, dilation = self.sliding("stride", "dilation")
        out = F.conv2d(x, self.weight, b, stride, 0, dilation, self.groups)
        return out[:, :, 0, 0] if rows else out.permute(0, 2, 3, 1)


class Affine(Stage):
    """A batch norm that no convolution can take in: differences are scaled, and only values are shifted as well."""

    def __init__(self, name: str, source: Stage, knobs: Knobs, norm: nn.BatchNorm2d) -> None:
        super().__init__(name, [source], knobs)
        self.scale, self.shift = scale_and_shift(norm)

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        return windows * self.scale + self.shift if bias else windows * self.scale


class Addition(Stage):
    """A residual addition: the differences of both sides, at the positions where either changed."""

    def whole(self) -> Tensor:
        a, b = (source.sent.interior for source in self.sources)
        return a + b

    def step(self) -> None:
        a, b = (source.message for source in self.sources)
        if len(a) and len(b):
            self._step_by_positions((a.mask | b.mask).flatten().nonzero()[:, 0])
        elif len(a) or len(b):
            self._step_by_positions((a if len(a) else b).positions)
        else:
            self._nothing()

    def _received(self, positions: Tensor) -> Tensor:
        if self.knobs.update == "value":
            a, b = (source.sent.read(positions) for source in self.sources)
            return a.add_(b)
        messages = [source.message for source in self.sources]
        if one := [m for m in messages if m.positions is positions]:  # the other side has not changed
            return one[0].rows
        total = self.sent.data.new_zeros(len(positions), self.sent.channels)
        for message in messages:
            if message.rows is not None:
                total.index_add_(0, torch.searchsorted(positions, message.positions), message.rows)
        return total


class AveragePool(Stage):
    """Average pooling; zeros of the padding count as values."""

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        return F.avg_pool2d(windows.permute(0, 3, 1, 2), *self.sliding("kernel", "stride")).permute(0, 2, 3, 1)


class MaxPool(Stage):
    """Max pooling, from accumulated values: it is no sum, so differences do not pass through it."""

    from_values = True

    def allocate(self, like: Tensor) -> None:
        super().allocate(like)
        on_map = self.sources[0].sent.zeros_like()
        on_map.interior.fill_(1)
        self.beyond = on_map.rows[:, :1] == 0  # (rows, 1)

    def pad(self, tiles: Tensor, windows: Tensor) -> Tensor:
        if not any(axis.padding for axis in self.axes):
            return windows
        return windows.masked_fill_(self.windows.gather(tiles, self.beyond), -torch.inf)

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        return self._pool(windows, padded=True)

    def whole(self) -> Tensor:
        return self._pool(self.sources[0].sent.interior, padded=False)

    def _pool(self, x: Tensor, padded: bool) -> Tensor:
        kernel, stride, padding, dilation = self.sliding("kernel", "stride", "padding", "dilation")
        pooled = F.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride, 0 if padded else padding, dilation)
        return pooled.permute(0, 2, 3, 1)


class GlobalAverage(Stage):
    """The mean of each channel: it moves by the sum of the differences over the number of positions."""

    def __init__(self, name: str, source: Stage, knobs: Knobs, keep_axes: bool) -> None:
        super().__init__(name, [source], knobs)
        self.keep_axes = keep_axes

    def find_shape(self) -> None:
        self.shape = self.sources[0].shape

    def allocate(self, like: Tensor) -> None:
        self.computed = []

    def begin(self) -> None:
        self.mean = self.sources[0].sent.interior.mean((1, 2))  # (B, C)
        self.message = self.sources[0].message

    def step(self) -> None:
        self.message = message = self.sources[0].message
        if message.rows is None:
            return
        if self.knobs.update == "value":
            self.begin()
            return
        area = self.shape.height * self.shape.width
        if self.shape.batch == 1:
            self.mean += message.rows.sum(0) / area
        else:
            self.mean.index_add_(0, message.positions // area, message.rows / area)

    def output(self) -> Tensor:
        """(B, C, 1, 1), or (B, C)."""
        return self.mean[:, :, None, None] if self.keep_axes else self.mean


def check_finite(x: Tensor) -> None:
    """Raise ValueError if x holds a NaN or an infinity: then its sum, which takes one pass, is not finite either."""
    if not bool(x.sum().isfinite()):
        raise ValueError("frame holds values that are not finite (NaN or infinity)")


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as x * scale + shift; both (C,)."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def padding_of(layer: nn.Conv2d) -> tuple[int, int]:
    """The layer's padding in positions, down and across."""
    if layer.padding == "same":
        down, across = (d * (k - 1) // 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True))
    else:
        down, across = (0, 0) if isinstance(layer.padding, str) else layer.padding
    return down, across
