"""Adjusted-precision training: train at other bits than the converter has, because noise takes some of them away.

References:
  jin-2022-pim (arXiv 2209.08617): Jin, Chen, Ren, Li, Wang, Yang. PIM-QAT: Neural Network Quantization for
    Processing-In-Memory (PIM) Systems. 2022: named in the abstract as the answer to the thermal noise of real chips.
    How the bits are chosen was not available to us; here held-out images choose.

Noise of sigma codes on top of the rounding error, whose variance is 1/12, is worth bits: a converter of b bits is then
as good as an ideal one of

    b_eff = b - log2(1 + 12 sigma^2) / 2.

A network that is trained on b bits relies on differences that the noisy converter does not tell. Trained on fewer bits,
without noise, it relies on larger ones. So networks are trained at several precisions, and the one that is best on
held-out data *with the noise* is taken.

    with AdjustedPrecisionTraining().apply(model, train_bits=5):        # a model with PIMConv2d, PIMLinear of 7 bits
        train(model, x, y, recipe, seed=0)
    logits = model(images)                                              # on the noisy 7 bits again
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace as replaced
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Handle, Integer, Redundancy, Setting, Technique
from reference_impls.contract.errors import check_range, check_tensor, warn_no_effect
from reference_impls.contract.replacement import replace
from reference_impls.layers.arrays import IDEAL, Array
from reference_impls.layers.pim import pim_layer
from reference_impls.techniques.pim_scale_rescaling import on_array


def effective_bits(bits: float, noise: float) -> float:
    """Bits of the ideal converter whose rounding error is as large as that of `bits` with noise of `noise` codes; >= 0.

    Raises ValueError for negative noise.
    """
    check_range("noise", noise, 0)
    return max(bits - math.log2(1 + 12 * noise**2) / 2, 0.0)


def adjusted(array: Array, bits: int) -> Array:
    """The array to train on: so many bits, and an ideal chip."""
    return replaced(array, adc_bits=bits, chip=IDEAL)


@prepares("search")
def choose(scores: Mapping[int, float]) -> int:
    """Of precisions with their scores on held-out data, the best; of equally good ones the finest.

    Raises ValueError where there is none.
    """
    if not scores:
        raise ValueError("there is no precision to choose from")
    return max(scores, key=lambda bits: (scores[bits], bits))


class AdjustedPrecisionTraining(Technique):
    """Layers on noisy arrays, trained at other bits and without noise."""

    id = "adjusted-precision-training"
    execution = "simulated"
    trains = True
    knobs: ClassVar = {
        "train_bits": Integer(None, low=1, high=16, optional=True, about="of the converter in training; None: its own")
    }

    def settings(self) -> list[Setting]:
        return [
            Setting("off", {"train_bits": None}, off=True),
            Setting("7 bits", {"train_bits": 7}, adaptive=True),
            Setting("5 bits", {"train_bits": 5}, adaptive=True),
        ]

    def measure(self, target: nn.Module, inputs: Tensor) -> Redundancy:
        """Share of the converter's bits that noise takes away: 1 - b_eff / b, mean over layers (`effective_bits`).

        Raises: UnsupportedHost as `apply`; ValueError for inputs that are not finite, though nothing depends on them.
        """
        check_tensor("inputs", inputs, " ".join("BCHWD"[: inputs.ndim] if isinstance(inputs, Tensor) else "B"))
        where = {}
        for name, layer in on_array(self.id, target).items():
            bits = layer.array.adc_bits
            where[name] = 1 - effective_bits(bits, layer.array.chip.noise) / bits if bits else 0.0
        return Redundancy(sum(where.values()) / len(where), "share of bits lost to noise", where)

    def attach(self, target: nn.Module, train_bits: int | None) -> Handle:
        """Run the layers on `train_bits` without noise, until undone. The trace holds `bits`, by layer.

        Raises: UnsupportedHost for a model without layers on an array, or in a narrow dtype.
        """
        layers = on_array(self.id, target)
        if train_bits is None:
            warn_no_effect(self.id, "train_bits is None, so the layers keep their own converter")
            return Handle(target)
        undos = [replace(layer, partial(_adjusted, train_bits), self.id) for layer in layers.values()]

        def undo() -> None:
            for one in undos:
                one()

        return Handle(target, undo, lambda: {"bits": dict.fromkeys(layers, train_bits)})

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Nothing: the same columns and cycles."""
        return 0


def _adjusted(bits: int, layer: Any, dense: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """In the place of the layer's forward `dense`."""
    return pim_layer(layer, x, adjusted(layer.array, bits), layer.span, layer.rescaling)
