"""Adjusted-precision training beyond the checks: what noise is worth in bits, by formula and by counting."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.layers.arrays import Array, Chip, convert
from reference_impls.layers.pim import NO_RESCALING
from reference_impls.study import fork_seed
from reference_impls.techniques.adjusted_precision_training import (
    AdjustedPrecisionTraining,
    adjusted,
    choose,
    effective_bits,
)
from tests.pim_cases import on_array
from tests.support import generator

ADJUSTED = AdjustedPrecisionTraining()


class AdjustedPrecisionTrainingCases(Cases):
    """Networks on converters whose noise takes every bit (redundant), none (null), or, by their offset, only some."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        chip = {"typical": Chip(offset=0.5), "redundant": Chip(noise=100), "null": Chip()}[kind]
        array = Array(adc_bits=6, group=18, weights="max", chip=chip)
        case = on_array("typical", seed, device, array, NO_RESCALING)
        return Case(case.target, case.inputs, seeded_run)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        for noise, lost in ((0.0, 0.0), (0.5, 1.0), (math.sqrt(15 / 12), 2.0)):  # log2(1), log2(4) / 2, log2(16) / 2
            yield Expectation(f"noise {noise:.2f}", torch.tensor(7 - lost), torch.tensor(effective_bits(7, noise)))
        yield Expectation("best", torch.tensor(5), torch.tensor(choose({7: 0.8, 6: 0.85, 5: 0.9, 4: 0.9 - 1e-9})))
        yield Expectation("finest of equals", torch.tensor(6), torch.tensor(choose({5: 0.9, 6: 0.9, 4: 0.9})))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        built = on_array("typical", seed, device, adjusted(case.target[2].array, 4), NO_RESCALING)
        with ADJUSTED.apply(case.target, train_bits=4) as handle:
            yield Expectation(
                "a model of 4 bits", case.run(built.target, case.inputs), case.run(handle.target, case.inputs)
            )

    def invalid(self, device: str) -> Iterable[Invalid]:
        target = self.build("typical", 0, device).target
        x = torch.full((1, 2, 6, 6), torch.nan, device=device)
        yield Invalid("inputs with NaN", lambda: ADJUSTED.measure(target, x), "not finite")
        yield Invalid("a digital model", lambda: ADJUSTED.apply(nn.Linear(2, 2)), "PIMConv2d")
        yield Invalid("negative noise", lambda: effective_bits(7, -1), "noise")
        yield Invalid("nothing to choose", lambda: choose({}), "no precision")


def seeded_run(model: nn.Module, x: Tensor) -> Tensor:
    """With the same noise every time."""
    with fork_seed(0):
        return model(x)  # type: ignore[no-any-return]


CASES = AdjustedPrecisionTrainingCases()


@pytest.mark.parametrize("noise", [0.35, 1.0])
def test_noise_is_worth_the_bits_that_the_formula_says(noise: float) -> None:
    """The error of a noisy converter, measured, is that of an ideal one of b_eff bits."""
    array = Array("native", adc_bits=8, group=36, chip=Chip(noise=noise))
    sums = (torch.rand(1, 100_000, generator=generator()) - 0.5) * array.full_scale

    def error(one: Array) -> float:
        return ((convert(sums.clone(), one, axis=-1) * one.scale - sums) ** 2).mean().sqrt().item()

    with fork_seed(0):
        noisy = error(array)
    ideal = error(replace(array, chip=Chip()))
    assert math.log2(noisy / ideal) == pytest.approx(8 - effective_bits(8, noise), abs=0.02)
