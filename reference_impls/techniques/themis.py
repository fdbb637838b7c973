"""Themis: detection in live video that finds and removes adversarial patches, and leaves out what it did before.

References
- han-2024-real, "Real-Time Robust Video Object Detection System Against Physical-World Adversarial Attacks",
  arXiv 2208.09195. Its full text could not be read: what is composed here is a reconstruction from the abstract, and
  every threshold is the atlas's own.

Three techniques make the system, and each can be used alone:
- `adversarial_patch_region_removal` proposes and verifies windows, and removes those at work, on key frames;
- `incremental_region_inference` verifies them at the cost of what a window reaches;
- `key_frame_feature_propagation`, in the form that moves boxes, answers for the frames in between.

Added here is the memory across key frames: a window that was verified and did nothing is not verified again while its
pixels stay, for a number of key frames at the most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.contract import (
    Choice,
    Given,
    Handle,
    Integer,
    Number,
    Redundancy,
    Setting,
    Technique,
    UnsupportedHost,
    warn_no_effect,
)
from reference_impls.layers.boxes import Detections
from reference_impls.redundancy.temporal_similarity import temporal_similarity
from reference_impls.techniques.adversarial_patch_region_removal import (
    AdversarialPatchRegionRemoval,
    PatchDefence,
    Place,
)
from reference_impls.techniques.key_frame_feature_propagation import UNSURE, MovedBoxes

SAME = 0.02
"""Mean difference of a window's pixels, in [0, 1], up to which they count as those that were cleared."""


class ThemisDetector(nn.Module):
    """The whole system: key frames through a detector with its defence, boxes moved in between.

    Call it with one frame (1, C, H, W) after the other; it gives the frame's `Detections`, which `decode` filters by
    score, so that it stands in a detector's place. `reset` begins a new stream; one thread follows a stream.

    Exposure: a patch that comes between key frames meets no network before the next one, at most `long` frames later;
    one that lies in a window that was cleared before it did anything is met after `keep` key frames at the latest.
    `windows` and `removed` tell of each key frame how many windows were verified, and which were removed.
    """

    def __init__(self, defence: PatchDefence, short: int = 2, long: int = 3, keep: int = 10, cut: float = 0.3) -> None:
        super().__init__()
        self.defence, self.keep = defence, keep
        self.boxes = MovedBoxes(self._defended, short, long, cut, defence.knobs["threshold"])
        self.eval()
        self.reset()

    def reset(self) -> None:
        """Forget the stream: the next frame is a key frame, and no window is known to be harmless."""
        self.boxes.reset()
        self.shape: torch.Size | None = None
        self.cleared = list[tuple[Place, Tensor, int]]()
        self.windows = list[int]()
        self.removed = list[tuple[Place, ...]]()
        self.dense_macs = self.executed_macs = 0

    @torch.no_grad()
    def forward(self, frame: Tensor) -> Detections:
        """What is in the next frame.

        Raises: TypeError or ValueError for frames of another rank or batch, or that are not finite.
        """
        return self.boxes(frame)

    def decode(self, found: Detections, threshold: float = 0.5) -> list[Detections]:
        """Of what `forward` gives, detections from a score on, as a detector's `decode` does of its raw maps."""
        return [found.of(found.scores >= threshold)]

    def _defended(self, frame: Tensor) -> Detections:
        """Detections of a key frame, confirmed windows removed."""
        defence = self.defence
        weak = min(UNSURE[0], defence.knobs["threshold"])
        known = len(defence.network.graphs)
        reference = defence.network.reference(frame)
        graph = reference.graph
        own = sum(operation.macs for operation in graph.operations)
        self.dense_macs = own + graph.constant_macs
        self.executed_macs += own + graph.constant_macs * (len(defence.network.graphs) > known)
        if defence.knobs["windows"] == 0:
            return defence.decode(reference.result, weak)[0]
        self.cleared = self._still_cleared(frame)
        side = defence.knobs["window"]
        places = [place for place, _, _ in self.cleared]
        new = [place for place in defence.propose(reference, frame) if not near(place, places, side // 4)]
        result, confirmed = defence.removed(reference, frame, new)
        harmless = [place for place in new if place not in confirmed]
        self.cleared += [(place, window(frame, place, side).clone(), self.keep) for place in harmless]
        self.windows.append(len(new))
        self.removed.append(tuple(confirmed))
        self.executed_macs += reference.macs
        return defence.decode(result, weak)[0]

    def _still_cleared(self, frame: Tensor) -> list[tuple[Place, Tensor, int]]:
        """The windows that need not be verified in this key frame, with what they showed and how long that holds."""
        same_size, self.shape = frame.shape == self.shape, frame.shape
        side = self.defence.knobs["window"]
        return [
            (place, pixels, left - 1)
            for place, pixels, left in self.cleared
            if left > 0 and same_size and float((window(frame, place, side) - pixels).abs().mean()) <= SAME
        ]


def window(frame: Tensor, place: Place, side: int) -> Tensor:
    """The pixels of a window: (1, C, side, side)."""
    return frame[..., place[0] : place[0] + side, place[1] : place[1] + side]


def near(place: Place, others: Iterable[Place], distance: int) -> bool:
    """Whether one of the others begins within a distance on both axes."""
    return any(max(abs(place[0] - y), abs(place[1] - x)) <= distance for y, x in others)


class Themis(Technique):
    """The system as reconstructed here (han-2024-real), in the place of a detector."""

    id = "themis"
    execution = "real"
    stateful = True
    knobs: ClassVar = {
        "short": Integer(2, low=1, about="frames to the next key frame after one with a score between 0.3 and 0.7"),
        "long": Integer(3, low=1, about="frames to the next key frame after any other; 1 leaves no frame out"),
        "cut": Number(
            0.3, low=0, about="mean difference, in standard deviations, that motion may leave before a key frame is due"
        ),
        "keep": Integer(10, low=0, about="key frames for which a window that did nothing is not verified again"),
        "windows": Integer(8, low=0, about="windows that are verified in a key frame, at most; 0: no defence"),
        "least": Number(0.01, low=0, high=1, about="least share of the important neurons that a proposed window holds"),
        "window": Integer(24, low=1, about="side of the windows in pixels"),
        "share": Number(0.01, low=0, high=1, low_open=True, about="share of the shallow activations that is important"),
        "threshold": Number(0.5, low=0, high=1, about="score from which on a detection counts"),
        "fill": Choice("inpaint", options=("neutral", "inpaint"), about="what stands in the place of a window"),
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

    def settings(self) -> list[Setting]:
        small = {"windows": 1, "window": 8, "share": 0.002, "least": 0.02}
        return [
            Setting("off", {"short": 1, "long": 1, "windows": 0}, off=True),
            Setting("interval 2", {"short": 2, "long": 2, **small}, adaptive=True),
            Setting("interval 4", {"short": 4, "long": 4, **small}, adaptive=True),
        ]

    def measure(self, target: Any, inputs: Sequence[Tensor]) -> Redundancy:
        """Temporal similarity of successive frames, each (1, C, H, W)."""
        return temporal_similarity(inputs)

    def attach(self, target: Any, short: int, long: int, cut: float, keep: int, **knobs: Any) -> Handle:
        """A `ThemisDetector` in the place of `target`, which stays as it is; call it with one frame at a time.

        target: a detector in eval mode with `decode(result, threshold)`, or with the knob `decode`.
        Raises: UnsupportedHost for a model that is no detector or cannot be recorded; ValueError for a short interval
        that is longer than the long one.
        """
        if short > long:
            raise ValueError(f"short must be at most long, {long}, got {short}")
        others = {n: AdversarialPatchRegionRemoval.knobs[n].default for n in ("block", "margin", "jointly")}
        if 0 < knobs["threshold"] <= others["margin"]:
            raise ValueError(f"threshold must be 0 or above {others['margin']}, got {knobs['threshold']}")
        try:
            defence = PatchDefence(target, **others, **knobs)
        except UnsupportedHost as error:
            raise UnsupportedHost(self.id, target, str(error).partition("it needs ")[2]) from error
        detector = ThemisDetector(defence, short, long, keep, cut)
        if long == 1 and knobs["windows"] == 0:
            warn_no_effect(self.id, "every frame is a key frame, and no window is verified")

        def trace() -> dict[str, Any]:
            told = {"key": tuple(detector.boxes.computed), "windows": tuple(detector.windows)}
            told |= {"removed": tuple(detector.removed)}
            return told | {"dense_macs": detector.dense_macs, "executed_macs": detector.executed_macs}

        return Handle(detector, trace=trace, reset=detector.reset, undo=detector.reset)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """MACs of the detector x all frames - (those of key frames + of verification and recovery)."""
        return int(trace["dense_macs"] * len(trace["key"]) - trace["executed_macs"])
