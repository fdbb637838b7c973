"""Experiments of batch-norm calibration: conventional networks on chips that are not ideal.

- `digits-chips`: accuracy with calibration and without, for gain, offset, noise and a curved characteristic, each alone
  and together, in the benchmark of low precision.
- `digits-images`: against the number of images that are estimated from, on the chip with gain and offset.
"""

from __future__ import annotations

from dataclasses import replace

from reference_impls.accounting.record import Record
from reference_impls.benchmarks import low_precision as benchmark
from reference_impls.benchmarks.low_precision import COARSE, DEPLOYED, THREE, Deployed, Fold, NetPlan, deployed
from reference_impls.layers.arrays import Array, Chip
from reference_impls.study import TECHNIQUE, Study, measured
from reference_impls.techniques.bn_calibration import BNCalibration

BN = BNCalibration()
CHIPS = {
    "ideal": Chip(),
    "gain 0.9": Chip(gain=0.9),
    "offset 2": Chip(offset=2),
    "gain 0.9 and offset 2": Chip(gain=0.9, offset=2),
    "columns differ": Chip(gain_spread=0.05, offset_spread=1),
    "bow 0.5": Chip(bow=0.5),
    "noise 0.35": Chip(noise=0.35),
    "noise 1": Chip(noise=1),
    "all of these": Chip(gain=0.95, offset=1, bow=0.5, noise=0.35),
}
BOTH = "gain 0.9 and offset 2"
IMAGES = 512


def calibrated(fold: Fold, array: Array, images: int) -> Deployed:
    """The conventional network on the chip, calibrated there on so many of its training images."""
    on = deployed(fold.network, array)
    with benchmark.training.fork_seed(fold.seed):
        BN.apply(on.model, images=fold.parts.train.x[:images])
    return on


def chips(study: Study[NetPlan]) -> Record:
    """Every chip at 6 and 7 bits, calibrated and not."""
    found = benchmark.folds(study)
    bits = (6, 7) if len(study.plan.bits) > 1 else (7,)
    for name, chip in CHIPS.items():
        for b in bits:
            for fold in found:
                array, knobs = replace(COARSE, adc_bits=b, chip=chip), {"chip": name, "adc_bits": b}
                benchmark.add(study, fold, TECHNIQUE, knobs, calibrated(fold, array, IMAGES))
                benchmark.add(study, fold, DEPLOYED, knobs, deployed(fold.network, array))
    return _report(study, found, IMAGES, knobs=("chip", "adc_bits"), given=("chip",))


def images(study: Study[NetPlan]) -> Record:
    """From 8 images on, at 7 bits with gain 0.9 and offset 2."""
    found = benchmark.folds(study)
    array = replace(COARSE, adc_bits=7, chip=CHIPS[BOTH])
    numbers = (8, 16, 32, 64, 128, 512) if len(study.plan.bits) > 1 else (8, 512)
    for number in numbers:
        for fold in found:
            benchmark.add(study, fold, TECHNIQUE, {"images": number}, calibrated(fold, array, number))
    for fold in found:
        benchmark.add(study, fold, DEPLOYED, {"images": 0}, deployed(fold.network, array))
    return _report(study, found, max(numbers), knobs=("images",))


def _report(study: Study[NetPlan], found: list[Fold], number: int, **said: object) -> Record:
    macs = benchmark.macs_of(deployed(found[0].network, replace(COARSE, adc_bits=7)), found[0].parts.train.x)
    study.prepare("calibration", f"running {number} images to estimate from, as simulated", number * macs)
    x, both = found[0].parts.train.x[:256], replace(COARSE, adc_bits=7, chip=CHIPS[BOTH])
    ideal = BN.measure(deployed(found[0].network, replace(COARSE, adc_bits=7)).model, x)
    return benchmark.report(
        study,
        found,
        {DEPLOYED: benchmark.CONTROLS[DEPLOYED]},
        measured([BN.measure(deployed(fold.network, both).model, x) for fold in found], {"ideal chip": ideal.value}),
        **said,
    )


task = benchmark.task
SCENARIOS = (
    task("digits-chips", "Calibrated on chips that are not ideal, digits", chips, *THREE),
    task("digits-images", "How many images a calibration takes, digits", images, *THREE),
)
