"""Batch-norm calibration beyond the checks: weights stay, statistics move, and what it repairs on a chip."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.benchmarks.low_precision import COARSE, DIGITS, deployed, images_of, trained
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.layers.arrays import Chip
from reference_impls.layers.norm import recalibrate
from reference_impls.study import forward
from reference_impls.techniques.bn_calibration import BNCalibration, Statistics, distance, statistics
from tests.support import noise

BN = BNCalibration()


def network(seed: int, inputs: Tensor | None = None) -> nn.Sequential:
    """Two convolutions with batch norms whose statistics are those of `inputs`, or torch's first ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
        )
    if inputs is not None:
        recalibrate(model, inputs)
    return model.eval()


class BNCalibrationCases(Cases):
    """Networks whose statistics are those of their inputs (null), are far from them (redundant), or a little off."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = torch.Generator().manual_seed(seed)
        x = torch.rand(8, 2, 6, 6, generator=draws)
        with torch.random.fork_rng():
            model = network(seed, None if kind == "redundant" else x)
        if kind == "redundant":
            norms: list[Any] = [model[1], model[4]]
            for norm in norms:
                norm.running_mean.fill_(1000)
        elif kind == "typical":
            x = 0.5 + x
        return Case(model.to(device).requires_grad_(False), x.to(device), lambda target, inputs: target(inputs))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        found = statistics(case.target, case.inputs)["1"]
        sums = case.target[0](case.inputs).transpose(0, 1).flatten(1)  # (4, 8 * 36)
        yield Expectation("means of the sums", sums.mean(1), found.mean)
        yield Expectation("variances of the sums", sums.var(1), found.variance)
        by_hand = 1 - math.sqrt(2 * 1 * 2 / 5) * math.exp(-(3**2) / 4 / 5)
        two = [Statistics(torch.tensor([m]), torch.tensor([v])) for m, v in ((0.0, 1.0), (3.0, 4.0))]
        yield Expectation("distance by hand", torch.tensor(by_hand), torch.tensor(distance(*two)))
        yield Expectation("distance of equal ones", torch.tensor(0.0), torch.tensor(distance(two[0], two[0])))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        before = {name: value.clone() for name, value in case.target.state_dict().items()}
        with BN.apply(case.target, images=case.inputs):
            for name, value in case.target.state_dict().items():
                yield Expectation(f"{name} as it was", before[name], value)

    def invalid(self, device: str) -> Iterable[Invalid]:
        target = self.build("typical", 0, device).target
        x = torch.full((1, 2, 6, 6), torch.nan, device=device)
        yield Invalid("images with NaN", lambda: BN.apply(target, images=x), "not finite")
        yield Invalid("a path as images", lambda: BN.apply(target, images="photos"), "must be a tensor")
        yield Invalid("no image", lambda: BN.apply(target, images=x[:0]), "x is empty")
        yield Invalid("no batch norm", lambda: BN.apply(nn.Linear(2, 2)), "batch norms that keep")
        yield Invalid("no statistics", lambda: BN.apply(nn.BatchNorm2d(2, track_running_stats=False)), "batch norms")


CASES = BNCalibrationCases()


def test_it_is_recalibration_without_touching_the_model() -> None:
    x = noise(16, 2, 6, 6).float() + 2
    model, other = network(0), network(0)
    recalibrate(other, x, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with BN.apply(model, images=x, batch_size=8) as handle:
        torch.testing.assert_close(forward(model, x)(), forward(other, x)())
        assert set(handle.trace["statistics"]) == {"1", "4"}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    weights = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], other.state_dict()[name]) for name in weights)


@pytest.mark.parametrize(
    ("chip", "repaired"), [(Chip(gain=0.9, offset=2), True), (Chip(noise=1), False)], ids=["gain and offset", "noise"]
)
def test_gain_and_offset_are_repaired_and_noise_is_not(chip: Chip, repaired: bool) -> None:
    """The smoke run's network on a converter of 6 bits."""
    parts = images_of(DIGITS[1], 0)
    model = trained(DIGITS[1], parts.train, 0)
    array = replace(COARSE, adc_bits=6, chip=chip)
    before = deployed(model, array).accuracy(parts.test)
    on = deployed(model, array)
    with BN.apply(on.model, images=parts.train.x[:256]):
        gain = on.accuracy(parts.test) - before
    assert gain > 0.25 if repaired else gain < 0.1
