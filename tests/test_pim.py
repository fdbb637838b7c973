"""Layers on in-memory arrays: integers against the simulator, libraries as oracles, bounds, gradients, the chip."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.layers import arrays
from reference_impls.layers.arrays import SCHEMES, Array, Chip, array_convolution
from reference_impls.layers.pim import PIMConv2d, PIMLinear, Rescaling
from reference_impls.layers.quantised import Span, activation_codes, check_device, weight_codes
from reference_impls.study import fork_seed
from reference_impls.techniques.pim_quantization import PIMQuantization
from tests import pim_simulator as simulator
from tests.support import generator, noise


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator(seed))


def simulated(x: Tensor, w: Tensor, array: Array) -> Tensor:
    """x (M, K), w (O, K) in the simulator."""
    found = simulator.product(
        x.numpy(), w.numpy(), array.scheme, array.adc_bits or 0, array.dac_bits, array.group, bits=array.weight_bits,
        activation_bits=array.activation_bits, included=array.sign_bit == "included",
    )  # fmt: skip
    return torch.from_numpy(found)


GRID = list(itertools.product(SCHEMES, (1, 2, 4), (1, 3, 5, 7)))


@pytest.mark.parametrize(("scheme", "m", "b"), GRID)
def test_products_equal_the_simulator(scheme: Any, m: int, b: int) -> None:
    x, w = integers(0, 15, 3, 23), integers(-7, 7, 4, 23, seed=1)
    for group in (9, 23):  # 23 = 9 + 9 + 5: the last group is ragged
        array = Array(scheme, adc_bits=b, dac_bits=m, group=group)
        expected = simulated(x, w, array)
        assert torch.equal(arrays.array_product(x, w, array).long(), expected)
        fast = array_convolution(x.float().T[None, :, :, None], w.float()[..., None, None], array)
        assert torch.equal(fast[0, :, :, 0].T.long(), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation", "group"),
    [(1, 1, 1, 1, 18), (1, 2, 1, 1, 27), (2, 1, 0, 2, 9), (1, 1, 2, 1, 7), (4, 2, 1, 1, 9), (2, 1, 1, 1, 5)],
)
def test_convolutions_equal_the_simulator(
    scheme: Any, groups: int, stride: int, padding: int, dilation: int, group: int
) -> None:
    array = Array(scheme, adc_bits=4, dac_bits=2, group=group)
    x, w = integers(0, 15, 1, 4, 6, 5), integers(-7, 7, 4, 4 // groups, 3, 3, seed=1)
    padded = F.pad(x, [padding] * 4)
    fast = array_convolution(padded.float(), w.float(), array, groups, (stride, stride), (dilation, dilation))
    expected = []
    for part, held in zip(x[0].chunk(groups), w.chunk(groups), strict=True):
        rows, size = simulator.windows(part.numpy(), (3, 3), stride, padding, dilation)
        expected.append(simulated(torch.from_numpy(rows), held.flatten(1), array).T.view(-1, *size))
    assert torch.equal(fast[0].long(), torch.cat(expected))


@pytest.mark.parametrize(("weight_bits", "activation_bits", "m"), [(2, 1, 1), (3, 3, 2), (8, 8, 8), (5, 6, 4)])
def test_other_widths_equal_the_simulator(weight_bits: int, activation_bits: int, m: int) -> None:
    top = 2 ** (weight_bits - 1) - 1
    x, w = integers(0, 2**activation_bits - 1, 2, 11), integers(-top, top, 3, 11, seed=1)
    for scheme, b in itertools.product(SCHEMES, (2, 9, 14)):
        for sign_bit in ("extra", "included"):
            array = Array(scheme, weight_bits, activation_bits, b, m, 4, sign_bit)
            fast = array_convolution(x.float().T[None, :, :, None], w.float()[..., None, None], array)
            assert torch.equal(fast[0, :, :, 0].T.long(), simulated(x, w, array)), array


def test_golden_codes() -> None:
    """Worked out by hand: N = 3, m = 2, b = 2, so L = 3; native F = 3 * 3 * 1 = 9 with 2-bit weights."""
    x, w = torch.tensor([[3, 2, 1, 3]]), torch.tensor([[1, -1, 1, 1]])
    # group 1: 3 - 2 + 1 = 2 -> 2 * 3 / 9 = 0.67 -> 1; group 2: 3 -> 1.
    native = Array("native", 2, 2, 2, 2, 3)
    assert arrays.array_product(x, w, native).item() == 1 + 1
    # plus 3 + 1 = 4 -> 1.33 -> 1 and 1; minus 2 -> 0.67 -> 1.
    assert arrays.array_product(x, w, Array("differential", 2, 2, 2, 2, 3)).item() == 1 + 1 - 1
    # F = 9 again; bit 0 of (1, -1, 1, 1) is (1, 1, 1, 1): 6 -> 2, 3 -> 1; bit 1 (the sign) is (0, 1, 0, 0): 2 -> 1.
    assert arrays.array_product(x, w, Array("bit-serial", 2, 2, 2, 2, 3)).item() == (2 + 1) - 2 * 1
    # A tie is rounded to the even code: 9 * 1 / 18 = 0.5 -> 0, 27 / 18 = 1.5 -> 2.
    array = Array("native", 2, 2, 1, 1, 2)  # L = 1, F = 2
    sums = torch.tensor([1.0, -1.0, 3.0])
    assert arrays.convert(sums.view(1, 3), array, axis=-1).tolist() == [[0.0, 0.0, 2.0]]


def test_a_factor_that_is_computed_first_is_wrong_on_ties() -> None:
    array = Array("native", adc_bits=6, group=144)
    s = torch.arange(-array.full_scale, array.full_scale + 1).float()
    exact = torch.tensor([simulator.half_even(int(v) * array.levels, array.full_scale) for v in s])
    assert torch.equal(arrays.convert(s.clone().view(1, -1), array, axis=-1)[0].long(), exact)
    assert not torch.equal((s * (array.levels / array.full_scale)).round().long(), exact)


# --------------------------------------------------------------------------------------------------------------------
# Properties


@given(
    st.sampled_from(SCHEMES), st.sampled_from((1, 2, 3, 4)), st.integers(1, 8), st.integers(1, 20), st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_the_error_is_within_half_a_step_of_each_conversion(scheme: Any, m: int, b: int, group: int, seed: int) -> None:
    array = Array(scheme, adc_bits=b, dac_bits=m, group=group)
    x, w = integers(0, 15, 4, 20, seed=seed).double(), integers(-7, 7, 3, 20, seed=seed + 1).double()
    error = (arrays.array_product(x, w, array) * array.scale - x @ w.T).abs().max().item()
    assert error <= array.error_bound(20) + 1e-9


def test_bounds_by_formula() -> None:
    for m in (1, 2, 4):  # whatever m, of bit-serial columns: G N A (2^b_w - 1) / 2 L
        array = Array("bit-serial", adc_bits=5, dac_bits=m, group=9)
        assert array.error_bound(20) == pytest.approx(3 * 9 * 15 * 15 / (2 * 31))
    native, differential = (Array(s, adc_bits=5, group=9).error_bound(20) for s in ("native", "differential"))
    assert native == pytest.approx(3 * 9 * 15 * 7 / 62)
    assert differential == 2 * native


def test_lossless_where_the_full_scale_divides_the_levels_and_not_with_a_bit_more() -> None:
    x, w = integers(0, 15, 50, 36).double(), integers(-7, 7, 8, 36, seed=1).double()
    errors = {}
    for b in (6, 7):  # 63 = 7 * 9, 127 is prime
        array = Array("bit-serial", adc_bits=b, dac_bits=1, group=9)
        errors[b] = (arrays.array_product(x, w, array) * array.scale - x @ w.T).abs().max().item()
    assert errors[6] == 0 < errors[7]


@given(st.sampled_from(SCHEMES), st.integers(2, 8), st.integers(1, 8), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_slices_and_columns_recombine(scheme: Any, weight_bits: int, activation_bits: int, m: int) -> None:
    m = min(m, activation_bits)
    array = Array(scheme, weight_bits, activation_bits, None, m)
    top = 2 ** (weight_bits - 1) - 1
    w, x = torch.arange(-top, top + 1).float(), torch.arange(2**activation_bits).float()
    assert torch.equal(torch.tensor(array.column_factors).float() @ arrays.columns(w, array), w)
    assert torch.equal(torch.tensor(array.slice_factors).float() @ arrays.slices(x, array), x)


def test_schemes_and_cycles_differ() -> None:
    x, w = integers(0, 15, 5, 40), integers(-7, 7, 5, 40, seed=1)
    found = [arrays.array_product(x, w, Array(s, adc_bits=5, dac_bits=m, group=20)) for s in SCHEMES for m in (1, 4)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(found, 2))


# --------------------------------------------------------------------------------------------------------------------
# Layers


def layer(**how: Any) -> PIMConv2d:
    torch.manual_seed(0)
    return PIMConv2d(4, 6, 3, padding=1, array=Array(group=18, **how)).double()


def test_an_ideal_converter_gives_the_layer_on_rounded_numbers() -> None:
    for how, span in itertools.product(("max", "tanh"), (Span(), Span(-0.4, 1.3))):
        ours, x = layer(weights=how), noise(2, 4, 5, 5)
        ours.span = span
        a, w = activation_codes(x, span, 4), weight_codes(ours.weight, 4, how)  # type: ignore[arg-type]
        expected = F.conv2d(a.real, w.real, ours.bias, padding=1)
        torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
        fine = layer(weights=how, adc_bits=16)  # b = 16 is no other path: it is bounded, not equal
        fine.span = span
        step = float(torch.as_tensor(w.step).max()) * float(a.step)
        assert (fine(x) - expected).abs().max() <= fine.array.error_bound(36) * step


def test_zero_has_a_code_of_its_own() -> None:
    ours = layer()
    ours.span = Span(-0.37, 1.0)
    nothing = torch.zeros(1, 4, 5, 5, dtype=torch.float64)
    assert ours.bias is not None
    torch.testing.assert_close(ours(nothing), ours.bias.view(1, -1, 1, 1).expand(1, 6, 5, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_gradients_are_the_digital_ones_times_xi(kind: str) -> None:
    torch.manual_seed(0)
    array = Array(adc_bits=4, group=18, weights="max")
    ours: Any = PIMConv2d(4, 6, 3, array=array) if kind == "conv" else PIMLinear(40, 6, array=array)
    ours, x = ours.double(), noise(3, 4, 6, 6) if kind == "conv" else noise(3, 40)
    x.requires_grad_(True)
    y = ours(x)
    g = noise(*y.shape, seed=2)
    y.backward(g)
    a, w = activation_codes(x.detach(), Span(), 4), weight_codes(ours.weight.detach(), 4, "max")
    real_a, real_w = ((c.codes * c.step).requires_grad_(True) for c in (a, w))
    digital = F.conv2d(real_a, real_w) if kind == "conv" else F.linear(real_a, real_w)
    digital.backward(g)
    bias = ours.bias.view(-1, 1, 1) if kind == "conv" else ours.bias
    xi = (y - bias).std(correction=0) / digital.std(correction=0)
    assert ours.seen.xi == pytest.approx(xi.item(), rel=1e-12)
    assert abs(xi.item() - 1) > 0.01
    torch.testing.assert_close(ours.weight.grad, xi * real_w.grad, rtol=1e-10, atol=1e-12)
    inside = (x.detach() >= 0) & (x.detach() <= 1)
    torch.testing.assert_close(x.grad, xi * real_a.grad * inside, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.bias.grad, g.sum((0, 2, 3) if kind == "conv" else 0), rtol=1e-10, atol=1e-12)


def test_without_rescaling_or_converter_xi_does_nothing() -> None:
    x, grads = noise(3, 4, 6, 6), {}
    for name, bits, on in (("plain", 4, False), ("rescaled", 4, True), ("ideal", None, True)):
        ours = layer(adc_bits=bits)
        ours.rescaling = Rescaling(on)
        ours(x).sum().backward()
        assert ours.weight.grad is not None
        assert ours.seen is not None
        grads[name] = ours.weight.grad
        assert bits or ours.seen.xi == pytest.approx(1)
    torch.testing.assert_close(grads["plain"], grads["ideal"], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(grads["plain"], grads["rescaled"])


def test_the_dead_zone_gives_nothing_and_a_guarded_gradient() -> None:
    ours = layer(scheme="native", adc_bits=1)
    x = noise(2, 4, 5, 5).abs() * 0.1
    y = ours(x)
    assert ours.seen is not None
    assert ours.seen.xi == 0
    assert ours.bias is not None
    assert torch.equal(y, ours.bias.view(1, -1, 1, 1).expand_as(y))
    y.square().sum().backward()
    assert ours.weight.grad is not None
    assert bool(torch.isfinite(ours.weight.grad).all())
    assert bool(ours.weight.grad.any())


def test_forward_rescaling_is_a_factor() -> None:
    x, ours = noise(2, 4, 5, 5), layer(adc_bits=5)
    assert ours.bias is not None
    ours.bias.data.zero_()
    y = ours(x)
    ours.rescaling = Rescaling(forward=2.5)
    torch.testing.assert_close(ours(x), 2.5 * y)


@pytest.mark.parametrize("array", [Array(s, adc_bits=b, dac_bits=m, group=n) for s in SCHEMES for b, m, n in ((5, 4, 18), (5, 1, 7), (None, 4, 9))])  # fmt: skip # noqa: E501
def test_counts_equal_the_closed_forms(array: Array) -> None:
    ours = PIMConv2d(6, 4, 3, stride=2, padding=1, groups=2, array=array)
    with count() as tally, torch.no_grad():
        ours(torch.rand(2, 6, 7, 7))
    assert tally.macs == 2 * closed_form(ours, (6, 7, 7)).macs
    assert ours.seen is not None
    by_hand = 2 * 4 * 4 * 4 * math.ceil(27 / array.group) * array.columns * math.ceil(4 / array.dac_bits)
    assert ours.seen.conversions == by_hand
    linear = PIMLinear(30, 4, array=array)
    with count() as tally, torch.no_grad():
        linear(torch.rand(2, 3, 30))
    assert tally.macs == 2 * closed_form(linear, (3, 30)).macs


def test_layers_of_torch_in_all_else() -> None:
    x = torch.rand(2, 4, 6, 6)
    for how in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"bias": False}, {"dilation": 2}):
        plain = nn.Conv2d(4, 6, 3, **how)
        ours = PIMConv2d(
            4, 6, 3, **how, array=Array(weight_bits=8, activation_bits=8, dac_bits=8, weights="max", group=9)
        )
        ours.load_state_dict(plain.state_dict())
        torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0.03)


def test_memory_is_bounded_by_chunks() -> None:
    """The layer of the speed record holds an image of partial sums at a time, 3 MB of them, and not 16."""
    array = Array(adc_bits=5)
    x, w = integers(0, 15, 16, 64, 30, 30).float(), integers(-7, 7, 64, 64, 3, 3).float()
    sizes = [sums.numel() for sums in arrays.partial_sums(arrays.job_of(x, w, array, 1, (1, 1), (1, 1)), array)]
    assert sum(sizes) == 16 * 28 * 28 * 64 * 4 * 4
    assert max(sizes) <= arrays.CHUNK


def test_bad_arrays_and_layers() -> None:
    for how, says in (
        ({"adc_bits": 0}, "adc_bits must be an integer in"),
        ({"adc_bits": 17}, "adc_bits"),
        ({"adc_bits": 1, "sign_bit": "included"}, "adc_bits"),
        ({"dac_bits": 5}, r"dac_bits must be an integer in \[1, 4\]"),
        ({"dac_bits": 0}, "dac_bits"),
        ({"group": 0}, "group"),
        ({"scheme": "serial"}, "scheme must be 'native' or"),
        ({"weight_bits": 1}, "weight_bits"),
        ({"chip": Chip(noise=1)}, "adc_bits=None is an ideal converter"),
    ):
        with pytest.raises(ValueError, match=says):
            Array(**how)
    with pytest.raises(ValueError, match="choose a group of at most 36"):
        PIMConv2d(4, 6, 3, array=Array(group=37))
    ours = layer()
    with pytest.raises(ValueError, match="low <= 0 < high"):
        Span(0.1, 1)
    with pytest.raises(ValueError, match="an empty batch has no range"):
        Span.of(torch.empty(0, 4))
    assert ours(torch.empty(0, 4, 5, 5, dtype=torch.float64)).shape == (0, 6, 5, 5)
    ours.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        ours(noise(1, 4, 5, 5))


def test_devices_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, gpu = layer().float(), torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"not on meta: move model and data by \.cpu\(\)"):
        ours(torch.rand(1, 4, 5, 5, device="meta"))
    with pytest.raises(ValueError, match="1: integers are computed on the CPU or on CUDA"):
        PIMQuantization().apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).to("meta"), group=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA kernels: install a build with CUDA"):
        check_device(gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a"])
    for capability, works in (((8, 6), True), ((9, 0), True), ((7, 0), False), ((10, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        if works:
            check_device(gpu)
        else:
            with pytest.raises(ValueError, match=r"kernels for sm_80, sm_90a and none for cuda:0.*\.cpu\(\)"):
                check_device(gpu)


# --------------------------------------------------------------------------------------------------------------------
# The chip


def test_noise_is_drawn_for_every_conversion_and_follows_from_the_seed() -> None:
    array = Array("native", adc_bits=8, group=36, chip=Chip(noise=0.7))
    sums = torch.rand(1, 40_000, generator=generator()) * array.full_scale - array.full_scale / 2
    exact = sums * array.levels / array.full_scale
    with fork_seed(0):
        first = arrays.convert(sums.clone(), array, axis=-1)
        other = arrays.convert(sums.clone(), array, axis=-1)
    with fork_seed(0):
        again = arrays.convert(sums.clone(), array, axis=-1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first - exact).std().item() == pytest.approx(math.sqrt(0.7**2 + 1 / 12), rel=0.05)


def test_gain_offset_and_bow() -> None:
    sums = torch.arange(0.0, 541.0, 60).view(1, -1)  # F = 540, L = 63
    ideal = sums * 63 / 540

    def by(chip: Chip) -> Tensor:
        return arrays.convert(sums.clone(), Array("bit-serial", adc_bits=6, group=36, chip=chip), axis=-1)

    assert torch.equal(by(Chip(gain=0.9)), (0.9 * ideal).round())
    assert torch.equal(by(Chip(offset=2)), (ideal + 2).round().clamp(0, 63))
    v = ideal / 63
    assert torch.equal(by(Chip(bow=0.5)), (63 * (v + 0.5 * v * (1 - v) * (1 - 2 * v))).round())
    spread = Chip(gain_spread=0.1, offset_spread=1.0)
    assert torch.equal(by(spread), by(spread))
    assert not torch.equal(by(spread), by(Chip(gain_spread=0.1, offset_spread=1.0, seed=1)))
    with pytest.raises(ValueError, match="gain"):
        Chip(gain=0)


# --------------------------------------------------------------------------------------------------------------------
# Libraries as oracles, where they are installed


def test_one_conversion_equals_aihwkit() -> None:
    pytest.importorskip("aihwkit")
    from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
    from aihwkit.simulator.parameters.io import IOParameters
    from aihwkit.simulator.tiles.analog_mvm import AnalogMVM

    x, w = integers(0, 15, 16, 144).double(), integers(-7, 7, 8, 144, seed=1).double()
    for b in (3, 5, 6, 7):
        array = Array("native", adc_bits=b, group=144)
        io = IOParameters(
            noise_management=NoiseManagementType.NONE, bound_management=BoundManagementType.NONE, inp_res=-1,
            inp_bound=1e9, inp_noise=0, out_noise=0, w_noise=0, out_bound=array.full_scale,
            out_res=1 / (2 * array.levels),
        )  # fmt: skip
        theirs = AnalogMVM.matmul(w, x, io)
        torch.testing.assert_close(arrays.array_product(x, w, array) * array.scale, theirs, rtol=0, atol=1e-9)


def test_codes_equal_brevitas() -> None:
    pytest.importorskip("brevitas")
    from brevitas.nn import QuantLinear
    from brevitas.quant import Int8WeightPerTensorFloat

    theirs = QuantLinear(24, 1, bias=False, weight_quant=Int8WeightPerTensorFloat, weight_bit_width=4)
    ours = weight_codes(theirs.weight, 4, "max")
    assert torch.equal(theirs.quant_weight().int().long(), ours.codes.long())


def test_codes_equal_torch() -> None:
    x = noise(200, dtype=torch.float32)
    a = activation_codes(x, Span(-1.0, 2.0), 4)
    assert isinstance(a.step, float)
    torch.testing.assert_close(a.real, torch.fake_quantize_per_tensor_affine(x, a.step, a.zero, 0, 15))
    w = weight_codes(noise(5, 30, dtype=torch.float32), 4, "max")
    expected = torch.fake_quantize_per_channel_affine(
        w.through, torch.as_tensor(w.step).flatten(), torch.zeros(5, dtype=torch.int32), 0, -7, 7
    )
    torch.testing.assert_close(w.real, expected)


def test_the_scale_is_a_fraction() -> None:
    array = Array("native", adc_bits=3, group=9)
    _, scale = simulator.codes(np.ones((1, 9), int), np.ones((1, 9), int), "native", 3, 4, 9)
    assert scale == Fraction(array.full_scale, array.levels) == Fraction(9 * 15 * 7, 7)
