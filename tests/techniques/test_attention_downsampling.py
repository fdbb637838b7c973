"""Attention downsampling beyond the checks: queries against keys, and the ways to halve a map."""

from __future__ import annotations

import pytest
import torch

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.contract import NoEffectWarning
from reference_impls.experiments.attention_downsampling import DOWNSAMPLINGS, AllQueries, FewKeys, downsampling
from reference_impls.experiments.efficient_nets import (
    CHANNELS,
    FILL,
    map_case,
    map_network,
    tiny_attention,
    without_gradients,
)
from reference_impls.layers.weights import randomise_parameters
from reference_impls.techniques.attention_downsampling import AttentionDown, AttentionDownsampling
from reference_impls.techniques.stride_attention import Coarseness, attend_coarsely

DOWN = AttentionDownsampling()


def down(kind: type[AttentionDown]) -> AttentionDown:
    torch.manual_seed(0)
    return randomise_parameters(kind(CHANNELS, 20, (8, 8), heads=2, key_dim=4)).double().eval()


def maps() -> torch.Tensor:
    return torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


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


def test_factor_one_is_equal_bit_for_bit_and_warns() -> None:
    case = map_case("typical", 0, "cpu")
    plain = case.run(case.target, case.inputs)
    with pytest.warns(NoEffectWarning, match="factor is 1"):
        DOWN.apply(case.target, factor=1)
    assert torch.equal(case.run(case.target, case.inputs), plain)


def test_the_threshold_spares_noise() -> None:
    case = map_case("typical", 0, "cpu")
    attend, x = case.target[0].token_mixer, case.inputs
    plain = without_gradients(attend, x[:1])
    with DOWN.apply(attend, factor=2, threshold=0.5) as handle:
        mixed = without_gradients(attend, x)
        assert handle.trace["substituted"] == {"": (x.shape, 2)}
    torch.testing.assert_close(mixed[:1], plain)


def test_macs_of_the_ways_to_halve_a_map() -> None:
    channels, keys, values, tokens, queries = CHANNELS, 8, 32, 64, 16
    executed = {}
    for kind in (AttentionDown, AllQueries, FewKeys):
        with count() as tally, torch.no_grad():
            assert down(kind)(maps()).shape == (2, 20, 4, 4)
        executed[kind] = tally.macs // 2
    assert executed[AttentionDown] == closed_form(down(AttentionDown), (CHANNELS, 8, 8)).macs
    more_queries = (9 * channels + channels * keys + (keys + values) * tokens) * (tokens - queries)
    assert executed[AllQueries] - executed[AttentionDown] == more_queries
    fewer_keys = (channels * keys + (keys + values) * queries) * (tokens - queries)
    assert executed[AttentionDown] - executed[FewKeys] == fewer_keys


def test_the_ways_to_halve_a_map_have_the_same_weights_but_for_the_table_of_fewer_keys() -> None:
    sizes = {kind: sum(p.numel() for p in down(kind).parameters()) for kind in (AttentionDown, AllQueries, FewKeys)}
    assert sizes[AttentionDown] == sizes[AllQueries] == sizes[FewKeys] + 2 * (64 - 16)


def test_all_queries_ask_at_every_position_and_are_averaged() -> None:
    """Where the result is the same at all positions, the average of four is any of them."""
    every, some = down(AllQueries), down(AttentionDown)
    with torch.no_grad():
        for module in (every, some):
            module.q.proj.conv.weight.zero_()
            module.bias.table.zero_()
        torch.testing.assert_close(every(maps()), some(maps()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", DOWNSAMPLINGS)
def test_every_way_fits_the_small_network(kind: str) -> None:
    network = map_network(FILL, lambda: None, downsampling(DOWNSAMPLINGS[kind])).eval()
    assert without_gradients(network, torch.zeros(1, 2, 32, 32)).shape == (1, 1, 32, 32)
