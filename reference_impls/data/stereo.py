"""Rectified stereo pairs: a real one that is always there, DrivingStereo where somebody has it, and a user's own.

    pair = motorcycle()                                  # Middlebury 2014, inside scikit-image
    pair = load_pair("left.png", "right.png", {"focal": 365.7, "cx": 320, "cy": 240, "baseline": 0.12})
    pairs = driving_stereo("/data/DrivingStereo", "test")
    points = pair.points()                               # (N, 3) where the disparity is known, in metres

Coordinates are those of the left camera: x to the right, y down, z forward, in metres. A pixel of the left image at
column u is seen by the right camera at column u - d, d its disparity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.contract import check_range
from reference_impls.data import assets

LONGEST_BASELINE = 5.0
DRIVING_STEREO = {"focal": 1003.556, "cx": 455.689, "cy": 197.6634, "baseline": 0.54}
"""Calibration that the official code uses for all drives of DrivingStereo at half size."""


@dataclass(frozen=True)
class Camera:
    """Two rectified pinhole cameras side by side.

    focal, cx, cy: in pixels of the image, of the left camera. baseline: metres. offset: column of the right camera's
    principal point minus that of the left one's, which is added to disparities (Middlebury's `doffs`).
    Raises: ValueError for a baseline that can only be in millimetres.
    """

    focal: float
    cx: float
    cy: float
    baseline: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        check_range("focal", self.focal, 0, low_open=True)
        check_range("baseline", self.baseline, 0, low_open=True)
        if self.baseline > LONGEST_BASELINE:
            metres = self.baseline / 1000
            raise ValueError(f"baseline must be in metres, got {self.baseline:g}: is it in millimetres ({metres:g} m)?")

    def depth(self, disparity: Tensor) -> Tensor:
        """Z = f B / (d + offset) in metres; infinite at 0."""
        return self.focal * self.baseline / (disparity + self.offset)

    def disparity(self, depth: Tensor) -> Tensor:
        """d = f B / Z - offset in pixels; infinite depths give -offset."""
        return self.focal * self.baseline / depth - self.offset

    def back_project(self, disparity: Tensor) -> Tensor:
        """Points (N, 3) of the pixels (H, W) whose disparity is known and whose depth is finite, row by row."""
        check_disparity(disparity)
        z = self.depth(disparity.double())
        known = torch.isfinite(disparity) & torch.isfinite(z) & (z > 0)
        v, u = (n.double() for n in known.nonzero(as_tuple=True))
        z = z[known]
        return torch.stack([(u - self.cx) * z / self.focal, (v - self.cy) * z / self.focal, z], 1)

    def project(self, points: Tensor) -> Tensor:
        """Column, row and disparity (N, 3) of points (N, 3) before the camera."""
        x, y, z = points.unbind(-1)
        return torch.stack([self.focal * x / z + self.cx, self.focal * y / z + self.cy, self.disparity(z)], -1)

    def cropped(self, top: int, left: int) -> Camera:
        """The camera of images of which so many rows and columns were cut off."""
        return Camera(self.focal, self.cx - left, self.cy - top, self.baseline, self.offset)

    def scaled(self, scale: float) -> Camera:
        """The camera of images `scale` times as large. Pixels are squares around whole coordinates."""
        middle = ((self.cx + 0.5) * scale - 0.5, (self.cy + 0.5) * scale - 0.5)
        return Camera(self.focal * scale, *middle, self.baseline, self.offset * scale)


@dataclass(frozen=True)
class Pair:
    """A rectified pair. Images (3, H, W) in [0, 1]; disparity (H, W) in pixels, infinite where it is not known."""

    name: str
    left: Tensor
    right: Tensor
    camera: Camera
    disparity: Tensor | None = None
    lidar: Tensor | None = None
    """(N, 3) points of a range sensor in the left camera's coordinates."""

    def __post_init__(self) -> None:
        for side, image in (("left", self.left), ("right", self.right)):
            if image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(f"{self.name}: the {side} image must have shape (3, H, W), got {tuple(image.shape)}")
        if self.left.shape != self.right.shape:
            sizes = f"{tuple(self.left.shape)} and {tuple(self.right.shape)}"
            raise ValueError(f"{self.name}: both images must have the same size, got {sizes}")
        if self.disparity is not None and self.disparity.shape != self.left.shape[1:]:
            raise ValueError(
                f"{self.name}: the disparity is {tuple(self.disparity.shape)}, of another size than the images"
            )

    def points(self) -> Tensor:
        """What is known of the surfaces: the range sensor's points, else those of the disparity, (N, 3)."""
        if self.lidar is not None:
            return self.lidar
        if self.disparity is None:
            raise ValueError(f"{self.name} has neither points of a range sensor nor a disparity")
        return self.camera.back_project(self.disparity)

    def fitted(self, height: int, width: int) -> Pair:
        """The pair scaled until it covers height x width, then its lower middle part of that size.

        Disparities are taken from the nearest pixel, for values between a surface and another would be of neither.
        """
        scale = max(height / self.left.shape[1], width / self.left.shape[2])
        size = max(height, round(self.left.shape[1] * scale)), max(width, round(self.left.shape[2] * scale))
        top, at = size[0] - height, (size[1] - width) // 2
        images = torch.stack([self.left, self.right])
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)[..., top:, at : at + width]
        disparity = None
        if self.disparity is not None:
            disparity = scale * F.interpolate(self.disparity[None, None], size=size, mode="nearest")[0, 0]
            disparity = disparity[top:, at : at + width]
        camera = self.camera.scaled(scale).cropped(top, at)
        return Pair(self.name, images[0], images[1], camera, disparity, self.lidar)

    def centred(self) -> Pair:
        """The pair without whole columns of the camera's offset: what is far has a disparity near 0 then.

        As many columns are cut off at the left of the right image and at the right of the left one.
        """
        columns = round(self.camera.offset)
        if columns <= 0:
            return self
        camera = replace(self.camera, offset=self.camera.offset - columns)
        disparity = None if self.disparity is None else self.disparity[:, :-columns] + columns
        return Pair(self.name, self.left[..., :-columns], self.right[..., columns:], camera, disparity, self.lidar)


def check_disparity(disparity: Tensor) -> None:
    """Raise ValueError unless (H, W) holds disparities from 0 on; infinite ones stand for what is not known."""
    if disparity.ndim != 2:
        raise ValueError(f"the disparity must have shape (H, W), got {tuple(disparity.shape)}")
    if bool(disparity.isnan().any()):
        raise ValueError("the disparity holds NaN: write infinity where it is not known")
    if bool((disparity < 0).any()):
        least = float(disparity.min())
        raise ValueError(f"the disparity is negative ({least:g}) somewhere: are left and right swapped?")


def warp(right: Tensor, disparity: Tensor) -> tuple[Tensor, Tensor]:
    """The right image (3, H, W) as the left camera would see it by its disparity (H, W), and where that is inside."""
    height, width = disparity.shape
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = u - torch.where(disparity.isfinite(), disparity, -1.0 - width)
    inside = (at >= 0) & (at <= width - 1)
    grid = torch.stack([2 * at / (width - 1) - 1, 2 * v / (height - 1) - 1], -1).float()
    return F.grid_sample(right[None], grid[None], align_corners=True)[0], inside


def check_rectified(left: Tensor, right: Tensor, reach: int = 96, rows: int = 3, patches: int = 200) -> None:
    """Raise ValueError for a pair (3, H, W) that is one image twice, not rectified, or swapped.

    Patches with much texture are looked for in the other image, up to `reach` columns to both sides and `rows` rows up
    and down. What the median of the best matches says is believed only where most of them agree.
    """
    if torch.equal(left, right):
        raise ValueError("left and right are the same image: a single camera tells no distance")
    a, b = (x.mean(0) for x in (left, right))
    reach = min(reach, a.shape[1] // 4)
    edge = (a[:, 2:] - a[:, :-2]).abs()
    score = F.avg_pool2d(edge[None, None], 9, 1)[0, 0]
    score = score[rows : score.shape[0] - rows, reach : score.shape[1] - reach]
    cells = F.max_pool2d(score[None, None], 12, return_indices=True)
    best = cells[0].flatten().topk(min(patches, cells[0].numel())).indices
    y, x = (torch.div(i := cells[1].flatten()[best], score.shape[1], rounding_mode="floor"), i % score.shape[1])
    windows = b.unfold(0, 9, 1).unfold(1, 9, 1)  # (H - 8, W - 8, 9, 9)
    patch = a.unfold(0, 9, 1).unfold(1, 9, 1)[y + rows, x + reach]
    patch = patch - patch.mean((1, 2), keepdim=True)
    costs = []
    for dy in range(-rows, rows + 1):
        columns = x[:, None] + reach - torch.arange(-reach, reach + 1)
        near = windows[(y + rows + dy)[:, None], columns.clamp(0, windows.shape[1] - 1)]
        costs.append((near - near.mean((2, 3), keepdim=True) - patch[:, None]).abs().mean((2, 3)))
    cost = torch.stack(costs, 1)  # (patches, rows, shifts)
    found = cost.flatten(1).argmin(1)
    up, shift = torch.div(found, 2 * reach + 1, rounding_mode="floor") - rows, found % (2 * reach + 1) - reach
    if float((up.abs() > 1).float().mean()) > 0.5:
        raise ValueError(f"the pair is not rectified: most patches match {abs(int(up.median()))} rows away")
    if float((shift < -1).float().mean()) > 0.5:
        raise ValueError("left and right are swapped: most patches lie further to the right in the right image")


# --------------------------------------------------------------------------------------------------------------------
# Where pairs come from


@cache
def motorcycle() -> Pair:
    """The Motorcycle pair of Middlebury 2014 with its disparity: 500 x 741 pixels, 2.1 to 5.0 m, 7 % not known.

    Source and licence: Scharstein and others, GCPR 2014, in scikit-image (BSD-3), which does not state the data's own.
    """
    import skimage.data

    left, right, disparity = skimage.data.stereo_motorcycle()  # type: ignore[no-untyped-call]
    camera = Camera(994.978, 311.193, 254.877, 0.193001, 31.086)
    return Pair("Motorcycle", image(left), image(right), camera, torch.from_numpy(np.array(disparity)).float())


@cache
def aloe() -> Pair:
    """The Aloe pair of Middlebury 2006 with its disparity: 1110 x 1282 pixels.

    The package states no calibration: a focal length of 3740 pixels and a baseline of 0.16 m are from memory of the
    data set's page, so distances are only as good as these.
    Source and licence: the asset `opencv-stereo`. Raises: MissingAsset.
    """
    folder = assets.path("opencv-stereo")
    left, right, truth = (read(folder / f"aloe{part}") for part in ("L.jpg", "R.jpg", "GT.png"))
    disparity = torch.from_numpy(truth.astype(np.float32))
    disparity[disparity == 0] = torch.inf
    height, width = disparity.shape
    return Pair("Aloe", image(left), image(right), Camera(3740.0, width / 2, height / 2, 0.16), disparity)


def at_hand() -> list[Pair]:
    """The real pairs whose files are here: Motorcycle always, Aloe where its asset is in the cache."""
    found = [motorcycle()]
    with suppress(assets.MissingAsset):
        found.append(aloe())
    return found


def load_pair(
    left: str | Path,
    right: str | Path,
    calibration: str | Path | Mapping[str, float] | Camera,
    disparity: str | Path | None = None,
    lidar: str | Path | None = None,
    *,
    check: bool = True,
) -> Pair:
    """A pair of your own.

    Args:
        left, right: image files, rectified.
        calibration: a `Camera`, its numbers by name, a JSON file of them, or Middlebury's `calib.txt`.
        disparity: a PNG of 16 bits in 256ths of a pixel, 0 where it is not known, as in KITTI and DrivingStereo, or an
            `.npy` in pixels, infinite or NaN where it is not known.
        lidar: an `.npy` (N, 3) of points in the left camera's coordinates, in metres.
        check: look for swapped, unrectified or equal images (`check_rectified`).
    Raises: FileNotFoundError; ValueError that says what is wrong in which file.
    """
    one, other = (image(read(Path(file)), str(file)) for file in (left, right))
    if check and one.shape == other.shape:
        try:
            check_rectified(one, other)
        except ValueError as error:
            raise ValueError(f"{left} and {right}: {error}") from error
    camera = calibration if isinstance(calibration, Camera) else _camera(calibration)
    points = None if lidar is None else torch.from_numpy(np.load(lidar)).double()
    if points is not None and (points.ndim != 2 or points.shape[1] != 3 or not bool(points.isfinite().all())):
        raise ValueError(f"{lidar} must hold finite points (N, 3) in metres, got {tuple(points.shape)}")
    known = None if disparity is None else read_disparity(Path(disparity))
    return Pair(Path(left).stem, one, other, camera, known, points)


def driving_stereo(root: str | Path, split: str = "test", camera: Camera | None = None) -> Iterator[Pair]:
    """The pairs of DrivingStereo at half size, where somebody has them (they must be asked for at its page).

    Layout: `<split>-left-image/left-image-half-size/<name>.jpg`, the same with `right`, and
    `<split>-disparity-map/disparity-map-half-size/<name>.png`; folders of drives in between are followed. `camera`: by
    default the one that the official code uses for all drives.
    Raises: FileNotFoundError that says which folder or file is missing, once the pairs are asked for.
    """
    root = Path(root)
    kinds = {"left": ("image", ".jpg"), "right": ("image", ".jpg"), "disparity": ("map", ".png")}
    folders = {kind: root / f"{split}-{kind}-{what}" / f"{kind}-{what}-half-size" for kind, (what, _) in kinds.items()}
    for folder in folders.values():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing: unpack that part of DrivingStereo below {root}")
    lefts = sorted(folders["left"].rglob("*.jpg"))
    if not lefts:
        raise FileNotFoundError(f"{folders['left']} holds no .jpg: unpack the left images of the half size there")
    for file in lefts:
        name = file.relative_to(folders["left"]).with_suffix("")
        files = {kind: (folders[kind] / name).with_suffix(ending) for kind, (_, ending) in kinds.items()}
        yield load_pair(
            files["left"], files["right"], camera or Camera(**DRIVING_STEREO), files["disparity"], check=False
        )


def read(file: Path) -> np.ndarray[Any, Any]:
    """The pixels of an image file. Raises FileNotFoundError, or ValueError for what is no image."""
    import skimage.io

    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        return np.asarray(skimage.io.imread(file))
    except Exception as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def image(pixels: np.ndarray[Any, Any], name: str = "the image") -> Tensor:
    """Pixels (H, W), (H, W, 3) or (H, W, 4) of 8 or 16 bits as (3, H, W) in [0, 1]; grey ones three times."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, 2)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{name} must be grey or colour of 8 or 16 bits, got {pixels.shape} of {pixels.dtype}")
    top = float(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(pixels[..., :3].astype(np.float32) / top).permute(2, 0, 1).contiguous()


def read_disparity(file: Path) -> Tensor:
    """A disparity (H, W) in pixels, infinite where it is not known; see `load_pair`."""
    if file.suffix == ".npy":
        disparity = torch.from_numpy(np.load(file)).float()
        disparity[disparity.isnan()] = torch.inf
    else:
        pixels = read(file)
        if pixels.dtype != np.uint16 or pixels.ndim != 2:
            raise ValueError(f"{file} must be a grey PNG of 16 bits in 256ths of a pixel, got {pixels.dtype}")
        disparity = torch.from_numpy(pixels.astype(np.float32)) / 256
        disparity[disparity == 0] = torch.inf
    try:
        check_disparity(disparity)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return disparity


def _camera(calibration: str | Path | Mapping[str, float]) -> Camera:
    """A camera from numbers by name, or from a file that holds them."""
    if isinstance(calibration, Mapping):
        known = {field.name for field in fields(Camera)}
        if unknown := set(calibration) - known:
            raise ValueError(f"a calibration has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
        if missing := {"focal", "cx", "cy", "baseline"} - set(calibration):
            raise ValueError(f"the calibration lacks {', '.join(sorted(missing))}")
        return Camera(**calibration)
    text = Path(calibration).read_text(encoding="utf-8")
    try:
        if Path(calibration).suffix == ".json":
            return _camera(json.loads(text))
        lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        first = [float(n) for n in lines["cam0"].strip().strip("[]").replace(";", " ").split()]
        millimetres = float(lines["baseline"])  # Middlebury's unit
        return Camera(first[0], first[2], first[5], millimetres / 1000, float(lines.get("doffs", 0)))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{calibration} is no calibration: {error}") from error
