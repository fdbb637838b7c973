"""Runs of a model in which an ideal reuse is simulated, and what they save.

An `Edit` is one way of reusing at one setting. It may change the batch, compute the products of the model from other
operands, and put hooks on its modules; the rest of the model runs on what it leaves. It keeps account, item by item,
of the MACs that would not have been spent, in closed form, and of the physical work that finding them takes.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.report.batches import Batch
from reference_impls.report.outputs import Outputs, Reading
from reference_impls.report.sample import Sample
from reference_impls.report.watch import Call, Log, Site, Watch

Tick = Callable[[int], None]
"""Told of the number of items that a run has just done."""


class Edit:
    """Nothing changed: the base of all edits and probes."""

    def __init__(self) -> None:
        self.saved: dict[str, Tensor] = {}
        """Site -> MACs saved of each item of the batch, (B,)."""
        self.mean: defaultdict[str, float] = defaultdict(float)
        """Site -> MACs saved, summed over all items so far."""
        self.unreal: defaultdict[str, float] = defaultdict(float)
        """The part of `mean` that no kernel of this machine turns into time."""
        self.overhead: defaultdict[str, float] = defaultdict(float)
        """Bytes compared, gathered and scattered, (row, bit) pairs hashed, and operators called; over all items."""
        self.items = 0
        self.batch: Batch | None = None

    def begin(self, batch: Batch) -> Batch:
        """A new batch, before it runs; returns what runs."""
        self.batch, self.saved = batch, {}
        self.items += batch.items
        return batch

    def hooks(self, model: nn.Module) -> list[Any]:
        """Handles of hooks on the model's modules, for the time of the run."""
        return []

    def operands(self, call: Call) -> dict[str, Tensor]:
        """Operands of a product, by name, that stand in for its own; empty to leave it as it is."""
        return {}

    def account(self, call: Call, out: Any) -> None:
        """What a product saves, once it has run."""

    def site(self, call: Call) -> Any:
        """A product with the operands that the edit puts in."""
        call.changed.update(self.operands(call))
        out = call.run()
        self.account(call, out)
        return out

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        """The result of any other operator."""
        return out

    @property
    def looks_at_all(self) -> bool:
        """Whether `after` does anything."""
        return type(self).after is not Edit.after

    def end(self) -> None:
        """The batch has run."""

    def save(self, site: str, macs: Tensor, *, real: bool = True) -> None:
        """MACs of each item (B,) that would not be spent at a site; real: a kernel could leave them out."""
        macs = macs.detach().double().cpu()
        self.saved[site] = self.saved[site] + macs if site in self.saved else macs
        self.mean[site] += float(macs.sum())
        if not real:
            self.unreal[site] += float(macs.sum())

    def spend(self, **physical: float) -> None:
        """Physical work of finding and using what is redundant, for the whole batch."""
        for name, amount in physical.items():
            self.overhead[name] += amount

    def of_items(self) -> Tensor:
        """MACs saved of each item of the batch, (B,)."""
        assert self.batch is not None
        total = torch.zeros(self.batch.items, dtype=torch.float64)
        for macs in self.saved.values():
            total += macs
        return total


@dataclass
class Run:
    """What a simulated run gave."""

    outputs: Outputs
    saved: Tensor
    """MACs saved of each item."""
    log: Log
    edit: Edit


@dataclass
class Block:
    """A module that gives what it is given a shape of: what could be left out, and after which could be left."""

    name: str
    module: nn.Module
    macs: float
    """Of one item."""
    chain: str
    """Name of the list that it stands in."""
    index: int
    tokens: bool
    """Its data are (B, N, C), else maps (B, C, H, W)."""


@dataclass
class View:
    """A model with its sample, as the axes see it."""

    model: nn.Module
    sample: Sample
    reading: Reading
    dense: Outputs
    macs: Tensor
    """Dense MACs of each item of the sample."""
    sites: dict[str, Site]
    """Of the dense pass, sums over all its items."""
    blocks: list[Block]
    seed: int = 0
    shared: dict[str, Any] = field(default_factory=dict)
    """What one axis has found and another can use, such as features after each block."""

    @property
    def kind(self) -> str:
        """Of the data."""
        return self.sample.kind

    def per_item(self, site: str) -> float:
        """Dense MACs of a site for an item."""
        return self.sites[site].macs / self.sample.items

    @property
    def total(self) -> float:
        """Dense MACs of an item, mean over the sample."""
        return float(self.macs.mean())


def simulate(view: View, edit: Edit, sample: Sample | None = None, tick: Tick | None = None) -> Run:
    """Run the model over a sample with an edit in place."""
    sample = sample or view.sample
    watch = Watch(view.model, edit.site, after=edit.after if edit.looks_at_all else None)
    outputs, saved = Outputs(), list[Tensor]()
    with hooked(edit, view.model):
        for batch in sample.batches:
            given = edit.begin(batch)
            with watch.forward(batch.items):
                out = given.call(view.model)
            edit.end()
            outputs.add(*view.reading(out, batch))
            saved.append(edit.of_items())
            if tick:
                tick(batch.items)
    return Run(outputs, torch.cat(saved), watch.log, edit)


@contextlib.contextmanager
def hooked(edit: Edit, model: nn.Module) -> Iterator[None]:
    """An edit's hooks, removed at the end."""
    handles = edit.hooks(model)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Probe(Edit):
    """Observes without changing anything: values in [0, 1] of each item, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[Tensor]] = {}
        """Layer -> (B,) of each batch."""
        self.weights: defaultdict[str, float] = defaultdict(float)
        """Layer -> how much it counts in the mean: its MACs."""

    def note(self, layer: str, values: Tensor, weight: float) -> None:
        """Values (B,) of a layer for the items of this batch."""
        self.values.setdefault(layer, []).append(values.detach().double().cpu())
        self.weights[layer] += weight

    def of_all(self) -> Tensor:
        """The mean over layers of each item, weighted by their MACs: (items,); empty where nothing was noted."""
        layers = {name: torch.cat(found) for name, found in self.values.items()}
        if not layers:
            return torch.zeros(0)
        longest = max(len(v) for v in layers.values())
        layers = {name: v for name, v in layers.items() if len(v) == longest}
        weights = torch.tensor([max(self.weights[name], 1e-30) for name in layers], dtype=torch.float64)
        return (torch.stack(list(layers.values())) * (weights / weights.sum())[:, None]).sum(0)

    def of_layers(self) -> dict[str, float]:
        """The mean over items of each layer."""
        return {name: float(torch.cat(found).mean()) for name, found in self.values.items()}


class Observing(Edit):
    """Probes side by side. One that fails on this model observes no more, and says why in `failed`."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        super().__init__()
        self.probes = dict(probes)
        self.failed: dict[str, str] = {}

    def _each(self, act: Callable[[Probe], Any]) -> None:
        for name, probe in list(self.probes.items()):
            try:
                act(probe)
            except Exception as error:  # whatever somebody's model makes of it
                self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                del self.probes[name]

    def begin(self, batch: Batch) -> Batch:
        self._each(lambda probe: probe.begin(batch))
        return super().begin(batch)

    def hooks(self, model: nn.Module) -> list[Any]:
        return [handle for probe in self.probes.values() for handle in probe.hooks(model)]

    def account(self, call: Call, out: Any) -> None:
        def see(probe: Probe) -> None:
            probe.operands(call)
            probe.account(call, out)

        self._each(see)

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        self._each(lambda probe: probe.after(func, args, out, module))
        return out

    @property
    def looks_at_all(self) -> bool:
        return any(probe.looks_at_all for probe in self.probes.values())


class Together(Edit):
    """Several edits, one after the other: each sees what those before it leave.

    Of a site's MACs each saves its share of what the others left: 1 - (1 - a) (1 - b).
    """

    def __init__(self, edits: Sequence[Edit], per_item: Callable[[str], float]) -> None:
        """per_item: dense MACs of a site for an item."""
        super().__init__()
        self.edits, self.per_item = list(edits), per_item

    def begin(self, batch: Batch) -> Batch:
        super().begin(batch)
        for edit in self.edits:
            batch = edit.begin(batch)
        return batch

    def hooks(self, model: nn.Module) -> list[Any]:
        return [handle for edit in self.edits for handle in edit.hooks(model)]

    def operands(self, call: Call) -> dict[str, Tensor]:
        for edit in self.edits:
            call.changed.update(edit.operands(call))
        return call.changed

    def account(self, call: Call, out: Any) -> None:
        for edit in self.edits:
            edit.account(call, out)

    def after(self, func: Any, args: tuple[Any, ...], out: Any, module: str) -> Any:
        for edit in self.edits:
            out = edit.after(func, args, out, module)
        return out

    @property
    def looks_at_all(self) -> bool:
        return any(edit.looks_at_all for edit in self.edits)

    def end(self) -> None:
        for edit in self.edits:
            edit.end()
        assert self.batch is not None
        for site in {site for edit in self.edits for site in edit.saved}:
            dense = self.per_item(site)
            left = torch.ones(self.batch.items, dtype=torch.float64)
            for edit in self.edits:
                if site in edit.saved:
                    left *= 1 - edit.saved[site] / max(dense, 1e-30)
            self.save(site, dense * (1 - left))
