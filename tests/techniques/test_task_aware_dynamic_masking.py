"""Task-aware dynamic masking beyond the checks: the timeline, what importance rests on, and resuming."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.hosts.continual import ContinualRun, ContinualTraining, gradients, own_classes
from reference_impls.techniques.dynamic_sparse_training import active_count, spread
from reference_impls.techniques.task_aware_dynamic_masking import (
    TaskAwareDynamicMasking,
    TaskAwareMasking,
    continual_importance,
    gradient_importance,
    timeline,
)
from tests.continual_cases import TASKS, built, network, small_continual
from tests.training_cases import Kind

MASKING = TaskAwareDynamicMasking()


class TaskAwareDynamicMaskingCases(Cases):
    """A small continual training; one of a single chain of weights (redundant), and one of equal weights (null)."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        return built(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        weight, current, memory = torch.randn(3, 4, 5, generator=generator(seed)).to(device)
        by_hand = weight.abs() + 0.3 * current.abs() + 0.6 * memory.abs()
        found = continual_importance(weight, current, memory, 0.3, 0.6, "element")
        yield Expectation("importance of elements", by_hand.flatten(), found)
        found = continual_importance(weight, current, memory, 0.3, 0.6, "channel")
        yield Expectation("importance of channels", by_hand.sum(0), found)
        found = continual_importance(weight, None, None, 0, 0, "element")
        yield Expectation("both factors zero: magnitude", weight.abs().flatten(), found)
        opposed = continual_importance(weight, current, -current, 0.5, 0.5, "element")
        yield Expectation("opposed gradients do not cancel", (weight.abs() + current.abs()).flatten(), opposed)
        bounds = [timeline(0.75, p, inter=0.01, intra=0.01) for p in (0.0, 0.5, 0.95)]
        published = torch.tensor([[0.75, 0.74], [0.76, 0.75], [0.75, 0.75]])
        yield Expectation("the published timeline", published, torch.tensor(bounds))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        for pattern, inter in (("element", 0.1), ("channel", 0.25)):
            handle = MASKING.apply(
                small_continual(seed, device), sparsity=0.5, inter=inter, intra=0.125, pattern=pattern, interval=2
            )
            before, model = handle.trace["active"], handle.target.fit()
            for name, n in handle.trace["groups"].items():
                grown, target = active_count(n, 0.5 - inter), active_count(n, 0.5)
                due = torch.tensor(([grown] * 2 + [target] * 3) * 2)
                yield Expectation(
                    f"{pattern}: active in each epoch", due, torch.tensor(handle.trace["active"][name][:10])
                )
                yield Expectation(f"{pattern}: known beforehand", due, torch.tensor(before[name]))
            layer = model[1][0]  # type: ignore[index]
            assert isinstance(layer, nn.Linear)
            held = (layer.weight != 0).any(0) if pattern == "channel" else layer.weight != 0
            most = active_count(8 if pattern == "channel" else 64, 0.5)
            yield Expectation(f"{pattern}: at most so many", torch.tensor(most), held.sum().cpu().clamp_min(most))

    def invalid(self, device: str) -> Iterable[Invalid]:
        training = small_continual(0, device)
        yield Invalid("one weight in 64 at 0.999", lambda: MASKING.apply(training, sparsity=0.999), "too small")
        late = {"inter": 0.1, "interval": 5}
        yield Invalid("masks that stay grown", lambda: MASKING.apply(training, **late), "would not return")
        nothing = {"sparsity": 0.75, "intra": 0.25}
        yield Invalid("nothing between", lambda: MASKING.apply(training, **nothing), "leaves none of 64")
        plain = nn.Linear(4, 4)
        yield Invalid("no training", lambda: MASKING.apply(plain), "ContinualTraining")
        yield Invalid(
            "a gradient that is missing",
            lambda: gradient_importance(torch.ones(2, 2), torch.ones(2, 2), None, 0.5, 0.5, "element"),
            "loss on the buffer",
        )


CASES = TaskAwareDynamicMaskingCases()


def masked_run(training: ContinualTraining, **knobs: object) -> tuple[ContinualRun, TaskAwareMasking]:
    run = MASKING.apply(training, **knobs).target.run()
    assert isinstance(run, ContinualRun)
    (part,) = run.parts
    assert isinstance(part, TaskAwareMasking)
    return run, part


def test_weights_between_pruning_and_growing_are_as_few_as_the_timeline_says():
    run, part = masked_run(small_continual(lr=0.2), sparsity=0.75, inter=0.05, intra=0.1)
    assert {int(mask.sum()) for mask in part.masks.values()} == {active_count(64, 0.7)}
    for epoch in range(10):
        run.advance(3)
        task_starts = epoch == 4  # masks have grown again for the second task
        for name, layer in part.layers.items():
            mask = spread(part.masks[name], layer.weight, "element")
            assert int(mask.sum()) == active_count(64, 0.7 if task_starts else 0.75)
            assert not layer.weight[~mask].any()
            if epoch % 5 < 3:  # just pruned, and what has grown is zero
                assert int((layer.weight != 0).sum()) <= active_count(64, 0.85)


def test_another_buffer_judges_weights_otherwise():
    training, scores = small_continual(), []
    for labels in (torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0])):
        model = network()
        model.load_state_dict(training.model.state_dict())
        part = TaskAwareMasking(model, torch.optim.SGD(model.parameters(), 0.1), sparsity=0.5, epochs=5)
        current = nn.functional.cross_entropy(own_classes(model(training.x), TASKS[1]), training.y % 2 + 2)
        memory = nn.functional.cross_entropy(model(training.x[:4]), labels)
        part.before_step(gradients(model, current), gradients(model, memory))
        scores.append(part.importance("1.0"))
        magnitude = model[1][0].weight.detach().abs().flatten()  # type: ignore[index, union-attr, operator]
        assert not torch.allclose(scores[-1], 2 * magnitude)  # not merely a multiple of the magnitude
    assert not torch.allclose(*scores)


def test_importance_never_falls_back_to_magnitude_where_a_gradient_is_missing():
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    part = TaskAwareMasking(model, optimiser, sparsity=0.5, epochs=5)
    part.task_started(0, torch.arange(4))
    before = {name: mask.clone() for name, mask in part.masks.items()}
    with pytest.raises(ValueError, match="loss on the current task"):
        part.epoch_ended(0)
    part.before_step({}, {})
    with pytest.raises(ValueError, match="call `before_step`"):
        part.epoch_ended(0)
    assert all(torch.equal(before[name], mask) for name, mask in part.masks.items())


@pytest.mark.parametrize(("alpha", "beta", "steps"), [(1e4, 0.0, 3), (0.0, 1e4, 18)])
def test_both_gradients_reach_the_masks(alpha: float, beta: float, steps: int):
    seen = []
    for factors in ((alpha, beta), (0.0, 0.0)):
        knobs = {"sparsity": 0.5, "intra": 0.3, "inter": 0.0, "alpha": factors[0], "beta": factors[1]}
        run, part = masked_run(small_continual(lr=0.2), **knobs)
        run.advance(steps)
        seen.append(part.layers["2.0"].weight.detach() != 0)
    assert not torch.equal(*seen)


def test_without_inter_and_intra_masks_never_move_and_are_the_largest_weights():
    training = small_continual()
    run, part = masked_run(training, sparsity=0.75, inter=0.0, intra=0.0)
    first = {name: mask.clone() for name, mask in part.masks.items()}
    run.advance()
    for name, mask in part.masks.items():
        assert torch.equal(first[name], mask)
        drawn = training.model.get_submodule(name).weight.detach().abs().flatten()  # type: ignore[union-attr, operator]
        assert drawn[mask].min() >= drawn[~mask].max()


@pytest.mark.parametrize("steps", [1, 14, 15, 20, 29])
@pytest.mark.parametrize("pattern", ["element", "channel"])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, pattern: str, tmp_path: Path):
    training = MASKING.apply(
        small_continual(momentum=0.9), sparsity=0.5, inter=0.25, intra=0.25, pattern=pattern
    ).target
    whole, first, second = training.run(), training.run(), training.run()
    whole.advance()
    first.advance(steps)
    first.save(tmp_path / "run.pt")
    second.load_state_dict(torch.load(tmp_path / "run.pt"))
    second.advance()
    for one, other in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    wider = nn.Sequential(*(nn.Sequential(nn.Linear(i, 9), nn.ReLU()) for i in (4, 9, 9)), nn.Linear(9, 4))
    other_run, _ = masked_run(small_continual(model=wider), sparsity=0.5)
    with pytest.raises(ValueError, match="another model"):
        other_run.load_state_dict(first.state_dict())
