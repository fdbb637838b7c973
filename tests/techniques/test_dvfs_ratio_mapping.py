"""Frequency-to-ratio mapping beyond the checks: the model of latency, the choice, the governor."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.study.training import seeded
from reference_impls.techniques.dvfs_ratio_mapping import (
    LEVELS,
    Governor,
    Ladder,
    Latency,
    RatioMapping,
    calibrate,
    chosen,
    fit,
    variation,
)
from tests.training_cases import Kind

MAPPING = RatioMapping()


def ladder(widths: Iterable[int], seed: int = 0) -> Ladder:
    """A hidden layer of each width, so that MACs are in the ratios of the widths."""
    return seeded(seed, lambda: Ladder([nn.Sequential(nn.Linear(6, n), nn.Linear(n, 3)) for n in widths], (6,)))


class RatioMappingCases(Cases):
    """Widths in the ratios of the frequencies (redundant), one network alone (null), and something between."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        widths = {"redundant": (8, 6, 4, 2), "null": (8,), "typical": (8, 5, 3)}[kind]
        x = torch.randn(5, 6, generator=generator(seed)).to(device)
        return Case(ladder(widths, seed).to(device).requires_grad_(False), x, run=lambda target, x: target(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        profile = [Latency(8.0, 2.0), Latency(4.0, 2.0), Latency(1.0, 2.0)]
        by_hand = [0, 1, 1, 2, 2]  # T = 10, 5 / .8 + 2, ...; at 0.05 none is left below 10, and the last runs
        found = [chosen(profile, frequency, 10.0) for frequency in (1.0, 0.8, 0.5, 0.4, 0.05)]
        yield Expectation("networks at five frequencies", torch.tensor(by_hand), torch.tensor(found))
        draws = torch.rand(20, 2, generator=generator(seed)).tolist()
        ranked = sorted((Latency(a, b) for a, b in draws), key=lambda one: -one.at(0.5))
        brute = max(range(20), key=lambda i: (ranked[i].at(0.5) <= 1.0, -i))
        yield Expectation("of twenty", torch.tensor(brute), torch.tensor(chosen(ranked, 0.5, 1.0)))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        governor = Governor(case.target)
        first = governor(case.inputs)
        for frequency in LEVELS[1:]:
            governor.frequency = frequency
            governor(case.inputs)
        governor.frequency = 1.0
        yield Expectation("outputs after switching to and fro", first, governor(case.inputs))
        yield Expectation("MACs", torch.tensor([72, 45, 27]), torch.tensor(case.target.macs))

    def invalid(self, device: str) -> Iterable[Invalid]:
        target = ladder((4, 2))
        profile = [Latency(1.0)]
        yield Invalid("a profile too short", lambda: MAPPING.apply(target, profile=profile), "of 1 networks")
        yield Invalid("no profile", lambda: MAPPING.apply(target, profile=(1.0, 2.0)), "must hold a Latency")
        yield Invalid("one frequency", lambda: fit([1.0], [3.0]), "two frequencies or more")
        yield Invalid("frequency 0", lambda: fit([1.0, 0.0], [3.0, 4.0]), "frequency must be")
        yield Invalid("no time", lambda: fit([1.0, 0.5], [3.0, 0.0]), "above 0 milliseconds")
        yield Invalid("nothing to choose from", lambda: Ladder([], (3,)), "one network or more")
        yield Invalid("frequency 2", lambda: setattr(Governor(target), "frequency", 2.0), "frequency must be")


CASES = RatioMappingCases()


def test_the_model_is_found_again_from_its_own_times():
    models = [Latency(8.0, 3.0), Latency(2.0, 1.0)]
    times = {frequency: [one.at(frequency) for one in models] for frequency in (1.0, 0.6, 0.3)}
    for one, found in zip(models, calibrate(times), strict=True):
        assert found == pytest.approx(one)


def test_neither_part_of_the_model_is_negative():
    assert fit([1.0, 0.5], [1.0, 2.5]).fixed == 0
    assert fit([1.0, 0.5], [2.0, 1.0]) == (0.0, 1.5)


def test_mapping_levels_what_follows_the_clock_and_cannot_level_the_rest():
    whole = [Latency(8.0), Latency(6.0), Latency(4.0), Latency(2.0)]
    assert variation(whole[0].at(level) for level in LEVELS) > 0.5
    assert variation(whole[chosen(whole, level, 8.0)].at(level) for level in LEVELS) == pytest.approx(0)
    coarse = [Latency(8.0, 2.0), Latency(2.0, 2.0)]
    assert variation(coarse[chosen(coarse, level, 10.0)].at(level) for level in LEVELS) > 0.1
