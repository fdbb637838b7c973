"""Pictures that moved with the camera, and frames whose result an earlier one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.redundancy.cross_step_similarity import step_change
from reference_impls.redundancy.inputs import deviations
from reference_impls.redundancy.temporal_similarity import changed_tiles, shift_compensated
from reference_impls.report.axes.base import Axis, Outcome, Setting, Values, gain
from reference_impls.report.axes.stream import Temporal
from reference_impls.report.batches import Batch
from reference_impls.report.engine import Edit, Probe, Tick, View
from reference_impls.report.outputs import Outputs, errors, flips
from reference_impls.report.sample import Sample
from reference_impls.report.watch import Call, counted


class MovedPictures(Temporal):
    """Tiles of a picture that are where the camera's motion puts them."""

    id = "temporal-shift"
    title = "Tiles of the picture that only moved with the camera"
    location, granularity = "input_stream", "region_block"
    measure = "share of 8 x 8 tiles of the frame that stay within 0.1 deviations of the shifted frame before"
    source = "reference_impls.redundancy.temporal_similarity:shift_compensated"
    everywhere = True
    weights = False

    def unfit(self, view: View) -> str | None:
        x = view.sample.batches[0].main
        if x.ndim != 4 or not x.is_floating_point():
            return "the frames are no pictures (C, H, W)"
        return super().unfit(view)

    def probe(self, view: View) -> Probe:
        return _ShiftProbe()

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"threshold": t} for t in (0.02, 0.05, 0.1, 0.2, 0.4)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return _ShiftEdit(setting["threshold"], view)


def shifted_tiles(frames: Tensor, threshold: float, tile: int = 8) -> tuple[Tensor, Tensor]:
    """Frames (T, C, H, W) with static tiles taken from the shifted frame before, and the share of these, (T,)."""
    out, share = frames.clone(), torch.zeros(len(frames), dtype=torch.float64)
    limit = threshold * float(deviations(frames[:1].float()))
    for t in range(1, len(frames)):
        before = shift_compensated(out[t - 1 : t], frames[t : t + 1])
        moved = changed_tiles(before, frames[t : t + 1], tile=tile, threshold=limit)
        share[t] = 1 - moved.double().mean()
        mask = F.interpolate(moved[:, None].float(), scale_factor=tile, mode="nearest")
        mask = mask[..., : frames.shape[2], : frames.shape[3]] > 0.5
        out[t] = torch.where(mask[0], frames[t], before[0])
    return out, share


class _ShiftProbe(Probe):
    def begin(self, batch: Batch) -> Batch:
        super().begin(batch)
        x = batch.main
        if x.ndim == 4 and x.is_floating_point() and len(x) > 1:
            share = shifted_tiles(x, Temporal.threshold)[1][1:].mean()
            self.note("input", share.expand(batch.items), 1.0)
        return batch


class _ShiftEdit(Edit):
    def __init__(self, threshold: float, view: View) -> None:
        super().__init__()
        self.threshold, self.view = threshold, view

    def begin(self, batch: Batch) -> Batch:
        super().begin(batch)
        x, self.share = shifted_tiles(batch.main, self.threshold)
        self.spend(compare_bytes=81 * 2 * x.numel() * x.element_size())
        return batch.with_main(x)

    def account(self, call: Call, out: Any) -> None:
        self.save(call.site.name, self.share * call.cost(out))


class Frames(Temporal):
    """Whole frames whose result is that of a key frame before them."""

    id = "temporal-frames"
    title = "Frames whose output is that of a key frame before"
    location, granularity = "input_stream", "segment_frame"
    measure = "share of frames whose output differs by at most 10 % from that of the frame before"
    source = "reference_impls.redundancy.cross_step_similarity:step_change"
    free = everywhere = True

    def values(self, view: View, probe: Probe | None) -> Values:
        found = []
        for y in view.dense.values:
            still = (step_change(y[:-1], y[1:]) <= 0.1).double() if len(y) > 1 else torch.zeros(1)
            found.append(still.mean().expand(len(y)))
        return Values(torch.cat(found).double())

    def _part(self, view: View) -> float:
        """Share of the MACs that key frames alone need: of a model made of `features` and `heads` the former."""
        features: Callable[[Tensor], Any] | None = getattr(view.model, "features", None)
        if not callable(features) or not callable(getattr(view.model, "heads", None)):
            return 1.0
        if "features" not in view.shared:
            x = view.sample.batches[0].main
            view.shared["features"] = counted(view.model, lambda: features(x)).macs / len(x) / max(view.total, 1)
        return min(float(view.shared["features"]), 1.0)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"interval": n} for n in (2, 3, 4, 8)]

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        outputs, saved = Outputs(), []
        for batch, values, answers in zip(sample.batches, view.dense.values, view.dense.answers, strict=False):
            t = torch.arange(batch.items)
            key = t - t % setting["interval"]
            outputs.add(values[key], answers[key])
            saved.append((key != t).double())
        share = torch.cat(saved) * self._part(view)
        decided = flips(view.dense, outputs, view.reading.decision)
        sites = {name: view.per_item(name) * float(share.mean()) for name in view.sites}
        return Outcome(setting, share, errors(view.dense, outputs), decided, gain(view, outputs, sample), sites,
                       {}, float(share.mean()))  # fmt: skip


AXES: Sequence[type[Axis]] = (MovedPictures, Frames)
