"""Defences beside the technique's own: its parts alone, others' and exhaustive ones, and the same by full passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.contract import generator
from reference_impls.layers.boxes import Detections
from reference_impls.models.yolov3_tiny import detections
from reference_impls.techniques.adversarial_patch_region_removal import (
    AdversarialPatchRegionRemoval,
    PatchDefence,
    Place,
)

DEFENCE = AdversarialPatchRegionRemoval()
Detect = Callable[[Tensor], Detections]
"""From a frame (1, 3, H, W) to what is in it."""
FULL, ALL_PASSES, NONE, NEUTRAL = "the detector alone", "full passes", "attacked, no defence", "filled with grey"
AT_ONCE = "all windows at once first"
DENSITY, CHANCE, GRADIENTS, EVERYWHERE = (
    "proposals only", "windows at random", "local gradients smoothing", "exhaustive occlusion"
)  # fmt: skip


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

    def planned(self, places: Sequence[Place], size: tuple[int, int]) -> int:
        """Full passes."""
        return len(places)

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


def bare(model: nn.Module) -> Detect:
    """The detector alone."""
    return lambda frame: detections(torch.no_grad()(model)(frame))[0]


def defended(model: nn.Module, kind: type[PatchDefence] = PatchDefence, **knobs: Any) -> Detect:
    """The detector with a defence."""
    defence = made(model, kind, **knobs)
    return lambda frame: detections(defence(frame))[0]


def beside(model: nn.Module, **knobs: Any) -> dict[str, Detect]:
    """What the defence with these knobs is compared with, by name."""
    alone = bare(model)
    return {
        NONE: alone,
        GRADIENTS: lambda frame: alone(smoothed(frame)),
        NEUTRAL: defended(model, **knobs | {"fill": "neutral"}),
        AT_ONCE: defended(model, **knobs | {"jointly": True}),
        DENSITY: defended(model, Unverified, **knobs),
        CHANCE: defended(model, Chance, **knobs),
    }
