"""PIM scale rescaling beyond the checks: the factor of gradients. Layers: `tests/test_pim.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import nn

from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.layers.arrays import Array
from reference_impls.layers.pim import NO_RESCALING, PIMConv2d, Rescaling, scale_ratio
from reference_impls.techniques.pim_scale_rescaling import PIMScaleRescaling, forward_factors, ratio
from tests.pim_cases import on_array

RESCALING = PIMScaleRescaling()
COARSE = Array(adc_bits=5, group=18, weights="max")


class PIMScaleRescalingCases(Cases):
    """Networks on a converter that loses nothing (null), in the dead zone (redundant), and between."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        array = {
            "typical": COARSE,
            "redundant": Array("native", adc_bits=1, group=36, weights="max"),
            "null": Array(adc_bits=6, dac_bits=1, group=9, weights="max"),  # F = 9 divides L = 63
        }[kind]
        case = on_array("typical", seed, device, array, NO_RESCALING)
        if kind == "redundant":
            case.target[2].weight *= 0.5 * torch.ones(9).index_fill(0, torch.arange(1, 9), 0).view(3, 3)
        return case

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        two = [torch.tensor(v, device=device) for v in ([0.0, 4.0, 0.0, 4.0], [1.0, 2.0, 1.0, 2.0])]
        yield Expectation("ratio by hand", torch.tensor(4.0), torch.tensor(scale_ratio(*two)))
        yield Expectation("dead zone", torch.tensor(0.0), torch.tensor(scale_ratio(0 * two[0], two[1])))
        case = self.build("typical", seed, device)
        layer, x = case.target[2], case.target[:2](case.inputs)
        layer.bias = None
        y = layer(x)
        layer.array = Array(group=18, weights="max")
        yield Expectation("of a layer", y.std() / layer(x).std(), torch.tensor(ratio(layer, x, COARSE, None)))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        plain = case.run(case.target, case.inputs)
        with RESCALING.apply(case.target, backward=True) as handle:
            yield Expectation("outputs without a factor", plain, case.run(handle.target, case.inputs))

    def invalid(self, device: str) -> Iterable[Invalid]:
        target = self.build("typical", 0, device).target
        x = torch.full((1, 2, 6, 6), torch.nan, device=device)
        yield Invalid("inputs with NaN", lambda: RESCALING.measure(target, x), "not finite")
        yield Invalid("a digital model", lambda: RESCALING.apply(nn.Linear(2, 2)), "PIMConv2d")
        yield Invalid("a factor of 0", lambda: RESCALING.apply(target, forward=0), "forward")
        yield Invalid("a word that is none", lambda: RESCALING.apply(target, forward="best"), "'auto'")
        yield Invalid("nothing to find it on", lambda: RESCALING.apply(target, forward="auto"), "`images`")
        yield Invalid("images with NaN", lambda: RESCALING.apply(target, forward="auto", images=x), "not finite")


CASES = PIMScaleRescalingCases()


def test_gradients_are_multiplied_by_the_ratio() -> None:
    found = {}
    for backward in (False, True):
        case = on_array("typical", 0, "cpu", COARSE, Rescaling())
        model = case.target.requires_grad_(True)
        with RESCALING.apply(model, backward=backward) as handle:
            model(case.inputs).sum().backward()
            found[backward] = model[2].weight.grad
            rho = handle.trace["ratios"]["2"]
    assert rho == pytest.approx(ratio(model[2], model[:2](case.inputs), COARSE, None))
    assert abs(rho - 1) > 0.01
    torch.testing.assert_close(found[True], rho * found[False])


def test_in_the_dead_zone_the_gradient_keeps_the_least_factor() -> None:
    case = CASES.build("redundant", 0, "cpu")
    model = case.target.requires_grad_(True)
    with RESCALING.apply(model, low=0.25) as handle:
        model(case.inputs).sum().backward()
        assert handle.trace["ratios"] == {"2": 0.0}
    least = model[2].weight.grad
    model[2].weight.grad = None
    with RESCALING.apply(model, backward=False):
        model(case.inputs).sum().backward()
    torch.testing.assert_close(least, 0.25 * model[2].weight.grad)


@torch.no_grad()
def test_a_factor_that_is_found_gives_the_spread_of_the_exact_output() -> None:
    draws = torch.Generator().manual_seed(0)
    first, second = (PIMConv2d(4, 4, 3, bias=False, array=COARSE, span=None) for _ in range(2))
    for layer in (first, second):
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws))
    model, x = nn.Sequential(first, nn.ReLU(), second), torch.rand(4, 4, 9, 9, generator=draws)
    with RESCALING.apply(model, forward="auto", images=x) as handle:
        eta, after = handle.trace["factors"], model[:2](x)
        y = model(x)
    assert eta["0"].eta == pytest.approx(1 / ratio(first, x, COARSE, None))
    assert eta["2"].eta == pytest.approx(1 / ratio(second, after, COARSE, None))  # of what layer 0 gives so
    exact = PIMConv2d(4, 4, 3, bias=False, array=Array(group=18, weights="max"), span=None)
    exact.load_state_dict(second.state_dict())
    assert y.std(correction=0).item() == pytest.approx(exact(after).std(correction=0).item(), rel=1e-4)
    assert abs(eta["0"].eta - 1) > 0.01
    dead = CASES.build("redundant", 0, "cpu")
    assert forward_factors(dead.target, dead.inputs, low=0.25) == {"2": (4.0, (3, 4, 6, 6))}
