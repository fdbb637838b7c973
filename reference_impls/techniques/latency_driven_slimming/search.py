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

from reference_impls.accounting.latency import LatencyTable
from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Handle, Technique, UnsupportedHost, check_range, check_tensor
from reference_impls.layers.norm import recalibrate
from reference_impls.redundancy.irrelevance import change

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


@prepares("search")
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
                if not len(inputs):
                    raise ValueError(f"{name} of the search data is empty: there is nothing to judge candidates by")
        if self.y is None and len(self.x) < 2:
            raise ValueError("x of the search data must hold two inputs or more where there are no labels, got one")
        if self.y is not None:
            self._check_labels(self.y)

    def _check_labels(self, y: Tensor) -> None:
        check_tensor("y of the search data", y, "N", floating=False)
        if len(y) != len(self.x):
            raise ValueError(f"as many labels as inputs are needed, got {len(y)} for {len(self.x)} inputs")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise TypeError(f"y of the search data must hold integers, the classes of x, got {y.dtype}")
        if int(y.min()) < 0:
            raise ValueError(f"y of the search data must hold classes from 0 on, got {int(y.min())}")

    def to(self, like: Tensor) -> SearchData:
        """The same on the device of `like`, and the inputs in its dtype."""
        y = None if self.y is None else self.y.to(like.device)
        return SearchData(self.x.to(like), y, None if self.calibration is None else self.calibration.to(like))

    def samples(self) -> int:
        """Inputs that the evaluation of one candidate runs through it."""
        return len(self.x) + (0 if self.calibration is None else len(self.calibration))


class Trial(Generic[State]):
    """Scores states by the network that `build` makes of them; `evaluated` lists the states that it was asked for.

    With labels the score is the accuracy on the validation inputs; without, 1 - |y - y'| / |y - mean y| for the outputs
    y of the first state that was scored and y' of this one.
    Raises ValueError for outputs that are not finite, labels that are none of the classes, or outputs of the first
    state that are the same for every input (one class, for example), for then nothing tells candidates apart.
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
        if not bool(outputs.isfinite().all()):
            advice = "search in float32" if outputs.dtype == torch.float16 else "look for NaN in the weights"
            raise ValueError(f"the outputs of a candidate in {outputs.dtype} are not finite: {advice}")
        if self.data.y is not None:
            self._check_labels(self.data.y, outputs.shape[-1])
            return (outputs.argmax(-1) == self.data.y).double().mean().item()
        if self._reference is None:
            self._reference = outputs
            spread = (outputs.double() - outputs.double().mean(0)).norm()
            if spread <= 8 * torch.finfo(outputs.dtype).eps * outputs.double().norm():
                raise ValueError("the whole network's outputs are the same for all inputs, so they judge no candidate")
        return 1 - change(self._reference, outputs)

    @staticmethod
    def _check_labels(y: Tensor, classes: int) -> None:
        if classes < 2:
            raise ValueError(
                "every candidate is right where there is one class: two are needed, or data without labels"
            )
        if (largest := int(y.max())) >= classes:
            raise ValueError(f"y of the search data holds class {largest}, but there are {classes} classes, from 0 on")


# --------------------------------------------------------------------------------------------------------------------
# On the contract


class SearchTechnique(Technique):
    """A search; its target is a `supernet` with its `search` data, in eval mode, and the handle's a plain network."""

    supernet: ClassVar[type[nn.Module]]

    def _table(self, supernet: Any, table: Any) -> LatencyTable:
        """The table of the knob, or exact MACs. TypeError or ValueError unless it gives the whole network a latency."""
        table = supernet.space.macs_table() if table is None else table
        if not isinstance(table, LatencyTable):
            raise TypeError(f"table must be a LatencyTable or None, got {type(table).__name__}")
        if table(supernet.space.largest().parts()) == 0:
            raise ValueError("the table predicts no latency for the largest network, so nothing can save any")
        return table

    def saving(self, supernet: Any, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        """B (largest - found) - V (sum over evaluated networks), for B inputs and V images of the search data."""
        macs = [supernet.space.total(one).macs for one in (supernet.space.largest(), trace["found"])]
        searched = sum(supernet.space.total(one).macs for one in trace["evaluated"])
        return len(inputs) * (macs[0] - macs[1]) - supernet.search.samples() * searched

    def _check(self, target: Any) -> None:
        if not isinstance(target, self.supernet) or target.training:
            home = type(self).__module__.rpartition(".")[2]
            raise UnsupportedHost(self.id, target, f"a {home}.{self.supernet.__name__} in eval mode")

    def _check_measurable(self, target: Any, inputs: Tensor) -> None:
        self._check(target)
        if len(inputs) < 2:
            raise ValueError(f"at least two inputs are needed to measure how much outputs change, got {len(inputs)}")

    def _search_data(self, target: Any) -> SearchData:
        self._check(target)
        if not isinstance(target.search, SearchData):
            raise ValueError("there is nothing to evaluate candidates on: set supernet.search = SearchData(x, y)")
        return target.search.to(next(target.parameters()))


def found(supernet: Any, path: Sequence[Step[State]], trial: Trial[State]) -> Handle:
    """The network at the end of a path, with the weights of the supernet."""
    trace = {"found": path[-1].state, "evaluated": tuple(trial.evaluated)}
    return Handle(supernet.extract(path[-1].state), trace=lambda: trace)
