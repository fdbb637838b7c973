"""Experiments of EfficientFormer: cases for the conformance checks, a small network on fewer pixels, and the clock.

- `digits-resolution`, `fashion-resolution`: a small trained network that sees its images at fewer pixels.
- `latency-224`: L1 and L3 beside MobileNetV2 and EfficientFormerV2-S0, one image on one thread.
"""

from __future__ import annotations

from functools import partial

from reference_impls.accounting.record import Record
from reference_impls.experiments.harness import Context, Scenario
from reference_impls.experiments.mobile_networks import (
    MOBILENETS,
    Candidate,
    NetworkCases,
    digits_resolution,
    fashion_resolution,
    latency,
)
from reference_impls.techniques import efficientformer_v2
from reference_impls.techniques.efficientformer import Config, EfficientFormer, EfficientFormerTechnique, build

TECHNIQUE = EfficientFormerTechnique()
NANO = Config((16, 24, 32, 48), (1, 1, 2, 2), (0, 0, 0, 1), heads=4, key_dim=8, layer_scale=0.1)
CASES = NetworkCases(TECHNIQUE, lambda: build(NANO, num_classes=10, img_size=128), side=128)


def nano(side: int) -> EfficientFormer:
    """A small network for grey images of `side` pixels and 10 classes, with one head."""
    return build(NANO, num_classes=10, distillation=False, img_size=side, in_channels=1)


def run_latency(ctx: Context) -> Record:
    """Whole networks on one thread."""
    variants = ("l1",) if ctx.smoke else ("l1", "l3")
    return latency(
        ctx,
        TECHNIQUE,
        own=[Candidate(f"EfficientFormer-{v.upper()}", partial(build, v)) for v in variants],
        others=[MOBILENETS[0], Candidate("EfficientFormerV2-S0", partial(efficientformer_v2.build, "s0"))],
        baseline=MOBILENETS[1],
        timm={"EfficientFormer-L1": "efficientformer_l1"},
        scenario="latency-224",
        title="EfficientFormer beside MobileNetV2 at 224 pixels, one image on one thread",
    )


SMALL = {"technique": TECHNIQUE, "build": nano, "name": "EfficientFormer-nano"}
SCENARIOS = (
    Scenario(
        "digits-resolution",
        "A small EfficientFormer on digits: accuracy against pixels",
        partial(digits_resolution, **SMALL),
    ),
    Scenario(
        "fashion-resolution",
        "A small EfficientFormer on Fashion-MNIST: accuracy against pixels",
        partial(fashion_resolution, **SMALL),
        assets={"smoke": ("fashion-mnist",), "full": ("fashion-mnist",)},
    ),
    Scenario("latency-224", "EfficientFormer beside MobileNetV2: parameters, MACs, wall-clock", run_latency),
)
