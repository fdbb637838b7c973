"""Sampling: inputs and feature maps that a coarser grid would hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.redundancy.over_resolution import coarsen, low_band_channels, octave_saving, over_resolution
from reference_impls.report.axes.base import Axis, Outcome, Setting, gain, simulated
from reference_impls.report.batches import Batch
from reference_impls.report.engine import Edit, Probe, Tick, View, simulate
from reference_impls.report.outputs import errors, flips
from reference_impls.report.sample import Sample
from reference_impls.report.watch import Call


class _GridProbe(Probe):
    def begin(self, batch: Batch) -> Batch:
        super().begin(batch)
        x = batch.main
        if x.ndim == 4 and x.is_floating_point():
            self.note("input", over_resolution(x), 1.0)
        return batch


class _Coarser(Edit):
    """The input on a coarser grid, or that grid's content on the old one where the model takes no other."""

    def __init__(self, scale: float, back: bool) -> None:
        super().__init__()
        self.scale, self.back = scale, back

    def begin(self, batch: Batch) -> Batch:
        super().begin(batch)
        x = batch.main
        height, width = x.shape[2:]
        small = coarsen(x, (max(1, round(height * self.scale)), max(1, round(width * self.scale))))
        if self.back:
            small = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
        return batch.with_main(small.contiguous())

    def account(self, call: Call, out: Any) -> None:
        if self.back:
            power = 4 if call.site.type in ("attention", "matmul") else 2
            on_grid = call.x.numel() // call.batch > call.x.shape[1] if call.site.type != "conv" else True
            if on_grid:
                self.save(call.site.name, torch.full((call.batch,), (1 - self.scale**power) * call.cost(out)))


class Resolution(Axis):
    """Inputs that a coarser grid would hold."""

    id = "resolution"
    title = "Inputs that are sampled more finely than the answer needs"
    relation, location, granularity = "over_resolution", "input_sample", "element"
    measure = "share of the input's energy that half the grid holds, beyond that of white noise"
    source = "reference_impls.redundancy.over_resolution:over_resolution"
    shrinks = True
    weights = False
    compatible = False

    def unfit(self, view: View) -> str | None:
        x = view.sample.batches[0].main
        return None if x.ndim == 4 and x.is_floating_point() else "the inputs are no pictures (C, H, W)"

    def probe(self, view: View) -> Probe:
        return _GridProbe()

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"scale": s} for s in (0.875, 0.75, 0.625, 0.5, 0.375)]

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        if not view.shared.get("one size"):
            try:
                return self._smaller(view, setting, sample, tick)
            except Exception:  # whatever a model says of a size that it does not take
                view.shared["one size"] = True
        return simulated(self, view, _Coarser(setting["scale"], back=True), setting, sample, tick)

    def _smaller(self, view: View, setting: Setting, sample: Sample, tick: Tick | None) -> Outcome:
        edit = _Coarser(setting["scale"], back=False)
        run = simulate(view, edit, sample, tick)
        if any(a.shape != b.shape for a, b in zip(run.outputs.values, view.dense.values, strict=False)):
            raise ValueError("outputs of another size cannot be compared")
        dense = view.macs[: sample.items]
        sites = {
            name: view.per_item(name) - (run.log.sites[name].macs / sample.items if name in run.log.sites else 0.0)
            for name in view.sites
        }
        share = torch.full((sample.items,), sum(sites.values()), dtype=torch.float64) / dense
        decided = flips(view.dense, run.outputs, view.reading.decision)
        return Outcome(setting, share, errors(view.dense, run.outputs), decided, gain(view, run.outputs, sample),
                       sites, {}, float(share.mean()))  # fmt: skip

    def notes(self, view: View) -> list[str]:
        if view.shared.get("one size"):
            return [
                (
                    "The model takes one size only, or its output follows the size: the content of the coarser grid "
                    "was given to it on the old one, and MACs are those of the smaller grid."
                )
            ]
        return ["The model ran on the smaller inputs, without training for them."]


SIDE = 48
"""Side of the corner of a map that the measure of channels looks at."""


class _OctaveProbe(Probe):
    def account(self, call: Call, out: Any) -> None:
        x = call.x
        if call.site.type == "conv" and x.ndim == 4 and min(x.shape[2:]) > 1:
            self.note(call.site.name, low_band_channels(x[..., :SIDE, :SIDE]), call.cost(out))


class _Octave(Edit):
    """Channels that half the grid holds are given on half the grid."""

    def __init__(self, energy: float) -> None:
        super().__init__()
        self.energy = energy
        self._share: Tensor | None = None

    def operands(self, call: Call) -> dict[str, Tensor]:
        x, self._share = call.x, None
        if call.site.type != "conv" or x.ndim != 4 or min(x.shape[2:]) < 2:
            return {}
        low = F.interpolate(F.avg_pool2d(x, 2, ceil_mode=True), size=x.shape[2:], mode="nearest")
        fits = low.square().sum((2, 3)) >= self.energy * x.square().sum((2, 3))  # (B, C)
        self._share = fits.double().mean(1)
        return {call.argument: torch.where(fits[..., None, None], low, x)}

    def account(self, call: Call, out: Any) -> None:
        if self._share is not None:
            saved = torch.tensor([octave_saving(float(a)) for a in self._share], dtype=torch.float64)
            self.save(call.site.name, saved * call.cost(out))
            self.spend(calls=6, compare_bytes=2 * call.x.numel() * call.x.element_size())


class Octave(Axis):
    """Channels of feature maps that half the grid would hold."""

    id = "octave"
    title = "Channels of feature maps that half the grid holds"
    relation, location, granularity = "over_resolution", "activations", "channel"
    measure = "share of the channels of layers' inputs with 99 % of their energy on half the grid"
    source = "reference_impls.redundancy.over_resolution:low_band_channels"

    def unfit(self, view: View) -> str | None:
        return None if any(s.type == "conv" for s in view.sites.values()) else "the model has no feature maps"

    def probe(self, view: View) -> Probe:
        return _OctaveProbe()

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"energy": e} for e in (0.999, 0.99, 0.95, 0.9, 0.8)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return _Octave(setting["energy"])

    def notes(self, view: View) -> list[str]:
        return [
            "Octave convolutions fix their share of channels when they are trained; here each datum chooses its own."
        ]


AXES: Sequence[type[Axis]] = (Resolution, Octave)
