"""What the axes of streams share."""

from __future__ import annotations

from reference_impls.report.axes.base import Axis
from reference_impls.report.engine import View


class Temporal(Axis):
    """An axis of video: something is as it was in an earlier frame of its clip."""

    relation = "temporal_similarity"
    shrinks = True
    compatible = False
    threshold = 0.1
    tile = 8

    def unfit(self, view: View) -> str | None:
        if view.kind != "video":
            return "the data have no order of time"
        if all(batch.items < 2 for batch in view.sample.batches):
            return "every clip has a single frame"
        return None

    def notes(self, view: View) -> list[str]:
        return ["The first frame of each clip is computed as a whole, and counts: in a longer stream more is saved."]
