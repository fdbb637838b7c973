"""Closed forms: what a module costs, told from what it is made of. Nothing is run, so a module may be on `meta`.

    closed_form(nn.Conv2d(3, 8, 3, 2, 1), (3, 32, 32))   # Footprint(parameters=224, macs=55296, shape=(8, 16, 16))

The layers of torch have their forms here; every other part registers its own beside its class, composed of those of
its parts. The dispatch counter (`accounting.count`) knows nothing of them, so that tests can hold one to the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import singledispatch

from torch import nn

Shape = tuple[int, ...]
"""Shape of one datum, without the batch axis: (C, H, W) of a feature map, (N, C) of tokens, (C,) of a vector."""


@dataclass(frozen=True)
class Footprint:
    """Exact size and work of a part of a network: parameters, multiply-accumulates for one datum, shape of its output.

    A sum stands for parts that run one after the other: its shape is that of the last one.
    """

    parameters: int = 0
    macs: int = 0
    shape: Shape = field(default=(), compare=False)

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.parameters + other.parameters, self.macs + other.macs, other.shape or self.shape)


@singledispatch
def closed_form(module: nn.Module, shape: Shape) -> Footprint:
    """The footprint of a module on one datum of a shape.

    Raises: TypeError for a module without a closed form, ValueError for a shape that it cannot take.
    """
    name = type(module).__name__
    raise TypeError(f"{name} has no closed form: register one beside its class, with @closed_form.register")


def chained(shape: Shape, *modules: nn.Module | None) -> Footprint:
    """The footprint of modules that run one after the other; None stands for a module that is left out."""
    total = Footprint(shape=shape)
    for module in modules:
        if module is not None:
            total += closed_form(module, total.shape)
    return total


def own_parameters(module: nn.Module) -> int:
    """Parameters of a module itself, those of the modules inside it left out."""
    return sum(p.numel() for p in module.parameters(recurse=False))


def composed(kind: type[nn.Module], *names: str) -> None:
    """Register the form of a part that runs its modules of these names one after the other, some of them perhaps None.

    What neither multiplies nor changes a shape (an activation, an addition, a scale by another module) is left out.
    """
    closed_form.register(kind, lambda part, shape: chained(shape, *(getattr(part, name) for name in names)))


def pointwise(*kinds: type[nn.Module]) -> None:
    """Register the form of modules without matrix products that keep the shape of what they are given."""
    for kind in kinds:
        closed_form.register(kind, lambda module, shape: Footprint(own_parameters(module), 0, shape))


closed_form.register(nn.Sequential, lambda modules, shape: chained(shape, *modules))
closed_form.register(nn.Flatten, lambda _, shape: Footprint(0, 0, (math.prod(shape),)))
pointwise(nn.BatchNorm2d, nn.LayerNorm, nn.GELU, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity)


@closed_form.register
def _(layer: nn.Linear, shape: Shape) -> Footprint:
    _check(layer, shape, shape[-1:] == (layer.in_features,))
    rows = math.prod(shape[:-1])
    return Footprint(own_parameters(layer), rows * layer.weight.numel(), (*shape[:-1], layer.out_features))


@closed_form.register
def _(layer: nn.Conv2d, shape: Shape) -> Footprint:
    _check(layer, shape, len(shape) == 3 and shape[0] == layer.in_channels)
    size = []
    for axis, n in enumerate(shape[1:]):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        same = reach if layer.padding == "same" else 0
        padding = same if isinstance(layer.padding, str) else 2 * layer.padding[axis]
        size.append((n + padding - reach - 1) // layer.stride[axis] + 1)
    return Footprint(own_parameters(layer), math.prod(size) * layer.weight.numel(), (layer.out_channels, *size))


@closed_form.register
def _(pad: nn.ZeroPad2d, shape: Shape) -> Footprint:
    left, right, top, bottom = pad.padding
    return Footprint(0, 0, (shape[0], shape[1] + top + bottom, shape[2] + left + right))


@closed_form.register
def _(pool: nn.AdaptiveAvgPool2d, shape: Shape) -> Footprint:
    sides = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size, pool.output_size)
    return Footprint(0, 0, (shape[0], *(n if side is None else side for n, side in zip(shape[1:], sides, strict=True))))


def _check(layer: nn.Module, shape: Shape, fits: bool) -> None:
    if not fits:
        raise ValueError(f"{layer} cannot take a datum of shape {shape}; give the shape without the batch axis")
