"""Latency-driven slimming on real data: a supernet of MetaPaths, a latency table of this machine, the greedy path.

- `digits-slimming`, `fashion-slimming`: greedy slimming beside what knows less, at equal predicted latency.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from reference_impls.accounting.latency import LatencyTable, prediction_error
from reference_impls.accounting.record import Record
from reference_impls.benchmarks import compact_networks as benchmark
from reference_impls.benchmarks.compact_networks import searches
from reference_impls.benchmarks.compact_networks.networks_fashion import SIDE, found_by_search
from reference_impls.contract import generator
from reference_impls.data.splits import Split
from reference_impls.study import TECHNIQUE, Recipe, Study, seeded, table, training_macs
from reference_impls.techniques import latency_driven_slimming as slimming
from reference_impls.techniques.latency_driven_slimming import Architecture, Space

RANDOM, MACS, SHUFFLED = "random slimming", "MACs for latency", "importance shuffled"
CONTROLS = {
    RANDOM: "Moves are drawn at random among all that the rules allow, down to the same predicted latency.",
    MACS: "The same walk, told what a move saves in MACs; cut at the same predicted latency.",
    SHUFFLED: "The same walk, with the learned importance of the positions dealt out at random.",
}


@dataclass(frozen=True, kw_only=True)
class SlimmingPlan(searches.SearchPlan):
    """The supernet is trained as any network, its choices mixed by a Gumbel softmax of temperature 1."""

    search: ClassVar = "slimming"
    batch: int = 16
    targets: tuple[float, ...] = (0.75, 0.5, 0.35)
    scratch: tuple[float, ...] = (0.5,)
    draws: int = 2

    def network(self, state: Architecture) -> slimming.Network:
        return slimming.Network(self.space, state)

    def trained_supernet(self, part: Split, seed: int) -> slimming.Supernet:
        supernet: slimming.Supernet = self.fitted("supernet", part, seed, lambda: slimming.Supernet(self.space))
        return supernet

    def supernet_macs(self, part: Split) -> int:
        return training_macs(lambda: seeded(0, lambda: slimming.Supernet(self.space)), *part.train, self.recipe)


def search(plan: SlimmingPlan, latencies: LatencyTable, seed: int) -> searches.Fold[Architecture]:
    """Train the supernet of a seed and slim it with every method."""
    part, space = plan.split(seed), plan.space
    supernet, start = plan.supernet(part, seed), space.largest()
    least = min(plan.targets) * latencies(start.parts())

    def latency(architecture: Architecture) -> float:
        return latencies(architecture.parts())

    def walk(moves: Any, benefit: Any = lambda a: -latency(a), target: float = -least) -> list[Architecture]:
        """The greedy walk with another benefit, or by other moves."""
        return [step.state for step in slimming.greedy(start, moves, searches.trial(supernet), benefit, target)]

    score = searches.trial(supernet)
    path = slimming.slim(supernet, latencies, score, min(plan.targets))
    macs = searches.evaluation_macs(score, space)
    scores = slimming.importance(supernet.probabilities())
    draws, keys = generator(seed), list(scores)
    dealt = dict(zip(keys, [scores[keys[k]] for k in torch.randperm(len(keys), generator=draws)], strict=True))

    def further(a: Architecture) -> Iterable[tuple[str, Architecture]]:
        return slimming.moves(a, scores) if latency(a) > least else ()

    paths = {
        TECHNIQUE: [[step.state for step in path]],
        MACS: [walk(further, lambda a: -float(space.total(a).macs), 0.0)],
        SHUFFLED: [walk(lambda a: slimming.moves(a, dealt))],
        RANDOM: [
            [a for _, a in slimming.random_path(start, slimming.all_moves, lambda a: -latency(a), -least, draws)]
            for _ in range(plan.draws)
        ],
    }
    found = searches.reached(paths, plan.targets, lambda a, share: latency(a) <= share * latency(start))
    return searches.Fold(part, supernet, path, found, macs)


def run(study: Study[SlimmingPlan]) -> Record:
    """Slim the supernets of all seeds with every method, and compare at equal predicted latency."""
    plan, space = study.plan, study.plan.space
    latencies, start = searches.parts_table(study), space.largest()
    compared = searches.Comparison(
        study,
        slimming.LatencyDrivenSlimming(),
        partial(search, plan, latencies),
        lambda a: 1 - sum(a.depths()) / sum(start.depths()),
        at_random=RANDOM,
    )
    first = compared.folds[0]
    # Sums and wholes from the same rounds: those of the search's own table were taken minutes before.
    chosen = {a.text(): a for a in (*(step.state for step in first.path), *compared.drawn(RANDOM))}
    both = searches.parts_table(study, {text: plan.network(a) for text, a in chosen.items()})
    pairs = [(both(a.parts()), both([text])) for text, a in chosen.items()]
    error, correlation = prediction_error(*zip(*pairs, strict=True))
    learned = slimming.importance(first.supernet.probabilities())
    return compared.record(
        model=f"EfficientFormer in small, {start.text()} (width and blocks of each stage), "
        f"{space.total(start).parameters:,} parameters",
        controls=CONTROLS,
        notes=(
            "`target`: share of the whole network's predicted latency; the first network of a path below it counts.",
            searches.WEIGHTS.format("as long as the supernet"),
            f"Random slimming is the mean of {plan.draws} paths per seed; from scratch, one of them is trained.",
            (
                "Latency tables hold 10th percentiles of 50 repetitions of a batch. Networks are held against sums of "
                "parts that were measured in the same rounds, not against the search's own table."
            ),
        ),
        tables={
            "path": table(
                "The greedy path of the first seed: predicted latency of a batch, accuracy on validation images, the "
                "network (kinds of blocks of each stage).",
                ("move", "ms", "accuracy", "network"),
                [(step.move or "start", -step.benefit, step.quality, step.state.text()) for step in first.path],
            ),
            "latency, predicted and measured": table(
                "Milliseconds of a batch: the sum of the parts and the whole network, from the same rounds; 10th "
                "percentiles.",
                ("predicted", "measured"),
                pairs,
            ),
            "importance": table(
                "Learned importance of each position of the supernet of the first seed.",
                ("position", "importance"),
                [(f"stage {j + 1} block {i + 1}", value) for (j, i), value in learned.items()],
            ),
            "seeds": table(
                "Steps of the greedy path of each seed.",
                ("seed", "steps"),
                [(seed, len(fold.path) - 1) for seed, fold in zip(plan.seeds, compared.folds, strict=True)],
            ),
        },
        extra={
            "accuracy of the whole, inherited weights": compared.whole,
            "predicted ms of the whole": latencies(start.parts()),
            "prediction error": error,
            "prediction correlation": correlation,
        },
    )


def nano(size: int, depths: tuple[int, ...], widths: tuple[int, ...] = (32, 32, 48, 64)) -> Space:
    """The search space of the experiments: EfficientFormer in small, for grey images."""
    return Space(widths, depths, size, 1, 10, 2, heads=4, key_dim=8, ratio=2, layer_scale=0.5)


DIGITS = SlimmingPlan(
    data="digits", space=nano(16, (2, 2, 2, 2)), images=1000, validation=437, recipe=Recipe(20, lr=4e-3)
)
FASHION = SlimmingPlan(
    needs=("fashion-mnist",), data="fashion-mnist", space=nano(28, (2, 2, 3, 2)), images=5000, validation=1000,
    recipe=Recipe(5, lr=4e-3),
)  # fmt: skip
TINY = nano(16, (1, 1, 2, 2), (16, 32, 32, 48))
SCENARIOS = (
    benchmark.task(
        "digits-slimming", "Slimming on 8 x 8 digits", run, full=DIGITS,
        smoke=DIGITS.smoke(space=TINY, images=300, validation=100, recipe=Recipe(3, lr=4e-3)),
    ),
    benchmark.task(
        "fashion-slimming", "Slimming on Fashion-MNIST", run, full=FASHION,
        smoke=FASHION.smoke(images=1000, validation=500, recipe=Recipe(2, lr=4e-3)),
    ),
)  # fmt: skip
FOUND = Architecture(
    (32, 32, 48, 64),
    (("4d", "identity"), ("identity", "4d"), ("identity", "4d", "identity"), ("identity", "3d")),
)
"""Found in the committed record of `fashion-slimming` at half of the latency, by the first seed."""
CONTENDERS = {
    "compact-networks/networks-fashion": (
        found_by_search(
            "slimmed EfficientFormer", replace(FASHION.space, size=SIDE), FOUND, slimming.Network, slimming.all_moves,
            f"fashion-slimming at half of the predicted latency: {FASHION.recipe.epochs} epochs of {FASHION.images:,} "
            "images, all choices at a time, then some dozens of networks evaluated on "
            f"{FASHION.validation + 256:,} images",
            found_in="latency-driven-slimming/fashion-slimming",
        ),
    )
}  # fmt: skip
