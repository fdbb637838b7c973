"""Latency prediction from proposals: a two-stage network knows what it will take before it takes it.

References:
  liu-2022-prophet (RTSS 2022, doi 10.1109/RTSS55097.2022.00034): the time of a network varies mainly with its number of
  proposals or raw points, from which it is predicted while the network runs; what the system then does is to coordinate
  networks.

Here T = a + b n is fitted on a few inputs (`calibrate`). In a run the prediction stands once the first stage has made
its n proposals, before the second has spent anything on them. Where it exceeds a deadline, the second stage looks at
the best proposals alone, as many as fit (`affordable`). That is our choice of what to do with a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Handle, Redundancy, Setting, Technique, UnsupportedHost, warn_no_effect
from reference_impls.contract.knobs import Number
from reference_impls.contract.replacement import refuse_capture, replace
from reference_impls.variation.prediction import Fit, fit


@runtime_checkable
class TwoStage(Protocol):
    """A network whose `forward(x)` is `decide(x, propose(x))`."""

    def propose(self, x: Any) -> Tensor:
        """Proposals (n, ...), the best first."""

    def decide(self, x: Any, proposals: Tensor) -> Any:
        """What the second stage makes of proposals: the result of the network."""


PROPOSALS = "proposals"
"""Name of the count in a fit."""


@prepares("calibration")
def calibrate(target: TwoStage, inputs: Iterable[Any], cost: Callable[[Any], float]) -> Fit:
    """Fit the cost of an input to its number of proposals (liu-2022-prophet, abstract).

    cost: of running the target on an input, in any unit, such as MACs or milliseconds.
    Raises: ValueError where the inputs do not determine the fit, as when all have as many proposals.
    """
    known, costs = list(inputs), []
    with torch.no_grad():
        numbers = [len(target.propose(x)) for x in known]
    costs = [cost(x) for x in known]
    return fit({PROPOSALS: numbers}, costs)


def affordable(deadline: float, base: float, each: float) -> int:
    """The most proposals of which T = base + each n is within the deadline; 0 where not even the base is."""
    return max(0, math.floor((deadline - base) / each + 1e-9))


class LatencyPrediction(Technique):
    """Gives the second stage of a network as many proposals as a deadline allows."""

    id = "latency-prediction-from-proposals"
    execution = "real"
    knobs: ClassVar = {
        "deadline": Number(
            None, optional=True, low=0, about="of one input, in the unit of the fit; None: there is none"
        ),
        "base": Number(0.0, low=0, about="predicted cost of an input without proposals"),
        "each": Number(1.0, low=0, low_open=True, about="predicted cost of one proposal more"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("no deadline", {"deadline": None}, off=True),
            Setting("16 proposals", {"deadline": 16.0}, adaptive=True),
            Setting("8 proposals", {"deadline": 8.0}),
        ]

    def measure(self, target: Any, inputs: Any) -> Redundancy:
        """Share of the proposals that the second stage rejects: 1 - (results) / n; 0 where there are no proposals."""
        self._require(target)
        with torch.no_grad():
            proposals = target.propose(inputs)
            accepted = accepted_of(target.decide(inputs, proposals))
        return Redundancy(1 - min(1.0, accepted / len(proposals)) if len(proposals) else 0.0, "rejected proposals")

    def attach(self, target: Any, deadline: float | None, base: float, each: float) -> Handle:
        self._require(target)
        most = None if deadline is None else affordable(deadline, base, each)
        if most is None:
            warn_no_effect(self.id, "no deadline is set")
        trace: dict[str, Any] = {}
        return Handle(target, undo=replace(target, partial(_in_time, most, trace), self.id), trace=lambda: trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """(n - kept) times the target's `proposal_macs`, where every proposal costs as much in the second stage.

        Raises: UnsupportedHost for a target whose proposals do not, such as a longer cascade: count its runs.
        """
        if not hasattr(target, "proposal_macs"):
            raise UnsupportedHost(self.id, target, "`proposal_macs`, the MACs of one proposal, to say what was saved")
        return int(trace["proposed"] - trace["kept"]) * int(target.proposal_macs)

    def _require(self, target: Any) -> None:
        if not isinstance(target, torch.nn.Module) or not isinstance(target, TwoStage):
            needs = "a torch module with `propose(x)`, proposals with the best first, and `decide(x, proposals)`"
            raise UnsupportedHost(self.id, target, needs)


def accepted_of(result: Any) -> int:
    """How many results the second stage gave: rows of a tensor, or of its `boxes`."""
    return len(getattr(result, "boxes", result))


def _in_time(most: int | None, trace: dict[str, Any], target: Any, dense: Callable[..., Any], x: Any) -> Any:
    """In the place of the target's forward."""
    refuse_capture("how many proposals there are depends on the data", "without a deadline, or run it eagerly")
    proposals = target.propose(x)
    kept = proposals if most is None else proposals[:most]
    trace.update(proposed=len(proposals), kept=len(kept))
    return target.decide(x, kept)
