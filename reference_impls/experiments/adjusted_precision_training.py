"""Experiments of adjusted-precision training: which bits to train on for a noisy converter of 7 bits.

- `digits-noise`: networks trained at 4 to 7 bits and run at 7 bits with noise, batch norms estimated again there, in
  the benchmark of low precision; the bits that held-out images choose, and training with the noise itself.
"""

from __future__ import annotations

from dataclasses import replace

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import low_precision as benchmark
from reference_impls.benchmarks.low_precision import (
    COARSE,
    RECALIBRATED,
    THREE,
    Deployed,
    Fold,
    NetPlan,
    deployed,
    trained,
)
from reference_impls.contract import Redundancy
from reference_impls.layers.arrays import Array, Chip
from reference_impls.layers.pim import Rescaling
from reference_impls.study import TECHNIQUE, Study, measured, over_seeds, table
from reference_impls.techniques.adjusted_precision_training import adjusted, choose, effective_bits

BITS = 7
NOISES = (0.0, 0.35, 1.0)
NOISY = "trained with the noise"
NOISY_ABOUT = "Trained at 7 bits with one code of noise, drawn anew in each step."


def noise(study: Study[NetPlan]) -> Record:
    """Every precision of training under every noise."""
    plan, found = study.plan, benchmark.folds(study)
    full = len(plan.bits) > 1
    precisions, noises = ((4, 5, 6, 7), NOISES) if full else ((5, 7), NOISES[1:])
    chosen = []
    for sigma in noises:
        array, tests = replace(COARSE, adc_bits=BITS, chip=Chip(noise=sigma)), list[tuple[int, float]]()
        for fold in found:
            study.progress(f"noise {sigma}", fold.seed, len(found))
            on = {b: _run(plan, fold, adjusted(array, b), array) for b in precisions}
            for b in precisions:
                benchmark.add(study, fold, TECHNIQUE, {"train_bits": b, "noise": sigma}, on[b])
            best = choose({b: one.accuracy(fold.parts.held, fold.seed) for b, one in on.items()})
            tests.append((best, on[best].accuracy(fold.parts.test, fold.seed)))
            knobs = {"train_bits": BITS, "noise": sigma}
            again = deployed(fold.network, array, fold.parts.train.x, fold.seed)
            benchmark.add(study, fold, RECALIBRATED, knobs, again)
            if sigma and full:
                benchmark.add(study, fold, NOISY, knobs, _run(plan, fold, replace(array, chip=Chip(noise=1.0)), array))
        bits = over_seeds([float(best) for best, _ in tests])
        chosen.append((sigma, effective_bits(BITS, sigma), bits, over_seeds([right for _, right in tests])))
    macs = benchmark.trained_macs(plan, found[0].parts.train, replace(COARSE, adc_bits=BITS))
    study.prepare("training", "training a network at each precision, as simulated", len(precisions) * macs)
    study.prepare("search", "answering the held-out images at each precision", len(precisions) * _held_macs(found[0]))
    study.prepare("calibration", "estimating batch norms again, for the control as well", held="shared")
    controls: dict[str, str] = {RECALIBRATED: benchmark.CONTROLS[RECALIBRATED]}
    if full:
        controls[NOISY] = NOISY_ABOUT
    about = "Bits that held-out images choose, and the accuracy of that network on test images."
    return benchmark.report(
        study,
        found,
        controls,
        measured([lost(1.0)], {"no noise": lost(0.0).value}),
        knobs=("train_bits", "noise"),
        given=("noise",),
        tables={"chosen": table(about, ("noise", "effective bits", "bits", "accuracy"), chosen)},
        notes=("Every network's batch norms are estimated again on the noisy converter.",),
    )


def lost(sigma: float) -> Redundancy:
    """The measure of the technique for noise of sigma codes."""
    return Redundancy(1 - effective_bits(BITS, sigma) / BITS, "share of bits lost to noise")


def _run(plan: NetPlan, fold: Fold, training: Array, use: Array) -> Deployed:
    """A network trained through one array and run on another, its batch norms estimated again there."""
    network = trained(plan, fold.parts.train, fold.seed, training, Rescaling())
    return deployed(network, use, fold.parts.train.x, fold.seed)


def _held_macs(fold: Fold) -> int:
    on = deployed(fold.network, replace(COARSE, adc_bits=BITS))
    return len(fold.parts.held.x) * benchmark.macs_of(on, fold.parts.held.x)


SCENARIOS = (benchmark.task("digits-noise", "Trained at other bits, a noisy 7-bit converter, digits", noise, *THREE),)
