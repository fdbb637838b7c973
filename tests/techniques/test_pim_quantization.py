"""PIM quantisation beyond the checks: whole models on an array. Layers and integers: `tests/test_pim.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.contract import Case, Cases, Expectation, Invalid, UnsupportedHost
from reference_impls.data import images
from reference_impls.layers.arrays import Array, Chip
from reference_impls.layers.pim import PIMConv2d
from reference_impls.layers.quantised import Span
from reference_impls.models.efficientnet_lite import efficientnet_lite0, normalise
from reference_impls.study import forward
from reference_impls.techniques.pim_quantization import PIMQuantization, spans, utilisation
from tests.pim_cases import network, simulated
from tests.support import noise

PIM = PIMQuantization()


class PIMQuantizationCases(Cases):
    """Networks on images that fill the converter's range, that leave all of it, and between."""

    technique = PIM

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        return network(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        x = torch.tensor([[3, 2, 1, 3]], device=device)
        w = torch.tensor([[1, -1, 1, 1]], device=device)
        from reference_impls.layers.arrays import array_product

        for scheme, by_hand in (("native", 2), ("differential", 1), ("bit-serial", 1)):  # tests/test_pim.py says how
            found = array_product(x, w, Array(scheme, 2, 2, 2, 2, 3))  # type: ignore[arg-type]
            yield Expectation(f"{scheme} codes by hand", torch.tensor([[by_hand]]), found.long().cpu())
        draws = torch.Generator().manual_seed(seed)
        a, v = torch.randint(0, 16, (3, 20), generator=draws), torch.randint(-7, 8, (2, 20), generator=draws)
        array = Array(adc_bits=4, dac_bits=2, group=9)
        found = array_product(a.to(device), v.to(device), array)
        yield Expectation("codes of the simulator", simulated(a, v, array), found.long().cpu())

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = network("typical", seed, device)
        with self.technique.apply(case.target, group=9, clip=None, weights="max") as handle:
            exact = case.run(handle.target, case.inputs)
        with self.technique.apply(case.target, group=12, dac_bits=1, clip=None, weights="max") as handle:
            yield Expectation("exact sums, however they are cut", exact, case.run(handle.target, case.inputs))

    def invalid(self, device: str) -> Iterable[Invalid]:
        apply, target = self.technique.apply, network("typical", 0, device).target
        broken = network("typical", 0, device).target
        broken[2].weight[0] = torch.inf
        x = torch.full((1, 2, 6, 6), torch.nan, device=device)
        grouped = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv1d(2, 2, 1), nn.Linear(3, 2)).to(device)
        yield Invalid("inputs with NaN", lambda: self.technique.measure(target, x), "not finite")
        yield Invalid("a group larger than the layer", lambda: apply(target, group=37), "2: Conv2d")
        yield Invalid("more bits per cycle than there are", lambda: apply(target, group=9, dac_bits=5), "dac_bits")
        yield Invalid("weights that are not finite", lambda: apply(broken, group=9), "not finite")
        yield Invalid("a part of another kind", lambda: apply(grouped, group=1), "put '1' into `digital`")
        yield Invalid("an unknown layer", lambda: apply(target, digital=("2.conv",)), "no module '2.conv'")
        yield Invalid("no layer left", lambda: apply(target, digital=("*",)), "a layer that is not left")
        yield Invalid("a chip that is none", lambda: apply(target, group=9, chip=0.3), "layers.arrays.Chip")
        yield Invalid("a chip without a converter", lambda: apply(target, group=9, chip=Chip(noise=1)), "ideal")
        yield Invalid("spans of other layers", lambda: apply(target, group=9, clip={"0": Span()}), "no Span for 2")


CASES = PIMQuantizationCases()


@torch.no_grad()
def test_a_model_on_an_array_is_the_model_of_pim_layers() -> None:
    """Conversion in place, undone, and a model that was built so give the same; the state dict is the same too."""
    case = network("typical", 0, "cpu")
    x, plain, state = case.inputs, case.target(case.inputs), dict(case.target.state_dict())
    array = Array("differential", adc_bits=5, group=18, weights="max")
    built = network("typical", 0, "cpu", PIMConv2d(4, 4, 3, array=array, span=Span(0, 0.8)))
    built.target.load_state_dict(state)
    with PIM.apply(case.target, scheme="differential", adc_bits=5, group=18, clip=0.8) as handle:
        y = handle.target(x)
        assert torch.equal(y, built.target(x))
        assert list(handle.trace["layers"]) == ["2"]
        assert handle.trace["layers"]["2"].conversions == 3 * 4 * 4 * 4 * 2 * 2 == built.target[2].seen.conversions
        assert handle.target.state_dict().keys() == state.keys()
    assert torch.equal(case.target(x), plain)
    assert not torch.equal(y, plain)


def test_what_is_digital() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.zeros(1, 1, 9, 9))

    def layers(*digital: str, group: int = 9) -> list[str]:
        with PIM.apply(model, digital=digital, group=group) as handle, torch.no_grad():
            model(torch.rand(1, 1, 9, 9))
            return list(handle.trace["layers"])

    assert layers() == ["0", "1", "2", "4"]
    assert layers("first", "last") == ["1", "2"]
    assert layers("small", group=10) == ["2", "4"]
    assert layers("0", "[12]") == ["4"]
    attention = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2), nn.Linear(4, 4))
    with pytest.raises(UnsupportedHost, match="'1' into `digital`"):
        PIM.apply(attention, group=4, digital=())
    PIM.apply(attention, group=4, digital=("1",)).undo()


def test_the_measure_is_the_unused_range() -> None:
    case = network("typical", 0, "cpu")
    x = case.target[1](case.target[0](case.inputs))
    codes = (x * (15 / x.max())).round()
    w = case.target[2].weight
    held = (w / w.abs().flatten(1).amax(1).view(-1, 1, 1, 1) * 7).round()
    share = F.conv2d(codes, held).abs().max().item() / (36 * 15 * 7)
    assert PIM.measure(case.target, case.inputs).where == {"2": pytest.approx(1 - share)}
    array = Array("native", group=36, weights="max")
    assert utilisation(case.target[2], x, array) == pytest.approx(share)


@torch.no_grad()
def test_a_pretrained_network(asset: Callable[[str], Path]) -> None:
    """EfficientNet-Lite0 on photos: 8-bit arrays keep what it sees, converters of few bits do not."""
    asset("efficientnet-lite0")
    model = efficientnet_lite0()
    photos = normalise(images.photos(96)[1])
    dense = forward(model, photos)()
    knobs: dict[str, Any] = {"weight_bits": 8, "activation_bits": 8, "dac_bits": 8, "group": 16}
    digital = ("first", "last", "small")
    clip = spans(model, photos, digital=())

    def like(**more: Any) -> float:
        with PIM.apply(model, digital=digital, clip=clip, **knobs | more) as handle:
            y = forward(handle.target, photos)()
        return torch.corrcoef(torch.stack([y.flatten(), dense.flatten()]))[0, 1].item()

    exact, fine, coarse = like(), like(scheme="native", adc_bits=14), like(scheme="native", adc_bits=6)
    assert exact > 0.95
    assert fine > 0.9 * exact
    assert coarse < 0.6


def test_double_precision_decides_alike() -> None:
    case = network("typical", 0, "cpu")
    narrow, wide = case.target, network("typical", 0, "cpu").target.double()
    found: list[Tensor] = []
    for model, x in ((narrow, case.inputs), (wide, case.inputs.double())):
        with PIM.apply(model, group=9, adc_bits=4, clip=1.0) as handle:
            found.append(forward(handle.target, x)())
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-5, atol=1e-5)
    assert noise(1).dtype == torch.float64
