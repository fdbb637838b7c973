"""The state of a delta network from frame to frame: what its layers store, and what they send to one another.

A stage computes `value = linear(source) + bias` and sends `f(value)` to its consumers. What they know stands in `sent`.
The difference between f(value) and `sent` is what truncation has withheld so far; it goes out as soon as it exceeds the
threshold at some channel. So the error at a position never exceeds the threshold, and does not grow with time.

With `update="delta"` a message holds differences: linear layers transform them without bias, and a stage with an
activation accumulates them in `value`. With `update="value"` it holds the new values, and outputs are recomputed from
them. In exact arithmetic both send the same positions and store the same maps: W (x + d) + b = (W x + b) + W d.

`layers` holds the stages that compute, and `whole` what works on whole tensors. Here stands what stages share, and the
one that whole tensors enter by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from reference_impls.hosts.graph import Value
from reference_impls.techniques.delta_convolution import feature_maps
from reference_impls.techniques.delta_convolution.feature_maps import POINTWISE, Axis, FeatureMap, Windows
from reference_impls.techniques.delta_convolution.layout import Layout

Function = Callable[..., Tensor]
"""Of tensors whose last dimension are the channels, position by position."""


@dataclass(frozen=True)
class Knobs:
    """The knobs of `DeltaConvolution.apply` that layers need."""

    threshold: float
    tile: int
    min_profitable: float
    update: Literal["delta", "value"]


class Unit(Protocol):
    """A step of a delta network. `computed` counts, for each frame, the work done, in units of `macs`."""

    name: str
    macs: int
    total: int
    """The work of a dense frame, in the same unit."""
    computed: list[int]

    def begin(self, known: Mapping[Value, Tensor]) -> None:
        """Take in the first frame's tensors."""

    def step(self) -> None:
        """Take in what the sources sent in this frame."""

    def watched(self) -> list[Value]:
        """Values whose tensors `begin` needs."""


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


@dataclass(frozen=True)
class Output:
    """What a stage stands for in the model: its name, a value of the graph, and how positions lie in that."""

    name: str
    value: Value
    layout: Layout


class Stage:
    """A layer on feature maps. Subclasses say what its linear part does to windows of its source, if anything."""

    macs = 0
    """Multiply-accumulates (MACs) per output position; in a transposed convolution, per input position."""
    from_values = False
    """The layer works on the accumulated values of its sources, also where differences are sent (max pooling)."""
    linear_in_sources = True

    def __init__(self, out: Output, sources: list[Stage], knobs: Knobs, axes: tuple[Axis, Axis] = POINTWISE) -> None:
        self.name, self.value_of, self.layout, self.dtype = out.name, out.value, out.layout, out.value.dtype
        self.shape, self.channels = out.layout.shape, out.layout.channels.numel()
        self.sources, self.knobs, self.axes = sources, knobs, axes
        self.activation: Function | None = None
        self.readers: list[Stage] = []
        for source in sources:
            source.readers.append(self)
        self.total = self.shape.positions
        self.sent: FeatureMap
        self.message: Message
        self.computed: list[int] = []
        """Output positions computed in each frame."""

    # What subclasses define ---------------------------------------------------------------------------------------

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        """(n, h, w, C) windows with their halo, channels last -> (n, h', w', C') without further padding."""
        return windows

    def whole(self) -> Tensor:
        """The linear part of the whole map, with bias: (B, H, W, C')."""
        source = self.sources[0].sent
        return self.linear(source.interior if self.axes == POINTWISE else self.windows.whole(source.data), bias=True)

    def sliding(self, *parts: str) -> list[list[int]]:
        """Parts of both axes, such as "kernel" or "stride", down and across."""
        return [[getattr(axis, part) for axis in self.axes] for part in parts]

    # The state ----------------------------------------------------------------------------------------------------

    def allocate(self, like: Tensor) -> None:
        """Make the stored maps for a new stream; every stage knows its readers by now."""
        needs = [feature_maps.margin(self.shape, r.shape, r.axes, r.tile) for r in self.readers]
        top, bottom, left, right = (max(side) for side in zip(*needs, (0, 0, 0, 0), strict=True))
        self.sent = FeatureMap(self.shape, self.channels, (top, bottom, left, right), like, self.dtype)
        self.truncates = self.activation is not None or not self.linear_in_sources
        accumulates = self.activation is not None and self.knobs.update == "delta" and not self.from_values
        self.value = self.sent.bare() if accumulates else self.sent
        self.differences: FeatureMap | None = None
        self.in_differences: Message | None = None
        self.computed = []
        if self.sources and self.axes != POINTWISE:
            self.windows = Windows(self.sources[0].sent, self.shape, self.axes, self.tile)

    @property
    def tile(self) -> int:
        """Side of an output tile; a map smaller than that is one tile."""
        return min(self.knobs.tile, max(self.shape.height, self.shape.width))

    def watched(self) -> list[Value]:
        return [self.value_of]

    def begin(self, known: Mapping[Value, Tensor]) -> None:
        """The first frame: the whole map, the bias included for the only time."""
        value = self.layout.rows(known[self.value_of])
        if self.value is not self.sent:
            self.value.interior.copy_(value)
        result = self.activate(value)
        self.limit = self.knobs.threshold * spread(result) if self.truncates else 0.0
        self.sent.interior.copy_(result)
        self.message = Message(self.sent, self.sent.all, None)
        self.computed.append(self.total)

    def activate(self, value: Tensor) -> Tensor:
        """The activation, or the value itself."""
        return value if self.activation is None else self.activation(value)

    def work(self, tiles: int) -> int:
        """Positions computed for a number of tiles."""
        return tiles * self.tile**2

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
        if self.work(len(tiles)) > (1 - self.knobs.min_profitable) * self.total:
            self.computed.append(self.total)
            positions, values = self.sent.all, self.whole().reshape(self.shape.positions, -1)
            if len(tiles) < self.windows.count:
                positions = self.windows.positions_of(tiles)
                values = values.index_select(0, positions)
            self._replace(positions, values)
            return
        self.computed.append(self.work(len(tiles)))
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
                moved = exceeds(change.abs(), self.limit).nonzero()[:, 0]
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


class Compared(Stage):
    """Whole tensors (B, C, H, W) as they come in: compared position by position with what has been sent before."""

    linear_in_sources = False

    def __init__(self, out: Output, knobs: Knobs, given: Given) -> None:
        super().__init__(out, [], knobs)
        self.given = given

    def watched(self) -> list[Value]:
        return []

    def begin(self, known: Mapping[Value, Tensor]) -> None:
        super().begin({self.value_of: self.given.tensor})
        self.known = self.sent.interior.permute(0, 3, 1, 2)  # (B, C, H, W), a view
        self.change = torch.empty_like(self.given.tensor)

    def step(self) -> None:
        if not self.given.changed:
            self._nothing()
            return
        tensor = self.given.tensor
        torch.sub(tensor, self.known, out=self.change)
        mask = exceeds(self.change.abs_(), self.limit)  # (B, H, W)
        positions = mask.flatten().nonzero()[:, 0]
        if not len(positions):
            self._nothing()
            return
        values = tensor.permute(0, 2, 3, 1)
        if len(positions) == self.shape.positions:
            positions, values = self.sent.all, values.reshape(-1, self.channels)
        elif values.is_contiguous():
            values = values.reshape(-1, self.channels).index_select(0, positions)
        else:
            values = values[mask]
        if self.given.checked:
            check_finite(values)
        self.computed.append(len(positions))
        change = values - self.sent.read(positions) if self.knobs.update == "delta" else values
        self.sent.write(positions, values)
        self.message = Message(self.sent, positions, change, mask)


class Given(Protocol):
    """A whole tensor that may have changed in this frame."""

    tensor: Tensor
    changed: bool
    checked: bool
    """Its values must be finite."""


def is_range(channels: Tensor, count: int) -> bool:
    """Whether the numbers of channels are 0, 1, 2, ... to `count`."""
    return channels.numel() == count and bool((channels.flatten() == torch.arange(count)).all())


def exceeds(sizes: Tensor, limit: float) -> Tensor:
    """Where the size of a change, (m, C) or (B, C, H, W), is above the limit, or NaN, at some channel."""
    size = sizes.amax(1)
    return (size.float() if is_low(size) else size).le(limit).logical_not_()


def is_low(x: Tensor) -> bool:
    """Whether it is held in less than single precision."""
    return x.dtype in (torch.float16, torch.bfloat16)


def spread(x: Tensor) -> float:
    """The standard deviation of all values."""
    return (x.float() if is_low(x) else x).std(correction=0).item()


def check_finite(x: Tensor) -> None:
    """Raise ValueError if x holds a NaN or an infinity: then its sum, which takes one pass, is not finite either."""
    if not bool(x.sum(dtype=torch.float32 if is_low(x) else None).isfinite()) and not bool(x.isfinite().all()):
        raise ValueError("frame holds values that are not finite (NaN or infinity)")
