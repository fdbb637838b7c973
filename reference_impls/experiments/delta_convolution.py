"""Experiments of delta convolution, all of them in the benchmark of video streams.

- `efficientnet-clips`, `efficientnet-clips-768`: EfficientNet-Lite0 on a clip of a fixed camera, at two resolutions.
- `convolution-64x56`, `convolution-256x56`, `convolution-64x112`: one 3 x 3 convolution of which a share of the input
  changes, in one blob or scattered.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from reference_impls.benchmarks import video_stream as benchmark
from reference_impls.benchmarks.detection_stream.streams import Frames
from reference_impls.benchmarks.detection_stream.tasks import Method
from reference_impls.study import TECHNIQUE
from reference_impls.techniques.delta_convolution import DeltaConvolution
from reference_impls.techniques.delta_convolution.network import LONGEST_REST

DELTA = DeltaConvolution()
ON_CLIPS = partial(DELTA.apply, tile=4)
CLIPS = partial(
    benchmark.clips,
    technique=benchmark.Method(TECHNIQUE, lambda model, threshold: ON_CLIPS(model, threshold=threshold)),
    others=(
        benchmark.Method(
            "differences",
            lambda model, threshold: ON_CLIPS(model, threshold=threshold, update="delta"),
            "The same stream with update='delta', the form of the paper: equal results, more memory traffic.",
        ),
    ),
    knob="threshold",
    notes=("Tiles of 4 x 4 positions.",),
)


def on_layer(name: str, about: str = "", tile: int = 8, **knobs: Any) -> benchmark.LayerMethod:
    """The technique on one layer, withholding nothing, where one blob changes."""
    return benchmark.LayerMethod(name, partial(DELTA.apply, threshold=0.0, tile=tile, **knobs), {"tile": tile}, about)


def followed_by(threshold: float, model: nn.Module) -> Frames:
    """The detector as a delta network."""
    return Frames(DELTA.apply(model, threshold=threshold))


CONTENDERS = {
    "detection-stream/vtest": [
        Method(
            DELTA.id,
            partial(followed_by, threshold),
            {"method": f"differences above {threshold:g}"},
        )
        for threshold in (0.1, 0.3)
    ]
}
CYCLE = (LONGEST_REST + 2) // 2
"""Rounds of two frames: one frame is computed, one judged, and the others rest."""
BLOB = on_layer(TECHNIQUE)
SCATTERED_TILES = on_layer(
    "scattered changes, no fallback", "The same with min_profitable=0: always by tiles.", min_profitable=0.0
)
SCATTERED_DIFFERENCES = on_layer("scattered differences", "Scattered changes with update='delta'.", update="delta")
FEW = (
    BLOB,
    benchmark.scattered_changes(BLOB, rounds=CYCLE),
    replace(SCATTERED_TILES, changes="scattered"),
    benchmark.nothing_changes(BLOB),
)
ALL = (
    *FEW,
    *(on_layer("other tiles", "The same blob with other sides of the tile.", tile) for tile in (4, 14)),
    on_layer("differences", "update='delta', the form of the paper.", update="delta"),
    replace(SCATTERED_DIFFERENCES, changes="scattered", rounds=CYCLE),
)
SCENARIOS = (
    *(
        benchmark.task(
            name,
            f"EfficientNet-Lite0 frame by frame on a clip of {width} x {height} pixels",
            CLIPS,
            full=benchmark.ClipsPlan(
                size=(height, width), values=(0.05, 0.1, 0.2, 0.4, 0.8), controls_at=(0.2,), long=long
            ),
            smoke=benchmark.small_clips(values=(0.1, 0.3, 0.6), controls_at=(0.3,)),
        )
        for name, height, width, long in (
            ("efficientnet-clips", 288, 384, 120),
            ("efficientnet-clips-768", 576, 768, 0),
        )
    ),
    *(
        benchmark.task(
            f"convolution-{channels}x{size}",
            f"A 3 x 3 convolution, {channels} channels, {size} x {size} positions",
            benchmark.convolution,
            full=benchmark.ConvolutionPlan(channels=channels, size=size, methods=ALL),
            smoke=benchmark.ConvolutionPlan(repetitions=5, channels=channels, size=size, methods=FEW, shares=(0.1,)),
        )
        for channels, size in ((64, 56), (256, 56), (64, 112))
    ),
)
