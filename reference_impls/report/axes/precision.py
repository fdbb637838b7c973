"""Values of activations with more bits than they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reference_impls.redundancy.over_precision import over_precision, quantised
from reference_impls.report.axes.base import Axis, Setting
from reference_impls.report.engine import Edit, Probe, View
from reference_impls.report.watch import Call

POSITIONS = 64
"""Positions of each datum of a layer that the measure looks at."""


class _BitsProbe(Probe):
    def __init__(self, by_channel: bool) -> None:
        super().__init__()
        self.by_channel = by_channel

    def account(self, call: Call, out: Any) -> None:
        if call.site.type not in ("conv", "linear"):
            return
        x = call.rows() if call.site.type == "linear" or call.x.ndim == 4 else None
        if x is not None and x[0].numel():
            x = x[:, :: max(1, x.shape[1] // POSITIONS)]
            self.note(call.site.name, over_precision(x, channel=2 if self.by_channel else None), call.cost(out))


class _Rounded(Edit):
    """Data of every product with fewer bits; of attention both operands."""

    def __init__(self, bits: int, by_channel: bool) -> None:
        super().__init__()
        self.bits, self.by_channel = bits, by_channel

    def operands(self, call: Call) -> dict[str, Tensor]:
        kind, x = call.site.type, call.x
        if kind == "attention":
            return {name: quantised(call.operand(name), self.bits) for name in ("query", "key", "value")}
        if kind not in ("conv", "linear"):
            return {}
        rows = call.rows() if kind == "linear" else x
        if rows is None or not rows[0].numel():
            return {}
        axis = (2 if kind == "linear" else 1) if self.by_channel else None
        return {call.argument: quantised(rows, self.bits, axis).reshape(x.shape)}

    def account(self, call: Call, out: Any) -> None:
        self.save(call.site.name, torch.full((call.batch,), (1 - self.bits / 32) * call.cost(out)))


class Bits(Axis):
    """Bits of activations, with one range for each datum of a layer."""

    id = "bits"
    title = "Bits of activations beyond those that the answer needs"
    relation, location, granularity = "over_precision", "activations", "bit"
    measure = "1 - bits for a signal to noise ratio of 30 dB / 32, one range for each datum"
    source = "reference_impls.redundancy.over_precision:effective_bits"
    saves = "bits"
    by_channel = False

    def probe(self, view: View) -> Probe:
        return _BitsProbe(self.by_channel)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"bits": b} for b in (12, 10, 8, 6, 5, 4, 3)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return _Rounded(setting["bits"], self.by_channel)

    def notes(self, view: View) -> list[str]:
        return ["The saving is a share of 32 bits of each activation; weights stay as they are, and so do the MACs."]


class ChannelBits(Bits):
    """Bits of activations, with a range for each channel of a datum."""

    id = "bits-by-channel"
    title = "Bits of activations, with a range for each channel"
    measure = "1 - bits for a signal to noise ratio of 30 dB / 32, a range for each channel of a datum"
    by_channel = True


AXES: Sequence[type[Axis]] = (Bits, ChannelBits)
