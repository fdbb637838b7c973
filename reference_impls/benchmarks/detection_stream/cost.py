"""What verifying a fixed number of windows costs on clean frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from reference_impls.accounting.record import Record
from reference_impls.benchmarks.detection_stream.defences import (
    ALL_PASSES,
    AT_ONCE,
    FULL,
    Detect,
    FullPasses,
    bare,
    defended,
    made,
)
from reference_impls.benchmarks.detection_stream.streams import fast
from reference_impls.benchmarks.detection_stream.tasks import MODEL, TRUTH, blocks_f1, each_of, frames_of
from reference_impls.contract import Redundancy, generator
from reference_impls.models.yolov3_tiny import yolov3_tiny
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, measured, table
from reference_impls.techniques.adversarial_patch_region_removal import important, window_sums


@dataclass(frozen=True, kw_only=True)
class CostPlan(Plan):
    clip: str
    frames: int = 2
    windows: tuple[int, ...] = (8, 4)
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc")


def cost(study: Study[CostPlan]) -> Record:
    """The defence on clean frames with a fixed number of windows, against the same one by full passes."""
    plan, model = study.plan, fast(yolov3_tiny())
    frames = list(frames_of(plan.clip, plan.frames))
    truth = [bare(model)(frame) for frame in frames]

    def add(series: str, knobs: Mapping[str, Any], call: Detect) -> None:
        quality = blocks_f1([call(frame) for frame in frames], truth, 2)
        study.add(series, knobs, partial(each_of, call, frames), units=len(frames), quality=quality)

    most = max(plan.windows)
    add(BASELINE, {"windows": most}, defended(model, FullPasses, windows=most, least=0.0))
    for windows in plan.windows:
        add(TECHNIQUE, {"windows": windows}, defended(model, windows=windows, least=0.0))
        add(AT_ONCE, {"windows": windows}, defended(model, windows=windows, least=0.0, jointly=True))
        if windows < most:
            passes = defended(model, FullPasses, windows=windows, least=0.0)
            add(ALL_PASSES, {"windows": windows}, passes)
    add(FULL, {"windows": 0}, bare(model))
    study.measure()
    alone = study.cost(FULL, windows=0)
    network = made(model).network
    marks = [important(network.reference(frame).shallow(1)[0], 0.01) for frame in frames]
    shares = [int(window_sums(one, 12).max()) / int(one.sum()) for one in marks]
    order = torch.randperm(marks[0].numel(), generator=generator(0))
    null = int(window_sums(marks[0].flatten()[order].view_as(marks[0]), 12).max()) / int(marks[0].sum())
    return study.record(
        data=f"the first {plan.frames} frames of {plan.clip}, nobody attacks",
        model=MODEL,
        unit="one frame: detection, proposals, and the verification of the windows",
        knobs=("windows",),
        metric="F1 against the detector alone",
        controls={
            AT_ONCE: "All windows are filled at once where that is cheaper, and each alone only if that matters.",
            ALL_PASSES: "Fewer windows, each by a full pass.",
            FULL: "The detector alone.",
        },
        redundancy=measured(
            [Redundancy(share, "share of the important neurons in the best window") for share in shares],
            {"neurons in random order": null},
        ),
        notes=("So many windows are verified in every frame, however little they hold. " + TRUTH,),
        tables={
            "over the detector": table(
                "Time of a frame over that of the detector alone, from paired rounds, and its MACs.",
                ("windows", "form", "time", "MACs"),
                [
                    [v.knobs["windows"], form, alone.speed_up_over(found), found.macs / alone.macs]
                    for form, series in (
                        ("each window alone", TECHNIQUE),
                        (AT_ONCE, AT_ONCE),
                        (ALL_PASSES, BASELINE),
                        (ALL_PASSES, ALL_PASSES),
                    )
                    for v in study.series(series)
                    if (found := v.cost)
                ],
            )
        },
    )
