"""Latency-driven slimming: the loop on planted cases, the rules of its moves, closed forms, the supernet, tables."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.latency import LatencyTable, measure_table, prediction_error
from reference_impls.benchmarks.compact_networks.networks_fashion import SIDE
from reference_impls.contract import Expectation, Invalid
from reference_impls.experiments import latency_driven_slimming as experiment
from reference_impls.layers.norm import recalibrate
from reference_impls.show import committed
from reference_impls.study import fork_seed
from reference_impls.techniques import efficientformer
from reference_impls.techniques.latency_driven_slimming import LatencyDrivenSlimming, all_moves, importance, moves, slim
from reference_impls.techniques.latency_driven_slimming.networks import (
    Architecture,
    Network,
    Noise,
    Space,
    Supernet,
    path_weights,
)
from reference_impls.techniques.latency_driven_slimming.search import SearchData, Trial, greedy, random_path
from tests.search_cases import (
    SearchCases,
    check_contender,
    check_costs,
    check_degenerate_searches,
    check_extraction,
    check_parts,
    check_search_follows,
)
from tests.support import generator, parameters

# --------------------------------------------------------------------------------------------------------------------
# Cases

SMALL = Space((32, 16, 16, 16), (2, 1, 1, 2), 16, 1, 5, 2, heads=2, key_dim=4, ratio=2, layer_scale=1.0)


def planted(kind: Literal["typical", "redundant", "null"], seed: int) -> Supernet:
    """A supernet whose blocks are ordinary, do nothing (`redundant`), or drown what came before them (`null`)."""
    with fork_seed(seed):
        supernet = Supernet(SMALL)
        positions = [position for stage in supernet.stages for position in stage]
        for blocks, position in enumerate(positions, start=1):
            position.importance.data.normal_()
            if kind != "typical":
                position.importance.data[-1] = 4.0 if kind == "redundant" else -4.0
            for name, block in position.choices.items():
                for parameter in block.parameters():
                    if parameter.ndim > 1:
                        nn.init.kaiming_normal_(parameter)
                # A block on maps grows with its input; one on normalised tokens has to be larger than all before it.
                drown = 30.0 if name == "4d" else 30.0**blocks
                block.ls1.gamma.data.fill_(1.0 if kind == "typical" else 0.0)
                block.ls2.gamma.data.fill_({"typical": 1.0, "redundant": 0.0, "null": drown}[kind])
    return supernet.eval().requires_grad_(False)


class SlimmingCases(SearchCases):
    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        supernet = self.build("typical", seed, device).target
        table, trial = SMALL.macs_table(), Trial(supernet.extract, supernet.search)
        path = slim(supernet, table, trial, 0.5)
        for before, after in pairwise(path):
            rates = []
            for _, state in moves(before.state, importance(supernet.probabilities())):
                gain = sum(SMALL.cost(p).macs for p in before.state.parts()) - sum(
                    SMALL.cost(p).macs for p in state.parts()
                )
                if gain > 0:
                    rates.append((before.quality - trial(state)) / gain)
            taken = (before.quality - after.quality) / (after.benefit - before.benefit)
            yield Expectation(f"loss a MAC of {after.move}", torch.tensor(min(rates)), torch.tensor(taken))
        scores = importance(supernet.probabilities())
        start = SMALL.largest()
        deep = [position for position in scores if SMALL.depths[position[0]] > 1]
        ranked = sorted(deep, key=lambda position: scores[position])
        least = next(state for name, state in moves(start, scores) if name.startswith("remove"))
        gone = [(j, i) for j, i, kind in least.positions() if kind == "identity"]
        yield Expectation("the least important block", torch.tensor(ranked[0]), torch.tensor(gone[0]))
        for given, by_hand in (({"4d": 0.6, "identity": 0.4}, 1.5), ({"4d": 0.3, "3d": 0.5, "identity": 0.2}, 4.0)):
            found = importance({(2, 0): given})[2, 0]
            yield Expectation(f"importance of {given}", torch.tensor(by_hand), torch.tensor(found))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        supernet, x = case.target, case.inputs[:8]
        start = SMALL.largest()
        yield Expectation("outputs of the whole network", supernet(x), supernet.extract(start)(x))
        shallow = start.replaced(2, 0, "4d").replaced(0, 1, "identity")
        yield Expectation("outputs of a path", supernet.path(x, shallow), supernet.extract(shallow)(x))
        narrow = shallow.narrowed(0)
        numbers = torch.tensor(parameters(supernet.extract(narrow)))
        yield Expectation("parameters", torch.tensor(SMALL.total(narrow).parameters), numbers)
        dead = torch.randperm(32, generator=generator(seed))[:16]
        with torch.no_grad():  # channels of the first stage that nothing reads
            supernet.downs[0].conv.conv.weight[:, dead] = 0
            for position in supernet.stages[0]:
                position.choices["4d"].mlp.fc1.conv.weight[:, dead] = 0
                position.choices["4d"].mlp.fc2.conv.weight[:, 64:] = 0  # nor half of the hidden units
        yield Expectation("outputs without dead channels", supernet(x), supernet.extract(start.narrowed(0))(x))

    def invalid(self, device: str) -> Iterable[Invalid]:
        yield from super().invalid(device)
        yield Invalid("a width of 20", lambda: Space((20, 32, 32, 32), (1, 1, 1, 1)), "multiples of 16")


CASES = SlimmingCases(LatencyDrivenSlimming(), planted, inputs=96)

# --------------------------------------------------------------------------------------------------------------------
# The loop

NANO = Space((32, 48, 64, 96), (2, 2, 3, 3), 28, 1, 10, 2, heads=4, key_dim=8, ratio=2, layer_scale=0.5)


def noise_of(text: str) -> float:
    """A number in [0, 1) that is fixed for each text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def subsets(state: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """Moves of a toy search: leave out one of the letters that are left."""
    return [(letter, state - {letter}) for letter in sorted(state)]


LOSS = {"a": 5.0, "b": 1.0, "c": 4.0, "d": 0.0}
TIME = {"a": 10.0, "b": 1.0, "c": 4.0, "d": 0.0}


def quality(state: frozenset[str]) -> float:
    return sum(LOSS[letter] for letter in state)


def benefit(state: frozenset[str]) -> float:
    return -sum(TIME[letter] for letter in state)


def walk(target: float, **options: float) -> list[str]:
    """The moves of the greedy walk on four letters."""
    return [step.move for step in greedy(frozenset("abcd"), subsets, quality, benefit, target, **options)]


def test_greedy_takes_the_least_loss_for_its_gain() -> None:
    path = greedy(frozenset("abcd"), subsets, quality, benefit, -1.0)
    # a costs 0.5 a unit of time, b and c cost 1: the first of equals; d costs nothing but gains nothing either.
    found = [(step.move, step.benefit, step.quality) for step in path]
    assert found == [("", -15, 10), ("a", -5, 5), ("b", -4, 4), ("c", 0, 0)]
    assert walk(-5.0) == ["", "a"]
    assert walk(-99.0) == [""]


def test_tolerance_ends_the_walk() -> None:
    assert walk(0.0, tolerance=4.0) == ["", "b", "c"]
    assert walk(0.0, tolerance=0.0) == [""]
    with pytest.raises(ValueError, match="tolerance"):
        walk(0.0, tolerance=-1)


def test_a_gain_of_quality_comes_first() -> None:
    path = greedy(frozenset("abcd"), subsets, lambda s: quality(s) + 9 * ("c" not in s), benefit, -1.0)
    assert path[1].move == "c"


def test_random_paths_follow_the_generator_and_gain_with_every_move() -> None:
    paths = [random_path(frozenset("abcd"), subsets, benefit, -4.0, generator(seed)) for seed in (1, 1, 2, 3, 4)]
    assert paths[0] == paths[1]
    assert len({str(path) for path in paths}) > 1
    for path in paths:
        assert all(benefit(after) > benefit(before) for (_, before), (_, after) in pairwise(path))
        assert benefit(path[-1][1]) >= -4.0 > benefit(path[-2][1])
        assert "d" not in {move for move, _ in path}


# --------------------------------------------------------------------------------------------------------------------
# The rules of the moves


def check_rules(path: list[Architecture], table: LatencyTable) -> None:
    for architecture in path:
        kinds = [kind for _, _, kind in architecture.positions() if kind != "identity"]
        assert kinds == sorted(kinds, reverse=True), "MB3D stay after all MB4D"
        assert all(depth >= 1 for depth in architecture.depths())
        assert all(width >= 16 and width % 16 == 0 for width in architecture.widths)
    latencies = [table(architecture.parts()) for architecture in path]
    assert all(after < before for before, after in pairwise(latencies))


@pytest.mark.parametrize("seed", range(5))
def test_rules_hold_on_every_path(seed: int) -> None:
    table = NANO.macs_table()
    start = NANO.largest()
    scores = {(j, i): noise_of(f"{seed} {j} {i}") for j, i, _ in start.positions()}

    def benefit(architecture: Architecture) -> float:
        return -table(architecture.parts())

    path = greedy(start, lambda a: moves(a, scores), lambda a: noise_of(f"{seed} {a.text()}"), benefit, 0.0)
    check_rules([step.state for step in path], table)
    assert path[-1].state.widths == (16,) * 4
    assert path[-1].state.depths() == (1,) * 4
    assert all(kind != "3d" for _, _, kind in path[-1].state.positions()), "the walk goes on to where no move is left"
    drawn = [state for _, state in random_path(start, all_moves, benefit, 0.0, generator(seed))]
    check_rules(drawn, table)
    assert drawn[-1].widths == (16,) * 4


def test_the_three_moves_by_hand() -> None:
    a = Architecture((32, 32, 64, 48), (("4d", "4d"), ("4d", "identity"), ("4d", "3d"), ("3d",)))
    scores = {(0, 0): 3.0, (0, 1): 2.0, (1, 0): 0.5, (1, 1): 0.3, (2, 0): 4.0, (2, 1): 5.0, (3, 0): 0.7}
    found = dict(moves(a, scores))
    assert list(found) == ["remove 1.2", "3d to 4d 3.2", "narrow 2"]
    assert found["remove 1.2"].text() == "32 4. | 32 4. | 64 43 | 48 3"
    assert found["3d to 4d 3.2"].text() == "32 44 | 32 4. | 64 44 | 48 3"
    assert found["narrow 2"].text() == "32 44 | 16 4. | 64 43 | 48 3"
    after = dict(moves(found["narrow 2"], scores))
    assert "narrow 4" in after, "a stage of 16 channels gives up none, the next least important one does"
    assert {name.partition(" ")[0] for name, _ in all_moves(a)} == {"remove", "3d", "narrow"}
    assert len(list(all_moves(a))) == 4 + 1 + 4
    smallest = Architecture((16,) * 4, (("4d",),) * 4)
    assert list(moves(smallest, dict.fromkeys([(j, 0) for j in range(4)], 1.0))) == []
    assert list(all_moves(smallest)) == []


def test_a_planted_useless_block_goes_first() -> None:
    supernet = planted("typical", 0)
    position = supernet.stages[3][1]
    position.importance.data[-1] = 9.0
    for block in position.choices.values():
        block.ls1.gamma.data.zero_()
        block.ls2.gamma.data.zero_()
    search = SearchData(torch.randn(4, 1, 16, 16, generator=generator(0)))
    path, again = (slim(supernet, SMALL.macs_table(), Trial(supernet.extract, search), 0.9) for _ in range(2))
    assert (path[1].move, path[1].quality) == ("remove 4.2", 1.0)
    assert path == again


# --------------------------------------------------------------------------------------------------------------------
# Tables and closed forms


def test_tables_add_up_and_name_what_is_missing() -> None:
    table = LatencyTable({("a", 1): 2.0, ("b",): 0.5})
    assert table([("a", 1), ("b",), ("a", 1)]) == 4.5
    with pytest.raises(ValueError, match=r"holds no \('a', 2\)"):
        table([("a", 2)])


def test_measured_tables_hold_every_part() -> None:
    calls = {"x": 0, "y": 0}
    parts = {(name,): lambda name=name: calls.__setitem__(name, calls[name] + 1) for name in calls}
    table = measure_table(parts, repetitions=4, percentile=10)
    assert set(table.costs) == {("x",), ("y",)}
    assert all(cost > 0 for cost in table.costs.values())
    assert calls["x"] == calls["y"] >= 4
    with pytest.raises(ValueError, match="no variants"):
        measure_table({})


def test_prediction_error_by_hand() -> None:
    error, correlation = prediction_error([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert error == pytest.approx(0.5)
    assert correlation == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least two pairs"):
        prediction_error([1.0], [1.0])


def test_parts_of_l1_cost_what_l1_costs() -> None:
    """The published network in the terms of this search: equal to the unit, the second head left out."""
    rows = (("4d",) * 3, ("4d",) * 2, ("4d",) * 6, ("4d", "4d", "4d", "3d"))
    cost = Space((48, 96, 224, 448), (3, 2, 6, 4)).total(Architecture((48, 96, 224, 448), rows))
    assert (cost.parameters, cost.macs) == (11_840_928, 1_291_284_736 - 448_000)
    with torch.device("meta"):
        assert cost == closed_form(efficientformer.build("l1", distillation=False), (3, 224, 224))


@pytest.mark.parametrize("patch", [2, 4])
def test_closed_forms_equal_the_counter(patch: int) -> None:
    space = Space((32, 16, 32, 48), (2, 1, 2, 2), 40, 3, 7, patch, heads=2, key_dim=4, ratio=2)
    table = space.macs_table()
    walk = random_path(space.largest(), all_moves, lambda a: -table(a.parts()), 0.0, generator(1))
    check_costs(space, Network, [architecture for _, architecture in walk[::3]])


def test_every_part_is_built_as_it_costs() -> None:
    space = Space((32, 16, 32, 16), (1, 1, 1, 1), 28, 1, 10, 2, heads=2, key_dim=4, ratio=2)
    check_parts(space, ("5d", 1, 16))


# --------------------------------------------------------------------------------------------------------------------
# The supernet


def test_gumbel_noise_draws_each_choice_with_its_probability() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0])
    weights = path_weights(logits.expand(20_000, 3), 0.5, "gumbel", generator(0))
    torch.testing.assert_close(weights.sum(-1), torch.ones(20_000))
    shares = weights.argmax(-1).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.015, rtol=0)


def test_uniform_noise_never_draws_a_choice_that_is_one_behind() -> None:
    weights = path_weights(torch.tensor([1.0, 0.0, -1.0]).expand(20_000, 3), 0.5, "uniform", generator(0))
    assert weights.argmax(-1).unique().tolist() == [0]
    close = path_weights(torch.tensor([0.5, 0.0]).expand(20_000, 2), 0.5, "uniform", generator(0))
    # P(u2 - u1 > 1/2) of two uniform numbers is 1/8; softmax would say 0.38.
    assert (close.argmax(-1) == 1).double().mean().item() == pytest.approx(1 / 8, abs=0.01)


def test_low_temperature_runs_one_choice() -> None:
    weights = path_weights(torch.zeros(100, 3), 1e-3, "gumbel", generator(0))
    assert (weights.amax(-1) > 0.99).double().mean().item() > 0.95
    assert torch.equal(weights, path_weights(torch.zeros(100, 3), 1e-3, "gumbel", generator(0)))
    with pytest.raises(ValueError, match="temperature"):
        path_weights(torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match="noise must be"):
        path_weights(torch.zeros(3), 1.0, "normal")  # type: ignore[arg-type]


def test_training_mixes_and_reaches_every_importance() -> None:
    with fork_seed(0):
        supernet = Supernet(SMALL)
        x = torch.randn(4, 1, 16, 16)
    with fork_seed(1):
        first = supernet(x)
    with fork_seed(1):
        assert torch.equal(first, supernet(x))
    with fork_seed(2):
        assert not torch.equal(first, supernet(x))
    first.square().sum().backward()
    for stage in supernet.stages:
        for position in stage:
            assert position.importance.grad.abs().min() > 0


def test_a_mix_of_one_choice_is_that_choice() -> None:
    supernet = planted("typical", 1)
    position = supernet.stages[2][0]
    x = torch.randn(2, 16, 2, 2, generator=generator(0))
    torch.testing.assert_close(position(x, torch.tensor([0.0, 0.0, 1.0])), x)
    torch.testing.assert_close(position(x, torch.tensor([1.0, 0.0, 0.0])), position.choices["4d"](x))
    tokens = position.choices["3d"](x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(position(x, torch.tensor([0.0, 1.0, 0.0])), tokens.transpose(1, 2).unflatten(2, (2, 2)))


def test_narrowing_keeps_what_is_read_most() -> None:
    supernet = planted("typical", 3)
    order = supernet.channel_order(0)
    assert sorted(order.tolist()) == list(range(32))
    with torch.no_grad():
        supernet.downs[0].conv.conv.weight[:, 5] = 100.0
    assert supernet.channel_order(0)[0] == 5
    narrow = supernet.extract(SMALL.largest().narrowed(0))
    kept = supernet.channel_order(0)[:16].sort().values
    assert torch.equal(narrow.downs[0].conv.conv.weight, supernet.downs[0].conv.conv.weight[:, kept])
    assert torch.equal(narrow.stem[0].bn.weight, supernet.stem[0].bn.weight[kept])


def test_spaces_say_what_is_wrong() -> None:
    for widths, depths in (((16,) * 3, (1,) * 3), ((16,) * 4, (1,) * 3)):
        with pytest.raises(ValueError, match="4 widths and depths"):
            Space(widths, depths)
    with pytest.raises(ValueError, match="depth"):
        Space((16,) * 4, (1, 1, 0, 1))
    for name, value in (("size", 0), ("in_channels", 0), ("classes", 0), ("patch", 3)):
        with pytest.raises(ValueError, match=name):
            replace(SMALL, **{name: value})


# --------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_trials_score_by_labels_or_by_the_first_outputs() -> None:
    x = torch.randn(40, 1, 1, 1, generator=generator(0))

    def build(scale: float) -> nn.Module:
        class Scaled(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([x.flatten(), -x.flatten()], 1) * scale

        return Scaled()

    labelled = Trial(build, SearchData(x, (x.flatten() < 0).long()))
    assert (labelled(2.0), labelled(-1.0)) == (1.0, 0.0)
    assert labelled.evaluated == [2.0, -1.0]
    unlabelled = Trial(build, SearchData(x))
    spread = (x - x.mean()).norm() / x.norm()
    assert unlabelled(1.0) == 1.0
    assert unlabelled(0.5) == pytest.approx(1 - 0.5 / spread.item())


def test_recalibration_estimates_the_statistics_and_nothing_else() -> None:
    with fork_seed(0):
        network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)).eval()
        x = 5 + torch.randn(64, 1, 4, 4)
    weight = network[0].weight.clone()
    recalibrate(network, x, batch_size=32)
    maps = network[0](x)
    torch.testing.assert_close(network[1].running_mean, maps.mean((0, 2, 3)))
    halves = torch.stack([part.var((0, 2, 3)) for part in maps.split(32)]).mean(0)
    torch.testing.assert_close(network[1].running_var, halves)
    assert torch.equal(network[0].weight, weight)
    assert network[1].momentum == 0.1
    assert not network.training


def test_search_data_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="calibration of the search data"):
        SearchData(torch.zeros(3, 1, 2, 2), calibration=torch.zeros(3, 1))
    x = torch.zeros(3, 1, 2, 2)
    assert SearchData(x, calibration=torch.zeros(5, 1, 2, 2)).samples() == 8
    with pytest.raises(ValueError, match="calibration of the search data is empty"):
        SearchData(x, calibration=x[:0])
    with pytest.raises(ValueError, match="x of the search data is empty"):
        SearchData(x[:0], torch.zeros(0).long())
    with pytest.raises(ValueError, match="two inputs or more"):
        SearchData(x[:1])
    for y, says in ((torch.zeros(3), "integers"), (torch.zeros(3, 1).long(), "must have shape"),
                    (torch.tensor([0, -100, 1]), "from 0 on, got -100"), ([0, 0, 0], "must be a tensor")):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=says):
            SearchData(x, y)


def test_trials_on_one_class_say_that_it_tells_nothing() -> None:
    x = torch.randn(4, 1, 1, 1, generator=generator(0))
    one_class = Trial(lambda scale: lambda x: scale * x.flatten(1), SearchData(x, torch.zeros(4).long()))
    with pytest.raises(ValueError, match="one class"):
        one_class(1.0)


@pytest.mark.parametrize("cost", [math.nan, math.inf, -1.0])
def test_tables_name_costs_that_are_none(cost: float) -> None:
    with pytest.raises(ValueError, match="the cost of 'stem' must be finite and not negative"):
        LatencyTable({"stem": cost})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("noise", ["gumbel", "uniform"])
def test_mixing_weights_are_finite_in_half_precision(dtype: torch.dtype, noise: Noise) -> None:
    importance = torch.randn(4000, 3, generator=generator(0)).to(dtype)
    half, single = (path_weights(x, 0.5, noise, generator(1)) for x in (importance, importance.float()))
    assert half.dtype == dtype
    assert torch.equal(half, single.to(dtype))
    assert half.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_channels_kept_are_those_of_float32_on_the_same_weights(dtype: torch.dtype) -> None:
    """Sums of squares in half precision tie, and overflow for large weights."""
    for scale in (1.0, 3000.0):
        supernet = planted("typical", 0)
        for parameter in supernet.parameters():
            parameter.data.mul_(scale)
        half = supernet.to(dtype)
        single = copy.deepcopy(half).float()
        narrow = SMALL.largest().narrowed(0)
        weights, expected = half.extract(narrow).state_dict(), single.extract(narrow).state_dict()
        assert all(torch.equal(weights[name].float(), value.float()) for name, value in expected.items())


# --------------------------------------------------------------------------------------------------------------------
# Precision, place and degenerate input


def test_extracted_networks_take_dtype_and_device_of_the_supernet() -> None:
    check_extraction(
        CASES.technique, planted, [SMALL.largest(), SMALL.largest().replaced(0, 1, "identity").narrowed(0)]
    )


def test_the_search_follows_the_dtype_of_the_supernet() -> None:
    check_search_follows(CASES.technique, planted, 0.9)


def test_what_leaves_nothing_to_choose_by_is_named() -> None:
    check_degenerate_searches(CASES.technique, planted)


# --------------------------------------------------------------------------------------------------------------------
# What the experiment found


def test_the_contender_is_what_the_committed_record_found() -> None:
    path = committed("latency-driven-slimming", "fashion-slimming").tables["path"].records()
    half = path[0]["ms"] / 2
    found = next(step["network"] for step in path if step["ms"] <= half)
    space = replace(experiment.FASHION.space, size=SIDE)
    check_contender(experiment, found, space, lambda network: network.architecture)
