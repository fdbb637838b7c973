"""The passes before any curve: the dense model with its times, what the measures see, and the null controls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.accounting.timing import repeat, speed_up
from reference_impls.report import controls
from reference_impls.report.axes.base import Axis, Values
from reference_impls.report.batches import Batch
from reference_impls.report.discover import blocks_of
from reference_impls.report.engine import Observing, View, hooked
from reference_impls.report.outputs import Outputs, Reading
from reference_impls.report.progress import Clock
from reference_impls.report.result import Budget
from reference_impls.report.sample import Sample
from reference_impls.report.watch import Watch

OBSERVED = 16
"""Items that the measures see."""
CONTROLLED = 8
"""Items that they see under each null control, and two clips at least."""
ROUNDS = 5
"""Runs of a batch, and of half of it, that are timed by turns."""


@dataclass
class Measured:
    """The dense model on the sample."""

    view: View
    ms: float
    """Of an item."""
    bytes: float
    """Of an item."""
    shares: dict[str, float]
    """Site -> its share of the time of an item."""
    gain: float
    """How many times faster an item is in half a batch: the high end of an interval, 1 at least."""
    uncounted: Sequence[str]
    """Operators without a formula."""
    notes: Sequence[str] = ()

    def fingerprint(self, budget: Budget, seed: int) -> str:
        """Tells this model on this sample at this budget from every other."""
        digest = hashlib.sha256(f"{budget.model_dump_json()} {seed} {self.view.total}".encode())
        for values in self.view.dense.values:
            digest.update(values.numpy().tobytes())
        for one in self.view.sample.hashes:
            digest.update(one)
        return digest.hexdigest()


def dense(
    model: nn.Module, sample: Sample, answer: Callable[[Any], Tensor] | None, seed: int, clock: Clock
) -> Measured:
    """Run the model as it is: outputs, MACs and times of every product.

    A batch that the model fails on is left out, with a note. Raises: ValueError where it fails on the first; TypeError,
    ValueError for outputs that cannot be compared.
    """
    first = sample.batches[0]
    try:
        with torch.no_grad(), count() as tally:
            out = first.call(model)
    except Exception as error:
        given = "; ".join(first.shapes()) or "nothing"
        raise ValueError(
            f"the model fails on the first batch, {given}: {type(error).__name__}: {error}. Give what it takes, or "
            "tell with inputs=... how that is made from what the loader gives"
        ) from error
    reading = Reading(out, first.items, answer)
    pair = first.part(slice(0, 2))
    blocks, facts = blocks_of(model, pair if first.clip is None and _runs(model, pair) else first)
    watch, outputs, macs, kept, notes = Watch(model, timed=True), Outputs(), list[Tensor](), [], list[str]()
    for number, batch in enumerate(sample.batches):
        before = sum(s.macs for s in watch.log.sites.values())
        try:
            with watch.forward(batch.items):
                out = batch.call(model)
            values, answers = reading(out, batch)
        except Exception as error:
            notes.append(
                f"batch {number + 1} was left out: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
            continue
        if not bool(values.isfinite().all()):
            notes.append(f"batch {number + 1} was left out: its outputs are not finite")
            continue
        outputs.add(values, answers)
        spent = sum(s.macs for s in watch.log.sites.values()) - before
        macs.append(torch.full((batch.items,), spent / batch.items, dtype=torch.float64))
        kept.append(batch)
        clock.tick(batch.items)
    if not kept:
        raise ValueError(f"no batch gives outputs that are finite: {notes[0]}")
    sample = replace(sample, batches=tuple(kept))
    view = View(model, sample, reading, outputs, torch.cat(macs), watch.log.sites, blocks, seed, facts)
    if sum(s.macs for s in view.sites.values()) == 0:
        raise ValueError("the model runs no product that has MACs, so there is nothing to save in it")
    ms, gain = _times(model, sample.batches[0])
    shares = _shares(view, ms)
    return Measured(view, ms, tally.bytes / first.items, shares, gain, sorted(tally.uncounted), tuple(notes))


def _times(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """Milliseconds of an item, the best of some runs of a batch, and how many times faster it is in half of it.

    What works on less data may be faster than in proportion, where its activations begin to fit into a cache or are
    not asked of the system again and again.
    """
    runs, half = {"whole": batch}, batch.items // 2
    if half and _runs(model, small := batch.part(slice(0, half))):
        runs["half"] = small
    with torch.no_grad():
        calls = {name: partial(one.call, model) for name, one in runs.items()}
        taken = repeat(calls, repetitions=ROUNDS, warmup=0, threads=torch.get_num_threads())
    ms = max(min(taken["whole"]) / batch.items, 1e-6)
    faster = speed_up(taken["whole"], taken["half"]).high if "half" in taken else None
    return ms, max((faster or 1.0) * half / batch.items, 1.0)


def _runs(model: nn.Module, batch: Batch) -> bool:
    """Whether the model takes a batch of this size."""
    try:
        with torch.no_grad():
            batch.call(model)
    except Exception:  # whatever somebody's model asks of a batch
        return False
    return True


def _shares(view: View, ms: float) -> dict[str, float]:
    items = view.sample.items
    seconds = {name: site.seconds / items for name, site in view.sites.items()}
    whole = max(ms / 1e3, sum(seconds.values()))
    return {name: s / whole for name, s in seconds.items()}


@dataclass
class Observed:
    """What the measures saw: on the data, and under each null control."""

    values: dict[str, Values] = field(default_factory=dict)
    """Axis -> what was measured."""
    samples: dict[str, Sample] = field(default_factory=dict)
    """Axis -> on what."""
    nulls: dict[str, dict[str, Values]] = field(default_factory=dict)
    """Axis -> control -> the same there."""
    controlled: Sample | None = None
    """On what."""


def observe(view: View, axes: Sequence[Axis], seed: int, clock: Clock) -> Observed:
    """All measures, in one pass over a part of the sample, and once more under each null control."""
    found = Observed()
    part = view.sample.first(OBSERVED)
    few = [axis for axis in axes if not axis.everywhere]
    many = [axis for axis in axes if axis.everywhere]
    clock.say("measures")
    for some, sample in ((few, part), (many, view.sample)):
        for axis, values in _pass(view, some, sample, clock).items():
            found.values[axis], found.samples[axis] = values, sample
    compared = [axis for axis in axes if axis.nulls]
    if not compared:
        return found
    part = view.sample.first(CONTROLLED)
    if part.clips == 1:
        part = view.sample.first(part.items + 1)
    found.controlled = part
    for name, sample in controls.of(part, seed).items():
        clock.say(f"null control: {name}")
        _keep(found, name, _null(view, compared, sample, clock))
    clock.say(f"null control: {controls.WEIGHTS}")
    with controls.without_learning(view.model, seed):
        _keep(found, controls.WEIGHTS, _null(view, [axis for axis in compared if axis.weights], part, clock))
    return found


def _keep(found: Observed, control: str, values: Mapping[str, Values]) -> None:
    for axis, one in values.items():
        if len(one.items) and bool(one.items.isfinite().all()):
            found.nulls.setdefault(axis, {})[control] = one


def _null(view: View, axes: Sequence[Axis], sample: Sample, clock: Clock) -> dict[str, Values]:
    shared: dict[str, Any] = {name: view.shared[name] for name in ("tokens", "causal") if name in view.shared}
    other = replace(view, sample=sample, dense=Outputs(), shared=shared)
    return _pass(other, axes, sample, clock, fill=True)


def _pass(view: View, axes: Sequence[Axis], sample: Sample, clock: Clock, fill: bool = False) -> dict[str, Values]:
    """One run with the probes of all axes; with `fill` its outputs become those of the view."""
    probes = {axis.id: probe for axis in axes if (probe := axis.probe(view)) is not None}
    if probes or fill:
        together = Observing(probes)
        watch = Watch(view.model, together.site, after=together.after if together.looks_at_all else None)
        with hooked(together, view.model):
            for batch in sample.batches:
                together.begin(batch)
                with watch.forward(batch.items):
                    out = batch.call(view.model)
                if fill:
                    values, answers = view.reading(out, batch)
                    view.dense.add(values.nan_to_num(), answers)
                clock.tick(batch.items)
        view.shared.setdefault("failed", {}).update(together.failed)
    found = {}
    for axis in axes:
        if axis.id in view.shared.get("failed", {}):
            continue
        of = axis.values(view, probes.get(axis.id))
        if len(of.items):
            found[axis.id] = Values(of.items.clamp(0, 1), {k: min(max(v, 0), 1) for k, v in of.layers.items()})
    return found
