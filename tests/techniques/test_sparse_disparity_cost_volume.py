"""Cases of the sparse disparity cost volume, and what is particular to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.layers.weights import randomise_parameters
from reference_impls.study import seeded
from reference_impls.techniques.sparse_disparity_cost_volume import (
    CostVolume,
    FoldedMatching,
    MatchingCost,
    SparseDisparityCostVolume,
    asked,
    computed,
    depth_levels,
    interleave,
    matched_columns,
    packing,
    pixel_macs,
    side_by_side,
    spared,
    uniform_levels,
)
from tests.support import noise

SPARSE = SparseDisparityCostVolume()
PAPER = (0, 4, 5, 6, 7, 8, 9, 11, 13, 16, 21, 30)
"""Of DrivingStereo's calibration, and the one without shift."""


def volume(levels: tuple[int, ...]) -> CostVolume:
    return seeded(0, lambda: randomise_parameters(CostVolume(levels, MatchingCost()))).eval().requires_grad_(False)


def features(seed: int = 1, width: int = 34) -> Tensor:
    return noise(2, 1, 32, 3, width, seed=seed)


class CostVolumeCases(Cases):
    """Levels all of which the default camera asks for, levels beyond the first that it never does, and even ones."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        levels = {"typical": uniform_levels(32), "redundant": (0, *range(60, 90)), "null": PAPER}[kind]
        pair = torch.randn(2, 1, 32, 3, levels[-1] + 4, generator=generator(seed)).to(device)
        network = seeded(seed, lambda: randomise_parameters(CostVolume(levels, MatchingCost()))).eval()
        return Case(network.requires_grad_(False).to(device), tuple(pair), lambda net, pair: net(*pair))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        yield Expectation("levels of the paper", torch.tensor(PAPER), torch.tensor(asked(1003.556, 0.54, 2.0, 32.0)))
        nearest = [min((abs(a - b), b) for b in (0, 3, 8))[1] for a in (0, 1, 2, 5, 6, 9)]
        by_hand = torch.tensor(sorted(set(nearest)))
        yield Expectation("nearest levels", by_hand, torch.tensor(computed((0, 3, 8), (0, 1, 2, 5, 6, 9))))
        yield Expectation(
            "level 7 for 6.6", torch.tensor([0, 7]), torch.tensor(depth_levels(100, 1, torch.tensor([3.8])))
        )

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        network, (left, right) = volume((0, 1, 3, 7)).double().to(device), features().to(device)
        yield Expectation("the loop over levels", network.loop(left, right), network(left, right))
        full, some = volume(uniform_levels(32)).double().to(device), torch.tensor(PAPER[:-1])
        with SPARSE.apply(full, step=2.0):
            sparse = full(left, right)
        yield Expectation("costs of computed levels", full(left, right)[:, :, some], sparse[:, :, some])

    def invalid(self, device: str) -> Iterable[Invalid]:
        network, (left, right) = volume((0, 1, 3, 7)).double().to(device), features().to(device)
        depths = torch.tensor([1.0, 2.0])
        yield Invalid(
            "a baseline in millimetres", lambda: depth_levels(1000, 540, depths), "is it in millimetres (0.54 m)"
        )
        yield Invalid("depth 0", lambda: depth_levels(1000, 0.54, torch.zeros(1)), "depths must be positive")
        yield Invalid("no depths", lambda: depth_levels(1000, 0.54, torch.zeros(0)), "at least one")
        yield Invalid("other widths", lambda: network(left, right[..., 1:]), "same shape")
        yield Invalid("narrow features", lambda: network(left[..., :7], right[..., :7]), "cannot be shifted by 7")
        yield Invalid("falling levels", lambda: CostVolume((3, 1), nn.Identity()), "ascending order")
        yield Invalid("other channels", lambda: MatchingCost(32), "64 channels")


CASES = CostVolumeCases()

# --------------------------------------------------------------------------------------------------------------------
# Beyond the checks


def test_a_level_sees_one_column_of_the_right_image() -> None:
    """With kernels of one column, costs at level j and column u depend on column u - j alone."""
    network = volume((0, 2, 5)).double()
    for conv in network.match.convs:  # type: ignore[union-attr]
        outer = torch.ones(3, 3, dtype=torch.bool)
        outer[1, 1] = False
        conv.weight[:, :, outer] = 0
    left, right = features(width=12)
    other = right.clone()
    other[..., 4] += 1
    changed = (network(left, right) != network(left, other)).any((0, 1, 3)).nonzero().tolist()
    assert changed == [[0, 4], [1, 6], [2, 9]]


def test_equals_the_published_convolutions_over_channels() -> None:
    """Kernels as long as their stride over the channels, in 3-D, as the paper has them."""
    match, x = seeded(0, lambda: randomise_parameters(MatchingCost())).double().eval(), noise(2, 64, 4, 9)
    y = x[:, None]
    for conv, norm, kernel in zip(match.convs, match.norms, match.KERNELS, strict=True):
        weight = conv.weight.unflatten(1, (kernel, -1)).transpose(1, 2)  # (C', C, kernel, 3, 3)
        y = nn.functional.conv3d(y, weight, stride=(kernel, 1, 1), padding=(0, 1, 1))
        y = nn.functional.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    y = match.project_norm(match.project(y.squeeze(2))).relu()
    torch.testing.assert_close(match(x), y, rtol=1e-12, atol=1e-12)


def test_interleaving_and_packing() -> None:
    left, right = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    assert interleave(left, right).flatten().tolist() == [0, 1, 0, 1]
    left, right = features()
    last = interleave(*(x.to(memory_format=torch.channels_last) for x in (left, right)))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, interleave(left, right))
    assert packing((0, 2), 3) == [3, 1, 1, 1]


def test_levels_side_by_side_in_narrow_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert side_by_side(PAPER, 220, 40) == [(level,) for level in PAPER]  # each fills a map alone
    assert side_by_side(PAPER, 40, 204) == [PAPER[:5], PAPER[5:]]
    network, (left, right) = volume(PAPER).double(), features()
    wide = network(left, right)
    for columns in (70, 1):
        monkeypatch.setattr("reference_impls.techniques.sparse_disparity_cost_volume.WIDEST", 64 * 3 * columns)
        assert len(side_by_side(PAPER, 34, columns)) > 4
        torch.testing.assert_close(network(left, right), wide, rtol=1e-12, atol=1e-12)


def test_macs_are_those_of_the_loop_and_a_column_for_each_level() -> None:
    network, (left, right) = volume(PAPER), features(width=40).float()
    tallies = []
    for run in (network.forward, network.loop):
        with count() as tally:
            run(left, right)
        tallies.append(tally.macs)
    columns = sum(40 - level for level in PAPER)
    assert matched_columns(PAPER, left.shape) == columns + len(PAPER)
    assert matched_columns(PAPER, (1, 32, 100, 220)) == sum(220 - level for level in PAPER)  # each in a map alone
    assert tallies == [3 * (columns + len(PAPER)) * pixel_macs(network.match), 3 * columns * pixel_macs(network.match)]
    inference = FoldedMatching(network.match)  # type: ignore[arg-type]
    assert pixel_macs(inference) == pixel_macs(network.match)
    with count() as tally:
        CostVolume(PAPER, inference).loop(left, right)
    assert tally.macs == tallies[1]
    assert pixel_macs(network.match) == 8 * 576 + 2 * 4608 + 2304 + 8


def test_what_is_spared() -> None:
    assert spared(uniform_levels(48), PAPER) == pytest.approx(36 / 47)
    assert spared(PAPER, PAPER) == 0
