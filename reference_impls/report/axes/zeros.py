"""Values of activations that are zero or next to it, by the structure that could be left out, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reference_impls.redundancy.irrelevance import Structure, batch_share, negligible, negligible_share, padding_share
from reference_impls.redundancy.temporal_similarity import affected
from reference_impls.report.axes.base import Axis, Outcome, Setting, Values
from reference_impls.report.batches import Batch
from reference_impls.report.engine import Edit, Probe, Tick, View
from reference_impls.report.sample import Sample
from reference_impls.report.watch import Call


def structured(call: Call) -> Tensor | None:
    """The data of a product as (B, C, H, W) or (B, N, C); None where they are neither, or a single row."""
    if call.site.type == "conv" and call.x.ndim == 4:
        return call.x
    if call.site.type == "linear":
        return call.rows()
    return None


class _ZeroProbe(Probe):
    def __init__(self, structure: Structure, epsilon: float) -> None:
        super().__init__()
        self.structure, self.epsilon = structure, epsilon
        self.together = self.counted = 0.0
        """MACs of the structures that are negligible in all items of a batch, and of all."""

    def account(self, call: Call, out: Any) -> None:
        x = structured(call)
        if x is None or (self.structure == "tile" and x.ndim != 4):
            return
        cost = call.cost(out)
        self.note(call.site.name, negligible_share(x, self.epsilon, self.structure), cost)
        if self.structure != "element" and len(x) > 1:
            self.together += batch_share(x, self.epsilon, self.structure, len(x)) * cost
            self.counted += cost


class _ZeroEdit(Edit):
    def __init__(self, structure: Structure, epsilon: float, real: bool) -> None:
        super().__init__()
        self.structure, self.epsilon, self.real = structure, epsilon, real
        self._gone: Tensor | None = None

    def operands(self, call: Call) -> dict[str, Tensor]:
        x = structured(call)
        self._gone = None
        if x is None or (self.structure == "tile" and x.ndim != 4) or x.shape[1:].numel() < 2:
            return {}
        self._gone = negligible(x, self.epsilon, self.structure)
        if not self._gone.any():
            return {}
        return {call.argument: x.masked_fill(self._gone, 0).reshape(call.x.shape)}

    def account(self, call: Call, out: Any) -> None:
        gone = self._gone
        if gone is None:
            return
        if self.structure in ("tile", "token") and gone.ndim == 4 and not call.named.get("transposed"):
            assert call.weight is not None
            stride, padding, dilation = map(call.sliding, ("stride", "padding", "dilation"))
            kernel = (call.weight.shape[2], call.weight.shape[3])
            share = 1 - affected(~gone[:, 0], kernel, stride, padding, dilation).double().flatten(1).mean(1)
        else:
            share = gone.double().flatten(1).mean(1)
        self.save(call.site.name, share * call.cost(out), real=self.real)
        x = call.x
        self.spend(compare_bytes=x.numel() * x.element_size(), calls=3,
                   gather_bytes=float(1 - share.mean()) * x.numel() * x.element_size())  # fmt: skip


class Zeros(Axis):
    """Single values that are zero or next to it."""

    id = "zero-values"
    title = "Single activations that are zero or next to it"
    relation, location, granularity = "irrelevance", "activations", "element"
    measure = "share of exact zeros among the inputs of products"
    source = "reference_impls.redundancy.irrelevance:negligible_share"
    structure: Structure = "element"
    real = False

    def probe(self, view: View) -> Probe:
        return _ZeroProbe(self.structure, 0.0)

    def values(self, view: View, probe: Probe | None) -> Values:
        if isinstance(probe, _ZeroProbe) and probe.counted:
            view.shared[f"{self.id} together"] = probe.together / probe.counted
        return super().values(view, probe)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"epsilon": e} for e in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return _ZeroEdit(self.structure, setting["epsilon"], self.real)

    def notes(self, view: View) -> list[str]:
        if not self.real:
            return ["Dense kernels cannot leave out scattered zeros, so none of it becomes time here."]
        together = view.shared.get(f"{self.id} together")
        if together is None:
            return []
        items = max(batch.items for batch in view.sample.batches)
        return [
            f"The items of a batch share their kernels: {together:.1%} are next to zero in all of up to {items} items."
        ]


class ZeroChannels(Zeros):
    """Whole channels of a datum that are zero or next to it."""

    id = "zero-channels"
    title = "Channels that are zero or next to it in a whole datum"
    granularity = "channel"
    measure = "share of channels whose values are all at most 0.05 deviations"
    structure: Structure = "channel"
    real = True

    def probe(self, view: View) -> Probe:
        return _ZeroProbe(self.structure, 0.05)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"epsilon": e} for e in (0.0, 0.1, 0.2, 0.5, 1.0)]


class ZeroTiles(ZeroChannels):
    """Tiles of maps that are zero or next to it in all channels."""

    id = "zero-tiles"
    title = "Tiles of feature maps that are zero or next to it in all channels"
    granularity = "region_block"
    measure = "share of 8 x 8 tiles whose values are all at most 0.05 deviations"
    structure: Structure = "tile"

    def unfit(self, view: View) -> str | None:
        return None if any(s.type == "conv" for s in view.sites.values()) else "the model has no feature maps"


class Padding(Axis):
    """Tokens that only fill a batch up."""

    id = "padding"
    title = "Tokens that only fill the batch up"
    relation, location, granularity = "irrelevance", "tokens", "token"
    measure = "share of tokens that the attention mask leaves out"
    source = "reference_impls.redundancy.irrelevance:padding_share"
    shrinks = everywhere = True
    nulls = compatible = False
    free = True

    def unfit(self, view: View) -> str | None:
        return None if all(b.mask is not None for b in view.sample.batches) else "the batches have no attention mask"

    def probe(self, view: View) -> Probe:
        return _PaddingProbe()

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"packed": True}]

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        padding = torch.cat([padding_share(b.mask) for b in sample.batches if b.mask is not None]).cpu()
        saved, sites = torch.zeros(len(padding), dtype=torch.float64), dict[str, float]()
        for site in view.sites.values():
            share = 1 - (1 - padding) ** 2 if site.type in ("attention", "matmul") else padding
            saved += share * view.per_item(site.name)
            sites[site.name] = float(share.mean()) * view.per_item(site.name)
        zero = torch.zeros(len(padding))
        return Outcome(setting, saved / max(view.total, 1), zero, zero, None, sites, {}, float(padding.mean()))

    def notes(self, view: View) -> list[str]:
        return ["Sequences without padding give the same answers, so nothing was simulated; batches of one show it."]


class _PaddingProbe(Probe):
    def begin(self, batch: Batch) -> Batch:
        super().begin(batch)
        if batch.mask is not None:
            self.note("input", padding_share(batch.mask), 1.0)
        return batch


AXES: Sequence[type[Axis]] = (Zeros, ZeroChannels, ZeroTiles, Padding)
