"""Parts of one datum that follow from others: rows of a product, and channels of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.redundancy.inputs import finite
from reference_impls.redundancy.spatial_similarity import ChannelStatistics, channel_redundancy, rank_for, row_reuse
from reference_impls.report.axes.base import Axis, Setting, Values
from reference_impls.report.engine import Edit, Probe, View
from reference_impls.report.watch import Call

WIDEST = 1024
"""Most channels whose covariance is taken: 8 MiB in float64."""
STORED = 192 << 20
"""Bytes of covariances that are held, of the layers that run first."""
ROWS = 128
"""Rows of each item that statistics of channels are taken from."""
MOST_ROWS = 4096
"""Most rows of a layer that are hashed by the measure."""


def rows_of(call: Call, most: int | None = None) -> Tensor | None:
    """The rows (B, N, D) that a product with weights really multiplies: of a convolution its unfolded windows.

    most: of a larger map only the first lines, with about so many rows.
    """
    x = call.x
    if call.site.type == "linear":
        return call.rows()
    if call.site.type != "conv" or x.ndim != 4 or call.weight is None or call.named.get("transposed"):
        return None
    if call.named.get("groups", 1) != 1:
        return None
    kernel = (call.weight.shape[2], call.weight.shape[3])
    stride, padding, dilation = map(call.sliding, ("stride", "padding", "dilation"))
    if most is not None and x.shape[2] * x.shape[3] > most:
        x = x[:, :, : max(kernel[0] * dilation[0], most // x.shape[3])]
    if kernel == (1, 1) and padding == (0, 0):
        return x[..., :: stride[0], :: stride[1]].flatten(2).transpose(1, 2)
    return F.unfold(x, kernel, dilation, padding, stride).transpose(1, 2)


class _RowProbe(Probe):
    """1 - groups of equal signatures / rows, of some rows of each item."""

    def __init__(self, bits: int, seed: int, across: bool) -> None:
        super().__init__()
        self.bits, self.seed, self.across = bits, seed, across

    def account(self, call: Call, out: Any) -> None:
        most = max(2, MOST_ROWS // call.batch)
        rows = rows_of(call, most)
        if rows is None or rows.shape[1] < 2 or not finite(rows):
            return
        rows = rows[:, :most]  # the first ones, which lie beside each other as in the whole
        batch, n = rows.shape[:2]
        scope = None if self.across else torch.arange(batch).repeat_interleave(n)
        found = row_reuse(rows.reshape(batch * n, -1), self.bits, self.seed, scope)
        if self.across:
            values = torch.full((batch,), 1 - found.ratio)
        else:
            first = torch.zeros(found.groups, dtype=torch.long)
            first[found.group.cpu()] = torch.arange(batch).repeat_interleave(n)
            values = 1 - first.bincount(minlength=batch) / n
        self.note(call.site.name, values, call.cost(out))


class _RowEdit(Edit):
    """Rows of equal signatures become their mean, so that the product sees each of them once."""

    def __init__(self, bits: int, seed: int, across: bool) -> None:
        super().__init__()
        self.bits, self.seed, self.across = bits, seed, across
        self._found: tuple[Tensor, Tensor, int] | None = None

    def site(self, call: Call) -> Any:
        if call.weight is None or call.site.type not in ("conv", "linear"):
            return call.run()
        outputs = call.weight.shape[0] if call.site.type == "conv" else call.weight.shape[1]
        if self.bits >= outputs or (rows := rows_of(call)) is None or rows.shape[1] < 2:
            return call.run()  # hashing alone costs as much as the product
        batch, n, width = rows.shape
        flat = rows.reshape(batch * n, width)
        owner = torch.arange(batch, device=flat.device).repeat_interleave(n)
        found = row_reuse(flat, self.bits, self.seed, None if self.across else owner)
        share = found.ratio if self.across else None
        if share is None:
            first = torch.zeros(found.groups, dtype=torch.long, device=flat.device)
            first[found.group] = owner
            share_of = first.bincount(minlength=batch).double() / n
        else:
            share_of = torch.full((batch,), share, dtype=torch.float64)
        gain = 1 - self.bits / outputs - share_of
        if float(gain.mean()) <= 0:  # hashing costs more than it saves, so the layer is left alone
            return call.run()
        mean = found.mean(flat)
        pointwise = call.site.type == "linear" or width == call.x.shape[1]
        out = self._product(call, mean.view(batch, n, width), pointwise)
        self.save(call.site.name, gain * call.cost(out), real=pointwise)
        self.spend(hash_pairs=len(flat) * self.bits, calls=8, gather_bytes=2 * len(flat) * outputs * 4)
        return out

    def _product(self, call: Call, mean: Tensor, pointwise: bool) -> Any:
        if call.site.type == "linear":
            call.changed[call.argument] = mean.reshape(call.x.shape).to(call.x.dtype)
            return call.run()
        out = call.run()  # for its shape
        assert call.weight is not None
        product = mean @ call.weight.flatten(1).T.to(mean.dtype)
        if (bias := call.named.get("bias")) is not None:
            product = product + bias
        return product.transpose(1, 2).reshape(out.shape).to(out.dtype)


class Rows(Axis):
    """Rows of products that resemble other rows of the same datum."""

    id = "rows"
    title = "Rows of products that resemble others of the same datum"
    relation, location, granularity = "spatial_similarity", "activations", "vector"
    measure = "1 - groups of equal signatures of 16 random signs / rows"
    source = "reference_impls.redundancy.spatial_similarity:row_reuse"
    compatible = False
    across = False

    def probe(self, view: View) -> Probe:
        return _RowProbe(16, view.seed, self.across)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"bits": bits} for bits in (32, 24, 16, 12, 8)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return _RowEdit(setting["bits"], view.seed, self.across)

    def notes(self, view: View) -> list[str]:
        return [
            (
                "Only products with whole rows (linear, 1 x 1) count as realisable: unfolding a larger convolution "
                "costs more than the convolution."
            )
        ]


class RowsAcross(Rows):
    """Rows of products that resemble rows of any datum of the batch."""

    id = "rows-across"
    title = "Rows of products that resemble rows of any datum of the batch"
    relation = "cross_sample_similarity"
    across = True

    def unfit(self, view: View) -> str | None:
        return None if max(b.items for b in view.sample.batches) > 1 else "every batch has a single item"


class _ChannelProbe(Probe):
    """Covariance of the channels of the inputs of products with weights, layer by layer and batch by batch."""

    def __init__(self, store: dict[str, ChannelStatistics]) -> None:
        super().__init__()
        self.store = store

    def account(self, call: Call, out: Any) -> None:
        if call.site.type not in ("conv", "linear") or call.named.get("groups", 1) != 1:
            return
        rows = call.rows()
        if rows is None or not 2 <= rows.shape[2] <= WIDEST or not finite(rows):
            return
        width = rows.shape[2]
        held = sum(len(c.mean) ** 2 for c in self.store.values()) * 8
        if call.site.name not in self.store and held + width**2 * 8 > STORED:
            return
        step = max(1, rows.shape[1] // ROWS)
        some = rows[:, ::step].reshape(-1, rows.shape[2])
        self.store.setdefault(call.site.name, ChannelStatistics()).add(some)
        self.weights[call.site.name] += call.cost(out)


def enough(found: ChannelStatistics) -> bool:
    """Whether there are rows enough: n of them have no more than n directions, as if wide layers were redundant."""
    return found.n >= 2 * len(found.mean)


class Channels(Axis):
    """Channels that follow from combinations of others."""

    id = "channels"
    title = "Channels that follow from combinations of others"
    relation, location, granularity = "spatial_similarity", "activations", "channel"
    measure = "1 - directions that hold 99 % of the variance of a layer's input, of its channels"
    source = "reference_impls.redundancy.spatial_similarity:channel_redundancy"

    def probe(self, view: View) -> Probe:
        return _ChannelProbe(view.shared.setdefault("covariances", {}))

    def values(self, view: View, probe: Probe | None) -> Values:
        assert probe is not None
        layers = {
            name: channel_redundancy(torch.linalg.eigvalsh(found.covariance).flip(0).clamp(min=0))
            for name, found in view.shared["covariances"].items()
            if enough(found)
        }
        if not layers:
            return Values(torch.zeros(0))
        total = sum(probe.weights[name] for name in layers)
        mean = sum(value * probe.weights[name] for name, value in layers.items()) / max(total, 1e-30)
        return Values(torch.tensor([mean], dtype=torch.float64), layers)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"variance": v} for v in (0.9999, 0.999, 0.99, 0.95, 0.9)]

    def edit(self, view: View, setting: Setting) -> Edit:
        return _Projected(view, setting["variance"])

    def notes(self, view: View) -> list[str]:
        return [f"Layers with more than {WIDEST} channels, or too few rows for their channels, were left out."]


class _Projected(Edit):
    """Inputs of products on the directions that hold a share of their variance, where two products are cheaper."""

    def __init__(self, view: View, share: float) -> None:
        super().__init__()
        self.bases: dict[str, tuple[Tensor, Tensor]] = {}
        spectra = view.shared.setdefault("spectra", {})
        for name, found in view.shared.get("covariances", {}).items():
            if not enough(found):
                continue
            if name not in spectra:
                spectra[name] = found.spectrum()
            eigenvalues, vectors = spectra[name]
            if (k := max(rank_for(eigenvalues, share), 1)) < len(eigenvalues):
                self.bases[name] = (vectors[:, :k].float(), found.mean.float())

    def _saving(self, call: Call) -> float:
        """Share of the MACs of a layer that two thinner ones save; not positive where they do not."""
        basis, weight = self.bases[call.site.name][0], call.weight
        assert weight is not None
        channels, k = basis.shape
        window = weight[0, 0].numel() if call.site.type == "conv" else 1
        outputs = weight.shape[0] if call.site.type == "conv" else weight.shape[1]
        moved = call.x[0, 0].numel() / self._positions(call) if call.site.type == "conv" else 1.0
        return 1 - (moved * channels * k + window * k * outputs) / (window * channels * outputs)

    def _positions(self, call: Call) -> float:
        down, across = call.sliding("stride")
        return max(call.x[0, 0].numel() / (down * across), 1.0)

    def operands(self, call: Call) -> dict[str, Tensor]:
        if call.site.name not in self.bases or self._saving(call) <= 0:
            return {}
        basis, mean = (t.to(call.x) for t in self.bases[call.site.name])
        rows = call.rows()
        if rows is None or rows.shape[2] != len(mean):
            return {}
        kept = (rows - mean) @ basis @ basis.T + mean
        if call.site.type == "conv":
            return {call.argument: kept.transpose(1, 2).reshape(call.x.shape)}
        return {call.argument: kept.reshape(call.x.shape)}

    def account(self, call: Call, out: Any) -> None:
        if call.site.name in self.bases and (saving := self._saving(call)) > 0:
            self.save(call.site.name, torch.full((call.batch,), saving * call.cost(out)))
            self.spend(calls=1)


AXES: Sequence[type[Axis]] = (Rows, RowsAcross, Channels)
