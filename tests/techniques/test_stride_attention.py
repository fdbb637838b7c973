"""Stride attention beyond the checks: the measure, the coarse grid, and what is published of the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.benchmarks.compact_networks import feature_maps as fm
from reference_impls.contract import Case, Cases, Expectation, Invalid, Technique, UnsupportedHost
from reference_impls.data.masking import masked, photo_crops
from reference_impls.experiments.stride_attention import OTHER_MIXERS, swap_order
from reference_impls.layers.norm import fold_batch_norm
from reference_impls.layers.residual import FeedForward, MapBlock
from reference_impls.layers.weights import copy_sharing_weights, randomise_parameters
from reference_impls.models.small_maps import Reconstruction, map_network
from reference_impls.redundancy.over_resolution import over_resolution, spectrum
from reference_impls.study import fork_seed, forward, run
from reference_impls.techniques import stride_attention as technique
from reference_impls.techniques.attention_downsampling import AttentionDownsampling
from reference_impls.techniques.efficientformer_v2 import build
from reference_impls.techniques.stride_attention import Coarseness, MapAttention, attend_coarsely, cell_means
from tests.feature_map_cases import CHANNELS, coarse_scores_are_means, energy_share, map_case, tiny_attention, waves
from tests.support import assert_close, noise

STRIDE = technique.StrideAttention()

# --------------------------------------------------------------------------------------------------------------------
# Cases


class StrideAttentionCases(Cases):
    """Attention on constant maps, on chessboards, and on what is in between (`map_case`)."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        return map_case(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = map_case("typical", seed, device)
        x = case.inputs
        with STRIDE.apply(case.target, stride=2, threshold=0.5) as handle:
            forward(handle.target, x)()
            _, chosen = handle.trace["substituted"]["0.token_mixer"]
        by_hand = [energy_share(one.double().tolist(), 2) for one in x]
        share = over_resolution(x.double()).float().cpu()
        yield Expectation("share below half resolution", torch.tensor(by_hand), share)
        yield Expectation("maps coarsened", torch.tensor(sum(s >= 0.5 for s in by_hand)), torch.tensor(chosen))
        # Half of a wave at the limit is held, 63 / 255 of white noise.
        limit = (0.5 - 63 / 255) / (1 - 63 / 255)
        yield Expectation("waves of 3 and 4 cycles", torch.tensor([1, limit]), over_resolution(waves()))
        cells = cell_means(torch.arange(16.0, device=device).view(1, 1, 4, 4), 2)
        yield Expectation("means of cells", torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]], device=device), cells)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        yield from coarse_scores_are_means(2, 2, seed, device)
        flat = map_case("redundant", seed, device)
        with torch.no_grad():
            coarse = attend_coarsely(flat.target, flat.inputs, Coarseness(2, 2, 1))
            yield Expectation("result on constant maps", flat.target(flat.inputs), coarse)

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = map_case("typical", 0, device)
        target, x = case.target, case.inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        strided = MapAttention(CHANNELS, (8, 8), 2, 4, 2, stride=2).to(device)
        yield Invalid("inputs with NaN", lambda: STRIDE.measure(target, x), "not finite")
        yield Invalid("a vector", lambda: over_resolution(x[0, 0, 0]), "must have shape (B, C, H, W)")
        yield Invalid("attention that strides already", lambda: STRIDE.apply(strided), "`MapAttention` of stride 1")
        yield Invalid("local values coarser than keys", lambda: Coarseness(2, 1, 2), "local values are computed")


CASES = StrideAttentionCases()


def attention(size: tuple[int, int] = (8, 8)) -> MapAttention:
    torch.manual_seed(0)
    return randomise_parameters(tiny_attention(size)).double().eval()


def maps(*size: int) -> Tensor:
    return noise(2, CHANNELS, *size)


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
    assert over_resolution(noise(4, 32, 16, 16), factor).mean() < 0.02
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
@pytest.mark.parametrize("coarse", [(1, 1, 1), (2, 2, 2), (2, 2, 1), (4, 4, 4), (8, 8, 1), (2, 1, 1), (1, 2, 1)])
def test_its_macs_have_a_closed_form(size: tuple[int, int], coarse: tuple[int, int, int]) -> None:
    attend, x, how = attention(size), maps(*size), Coarseness(*coarse)
    with count() as tally, torch.no_grad():
        y = attend_coarsely(attend, x, how)
    assert y.shape == x.shape
    assert tally.macs == 2 * technique.coarse_macs(attend, size, how)
    if how == Coarseness():  # it is the attention itself
        torch.testing.assert_close(y, forward(attend, x)(), rtol=1e-12, atol=1e-12)
        assert tally.macs == 2 * closed_form(attend, (CHANNELS, *size)).macs


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
    plain = forward(attend, x)()
    chosen = over_resolution(x) >= 0.5
    assert chosen.tolist() == [False, True, True]
    with STRIDE.apply(attend, stride=2, threshold=0.5) as handle:
        mixed = forward(attend, x)()
        assert handle.trace["substituted"] == {"": (x.shape, 2)}
    assert torch.equal(mixed[~chosen], forward(attend, x[~chosen])())
    coarse = attend_coarsely(attend, x[chosen], Coarseness(2, 2, 2)).detach()
    torch.testing.assert_close(mixed[chosen], coarse)
    assert (mixed - plain)[chosen].abs().amax((1, 2, 3)).min() > 1e-3


# --------------------------------------------------------------------------------------------------------------------
# Precision, training and degenerate input, of both techniques on feature maps

BOTH = pytest.mark.parametrize(
    ("technique", "knobs"),
    [(STRIDE, {"stride": 2}), (AttentionDownsampling(), {"factor": 2})],
    ids=lambda v: str(v)[:24],
)


def graded(number: int = 24) -> Tensor:
    """Maps (number, 12, 8, 8) of which coarser grids hold from all to little, float32."""
    wave = torch.cos(2 * torch.pi * torch.arange(8, dtype=torch.float64) / 8).expand(number, CHANNELS, 8, 8)
    strength = torch.logspace(-2.5, 0.5, number, dtype=torch.float64).view(-1, 1, 1, 1)
    return (wave + strength * noise(number, CHANNELS, 8, 8)).float()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, None], ids=str)
def test_thresholds_choose_the_maps_that_float32_chooses(
    technique: Technique, knobs: dict[str, int], dtype: torch.dtype | None
) -> None:
    """Also thresholds that lie closer to 1 than half precision can tell."""
    attend, x = attention().to(dtype or torch.float32), graded().to(dtype or torch.float32)
    shares = over_resolution(x.float())
    numbers = set()
    for threshold in (0.3, 0.9, 0.99, 0.999, 0.9999):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=dtype is None),
            technique.apply(attend, threshold=threshold, **knobs) as handle,
        ):
            y = forward(attend, x)()
            _, number = handle.trace["substituted"][""]
        assert number == int((shares >= threshold).sum())
        assert y.dtype == (dtype or torch.bfloat16)
        assert y.isfinite().all()
        numbers.add(number)
    assert len(numbers) == 5


@BOTH
def test_a_threshold_is_refused_where_batch_norm_sees_chosen_maps_alone(
    technique: Technique, knobs: dict[str, int]
) -> None:
    network = nn.Sequential(attention()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for call in (
        lambda: technique.apply(network, threshold=0.5, **knobs),
        lambda: technique.measure(network, maps(8, 8)),
    ):
        with pytest.raises(UnsupportedHost, match="batch norm in evaluation mode"):
            call()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with technique.apply(network.eval(), threshold=0.5, **knobs):
        network.train()
        with pytest.raises(RuntimeError, match="evaluation mode"):
            network(maps(8, 8))
    folded = nn.Sequential(attention())
    fold_batch_norm(folded[0])
    with technique.apply(folded.train(), threshold=0.5, **knobs):
        assert folded(maps(8, 8)).isfinite().all()


@BOTH
def test_what_training_draws_at_random_is_drawn_still(technique: Technique, knobs: dict[str, int]) -> None:
    """Dropout inside attention, and dropped branches around it."""
    attend = attention()
    attend.act = nn.Sequential(nn.GELU(), nn.Dropout(0.5))
    block = MapBlock(CHANNELS, attend, FeedForward(CHANNELS, 24), drop_path=0.5, layer_scale=1.0).double().eval()
    x = maps(8, 8)
    with technique.apply(block, **knobs):
        assert torch.equal(block(x), block(x))
        block.train()
        for random in (block, attend):
            assert not torch.equal(random(x), random(x))
        dropped = sum(float((attend.act(torch.ones(1000)) == 0).double().mean()) for _ in range(10)) / 10
        assert dropped == pytest.approx(0.5, abs=0.05)
        attend(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in (attend.q.conv.weight, attend.bias.table))


class Gated(MapAttention):
    """A relative that does something more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


@BOTH
def test_modules_that_compute_something_else_are_refused(technique: Technique, knobs: dict[str, int]) -> None:
    gated, patched = nn.Sequential(Gated(CHANNELS, (8, 8), 2, 4, 2)), nn.Sequential(attention())
    patched[0].forward = lambda x: x
    for network in (gated, patched):
        with fork_seed(0):
            randomise_parameters(network)
        before = {name: value.clone() for name, value in network.eval().state_dict().items()}
        for call in (partial(technique.apply, **knobs), lambda net: technique.measure(net, maps(8, 8))):
            with pytest.raises(UnsupportedHost, match="compute what a plain"):
                call(network)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@BOTH
def test_looking_at_modules_is_nobodys_business(technique: Technique, knobs: dict[str, int]) -> None:
    """It moves no statistics and no generator, calls no hook, counts no MACs, and leaves modes as they are."""
    network, heard = nn.Sequential(attention()).train(), []
    network[0].talking_head1.eval()
    network[0].q.register_forward_hook(lambda *_: heard.append(1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state, modes = torch.get_rng_state(), [m.training for m in network.modules()]
    with count() as tally, technique.apply(network, **knobs):
        assert tally.macs == 0
    assert not heard
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in network.modules()]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@BOTH
def test_one_position_and_an_empty_batch(technique: Technique, knobs: dict[str, int]) -> None:
    attend = attention((1, 1))
    one, none = maps(1, 1), torch.zeros(0, CHANNELS, 8, 8, dtype=torch.float64)
    plain = forward(attend, one)()
    assert technique.measure(attend, one).value == 1
    for threshold in (None, 0.9):
        with technique.apply(attend, threshold=threshold, **knobs):
            torch.testing.assert_close(forward(attend, one)(), plain, rtol=1e-12, atol=1e-12)
            assert forward(attend, none)().shape == none.shape
    with pytest.raises(ValueError, match="the batch is empty"):
        technique.measure(attend, none)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_attention_on_a_coarser_grid_works_in_half_precision(dtype: torch.dtype, size: tuple[int, int]) -> None:
    """With position biases that are averaged, and stretched to another size."""
    attend, x = attention().to(dtype), maps(*size).to(dtype)
    for coarse in (Coarseness(2, 2, 2), Coarseness(2, 2, 1), Coarseness(2)):
        with torch.no_grad():
            half, exact = attend_coarsely(attend, x, coarse), attend_coarsely(attend.double(), x.double(), coarse)
        attend.to(dtype)
        assert half.dtype == dtype
        assert_close(half.double(), exact, 16 * torch.finfo(dtype).eps)


def test_a_folded_network_is_a_host_as_well() -> None:
    network = nn.Sequential(attention())
    fold_batch_norm(network[0])
    with STRIDE.apply(network, stride=2) as handle, count() as tally:
        forward(network, maps(8, 8))()
    with count() as dense:
        forward(network, maps(8, 8))()
    assert dense.macs - tally.macs == STRIDE.saving(network, maps(8, 8), handle.trace)


# --------------------------------------------------------------------------------------------------------------------
# The published network, and the order that it does not try


def test_the_macs_of_s0_with_and_without_strides() -> None:
    with torch.device("meta"):
        assert closed_form(MapAttention(96, (14, 14)), (96, 14, 14)).macs == 104_065_024
        assert closed_form(MapAttention(96, (14, 14), stride=2), (96, 14, 14)).macs == 30_367_456
        model = build("s0", strides=(1, 1, 1, 1))
    blocks = {name: a for name, a in technique.full_attentions("", model).items() if name.startswith("stages.2.")}
    trace = {"coarse": Coarseness(2, 2, 2), "substituted": {n: (torch.Size((1, 96, 14, 14)), 1) for n in blocks}}
    averaging_instead_of_convolving = 2 * 9 * 96 * 49
    saved = 2 * (104_065_024 - 30_367_456) + averaging_instead_of_convolving
    assert STRIDE.saving(model, torch.empty(0), trace) == saved


def test_projecting_first_commutes_but_for_the_activation() -> None:
    torch.manual_seed(0)
    attend = randomise_parameters(MapAttention(CHANNELS, (8, 8), 2, 4, 2, stride=2)).double().eval()
    x = maps(8, 8)
    with torch.no_grad():
        after = attend(x)
        attend.project_first = True
        in_front = attend(x)
        assert (in_front - after).abs().max() > 1e-3
        attend.act = nn.Identity()
        without = attend(x)
        attend.project_first = False
        torch.testing.assert_close(attend(x), without, rtol=1e-12, atol=1e-12)
    first, published = (
        closed_form(fm.small_attention(2, project_first=first), (32, 8, 8)).macs for first in (True, False)
    )
    assert published - first == 128 * 32 * (64 - 16)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 9])
def test_cells_average_what_lies_in_them(factor: int) -> None:
    x = maps(7, 5)
    cells = cell_means(x, factor)
    assert cells.shape[2:] == (math.ceil(7 / factor), math.ceil(5 / factor))
    for i, j in ((0, 0), (cells.shape[2] - 1, cells.shape[3] - 1)):
        inside = x[..., i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
        torch.testing.assert_close(cells[..., i, j], inside.mean((2, 3)))


# --------------------------------------------------------------------------------------------------------------------
# The tasks and controls of the experiments


def test_half_of_the_patches_are_hidden_and_only_they_are_reconstructed() -> None:
    x = torch.rand(50, 1, 32, 32) + 1
    inputs = masked(x)
    image, hidden = inputs[:, :1], inputs[:, 1:].bool()
    assert torch.equal(inputs, masked(x))
    assert hidden.float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(hidden, hidden[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert bool((image[hidden] == 0).all())
    assert torch.equal(image[~hidden], x[~hidden])
    made = forward(Reconstruction(lambda inputs: inputs[:, :1] + 7), inputs)()
    assert torch.equal(made[~hidden], x[~hidden])
    assert bool((made[hidden] == 7).all())


def test_a_perfect_reconstruction_explains_all_and_the_mean_image_nothing() -> None:
    parts = fm.SMOKE.images
    mean = parts.train.x.mean(0)
    assert fm.explained_variance(lambda inputs: parts.test.x, parts) == 1
    assert fm.explained_variance(Reconstruction(lambda inputs: mean), parts) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("mixer", [*(mixer for mixer, _ in OTHER_MIXERS.values()), partial(fm.small_attention, 2)])
def test_every_mixer_fits_both_tasks(mixer: object) -> None:
    for classify, channels, shape in ((False, 2, (2, 1, 32, 32)), (True, 1, (2, 10))):
        network = map_network(mixer, classify=classify).eval()
        assert forward(network, torch.zeros(2, channels, 32, 32))().shape == shape


@pytest.mark.parametrize("coarse", [Coarseness(2, 2), Coarseness(2), Coarseness()])
def test_random_cells_cost_as_much_and_agree_where_all_positions_do(coarse: Coarseness) -> None:
    torch.manual_seed(0)
    attend = randomise_parameters(fm.small_attention()).eval()
    shuffled = copy_sharing_weights(attend)
    fm.random_cells(shuffled, coarse)
    x = torch.randn(2, 32, 8, 8)
    with count() as cells, torch.no_grad():
        neighbours = attend_coarsely(attend, x, coarse)
    with count() as tally:
        scattered = forward(shuffled, x)()
    assert tally.macs == cells.macs
    assert ((scattered - neighbours).abs().max() > 1e-2) == (coarse != Coarseness())
    flat = torch.randn(1, 32, 1, 1).expand(1, 32, 8, 8)
    attend.bias.table.data.zero_()
    torch.testing.assert_close(forward(shuffled, flat)(), forward(attend, flat)(), rtol=1e-4, atol=1e-4)


def test_swapping_the_order_reaches_strided_attention_only() -> None:
    for stride in (1, 2):
        swap_order(model := map_network(partial(fm.small_attention, stride)))
        assert [m.project_first for m in model.modules() if isinstance(m, MapAttention)] == [stride == 2] * 2


def test_techniques_meet_on_the_same_networks() -> None:
    record = run("compact-networks", "feature-maps")
    macs = {(p.technique, p.knobs["factor"]): p.macs for p in record.points}
    nulls = {(c.name, p.knobs["factor"]): p.macs for c in record.controls for p in c.points}
    assert {name for name, _ in nulls} == {fm.RANDOM_CELLS, fm.RANDOM_QUERIES, fm.FEWER_KEYS}
    for factor in (2, 4, 8):
        assert nulls[fm.RANDOM_CELLS, factor] == macs["stride-attention", factor]
        assert nulls[fm.RANDOM_QUERIES, factor] == macs["attention-downsampling", factor]
