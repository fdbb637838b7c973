"""What a reference implementation offers.

The algorithm of a technique is plain functions or `nn.Module`s on tensors, which anybody can lift out of its file.
Beside it stands one subclass of `Technique`, which the conformance checks, the experiments and the tools drive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from reference_impls.contract.knobs import Knob, values

Where = Mapping[str, float]
"""A measure part by part: the name of a layer, block or item -> its value."""


@dataclass(frozen=True)
class Redundancy:
    """How much of its redundancy given data or activations hold."""

    value: float
    """In [0, 1]: 0 means none, 1 means that everything beyond a first unit could go."""
    measure: str
    """Short name of the measure."""
    where: Where = field(default_factory=dict)
    """The same measure part by part."""

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"redundancy must lie in [0, 1], got {self.value!r}")


@dataclass(frozen=True)
class Setting:
    """A named choice of the knobs."""

    name: str
    knobs: Mapping[str, Any]
    off: bool = False
    """The technique is applied, but must leave the baseline's result unchanged."""
    adaptive: bool = False
    """What is removed follows from the data, so data without the redundancy must lose nothing."""


class Handle:
    """An applied technique. Use it as a context manager, or call `undo()`.

    `target` is what to use from now on: the same object when the technique changes a model in place, a smaller data set
    when it selects. `trace` tells what the last run decided, in the terms of the technique's `saving`.
    """

    def __init__(
        self,
        target: Any,
        undo: Callable[[], None] = lambda: None,
        trace: Callable[[], Mapping[str, Any]] = dict,
        reset: Callable[[], None] = lambda: None,
    ) -> None:
        self.target, self._trace, self._reset = target, trace, reset
        self._undo: Callable[[], None] | None = undo

    @property
    def host(self) -> Any:
        """`target`, under the name that it had in version 0.1."""
        return self.target

    @property
    def trace(self) -> Mapping[str, Any]:
        """What the technique decided in the last run."""
        return self._trace()

    def reset(self) -> None:
        """Forget the state carried from earlier inputs: the next input starts a new stream."""
        self._reset()

    def undo(self) -> None:
        """Restore the target as it was before `apply`; a second call does nothing."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


class Technique(ABC):
    """One technique on the contract. Class attributes are literals, because tools read them without importing."""

    id: ClassVar[str]
    """Id of the entry, `taxonomy/techniques/<id>.yml`."""
    execution: ClassVar[Literal["real", "simulated"]]
    """`real` executes fewer MACs; `simulated` computes everything and masks the result."""
    stateful: ClassVar[bool] = False
    """State is carried from one input to the next."""
    trains: ClassVar[bool] = False
    """A model can be trained through the applied technique: gradients reach every parameter that they reach without."""
    knobs: ClassVar[Mapping[str, Knob]] = {}
    """Name of each knob of `apply` -> its declaration."""
    exploits: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Axis of the redundancy report that finds what it exploits -> its knobs, each with the name that the settings of
    the axis have for it: the value found there is the one to start from. A knob that is not named keeps its default."""
    waivers: ClassVar[Mapping[str, str]] = {}
    """Name of a conformance check that cannot apply -> the reason, shown on the entry's page."""

    @abstractmethod
    def settings(self) -> list[Setting]:
        """At least two settings, from the one that is `off` to the most aggressive."""

    @abstractmethod
    def measure(self, target: Any, inputs: Any) -> Redundancy:
        """How much of its redundancy the inputs hold, as this target sees them."""

    def apply(self, target: Any, /, **knobs: Any) -> Handle:
        """Exploit it in `target`, a model or a data set. The knobs are those that the class declares.

        Raises: TypeError or ValueError for a knob that is unknown or has a bad value; UnsupportedHost for a target that
        the technique cannot work on.
        """
        return self.attach(target, **values(self.id, self.knobs, knobs))

    @abstractmethod
    def attach(self, target: Any, /, *args: Any, **knobs: Any) -> Handle:
        """What `apply` does once the knobs are checked and complete: subclasses name theirs.

        Raises: UnsupportedHost; TypeError or ValueError for knobs that do not fit one another or the target.
        """

    @abstractmethod
    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Closed form of the MACs saved by the run that left `trace`: dense minus executed, overhead included.

        Negative when the overhead is larger than what was removed. The conformance checks hold it equal, to the unit,
        to the difference of two counted runs.
        """


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU, so that the draws are the same on every device."""
    return torch.Generator().manual_seed(seed)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nested list, tuple or mapping, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(item)


@dataclass(frozen=True)
class Case:
    """A small target and inputs on which the conformance checks examine a technique."""

    target: Any
    inputs: Any
    """Tensors, or a nested list, tuple or dict of tensors. For a stateful technique: the successive inputs."""
    run: Callable[[Any, Any], Tensor]
    """`run(target, inputs)` computes the result that must survive; it is given the handle's target once applied.

    It leaves gradients as they are: the checks switch them off and on.
    """


@dataclass(frozen=True)
class Expectation:
    """What a technique gives on a small case, and what it should give: by brute force, by hand, or before it ran."""

    name: str
    expected: Tensor
    actual: Tensor


@dataclass(frozen=True)
class Invalid:
    """A call that must be refused with an error whose message holds `says`."""

    what: str
    call: Callable[[], object]
    says: str


class Cases(ABC):
    """What the checks examine a technique on: small targets and data built with exactly known redundancy."""

    @abstractmethod
    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        """A fresh target with inputs. `redundant`: built of nothing but redundancy; `null`: built without any."""

    @abstractmethod
    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        """What the technique selects on small cases, against brute force, and two or more of them against values that
        were worked out by hand or stand in the paper.
        """

    @abstractmethod
    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        """Quantities that must not be lost or counted twice."""

    @abstractmethod
    def invalid(self, device: str) -> Iterable[Invalid]:
        """Calls with bad shapes and dtypes, values that are not finite, unsupported targets, and knobs that do not fit
        together. Each knob on its own is tried by the checks.
        """

    def stream(self, frames: int, seed: int, device: str) -> Case:
        """For stateful techniques: a stream of `frames` inputs whose content changes throughout."""
        raise NotImplementedError
