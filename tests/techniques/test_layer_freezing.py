"""Layer freezing beyond the checks: timelines, what stays equal bit for bit, what a backward pass costs, resuming."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.hosts.training import Run, ledger
from reference_impls.techniques.layer_freezing import (
    SCHEMES,
    Freezing,
    LayerFreezing,
    Timeline,
    candidates,
    periodic,
    resumed,
    share_saved,
    single_shot,
    solve,
)
from tests.training_cases import MOTION, Kind, assert_resumes, case, network, small_training

FREEZE = LayerFreezing()


class LayerFreezingCases(Cases):
    """A small training; its learning rate is zero (redundant), or weights shrink throughout by their decay (null)."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        return case(small_training(seed, device, epochs=8, **MOTION[kind]), seed)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        by_hand = {
            "single-shot": ([0, 0, 1, 1, 2, 2, 3, 3], single_shot(8, 2, 2, 3)),
            "no more than two": ([0, 1, 2, 2], single_shot(4, 1, 1, 2)),
            "resume": ([0, 1, 2, 2, 0, 0], resumed(6, 1, 1, 2, last=2)),
            "periodic": ([0, 3, 1, 3, 0, 3, 1, 3], periodic(8, front=1, middle=2)),
            "delayed periodic": ([0, 0, 0, 3, 1, 3], periodic(6, front=1, middle=2, delay=2)),
        }
        for name, (expected, timeline) in by_hand.items():
            yield Expectation(name, torch.tensor(expected), torch.tensor([len(still) for still in timeline]))
        training = small_training(seed, device, epochs=8)
        for scheme in SCHEMES:
            shares = sorted(share_saved(training, one) for one in candidates(scheme, 8, 1, 2))
            target = shares[len(shares) // 2]
            due = min(share for share in shares if share >= target - 1e-12)
            yield Expectation(
                scheme, torch.tensor(due), torch.tensor(share_saved(training, solve(training, target, scheme)))
            )

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        training = small_training(seed, device, epochs=8)
        plain, run = Run(training), Run(FREEZE.apply(training, saving=0.05).target)
        plain.advance(3)
        run.advance(3)  # nothing is frozen in the first epoch; the rates of blocks that will be differ already
        last = list(plain.model.state_dict())[-1]
        yield Expectation("frozen at first", torch.tensor(0), torch.tensor(len(run.parts[0].frozen)))  # type: ignore[attr-defined]
        yield Expectation("shape of the last tensor", torch.tensor(3), torch.tensor(len(run.model.state_dict()[last])))

    def invalid(self, device: str) -> Iterable[Invalid]:
        training = small_training(0, device)
        yield Invalid("more than can be saved", lambda: FREEZE.apply(training, saving=0.6), "saves at most")
        one = small_training(0, device, model=nn.Sequential(nn.Sequential(*network())))
        yield Invalid("one block", lambda: FREEZE.apply(one), "two blocks or more")
        sgd = torch.optim.SGD(network().parameters(), 0.1)
        yield Invalid("a block too many", lambda: Freezing(network(), sgd, ((), (4,))), "freezes block 4")


CASES = LayerFreezingCases()


def frozen_run(timeline: Timeline, **knobs: object) -> Run:
    training = small_training(epochs=len(timeline), **knobs)
    return Run(training.plus(lambda model, optimiser: Freezing(model.children(), optimiser, timeline)))


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_frozen_block_is_equal_bit_for_bit_in_a_plain_loop(optimiser: type[torch.optim.Optimizer], set_to_none: bool):
    data, model = small_training(), network()
    extra = {"momentum": 0.9} if optimiser is torch.optim.SGD else {}
    steps = optimiser(model.parameters(), lr=0.1, weight_decay=0.1, **extra)
    freezing = Freezing(model.children(), steps, single_shot(4, 1, 1, 2))
    kept: dict[int, dict[str, torch.Tensor]] = {}
    for epoch in range(4):
        model.train()
        for x, y in zip(data.x.split(8), data.y.split(8), strict=True):
            steps.zero_grad(set_to_none=set_to_none)
            nn.functional.cross_entropy(model(x), y).backward()
            steps.step()
        for i, state in kept.items():
            assert all(torch.equal(state[name], now) for name, now in model[i].state_dict().items())
        freezing.epoch_ended(epoch)
        kept = {i: copy.deepcopy(model[i].state_dict()) for i in freezing.frozen}
    assert sorted(kept) == [0, 1]
    in_use = {id(parameter) for group in steps.param_groups for parameter in group["params"]}
    assert not in_use & {id(parameter) for parameter in model[:2].parameters()}
    freezing.detach()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("frozen", [(), (0,), (0, 1), (0, 1, 2), (1,), (0, 2)])
def test_the_closed_form_of_a_step_is_what_two_counters_count(frozen: tuple[int, ...]):
    run = frozen_run((frozen,))
    with FlopCounterMode(display=False) as flops:
        frozen_run((frozen,)).advance(1)
    with count() as tally:
        run.advance(1)
    costs = ledger(run.training, {"frozen": [frozen]})
    assert (3 * tally.macs, 3 * flops.get_total_flops()) == (costs.executed, 2 * costs.executed)


def test_a_frozen_prefix_keeps_no_tensors_for_the_backward_pass():
    kept = []
    for frozen in ((), (0,), (0, 1), (0, 1, 2)):
        run, bytes_ = frozen_run((frozen,)), [0]

        def pack(x: torch.Tensor, total: list[int] = bytes_) -> torch.Tensor:
            total[0] += x.numel() * x.element_size()
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            outputs = run.model[: len(frozen)](run.training.x)
            assert (bytes_[0], outputs.requires_grad) == (0, False) or not frozen
            run.model(run.training.x)
        kept.append(bytes_[0])
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


def test_a_block_that_is_not_a_prefix_saves_its_weight_gradient_only():
    training = small_training(epochs=1)
    plain, middle = (ledger(training, {"frozen": [still]}).executed for still in ((), (1,)))
    assert plain - middle == len(training.x) * 36 * 288


@pytest.mark.parametrize("steps", [2, 7, 13, 19, 23])
def test_training_resumes_bit_for_bit_in_the_middle_of_freezing_and_thawing(steps: int, tmp_path: Path):
    assert_resumes(frozen_run(resumed(8, 2, 1, 3, last=2)).training, steps, tmp_path)


def test_the_rate_of_a_block_falls_to_zero_over_its_own_epochs():
    run = frozen_run(single_shot(6, 2, 2, 2))
    assert run.parts[0].lifetimes() == [2.0, 4.0, 6.0, 6.0]
    run.advance(5)  # into the second of two epochs of the first block
    rates = [group["lr"] for group in run.optimiser.param_groups]
    assert rates == sorted(rates)
    assert rates[0] < 0.3 * rates[-1]


def test_an_unreachable_saving_names_the_largest():
    training = small_training(epochs=6)
    largest = max(share_saved(training, one) for one in candidates("single-shot", 6, 1, 2))
    with pytest.raises(ValueError, match=f"at most {largest:.4f}"):
        solve(training, largest + 0.001)
    assert share_saved(training, solve(training, largest)) == largest
