"""Deadline-aware fusion beyond the checks: which frames are taken, by hand, and what a fusion gets of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.techniques.deadline_aware_fusion import DeadlineAwareFusion, Perception, coordinated_outcome

FUSION = DeadlineAwareFusion()


def perception(slow: float, fast: float = 0.6, *, seed: int = 0, device: str = "cpu") -> Perception:
    """A convolution and a smaller one, which take so many periods for a frame."""
    torch.manual_seed(seed)
    branches = {"boxes": nn.Conv2d(2, 4, 3), "lanes": nn.Conv2d(2, 1, 3)}
    model = Perception(branches, {"boxes": slow, "lanes": fast}, period=1.0, example=torch.zeros(1, 2, 5, 5))
    return model.to(device).requires_grad_(False)


class DeadlineAwareFusionCases(Cases):
    """Two branches of which one skips some frames, nearly all of them, or none."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        frames = 80 if kind == "redundant" else 12
        with torch.random.fork_rng(devices=[]):
            model = perception({"typical": 2.5, "redundant": 80.0, "null": 0.6}[kind], seed=seed, device=device)
        x = torch.randn(frames, 2, 5, 5, generator=generator(seed)).to(device)
        return Case(model, x, lambda target, inputs: target(inputs))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        model = perception(2.5, device=device)
        alone, together = model.outcome(12), coordinated_outcome(model, 12, None)
        for name, outcome, by_hand in (
            ("slow, alone", alone.computed["boxes"], [0, 2, 5, 7, 10, 11]),
            ("fast, alone", alone.computed["lanes"], list(range(12))),
            ("slow, together", together.computed["boxes"], [0, 2, 5, 7, 10, 11]),
            ("fast, together", together.computed["lanes"], [0, 2, 5, 7, 10, 11]),
            ("in time", coordinated_outcome(model, 12, 2.9).computed["lanes"], [0, 3, 6, 9]),
        ):
            yield Expectation(name, torch.tensor(by_hand), torch.tensor(outcome))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        dense = torch.cat([branch(case.inputs).flatten(1) for branch in case.target.branches.values()], 1)
        with FUSION.apply(case.target) as handle:
            got = handle.target(case.inputs)
            fused = handle.trace["fused"]
        yield Expectation("results of the frames that are fused", dense[fused], got[fused])
        yield Expectation("the same, each branch alone", got, case.target(case.inputs))
        rest = [n for n in range(len(got)) if n not in fused]
        yield Expectation("nothing of the others", torch.zeros_like(got[rest]), got[rest])

    def invalid(self, device: str) -> Iterable[Invalid]:
        model, x = perception(2.0, device=device), torch.zeros(3, 2, 5, 5, device=device)
        yield Invalid("one frame without its axis", lambda: model(x[0]), "shape")
        yield Invalid("frames of another size", lambda: model(torch.zeros(3, 2, 6, 5, device=device)), "2 x 5 x 5")
        yield Invalid("NaN", lambda: FUSION.measure(model, x + torch.nan), "not finite")
        yield Invalid("another module", lambda: FUSION.apply(nn.ReLU()), "needs a `Perception`")
        deadline = {"coordinated": False, "deadline": 2.0}
        yield Invalid("a deadline for branches alone", lambda: FUSION.apply(model, **deadline), "coordinated")


CASES = DeadlineAwareFusionCases()


def test_what_no_fusion_uses_is_measured_by_branch() -> None:
    found = FUSION.measure(perception(2.5), torch.zeros(12, 2, 5, 5))
    assert found.value == pytest.approx((12 - 6) / 18)
    assert found.where == pytest.approx({"boxes": 0, "lanes": 6 / 12})


def test_coordination_computes_less_and_fuses_no_less() -> None:
    draws = torch.Generator().manual_seed(1)
    for _ in range(20):
        a, b = (torch.rand(30, generator=draws) * 3 + 0.1 for _ in range(2))
        times = {"boxes": a.tolist(), "lanes": b.tolist()}
        branches = {"boxes": nn.Conv2d(2, 4, 3), "lanes": nn.Conv2d(2, 1, 3)}
        model = Perception(branches, times, period=1.0, example=torch.zeros(1, 2, 5, 5))
        alone, together = model.outcome(30), coordinated_outcome(model, 30, None)
        assert together.wasted == 0
        assert len(together.fused) >= len(alone.fused)


def test_a_deadline_holds_where_times_are_known() -> None:
    times = {"boxes": [1.0, 5.0, 1.0, 1.0, 5.0, 1.0], "lanes": 0.5}
    model = Perception(
        {"boxes": nn.Conv2d(2, 4, 3), "lanes": nn.Conv2d(2, 1, 3)}, times, period=2.0, example=torch.zeros(1, 2, 5, 5)
    )
    with FUSION.apply(model, deadline=2.0) as handle:
        handle.target(torch.zeros(6, 2, 5, 5))
    assert handle.trace["fused"] == [0, 2, 3, 5]
    assert max(one.delay for one in coordinated_outcome(model, 6, 2.0).fused) <= 2
    assert max(one.delay for one in coordinated_outcome(model, 6, None).fused) > 2


@pytest.mark.parametrize(
    ("times", "says"),
    [({"boxes": 1.0}, "with their times"), ({"boxes": 1.0, "lanes": [1.0, 1.0]}, "has times of 2 frames")],
)
def test_a_perception_that_cannot_be_is_explained(times: dict[str, float], says: str) -> None:
    branches = {"boxes": nn.Conv2d(2, 4, 3), "lanes": nn.Conv2d(2, 1, 3)}
    with pytest.raises(ValueError, match=says):
        Perception(branches, times, period=1.0, example=torch.zeros(1, 2, 5, 5))(torch.zeros(3, 2, 5, 5))


def test_gradients_reach_both_branches_through_the_fused_frames() -> None:
    model = perception(2.5).requires_grad_(True)
    x: Tensor = torch.randn(12, 2, 5, 5)
    with FUSION.apply(model) as handle:
        handle.target(x).sum().backward()
    assert all(bool(p.grad.any()) for p in model.parameters())
