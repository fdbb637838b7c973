"""The data set: items that occur again, that resemble others, or that the model has learnt; and answers to look up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_impls.redundancy.cross_sample_similarity import (
    batch_similarity,
    cache_hits,
    earlier_similarities,
    exact_groups,
    near_groups,
    row_maxima,
    unit,
)
from reference_impls.redundancy.exact_repetition import scaled_pairs
from reference_impls.redundancy.irrelevance import easy_share
from reference_impls.report.axes.base import Axis, Outcome, Setting, Values, gain
from reference_impls.report.batches import Batch
from reference_impls.report.engine import Probe, Tick, View
from reference_impls.report.outputs import Outputs, errors, flips
from reference_impls.report.sample import Sample


def centred_outputs(view: View) -> Tensor:
    """The model's own outputs as embeddings (items, n), without their mean; a row of zeros gets a direction."""
    widths = {v.shape[1] for v in view.dense.values}
    n = min(widths)
    x = torch.cat([v[:, :n] for v in view.dense.values])
    x = x - x.mean(0) if len(x) > 2 else x
    x[(x == 0).all(1)] = 1.0
    return x


def keys_of(batch: Batch) -> Tensor:
    """(B, D) of each item's input without running anything: a picture on 8 x 8, or how often each index occurs."""
    x = batch.main
    if x.is_floating_point():
        return F.adaptive_avg_pool2d(x.float(), 8).flatten(1) if x.ndim == 4 else x.float().flatten(1)[:, :4096]
    counts = torch.zeros(len(x), 1024)
    mask = batch.mask
    kept = torch.ones_like(x, dtype=torch.float32) if mask is None else mask.float()
    return counts.scatter_add_(1, (x.flatten(1) % 1024).cpu(), kept.flatten(1).cpu())


class Repeated(Axis):
    """Items that equal an item before them, bit for bit."""

    id = "repeated-items"
    title = "Items of the data that equal one before them"
    relation, location, granularity = "exact_repetition", "dataset", "sample"
    measure = "share of all items that equal one before them, by their hashes"
    source = "reference_impls.redundancy.cross_sample_similarity:exact_groups"
    saves = "training"
    free = True
    nulls = compatible = False

    def values(self, view: View, probe: Probe | None) -> Values:
        return Values(exact_groups(view.sample.hashes).ne(torch.arange(len(view.sample.hashes))).double())

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"epsilon": 1e-5}]  # what rounding leaves of the cosine of equal items

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        saved = self.values(view, None).items
        return Outcome(setting, saved, torch.zeros(len(saved)), torch.zeros(len(saved)))


class Near(Axis):
    """Items whose outputs are close to those of another item."""

    id = "near-items"
    title = "Items of the data that resemble another one, as this model sees them"
    relation, location, granularity = "cross_sample_similarity", "dataset", "sample"
    measure = "share of items with one before them at a cosine above 0.95, of the model's centred outputs"
    source = "reference_impls.redundancy.cross_sample_similarity:earlier_similarities"
    saves = "training"
    compatible = False
    free = True

    def unfit(self, view: View) -> str | None:
        return None if view.sample.items > 2 else "two items or fewer cannot be compared"

    def values(self, view: View, probe: Probe | None) -> Values:
        z = unit(centred_outputs(view))
        return Values((row_maxima(earlier_similarities(z), z)[0] > 0.95).double().cpu())

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"epsilon": e} for e in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2)]

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        z = unit(centred_outputs(view))
        closest, before = row_maxima(earlier_similarities(z), z)
        alone = torch.arange(len(z))
        groups = torch.where(closest.cpu() > 1 - setting["epsilon"], before.cpu(), alone)[: sample.items]
        twin = Outputs()
        start = 0
        values, answers = _rows(view.dense.values), _rows(view.dense.answers)
        for batch in sample.batches:
            index = groups[start : start + batch.items].tolist()
            start += batch.items
            same = [values[i].shape == values[start - batch.items + k].shape for k, i in enumerate(index)]
            own = [start - batch.items + k for k in range(batch.items)]
            chosen = [i if ok else o for i, ok, o in zip(index, same, own, strict=True)]
            twin.add(torch.stack([values[i] for i in chosen]), torch.stack([answers[i] for i in chosen]))
        gone = (groups != torch.arange(len(groups))).double()
        return Outcome(setting, gone, errors(view.dense, twin), flips(view.dense, twin, view.reading.decision))

    def notes(self, view: View) -> list[str]:
        items, seen = view.sample.items, len(view.sample.hashes)
        if seen <= items or items < 2:
            return ["Errors and flips are those of each item that would go, against the twin that stays."]
        gone = near_groups(centred_outputs(view), 0.05)
        pairs = int((gone[:, None] == gone[None]).sum() - len(gone)) // 2  # all of each chain
        estimate, low, high = scaled_pairs(pairs, items, seen)
        return [
            "Errors and flips are those of each item that would go, against the twin that stays.",
            (
                f"Compared were {items} of {seen} items. A sample holds few of all pairs: {pairs} near pairs in it "
                f"mean about {estimate:.0f} ({low:.0f} to {high:.0f}) among all."
            ),
        ]


def _rows(parts: Sequence[Tensor]) -> list[Tensor]:
    return [row for part in parts for row in part]


class Easy(Axis):
    """Items that the model has learnt."""

    id = "easy-items"
    title = "Items that the model has learnt"
    relation, location, granularity = "irrelevance", "dataset", "sample"
    measure = "share of items with a loss below the mean"
    source = "reference_impls.redundancy.irrelevance:easy_share"
    saves = "training"
    compatible = False
    free = True

    def unfit(self, view: View) -> str | None:
        if view.reading.decision != "class":
            return "the output is not one class for each item"
        return None if view.sample.labelled else "the loader gives no labels"

    def losses(self, view: View) -> Tensor | None:
        """Cross-entropy (items,) of the dense model; None where a label is no class of the output."""
        labels = torch.cat([b.labels.flatten() for b in view.sample.batches if b.labels is not None]).cpu()
        logits = torch.cat(view.dense.values)
        if len(labels) != len(logits) or not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
            return None
        return F.cross_entropy(logits, labels.long(), reduction="none")

    def values(self, view: View, probe: Probe | None) -> Values:
        losses = self.losses(view)
        if losses is None:
            return Values(torch.zeros(0))
        share, below = easy_share(losses), (losses < losses.mean()).double()
        assert abs(share - float(below.mean())) < 1e-9
        return Values(below)

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"dropped": r} for r in (0.25, 0.5, 0.75)]

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        losses = self.losses(view)
        assert losses is not None
        below = (losses < losses.mean()).double()[: sample.items]
        nothing = torch.zeros(len(below))
        return Outcome(setting, 0.875 * setting["dropped"] * below, nothing, nothing)

    def notes(self, view: View) -> list[str]:
        return [
            (
                "A share of the items with a small loss is left out of 7 of 8 epochs and the others weigh more, as "
                "InfoBatch does. What that does to a training was not simulated: error and flips are 0 because "
                "this model stays."
            )
        ]


class Cache(Axis):
    """Items whose answer that of an earlier, similar item could stand in for."""

    id = "stream-cache"
    title = "Items whose answer could be looked up from a similar one before"
    relation, location, granularity = "cross_sample_similarity", "request_population", "sample"
    measure = "(N - effective number of items) / (N - 1), of the model's centred outputs"
    source = "reference_impls.redundancy.cross_sample_similarity:batch_similarity"
    shrinks = True
    compatible = False
    free = True

    def unfit(self, view: View) -> str | None:
        return None if view.sample.items > 2 else "two items or fewer cannot be compared"

    def values(self, view: View, probe: Probe | None) -> Values:
        x = centred_outputs(view)
        parts = [part for part in x.split(16) if len(part) > 2] or [x]
        return Values(torch.tensor([batch_similarity(part) for part in parts], dtype=torch.float64))

    def settings(self, view: View) -> list[dict[str, Any]]:
        return [{"tau": t} for t in (0.001, 0.01, 0.03, 0.1, 0.3)]

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        found = [keys_of(b) for b in view.sample.batches]
        width = min(k.shape[1] for k in found)
        keys = torch.cat([k[:, :width].cpu() for k in found])
        keys = keys - keys.mean(0) if len(keys) > 2 else keys
        keys[(keys == 0).all(1)] = 1.0
        hit = cache_hits(keys, setting["tau"])[: sample.items]
        values, answers, outputs, start = _rows(view.dense.values), _rows(view.dense.answers), Outputs(), 0
        taken = torch.zeros(len(hit), dtype=torch.float64)
        for batch in sample.batches:
            chosen = []
            for i in range(start, start + batch.items):
                ok = int(hit[i]) >= 0 and values[int(hit[i])].shape == values[i].shape
                chosen.append(int(hit[i]) if ok else i)
                taken[i] = ok
            start += batch.items
            outputs.add(torch.stack([values[i] for i in chosen]), torch.stack([answers[i] for i in chosen]))
        sites = {name: view.per_item(name) * float(taken.mean()) for name in view.sites}
        decided = flips(view.dense, outputs, view.reading.decision)
        return Outcome(setting, taken, errors(view.dense, outputs), decided, gain(view, outputs, sample), sites,
                       {"calls": 10.0, "compare_bytes": 4.0 * width * len(keys)}, float(taken.mean()))  # fmt: skip

    def notes(self, view: View) -> list[str]:
        return ["Keys are the inputs on 8 x 8, or how often each token occurs, in the order of the loader."]


AXES: Sequence[type[Axis]] = (Repeated, Near, Easy, Cache)
