"""Knobs of a technique, declared on its class: what they mean, their default, and which values they take.

The declarations are literals, so that the tools read them without importing the technique. `Technique.apply` refuses
an unknown knob and a bad value before the technique sees it, and the conformance checks try `Knob.bad` on each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from reference_impls.contract.errors import check_range, nearest

LONGEST = 2**31 - 1
"""Some operators of torch take no larger integer."""


@dataclass(frozen=True)
class Knob:
    """A value that a technique can be told."""

    default: Any
    _: KW_ONLY
    about: str
    """What it does, in a line."""
    optional: bool = False
    """None is allowed."""

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError or ValueError, naming the knob and what it takes, unless `value` is allowed."""
        if value is not None or not self.optional:
            self.check_value(name, value)

    def check_value(self, name: str, value: Any) -> None:
        """The same for a value that is given."""

    def bad(self) -> list[Any]:
        """Values that must be refused."""
        return [] if self.optional else [None]


def _sizes(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(type(n) is int and 0 < n <= LONGEST for n in value)


FORMS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "function": ("a function", lambda value: callable(value) and not isinstance(value, type)),
    "list": ("a list or a tuple", lambda value: isinstance(value, list | tuple)),
    "names": (
        "a list or a tuple of names",
        lambda value: isinstance(value, list | tuple) and all(isinstance(one, str) for one in value),
    ),
    "sizes": ("a tuple of integers of at least 1", _sizes),
    "table": ("a mapping", lambda value: isinstance(value, Mapping)),
    "tensor": ("a tensor of at least one axis", lambda value: isinstance(value, Tensor) and value.ndim > 0),
}
"""What a `Given` may have to be: in words, and whether a value is."""


@dataclass(frozen=True)
class Given(Knob):
    """Something that the technique itself checks, beyond its form. None is allowed where it is the default."""

    form: Literal["", "function", "list", "names", "sizes", "table", "tensor"] = ""

    def check_value(self, name: str, value: Any) -> None:
        words, fits = FORMS.get(self.form, ("", lambda _: True))
        if not fits(value) and (value is not None or self.default is not None):
            raise TypeError(f"{name} must be {words}{' or None' * (self.default is None)}, got {value!r:.200}")

    def bad(self) -> list[Any]:
        return [1j] if self.form else []


@dataclass(frozen=True)
class Number(Knob):
    """A finite number in [low, high]; in (low, high] if `low_open`."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    wrong: ClassVar[float] = math.nan

    def check_value(self, name: str, value: Any) -> None:
        check_range(name, value, self.low, self.high, low_open=self.low_open)
        if abs(value) > (LONGEST if isinstance(value, int) else sys.float_info.max):
            raise ValueError(f"{name} must be finite, an integer at most {LONGEST}, got {value!r}")

    def bad(self) -> list[Any]:
        ends = [end for end in (self.low - 1, self.high + 1) if math.isfinite(end)]
        return [*super().bad(), *ends, *[self.low] * self.low_open, self.wrong, "much", True]


@dataclass(frozen=True)
class Integer(Number):
    """An integer in [low, high]; where `listed`, also a list with one for each part."""

    listed: bool = False
    wrong: ClassVar[float] = 1.5

    def check_value(self, name: str, value: Any) -> None:
        if self.listed and isinstance(value, Sequence) and not isinstance(value, str):
            for one in value:
                self.check(name, one)
        else:
            check_range(name, value, max(self.low, -LONGEST), min(self.high, LONGEST), integer=True)


@dataclass(frozen=True)
class Choice(Knob):
    """One of a few words."""

    options: tuple[str, ...] = ()

    def check_value(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in self.options:
            raise ValueError(f"{name} must be {' or '.join(map(repr, self.options))}, got {value!r}")

    def bad(self) -> list[Any]:
        return [*super().bad(), "no such option"]


@dataclass(frozen=True)
class Switch(Knob):
    """On or off."""

    def check_value(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")

    def bad(self) -> list[Any]:
        return [*super().bad(), "yes", 1]


def values(technique: str, knobs: Mapping[str, Knob], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values, and the defaults of the others. Raises TypeError for an unknown knob, and as `Knob.check`."""
    for name in given:
        if name not in knobs:
            raise TypeError(f"{technique} has no knob {name!r}{nearest(name, knobs)}")
    for name, knob in knobs.items():
        if name in given:
            knob.check(name, given[name])
    return {name: given.get(name, knob.default) for name, knob in knobs.items()}
