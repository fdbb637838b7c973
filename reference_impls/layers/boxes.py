"""Boxes of detected objects: overlap, suppression, matching of two sets, and what a detector's answers are worth.

A box is (left, top, right, bottom) in pixels; a set of detections holds N boxes with a score and a class each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Detections(NamedTuple):
    """What a detector found in one frame, best first: boxes (N, 4), scores (N,), classes (N,) int64."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def of(self, index: Tensor) -> Detections:
        """Those that an index or a mask picks."""
        return Detections(*(part[index] for part in self))


def nothing(like: Tensor | None = None) -> Detections:
    """An empty set of detections."""
    boxes = torch.zeros(0, 4) if like is None else like.new_zeros(0, 4)
    return Detections(boxes, boxes[:, 0], boxes[:, 0].long())


def area(boxes: Tensor) -> Tensor:
    """(N, 4) -> (N,) in square pixels; 0 for boxes whose ends cross."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Area of each intersection: (N, 4), (M, 4) -> (N, M)."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    return (high - low).clamp(min=0).prod(2)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union: (N, 4), (M, 4) -> (N, M); 0 for two empty boxes."""
    shared = shared_area(a, b)
    return shared / (area(a)[:, None] + area(b) - shared).clamp(min=1e-9)


def suppressed(found: Detections, overlap: float = 0.45) -> Detections:
    """Non-maximum suppression: of boxes of one class that overlap by more than `overlap` the best one stays."""
    found = found.of(found.scores.argsort(descending=True, stable=True))
    beaten = (iou(found.boxes, found.boxes) > overlap) & (found.classes[:, None] == found.classes)
    kept = torch.ones(len(found.scores), dtype=torch.bool)
    for i in range(len(kept)):
        if kept[i]:
            kept[i + 1 :] &= ~beaten[i, i + 1 :].cpu()
    return found.of(kept.to(found.boxes.device))


def matched(found: Detections, truth: Detections, overlap: float = 0.5) -> Tensor:
    """For each detection, best first, the number of the box of `truth` that it finds, or -1: (N,).

    Greedy, by class: a detection takes the box with the largest overlap, of at least `overlap`, that none before took.
    """
    overlaps = iou(found.boxes, truth.boxes) * (found.classes[:, None] == truth.classes)
    taken = torch.full((len(found.scores),), -1)
    if not overlaps.numel():
        return taken
    for i in found.scores.argsort(descending=True, stable=True).tolist():
        best, which = overlaps[i].max(0)
        if best >= overlap:
            taken[i] = which
            overlaps[:, which] = 0
    return taken


def agreement(found: Sequence[Detections], truth: Sequence[Detections], overlap: float = 0.5) -> Tensor:
    """For each frame how many detections are right, and how many boxes both sets hold together: (T, 2), int64."""
    hits = [int((matched(a, b, overlap) >= 0).sum()) for a, b in zip(found, truth, strict=True)]
    both = [len(a.scores) + len(b.scores) for a, b in zip(found, truth, strict=True)]
    return torch.tensor([hits, both]).T


def f1(found: Sequence[Detections], truth: Sequence[Detections], overlap: float = 0.5) -> float:
    """F1 over frames: 2 TP / (found + true); 1 where there was nothing to find and nothing was found."""
    hits, both = agreement(found, truth, overlap).sum(0).tolist()
    return 2 * hits / both if both else 1.0


def average_precision(found: Sequence[Detections], truth: Sequence[Detections], overlap: float = 0.5) -> float:
    """Area under precision over recall, over all frames and classes together; precision is made monotone.

    `found` should hold detections of low scores too. NaN where `truth` holds nothing.
    """
    true = sum(len(b.scores) for b in truth)
    if not true:
        return float("nan")
    scores = torch.cat([a.scores for a in found])
    hits = torch.cat([matched(a, b, overlap) >= 0 for a, b in zip(found, truth, strict=True)])
    hits = hits[scores.argsort(descending=True, stable=True).cpu()].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    return float((envelope * hits).sum() / true)
