"""Irrelevance: what could be deleted with nothing in its place.

A value is *negligible* when its magnitude is at most a share epsilon of the standard deviation of its datum; epsilon 0
asks for exact zeros. Work falls away by structures only, so zeros are counted by the structure that a kernel could
leave out: single values (which dense kernels cannot), whole channels of a datum, tiles of a map, token rows, and two of
every four neighbours. A batch shares its kernels, so a structure of a batch is negligible if it is so in all its items:
the share falls as batches grow (liu-2023-deja shows it for tokens).

Of attention, what is irrelevant are the keys beyond the fewest that hold a share of a query's mass. Of data sets, it is
the samples that the model has learnt.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.contract import check_range, check_tensor
from reference_impls.contract.precision import widened
from reference_impls.redundancy.inputs import measurable

Structure = Literal["element", "channel", "tile", "token", "two-of-four"]


def negligible(x: Tensor, epsilon: float) -> Tensor:
    """Where |x| <= epsilon s, with s the standard deviation of the datum: x (B, ...) -> bool of the same shape."""
    check_range("epsilon", epsilon, 0)
    magnitude = widened(x).abs()
    if epsilon == 0:
        return magnitude == 0
    spread = widened(x).flatten(1).std(1, correction=0).view(-1, *[1] * (x.ndim - 1))
    return magnitude <= epsilon * spread


def whole(small: Tensor, structure: Structure, tile: int = 8) -> Tensor:
    """Negligible values that lie in structures of nothing else, as a mask of the same shape.

    small: bool, (B, C, H, W) of a map or (B, N, C) of tokens. A channel is one of the last axis of tokens and of the
    second of maps; a tile is `tile` x `tile` positions of a map with all channels; two of four neighbouring channels.
    Raises: ValueError for a structure that does not fit.
    """
    is_map = small.ndim == 4
    if structure == "element":
        return small
    if structure == "channel":
        return small.all(dim=(2, 3) if is_map else 1, keepdim=True).expand_as(small)
    if structure == "token":
        return small.all(dim=1 if is_map else 2, keepdim=True).expand_as(small)
    if structure == "tile":
        if not is_map:
            raise ValueError(f"tiles are of maps (B, C, H, W), got {tuple(small.shape)}")
        height, width = small.shape[2:]
        busy = F.pad((~small).any(1, keepdim=True).float(), (0, -width % tile, 0, -height % tile))
        kept = F.interpolate(F.max_pool2d(busy, tile), scale_factor=tile, mode="nearest")[..., :height, :width]
        return (kept == 0).expand_as(small)
    axis = 1 if is_map else 2
    groups = small.movedim(axis, -1)
    length = groups.shape[-1] // 4 * 4
    four = groups[..., :length].unflatten(-1, (-1, 4))
    enough = (four.sum(-1, keepdim=True) >= 2).expand_as(four)
    # Of a group with more than two, only the first two count: the pattern leaves out exactly two.
    chosen = (four & enough & (four.cumsum(-1) <= 2)).flatten(-2)
    return F.pad(chosen, (0, groups.shape[-1] - length)).movedim(-1, axis)


def negligible_share(x: Tensor, epsilon: float, structure: Structure = "element", tile: int = 8) -> Tensor:
    """Share of the values of each datum x (B, C, H, W) or (B, N, C) in negligible structures: (B,) in [0, 1].

    Raises: TypeError or ValueError for another shape, or values that are not finite.
    """
    measurable("x", x, "B C H W" if x.ndim == 4 else "B N C")
    return whole(negligible(x, epsilon), structure, tile).double().flatten(1).mean(1)


def batch_share(x: Tensor, epsilon: float, structure: Structure, batch: int, tile: int = 8) -> float:
    """The same when `batch` data share their kernels: a structure goes only if it is negligible in all of them."""
    check_range("batch", batch, 1, integer=True)
    small = whole(negligible(x, epsilon), structure, tile)
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


def padding_share(mask: Tensor) -> Tensor:
    """Share of the tokens of each datum that are padding: mask (B, N), true at real tokens -> (B,)."""
    return 1 - mask.double().mean(1)
