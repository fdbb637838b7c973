"""Fine-grained joint search: the score, the frontier, shared weights and switchable norms, the greedy walk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import nn

from reference_impls.accounting.closed_form import closed_form
from reference_impls.contract import Expectation, Invalid, NoEffectWarning
from reference_impls.experiments import fine_grained_joint_search as experiment
from reference_impls.show import committed
from reference_impls.study import Recipe, fork_seed, seeded, train
from reference_impls.techniques import efficientformer_v2
from reference_impls.techniques.fine_grained_joint_search import (
    Efficiency,
    FineGrainedJointSearch,
    joint_search,
    mobile_efficiency_score,
    moves,
)
from reference_impls.techniques.fine_grained_joint_search.networks import Network, Sandwich, Slimmable, Space, Subnet
from reference_impls.techniques.latency_driven_slimming.search import SearchData, Trial, random_path
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

SMALL = Space(((4, 8), (4,), (8,), (8,)), (1, 1, 1, 1), (1, 2), 16, 1, 5, 2, 2, 4, 2, layer_scale=1.0)
DROWN = 100.0


def planted(kind: Literal["typical", "redundant", "null"], seed: int) -> Slimmable:
    """A supernet whose blocks and trailing channels are ordinary, do nothing (`redundant`), or drown the rest (`null`).

    Trailing channels are those that a move takes away.
    """
    with fork_seed(seed):
        supernet = Slimmable(SMALL)
        whole = supernet.largest
        for parameter in whole.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
    scale = {"typical": 1.0, "redundant": 0.0, "null": DROWN}[kind]
    for j, stage in enumerate(whole.stages):
        least, most = SMALL.widths[j][0], SMALL.widths[j][-1]
        entry = whole.stem[0] if j == 0 else whole.downs[j - 1]
        convs = [entry.conv] if isinstance(entry.conv, nn.Conv2d) else [entry.conv.conv]
        if hasattr(entry, "attn"):
            convs.append(entry.attn.proj.conv)
        for conv in convs if least < most else ():
            conv.weight.data[least:] *= scale
            conv.bias.data[least:] *= scale
        for block in stage:
            hidden = SMALL.ratios[0] * most
            block.mlp.fc2.conv.weight.data[:, hidden:] *= scale
            block.ls2.gamma.data.fill_(scale)
            if block.ls1 is not None:
                block.ls1.gamma.data.fill_(scale)
    return supernet.eval().requires_grad_(False)


class JointSearchCases(SearchCases):
    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        supernet = self.build("typical", seed, device).target
        efficiency = Efficiency.of(SMALL, SMALL.macs_table())
        trial = Trial(supernet.view, supernet.search)
        whole = SMALL.largest()
        size, work = SMALL.total(whole).parameters, SMALL.total(whole).macs
        for before, after in pairwise(joint_search(supernet, efficiency, trial, 300.0)):
            rates = []
            for _, state in moves(SMALL, before.state):
                cost = SMALL.total(state)
                score = 100 * (size / cost.parameters) ** 0.5 * work / cost.macs
                rates.append((before.quality - trial(state)) / (score - before.benefit))
            taken = (before.quality - after.quality) / (after.benefit - before.benefit)
            yield Expectation(f"loss a point of {after.move}", torch.tensor(min(rates)), torch.tensor(taken))
        units = {"size": 4.0, "latency": 2.0}
        for (small, fast), by_hand in (((0.5, 1.0), 100.0), ((0.0, 2.0), 25.0)):  # sqrt(4) / 2, and 1 / 2 ** 2
            metrics, exponents = {"size": 1.0, "latency": 4.0}, {"size": small, "latency": fast}
            score = mobile_efficiency_score(metrics, units, exponents)
            yield Expectation(f"score with {exponents}", torch.tensor(by_hand), torch.tensor(score))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        supernet, x = case.target, case.inputs[:8]
        draw = generator(seed)
        for subnet in (SMALL.largest(), SMALL.smallest(), SMALL.sample(draw)):
            network = supernet.extract(subnet)
            yield Expectation(f"outputs of {subnet.text()}", supernet(x, subnet), network(x))
            numbers = torch.tensor(parameters(network))
            yield Expectation("parameters", torch.tensor(SMALL.total(subnet).parameters), numbers)
            for name, weight in network.named_parameters():
                if weight.ndim > 1:  # a leading slice of the shared weight
                    shared = supernet.largest.get_parameter(name)
                    yield Expectation(name, shared[tuple(slice(n) for n in weight.shape)], weight)

    def invalid(self, device: str) -> Iterable[Invalid]:
        yield from super().invalid(device)
        one, none = {"size": 1.0}, {"size": 0.0}
        yield Invalid("falling widths", lambda: Space(((16, 8),) * 4, (1, 1, 1, 1)), "must be positive and rise")
        yield Invalid("no latency", lambda: mobile_efficiency_score(one, one), "must name the same")
        yield Invalid("no size", lambda: mobile_efficiency_score(none, one, one), "metric size must be")


CASES = JointSearchCases(FineGrainedJointSearch(), planted, inputs=192)

# --------------------------------------------------------------------------------------------------------------------
# The score

NANO = Space(
    ((8, 16), (16, 24), (16, 24, 32), (24, 32)), (2, 1, 3, 2), (2, 3, 4), 32, 1, 10, 2, heads=2, key_dim=4, ratio=2
)
TINY = Space(((4, 8), (4, 8), (8,), (8, 12)), (1, 2, 1, 1), (1, 2), 16, 1, 5, 2, heads=2, key_dim=4, ratio=2)


def test_score_falls_with_every_metric() -> None:
    units = {"size": 1.0, "latency": 1.0}
    with pytest.raises(ValueError, match="exponent latency"):
        mobile_efficiency_score(units, units, {"size": 0.5, "latency": -1.0})
    for size, latency in itertools.product((0.5, 1.0, 3.0), repeat=2):
        here = mobile_efficiency_score({"size": size, "latency": latency}, units)
        assert mobile_efficiency_score({"size": 1.01 * size, "latency": latency}, units) < here
        assert mobile_efficiency_score({"size": size, "latency": 1.01 * latency}, units) < here


# --------------------------------------------------------------------------------------------------------------------
# The space


def test_largest_and_smallest() -> None:
    assert NANO.largest().text() == "16 4 4 | 24 4 | 32 4a 4a 4a | 32 4a 4a"
    assert NANO.smallest().text() == "8 2 . | 16 2 | 16 2 . . | 24 2 ."


def test_samples_keep_to_the_choices() -> None:
    drawn = [NANO.sample(generator(seed)) for seed in range(60)]
    assert NANO.sample(generator(3)) == drawn[3]
    for subnet in drawn:
        assert all(width in choices for width, choices in zip(subnet.widths, NANO.widths, strict=True))
        assert all(ratio in (0, *NANO.ratios) for row in subnet.ratios for ratio in row)
        assert all(depth >= 1 for depth in subnet.depths())
        assert not any(attends for row in subnet.attention[:2] for attends in row)
        blocks = zip(itertools.chain(*subnet.ratios), itertools.chain(*subnet.attention), strict=True)
        assert all(ratio > 0 for ratio, attends in blocks if attends)
    assert {subnet.depths()[2] for subnet in drawn} == {1, 2, 3}
    assert {sum(subnet.attention[3]) for subnet in drawn} == {0, 1, 2}


def test_frontier_by_hand() -> None:
    subnet = Subnet(
        (16, 16, 32, 24),
        ((4, 0), (2,), (2, 3, 0), (2, 0)),
        ((False,) * 2, (False,), (True, False, False), (True, False)),
    )
    assert subnet.text() == "16 4 . | 16 2 | 32 2a 3 . | 24 2a ."
    found = {name: after.text() for name, after in moves(NANO, subnet)}
    assert found == {
        "ratio 1.1": "16 3 . | 16 2 | 32 2a 3 . | 24 2a .",
        "attention 3.1": "16 4 . | 16 2 | 32 2 3 . | 24 2a .",
        "block 3.1": "16 4 . | 16 2 | 32 . 3 . | 24 2a .",
        "block 3.2": "16 4 . | 16 2 | 32 2a . . | 24 2a .",
        "ratio 3.2": "16 4 . | 16 2 | 32 2a 2 . | 24 2a .",
        "attention 4.1": "16 4 . | 16 2 | 32 2a 3 . | 24 2 .",
        "width 1": "8 4 . | 16 2 | 32 2a 3 . | 24 2a .",
        "width 3": "16 4 . | 16 2 | 24 2a 3 . | 24 2a .",
    }
    assert list(moves(NANO, NANO.smallest())) == []


@pytest.mark.parametrize("seed", range(3))
def test_every_move_makes_the_network_smaller_and_faster(seed: int) -> None:
    efficiency = Efficiency.of(NANO, NANO.macs_table())
    assert efficiency(NANO.largest()) == pytest.approx(100)
    walk = random_path(NANO.largest(), lambda s: moves(NANO, s), efficiency, math.inf, generator(seed))
    for _, subnet in walk[::4]:
        here = NANO.total(subnet)
        for name, after in moves(NANO, subnet):
            cost = NANO.total(after)
            assert cost.parameters < here.parameters, name
            assert cost.macs < here.macs, name
            assert efficiency(after) > efficiency(subnet)
    assert all(depth == 1 for depth in walk[-1][1].depths())
    assert NANO.total(walk[-1][1]) == NANO.total(NANO.smallest()), "from anywhere the walk ends at the smallest"


@pytest.mark.parametrize("variant", ["s0", "s1", "s2", "l"])
def test_published_networks_in_the_terms_of_this_search(variant: str) -> None:
    """Equal to the unit to the closed form of the variant, the second head left out."""
    config = efficientformer_v2.VARIANTS[variant]
    attention = tuple(
        tuple(i >= depth - last for i in range(depth))
        for depth, last in zip(config.depths, config.attention, strict=True)
    )
    subnet = Subnet(config.widths, tuple(tuple(int(r) for r in row) for row in config.ratios), attention)
    space = Space(tuple((width,) for width in config.widths), config.depths)
    with torch.device("meta"):
        assert space.total(subnet) == closed_form(efficientformer_v2.build(config, distillation=False), (3, 224, 224))
    if variant == "s0":
        total = space.total(subnet)
        assert (total.parameters, total.macs) == (3_423_256, 395_892_544 - 176_000)


@pytest.mark.parametrize("patch", [2, 4])
def test_closed_forms_equal_the_counter(patch: int) -> None:
    space = Space(((8, 16), (8,), (8, 12), (12,)), (1, 1, 2, 1), (1, 3), 48, 3, 7, patch, heads=2, key_dim=4, ratio=2)
    subnets = space.largest(), space.smallest(), space.sample(generator(1)), space.sample(generator(2))
    check_costs(space, Network, subnets)


def test_every_part_is_built_as_it_costs() -> None:
    # The closed form of a block holds its layer scale as well.
    check_parts(TINY, ("mlp", 1, 16, 2), lambda part: part[2] if part[0] in ("ffn", "attention") else 0)


# --------------------------------------------------------------------------------------------------------------------
# The supernet


def slimmable(space: Space = TINY, seed: int = 0) -> Slimmable:
    return seeded(seed, lambda: Slimmable(space))


def test_norms_for_every_width_of_every_layer() -> None:
    supernet = slimmable()
    sizes = {name: sorted(map(int, norms)) for name, norms in supernet.norms.items() if len(norms)}
    assert sizes["stem-0-bn"] == [4]
    # Of 4 x 1, 4 x 2 or 8 x 1 channels; 16 is whole.
    assert sizes["stages-0-0-mlp-fc1-bn"] == sizes["stages-0-0-mlp-mid-bn"] == [4, 8]
    assert sizes["stages-3-0-mlp-fc2-bn"] == [8]
    assert sizes["downs-2-attn-proj-bn"] == [8]
    assert "stages-3-0-token_mixer-q-bn" not in sizes, "the channels inside attention do not change"


@pytest.mark.parametrize("training", [False, True])
def test_subnets_are_the_plain_networks_of_the_leading_weights(training: bool) -> None:
    supernet = slimmable()
    with torch.no_grad():
        for module in supernet.modules():  # norms that differ from one another
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator(module.num_features))
                module.weight.uniform_(0.5, 2, generator=generator(module.num_features))
    x = torch.randn(4, 1, 16, 16, generator=generator(0))
    for seed in range(4):
        subnet = TINY.sample(generator(seed))
        network = supernet.extract(subnet).train(training)
        supernet.train(training)
        torch.testing.assert_close(supernet(x, subnet), network(x))
    torch.testing.assert_close(supernet.eval()(x), supernet.extract(TINY.largest())(x))


def test_a_narrow_step_trains_leading_weights_and_its_own_norms() -> None:
    supernet = slimmable().train()
    subnet = TINY.smallest()
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    supernet(torch.randn(8, 1, 16, 16, generator=generator(0)), subnet).square().sum().backward()
    grad = supernet.largest.downs[0].conv.conv.weight.grad
    assert grad[:4, :4].abs().sum() > 0
    assert grad[4:].abs().sum() == grad[:, 4:].abs().sum() == 0
    changed = {name for name, buffer in supernet.named_buffers() if not torch.equal(buffer, before[name])}
    assert "norms.stem-0-bn.4.running_mean" in changed
    assert "largest.stem.0.bn.running_mean" not in changed
    assert "largest.downs.2.attn.q.proj.bn.running_mean" in changed, "of a layer that has one width only"
    assert supernet.largest.stem[0].bn.weight.grad is None
    assert supernet.norms["stem-0-bn"]["4"].weight.grad is not None


def test_sandwich_holds_the_largest_and_the_smallest() -> None:
    sandwich = Sandwich(slimmable()).eval()
    x = torch.randn(3, 1, 16, 16, generator=generator(0))
    with fork_seed(1):
        logits = sandwich(x)
    assert logits.shape == (4, 3, 5)
    with fork_seed(1):
        assert torch.equal(sandwich(x), logits)
        later = [TINY.sample(), TINY.sample()]  # the generator has moved on
    with fork_seed(1):
        drawn = [TINY.sample(), TINY.sample()]
    assert drawn != later
    for found, subnet in zip(logits, (TINY.largest(), TINY.smallest(), *drawn), strict=True):
        torch.testing.assert_close(found, sandwich.supernet(x, subnet))
    targets = torch.tensor([0, 1, 2])
    by_hand = sum(nn.functional.cross_entropy(one, targets) for one in logits) / 4
    torch.testing.assert_close(experiment.sandwich_loss(logits, targets), by_hand)


def test_training_repeats_for_a_seed() -> None:
    x, y = torch.randn(48, 1, 16, 16, generator=generator(0)), torch.arange(48) % 5
    weights = []
    for _ in range(2):
        sandwich = train(Sandwich(slimmable()), x, y, Recipe(1, batch_size=16), seed=4, loss=experiment.sandwich_loss)
        weights.append(sandwich.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# --------------------------------------------------------------------------------------------------------------------
# The search


def test_score_rises_on_the_path_and_the_path_repeats() -> None:
    supernet = planted("typical", 0)
    x = torch.randn(4, 1, 16, 16, generator=generator(0))
    efficiency = Efficiency.of(SMALL, SMALL.macs_table())
    paths = [joint_search(supernet, efficiency, Trial(supernet.view, SearchData(x)), 300.0) for _ in range(2)]
    assert paths[0] == paths[1]
    scores = [step.benefit for step in paths[0]]
    assert all(after > before for before, after in pairwise(scores))
    assert scores[-1] >= 300 > scores[-2]


def test_planted_useless_parts_go_first_and_needed_ones_stay() -> None:
    """Quality falls by a known amount for each part, for ratios by none; the walk drops what is worth least."""

    def quality(subnet: Subnet) -> float:
        return 5 * sum(map(sum, subnet.attention)) + sum(subnet.depths()) + 3 * sum(subnet.widths)

    supernet, efficiency = slimmable(), Efficiency.of(TINY, TINY.macs_table())
    path = joint_search(supernet, efficiency, quality, math.inf, tolerance=0.0)
    assert {step.move.partition(" ")[0] for step in path[1:]} == {"ratio"}
    assert set(itertools.chain(*path[-1].state.ratios)) == {1}
    path = joint_search(supernet, efficiency, quality, math.inf, tolerance=1.0)
    assert {step.move.partition(" ")[0] for step in path[1:]} == {"ratio", "block"}


def test_exponents_choose_what_the_walk_saves() -> None:
    table = NANO.macs_table()
    size = Efficiency.of(NANO, table, {"size": 1.0, "latency": 0.0})
    latency = Efficiency.of(NANO, table, {"size": 0.0, "latency": 1.0})
    whole = NANO.largest()
    small, fast = (max((after for _, after in moves(NANO, whole)), key=efficiency) for efficiency in (size, latency))
    assert NANO.total(small).parameters < NANO.total(fast).parameters
    assert NANO.total(small).macs > NANO.total(fast).macs
    assert size(small) == pytest.approx(100 * NANO.total(whole).parameters / NANO.total(small).parameters)
    assert latency(fast) == pytest.approx(100 * NANO.total(whole).macs / NANO.total(fast).macs)


def test_units_scale_the_score_and_choose_nothing() -> None:
    """The walk by plain loops, with the units of the largest network and with 3 million parameters and 1 MAC."""

    def quality(subnet: Subnet) -> float:
        return 5 * sum(map(sum, subnet.attention)) + sum(map(sum, subnet.ratios)) + 3 * sum(subnet.widths) ** 0.5

    def score(subnet: Subnet, size: float, latency: float) -> float:
        total = TINY.total(subnet)
        return 100 * (size / total.parameters) ** 0.5 * latency / total.macs

    whole, walks = TINY.total(TINY.largest()), []
    for units in ((whole.parameters, whole.macs), (3e6, 1.0)):
        here, by_hand = TINY.largest(), list[str]()
        while frontier := dict(moves(TINY, here)):
            ratios = {}
            for name, after in frontier.items():
                ratios[name] = (quality(here) - quality(after)) / (score(after, *units) - score(here, *units))
            by_hand.append(min(ratios, key=lambda name: ratios[name]))
            here = frontier[by_hand[-1]]
        efficiency = Efficiency(TINY, TINY.macs_table(), dict(zip(("size", "latency"), units, strict=True)))
        path = joint_search(slimmable(), efficiency, quality, math.inf)
        assert [step.move for step in path[1:]] == by_hand
        assert path[-1].benefit == pytest.approx(score(TINY.smallest(), *units))
        walks.append(by_hand)
    assert walks[0] == walks[1]


# --------------------------------------------------------------------------------------------------------------------
# Precision, place and degenerate input


def test_extracted_networks_take_dtype_and_device_of_the_supernet() -> None:
    check_extraction(CASES.technique, planted, [SMALL.largest(), SMALL.smallest()])


def test_the_search_follows_the_dtype_of_the_supernet() -> None:
    check_search_follows(CASES.technique, planted, 1.05)


def test_exponents_that_are_none_or_weigh_nothing_are_named() -> None:
    supernet = CASES.build("typical", 0, "cpu").target
    with pytest.raises(TypeError, match="exponents must be a mapping"):
        CASES.technique.apply(supernet, exponents=1.0)
    with pytest.warns(NoEffectWarning, match="no move"):
        CASES.technique.apply(supernet, exponents={"size": 0.0, "latency": 0.0})


def test_what_leaves_nothing_to_choose_by_is_named() -> None:
    check_degenerate_searches(CASES.technique, planted)


def test_only_modules_can_be_calibrated() -> None:
    x = torch.zeros(2, 1, 16, 16)
    trial = Trial(lambda subnet: lambda x: x, SearchData(x, calibration=x))
    with pytest.raises(TypeError, match="can be calibrated"):
        trial(TINY.largest())


# --------------------------------------------------------------------------------------------------------------------
# What the experiment found


def test_the_contender_is_what_the_committed_record_found() -> None:
    rows = committed("fine-grained-joint-search", "fashion-search").tables["found"].records()
    (found,) = (row["network"] for row in rows if row["target"] == 4 and row["method"] == "greedy")
    check_contender(experiment, found, experiment.FASHION.space, lambda network: network.subnet)
