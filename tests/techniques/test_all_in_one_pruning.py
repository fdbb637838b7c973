"""All-in-One beyond the checks: what is stored, what a switch does, and what keeps the latency level."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.layers.weights import randomise_parameters
from reference_impls.study.training import seeded
from reference_impls.techniques.all_in_one_pruning import AllInOne, governed, ladder, stored
from reference_impls.techniques.dvfs_ratio_mapping import LEVELS, Latency, variation
from reference_impls.techniques.shared_weight_multi_ratio_pruning import SharedNetwork
from tests.ratio_cases import RATIOS, shared
from tests.training_cases import Kind

ALL = AllInOne()
SHAPE = (1, 6, 6)


def one_map(ratios: tuple[float, ...], seed: int = 0) -> SharedNetwork:
    """A network of one feature map, so that MACs are in the ratios of its channels."""
    build = lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))  # noqa: E731
    return seeded(seed, lambda: randomise_parameters(SharedNetwork(build(), ratios))).finish()


class AllInOneCases(Cases):
    """One channel holds all weights and MACs follow the frequencies (redundant); all channels are alike and there is
    one ratio (null); or three maps with norms.
    """

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        network = shared(seed=seed) if kind == "typical" else one_map(RATIOS if kind == "redundant" else (0.0,), seed)
        weight = network.layers()[0].weight.data
        if kind == "redundant":
            weight[1:] = 0
        elif kind == "null":
            weight.copy_(weight.sign() / 4)
        x = torch.randn(3, *SHAPE, generator=generator(seed)).to(device)
        return Case(network.to(device), x, run=lambda target, x: target(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        governor = governed(one_map(RATIOS).to(device), SHAPE)
        found = []
        for frequency in (1.0, 0.75, 0.7, 0.5, 0.25, 0.1):
            governor.frequency = frequency
            found.append(governor.now)
        yield Expectation("ratios at six frequencies", torch.tensor([0, 1, 2, 2, 3, 3]), torch.tensor(found))
        measured = [Latency(8.0, 2.0), Latency(7.0, 2.0), Latency(6.0, 2.0), Latency(1.0, 2.0)]
        governor = governed(one_map(RATIOS).to(device), SHAPE, measured)
        governor.frequency = 0.5  # 18, 16, 14 and 4 ms, of which 10 are allowed
        yield Expectation("by measured latencies", torch.tensor(3), torch.tensor(governor.now))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        network = shared(seed=seed).to(device)
        x = torch.randn(3, *SHAPE, generator=generator(seed)).to(device)
        governor = governed(network, SHAPE)
        first = governor(x)
        for frequency in (0.25, 0.6, 1.0):
            governor.frequency = frequency
        yield Expectation("outputs after switching to and fro", first, governor(x))
        weights = sum(layer.weight.nbytes for layer in network.layers())
        rest = stored([network.plain, *network.norms]) - weights
        steps = ladder(network, SHAPE)
        yield Expectation("bytes of all ratios", torch.tensor(weights + rest), torch.tensor(stored(list(steps))))

    def invalid(self, device: str) -> Iterable[Invalid]:
        network = one_map(RATIOS)
        yield Invalid("neither profile nor shape", lambda: ALL.apply(network, frequency=0.5), "give a profile")
        short = [Latency(1.0)]
        yield Invalid("a profile too short", lambda: ALL.apply(network, profile=short), "of 1 networks")
        yield Invalid("a plain network", lambda: ALL.apply(network.plain, shape=SHAPE), "SharedNetwork")


CASES = AllInOneCases()


def test_latency_by_macs_is_level_where_one_map_is_pruned():
    steps = ladder(one_map(RATIOS), SHAPE)
    governor = governed(one_map(RATIOS), SHAPE)
    times = []
    for level in LEVELS:
        governor.frequency = level
        times.append(steps.macs[governor.now] / level)
    assert variation(times) < 1e-9 < variation(steps.macs[0] / level for level in LEVELS)


def test_a_file_of_all_ratios_is_far_smaller_than_a_file_for_each(tmp_path: Path):
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.Flatten(),
        nn.Linear(128, 3),
    )  # fmt: skip
    network = seeded(0, lambda: SharedNetwork(build(), RATIOS)).finish()
    network.save(tmp_path / "all.pt")
    for ratio in RATIOS:
        torch.save(build().state_dict(), tmp_path / f"{ratio:g}.pt")
    together, apart = (tmp_path / "all.pt").stat().st_size, [p.stat().st_size for p in tmp_path.glob("0*.pt")]
    assert len(apart) == len(RATIOS)
    assert together < 1.5 * apart[0] < 0.5 * sum(apart)
