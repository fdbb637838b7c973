"""Activation quantisation: activations and weights as integers of few bits, so that products run in integer arithmetic.

References:
  vanhoucke-2011-improving: 8 bits of weights and activations on a processor.
  zhou-2016-dorefa (arXiv 1606.06160): rounding forward, the identity backward (the straight-through estimator).
  esser-2020-learned (arXiv 1902.08153): a step that is learned, `learned_step`.
  dettmers-2022-llm (arXiv 2208.07339): a step for each row, and channels with outliers kept apart (`decompose`).
  xiao-2023-smoothquant (arXiv 2211.10438): channels rescaled into the weights beforehand (`smooth`).
  ashkboos-2024-quarot (arXiv 2404.00456): outliers spread over all channels by an orthogonal matrix (`rotate`).

With steps D_x of each row (of a linear layer) or image (of a convolution) and D_w of each output,

    x W^T = D_x D_w (X W_int^T),    X = clip(round(x / D_x), -2^(b - 1), 2^(b - 1) - 1),
    D_x = max |x| / (2^(b - 1) - 1).

    with ActivationQuantisation().apply(model, activation_bits=8) as handle:     # any CNN, MLP or transformer
        y = model(x)                                    # linear layers multiply int8 on a CPU; no step leaves the row
    peaks = channel_peaks(model, x)
    ActivationQuantisation().apply(model, outliers="smooth", peaks=peaks)

Everything is exact in integers; a model keeps its parameters, so that it can also be trained so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from reference_impls.accounting.preparation import prepares
from reference_impls.contract import Choice, Given, Handle, Integer, Number, Redundancy, Setting, Technique, generator
from reference_impls.contract.errors import check_range, check_tensor, warn_no_effect
from reference_impls.contract.replacement import replace
from reference_impls.hosts.layers import Layer, plain_layers
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.quantised import (
    Codes,
    Span,
    activation_codes,
    along_outputs,
    check_device,
    integer_product,
    padded,
    product,
    signed_codes,
    straight_product,
    weight_codes,
)

Outliers = Literal["none", "decompose", "smooth", "rotate"]
BITS = 8
"""Of the codes whose unused bits `measure` tells."""


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.ends = low, high
        return (x / step).round().clamp(low, high) * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x, step), (low, high) = ctx.saved_tensors, ctx.ends
        v = x / step
        inside = (v > low) & (v < high)
        by_step = torch.where(inside, v.round() - v, v.clamp(low, high))
        scale = 1 / math.sqrt(x.numel() * high)
        return gradient * inside, (gradient * by_step).sum().view_as(step) * scale, None, None


def learned_step(x: Tensor, step: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """Round x to multiples of a step () that is trained with the weights: esser-2020-learned.

    The gradient of the step is round(x / step) - x / step inside the range and its end outside, over sqrt(n Q_P) for n
    values and a largest code Q_P. Raises ValueError for a step that is not positive.
    """
    check_range("bits", bits, 2, 16, integer=True)
    if not bool(step > 0):
        raise ValueError(f"the step must be above 0, got {step.item()}")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    result: Tensor = _LearnedStep.apply(x, step, low, high)  # type: ignore[no-untyped-call]
    return result


# --------------------------------------------------------------------------------------------------------------------
# Outliers


def smoothing(peaks: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s_j = max |X_j|^alpha / max |W_j|^(1 - alpha) of each input channel: peaks (K,), weight (O, K, ...) -> (K,).

    x / s and s W multiply to the same; a channel that is 0 in either keeps its scale. xiao-2023-smoothquant.
    """
    largest = weight.detach().abs().transpose(0, 1).flatten(1).amax(1)
    scale = peaks.to(largest) ** alpha / largest ** (1 - alpha)
    return torch.where((peaks.to(largest) > 0) & (largest > 0), scale, torch.ones_like(scale))


def rotation(channels: int, like: Tensor) -> Tensor:
    """A random orthogonal matrix (K, K), the same for every layer of K channels. (x R)(R^T W) is x W."""
    return _orthogonal(channels).to(like)


@cache
def _orthogonal(channels: int) -> Tensor:
    drawn = torch.randn(channels, channels, generator=generator(channels), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


@prepares("calibration")
def channel_peaks(model: nn.Module, x: Tensor, digital: Sequence[str] = ()) -> dict[str, Tensor]:
    """max |X_j| of each input channel of each layer, (K,), when the model sees x."""
    layers = plain_layers(ActivationQuantisation.id, model, digital)
    return {name: _over_channels(layers[name], seen).amax(1) for name, seen in inputs_of(layers, model, x).items()}


def _over_channels(layer: Layer, x: Tensor) -> Tensor:
    """|x| as (K, everything else)."""
    return x.abs().movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)


def _by_channel(layer: Layer, scale: Tensor) -> Tensor:
    """A factor (K,) of the channels, for the layer's input."""
    return scale if isinstance(layer, nn.Linear) else scale.view(-1, 1, 1)


def _rotated(layer: Layer, x: Tensor, r: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return x @ r
    return nn.functional.conv2d(x, r.T[:, :, None, None])


# --------------------------------------------------------------------------------------------------------------------
# A layer


@dataclass(frozen=True)
class Precision:
    """How layers become integers."""

    activation_bits: int = 8
    weight_bits: int = 8
    step: Literal["row", "tensor"] = "row"
    outliers: Outliers = "none"
    alpha: float = 0.5
    threshold: float = 6.0


class Seen(NamedTuple):
    """What a layer did in its last run."""

    shape: tuple[int, ...]
    """Of its input."""
    outliers: int
    """Channels that were kept apart in floating point."""


class Held(NamedTuple):
    """Weights as integers, and by what inputs are divided before they meet them."""

    codes: Codes
    """In int8, where no gradient is asked for."""
    scale: Tensor | None


class QuantisedLayer:
    """Computes a layer in integers, in the place of its forward. Weight codes are kept until the weights change."""

    def __init__(
        self,
        layer: Layer,
        precision: Precision,
        span: Span | None,
        peaks: Tensor | None,
        seen: dict[str, Seen],
        name: str,
    ) -> None:
        self.precision, self.span, self.peaks, self.seen, self.name = precision, span, peaks, seen, name
        self.turn = rotation(layer.weight.shape[1], layer.weight) if precision.outliers == "rotate" else None
        self._kept = self._keep(layer)

    def _keep(self, layer: Layer) -> tuple[Tensor, int, Held]:
        with torch.no_grad():
            codes, scale = self.weights(layer)
            small = codes._replace(codes=codes.codes.to(torch.int8), through=layer.weight)
            return layer.weight, layer.weight._version, Held(small, scale)

    def held(self, layer: Layer) -> Held:
        """The layer's weights as they are now; found again where they were changed or get a gradient."""
        if torch.is_grad_enabled() and layer.weight.requires_grad:
            return self.weights(layer)
        kept = self._kept
        if kept[0] is not layer.weight or kept[1] != layer.weight._version:
            kept = self._kept = self._keep(layer)
        return kept[2]

    def weights(self, layer: Layer) -> Held:
        """Rescaled or rotated, and rounded."""
        scale, weight = None, layer.weight
        if self.peaks is not None:
            scale = smoothing(self.peaks, weight, self.precision.alpha)
            weight = weight * (scale if weight.ndim == 2 else scale.view(-1, 1, 1))
        if self.turn is not None:
            weight = (weight.movedim(1, -1) @ self.turn.to(weight)).movedim(-1, 1)
        return Held(weight_codes(weight, self.precision.weight_bits, "max"), scale)

    def __call__(self, layer: Layer, dense: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """x: (B, C, H, W), or (..., C) for a linear layer -> the layer's output, products in integers, biases added."""
        check_device(x.device)
        with torch.autocast(x.device.type, enabled=False):
            (w, scale), shape, apart = self.held(layer), tuple(x.shape), 0
            if scale is not None:
                x = x / _by_channel(layer, scale)
            if self.turn is not None:
                x = _rotated(layer, x, self.turn.to(x))
            value: Tensor | float = 0.0
            if self.precision.outliers == "decompose":
                far = _over_channels(layer, x.detach()).amax(1) > self.precision.threshold
                if apart := int(far.sum()):
                    value = product(layer, padded(layer, _channels(layer, far, x)), layer.weight[:, far])
                    x = _channels(layer, ~far, x)
                    w = w._replace(codes=w.codes[:, ~far], through=w.through[:, ~far])
            if w.codes.shape[1]:
                value = value + self._product(layer, self._activations(layer, x), w)
            self.seen[self.name] = Seen(shape, apart)
            bias = layer.bias
            assert isinstance(value, Tensor)
            return value if bias is None else value + along_outputs(layer, bias)

    def _activations(self, layer: Layer, x: Tensor) -> Codes:
        if self.span is not None:
            return activation_codes(x, self.span, self.precision.activation_bits)
        own = None if self.precision.step == "tensor" else (-1,) if isinstance(layer, nn.Linear) else (1, 2, 3)
        return signed_codes(x, self.precision.activation_bits, own)

    def _product(self, layer: Layer, a: Codes, w: Codes) -> Tensor:
        """Integers, times the steps of both sides; gradients straight through."""
        bits = self.precision.activation_bits
        step = along_outputs(layer, torch.as_tensor(w.step).flatten())
        with torch.no_grad():
            if isinstance(layer, nn.Linear) and a.codes.device.type == "cpu" and w.codes.shape[1] > 1:
                total = _int8_product(
                    a.codes, w.codes.to(torch.int8), a.zero, 0 if self.span is None else 2 ** (bits - 1)
                )
            else:
                total = integer_product(layer, a.codes, w.codes, a.zero, bits + self.precision.weight_bits)
            value = (total * a.step).mul_(step).to(a.through.dtype)
        return straight_product(layer, value, a, w)


def _int8_product(codes: Tensor, w: Tensor, zero: int, shift: int) -> Tensor:
    """Sums of (codes - zero) w for codes (..., K) and w (O, K), in int32, which holds them up to K = 2^16: (..., O).

    shift: by which codes have to be moved to fit into int8. Not for K = 1, of which `torch._int_mm` gives anything at
    all on a CPU (torch 2.13).
    """
    rows = (codes - shift if shift else codes).reshape(-1, codes.shape[-1]).to(torch.int8)
    total = torch._int_mm(rows, w.T).view(*codes.shape[:-1], len(w))
    return total if zero == shift else total - (zero - shift) * w.sum(1, dtype=torch.int32)


def _channels(layer: Layer, chosen: Tensor, x: Tensor) -> Tensor:
    """Those of the input channels that are chosen (K,)."""
    return x[..., chosen] if isinstance(layer, nn.Linear) else x[:, chosen]


class ActivationQuantisation(Technique):
    """Computes the linear layers and convolutions of a model on integers of few bits."""

    id = "activation-quantisation"
    execution = "simulated"
    trains = True
    knobs: ClassVar = {
        "activation_bits": Integer(8, low=2, high=8, optional=True, about="b of activations; None: floating point"),
        "weight_bits": Integer(8, low=2, high=8, about="b of weights, whose step is that of an output"),
        "step": Choice(
            "row",
            options=("row", "tensor"),
            about="what shares a step at run time: a row of a linear layer or an image of a convolution, or the batch",
        ),
        "spans": Given(
            None, form="table", about="{layer: Span}, static ranges from calibration; None: found at run time"
        ),
        "outliers": Choice(
            "none",
            options=("none", "decompose", "smooth", "rotate"),
            about="what is done about channels with large values",
        ),
        "threshold": Number(6.0, low=0, low_open=True, about="of `decompose`: magnitude from which a channel is apart"),
        "alpha": Number(0.5, low=0, high=1, about="of `smooth`: how much of a channel's range goes into the weights"),
        "peaks": Given(None, form="table", about="of `smooth`: {layer: largest magnitudes (K,)}, from `channel_peaks`"),
        "digital": Given((), form="names", about="names of modules to leave in floating point, or `first`, `last`"),
    }

    def settings(self) -> list[Setting]:
        def of(name: str, **knobs: Any) -> Setting:
            return Setting(name, knobs, adaptive=True)

        return [
            Setting("floating point", {"activation_bits": None}, off=True),
            of("outliers apart", outliers="decompose", threshold=0.5),
            of("8 bits"),
            of("4 bits, a step for the batch", activation_bits=4, step="tensor"),
        ]

    def measure(self, target: Any, inputs: Tensor) -> Redundancy:
        """Share of the bits of 8-bit codes that carry nothing, 1 - H / 8, mean over layers; H is the entropy of a code.

        The step is that of a row or an image. 0: all codes are as frequent, so that every bit is needed.
        Raises: UnsupportedHost as `apply`; ValueError for inputs that are not finite.
        """
        layers = plain_layers(self.id, target, ())
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            check_tensor("inputs", inputs, " ".join("BCHWD"[: inputs.ndim]))
        where = {}
        for name, x in inputs_of(layers, target, inputs).items():
            axes = (-1,) if isinstance(layers[name], nn.Linear) else (1, 2, 3)
            frequency = torch.unique(signed_codes(x, BITS, axes).codes, return_counts=True)[1].double() / x.numel()
            where[name] = max(0.0, 1 + (frequency * frequency.log2()).sum().item() / BITS)
        return Redundancy(sum(where.values()) / len(where), "bits of a code that carry nothing", where)

    def attach(
        self,
        target: nn.Module,
        activation_bits: int | None,
        spans: Mapping[str, Span] | None,
        peaks: Mapping[str, Tensor] | None,
        digital: Sequence[str],
        **how: Any,
    ) -> Handle:
        """Compute the layers in integers. The trace holds `layers`, what each did in the last run (`Seen`).

        Raises: UnsupportedHost for a model without plain layers, in a narrow dtype, or with a part that multiplies in
            another way; ValueError or TypeError for knobs that do not fit together, ranges of other layers, grouped
            convolutions whose channels would be mixed, and weights that are not finite.
        """
        layers = plain_layers(self.id, target, digital)
        if activation_bits is None:
            warn_no_effect(self.id, "activation_bits is None, so every layer stays in floating point")
            return Handle(target)
        precision = Precision(activation_bits, **how)
        self._check(layers, precision, spans, peaks)
        seen: dict[str, Seen] = {}
        undos = []
        for name, layer in layers.items():
            try:
                check_device(layer.weight.device)
                own = peaks[name] if peaks is not None and precision.outliers == "smooth" else None
                instead = QuantisedLayer(layer, precision, spans[name] if spans else None, own, seen, name)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            undos.append((layer, instead))
        restored = [replace(layer, instead, self.id) for layer, instead in undos]

        def undo() -> None:
            for one in restored:
                one()

        return Handle(target, undo, lambda: {"layers": dict(seen), "precision": precision})

    def _check(
        self,
        layers: Mapping[str, Layer],
        precision: Precision,
        spans: Mapping[str, Span] | None,
        peaks: Mapping[str, Tensor] | None,
    ) -> None:
        if spans is not None:
            if precision.outliers != "none":
                raise ValueError(
                    f"static spans are those of plain inputs: leave `spans` or outliers={precision.outliers!r}"
                )
            if missing := [name for name in layers if not isinstance(spans.get(name), Span)]:
                raise ValueError(f"spans has no Span for {', '.join(missing)}: `pim_quantization.spans` finds them")
        if precision.outliers == "smooth":
            bad = [n for n, one in layers.items() if peaks is None or getattr(peaks.get(n), "shape", ()) != _width(one)]
            if bad:
                raise ValueError(
                    f"outliers='smooth' needs `peaks` (K,) of {', '.join(bad)}: `channel_peaks` finds them"
                )
        grouped = [n for n, one in layers.items() if isinstance(one, nn.Conv2d) and one.groups > 1]
        if grouped and precision.outliers != "none":
            raise ValueError(
                f"outliers={precision.outliers!r} works across channels, which {', '.join(grouped)} has in groups: "
                "name it in `digital`"
            )

    def saving(self, target: nn.Module, inputs: Any, trace: Mapping[str, Any]) -> int:
        """Nothing, since as many products are computed, of integers; minus what rotates inputs and weights."""
        if "precision" not in trace or trace["precision"].outliers != "rotate":
            return 0
        modules, added = dict(target.named_modules()), 0
        for name, one in trace["layers"].items():
            layer: Any = modules[name]
            channels = layer.weight.shape[1]
            added += math.prod(one.shape) * channels + layer.weight.numel() * channels
        return -added


def _width(layer: Layer) -> tuple[int, ...]:
    return (layer.weight.shape[1] * getattr(layer, "groups", 1),)
