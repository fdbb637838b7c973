"""PIM scale rescaling: undo in gradients and outputs what few-bit converters do to the scale of a layer.

References:
  jin-2022-pim (arXiv 2209.08617): Jin, Chen, Ren, Li, Wang, Yang. PIM-QAT: Neural Network Quantization for
    Processing-In-Memory (PIM) Systems. 2022: rescaling in the backward and in the forward pass is named in the
    abstract, from an analysis of the dynamics of training. Its formulas were not available to us: ours are a
    reconstruction.

Rounding adds an error to each partial sum. Where errors are independent of the sums, the variance of the output grows
by theirs, so rho = std(y_pim) / std(y) is above 1; where the step is above most sums they are rounded to 0, and rho is
below 1, down to 0. The straight-through estimator lets gradients pass as if nothing had happened; here they are
multiplied by xi = rho of the batch, a constant to them, and outputs by a constant eta:

    dL/dx = xi (dL/dy) W^T,    dL/dW = xi x^T (dL/dy).

    with PIMScaleRescaling().apply(model, backward=True) as handle:     # a model with PIMConv2d, PIMLinear
        train(model, x, y, recipe, seed=0)
        handle.trace["ratios"]                                          # rho of each layer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.contract import Handle, Number, Redundancy, Setting, Switch, Technique
from reference_impls.contract.errors import UnsupportedHost, check_tensor, warn_no_effect
from reference_impls.contract.replacement import replace
from reference_impls.hosts.layers import refuse_narrow
from reference_impls.hosts.substitution import inputs_of, modules_of
from reference_impls.layers.pim import (
    Array,
    PIMConv2d,
    PIMLinear,
    Rescaling,
    Seen,
    pim_layer,
    scale_ratio,
)
from reference_impls.layers.quantised import Span

OnArray = PIMConv2d | PIMLinear


def on_array(technique: str, target: object) -> dict[str, OnArray]:
    """The layers of a model that are on an array, by name. UnsupportedHost if there are none, or in a narrow dtype."""
    layers = modules_of(target, nn.Module, lambda module: isinstance(module, OnArray))
    if not layers or not isinstance(target, nn.Module):
        raise UnsupportedHost(technique, target, "a model with `layers.pim.PIMConv2d` or `PIMLinear`")
    refuse_narrow(technique, target)
    return layers  # type: ignore[return-value]


@torch.no_grad()
def ratio(layer: nn.Conv2d | nn.Linear, x: Tensor, array: Array, span: Span | None) -> float:
    """rho = std(y_pim) / std(y) when x reaches the layer, y the exact product of the same integers, biases aside."""
    bias = 0 if layer.bias is None else layer.bias if isinstance(layer, nn.Linear) else layer.bias.view(-1, 1, 1)
    exact = Array(
        array.scheme, array.weight_bits, array.activation_bits, None, array.dac_bits, array.group, weights=array.weights
    )
    return scale_ratio(pim_layer(layer, x, array, span) - bias, pim_layer(layer, x, exact, span) - bias)


class PIMScaleRescaling(Technique):
    """Rescaled gradients and outputs of the layers of a model that are on an array."""

    id = "pim-scale-rescaling"
    execution = "simulated"
    trains = True
    knobs: ClassVar = {
        "backward": Switch(True, about="multiply gradients by xi, the ratio of spreads of converted and exact output"),
        "forward": Number(1.0, low=0, low_open=True, high=1e6, about="eta, by which outputs are multiplied"),
        "low": Number(0.1, low=0, low_open=True, high=1, about="least xi: the ratio is 0 where every code is"),
        "high": Number(10.0, low=1, high=1e6, about="largest xi"),
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("off", {"backward": False}, off=True),
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

    def attach(self, target: nn.Module, backward: bool, forward: float, low: float, high: float) -> Handle:
        """Rescale. The trace holds `ratios`, the rho of each layer in the last run with gradients (`pim.Seen.xi`).

        Raises: UnsupportedHost for a model without layers on an array, or in a narrow dtype.
        """
        layers = on_array(self.id, target)
        rescaling = Rescaling(backward, forward, low, high)
        if not backward and forward == 1:
            warn_no_effect(self.id, "neither gradients nor outputs are rescaled")
        seen: dict[str, Seen] = {}
        undos = [replace(layer, partial(_rescaled, rescaling, seen, name), self.id) for name, layer in layers.items()]

        def undo() -> None:
            for one in undos:
                one()

        return Handle(target, undo, lambda: {"ratios": {name: one.xi for name, one in seen.items()}})

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Nothing: a factor for each output."""
        return 0


def _rescaled(
    rescaling: Rescaling, seen: dict[str, Seen], name: str, layer: Any, dense: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """In the place of the layer's forward `dense`."""
    return pim_layer(layer, x, layer.array, layer.span, rescaling, partial(seen.__setitem__, name))
