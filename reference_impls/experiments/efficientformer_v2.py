"""Experiments of EfficientFormerV2."""

from __future__ import annotations

from reference_impls.experiments.mobile_networks import NetworkSpecimens
from reference_impls.techniques.efficientformer_v2 import Config, EfficientFormerV2Technique, build

TECHNIQUE = EfficientFormerV2Technique()
NANO = Config(
    (16, 24, 32, 48), (1, 1, 2, 2), (0, 0, 1, 1), ((4,), (4,), (3, 4), (3, 4)), heads=2, key_dim=8, img_size=128
)
SPECIMENS = NetworkSpecimens(TECHNIQUE, lambda: build(NANO, num_classes=10), side=128)
SCENARIOS = ()
