"""Dynamic gradient masking beyond the checks: what a step leaves bit for bit as it was, under every optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from reference_impls.contract import Case, Cases, Expectation, Invalid, NoEffectWarning, generator
from reference_impls.hosts.continual import gradients
from reference_impls.techniques.dynamic_gradient_masking import DynamicGradientMasking, GradientMasking
from reference_impls.techniques.dynamic_sparse_training import active_count, spread
from tests.continual_cases import built, maps, network, small_continual
from tests.training_cases import Kind

UPDATING = DynamicGradientMasking()


def masking(model: nn.Module, **knobs: object) -> GradientMasking:
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    return GradientMasking(model, optimiser, **{"sparsity": 0.75, **knobs})  # type: ignore[arg-type]


class DynamicGradientMaskingCases(Cases):
    """A small continual training; one whose gradients lie in one weight of a layer (redundant), or in all (null)."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        return built(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        model = network().to(device)
        current, memory = torch.randn(2, 8, 8, generator=generator(seed)).to(device)
        for pattern, groups in (("element", 64), ("channel", 8)):
            part = masking(model, pattern=pattern, alpha=0.3, beta=0.6)
            part.before_step(
                {f"{n}.weight": current for n in part.layers}, {f"{n}.weight": memory for n in part.layers}
            )
            score = 0.3 * current.abs() + 0.6 * memory.abs()
            score = score.flatten() if pattern == "element" else score.sum(0)
            best = sorted(range(groups), key=lambda i: -float(score[i]))[: groups // 4]
            chosen = part.masks["1.0"].nonzero().flatten().cpu()
            yield Expectation(f"the highest quarter of {pattern}s", torch.tensor(sorted(best)), chosen)
            part.detach()
        weights = {name: torch.arange(64, device=device) % 4 == 0 for name in ("1.0", "2.0")}
        part = masking(model, masks=weights)
        part.before_step({f"{n}.weight": current for n in part.layers}, None)
        yield Expectation("inside a mask of as many weights: all of them", weights["1.0"], part.masks["1.0"])

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        for choice in ("importance", "random"):
            handle = UPDATING.apply(small_continual(seed, device), sparsity=0.8, choice=choice)
            run = handle.target.run()
            (part,) = run.parts
            assert isinstance(part, GradientMasking)
            for step in range(6):
                before = {name: layer.weight.detach().clone() for name, layer in part.layers.items()}
                run.advance(1)
                for name, layer in part.layers.items():
                    changed = int((layer.weight != before[name]).sum())
                    most = active_count(64, 0.8)
                    limit = torch.tensor([most, most])
                    held = torch.tensor([int(part.masks[name].sum()), max(changed, most)])
                    yield Expectation(f"{choice}, step {step}: {name}", limit, held)
            yield Expectation(
                "as the trace has it", torch.tensor(active_count(64, 0.8)), torch.tensor(handle.trace["updated"]["1.0"])
            )

    def invalid(self, device: str) -> Iterable[Invalid]:
        training = small_continual(0, device)
        yield Invalid("no update of 64", lambda: UPDATING.apply(training, sparsity=0.999), "too small")
        yield Invalid("no training", lambda: UPDATING.apply(nn.Linear(4, 4)), "ContinualTraining")
        part = masking(network().to(device))
        yield Invalid("a gradient missing", lambda: part.before_step({}, None), "loss on the current task")
        model = network().to(device)
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        GradientMasking(model, optimiser, sparsity=0.5)
        yield Invalid("a step unannounced", optimiser.step, "call `before_step`")


CASES = DynamicGradientMaskingCases()

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMISERS: dict[str, Optimiser] = {
    "plain": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "decay": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


def stepped(name: str, mask_updates: bool) -> int:
    """How many weights outside the masks twelve steps have moved; masks are made anew every fourth.

    Without `mask_updates` the gradient alone is masked, which is what must not be done.
    """
    training, model = small_continual(), network()
    optimiser = OPTIMISERS[name](model.parameters())
    part = GradientMasking(model, optimiser, sparsity=0.75, interval=4)
    if not mask_updates:
        part.detach()
    moved, order = 0, torch.arange(24)
    for step in range(12):
        index = order[step % 3 :: 3]
        loss = nn.functional.cross_entropy(model(training.x[index]), training.y[index])
        found = gradients(model, loss)
        for key, p in model.named_parameters():
            p.grad = found[key]
        part.before_step(found, None)
        if not mask_updates:
            for key, layer in part.layers.items():
                layer.weight.grad.mul_(spread(part.masks[key], layer.weight, "element"))
        before = {key: layer.weight.detach().clone() for key, layer in part.layers.items()}
        states = {key: _state(optimiser, layer.weight) for key, layer in part.layers.items()}
        optimiser.step()
        for key, layer in part.layers.items():
            outside = ~spread(part.masks[key], layer.weight, "element")
            assert mask_updates or part.masks[key].sum() == 16
            moved += int((layer.weight != before[key])[outside].sum())
            for kind, one in _state(optimiser, layer.weight).items():
                past = states[key].get(kind, torch.zeros_like(one))
                moved += int((one != past)[outside].sum()) if mask_updates else 0
    return moved


def _state(optimiser: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, torch.Tensor]:
    return {
        k: v.clone() for k, v in optimiser.state.get(weight, {}).items() if v is not None and v.shape == weight.shape
    }


@pytest.mark.parametrize("name", OPTIMISERS)
def test_weights_and_state_outside_the_mask_stay_bit_for_bit_as_they_were(name: str):
    assert stepped(name, mask_updates=True) == 0
    moves_anyway = stepped(name, mask_updates=False)
    assert (moves_anyway == 0) == (name == "plain")  # masked gradients alone are enough for plain descent only


@pytest.mark.parametrize("convolutions", [False, True])
def test_gradients_of_some_channels_are_those_of_the_whole(convolutions: bool):
    training = small_continual(convolutions=convolutions)
    whole, some = (maps() if convolutions else network() for _ in range(2))
    some.load_state_dict(whole.state_dict())
    part = masking(some, pattern="channel", sparsity=0.5)
    x = training.x.clone().requires_grad_()
    for first in (True, False):
        found = {}
        for model in (whole, some):
            loss = nn.functional.cross_entropy(model(x), training.y)
            found[model] = gradients(model, loss) | {"x": torch.autograd.grad(model(x).sum(), x)[0]}
        for key, one in found[whole].items():
            mask = part.masks.get(key.removesuffix(".weight"))
            if not first and mask is not None and "weight" in key:
                one = one * spread(mask, one, "channel")
                assert int(mask.sum()) == 4
            torch.testing.assert_close(found[some][key], one)
        part.before_step(found[whole], None)


def test_masks_change_only_when_they_are_due():
    run = UPDATING.apply(small_continual(batch_size=2), sparsity=0.75, interval=4).target.run()
    (part,) = run.parts
    assert isinstance(part, GradientMasking)
    changed = []
    for step in range(12):  # two epochs of six steps
        before = part.masks["1.0"].clone()
        run.advance(1)
        changed += [step] * (not torch.equal(before, part.masks["1.0"]))
    assert set(changed) <= {0, 4, 6, 10}
    assert len(changed) >= 3


def test_with_nothing_masked_a_run_equals_plain_training_bit_for_bit():
    training = small_continual(momentum=0.9, weight_decay=0.01)
    with pytest.warns(NoEffectWarning):
        handle = UPDATING.apply(training, sparsity=0.0)
    for one, other in zip(training.fit().state_dict().values(), handle.target.fit().state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("steps", [1, 2, 14, 20])
@pytest.mark.parametrize("knobs", [{"pattern": "channel"}, {"choice": "random"}])
def test_training_resumes_bit_for_bit_from_any_step(steps: int, knobs: dict[str, str], tmp_path: Path):
    training = UPDATING.apply(small_continual(momentum=0.9), sparsity=0.5, interval=2, **knobs).target
    whole, first, second = training.run(), training.run(), training.run()
    whole.advance()
    first.advance(steps)
    first.save(tmp_path / "run.pt")
    second.load_state_dict(torch.load(tmp_path / "run.pt"))
    second.advance()
    for one, other in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="another model"):
        masking(maps()).load_state_dict(first.parts[0].state_dict())
