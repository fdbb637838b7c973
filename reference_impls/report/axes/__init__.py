"""The axes of the report: one kind of redundancy at one place, with its measure and its simulated reuse."""

from __future__ import annotations

from collections.abc import Sequence

from reference_impls.report.axes import (
    attention,
    data,
    depth,
    frames,
    grid,
    precision,
    spatial,
    temporal,
    tokens,
    zeros,
)
from reference_impls.report.axes.base import Axis

ALL: Sequence[type[Axis]] = (
    *data.AXES, *temporal.AXES, *frames.AXES, *tokens.AXES, *spatial.AXES, *depth.AXES, *zeros.AXES, *attention.AXES,
    *grid.AXES, *precision.AXES,
)  # fmt: skip
"""Every axis, in the order of the report."""
