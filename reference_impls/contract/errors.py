"""Errors that users of a technique meet."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class UnsupportedHost(TypeError):
    """The technique cannot work on this target; the message says what it would need."""

    def __init__(self, technique: str, target: object, needs: str) -> None:
        super().__init__(f"{technique} cannot be applied to {type(target).__name__}: it needs {needs}")


class NoEffectWarning(UserWarning):
    """The technique was applied, but found nothing to act on."""


def warn_no_effect(technique: str, why: str) -> None:
    """Warn whoever called `apply` that `technique` changes nothing on this target, and say why; for use in `attach`."""
    warnings.warn(f"{technique} has no effect here: {why}", NoEffectWarning, stacklevel=4)


def nearest(name: str, known: Iterable[str]) -> str:
    """For the end of a message: the known name that is meant, or all of them."""
    close = difflib.get_close_matches(name, known := list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known) or 'none'}"


def check_tensor(name: str, x: Any, shape: str, *, floating: bool = True, finite: bool = True) -> Tensor:
    """Return `x` if it is a tensor of the rank that `shape` names, else raise an error that says what is wrong.

    `shape` names the axes, as in docstrings: `"B N C"` is a tensor of rank 3. A name may fix a size: `"B 3 H W"`.

    Raises: TypeError for something else than a tensor or for a wrong dtype; ValueError for a wrong shape or for
    values that are not finite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of shape ({shape.replace(' ', ', ')}), got {type(x).__name__}")
    axes = shape.split()
    if x.ndim != len(axes) or any(a.isdigit() and int(a) != n for a, n in zip(axes, x.shape, strict=True)):
        raise ValueError(f"{name} must have shape ({', '.join(axes)}), got {tuple(x.shape)}")
    if floating and not x.is_floating_point():
        raise TypeError(f"{name} must hold floating point numbers, got {x.dtype}")
    if finite and floating and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds values that are not finite (NaN or infinity)")
    return x


def check_frame(frame: Any) -> Tensor:
    """Return `frame` if it is one frame (1, C, H, W) of finite pixels, and at least one of them; else raise an error.

    Raises: as `check_tensor`.
    """
    check_tensor("frame", frame, "1 C H W")
    if not frame.numel():
        raise ValueError(
            f"frame must hold pixels, got shape {tuple(frame.shape)}: leave empty frames out of the stream"
        )
    return frame  # type: ignore[no-any-return]


def check_range(
    name: str, value: Any, low: float, high: float = math.inf, *, integer: bool = False, low_open: bool = False
) -> None:
    """Raise an error unless the knob `value` is a number in [low, high] (an integer, if `integer`)."""
    wanted = f"{'an integer' if integer else 'a number'} in {'(' if low_open else '['}{low:g}, {high:g}]"
    kinds = (int,) if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    if value != value or not low <= value <= high or (low_open and value == low):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
