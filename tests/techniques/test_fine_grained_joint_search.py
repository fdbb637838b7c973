"""Fine-grained joint search: the score, the frontier, shared weights and switchable norms, the greedy walk."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import pytest
import torch

from reference_impls.accounting.closed_form import closed_form
from reference_impls.accounting.count import count
from reference_impls.experiments.fine_grained_joint_search import SMALL, planted, sandwich_loss
from reference_impls.experiments.harness import fork_seed, train
from reference_impls.techniques import efficientformer_v2
from reference_impls.techniques.fine_grained_joint_search import (
    Efficiency,
    Network,
    Sandwich,
    SearchData,
    Slimmable,
    Space,
    Subnet,
    Trial,
    joint_search,
    mobile_efficiency_score,
    moves,
    random_path,
)

NANO = Space(
    ((8, 16), (16, 24), (16, 24, 32), (24, 32)), (2, 1, 3, 2), (2, 3, 4), 32, 1, 10, 2, heads=2, key_dim=4, ratio=2
)
TINY = Space(((4, 8), (4, 8), (8,), (8, 12)), (1, 2, 1, 1), (1, 2), 16, 1, 5, 2, heads=2, key_dim=4, ratio=2)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------------------------
# The score


def test_score_by_hand() -> None:
    units = {"size": 4.0, "latency": 2.0}
    assert mobile_efficiency_score(units, units) == 100
    score = mobile_efficiency_score({"size": 1.0, "latency": 4.0}, units, {"size": 0.5, "latency": 1.0})
    assert score == pytest.approx(100 * 2 / 2)
    assert mobile_efficiency_score({"size": 1.0, "latency": 4.0}, units, {"size": 0.0, "latency": 2.0}, 8) == 2
    with pytest.raises(ValueError, match="exponent latency"):
        mobile_efficiency_score(units, units, {"size": 0.5, "latency": -1.0})


def test_score_falls_with_every_metric() -> None:
    units = {"size": 1.0, "latency": 1.0}
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
    drawn = [NANO.sample(draw(seed)) for seed in range(60)]
    assert NANO.sample(draw(3)) == drawn[3]
    for subnet in drawn:
        assert all(width in choices for width, choices in zip(subnet.widths, NANO.widths, strict=True))
        assert all(ratio in (0, *NANO.ratios) for row in subnet.ratios for ratio in row)
        assert all(depth >= 1 for depth in subnet.depths())
        assert not any(attends for row in subnet.attention[:2] for attends in row)
        assert all(
            r > 0
            for row, a in zip(subnet.ratios, subnet.attention, strict=True)
            for r, x in zip(row, a, strict=True)
            if x
        )
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
    walk = random_path(NANO.largest(), lambda s: moves(NANO, s), efficiency, math.inf, draw(seed))
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
    table = space.macs_table()
    for subnet in (space.largest(), space.smallest(), space.sample(draw(1)), space.sample(draw(2))):
        network = Network(space, subnet).eval()
        with torch.no_grad(), count() as tally:
            network(torch.zeros(2, 3, 48, 48))
        assert tally.macs == 2 * space.total(subnet).macs == 2 * table(subnet.parts())
        assert sum(p.numel() for p in network.parameters()) == space.total(subnet).parameters


def test_every_part_is_built_as_it_costs() -> None:
    for part in TINY.every_part():
        module = TINY.build(part).eval()
        scale = part[2] if part[0] in ("ffn", "attention") else 0  # the closed form holds the layer scale as well
        with torch.no_grad(), count() as tally:
            module(TINY.example(part, 3))
        assert tally.macs == 3 * TINY.cost(part).macs, part
        assert sum(p.numel() for p in module.parameters()) + scale == TINY.cost(part).parameters, part
    with pytest.raises(ValueError, match="no part"):
        TINY.build(("mlp", 1, 16, 2))


# --------------------------------------------------------------------------------------------------------------------
# The supernet


def slimmable(space: Space = TINY, seed: int = 0) -> Slimmable:
    with fork_seed(seed):
        return Slimmable(space)


def test_norms_for_every_width_of_every_layer() -> None:
    supernet = slimmable()
    sizes = {name: sorted(map(int, norms)) for name, norms in supernet.norms.items() if len(norms)}
    assert sizes["stem-0-bn"] == [4]
    assert (
        sizes["stages-0-0-mlp-fc1-bn"] == sizes["stages-0-0-mlp-mid-bn"] == [4, 8]
    )  # 4 x 1, 4 x 2 or 8 x 1; 16 is whole
    assert sizes["stages-3-0-mlp-fc2-bn"] == [8]
    assert sizes["downs-2-attn-proj-bn"] == [8]
    assert "stages-3-0-token_mixer-q-bn" not in sizes, "the channels inside attention do not change"


@pytest.mark.parametrize("training", [False, True])
def test_subnets_are_the_plain_networks_of_the_leading_weights(training: bool) -> None:
    supernet = slimmable()
    with torch.no_grad():
        for module in supernet.modules():  # norms that differ from one another
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(generator=draw(module.num_features))
                module.weight.uniform_(0.5, 2, generator=draw(module.num_features))
    x = torch.randn(4, 1, 16, 16, generator=draw(0))
    for seed in range(4):
        subnet = TINY.sample(draw(seed))
        network = supernet.extract(subnet).train(training)
        supernet.train(training)
        torch.testing.assert_close(supernet(x, subnet), network(x))
    torch.testing.assert_close(supernet.eval()(x), supernet.extract(TINY.largest())(x))


def test_a_narrow_step_trains_leading_weights_and_its_own_norms() -> None:
    supernet = slimmable().train()
    subnet = TINY.smallest()
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    supernet(torch.randn(8, 1, 16, 16, generator=draw(0)), subnet).square().sum().backward()
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
    x = torch.randn(3, 1, 16, 16, generator=draw(0))
    with fork_seed(1):
        logits = sandwich(x)
    assert logits.shape == (4, 3, 5)
    torch.testing.assert_close(logits[0], sandwich.supernet(x))
    torch.testing.assert_close(logits[1], sandwich.supernet(x, TINY.smallest()))
    with fork_seed(1):
        assert torch.equal(sandwich(x), logits)
        first, second = TINY.sample(), TINY.sample()  # the generator has moved on
    with fork_seed(1):
        drawn = [TINY.sample(), TINY.sample()]
    assert drawn != [first, second]
    torch.testing.assert_close(logits[2], sandwich.supernet(x, drawn[0]))
    torch.testing.assert_close(logits[3], sandwich.supernet(x, drawn[1]))
    targets = torch.tensor([0, 1, 2])
    by_hand = sum(torch.nn.functional.cross_entropy(one, targets) for one in logits) / 4
    torch.testing.assert_close(sandwich_loss(logits, targets), by_hand)


def test_training_repeats_for_a_seed() -> None:
    x, y = torch.randn(48, 1, 16, 16, generator=draw(0)), torch.arange(48) % 5
    weights = []
    for _ in range(2):
        sandwich = train(Sandwich(slimmable()), x, y, epochs=1, seed=4, batch_size=16, loss=sandwich_loss)
        weights.append(sandwich.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# --------------------------------------------------------------------------------------------------------------------
# The search


def test_score_rises_on_the_path_and_the_path_repeats() -> None:
    supernet = planted("typical", 0)
    x = torch.randn(4, 1, 16, 16, generator=draw(0))
    efficiency = Efficiency.of(SMALL, SMALL.macs_table())
    paths = [joint_search(supernet, efficiency, Trial(supernet.view, SearchData(x)), 300.0) for _ in range(2)]
    assert paths[0] == paths[1]
    scores = [step.benefit for step in paths[0]]
    assert all(after > before for before, after in pairwise(scores))
    assert scores[-1] >= 300 > scores[-2]


def test_planted_useless_parts_go_first_and_needed_ones_stay() -> None:
    """Quality falls by a known amount for each part; the walk drops what is worth least for its gain."""
    worth = {"attention": 5.0, "depth": 1.0, "ratio": 0.0, "width": 3.0}

    def quality(subnet: Subnet) -> float:
        return (
            worth["attention"] * sum(map(sum, subnet.attention))
            + worth["depth"] * sum(subnet.depths())
            + worth["ratio"] * sum(map(sum, subnet.ratios))
            + worth["width"] * sum(subnet.widths)
        )

    supernet = slimmable()
    efficiency = Efficiency.of(TINY, TINY.macs_table())
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

    def cheapest(efficiency: Efficiency) -> Subnet:
        return max((after for _, after in moves(NANO, whole)), key=efficiency)

    small, fast = cheapest(size), cheapest(latency)
    assert NANO.total(small).parameters < NANO.total(fast).parameters
    assert NANO.total(small).macs > NANO.total(fast).macs
    assert size(small) == pytest.approx(100 * NANO.total(whole).parameters / NANO.total(small).parameters)
    assert latency(fast) == pytest.approx(100 * NANO.total(whole).macs / NANO.total(fast).macs)


def test_only_modules_can_be_calibrated() -> None:
    x = torch.zeros(2, 1, 16, 16)
    trial = Trial(lambda subnet: lambda x: x, SearchData(x, calibration=x))
    with pytest.raises(TypeError, match="can be calibrated"):
        trial(TINY.largest())
