"""Convolutions and linear layers on a processing-in-memory array (`arrays`), and what training does with them.

References:
  jin-2022-pim (arXiv 2209.08617): names the rescaling. Its method section was not available to us: the form is a
    reconstruction, and every choice of it is a parameter.

    array = Array(scheme="bit-serial", adc_bits=5, dac_bits=4, group=144)
    layer = PIMConv2d(16, 32, 3, padding=1, array=array)     # an nn.Conv2d in all else, its state dict included
    y = layer(x)                                             # x in [0, 1]: (B, 16, H, W) -> (B, 32, H, W)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import Footprint, Shape, closed_form
from reference_impls.contract.errors import check_range
from reference_impls.layers.arrays import IDEAL as IDEAL  # with the layers stands what they are built with
from reference_impls.layers.arrays import SCHEMES as SCHEMES
from reference_impls.layers.arrays import Array as Array
from reference_impls.layers.arrays import Chip as Chip
from reference_impls.layers.arrays import array_convolution, job_of, partial_sums
from reference_impls.layers.quantised import (
    Span,
    activation_codes,
    along_outputs,
    check_device,
    padded,
    product,
    straight,
    weight_codes,
)

EXACT = Array()
"""Exact sums: an ideal converter."""
UNIT = Span()
ROWS = 1024
"""Rows of a linear layer that are computed at a time."""


@dataclass(frozen=True)
class Rescaling:
    """How a layer on an array is rescaled (jin-2022-pim names it; the form is a reconstruction).

    backward: the gradient is that of the digital layer times xi = sqrt(VAR[y_pim] / VAR[y]), of the layer's own batch,
    within [low, high]. forward: a constant eta by which the output is multiplied.
    """

    backward: bool = True
    forward: float = 1.0
    low: float = 0.1
    high: float = 10.0

    def __post_init__(self) -> None:
        check_range("forward", self.forward, 0, 1e6, low_open=True)
        check_range("low", self.low, 0, 1e6, low_open=True)
        check_range("high", self.high, self.low, 1e6)


NO_RESCALING = Rescaling(backward=False)


class Seen(NamedTuple):
    """What a layer did in its last run."""

    shape: tuple[int, ...]
    """Of its input."""
    conversions: int
    xi: float | None
    """std(y_pim) / std(y) of the batch, before it is guarded; None where no gradient was asked for. 0: every code was
    0, which is the dead zone of a converter whose step is above all sums."""


def scale_ratio(y_pim: Tensor, y: Tensor) -> float:
    """rho = std(y_pim) / std(y): above 1, conversion enlarges the scale; 0 in the dead zone and for constant y."""
    spread = y.std(correction=0).item() if y.numel() else 0.0
    return y_pim.std(correction=0).item() / spread if spread > 0 else 0.0


def pim_layer(
    layer: nn.Conv2d | nn.Linear,
    x: Tensor,
    array: Array,
    span: Span | None = None,
    rescaling: Rescaling = NO_RESCALING,
    seen: Callable[[Seen], None] = lambda one: None,
) -> Tensor:
    """What an array gives in the place of a convolution or a linear layer; biases are added digitally.

    x: (B, C, H, W), or (..., C) for a linear layer, in float32 or float64. span: what activations are clipped to; None:
    what holds the batch. Where the span reaches below 0, the array sees x - zero, and the sum of the weights times zero
    is taken away digitally. Gradients go straight through, times xi.

    Raises: ValueError as `check_layer` and `check_device`, and for weights or activations that are not finite.
    """
    check_layer(layer, array)
    check_device(x.device)
    with torch.autocast(x.device.type, enabled=False):
        a = activation_codes(x, Span.of(x) if span is None else span, array.activation_bits)
        w = weight_codes(layer.weight, array.weight_bits, array.weights)
        with torch.no_grad():
            total = _on_array(layer, a.codes, w.codes, a.zero, array)
            step = w.step if isinstance(w.step, float) else w.step.flatten()
            value = _scaled(layer, total * array.scale if array.adc_bits is not None else total, step, a.step)
            value = value.to(x.dtype)
        xi = None
        if torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad):
            digital = product(layer, padded(layer, a.real), w.real)
            xi = scale_ratio(value, digital.detach())
            factor = min(max(xi, rescaling.low), rescaling.high) if rescaling.backward else 1.0
            value = straight(value, digital, factor)
        seen(Seen(tuple(x.shape), conversions(layer, x.shape, array), xi))
        value = value * rescaling.forward if rescaling.forward != 1 else value
        bias = layer.bias
        return value if bias is None else value + along_outputs(layer, bias)


@torch.no_grad()
def largest_sum(layer: nn.Conv2d | nn.Linear, x: Tensor, array: Array, span: Span | None) -> float:
    """max |s| of the partial sums when x, as in `pim_layer`, reaches the layer."""
    check_layer(layer, array)
    a = activation_codes(x, Span.of(x) if span is None else span, array.activation_bits)
    w = weight_codes(layer.weight, array.weight_bits, array.weights)
    if isinstance(layer, nn.Linear):
        job = job_of(a.codes.reshape(-1, x.shape[-1], 1, 1), w.codes[..., None, None], array, 1, (1, 1), (1, 1))
    else:
        job = job_of(padded(layer, a.codes, a.zero), w.codes, array, layer.groups, layer.stride, layer.dilation)
    return max(sums.abs().max().item() for sums in partial_sums(job, array))


def _on_array(layer: nn.Module, x: Tensor, w: Tensor, zero: int, array: Array) -> Tensor:
    """Products in codes, what `zero` adds to each of them taken away (in units of `array.scale`)."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1]).split(ROWS)  # as the pixels of an image
        found = [array_convolution(part.T[None, :, :, None], w[..., None, None], array) for part in rows]
        total = torch.cat([part[0, :, :, 0] for part in found], 1).T.reshape(*x.shape[:-1], len(w))
        return total - zero * w.sum(1) / array.scale if zero else total
    assert isinstance(layer, nn.Conv2d)
    x = padded(layer, x, zero)
    total = array_convolution(x, w, array, layer.groups, layer.stride, layer.dilation)
    return total - (zero * w.flatten(1).sum(1) / array.scale).view(-1, 1, 1) if zero else total


def _scaled(layer: nn.Module, total: Tensor, step: Tensor | float, unit: Tensor | float) -> Tensor:
    if isinstance(step, Tensor) and isinstance(layer, nn.Conv2d):
        step = step.view(-1, 1, 1)
    return total * (step * unit)


def check_layer(layer: nn.Conv2d | nn.Linear, array: Array) -> None:
    """Raise ValueError for a dot product shorter than a group: most of the converter's range would be of no use."""
    inputs = layer.weight[0].numel()
    if inputs < array.group:
        raise ValueError(
            f"{layer} adds up K = {inputs} products, fewer than the group of N = {array.group} rows: choose a group of "
            f"at most {inputs}, or leave this layer digital"
        )


def conversions(layer: nn.Conv2d | nn.Linear, shape: Shape, array: Array) -> int:
    """Conversions of a layer on an input of a shape, batch axis included: G S C for each output."""
    outputs = closed_form(_plain(layer), tuple(shape[1:])).shape
    return shape[0] * math.prod(outputs) * array.conversions(layer.weight[0].numel())


def array_macs(layer: nn.Conv2d | nn.Linear, shape: Shape, array: Array) -> int:
    """Closed form of the MACs of `array_convolution` for an input of a shape, batch axis included.

    Products in the cells, ragged groups filled up to equal channels, and what shifts and adds the codes of the columns,
    one for each, and then of the cycles, where there are several.
    """
    outputs = shape[0] * math.prod(closed_form(_plain(layer), tuple(shape[1:])).shape)
    channels, area = layer.weight.shape[1], math.prod(layer.weight.shape[2:])
    if array.adc_bits is None:
        return outputs * channels * area
    if array.group % area:
        channels, area = channels * area, 1
    each = min(array.group // area, channels)
    rows = math.ceil(channels / each) * each * area
    add = array.conversions(layer.weight[0].numel()) + (array.slices if array.slices > 1 else 0)
    return outputs * (rows * array.slices * array.columns + add)


class _OnArray:
    """What `PIMConv2d` and `PIMLinear` share."""

    array: Array
    span: Span | None
    rescaling: Rescaling
    seen: Seen | None = None

    def _set(self, array: Array, span: Span | None, rescaling: Rescaling) -> None:
        self.array, self.span, self.rescaling, self.seen = array, span, rescaling, None
        check_layer(self, array)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return pim_layer(self, x, self.array, self.span, self.rescaling, partial(setattr, self, "seen"))  # type: ignore[arg-type]


class PIMConv2d(_OnArray, nn.Conv2d):
    """An `nn.Conv2d` on an array: same arguments, parameters and shapes. `seen` tells of the last run.

    array: how it computes. span: what activations are clipped to; None: what holds the batch. rescaling: of gradients
    and outputs. They may be set later too.
    """

    def __init__(
        self,
        *args: Any,
        array: Array = EXACT,
        span: Span | None = UNIT,
        rescaling: Rescaling = Rescaling(),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._set(array, span, rescaling)


class PIMLinear(_OnArray, nn.Linear):
    """An `nn.Linear` on an array, as `PIMConv2d`."""

    def __init__(
        self,
        *args: Any,
        array: Array = EXACT,
        span: Span | None = UNIT,
        rescaling: Rescaling = Rescaling(),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._set(array, span, rescaling)


def _plain(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The same layer without an array, on `meta`: for the shape of its output."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, device="meta")
    sizes: dict[str, Any] = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return nn.Conv2d(layer.in_channels, layer.out_channels, **sizes, groups=layer.groups, device="meta")


@closed_form.register(PIMConv2d)
@closed_form.register(PIMLinear)
def _(layer: PIMConv2d | PIMLinear, shape: Shape) -> Footprint:
    plain = closed_form(_plain(layer), shape)
    parameters = sum(p.numel() for p in layer.parameters())
    rows = math.prod(shape[:-1]) if isinstance(layer, nn.Linear) else 1
    whole = (rows, shape[-1]) if isinstance(layer, nn.Linear) else (1, *shape)
    return Footprint(parameters, array_macs(layer, whole, layer.array), plain.shape)
