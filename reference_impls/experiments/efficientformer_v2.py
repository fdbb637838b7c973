"""Experiments of EfficientFormerV2, all of them in the benchmark of compact networks.

- `digits-resolution`, `fashion-resolution`: a small trained network that runs at lower resolution.
- `latency-224`: S0, S1 and S2 beside MobileNetV2 and EfficientFormer-L1, one image on one thread.
"""

from __future__ import annotations

from functools import partial

from reference_impls.benchmarks import compact_networks as benchmark
from reference_impls.benchmarks.compact_networks import whole_networks as whole
from reference_impls.benchmarks.compact_networks.networks_fashion import Contender, OnSmallImages
from reference_impls.study import seeded
from reference_impls.techniques import efficientformer
from reference_impls.techniques.efficientformer_v2 import Config, EfficientFormerV2, EfficientFormerV2Technique, build

TECHNIQUE = EfficientFormerV2Technique()
RATIOS = ((4,), (4,), (3, 4), (3, 4))
NANO = Config((16, 24, 32, 48), (1, 1, 2, 2), (0, 0, 1, 1), RATIOS, heads=4, key_dim=8, down_key_dim=8, layer_scale=0.1)


def nano(side: int) -> EfficientFormerV2:
    """A small network for grey images of `side` pixels and 10 classes, with one head."""
    return build(NANO, num_classes=10, distillation=False, img_size=side, in_channels=1)


LOWER = partial(whole.resolution, technique=TECHNIQUE, build=nano, name="EfficientFormerV2-nano")
OWN = {f"EfficientFormerV2-{v.upper()}": partial(build, v) for v in ("s0", "s1", "s2")}
BESIDE = partial(
    whole.latency,
    own=OWN,
    others={"EfficientFormer-L1": partial(efficientformer.build, "l1")},
    baseline="MobileNetV2 x1.0",
    timm={"EfficientFormerV2-S0": "efficientformerv2_s0"},
)
SCENARIOS = (
    benchmark.task("digits-resolution", "EfficientFormerV2-nano on digits, at lower resolution", LOWER, **whole.DIGITS),
    benchmark.task(
        "fashion-resolution", "EfficientFormerV2-nano on Fashion-MNIST at lower resolution", LOWER, **whole.FASHION
    ),
    benchmark.task(
        "latency-224",
        "EfficientFormerV2 beside MobileNetV2 at 224 pixels, one image on one thread",
        BESIDE,
        **whole.full_size(OWN),
    ),
)
CONTENDERS = {
    "compact-networks/networks-fashion": (
        Contender("EfficientFormerV2-nano", lambda seed: seeded(seed, lambda: OnSmallImages(nano(64)))),
    )
}
