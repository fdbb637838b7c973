"""A small training that the cases of techniques which train share."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from reference_impls.contract import Case, generator
from reference_impls.hosts.training import Training
from reference_impls.study.training import seeded

Kind = Literal["typical", "redundant", "null"]


def network() -> nn.Sequential:
    """Four blocks on 6 x 6 maps: three convolutions with batch norm, and a classifier of three classes."""
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in ((1, 4), (4, 8), (8, 4))
    ]
    return nn.Sequential(*blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))


def small_training(seed: int = 0, device: str = "cpu", **knobs: object) -> Training:
    """The network on 24 random maps of three classes, for four epochs of three steps."""
    draws = generator(seed)
    x, y = torch.randn(24, 1, 6, 6, generator=draws), torch.arange(24) % 3
    x = x + y.view(-1, 1, 1, 1)
    training = Training(seeded(seed, network).to(device), x.to(device), y.to(device), epochs=4, batch_size=8, seed=seed)
    return replace(training, **knobs)  # type: ignore[arg-type]


def case(training: Training, seed: int) -> Case:
    """What the trained network makes of six maps it has not seen."""
    x = torch.randn(6, 1, 6, 6, generator=generator(seed + 1)).to(training.x.device)
    return Case(training, x, run=lambda target, x: fitted(target, x))


def fitted(training: Training, x: Tensor) -> Tensor:
    """Outputs of the trained network, in its own dtype."""
    model = training.fit()
    outputs: Tensor = model(x.to(next(model.parameters()).dtype))
    return outputs
