"""What an axis of the report offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from reference_impls.report.engine import Edit, Probe, Tick, View, simulate
from reference_impls.report.outputs import correct, errors, flips
from reference_impls.report.result import Saves
from reference_impls.report.sample import Sample

Setting = Mapping[str, Any]


@dataclass
class Values:
    """What a measure found."""

    items: Tensor
    """One value for each item, or for each independent part of the sample."""
    layers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a simulated reuse saves and does, item by item."""

    setting: Setting
    saved: Tensor
    """Share of the item's MACs (of a training, of the bits), (items,)."""
    error: Tensor | None
    flips: Tensor | None
    gain: Tensor | None = None
    """Correct minus correct of the dense model, where there are labels."""
    sites: Mapping[str, float] = field(default_factory=dict)
    """MACs of an item that fall away at each site and that a kernel could leave out."""
    overhead: Mapping[str, float] = field(default_factory=dict)
    """Physical work for an item."""
    shrinks: float = 0.0
    """Share of the time outside of products that falls away as well."""


class Axis(ABC):
    """One kind of redundancy at one place. Class attributes are what a finding says of it."""

    id: ClassVar[str]
    title: ClassVar[str]
    relation: ClassVar[str]
    location: ClassVar[str]
    granularity: ClassVar[str]
    measure: ClassVar[str]
    source: ClassVar[str]
    saves: ClassVar[Saves] = "inference"
    shrinks: ClassVar[bool] = False
    """Operators without products have less to do as well: tokens, frames or positions are gone."""
    everywhere: ClassVar[bool] = False
    """The probe is cheap, and sees the whole sample."""
    nulls: ClassVar[bool] = True
    """Null controls say something."""
    weights: ClassVar[bool] = True
    """So does the one of the weights: the measure is not of the input alone."""
    free: ClassVar[bool] = False
    """Its curve follows from what was run already."""
    compatible: ClassVar[bool] = True
    """It can be simulated together with another axis."""

    def unfit(self, view: View) -> str | None:
        """Why the axis says nothing about this model on these data; None if it does."""
        return None

    def probe(self, view: View) -> Probe | None:
        """What observes a run; None where the measure needs none."""
        return None

    def values(self, view: View, probe: Probe | None) -> Values:
        """What was measured, by default the probe's mean over layers."""
        return Values(probe.of_all(), probe.of_layers()) if probe else Values(torch.zeros(0))

    @abstractmethod
    def settings(self, view: View) -> list[dict[str, Any]]:
        """From the gentlest to the hardest; empty where nothing can be simulated."""

    def edit(self, view: View, setting: Setting) -> Edit:
        """The reuse at a setting."""
        raise NotImplementedError(f"{self.id} simulates no edit")

    def outcome(self, view: View, setting: Setting, sample: Sample, tick: Tick | None = None) -> Outcome:
        """What a setting saves and does on the first batches of the view's sample."""
        return simulated(self, view, self.edit(view, setting), setting, sample, tick)

    def notes(self, view: View) -> list[str]:
        """What limits the finding."""
        return []


def simulated(
    axis: Axis, view: View, edit: Edit, setting: Setting, sample: Sample, tick: Tick | None = None
) -> Outcome:
    """The outcome of a run with an edit."""
    run = simulate(view, edit, sample, tick)
    items = sample.items
    share = run.saved / view.macs[:items].clamp(min=1)
    real = {site: (edit.mean[site] - edit.unreal[site]) / items for site in edit.mean}
    return Outcome(
        setting,
        share,
        errors(view.dense, run.outputs),
        flips(view.dense, run.outputs, view.reading.decision),
        gain(view, run.outputs, sample),
        real,
        {name: amount / items for name, amount in edit.overhead.items()},
        max(sum(real.values()) / max(view.total, 1), 0.0) if axis.shrinks else 0.0,
    )


def gain(view: View, outputs: Any, sample: Sample) -> Tensor | None:
    """Correct minus correct of the dense model, item by item; None without labels."""
    labels = [batch.labels for batch in sample.batches]
    before, after = correct(view.dense, labels), correct(outputs, labels)
    return None if before is None or after is None else after - before
