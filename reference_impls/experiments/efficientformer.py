"""Experiments of EfficientFormer."""

from __future__ import annotations

from reference_impls.experiments.mobile_networks import NetworkSpecimens
from reference_impls.techniques.efficientformer import Config, EfficientFormerTechnique, build

TECHNIQUE = EfficientFormerTechnique()
NANO = Config((16, 24, 32, 48), (1, 1, 2, 2), (0, 0, 0, 1), heads=2, key_dim=8, img_size=128)
SPECIMENS = NetworkSpecimens(TECHNIQUE, lambda: build(NANO, num_classes=10), side=128)
SCENARIOS = ()
