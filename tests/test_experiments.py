"""The smoke run of every technique: offline, in a guarded process, from real data to a valid record; and training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from reference_impls.contract import registry
from reference_impls.data import assets
from reference_impls.study import Recipe, contenders, scenarios, train
from tools import runner
from tools.knowledge.completeness import record_faults


@pytest.mark.parametrize("name", registry.ids())
def test_smoke_run(name: str, asset: Callable[[str], Path]) -> None:
    scenario = next(iter(scenarios(name).values()))
    for needed in scenario.smoke.needs:
        asset(needed)
    outcome = runner.run(name, seconds=300, preloaded=True)
    assert outcome.record is not None, f"{outcome.error}: {outcome.message}\n{outcome.log}"
    record = outcome.record
    assert (record.technique, record.scenario, record.budget) == (name, scenario.name, "smoke")
    assert record_faults(record) == []


@pytest.mark.parametrize("task", scenarios("compact-networks"))
def test_techniques_meet(task: str) -> None:
    outcome = runner.run("compact-networks", scenario=task, seconds=300, preloaded=True)
    assert outcome.record is not None, f"{outcome.error}: {outcome.message}\n{outcome.log}"
    record = outcome.record
    assert (record.technique, record.benchmark) == (None, "compact-networks")
    assert {point.technique for point in record.points} == set(contenders("compact-networks", task))
    assert len({point.technique for point in record.points}) >= 2
    assert record.controls


@pytest.mark.parametrize("name", registry.ids())
def test_first_scenario_needs_only_what_make_serve_fetches(name: str) -> None:
    scenario = next(iter(scenarios(name).values()))
    assert set(scenario.smoke.needs) <= set(assets.smoke())


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_training_of_any_length(steps: int) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps * 8, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    one, two = (train(network(), x, y, Recipe(epochs=1, batch_size=8), seed=0) for _ in range(2))
    assert not torch.equal(one.weight, network().weight)
    assert torch.equal(one.weight, two.weight), "the seed decides everything"
