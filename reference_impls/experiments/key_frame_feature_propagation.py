"""Experiments of key frame feature propagation, in the benchmark of detection in streams.

- `detector-vtest`: YOLOv3-tiny on a clip of a fixed camera, features or boxes moved, beside a moving camera.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from reference_impls.benchmarks import detection_stream as benchmark
from reference_impls.benchmarks.detection_stream import tasks
from reference_impls.benchmarks.detection_stream.streams import Frames, Stream, weak
from reference_impls.benchmarks.detection_stream.tasks import Method
from reference_impls.study import TECHNIQUE
from reference_impls.techniques.key_frame_feature_propagation import (
    BoxesBetween,
    KeyFrameFeaturePropagation,
    MovedBoxes,
)

KEY_FRAMES = KeyFrameFeaturePropagation()
LATE = "boxes between key frames, late"
BOXES, NEAREST, HELD, UNSURE = "moved boxes", "whole positions", "held features", "moved boxes, sooner when unsure"


def features(model: nn.Module, interval: int, warp: str = "bilinear") -> Stream:
    """Key frames whose features move."""
    return Frames(KEY_FRAMES.apply(model, interval=interval, warp=warp))


def boxes(model: nn.Module, short: int, long: int) -> Stream:
    """Key frames whose boxes move."""
    return MovedBoxes(weak(model), short, long)


def between(model: nn.Module, short: int, long: int) -> Stream:
    """Key frames, and boxes from those before and after."""
    return BoxesBetween(weak(model), short, long)


def methods(intervals: tuple[int, ...]) -> list[Method]:
    """All forms, at each interval."""
    about = {
        NEAREST: "Features move by whole positions, so no two of them are averaged.",
        HELD: "Features stay where they are: the last answer is held.",
        BOXES: "Boxes of the key frame move with the blocks below them (zhu-2018-euphrates), features do not.",
    }
    found = []
    for n in intervals:
        forms: dict[str, Any] = {TECHNIQUE: features, NEAREST: partial(features, warp="nearest")}
        forms |= {HELD: partial(features, warp="none"), BOXES: partial(boxes, short=n, long=n)}
        given: dict[str, dict[str, int]] = {BOXES: {}}
        found += [
            Method(name, partial(form, **given.get(name, {"interval": n})), {"interval": n}, about.get(name, ""))
            for name, form in forms.items()
        ]
    unsure = "Moved boxes, with a key frame after 2 frames where a score lies between 0.3 and 0.7, else after 3."
    late = (
        "Boxes and scores between two key frames are the mean of both, moved: a frame is answered once the next key "
        "frame is there. A key frame comes after 2 frames where a score lies between 0.3 and 0.7, else after interval."
    )
    return [
        *found,
        Method(UNSURE, partial(boxes, short=2, long=3), {"interval": 3}, unsure),
        *(Method(LATE, partial(between, short=2, long=n), {"interval": n}, late) for n in (3, 4)),
    ]


CONTENDERS = {
    "detection-stream/vtest": [
        Method(KEY_FRAMES.id, partial(features, interval=2), {"method": "features moved, interval 2"}),
        Method(KEY_FRAMES.id, partial(boxes, short=2, long=3), {"method": "boxes moved, interval 2 to 3"}),
        Method(KEY_FRAMES.id, partial(between, short=2, long=4), {"method": "boxes between, late, interval 2 to 4"}),
    ]
}
SCENARIOS = (
    benchmark.task(
        "detector-vtest",
        "YOLOv3-tiny on a clip of a fixed camera, on key frames only",
        partial(
            tasks.streams,
            methods=methods((2, 3, 4)),
            knobs=("interval",),
            notes=(
                "Nothing is trained: the flow is block matching, the scale map is 1.",
                "The bounds 0.3 and 0.7 were chosen on frames 300 to 500, averaging on 210 to 410: none is here.",
            ),
        ),
        full=tasks.StreamPlan(clip="vtest", frames=200, timed=12),
        smoke=benchmark.small_stream(),
    ),
)
