"""What the networks of one architecture search have in common: a part is described once, and built and counted so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, partial
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, closed_form
from reference_impls.accounting.latency import LatencyTable
from reference_impls.contract import check_range
from reference_impls.layers.conv import ConvNorm, Downsample, Stem
from reference_impls.layers.layout import Size

T = TypeVar("T")

STAGES = 4
Part = tuple[Hashable, ...]
"""A part of a network, the key of a latency table: its kind, its stage where it matters, its widths."""


class Choice(Protocol):
    """One network of a space."""

    def parts(self) -> Iterable[Part]:
        """The parts that it is made of."""

    def text(self) -> str:
        """It in a line."""
        ...


class SearchSpace(ABC):
    """Networks of a stem, four stages, each of half the size of the one before, and a head.

    `size`: height and width of the images. `patch`: stride of the stem, 4 as published, or 2 (one convolution) for
    small images. `act`: activation of the stem. Spaces are immutable and hashable.
    """

    size: int
    in_channels: int
    classes: int
    patch: int
    depths: tuple[int, ...]
    act: ClassVar[type[nn.Module]]

    def describe(self, part: Part) -> tuple[Callable[[], nn.Module], Shape]:
        """What builds a part, and the shape of the datum that it works on; ValueError for an unknown part."""
        match part:
            case ("stem", int(width)):
                return partial(self._stem, width), (self.in_channels, self.size, self.size)
            case ("down", int(stage), int(before), int(width)):
                return partial(Downsample, before, width), (before, *self.map_size(stage - 1))
        raise ValueError(f"there is no part {part!r}")

    @abstractmethod
    def choices(self) -> Sequence[Sequence[int]]:
        """The widths that each stage may have."""

    @abstractmethod
    def blocks(self, stage: int, width: int) -> list[Part]:
        """The parts that blocks of a stage are made of at a width."""

    def every_part(self) -> list[Part]:
        """Every part of every network of the space."""
        choices = self.choices()
        parts: list[Part] = [*(("stem", c) for c in choices[0]), *(("head", c) for c in choices[-1])]
        for j, widths in enumerate(choices):
            parts += [("down", j, before, c) for before in choices[j - 1] for c in widths if j > 0]
            parts += [part for c in widths for part in self.blocks(j, c)]
        return parts

    def build(self, part: Part) -> nn.Module:
        """A part, freshly initialised."""
        return self.describe(part)[0]()

    def example(self, part: Part, batch: int) -> Tensor:
        """An input of the shape that the part has in a network."""
        return torch.zeros(batch, *self.describe(part)[1])

    def cost(self, part: Part) -> Footprint:
        """Closed form of a part's parameters, and of its MACs for one image."""
        return _footprint(self, part)

    def total(self, choice: Choice) -> Footprint:
        """Closed form of a whole network."""
        return sum((self.cost(part) for part in choice.parts()), Footprint())

    def macs_table(self) -> LatencyTable:
        """The table that needs no machine: exact MACs of every part for one image."""
        return LatencyTable({part: self.cost(part).macs for part in self.every_part()}, "MACs")

    def map_size(self, stage: int) -> Size:
        """Height and width of the feature maps of a stage."""
        side = -(-self.size // (self.patch * 2**stage))
        return side, side

    def check_stages(self, widths: Sequence[object]) -> None:
        """Raise ValueError unless there are four stages, each of a block or more, and images and classes for them."""
        if len(widths) != STAGES or len(self.depths) != STAGES:
            raise ValueError(f"{STAGES} widths and depths are needed, got {widths} and {self.depths}")
        for depth in self.depths:
            check_range("a depth", depth, 1, integer=True)
        for name in ("size", "in_channels", "classes"):
            check_range(name, getattr(self, name), 1, integer=True)
        if self.patch not in (2, 4):
            raise ValueError(f"patch must be 2 or 4, got {self.patch!r}")

    def _stem(self, width: int) -> nn.Module:
        if self.patch == 4:
            return Stem(width, self.act, self.in_channels)
        return nn.Sequential(ConvNorm(self.in_channels, width, 3, 2), self.act())


def replaced(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    """The same values, another one at an index."""
    return (*values[:index], value, *values[index + 1 :])


@cache
def _footprint(space: SearchSpace, part: Part) -> Footprint:
    build, shape = space.describe(part)
    with torch.device("meta"):
        return closed_form(build(), shape)
