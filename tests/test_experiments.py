"""The smoke run of every technique: offline, in a guarded process, from real data to a valid record; and training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference_impls.accounting.record import Record
from reference_impls.accounting.saving import has_random_weights
from reference_impls.contract import registry
from reference_impls.data import assets
from reference_impls.study import Recipe, contenders, scenarios, train
from reference_impls.study.training import MomentumRecipe
from tools import runner
from tools.knowledge import Knowledge, load
from tools.knowledge.completeness import record_faults

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def atlas() -> Knowledge:
    return load(ROOT, check=False)


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
    committed = ROOT / "reference_impls" / "results" / name / f"{scenario.name}.json"
    if committed.exists():  # else the entry is new, and about to be measured
        full = Record.model_validate_json(committed.read_text(encoding="utf-8"))
        assert accounts(full) == accounts(record), "the committed record accounts for what the experiment prepares"


def accounts(record: Record) -> dict[str, set[tuple[str | None, str | None]]]:
    """What a record says of its preparations: the kinds that are counted, left out, and shared."""
    return {
        "counted": {(one.kind, one.technique) for one in record.counted},
        "excluded": {(one.kind, one.technique) for one in record.excluded},
        "shared": {(one.kind, None) for one in record.shared},
        "work": {(record.work, None)},
    }


MEETINGS = [(benchmark, task) for benchmark in ("compact-networks", "deduplication") for task in scenarios(benchmark)]


@pytest.mark.parametrize(("benchmark", "task"), MEETINGS)
def test_techniques_meet(benchmark: str, task: str, asset: Callable[[str], Path]) -> None:
    for needed in scenarios(benchmark)[task].smoke.needs:
        asset(needed)
    outcome = runner.run(benchmark, scenario=task, seconds=300, preloaded=True)
    assert outcome.record is not None, f"{outcome.error}: {outcome.message}\n{outcome.log}"
    record = outcome.record
    assert (record.technique, record.benchmark) == (None, benchmark)
    assert {point.technique for point in record.points} == set(contenders(benchmark, task))
    assert len({point.technique for point in record.points}) >= 2
    assert record.controls
    committed = ROOT / "reference_impls" / "results" / benchmark / f"{task}.json"
    if committed.exists():
        assert accounts(Record.model_validate_json(committed.read_text(encoding="utf-8"))) == accounts(record)


COMMITTED = sorted((ROOT / "reference_impls" / "results").glob("*/*.json"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_committed_record_accounts_for_what_its_entry_prepares(file: Path, atlas: Knowledge) -> None:
    """An entry that is calibrated or trained, by its place in the taxonomy, says so in every record with a quality."""
    record = Record.model_validate_json(file.read_text(encoding="utf-8"))
    if record.technique is None or has_random_weights(record) or record.work == "layer":
        return
    adaptation = atlas.entries[record.technique].axes["adaptation"]
    if adaptation.primary in ("finetune", "from_scratch"):
        assert "training" in record.prepared
    if adaptation.primary == "calibration":
        assert record.prepared


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


def test_steps_of_gradient_descent_follow_the_size_of_the_gradient_and_those_of_adam_do_not() -> None:
    """So a factor on gradients, such as that of PIM scale rescaling, is of no effect with the one alone."""
    x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
    moved = {}
    for recipe in (MomentumRecipe(1, 1e-2, 8, 0.0), Recipe(1, 1e-2, 8, 0.0)):
        for factor in (0.1, 0.2):
            model = nn.Linear(4, 4, bias=False)
            nn.init.zeros_(model.weight)
            train(model, x, y, recipe, seed=0, loss=lambda a, b: factor * F.cross_entropy(a, b))  # noqa: B023
            moved[type(recipe), factor] = model.weight.detach().norm().item()
    assert moved[MomentumRecipe, 0.2] == pytest.approx(2 * moved[MomentumRecipe, 0.1], rel=0.02)
    assert moved[Recipe, 0.2] == pytest.approx(moved[Recipe, 0.1], rel=0.02)
