"""SparCL beyond the checks: off equals rehearsal bit for bit, masks inside masks, what it costs, and resuming."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, NoEffectWarning
from reference_impls.hosts.continual import ContinualRun, Rehearsal, ledger
from reference_impls.hosts.training import layers
from reference_impls.techniques.dynamic_sparse_training import active_count
from reference_impls.techniques.sparcl import SparCL, SparCLTechnique
from tests.continual_cases import built, small_continual
from tests.training_cases import Kind

SPARCL = SparCLTechnique()
KNOBS = {"sparsity": 0.5, "gradient_sparsity": 0.75, "inter": 0.125, "intra": 0.125, "removed": 0.5, "removals": 2}


class SparCLCases(Cases):
    """A small continual training; one of a single chain that gets all right (redundant), and one of equal weights."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        return built(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        handle = SPARCL.apply(small_continual(seed, device), **KNOBS)
        known = handle.trace
        handle.target.fit()
        by_hand = {"active": [40, 32, 32, 32, 32] * 2, "examples": [12, 9, 6, 6, 6] * 2}
        yield Expectation(
            "active weights", torch.tensor(by_hand["active"]), torch.tensor(handle.trace["active"]["1.0"][:10])
        )
        yield Expectation("examples", torch.tensor(by_hand["examples"]), torch.tensor(handle.trace["examples"]))
        yield Expectation("known beforehand", torch.tensor(by_hand["active"]), torch.tensor(known["active"]["1.0"]))
        yield Expectation("and the examples", torch.tensor(by_hand["examples"]), torch.tensor(known["examples"]))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        run = SPARCL.apply(small_continual(seed, device), **KNOBS).target.run()
        assert isinstance(run, ContinualRun)
        (part,) = run.parts
        assert isinstance(part, SparCL)
        while run.epoch < run.epochs:
            run.advance(1)
            task = torch.cat([part.removal.active, part.removal.removed]).sort().values
            yield Expectation("each example of the task once", run.training.examples_of(run.task), task)

    def invalid(self, device: str) -> Iterable[Invalid]:
        training = small_continual(0, device)
        wide = {"sparsity": 0.9, "gradient_sparsity": 0.8}
        yield Invalid("updates of masked weights", lambda: SPARCL.apply(training, **wide), "cannot update weights")
        yield Invalid("too many removals", lambda: SPARCL.apply(training, removals=5), "need tasks of 6 epochs")
        sparse = {"sparsity": 0.999, "gradient_sparsity": 0.999, "intra": 0.0}
        yield Invalid("too sparse", lambda: SPARCL.apply(training, **sparse), "too small")


CASES = SparCLCases()


@pytest.mark.parametrize("rehearsal", ["none", "er", "der++"])
def test_with_nothing_to_save_a_run_equals_rehearsal_bit_for_bit(rehearsal: Rehearsal):
    training = small_continual(rehearsal=rehearsal, momentum=0.9)
    with pytest.warns(NoEffectWarning):
        handle = SPARCL.apply(training, sparsity=0.0, gradient_sparsity=0.0, removed=0.0)
    plain, ours = training.fit(), handle.target.fit()
    for one, other in zip(plain.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_what_a_step_changes_lies_in_the_gradient_mask_and_that_in_the_mask_of_the_weights():
    run = SPARCL.apply(small_continual(momentum=0.9, weight_decay=0.1), **KNOBS, refresh=2).target.run()
    (part,) = run.parts
    assert isinstance(part, SparCL)
    steps = 0
    while run.epoch < run.epochs:
        before = {name: layer.weight.detach().clone() for name, layer in part.masking.layers.items()}
        ends = run.step == len(run._order) - 1
        weights = {name: mask.clone() for name, mask in part.masking.masks.items()}
        run.advance(1)
        for name, layer in part.masking.layers.items():
            chosen = part.updating.masks[name]
            assert int(chosen.sum()) == active_count(64, 0.75)
            assert not (chosen & ~weights[name]).any()
            changed = (layer.weight.detach() != before[name]).flatten()
            assert ends or not (changed & ~chosen).any()  # at an epoch's end masks of weights move
            assert not layer.weight.detach().flatten()[~part.masking.masks[name]].any()
        steps += 1
    assert steps > 15


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    one, two, other = (SPARCL.apply(small_continual(), **KNOBS, seed=seed).target.fit() for seed in (0, 0, 1))
    same = [torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)]
    assert all(same)
    assert not torch.equal(one[1][0].weight, other[1][0].weight)  # type: ignore[index]


def test_the_ledger_counts_each_saving_once():
    training = small_continual()
    handle = SPARCL.apply(training, **KNOBS, refresh=2)
    with count() as tally:
        handle.target.fit()
    costs, dense = ledger(handle.target, handle.trace), ledger(training, {})
    assert tally.macs == costs.executed < dense.executed
    work = {name: layer.macs for name, layer in layers(training).items()}
    rest = work["0.0"] + work["3.0"]
    convention = 0
    for epoch, (n, active) in enumerate(zip([12, 9, 6, 6, 6] * 2, [40, 32, 32, 32, 32] * 2, strict=True)):
        steps = -(-n // 5)
        rehearsed = 2 * 4 * steps * (epoch >= 5)
        convention += n * (3 * rest + 2 * (2 * active + 16)) + rehearsed * (rest + 2 * active)
    assert costs.convention == convention
    assert costs.sparse < costs.executed


def test_magnitude_is_the_ablation_without_gradients():
    found = []
    for importance in ("gradients", "magnitude"):
        run = SPARCL.apply(small_continual(lr=0.3), **KNOBS, weight_importance=importance).target.run()
        (part,) = run.parts
        assert isinstance(part, SparCL)
        found.append((part.masking.alpha, part.masking.beta))
        assert part.updating.alpha == 0.5  # gradients to apply are chosen by gradients in any case
    assert found == [(0.5, 0.5), (0.0, 0.0)]


@pytest.mark.parametrize("steps", [1, 6, 9, 10, 17])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, tmp_path: Path):
    training = SPARCL.apply(small_continual(momentum=0.9), **KNOBS, refresh=2).target
    whole, first, second = training.run(), training.run(), training.run()
    whole.advance()
    first.advance(steps)
    first.save(tmp_path / "run.pt")
    second.load_state_dict(torch.load(tmp_path / "run.pt"))
    second.advance()
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    for one, other in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
