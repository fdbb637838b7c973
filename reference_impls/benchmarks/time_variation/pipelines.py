"""The frames of the perspectives, and the pipelines that run on them: a step for each frame, cut into stages."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from reference_impls.benchmarks.time_variation.conditions import Step, VariationPlan
from reference_impls.contract import Handle
from reference_impls.data import video
from reference_impls.models import mtcnn, vit
from reference_impls.models.efficientnet_lite import normalise
from reference_impls.models.lanes import Lanes
from reference_impls.variation import Profiler


def scenes(plan: VariationPlan) -> list[Tensor]:
    """Frames (1, 3, H, W) of several clips by turns, so that the scene changes with every frame."""
    each = -(-plan.frames // len(plan.clips))
    found = [video.clip(name, min(each, 60), plan.size) for name in plan.clips]
    return [found[n % len(found)][n // len(found) % len(found[n % len(found)])][None] for n in range(plan.frames)]


def fitted_and_tried(plan: VariationPlan) -> tuple[list[int], list[int]]:
    """Which of the `scenes` a predictor is fitted to and which it is tried on: rounds through the clips by turns."""
    rounds = [n // len(plan.clips) % 2 for n in range(plan.frames)]
    return [n for n, r in enumerate(rounds) if r == 0], [n for n, r in enumerate(rounds) if r == 1]


def described(plan: VariationPlan) -> str:
    height, width = plan.size
    return f"{plan.frames} frames of {', '.join(plan.clips)} at {width} x {height} pixels"


def faces(detector: mtcnn.MTCNN, frame: Tensor) -> Step:
    """A two-stage detector on a frame; its result is the number of windows and of faces."""

    def run(profiler: Profiler) -> tuple[int, int, int]:
        with profiler.stage("propose"):
            proposals = detector.propose(frame)
        with profiler.stage("refine"):
            kept = detector.refine(frame, proposals)
        with profiler.stage("conclude"):
            boxes = detector.conclude(frame, kept)
        return len(proposals), len(kept), len(boxes)

    return Step(run)


def classified(network: nn.Module, frame: Tensor, get: Callable[[Profiler], Tensor] | None = None) -> Step:
    """A network of fixed work on a frame; its result is the most likely class."""

    def run(profiler: Profiler) -> int:
        x = frame if get is None else get(profiler)
        with profiler.stage("prepare"):
            x = normalise(x)
        with profiler.stage("network"):
            return int(network(x).argmax())

    return Step(run)


def merged(merging: Handle, frame: Tensor) -> Step:
    """A vision transformer whose similar tokens merge, on a frame; its result is the number of tokens that are left."""

    def run(profiler: Profiler) -> int:
        with profiler.stage("prepare"):
            x = vit.imagenet_normalise(nn.functional.interpolate(frame, (224, 224), mode="bilinear"))
        with profiler.stage("network"):
            merging.target(x)
        return int(merging.trace["tokens"][-1][1])

    return Step(run)


def lines(finder: Lanes, frame: Tensor) -> Step:
    """A lane finder that works on raw points; its result is the number of edge points."""

    def run(profiler: Profiler) -> int:
        with profiler.stage("points"):
            points = finder.points(frame)
        with profiler.stage("lines"):
            finder.lines_of(points, frame.shape[-2:])
        return len(points)

    return Step(run)
