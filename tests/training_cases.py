"""A small training that the cases of techniques which train share, what is known of it, and how it resumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reference_impls.contract import Case, generator
from reference_impls.hosts.training import Run, Training
from reference_impls.study.training import seeded

Kind = Literal["typical", "redundant", "null"]
MOTION: Mapping[Kind, Mapping[str, float]] = {
    "typical": {},
    "redundant": {"lr": 0.0},
    "null": {"lr": 0.1, "weight_decay": 3.0, "momentum": 0.0},
}
"""Knobs with which nothing moves (redundant), or weights shrink throughout by their decay (null)."""


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


def few_or_alike(layers: Iterable[Any], kind: Kind) -> None:
    """Weights of which one for each layer is not zero (redundant), or all are of one size (null), in place."""
    with torch.no_grad():
        for layer in layers:
            if kind == "redundant":
                layer.weight.mul_(0).flatten()[0] = 1
            elif kind == "null":
                layer.weight.copy_(layer.weight.sign() / 4)


def one_answer(training: Training, kind: Kind, **knobs: object) -> Training:
    """A training whose network says class 0, whatever it sees, which is right throughout (redundant) or never (null).

    The answer is so sure that a training which moves does not change it.
    """
    linear: Any = training.model[3][2]  # type: ignore[index]
    with torch.no_grad():
        linear.weight.mul_(1e-3)
        linear.bias.copy_(torch.tensor([9e6, 0.0, 0.0]))
    return replace(training, y=torch.full_like(training.y, 0 if kind == "redundant" else 1), **knobs)  # type: ignore[arg-type]


def assert_resumes(training: Training, steps: int, folder: Path) -> tuple[Run, Run]:
    """Stopped after so many steps, written to a file and read again, a run ends as one in one go: both of them."""
    whole, first, second = Run(training), Run(training), Run(training)
    whole.advance()
    first.advance(steps)
    first.save(folder / "run.pt")
    second.load_state_dict(torch.load(folder / "run.pt"))
    second.advance()
    assert [p.name for p in folder.iterdir()] == ["run.pt"]
    assert_equal(whole.model, second.model)
    return whole, second


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """All tensors of both are equal bit for bit."""
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
