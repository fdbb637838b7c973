"""The report itself: from a model and a loader to a `Result`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from reference_impls.contract.errors import nearest
from reference_impls.report.axes import ALL
from reference_impls.report.calibration import calibrate
from reference_impls.report.engine import View
from reference_impls.report.findings import Measuring
from reference_impls.report.joint import joint
from reference_impls.report.measuring import Measured, dense, observe
from reference_impls.report.progress import Clock, Progress, Saved
from reference_impls.report.result import Budget, DataFacts, Kind, Layer, ModelFacts, NotAnalysed, Result
from reference_impls.report.sample import Sample, draw
from reference_impls.study.machine import machine, versions


def report(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    kind: Kind,
    budget: Budget | Mapping[str, float] | None = None,
    items: int = 64,
    seed: int = 0,
    axes: Sequence[str] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    answer: Callable[[Any], Tensor] | None = None,
    name: str | None = None,
    data_name: str | None = None,
    resume: Path | str | None = None,
    progress: Callable[[Progress], None] | None = None,
    seconds: float = 120.0,
) -> Result:
    """Measure where the redundancy of a model is on some data, and what it could save on this machine.

    model: any `nn.Module`, on any device, in any mode; it is measured in evaluation mode and left as it was.
    loader: any iterable of batches or items: tensors, tuples with labels, dicts of arguments; of videos, clips
        (T, C, H, W) or (B, T, C, H, W), one a stream. It is read once; `items` of what it gives are the sample.
    budget: {"flips": share}, {"error": relative error} or {"metric": loss of accuracy}; 1 % of flips by default.
    axes: names of axes to measure; all that fit by default.
    inputs: what the model is called with, from what the loader gives: a tensor, a tuple of arguments, or a dict.
    answer: the decisions (B, ...) that an output holds, as integers; told from the output by default.
    resume: a folder in which every finished finding is kept, and from which an interrupted report goes on.
    progress: called now and then. KeyboardInterrupt ends the measuring, and what is done is returned.
    seconds: what the curves may take; a slow model is simulated on fewer items of the sample.

    Raises: ValueError or TypeError, before the long part begins, for a loader that gives nothing, items that the model
    fails on, outputs without a tensor, or a budget that does not fit them; each says what to do.
    """
    began = time.monotonic()
    limits, chosen = _checked(kind, budget, items, axes)
    with evaluating(model) as was_training:
        sample = draw(model, loader, kind, items, inputs)
        clock = Clock(progress)
        clock.say("the dense model")
        measured = dense(model, sample, answer, seed, clock)
        view = measured.view
        _fits_budget(limits, view)
        calibration = calibrate(view.sample.batches[0].main.device)
        complete = True
        saved = Saved(Path(resume), measured.fingerprint(limits, seed)) if resume is not None else None
        found = Measuring(view, limits, measured, calibration, seed, clock, seconds, saved)
        try:
            fitting = [axis for axis in chosen if axis.unfit(view) is None]
            observed = observe(view, fitting, seed, clock)
            clock.plan(found.expected(fitting))
            for axis in fitting:
                found.add(axis, observed)
            both = joint(found)
        except KeyboardInterrupt:
            both, complete = None, False
    skipped = [f"{axis.id}: {why}" for axis in chosen if (why := axis.unfit(view)) is not None]
    broken = {**view.shared.get("failed", {}), **found.failed}
    skipped += [f"{axis}: could not be measured on this model: {why}" for axis, why in broken.items()]
    return Result(
        model=_model_facts(model, view, measured, name, was_training),
        data=_data_facts(view.sample, data_name or type(loader).__name__, items),
        budget=limits,
        seed=seed,
        layers=_layers(view, measured, found),
        findings=tuple(found.findings),
        joint=both,
        not_analysed=_not_analysed(view, measured),
        calibration=calibration,
        machine=machine(str(view.sample.batches[0].main.device), torch.get_num_threads()),
        versions=versions(),
        seconds=time.monotonic() - began,
        complete=complete,
        notes=(*view.sample.notes, *measured.notes, *skipped),
    )


def _checked(
    kind: Kind, budget: Budget | Mapping[str, float] | None, items: int, axes: Sequence[str] | None
) -> tuple[Budget, list[Any]]:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if isinstance(items, bool) or not isinstance(items, int) or items < 1:
        raise ValueError(f"items must be an integer of at least 1, got {items!r}")
    if budget is None:
        budget = {"flips": 0.01}
    if not isinstance(budget, Budget):
        wrong = set(budget) - set(Budget.model_fields)
        if wrong or len(budget) != 1:
            raise ValueError(
                f"budget must be one of flips, error and metric, such as {{'flips': 0.01}}, got {budget!r}"
            )
        budget = Budget(**budget)
    known = {axis.id: axis for axis in ALL}
    for one in axes or ():
        if one not in known:
            raise ValueError(f"there is no axis {one!r}{nearest(one, known)}")
    return budget, [axis() for axis in ALL if axes is None or axis.id in axes]


def _fits_budget(budget: Budget, view: View) -> None:
    if budget.name == "metric" and (not view.sample.labelled or view.reading.decision not in ("own", "class", "token")):
        raise ValueError(
            "budget={'metric': ...} needs labels from the loader and classes in the output: give tuples (x, y), or "
            "take budget={'flips': ...}"
        )
    if budget.name == "flips" and view.reading.decision == "neighbour" and view.sample.items < 3:
        raise ValueError(
            "the output has no classes, and of fewer than three items none has a nearest other one: take "
            "budget={'error': ...}, or more items"
        )


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """The model in evaluation mode, each of its modules put back as it was; gives whether any was training."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield any(modes.values())
    finally:
        for module, mode in modes.items():
            module.training = mode


def _model_facts(model: nn.Module, view: View, measured: Measured, name: str | None, was_training: bool) -> ModelFacts:
    first = next(model.parameters(), None)
    shape = ", ".join(str(s) for s in view.dense.values[0].shape[1:])
    return ModelFacts(
        name=name or type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        macs=round(view.total),
        bytes=round(measured.bytes),
        ms=measured.ms,
        device=str(first.device if first is not None else "cpu"),
        dtype=str(first.dtype if first is not None else torch.float32).removeprefix("torch."),
        output=f"{view.reading.name}, {shape} numbers of each item",
        answer=view.reading.about,
        was_training=was_training,
    )


def _data_facts(sample: Sample, name: str, asked: int) -> DataFacts:
    shapes = tuple(dict.fromkeys(shape for batch in sample.batches for shape in batch.shapes()))
    return DataFacts(
        name=name,
        kind=sample.kind,
        asked=asked,
        items=sample.items,
        clips=sample.clips,
        seen=len(sample.hashes),
        ended=sample.ended,
        batch=max(batch.items for batch in sample.batches),
        shapes=shapes[:20],
        labelled=sample.labelled,
    )


def _layers(view: View, measured: Measured, found: Measuring) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            name=site.name,
            type=site.type,
            operator=site.operator,
            macs=round(view.per_item(site.name)),
            bytes=round(site.bytes / view.sample.items),
            time_share=measured.shares[site.name],
            analysed=site.type in ("conv", "linear", "matmul", "attention"),
        )
        for site in view.sites.values()
    )


def _not_analysed(view: View, measured: Measured) -> tuple[NotAnalysed, ...]:
    parts = []
    for site in view.sites.values():
        if site.type in ("recurrent", "other"):
            parts.append(
                NotAnalysed(
                    what=f"{site.name} ({site.operator})",
                    why="its products are one operator, in which nothing can be left out from outside",
                    macs_share=min(view.per_item(site.name) / max(view.total, 1), 1),
                    time_share=measured.shares[site.name],
                )
            )
    other = max(1 - sum(measured.shares.values()), 0.0)
    what = ", ".join(sorted(measured.uncounted)[:8]) or "everything else"
    parts.append(
        NotAnalysed(
            what=f"operators without products ({what})",
            why="they have no MACs; their time goes with the data where tokens, frames or positions fall away",
            macs_share=0.0,
            time_share=other,
        )
    )
    return tuple(parts)
