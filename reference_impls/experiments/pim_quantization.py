"""Experiments of PIM quantisation: what an array with few bits makes of a network that knows nothing of it.

- `digits-schemes`: accuracy against the bits of the converter for three schemes and several widths of a cycle, in the
  benchmark of low precision; conversions, and the range of converters that is in use.
- `lite0-photos`: EfficientNet-Lite0 with its ImageNet weights on an array, agreement with the float network on photos.
- `layer`: time and memory of one layer on an array against the digital one.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reference_impls.accounting.memory import peak_beyond
from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import low_precision as benchmark
from reference_impls.benchmarks.low_precision import COARSE, CONTROLS, INTEGERS, THREE, Fold, NetPlan, deployed
from reference_impls.contract import Redundancy, generator
from reference_impls.data import images
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.arrays import SCHEMES
from reference_impls.layers.pim import NO_RESCALING, PIMConv2d
from reference_impls.layers.quantised import Span
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.study import (
    BASELINE,
    TECHNIQUE,
    Plan,
    Scenario,
    Study,
    correlation,
    forward,
    measured,
    seeded,
    table,
)
from reference_impls.techniques.pim_quantization import PIMQuantization, array_layers, spans, utilisation

PIM = PIMQuantization()
CYCLES = (*((scheme, 4) for scheme in SCHEMES), ("bit-serial", 2), ("bit-serial", 1))
"""Schemes and bits of an activation that enter in a cycle."""


def schemes(study: Study[NetPlan]) -> Record:
    """The conventional networks on every array, as they are."""
    plan, found = study.plan, benchmark.folds(study)
    bits = (*plan.bits, *range(max(plan.bits) + 1, 9)) if len(plan.bits) > 1 else (5, 8)
    for fold in found:
        for scheme, m in CYCLES:
            for b in bits:
                array = replace(COARSE, scheme=scheme, dac_bits=m, adc_bits=b)  # type: ignore[arg-type]
                knobs = {"adc_bits": b, "scheme": scheme, "dac_bits": m}
                benchmark.add(study, fold, TECHNIQUE, knobs, deployed(fold.network, array))
    benchmark.add_integers(study, found, {"adc_bits": 0, "scheme": "none", "dac_bits": 4})
    return benchmark.report(
        study,
        found,
        {INTEGERS: CONTROLS[INTEGERS]},
        knobs=("adc_bits", "scheme", "dac_bits"),
        tables={"conversions": conversions(found[0]), "range in use": in_use(found)},
        notes=(
            "Groups of 144 rows. MACs: in the array's cells, and to shift and add codes. Digital integers need fewer.",
            "The baseline is bit-serial with one bit of activation a cycle and converters of 12 bits.",
        ),
    )


def conversions(fold: Fold) -> Table:
    """Conversions of an image, which the energy of an array goes with."""
    rows = []
    for scheme, m in CYCLES:
        array = replace(COARSE, scheme=scheme, dac_bits=m, adc_bits=5)  # type: ignore[arg-type]
        rows.append((scheme, m, deployed(fold.network, array).conversions(fold.parts.test.x)))
    return table(
        "Conversions of one image, of the three layers on the array.", ("scheme", "dac_bits", "conversions"), rows
    )


@torch.no_grad()
def in_use(found: list[Fold]) -> Table:
    """Of each layer, the part of the converter's range that the test images reach, and the bits that it leaves."""
    rows = []
    for scheme in SCHEMES:
        shares: dict[str, list[float]] = {}
        for fold in found:
            on = deployed(fold.network, COARSE)
            layers = array_layers(PIM.id, on.model, ("first", "last"), 144)
            for name, x in inputs_of(layers, on.model, fold.parts.test.x[:128]).items():
                used = utilisation(layers[name], x, replace(COARSE, scheme=scheme), Span())
                shares.setdefault(name, []).append(used)
        for number, each in enumerate(shares.values(), start=2):
            mean = sum(each) / len(each)
            rows.append((scheme, f"convolution {number}", mean, -math.log2(mean)))
    about = "Largest partial sum of 128 test images over the full scale, and the bits that a range ending there saves."
    return table(about, ("scheme", "layer", "share", "bits"), rows)


# --------------------------------------------------------------------------------------------------------------------
# A pretrained network


@dataclass(frozen=True, kw_only=True)
class PhotoPlan(Plan):
    side: int = 96
    bits: tuple[int, ...] = (6, 8, 10, 12)
    needs: tuple[str, ...] = ("efficientnet-lite0",)


def photos(study: Study[PhotoPlan]) -> Record:
    """EfficientNet-Lite0 with 8-bit weights and activations; depthwise layers are too short for the array's groups."""
    plan, model = study.plan, efficientnet_lite0()
    x = normalise(images.photos(plan.side)[1])
    dense = forward(model, x)()
    digital, clip = ("first", "last", "small"), spans(model, x, digital=())
    eight = {"weight_bits": 8, "activation_bits": 8, "group": 16, "clip": clip, "digital": digital}

    def add(series: str, knobs: dict[str, Any], **array: Any) -> None:
        with PIM.apply(model, **eight, **array) as handle:
            y = forward(handle.target, x)()
            agreement = [correlation(a, b) for a, b in zip(y, dense, strict=True)]
            study.add(series, knobs, forward(handle.target, x), units=len(x), score=sum(agreement) / len(agreement))
            study.measure()  # here, while the array is on

    add(BASELINE, {}, dac_bits=8)
    for scheme in SCHEMES:
        for b in plan.bits:
            add(TECHNIQUE, {"adc_bits": b, "scheme": scheme}, scheme=scheme, dac_bits=8, adc_bits=b)
    study.prepare("calibration", "one run on the photos, to find the ranges of activations", held="shared")
    return study.record(
        data=f"7 photos, {plan.side} x {plan.side}",
        model="EfficientNet-Lite0 with ImageNet weights, 4.65 M parameters; first, last and depthwise layers digital",
        unit="one image",
        knobs=("adc_bits", "scheme"),
        metric="mean correlation of logits with the float network's",
        redundancy=measured([PIM.measure(model, x)], {"equal partial sums": 0.0}),
        notes=(
            "The baseline computes 8-bit integers exactly. Weights are not trained for the array.",
            "Groups of 16 rows, all eight bits of an activation in one cycle.",
        ),
    )


# --------------------------------------------------------------------------------------------------------------------
# One layer


@dataclass(frozen=True, kw_only=True)
class LayerPlan(Plan):
    batch: int = 16
    side: int = 28
    channels: int = 64
    alone: tuple[tuple[str, int], ...] = (("digital integers", 4), *CYCLES[:3])
    """What has its memory measured, each in a process of its own: scheme and bits in a cycle."""


def one_layer(scheme: str, m: int, plan: LayerPlan) -> tuple[PIMConv2d, Tensor]:
    """A 3x3 convolution on an array of groups of 144 rows with a converter of 5 bits, or on integers; and its input."""
    here: dict[str, Any] = {"scheme": scheme, "dac_bits": m, "adc_bits": 5} if scheme in SCHEMES else {}
    array = replace(COARSE, **here)
    layer = seeded(0, lambda: PIMConv2d(plan.channels, plan.channels, 3, padding=1, bias=False, array=array))
    layer.rescaling = NO_RESCALING
    return layer, torch.rand(plan.batch, plan.channels, plan.side, plan.side, generator=generator(0))


def print_peak(scheme: str, m: str, *sizes: str) -> None:
    """Print the bytes that a run of the layer takes at most beyond its weights and input, in this process."""
    torch.set_num_threads(1)
    batch, side, channels = map(int, sizes)
    layer, x = one_layer(scheme, int(m), LayerPlan(batch=batch, side=side, channels=channels))
    print(json.dumps(peak_beyond(forward(layer, x))))


def peak_alone(scheme: str, m: int, plan: LayerPlan) -> float | None:
    """The same in MB, in a fresh process; None where the system does not tell."""
    code = f"import sys; from {__name__} import print_peak; print_peak(*sys.argv[1:])"
    sizes = (scheme, m, plan.batch, plan.side, plan.channels)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, sizes)], env=environment, stdout=subprocess.PIPE, check=True
    )
    peak = json.loads(done.stdout)
    return None if peak is None else peak / 1e6


def layer(study: Study[LayerPlan]) -> Record:
    """A 3x3 convolution on integers, and on arrays of groups of 144 rows with converters of 5 bits."""
    plan = study.plan
    integers, x = one_layer("digital integers", 4, plan)
    exact = forward(integers, x)()
    study.add(BASELINE, call=forward(integers, x), units=plan.batch, score=0.0)
    for scheme, m in CYCLES:
        module, _ = one_layer(scheme, m, plan)
        error = ((forward(module, x)() - exact).norm() / exact.norm()).item()
        study.add(TECHNIQUE, {"scheme": scheme, "dac_bits": m}, forward(module, x), units=plan.batch, score=error)
    study.measure()
    used = Redundancy(
        1 - utilisation(integers, x, replace(COARSE, scheme="native"), Span()), "unused range of the converter"
    )
    memory = [(scheme, m, peak_alone(scheme, m, plan)) for scheme, m in plan.alone]
    return study.record(
        data=f"{plan.batch} random maps of {plan.channels} x {plan.side} x {plan.side}",
        model=f"one convolution with random weights, {plan.channels} to {plan.channels} channels",
        unit="one map",
        work="layer",
        knobs=("scheme", "dac_bits"),
        metric="relative error",
        higher_is_better=False,
        redundancy=measured([used], {"full partial sums": 0.0}),
        tables={
            "memory": table(
                f"Memory that a fresh process takes at most for one run on all {plan.batch} maps, beyond what it held "
                "before, in MB.",
                ("scheme", "dac_bits", "MB"),
                memory,
            )
        },
    )


SMALL = LayerPlan(repetitions=3, batch=1, alone=(("bit-serial", 4),))
task = benchmark.task
SCENARIOS = (
    task("digits-schemes", "A conventional 4-bit CNN on arrays, digits", schemes, *THREE),
    task(
        "lite0-photos",
        "EfficientNet-Lite0 on arrays, 7 photos",
        photos,
        PhotoPlan(repetitions=3),
        PhotoPlan(repetitions=2, side=64, bits=(8,)),
    ),
    Scenario("layer", "One layer on an array, and on integers", layer, LayerPlan(), SMALL),
)
