"""Shared-weight multi-ratio pruning beyond the checks: one storage, nested masks, joint gradients, slices, files."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.count import count
from reference_impls.contract import Case, Cases, Expectation, Invalid, generator
from reference_impls.contract.errors import UnsupportedHost
from reference_impls.layers.weights import randomise_parameters
from reference_impls.study.training import seeded
from reference_impls.techniques.shared_weight_multi_ratio_pruning import (
    Granularity,
    Jointly,
    MultiRatioPruning,
    SharedNetwork,
    load,
    summed_loss,
)
from tests.ratio_cases import RATIOS, chain, shared
from tests.training_cases import Kind

PRUNING = MultiRatioPruning()
GRANULARITIES: tuple[Granularity, ...] = ("channel", "element")


class MultiRatioPruningCases(Cases):
    """A small network; one channel of each map holds all of its norm (redundant), or all are of one norm (null)."""

    def build(self, kind: Kind, seed: int, device: str) -> Case:
        network = shared(seed=seed).to(device)
        for layer in network.layers():
            if kind == "redundant":
                layer.weight.data[1:] = 0
            elif kind == "null":
                layer.weight.data = layer.weight.sign() / 4
        x = torch.randn(3, 1, 6, 6, generator=generator(seed)).to(device)
        return Case(network, x, run=lambda target, x: target(x))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        network = SharedNetwork(chain(), RATIOS).to(device)
        draws = generator(seed)
        with torch.no_grad():
            for one in network.soft:
                one.copy_(torch.randn(one.shape, generator=draws))
        first, second = (one.detach().cpu() for one in network.soft[:2])
        by_hand = [(float(first[c].mean()) + float(second[:, c].mean())) / 2 for c in range(8)]
        yield Expectation("score of a channel", torch.tensor(by_hand), network.scores()[0].detach().cpu())
        best = sorted(range(8), key=lambda c: -by_hand[c])
        for k, kept in enumerate((8, 6, 4, 2)):
            due = torch.zeros(8)
            due[best[:kept]] = 1
            yield Expectation(f"channels at {RATIOS[k]:g}", due, network.gates(k)[0].detach().cpu())
        linear = network.weights(2)["4"].detach().cpu().reshape(3, 8, 9)
        yield Expectation("columns of the linear layer", network.gates(2)[2].cpu() > 0, linear.abs().amax((0, 2)) > 0)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        for granularity in GRANULARITIES:
            network = shared(granularity, seed).to(device)
            for k in range(len(RATIOS)):
                counts = [int(gate.sum()) for gate in network.gates(k)]
                yield Expectation(f"{granularity}s kept", torch.tensor(network.kept(k)), torch.tensor(counts))
        yield Expectation("of 8, 4 and 8", torch.tensor([2, 1, 2]), torch.tensor(shared().kept(3)))

    def invalid(self, device: str) -> Iterable[Invalid]:
        network = shared().to(device)
        yield Invalid(
            "a ratio that it has not", lambda: PRUNING.apply(network, ratio=0.3), "no ratio 0.3; there are: 0"
        )
        unfinished = SharedNetwork(chain(), RATIOS)
        yield Invalid("not finished", lambda: PRUNING.apply(unfinished, ratio=0.5), "finished by finish()")
        yield Invalid("a slice of it", lambda: unfinished.sub_model(0.5), "call finish()")
        for ratios in ((), (0.5, 0.25), (0.5, 1.0), (0.5, 0.5)):
            yield Invalid(f"ratios {ratios}", lambda r=ratios: SharedNetwork(chain(), r), "ratios must ascend")
        yield Invalid("ratio -1", lambda: SharedNetwork(chain(), (-1.0,)), "ratio must be a number in [0, 1]")
        yield Invalid("nothing left", lambda: SharedNetwork(chain(), (0.0, 0.9)), "1.0: sparsity 0.9 leaves none of 4")
        yield Invalid("one layer", lambda: SharedNetwork(nn.Sequential(nn.Linear(2, 2)), RATIOS), "two convolutions")
        grouped = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2))
        yield Invalid("groups", lambda: SharedNetwork(grouped, RATIOS), "without groups")
        norm = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        yield Invalid("a layer norm", lambda: SharedNetwork(norm, RATIOS), "1 is a LayerNorm")
        yield Invalid("no chain", lambda: SharedNetwork(nn.TransformerEncoderLayer(4, 1), RATIOS), "nn.Sequential")


CASES = MultiRatioPruningCases()


def pointers(model: nn.Module) -> dict[str, int]:
    return {name: p.untyped_storage().data_ptr() for name, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_all_sub_models_hold_one_storage_of_weights(granularity: Granularity):
    network = shared(granularity)
    models = [network.sub_model(ratio) for ratio in RATIOS]
    whole = pointers(network.plain)
    assert all(pointers(model) == whole for model in models)
    x = torch.randn(2, 1, 6, 6, generator=generator(1))
    before = [model(x) for model in models]
    network.layers()[0].weight.data.mul_(3)
    assert all(not torch.equal(model(x), y) for model, y in zip(models, before, strict=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_sub_model_gives_what_the_masked_network_gives(granularity: Granularity):
    network = shared(granularity).double()
    x = torch.randn(5, 1, 6, 6, generator=generator(1)).double()
    for ratio, masked in zip(RATIOS, network.every(x), strict=True):
        model = network.sub_model(ratio)
        torch.testing.assert_close(model(x), masked, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(copy.deepcopy(model)(x), masked, rtol=1e-10, atol=1e-10)
    assert len({one.double().sum().item() for one in network.every(x)}) == len(RATIOS)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_finishing_changes_no_output(granularity: Granularity):
    network = seeded(3, lambda: randomise_parameters(SharedNetwork(chain(), RATIOS, granularity))).double().eval()
    x = torch.randn(5, 1, 6, 6, generator=generator(1)).double()
    before = [one.detach() for one in network.every(x)]
    for one, other in zip(before, network.finish().every(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_switching_to_and_fro_is_bit_equal():
    network, x = shared(), torch.randn(4, 1, 6, 6, generator=generator(1))
    first = network.sub_model(0.0)(x)
    network.sub_model(0.75)(x)
    assert torch.equal(first, network.sub_model(0.0)(x))


def test_masks_are_nested_at_every_step_and_membership_moves():
    network = seeded(0, lambda: SharedNetwork(chain(), RATIOS, "element"))
    optimiser = torch.optim.AdamW(network.parameters(), 0.02)
    x, y = torch.randn(12, 1, 6, 6, generator=generator(0)), torch.arange(12) % 3
    start, magnitudes = [gate.detach() > 0 for gate in network.gates(2)], 0
    for _ in range(10):
        optimiser.zero_grad()
        summed_loss(Jointly(network)(x), y).backward()
        assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in network.soft)
        optimiser.step()
        masks = [[gate.detach() > 0 for gate in network.gates(k)] for k in range(len(RATIOS))]
        for looser, tighter in pairwise(masks):
            assert all(bool((a | ~b).all()) for a, b in zip(looser, tighter, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start, masks[2], strict=True))
    for layer, mask in zip(network.layers(), masks[2], strict=True):  # S is learned: it is not the magnitude
        magnitudes += int((layer.weight.abs().flatten()[mask].min() < layer.weight.abs().flatten()[~mask].max()).item())
    assert magnitudes > 0


def test_gradients_of_all_ratios_are_summed():
    network = seeded(0, lambda: SharedNetwork(chain(), RATIOS)).double().eval()
    x, y = torch.randn(6, 1, 6, 6, generator=generator(0)).double(), torch.arange(6) % 3
    (whole,) = torch.autograd.grad(summed_loss(network.every(x), y), network.layers()[1].weight)
    parts = torch.zeros(1)
    for k in range(len(RATIOS)):
        loss = nn.functional.cross_entropy(network.every(x)[k], y)
        parts = parts + torch.autograd.grad(loss, network.layers()[1].weight)[0]
    torch.testing.assert_close(whole, parts)


def test_a_batch_norm_is_used_by_its_ratio_alone():
    network = SharedNetwork(chain(), RATIOS).train()
    network(torch.randn(6, 1, 6, 6, generator=generator(0)), 0.5)
    moved = [bool(network.norms_of(k)[0].running_mean.any()) for k in range(len(RATIOS))]  # type: ignore[union-attr, operator]
    assert moved == [False, False, True, False]
    one = SharedNetwork(chain(), RATIOS, norms="one")
    assert all(one.norms_of(k) == one.norms_of(0) for k in range(len(RATIOS)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_file_holds_the_weights_once_and_gives_the_network_back(granularity: Granularity, tmp_path: Path):
    network = shared(granularity)
    network.save(tmp_path / "all.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["all.pt"]
    again = load(tmp_path / "all.pt", chain(), granularity)
    x = torch.randn(4, 1, 6, 6, generator=generator(1))
    for ratio in RATIOS:
        assert torch.equal(network.sub_model(ratio)(x), again.sub_model(ratio)(x))
    with pytest.raises(ValueError, match="another model"):
        load(tmp_path / "all.pt", nn.Sequential(*chain()[:4], nn.Linear(72, 4)), granularity)
    names = {n for n, x in network.state()["plain"].items() if x.ndim > 1}
    assert names == {"0.0.weight", "1.0.weight", "2.weight", "4.weight"}
    assert not any(x.ndim > 1 for one in network.state()["norms"] for norm in one for x in norm.values())


def test_elements_take_any_network_and_save_nothing():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(x + self.b(self.a(x)))

    network = seeded(0, lambda: SharedNetwork(Residual(), (0.0, 0.5), "element")).finish()
    x = torch.randn(1, 2, 4, 4, generator=generator(0))
    executed = []
    for ratio in (0.0, 0.5):
        with count() as tally:
            network.sub_model(ratio)(x)
        executed.append(tally.macs)
    assert executed[0] == executed[1]
    assert int((network.weights(1)["b"] != 0).sum()) == 18
    with pytest.raises(UnsupportedHost, match="masks of elements take any"):
        SharedNetwork(Residual(), (0.0, 0.5))
