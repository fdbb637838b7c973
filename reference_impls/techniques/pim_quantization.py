"""PIM quantisation: every partial sum of an in-memory array passes a converter of few bits.

References:
  jin-2022-pim (arXiv 2209.08617): Jin, Chen, Ren, Li, Wang, Yang. PIM-QAT: Neural Network Quantization for
    Processing-In-Memory (PIM) Systems. 2022. Three decompositions into what an array can hold; names and formulas of
    them are a reconstruction, since the method section was not available to us.

The array adds up at most N products as a voltage, and a converter reads it as one of 2^b codes, whatever the sum. With
weights of b_w and activations of b_a bits the product of a layer falls into

    y = F / L * sum over groups g, cycles l, columns k of   2^l c_k round(s L / F),    L = 2^b - 1,

s the sum of N products of m bits of an activation with what column k holds, F its full scale, whatever the data
(`layers.arrays.Array`). This is done in integers, so that the codes are those of the hardware:

    with PIMQuantization().apply(model, scheme="bit-serial", adc_bits=7, group=144) as handle:
        logits = model(images)                  # any CNN or MLP; its state dict is as it was
        handle.trace["layers"]                  # conversions of each layer

A layer computes what it would on the array, gradients go straight through, and the rest of the model stays digital.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Choice, Given, Handle, Integer, Redundancy, Setting, Switch, Technique
from reference_impls.contract.errors import check_range, check_tensor, warn_no_effect
from reference_impls.contract.replacement import replace
from reference_impls.hosts.layers import Layer, plain_layers
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.arrays import IDEAL, Array, Chip
from reference_impls.layers.pim import NO_RESCALING, Rescaling, Seen, array_macs, check_layer, largest_sum, pim_layer
from reference_impls.layers.quantised import Span, check_device

DIGITAL = ("first", "last")
"""Layers that stay digital unless told otherwise: those that see the image and that give the answer."""


def array_layers(technique: str, target: object, digital: Sequence[str], group: int) -> dict[str, Layer]:
    """The layers of a model that go on an array with groups of `group` rows. Raises as `hosts.layers.plain_layers`."""
    return plain_layers(technique, target, digital, lambda layer: layer.weight[0].numel() < group)


@prepares("calibration")
def spans(model: nn.Module, x: Tensor, digital: Sequence[str] = DIGITAL, quantile: float = 1.0) -> dict[str, Span]:
    """What the input of each layer is to be clipped to, from what reaches it when the model sees x (N, ...)."""
    layers = array_layers(PIMQuantization.id, model, digital, 1)
    return {name: Span.of(seen, quantile) for name, seen in inputs_of(layers, model, x).items()}


def utilisation(layer: Layer, x: Tensor, array: Array, span: Span | None = None) -> float:
    """max |s| / F of the partial sums when x reaches the layer: the part of the converter's range that is in use.

    A range that ended there would save log2(F / max |s|) bits at the same step.
    """
    return largest_sum(layer, x, array, span) / array.full_scale


class PIMQuantization(Technique):
    """Computes the layers of a CNN or an MLP as a processing-in-memory array does."""

    id = "pim-quantization"
    execution = "simulated"
    trains = True
    own_rescaling = NO_RESCALING
    exploits: ClassVar = {"bits": {"activation_bits": "bits", "dac_bits": "bits"}}
    knobs: ClassVar = {
        "on_array": Switch(True, about="False: leave every layer digital, in floating point"),
        "scheme": Choice(
            "bit-serial",
            options=("native", "differential", "bit-serial"),
            about="what a column holds: the signed weight, its positive or negative part, or one bit of it",
        ),
        "weight_bits": Integer(4, low=2, high=8, about="b_w"),
        "activation_bits": Integer(4, low=1, high=8, about="b_a"),
        "adc_bits": Integer(None, low=1, high=16, optional=True, about="b of the converter; None: exact sums"),
        "dac_bits": Integer(4, low=1, high=8, about="m, bits of an activation that enter in a cycle; at most b_a"),
        "group": Integer(144, low=1, high=65536, about="N, rows that one conversion adds up"),
        "sign_bit": Choice("extra", options=("extra", "included"), about="of the signed codes of `native`"),
        "weights": Choice("max", options=("max", "tanh"), about="how weights become codes: `layers.quantised`"),
        "clip": Given(None, about="of activations: a number, {layer: Span}, or None for what holds the batch"),
        "digital": Given(
            ("first", "last"),
            form="names",
            about="names of modules to leave digital, or `first`, `last`, `small` (K < N)",
        ),
        "chip": Given(
            None, about="a `layers.arrays.Chip`, gain, offset, curve and noise of a real converter; None: ideal"
        ),
        "rescaling": Given(None, about="a `layers.pim.Rescaling` of gradients and outputs; None: the technique's own"),
    }

    def settings(self) -> list[Setting]:
        def of(name: str, scheme: str, **knobs: Any) -> Setting:
            return Setting(name, {"scheme": scheme, "group": 9, **knobs}, adaptive=True)

        return [
            Setting("digital", {"on_array": False}, off=True),
            of("bit-serial, a bit a cycle", "bit-serial", adc_bits=8, dac_bits=1),
            of("bit-serial", "bit-serial", adc_bits=6),
            of("differential", "differential", adc_bits=6),
            of("native", "native", adc_bits=5),
        ]

    def measure(self, target: Any, inputs: Tensor) -> Redundancy:
        """Share of a converter's range that the data do not use: 1 - max |s| / F, mean over layers.

        Native columns, groups of 144 rows or of all that a layer has, activations clipped to what holds the batch.
        Raises: UnsupportedHost as `apply`; ValueError for inputs that are not finite.
        """
        layers = array_layers(self.id, target, DIGITAL, 1)
        check_tensor("inputs", inputs, " ".join("BCHWD"[: inputs.ndim] if isinstance(inputs, Tensor) else "B"))
        where = {}
        for name, x in inputs_of(layers, target, inputs).items():
            group = min(144, layers[name].weight[0].numel())
            where[name] = 1 - utilisation(layers[name], x, Array("native", group=group, weights="max"))
        return Redundancy(sum(where.values()) / len(where), "unused range of the converter", where)

    def attach(
        self,
        target: nn.Module,
        on_array: bool,
        clip: float | Mapping[str, Span] | None,
        digital: Sequence[str],
        rescaling: Rescaling | None,
        chip: Chip | None,
        **array: Any,
    ) -> Handle:
        """Run the layers on the array. The trace holds `layers`, what each of them did in the last run (`pim.Seen`).

        Raises: UnsupportedHost for a model without plain layers, in a narrow dtype, or with a part that multiplies in
            another way; ValueError or TypeError for knobs that do not fit together, a layer with fewer inputs than a
            group, and weights that are not finite.
        """
        chip, rescaling = IDEAL if chip is None else chip, self.own_rescaling if rescaling is None else rescaling
        for name, value, kind in (("chip", chip, Chip), ("rescaling", rescaling, Rescaling)):
            if not isinstance(value, kind):
                where = kind.__module__.removeprefix("reference_impls.")
                raise TypeError(f"{name} must be a {where}.{kind.__name__} or None, got {value!r}")
        built = Array(**array, chip=chip)
        layers = array_layers(self.id, target, digital, built.group)
        if not on_array:
            warn_no_effect(self.id, "on_array is False, so every layer stays digital")
            return Handle(target)
        clips = _clips(clip, layers)
        for name, layer in layers.items():
            try:
                check_runs(layer, built)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        seen: dict[str, Seen] = {}
        undos = [
            replace(layer, partial(_on_array, built, clips[name], rescaling, seen, name), self.id)
            for name, layer in layers.items()
        ]

        def undo() -> None:
            for one in undos:
                one()

        return Handle(target, undo, lambda: {"layers": dict(seen), "array": built})

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Dense MACs less those of columns, cycles and shift-and-add: below 0, since a digital machine simulates."""
        modules, saved = dict(target.named_modules()), 0
        for name, seen in trace.get("layers", {}).items():
            layer: Any = modules[name]
            saved += dense_macs(layer, seen.shape) - array_macs(layer, seen.shape, trace["array"])
        return saved


def dense_macs(layer: Layer, shape: tuple[int, ...]) -> int:
    """Products of the layer on an input of this shape, batch axis included."""
    return array_macs(layer, shape, Array())


def check_runs(layer: Layer, array: Array) -> None:
    """Raise ValueError for a layer that does not fit the array, its device, and weights that are not finite."""
    check_layer(layer, array)
    check_device(layer.weight.device)
    if not bool(torch.isfinite(layer.weight).all()):
        raise ValueError("its weights hold values that are not finite (NaN or infinity)")


def _clips(clip: float | Mapping[str, Span] | None, layers: Mapping[str, Layer]) -> dict[str, Span | None]:
    if isinstance(clip, Mapping):
        if missing := [name for name in layers if name not in clip]:
            raise ValueError(f"clip has no Span for {', '.join(missing)}: `spans` finds those of all layers")
        return {name: clip[name] for name in layers}
    if clip is not None:
        check_range("clip", clip, 0)
    return dict.fromkeys(layers, None if clip is None else Span(0.0, float(clip)))


def _on_array(
    array: Array,
    span: Span | None,
    rescaling: Rescaling,
    seen: dict[str, Seen],
    name: str,
    layer: Any,
    dense: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """In the place of the layer's forward `dense`."""
    return pim_layer(layer, x, array, span, rescaling, partial(seen.__setitem__, name))
