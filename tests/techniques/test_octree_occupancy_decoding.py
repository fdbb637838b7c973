"""Cases of octree occupancy decoding, and what is particular to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.experiments.octree_occupancy_decoding import in_slabs, kept_cells
from reference_impls.layers.weights import randomise_parameters
from reference_impls.study import forward, seeded
from reference_impls.techniques.octree_occupancy_decoding import (
    Cells,
    OctreeDecoder,
    OctreeOccupancyDecoding,
    decode,
    decode_masked,
    grids,
    shares_of,
)
from tests.support import noise, parameters

OCTREE, WIDTHS, FIRST = OctreeOccupancyDecoding(), (6, 5, 4), 3


def decoder(seed: int = 0) -> OctreeDecoder:
    return seeded(seed, lambda: randomise_parameters(OctreeDecoder(WIDTHS))).double().eval().requires_grad_(False)


def finest(network: torch.nn.Module, x: Tensor) -> Tensor:
    return network(x)[-1]


class OctreeCases(Cases):
    """Features of 0 are free everywhere, large ones are occupied everywhere (weights are positive)."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        network = decoder(seed).float()
        x = torch.randn(2, WIDTHS[0], *[FIRST] * 3, generator=generator(seed))
        if kind != "typical":
            network = seeded(seed, lambda: OctreeDecoder(WIDTHS)).eval().requires_grad_(False)
            for name, parameter in network.named_parameters():
                if name.startswith("heads") and name.endswith("bias"):
                    parameter.fill_(-3.0)
                else:
                    parameter.abs_() if parameter.ndim > 1 else None
            x = torch.zeros_like(x) if kind == "redundant" else torch.full_like(x, 300.0)
        return Case(network.to(device), x.to(device), finest)

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        network, x = decoder().to(device), noise(2, WIDTHS[0], *[FIRST] * 3).to(device)
        dense = network(x)
        found = decode(network, x, 0.5)
        by_hand = sum(float(p) >= 0.5 for p in dense[0].flatten())
        yield Expectation("kept cells of the first level", torch.tensor(by_hand), torch.tensor(found[0].kept))
        yield Expectation("8 children each", torch.tensor(8 * by_hand), torch.tensor(len(found[1].cells.index)))
        one = Cells(torch.tensor([[0, 1, 0, 2]]), 3, 1).children()
        corners = torch.cartesian_prod(torch.tensor([2, 3]), torch.tensor([0, 1]), torch.tensor([4, 5]))
        yield Expectation("children of (1, 0, 2)", corners, one.index[:, 1:])
        near = Cells(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 2, 2]]), 3, 1).neighbours()
        yield Expectation("live neighbours", torch.tensor([2, 2, 1]), (near < 3).sum(1))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        network, x = decoder().to(device), noise(2, WIDTHS[0], *[FIRST] * 3).to(device)
        for dense, sparse in zip(network(x), grids(network, decode(network, x, 0.0)), strict=True):
            yield Expectation(f"every cell of {dense.shape[1]}", dense, sparse)

    def invalid(self, device: str) -> Iterable[Invalid]:
        network, x = decoder().to(device), noise(1, WIDTHS[0], *[FIRST] * 3).to(device)
        bad = x.clone()
        bad[0, 0, 0, 0, 0] = torch.nan
        yield Invalid("one channel", forward(network, x[:, :1]), "must have shape (B, 6, n, n, n)")
        yield Invalid("no cube", forward(network, x[..., :2]), "must have shape")
        yield Invalid("a level that is not there", lambda: network(x, level=3), "level must be in [0, 2]")
        yield Invalid("NaN", lambda: OCTREE.measure(network, bad), "not finite")
        yield Invalid("no level", lambda: OctreeDecoder(()), "at least one level")


CASES = OctreeCases()

# --------------------------------------------------------------------------------------------------------------------
# Beyond the checks


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_skipping_equals_dense_layers_that_see_nothing_elsewhere(share: float) -> None:
    network, x = decoder(), noise(1, WIDTHS[0], *[FIRST] * 3)
    kept = kept_cells([FIRST << n for n in range(3)], share)
    found = decode(network, x, 1.0, truth=kept)
    torch.testing.assert_close(
        grids(network, found)[-1], decode_masked(network, x, 1.0, truth=kept)[-1], rtol=0, atol=1e-12
    )
    with count() as tally:
        decode(network, x, 1.0, truth=kept)
    rows = [len(one.cells.index) for one in found]
    assert rows[1:] == [8 * one.kept for one in found[:-1]]
    each = [r.split.weight.numel() // 8 + r.mix.weight.numel() for r in network.refinements]
    by_hand = rows[0] * WIDTHS[0] + sum(n * (m + w) for n, m, w in zip(rows[1:], each, WIDTHS[1:], strict=True))
    assert tally.macs == by_hand  # multiplications by what is not kept are not made


def test_slabs_give_what_whole_grids_give() -> None:
    network, x = decoder(), noise(1, WIDTHS[0], *[FIRST] * 3)
    kept = kept_cells([FIRST << n for n in range(3)], 0.1)
    with count() as whole:
        dense = network(x)
    with count() as slabs:
        parts = in_slabs(network, x, 5)
    assert whole.macs == slabs.macs
    masked = decode_masked(network, x, 1.0, truth=kept)
    for ours, expected in ((parts, dense), (in_slabs(network, x, 4, kept), masked)):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_an_empty_scene_stops_at_the_first_level() -> None:
    case = CASES.build("redundant", 0, "cpu")
    with count() as tally, OCTREE.apply(case.target, threshold=0.5) as handle:
        assert not any(bool(grid.ge(0.5).any()) for grid in case.target(case.inputs))
    assert handle.trace[""]["computed"] == [2 * FIRST**3]
    assert tally.macs == 2 * FIRST**3 * WIDTHS[0]


def test_every_occupied_cell_has_occupied_ancestors_and_misses_are_final() -> None:
    network, x = decoder(), noise(2, WIDTHS[0], *[FIRST] * 3)
    with OCTREE.apply(network, threshold=0.4):
        coarse, middle, fine = (grid >= 0.4 for grid in network(x))
    for below, above in ((middle, coarse), (fine, middle)):
        parents = above.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert bool((below <= parents).all())
        assert below.any()


def test_levels_and_what_is_added_at_them() -> None:
    network, x = decoder(), noise(1, WIDTHS[0], *[FIRST] * 3)
    skips = [noise(1, WIDTHS[1], *[2 * FIRST] * 3, seed=2), None]
    dense, sparse = network(x, skips), grids(network, decode(network, x, 0.0, skips))
    for a, b in zip(dense, sparse, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert not torch.allclose(dense[-1], network(x)[-1])
    assert [grid.shape[1] for grid in network(x, level=1)] == [FIRST, 2 * FIRST]
    with OCTREE.apply(network, threshold=0.5) as handle:
        assert len(network(x, level=0)) == 1
        assert handle.trace[""]["computed"] == [FIRST**3]


def test_counts_of_the_dense_decoder() -> None:
    with torch.device("meta"):
        network = OctreeDecoder((32, 16, 8, 4))
        with count() as tally, torch.no_grad():
            network(torch.empty(1, 32, 8, 8, 8))
    footprint = closed_form(network, (32, 8, 8, 8))
    assert footprint.parameters == parameters(network)
    assert (
        footprint.macs
        == tally.macs
        == sum(n**3 * (a * b + 27 * b * b + b) for n, a, b in ((16, 32, 16), (32, 16, 8), (64, 8, 4))) + 8**3 * 32
    )


def test_heads_begin_at_the_shares_of_occupied_cells() -> None:
    fine = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    fine[0, 0, 0, 0] = fine[1, 3, 3, 2:] = True
    truth = [nn.functional.max_pool3d(fine[:, None].float(), 2)[:, 0].bool(), fine]
    assert shares_of(truth) == [2 / 16, 3 / 16]
    network = OctreeDecoder((3, 2))
    network.begin_at(shares_of(truth))
    grids_ = network(torch.zeros(1, 3, 2, 2, 2))
    assert grids_[0].mean().item() == pytest.approx(2 / 16)
    assert network.heads[1].bias.sigmoid().item() == pytest.approx(3 / 16)
    with pytest.raises(ValueError, match="there are 2 levels, got 1 shares"):
        network.begin_at([0.5])
    with pytest.raises(ValueError, match="between 0 and 1, got 0"):
        network.begin_at([0.5, 0.0])


def test_truth_is_used_in_training_only() -> None:
    network, x = decoder(), noise(1, WIDTHS[0], *[FIRST] * 3)
    truth = [torch.ones(1, *[FIRST << n] * 3, dtype=torch.bool) for n in range(3)]
    all_cells = decode(network, x, 1.0, truth=truth)
    assert [len(one.cells.index) for one in all_cells] == [(FIRST << n) ** 3 for n in range(3)]
    with OCTREE.apply(network, threshold=1.0), pytest.raises(TypeError, match="truth"):
        network(x, truth=truth)
