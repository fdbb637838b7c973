"""Ways of detecting in a stream, frame by frame: each is a `Stream`, a call with `reset`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from reference_impls.contract import Handle
from reference_impls.layers.boxes import Detections
from reference_impls.layers.motion import luma
from reference_impls.models.yolov3_tiny import YOLOv3Tiny, detections
from reference_impls.techniques.incremental_region_inference import IncrementalNetwork, Reference, changed_box
from reference_impls.techniques.key_frame_feature_propagation import SCALE, UNSURE, BoxesBetween

THRESHOLD = 0.5
"""Score from which on a detection counts."""


class Stream(Protocol):
    """Detections in frames (1, 3, H, W) that come one after the other."""

    def reset(self) -> None:
        """Forget the frames so far."""

    def __call__(self, frame: Tensor) -> Detections | list[Detections]:
        """What is in the next frame; of a stream that is late, in the frames that can be answered now."""


class Frames:
    """Every frame through a model, which may itself follow the stream (an applied technique)."""

    def __init__(self, model: nn.Module | Handle) -> None:
        self.handle = model if isinstance(model, Handle) else Handle(model)

    def reset(self) -> None:
        self.handle.reset()

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Detections:
        return detections(self.handle.target(frame), THRESHOLD)[0]


@dataclass(frozen=True)
class Each:
    """A stream without a memory."""

    detect: Callable[[Tensor], Detections]

    def reset(self) -> None:
        """There is nothing to forget."""

    def __call__(self, frame: Tensor) -> Detections:
        return self.detect(frame)


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


class Changed:
    """Incremental inference on a stream: of each frame, what the box of its changes reaches of the last whole frame.

    limit: by how much a pixel must change to count. The box is as wide as everything that moves; once it covers half of
    the frame, the frame is computed as a whole, and the next ones are compared with it.
    """

    def __init__(self, network: IncrementalNetwork, limit: float) -> None:
        self.network, self.limit = network, limit
        self.reset()

    def reset(self) -> None:
        self.frame: Tensor | None = None
        self.reference: Reference | None = None

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Detections:
        if self.reference is not None and self.frame is not None and self.frame.shape == frame.shape:
            seen = torch.where((frame - self.frame).abs() > self.limit, frame, self.frame)
            box = changed_box(self.frame[0], seen[0])
            if box is None:
                return detections(self.reference.result, THRESHOLD)[0]
            top, left, bottom, right = box
            if 2 * (bottom - top) * (right - left) < frame[0, 0].numel():
                crop = frame[:, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
                return detections(self.reference.replaced(crop, [(top, left)]), THRESHOLD)[0]
        self.frame, self.reference = frame, self.network.reference(frame)
        return detections(self.reference.result, THRESHOLD)[0]


def weak(model: nn.Module) -> Callable[[Tensor], Detections]:
    """Detections down to the lower end of `UNSURE`."""
    return lambda frame: detections(model(frame), UNSURE[0])[0]


def followed(stream: Stream, frames: Sequence[Tensor]) -> list[Detections]:
    """What a fresh stream finds in frames."""
    stream.reset()
    return [found for frame in frames for found in answers(stream, frame)] + left_over(stream)


def answers(stream: Stream, frame: Tensor) -> list[Detections]:
    """What a stream answers when a frame comes: one set of detections, or of a late stream none or some."""
    found = stream(frame)
    return found if isinstance(found, list) else [found]


def left_over(stream: Stream) -> list[Detections]:
    """What a late stream answers once no frame comes any more."""
    return stream.finish() if isinstance(stream, BoxesBetween) else []


def fast(model: YOLOv3Tiny) -> YOLOv3Tiny:
    """The fastest native form, frozen."""
    return model.folded().requires_grad_(False)
