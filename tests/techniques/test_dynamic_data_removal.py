"""Dynamic data removal beyond the checks: what is presented, what comes back, and resuming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reference_impls.contract import Case, Cases, Expectation, Invalid, NoEffectWarning
from reference_impls.hosts.continual import ContinualRun
from reference_impls.hosts.training import Part
from reference_impls.techniques.dynamic_data_removal import DataRemoval, DynamicDataRemoval, scheduled
from tests.continual_cases import built, small_continual
from tests.training_cases import Kind

REMOVAL = DynamicDataRemoval()
RIGHT, WRONG = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def shown(removal: DataRemoval, history: dict[int, str]) -> None:
    """Present examples, each with its history of + and - in turn."""
    for turn in range(len(next(iter(history.values())))):
        for index, marks in history.items():
            outputs = RIGHT if marks[turn] == "+" else WRONG
            removal.seen(torch.tensor([index]), outputs[None], torch.tensor([0]))


class DynamicDataRemovalCases(Cases):
    """A small continual training; one that gets all right from the start (redundant), one that never does (null)."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        return built(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        removal = DataRemoval(12, removed=0.5, removals=2, epochs=6, interval=2, seed=seed)
        removal.task_started(0, torch.arange(4, 12))
        shown(removal, {4: "++", 5: "+-", 6: "--", 7: "++", 8: "+-", 9: "--", 10: "+-", 11: "-+"})
        removal.epoch_ended(0)
        yield Expectation("none goes within a window", torch.arange(4, 12), removal.examples())
        removal.epoch_ended(1)
        # three were never forgotten, and two of them go; what was never right counts as hardest
        gone = set(removal.removed.tolist())
        yield Expectation("two go", torch.tensor(2), torch.tensor(len(gone)))
        yield Expectation("of those never forgotten", torch.tensor(True), torch.tensor(gone <= {4, 7, 11}))
        shown(removal, {i: "+-" if i in (5, 8) else "--" for i in removal.examples().tolist()})
        removal.epoch_ended(2)
        removal.epoch_ended(3)
        by_hand = torch.tensor([5, 8])  # counts began anew: only these were ever right since
        yield Expectation("counted in this window alone", by_hand, removal.removed[2:].sort().values)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        training = small_continual(seed, device)
        handle = REMOVAL.apply(training, removed=0.5, removals=3, interval=1)
        handle.target.fit()
        by_hand = torch.tensor([12, 10, 8, 6, 6] * 2)  # n - j k
        yield Expectation("examples in each epoch", by_hand, torch.tensor(handle.trace["examples"]))
        yield Expectation("known beforehand", by_hand, torch.tensor(scheduled(training, 0.5, 3, 1)))
        total = 2 * (12 * 5 - 2 * sum(5 - e for e in (1, 2, 3)))
        yield Expectation("presentations", torch.tensor(total), by_hand.sum())

    def invalid(self, device: str) -> Iterable[Invalid]:
        training = small_continual(0, device)
        late = {"removals": 3, "interval": 2}
        yield Invalid("tasks too short", lambda: REMOVAL.apply(training, **late), "need tasks of 7 epochs or more")
        yield Invalid("all removed", lambda: DataRemoval(9, removed=1.0, removals=1, epochs=3), "leaves no example")
        yield Invalid("one epoch", lambda: REMOVAL.measure(small_continual(0, device, epochs=1)), "two epochs or more")
        state = REMOVAL.apply(training, removals=2).target.run().state_dict()["parts"][0]
        other = DataRemoval(9, removed=0.2, removals=1, epochs=2)
        yield Invalid("a state of other data", lambda: other.load_state_dict(state), "24 examples, not 9")


CASES = DynamicDataRemovalCases()


class Log(Part):
    """How often each example was presented, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs = [Counter[int]()]

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        self.epochs[-1].update(index.tolist())

    def epoch_ended(self, epoch: int) -> None:
        self.epochs.append(Counter())


@pytest.mark.parametrize("easiness", ["forgetting", "random"])
def test_what_went_out_is_presented_no_more_and_the_next_task_starts_with_all(easiness: str):
    training = small_continual()
    handle = REMOVAL.apply(training, removed=0.5, removals=2, interval=2, easiness=easiness)
    run = handle.target.plus(lambda model, optimiser: Log()).run()
    assert isinstance(run, ContinualRun)
    log = run.parts[1]
    assert isinstance(log, Log)
    run.advance()
    presented = [set(epoch) for epoch in log.epochs[:10]]
    assert [len(epoch) for epoch in presented] == [12, 12, 9, 9, 6] * 2
    for task in range(2):
        mine = presented[5 * task : 5 * task + 5]
        assert mine[0] == set(training.examples_of(task).tolist())
        assert all(later <= earlier for earlier, later in pairwise(mine))
    assert all(set(epoch.values()) == {1} for epoch in log.epochs[:10])


def test_which_ones_go_out_at_random_does_not_follow_from_the_counts():
    gone = []
    for easiness in ("forgetting", "random"):
        removal = DataRemoval(40, removed=0.25, removals=1, epochs=3, easiness=easiness)
        removal.task_started(0, torch.arange(40))
        shown(removal, {i: "+" if i < 10 else "-" for i in range(40)})
        removal.epoch_ended(0)
        gone.append(removal.removed.sort().values.tolist())
    assert gone[0] == list(range(10))
    assert len(gone[1]) == 10
    assert gone[1] != gone[0]


def test_with_nothing_to_remove_a_run_equals_plain_training_bit_for_bit():
    with pytest.warns(NoEffectWarning):
        handle = REMOVAL.apply(small_continual(), removed=0.01)
    plain, ours = small_continual().fit(), handle.target.fit()
    for one, other in zip(plain.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("steps", [1, 6, 13, 14, 20])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, tmp_path: Path):
    training = REMOVAL.apply(small_continual(), removed=0.5, removals=3).target
    whole, first, second = training.run(), training.run(), training.run()
    whole.advance()
    first.advance(steps)
    first.save(tmp_path / "run.pt")
    second.load_state_dict(torch.load(tmp_path / "run.pt"))
    second.advance()
    for one, other in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
