"""Precision, scale and degenerate input of the measures and layers: what float32 gives, or an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from reference_impls.contract.precision import near_one, widened, without_autocast
from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.conv import ConvNorm
from reference_impls.layers.norm import fold_batch_norm, normalises_by_batch, recalibrate
from reference_impls.layers.weights import randomise_parameters
from reference_impls.models.small_maps import layouts, on_tokens
from reference_impls.redundancy.cross_sample_similarity import duplicates, nearest, nearest_other
from reference_impls.redundancy.inputs import mean_share
from reference_impls.redundancy.over_resolution import coarsen, coarsest, kept_detail, over_resolution
from reference_impls.redundancy.spatial_similarity import best_match, neighbour_similarity, spatial_similarity
from reference_impls.redundancy.temporal_similarity import changed_tiles, shift_compensated, temporal_similarity
from reference_impls.study import fork_seed
from reference_impls.techniques.stride_attention import cell_means
from tests.support import assert_close, noise

HALVES = (torch.float16, torch.bfloat16)
MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "over_resolution": over_resolution,
    "kept_detail": lambda x: kept_detail(x, (4, 4)),
    "coarsest": lambda x: torch.tensor([coarsest(one[None], [(2, 2), (4, 4), (6, 6)], 0.3) for one in x]),
    "neighbour_similarity": neighbour_similarity,
    "neighbour_similarity, raw": partial(neighbour_similarity, centred=False),
    "spatial_similarity": lambda x: spatial_similarity(x.flatten(2).mT),
    "spatial_similarity, centred": lambda x: spatial_similarity(x.flatten(2).mT, centred=True),
    "temporal_similarity": lambda x: torch.tensor(temporal_similarity(x, tile=2, threshold=1.5).value),
    "duplicates": lambda x: torch.tensor(duplicates(x[..., 0, 0], 0.4).value),
    "nearest_other": lambda x: nearest_other(x[..., 0, 0]),
    "nearest": lambda x: nearest(x[..., 0, 0], x[..., 1, 1])[0],
}
"""Measures as functions of maps (B, C, H, W)."""
ON_MAPS = [name for name in MEASURES if name not in ("duplicates", "nearest_other", "nearest")]
every_measure = pytest.mark.parametrize("name", MEASURES)


def maps() -> Tensor:
    """Maps that differ much and little from one to the next, noise and smooth ones: (4, 6, 8, 8), float32."""
    smooth = nn.functional.interpolate(noise(4, 6, 3, 3, dtype=torch.float32), size=(8, 8), mode="bilinear")
    return smooth + torch.tensor([0.0, 0.1, 0.5, 2.0])[:, None, None, None] * noise(4, 6, 8, 8, dtype=torch.float32)


# --------------------------------------------------------------------------------------------------------------------
# What float32 gives on the same values


@every_measure
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_measures_what_float32_does_on_the_same_values(name: str, dtype: torch.dtype) -> None:
    x = maps().to(dtype)
    assert torch.equal(MEASURES[name](x), MEASURES[name](x.float()))


@every_measure
def test_double_precision_measures_the_same_to_rounding(name: str) -> None:
    x = maps()
    torch.testing.assert_close(MEASURES[name](x.double()).float(), MEASURES[name](x).float(), rtol=1e-4, atol=1e-5)


@every_measure
def test_autocast_measures_the_same(name: str) -> None:
    x = maps()
    plain = MEASURES[name](x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MEASURES[name](x), plain)


@every_measure
@pytest.mark.parametrize("power", [-90, 90])
def test_the_scale_of_values_does_not_matter(name: str, power: int) -> None:
    """Squares of such values vanish or overflow in float32; a power of two changes no bit of what is measured."""
    assert torch.equal(MEASURES[name](maps() * 2.0**power), MEASURES[name](maps()))


@every_measure
def test_values_near_the_end_of_float16_do_not_overflow(name: str) -> None:
    x = maps()
    x = (x * 65000 / x.abs().max()).half()
    measured = MEASURES[name](x)
    assert measured.isfinite().all()
    torch.testing.assert_close(measured, MEASURES[name](x.double()).to(measured), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_constant_maps_and_equal_tokens_are_redundant_in_half_precision_too(dtype: torch.dtype) -> None:
    flat = torch.full((2, 6, 8, 8), 0.1, dtype=dtype) * torch.arange(1, 7, dtype=dtype)[:, None, None]
    for name in ("over_resolution", "kept_detail", "neighbour_similarity", "spatial_similarity, centred"):
        assert MEASURES[name](flat).tolist() == [1, 1], name


@pytest.mark.parametrize("dtype", HALVES)
def test_resampling_keeps_the_dtype(dtype: torch.dtype) -> None:
    x = maps().to(dtype)
    for small in (coarsen(x, (4, 4)), coarsen(x, (8, 8)), cell_means(x, 3)):
        assert small.dtype == dtype
    assert_close(coarsen(x, (4, 4)).float(), coarsen(x.float(), (4, 4)), 2 * torch.finfo(dtype).eps)
    assert torch.equal(shift_compensated(x[:1], x[1:2]).float(), shift_compensated(x[:1].float(), x[1:2].float()))


def test_changes_that_overflow_half_precision_or_wrap_round_are_seen() -> None:
    far = torch.full((1, 1, 2, 2), 60000.0, dtype=torch.float16)
    assert changed_tiles(far, -far, tile=2, threshold=100_000.0).all()
    assert not changed_tiles(far, far, tile=2, threshold=0.0).any()
    dark, bright = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert changed_tiles(bright, dark, tile=2, threshold=200.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_moves_the_exponent_alone(dtype: torch.dtype) -> None:
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    x = torch.tensor([[3.0, -1.5], [0.0, 0.0], [largest, 1.0], [least, least]], dtype=dtype)
    scaled = near_one(x, 1)
    assert scaled[:2].tolist() == [[0.75, -0.375], [0.0, 0.0]]
    assert scaled.square().sum(1).isfinite().all()
    assert (scaled.square().sum(1) > 0).tolist() == [True, False, True, True]
    x.requires_grad_(True)
    near_one(x, 1)[0].sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == [0.25, 0.25]


def test_only_narrow_dtypes_are_widened_and_autocast_comes_back() -> None:
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.int64: torch.float32}
    for dtype in (*wide, torch.float32, torch.float64):
        assert widened(torch.zeros(1, dtype=dtype)).dtype == wide.get(dtype, dtype)
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(a):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    with without_autocast(a.to("meta")):
        pass


# --------------------------------------------------------------------------------------------------------------------
# Degenerate input


@every_measure
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_named(name: str, bad: float, dtype: torch.dtype) -> None:
    x = maps().to(dtype)
    x[-1, -1] = bad  # the last frame, where measures look at frames
    with pytest.raises(ValueError, match="not finite"):
        MEASURES[name](x)


@every_measure
def test_data_without_values_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"must h(old values|ave at least one column)"):
        MEASURES[name](torch.zeros(3, 0, 8, 8))


@pytest.mark.parametrize("name", ON_MAPS)
def test_one_position_has_the_obvious_result(name: str) -> None:
    """It has no neighbour and no other to be like, and nothing that a coarser grid would lose."""
    one = noise(2, 3, 1, 1, dtype=torch.float32)
    if name == "coarsest":
        assert coarsest(one, [(1, 1)], 0.0) == (1, 1)
        return
    if name == "temporal_similarity":
        assert temporal_similarity([one, one]).value == 1
        return
    assert MEASURES[name](one).tolist() == [1.0 if name in ("over_resolution", "kept_detail") else 0.0] * 2


@pytest.mark.parametrize("name", [name for name in ON_MAPS if name not in ("coarsest", "temporal_similarity")])
def test_an_empty_batch_has_an_empty_result_and_no_mean(name: str) -> None:
    shares = MEASURES[name](torch.zeros(0, 6, 8, 8))
    assert shares.shape == (0,)
    with pytest.raises(ValueError, match="the batch is empty"):
        mean_share(shares)


def test_empty_frames_and_a_single_frame_are_named() -> None:
    with pytest.raises(ValueError, match="empty batches"):
        temporal_similarity([torch.zeros(0, 1, 4, 4)] * 2)
    with pytest.raises(ValueError, match="at least 2"):
        temporal_similarity([torch.zeros(1, 1, 4, 4)])


def test_zero_tokens_are_like_each_other_alone() -> None:
    tokens = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
    assert best_match(tokens).tolist() == [[1, 1, 0]]


# --------------------------------------------------------------------------------------------------------------------
# Layers


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
def test_folding_keeps_dtype_and_result(dtype: torch.dtype) -> None:
    with fork_seed(0):
        named = randomise_parameters(nn.Sequential(ConvNorm(3, 8, 3), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))).eval()
    network = named.to(dtype)
    exact = [p.double() for p in network.parameters()]
    x = noise(2, 3, 8, 8).to(dtype)
    with torch.no_grad():
        before = network.double()(x.double())
        network.to(dtype)
        fold_batch_norm(network)
        after = network(x)
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert len(exact) > len(list(network.parameters()))
    assert_close(after.double(), before, 4 * torch.finfo(dtype).eps)


def test_folding_small_variances_in_half_precision_does_not_lose_them() -> None:
    """A variance of 1e-6 and an epsilon of 1e-5 have few digits in float16, and their sum's root fewer."""
    layer = ConvNorm(1, 1).eval()
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
        layer.bn.running_var.fill_(1e-6)
    layer.half()
    variance = layer.bn.running_var.double() + layer.bn.eps
    network = nn.Sequential(layer)
    fold_batch_norm(network)
    assert network[0].weight.double().item() == pytest.approx(variance.rsqrt().item(), rel=5e-4)


def test_batches_that_move_statistics_are_told_from_those_that_do_not() -> None:
    network = nn.Sequential(ConvNorm(1, 2))
    assert normalises_by_batch(network)
    assert not normalises_by_batch(network.eval())
    assert normalises_by_batch(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)).eval())


def test_recalibration_names_an_empty_batch_and_works_in_half_precision() -> None:
    network = nn.Sequential(ConvNorm(1, 2)).eval()
    with pytest.raises(ValueError, match="x is empty"):
        recalibrate(network, torch.zeros(0, 1, 4, 4))
    assert not network.training
    x = 3 + noise(64, 1, 4, 4, dtype=torch.float32)
    network.bfloat16()
    recalibrate(network, x.bfloat16())
    outputs = network[0].conv(x.bfloat16()).float()
    torch.testing.assert_close(network[0].bn.running_mean.float(), outputs.mean((0, 2, 3)), rtol=2e-2, atol=2e-2)


def test_tokens_of_no_feature_map_are_named() -> None:
    attention = TokenAttention(8, (3, 5), heads=2, key_dim=4, ratio=1)
    for tokens in (15, 4, 1):
        assert attention(torch.zeros(2, tokens, 8)).shape == (2, tokens, 8)
    for tokens in (0, 14):
        with pytest.raises(ValueError, match=f"{tokens} tokens make no feature map"):
            attention(torch.zeros(2, tokens, 8))


def test_blocks_on_tokens_follow_the_dtype_of_those_on_maps() -> None:
    with fork_seed(0):
        block = layouts((4, 4), 8, 1)["maps"][0].double()
    assert {p.dtype for p in on_tokens(block, (4, 4), norms=True).parameters()} == {torch.float64}
