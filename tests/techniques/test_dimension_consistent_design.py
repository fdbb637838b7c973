"""Dimension-consistent design beyond the checks: pooling as a matrix, layouts, and how alike neighbours are."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, UnsupportedHost
from reference_impls.data.controls import white_noise
from reference_impls.data.masking import photo_crops
from reference_impls.layers.attention import TokenAttention
from reference_impls.layers.layout import Flatten, ToMap, as_map, as_tokens
from reference_impls.layers.pooling import neighbourhood_mean
from reference_impls.layers.residual import TokenBlock
from reference_impls.layers.weights import randomise_parameters
from reference_impls.models.small_maps import STAGES, ThereAndBack, four_blocks, layouts, stages
from reference_impls.redundancy.spatial_similarity import neighbour_similarity
from reference_impls.study import fork_seed, forward
from reference_impls.techniques.dimension_consistent_design import (
    DimensionConsistentDesign,
    likeness,
    pooled_values,
    value_rows,
)
from tests.feature_map_cases import CHANNELS, three_maps
from tests.support import noise

DESIGN = DimensionConsistentDesign()

# --------------------------------------------------------------------------------------------------------------------
# Cases


def tiny_attention() -> TokenAttention:
    """Attention of two heads on 12 channels and 6 x 6 tokens."""
    return TokenAttention(CHANNELS, (6, 6), heads=2, key_dim=4, ratio=2)


class DimensionConsistentCases(Cases):
    """Token attention on equal tokens (redundant) or a chessboard of two (null); typical: three blocks on a smooth map,
    on noise, and on something in between.
    """

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        with fork_seed(seed):
            blocks = [TokenBlock(CHANNELS, tiny_attention(), 24, layer_scale=1.0) for _ in range(3)]
            target = randomise_parameters(nn.Sequential(Flatten(), *blocks))
            if kind != "typical":
                target = nn.Sequential(Flatten(), tiny_attention())
        x = three_maps(kind, (6, 6), seed)
        return Case(target.eval().to(device), x.to(device), run=lambda model, x: model(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        x = case.inputs
        with torch.no_grad():
            tokens = case.target[1].norm1(case.target[0](x))
        by_hand = torch.tensor([neighbour_cosine(one.double().tolist(), (6, 6)) for one in tokens])
        yield Expectation("similarity of neighbours", by_hand, neighbour_similarity(as_map(tokens, (6, 6))).cpu())
        with DESIGN.apply(case.target, pooled=1, threshold=0.5) as handle:
            forward(handle.target, x)()
            _, chosen = handle.trace["substituted"]["1.token_mixer"]
        yield Expectation("data that pool", (by_hand >= 0.5).sum(), torch.tensor(chosen))
        rows = torch.tensor([[-3.0, -1.0, 1.0, 3.0], [-1.0, -1.0, 1.0, 1.0]], device=device).view(2, 1, 1, 4)
        similar = torch.tensor([1.0, 0.5], device=device)  # in the second row the two in the middle have none
        yield Expectation("a slope and a step", similar, neighbour_similarity(rows))
        means = torch.tensor([[-2.0, -1.0, 1.0, 2.0], [-1.0, -1 / 3, 1 / 3, 1.0]], device=device).view(2, 1, 1, 4)
        yield Expectation("means of their neighbours", means, neighbourhood_mean(rows))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        with fork_seed(seed):
            attention = randomise_parameters(nn.Sequential(tiny_attention())).double().eval().to(device)[0]
            x = torch.randn(2, 36, CHANNELS, dtype=torch.float64).to(device)
        equal = x[:, :1].expand_as(x)
        with torch.no_grad():
            yield Expectation("result on equal tokens", attention(equal), pooled_values(attention, equal))
            grid = as_map(x, (6, 6))
            yield Expectation("means by hand", means_of_neighbours(grid), neighbourhood_mean(grid))
            yield Expectation("layout there and back", x, Flatten()(grid))

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = self.build("typical", 0, device)
        target, x = case.target, case.inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        yield Invalid("inputs with NaN", lambda: DESIGN.measure(target, x), "not finite")
        yield Invalid("tokens without a grid", lambda: neighbour_similarity(x[0]), "must have shape (B, C, H, W)")
        yield Invalid("a network on maps", lambda: DESIGN.apply(nn.Conv2d(1, 1, 1)), "`TokenAttention`")


def neighbour_cosine(tokens: list[list[float]], size: tuple[int, int]) -> float:
    """`neighbour_similarity` of one datum by plain loops over its tokens (N, C)."""
    mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
    centred = [[x - m for x, m in zip(token, mean, strict=True)] for token in tokens]
    cosines = []
    for i, j in product(range(size[0]), range(size[1])):
        near = ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
        around = [centred[a * size[1] + b] for a, b in near if 0 <= a < size[0] and 0 <= b < size[1]]
        total = [sum(column) for column in zip(*around, strict=True)]
        token = centred[i * size[1] + j]
        dot = sum(map(float.__mul__, token, total))
        cosines.append(dot / (sum(x * x for x in token) * sum(x * x for x in total)) ** 0.5)
    return max(sum(cosines) / len(cosines), 0.0)


def means_of_neighbours(x: Tensor) -> Tensor:
    """The mean of the 3x3 window inside the map around each position, by plain loops: (B, C, H, W)."""
    out = torch.empty_like(x)
    for i, j in product(range(x.shape[2]), range(x.shape[3])):
        out[..., i, j] = x[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
    return out


CASES = DimensionConsistentCases()

# --------------------------------------------------------------------------------------------------------------------
# Pooling in the place of attention


def test_pooling_is_attention_with_the_matrix_of_3x3_means() -> None:
    torch.manual_seed(0)
    attend, tokens = randomise_parameters(nn.Sequential(tiny_attention())).double().eval()[0], noise(2, 36, CHANNELS)
    matrix = neighbourhood_mean(torch.eye(36, dtype=torch.float64).unflatten(1, (6, 6)).unsqueeze(0))[0].flatten(1).mT
    torch.testing.assert_close(matrix.sum(1), torch.ones(36, dtype=torch.float64))
    with torch.no_grad():
        qkv = attend.qkv(tokens).unflatten(2, (attend.heads, -1)).transpose(1, 2)
        values = qkv[..., 2 * attend.key_dim :]  # (B, heads, N, value_dim)
        by_matrix = attend.proj((matrix @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(pooled_values(attend, tokens), by_matrix, rtol=1e-12, atol=1e-12)
    assert value_rows(attend).sum() == attend.heads * attend.value_dim


def test_only_the_first_blocks_pool() -> None:
    case = CASES.build("typical", 0, "cpu")
    with DESIGN.apply(case.target, pooled=2) as handle:
        case.run(case.target, case.inputs)
        assert list(handle.trace["substituted"]) == ["1.token_mixer", "2.token_mixer"]
        saved = 2 * CHANNELS * 8 * 36 + (8 + 16) * 36**2
        assert DESIGN.saving(case.target, case.inputs, handle.trace) == 2 * 3 * saved


def test_the_threshold_pools_the_smooth_and_spares_the_noise() -> None:
    case = CASES.build("typical", 0, "cpu")
    plain = case.run(case.target, case.inputs)
    with DESIGN.apply(case.target, threshold=0.6) as handle:
        mixed = case.run(case.target, case.inputs)
        assert [number for _, number in handle.trace["substituted"].values()] == [2, 2, 2]
    torch.testing.assert_close(mixed[0], plain[0])
    assert (mixed - plain)[1:].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, None], ids=str)
def test_the_threshold_compares_in_float32(dtype: torch.dtype | None) -> None:
    network = nn.Sequential(tiny_attention()).to(dtype or torch.float32)
    smooth = nn.functional.interpolate(noise(24, CHANNELS, 2, 2), size=(6, 6), mode="bilinear")
    strength = torch.logspace(-3, 0, 24, dtype=torch.float64).view(-1, 1, 1, 1)
    x = as_tokens(smooth + strength * noise(24, CHANNELS, 6, 6, seed=2)).to(dtype or torch.float32)
    shares = likeness(network[0], x.float())
    for threshold in (0.5, *shares.sort().values[[4, 12, 20]].tolist()):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=dtype is None),
            DESIGN.apply(network, threshold=min(threshold, 1.0)) as handle,
        ):
            forward(network, x)()
            _, number = handle.trace["substituted"]["0"]
        assert number == int((likeness(network[0], x) >= threshold).sum())
        assert abs(number - int((shares >= threshold).sum())) <= (dtype == torch.float64)  # one may lie at it


def test_tokens_of_another_square_pool_on_their_own_grid() -> None:
    network, x = nn.Sequential(tiny_attention()).eval(), noise(2, 16, CHANNELS, dtype=torch.float32)
    equal = x[:, :1].expand_as(x)
    network[0].bias.table.data.zero_()
    with DESIGN.apply(network) as handle:
        torch.testing.assert_close(forward(network, equal)(), forward(tiny_like(network[0]), equal)())
        assert forward(network, x)().shape == x.shape
        assert handle.trace["substituted"] == {"0": (x.shape, 2)}
    assert 0 <= DESIGN.measure(network, x).value <= 1
    with DESIGN.apply(network), pytest.raises(ValueError, match="15 tokens make no feature map"):
        network(x[:, :15])


def test_attention_that_computes_something_else_is_refused() -> None:
    class Gated(TokenAttention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0.5

    network = nn.Sequential(Gated(CHANNELS, (6, 6), heads=2, key_dim=4, ratio=2))
    for call in (DESIGN.apply, lambda net: DESIGN.measure(net, torch.zeros(2, 36, CHANNELS))):
        with pytest.raises(UnsupportedHost, match="compute what a plain TokenAttention does, but 0 does not"):
            call(network)


def tiny_like(attention: TokenAttention) -> TokenAttention:
    """Another module with the same weights."""
    made = tiny_attention()
    made.load_state_dict(attention.state_dict())
    return made


def test_an_empty_batch_runs_and_cannot_be_measured_nor_can_batch_norm_that_trains() -> None:
    network, none = nn.Sequential(tiny_attention()).eval(), torch.zeros(0, 36, CHANNELS)
    for threshold in (None, 0.5):
        with DESIGN.apply(network, threshold=threshold):
            assert forward(network, none)().shape == none.shape
    with pytest.raises(ValueError, match="the batch is empty"):
        DESIGN.measure(network, none)
    with pytest.raises(UnsupportedHost, match="batch norm in evaluation mode"):
        DESIGN.measure(nn.Sequential(nn.BatchNorm1d(36), tiny_attention()), torch.zeros(2, 36, CHANNELS))


# --------------------------------------------------------------------------------------------------------------------
# Layout


def test_the_same_blocks_on_maps_and_on_tokens_give_the_same_for_the_same_macs() -> None:
    models, x = layouts((6, 5), 8, 3), noise(2, 8, 6, 5, dtype=torch.float32)
    results, macs = {}, {}
    for name, model in models.items():
        with count() as tally:
            results[name] = forward(model, x)()
        macs[name] = tally.macs
    assert set(macs.values()) == {3 * 2 * 8 * 32 * 30 * 2}
    torch.testing.assert_close(results["maps"], results["tokens"])
    assert torch.equal(results["there and back"], results["maps"])
    assert (results["tokens with layer norms"] - results["tokens"]).abs().max() > 1e-3
    assert ThereAndBack()(x).data_ptr() != x.data_ptr(), "a copy"


@pytest.mark.parametrize(("kinds", "changes"), [("pppp", 0), ("ppaa", 2), ("aapp", 2), ("aaaa", 4), ("papa", 4)])
def test_the_layout_changes_only_where_a_block_needs_it(kinds: str, changes: int) -> None:
    model = four_blocks(kinds).eval()
    assert sum(isinstance(m, Flatten | ToMap) for m in model.network) == changes
    x = torch.zeros(2, 2, 32, 32)
    assert forward(model, x)().shape == (2, 1, 32, 32)
    seen = [tuple(m.shape[1:]) for m in stages(model, x)]
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
