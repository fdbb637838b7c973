"""SpFDE beyond the checks: off equals plain training bit for bit, the order of updates, and resuming in the middle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, NoEffectWarning
from reference_impls.hosts.training import Run, ledger
from reference_impls.techniques.dynamic_sparse_training import active_count, sparse_layers
from reference_impls.techniques.spfde import SpFDE, SpFDETechnique, soft_density, target_density
from tests.training_cases import (
    MOTION,
    Kind,
    assert_equal,
    assert_resumes,
    case,
    few_or_alike,
    one_answer,
    small_training,
)

SPFDE = SpFDETechnique()


class SpFDECases(Cases):
    """A small training; one in which nothing moves and all is learnt (redundant), or all moves and none is (null)."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        training = small_training(seed, device, epochs=8)
        if kind != "typical":
            few_or_alike(sparse_layers(training.model).values(), kind)
            training = one_answer(training, kind, **MOTION[kind])
        return case(training, seed)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        trace = soft_density(small_training(seed, device, epochs=8), 0.5)
        grown = [0.5] + [0.5 + 0.2 * 0.5] * 4 + [0.5 + 0.1 * 0.5] + [0.5] * 2  # stages end at 9/16 and 12/16 of the run
        by_hand = [active_count(288, 1 - share) for share in grown]
        yield Expectation(
            "active weights under the soft bound", torch.tensor(by_hand), torch.tensor(trace["active"]["1.0"])
        )
        handle = SPFDE.apply(small_training(seed, device, epochs=8), sparsity=0.5, saving=0.0, removed=0.0)
        handle.target.fit()
        counted = torch.tensor(handle.trace["active"]["1.0"][:8])
        yield Expectation("as a run has them", torch.tensor(by_hand), counted)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        handle = SPFDE.apply(small_training(seed, device, epochs=8), sparsity=0.5, saving=0.2, removed=0.25)
        run = Run(handle.target)
        (part,) = run.parts
        assert isinstance(part, SpFDE)
        for epoch in range(8):
            run.advance(3)  # 18 examples, 8 in a batch
            both = torch.cat([part.sieve.active, part.sieve.removed]).sort().values
            yield Expectation(f"examples after epoch {epoch}", torch.arange(24), both)

    def invalid(self, device: str) -> Iterable[Invalid]:
        training = small_training(0, device)
        yield Invalid("more than can be saved", lambda: SPFDE.apply(training, saving=0.6), "saves at most")
        yield Invalid("too sparse", lambda: SPFDE.apply(training, sparsity=0.999), "too small")


CASES = SpFDECases()


def test_with_nothing_to_save_a_run_equals_plain_training_bit_for_bit():
    training = small_training()
    with pytest.warns(NoEffectWarning):
        handle = SPFDE.apply(training, sparsity=0.0, saving=0.0, removed=0.0)
    plain, ours = training.fit(), handle.target.fit()
    assert_equal(plain, ours)


def test_no_layer_freezes_above_its_sparsity_and_masks_of_frozen_layers_stay():
    run = Run(SPFDE.apply(small_training(epochs=8), sparsity=0.5, saving=0.25, removed=0.0).target)
    (part,) = run.parts
    assert isinstance(part, SpFDE)
    kept: dict[str, torch.Tensor] = {}
    above = 0
    for _ in range(8):
        run.advance(3)
        for name, mask in part.sparse.masks.items():
            frozen = int(name[0]) in part.freezing.frozen
            above += int(mask.sum()) > active_count(288, 0.5)
            assert not frozen or int(mask.sum()) == active_count(288, 0.5)
            assert not frozen or torch.equal(kept.setdefault(name, mask.clone()), mask)
    assert above > 0
    assert kept.keys() == {"1.0"}


@pytest.mark.parametrize("steps", [1, 5, 11, 17, 22])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, tmp_path: Path):
    training = SPFDE.apply(small_training(epochs=8), sparsity=0.5, saving=0.25, removed=0.25).target
    assert_resumes(training, steps, tmp_path)


def test_the_closed_form_multiplies_the_three_savings():
    training = small_training(epochs=8)
    handle = SPFDE.apply(training, sparsity=0.5, saving=0.2, removed=0.25)
    with count() as tally:
        handle.target.fit()
    costs, dense = ledger(training, handle.trace), ledger(training, {})
    assert tally.macs == costs.executed
    sparse = ledger(training, {**handle.trace, "frozen": [()] * 8, "examples": [24] * 8})
    frozen = ledger(training, {**handle.trace, "examples": [24] * 8})
    assert costs.convention == frozen.convention * 18 // 24
    assert frozen.convention < sparse.convention < dense.convention
    assert ledger(training, target_density(training, 0.0)) == dense
