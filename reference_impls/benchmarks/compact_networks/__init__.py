"""Compact networks: what small convolutional and attention networks lose when they compute less.

- `feature_maps`: small networks of EfficientFormer's parts on Fashion-MNIST, run with coarser or cheaper mixing.
- `whole_networks`: whole networks at lower resolution, and beside MobileNetV2 at full size.
- `searches`: what a search finds, beside what searches that know less find.
- `networks_fashion`: where whole networks meet, all trained from scratch by one recipe.
"""

from __future__ import annotations

from functools import partial

from reference_impls.benchmarks.compact_networks import feature_maps, networks_fashion
from reference_impls.study.plan import Scenario

ID = "compact-networks"
task = partial(Scenario, benchmark=ID)
feature_map_task = partial(task, full=feature_maps.FULL, smoke=feature_maps.SMOKE)
SCENARIOS = (
    feature_map_task(
        "feature-maps",
        "Coarser attention in the same finished networks: reconstruction of masked patches",
        feature_maps.meet,
    ),
    task(
        "networks-fashion",
        "Whole networks trained from scratch on Fashion-MNIST, beside MobileNetV2",
        networks_fashion.meet,
        **networks_fashion.FASHION,
    ),
)
