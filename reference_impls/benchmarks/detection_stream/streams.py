"""Ways of detecting in a stream, frame by frame: each is a `Stream`, a call with `reset`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reference_impls.contract import Handle
from reference_impls.layers.boxes import Detections
from reference_impls.layers.motion import luma, moved_boxes
from reference_impls.models.yolov3_tiny import YOLOv3Tiny, detections
from reference_impls.techniques.adversarial_patch_region_removal import PatchDefence, Place
from reference_impls.techniques.key_frame_feature_propagation import BLOCK, SCALE, KeyFrames

THRESHOLD = 0.5
"""Score from which on a detection counts."""
UNSURE = (0.3, 0.7)
"""Scores near the threshold, which may well cross it in the next frame."""


class Stream(Protocol):
    """Detections in frames (1, 3, H, W) that come one after the other."""

    def reset(self) -> None:
        """Forget the frames so far."""

    def __call__(self, frame: Tensor) -> Detections:
        """What is in the next frame."""


class Frames:
    """Every frame through a model, which may itself follow the stream (an applied technique)."""

    def __init__(self, model: nn.Module | Handle) -> None:
        self.handle = model if isinstance(model, Handle) else Handle(model)

    def reset(self) -> None:
        self.handle.reset()

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Detections:
        return detections(self.handle.target(frame), THRESHOLD)[0]


class Difference:
    """Frame difference filtering (kang-2017-noscope): frames near the last processed one get its answer.

    limit: mean squared difference of brightness, relative to its variance in the processed frame.
    """

    def __init__(self, model: nn.Module, limit: float) -> None:
        self.model, self.limit = model, limit
        self.reset()

    def reset(self) -> None:
        self.known: Tensor | None = None

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Detections:
        small = luma(frame, SCALE)
        if self.known is None or float((small - self.known).square().mean() / self.known.var()) > self.limit:
            self.known, self.answer = small, detections(self.model(frame), THRESHOLD)[0]
        return self.answer


class MovedBoxes:
    """Key frames whose boxes, not features, move with the blocks below them (zhu-2018-euphrates).

    `short` and `long`: frames to the next key frame, after one with and without a score near the threshold.
    """

    def __init__(self, detect: Callable[[Tensor], Detections], short: int, long: int, cut: float = 0.3) -> None:
        self.detect, self.short, self.long, self.cut = detect, short, long, cut
        self.reset()

    def reset(self) -> None:
        self.keys = KeyFrames(1, self.cut)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Detections:
        flow = self.keys.next(frame)
        if flow is None:
            self.found = self.detect(frame)
            low, high = UNSURE
            unsure = bool(((self.found.scores > low) & (self.found.scores < high)).any())
            self.keys.interval = self.short if unsure else self.long
        moved = self.found if flow is None else self.moved(flow)
        return moved.of(moved.scores >= THRESHOLD)

    def moved(self, flow: Tensor) -> Detections:
        """The boxes of the key frame at the places of the current one."""
        return self.found._replace(boxes=moved_boxes(self.found.boxes, flow, SCALE * BLOCK))


def weak(model: nn.Module) -> Callable[[Tensor], Detections]:
    """Detections down to the lower end of `UNSURE`."""
    return lambda frame: detections(model(frame), UNSURE[0])[0]


class Themis:
    """The whole system: key frames through the detector with its defence, boxes moved in between.

    Windows that were verified and did nothing are not verified again while their pixels stay as they were, for `keep`
    key frames at the most. A patch that comes between key frames meets no network before the next one; one that lies
    in a window that was cleared before it did anything is met after `keep` key frames at the latest.
    """

    def __init__(self, defence: PatchDefence, short: int = 2, long: int = 3, keep: int = 10) -> None:
        self.defence, self.keep = defence, keep
        self.boxes = MovedBoxes(self._defended, short, long)
        self.reset()

    def reset(self) -> None:
        self.boxes.reset()
        self.cleared = list[tuple[Place, Tensor, int]]()
        self.windows = list[int]()
        self.removed = list[list[Place]]()

    def __call__(self, frame: Tensor) -> Detections:
        return self.boxes(frame)

    @torch.no_grad()
    def _defended(self, frame: Tensor) -> Detections:
        defence, side = self.defence, self.defence.knobs["window"]
        reference = defence.network.reference(frame)
        self.cleared = [
            (place, pixels, left - 1)
            for place, pixels, left in self.cleared
            if left > 0 and float((window(frame, place, side) - pixels).abs().mean()) <= 0.02
        ]
        known = {place for place, _, _ in self.cleared}
        new = [place for place in defence.propose(reference, frame) if not near(place, known, side // 4)]
        result, confirmed = defence.removed(reference, frame, new)
        harmless = [place for place in new if place not in confirmed]
        self.cleared += [(place, window(frame, place, side).clone(), self.keep) for place in harmless]
        self.windows.append(len(new))
        self.removed.append(confirmed)
        return detections(result, UNSURE[0])[0]


def window(frame: Tensor, place: Place, side: int) -> Tensor:
    """The pixels of a window."""
    return frame[..., place[0] : place[0] + side, place[1] : place[1] + side]


def near(place: Place, others: Any, distance: int) -> bool:
    """Whether one of the others begins within a distance on both axes."""
    return any(max(abs(place[0] - y), abs(place[1] - x)) <= distance for y, x in others)


def followed(stream: Stream, frames: Sequence[Tensor]) -> list[Detections]:
    """What a fresh stream finds in frames."""
    stream.reset()
    return [stream(frame) for frame in frames]


def fast(model: YOLOv3Tiny) -> YOLOv3Tiny:
    """The fastest native form, frozen."""
    return model.folded().requires_grad_(False)
