"""Early exit on real data: a residual CNN on Fashion-MNIST, and MiniLM with off-ramps on the SpamAssassin mails."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.record import Control, Measured, Point, Quality, Record
from reference_impls.contract import Invalid, Quantity, Specimen, Specimens
from reference_impls.data import images
from reference_impls.experiments.harness import (
    Context,
    Cost,
    Scenario,
    fork_seed,
    measure_arms,
    over_seeds,
    record,
    train,
    trained,
)
from reference_impls.hosts.staged import AllExits, Staged, StageOperations
from reference_impls.redundancy.sufficiency import MEASURE, sufficiency
from reference_impls.techniques.confidence_early_exit import (
    ConfidenceEarlyExit,
    EarlyExit,
    Rule,
    at_exits,
    calibrate,
    exit_decisions,
    expected_operations,
)

ID = "confidence-early-exit"
EXITS = 4


# --------------------------------------------------------------------------------------------------------------------
# A residual CNN with four exits


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet's basic block). (B, c_in, H, W) -> (B, c_out, H / stride, ...)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(c_in, c_out, 3, stride), nn.ReLU(), *_conv(c_out, c_out, 3))
        same = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(c_in, c_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out)


def residual_cnn(size: int, width: int = 16, classes: int = 10) -> Staged:
    """A small ResNet for grey images of `size` x `size`, cut into four stages: (B, 1, size, size) -> (B, classes).

    Images of more than 16 pixels are halved by the first convolution. Each exit pools to at most 4 x 4 and is linear.
    """
    stride = 2 if size > 16 else 1
    c = (width, 2 * width, 2 * width, 4 * width)
    side = -(-size // stride)
    sides = (side, -(-side // 2), -(-side // 2), -(-side // 4))
    stem = nn.Sequential(*_conv(1, width, 3, stride), nn.ReLU())
    stages = [nn.Sequential(stem, Block(c[0], c[0])), Block(c[0], c[1], 2), Block(c[1], c[2]), Block(c[2], c[3], 2)]
    pools = [min(4, s) for s in sides]
    heads = [
        nn.Sequential(nn.AdaptiveAvgPool2d(p), nn.Flatten(), nn.Linear(n * p * p, classes))
        for n, p in zip(c, pools, strict=True)
    ]
    a = [s * s for s in sides]  # positions
    operations = StageOperations(
        stages=(
            a[0] * (9 * c[0] + 2 * 9 * c[0] ** 2),
            a[1] * (9 * c[0] * c[1] + 9 * c[1] ** 2 + c[0] * c[1]),
            a[2] * 2 * 9 * c[2] ** 2,
            a[3] * (9 * c[2] * c[3] + 9 * c[3] ** 2 + c[2] * c[3]),
        ),
        heads=tuple(n * p * p * classes for n, p in zip(c, pools, strict=True)),
    )
    return Staged(stages, heads, operations)


def joint_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """BranchyNet's joint objective, the sum of every exit's cross-entropy with equal weights. logits: (E, B, C)."""
    return torch.stack([F.cross_entropy(at_exit, targets) for at_exit in logits]).sum()


def prefix(network: Staged, depth: int) -> nn.Module:
    """The network that ends at its exit number `depth`, counted from 1."""
    return nn.Sequential(*network.stages[:depth], network.heads[depth - 1])


@dataclass(frozen=True)
class Recipe:
    """Every choice that the weights of a CNN follow from."""

    data: Literal["digits", "fashion-mnist"]
    size: int
    width: int
    images: int
    epochs: int
    depth: int = EXITS
    """Number of stages; fewer than four for a smaller plain network."""
    joint: bool = True
    """All exits trained together, or the last one alone."""
    shuffled: bool = False
    """Labels permuted: nothing can be learnt but by heart."""

    def train(self, split: Split, seed: int) -> Staged:
        """The trained network, from the cache if it was trained before."""

        def build() -> nn.Module:
            with fork_seed(seed):
                network = residual_cnn(self.size, self.width)
            return AllExits(network) if self.joint else prefix(network, self.depth)

        def fit(model: nn.Module) -> nn.Module:
            y = split.y_train
            if self.shuffled:
                y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
            loss = joint_loss if self.joint else F.cross_entropy
            return train(model, split.x_train, y, epochs=self.epochs, seed=seed, lr=4e-3, loss=loss)

        spec = dataclasses.asdict(self) | {"seed": seed, "version": 1}
        model = trained(f"early-exit-{self.data}", spec, build, fit)
        return model.network if self.joint else model


@dataclass(frozen=True)
class Split:
    """Data of one seed: what trains the weights, what calibrates thresholds, and what tests both."""

    x_train: Tensor
    y_train: Tensor
    x_held: Tensor
    y_held: Tensor
    x_test: Tensor
    y_test: Tensor


def split(data: tuple[Tensor, Tensor, Tensor, Tensor], train_on: int, held_out: int, seed: int) -> Split:
    """`train_on` and `held_out` images drawn without overlap from the training set; the test set as it is."""
    x, y, x_test, y_test = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    mean, std = x.mean(), x.std()
    x, x_test = (x - mean) / std, (x_test - mean) / std
    a, b = order[:train_on], order[train_on : train_on + held_out]
    return Split(x[a], y[a], x[b], y[b], x_test, y_test)


# --------------------------------------------------------------------------------------------------------------------
# Specimens with exactly known exits


class Turn(nn.Linear):
    """Turns a ring of blocks of C numbers by one block: an exact permutation, written as a dense layer."""

    def __init__(self, blocks: int, classes: int) -> None:
        n = blocks * classes
        super().__init__(n, n, bias=False)
        self.weight.data = torch.eye(n).roll(classes, dims=1).contiguous()


class First(nn.Linear):
    """Reads the first block of C numbers as logits."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__(blocks * classes, classes, bias=False)
        self.weight.data = torch.eye(blocks * classes)[:classes].clone()


def ring(exits: int, classes: int) -> Staged:
    """A network whose exits see exactly what the inputs hold: the logits of exit e are block e of the input, (B, E * C).

    Each stage turns the ring on, so a stage that is left out or run twice shows as wrong logits.
    """
    n = exits * classes
    stages = [nn.Identity() if e == 0 else Turn(exits, classes) for e in range(exits)]
    operations = StageOperations((0, *[n * n] * (exits - 1)), (n * classes,) * exits)
    return Staged(stages, [First(exits, classes) for _ in range(exits)], operations)


def ring_inputs(logits: Tensor) -> Tensor:
    """Inputs with which `ring` gives these logits at its exits: (E, B, C) -> (B, E * C)."""
    return logits.transpose(0, 1).flatten(1).contiguous()


class EarlyExitSpecimens(Specimens):
    """`redundant`: every exit is sure of the same class. `null`: every exit before the last is unsure, and wrong."""

    classes = 5
    batch = 12

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Specimen:
        with fork_seed(seed):
            if kind == "typical":
                host = residual_cnn(8, width=4)
                for head in host.heads:
                    head[-1].weight.data *= 30  # untrained heads are never sure; these are for some inputs
                inputs = torch.randn(self.batch, 1, 8, 8)
            else:
                final = torch.randint(self.classes, (self.batch,))
                shift = torch.arange(EXITS - 1, -1, -1).unsqueeze(1) if kind == "null" else torch.zeros(EXITS, 1).long()
                answers = (final + shift) % self.classes  # (E, B): in `null`, each exit gives an answer of its own
                sure = torch.full((EXITS, 1, 1), 8.0)
                if kind == "null":
                    sure[:-1] = 0.1
                host, inputs = ring(EXITS, self.classes), ring_inputs(F.one_hot(answers, self.classes) * sure)
        return Specimen(host.eval().to(device), inputs.to(device), torch.no_grad()(lambda network, x: network(x)))

    def selection(self, seed: int, device: str) -> Iterable[Quantity]:
        specimen = self.build("typical", seed, device)
        for rule, threshold in (("confidence", 0.7), ("entropy", 0.6), ("patience", 1)):
            batched = EarlyExit(specimen.host, rule, threshold)
            logits = batched(specimen.inputs)
            alone = EarlyExit(specimen.host, rule, threshold)
            pairs = [(alone(x.unsqueeze(0)), alone.left) for x in specimen.inputs]
            yield Quantity(f"{rule}: exits one by one", torch.cat([left for _, left in pairs]), batched.left)
            yield Quantity(f"{rule}: logits one by one", torch.cat([one for one, _ in pairs]), logits)
            offline = exit_decisions(specimen.host.exits(specimen.inputs).detach(), rule, threshold)
            yield Quantity(f"{rule}: exits from all logits", offline, batched.left)

    def conserved(self, seed: int, device: str) -> Iterable[Quantity]:
        with fork_seed(seed):
            logits = 3 * torch.randn(EXITS, 32, self.classes)
        logits[..., 0] = -20 - torch.arange(32.0)  # names the sample, whichever exit answers
        runner = EarlyExit(ring(EXITS, self.classes).eval().to(device), "confidence", 0.7)
        out = runner(ring_inputs(logits).to(device))
        yield Quantity("each sample answered once, in its place", -20 - torch.arange(32.0), out[:, 0].cpu())
        yield Quantity("samples over exits", torch.tensor(32), runner.left.bincount(minlength=EXITS).sum().cpu())
        yield Quantity("logits are those of the exit taken", at_exits(logits, runner.left.cpu()), out.cpu())

    def invalid(self, device: str) -> Iterable[Invalid]:
        technique = ConfidenceEarlyExit()
        network = self.build("null", 0, device).host
        x = torch.zeros(2, EXITS * self.classes, device=device)
        bad = x.clone()
        bad[0, 0] = float("nan")
        yield Invalid("unknown rule", lambda: technique.apply(network, rule="margin", threshold=0.5), "rule must be")
        yield Invalid(
            "confidence above 1",
            lambda: technique.apply(network, rule="confidence", threshold=1.5),
            "threshold of the confidence rule must be",
        )
        yield Invalid(
            "half a step of patience",
            lambda: technique.apply(network, rule="patience", threshold=1.5),
            "must be an integer",
        )
        yield Invalid("NaN", lambda: EarlyExit(network, "confidence", 0.5)(bad), "not finite")
        yield Invalid("no batch", lambda: EarlyExit(network, "confidence", 0.5)(()), "first axis")
        yield Invalid("logits without exits", lambda: exit_decisions(x, "entropy", 0.5), "must have shape (E, B, C)")
        training = self.build("typical", 0, device).host.train()
        yield Invalid(
            "batch norm in training mode", lambda: technique.apply(training, rule="patience", threshold=1), "eval"
        )


SPECIMENS = EarlyExitSpecimens()
