"""PIM scale rescaling: undo in gradients and outputs what few-bit converters do to the scale of a layer.

References:
  jin-2022-pim (arXiv 2209.08617): Jin, Chen, Ren, Li, Wang, Yang. PIM-QAT: Neural Network Quantization for
    Processing-In-Memory (PIM) Systems. 2022: rescaling in the backward and in the forward pass is named in the
    abstract, from an analysis of the dynamics of training. Its formulas were not available to us: ours are a
    reconstruction.

Rounding adds an error to each partial sum. Where errors are independent of the sums, the variance of the output grows
by theirs, so rho = std(y_pim) / std(y) is above 1; where the step is above most sums they are rounded to 0, and rho is
below 1, down to 0. The straight-through estimator lets gradients pass as if nothing had happened; here they are
multiplied by xi = rho of the batch, a constant to them, and outputs by a constant eta, given or found on some inputs
("auto": c / std(y_pim) of each layer, where c is the spread of its exact output):

    dL/dx = xi (dL/dy) W^T,    dL/dW = xi x^T (dL/dy).

    with PIMScaleRescaling().apply(model, backward=True) as handle:     # a model with PIMConv2d, PIMLinear
        train(model, x, y, recipe, seed=0)
        handle.trace["ratios"]                                          # rho of each layer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace as replaced
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Given, Handle, Number, Redundancy, Setting, Switch, Technique
from reference_impls.contract.errors import UnsupportedHost, check_range, check_tensor, warn_no_effect
from reference_impls.contract.replacement import replace
from reference_impls.hosts.layers import refuse_narrow
from reference_impls.hosts.substitution import inputs_of, modules_of
from reference_impls.layers.arrays import IDEAL, Array
from reference_impls.layers.pim import PIMConv2d, PIMLinear, Rescaling, Seen, array_macs, pim_layer, scale_ratio
from reference_impls.layers.quantised import Span, along_outputs

OnArray = PIMConv2d | PIMLinear


def on_array(technique: str, target: object) -> dict[str, OnArray]:
    """The layers of a model that are on an array, by name. UnsupportedHost if there are none, or in a narrow dtype."""
    layers = modules_of(target, nn.Module, lambda module: isinstance(module, OnArray))
    if not layers or not isinstance(target, nn.Module):
        raise UnsupportedHost(technique, target, "a model with `layers.pim.PIMConv2d` or `PIMLinear`")
    refuse_narrow(technique, target)
    return layers  # type: ignore[return-value]


@torch.no_grad()
def converted_and_exact(
    layer: nn.Conv2d | nn.Linear, x: Tensor, array: Array, span: Span | None
) -> tuple[Tensor, Tensor]:
    """What the layer gives on x, as converted and as the exact product of the same integers, biases aside."""
    bias = 0 if layer.bias is None else along_outputs(layer, layer.bias)
    exact = replaced(array, adc_bits=None, chip=IDEAL)
    return pim_layer(layer, x, array, span) - bias, pim_layer(layer, x, exact, span) - bias


def ratio(layer: nn.Conv2d | nn.Linear, x: Tensor, array: Array, span: Span | None) -> float:
    """rho = std(y_pim) / std(y) when x reaches the layer, y the exact product of the same integers, biases aside."""
    return scale_ratio(*converted_and_exact(layer, x, array, span))


class Factor(NamedTuple):
    """What the output of a layer is multiplied by."""

    eta: float
    shape: tuple[int, ...] | None = None
    """Of the layer's input where it was found; None for one that was given."""


@prepares("calibration")
@torch.no_grad()
def forward_factors(model: nn.Module, x: Tensor, low: float = 0.1, high: float = 10.0) -> dict[str, Factor]:
    """eta of each layer on an array that gives its output the spread of the exact one, 1 / rho, on inputs x (N, ...).

    Found in one run, in the order of the layers, so that each sees what the ones before it give once rescaled. rho is
    kept within [low, high], since it is 0 in the dead zone, where no factor helps.
    """
    layers = on_array(PIMScaleRescaling.id, model)
    check_tensor("images", x, " ".join("BCHWD"[: x.ndim] if isinstance(x, Tensor) else "B"))
    found: dict[str, Factor] = {}

    def run(name: str, layer: Any, dense: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y_pim, y = converted_and_exact(layer, x, layer.array, layer.span)
        eta = 1 / min(max(scale_ratio(y_pim, y), low), high)
        found[name], bias, value = Factor(eta, tuple(x.shape)), layer.bias, y_pim * eta
        return value if bias is None else value + along_outputs(layer, bias)

    undos = [replace(layer, partial(run, name), PIMScaleRescaling.id) for name, layer in layers.items()]
    try:
        model(x)
    finally:
        for undo in undos:
            undo()
    return found


class PIMScaleRescaling(Technique):
    """Rescaled gradients and outputs of the layers of a model that are on an array."""

    id = "pim-scale-rescaling"
    execution = "simulated"
    trains = True
    knobs: ClassVar = {
        "backward": Switch(True, about="multiply gradients by xi, the ratio of spreads of converted and exact output"),
        "forward": Given(1.0, about="eta, by which outputs are multiplied: a number above 0, or `auto`"),
        "images": Given(None, form="tensor", about="(N, ...) inputs from which `auto` finds the eta of each layer"),
        "low": Number(0.1, low=0, low_open=True, high=1, about="least xi: the ratio is 0 where every code is"),
        "high": Number(10.0, low=1, high=1e6, about="largest xi"),
    }

    def settings(self) -> list[Setting]:
        ramps = torch.linspace(0, 1, 144).view(2, 2, 6, 6)
        return [
            Setting("off", {"backward": False}, off=True),
            Setting("as found", {"forward": "auto", "images": ramps}, adaptive=True),
            Setting("gradients", {}, adaptive=True),
            Setting("gradients and outputs", {"forward": 0.5}),
        ]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """How far conversion changes the scale: 1 - min(rho, 1 / rho), mean over layers; 1 in the dead zone.

        Raises: UnsupportedHost as `apply`; ValueError for inputs that are not finite.
        """
        layers = on_array(self.id, target)
        check_tensor("inputs", inputs, " ".join("BCHWD"[: inputs.ndim] if isinstance(inputs, Tensor) else "B"))
        where = {}
        for name, x in inputs_of(layers, target, inputs).items():
            rho = ratio(layers[name], x, layers[name].array, layers[name].span)
            where[name] = 1 - min(rho, 1 / rho) if rho > 0 else 1.0
        return Redundancy(sum(where.values()) / len(where), "change of scale by conversion", where)

    def attach(
        self, target: nn.Module, backward: bool, forward: float | str, images: Tensor | None, low: float, high: float
    ) -> Handle:
        """Rescale. The trace holds by layer the `factors` of outputs and `ratios`, rho of the last run with gradients
        (`pim.Seen.xi`); and the shape of the `images` on which factors were found.

        Raises: UnsupportedHost for a model without layers on an array, or in a narrow dtype; TypeError or ValueError
            for an eta that is no number above 0, and for `auto` without images.
        """
        layers = on_array(self.id, target)
        if isinstance(forward, str):
            if forward != "auto":
                raise ValueError(f"forward must be a number above 0 or 'auto', got {forward!r}")
            if images is None:
                raise ValueError("forward='auto' finds eta on inputs: give some as `images`, or a number as `forward`")
            try:
                factors = forward_factors(target, images.to(next(target.parameters())), low, high)
            except RuntimeError as error:
                raise ValueError(f"images must be what the model takes: {error}") from None
        else:
            check_range("forward", forward, 0, 1e6, low_open=True)
            factors = dict.fromkeys(layers, Factor(forward))
        if not backward and forward == 1:
            warn_no_effect(self.id, "neither gradients nor outputs are rescaled")
        seen: dict[str, Seen] = {}
        undos = [
            replace(layer, partial(_rescaled, Rescaling(backward, factors[name].eta, low, high), seen, name), self.id)
            for name, layer in layers.items()
        ]

        def undo() -> None:
            for one in undos:
                one()

        trace = {"factors": factors, "images": tuple(images.shape) if forward == "auto" and images is not None else ()}
        return Handle(target, undo, lambda: trace | {"ratios": {name: one.xi for name, one in seen.items()}})

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Minus what `auto` took: a run of the model on its images, and of the layers on exact products beside it."""
        if not (shape := trace.get("images")):
            return 0
        layers = on_array(self.id, target)
        exact = sum(array_macs(layers[name], one.shape, Array()) for name, one in trace["factors"].items())
        return -exact - shape[0] * closed_form(target, shape[1:]).macs


def _rescaled(
    rescaling: Rescaling, seen: dict[str, Seen], name: str, layer: Any, dense: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """In the place of the layer's forward `dense`."""
    return pim_layer(layer, x, layer.array, layer.span, rescaling, partial(seen.__setitem__, name))
