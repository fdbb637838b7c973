"""Adversarial patches that people wear: optimised by gradient descent on the detector, and stored.

A wearer is a person whom the detector finds in a row of frames; a patch lies on them and moves with them. Each patch is
optimised where it lies, over the frames of its row, to hide its wearer. `patches.npz` holds one for each wearer and
size as bytes, `adaptive.npz` those of an attacker who knows the defence, `cyclist.npz` those of a cyclist in another
clip; `python -m reference_impls.benchmarks.detection_stream.attack` makes what is missing of them, in about a quarter
of an hour for all.

Reference: "Fooling automated surveillance cameras: adversarial patches to attack person detection",
arXiv 1904.08653: the objectness times the person's score is brought down by the patch's pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reference_impls.contract import generator
from reference_impls.data import video
from reference_impls.layers.boxes import Detections, iou
from reference_impls.models.yolov3_tiny import YOLOv3Tiny, boxes_of, detections, stretched, yolov3_tiny

FILE, ADAPTIVE, CYCLIST = (Path(__file__).with_name(name) for name in ("patches.npz", "adaptive.npz", "cyclist.npz"))
PERSON = 0
CLIP, ROW, EVERY = "vtest", 8, 75
"""Rows of eight frames of a clip begin at every 75th."""
SIZES = (12, 16, 24)
"""Sides of the patches in pixels."""
CYCLIST_CLIP, CYCLIST_SIZES, CYCLIST_ROWS = "bikes", (24, 40), 4
"""The other clip: a cyclist stands in it from frame 105 on, much nearer to the camera."""
CROP = 320
"""Side of the part of the frame in which a patch is optimised; at multiples of 32, as the cells of the frame."""
STEPS, RATE = 120, 0.2
Penalty = Callable[[Tensor, tuple[int, int], int], Tensor]
"""What an attacker who knows a defence adds to the loss: of (crop, place of the patch in it, its side)."""


@dataclass(frozen=True)
class Wearer:
    """A person and their boxes (ROW, 4), in frames from `start` on."""

    start: int
    boxes: Tensor
    clip: str = CLIP


@dataclass(frozen=True)
class Patch:
    """A patch (1, 3, n, n) in [0, 1] and where its left upper corner, (top, left), lies in each frame of the row."""

    wearer: int
    start: int
    pixels: Tensor
    places: tuple[tuple[int, int], ...]
    clip: str = CLIP

    @property
    def size(self) -> int:
        """Its side in pixels."""
        return self.pixels.shape[-1]

    def on(self, frames: Sequence[Tensor]) -> list[Tensor]:
        """The frames of its row, worn."""
        return [pasted(frame, self.pixels, place) for frame, place in zip(frames, self.places, strict=True)]

    def controls(self) -> dict[str, Patch]:
        """Grey, random pixels, and its own pixels in random order: what covers as much and attacks nothing."""
        draws = generator(self.start + self.size)
        order = torch.randperm(self.size**2, generator=draws)
        shuffled = self.pixels.flatten(2)[..., order].view_as(self.pixels)
        random = torch.rand(self.pixels.shape, generator=draws)
        made = {"grey": torch.full_like(self.pixels, 0.5), "random": random, "shuffled": shuffled}
        return {name: replace(self, pixels=pixels) for name, pixels in made.items()}


def pasted(frame: Tensor, pixels: Tensor, place: tuple[int, int]) -> Tensor:
    """A frame (1, 3, H, W) with a patch at (top, left)."""
    (top, left), size = place, pixels.shape[-1]
    out = frame.clone()
    out[..., top : top + size, left : left + size] = pixels
    return out


def wearers(model: nn.Module, count: int = 10) -> list[Wearer]:
    """People of the clip whom the detector finds in every frame of a row, one for each row."""
    found, start = list[Wearer](), 20
    while len(found) < count:
        people = _people(model, CLIP, start)
        rows = [row for box in people[0].boxes if (row := _row(box, people)) is not None and _inside(row)]
        if rows:
            found.append(Wearer(start, rows[len(found) % len(rows)]))
        start += EVERY
    return found


def cyclist(model: nn.Module) -> list[Wearer]:
    """The cyclist of the other clip, in successive rows."""
    found = []
    for start in range(105, 105 + CYCLIST_ROWS * ROW, ROW):
        people = _people(model, CYCLIST_CLIP, start)
        row = _row(people[0].boxes[0], people)
        assert row is not None, "the cyclist is the surest of the people"
        found.append(Wearer(start, row, CYCLIST_CLIP))
    return found


def row_of(clip: str, start: int) -> tuple[Tensor, ...]:
    """The frames (1, 3, H, W) of a row, as the detector takes them."""
    return tuple(stretched(video.clip(clip, ROW, start=start)).split(1))


@torch.no_grad()
def _people(model: nn.Module, clip: str, start: int) -> list[Detections]:
    """The people whom the detector finds in each frame of a row."""
    each = [detections(model(frame))[0] for frame in row_of(clip, start)]
    return [one.of(one.classes == PERSON) for one in each]


def _row(box: Tensor, people: Sequence[Detections]) -> Tensor | None:
    """The boxes (ROW, 4) of one person from frame to frame, or None if they are lost."""
    row = [box]
    for one in people[1:]:
        overlaps = iou(row[-1][None], one.boxes)[0]
        if not len(overlaps) or overlaps.max() < 0.5:
            return None
        row.append(one.boxes[overlaps.argmax()])
    return torch.stack(row)


def _inside(boxes: Tensor) -> bool:
    """Whether boxes keep away from the border of the clip."""
    return bool((boxes > 12).all()) and bool((boxes[:, 2:] < torch.tensor([756, 564])).all())


def places_on(wearer: Wearer, size: int) -> tuple[tuple[int, int], ...]:
    """Where a patch of a size lies: on the chest, or beside the hip for every third wearer."""
    beside = 0.6 if wearer.start // EVERY % 3 == 2 else 0.0
    left, top, right, bottom = wearer.boxes.unbind(1)
    x = (left + right) / 2 + beside * (right - left) - size / 2
    y = top + (0.35 if not beside else 0.5) * (bottom - top) - size / 2
    return tuple(zip(y.round().int().tolist(), x.round().int().tolist(), strict=True))


def optimised(
    model: nn.Module,
    wearer: Wearer,
    number: int,
    size: int,
    steps: int = STEPS,
    penalty: Penalty | None = None,
    jitter: int = 0,
) -> Patch:
    """A patch that hides its wearer, by Adam on the logits of its pixels, one frame of the row a step.

    The loss is the sum and the maximum of the person's scores over all boxes that overlap with the wearer's by a tenth.
    penalty: what is added to it. jitter: the patch moves by up to so many pixels in each step (expectation over
    transformations).
    """
    draws = generator(100 * wearer.start + size)
    frames = row_of(wearer.clip, wearer.start)
    logits = torch.randn(1, 3, size, size, generator=draws).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=RATE)
    places = places_on(wearer, size)
    for _ in range(steps):
        i = int(torch.randint(ROW, (), generator=draws))
        y, x = (int(torch.randint(-jitter, jitter + 1, (), generator=draws)) for _ in range(2))
        corner = _corner(wearer.boxes[i], frames[i])
        place = places[i][0] + y - corner[0], places[i][1] + x - corner[1]
        crop = frames[i][..., corner[0] : corner[0] + CROP, corner[1] : corner[1] + CROP].clone()
        crop[..., place[0] : place[0] + size, place[1] : place[1] + size] = logits.sigmoid()
        boxes, scores = boxes_of(model(crop))
        own = wearer.boxes[i] - torch.tensor([corner[1], corner[0]] * 2)
        person = scores[0, iou(boxes[0], own[None])[:, 0] > 0.1, PERSON]
        loss = person.sum() + person.max()
        if penalty is not None:
            loss = loss + penalty(crop, place, size)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pixels = (logits.detach().sigmoid() * 255).round() / 255
    return Patch(number, wearer.start, pixels, places, wearer.clip)


ADAPTIVE_SIZE, JITTER, MARKS, WEIGHT = 16, 2, 130, 2.0
"""Of the adaptive patches: their side, how far they move in a step, the important neurons that they may hold in the
window of 24 pixels around them (the defence proposes from about 180 on), and the weight of what is beyond."""


def stealthy(model: YOLOv3Tiny) -> Penalty:
    """Against proposals by important neurons: a smooth count of those around the patch, above what goes unnoticed."""

    def penalty(crop: Tensor, place: tuple[int, int], size: int) -> Tensor:
        activations = model.stem[1](model.stem[0](crop))[0]  # (16, CROP / 2, CROP / 2)
        bound = activations.detach().flatten()[::7].quantile(0.99)
        top, left = ((p + size // 2 - 12) // 2 for p in place)
        around = activations[:, max(0, top) : top + 12, max(0, left) : left + 12]
        marks = torch.sigmoid((around - bound) / (0.1 * bound)).sum()
        return WEIGHT * (marks / MARKS - 1).clamp(min=0)

    return penalty


def _corner(box: Tensor, frame: Tensor) -> tuple[int, int]:
    """(top, left) of the crop around a box."""
    centre = (box[1] + box[3]) / 2, (box[0] + box[2]) / 2
    ends = (max(0, length - CROP) for length in frame.shape[2:])
    return tuple(min(max(0, round(float(c - CROP / 2) / 32) * 32), end) for c, end in zip(centre, ends, strict=True))


def save(file: Path, patches: Sequence[Patch]) -> None:
    """Patches as bytes, with where they lie."""
    arrays = {}
    for p in patches:
        name = f"{p.wearer}-{p.size}-{p.start}"
        arrays[name] = (p.pixels[0] * 255).round().byte().numpy()
        arrays[f"{name}-places"] = np.array(p.places, dtype=np.int16)
    np.savez_compressed(file, **arrays)


@cache
def stored(file: Path = FILE) -> tuple[Patch, ...]:
    """The stored patches, by wearer and size."""
    with np.load(file, allow_pickle=False) as arrays:
        return tuple(
            Patch(
                int(name.split("-")[0]),
                int(name.split("-")[2]),
                torch.from_numpy(arrays[name]).float()[None] / 255,
                tuple((int(y), int(x)) for y, x in arrays[f"{name}-places"]),
                CYCLIST_CLIP if file == CYCLIST else CLIP,
            )
            for name in arrays
            if not name.endswith("places")
        )


def main() -> None:
    """Optimise and save every patch; what is there already stays."""
    torch.set_num_threads(1)
    model = yolov3_tiny().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for file, people, sizes, knobs in (
        (FILE, wearers(model), SIZES, {}),
        (ADAPTIVE, wearers(model), (ADAPTIVE_SIZE,), {"penalty": stealthy(model), "jitter": JITTER}),
        (CYCLIST, cyclist(model), CYCLIST_SIZES, {}),
    ):
        done = list(stored(file)) if file.exists() else []
        for number, wearer in enumerate(people):
            for size in sizes:
                if not any(p.wearer == number and p.size == size for p in done):
                    done.append(optimised(model, wearer, number, size, **knobs))
                    save(file, done)
                    print(f"wearer {number} from frame {wearer.start}, {size} pixels", flush=True)


if __name__ == "__main__":
    main()
