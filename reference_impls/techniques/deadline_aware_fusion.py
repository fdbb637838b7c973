"""Deadline-aware fusion: branches that will be fused take the same frames, and none that would come too late.

References:
  liu-2022-prophet (RTSS 2022, doi 10.1109/RTSS55097.2022.00034): networks of one perception system that run without
  coordination finish different frames at different times, so that fusion waits and drops; coordinating their progress
  bounds its delay.

A fusion needs a result of every branch for the same frame. A fast branch that takes frames which the slow one skips
computes for nothing: that work is redundant. Coordinated, all branches take the newest frame once the last of them is
free. With a deadline, a frame whose slowest branch is predicted to end too late is taken by none. The policy is our
reconstruction from the paper's abstract; time is simulated, so that every result repeats (`variation.fusion`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import Handle, Redundancy, Setting, Technique, UnsupportedHost, warn_no_effect
from reference_impls.contract.errors import check_tensor
from reference_impls.contract.knobs import Number, Switch
from reference_impls.contract.replacement import refuse_capture, replace
from reference_impls.variation.fusion import Outcome, run


class Perception(nn.Module):
    """Branches with a processor each, which take the newest frame whenever they are free, and the fusion of theirs.

    branches: name -> network of one frame (1, C, H, W). times: name -> how long it takes, for every frame or one a
    frame, in the unit of `period`, the time from frame to frame. example: such a frame, by which the MACs of each
    branch are counted once.
    Raises: ValueError for fewer than two branches, or times that do not belong to them.
    """

    def __init__(
        self,
        branches: Mapping[str, nn.Module],
        times: Mapping[str, float | Sequence[float]],
        *,
        period: float,
        example: Tensor,
    ) -> None:
        super().__init__()
        if len(branches) < 2 or branches.keys() != times.keys():
            raise ValueError(f"two or more branches with their times are needed, got {[*branches]} and {[*times]}")
        self.branches, self.times, self.period = nn.ModuleDict(branches), dict(times), period
        self.frame_shape = check_tensor("example", example, "1 C H W").shape[1:]
        self.branch_macs, self.widths = dict[str, int](), dict[str, int]()
        for name, branch in branches.items():
            with torch.no_grad(), count() as tally:
                self.widths[name] = branch(example).flatten(1).shape[1]
            self.branch_macs[name] = tally.macs

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (T, C, H, W) -> (T, D): the branches' results side by side for frames that are fused, else zeros."""
        return self.computed(frames, self.outcome(len(frames)))

    def series(self, frames: int) -> dict[str, list[float]]:
        """How long each branch takes for each of so many frames. Raises: ValueError where the times are fewer."""
        found = {
            name: [t] * frames if isinstance(t, float | int) else list(t[:frames]) for name, t in self.times.items()
        }
        for name, series in found.items():
            if len(series) < frames:
                raise ValueError(f"branch {name!r} has times of {len(series)} frames, and there are {frames}")
        return found

    def outcome(self, frames: int) -> Outcome:
        """What the branches take and the fusion gets, each branch by itself."""
        return run(self.series(frames), period=self.period, policy="latest", queue=max(frames, 1))

    def computed(self, frames: Tensor, outcome: Outcome) -> Tensor:
        """The results of an outcome: every branch computes the frames that it takes, whoever needs them."""
        if check_tensor("frames", frames, "T C H W").shape[1:] != self.frame_shape:
            expected = " x ".join(map(str, self.frame_shape))
            raise ValueError(f"frames must have the shape of the example, {expected}, got {tuple(frames.shape)}")
        fused = {round(one.stamps[next(iter(self.branches))] / self.period) for one in outcome.fused}
        parts = []
        for name, branch in self.branches.items():
            rows = {n: branch(frames[n : n + 1]).flatten(1)[0] for n in outcome.computed[name]}
            nothing = next(iter(rows.values()), frames).new_zeros(self.widths[name])
            parts.append(torch.stack([rows[n] if n in fused else nothing for n in range(len(frames))]))
        return torch.cat(parts, 1)


class DeadlineAwareFusion(Technique):
    """Lets the branches of a perception system take the same frames."""

    id = "deadline-aware-fusion"
    execution = "real"
    trains = True
    knobs: ClassVar = {
        "coordinated": Switch(True, about="all branches take the same frames"),
        "deadline": Number(
            None, optional=True, low=0, low_open=True,
            about="from sensing to fusion, in the unit of the period; frames that will miss it are left out",
        ),
    }  # fmt: skip

    def settings(self) -> list[Setting]:
        return [
            Setting("alone", {"coordinated": False}, off=True),
            Setting("coordinated", {}, adaptive=True),
            Setting("with a deadline", {"deadline": 4.0}),
        ]

    def measure(self, target: Any, inputs: Tensor) -> Redundancy:
        """Share of the branches' results that no fusion uses, where each branch goes on by itself."""
        outcome = _required(self.id, target).outcome(len(check_tensor("frames", inputs, "T C H W")))
        results = {name: float(len(taken)) for name, taken in outcome.computed.items()}
        unused = {name: 1 - len(outcome.fused) / n for name, n in results.items()}
        return Redundancy(outcome.wasted / sum(results.values()), "results that no fusion uses", unused)

    def attach(self, target: Any, coordinated: bool, deadline: float | None) -> Handle:
        _required(self.id, target)
        if not coordinated:
            if deadline is not None:
                raise ValueError("a deadline decides for all branches at once: leave `coordinated` on")
            warn_no_effect(self.id, "coordinated is off")
        trace: dict[str, Any] = {}
        undo = replace(target, partial(_coordinated, coordinated, deadline, trace), self.id)
        return Handle(target, undo=undo, trace=lambda: trace)

    def saving(self, target: Any, inputs: Tensor, trace: Mapping[str, Any]) -> int:
        alone = target.outcome(len(inputs)).computed
        return sum(
            (len(alone[name]) - len(trace["computed"][name])) * macs for name, macs in target.branch_macs.items()
        )


def coordinated_outcome(target: Perception, frames: int, deadline: float | None) -> Outcome:
    """What the branches take and the fusion gets when all take the same frames (liu-2022-prophet, abstract)."""
    times = target.series(frames)
    predicted = None if deadline is None else times
    most = math.inf if deadline is None else deadline
    return run(times, period=target.period, policy="coordinated", deadline=most, predicted=predicted)


def _coordinated(
    coordinated: bool,
    deadline: float | None,
    trace: dict[str, Any],
    target: Any,
    below: Callable[[Tensor], Tensor],
    frames: Tensor,
) -> Tensor:
    """In the place of the target's forward."""
    refuse_capture("which frames are computed depends on simulated time", "eagerly")
    number = len(check_tensor("frames", frames, "T C H W"))
    outcome = coordinated_outcome(target, number, deadline) if coordinated else target.outcome(number)
    trace.update(
        computed={name: list(taken) for name, taken in outcome.computed.items()},
        fused=[round(one.stamps[next(iter(one.stamps))] / target.period) for one in outcome.fused],
    )
    return target.computed(frames, outcome)


def _required(technique: str, target: Any) -> Perception:
    if not isinstance(target, Perception):
        raise UnsupportedHost(technique, target, "a `Perception`, which holds the branches, their times and the period")
    return target
