"""Fine-grained joint search on real data: a slimmable supernet, the greedy walk, and sub-networks of equal score.

- `digits-search`, `fashion-search`: the greedy walk beside what knows less, at equal mobile efficiency score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.accounting.latency import LatencyTable
from reference_impls.accounting.record import Record
from reference_impls.benchmarks import compact_networks as benchmark
from reference_impls.benchmarks.compact_networks import searches
from reference_impls.benchmarks.compact_networks.networks_fashion import found_by_search
from reference_impls.contract import generator
from reference_impls.data.splits import Split
from reference_impls.study import TECHNIQUE, Recipe, Study, seeded, table, training_macs
from reference_impls.techniques import fine_grained_joint_search as joint
from reference_impls.techniques.fine_grained_joint_search import SCORE, Efficiency, Space, Subnet
from reference_impls.techniques.latency_driven_slimming.search import greedy

RANDOM, BEST, FAST = "random sub-networks", "best of random", "latency alone"
CONTROLS = {
    RANDOM: "Moves are drawn at random, down to the same mobile efficiency score.",
    BEST: "Of the random sub-networks of a seed, the one with the best accuracy on the validation images.",
    FAST: "The same walk, told of the latency only; cut at the same mobile efficiency score.",
}


def sandwich_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the sub-networks of the cross-entropy. logits: (sub-networks, B, C)."""
    return torch.stack([F.cross_entropy(one, targets) for one in logits]).mean()


@dataclass(frozen=True, kw_only=True)
class JointPlan(searches.SearchPlan):
    """The supernet is trained by the sandwich rule.

    `targets`: mobile efficiency scores to reach, as multiples of the largest sub-network's.
    """

    search: ClassVar = "joint"
    batch: int = 64
    targets: tuple[float, ...] = (2.0, 4.0, 8.0)
    scratch: tuple[float, ...] = (4.0,)
    draws: int = 6
    scratch_draws: int = 2

    def network(self, state: Subnet) -> joint.Network:
        return joint.Network(self.space, state)

    def sandwich(self) -> joint.Sandwich:
        """The supernet, untrained, with the sub-networks that a step trains."""
        return joint.Sandwich(joint.Slimmable(self.space))

    def trained_supernet(self, part: Split, seed: int) -> joint.Slimmable:
        sandwich: joint.Sandwich = self.fitted("supernet", part, seed, self.sandwich, sandwich_loss)
        return sandwich.supernet

    def supernet_macs(self, part: Split) -> int:
        build = partial(seeded, 0, self.sandwich)
        return training_macs(build, *part.train, self.recipe, loss=sandwich_loss, steps=8)


def search(plan: JointPlan, latencies: LatencyTable, seed: int) -> searches.Fold[Subnet]:
    """Train the supernet of a seed and search it with every method."""
    part, space = plan.split(seed), plan.space
    supernet, whole, moves = plan.supernet(part, seed), space.largest(), partial(joint.moves, space)
    efficiency, most = Efficiency.of(space, latencies), max(plan.targets) * SCORE
    score, draws = searches.trial(supernet), generator(seed)
    path = joint.joint_search(supernet, efficiency, score, most)
    evaluations, macs = len(score.evaluated), searches.evaluation_macs(score, space)
    alone = Efficiency.of(space, latencies, {"size": 0.0, "latency": 1.0})
    fast = greedy(whole, lambda s: () if efficiency(s) >= most else moves(s), searches.trial(supernet), alone, 1e12)
    paths = {
        TECHNIQUE: [[step.state for step in path]],
        FAST: [[step.state for step in fast]],
        RANDOM: [[s for _, s in joint.random_path(whole, moves, efficiency, most, draws)] for _ in range(plan.draws)],
    }
    found = searches.reached(paths, plan.targets, lambda s, target: efficiency(s) >= target * SCORE)
    validation = {s: score(s) for target in plan.targets for s in found[RANDOM, target]}
    for target in plan.targets:
        found[BEST, target] = [max(found[RANDOM, target], key=lambda s: validation[s])]
    return searches.Fold(part, supernet, path, found, macs, evaluations, validation)


def run(study: Study[JointPlan]) -> Record:
    """Search the supernets of all seeds with every method, and compare at equal mobile efficiency score."""
    plan, space = study.plan, study.plan.space
    latencies, whole = searches.parts_table(study), space.largest()
    efficiency = Efficiency.of(space, latencies)

    def parameters(subnet: Subnet) -> int:
        return int(space.total(subnet).parameters)

    def latency(subnet: Subnet) -> float:
        return latencies(subnet.parts())

    compared = searches.Comparison(
        study,
        joint.FineGrainedJointSearch(),
        partial(search, plan, latencies),
        lambda s: 1 - parameters(s) / parameters(whole),
        at_random=RANDOM,
    )
    first, rows = compared.folds[0], []
    for target in plan.targets:
        for series, name in {TECHNIQUE: "greedy", FAST: FAST, RANDOM: "random", BEST: BEST}.items():
            states = compared.found(series, target)
            means = (searches.mean(map(of, states)) for of in (efficiency, parameters, latency))
            rows.append([target, name, *means, states[0].text() if series == TECHNIQUE else None])
    exponents = ", ".join(f"{name} {value:g}" for name, value in efficiency.exponents.items())
    return compared.record(
        model=f"EfficientFormerV2 in small, largest {whole.text()} (width and expansion of the blocks of each stage, "
        f"a: attends), {parameters(whole):,} parameters",
        controls=CONTROLS,
        notes=(
            (
                "`target`: mobile efficiency score, as a multiple of the largest sub-network's; the first sub-network "
                "of a path that reaches it counts. Units are the largest sub-network's parameters and predicted "
                f"latency; exponents, our choice: {exponents}."
            ),
            searches.WEIGHTS.format("for as many epochs"),
            (
                f"Random sub-networks: {plan.draws} for each seed and target, their mean; from scratch, the mean of "
                f"the first {plan.scratch_draws}."
            ),
        ),
        tables={
            "found": table(
                "What each method found at each target, mean over the seeds; predicted latency of a batch; of the "
                "greedy method the sub-network of the first seed.",
                ("target", "method", "score", "parameters", "ms", "network"),
                rows,
            ),
            "path": table(
                "The greedy path of the first seed: score, accuracy on validation images, parameters, predicted "
                "latency of a batch.",
                ("move", "score", "accuracy", "parameters", "ms"),
                [(s.move or "start", s.benefit, s.quality, parameters(s.state), latency(s.state)) for s in first.path],
            ),
            "random sub-networks": table(
                "Score and accuracy on validation images of the random sub-networks of the first seed.",
                ("score", "accuracy"),
                [(efficiency(s), first.validation[s]) for s in compared.drawn(RANDOM)],
            ),
            "seeds": table(
                "Steps of the greedy path of each seed, and networks that it evaluated.",
                ("seed", "steps", "evaluations"),
                [(s, len(f.path) - 1, f.evaluations) for s, f in zip(plan.seeds, compared.folds, strict=True)],
            ),
        },
        extra={"accuracy of the largest, inherited weights": compared.whole},
    )


def nano(size: int, depths: tuple[int, ...]) -> Space:
    """The search space of the experiments: V2 in small, widths in steps of 4 and 8, for grey images."""
    widths = ((4, 8), (8, 16), (16, 24, 32), (24, 32, 40))
    return Space(widths, depths, (1, 2, 3), size, 1, 10, 2, heads=2, key_dim=8, ratio=2, layer_scale=0.5)


DIGITS = JointPlan(data="digits", space=nano(16, (1, 1, 2, 2)), images=1000, validation=437, recipe=Recipe(15, lr=4e-3))
FASHION = JointPlan(
    needs=("fashion-mnist",), data="fashion-mnist", space=nano(32, (2, 2, 3, 2)), images=4000, validation=1000,
    recipe=Recipe(3, lr=4e-3),
)  # fmt: skip
"""About 8 minutes of one core for each seed, most of them for the two walks."""
SMOKE: dict[str, Any] = {"targets": (1.5, 2.0), "scratch": (2.0,), "draws": 2}
TINY, SMALL = replace(nano(16, (1, 1, 1, 1)), ratios=(1, 3)), nano(32, (1, 1, 1, 1))
SCENARIOS = (
    benchmark.task(
        "digits-search", "Joint search on 8 x 8 digits", run, full=DIGITS,
        smoke=DIGITS.smoke(space=TINY, images=300, validation=100, recipe=Recipe(3, lr=4e-3), **SMOKE),
    ),
    benchmark.task(
        "fashion-search", "Joint search on Fashion-MNIST", run, full=FASHION,
        smoke=FASHION.smoke(space=SMALL, images=500, validation=200, recipe=Recipe(1, lr=4e-3), **SMOKE),
    ),
)  # fmt: skip
FOUND = Subnet(
    (8, 16, 32, 32), ((3, 0), (3, 0), (2, 0, 0), (2, 1)), ((False,) * 2, (False,) * 2, (False,) * 3, (False,) * 2)
)
"""Found in the committed record of `fashion-search` at four times the score, by the first seed."""
CONTENDERS = {
    "compact-networks/networks-fashion": (
        found_by_search(
            "sub-network of the joint search", FASHION.space, FOUND, joint.Network, partial(joint.moves, FASHION.space),
            f"fashion-search at four times the score: {FASHION.recipe.epochs} epochs of {FASHION.images:,} images, "
            "four sub-networks at a time, then some hundreds of networks evaluated on "
            f"{FASHION.validation + 256:,} images",
            found_in="fine-grained-joint-search/fashion-search",
        ),
    )
}  # fmt: skip
