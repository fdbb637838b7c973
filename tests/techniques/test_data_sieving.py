"""Data sieving beyond the checks: the two sets, the queue, coverage, what is really forwarded, and resuming."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.hosts.training import Part, Run
from reference_impls.techniques.data_sieving import (
    NEVER_LEARNT,
    DataSieving,
    Sieving,
    easiest,
    forgetting_events,
    history,
)
from tests.training_cases import Kind, assert_resumes, case, one_answer, small_training

SIEVE = DataSieving()


class DataSievingCases(Cases):
    """A small training; one whose examples are right from the start (redundant), or never, as nothing is learnt."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        training = small_training(seed, device)
        return case(training if kind == "typical" else one_answer(training, kind, lr=0.0), seed)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        rows = [[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]
        right = torch.tensor(rows, device=device).bool().T
        by_hand = torch.tensor([2, NEVER_LEARNT, 0, 1, 1], device=device)
        yield Expectation("events of five histories", by_hand, forgetting_events(right))
        chosen = easiest(torch.tensor([2, NEVER_LEARNT, 0, 1, 0]), 2, generator(seed))
        yield Expectation("the two never forgotten", torch.tensor([2, 4]), chosen.sort().values)
        drawn = torch.rand(8, 12, generator=generator(seed)) > 0.5
        sieve = Sieving(12, removed=0.0, exchanged=0.5, epochs=99, interval=99)
        for row in drawn:
            sieve.seen(torch.arange(12), torch.stack([row.float(), 0.5 * torch.ones(12)], 1), torch.zeros(12).long())
        counted = sieve.events.masked_fill(~sieve.learnt, NEVER_LEARNT)
        yield Expectation("events as they come and at once", forgetting_events(drawn), counted)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        sieve = Sieving(50, removed=0.3, exchanged=0.2, epochs=99, seed=seed)
        for epoch in range(20):
            sieve.epoch_ended(epoch)
            both = torch.cat([sieve.active, sieve.removed]).sort().values
            yield Expectation(f"every example once, after {epoch + 1} updates", torch.arange(50), both)
        yield Expectation("active ones in each epoch", torch.full((21,), 35), torch.tensor(sieve.log))

    def invalid(self, device: str) -> Iterable[Invalid]:
        few = small_training(0, device)
        yield Invalid("nothing left", lambda: Sieving(3, removed=1.0, exchanged=0.1, epochs=2), "none to train on")
        yield Invalid("one epoch", lambda: SIEVE.measure(small_training(0, device, epochs=1)), "two epochs or more")
        state = Run(SIEVE.apply(few).target).state_dict()["parts"][0]
        other = Sieving(9, removed=0.2, exchanged=0.1, epochs=2)
        yield Invalid("a state of other data", lambda: other.load_state_dict(state), "24 examples, not 9")


CASES = DataSievingCases()


class Log(Part):
    """The batches that were passed through the network."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        self.batches.append(index)


@pytest.mark.parametrize("easiness", ["forgetting", "random"])
def test_only_active_examples_are_passed_through_and_every_one_comes_back_in_time(easiness: str):
    handle = SIEVE.apply(small_training(epochs=7), removed=0.4, exchanged=0.2, interval=1, easiness=easiness)
    run = Run(handle.target.plus(lambda model, optimiser: Log()))
    sieve, log = run.parts
    assert isinstance(sieve, Sieving)
    assert isinstance(log, Log)
    first, seen = set(sieve.removed.tolist()), set[int]()
    updates = math.ceil(len(first) / sieve.exchanged)
    for epoch in range(7):
        active = sieve.active.clone()
        log.batches.clear()
        run.advance(math.ceil(len(active) / 8))
        assert torch.equal(torch.cat(log.batches).sort().values, active)
        seen |= set(active.tolist())
        if epoch == updates:
            assert len(seen) == 24
    assert handle.trace["examples"] == [15] * 7


def test_the_removed_set_is_a_queue_until_all_have_been_back():
    sieve = Sieving(40, removed=0.25, exchanged=0.1, epochs=99)
    queue = sieve.removed.tolist()
    for epoch in range(3):  # ten removed, three at a time
        head = sieve.removed[:3].tolist()
        assert head == queue[3 * epoch : 3 * epoch + 3]
        sieve.epoch_ended(epoch)
        assert set(head) <= set(sieve.active.tolist())
        assert sieve.waiting == 10 - 3 * (epoch + 1)
    order = sieve.removed.tolist()
    sieve.epoch_ended(3)
    assert sieve.waiting == 0
    assert sieve.removed[:7].tolist() != order[3:]


def test_counts_start_anew_for_all_examples_in_every_interval():
    sieve = Sieving(20, removed=0.2, exchanged=0.1, epochs=99, interval=2)
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    one, y = sieve.active[:1], torch.zeros(1, dtype=torch.long)
    sieve.seen(one, right, y)
    sieve.epoch_ended(0)
    sieve.seen(one, wrong, y)
    assert int(sieve.events[one]) == 1
    sieve.epoch_ended(1)
    assert not torch.stack([sieve.events > 0, sieve.last, sieve.learnt]).any()


def test_without_return_the_examples_never_change():
    handle = SIEVE.apply(small_training(), removed=0.25, reentry="none", interval=1)
    run = Run(handle.target)
    before = run.parts[0].examples()
    run.advance()
    assert torch.equal(before, run.parts[0].examples())


@pytest.mark.parametrize("steps", [1, 4, 7, 10])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, tmp_path: Path):
    training = SIEVE.apply(small_training(epochs=6), removed=0.3, exchanged=0.3, interval=1).target
    whole, second = assert_resumes(training, steps, tmp_path)
    assert torch.equal(whole.parts[0].examples(), second.parts[0].examples())


def test_the_history_of_a_plain_training_has_every_example_in_every_epoch():
    training = small_training(epochs=12)
    right = history(training)
    assert right.shape == (12, 24)
    assert right[-1].sum() > right[0].sum()
