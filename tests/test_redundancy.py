"""The measures of redundancy on data with exactly known redundancy, and on data without any."""

from __future__ import annotations

import inspect
import itertools
import math
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reference_impls.contract import Technique
from reference_impls.contract.registry import ids, load
from reference_impls.redundancy import cross_sample_similarity as samples
from reference_impls.redundancy import cross_step_similarity as steps
from reference_impls.redundancy import exact_repetition as exact
from reference_impls.redundancy import irrelevance, over_precision, over_resolution, sufficiency
from reference_impls.redundancy import spatial_similarity as spatial
from reference_impls.redundancy import temporal_similarity as temporal


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------------------
# Exact repetition


def test_repeated_items_are_those_that_were_planted() -> None:
    items = [*range(80), *range(20)]  # 20 of 100 occur again
    assert exact.exact_repetition(items).value == pytest.approx(20 / 99)
    assert exact.exact_repetition(range(100)).value == 0
    assert exact.exact_repetition([7] * 5).value == 1
    assert exact.exact_repetition([1]).value == 0


def test_pairs_of_a_sample_are_scaled_to_the_whole() -> None:
    """Of 1,000 items with 100 pairs of twins, samples of 200 hold 4 pairs on average."""
    twin = torch.arange(1000)
    twin[100:200] = torch.arange(100)
    found = []
    for seed in range(200):
        chosen = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:200]
        groups = twin[chosen].unique(return_counts=True)[1]
        found.append(int((groups == 2).sum()))
    estimates = [exact.scaled_pairs(pairs, 200, 1000) for pairs in found]
    mean = sum(estimate for estimate, _, _ in estimates) / 200
    covered = sum(low <= 100 <= high for _, low, high in estimates) / 200
    assert mean == pytest.approx(100, rel=0.1)
    assert covered > 0.9
    assert exact.scaled_pairs(0, 10, 100)[0] == 0 < exact.scaled_pairs(0, 10, 100)[2]
    with pytest.raises(ValueError, match="sampled"):
        exact.scaled_pairs(1, 1, 10)


def test_repeated_rows_and_segments() -> None:
    rows = draws(2, 6, 3)
    rows[0, 3:] = rows[0, :3]
    assert exact.repeated_rows(rows).tolist() == [3 / 5, 0]
    found = exact.repeated_segments([[1, 2, 3, 4], [9, 2, 3, 4, 5]], 3)
    assert found.value == pytest.approx(3 / 4)  # of what lies beyond the longest
    assert exact.repeated_segments([[1, 2, 3, 4]] * 5, 3).value == 1
    assert exact.repeated_segments([[1, 2, 3, 4], [5, 6, 7, 8]], 3).value == 0
    assert exact.repeated_share(0, []) == 0
    with pytest.raises(ValueError, match="length"):
        exact.repeated_segments([[1]], 0)


# --------------------------------------------------------------------------------------------------------------------
# Temporal similarity


def test_a_static_stream_is_held_and_noise_is_not() -> None:
    still = draws(3, 16, 16).expand(5, 3, 16, 16)
    out, sent = temporal.held(still, 0.1)
    assert torch.equal(out, still)
    assert sent[0].all()
    assert not sent[1:].any()
    assert not temporal.affected(sent[1:], (3, 3), (1, 1), (1, 1)).any()
    noise = draws(5, 3, 16, 16)
    assert temporal.held(noise, 0.1)[1].double().mean() > 0.99
    assert temporal.temporal_similarity(still).value == 1
    assert temporal.temporal_similarity(noise).value == 0


def test_what_is_withheld_never_exceeds_the_limit_however_long_the_stream() -> None:
    stream = (0.02 * torch.arange(60)).view(60, 1, 1, 1).expand(60, 2, 4, 4) + draws(2, 4, 4)
    out, sent = temporal.held(stream, 0.1)
    assert (out - stream).abs().max() <= 0.1 + 1e-6
    assert 0.1 < sent.double().mean() < 0.25  # every fifth or sixth frame


def test_one_changed_position_reaches_the_window_of_a_convolution() -> None:
    sent = torch.zeros(1, 9, 9, dtype=torch.bool)
    sent[0, 4, 4] = True
    assert temporal.affected(sent, (3, 3), (1, 1), (1, 1)).sum() == 9
    assert temporal.affected(sent, (1, 1), (1, 1), (0, 0)).sum() == 1
    assert temporal.affected(sent, (3, 3), (2, 2), (1, 1)).sum() == 1
    assert temporal.affected(sent, (3, 3), (1, 1), (2, 2), (2, 2)).sum() == 9


def test_a_moving_window_is_static_only_after_its_shift() -> None:
    scene = draws(1, 3, 40, 60)
    frames = [scene[..., 4:36, 2 * t + 4 : 2 * t + 36] for t in range(3)]
    assert temporal.temporal_similarity(frames, tile=4).value < 0.05
    moved = [temporal.shift_compensated(a, b) for a, b in itertools.pairwise(frames)]
    shares = [
        1 - temporal.changed_tiles(a, b, tile=4, threshold=0.05).double().mean().item()
        for a, b in zip(moved, frames[1:], strict=True)
    ]
    assert min(shares) > 0.8  # all but the border that nobody has seen


def test_similarity_falls_with_the_lag() -> None:
    drift = draws(3, 8, 8) + 0.03 * torch.arange(6).view(6, 1, 1, 1)
    shares = temporal.lags(drift, 4, tile=4)
    assert shares[1] == 1
    assert shares[4] == 0


# --------------------------------------------------------------------------------------------------------------------
# Spatial similarity


def test_tokens_in_pairs_have_twins_and_orthogonal_ones_have_none() -> None:
    pairs = draws(2, 8, 16).repeat_interleave(2, dim=1)
    assert spatial.spatial_similarity(pairs).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert spatial.spatial_similarity(torch.eye(8)[None]).item() == 0


def test_piecewise_constant_maps_have_as_many_groups_as_distinct_windows() -> None:
    """7 x 7 blocks of one value in 56 x 56: 21 x 21 windows of 3 x 3 differ, by the edges that they see."""
    x = draws(1, 8, 7, 7).repeat_interleave(8, 2).repeat_interleave(8, 3)
    rows = F.unfold(x, 3, padding=1)[0].T
    true = len(rows.unique(dim=0)) / len(rows)
    assert true == 21**2 / 56**2  # 0.141
    assert spatial.row_reuse(rows, 48).ratio == pytest.approx(true, abs=0.002)
    coarse = spatial.row_reuse(rows, 8)
    assert coarse.ratio < spatial.row_reuse(rows, 16).ratio
    assert coarse.saved(64) == pytest.approx(1 - 8 / 64 - coarse.ratio)


def test_reuse_of_identical_rows_is_exact_and_distinct_rows_stay() -> None:
    rows = draws(20, 6).repeat(3, 1)
    found = spatial.row_reuse(rows, 40)
    assert found.groups == 20
    torch.testing.assert_close(found.mean(rows), rows)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert spatial.row_reuse(rows[order], 40).groups == 20
    apart = spatial.row_reuse(rows, 40, scope=torch.arange(3).repeat_interleave(20))
    assert apart.groups == 60
    with pytest.raises(ValueError, match="bits"):
        spatial.row_reuse(rows, 63)


def test_channels_of_rank_k_are_found_in_pieces() -> None:
    rows = draws(400, 3) @ draws(3, 12, seed=1)
    found = spatial.ChannelStatistics()
    for part in rows.split(90):
        found.add(part)
    torch.testing.assert_close(found.covariance, torch.cov(rows.double().T, correction=0))
    values, vectors = found.spectrum()
    assert spatial.rank_for(values, 0.99) <= 3
    assert spatial.rank_for(values, 1.0) == 3
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, found.covariance)
    assert spatial.channel_redundancy(values) >= 9 / 11
    assert spatial.channel_redundancy(torch.ones(12)) == 0
    assert spatial.effective_rank(torch.ones(12)) == pytest.approx(12)
    assert spatial.effective_rank(torch.eye(12)[0]) == pytest.approx(1)


def test_correlated_pairs_are_those_that_were_planted() -> None:
    rows = draws(500, 4)
    rows[:, 3] = -2 * rows[:, 0]
    assert spatial.correlated_pairs(torch.cov(rows.T)) == pytest.approx(1 / 6)
    assert spatial.correlated_pairs(torch.zeros(4, 4)) == 0


# --------------------------------------------------------------------------------------------------------------------
# Cross-sample similarity


def test_the_effective_number_counts_distinct_items() -> None:
    z = torch.eye(6)[[0, 0, 0, 1, 1, 1]]
    assert samples.effective_number(z) == pytest.approx(2)
    assert samples.effective_number(torch.eye(6)) == pytest.approx(6)
    assert samples.batch_similarity(torch.eye(6)) == pytest.approx(0, abs=1e-6)
    assert samples.batch_similarity(torch.ones(5, 3)) == pytest.approx(1)
    wide, tall = draws(5, 40), draws(40, 5)
    for x in (wide, tall):
        gram = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
        share = torch.linalg.eigvalsh(gram.double() / len(x)).clamp(min=1e-15)
        expected = float((-(share * share.log()).sum()).exp())
        assert samples.effective_number(x) == pytest.approx(expected, rel=1e-4)


def test_a_cache_hits_what_came_before_and_never_what_it_did_not_store() -> None:
    a, b = torch.eye(3)[0], torch.eye(3)[1]
    near = F.normalize(a + 0.1 * b, dim=0)
    assert samples.cache_hits(torch.stack([a, b, a, near]), 0.0).tolist() == [-1, -1, 0, -1]
    assert samples.cache_hits(torch.stack([a, b, a, near]), 0.01).tolist() == [-1, -1, 0, 0]


def test_the_leaked_share_is_that_of_the_planted_twins() -> None:
    train = draws(50, 64)
    test = draws(40, 64, seed=1)
    assert samples.leaked_share(samples.nearest(test, train)[0], 0.9) == 0
    test[:10] = train[:10] + 1e-3
    assert samples.leaked_share(samples.nearest(test, train)[0], 0.9) == 10 / 40
    assert samples.leaked_share(torch.zeros(0), 0.9) == 0


# --------------------------------------------------------------------------------------------------------------------
# Cross-step similarity and sufficiency


def test_a_block_that_does_nothing_has_no_influence() -> None:
    for x in (draws(2, 5, 8), draws(2, 8, 5, 5), draws(2, 8)):
        assert steps.block_influence(x, x).tolist() == pytest.approx([0, 0], abs=1e-6)
        assert steps.block_influence(x, -x).tolist() == [1, 1]
    assert steps.left_alone(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)).item() == 1
    with pytest.raises(ValueError, match="its own input"):
        steps.left_alone(draws(1, 2, 4), draws(1, 2, 5))
    assert steps.step_change(torch.zeros(1, 3), torch.ones(1, 3)).item() == pytest.approx(1)


def test_weights_that_stay_have_settled_and_unrelated_ones_have_not() -> None:
    w = draws(1000)
    assert steps.settled_weights(w, w) == 1
    assert steps.settled_weights(0.75 * w, w) == pytest.approx(0.75)
    assert steps.settled_weights(draws(1000, seed=1), w) == 0
    with pytest.raises(ValueError, match="one shape"):
        steps.settled_weights(w, w[:5])


def test_a_probe_tells_classes_that_lie_apart_and_none_that_do_not() -> None:
    answers = torch.arange(40) % 4
    apart = 10 * torch.eye(4)[answers] + 0.1 * draws(40, 4)
    said, margin = sufficiency.probe(apart, answers)
    assert torch.equal(said, answers)
    assert margin.min() > 0.5
    said, _ = sufficiency.probe(draws(400, 4), torch.arange(400) % 4)
    assert (said == torch.arange(400) % 4).double().mean() < 0.4  # means never come from the items themselves
    said, _ = sufficiency.probe(draws(8, 4), torch.arange(8))
    assert (said != torch.arange(8)).all()  # nobody else of the class is known


# --------------------------------------------------------------------------------------------------------------------
# Irrelevance


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_zeros_are_counted_by_the_structure_that_holds_them(share: float) -> None:
    x = draws(2, 8, 16, 16).abs() + 0.1
    channels = x.clone()
    channels[:, : int(8 * share)] = 0
    assert irrelevance.negligible_share(channels, 0, "channel").tolist() == [share] * 2
    assert irrelevance.negligible_share(channels, 0, "tile").tolist() == [0, 0]
    tiles = x.clone()
    tiles[..., : int(16 * share)] = 0
    assert irrelevance.negligible_share(tiles, 0, "tile", tile=4).tolist() == [share] * 2
    assert irrelevance.negligible_share(tiles, 0, "element").tolist() == [share] * 2
    assert irrelevance.negligible_share(tiles, 0, "channel").tolist() == [0, 0]
    tokens = x.flatten(2).transpose(1, 2).clone()
    tokens[:, : int(256 * share)] = 0
    assert irrelevance.negligible_share(tokens, 0, "token").tolist() == [share] * 2


def test_two_of_four_never_counts_more_than_half() -> None:
    x = torch.ones(1, 3, 8)
    x[..., [0, 1, 2, 4]] = 0  # three of the first four, one of the second
    assert irrelevance.negligible_share(x, 0, "two-of-four").item() == pytest.approx(2 / 8)


def test_structures_of_a_batch_must_be_negligible_in_all_its_items() -> None:
    x = torch.ones(4, 4, 2, 2)
    for i in range(4):
        x[i, i] = 0
    shares = [irrelevance.batch_share(x, 0, "channel", batch) for batch in (1, 2, 4)]
    assert shares == [0.25, 0, 0]


def test_attention_mass() -> None:
    uniform = torch.full((1, 1, 2, 20), 1 / 20)
    assert irrelevance.fewest_keys(uniform).tolist() == [[[0.95, 0.95]]]
    single = torch.zeros(1, 1, 2, 20)
    single[..., 3] = 1
    assert irrelevance.attention_irrelevance(single).item() == 1
    assert irrelevance.attention_irrelevance(uniform).item() == pytest.approx(1 / 19)
    assert irrelevance.sink_mass(uniform).item() == pytest.approx(0.2)


def test_easy_items_and_el2n() -> None:
    assert irrelevance.easy_share(torch.tensor([0.0, 0.0, 0.0, 8.0])) == 0.75
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert irrelevance.el2n(logits, torch.tensor([0, 0])).tolist() == pytest.approx([0, math.sqrt(2)])
    assert irrelevance.padding_share(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])).tolist() == [0.5, 0]


def test_learnt_items_are_those_that_stay_right() -> None:
    right = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 1, 0, 1], [1, 1, 1, 0, 0]]).bool()
    assert irrelevance.learnt_share(right) == 2 / 5  # one forgot, one never learnt, one fell back
    chance = torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0)) < 0.1
    assert irrelevance.learnt_share(chance) == pytest.approx(0.01, abs=2e-3)
    with pytest.raises(ValueError, match="two epochs"):
        irrelevance.learnt_share(right[:1])


def test_hoyer_is_known_for_normal_numbers() -> None:
    assert irrelevance.hoyer(draws(10**6)) == pytest.approx(1 - (2 / torch.pi) ** 0.5, abs=2e-3)
    one = torch.zeros(5, 5)
    one[2, 3] = -4
    assert irrelevance.hoyer(one) == 1
    assert irrelevance.hoyer(torch.tensor([-2.0, 2.0, 2.0])) == pytest.approx(0)
    assert irrelevance.hoyer(torch.zeros(3)) == 1
    assert irrelevance.hoyer(torch.ones(1)) == 0
    with pytest.raises(ValueError, match="empty"):
        irrelevance.hoyer(torch.zeros(0))


def test_an_output_is_indifferent_to_a_part_that_does_nothing() -> None:
    before = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert irrelevance.change(before, before) == 0
    assert irrelevance.change(before, before + torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == pytest.approx(1.0)
    assert irrelevance.change(torch.ones(2, 2), torch.zeros(2, 2)) == math.inf
    assert irrelevance.change(torch.ones(2, 2), torch.ones(2, 2)) == 0
    assert irrelevance.indifference(before, before) == 1
    a, b = draws(500, 8), draws(500, 8, seed=1)
    assert irrelevance.change(a, b) == pytest.approx(math.sqrt(2), abs=0.05)
    assert irrelevance.indifference(a, b) == 0


# --------------------------------------------------------------------------------------------------------------------
# Over-resolution and over-precision


def test_channels_that_half_the_grid_holds() -> None:
    smooth, noise = draws(1, 2, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3), draws(1, 2, 8, 8)
    assert over_resolution.low_band_channels(torch.cat([smooth, noise], 1)).item() == 0.5
    assert over_resolution.octave_saving(0.5) == pytest.approx(0.5625)
    assert over_resolution.octave_saving(1) == 0.75


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tensors_on_a_grid_of_b_bits_ask_for_no_more(bits: int) -> None:
    x = over_precision.quantised(draws(3, 5, 40), bits)
    assert (over_precision.effective_bits(x) <= bits).all()
    torch.testing.assert_close(over_precision.quantised(x, bits), x)
    channels = over_precision.quantised(draws(3, 5, 40) * torch.logspace(-3, 3, 5)[:, None], bits, channel=1)
    assert (over_precision.effective_bits(channels, channel=1) <= bits).all()


def test_noise_needs_the_bits_that_theory_says() -> None:
    """A uniform signal gains 6.02 dB with each bit: 30 dB take 5 to 6 bits."""
    uniform = 2 * torch.rand(1, 10000, generator=torch.Generator().manual_seed(0)) - 1
    assert over_precision.effective_bits(uniform).item() in (5, 6)
    ratios = [over_precision.noise_ratio(uniform, over_precision.quantised(uniform, b)).item() for b in (6, 7)]
    assert ratios[1] - ratios[0] == pytest.approx(6.02, abs=0.4)
    outlier = uniform.clone()
    outlier[0, 0] = 1000
    assert over_precision.effective_bits(outlier, target=-30).item() < over_precision.effective_bits(uniform).item()


def test_effectual_bits_and_entropy() -> None:
    assert over_precision.effectual_bits(torch.tensor([[127.0, 127.0]])).item() == 7
    assert over_precision.effectual_bits(torch.tensor([[64.0, 127.0]])).item() == 4
    assert over_precision.value_entropy(torch.tensor([[0.0, 0.0, 1.0, 1.0]])).item() == pytest.approx(1)
    assert over_precision.value_entropy(torch.ones(1, 9)).item() == 0


# --------------------------------------------------------------------------------------------------------------------
# What techniques measure

OWN = {
    "activation-quantisation": "entropy of the codes that the technique itself makes",
    "adjusted-precision-training": "bits that the noise of an array takes away: of the chip, not of the data",
    "adversarial-patch-region-removal": "how far important neurons crowd in one window: a suspicion, not a saving",
    "bit-serial-precision": "bits that groups of codes do not use, by the groups of its own machine",
    "bn-calibration": "distance of statistics from those of the inputs: a shift, not a redundancy",
    "deadline-aware-fusion": "results that no fusion uses: of a schedule, not of the data",
    "dvfs-ratio-mapping": "variation of latency over frequencies: of the machine, not of the data",
    "incremental-region-inference": "pixels outside of the box of what differs, which is all that it can leave out",
    "latency-prediction-from-proposals": "proposals that the target's own second stage rejects",
    "octree-occupancy-decoding": "cells inside free ones, by the target's own coarser levels",
    "pim-qat": "as pim-quantization",
    "pim-quantization": "range of a converter that nothing uses: of the array, for these data",
    "pim-scale-rescaling": "change of scale by conversion: an error, not a redundancy",
    "sparse-disparity-cost-volume": "levels that no depth of the camera asks for: geometry, not data",
    "stereo-occupancy-voxels": "as octree-occupancy-decoding",
}
"""Techniques that measure something else than a relation of the taxonomy -> what."""


def measures(function: Any, depth: int = 3) -> bool:
    """Whether a function, or one of the atlas that it calls, stands on a measure of `reference_impls.redundancy`."""
    function = inspect.unwrap(function)
    code, known = [function.__code__], function.__globals__
    for one in code:
        code.extend(c for c in one.co_consts if hasattr(c, "co_names"))
    for value in (known[name] for one in code for name in one.co_names if name in known):
        where = value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))
        inner = value.measure if isinstance(value, type) and issubclass(value, Technique) else value
        ours = isinstance(inner, FunctionType) and inner.__module__.startswith("reference_impls.techniques")
        if where.startswith("reference_impls.redundancy.") or (depth and ours and measures(inner, depth - 1)):
            return True
    return False


def test_what_a_technique_measures_is_one_of_these_or_said_to_be_something_else() -> None:
    apart = {id_ for id_ in ids() if not measures(type(load(id_)).measure)}
    assert apart <= set(OWN), apart - set(OWN)
    assert set(OWN) <= set(ids())
