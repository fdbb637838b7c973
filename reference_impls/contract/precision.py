"""Decisions (cosines, norms, shares, thresholds) are made in float32 or wider, whatever the dtype of a model is."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in float32 where its dtype is narrower or holds integers, else as it is."""
    return x if x.dtype == torch.float32 else x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which autocast does not narrow what is computed on the device of `x`."""
    kind = x.device.type
    narrows = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if narrows else nullcontext()


def near_one(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """`x` times a power of two for each slice over `dims`, which brings its largest magnitude to about 1.

    Squares and their sums then neither overflow nor vanish, and what does not depend on scale is the same bit for bit.
    Slices of zeros stay as they are. The sizes of `dims` must not be 0; `x` must be float32 or wider.
    """
    limit = math.frexp(torch.finfo(x.dtype).max)[1] - 28
    mantissa, exponent = torch.frexp(x.detach().abs().amax(dims, keepdim=True))
    return x * torch.ldexp(torch.ones_like(mantissa), -exponent.clamp(-limit, limit))
