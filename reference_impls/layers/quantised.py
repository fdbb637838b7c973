"""Integers in the place of real numbers: codes of activations and of weights, and gradients straight through.

References:
  zhou-2016-dorefa (arXiv 1606.06160): rounding in the forward pass, the identity in the backward pass.
  jin-2022-pim (arXiv 2209.08617) builds on it; its own form of the weights is not available to us.

A code is an integer in a floating point tensor, so that every kernel takes it; sums of codes are exact as long as they
stay below 2^24 in float32 and 2^53 in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Literal["tanh", "max"]
"""How weights become codes: `tanh` squeezes them first, by one scale for a layer, for training from the start; `max`
has a scale for each output channel, for the weights of a finished network."""


@dataclass(frozen=True)
class Span:
    """What activations are clipped to before they become codes. It holds 0, which gets a code of its own.

    Raises ValueError for ends that are not finite, or that do not hold 0 with a positive `high`.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= 0 < self.high):
            raise ValueError(f"activations are clipped to [low, high] with low <= 0 < high, got {self}")

    @staticmethod
    def of(x: Tensor, quantile: float = 1.0) -> Span:
        """What holds 0 and the values x, or leaves out the share 1 - `quantile` at the upper and at a lower end.

        Raises ValueError for values that are not finite, and where there are none.
        """
        if x.numel() == 0:
            raise ValueError("an empty batch has no range of activations: give the layer a Span")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("the activations hold values that are not finite (NaN or infinity)")
        values = x.detach().flatten().float()
        if quantile < 1:
            ordered = values.sort().values
            cut = int((1 - quantile) * (len(values) - 1))
            low, high = ordered[cut].item(), ordered[len(values) - 1 - cut].item()
        else:
            low, high = values.min().item(), values.max().item()
        return Span(min(low, 0.0), high if high > 0 else max(-low, 1.0))


class Codes(NamedTuple):
    """Integers and what they stand for: `(codes - zero) * step`."""

    codes: Tensor
    step: Tensor | float
    zero: int
    through: Tensor
    """The same values before they were rounded, for the gradient: clipped activations, scaled weights."""

    @property
    def real(self) -> Tensor:
        """The values, with the gradient of what was rounded."""
        return straight((self.codes - self.zero) * self.step, self.through)


def activation_codes(x: Tensor, span: Span, bits: int) -> Codes:
    """x as integers in [0, 2^bits - 1], rounded half to even; the gradient is that of clipping to the span.

    With the span [0, 1] this is `round(A clip(x, 0, 1))` with A = 2^bits - 1. Where the span reaches below 0, zero is
    rounded to a code, so that padding is exact.
    """
    top = 2**bits - 1
    rate = top / (span.high - span.low)
    zero = round(-span.low * rate)
    with torch.no_grad():
        codes = (x * rate).round_().add_(zero).clamp_(0, top)
    return Codes(codes, 1 / rate, zero, x.clamp(-zero / rate, (top - zero) / rate))


def signed_codes(x: Tensor, bits: int, axes: Sequence[int] | None = None) -> Codes:
    """x as integers in [-2^(bits - 1), 2^(bits - 1) - 1], rounded half to even; a step for each slice along `axes`.

    axes: over which a step is shared; None: all of them. The step is max |x| / (2^(bits - 1) - 1), so that nothing is
    clipped; where that is 0, any step would do, and it is 1. Raises ValueError for values that are not finite.
    """
    axes = range(x.ndim) if axes is None else axes
    top = 2 ** (bits - 1) - 1
    with torch.no_grad():
        peak = torch.linalg.vector_norm(x, math.inf, tuple(axes), keepdim=True)
        if not bool(torch.isfinite(peak).all()):
            raise ValueError("the activations hold values that are not finite (NaN or infinity): they have no codes")
        peak = torch.where(peak > 0, peak, float(top))
        codes = (x * top).div_(peak).round_()  # in this order, so that ties are exact
    return Codes(codes, peak / top, 0, x)


def weight_codes(weight: Tensor, bits: int, how: Weights) -> Codes:
    """Weights (O, ...) as integers in [-W, W] with W = 2^(bits - 1) - 1 and an exact zero, rounded half to even.

    `tanh`: W tanh(w) / max |tanh(w)|, with the step s / W that gives a layer of n outputs and k positions of a kernel
    the deviation 1 / sqrt(n k) (a reconstruction: jin-2022-pim's own scale is not available). `max`: W w / max |w| by
    output channel, with the step that gives w back.

    Raises ValueError for weights that are not finite.
    """
    if not bool(torch.isfinite(weight.detach()).all()):
        raise ValueError("the weights hold values that are not finite (NaN or infinity): they have no codes")
    top, tiny = 2 ** (bits - 1) - 1, torch.finfo(weight.dtype).tiny
    if how == "max":
        peak = weight.detach().abs().flatten(1).amax(1).clamp_min(tiny).view(-1, *[1] * (weight.ndim - 1))
        with torch.no_grad():
            codes = (weight / peak * top).round_()
        return Codes(codes, peak / top, 0, weight)
    squeezed = weight.tanh()
    squeezed = squeezed / squeezed.detach().abs().max().clamp_min(tiny)
    codes = (squeezed.detach() * top).round_()
    spread = (codes / top).std(correction=0).clamp_min(tiny).item()
    scale = 1 / (math.sqrt(len(weight) * math.prod(weight.shape[2:])) * spread)
    return Codes(codes, scale / top, 0, squeezed * scale)


def bit_planes(codes: Tensor, bits: int, each: int = 1) -> Tensor:
    """Bits of codes, `each` of them in a plane, the lowest first: (...) -> (ceil(bits / each), ...).

    Of a negative code, the bits of its two's complement, of which the highest counts -2^(bits - 1).
    """
    shifts = torch.arange(0, bits, each, device=codes.device).view(-1, *[1] * codes.ndim)
    return ((codes.int().unsqueeze(0) >> shifts) & (2**each - 1)).to(codes.dtype)


def exact_dtype(x: Tensor, largest: int) -> torch.dtype:
    """The type in which products and sums of integers up to `largest` are exact, not narrower than that of x.

    On a GPU always float64: products of float32 may be rounded to ten bits there (TF32).
    """
    if x.is_cuda or largest >= 2**24:
        return torch.float64
    return torch.promote_types(x.dtype, torch.float32)


def padded(layer: nn.Conv2d | nn.Linear, x: Tensor, value: float = 0.0) -> Tensor:
    """The layer's input with its padding, where that is zeros of another value, such as the code of zero."""
    if isinstance(layer, nn.Linear) or not any(pads := layer._reversed_padding_repeated_twice):
        return x
    if layer.padding_mode == "zeros":
        return F.pad(x, pads, value=value)
    return F.pad(x, pads, mode=layer.padding_mode)


def product(layer: nn.Conv2d | nn.Linear, x: Tensor, w: Tensor) -> Tensor:
    """What the layer gives on a padded input and on other weights, without its bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, w)
    return F.conv2d(x, w, None, layer.stride, 0, layer.dilation, layer.groups)


def along_outputs(layer: nn.Conv2d | nn.Linear, values: Tensor) -> Tensor:
    """Values of the outputs (O,), such as a bias, to meet what the layer gives."""
    return values if isinstance(layer, nn.Linear) else values.view(-1, 1, 1)


def integer_product(
    layer: nn.Conv2d | nn.Linear, codes: Tensor, w: Tensor, zero: int, bits: int, window: tuple[int, int] | None = None
) -> Tensor:
    """Sums of (codes - zero) w for codes of activations and of weights, of `bits` together: exact, without the bias.

    window: the bits of the activations, from one to before another, that hold all of them: then the sums are computed
    bit by bit, all bits at once, and shifted and added up.
    """
    inputs = layer.weight[0].numel()
    wide = exact_dtype(codes, inputs * 2**bits)
    x, w = padded(layer, codes, zero).to(wide), w.to(wide)
    if window is None:
        total = product(layer, x, w)
    else:
        low, high = window
        planes = bit_planes(x / 2**low, high - low)
        if isinstance(layer, nn.Linear):
            sums = product(layer, planes, w)
        else:
            sums = product(layer, planes.flatten(0, 1), w).unflatten(0, planes.shape[:2])
        counts = 2.0 ** torch.arange(low, high, device=w.device, dtype=wide)
        total = torch.matmul(counts, sums.flatten(1)).view(sums.shape[1:])
    return total - along_outputs(layer, zero * w.flatten(1).sum(1)) if zero else total


def check_device(device: torch.device) -> None:
    """Raise ValueError for a device that this torch cannot compute exact integers on, saying what to change."""
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise ValueError(f"integers are computed on the CPU or on CUDA, not on {device}: move model and data by .cpu()")
    built = torch.cuda.get_arch_list() if torch.cuda.is_available() else []
    if not built:
        raise ValueError("this torch has no CUDA kernels: install a build with CUDA, or move model and data by .cpu()")
    major, minor = torch.cuda.get_device_capability(device)
    ready = {f"sm_{major}{n}" for n in range(minor + 1)}
    if not ready & {name.rstrip("af") for name in built} and not any(name.startswith("compute_") for name in built):
        raise ValueError(
            f"this torch has CUDA kernels for {', '.join(built)} and none for {device}, which is sm_{major}{minor}: "
            "install a build that has them, or move model and data by .cpu()"
        )


def straight_product(layer: nn.Conv2d | nn.Linear, value: Tensor, a: Codes, w: Codes) -> Tensor:
    """`value`, what the layer gives on codes, with the gradient of its product on what they stand for."""
    if not (torch.is_grad_enabled() and (a.through.requires_grad or w.through.requires_grad)):
        return value
    return straight(value, product(layer, padded(layer, a.real), w.real))


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient * ctx.factor, None


def straight(value: Tensor, through: Tensor, factor: float = 1.0) -> Tensor:
    """`value` itself, with `factor` times the gradient of `through`: the straight-through estimator."""
    if not (torch.is_grad_enabled() and through.requires_grad):
        return value
    result: Tensor = _Straight.apply(value.detach(), through, factor)  # type: ignore[no-untyped-call]
    return result
