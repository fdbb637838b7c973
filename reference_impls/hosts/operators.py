"""What single operators of a recorded model (`hosts.graph`) are, and their arguments in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reference_impls.hosts.graph import Operation, aten

POINTWISE_TOO = (aten.hardswish.default, aten._to_copy.default)
"""Element-wise operators that torch does not mark as such."""


@dataclass(frozen=True)
class Axis:
    """How a layer slides along one axis of its input."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    """Zeros before the first position."""
    dilation: int = 1
    padding_after: int = 0
    """Zeros after the last position."""

    def extent(self, outputs: int) -> int:
        """Length of the input that neighbouring outputs read."""
        return (outputs - 1) * self.stride + self.dilation * (self.kernel - 1) + 1

    def size_out(self, size: int) -> int:
        """Length of the output for an input of length `size`."""
        return (size + self.padding + self.padding_after - self.extent(1)) // self.stride + 1

    @property
    def lead(self) -> int:
        """Positions before the input at which the first window begins."""
        return self.padding

    def advance(self, tile: int) -> int:
        """From the window of a tile to that of the next."""
        return tile * self.stride

    def span(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """The first input that the outputs from `first` to `last` read, and the one after the last."""
        return first * self.stride - self.padding, last * self.stride - self.padding + self.extent(1)

    def reached(self, low: int, high: int, outputs: int) -> tuple[int, int]:
        """The first of `outputs` outputs that read an input from `low` on and before `high`, and the end of those."""
        first = -((self.extent(1) - 1 - low - self.padding) // self.stride)
        return min(max(first, 0), outputs), min((high - 1 + self.padding) // self.stride + 1, outputs)


def is_pointwise(operation: Operation) -> bool:
    """Whether it is an element-wise function of floating point tensors with one result."""
    marked = torch.Tag.pointwise in operation.func.tags or operation.func in POINTWISE_TOO
    moves = operation.kwargs.get("device") is not None
    tensors = [*operation.inputs(), *operation.outputs]
    return marked and not moves and len(operation.outputs) == 1 and all(v.dtype.is_floating_point for v in tensors)


def pairs_of(*parts: Any) -> list[tuple[int, ...]]:
    """Kernel, stride, ... of both axes: [(kernel, stride, ...) down, (...) across]."""
    both = [(part, part) if isinstance(part, int) else (*part, *part)[:2] for part in parts]
    return [tuple(part[i] for part in both) for i in (0, 1)]


def filled(given: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """Arguments, the last ones by their defaults."""
    return [*given, *defaults[len(given) - 1 :]]
