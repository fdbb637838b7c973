"""MTCNN, a cascade of three small networks that finds faces: its work depends on how many candidates a picture holds.

References:
  zhang-2016-joint (arXiv 1604.02878): P-Net slides over a pyramid of the picture and proposes windows, R-Net rejects
  most of them, O-Net decides on the rest; each also corrects the boxes. The weights are the authors', converted.

For n windows that P-Net proposes and m that R-Net lets through, the multiply-accumulates are a base for the size of the
picture, plus exactly 1,530,768 n and 12,907,392 m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.data import assets

CELL, STRIDE = 12, 2
"""Side of the window of P-Net, and how far apart two of them are."""
Boxes = Tensor
"""(n, 5): x1, y1, x2, y2 in pixels, and a score in [0, 1]."""


def _conv(channels: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel), nn.PReLU(out))


class PNet(nn.Module):
    """Scores and corrections of every 12 x 12 window, two pixels apart; 6,632 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_conv(3, 10, 3), nn.MaxPool2d(2, 2, ceil_mode=True), _conv(10, 16, 3),
                                      _conv(16, 32, 3))  # fmt: skip
        self.score, self.correction = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) -> scores (H', W'), corrections (4, H', W')."""
        x = self.features(x)
        return self.score(x).softmax(1)[0, 1], self.correction(x)[0]


class _Head(nn.Module):
    """Convolutions on a window of fixed size, a hidden layer, scores and corrections."""

    def __init__(self, features: nn.Sequential, flat: int, hidden: int) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), nn.PReLU(hidden))
        self.score, self.correction = nn.Linear(hidden, 2), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, side, side) -> scores (n,), corrections (n, 4)."""
        x = self.features(x).permute(0, 3, 2, 1).flatten(1)  # the weights come from a library that counts columns first
        x = self.hidden(x)
        return self.score(x).softmax(1)[:, 1], self.correction(x)


def rnet() -> _Head:
    """Decides on windows of 24 x 24; 100,178 parameters."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return _Head(nn.Sequential(_conv(3, 28, 3), pool, _conv(28, 48, 3), pool, _conv(48, 64, 2)), 576, 128)


def onet() -> _Head:
    """Decides on windows of 48 x 48; 386,470 parameters without the head for eyes, nose and mouth."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    last = nn.MaxPool2d(2, 2, ceil_mode=True)
    convolutions = (_conv(3, 32, 3), pool, _conv(32, 64, 3), pool, _conv(64, 64, 3), last, _conv(64, 128, 2))
    return _Head(nn.Sequential(*convolutions), 1152, 256)


@dataclass(frozen=True)
class Found:
    """What the cascade found in a picture, and how many windows came how far."""

    boxes: Boxes
    proposed: int
    """By P-Net; each is a window for R-Net."""
    kept: int
    """By R-Net; each is a window for O-Net."""


class MTCNN(nn.Module):
    """The cascade. smallest: side of the smallest face in pixels. thresholds: of the three networks."""

    def __init__(
        self, *, smallest: int = 20, factor: float = 0.709, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    ) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), rnet(), onet()
        self.smallest, self.factor, self.thresholds = smallest, factor, thresholds

    def forward(self, image: Tensor) -> Found:
        """image: (1, 3, H, W), RGB in [0, 1]. Raises: ValueError for another shape or a picture without pixels."""
        if image.ndim != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
            raise ValueError(f"one picture (1, 3, H, W) is needed, got {tuple(image.shape)}")
        return self.decide(image, self.propose(image))

    def decide(self, image: Tensor, proposals: Boxes) -> Found:
        """What R-Net and O-Net make of the proposals of P-Net."""
        kept = self.refine(image, proposals)
        return Found(self.conclude(image, kept), len(proposals), len(kept))

    def scales(self, height: int, width: int) -> list[float]:
        """Of the pyramid: the smallest face fills a window of P-Net, and each level is smaller by the factor."""
        scale, found = CELL / self.smallest, []
        while min(height, width) * scale >= CELL:
            found.append(scale)
            scale *= self.factor
        return found

    def propose(self, image: Tensor) -> Boxes:
        """Windows of P-Net whose score passes, the best of each neighbourhood, made square; the best first."""
        height, width = image.shape[-2:]
        found = [
            self._of_level(_resized(image, int(height * s + 1), int(width * s + 1)), s)
            for s in self.scales(height, width)
        ]
        boxes = torch.cat([image.new_zeros(0, 9), *found])
        boxes = boxes[nms(boxes, 0.7)]
        sides = torch.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]] * 2, 1)
        return _square(torch.cat([boxes[:, :4] + boxes[:, 5:] * sides, boxes[:, 4:5]], 1))

    def _of_level(self, image: Tensor, scale: float) -> Tensor:
        scores, corrections = self.pnet(_normalised(image))
        rows, columns = (scores >= self.thresholds[0]).nonzero(as_tuple=True)
        corner = torch.stack([columns, rows], 1).to(image)
        boxes = torch.cat([
            ((STRIDE * corner + 1) / scale).floor(), ((STRIDE * corner + CELL) / scale).floor(),
            scores[rows, columns, None], corrections[:, rows, columns].T,
        ], 1)  # fmt: skip
        return boxes[nms(boxes, 0.5)]

    def refine(self, image: Tensor, boxes: Boxes) -> Boxes:
        """Proposals that R-Net lets through, corrected and made square."""
        kept, corrections = self._judged(self.rnet, image, boxes, 24, self.thresholds[1])
        best = nms(kept, 0.7)
        return _square(_corrected(kept[best], corrections[best]))

    def conclude(self, image: Tensor, boxes: Boxes) -> Boxes:
        """Faces that O-Net sees, the best of each neighbourhood."""
        kept, corrections = self._judged(self.onet, image, boxes, 48, self.thresholds[2])
        kept = _corrected(kept, corrections)
        return kept[nms(kept, 0.7, of_smaller=True)]

    def _judged(self, net: nn.Module, image: Tensor, boxes: Boxes, side: int, least: float) -> tuple[Boxes, Tensor]:
        crops = [_resized(crop, side, side) for box in boxes if (crop := _crop(image, box)).numel()]
        if not crops:
            return boxes.new_zeros(0, 5), boxes.new_zeros(0, 4)
        scores, corrections = net(_normalised(torch.cat(crops)))
        inside = torch.tensor([_crop(image, box).numel() > 0 for box in boxes], device=boxes.device)
        passed = scores > least
        return torch.cat([boxes[inside][passed, :4], scores[passed, None]], 1), corrections[passed]


def nms(boxes: Tensor, overlap: float, *, of_smaller: bool = False) -> Tensor:
    """Indices of boxes (n, >= 5) of which none overlaps a better one by more than `overlap`, the best first.

    Overlap is intersection over union; or, as the last network of the cascade has it, over the smaller box, with sides
    counted in whole pixels.
    """
    corners, pixel = boxes[:, :4], float(of_smaller)
    area = (corners[:, 2:] - corners[:, :2] + pixel).prod(1)
    order = boxes[:, 4].argsort(descending=True, stable=True)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(corners[best, :2], corners[order, :2])
        high = torch.minimum(corners[best, 2:], corners[order, 2:])
        common = (high - low + pixel).clamp(min=0).prod(1)
        whole = torch.minimum(area[best], area[order]) if of_smaller else area[best] + area[order] - common
        order = order[common / whole <= overlap]
    return torch.stack(kept) if kept else order


def _corrected(boxes: Boxes, corrections: Tensor) -> Boxes:
    sides = torch.stack([boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1] * 2, 1)
    return torch.cat([boxes[:, :4] + corrections * sides, boxes[:, 4:]], 1)


def _square(boxes: Boxes) -> Boxes:
    """Each box about its middle with its longer side."""
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.amax(1, keepdim=True)
    low = boxes[:, :2] + size / 2 - side / 2
    return torch.cat([low, low + side, boxes[:, 4:]], 1)


def _crop(image: Tensor, box: Tensor) -> Tensor:
    """What of a box lies in the picture."""
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = box[:4].trunc().int().tolist()
    return image[..., max(y1, 1) - 1 : min(y2, height), max(x1, 1) - 1 : min(x2, width)]


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    return F.adaptive_avg_pool2d(image, (height, width))


def _normalised(image: Tensor) -> Tensor:
    return (image * 255 - 127.5) * 0.0078125


def pretrained() -> MTCNN:
    """With the weights of the authors. Licence: MIT (facenet-pytorch). Raises: MissingAsset."""
    model, folder = MTCNN(), assets.path("mtcnn")
    for name in ("pnet", "rnet", "onet"):
        weights = torch.load(folder / f"{name}.pt", weights_only=True)
        net: nn.Module = getattr(model, name)
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=name != "onet")))
    return model.eval()
