"""Key frame feature propagation: the heavy part of a network on key frames only, its features moved in between.

References
- zhu-2017-feature, "Deep Feature Flow for Video Recognition", arXiv 1611.07715: f_i(p) = sum_q G(q, p + M(p)) f_k(q),
  with the flow M from the current frame back to the key frame and the bilinear kernel G (equations 2 to 4).
- zhu-2018-euphrates, "Euphrates: Algorithm-SoC Co-Design for Low-Power Mobile Continuous Vision", arXiv 1803.11232:
  block motion moves the boxes themselves.

The idea. Between two key frames a picture hardly changes but for motion, so its features are those of the key frame,
moved. A model is two parts, `features` and `heads`; the first is what costs. Here the flow is found by block matching
and nothing is trained, so the scale map S of the paper is 1. Every frame with too much that no motion explains, such as
the first one after a cut, is a key frame of its own accord.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reference_impls.accounting.count import count, uncounted
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
    check_frame,
    warn_no_effect,
)
from reference_impls.hosts.graph import Unaccounted
from reference_impls.hosts.tracing import compare, copied, probed, quietly
from reference_impls.layers.boxes import Detections, matched
from reference_impls.layers.motion import block_flow, luma, moved_boxes, resized_flow, warped
from reference_impls.redundancy.temporal_similarity import temporal_similarity

NEEDS = "a torch.nn.Module in eval mode whose forward(x) is heads(features(x)), with methods of these names"
SCALE, BLOCK = 2, 8
"""Motion is searched in frames of half the size, for blocks of 8 x 8 of their pixels."""
STILL = 0.1
"""Share of the key frame's standard deviation that a block may differ by and still count as unmoved."""
UNSURE = (0.3, 0.7)
"""Scores near a detector's threshold of 0.5, which may well cross it in the next frame."""


class KeyFrames:
    """Which frames are key frames, and the motion of the others: the state of a stream.

    interval: a key frame comes after so many frames at the latest. cut: it comes at once where the mean difference
    that motion leaves exceeds so many standard deviations of the key frame's brightness.
    """

    def __init__(self, interval: int, cut: float, reach: int = 8) -> None:
        self.interval, self.cut, self.reach = interval, cut, reach
        self.key: Tensor | None = None
        self.age = 0

    def next(self, frame: Tensor) -> Tensor | None:
        """None for a key frame (1, C, H, W); else the flow (2, rows, columns) back to the last one, in pixels.

        A frame of another size than the key frame's is a key frame.
        """
        small = luma(frame.float(), SCALE)
        self.age += 1
        if self.key is not None and self.age < self.interval and small.shape == self.key.shape:
            spread = float(self.key.std(correction=0))
            flow, left = block_flow(self.key, small, block=BLOCK, reach=self.reach, still=STILL * spread)
            if left.numel() and float(left.mean()) <= self.cut * spread:
                return flow * SCALE
        self.key, self.age = small, 0
        return None


class MovedBoxes:
    """Key frames whose boxes, not features, move with the blocks below them (zhu-2018-euphrates).

    detect: detections of a frame (1, C, H, W), down to the lower end of `UNSURE`. short, long: frames to the next key
    frame, after one with and without a score near the threshold. What is given out scores at least `threshold`.
    """

    def __init__(
        self,
        detect: Callable[[Tensor], Detections],
        short: int,
        long: int,
        cut: float = 0.3,
        threshold: float = 0.5,
    ) -> None:
        self.detect, self.short, self.long, self.cut, self.threshold = detect, short, long, cut, threshold
        self.reset()

    def reset(self) -> None:
        """Forget the stream: the next frame is a key frame."""
        self.keys = KeyFrames(1, self.cut)
        self.computed: list[bool] = []

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Detections:
        """What is in the next frame (1, C, H, W). Raises: as `check_frame`, for two frames or pixels not finite."""
        check_frame(frame)
        flow = self.keys.next(frame)
        self.computed.append(flow is None)
        if flow is None:
            self.found = self.detect(frame)
            low, high = UNSURE
            unsure = bool(((self.found.scores > low) & (self.found.scores < high)).any())
            self.keys.interval = self.short if unsure else self.long
        moved = self.found if flow is None else self.moved(flow)
        return moved.of(moved.scores >= self.threshold)

    def moved(self, flow: Tensor) -> Detections:
        """The boxes of the key frame at the places of the current one."""
        return self.found._replace(boxes=moved_boxes(self.found.boxes, flow, SCALE * BLOCK))


ABSENT = 0.15
"""Score of what a detector that was asked for scores from 0.3 on does not report: somewhere below."""


class BoxesBetween:
    """Boxes of the frames between two key frames, from both of them: better than `MovedBoxes`, and late.

    A frame is answered once the next key frame is there, at most `long` - 1 frames later. The boxes of either key frame
    move to the frame along the motion from there to it; those that meet are averaged, and so are all scores, by the
    distance in time. detect, short, long, cut and threshold are those of `MovedBoxes`; what motion does not explain
    from one side is taken from the other, and from neither is detected.
    """

    def __init__(
        self,
        detect: Callable[[Tensor], Detections],
        short: int,
        long: int,
        cut: float = 0.3,
        threshold: float = 0.5,
    ) -> None:
        self.detect, self.short, self.long, self.cut, self.threshold = detect, short, long, cut, threshold
        self.reset()

    def reset(self) -> None:
        """Forget the stream, and the frames that wait for an answer."""
        self.waiting = list[tuple[Tensor, Tensor]]()  # frame and brightness, the first one a key frame
        self.found: Detections | None = None
        self.interval = 1

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> list[Detections]:
        """What is in the frames that the next frame (1, C, H, W) allows to answer: none, or all since the last.

        Raises: as `check_frame`, for two frames or pixels that are not finite.
        """
        check_frame(frame)
        small = luma(frame.float(), SCALE)
        if self.waiting and small.shape != self.waiting[0][1].shape:
            return [*self.finish(), *self(frame)]
        self.waiting.append((frame, small))
        if len(self.waiting) <= self.interval and self.found is not None:
            return []
        first, self.found = self.found, self.detect(frame)
        between = (
            [] if first is None else [self._between(t, first, self.found) for t in range(1, len(self.waiting) - 1)]
        )
        self.waiting = [self.waiting[-1]]
        low, high = UNSURE
        unsure = bool(((self.found.scores > low) & (self.found.scores < high)).any())
        self.interval = self.short if unsure else self.long
        return [*between, self._sure(self.found)]

    @torch.no_grad()
    def finish(self) -> list[Detections]:
        """What is in the frames after the last key frame, from that one alone; then the stream begins anew."""
        first, found = self.found, list[Detections]()
        for t in range(1, len(self.waiting) if first is not None else 0):
            moved = self._moved(0, t, first)
            found.append(self._sure(self.detect(self.waiting[t][0]) if moved is None else moved))
        self.reset()
        return found

    def _between(self, t: int, first: Detections, last: Detections) -> Detections:
        a, b = self._moved(0, t, first), self._moved(-1, t, last)
        if a is None or b is None:
            return self._sure(a or b or self.detect(self.waiting[t][0]))
        return self._sure(averaged(a, b, t / (len(self.waiting) - 1)))

    def _moved(self, key: int, t: int, found: Detections) -> Detections | None:
        """Boxes of a key frame at their places in frame t of those that wait; None if motion does not explain it."""
        known, small = self.waiting[key][1], self.waiting[t][1]
        spread = float(known.std(correction=0))
        flow, left = block_flow(known, small, block=BLOCK, still=STILL * spread)
        if not left.numel() or float(left.mean()) > self.cut * spread:
            return None
        return found._replace(boxes=moved_boxes(found.boxes, flow * SCALE, SCALE * BLOCK))

    def _sure(self, found: Detections) -> Detections:
        return found.of(found.scores >= self.threshold)


def averaged(a: Detections, b: Detections, share: float) -> Detections:
    """The mean of two sets, (1 - share) a + share b, over boxes that meet; the others have only their own box."""
    pair = matched(a, b, 0.4).to(a.boxes.device)
    alone = torch.ones(len(b.scores), dtype=torch.bool, device=pair.device)
    alone[pair[pair >= 0]] = False
    met = pair >= 0
    boxes, scores = a.boxes.clone(), (1 - share) * a.scores + share * ABSENT
    boxes[met] = (1 - share) * a.boxes[met] + share * b.boxes[pair[met]]
    scores[met] = (1 - share) * a.scores[met] + share * b.scores[pair[met]]
    rest = b.of(alone)
    scores = torch.cat((scores, share * rest.scores + (1 - share) * ABSENT))
    both = Detections(torch.cat((boxes, rest.boxes)), scores, torch.cat((a.classes, rest.classes)))
    return both.of(scores.argsort(descending=True, stable=True))


class KeyFrameNetwork(nn.Module):
    """A model that takes the frames of a stream one after the other and runs its features on key frames.

    `model` is a copy of the model as it was. Streams are followed in one thread at a time.
    """

    def __init__(self, target: Any, interval: int, cut: float, warp: str, frame_shape: Sequence[int] | None) -> None:
        super().__init__()
        fits = isinstance(target, nn.Module) and callable(getattr(target, "features", None))
        if not fits or not callable(getattr(target, "heads", None)):
            raise UnsupportedHost(KeyFrameFeaturePropagation.id, target, NEEDS)
        if any(module.training for module in target.modules()):
            raise UnsupportedHost(
                KeyFrameFeaturePropagation.id, target, "a module in eval mode: call model.eval() first"
            )
        self.warp = warp
        self.settings = interval, cut
        try:
            self.model = copied(target)
            with uncounted(), quietly(next((p.device for p in self.model.parameters()), None)):
                recording, frame = probed(self.model, frame_shape)
                compare(recording.result, self.model.heads(self.model.features(frame)))
        except Unaccounted as error:
            raise UnsupportedHost(KeyFrameFeaturePropagation.id, target, str(error)) from error
        self.eval()
        self.reset()

    def reset(self) -> None:
        """Forget the stream: the next frame is a key frame."""
        self.stream = KeyFrames(*self.settings)
        self.stored: Any = None
        self.computed: list[bool] = []
        self.macs = 0

    @torch.no_grad()
    def forward(self, frame: Tensor) -> Any:
        """frame: (1, C, H, W), the next one. Returns what the model returns for it.

        Raises: TypeError or ValueError for frames of another rank or batch, or that are not finite.
        """
        check_frame(frame)
        flow = self.stream.next(frame)
        self.computed.append(flow is None)
        if flow is None:
            if self.macs == 0:
                with count() as tally:
                    self.stored = self.model.features(frame)
                self.macs = tally.macs
            else:
                self.stored = self.model.features(frame)
            return self.model.heads(self.stored)
        size = frame.shape[2:]
        return self.model.heads(pytree.tree_map(lambda f: self._moved(f, flow, size), self.stored))

    def _moved(self, features: Tensor, flow: Tensor, size: Sequence[int]) -> Tensor:
        """Features (1, C, h, w) of the key frame at the places of the current one. flow: in pixels."""
        grid = features.shape[2:]
        strides = flow.new_tensor([n / length for n, length in zip(size, grid, strict=True)])
        shift = resized_flow(flow, grid) / strides[:, None, None]
        if self.warp == "nearest":
            shift = shift.round()
        return warped(features, (shift if self.warp != "none" else shift * 0).to(features.dtype))


class KeyFrameFeaturePropagation(Technique):
    """Deep Feature Flow (zhu-2017-feature) with block motion in the place of the learned flow."""

    id = "key-frame-feature-propagation"
    execution = "real"
    stateful = True
    exploits: ClassVar = {"temporal-frames": {"interval": "interval"}}
    knobs: ClassVar = {
        "interval": Integer(2, low=1, about="frames from one key frame to the next, at most; 1 leaves nothing out"),
        "cut": Number(
            0.3, low=0, about="mean difference, in standard deviations, that motion may leave before a key frame is due"
        ),
        "warp": Choice(
            "bilinear", options=("bilinear", "nearest", "none"), about="how features move; none holds them in place"
        ),
        "frame_shape": Given(
            None,
            form="sizes",
            about="shape (1, C, H, W) of the frames on which the model is checked; None: small square ones",
        ),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("every frame", {"interval": 1}, off=True),
            Setting("interval 2", {"interval": 2}, adaptive=True),
            Setting("interval 4", {"interval": 4}, adaptive=True),
        ]

    def measure(self, target: Any, inputs: Sequence[Tensor]) -> Redundancy:
        """Temporal similarity of successive frames, each (1, C, H, W)."""
        return temporal_similarity(inputs)

    def attach(self, target: Any, interval: int, cut: float, warp: str, frame_shape: Sequence[int] | None) -> Handle:
        """A `KeyFrameNetwork` in the place of `target`, which stays as it is; call it with one frame at a time.

        Raises: UnsupportedHost for a model that is not made of `features` and `heads`.
        """
        network = KeyFrameNetwork(target, interval, cut, warp, frame_shape)
        if interval == 1:
            warn_no_effect(self.id, "every frame is a key frame")
        trace = lambda: {"key": tuple(network.computed), "features_macs": network.macs}  # noqa: E731
        return Handle(network, trace=trace, reset=network.reset, undo=network.reset)

    def saving(self, target: Any, inputs: Any, trace: Mapping[str, Any]) -> int:
        """MACs of the features x frames that are no key frames; motion and warping multiply no matrices."""
        return int(trace["features_macs"]) * (len(trace["key"]) - sum(trace["key"]))
