"""Dimension-consistent design beyond the checks: pooling as a matrix, layouts, and how alike neighbours are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import NoEffectWarning
from reference_impls.data.controls import phase_scrambled, white_noise
from reference_impls.experiments.dimension_consistent_design import (
    CASES,
    STAGES,
    ThereAndBack,
    ToMap,
    layouts,
    network,
    stages,
    tiny_attention,
)
from reference_impls.experiments.efficient_nets import CHANNELS, photo_crops, without_gradients
from reference_impls.layers.layout import Flatten, as_map
from reference_impls.layers.pooling import neighbourhood_mean
from reference_impls.layers.weights import randomise_parameters
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.techniques.dimension_consistent_design import DimensionConsistentDesign, pooled_values, value_rows

DESIGN = DimensionConsistentDesign()


def tokens() -> Tensor:
    return torch.randn(2, 36, CHANNELS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------------
# Pooling in the place of attention


def test_pooling_is_attention_with_the_matrix_of_3x3_means() -> None:
    torch.manual_seed(0)
    attend = randomise_parameters(nn.Sequential(tiny_attention())).double().eval()[0]
    matrix = neighbourhood_mean(torch.eye(36, dtype=torch.float64).unflatten(1, (6, 6)).unsqueeze(0))[0].flatten(1).mT
    torch.testing.assert_close(matrix.sum(1), torch.ones(36, dtype=torch.float64))
    with torch.no_grad():
        qkv = attend.qkv(tokens()).unflatten(2, (attend.heads, -1)).transpose(1, 2)
        values = qkv[..., 2 * attend.key_dim :]  # (B, heads, N, value_dim)
        by_matrix = attend.proj((matrix @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(pooled_values(attend, tokens()), by_matrix, rtol=1e-12, atol=1e-12)
    assert value_rows(attend).sum() == attend.heads * attend.value_dim


def test_only_the_first_blocks_pool() -> None:
    case = CASES.build("typical", 0, "cpu")
    with DESIGN.apply(case.target, pooled=2) as handle:
        case.run(case.target, case.inputs)
        assert list(handle.trace["substituted"]) == ["1.token_mixer", "2.token_mixer"]
        assert DESIGN.saving(case.target, case.inputs, handle.trace) == 2 * 3 * (
            2 * CHANNELS * 8 * 36 + (8 + 16) * 36**2
        )


def test_none_pooled_is_equal_bit_for_bit_and_warns() -> None:
    case = CASES.build("typical", 0, "cpu")
    plain = case.run(case.target, case.inputs)
    with pytest.warns(NoEffectWarning, match="pooled is 0"):
        DESIGN.apply(case.target, pooled=0)
    assert torch.equal(case.run(case.target, case.inputs), plain)


def test_the_threshold_pools_the_smooth_and_spares_the_noise() -> None:
    case = CASES.build("typical", 0, "cpu")
    plain = case.run(case.target, case.inputs)
    with DESIGN.apply(case.target, threshold=0.6) as handle:
        mixed = case.run(case.target, case.inputs)
        assert [number for _, number in handle.trace["substituted"].values()] == [2, 2, 2]
    torch.testing.assert_close(mixed[0], plain[0])
    assert (mixed - plain)[1:].abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------------------------
# Layout


def test_the_same_blocks_on_maps_and_on_tokens_give_the_same_for_the_same_macs() -> None:
    models = layouts((6, 5), 8, 3)
    x = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0))
    results, macs = {}, {}
    for name, model in models.items():
        with count() as tally:
            results[name] = without_gradients(model, x)
        macs[name] = tally.macs
    assert set(macs.values()) == {3 * 2 * 8 * 32 * 30 * 2}
    torch.testing.assert_close(results["maps"], results["tokens"])
    assert torch.equal(results["there and back"], results["maps"])
    assert (results["tokens with layer norms"] - results["tokens"]).abs().max() > 1e-3


def test_there_and_back_copies_and_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, 5)
    y = ThereAndBack()(x)
    assert torch.equal(x, y)
    assert x.data_ptr() != y.data_ptr()
    assert torch.equal(as_map(Flatten()(x), (4, 5)), x)


@pytest.mark.parametrize(("kinds", "changes"), [("pppp", 0), ("ppaa", 2), ("aapp", 2), ("aaaa", 4), ("papa", 4)])
def test_the_layout_changes_only_where_a_block_needs_it(kinds: str, changes: int) -> None:
    model = network(kinds).eval()
    assert sum(isinstance(m, Flatten | ToMap) for m in model.network) == changes
    assert without_gradients(model, torch.zeros(2, 2, 32, 32)).shape == (2, 1, 32, 32)
    seen = [tuple(m.shape[1:]) for m in stages(model, torch.zeros(2, 1, 32, 32))]
    assert seen == [(1, 32, 32), *[(32, 8, 8)] * 3, *[(64, 4, 4)] * 2]
    assert len(seen) == len(STAGES)


# --------------------------------------------------------------------------------------------------------------------
# Neighbours, and the controls they are compared with


def test_neighbours_agree_on_photos_and_not_in_noise() -> None:
    crops = photo_crops(16)
    assert neighbour_similarity(crops).mean() > 0.8
    assert neighbour_similarity(white_noise(crops)).mean() < 0.1


def test_neighbours_of_a_chessboard_are_opposed_and_a_single_position_has_none() -> None:
    board = (1 - 2.0 * ((torch.arange(5)[:, None] + torch.arange(4)) % 2)).expand(1, 3, 5, 4)
    assert neighbour_similarity(board).item() == 0
    assert neighbour_similarity(board + 100, centred=False).item() > 0.99
    assert neighbour_similarity(torch.ones(2, 3, 1, 1)).tolist() == [0, 0]
    assert neighbour_similarity(torch.ones(2, 3, 1, 2)).tolist() == [1, 1]


def test_scrambled_phases_keep_the_spectrum_and_nothing_else() -> None:
    x = photo_crops(4).expand(-1, 3, -1, -1) * torch.tensor([1.0, 2.0, -1.0])[:, None, None]
    y = phase_scrambled(x)
    torch.testing.assert_close(torch.fft.fft2(y).abs(), torch.fft.fft2(x).abs(), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y[:, 1], 2 * y[:, 0], rtol=1e-3, atol=1e-3)
    assert (y - x).abs().mean() > 0.1
    assert torch.equal(y, phase_scrambled(x))
    assert not torch.equal(y, phase_scrambled(x, seed=1))


def test_white_noise_keeps_mean_and_variance_of_each_channel() -> None:
    x = (
        torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 5.0, 0.0])[:, None, None]
    )
    y = white_noise(x)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)), rtol=0.1, atol=0.1)
    torch.testing.assert_close(y.std((2, 3)), x.std((2, 3)), rtol=0.05, atol=1e-6)
