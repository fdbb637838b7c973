"""Experiments of PIM scale rescaling: whether rescaled gradients train better, and how conversion changes the scale.

- `digits-rescaling`: networks trained through the converter with rescaled gradients, and with the plain
  straight-through estimator; what each converter does to the scale of a layer, over bits, groups and cycles, in the
  benchmark of low precision.
- `digits-momentum`: the same trainings by gradient descent with momentum, whose steps follow the size of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reference_impls.accounting.record import Record, Table
from reference_impls.benchmarks import low_precision as benchmark
from reference_impls.benchmarks.low_precision import COARSE, DIGITS, MOMENTUM, Fold, NetPlan, deployed, trained
from reference_impls.contract import Redundancy
from reference_impls.hosts.layers import Layer
from reference_impls.hosts.substitution import inputs_of
from reference_impls.layers.arrays import SCHEMES, Array
from reference_impls.layers.pim import NO_RESCALING, Rescaling
from reference_impls.layers.quantised import Span
from reference_impls.study import TECHNIQUE, Study, measured, over_seeds, table
from reference_impls.techniques.pim_quantization import array_layers
from reference_impls.techniques.pim_scale_rescaling import ratio

PLAIN = "plain estimator"
PLAIN_ABOUT = "Trained alike through the same converter, gradients as if it were not there (xi = 1)."


MAP = ((9, 36, 72, 144), (1, 2, 4), range(3, 9))
"""Groups, bits in a cycle and bits of converters over which the change of scale is mapped."""
SMALL_MAP = ((144,), (4,), (3, 5, 8))


def rescaling(study: Study[NetPlan]) -> Record:
    """Trained with each of the estimators, for each converter."""
    plan, found = study.plan, benchmark.folds(study)
    for b in plan.bits:
        array = replace(COARSE, adc_bits=b)
        for fold in found:
            for series, how in ((TECHNIQUE, Rescaling()), (PLAIN, NO_RESCALING)):
                network = trained(plan, fold.parts.train, fold.seed, array, how)
                benchmark.add(study, fold, series, {"adc_bits": b}, deployed(network, array))
    macs = benchmark.trained_macs(plan, found[0].parts.train, replace(COARSE, adc_bits=plan.bits[0]))
    study.prepare("training", "training a network through its converter, as simulated", macs)
    return benchmark.report(
        study,
        found,
        {PLAIN: PLAIN_ABOUT},
        measured(
            [change(fold, replace(COARSE, adc_bits=5)) for fold in found],
            {"an ideal converter": change(found[0], COARSE).value},
        ),
        knobs=("adc_bits",),
        tables={"scale": scale(found, *(MAP if len(plan.bits) > 1 else SMALL_MAP))},
        notes=("Outputs are not rescaled: a batch norm follows each layer and takes the factor away.",),
    )


@torch.no_grad()
def scale(found: list[Fold], groups: Sequence[int], cycles: Sequence[int], bits: Sequence[int]) -> Table:
    """rho of the second convolution of the conventional networks on 32 test images."""
    places, rows = [second_convolution(fold) for fold in found], []
    for scheme in SCHEMES:
        for group in groups:
            for m in cycles:
                for b in bits:
                    array = replace(COARSE, scheme=scheme, group=group, dac_bits=m, adc_bits=b)
                    ratios = [ratio(layer, x, array, Span()) for layer, x in places]
                    rows.append((scheme, group, m, b, over_seeds(ratios)))
    about = "Spread of the second convolution's converted sums over that of the exact ones; 0: every code is 0."
    return table(about, ("scheme", "group", "dac_bits", "adc_bits", "ratio"), rows)


def change(fold: Fold, array: Array) -> Redundancy:
    """The measure of the technique, of that convolution."""
    rho = ratio(*second_convolution(fold), array, Span())
    return Redundancy(1 - min(rho, 1 / rho) if rho else 1.0, "change of scale by conversion")


def second_convolution(fold: Fold) -> tuple[Layer, Tensor]:
    """The layer, and what reaches it of 32 test images."""
    on = deployed(fold.network, COARSE)
    layers = array_layers("pim-scale-rescaling", on.model, ("first", "last"), 144)
    name, layer = next(iter(layers.items()))
    return layer, inputs_of(layers, on.model, fold.parts.test.x[:32])[name]


task = benchmark.task
SCENARIOS = (
    task("digits-rescaling", "Rescaled gradients and plain ones, digits", rescaling, *DIGITS),
    task("digits-momentum", "Rescaled gradients and plain ones by gradient descent, digits", rescaling, *MOMENTUM),
)
