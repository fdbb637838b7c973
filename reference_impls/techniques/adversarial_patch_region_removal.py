"""Adversarial patch region removal: find, test and take out the region in which a patch works.

References
- han-2024-real, "Real-Time Robust Video Object Detection System Against Physical-World Adversarial Attacks" (Themis),
  arXiv 2208.09195, and its ancestor han-2021-scalecert, arXiv 2110.14120. Their full texts could not be read: the rule
  below is a reconstruction from the abstracts, and its thresholds are the atlas's own.

The idea. A patch acts through a small region that dominates the shallow features (superficial important neurons), and
what it does to the predictions is not robust. So: (1) windows that hold an unusual share of those neurons are proposed,
all of them scored from one integral image; (2) a proposal is verified by filling it: if detections appear or vanish
elsewhere, the region was at work; (3) the answer is that of the frame with the confirmed regions filled.

The redundancy. Overlapping windows share their sums; the shallow features are those of the detector's own pass; and a
fill changes only what it reaches, so verification is incremental (`incremental_region_inference`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.preparation import prepares
from reference_impls.contract import (
    Choice,
    Given,
    Handle,
    Integer,
    Number,
    Redundancy,
    Setting,
    Switch,
    Technique,
    UnsupportedHost,
    check_tensor,
    warn_no_effect,
)
from reference_impls.layers.boxes import Detections, area, matched, shared_area
from reference_impls.techniques.incremental_region_inference import IncrementalNetwork, Reference

Place = tuple[int, int]
"""(top, left) of a window."""
Decode = Callable[..., list[Detections]]
SAMPLE = 7
"""The quantile of the activations is taken from every 7th of them."""


# --------------------------------------------------------------------------------------------------------------------
# 1. Proposals


def important(activations: Tensor, share: float) -> Tensor:
    """How many of a position's activations are among the largest `share` of all: (C, h, w) -> (h, w), int32.

    Negative activations count as zero, as after a ReLU. The bound is the quantile of every seventh activation.
    """
    sample = _every(activations, SAMPLE).float()
    bound = sample.kthvalue(max(1, round((1 - share) * len(sample)))).values.clamp(min=torch.finfo(torch.float32).tiny)
    return (activations >= bound.to(activations.dtype)).sum(0, dtype=torch.int32)


def _every(activations: Tensor, step: int) -> Tensor:
    """`activations.flatten()[::step]`, without a copy of all where channels come last in memory."""
    if activations.is_contiguous():
        return activations.flatten()[::step]
    positions = activations.permute(1, 2, 0).reshape(-1, len(activations))  # (h w, C)
    firsts = [-c * len(positions) % step for c in range(len(activations))]
    return torch.cat([positions[first::step, c] for c, first in enumerate(firsts)])


def window_sums(marks: Tensor, size: int) -> Tensor:
    """Sum of the marks in every window of `size` x `size`, from an integral image: (h - size + 1, w - size + 1)."""
    integral = F.pad(marks.cumsum(0).cumsum(1), (1, 0, 1, 0))
    below, above = integral[size:], integral[:-size]
    return below[:, size:] - below[:, :-size] - above[:, size:] + above[:, :-size]


def local_maxima(sums: Tensor, size: int, least: float, count: int) -> list[tuple[int, Place]]:
    """The largest sums, of at least `least` and at most `count` of them, whose windows do not overlap; best first."""
    left, found = sums.clone(), list[tuple[int, Place]]()
    while len(found) < count:
        best = int(left.argmax())
        y, x = divmod(best, left.shape[1])
        value = int(left[y, x])
        if value < max(least, 1):
            break
        found.append((value, (y, x)))
        left[max(0, y - size + 1) : y + size, max(0, x - size + 1) : x + size] = -1
    return found


def proposed(activations: Tensor, frame: Tensor, share: float, window: int, least: float, count: int) -> list[Place]:
    """Windows of `window` pixels of the frame that hold at least `least` of all important neurons, best first.

    activations: (1, C, h, w). frame: (1, C, H, W). Empty where the frame is smaller than a window.
    """
    stride = frame.shape[2] / activations.shape[2]
    size = max(1, round(window / stride))
    height, width = frame.shape[2:]
    if min(activations.shape[2:]) < size or min(height, width) < window:
        return []
    marks = important(activations[0], share)
    found = local_maxima(window_sums(marks, size), size, least * float(marks.sum()), count)
    return [(min(round(y * stride), height - window), min(round(x * stride), width - window)) for _, (y, x) in found]


# --------------------------------------------------------------------------------------------------------------------
# 2. Verification, and 3. recovery


def fill(frame: Tensor, place: Place, size: Sequence[int], how: str) -> Tensor:
    """What stands in the place of a window: (1, C, h, w).

    "neutral": grey. "inpaint": Coons's patch between the pixels just outside, which meets all four sides.
    """
    h, w = size
    if how == "neutral":
        return frame.new_full((1, frame.shape[1], h, w), 0.5)
    rows, columns = (  # of the window and the pixels around it
        torch.arange(first - 1, first + length + 1, device=frame.device).clamp(0, n - 1)
        for first, length, n in zip(place, size, frame.shape[2:], strict=True)
    )
    padded = frame[:, :, rows[:, None], columns]
    north, south, west, east = (
        padded[..., :1, 1:-1],
        padded[..., -1:, 1:-1],
        padded[..., 1:-1, :1],
        padded[..., 1:-1, -1:],
    )
    v = torch.linspace(0, 1, h + 2, dtype=frame.dtype, device=frame.device)[1:-1, None]
    u = torch.linspace(0, 1, w + 2, dtype=frame.dtype, device=frame.device)[1:-1]
    corners = [padded[..., y : y + 1, x : x + 1] for y in (0, h + 1) for x in (0, w + 1)]
    bilinear = (1 - v) * ((1 - u) * corners[0] + u * corners[1]) + v * ((1 - u) * corners[2] + u * corners[3])
    return (1 - v) * north + v * south + (1 - u) * west + u * east - bilinear


def unstable(before: Detections, after: Detections, regions: Tensor, threshold: float, margin: float) -> int:
    """How many detections appear or vanish elsewhere when regions (R, 4), or one (4,), are filled.

    before, after: down to a score of threshold - margin; a detection counts from `threshold` on and must have no
    partner in the other set, however weak. Appeared boxes count anywhere; vanished ones where the regions cover nothing
    of them, because what hides part of an object may well make it vanish.
    """
    appeared = (matched(after, before) < 0) & (after.scores >= threshold).cpu()
    shared = shared_area(before.boxes, regions.view(-1, 4).to(before.boxes))
    touched = (shared > 0.01 * area(before.boxes)[:, None]).any(1)
    vanished = (matched(before, after) < 0) & ((before.scores >= threshold) & ~touched).cpu()
    return int(appeared.sum() + vanished.sum())


class PatchDefence(nn.Module):
    """A detector with the defence: call it with one frame (1, C, H, W), as the detector.

    `proposals`, `confirmed` and `macs` tell of the last frame: windows tried, windows filled, MACs beyond the
    detector's own.
    """

    def __init__(self, target: Any, decode: Decode | None, **knobs: Any) -> None:
        super().__init__()
        decode = decode or getattr(target, "decode", None)
        if not callable(decode):
            needs = "a detector with decode(result, threshold), which gives the detections of each frame, or decode=..."
            raise UnsupportedHost(AdversarialPatchRegionRemoval.id, target, needs)
        try:
            self.network = IncrementalNetwork(target, knobs.pop("frame_shape"))
        except UnsupportedHost as error:
            raise UnsupportedHost(
                AdversarialPatchRegionRemoval.id, target, str(error).partition("it needs ")[2]
            ) from error
        self.decode, self.knobs = decode, knobs
        self.proposals, self.confirmed, self.macs, self.constants = list[Place](), list[Place](), 0, 0
        self.eval()

    @torch.no_grad()
    def forward(self, frame: Tensor) -> Any:
        """The detector's result for the frame with all confirmed windows filled."""
        if self.knobs["windows"] == 0:
            return self.network.model(frame)
        known = len(self.network.graphs)
        reference = self.network.reference(frame)
        self.constants = reference.graph.constant_macs * (len(self.network.graphs) == known)
        self.proposals = self.propose(reference, frame)
        result, self.confirmed = self.removed(reference, frame, self.proposals)
        self.macs = reference.macs
        return result

    def propose(self, reference: Reference, frame: Tensor) -> list[Place]:
        """Windows to verify."""
        k = self.knobs
        return proposed(reference.shallow(k["block"]), frame, k["share"], k["window"], k["least"], k["windows"])

    def removed(self, reference: Reference, frame: Tensor, places: Sequence[Place]) -> tuple[Any, list[Place]]:
        """The result without the windows that prove to be at work, and those windows."""
        if not places:
            return reference.result, []
        k, side = self.knobs, self.knobs["window"]
        weak = k["threshold"] - k["margin"]
        before = self.decode(reference.result, weak)[0]
        regions = torch.tensor([[x, y, x + side, y + side] for y, x in places])
        if k["jointly"] and self._together_cheaper(reference, places):
            after = self.decode(self.filled(reference, frame, places), weak)
            if not unstable(before, after[0], regions, k["threshold"], k["margin"]):
                return reference.result, []
        crops = torch.cat([fill(frame, place, (side, side), k["fill"]) for place in places])
        results = reference.replaced(crops, places)
        after = self.decode(results, weak)
        at_work = [
            n for n, (one, region) in enumerate(zip(after, regions, strict=True))
            if unstable(before, one, region, k["threshold"], k["margin"])
        ]  # fmt: skip
        confirmed = [places[n] for n in at_work]
        if len(at_work) == 1:
            return _one(results, at_work[0]), confirmed
        return (self.filled(reference, frame, confirmed) if confirmed else reference.result), confirmed

    def _together_cheaper(self, reference: Reference, places: Sequence[Place]) -> bool:
        """Whether one variant with all windows filled takes fewer MACs than one for each."""
        side = self.knobs["window"]
        top, left, bottom, right = enclosing(places, side)
        return reference.planned([(top, left)], (bottom - top, right - left)) < reference.planned(places, (side, side))

    def filled(self, reference: Reference, frame: Tensor, places: Sequence[Place]) -> Any:
        """The result for the frame with all these windows filled, in one variant."""
        side = self.knobs["window"]
        top, left, bottom, right = enclosing(places, side)
        crop = frame[:, :, top:bottom, left:right].clone()
        for place in places:
            y, x = place[0] - top, place[1] - left
            crop[:, :, y : y + side, x : x + side] = fill(frame, place, (side, side), self.knobs["fill"])
        return reference.replaced(crop, [(top, left)])


def enclosing(places: Sequence[Place], side: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the rectangle around windows."""
    tops, lefts = zip(*places, strict=True)
    return min(tops), min(lefts), max(tops) + side, max(lefts) + side


def _one(results: Any, n: int) -> Any:
    """The result of one variant."""
    if isinstance(results, Tensor):
        return results[n : n + 1]
    return type(results)(_one(part, n) for part in results)


@prepares("calibration")
@torch.no_grad()
def calibrated(
    network: IncrementalNetwork, frames: Sequence[Tensor], knobs: Mapping[str, Any], windows: float
) -> float:
    """The least share at which clean frames propose `windows` windows each, in the mean.

    frames: each (1, C, H, W), without a patch. The budget is stated, not the threshold.
    """
    shares = []
    for frame in frames:
        activations = network.reference(frame).shallow(knobs["block"])
        marks = important(activations[0], knobs["share"])
        size = max(1, round(knobs["window"] * activations.shape[2] / frame.shape[2]))
        found = local_maxima(window_sums(marks, size), size, 0, knobs["windows"])
        shares += [value / max(1, int(marks.sum())) for value, _ in found]
    allowed = round(windows * len(frames))
    return 1.0 if not shares else sorted(shares, reverse=True)[min(allowed, len(shares) - 1)] + 1e-9


class AdversarialPatchRegionRemoval(Technique):
    """Themis's rule as reconstructed here (han-2024-real), before a detector."""

    id = "adversarial-patch-region-removal"
    execution = "real"
    knobs: ClassVar = {
        "windows": Integer(8, low=0, about="windows that are verified in a frame, at most; 0 switches the defence off"),
        "least": Number(0.01, low=0, high=1, about="least share of the important neurons that a proposed window holds"),
        "window": Integer(24, low=1, about="side of the windows in pixels"),
        "share": Number(0.01, low=0, high=1, low_open=True, about="share of the shallow activations that is important"),
        "block": Integer(1, low=1, about="the convolution, with what follows it, that counts as shallow"),
        "threshold": Number(0.5, low=0, high=1, about="score from which on a detection counts"),
        "margin": Number(0.2, low=0, high=1, about="by how much a score must change for a window to be at work"),
        "jointly": Switch(
            False,
            about="fill all windows at once first where that is cheaper, and each alone only if it changes something",
        ),
        "fill": Choice("neutral", options=("neutral", "inpaint"), about="what stands in the place of a window"),
        "decode": Given(
            None,
            form="function",
            about="function (result, threshold) -> detections of each frame; None: the model's own",
        ),
        "frame_shape": Given(
            None,
            form="sizes",
            about="shape (1, C, H, W) of the frames on which the model is checked; None: small square ones",
        ),
    }
    waivers: ClassVar = {
        "execution-is-as-declared": "A defence adds work to the detector; what it saves is counted against full passes."
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("off", {"windows": 0}, off=True),
            Setting("8 windows", {"windows": 8, "least": 0.02, "window": 8}, adaptive=True),
            Setting("1 window", {"windows": 1, "least": 0.02, "window": 8}, adaptive=True),
        ]

    def measure(self, target: Any, inputs: Tensor) -> Redundancy:
        """Largest share of the important neurons of the first block in one window of 8 pixels, of a frame (1, C, H, W).

        1 where one window holds everything that counts, and the rest of the frame is irrelevant to what it does.
        """
        check_tensor("inputs", inputs, "1 C H W")
        network = IncrementalNetwork(target)
        activations = network.reference(inputs).shallow(1)
        marks = important(activations[0], 0.01)
        size = max(1, round(8 * activations.shape[2] / inputs.shape[2]))
        value = int(window_sums(marks, size).max()) / max(1, int(marks.sum()))
        return Redundancy(value, "share of the important shallow neurons in one window")

    def attach(self, target: Any, **knobs: Any) -> Handle:
        """A `PatchDefence` in the place of `target`, which stays as it is; call it with a frame (1, C, H, W) at a time.

        Raises: UnsupportedHost for a model that is no detector or cannot be recorded; ValueError for a margin that is
        not below the threshold.
        """
        if knobs["margin"] >= knobs["threshold"] > 0:
            raise ValueError(f"margin must be below threshold, {knobs['threshold']}, got {knobs['margin']}")
        defence = PatchDefence(target, **knobs)
        if knobs["windows"] == 0:
            warn_no_effect(self.id, "no window is verified")

        def trace() -> dict[str, Any]:
            told = {"proposals": tuple(defence.proposals), "confirmed": tuple(defence.confirmed)}
            return told | {"macs": defence.macs, "constants": defence.constants}

        return Handle(defence, trace=trace)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Minus the MACs of verification and recovery: sum over layers of MACs per position x positions reached."""
        return int(trace["constants"] - trace["macs"])
