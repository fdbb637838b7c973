"""The layers of a delta network that compute on feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.techniques.delta_convolution.feature_maps import POINTWISE, Axis, TransposedAxis
from reference_impls.techniques.delta_convolution.stages import Function, Given, Knobs, Output, Stage, is_range


class Convolution(Stage):
    """A convolution with zero padding, or a matrix product with every position (a 1 x 1 convolution)."""

    def __init__(
        self,
        out: Output,
        source: Stage,
        knobs: Knobs,
        weight: Tensor,
        bias: Tensor | None,
        axes: tuple[Axis, Axis] = POINTWISE,
        groups: int = 1,
    ) -> None:
        """weight: (C', C / groups, h, w)."""
        super().__init__(out, [source], knobs, axes)
        self.weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias, self.groups = None if bias is None else bias.detach(), groups
        self.macs = weight.numel()

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        b = self.bias if bias else None
        if self.axes == POINTWISE and self.groups == 1:
            return F.linear(windows, self.weight.flatten(1), b)
        rows = windows.dim() == 2
        x = windows[:, :, None, None] if rows else windows.permute(0, 3, 1, 2)  # channels last in memory
        stride, dilation = self.sliding("stride", "dilation")
        out = F.conv2d(x, self.weight, b, stride, 0, dilation, self.groups)
        return out[:, :, 0, 0] if rows else out.permute(0, 2, 3, 1)


class TransposedConvolution(Stage):
    """A transposed convolution: what each position of a window spreads, cut to the tile that the window belongs to."""

    def __init__(
        self,
        out: Output,
        source: Stage,
        knobs: Knobs,
        weight: Tensor,
        bias: Tensor | None,
        axes: tuple[TransposedAxis, TransposedAxis],
        groups: int,
        output_padding: Sequence[int],
    ) -> None:
        """weight: (C, C' / groups, h, w)."""
        super().__init__(out, [source], knobs, axes)
        self.weight, self.bias, self.groups = weight.detach(), None if bias is None else bias.detach(), groups
        self.output_padding = output_padding
        self.macs, self.total = weight.numel(), source.shape.positions

    @property
    def tile(self) -> int:
        step = math.lcm(*(axis.stride for axis in self.axes))
        return -(-super().tile // step) * step

    def work(self, tiles: int) -> int:
        return tiles * math.prod(axis.extent(self.tile) for axis in self.axes)

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        y = self._spread(windows, bias, 0, 0)
        top, left = (axis.padding + axis.lead * axis.stride for axis in self.axes)
        return y[:, top : top + self.tile, left : left + self.tile]

    def whole(self) -> Tensor:
        (padding,) = self.sliding("padding")
        return self._spread(self.sources[0].sent.interior, True, padding, self.output_padding)

    def _spread(self, x: Tensor, bias: bool, padding: Any, output_padding: Any) -> Tensor:
        (stride, dilation), b = self.sliding("stride", "dilation"), self.bias if bias else None
        x = x.permute(0, 3, 1, 2)
        y = F.conv_transpose2d(x, self.weight, b, stride, padding, output_padding, self.groups, dilation)
        return y.permute(0, 2, 3, 1)


class Affine(Stage):
    """A batch norm that no convolution can take in: differences are scaled, and only values are shifted as well."""

    def __init__(self, out: Output, source: Stage, knobs: Knobs, scale: Tensor, shift: Tensor) -> None:
        super().__init__(out, [source], knobs)
        self.scale, self.shift = scale, shift

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        return windows * self.scale + self.shift if bias else windows * self.scale


class AveragePool(Stage):
    """Average pooling over windows that all count alike: zeros of the padding are values."""

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        return F.avg_pool2d(windows.permute(0, 3, 1, 2), *self.sliding("kernel", "stride")).permute(0, 2, 3, 1)


class MaxPool(Stage):
    """Max pooling, from accumulated values: it is no sum, so differences do not pass through it."""

    from_values, linear_in_sources = True, False

    def __init__(self, out: Output, source: Stage, knobs: Knobs, axes: tuple[Axis, Axis], operator: Function) -> None:
        """operator: on (B, C, H, W)."""
        super().__init__(out, [source], knobs, axes)
        self.operator = operator

    def allocate(self, like: Tensor) -> None:
        super().allocate(like)
        on_map = self.sources[0].sent.zeros_like()
        on_map.interior.fill_(1)
        self.beyond = on_map.rows[:, :1] == 0  # (rows, 1)
        self.padded = any(axis.padding or axis.padding_after for axis in self.axes)

    def pad(self, tiles: Tensor, windows: Tensor) -> Tensor:
        return windows.masked_fill_(self.windows.gather(tiles, self.beyond), -torch.inf) if self.padded else windows

    def linear(self, windows: Tensor, bias: bool) -> Tensor:
        kernel, stride, dilation = self.sliding("kernel", "stride", "dilation")
        return F.max_pool2d(windows.permute(0, 3, 1, 2), kernel, stride, 0, dilation).permute(0, 2, 3, 1)

    def whole(self) -> Tensor:
        return self.operator(self.sources[0].sent.interior.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


# --------------------------------------------------------------------------------------------------------------------
# Position by position


class Operand(Protocol):
    """What a pointwise layer reads at each position."""

    def rows(self, positions: Tensor) -> Tensor:
        """Its channels at (m,) positions: (m, C), or (1, C) where they are the same at all."""

    def whole(self) -> Tensor:
        """The same at all positions: (B, H, W, C), or (1, C)."""


class FromStage:
    """Some channels of a stage, all of them in their order if `channels` is a range."""

    def __init__(self, stage: Stage, channels: Tensor) -> None:
        self.stage, channels = stage, channels.flatten()
        first = int(channels[0])
        self.all = is_range(channels, stage.channels)
        self.run = (first, len(channels)) if is_range(channels - first, len(channels)) else None
        self.channels = channels

    def rows(self, positions: Tensor) -> Tensor:
        return self._some(self.stage.sent.read(positions))

    def whole(self) -> Tensor:
        return self._some(self.stage.sent.interior)

    def _some(self, x: Tensor) -> Tensor:
        if self.all:
            return x
        return x.narrow(-1, *self.run) if self.run else x.index_select(-1, self.channels.to(x.device))


class Constant:
    """A constant with the same channels at every position, (1, C), or of its own at each, (B, H, W, C)."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def rows(self, positions: Tensor) -> Tensor:
        if self.values.dim() == 2:
            return self.values
        return self.values.reshape(-1, self.values.shape[-1]).index_select(0, positions)

    def whole(self) -> Tensor:
        return self.values


class Gate:
    """A tensor without positions that follows the frame, such as the gates of a squeeze-and-excitation."""

    def __init__(self, given: Given, arrange: Callable[[Tensor], Tensor], positions: int) -> None:
        """arrange: the tensor -> (B, C), or (1, C). positions: of one image."""
        self.given, self.arrange, self.positions = given, arrange, positions

    def rows(self, positions: Tensor) -> Tensor:
        gate = self.arrange(self.given.tensor)
        if len(gate) == 1:
            return gate
        return gate.index_select(0, torch.div(positions, self.positions, rounding_mode="floor"))

    def whole(self) -> Tensor:
        return self.arrange(self.given.tensor)[:, None, None]


class Pointwise(Stage):
    """A function of what stands at each position, computed from values in both forms.

    When a gate moved, it is computed everywhere; positions at which the result hardly moves are not sent.
    """

    from_values = True

    def __init__(
        self, out: Output, operands: Sequence[Operand], knobs: Knobs, function: Function, *, linear: bool
    ) -> None:
        super().__init__(out, [o.stage for o in operands if isinstance(o, FromStage)], knobs)
        self.operands, self.function = operands, function
        self.gates = [o.given for o in operands if isinstance(o, Gate)]
        self.linear_in_sources = linear and not self.gates

    def whole(self) -> Tensor:
        return self.function(*(operand.whole() for operand in self.operands))

    def step(self) -> None:
        messages = [source.message for source in self.sources if len(source.message)]
        if any(gate.changed for gate in self.gates):
            self.computed.append(self.total)
            self._replace(self.sent.all, self.whole().reshape(self.total, -1))
        elif not messages:
            self._nothing()
        else:
            positions = messages[0].positions
            if any(m.positions is not positions for m in messages[1:]):
                mask = messages[0].mask
                for message in messages[1:]:
                    mask = mask | message.mask
                positions = mask.flatten().nonzero()[:, 0]
            self.computed.append(len(positions))
            self._replace(positions, self._at(positions))

    def _at(self, positions: Tensor) -> Tensor:
        first = self.operands[0]
        if len(self.operands) == 1 and self.knobs.update == "value" and isinstance(first, FromStage) and first.all:
            return self.function(self.sources[0].message.rows)
        return self.function(*(operand.rows(positions) for operand in self.operands))


# --------------------------------------------------------------------------------------------------------------------
# Each position from a few others


@dataclass(frozen=True)
class Taps:
    """What the outputs along one axis read: (n, K) input positions with their weights; outside, a constant."""

    index: Tensor
    weight: Tensor
    inside: Tensor
    """(n,) bool."""


class Resampling(Stage):
    """Upsampling, padding and cropping: each position is a weighted mean of a few of the source."""

    from_values = True

    def __init__(
        self, out: Output, source: Stage, knobs: Knobs, whole: Function, taps: tuple[Taps, Taps], outside: float
    ) -> None:
        """whole: the operator on (B, C, H, W). taps: down and across."""
        super().__init__(out, [source], knobs)
        self.operator, self.taps, self.outside = whole, taps, outside

    def allocate(self, like: Tensor) -> None:
        super().allocate(like)
        self.down, self.across = (Taps(*(part.to(like.device) for part in vars(t).values())) for t in self.taps)
        self.has_outside = not bool(self.down.inside.all() and self.across.inside.all())

    def whole(self) -> Tensor:
        return self.operator(self.sources[0].sent.interior.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def step(self) -> None:
        message = self.sources[0].message
        if not len(message):
            self._nothing()
            return
        mask = message.mask
        for axis, taps in ((1, self.down), (2, self.across)):
            mask = torch.stack([mask.index_select(axis, index) for index in taps.index.unbind(1)]).any(0)
        positions = mask.flatten().nonzero()[:, 0]
        if len(positions) > (1 - self.knobs.min_profitable) * self.total:
            positions = self.sent.all
            values = self.whole().reshape(self.total, -1)
        else:
            values = self._at(positions)
        self.computed.append(len(positions))
        self._replace(positions, values) if len(positions) else self._nothing()

    def _at(self, positions: Tensor) -> Tensor:
        source, height, width = self.sources[0], self.shape.height, self.shape.width
        x, y = positions % width, torch.div(positions, width, rounding_mode="floor") % height
        image = torch.div(positions, height * width, rounding_mode="floor")
        values: Tensor | None = None
        for iy, wy in zip(self.down.index[y].unbind(1), self.down.weight[y].unbind(1), strict=True):
            for ix, wx in zip(self.across.index[x].unbind(1), self.across.weight[x].unbind(1), strict=True):
                part = source.sent.read((image * source.shape.height + iy) * source.shape.width + ix)
                if self.down.index.shape[1] * self.across.index.shape[1] > 1:
                    part = part * (wy * wx)[:, None].to(part.dtype)
                values = part if values is None else values.add_(part)
        if self.has_outside:
            inside = self.down.inside[y] & self.across.inside[x]
            values = values.masked_fill_(~inside[:, None], self.outside)
        return values


def taps(operator: Callable[[Tensor], Tensor], size: tuple[int, int], outside: bool) -> tuple[Taps, Taps]:
    """What an operator on (1, 1, H, W) reads, down and across: it is run on a ramp of coordinates.

    The operator is an interpolation between neighbours, or moves positions. outside: it may also add zeros.
    """
    found = []
    for axis, length in zip((2, 3), size, strict=True):
        ramp = torch.arange(length, dtype=torch.float64).reshape([-1 if i == axis else 1 for i in range(4)])
        there, mark = (operator(x.expand(1, 1, *size).contiguous()) for x in (ramp, torch.ones_like(ramp)))
        line = [slice(None) if i == axis else 0 for i in range(4)]
        if outside:  # a line that is not itself outside
            other = 5 - axis
            line[other] = int(mark.amax((0, 1, axis)).argmax())
        at, inside = there[tuple(line)], mark[tuple(line)] > 0.5
        low = (at + 1e-9).floor().clamp(0, length - 1)
        part = (at - low).clamp(min=0)
        part = torch.where(part < 1e-9, torch.zeros_like(part), part)
        index = torch.stack([low, (low + 1).clamp(max=length - 1)], 1).long()
        weight = torch.stack([1 - part, part], 1)
        if not part.any():
            index, weight = index[:, :1], weight[:, :1]
        found.append(Taps(index, weight, inside))
    return found[0], found[1]


def applied(function: Any, args: Sequence[Any], kwargs: dict[str, Any], places: Sequence[int]) -> Function:
    """The operator as a function of the arguments that stand at these places."""
    places = list(places)
    if not kwargs and places == [0] and len(args) == 1:
        return function  # type: ignore[no-any-return]

    def call(*operands: Tensor) -> Tensor:
        filled = list(args)
        for place, operand in zip(places, operands, strict=True):
            filled[place] = operand
        return function(*filled, **kwargs)  # type: ignore[no-any-return]

    return call
