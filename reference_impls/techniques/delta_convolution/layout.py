"""Where the positions and channels of a stage stand in a tensor of the model, and what moving them about does to that.

A stage stores (positions, channels). The model sees the same numbers as (B, C, H, W), with channels last, split into
groups, shuffled, with batch, rows and columns in one dimension, ... Such moves cost a delta network nothing: they
are followed here, until something computes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reference_impls.hosts.graph import Operation, Value, aten
from reference_impls.techniques.delta_convolution.feature_maps import Shape

CHANNEL = "c"
"""A dimension of channels. Others are named by what they run over: "B", "H", "W", or "BHW" for all in one."""


@dataclass(frozen=True)
class Layout:
    """The dimensions of a tensor; one of length 1 is named ""."""

    dims: tuple[str, ...]
    shape: Shape
    channels: Tensor
    """The numbers of the stage's channels, with one dimension for each "c"."""

    @property
    def sizes(self) -> list[int]:
        """The tensor's shape."""
        lengths, channels = self._lengths(), iter(self.channels.shape)
        return [next(channels) if d == CHANNEL else math.prod(lengths[letter] for letter in d) for d in self.dims]

    @property
    def is_feature_map(self) -> bool:
        """Whether it is (B, C, H, W)."""
        return len(self.dims) == 4 and all(d in ("", want) for d, want in zip(self.dims, "BcHW", strict=True))

    def _lengths(self) -> dict[str, int]:
        return {"B": self.shape.batch, "H": self.shape.height, "W": self.shape.width}

    def _atoms(self) -> tuple[list[str], list[int]]:
        """Single letters and channel dimensions in the tensor's order, and their lengths; none is 1."""
        lengths, channels = self._lengths(), iter(self.channels.shape)
        atoms = [atom for d in self.dims for atom in (d or ())]
        return atoms, [next(channels) if atom == CHANNEL else lengths[atom] for atom in atoms]

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor in this layout -> (B, H, W, C), its channels in the order in which `channels` lists them."""
        atoms, lengths = self._atoms()
        order = sorted(range(len(atoms)), key=lambda i: "BHWc".index(atoms[i]))
        shape = self.shape.batch, self.shape.height, self.shape.width
        return tensor.reshape(lengths).permute(order).reshape(*shape, -1)

    def tensor(self, rows: Tensor) -> Tensor:
        """(B, H, W, C), channels in the order of `channels` -> a tensor in this layout; a view where that can be."""
        atoms, lengths = self._atoms()
        order = sorted(range(len(atoms)), key=lambda i: "BHWc".index(atoms[i]))
        back = sorted(range(len(order)), key=order.__getitem__)
        return rows.reshape([lengths[i] for i in order]).permute(back).reshape(self.sizes)


def feature_map(shape: Shape, channels: int) -> Layout:
    """The layout (B, C, H, W)."""
    sizes = {"B": shape.batch, "c": channels, "H": shape.height, "W": shape.width}
    dims = tuple(name if size > 1 else "" for name, size in sizes.items())
    return Layout(dims, shape, torch.arange(channels).reshape([channels] if channels > 1 else []))


def fresh(dims: Sequence[str], shape: Shape, channel_sizes: Sequence[int]) -> Layout:
    """The layout of a new stage whose output has these dimensions."""
    return Layout(tuple(dims), shape, torch.arange(math.prod(channel_sizes)).reshape(tuple(channel_sizes)))


# --------------------------------------------------------------------------------------------------------------------
# Moves: what an operator that computes nothing makes of a layout; None where positions themselves would move

Move = Callable[[Layout, Operation], list[Layout | None]]


def moved(layout: Layout, operation: Operation) -> list[Layout | None]:
    """The layout of each output of an operator that only moves numbers; none if it is no such operator."""
    move = MOVES.get(operation.func)
    return move(layout, operation) if move is not None else []


def _as_it_is(layout: Layout, operation: Operation) -> list[Layout | None]:
    return [layout]


def _reshaped(layout: Layout, operation: Operation) -> list[Layout | None]:
    return [reshaped(layout, _value(operation).shape)]


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after a reshape, if no dimension mixes positions with channels."""
    atoms, lengths = layout._atoms()
    dims, channel_sizes, at = [], [], 0
    left = 1  # of a dimension of channels that the new shape splits
    for size in shape:
        if size == 1:
            dims.append("")
        elif at < len(atoms) and (left > 1 or atoms[at] == CHANNEL):
            left = lengths[at] if left == 1 else left
            while left % size and left < size and at + 1 < len(atoms) and atoms[at + 1] == CHANNEL:
                at += 1
                left *= lengths[at]
            if left % size:
                return None
            dims.append(CHANNEL)
            channel_sizes.append(size)
            left //= size
            at += left == 1
        else:
            letters, product = "", 1
            while product < size and at < len(atoms) and atoms[at] != CHANNEL:
                letters, product, at = letters + atoms[at], product * lengths[at], at + 1
            if product != size:
                return None
            dims.append(letters)
    return replace(layout, dims=tuple(dims), channels=layout.channels.reshape(channel_sizes))


def _permuted(layout: Layout, order: Sequence[int]) -> Layout:
    dims = tuple(layout.dims[i] for i in order)
    number = {i: n for n, i in enumerate(i for i, d in enumerate(layout.dims) if d == CHANNEL)}
    return replace(layout, dims=dims, channels=layout.channels.permute([number[i] for i in order if i in number]))


def _permute(layout: Layout, operation: Operation) -> list[Layout | None]:
    return [_permuted(layout, [i % len(layout.dims) for i in operation.args[1]])]


def _transpose(layout: Layout, operation: Operation) -> list[Layout | None]:
    order = list(range(len(layout.dims)))
    a, b = operation.args[1:3] if len(operation.args) > 1 else (0, len(order) - 1)
    if order:
        order[a], order[b] = order[b], order[a]
    return [_permuted(layout, order)]


def _expand(layout: Layout, operation: Operation) -> list[Layout | None]:
    """Dimensions of length 1 may repeat channels; positions are never repeated."""
    shape = _value(operation).shape
    dims = [""] * (len(shape) - len(layout.dims)) + list(layout.dims)
    sizes = [size if d in ("", CHANNEL) else None for d, size in zip(dims, shape, strict=True)]
    ones = iter(layout.channels.shape)
    numbers = layout.channels.reshape([next(ones) if d == CHANNEL else 1 for d in dims if d in ("", CHANNEL)])
    numbers = numbers.expand([size for size in sizes if size is not None])
    kept = [size for size in numbers.shape if size > 1]
    named = [d if size is None else (CHANNEL if size > 1 else "") for d, size in zip(dims, sizes, strict=True)]
    return [replace(layout, dims=tuple(named), channels=numbers.reshape(kept))]


def _on_channels(layout: Layout, operation: Operation) -> list[Layout | None]:
    """An operator with the dimension as its second or third argument, done to the numbers of the channels."""
    place = {aten.split.Tensor: 2, aten.split_with_sizes.default: 2, aten.index_select.default: 1}
    at = place.get(operation.func, 1)
    given = operation.args[at] if len(operation.args) > at else operation.kwargs.get("dim", 0)
    dim, value = given % len(layout.dims), _value(operation)
    if value.shape == operation.inputs()[0].shape:
        return [layout if operation.args[4:] in ((), (1,)) else None] if operation.func is aten.slice.Tensor else [None]
    if layout.dims[dim] == "" and operation.func is aten.select.int:
        return [reshaped(layout, value.shape)]
    if layout.dims[dim] != CHANNEL or operation.inputs()[1:]:
        return [None]
    axis = sum(d == CHANNEL for d in layout.dims[:dim])
    args = [layout.channels, *operation.args[1:]]
    if len(args) > at:
        args[at] = axis
    kwargs = operation.kwargs | ({"dim": axis} if len(args) <= at else {})
    args = [a.cpu() if isinstance(a, Tensor) else a for a in args]
    out = operation.func(*args, **kwargs)
    parts, found = ([out] if isinstance(out, Tensor) else out), []
    for part in parts:
        dims = list(layout.dims)
        if part.dim() < layout.channels.dim():
            del dims[dim]
        elif part.shape[axis] == 1:
            dims[dim], part = "", part.squeeze(axis)
        found.append(replace(layout, dims=tuple(dims), channels=part))
    return found


def _flip(layout: Layout, operation: Operation) -> list[Layout | None]:
    flipped = [d % len(layout.dims) for d in operation.args[1]]
    axes = [sum(d == CHANNEL for d in layout.dims[:i]) for i in flipped if layout.dims[i] == CHANNEL]
    positions = any(layout.dims[i] not in ("", CHANNEL) for i in flipped)
    return [None if positions else replace(layout, channels=layout.channels.flip(axes))]


def _copied(layout: Layout, operation: Operation) -> list[Layout | None]:
    """`_to_copy` that changes nothing but where the tensor lies."""
    moves = operation.kwargs.get("device") is not None
    same = operation.inputs()[0].dtype == _value(operation).dtype
    return [layout if same and not moves else None]


def _value(operation: Operation) -> Value:
    value = operation.outputs[0]
    assert value is not None
    return value


MOVES: dict[Any, Move] = {
    **dict.fromkeys((aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh.default), _as_it_is),
    **dict.fromkeys((aten.contiguous.default, aten.dropout.default), _as_it_is),
    **dict.fromkeys((aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default), _reshaped),
    **dict.fromkeys((aten.unsqueeze.default,), _reshaped),
    **dict.fromkeys((aten.transpose.int, aten.t.default), _transpose),
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int), _on_channels),
    **dict.fromkeys((aten.select.int, aten.slice.Tensor, aten.index_select.default), _on_channels),
    aten.permute.default: _permute,
    aten.expand.default: _expand,
    aten.flip.default: _flip,
    aten._to_copy.default: _copied,
}
