"""Bit-serial precision: activations enter bit by bit, so that a layer takes as many cycles as it needs bits.

References:
  judd-2016-stripes (doi 10.1109/MICRO.2016.7783722): activations bit by bit, at a precision that a profile finds for
    each layer. Only its abstract was available to us: how a profile is searched is ours.
  sharma-2018-bit: units of two bits that are fused as a layer asks. lee-2019-unpu: the same for bits of weights.

An activation in codes is a sum of bits, so that a product is one too: of additions of weights, gated by bits,

    sum_i w_i x_i = sum_{k < p} 2^k sum_i w_i x_{i, k}.

Bits that a layer does not need are left out: those above its largest activation are 0, those below the precision that
it needs are cut off. For each layer a profile says which (`profile`); or each group of activations tells by itself,
from the highest and the lowest bit that is in use in it, and then nothing is cut off.

    windows = profile(model, x, score, spans(model, x), tolerance=0.01)
    with BitSerialPrecision().apply(model, windows=windows) as handle:
        y = model(x)
        handle.trace["layers"]                      # planes and cycles of each layer

All planes are computed at once, exactly, in integers: a machine without bit-serial units only simulates this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Given, Handle, Integer, Redundancy, Setting, Technique
from reference_impls.contract.errors import check_range, check_tensor, warn_no_effect
from reference_impls.contract.replacement import replace
from reference_impls.hosts.layers import Layer, plain_layers
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.quantised import (
    Codes,
    Span,
    activation_codes,
    along_outputs,
    bit_planes,
    check_device,
    integer_product,
    straight_product,
    weight_codes,
)


class Window(NamedTuple):
    """The bits of an activation's code that a layer computes: `low` <= bit < `high`."""

    low: int
    high: int


class Seen(NamedTuple):
    """What a layer did in its last run."""

    shape: tuple[int, ...]
    """Of its input."""
    planes: int
    """Bits that were computed."""
    precision: float
    """Bits that an activation takes on a bit-serial unit, in the mean over groups."""


def truncated(codes: Tensor, window: Window) -> Tensor:
    """Codes with the bits below the window cut off; those above it become the largest value that the window holds."""
    step = 2**window.low
    return (codes / step).floor().mul(step).clamp(max=2**window.high - step)


def precisions(codes: Tensor, group: int) -> Tensor:
    """Bits that each group of activations needs, from the lowest to the highest bit in use: (N,) -> (ceil(N / group),).

    0 for a group of zeros. Codes are not negative.
    """
    check_range("group", group, 1, integer=True)
    whole = nn.functional.pad(codes.flatten().int(), (0, -codes.numel() % group)).view(-1, group)
    used = bit_planes(whole, 16).bool().any(2)  # (16, groups)
    ends = torch.arange(16, device=codes.device).view(-1, 1)
    high = torch.where(used, ends + 1, 0).amax(0)
    return high - torch.where(used, ends, 16).amin(0).minimum(high)


def group_precision(layer: Layer, a: Codes, group: int) -> float:
    """Mean bits of an activation of a layer where each group of them along the channels tells its own precision.

    Where codes can be negative, those of the magnitude, and a sign.
    """
    x = (a.codes - a.zero).abs()
    bits = precisions(x if isinstance(layer, nn.Linear) else x.movedim(1, -1), group).double().mean().item()
    return bits + 1 if a.zero else bits


@prepares("search")
def profile(
    model: nn.Module,
    score: Callable[[nn.Module], float],
    spans: Mapping[str, Span],
    *,
    bits: int = 8,
    tolerance: float = 0.0,
    digital: Sequence[str] = (),
) -> dict[str, Window]:
    """The highest bits that each layer needs, found from the first to the last: the others as they are found so far.

    score: of a model on held-out data, higher is better; one that loses more than `tolerance` of what all bits give is
    refused. At most L b runs of it for L layers. Raises as `BitSerialPrecision.apply`.
    """
    check_range("tolerance", tolerance, 0)
    technique = BitSerialPrecision()
    layers = plain_layers(technique.id, model, digital)
    windows = dict.fromkeys(layers, Window(0, bits))

    def of(tried: Mapping[str, Window]) -> float:
        with technique.apply(model, bits=bits, spans=spans, windows=tried, digital=digital):
            return score(model)

    least = of(windows) - tolerance
    for name in layers:
        for low in range(1, bits):
            tried = windows | {name: Window(low, bits)}
            if of(tried) < least:
                break
            windows = tried
    return windows


class BitSerialPrecision(Technique):
    """Computes layers bit by bit of their activations, as many bits as each needs."""

    id = "bit-serial-precision"
    execution = "simulated"
    trains = True
    knobs: ClassVar = {
        "bits": Integer(8, low=1, high=8, optional=True, about="b of the full unit; None: floating point"),
        "weight_bits": Integer(8, low=2, high=8, about="of weights, which are not cut"),
        "spans": Given(
            None,
            form="table",
            about="{layer: Span}, ranges of activations from calibration; None: what holds the batch",
        ),
        "windows": Given(None, form="table", about="{layer: Window}, the bits that each computes; None: all of them"),
        "group": Integer(None, low=1, optional=True, about="activations that share a precision found at run time"),
        "digital": Given((), form="names", about="names of modules to leave in floating point, or `first`, `last`"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("floating point", {"bits": None}, off=True),
            Setting("8 bits, in groups of 4", {"group": 4}, adaptive=True),
            Setting("5 bits", {"bits": 5}, adaptive=True),
        ]

    def measure(self, target: Any, inputs: Tensor) -> Redundancy:
        """Share of the bits of 8-bit codes that groups of 16 activations do not use, mean over layers.

        0: the highest and the lowest bit are in use in every group. Ranges are what holds the inputs.
        Raises: UnsupportedHost as `apply`; ValueError for inputs that are not finite.
        """
        layers = plain_layers(self.id, target, ())
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            check_tensor("inputs", inputs, " ".join("BCHWD"[: inputs.ndim]))
        where = {}
        for name, x in inputs_of(layers, target, inputs).items():
            a = activation_codes(x, Span.of(x), 8)
            where[name] = max(0.0, 1 - group_precision(layers[name], a, 16) / 8)
        return Redundancy(sum(where.values()) / len(where), "bits that groups do not use", where)

    def attach(
        self,
        target: nn.Module,
        bits: int | None,
        weight_bits: int,
        spans: Mapping[str, Span] | None,
        windows: Mapping[str, Window] | None,
        group: int | None,
        digital: Sequence[str],
    ) -> Handle:
        """Compute the layers bit by bit. The trace holds `layers`, what each did in the last run (`Seen`).

        Raises: UnsupportedHost for a model without plain layers, in a narrow dtype, or with a part that multiplies in
            another way; ValueError for windows outside the bits or of other layers, windows together with groups, and
            weights that are not finite.
        """
        layers = plain_layers(self.id, target, digital)
        if bits is None:
            warn_no_effect(self.id, "bits is None, so every layer stays in floating point")
            return Handle(target)
        if windows is not None and group is not None:
            raise ValueError("groups find their precision at run time: give `windows` or `group`, not both")
        for what, given in (("spans", spans), ("windows", windows)):
            if given is not None and (missing := [name for name in layers if name not in given]):
                raise ValueError(f"{what} has nothing for {', '.join(missing)}: it names every layer, or is None")
        chosen = {name: Window(*windows[name]) if windows else Window(0, bits) for name in layers}
        for name, layer in layers.items():
            check_device(layer.weight.device)
            if not 0 <= chosen[name].low < chosen[name].high <= bits:
                raise ValueError(f"{name}: a window lies within the {bits} bits and holds one, got {chosen[name]}")
            if not bool(torch.isfinite(layer.weight).all()):
                raise ValueError(f"{name}: its weights hold values that are not finite (NaN or infinity)")
        seen: dict[str, Seen] = {}
        undos = []
        for name, layer in layers.items():
            one = partial(_serial, bits, weight_bits, spans[name] if spans else None, chosen[name], group, seen, name)
            undos.append(replace(layer, one, self.id))

        def undo() -> None:
            for one in undos:
                one()

        return Handle(target, undo, lambda: {"layers": dict(seen)})

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Dense MACs less those of the planes and of adding them up: below 0, since this is a simulation."""
        modules, saved = dict(target.named_modules()), 0
        for name, one in trace.get("layers", {}).items():
            layer: Any = modules[name]
            rows = math.prod(one.shape[:-1]) if isinstance(layer, nn.Linear) else one.shape[0]
            cost = closed_form(layer, one.shape[-1:] if isinstance(layer, nn.Linear) else one.shape[1:])
            saved += rows * (cost.macs - one.planes * (cost.macs + math.prod(cost.shape)))
        return saved


def _serial(
    bits: int,
    weight_bits: int,
    span: Span | None,
    window: Window,
    group: int | None,
    seen: dict[str, Seen],
    name: str,
    layer: Layer,
    dense: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """In the place of the layer's forward `dense`."""
    with torch.autocast(x.device.type, enabled=False):
        a = activation_codes(x, Span.of(x) if span is None else span, bits)
        w = weight_codes(layer.weight, weight_bits, "max")
        zero = int(truncated(torch.tensor(float(a.zero)), window))  # so that zero stays zero
        a = a._replace(codes=truncated(a.codes, window), zero=zero)
        with torch.no_grad():
            total = integer_product(layer, a.codes, w.codes, zero, bits + weight_bits, window)
            step = along_outputs(layer, torch.as_tensor(w.step).flatten())
            value = (total * (a.step * step)).to(x.dtype)
        value = straight_product(layer, value, a, w)
        planes = window.high - window.low
        seen[name] = Seen(tuple(x.shape), planes, planes if group is None else group_precision(layer, a, group))
        return value if layer.bias is None else value + along_outputs(layer, layer.bias)
