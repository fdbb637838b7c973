"""Experiments of bit-serial precision: how many bits of activations layers need, in cycles of a bit-serial unit.

- `digits-profile`: a CNN on digits, in the benchmark of low precision: profiles at several tolerances against the same
  bits in every layer; groups that find their precision at run time, which lose nothing.
- `lite0-photos`: the same groups in EfficientNet-Lite0 with its ImageNet weights, on photos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import low_precision as benchmark
from reference_impls.benchmarks.low_precision import SHORT, Deployed, Fold, NetPlan, attached
from reference_impls.contract import Handle
from reference_impls.data import images
from reference_impls.layers.quantised import Span
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.study import (
    BASELINE,
    TECHNIQUE,
    Plan,
    Study,
    accuracy,
    correlation,
    forward,
    measured,
    over_seeds,
    table,
)
from reference_impls.techniques.bit_serial_precision import BitSerialPrecision, Window, profile
from reference_impls.techniques.pim_quantization import spans

SERIAL = BitSerialPrecision()
SAME = "the same bits everywhere"
SAME_ABOUT = "No profile: every layer computes so many of the highest bits."
TOLERANCES = (0.0, 0.02)
GROUPS = (4, 16, 64, 256)


def null() -> float:
    """The measure where each group of 16 uses its highest and its lowest bit."""
    return SERIAL.measure(nn.Linear(32, 2), torch.tensor([1.0, 1 / 255]).repeat(4, 16)).value


def serial(ranges: Mapping[str, Span], windows: Mapping[str, Window] | None, model: nn.Module) -> Handle:
    """The network bit by bit, activations of 8 bits."""
    return SERIAL.apply(model, spans=ranges, windows=windows)


def right(fold: Fold, model: nn.Module) -> float:
    """Accuracy on the held-out images of a seed."""
    return accuracy(model, *fold.parts.held)


def profiles(study: Study[NetPlan]) -> Record:
    """Profiles found on held-out images."""
    plan, found = study.plan, benchmark.float_folds(study)
    tolerances, same = (TOLERANCES, range(2, 8)) if plan.epochs > 3 else ((0.02,), (4,))
    precision: dict[tuple[float, str], list[float]] = {}
    relative: dict[float, list[float]] = {}
    for fold in found:
        ranges = spans(fold.network, fold.parts.train.x[:256], digital=())
        whole = attached(fold.network, partial(serial, ranges, None))
        benchmark.add(study, fold, BASELINE, {}, whole)
        share = shares(fold, whole)
        for tolerance in tolerances:
            study.progress(f"tolerance {tolerance}", fold.seed, len(found))
            windows = profile(fold.network, partial(right, fold), ranges, tolerance=tolerance)
            knobs = {"tolerance": tolerance}
            benchmark.add(study, fold, TECHNIQUE, knobs, attached(fold.network, partial(serial, ranges, windows)))
            for number, (name, window) in enumerate(windows.items(), 1):
                precision.setdefault((tolerance, f"layer {number}"), []).append(window.high - window.low)
                relative.setdefault(tolerance, [0.0] * len(found))[found.index(fold)] += (
                    share[name] * (window.high - window.low) / 8
                )
        for bits in same:
            cut = partial(serial, ranges, dict.fromkeys(ranges, Window(8 - bits, 8)))
            benchmark.add(study, fold, SAME, {"tolerance": f"{bits} bits"}, attached(fold.network, cut))
    runs = len(found[0].parts.held.x) * (7 * 5 + 1)
    search = runs * benchmark.macs_of(whole, found[0].parts.held.x)
    study.prepare("search", "trying bits on held-out images, at most 36 runs for a profile", search)
    study.prepare("calibration", "one run on 256 training images, to find ranges", held="shared")
    return benchmark.report(
        study,
        found,
        {SAME: SAME_ABOUT},
        measured([SERIAL.measure(fold.network, fold.parts.test.x[:128]) for fold in found], {"all bits used": null()}),
        digital="activations and weights of 8 bits",
        shared="training the network in floating point",
        knobs=("tolerance",),
        tables={
            "precision": table(
                "Bits that the profiles give to each layer, in order.",
                ("tolerance", "layer", "bits"),
                [(*key, over_seeds(values)) for key, values in precision.items()],
            ),
            "cycles": table(
                "Time on a bit-serial unit over that at 8 bits, layers weighted by their MACs.",
                ("tolerance", "share"),
                [(tolerance, over_seeds(values)) for tolerance, values in relative.items()],
            ),
            "groups": groups([(fold.network, fold.parts.test.x[:128]) for fold in found], GROUPS),
        },
        notes=(
            "The baseline computes all 8 bits of every activation, one at a time.",
            "MACs count a weight that is added for one bit, and shifting and adding up; a product is eight of them.",
            "MACs are those of the first seed's profiles.",
        ),
    )


def shares(fold: Fold, on: Deployed) -> dict[str, float]:
    """Share of each layer in the MACs of the network."""
    forward(on.model, fold.parts.test.x[:1])()
    return weights(on.model, on.handle.trace)


def weights(model: nn.Module, trace: Mapping[str, Any]) -> dict[str, float]:
    """Share of each layer in the dense MACs of the layers in a trace."""
    modules = dict(model.named_modules())
    macs = {name: closed_form(modules[name], seen.shape[1:]).macs for name, seen in trace["layers"].items()}
    return {name: one / sum(macs.values()) for name, one in macs.items()}


@torch.no_grad()
def groups(networks: list[tuple[nn.Module, Tensor]], sizes: tuple[int, ...]) -> Table:
    """Time where groups of each size find their own precision, over that at 8 bits."""
    rows = []
    for size in sizes:
        found = []
        for model, x in networks:
            with SERIAL.apply(model, spans=spans(model, x, digital=()), group=size) as handle:
                model(x)
                share = weights(model, handle.trace)
                found.append(sum(share[name] * one.precision / 8 for name, one in handle.trace["layers"].items()))
        rows.append((size, over_seeds(found)))
    about = (
        "Time on a bit-serial unit over that at 8 bits, where groups of activations tell their bits; nothing is lost."
    )
    return table(about, ("group", "share"), rows)


# --------------------------------------------------------------------------------------------------------------------
# A pretrained network


@dataclass(frozen=True, kw_only=True)
class PhotoPlan(Plan):
    side: int = 96
    bits: tuple[int, ...] = (7, 6, 5, 4)
    sizes: tuple[int, ...] = GROUPS
    needs: tuple[str, ...] = ("efficientnet-lite0",)


def photos(study: Study[PhotoPlan]) -> Record:
    """EfficientNet-Lite0 bit by bit: the same bits in every layer, and groups."""
    plan, model = study.plan, efficientnet_lite0()
    x = normalise(images.photos(plan.side)[1])
    ranges, dense = spans(model, x, digital=()), forward(model, x)()

    def add(series: str, knobs: dict[str, Any], windows: dict[str, Window] | None) -> None:
        with serial(ranges, windows, model):
            agreement = [correlation(a, b) for a, b in zip(forward(model, x)(), dense, strict=True)]
            study.add(series, knobs, forward(model, x), units=len(x), score=sum(agreement) / len(agreement))
            study.measure()  # here, while it is attached

    add(BASELINE, {}, None)
    for b in plan.bits:
        add(TECHNIQUE, {"bits": b}, dict.fromkeys(ranges, Window(8 - b, 8)))
    study.prepare("calibration", "one run on the photos, to find the ranges of activations", held="shared")
    return study.record(
        data=f"7 photos, {plan.side} x {plan.side}",
        model="EfficientNet-Lite0 with ImageNet weights, 4.65 M parameters, activations and weights of 8 bits",
        unit="one image",
        knobs=("bits",),
        metric="mean correlation of logits with the float network's",
        redundancy=measured([SERIAL.measure(model, x)], {"all bits used": null()}),
        tables={"groups": groups([(model, x)], plan.sizes)},
        notes=("The baseline computes all 8 bits of every activation, one at a time.",),
    )


task = benchmark.task
SCENARIOS = (
    task("digits-profile", "Bits that layers need, digits", profiles, *SHORT),
    task(
        "lite0-photos",
        "EfficientNet-Lite0 bit by bit, 7 photos",
        photos,
        PhotoPlan(repetitions=3),
        PhotoPlan(repetitions=2, side=32, bits=(5,), sizes=(16,)),
    ),
)
