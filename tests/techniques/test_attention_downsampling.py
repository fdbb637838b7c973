"""Attention downsampling beyond the checks: queries against keys, and the ways to halve a map."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Literal

import pytest
import torch

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.experiments.attention_downsampling import DOWNSAMPLINGS, Halving, halving_network
from reference_impls.layers.attention import PositionBias
from reference_impls.layers.weights import randomise_parameters
from reference_impls.study import fork_seed, forward
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling
from reference_impls.techniques.stride_attention import Coarseness, attend_coarsely
from tests.feature_map_cases import CHANNELS, coarse_scores_are_means, energy_share, map_case, tiny_attention, waves
from tests.support import noise, parameters

DOWN = AttentionDownsampling()

# --------------------------------------------------------------------------------------------------------------------
# Cases


class AttentionDownsamplingCases(Cases):
    """Attention on constant maps, on chessboards, and on what is in between (`map_case`)."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        return map_case(kind, seed, device)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = map_case("typical", seed, device)
        with DOWN.apply(case.target, factor=2, threshold=0.5) as handle:
            forward(handle.target, case.inputs)()
            _, chosen = handle.trace["substituted"]["0.token_mixer"]
        by_hand = sum(energy_share(one.double().tolist(), 2) >= 0.5 for one in case.inputs)
        yield Expectation("maps with fewer queries", torch.tensor(by_hand), torch.tensor(chosen))
        yield from queries_one_by_one(seed, device)
        by_value = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 0, 5, 4, 3, 8, 7, 6],
                                 [6, 7, 8, 3, 4, 5, 0, 1, 2], [8, 7, 6, 5, 4, 3, 2, 1, 0]])  # fmt: skip
        yield Expectation("distances from 4 corners to 9 keys", by_value, PositionBias(1, (3, 3), stride=2).index)
        with DOWN.apply(tiny_attention().eval().to(device), factor=2, threshold=0.5) as handle:
            forward(handle.target, waves().to(device))()
            _, chosen = handle.trace["substituted"][""]
        yield Expectation("waves of 3 cycles, not of 4, with fewer queries", torch.tensor(1), torch.tensor(chosen))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        yield from coarse_scores_are_means(2, 1, seed, device)
        flat = map_case("redundant", seed, device)
        with torch.no_grad():
            coarse = attend_coarsely(flat.target, flat.inputs, Coarseness(2))
            yield Expectation("result on constant maps", flat.target(flat.inputs), coarse)

    def invalid(self, device: str) -> Iterable[Invalid]:
        case = map_case("typical", 0, device)
        target, x = case.target, case.inputs.clone()
        x[0, 0, 0, 0] = torch.nan
        down = AttentionDown(12, 24, (8, 8)).to(device)
        yield Invalid("inputs with NaN", lambda: DOWN.measure(target, x), "not finite")
        yield Invalid("queries subsampled already", lambda: DOWN.apply(down), "`MapAttention` of stride 1")


def queries_one_by_one(seed: int, device: str) -> Iterable[Expectation]:
    """What `AttentionDown` gives for each query, and the same with one query after the other over all keys."""
    with fork_seed(seed):
        down = randomise_parameters(AttentionDown(12, 10, (6, 6), heads=2, key_dim=4, ratio=2))
        down, x = down.double().eval().to(device), torch.randn(1, 12, 6, 6, dtype=torch.float64).to(device)
    with torch.no_grad():
        queries, values = down.q(x), down.v(x)
        mixed = torch.zeros_like(down.v_local(values))
        q, k, v = (y[0].unflatten(0, (2, -1)) for y in (queries, down.k(x), values))  # (heads, channels, h, w) each
        for head in range(2):
            table = down.bias.table[head].unflatten(0, (6, 6))
            for i, j in product(range(3), range(3)):
                distance = table[[[abs(2 * i - a)] for a in range(6)], [[abs(2 * j - b) for b in range(6)]]]
                score = torch.einsum("c,chw->hw", q[head, :, i, j], k[head]) / 2 + distance
                weights = score.flatten().softmax(0).unflatten(0, (6, 6))
                mixed[0, 8 * head : 8 * head + 8, i, j] = (v[head] * weights).sum((1, 2))
        yield Expectation("queries over all keys", down.proj(down.act(mixed + down.v_local(values))), down(x))


CASES = AttentionDownsamplingCases()

# --------------------------------------------------------------------------------------------------------------------
# Beyond the checks


def down(**how: int) -> Halving:
    torch.manual_seed(0)
    return randomise_parameters(Halving(CHANNELS, 20, (8, 8), heads=2, key_dim=4, **how)).double().eval()


def maps() -> torch.Tensor:
    return noise(2, CHANNELS, 8, 8)


def test_equal_queries_lose_nothing_whatever_the_keys_are() -> None:
    """With a query that follows from its bias alone all positions ask the same."""
    torch.manual_seed(0)
    attend = randomise_parameters(tiny_attention()).double().eval()
    with torch.no_grad():
        attend.q.bn.weight.zero_()
        attend.q.bn.bias.zero_()
        attend.bias.table.zero_()
        plain = attend(maps())
        torch.testing.assert_close(attend_coarsely(attend, maps(), Coarseness(2)), plain, rtol=1e-12, atol=1e-12)
        fewer_keys = attend_coarsely(attend, maps(), Coarseness(1, 2, 1))
        torch.testing.assert_close(fewer_keys, plain, rtol=1e-12, atol=1e-12)  # equal queries weigh keys alike
        attend.k.conv.weight.mul_(3)
        attend.q.bn.bias.normal_()  # now keys differ for the one query of all
        plain = attend(maps())
        torch.testing.assert_close(attend_coarsely(attend, maps(), Coarseness(2)), plain, rtol=1e-12, atol=1e-12)
        assert (attend_coarsely(attend, maps(), Coarseness(1, 2, 1)) - plain).abs().max() > 1e-3


def test_macs_and_weights_of_the_ways_to_halve_a_map() -> None:
    channels, keys, values, tokens, queries = CHANNELS, 8, 32, 64, 16
    ways = {"all queries": down(stride=1), "fewer queries": down(), "few keys": down(cell=2)}
    executed = {}
    for name, way in ways.items():
        with count() as tally:
            assert forward(way, maps())().shape == (2, 20, 4, 4)
        executed[name] = tally.macs // 2
    torch.testing.assert_close(forward(ways["fewer queries"], maps())(), AttentionDown.forward(down(), maps()))
    assert executed["fewer queries"] == closed_form(down(), (CHANNELS, 8, 8)).macs
    more_queries = (9 * channels + channels * keys + (keys + values) * tokens) * (tokens - queries)
    assert executed["all queries"] - executed["fewer queries"] == more_queries
    fewer_keys = (channels * keys + (keys + values) * queries) * (tokens - queries)
    assert executed["fewer queries"] - executed["few keys"] == fewer_keys
    every, some, few = map(parameters, ways.values())
    assert every == some == few + 2 * (tokens - queries)  # but for the table of fewer keys the weights are the same


def test_all_queries_ask_at_every_position_and_are_averaged() -> None:
    """Where the result is the same at all positions, the average of four is any of them."""
    every, some = down(stride=1), down()
    with torch.no_grad():
        for module in (every, some):
            module.q.proj.conv.weight.zero_()
            module.bias.table.zero_()
        torch.testing.assert_close(every(maps()), some(maps()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DOWNSAMPLINGS)
def test_every_way_fits_the_small_network(name: str) -> None:
    assert forward(halving_network(name).eval(), torch.zeros(1, 2, 32, 32))().shape == (1, 1, 32, 32)
