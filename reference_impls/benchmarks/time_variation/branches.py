"""The branches of a perception system: what they are, and what each frame costs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.models import mtcnn
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.models.lanes import Lanes
from reference_impls.models.vit import saliency_vit_s14
from reference_impls.models.yolov3_tiny import detections, stretched, yolov3_tiny


class Boxes(nn.Module):
    """MTCNN as a branch: the best eight of its boxes, (1, 8, 5), zeros where there are fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = mtcnn.pretrained()

    def forward(self, frame: Tensor) -> Tensor:
        boxes = self.detector(frame).boxes[:8]
        return torch.cat([boxes, boxes.new_zeros(8 - len(boxes), 5)])[None]


class Objects(nn.Module):
    """YOLOv3-tiny as a branch, a detector of one stage: (boxes, 5), with the scores."""

    fixed_work = True

    def __init__(self) -> None:
        super().__init__()
        self.network = yolov3_tiny().folded().requires_grad_(False)

    def forward(self, frame: Tensor) -> Tensor:
        (found,) = detections(self.network(stretched(frame)))
        return torch.cat([found.boxes, found.scores[:, None]], 1)


class Fixed(nn.Module):
    """EfficientNet-Lite0 as a branch of fixed work, in the place of a segmentation: its logits."""

    fixed_work = True

    def __init__(self) -> None:
        super().__init__()
        self.network = efficientnet_lite0().eval()

    def forward(self, frame: Tensor) -> Tensor:
        return self.network(normalise(frame))  # type: ignore[no-any-return]


class Saliency(nn.Module):
    """The saliency ViT as a branch, in the place of a segmentation: what stands out, on 224 x 224 pixels."""

    fixed_work = True

    def __init__(self) -> None:
        super().__init__()
        self.network = saliency_vit_s14().eval()

    def forward(self, frame: Tensor) -> Tensor:
        return self.network(nn.functional.interpolate(frame, (224, 224), mode="bilinear"))  # type: ignore[no-any-return]


BRANCHES: Mapping[str, Callable[[], nn.Module]] = {"detector": Boxes, "fixed work": Fixed, "lanes": Lanes}
MODELS = "EfficientNet-Lite0 (fixed work), MTCNN (windows), lines by votes (edge points)"


def macs_of(branch: nn.Module, frames: Tensor) -> list[int]:
    """MACs of a branch on each of the frames (T, 3, H, W); counted once where its work is the same for all."""
    found = []
    for frame in frames[:1] if getattr(branch, "fixed_work", False) else frames:
        with torch.no_grad(), count() as tally:
            branch(frame[None])
        found.append(tally.macs)
    return found if len(found) == len(frames) else found * len(frames)


def latencies(branch: nn.Module, frames: Tensor) -> list[float]:
    """Milliseconds that a branch takes for each of the frames (T, 3, H, W), one after the other."""
    taken = []
    with torch.no_grad():
        branch(frames[:1])
        for frame in frames:
            begin = time.perf_counter()
            branch(frame[None])
            taken.append((time.perf_counter() - begin) * 1000)
    return taken
