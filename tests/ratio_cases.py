"""A small network of several pruning ratios that the cases of All-in-One share."""

from __future__ import annotations

from torch import nn

from reference_impls.layers.weights import randomise_parameters
from reference_impls.study.training import seeded
from reference_impls.techniques.shared_weight_multi_ratio_pruning import Granularity, SharedNetwork

RATIOS = (0.0, 0.25, 0.5, 0.75)


def chain() -> nn.Sequential:
    """Three convolutions, a batch norm after two of them, and a linear layer on 3 x 3 maps: six parts of a chain."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 4, 3, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Conv2d(4, 8, 1),
        nn.Flatten(),
        nn.Linear(72, 3),
    )


def shared(granularity: Granularity = "channel", seed: int = 0, **knobs: str) -> SharedNetwork:
    """A finished network whose parts are as after training; each ratio has statistics of its own."""
    network = SharedNetwork(seeded(seed, chain), RATIOS, granularity, **knobs)  # type: ignore[arg-type]
    return seeded(seed + 1, lambda: randomise_parameters(network)).finish()
