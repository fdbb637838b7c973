"""Bit-serial precision beyond the checks: planes against integer products, groups by hand, the search of a profile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import nn

from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.layers.quantised import Span, activation_codes, integer_product
from reference_impls.techniques.activation_quantisation import ActivationQuantisation
from reference_impls.techniques.bit_serial_precision import (
    BitSerialPrecision,
    Window,
    precisions,
    profile,
    truncated,
)
from tests.support import generator, noise

SERIAL = BitSerialPrecision()


class BitSerialPrecisionCases(Cases):
    """A linear layer on noise; on zeros, which need no bit; and on numbers that need all eight in every group."""

    technique = SERIAL

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        draws = torch.Generator().manual_seed(seed)
        target = nn.Sequential(nn.Linear(32, 8, bias=kind == "typical"))
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
        x = torch.rand(6, 32, generator=draws) * (kind != "redundant")
        if kind == "null":
            x[:, ::16], x[:, 1::16] = 1.0, 1 / 255  # codes 255 and 1 in every group of sixteen, and of four
            x[:, 4::4], x[:, 5::4] = 1.0, 1 / 255
        return Case(target.to(device).requires_grad_(False), x.to(device), lambda model, inputs: model(inputs))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        codes = torch.tensor([4.0, 8, 0, 0, 0, 0, 12, 1, 16], device=device)
        # 12 is 1100 and so has two bits in use; 0 has none; 13 is 1101 with 12 or 1; 16 has one.
        by_hand = torch.tensor([2, 0, 4, 1], device=device)
        grouped = torch.cat([codes[:2], codes[2:4], codes[6:8], codes[8:]])
        yield Expectation("bits of pairs by hand", by_hand, precisions(grouped, 2).long())
        cut = torch.tensor([4.0, 12, 0, 28], device=device)
        of = truncated(torch.tensor([7.0, 12, 3, 255], device=device), Window(2, 5))
        yield Expectation("codes cut by hand", cut, of)
        x = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(seed))
        brute = [
            max((int(v).bit_length() for v in part), default=0)
            - min(((int(v) & -int(v)).bit_length() - 1 for v in part if v), default=0)
            for part in x.split(3)
        ]
        yield Expectation("bits of groups", torch.tensor(brute), precisions(x.float(), 3).long())

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        with SERIAL.apply(case.target, bits=8) as handle:
            exact = case.run(handle.target, case.inputs)
        with SERIAL.apply(case.target, bits=8, group=4) as handle:
            yield Expectation("the product, whatever the groups", exact, case.run(handle.target, case.inputs))
        spans = {"0": Span.of(case.inputs)}
        with ActivationQuantisation().apply(case.target, activation_bits=8, spans=spans) as handle:
            yield Expectation("the integer product", case.run(handle.target, case.inputs), exact)

    def invalid(self, device: str) -> Iterable[Invalid]:
        apply, target = self.technique.apply, self.build("typical", 0, device).target
        broken = self.build("typical", 0, device).target
        broken[0].weight[0] = torch.nan
        x = torch.full((2, 32), torch.inf, device=device)
        yield Invalid("inputs that are infinite", lambda: self.technique.measure(target, x), "not finite")
        yield Invalid("weights with NaN", lambda: apply(broken), "0: its weights")
        yield Invalid("an empty window", lambda: apply(target, windows={"0": (3, 3)}), "holds one")
        yield Invalid("a window above the bits", lambda: apply(target, bits=4, windows={"0": (0, 5)}), "the 4 bits")
        yield Invalid(
            "windows of other layers", lambda: apply(target, windows={"1": (0, 5)}), "windows has nothing for 0"
        )
        yield Invalid("spans of other layers", lambda: apply(target, spans={}), "spans has nothing for 0")
        yield Invalid("windows and groups", lambda: apply(target, windows={"0": (0, 5)}, group=4), "not both")


CASES = BitSerialPrecisionCases()


@torch.no_grad()
def test_planes_add_up_to_the_integer_product() -> None:
    torch.manual_seed(0)
    for how in ({"padding": 1, "groups": 2}, {"stride": 2, "dilation": 2, "padding": 2, "padding_mode": "circular"}):
        layer, x = nn.Conv2d(4, 6, 3, bias=False, **how), noise(2, 4, 8, 8)
        layer = layer.double()
        w = torch.randint(-127, 128, layer.weight.shape, generator=generator()).double()
        for span, window in ((Span(0, 1), Window(0, 8)), (Span(-0.5, 1), Window(0, 8)), (Span(-1, 1), Window(3, 8))):
            a = activation_codes(x, span, 8)
            zero = int(truncated(torch.tensor(float(a.zero)), window))
            codes = truncated(a.codes, window)
            whole = integer_product(layer, codes, w, zero, 16)
            assert torch.equal(integer_product(layer, codes, w, zero, 16, window), whole)
            assert not torch.equal(integer_product(layer, codes, w, zero, 16, Window(window.low, 7)), whole)


@torch.no_grad()
def test_zero_stays_zero_when_bits_are_cut() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    with SERIAL.apply(layer, spans={"": Span(-0.37, 1)}, windows={"": Window(4, 8)}):
        y = layer(torch.zeros(1, 2, 4, 4))
    torch.testing.assert_close(y, layer.bias.view(1, -1, 1, 1).expand_as(y), rtol=0, atol=1e-6)


@torch.no_grad()
def test_groups_take_fewer_cycles_where_activations_are_small() -> None:
    layer = nn.Linear(8, 2)
    x = torch.tensor([[1.0, 0.5, 0, 0, 3 / 255, 1 / 255, 2 / 255, 0]])  # codes 255, 128, 0, 0 | 3, 1, 2, 0
    with SERIAL.apply(layer, spans={"": Span()}, group=4) as handle:
        layer(x)
        assert handle.trace["layers"][""] == ((1, 8), 8, (8 + 2) / 2)
    with SERIAL.apply(layer, spans={"": Span(-1, 1)}, group=4) as handle:
        layer(x)
        assert handle.trace["layers"][""].precision == (7 + 2) / 2 + 1  # magnitudes, and a sign


@torch.no_grad()
def test_a_profile_keeps_what_the_score_needs() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), torch.rand(64, 16)
    exact, spans, asked = model(x), {"0": Span(0, 1), "2": Span(0, 1)}, []

    def score(one: nn.Module) -> float:
        asked.append(1 - ((one(x) - exact).norm() / exact.norm()).item())
        return asked[-1]

    loose, tight = (profile(model, score, spans, tolerance=tolerance) for tolerance in (0.2, 0.005))
    assert all(loose[name].low >= tight[name].low for name in spans)
    assert sum(window.low for window in loose.values()) > sum(window.low for window in tight.values())
    assert len(asked) <= 2 * (2 * 7 + 1)
    with SERIAL.apply(model, spans=spans, windows=loose):
        assert score(model) >= asked[0] - 0.2
    with pytest.raises(ValueError, match="tolerance"):
        profile(model, score, spans, tolerance=-1)
