"""Stride attention beyond the checks: the measure, the coarse grid, and what is published of the network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.contract import NoEffectWarning, UnsupportedHost
from reference_impls.experiments.efficient_nets import (
    CHANNELS,
    CLASSIFY,
    FILL,
    RECIPES,
    FillIn,
    fashion,
    hidden_patches,
    map_case,
    map_network,
    photo_crops,
    share_filled,
    small_attention,
    tiny_attention,
    without_gradients,
)
from reference_impls.experiments.stride_attention import MIXERS, shuffled_cells, swap_order
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.layers.weights import randomise_parameters
from reference_impls.redundancy.over_resolution import over_resolution, spectrum
from reference_impls.techniques.efficientformer_v2 import build
from reference_impls.techniques.stride_attention import (
    Coarseness,
    MapAttention,
    StrideAttention,
    attend_coarsely,
    cell_means,
    coarse_macs,
    full_attentions,
    resize,
)

STRIDE = StrideAttention()


def attention(size: tuple[int, int] = (8, 8)) -> MapAttention:
    torch.manual_seed(0)
    return randomise_parameters(tiny_attention(size)).double().eval()


def maps(*size: int) -> Tensor:
    return torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------------
# The measure


@pytest.mark.parametrize(("cycles", "held"), [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5), (5, 0.0), (8, 0.0)])
def test_a_wave_counts_by_its_frequency_and_half_at_the_limit(cycles: int, held: float) -> None:
    wave = torch.cos(2 * math.pi * cycles * torch.arange(16, dtype=torch.float64) / 16).expand(1, 1, 16, 16)
    white = 63 / 255
    assert over_resolution(wave).item() == pytest.approx(max(0.0, (held - white) / (1 - white)), abs=1e-9)
    assert over_resolution(wave.mT).item() == pytest.approx(over_resolution(wave).item(), abs=1e-9)


@pytest.mark.parametrize("factor", [2, 4])
def test_white_noise_holds_no_redundancy_and_a_photo_does(factor: int) -> None:
    noise = torch.randn(4, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    assert over_resolution(noise, factor).mean() < 0.02
    assert over_resolution(photo_crops(8), factor).mean() > 0.4


def test_a_constant_map_is_wholly_redundant_whatever_rounding_leaves_of_it() -> None:
    flat = torch.full((1, 3, 7, 9), 0.1) * torch.tensor([1.0, 1e6, -3.0])[:, None, None]
    assert over_resolution(flat).item() == 1
    assert spectrum(flat).abs().max() == 0


def test_the_spectrum_holds_all_of_the_variance() -> None:
    x = maps(7, 9)
    torch.testing.assert_close(spectrum(x).sum((1, 2)), x.var((2, 3), correction=0).sum(1))


# --------------------------------------------------------------------------------------------------------------------
# On the coarse grid


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6)])
def test_at_full_resolution_it_is_the_attention_itself(size: tuple[int, int]) -> None:
    attend, x = attention(size), maps(*size)
    with torch.no_grad():
        torch.testing.assert_close(attend_coarsely(attend, x, Coarseness()), attend(x), rtol=1e-12, atol=1e-12)
    closed = closed_form(attend, (CHANNELS, *size)).macs
    assert coarse_macs(attend, size, Coarseness()) == closed


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6)])
@pytest.mark.parametrize("coarse", [(2, 2, 2), (2, 2, 1), (4, 4, 4), (8, 8, 1), (2, 1, 1), (1, 2, 1)])
def test_its_macs_have_a_closed_form(size: tuple[int, int], coarse: tuple[int, int, int]) -> None:
    attend, x, how = attention(size), maps(*size), Coarseness(*coarse)
    with count() as tally, torch.no_grad():
        y = attend_coarsely(attend, x, how)
    assert y.shape == x.shape
    assert tally.macs == 2 * coarse_macs(attend, size, how)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_equal_positions_lose_nothing_and_need_the_talking_heads_bias_for_each(stride: int) -> None:
    attend = attention()
    flat = maps(1, 1).expand(2, CHANNELS, 8, 8).contiguous()
    attend.bias.table.data.zero_()
    with torch.no_grad():
        plain, coarse = attend(flat), attend_coarsely(attend, flat, Coarseness(stride, stride, 1))
        torch.testing.assert_close(coarse, plain, rtol=1e-12, atol=1e-12)
        attend.talking_head2.bias.zero_()
        assert (attend(flat) - plain).abs().max() > 1e-3


def test_a_threshold_decides_for_each_map_and_leaves_the_others_bit_for_bit() -> None:
    case = map_case("typical", 0, "cpu")
    attend, x = case.target[0].token_mixer, case.inputs
    plain = without_gradients(attend, x)
    chosen = over_resolution(x) >= 0.5
    assert chosen.tolist() == [False, True, True]
    with STRIDE.apply(attend, stride=2, threshold=0.5) as handle:
        mixed = without_gradients(attend, x)
        assert handle.trace["substituted"] == {"": (x.shape, 2)}
    assert torch.equal(mixed[~chosen], without_gradients(attend, x[~chosen]))
    coarse = without_gradients(lambda maps: attend_coarsely(attend, maps, Coarseness(2, 2, 2)), x[chosen])
    torch.testing.assert_close(mixed[chosen], coarse)
    assert (mixed - plain)[chosen].abs().amax((1, 2, 3)).min() > 1e-3


def test_a_folded_network_is_a_host_as_well() -> None:
    network = nn.Sequential(attention())
    fold_batch_norm(network[0])
    with STRIDE.apply(network, stride=2) as handle, count() as tally:
        without_gradients(network, maps(8, 8))
    with count() as dense:
        without_gradients(network, maps(8, 8))
    assert dense.macs - tally.macs == STRIDE.saving(network, maps(8, 8), handle.trace)


def test_stride_one_is_equal_bit_for_bit_and_warns() -> None:
    case = map_case("typical", 0, "cpu")
    plain = case.run(case.target, case.inputs)
    with pytest.warns(NoEffectWarning, match="stride is 1"):
        STRIDE.apply(case.target, stride=1)
    assert torch.equal(case.run(case.target, case.inputs), plain)


def test_two_handles_nest_and_gradients_flow() -> None:
    case = map_case("typical", 0, "cpu")
    target, x = case.target, case.inputs
    plain = case.run(target, x)
    first = STRIDE.apply(target, stride=2)
    once = case.run(target, x)
    target(x).sum().backward()
    assert target[0].token_mixer.q.conv.weight.grad.abs().sum() > 0
    first.undo()
    assert torch.equal(case.run(target, x), plain)
    assert not torch.equal(once, plain)


# --------------------------------------------------------------------------------------------------------------------
# The published network, and the order that it does not try


def test_the_macs_of_s0_with_and_without_strides() -> None:
    with torch.device("meta"):
        assert closed_form(MapAttention(96, (14, 14)), (96, 14, 14)).macs == 104_065_024
        assert closed_form(MapAttention(96, (14, 14), stride=2), (96, 14, 14)).macs == 30_367_456
        model = build("s0", strides=(1, 1, 1, 1))
    blocks = {name: a for name, a in full_attentions("", model).items() if name.startswith("stages.2.")}
    trace = {"coarse": Coarseness(2, 2, 2), "substituted": {n: (torch.Size((1, 96, 14, 14)), 1) for n in blocks}}
    averaging_instead_of_convolving = 2 * 9 * 96 * 49
    saved = 2 * (104_065_024 - 30_367_456) + averaging_instead_of_convolving
    assert STRIDE.saving(model, torch.empty(0), trace) == saved


def test_projecting_first_commutes_but_for_the_activation() -> None:
    torch.manual_seed(0)
    attend = randomise_parameters(MapAttention(CHANNELS, (8, 8), 2, 4, 2, stride=2)).double().eval()
    x = maps(8, 8)
    with torch.no_grad():
        behind = attend(x)
        attend.project_first = True
        in_front = attend(x)
        assert (in_front - behind).abs().max() > 1e-3
        attend.act = nn.Identity()
        without = attend(x)
        attend.project_first = False
        torch.testing.assert_close(attend(x), without, rtol=1e-12, atol=1e-12)
    with count() as first:
        map_network(FILL, MIXERS["stride 2, projected first"]).eval()(torch.zeros(1, 2, 32, 32))
    with count() as published:
        map_network(FILL, MIXERS["stride 2"]).eval()(torch.zeros(1, 2, 32, 32))
    assert published.macs - first.macs == 2 * 128 * 32 * (64 - 16)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 9])
def test_cells_average_what_lies_in_them(factor: int) -> None:
    x = maps(7, 5)
    cells = cell_means(x, factor)
    assert cells.shape[2:] == (math.ceil(7 / factor), math.ceil(5 / factor))
    for i, j in ((0, 0), (cells.shape[2] - 1, cells.shape[3] - 1)):
        inside = x[..., i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
        torch.testing.assert_close(cells[..., i, j], inside.mean((2, 3)))


def test_resizing_to_the_same_size_is_free() -> None:
    x = maps(4, 4)
    assert resize(x, (4, 4)) is x


# --------------------------------------------------------------------------------------------------------------------
# The tasks and controls of the experiments


def test_half_of_the_patches_are_hidden_and_only_they_are_painted() -> None:
    x = torch.rand(50, 1, 32, 32) + 1
    inputs = hidden_patches(x)
    image, hidden = inputs[:, :1], inputs[:, 1:].bool()
    assert torch.equal(inputs, hidden_patches(x))
    assert hidden.float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(hidden, hidden[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert bool((image[hidden] == 0).all())
    assert torch.equal(image[~hidden], x[~hidden])
    filled = without_gradients(FillIn(lambda inputs: inputs[:, :1] + 7), inputs)
    assert torch.equal(filled[~hidden], x[~hidden])
    assert bool((filled[hidden] == 7).all())


def test_a_perfect_painter_fills_everything_in_and_the_mean_image_nothing() -> None:
    recipe = RECIPES["smoke"]
    x_train, _, x, _ = fashion(recipe)
    assert share_filled(lambda inputs: x, recipe) == 1
    mean = x_train.mean(0)
    assert share_filled(FillIn(lambda inputs: mean), recipe) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_fits_both_tasks(mixer: str) -> None:
    for task, channels, shape in ((FILL, 2, (2, 1, 32, 32)), (CLASSIFY, 1, (2, 10))):
        network = map_network(task, MIXERS[mixer]).eval()
        assert without_gradients(network, torch.zeros(2, channels, 32, 32)).shape == shape


def test_shuffled_cells_cost_as_much_and_agree_where_all_positions_do() -> None:
    torch.manual_seed(0)
    attend = randomise_parameters(small_attention()).eval()
    x = torch.randn(2, 32, 8, 8)
    with STRIDE.apply(attend, stride=2, local="full"), count() as cells:
        neighbours = without_gradients(attend, x)
    shuffled_cells(attend, 2)
    with count() as shuffled:
        scattered = without_gradients(attend, x)
    assert shuffled.macs == cells.macs
    assert (scattered - neighbours).abs().max() > 1e-2
    flat = torch.randn(1, 32, 1, 1).expand(1, 32, 8, 8)
    attend.bias.table.data.zero_()
    here = without_gradients(attend, flat)
    del attend.forward
    torch.testing.assert_close(here, without_gradients(attend, flat), rtol=1e-4, atol=1e-4)


def test_swapping_the_order_reaches_strided_attention_only() -> None:
    models = [map_network(FILL, MIXERS[name]) for name in ("stride 1", "stride 2")]
    for model in models:
        swap_order(model)
    swapped = [[m.project_first for m in model.modules() if isinstance(m, MapAttention)] for model in models]
    assert swapped == [[False, False], [True, True]]


def test_strided_attention_is_no_host() -> None:
    with pytest.raises(UnsupportedHost, match="stride 1"):
        STRIDE.apply(map_network(FILL, MIXERS["stride 2"]))
