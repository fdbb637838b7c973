"""Depth: blocks that change little, and answers that are found before the last block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.redundancy.cross_step_similarity import left_alone
from reference_impls.redundancy.inputs import finite
from reference_impls.redundancy.sufficiency import probe as nearest_mean
from reference_impls.redundancy.sufficiency import settled
from reference_impls.report.axes.base import Axis, Outcome, Setting, Values
from reference_impls.report.axes.transformer import inside
from reference_impls.report.engine import Block, Edit, Probe, Tick, View
from reference_impls.report.sample import Sample
from reference_impls.report.watch import Call


def first_tensor(value: Any) -> Tensor:
    """What a block is given, or gives, first."""
    found: Tensor = value[0] if isinstance(value, tuple | list) else value
    return found


class _LeftAlone(Probe):
    """Cosine of what each block is given and gives, position by position."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view

    def hooks(self, model: nn.Module) -> list[Any]:
        def seen(block: Block, args: Any, kwargs: Any, out: Any) -> None:
            before = first_tensor(args) if args else next(iter(kwargs.values()))
            after = first_tensor(out)
            if finite(after):
                self.note(block.name, left_alone(before, after), block.macs)

        return [
            block.module.register_forward_hook(lambda m, a, k, o, b=block: seen(b, a, k, o), with_kwargs=True)
            for block in self.view.blocks
        ]


class _Skipping(Edit):
    """Some blocks give what they are given."""

    def __init__(self, view: View, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.view = set(names), view

    def hooks(self, model: nn.Module) -> list[Any]:
        def undone(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            before = first_tensor(args) if args else next(iter(kwargs.values()))
            return type(out)((before, *out[1:])) if isinstance(out, tuple | list) else before

        return [
            block.module.register_forward_hook(undone, with_kwargs=True)
            for block in self.view.blocks
            if block.name in self.names
        ]

    def account(self, call: Call, out: Any) -> None:
        if any(inside(call.site.module, name) for name in self.names):
            self.save(call.site.name, torch.full((call.batch,), call.cost(out)))


class Blocks(Axis):
    """Blocks that change little of what they are given."""

    id = "blocks"
    title = "Blocks that change little of what they are given"
    relation, location, granularity = "cross_step_similarity", "trajectory", "layer_step"
    measure = "mean cosine of what a block is given and gives, 1 - block influence"
    source = "reference_impls.redundancy.cross_step_similarity:left_alone"
    shrinks = True

    def unfit(self, view: View) -> str | None:
        return None if len(view.blocks) > 1 else "the model has no blocks that give the shape that they are given"

    def probe(self, view: View) -> Probe:
        return _LeftAlone(view)

    def values(self, view: View, probe: Probe | None) -> Values:
        found = super().values(view, probe)
        view.shared.setdefault("left alone", dict(found.layers))
        return found

    def settings(self, view: View) -> list[dict[str, Any]]:
        n = len(view.blocks)
        return [{"blocks": k} for k in sorted({1, 2, max(1, n // 8), max(1, n // 4), max(1, n // 2)}) if k < n]

    def edit(self, view: View, setting: Setting) -> Edit:
        found = view.shared["left alone"]
        return _Skipping(view, sorted(found, key=found.__getitem__, reverse=True)[: setting["blocks"]])


class _Features(Probe):
    """The mean feature after each block: (items, C)."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view
        self.features: dict[str, list[Tensor]] = {}

    def hooks(self, model: nn.Module) -> list[Any]:
        def seen(block: Block, out: Any) -> None:
            x = first_tensor(out).detach().float()
            mean = x.mean(1) if x.ndim == 3 else x.flatten(2).mean(2) if x.ndim == 4 else x.flatten(1)
            self.features.setdefault(block.name, []).append(mean.cpu())

        return [b.module.register_forward_hook(lambda m, a, o, b=b: seen(b, o)) for b in self.view.blocks]


class Exits(Axis):
    """Answers that the features tell before the last block."""

    id = "exits"
    title = "Answers that are already told by the features of earlier blocks"
    relation, location, granularity = "sufficiency", "trajectory", "layer_step"
    measure = (
        "share of the MACs after the nearest class mean of a block's features gives the final answer, and keeps it"
    )
    source = "reference_impls.redundancy.sufficiency:settled"
    shrinks = everywhere = free = True
    compatible = False

    def unfit(self, view: View) -> str | None:
        if view.reading.decision != "class":
            return "the output is not one class for each item"
        if len(view.blocks) < 2:
            return "the model has no blocks after which it could be left"
        answers = torch.cat(view.dense.answers).flatten()
        if len(answers) < 3 * len(answers.unique()):
            return (
                f"the {len(answers)} items of the sample have {len(answers.unique())} different answers, and a class "
                "mean needs three of each at least: give more items"
            )
        return None

    def probe(self, view: View) -> Probe:
        return _Features(view)

    def values(self, view: View, probe: Probe | None) -> Values:
        assert isinstance(probe, _Features)
        final = torch.cat(view.dense.answers).flatten()
        names = [b.name for b in view.blocks if b.name in probe.features]
        found = [nearest_mean(torch.cat(probe.features[name]), final) for name in names]
        if not found:
            return Values(torch.zeros(0))
        said, margins = torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])
        after = torch.tensor([self._after(view, name) for name in names] + [0.0], dtype=torch.float64)
        view.shared.setdefault("exits", (names, said, margins, final))
        where = settled(torch.cat([said, final[None]]))
        agree = {name: float((s == final).double().mean()) for name, s in zip(names, said, strict=True)}
        return Values(after[where] / max(view.total, 1), agree)

    def _after(self, view: View, name: str) -> float:
        """MACs of an item that come after a block."""
        sites = list(view.sites.values())
        last = max((i for i, s in enumerate(sites) if inside(s.module, name)), default=len(sites))
        return sum(view.per_item(s.name) for s in sites[last + 1 :])

    def settings(self, view: View) -> list[dict[str, Any]]:
        if "exits" not in view.shared:
            return []
        margins = view.shared["exits"][2].flatten()
        found = {round(float(margins.quantile(q)), 4) for q in (0.99, 0.95, 0.9, 0.8, 0.6, 0.4)}
        return [{"margin": m} for m in sorted(found, reverse=True)]

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        names, said, margins, final = view.shared["exits"]
        items = sample.items
        leaves = (margins >= setting["margin"]) & (said >= 0)
        leaves = torch.cat([leaves, torch.ones(1, leaves.shape[1], dtype=torch.bool)])[:, :items]
        where = leaves.long().argmax(0)
        answer = torch.cat([said, final[None]])[where, torch.arange(items)]
        after = torch.tensor([self._after(view, name) for name in names] + [0.0], dtype=torch.float64)
        saved = after[where] / max(view.total, 1)
        order, sites = list(view.sites.values()), dict[str, float]()
        for i, name in enumerate(names):
            share = float((where == i).double().mean())
            last = max((j for j, s in enumerate(order) if inside(s.module, name)), default=len(order))
            for site in order[last + 1 :]:
                sites[site.name] = sites.get(site.name, 0.0) + share * view.per_item(site.name)
        labels = [b.labels for b in sample.batches]
        gained = None
        if all(label is not None and label.numel() == b.items for label, b in zip(labels, sample.batches, strict=True)):
            truth = torch.cat([label.flatten().cpu() for label in labels if label is not None])
            gained = (answer == truth).float() - (final[:items] == truth).float()
        return Outcome(setting, saved, None, (answer != final[:items]).float(), gained, sites, {"calls": len(names)},
                       float(saved.mean()))  # fmt: skip

    def notes(self, view: View) -> list[str]:
        return [
            (
                "The exits are nearest class means of the sample's own answers: trained exits may leave earlier, and "
                "one that has to tell more classes later."
            )
        ]


AXES: Sequence[type[Axis]] = (Blocks, Exits)
