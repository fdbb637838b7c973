"""Latency prediction beyond the checks: fits on counted work, deadlines, and a cascade that is no two stages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, UnsupportedHost, generator
from reference_impls.models.mtcnn import MTCNN
from reference_impls.techniques.latency_prediction_from_proposals import (
    LatencyPrediction,
    affordable,
    calibrate,
)

PREDICTION = LatencyPrediction()


class Windows(nn.Module):
    """Proposes the positions of a map that are above 0, and scores each by a small network of their features."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(4, 8)
        self.accept = nn.Linear(8, 1)
        self.proposal_macs = 4 * 8 + 8

    def forward(self, x: Tensor) -> Tensor:
        """(1, 2, H, W), the second channel being the score of each position -> accepted rows (m, 3)."""
        return self.decide(x, self.propose(x))

    def propose(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[:2] != (1, 2):
            raise ValueError(f"x must have shape (1, 2, H, W), got {tuple(x.shape)}")
        scores = x[0, 1]
        places = (scores > 0).nonzero()
        return places[scores[places[:, 0], places[:, 1]].argsort(descending=True, stable=True)]

    def decide(self, x: Tensor, proposals: Tensor) -> Tensor:
        features = self.backbone(x)[0, :, proposals[:, 0], proposals[:, 1]].T
        score = self.accept(self.head(features).relu())
        passed = x[0, 0, proposals[:, 0], proposals[:, 1]] > 0
        return torch.cat([proposals.to(x), score], 1)[passed]


def total(target: nn.Module, x: Tensor) -> Tensor:
    """The accepted rows added up: a result of one shape."""
    return target(x).sum(0)


class LatencyPredictionCases(Cases):
    """Maps of 8 x 8 positions: some proposals of which some are accepted, many of which all are rejected, few of which
    none is."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = generator(seed)
        model = Windows()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
        x = torch.randn(1, 2, 8, 8, generator=draws)
        order = torch.randperm(64, generator=draws).view(8, 8)
        if kind == "redundant":
            x[0, 1], x[0, 0] = 1 + order / 64, -1.0
        elif kind == "null":
            x[0, 1], x[0, 0] = torch.where(order < 6, 1 + order / 64, -1.0), 1.0
        else:
            x[0, 1] = torch.where(order < 24, 1 + order / 64, -1.0)
        return Case(model.to(device).requires_grad_(False), x.to(device), total)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        proposals = case.target.propose(case.inputs)
        scores = case.inputs[0, 1]
        by_hand = sorted(range(64), key=lambda n: -float(scores.flatten()[n]))[:24]
        yield Expectation("proposals", torch.tensor(by_hand), (proposals[:, 0] * 8 + proposals[:, 1]).cpu())
        for deadline, base, each, most in ((10, 2, 2, 4), (11.9, 2, 2, 4), (1, 2, 2, 0), (0.3, 0, 0.1, 3)):
            yield Expectation(f"{deadline} allows", torch.tensor(most), torch.tensor(affordable(deadline, base, each)))
        with PREDICTION.apply(case.target, deadline=8.0) as handle:
            got = handle.target(case.inputs)
        yield Expectation("the best eight", case.target.decide(case.inputs, proposals[:8]), got)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        with PREDICTION.apply(case.target, deadline=1e9) as handle:
            yield Expectation("results with time enough", case.target(case.inputs), handle.target(case.inputs))
            yield Expectation("proposals kept", torch.tensor(24), torch.tensor(handle.trace["kept"]))

    def invalid(self, device: str) -> Iterable[Invalid]:
        x = torch.randn(1, 3, 8, 8, device=device)
        yield Invalid("another shape", lambda: PREDICTION.measure(Windows().to(device), x), "shape")
        yield Invalid("a network of one stage", lambda: PREDICTION.apply(nn.Linear(2, 2)), "propose")
        yield Invalid("no module", lambda: PREDICTION.measure(None, x), "propose")


CASES = LatencyPredictionCases()


def maps(numbers: Iterable[int]) -> list[Tensor]:
    """A map with so many proposals each."""
    found = []
    for n in numbers:
        x = torch.randn(1, 2, 8, 8, generator=generator(n))
        x[0, 1] = torch.where(torch.arange(64).view(8, 8) < n, 1.0, -1.0)
        found.append(x)
    return found


def macs(model: nn.Module) -> Any:
    def cost(x: Tensor) -> int:
        with torch.no_grad(), count() as tally:
            model(x)
        return tally.macs

    return cost


def test_the_fit_on_counted_work_is_exact_and_keeps_the_deadline() -> None:
    model = Windows()
    found = calibrate(model, maps([3, 10, 30]), macs(model))
    assert found.each["proposals"] == pytest.approx(model.proposal_macs)
    assert found.base == pytest.approx(64 * 2 * 4 * 9)
    deadline = found.base + 12.5 * model.proposal_macs
    knobs = {"deadline": deadline, "base": found.base, "each": found.each["proposals"]}
    with PREDICTION.apply(model, **knobs) as handle:
        for n, kept in ((5, 5), (12, 12), (13, 12), (64, 12)):
            (x,) = maps([n])
            assert macs(handle.target)(x) <= deadline
            assert (handle.trace["proposed"], handle.trace["kept"]) == (n, kept)


def test_inputs_that_are_all_alike_determine_no_fit() -> None:
    model = Windows()
    with pytest.raises(ValueError, match="must vary"):
        calibrate(model, maps([5, 5]), macs(model))


def test_a_map_without_proposals_is_left_alone() -> None:
    model = Windows()
    (x,) = maps([0])
    assert PREDICTION.measure(model, x).value == 0
    with PREDICTION.apply(model, deadline=8.0) as handle, torch.no_grad():
        assert len(handle.target(x)) == 0


def test_a_longer_cascade_runs_in_time_and_says_why_its_saving_has_no_closed_form() -> None:
    torch.manual_seed(0)
    model = MTCNN(thresholds=(0.5, 0.5, 0.5)).eval()
    x = torch.rand(1, 3, 48, 48, generator=generator(0))
    with torch.no_grad(), PREDICTION.apply(model, deadline=4.0) as handle:
        proposed = len(model.propose(x))
        assert handle.target(x).proposed == min(4, proposed)
        with pytest.raises(UnsupportedHost, match="proposal_macs"):
            PREDICTION.saving(model, x, handle.trace)
