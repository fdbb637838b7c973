"""Irrelevance: what could be deleted with nothing in its place.

A value is *negligible* when its magnitude is at most a share epsilon of the standard deviation of its datum; epsilon 0
asks for exact zeros. Work falls away by structures only, so zeros are counted by the structure that a kernel could
leave out: single values (which dense kernels cannot), whole channels of a datum, tiles of a map, token rows, and two of
every four neighbours. A batch shares its kernels, so a structure of a batch is negligible if it is so in all its items:
the share falls as batches grow (liu-2023-deja shows it for tokens).

Of attention, what is irrelevant are the keys beyond the fewest that hold a share of a query's mass. Of data sets, it is
the samples that the model has learnt. Of weights and gradients it is what hardly adds to their norm (Hoyer's sparsity),
and of parts of a network what its output does not notice.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract import check_range, check_tensor
from reference_impls.contract.precision import widened
from reference_impls.redundancy.inputs import deviations, measurable

Structure = Literal["element", "channel", "tile", "token", "two-of-four"]


def negligible(x: Tensor, epsilon: float, structure: Structure = "element", tile: int = 8) -> Tensor:
    """Structures of x (B, C, H, W) or (B, N, C) whose values all have |x| <= epsilon s, as a mask.

    s is the standard deviation of the datum. The mask has size 1 along the axes that a structure spans, so that it
    broadcasts to x: a channel spans the positions, a token (or position) the channels, a tile of `tile` x `tile`
    positions the channels too. Of four neighbouring channels exactly two go, the first two that may.
    Raises: ValueError for a structure that does not fit, or a bad epsilon.
    """
    check_range("epsilon", epsilon, 0)
    is_map, wide = x.ndim == 4, widened(x)
    limit = epsilon * deviations(wide) if epsilon else wide.new_zeros(len(x))
    limit = limit.view(-1, *[1] * (x.ndim - 1))
    channels = 1 if is_map else 2
    if structure == "channel":
        return wide.abs().amax((2, 3) if is_map else 1, keepdim=True) <= limit
    if structure == "token":
        return wide.abs().amax(channels, keepdim=True) <= limit
    if structure == "tile":
        if not is_map:
            raise ValueError(f"tiles are of maps (B, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        edge = (0, -width % tile, 0, -height % tile)
        largest = F.max_pool2d(F.pad(wide.abs().amax(1, keepdim=True), edge), tile)
        small = (largest <= limit).repeat_interleave(tile, 2).repeat_interleave(tile, 3)
        return small[..., :height, :width]
    small = wide.abs() <= limit
    return small if structure == "element" else _two_of_four(small, channels)


def _two_of_four(small: Tensor, axis: int) -> Tensor:
    groups = small.movedim(axis, -1)
    length = groups.shape[-1] // 4 * 4
    four = groups[..., :length].unflatten(-1, (-1, 4))
    enough = (four.sum(-1, keepdim=True) >= 2).expand_as(four)
    chosen = (four & enough & (four.cumsum(-1) <= 2)).flatten(-2)
    return F.pad(chosen, (0, groups.shape[-1] - length)).movedim(-1, axis)


def negligible_share(x: Tensor, epsilon: float, structure: Structure = "element", tile: int = 8) -> Tensor:
    """Share of the values of each datum x (B, C, H, W) or (B, N, C) in negligible structures: (B,) in [0, 1].

    Raises: TypeError or ValueError for another shape, or values that are not finite.
    """
    measurable("x", x, "B C H W" if x.ndim == 4 else "B N C")
    small = negligible(x, epsilon, structure, tile).flatten(1)
    return small.count_nonzero(1).double() / small.shape[1]


def batch_share(x: Tensor, epsilon: float, structure: Structure, batch: int, tile: int = 8) -> float:
    """The same when `batch` data share their kernels: a structure goes only if it is negligible in all of them."""
    check_range("batch", batch, 1, integer=True)
    small = negligible(x, epsilon, structure, tile)
    parts = [part.all(0).double().mean().item() for part in small.split(batch) if len(part) == batch]
    return sum(parts) / len(parts) if parts else 0.0


def fewest_keys(weights: Tensor, mass: float = 0.95) -> Tensor:
    """The least share of keys that holds `mass` of the attention of each query: weights (..., Q, K) -> (..., Q).

    weights: not negative, rows that sum to 1. With one key it is 1. Raises: ValueError for another mass than (0, 1].
    """
    check_range("mass", mass, 0, 1, low_open=True)
    held = widened(weights).sort(-1, descending=True).values.cumsum(-1)
    return ((held < mass - 1e-6).sum(-1) + 1).double().clamp(max=weights.shape[-1]) / weights.shape[-1]


def attention_irrelevance(weights: Tensor, mass: float = 0.95) -> Tensor:
    """1 - share of keys that holds `mass`, scaled to reach 1 for a single key: (B, H, Q, K) -> (B,) in [0, 1].

    Uniform attention over K keys gives (K - ceil(mass K)) / (K - 1), about 1 - mass: its null.
    """
    check_tensor("weights", weights, "B H Q K")
    keys = weights.shape[-1]
    if keys < 2:
        return weights.new_zeros(len(weights), dtype=torch.float64)
    kept = fewest_keys(weights, mass) * keys
    return ((keys - kept) / (keys - 1)).flatten(1).mean(1)


def sink_mass(weights: Tensor, first: int = 4) -> Tensor:
    """Share of the attention that the first keys get: (B, H, Q, K) -> (B,) in [0, 1] (xiao-2024-streaming)."""
    check_tensor("weights", weights, "B H Q K")
    return widened(weights)[..., :first].sum(-1).flatten(1).mean(1).clamp(0, 1).double()


def easy_share(losses: Tensor) -> float:
    """Share of samples with a loss below the mean, (N,) -> [0, 1]: what InfoBatch draws from (qin-2024-infobatch)."""
    check_tensor("losses", losses, "N")
    return (losses < losses.mean()).double().mean().item() if len(losses) else 0.0


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """|softmax(f(x)) - onehot(y)|_2 of logits (N, K) and labels (N,): (N,) in [0, sqrt 2] (paul-2021-data)."""
    check_tensor("logits", logits, "N K")
    probability = widened(logits).softmax(1)
    return (probability - F.one_hot(labels.long(), logits.shape[1])).norm(dim=1)


def learnt_share(right: Tensor) -> float:
    """Share of samples that are told rightly in the last two epochs, so that they are learnt and not forgotten again.

    right: (T, N) bool, whether each sample was told rightly in each epoch. 0 for no samples; the null, answers by
    chance of K classes, is 1 / K^2. Raises: ValueError for fewer than two epochs.
    """
    if right.ndim != 2 or len(right) < 2:
        raise ValueError("two epochs or more are needed to see whether an example stays learnt")
    return right[-2:].all(0).double().mean().item() if right.shape[1] else 0.0


def hoyer(x: Tensor) -> float:
    """Hoyer's sparsity (sqrt n - |x|_1 / |x|_2) / (sqrt n - 1) of n numbers (Hoyer, 2004), in [0, 1].

    0 where all magnitudes are equal, 1 where only one is not zero, or none; the null, many normal numbers, is
    1 - sqrt(2 / pi). Raises: ValueError for an empty tensor.
    """
    size, n = x.detach().double().abs().flatten(), x.numel()
    if not n:
        raise ValueError("an empty tensor has no sparsity")
    norm = size.norm().item()
    if n == 1 or norm == 0:
        return 1.0 if norm == 0 else 0.0
    return min(max((n**0.5 - size.sum().item() / norm) / (n**0.5 - 1), 0.0), 1.0)


def change(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before - mean of before|, over outputs (N, C) of N inputs; 0 where nothing changes."""
    difference = (after.double() - before.double()).norm().item()
    spread = (before.double() - before.double().mean(0)).norm().item()
    return difference / spread if spread > 0 else math.inf if difference > 0 else 0.0


def indifference(before: Tensor, after: Tensor) -> float:
    """1 - min(1, `change`) of a network's outputs (N, C) when a part of it is left out: 1 where it does nothing.

    0 where the outputs change as much as they differ from input to input, as unrelated ones of their size do (the null:
    their change is about sqrt 2).
    """
    return 1 - min(1.0, change(before, after))


def padding_share(mask: Tensor) -> Tensor:
    """Share of the tokens of each datum that are padding: mask (B, N), true at real tokens -> (B,)."""
    return 1 - mask.double().mean(1)
