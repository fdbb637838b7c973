"""Where the spread comes from: shares of the stages in the variance, and what would remain without one of them.

For stages whose times T_s add up to T, the share of a stage is Cov(T_s, T) / Var(T). Shares of stages that partition
the total sum to 1, whatever their dependence; what no stage covers is a part of its own. A share may be negative: a
stage that is short when the rest is long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from reference_impls.variation.spread import Method, checked, percentile

UNATTRIBUTED: Final = "unattributed"


def shares(stages: Mapping[str, Sequence[float]], total: Sequence[float]) -> dict[str, float]:
    """Share of each stage in the variance of the total, and `unattributed`; together they are 1.

    stages: one time a frame, 0 where a stage did not run. Raises: ValueError for fewer than two frames, for series of
    different lengths, or for a total that does not vary.
    """
    whole = checked(total)
    if len(whole) < 2:
        raise ValueError("a single frame does not vary: give at least two")
    parts = {name: checked(times) for name, times in stages.items()}
    if UNATTRIBUTED in parts:
        raise ValueError(f"no stage can be called {UNATTRIBUTED!r}: it is what the stages leave")
    for name, times in parts.items():
        if len(times) != len(whole):
            raise ValueError(f"stage {name!r} has {len(times)} times, the total {len(whole)}: give one a frame")
    centred = whole - whole.mean()
    if (variance := float(centred @ centred)) == 0:
        raise ValueError("the total does not vary, so nothing has a share in its variation")
    parts[UNATTRIBUTED] = whole - sum(parts.values(), np.zeros_like(whole))
    return {name: float(centred @ (times - times.mean())) / variance for name, times in parts.items()}


def decomposition(wall: Sequence[float], cpu: Sequence[float], queue: Sequence[float]) -> dict[str, float]:
    """Shares of computing, of waiting for a processor, and of the rest (blocked) in the variance of wall time."""
    found = shares({"cpu": cpu, "queue": queue}, wall)
    return {"cpu": found["cpu"], "queue": found["queue"], "residual": found[UNATTRIBUTED]}


def constant(stage: Sequence[float], total: Sequence[float], *, q: float = 99, method: Method = "linear") -> float:
    """The q-th percentile of the total if the stage always took its mean: the others keep their times.

    Raises: as `percentile`; ValueError for series of different lengths.
    """
    times, whole = checked(stage), checked(total)
    if len(times) != len(whole):
        raise ValueError(f"the stage has {len(times)} times, the total {len(whole)}: give one a frame")
    return percentile(whole - times + times.mean(), q, method=method)
