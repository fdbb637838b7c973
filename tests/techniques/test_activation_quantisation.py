"""Activation quantisation beyond the checks: remedies for outliers, learned steps, kernels, libraries as oracles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.layers.quantised import Span, activation_codes, signed_codes, weight_codes
from reference_impls.techniques.activation_quantisation import (
    ActivationQuantisation,
    channel_peaks,
    learned_step,
    rotation,
    smoothing,
)
from reference_impls.techniques.pim_quantization import spans
from tests.support import noise

QUANTISED = ActivationQuantisation()


def rows(kind: str, seed: int) -> Tensor:
    """(6, 255): noise; zeros, whose codes carry nothing; or every code once in each row, so that all are needed."""
    draws = torch.Generator().manual_seed(seed)
    if kind == "null":
        return torch.stack([torch.randperm(255, generator=draws).float() - 127 for _ in range(6)]) / 127
    return torch.randn(6, 255, generator=draws) * (kind == "typical")


class ActivationQuantisationCases(Cases):
    """A linear layer, and one after it where values are noise."""

    technique = QUANTISED

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = torch.Generator().manual_seed(seed)
        second = [nn.ReLU(), nn.Linear(16, 5)] if kind == "typical" else []
        target = nn.Sequential(nn.Linear(255, 16, bias=kind == "typical"), *second)
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
        return Case(target.to(device).requires_grad_(False), rows(kind, seed).to(device), lambda model, x: model(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        x = torch.tensor([[0.5, -1.0, 0.126, 0.0], [7.0, 3.5, -0.4, 0.6]], device=device)
        by_hand = torch.tensor([[4, -7, 1, 0], [7, 4, 0, 1]], device=device)  # steps 1/7 and 1; 3.5 goes to the even 4
        yield Expectation("codes by hand", by_hand, signed_codes(x, 4, (-1,)).codes.long())
        by_hand = torch.tensor([[0, -1, 0, 0], [7, 4, 0, 1]], device=device)
        yield Expectation("one step for all", by_hand, signed_codes(x, 4).codes.long())
        w = torch.tensor([[1.0, 4.0], [-4.0, 0.25]], device=device)
        yield Expectation(
            "scales by hand", torch.tensor([1.5, 0.5], device=device),
            smoothing(torch.tensor([9.0, 1.0], device=device), w, 0.5),
        )  # fmt: skip
        layer = nn.Linear(255, 3, bias=False, device=device).requires_grad_(False)
        x = rows("typical", seed).to(device)
        a, c = signed_codes(x, 8, (-1,)), weight_codes(layer.weight, 8, "max")
        brute = a.codes.double() @ c.codes.double().T * (a.step * torch.as_tensor(c.step).flatten())
        with QUANTISED.apply(layer):
            yield Expectation("integers and their steps", brute.float(), layer(x))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        draws = torch.Generator().manual_seed(seed)
        x, w = (torch.randn(7, 12, generator=draws, dtype=torch.float64, device="cpu") for _ in range(2))
        turn, scale = rotation(12, x), smoothing(x.abs().amax(0), w, 0.5)
        yield Expectation("the product, once rotated", x @ w.T, (x @ turn) @ (w @ turn).T)
        yield Expectation("the product, once rescaled", x @ w.T, (x / scale) @ (w * scale).T)
        on_grid = torch.arange(-7, 8, dtype=torch.float64).repeat(2, 1) * 0.25
        yield Expectation("values on the grid", on_grid, signed_codes(on_grid, 4, (-1,)).real)

    def invalid(self, device: str) -> Iterable[Invalid]:
        apply, target = self.technique.apply, self.build("typical", 0, device).target
        broken = self.build("typical", 0, device).target
        broken[2].weight[0] = torch.inf
        depthwise = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4)).to(device)
        x = torch.full((2, 255), torch.nan, device=device)
        yield Invalid("inputs with NaN", lambda: self.technique.measure(target, x), "not finite")
        yield Invalid("weights that are not finite", lambda: apply(broken), "2: the weights")
        yield Invalid("no peaks", lambda: apply(target, outliers="smooth"), "`channel_peaks` finds them")
        few = {"0": torch.ones(255), "2": torch.ones(3)}
        yield Invalid("peaks of another width", lambda: apply(target, outliers="smooth", peaks=few), "(K,) of 2")
        yield Invalid("spans of other layers", lambda: apply(target, spans={"0": Span()}), "no Span for 2")
        both = {"0": Span(), "2": Span()}
        yield Invalid("spans and a rotation", lambda: apply(target, spans=both, outliers="rotate"), "plain inputs")
        yield Invalid("mixed groups", lambda: apply(depthwise, outliers="rotate"), "which 1 has in groups")
        yield Invalid("no layer left", lambda: apply(target, digital=("*",)), "a layer that is not left")


CASES = ActivationQuantisationCases()


def outlying(seed: int = 0) -> tuple[nn.Linear, Tensor]:
    """A layer and rows in which two channels are fifty times larger than the others."""
    draws = torch.Generator().manual_seed(seed)
    layer = nn.Linear(64, 8).requires_grad_(False)
    layer.weight.copy_(torch.randn(8, 64, generator=draws))
    x = torch.randn(32, 64, generator=draws)
    x[:, [5, 40]] *= 50
    return layer, x


@torch.no_grad()
def test_each_remedy_meets_outliers() -> None:
    layer, x = outlying()
    exact, peaks = layer(x), {"": outlying()[1].abs().amax(0)}
    error = {}
    for outliers in ("none", "decompose", "smooth", "rotate"):
        with QUANTISED.apply(layer, activation_bits=6, outliers=outliers, peaks=peaks) as handle:
            error[outliers] = ((layer(x) - exact).norm() / exact.norm()).item()
            assert handle.trace["layers"][""].outliers == (2 if outliers == "decompose" else 0)
    assert error["decompose"] < error["none"] / 5
    assert error["smooth"] < error["none"] / 2
    assert error["rotate"] < error["none"] / 2
    assert torch.equal(channel_peaks(nn.Sequential(layer), x)["0"], peaks[""])


@torch.no_grad()
def test_a_rotation_is_counted() -> None:
    for layer, x in (outlying(), (nn.Conv2d(4, 6, 3, padding=1), noise(2, 4, 5, 5, dtype=torch.float32))):
        with count() as dense:
            layer(x)
        with count() as tally, QUANTISED.apply(layer, outliers="rotate") as handle:
            layer(x)
            saving = QUANTISED.saving(layer, x, handle.trace)
        assert dense.macs - tally.macs == saving < 0


@torch.no_grad()
def test_a_single_channel_is_multiplied_too() -> None:
    layer = nn.Linear(1, 3)
    x = torch.tensor([[1.0], [-2.0]])
    with QUANTISED.apply(layer):
        torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 5])
def test_static_and_dynamic_convolutions_equal_brute_force(bits: int) -> None:
    torch.manual_seed(0)
    for how in ({"groups": 2, "padding": 1}, {"stride": 2, "padding": 2, "dilation": 2}):
        layer, x = nn.Conv2d(4, 6, 3, **how), noise(3, 4, 7, 7, dtype=torch.float32)
        w = weight_codes(layer.weight, 8, "max")
        settings = {k: v for k, v in how.items() if k != "padding"}
        for span in (None, Span(-0.7, 1.2)):
            a = signed_codes(x, bits, (1, 2, 3)) if span is None else activation_codes(x, span, bits)
            whole = F.pad((a.codes - a.zero).double(), [how["padding"]] * 4)
            brute = F.conv2d(whole, w.codes.double(), **settings) * (a.step * torch.as_tensor(w.step).view(-1, 1, 1))
            with QUANTISED.apply(layer, activation_bits=bits, spans=span and {"": span}):
                torch.testing.assert_close(layer(x), (brute + layer.bias.view(-1, 1, 1)).float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_static_spans_keep_more_than_dynamic_steps_after_a_relu() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.ReLU(), nn.Linear(64, 8)), noise(200, 64, dtype=torch.float32)
    exact, error = model(x), []
    for found in (None, spans(model, x, digital=())):
        with QUANTISED.apply(model, activation_bits=4, spans=found):
            error.append((model(x) - exact).norm().item())
    assert error[1] < 0.8 * error[0]  # no code goes to negative numbers, so the step is about half


def test_weights_that_change_are_rounded_again() -> None:
    layer, x = outlying()
    with QUANTISED.apply(layer):
        before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias))
        layer.weight = nn.Parameter(layer.weight * 2)
        torch.testing.assert_close(layer(x) - layer.bias, 4 * (before - layer.bias))


def test_training_learns_through_four_bits() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), torch.randn(64, 6)
    y = x[:, :1] * x[:, 1:2]
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    with QUANTISED.apply(model, activation_bits=4, weight_bits=4):
        losses = []
        for _ in range(60):
            loss = F.mse_loss(model(x), y)
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert losses[-1] < losses[0] / 2


def test_the_gradient_of_a_learned_step() -> None:
    x = torch.tensor([0.26, -0.9, 3.0, 0.1], dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = learned_step(x, step, 3)  # codes -4 to 3: 1, -2, 3 (clipped), 0
    assert y.tolist() == [0.5, -1.0, 1.5, 0.0]
    y.sum().backward()
    by_hand = (1 - 0.52) + (-2 + 1.8) + 3 + (0 - 0.2)
    assert step.grad is not None
    assert step.grad.item() == pytest.approx(by_hand / (4 * 3) ** 0.5)
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="above 0"):
        learned_step(x, torch.tensor(0.0), 3)


@torch.no_grad()
def test_products_equal_those_of_torch() -> None:
    layer, x = outlying()
    with QUANTISED.apply(layer):
        y = layer(x)
    real = signed_codes(x, 8, (-1,))
    expected = torch.stack([
        torch.fake_quantize_per_tensor_affine(row, step.item(), 0, -128, 127)
        for row, step in zip(x, torch.as_tensor(real.step), strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(real.real, expected)
    held = weight_codes(layer.weight, 8, "max")
    w = torch.fake_quantize_per_channel_affine(
        layer.weight, torch.as_tensor(held.step).flatten(), torch.zeros(8, dtype=torch.int32), 0, -127, 127
    )
    torch.testing.assert_close(y, F.linear(expected, w, layer.bias), rtol=1e-4, atol=1e-3)
