"""A small continual training that the cases of techniques of continual learning share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from reference_impls.contract import Case, generator
from reference_impls.hosts.continual import ContinualTraining
from reference_impls.study.training import seeded
from tests.training_cases import Kind, fitted

TASKS = ((0, 1), (2, 3))
CENTRES = torch.tensor([1.0, 2.0, 3.0, 4.0])


def network() -> nn.Sequential:
    """Four blocks: three linear layers with ReLU, and a classifier of four classes; 4 inputs, 8 units."""
    hidden = [nn.Sequential(nn.Linear(i, 8), nn.ReLU()) for i in (4, 8, 8)]
    return nn.Sequential(*hidden, nn.Sequential(nn.Linear(8, 4)))


def maps() -> nn.Sequential:
    """The same of convolutions on 3 x 3 maps of one channel."""
    hidden = [nn.Sequential(nn.Conv2d(i, 8, 3, padding=1), nn.ReLU()) for i in (1, 8, 8)]
    return nn.Sequential(*hidden, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))


def small_continual(
    seed: int = 0, device: str = "cpu", convolutions: bool = False, **knobs: object
) -> ContinualTraining:
    """Two tasks of two classes with 12 random examples each, five epochs of three steps, DER++ with a buffer of ten."""
    y = torch.arange(24) % 4
    x = torch.randn(24, *((1, 3, 3) if convolutions else (4,)), generator=generator(seed))
    x = x + y.view(-1, *[1] * (x.ndim - 1))
    training = ContinualTraining(
        seeded(seed, maps if convolutions else network).to(device), x.to(device), y.to(device), tasks=TASKS, epochs=5,
        batch_size=5, lr=0.1, buffer=10, rehearsed=4, seed=seed,
    )  # fmt: skip
    return replace(training, **knobs)  # type: ignore[arg-type]


def built(kind: Kind, seed: int, device: str) -> Case:
    """The small training; or one at rate zero of a single chain of units that gets all right (redundant), so that one
    weight of a layer holds everything; or one of equal weights and gradients that gets all wrong (null).
    """
    training = small_continual(seed, device)
    if kind != "typical":
        one = kind == "redundant"
        with torch.no_grad():
            for block in training.model:
                layer = block[0]  # type: ignore[index]
                assert isinstance(layer, nn.Linear)
                layer.weight.fill_(0 if one else 1 / layer.weight.shape[1])
                layer.bias.zero_()
                layer.weight[0, 0] += one
            spread = torch.eye(8)[0] if one else torch.full((8,), 1 / 8)
            layer.weight.copy_(2 * CENTRES[:, None] * spread)
            layer.bias.copy_(-CENTRES.square())
        nearest = CENTRES[training.y.cpu() if one else (training.y.cpu() + 1) % 4]
        x = nearest[:, None] * (torch.eye(4)[0] if one else torch.ones(4))
        training = replace(training, x=x.to(device), lr=0.0)
    x = torch.randn(6, 4, generator=generator(seed + 1)).to(device)
    return Case(training, x, run=fitted)
