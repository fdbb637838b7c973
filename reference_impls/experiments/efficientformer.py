"""Experiments of EfficientFormer, all of them in the benchmark of compact networks.

- `digits-resolution`, `fashion-resolution`: a small trained network that runs at lower resolution.
- `latency-224`: L1 and L3 beside MobileNetV2 and EfficientFormerV2-S0, one image on one thread.
"""

from __future__ import annotations

from functools import partial

from reference_impls.benchmarks import compact_networks as benchmark
from reference_impls.benchmarks.compact_networks import whole_networks as whole
from reference_impls.benchmarks.compact_networks.networks_fashion import Contender, OnSmallImages
from reference_impls.study import seeded
from reference_impls.techniques import efficientformer_v2
from reference_impls.techniques.efficientformer import Config, EfficientFormer, EfficientFormerTechnique, build

TECHNIQUE = EfficientFormerTechnique()
NANO = Config((16, 24, 32, 48), (1, 1, 2, 2), (0, 0, 0, 1), heads=4, key_dim=8, layer_scale=0.1)


def nano(side: int) -> EfficientFormer:
    """A small network for grey images of `side` pixels and 10 classes, with one head."""
    return build(NANO, num_classes=10, distillation=False, img_size=side, in_channels=1)


LOWER = partial(whole.resolution, technique=TECHNIQUE, build=nano, name="EfficientFormer-nano")
OWN = {f"EfficientFormer-{v.upper()}": partial(build, v) for v in ("l1", "l3")}
BESIDE = partial(
    whole.latency,
    own=OWN,
    others={"EfficientFormerV2-S0": partial(efficientformer_v2.build, "s0")},
    baseline="MobileNetV2 x1.4",
    timm={"EfficientFormer-L1": "efficientformer_l1"},
)
SCENARIOS = (
    benchmark.task("digits-resolution", "EfficientFormer-nano on digits, at lower resolution", LOWER, **whole.DIGITS),
    benchmark.task(
        "fashion-resolution", "EfficientFormer-nano on Fashion-MNIST at lower resolution", LOWER, **whole.FASHION
    ),
    benchmark.task(
        "latency-224",
        "EfficientFormer beside MobileNetV2 at 224 pixels, one image on one thread",
        BESIDE,
        **whole.full_size(OWN),
    ),
)
CONTENDERS = {
    "compact-networks/networks-fashion": (
        Contender("EfficientFormer-nano", lambda seed: seeded(seed, lambda: OnSmallImages(nano(64)))),
    )
}
