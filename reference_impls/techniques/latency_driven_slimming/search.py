"""The search loop: from the whole network, take again and again the move that loses least for what it gains.

It knows nothing of networks: a state is anything, `moves` tells where one can go from it, `quality` how good a state
is, and `benefit` how cheap (higher is better). Both searches of the EfficientFormer papers are this loop with other
moves and another benefit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from reference_impls.contract import Handle, Technique, UnsupportedHost, check_range, check_tensor
from reference_impls.layers.norm import recalibrate

State = TypeVar("State")


@dataclass(frozen=True)
class Step(Generic[State]):
    """A state on the path of a search; the first one has no move."""

    move: str
    state: State
    quality: float
    benefit: float


Moves = Callable[[State], Iterable[tuple[str, State]]]
"""State -> the moves that can be made from it: name, and the state that it leads to."""


def greedy(
    start: State,
    moves: Moves[State],
    quality: Callable[[State], float],
    benefit: Callable[[State], float],
    target: float,
    *,
    tolerance: float = math.inf,
) -> list[Step[State]]:
    """The path from `start` to the first state whose benefit reaches `target`, or to where no move is left.

    Every step takes the move of least (loss of quality) / (gain of benefit); of equal ones the first. Moves that gain
    nothing, or that lose more quality than `tolerance`, are not taken, so the benefit rises with every step.
    """
    check_range("tolerance", min(tolerance, sys.float_info.max), 0)
    path = [Step("", start, quality(start), benefit(start))]
    while path[-1].benefit < target:
        here, steps = path[-1], list[tuple[float, Step[State]]]()
        for name, state in moves(here.state):
            if (gain := benefit(state) - here.benefit) > 0:
                step = Step(name, state, quality(state), benefit(state))
                if (loss := here.quality - step.quality) <= tolerance:
                    steps.append((loss / gain, step))
        if not steps:
            break
        path.append(min(steps, key=lambda one: one[0])[1])
    return path


def random_path(
    start: State, moves: Moves[State], benefit: Callable[[State], float], target: float, generator: torch.Generator
) -> list[tuple[str, State]]:
    """The control: as `greedy`, with a move drawn at random among those that gain anything."""
    path = [("", start)]
    while benefit(path[-1][1]) < target:
        here = benefit(path[-1][1])
        choices = [move for move in moves(path[-1][1]) if benefit(move[1]) > here]
        if not choices:
            break
        path.append(choices[int(torch.randint(len(choices), (), generator=generator))])
    return path


# --------------------------------------------------------------------------------------------------------------------
# Quality


@dataclass(frozen=True)
class SearchData:
    """What a search may look at; never the test set.

    `x`: validation inputs (N, ...). `y`: their classes (N,), or None to hold candidates to the whole network's outputs.
    `calibration`: training inputs on which a candidate's batch norms are estimated again, or None to leave them.
    """

    x: Tensor
    y: Tensor | None = None
    calibration: Tensor | None = None

    def __post_init__(self) -> None:
        for name, inputs in (("x", self.x), ("calibration", self.calibration)):
            if inputs is not None:
                check_tensor(f"{name} of the search data", inputs, "N C H W")
        if self.y is not None and self.y.shape != self.x.shape[:1]:
            raise ValueError(f"as many labels as inputs are needed, got {tuple(self.y.shape)} for {len(self.x)} inputs")

    def samples(self) -> int:
        """Inputs that the evaluation of one candidate runs through it."""
        return len(self.x) + (0 if self.calibration is None else len(self.calibration))


class Trial(Generic[State]):
    """Scores states by the network that `build` makes of them; `evaluated` lists the states that it was asked for.

    With labels the score is the accuracy on the validation inputs; without, 1 - |y - y'| / |y - mean y| for the outputs
    y of the first state that was scored and y' of this one.
    """

    def __init__(self, build: Callable[[State], Callable[[Tensor], Tensor]], data: SearchData) -> None:
        self.build, self.data = build, data
        self.evaluated: list[State] = []
        self._reference: Tensor | None = None

    def __call__(self, state: State) -> float:
        self.evaluated.append(state)
        network = self.build(state)
        if self.data.calibration is not None:
            if not isinstance(network, nn.Module):
                raise TypeError(f"only an nn.Module can be calibrated, got {type(network).__name__}")
            recalibrate(network, self.data.calibration)
        with torch.no_grad():
            outputs = torch.cat([network(part) for part in self.data.x.split(256)])
        if self.data.y is not None:
            return (outputs.argmax(-1) == self.data.y).double().mean().item()
        self._reference = outputs if self._reference is None else self._reference
        return 1 - change(self._reference, outputs)


def change(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before - mean of before|, over outputs (N, C) of N inputs; 0 where nothing changes."""
    difference = (after.double() - before.double()).norm().item()
    spread = (before.double() - before.double().mean(0)).norm().item()
    return difference / spread if spread > 0 else math.inf if difference > 0 else 0.0


# --------------------------------------------------------------------------------------------------------------------
# On the contract


class SearchTechnique(Technique):
    """A search; its target is a `supernet` with its `search` data, in eval mode, and the handle's a plain network."""

    supernet: ClassVar[type[nn.Module]]

    def saving(self, supernet: Any, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """B (largest - found) - V (sum over evaluated networks), for B inputs and V images of the search data."""
        macs = [supernet.space.total(one).macs for one in (supernet.space.largest(), trace["found"])]
        searched = sum(supernet.space.total(one).macs for one in trace["evaluated"])
        return len(inputs) * (macs[0] - macs[1]) - supernet.search.samples() * searched

    def _check(self, target: Any) -> None:
        if not isinstance(target, self.supernet) or target.training:
            home = type(self).__module__.rpartition(".")[2]
            raise UnsupportedHost(self.id, target, f"a {home}.{self.supernet.__name__} in eval mode")

    def _search_data(self, target: Any) -> SearchData:
        self._check(target)
        if not isinstance(target.search, SearchData):
            raise ValueError("there is nothing to evaluate candidates on: set supernet.search = SearchData(x, y)")
        return target.search


def found(supernet: Any, path: Sequence[Step[State]], trial: Trial[State]) -> Handle:
    """The network at the end of a path, with the weights of the supernet."""
    trace = {"found": path[-1].state, "evaluated": tuple(trial.evaluated)}
    return Handle(supernet.extract(path[-1].state), trace=lambda: trace)
