"""Motion between two frames by block matching, and feature maps and boxes that move along it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)


def luma(frame: Tensor, scale: int = 2) -> Tensor:
    """Brightness of a frame (1, 3, H, W), averaged over `scale` x `scale` pixels: (H / scale, W / scale)."""
    grey = frame.shape[1] == 1
    weights = frame.new_tensor([1.0] if grey else LUMA)
    return F.avg_pool2d((frame[:1] * weights[:, None, None]).sum(1, keepdim=True), scale)[0, 0]


def block_flow(
    previous: Tensor, current: Tensor, *, block: int = 8, reach: int = 8, still: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Where each block of the current frame lay in the previous one: the shift with the smallest absolute difference.

    Blocks whose mean difference is at most `still` did not move, and cost no search.
    previous, current: (H, W). Returns shifts (2, H / block, W / block), down and across, in positions of these maps,
    and the mean absolute difference that is left of each block. Rows and columns beyond the last whole block are left
    out.
    """
    rows, columns = current.shape[0] // block, current.shape[1] // block
    flow = current.new_zeros(2, rows, columns)

    def blocks(x: Tensor) -> Tensor:
        x = x[: rows * block, : columns * block].reshape(rows, block, columns, block)
        return x.transpose(1, 2).reshape(-1, block, block)  # (rows * columns, block, block)

    mine = blocks(current)
    left = (mine - blocks(previous)).abs().mean((1, 2))
    moved = (left > still).nonzero()[:, 0]
    if len(moved):
        side = block + 2 * reach
        padded = F.pad(previous[None, None], (reach,) * 4, mode="replicate")[0, 0]
        windows = padded.unfold(0, side, block).unfold(1, side, block)[:rows, :columns]
        windows = windows[moved // columns, moved % columns]  # (n, side, side)
        shifted = windows.unfold(1, block, 1).unfold(2, block, 1)  # (n, 2 reach + 1, 2 reach + 1, block, block)
        errors = (shifted - mine[moved][:, None, None]).abs_().mean((3, 4))
        errors[:, reach, reach] *= 0.999  # of equal shifts none is chosen
        best, which = errors.flatten(1).min(1)
        side = 2 * reach + 1
        flow.flatten(1)[:, moved] = torch.stack((which // side - reach, which % side - reach)).to(flow.dtype)
        left[moved] = best
    return flow, left.view(rows, columns)


def warped(features: Tensor, flow: Tensor) -> Tensor:
    """f(p) = sum_q G(q, p + M(p)) f_k(q), G the bilinear kernel (zhu-2017-feature, equation 3).

    features: (1, C, H, W). flow: (2, H, W) down and across, in positions. Beyond the border its values are repeated.
    """
    height, width = features.shape[2:]
    y, x = (torch.arange(n, device=flow.device, dtype=flow.dtype) for n in (height, width))
    y, x = y[:, None] + flow[0], x + flow[1]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    down, across = y - top, x - left
    if not bool(down.any() or across.any()):
        return features[:, :, top.long(), left.long()]
    below, right = (top + 1).clamp(max=height - 1).long(), (left + 1).clamp(max=width - 1).long()
    top, left = top.long(), left.long()
    upper = features[:, :, top, left] * (1 - across) + features[:, :, top, right] * across
    lower = features[:, :, below, left] * (1 - across) + features[:, :, below, right] * across
    return upper * (1 - down) + lower * down


def moved_boxes(boxes: Tensor, flow: Tensor, scale: float) -> Tensor:
    """Boxes (N, 4) of the previous frame, each moved by the median of the flow of the moving blocks that it covers.

    flow: (2, rows, columns) from the current frame back to the previous one, in pixels; a block is `scale` pixels wide.
    A box stays where at most a quarter of its blocks moves.
    """
    out = boxes.clone()
    for n, box in enumerate((boxes / scale).round().long().tolist()):
        (x, x_end), (y, y_end) = (box[0], max(box[2], box[0] + 1)), (box[1], max(box[3], box[1] + 1))
        covered = flow[:, max(y, 0) : y_end, max(x, 0) : x_end].flatten(1)
        moving = covered[:, (covered != 0).any(0)]
        if 4 * moving.shape[1] > covered.shape[1]:
            shift = -moving.median(1).values
            out[n] += torch.stack((shift[1], shift[0], shift[1], shift[0]))
    return out


def resized_flow(flow: Tensor, size: Sequence[int]) -> Tensor:
    """A flow on another grid: (2, h, w) -> (2, *size), averaged; its unit stays."""
    return flow if tuple(size) == tuple(flow.shape[1:]) else F.adaptive_avg_pool2d(flow, (size[0], size[1]))
