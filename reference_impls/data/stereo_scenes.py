"""Made stereo pairs: boxes on a plane, seen by two pinhole cameras, with exact depth and exact occupancy.

Every ray is (x, y, 1) in the camera's coordinates, so the parameter of a hit *is* its depth. Rays meet the ground and
the boxes in closed form, the nearest hit wins. Textures belong to the surfaces, not to the views (four octaves of value
noise, hashed from coordinates on the surface), so that both cameras see the same; a sun that stands still shades them.

    scene = draw_scene(seed=0)
    view = render(scene, CAMERA)                        # left and right (3, H, W), depth and id (H, W)
    cells = scene.occupied(edges)                       # (n, n, n) bool for bounds of cells (3, n + 1)

The pairs are synthetic, and easier than photos: everything is a box, and nothing shines or moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from reference_impls.contract import check_range, generator
from reference_impls.data.stereo import Camera

CAMERA = Camera(focal=240.0, cx=160.0, cy=80.0, baseline=0.54)
"""For images of 160 x 320 pixels: a field of view of 67 degrees."""
SIZE = (160, 320)
SKY, GROUND = -1, 0
"""Ids of what is no box; boxes are numbered from 1 on."""
SUN = (0.4, -0.8, -0.45)


@dataclass(frozen=True)
class Scene:
    """Boxes over a plane, in the coordinates of the left camera: x to the right, y down, z forward, in metres."""

    low: Tensor
    """(N, 3) lowest corners."""
    high: Tensor
    """(N, 3) highest corners."""
    colours: Tensor
    """(N + 1, 3) of the ground and of each box, in [0, 1]."""
    contrast: Tensor
    """(N + 1,) how much texture each has, in [0, 1]."""
    ground: float
    """Height of the camera over the plane."""
    seed: int
    """Of the texture."""

    def occupied(self, edges: Tensor, boxes: Tensor | None = None) -> Tensor:
        """The cells (n, n, n), bool, that share volume with a box; exactly, for boxes and cells have the same axes.

        edges: (3, n + 1) bounds of the cells. boxes: numbers from 1 on of those to look at, all by default.
        """
        chosen = torch.arange(len(self.low)) if boxes is None else boxes[boxes > GROUND] - 1
        low, high = self.low[chosen].double(), self.high[chosen].double()
        inside = (edges[None, :, :-1] < high[..., None]) & (edges[None, :, 1:] > low[..., None])  # (N, 3, n)
        x, y, z = inside.unbind(1)
        return torch.einsum("bx,by,bz->xyz", x.float(), y.float(), z.float()) > 0

    def untextured(self) -> Scene:
        """The same boxes, each of one colour."""
        flat = self.contrast.clone()
        flat[1:] = 0
        return replace(self, contrast=flat)


class View(NamedTuple):
    """What two cameras see of a scene."""

    left: Tensor
    """(3, H, W) in [0, 1]."""
    right: Tensor
    depth: Tensor
    """(H, W) of the left image, in metres; infinite where there is sky."""
    ids: Tensor
    """(H, W) of the left image: the box, the ground (0) or the sky (-1)."""


def draw_scene(seed: int, boxes: tuple[int, int] = (3, 8), far: float = 8.0, untextured: bool = False) -> Scene:
    """A scene drawn at random: some boxes stand, others float; the camera's height differs from scene to scene.

    So neither where a box touches the ground nor its size in the image tells how far it is. All lengths go with `far`,
    the depth in metres at which nothing more stands.
    """
    check_range("far", far, 0, low_open=True)
    draws = generator(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=draws)

    count = int(torch.randint(boxes[0], boxes[1] + 1, (), generator=draws))
    ground = far * float(uniform(1 / 32, 0.08))
    z = far * uniform(0.12, 0.9, count)
    x = uniform(-0.6, 0.6, count) * z
    size = uniform(0.4, 1.0, count, 3) * (far / 25 + 0.12 * z)[:, None]  # large enough to be seen
    lifted = far * uniform(0.0, 0.1, count) * (torch.rand(count, generator=draws) < 0.5)
    bottom = ground - lifted
    low = torch.stack([x - size[:, 0] / 2, bottom - size[:, 1], z], 1)
    high = torch.stack([x + size[:, 0] / 2, bottom, z + size[:, 2]], 1)
    colours, contrast = uniform(0.2, 1.0, count + 1, 3), uniform(0.6, 0.95, count + 1)
    scene = Scene(low, high, colours, contrast, ground, seed)
    return scene.untextured() if untextured else scene


def render(
    scene: Scene, camera: Camera = CAMERA, size: tuple[int, int] = SIZE, noise: float = 0.0, gain: float = 1.0
) -> View:
    """Both images of a scene, and depth and ids of the left one.

    noise: standard deviation of each pixel's own error, in both images. gain: exposure of the right camera over that of
    the left one.
    """
    check_range("noise", noise, 0)
    check_range("gain", gain, 0, low_open=True)
    left, depth, ids = look(scene, camera, size, 0.0)
    right, _, _ = look(scene, camera, size, camera.baseline)
    right = right * gain
    if noise:
        draws = generator(scene.seed + 1)
        left, right = (x + noise * torch.randn(x.shape, generator=draws) for x in (left, right))
    return View(left.clamp(0, 1), right.clamp(0, 1), depth, ids)


def look(scene: Scene, camera: Camera, size: tuple[int, int], x: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a camera that stands at (x, 0, 0) sees: colours (3, H, W), depth and ids (H, W)."""
    v, u = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    rays = torch.stack([(u - camera.cx) / camera.focal, (v - camera.cy) / camera.focal, torch.ones_like(u)], -1)
    rays, origin = rays.view(-1, 3), torch.tensor([x, 0.0, 0.0])
    inverse = 1 / rays
    first, second = (((bound - origin) * inverse[:, None]) for bound in (scene.low, scene.high))  # (P, N, 3)
    near, axis = torch.minimum(first, second).max(2)
    far = torch.maximum(first, second).amin(2)
    near = torch.where((near < far) & (near > 0), near, math.inf)
    plane = torch.where(rays[:, 1] > 0, scene.ground * inverse[:, 1], math.inf)
    depth, ids = torch.cat([plane[:, None], near], 1).min(1)
    ids = torch.where(depth.isinf(), SKY, ids)
    box = (ids - 1).clamp(min=0)[:, None]
    axis = torch.where(ids == GROUND, 1, axis.gather(1, box)[:, 0])
    colours = _shade(scene, rays, origin, depth, ids, axis)
    return colours.T.reshape(3, *size), depth.view(size), ids.view(size)


def _shade(scene: Scene, rays: Tensor, origin: Tensor, depth: Tensor, ids: Tensor, axis: Tensor) -> Tensor:
    """(P, 3) colours of hits: the surface's own, its texture, and the sun's angle."""
    seen, what = ids != SKY, ids.clamp(min=0)
    points = origin + rays * torch.where(seen, depth, 0.0)[:, None]
    others = torch.tensor([[1, 2], [0, 2], [0, 1]])[axis]
    texture = _value_noise(points.gather(1, others), what * 3 + axis + 1009 * scene.seed)
    contrast = scene.contrast[what]
    sun = torch.tensor(SUN) / math.hypot(*SUN)
    light = 0.45 + 0.55 * sun[axis].abs()
    surface = scene.colours[what] * ((1 - contrast) + contrast * texture)[:, None] * light[:, None]
    sky = torch.tensor([0.55, 0.7, 0.9]) * (1 - 0.3 * rays[:, 1:2].clamp(-1, 0).abs())
    return torch.where(seen[:, None], surface, sky)


def _value_noise(at: Tensor, salt: Tensor, coarsest: float = 0.4, octaves: int = 4) -> Tensor:
    """(P,) smooth noise in [0, 1] at coordinates (P, 2) of surfaces that `salt` (P,) tells from one another."""
    total = torch.zeros(len(at))
    for octave in range(octaves):
        scaled = at / (coarsest / 2**octave)
        corner = scaled.floor()
        part = scaled - corner
        weight = part * part * (3 - 2 * part)
        i, j = corner.long().unbind(1)
        values = [[_hash(i + a, j + b, salt * 31 + octave) for b in (0, 1)] for a in (0, 1)]
        rows = [torch.lerp(one, other, weight[:, 1]) for one, other in values]
        total += torch.lerp(rows[0], rows[1], weight[:, 0])
    return total / octaves


def _hash(i: Tensor, j: Tensor, salt: Tensor) -> Tensor:
    """A number in [0, 1) that follows from three whole ones."""
    n = (i * 374761393 + j * 668265263 + salt * 974634777) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF).float() / 0x10000
