"""Models that are recorded (`hosts.graph`): their copies, the small frames on which they are tried, and comparisons."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reference_impls.contract import generator
from reference_impls.hosts.graph import Recording, Unaccounted, record

PROBED_SIDES = (64, 32, 224, 128, 96, 48, 28, 256)
"""Sides of the frames on which a model is tried if nothing is said of them: the first on which it runs."""
TOLERANCE = {torch.float64: 1e-8}
"""Largest difference from the model, relative to the largest magnitude of its result; 1e-3 for other types."""


def copied(target: nn.Module) -> nn.Module:
    """A copy without gradients, to which nobody else holds a reference."""
    memo: dict[int, Any] = {}
    for module in target.modules():  # the weights of a `weight_norm` are attributes that cannot be copied with a graph
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        with torch.no_grad():
            model = copy.deepcopy(target, memo)
    except Exception as error:
        raise Unaccounted(f"a model that copy.deepcopy can copy ({error})") from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@contextmanager
def quietly(device: torch.device | None) -> Iterator[None]:
    """Without gradients, autocast and inference mode."""
    kind = device.type if device else "cpu"
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
        yield


def probed(model: nn.Module, frame_shape: Sequence[int] | None) -> tuple[Recording, Tensor]:
    """A run of the model on the first small frame that it takes, and that frame."""
    first = next((p for p in model.parameters() if p.dim() == 4), None)
    layer = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    norm = next((m for m in model.modules() if isinstance(m, nn.BatchNorm2d)), None)
    channels = (
        [layer.in_channels] if layer else [norm.num_features] if norm else [first.shape[1]] if first is not None else []
    )
    guesses = [(1, c, side, side) for c in dict.fromkeys((*channels, 3)) for side in PROBED_SIDES]
    like = next(model.parameters(), torch.zeros(()))
    failure: Exception | None = None
    for shape in [tuple(frame_shape)] if frame_shape else guesses:
        frame = torch.randn(shape, generator=generator(0)).to(like)
        try:
            return record(model, frame), frame
        except Unaccounted:
            raise
        except Exception as error:
            failure = failure or error
    tried = (
        f"shape {tuple(frame_shape)}"
        if frame_shape
        else f"shape (1, {channels[0] if channels else 3}, H, W), H = W in {PROBED_SIDES}"
    )
    raise Unaccounted(
        f"a model that runs on frames of {tried}; it raises {type(failure).__name__}: {failure}. "
        "Other shapes are given as frame_shape=(B, C, H, W)"
    )


def compare(expected: Any, actual: Any) -> None:
    leaves, structure = pytree.tree_flatten(expected)
    others, other_structure = pytree.tree_flatten(actual)
    same = structure == other_structure
    for a, b in zip(leaves, others, strict=False):
        if not isinstance(a, Tensor):
            same = same and a == b
        elif a.shape != b.shape or a.dtype != b.dtype:
            same = False
        elif a.is_floating_point():
            finite = a.isfinite() & b.isfinite()
            size, error = (x[finite].abs().amax() if finite.any() else x.new_zeros(()) for x in (a, a - b))
            same = same and bool((a.isfinite() == b.isfinite()).all())
            same = same and bool(error <= TOLERANCE.get(a.dtype, 1e-3) * size)
        else:
            same = same and bool((a == b).float().mean() > 0.95)
    if not same:
        raise Unaccounted("a model whose result depends on its weights and the frame alone; rebuilt, it differs")
