"""YOLOv3-tiny in plain torch, with the weights that its authors trained on COCO.

Reference: "YOLOv3: An Incremental Improvement", arXiv 1804.02767, and Darknet, whose tiny
configuration it is.

The network gives two raw maps of 3 x (4 + 1 + 80) channels, at strides 32 and 16. The configuration file that lies
beside the weights gives the anchors 0, 1, 2 to the finer map; the weights were trained with 1, 2, 3 (boxes come out at
about half their size otherwise), which is what stands here. The sixth pooling has stride 1 and looks one position to
the right and down; what lies beyond the map is less than everything.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from reference_impls.contract import check_range, check_tensor
from reference_impls.data import assets
from reference_impls.layers.boxes import Detections, suppressed

ANCHORS = ((81, 82), (135, 169), (344, 319)), ((23, 27), (37, 58), (81, 82))
"""Width and height in pixels, of the maps at strides 32 and 16."""
STRIDES = (32, 16)
GRIDS = tuple(zip(ANCHORS, STRIDES, strict=True))
CLASSES = 80
FLOATS = 8_858_734
"""Numbers in the file of weights, after its header."""


def conv(channels: int, out: int, kernel: int = 3) -> nn.Sequential:
    """A convolution, batch norm and leaky ReLU, as Darknet's `convolutional`."""
    convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out, eps=1e-6), nn.LeakyReLU(0.1))


class YOLOv3Tiny(nn.Module):
    """The network: `stem` to stride 16, `deep` to stride 32, and the layers of the two heads.

    forward: frames (B, 3, H, W) in [0, 1], sides multiples of 32 -> raw maps (B, 255, H / 32, W / 32) and
    (B, 255, H / 16, W / 16).
    """

    def __init__(self) -> None:
        super().__init__()
        shallow: list[nn.Module] = [conv(3, 16)]
        for channels in (16, 32, 64, 128):
            shallow += [nn.MaxPool2d(2), conv(channels, 2 * channels)]
        self.stem = nn.Sequential(*shallow)
        self.deep = nn.Sequential(
            *(nn.MaxPool2d(2), conv(256, 512), nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(2, 1)),
            *(conv(512, 1024), conv(1024, 256, 1)),
        )
        self.coarse = conv(256, 512)
        self.coarse_head = nn.Conv2d(512, 3 * (5 + CLASSES), 1)
        self.lateral = nn.Sequential(conv(256, 128, 1), nn.Upsample(scale_factor=2))
        self.fine = conv(384, 256)
        self.fine_head = nn.Conv2d(256, 3 * (5 + CLASSES), 1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, 3, H, W) -> what the heads read: (B, 512, H / 32, W / 32) and (B, 256, H / 16, W / 16)."""
        middle = self.stem(x)
        deep = self.deep(middle)
        return self.coarse(deep), self.fine(torch.cat((self.lateral(deep), middle), 1))

    def heads(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What `features` gives -> the raw maps."""
        return self.coarse_head(features[0]), self.fine_head(features[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.features(x))

    def decode(self, raw: Sequence[Tensor], threshold: float = 0.5) -> list[Detections]:
        """`detections` of what `forward` gives."""
        return detections(raw, threshold)

    def folded(self) -> YOLOv3Tiny:
        """Its fastest native form: batch norms folded into the convolutions, channels last."""
        model = copy.deepcopy(self)
        for name, part in list(model.named_children()):
            setattr(model, name, fuse(part))
        return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def boxes_of(raw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Raw maps -> boxes (B, N, 4) in pixels of the network's input and scores of each class (B, N, 80).

    The centre is (cell + sigmoid(t_xy)) x stride, the size anchor x exp(t_wh), the score sigmoid(t_o) sigmoid(t_c)
    (arXiv 1804.02767, section 2).
    """
    batch = len(raw[0])
    every = [torch.arange(head.numel() // (5 + CLASSES), device=head.device) for head in raw]
    found = [_decoded(head, *of, at) for head, of, at in zip(raw, GRIDS, every, strict=True)]
    boxes, scores = (
        torch.cat([one.view(batch, -1, one.shape[1]) for one in ones], 1) for ones in zip(*found, strict=True)
    )
    return boxes, scores


def _decoded(head: Tensor, anchors: Sequence[tuple[int, int]], stride: int, at: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and scores (n, 80) of a raw map at numbers (n,) of (frame, anchor, row, column), in this order."""
    height, width = head.shape[2:]
    x, y = at % width, at // width % height
    anchor, frame = at // (width * height) % len(anchors), at // (width * height * len(anchors))
    t = _by_anchor(head)[frame, anchor, :, y, x]  # n 85
    centre = (torch.stack((x, y), 1) + t[:, :2].sigmoid()) * stride
    half = torch.tensor(anchors, device=head.device, dtype=head.dtype)[anchor] * t[:, 2:4].exp() / 2
    return torch.cat((centre - half, centre + half), 1), t[:, 4:5].sigmoid() * t[:, 5:].sigmoid()


def _by_anchor(head: Tensor) -> Tensor:
    """A raw map as (B, 3, 85, H, W)."""
    return head.view(len(head), 3, 5 + CLASSES, *head.shape[2:])


def detections(raw: Sequence[Tensor], threshold: float = 0.5, overlap: float = 0.45) -> list[Detections]:
    """What the raw maps say of each frame of the batch: boxes whose best class scores at least `threshold`.

    Boxes are in pixels of the network's input; non-maximum suppression by class at `overlap`.
    """
    check_range("threshold", threshold, 0, 1)
    parts = []
    for head, (anchors, stride) in zip(raw, GRIDS, strict=True):
        object_there = _by_anchor(head)[:, :, 4].sigmoid().flatten()  # no score is larger
        at = (object_there >= threshold).nonzero()[:, 0]
        boxes, scores = _decoded(head, anchors, stride, at)
        best, classes = scores.max(1)
        kept = best >= threshold
        parts.append((at[kept] // (object_there.numel() // len(head)), boxes[kept], best[kept], classes[kept]))
    frames, *rest = (torch.cat(part) for part in zip(*parts, strict=True))
    everything = Detections(*rest)
    return [suppressed(everything.of(frames == n), overlap) for n in range(len(raw[0]))]


def letterboxed(frame: Tensor, size: tuple[int, int]) -> tuple[Tensor, float, tuple[int, int]]:
    """A frame (B, 3, H, W) scaled to fit into `size` (H, W), grey around it; with the scale and the (left, top) margin.

    A point p of the frame lies at p x scale + margin.
    """
    check_tensor("frame", frame, "B C H W")
    scale = min(size[0] / frame.shape[2], size[1] / frame.shape[3])
    height, width = (max(1, round(n * scale)) for n in frame.shape[2:])
    resized = F.interpolate(frame, (height, width), mode="bilinear", antialias=scale < 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    sides = left, size[1] - width - left, top, size[0] - height - top
    return F.pad(resized, sides, value=0.5), scale, (left, top)


def unboxed(found: Detections, scale: float, margin: tuple[int, int]) -> Detections:
    """Detections in a letterboxed frame -> in pixels of the frame itself."""
    return found._replace(boxes=(found.boxes - found.boxes.new_tensor([*margin, *margin])) / scale)


def stretched(frame: Tensor) -> Tensor:
    """A frame (B, 3, H, W) with its sides stretched to the nearest multiples of 32, as it is where they are."""
    size = [max(32, round(n / 32) * 32) for n in frame.shape[2:]]
    return frame if size == list(frame.shape[2:]) else F.interpolate(frame, size, mode="bilinear", antialias=True)


def yolov3_tiny(pretrained: bool = True) -> YOLOv3Tiny:
    """YOLOv3-tiny in evaluation mode, with the weights of COCO if `pretrained`.

    Licence of the weights: Darknet's, permissive; the asset `yolov3-tiny`. Trained on COCO.
    Raises: MissingAsset; ValueError for a file of another length, or with numbers that are not finite.
    """
    model = YOLOv3Tiny().eval()
    if pretrained:
        file = assets.path("yolov3-tiny") / "yolov3-tiny.weights"
        numbers = np.fromfile(file, dtype="<f4", offset=20)  # after three int32 and one int64
        if len(numbers) != FLOATS:
            raise ValueError(
                f"{file.name} holds {len(numbers)} weights, not {FLOATS}; run `redundancy assets get yolov3-tiny`"
            )
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"{file.name} holds weights that are not finite; run `redundancy assets verify yolov3-tiny`"
            )
        _fill(model, torch.from_numpy(numbers))
    return model


def class_names() -> list[str]:
    """The names of the 80 classes. Raises: MissingAsset."""
    return (assets.path("yolov3-tiny") / "coco.names").read_text(encoding="utf-8").split("\n")[:CLASSES]


@torch.no_grad()
def _fill(model: YOLOv3Tiny, numbers: Tensor) -> None:
    """In Darknet's order: each convolution's bias, or its norm's shift, scale, mean, variance; its weights."""
    at, layers = 0, [m for m in _in_file(model) if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if not isinstance(layer, nn.Conv2d):
            continue
        norm = after if isinstance(after, nn.BatchNorm2d) else None
        parts = [norm.bias, norm.weight, norm.running_mean, norm.running_var] if norm else [layer.bias]
        for part in (*parts, layer.weight):
            assert part is not None
            part.copy_(numbers[at : at + part.numel()].view_as(part))
            at += part.numel()


def _in_file(model: YOLOv3Tiny) -> list[nn.Module]:
    parts = (model.stem, model.deep, model.coarse, model.coarse_head, model.lateral, model.fine, model.fine_head)
    return [module for part in parts for module in part.modules()]
