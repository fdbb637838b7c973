"""The smoke run of every technique: offline, in a guarded process, from real data to a valid record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reference_impls.contract import registry
from reference_impls.experiments import harness
from tools import runner


@pytest.mark.parametrize("name", registry.ids())
def test_smoke_run(name: str, asset: Callable[[str], Path]) -> None:
    scenario = next(iter(harness.scenarios(name).values()))
    for needed in scenario.assets.get("smoke", ()):
        asset(needed)
    outcome = runner.run(name, seconds=300)
    assert outcome.record is not None, f"{outcome.error}: {outcome.message}\n{outcome.log}"
    record = outcome.record
    assert (record.technique, record.scenario, record.budget) == (name, scenario.name, "smoke")
    assert len(record.with_) >= 2, "a sweep has at least two points"
    assert record.controls, "an experiment shows at least one null case"
    assert any(point.operations < record.baseline.operations for point in record.with_)


@pytest.mark.parametrize("name", registry.ids())
def test_first_scenario_needs_only_what_make_serve_fetches(name: str) -> None:
    from reference_impls.data import assets

    scenario = next(iter(harness.scenarios(name).values()))
    assert set(scenario.assets.get("smoke", ())) <= set(assets.smoke())
