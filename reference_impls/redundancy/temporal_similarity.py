"""Temporal similarity: how much of a stream stays as it was in the frame before.

A tile of T x T positions is *static* at a transition when no value in it moves by more than a threshold. The measure is
the share of static tiles over all transitions: 1 for a still picture, 0 for independent noise. Whole tiles are
compared, because the work of a convolution can only be left out by regions: scattered changes of a few pixels make
every tile active (parger-2022-deltacnn, arXiv 2203.03996, works on regions for the same reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.contract import Redundancy, check_range
from reference_impls.contract.precision import near_one, widened
from reference_impls.redundancy.inputs import measurable


def tile_maximum(x: Tensor, tile: int) -> Tensor:
    """Largest value in each tile of a map with channels last.

    x: (B, H, W, C), not negative. Returns (B, ceil(H / tile), ceil(W / tile)); tiles at the edge may be partly filled.
    """
    batch, height, width, channels = x.shape
    if height % tile or width % tile:
        x = F.pad(x, (0, 0, 0, -width % tile, 0, -height % tile))
    rows, columns = x.shape[1] // tile, x.shape[2] // tile
    return x.reshape(batch, rows, tile, columns, tile * channels).amax((2, 4))


def changed_tiles(previous: Tensor, current: Tensor, *, tile: int, threshold: float) -> Tensor:
    """Tiles of which some value differs by more than `threshold` (in units of the values).

    previous, current: (B, C, H, W). Returns a mask (B, ceil(H / tile), ceil(W / tile)), true where changed. Differences
    are taken in float32 or wider.
    """
    difference = (widened(current) - widened(previous)).abs_().permute(0, 2, 3, 1)  # (B, H, W, C)
    return tile_maximum(difference, tile) > threshold


def temporal_similarity(frames: Tensor | Sequence[Tensor], *, tile: int = 8, threshold: float = 0.05) -> Redundancy:
    """Share of tiles that are static from one frame to the next.

    S = 1/(T-1) sum_t mean_tiles [ max_tile |x_t - x_(t-1)| <= threshold * s ], with s the standard deviation of the
    first frame, so that the threshold has no unit. `where` gives each transition on its own.

    frames: (T, C, H, W), or T tensors (B, C, H, W). Raises TypeError or ValueError for fewer than two frames, different
    shapes, empty frames, or a frame that is not finite.
    """
    check_range("tile", tile, 1, integer=True)
    check_range("threshold", threshold, 0)
    stream = [measurable(f"frame {i}", x[None] if x.ndim == 3 else x, "B C H W") for i, x in enumerate(frames)]
    if len(stream) < 2:
        raise ValueError(f"temporal similarity compares successive frames: at least 2 are needed, got {len(stream)}")
    if shapes := {tuple(x.shape) for x in stream if x.shape != stream[0].shape}:
        raise ValueError(f"every frame must have the shape of the first, {tuple(stream[0].shape)}; got {shapes}")
    if not len(stream[0]):
        raise ValueError("the frames are empty batches: each must hold at least one picture")
    every = near_one(torch.stack(stream), (0, 1, 2, 3, 4))
    stream, limit = list(every), threshold * every[0].std(correction=0).item()
    masks = [changed_tiles(before, after, tile=tile, threshold=limit) for before, after in pairwise(stream)]
    changed = [mask.double().mean().item() for mask in masks]
    measure = f"share of {tile} x {tile} tiles that stay within {threshold:g} deviations of the frame before"
    where = {f"frame {t + 1}": 1 - share for t, share in enumerate(changed)}
    return Redundancy(1 - sum(changed) / len(changed), measure, where)


def shift_compensated(previous: Tensor, current: Tensor, *, reach: int = 4) -> Tensor:
    """`previous` moved by the whole-pixel shift of at most `reach` that brings it closest to `current`.

    What a moving camera takes away from the similarity of positions, and what following the motion could bring back.
    previous, current: (B, C, H, W); returns (B, C, H, W), with the border repeated where nothing was seen.
    """
    height, width = current.shape[-2:]
    padded = F.pad(previous, (reach, reach, reach, reach), mode="replicate")
    shifts = [(dy, dx) for dy in range(2 * reach + 1) for dx in range(2 * reach + 1)]
    moved = (padded[..., dy : dy + height, dx : dx + width] for dy, dx in shifts)
    return min(moved, key=lambda x: (widened(x) - widened(current)).square_().mean().item())


def held(stream: Tensor, limit: float, tile: int = 1, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A stream whose positions keep what they last sent until they move away from it by more than `limit`.

    stream: (T, C, H, W), successive frames; tile: side of the squares of positions that decide together; given: (C, H,
    W), what was sent before the first frame. Returns the held stream (T, C, H, W) and which positions were sent anew
    (T, H, W) bool; the first frame is, unless `given` says what stood there. What is withheld is never lost: the
    difference is always taken to what was sent (cavigelli-2017-cbinfer, parger-2022-deltacnn).
    """
    out, sent = torch.empty_like(stream), torch.ones(len(stream), *stream.shape[2:], dtype=torch.bool)
    sent = sent.to(stream.device)
    known = given
    for t, frame in enumerate(stream):
        if known is not None:
            moved = changed_tiles(known[None], frame[None], tile=tile, threshold=limit)[0]
            if tile > 1:
                moved = moved.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[: frame.shape[1], : frame.shape[2]]
            sent[t] = moved
            frame = torch.where(moved, frame, known)
        out[t] = known = frame
    return out, sent


def affected(sent: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
             dilation: tuple[int, int] = (1, 1)) -> Tensor:  # fmt: skip
    """Outputs of a convolution whose window holds a sent position: (T, H, W) bool -> (T, H', W') bool."""
    if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return sent
    window = F.conv2d(sent[:, None].float(), torch.ones(1, 1, *kernel, device=sent.device), None, stride, padding,
                      dilation)  # fmt: skip
    return window[:, 0] > 0.5


def lags(frames: Tensor, most: int, *, tile: int = 8, threshold: float = 0.05) -> dict[int, float]:
    """Share of static tiles between frames that lie 1, 2, ... `most` apart: (T, C, H, W) -> {lag: share}."""
    return {
        lag: sum(temporal_similarity(frames[[t, t + lag]], tile=tile, threshold=threshold).value
                 for t in range(len(frames) - lag)) / (len(frames) - lag)
        for lag in range(1, min(most, len(frames) - 1) + 1)
    }  # fmt: skip
