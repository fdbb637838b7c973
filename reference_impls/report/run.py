"""The report itself: from a model and a loader to a `Result`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reference_impls.report.result import Budget, Kind, Result


@dataclass(frozen=True)
class Progress:
    """How far a report is, for whoever shows it."""

    doing: str
    """What runs now, such as "tokens: curve"."""
    done: float
    """Share of the expected time that has passed, in [0, 1]."""
    left_s: float | None
    """Seconds that are left, as expected; None before that can be told."""


def report(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    kind: Kind,
    budget: Budget | Mapping[str, float] | None = None,
    items: int = 64,
    seed: int = 0,
    axes: Sequence[str] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    answer: Callable[[Any], Tensor] | None = None,
    name: str | None = None,
    data_name: str | None = None,
    resume: Path | str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Measure where the redundancy of a model is on some data, and what it could save on this machine.

    model: any `nn.Module`, on any device, in any mode; it is measured in evaluation mode and left as it was.
    loader: any iterable of batches or items: tensors, tuples with labels, dicts of arguments; of videos, clips
        (T, C, H, W) or (B, T, C, H, W), one a stream. It is read once; `items` of what it gives are the sample.
    budget: {"flips": share}, {"error": relative error} or {"metric": loss of accuracy}; 1 % of flips by default.
    axes: names of axes to measure; all that fit by default.
    inputs: what the model is called with, from what the loader gives: a tensor, a tuple of arguments, or a dict.
    answer: the decisions (B, ...) that an output holds, as integers; told from the output by default.
    resume: a folder in which every finished part is kept, and from which an interrupted report goes on.
    progress: called now and then. KeyboardInterrupt ends the measuring, and what is done is returned.

    Raises: ValueError or TypeError, before the long part begins, for a loader that gives nothing, items that the model
    fails on, outputs without a tensor, or a budget that does not fit them; each says what to do.
    """
    raise NotImplementedError
