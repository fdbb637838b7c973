"""Experiments of PIM-QAT: networks trained through the converter, beside conventional ones on the same array.

- `digits-recovery`, `mnist-recovery`, `fashion-recovery`: accuracy against the bits of the converter, in the benchmark
  of low precision: bit-serial columns, groups of 144 rows, all four bits of an activation in one cycle.
"""

from __future__ import annotations

from dataclasses import replace

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import low_precision as benchmark
from reference_impls.benchmarks.low_precision import (
    COARSE,
    CONTROLS,
    DEPLOYED,
    DIGITS,
    FASHION,
    INTEGERS,
    MNIST,
    RECALIBRATED,
    NetPlan,
    deployed,
    trained,
)
from reference_impls.layers.pim import Rescaling
from reference_impls.study import TECHNIQUE, Study, table


def recovery(study: Study[NetPlan]) -> Record:
    """Trained through each converter, and conventional on it, as it is and with batch norms estimated again."""
    plan, found = study.plan, benchmark.folds(study)
    rows = []
    for b in plan.bits:
        array = replace(COARSE, adc_bits=b)
        for fold in found:
            study.progress(f"{b} bits", fold.seed, len(found))
            parts, conventional = fold.parts, fold.network
            network = trained(plan, parts.train, fold.seed, array, Rescaling())
            benchmark.add(study, fold, TECHNIQUE, {"adc_bits": b}, deployed(network, array))
            benchmark.add(study, fold, DEPLOYED, {"adc_bits": b}, deployed(conventional, array))
            again = deployed(conventional, array, parts.train.x)
            benchmark.add(study, fold, RECALIBRATED, {"adc_bits": b}, again)
        rows.append((b, deployed(network, array).conversions(parts.test.x)))
    benchmark.add_integers(study, found, {"adc_bits": 0})
    macs = benchmark.trained_macs(plan, found[0].parts.train, replace(COARSE, adc_bits=plan.bits[0]))
    study.prepare("training", "training a network through its converter, as simulated", macs)
    study.prepare("calibration", "estimating the batch norms of a control again", held="shared")
    return benchmark.report(
        study,
        found,
        {name: CONTROLS[name] for name in (DEPLOYED, RECALIBRATED, INTEGERS)},
        knobs=("adc_bits",),
        tables={"conversions": table("Conversions of one image.", ("adc_bits", "conversions"), rows)},
        notes=("A network of its own is trained for each number of bits, with rescaled gradients.",),
    )


task = benchmark.task
SCENARIOS = (
    task("digits-recovery", "Training through the converter, digits", recovery, *DIGITS),
    task("mnist-recovery", "Training through the converter, MNIST", recovery, *MNIST),
    task("fashion-recovery", "Training through the converter, Fashion-MNIST", recovery, *FASHION),
)
