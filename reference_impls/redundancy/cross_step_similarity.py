"""Cross-step similarity: how little a further step or layer changes what it is given.

The influence of a block is BI = 1 - E cos(x_in, x_out) over the positions of its input and output (men-2025-shortgpt,
arXiv 2403.03853): 0 for a block that does nothing, and about 1 for one that replaces what it is given. The measure is
the mean over positions of max(0, cos), and counts as redundancy what a block leaves.

The steps may be those of a training too: weights that are at half time what they are at its end had nothing to learn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract import check_tensor
from reference_impls.contract.precision import near_one, widened


def left_alone(before: Tensor, after: Tensor) -> Tensor:
    """Mean cosine of what a block is given and what it gives, 1 - BI, negative ones as 0: (B, ...) -> (B,) in [0, 1].

    before, after: (B, N, C) tokens or (B, C, H, W) maps, whose positions are compared over channels.
    Raises: ValueError for different shapes, or values that are not finite.
    """
    if before.shape != after.shape:
        raise ValueError(f"a block is compared with its own input: {tuple(before.shape)} and {tuple(after.shape)}")
    shape = "B C H W" if before.ndim == 4 else "B N C" if before.ndim == 3 else "B C"
    check_tensor("before", before, shape)
    check_tensor("after", after, shape)
    axis = 1 if before.ndim != 3 else 2
    a, b = (near_one(widened(x), axis) for x in (before, after))
    cosine = F.cosine_similarity(a, b, dim=axis, eps=torch.finfo(a.dtype).tiny)
    same = (before == after).all(axis)  # two zero vectors are alike too
    return torch.where(same, torch.ones_like(cosine), cosine).clamp(0, 1).double().reshape(len(before), -1).mean(1)


def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """BI = 1 - E cos(x_in, x_out) of each datum (men-2025-shortgpt): (B,) in [0, 1]."""
    return 1 - left_alone(before, after)


def step_change(before: Tensor, after: Tensor) -> Tensor:
    """|x_t - x_(t-1)| / |x_t| of each datum between two steps on it: (B, ...) -> (B,), as step caches compare."""
    if before.shape != after.shape:
        raise ValueError(f"steps of one datum have one shape: {tuple(before.shape)} and {tuple(after.shape)}")
    change = (widened(after) - widened(before)).flatten(1).norm(dim=1)
    return change / widened(after).flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


def settled_weights(now: Tensor, final: Tensor) -> float:
    """1 - |w_T - w_t| / |w_T| of the weights of a part at some step and at the end of a training, in [0, 1].

    now, final: of one shape, in any order of axes. 1 for weights that stay; the null, weights that have nothing to do
    with the final ones and have their norm, is below 0 before it is cut, since |w_T - w_t| = sqrt 2 |w_T|.
    Raises: ValueError for two shapes.
    """
    if now.shape != final.shape:
        raise ValueError(f"weights of one shape are compared, got {tuple(now.shape)} and {tuple(final.shape)}")
    a, b = now.detach().double(), final.detach().double()
    return max(0.0, 1 - (b - a).norm().item() / max(b.norm().item(), 1e-30))
