"""Continual learning as a target: the buffer, both losses, what is told apart, resuming, and what a run costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.accounting.count import count
from reference_impls.contract import generator
from reference_impls.contract.errors import UnsupportedHost
from reference_impls.experiments.sparcl import operations, paper_settings, resnet_18
from reference_impls.hosts.continual import (
    ContinualRun,
    Reservoir,
    forgetting,
    gradients,
    ledger,
    own_classes,
    presentations,
    task_accuracy,
)
from reference_impls.hosts.training import Gradients, Part, Training, layers
from reference_impls.techniques.dynamic_sparse_training import DynamicSparseTraining
from tests.continual_cases import TASKS, network, small_continual


class Log(Part):
    """The batches and the gradients of each step."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.rehearsed: list[bool] = []
        self.tasks: list[int] = []

    def seen(self, index: Tensor, outputs: Tensor, y: Tensor) -> None:
        self.batches.append(index)

    def before_step(self, current: Gradients, rehearsed: Gradients | None) -> None:
        self.rehearsed.append(rehearsed is not None)

    def task_started(self, task: int, examples: Tensor) -> None:
        self.tasks.append(task)


def run_with_log(**knobs: object) -> tuple[ContinualRun, Log]:
    run = small_continual(**knobs).plus(lambda model, optimiser: Log()).run()  # type: ignore[arg-type]
    assert isinstance(run, ContinualRun)
    (log,) = run.parts
    assert isinstance(log, Log)
    return run, log


def test_every_example_shown_is_equally_likely_to_be_in_the_buffer():
    held = torch.zeros(10_000)
    for seed in range(40):
        buffer = Reservoir(500, seed)
        for part in torch.arange(10_000).split(37):
            buffer.add(part)
        held[buffer.stored[0]] += 1
        assert len(buffer.stored[0].unique()) == 500
    found = held.view(20, 500).sum(1)  # 1,000 expected in each stretch of the stream
    chi_square = float(((found - 1000) ** 2 / 1000).sum())
    assert chi_square < 43.8  # 19 degrees of freedom, one chance in a thousand


def test_a_draw_is_of_different_examples_with_what_was_stored_beside_them():
    buffer = Reservoir(6, seed=3)
    with pytest.raises(ValueError, match="buffer is empty"):
        buffer.draw(2)
    buffer.add(torch.arange(4), torch.arange(4) * 10)
    assert len(buffer) == 4
    drawn, beside = buffer.draw(9)
    assert drawn.sort().values.tolist() == [0, 1, 2, 3]
    assert torch.equal(beside, drawn * 10)
    assert not torch.equal(buffer.draw(4)[0], buffer.draw(4)[0])  # two draws are independent


def test_the_buffer_never_holds_later_tasks_and_only_what_was_trained_on():
    run, log = run_with_log()
    training = run.training
    for task in range(2):
        run.advance_task()
        shown = torch.cat(log.batches).unique()
        x, y, _ = (kept[: len(run.memory)] for kept in run.memory.stored)
        assert set(y.tolist()) <= {one for classes in TASKS[: task + 1] for one in classes}
        assert all((training.x[shown] == one).all(1).any() for one in x)
    assert log.tasks == [0, 1]


def test_stored_outputs_are_those_at_the_time_and_carry_no_gradient():
    run, log = run_with_log(buffer=100)
    run.advance(1)
    first, (x, y, outputs) = log.batches[0], (kept[:4] for kept in run.memory.stored)
    assert torch.equal(y, run.training.y[first])
    expected = network()
    expected.load_state_dict(run.training.model.state_dict())
    torch.testing.assert_close(outputs, expected(x).detach())
    assert not outputs.requires_grad
    run.advance(4)
    assert torch.equal(run.memory.stored[2][:4], outputs)
    assert not torch.allclose(run.model(x), outputs)


def test_the_loss_on_current_examples_ignores_other_heads_and_that_on_rehearsed_ones_does_not():
    outputs, y = torch.randn(6, 4, generator=generator(0), requires_grad=True), torch.tensor([2, 3, 2, 3, 2, 3])
    (masked,) = torch.autograd.grad(F.cross_entropy(own_classes(outputs, (2, 3)), y), outputs)
    assert not masked[:, :2].any()
    assert masked[:, 2:].all()
    (plain,) = torch.autograd.grad(F.cross_entropy(outputs, y), outputs)
    assert plain.all()


def test_rehearsal_begins_with_the_second_task():
    for rehearsal, rehearses in (("none", False), ("er", True), ("der++", True)):
        run, log = run_with_log(rehearsal=rehearsal)
        run.advance()
        assert log.rehearsed == [False] * 15 + [rehearses] * 15


def test_a_step_of_experience_replay_is_the_sum_of_both_gradients():
    run, _ = run_with_log(rehearsal="er", replay_weight=0.7)
    run.advance_task()
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    state, index = run.memory.state_dict(), run._order[0]
    twin = Reservoir(10)
    twin.load_state_dict(state)
    x, y, _ = twin.draw(4)
    own = own_classes(run.model(run.training.x[index]), TASKS[1])
    loss = F.cross_entropy(own, run.training.y[index]) + 0.7 * F.cross_entropy(run.model(x), y)
    found = gradients(run.model, loss)
    run.advance(1)
    for name, p in run.model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * found[name])


def test_der_adds_the_distance_to_stored_outputs_on_a_draw_of_its_own():
    run, _ = run_with_log(replay_weight=0.7, distillation_weight=0.3)
    run.advance_task()
    twin = Reservoir(10)
    twin.load_state_dict(run.memory.state_dict())
    (x, y, _), (x_other, _, outputs) = twin.draw(4), twin.draw(4)
    assert not torch.equal(x, x_other)
    expected = 0.7 * F.cross_entropy(run.model(x), y) + 0.3 * F.mse_loss(run.model(x_other), outputs)
    found = run._rehearse()
    assert found is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("steps", [1, 7, 15, 16, 22, 29])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, tmp_path: Path):
    training = small_continual(momentum=0.9)
    whole, first, second = training.run(), training.run(), training.run()
    whole.advance()
    first.advance(steps)
    first.save(tmp_path / "run.pt")
    second.load_state_dict(torch.load(tmp_path / "run.pt"))
    second.advance()
    for one, other in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_the_optimiser_forgets_between_tasks():
    run = small_continual(momentum=0.9).run()
    run.advance(14)
    assert run.optimiser.state
    run.advance(1)
    assert not run.optimiser.state


Y = torch.arange(24) % 4
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "empty task": (lambda: small_continual(y=0 * Y), "task 1 is empty"),
    "no task": (lambda: small_continual(tasks=()), "each class once"),
    "a class twice": (lambda: small_continual(tasks=((0, 1), (1, 2, 3))), "each class once"),
    "a class of no task": (lambda: small_continual(tasks=((0, 1), (2,))), "class 3, which is in no task"),
    "classes below 0": (lambda: small_continual(y=Y - 1), "from 0 on"),
    "no output for a class": (lambda: small_continual(y=Y + 5, tasks=((5, 6), (7, 8))).fit(), "class 8 of 4"),
    "a rehearsal unknown": (lambda: small_continual(rehearsal="icarl"), "'none' or 'er' or 'der"),
    "no buffer": (lambda: small_continual(buffer=0), "buffer"),
    "a test without a task": (lambda: task_accuracy(network(), torch.zeros(2, 4), 0 * Y[:2], TASKS), "task 1 is empty"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_with_its_reason(what: str):
    call, says = REFUSED[what]
    with pytest.raises(ValueError, match=says):
        call()


def test_checkpoints_of_other_trainings_are_refused():
    run = small_continual().run()
    for other, says in (
        (small_continual(convolutions=True), "another model"),
        (small_continual(buffer=11), "holds 10 examples, not 11"),
    ):
        run.advance(1)
        with pytest.raises(ValueError, match=says):
            other.run().load_state_dict(run.state_dict())
    plain = Training(network(), torch.zeros(4, 4), torch.arange(4)).run()
    with pytest.raises(ValueError, match="without tasks"):
        run.load_state_dict(plain.state_dict())


def test_techniques_of_plain_training_refuse_tasks_and_the_other_way_round():
    with pytest.raises(UnsupportedHost, match=r"hosts\.training\.Training"):
        DynamicSparseTraining().apply(small_continual())


def test_accuracy_is_told_with_and_without_the_task():
    y = torch.tensor([0, 1, 2, 3])
    outputs = torch.tensor([[9.0, 0, 0, 0], [0, 5, 7, 0], [9, 0, 2, 1], [9, 0, 2, 1]])
    model = torch.nn.Linear(4, 4, bias=False).train()
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
    found = task_accuracy(model, outputs, y, TASKS)
    assert found.tolist() == [[0.5, 0.0], [1.0, 0.5]]
    assert model.training


def test_forgetting_is_the_drop_from_the_best_before():
    accuracies = torch.tensor([[0.9, 0.0, 0.0], [0.95, 0.8, 0.0], [0.6, 0.9, 0.99]])
    assert forgetting(accuracies) == pytest.approx(((0.95 - 0.6) + (0.8 - 0.9)) / 2)
    assert forgetting(accuracies[:1, :1]) == 0


# --------------------------------------------------------------------------------------------------------------------
# What it costs


@pytest.mark.parametrize("rehearsal", ["none", "er", "der++"])
@pytest.mark.parametrize("convolutions", [False, True])
def test_the_closed_form_is_what_is_counted(rehearsal: str, convolutions: bool):
    training = small_continual(rehearsal=rehearsal, convolutions=convolutions)
    with count() as tally:
        training.fit()
    assert tally.macs == ledger(training, {}).executed


def test_steps_are_those_of_a_run():
    training = small_continual(batch_size=11)
    steps = [step for epoch in presentations(training, [12] * 10) for step in epoch]
    run, log = run_with_log(batch_size=11)
    run.advance()
    assert [n for n, _ in steps] == [len(batch) for batch in log.batches]
    assert [n for n, _ in steps][:2] == [6, 6]  # no step on a single example that is left over
    assert steps[9] == (6, 0)
    assert steps[10] == (6, 8)


def test_the_papers_convention_leaves_the_backward_of_rehearsal_out():
    training = small_continual()
    f = sum(layer.macs for layer in layers(training).values())
    current, rehearsed = 2 * 5 * 12, 5 * 3 * 2 * 4
    costs = ledger(training, {})
    assert costs.convention == f * (3 * current + rehearsed)
    first = layers(training)["0.0"].macs  # the inputs need no gradient
    assert costs.executed == (3 * f - first) * (current + rehearsed)


@pytest.mark.parametrize(("size", "classes", "macs"), [(32, 10, 555_422_720), (64, 200, 2_221_772_800)])
def test_resnet_18_has_its_known_size(size: int, classes: int, macs: int):
    one = Training(resnet_18(classes), torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long))
    assert sum(layer.macs for layer in layers(one).values()) == macs


def test_published_operations_come_out_of_the_convention():
    rows = {row[0]: row[1:] for row in paper_settings()["paper settings"].rows}
    assert rows["DER++ on Split Tiny-ImageNet"][0] == pytest.approx(2.222e17, rel=1e-3)
    assert rows["ER on Split CIFAR-10"][0] == pytest.approx(11.1e15, rel=2e-3)
    all_sparse, _ = operations({"all": (555_422_720, True)}, 50_000 * 50 * 0.775, 1, 0.25, 0.2)
    assert all_sparse == pytest.approx(2.0e15, rel=0.03)
    for convention, honest, published in rows.values():
        assert convention == pytest.approx(published, rel=0.1)
        assert honest > 1.4 * convention


def test_a_twin_on_other_data_learns_something_else():
    one = small_continual().fit()
    other = replace(small_continual(), seed=1).fit()
    assert not torch.equal(one[1][0].weight, other[1][0].weight)  # type: ignore[index]
