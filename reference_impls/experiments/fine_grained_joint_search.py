"""Fine-grained joint search on real data: a slimmable supernet, the greedy walk, and sub-networks of equal score.

- `digits-search`, `fashion-search`: the greedy walk beside what knows less, at equal mobile efficiency score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.accounting.latency import LatencyTable
from reference_impls.accounting.record import Record
from reference_impls.benchmarks import compact_networks as benchmark
from reference_impls.benchmarks.compact_networks.networks_fashion import Contender
from reference_impls.benchmarks.compact_networks.searches import (
    LAST,
    NOTES,
    Fold,
    SearchPlan,
    at_targets,
    compare,
    mean,
    move_counts,
    parts_table,
    search_data,
)
from reference_impls.contract import generator
from reference_impls.data.splits import Split
from reference_impls.study import TECHNIQUE, Recipe, Study, seeded, table
from reference_impls.techniques.fine_grained_joint_search import (
    SCORE,
    Efficiency,
    FineGrainedJointSearch,
    Network,
    Sandwich,
    Slimmable,
    Space,
    Subnet,
    Trial,
    joint_search,
    moves,
    random_path,
)
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
class JointPlan(SearchPlan):
    """The supernet is trained by the sandwich rule.

    `targets`: mobile efficiency scores to reach, as multiples of the largest sub-network's.
    """

    search: ClassVar = "joint"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch: int = 64
    targets: tuple[float, ...] = (2.0, 4.0, 8.0)
    scratch: tuple[float, ...] = (4.0,)
    draws: int = 6
    scratch_draws: int = 2

    def network(self, state: Subnet) -> Network:
        return Network(self.space, state)

    def supernet(self, part: Split, seed: int) -> Slimmable:
        sandwich = self.fitted("supernet", part, seed, lambda: Sandwich(Slimmable(self.space)), sandwich_loss)
        supernet: Slimmable = sandwich.supernet
        supernet.search = search_data(part)
        return supernet


@dataclass
class JointFold(Fold[Subnet]):
    """With what the search asked for."""

    evaluations: int
    """Sub-networks that the greedy walk evaluated."""
    validation: dict[Subnet, float]
    """Accuracy on the validation images of the sub-networks drawn at random."""


def search(plan: JointPlan, latencies: LatencyTable, seed: int) -> JointFold:
    """Train the supernet of a seed and search it with every method."""
    part, space = plan.split(seed), plan.space
    supernet = plan.supernet(part, seed)
    joint, most = Efficiency.of(space, latencies), max(plan.targets) * SCORE

    def trial() -> Trial[Subnet]:
        assert supernet.search is not None
        return Trial(lambda s: supernet.extract(s).to(memory_format=LAST), supernet.search)

    def reached(states: Sequence[Subnet]) -> dict[float, Subnet]:
        return at_targets(states, plan.targets, lambda s, target: joint(s) >= target * SCORE)

    score = trial()
    path = joint_search(supernet, joint, score, most)
    evaluations = len(score.evaluated)
    found = {(TECHNIQUE, target): [s] for target, s in reached([step.state for step in path]).items()}
    alone = Efficiency.of(space, latencies, {"size": 0.0, "latency": 1.0})
    walk = walk_until(supernet, alone, trial(), lambda s: joint(s) >= most)
    found |= {(FAST, target): [s] for target, s in reached(walk).items()}
    draws = generator(seed)
    validation: dict[Subnet, float] = {}
    for _ in range(plan.draws):
        steps = random_path(space.largest(), lambda s: moves(space, s), joint, most, draws)
        for target, drawn in reached([state for _, state in steps]).items():
            found.setdefault((RANDOM, target), []).append(drawn)
            validation[drawn] = score(drawn)
    for target in plan.targets:
        found[BEST, target] = [max(found[RANDOM, target], key=lambda s: validation[s])]
    return JointFold(part, supernet, path, found, evaluations, validation)


def walk_until(
    supernet: Slimmable, efficiency: Efficiency, quality: Callable[[Subnet], float], done: Callable[[Subnet], bool]
) -> list[Subnet]:
    """The greedy walk by another score, to the first sub-network that is `done`."""
    space = supernet.space
    path = greedy(space.largest(), lambda s: () if done(s) else moves(space, s), quality, efficiency, 1e12)
    return [step.state for step in path]


def run(study: Study[JointPlan]) -> Record:
    """Search the supernets of all seeds with every method, and compare at equal mobile efficiency score."""
    plan, space = study.plan, study.plan.space
    study.progress("latency table", 0, 1)
    latencies = parts_table(study)
    joint, whole = Efficiency.of(space, latencies), space.largest()
    folds: list[JointFold] = []

    def search_seed(seed: int) -> JointFold:
        folds.append(search(plan, latencies, seed))
        return folds[-1]

    def parameters(subnet: Subnet) -> int:
        return int(space.total(subnet).parameters)

    _, redundancy, inherited = compare(
        study,
        FineGrainedJointSearch(),
        search_seed,
        lambda s: 1 - parameters(s) / parameters(whole),
        at_random=RANDOM,
    )
    names = {TECHNIQUE: "greedy", FAST: FAST, RANDOM: "random", BEST: BEST}
    first, rows = folds[0], []
    for target in plan.targets:
        for series, name in names.items():
            states = [s for fold in folds for s in fold.found[series, target]]
            text = first.found[series, target][0].text() if series == TECHNIQUE else None
            ms = mean(latencies(s.parts()) for s in states)
            rows.append([target, name, mean(map(joint, states)), mean(map(parameters, states)), ms, text])
    drawn = [s for target in plan.targets for s in first.found[RANDOM, target]]
    return study.record(
        data=plan.title(first.part),
        model=f"EfficientFormerV2 in small, largest {whole.text()} (width and expansion of the blocks of each stage, "
        f"a: attends), {parameters(whole):,} parameters",
        unit=f"one image in a batch of {plan.batch}",
        knobs=("target", "weights"),
        metric="accuracy",
        controls=CONTROLS,
        redundancy=redundancy,
        notes=(
            (
                "`target`: mobile efficiency score, as a multiple of the largest sub-network's; the first sub-network "
                "of a path that reaches it counts. Units are the largest sub-network's parameters and predicted "
                f"latency; exponents, our choice: size {joint.exponents['size']:g}, latency "
                f"{joint.exponents['latency']:g}."
            ),
            (
                "`inherited`: weights of the supernet, batch norms recalibrated on training images. `from scratch`: "
                "the same architecture trained alone, for as many epochs. The baseline is trained from scratch."
            ),
            (
                f"Random sub-networks: {plan.draws} for each seed and target, their mean; "
                f"from scratch, the mean of the first {plan.scratch_draws}."
            ),
            *NOTES,
        ),
        tables={
            "moves": move_counts(folds),
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
                [
                    [
                        step.move or "start",
                        step.benefit,
                        step.quality,
                        parameters(step.state),
                        latencies(step.state.parts()),
                    ]
                    for step in first.path
                ],
            ),
            "random sub-networks": table(
                "Score and accuracy on validation images of the random sub-networks of the first seed.",
                ("score", "accuracy"),
                [[joint(s), first.validation[s]] for s in drawn],
            ),
            "seeds": table(
                "Steps of the greedy path of each seed, and networks that it evaluated.",
                ("seed", "steps", "evaluations"),
                [[seed, len(f.path) - 1, f.evaluations] for seed, f in zip(plan.seeds, folds, strict=True)],
            ),
        },
        extra={"accuracy of the largest, inherited weights": inherited},
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
SMOKE: dict[str, Any] = {
    "seeds": (0,), "repetitions": 3, "table_rounds": 5, "targets": (1.5, 2.0), "scratch": (2.0,), "draws": 2,
}  # fmt: skip
SCENARIOS = (
    benchmark.task(
        "digits-search",
        "Joint search on 8 x 8 digits",
        run,
        full=DIGITS,
        smoke=replace(
            DIGITS, space=replace(nano(16, (1, 1, 1, 1)), ratios=(1, 3)), images=300, validation=100,
            recipe=Recipe(3, lr=4e-3), **SMOKE,
        ),
    ),
    benchmark.task(
        "fashion-search",
        "Joint search on Fashion-MNIST",
        run,
        full=FASHION,
        smoke=replace(
            FASHION, space=nano(32, (1, 1, 1, 1)), images=500, validation=200, recipe=Recipe(1, lr=4e-3), **SMOKE
        ),
    ),
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------------------
# What it finds, beside other networks

FOUND = Subnet(
    (8, 16, 32, 32), ((3, 0), (3, 0), (2, 0, 0), (2, 1)), ((False,) * 2, (False,) * 2, (False,) * 3, (False,) * 2)
)
"""Found in the committed record of `fashion-search` at four times the score, by the first seed."""


def at_random(seed: int) -> Network:
    """What moves drawn at random reach at no more MACs than what was found."""
    space = FASHION.space
    steps = random_path(
        space.largest(),
        lambda s: moves(space, s),
        lambda s: -space.total(s).macs,
        -space.total(FOUND).macs,
        generator(seed),
    )
    return seeded(seed, lambda: Network(space, steps[-1][1]))


CONTENDERS = {
    "compact-networks/networks-fashion": (
        Contender(
            "sub-network of the joint search",
            lambda seed: seeded(seed, lambda: Network(FASHION.space, FOUND)),
            at_random,
            "found in fashion-search at four times the score, by the first seed; the training of that supernet and "
            "the walk are counted nowhere.",
        ),
    )
}
