"""Experiments of EfficientFormerV2: cases for the conformance checks, a small network on fewer pixels, and the clock.

- `digits-resolution`, `fashion-resolution`: a small trained network that sees its images at fewer pixels.
- `latency-224`: S0, S1 and S2 beside MobileNetV2 and EfficientFormer-L1, one image on one thread.
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
from reference_impls.techniques import efficientformer
from reference_impls.techniques.efficientformer_v2 import Config, EfficientFormerV2, EfficientFormerV2Technique, build

TECHNIQUE = EfficientFormerV2Technique()
NANO = Config(
    widths=(16, 24, 32, 48),
    depths=(1, 1, 2, 2),
    attention=(0, 0, 1, 1),
    ratios=((4,), (4,), (3, 4), (3, 4)),
    heads=4,
    key_dim=8,
    down_key_dim=8,
    layer_scale=0.1,
)
CASES = NetworkCases(TECHNIQUE, lambda: build(NANO, num_classes=10, img_size=128), side=128)


def nano(side: int) -> EfficientFormerV2:
    """A small network for grey images of `side` pixels and 10 classes, with one head."""
    return build(NANO, num_classes=10, distillation=False, img_size=side, in_channels=1)


def run_latency(ctx: Context) -> Record:
    """Whole networks on one thread."""
    variants = ("s0",) if ctx.smoke else ("s0", "s1", "s2")
    return latency(
        ctx,
        TECHNIQUE,
        own=[Candidate(f"EfficientFormerV2-{v.upper()}", partial(build, v)) for v in variants],
        others=[MOBILENETS[1], Candidate("EfficientFormer-L1", partial(efficientformer.build, "l1"))],
        baseline=MOBILENETS[0],
        timm={"EfficientFormerV2-S0": "efficientformerv2_s0"},
        scenario="latency-224",
        title="EfficientFormerV2 beside MobileNetV2 at 224 pixels, one image on one thread",
    )


SMALL = {"technique": TECHNIQUE, "build": nano, "name": "EfficientFormerV2-nano"}
SCENARIOS = (
    Scenario(
        "digits-resolution",
        "A small EfficientFormerV2 on digits: accuracy against pixels",
        partial(digits_resolution, **SMALL),
    ),
    Scenario(
        "fashion-resolution",
        "A small EfficientFormerV2 on Fashion-MNIST: accuracy against pixels",
        partial(fashion_resolution, **SMALL),
        assets={"smoke": ("fashion-mnist",), "full": ("fashion-mnist",)},
    ),
    Scenario("latency-224", "EfficientFormerV2 beside MobileNetV2: parameters, MACs, wall-clock", run_latency),
)
