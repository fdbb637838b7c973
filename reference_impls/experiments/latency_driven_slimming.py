"""Latency-driven slimming on real data: a supernet of MetaPaths, a latency table of this machine, the greedy path.

- `digits-slimming`, `fashion-slimming`: greedy slimming beside what knows less, at equal predicted latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from reference_impls.accounting.latency import LatencyTable, prediction_error
from reference_impls.accounting.record import Record
from reference_impls.benchmarks import compact_networks as benchmark
from reference_impls.benchmarks.compact_networks.networks_fashion import SIDE, Contender
from reference_impls.benchmarks.compact_networks.searches import (
    LAST,
    NOTES,
    Fold,
    SearchPlan,
    at_targets,
    compare,
    move_counts,
    parts_table,
    search_data,
)
from reference_impls.contract import generator
from reference_impls.data.splits import Split
from reference_impls.study import TECHNIQUE, Recipe, Study, seeded, table
from reference_impls.techniques.latency_driven_slimming import (
    Architecture,
    LatencyDrivenSlimming,
    Network,
    Space,
    Supernet,
    Trial,
    all_moves,
    greedy,
    importance,
    moves,
    random_path,
    slim,
)

RANDOM, MACS, SHUFFLED = "random slimming", "MACs for latency", "importance shuffled"
CONTROLS = {
    RANDOM: "Moves are drawn at random among all that the rules allow, down to the same predicted latency.",
    MACS: "The same walk, told what a move saves in MACs; cut at the same predicted latency.",
    SHUFFLED: "The same walk, with the learned importance of the positions dealt out at random.",
}


@dataclass(frozen=True, kw_only=True)
class SlimmingPlan(SearchPlan):
    """With the temperature of the Gumbel softmax that the supernet is trained at."""

    search: ClassVar = "slimming"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch: int = 16
    targets: tuple[float, ...] = (0.75, 0.5, 0.35)
    scratch: tuple[float, ...] = (0.5,)
    draws: int = 2
    temperature: float = 1.0

    def network(self, state: Architecture) -> Network:
        return Network(self.space, state)

    def supernet(self, part: Split, seed: int) -> Supernet:
        supernet: Supernet = self.fitted(
            "supernet",
            part,
            seed,
            lambda: Supernet(self.space, temperature=self.temperature),
            temperature=self.temperature,
        )
        supernet.search = search_data(part)
        return supernet


def search(plan: SlimmingPlan, latencies: LatencyTable, seed: int) -> Fold[Architecture]:
    """Train the supernet of a seed and slim it with every method."""
    part, space = plan.split(seed), plan.space
    supernet = plan.supernet(part, seed)
    start = space.largest()
    least = min(plan.targets) * latencies(start.parts())

    def latency(architecture: Architecture) -> float:
        return latencies(architecture.parts())

    def walk(of: Any, benefit: Any = lambda a: -latency(a), target: float = -least) -> list[Architecture]:
        """The greedy walk with a benefit, among moves that follow from an architecture."""
        return [step.state for step in greedy(start, of, _trial(supernet), benefit, target)]

    path = slim(supernet, latencies, _trial(supernet), min(plan.targets))
    scores = importance(supernet.probabilities())
    blind = walk(lambda a: moves(a, scores) if latency(a) > least else (), lambda a: -float(space.total(a).macs), 0.0)
    draws = generator(seed)
    keys = list(scores)
    dealt = dict(zip(keys, [scores[keys[k]] for k in torch.randperm(len(keys), generator=draws)], strict=True))
    paths = {
        TECHNIQUE: [[step.state for step in path]],
        MACS: [blind],
        SHUFFLED: [walk(lambda a: moves(a, dealt))],
        RANDOM: [
            [state for _, state in random_path(start, all_moves, lambda a: -latency(a), -least, draws)]
            for _ in range(plan.draws)
        ],
    }
    found: dict[tuple[str, float], list[Architecture]] = {}
    for series, taken in paths.items():
        for states in taken:
            reached = at_targets(states, plan.targets, lambda a, share: latency(a) <= share * latency(start))
            for target, state in reached.items():
                found.setdefault((series, target), []).append(state)
    return Fold(part, supernet, path, found)


def _trial(supernet: Supernet) -> Trial[Architecture]:
    assert supernet.search is not None
    return Trial(lambda a: supernet.extract(a).to(memory_format=LAST), supernet.search)


def run(study: Study[SlimmingPlan]) -> Record:
    """Slim the supernets of all seeds with every method, and compare at equal predicted latency."""
    plan, space = study.plan, study.plan.space
    study.progress("latency table", 0, 1)
    latencies = parts_table(study)
    start = space.largest()
    folds, redundancy, whole = compare(
        study,
        LatencyDrivenSlimming(),
        lambda seed: search(plan, latencies, seed),
        lambda a: 1 - sum(a.depths()) / sum(start.depths()),
        at_random=RANDOM,
    )
    predicted, taken = predicted_and_measured(study, folds[0])
    error, correlation = prediction_error(predicted, taken)
    path, learned = folds[0].path, importance(folds[0].supernet.probabilities())
    return study.record(
        data=plan.title(folds[0].part),
        model=f"EfficientFormer in small, {start.text()} "
        f"(width and blocks of each stage), {space.total(start).parameters:,} parameters",
        unit=f"one image in a batch of {plan.batch}",
        knobs=("target", "weights"),
        metric="accuracy",
        controls=CONTROLS,
        redundancy=redundancy,
        notes=(
            "`target`: share of the whole network's predicted latency; the first network of a path below it counts.",
            (
                "`inherited`: weights of the supernet, batch norms recalibrated on training images. `from scratch`: "
                "the same architecture trained alone, as long as the supernet. The baseline is trained from scratch."
            ),
            f"Random slimming is the mean of {plan.draws} paths a seed; from scratch, one of them is trained.",
            *NOTES,
            (
                "Latency tables hold 10th percentiles of 50 repetitions of a batch. Networks are held against sums of "
                "parts that were measured in the same rounds, not against the search's own table."
            ),
        ),
        tables={
            "moves": move_counts(folds),
            "path": table(
                "The greedy path of the first seed: predicted latency of a batch, accuracy on validation images, the "
                "network (kinds of blocks of each stage).",
                ("move", "ms", "accuracy", "network"),
                [[step.move or "start", -step.benefit, step.quality, step.state.text()] for step in path],
            ),
            "latency, predicted and measured": table(
                "Milliseconds of a batch: the sum of the parts and the whole network, from the same rounds; 10th "
                "percentiles.",
                ("predicted", "measured"),
                list(zip(predicted, taken, strict=True)),
            ),
            "importance": table(
                "Learned importance of each position of the supernet of the first seed.",
                ("position", "importance"),
                [[f"stage {j + 1} block {i + 1}", value] for (j, i), value in learned.items()],
            ),
            "seeds": table(
                "Steps of the greedy path of each seed.",
                ("seed", "steps"),
                [[seed, len(fold.path) - 1] for seed, fold in zip(plan.seeds, folds, strict=True)],
            ),
        },
        extra={
            "accuracy of the whole, inherited weights": whole,
            "predicted ms of the whole": latencies(start.parts()),
            "prediction error": error,
            "prediction correlation": correlation,
        },
    )


def predicted_and_measured(study: Study[SlimmingPlan], fold: Fold[Architecture]) -> tuple[list[float], list[float]]:
    """Milliseconds of a batch for every network on the greedy path and those found at random.

    Sums of the parts and whole networks come from the same rounds. Those of the search's own table were taken minutes
    before, and on a shared machine minutes make a difference of their own.
    """
    states: Sequence[Architecture] = [step.state for step in fold.path]
    states = [*states, *(a for (series, _), found in fold.found.items() if series == RANDOM for a in found)]
    chosen = {a.text(): a for a in states}
    both = parts_table(study, {text: study.plan.network(a) for text, a in chosen.items()})
    return [both(a.parts()) for a in chosen.values()], [both([text]) for text in chosen]


DIGITS = SlimmingPlan(
    data="digits",
    space=Space((32, 32, 48, 64), (2, 2, 2, 2), 16, 1, 10, 2, heads=4, key_dim=8, ratio=2, layer_scale=0.5),
    images=1000,
    validation=437,
    recipe=Recipe(20, lr=4e-3),
)
FASHION = SlimmingPlan(
    needs=("fashion-mnist",),
    data="fashion-mnist",
    space=Space((32, 32, 48, 64), (2, 2, 3, 2), 28, 1, 10, 2, heads=4, key_dim=8, ratio=2, layer_scale=0.5),
    images=5000,
    validation=1000,
    recipe=Recipe(5, lr=4e-3),
)
SMOKE: dict[str, Any] = {"seeds": (0,), "repetitions": 3, "table_rounds": 5}
SCENARIOS = (
    benchmark.task(
        "digits-slimming",
        "Slimming on 8 x 8 digits",
        run,
        full=DIGITS,
        smoke=replace(
            DIGITS, space=replace(DIGITS.space, widths=(16, 32, 32, 48), depths=(1, 1, 2, 2)), images=300,
            validation=100, recipe=Recipe(3, lr=4e-3), **SMOKE,
        ),
    ),
    benchmark.task(
        "fashion-slimming",
        "Slimming on Fashion-MNIST",
        run,
        full=FASHION,
        smoke=replace(FASHION, images=1000, validation=500, recipe=Recipe(2, lr=4e-3), **SMOKE),
    ),
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------------------
# What it finds, beside other networks

FOUND = Architecture(
    (32, 32, 48, 64),
    (("4d", "identity"), ("identity", "4d"), ("identity", "4d", "identity"), ("identity", "3d")),
)
"""Found in the committed record of `fashion-slimming` at half of the latency, by the first seed."""
AT_32 = replace(FASHION.space, size=SIDE)


def at_random(seed: int) -> Network:
    """What moves drawn at random reach at no more MACs than what was found."""
    steps = random_path(
        AT_32.largest(), all_moves, lambda a: -AT_32.total(a).macs, -AT_32.total(FOUND).macs, generator(seed)
    )
    return seeded(seed, lambda: Network(AT_32, steps[-1][1]))


CONTENDERS = {
    "compact-networks/networks-fashion": (
        Contender(
            "slimmed EfficientFormer",
            lambda seed: seeded(seed, lambda: Network(AT_32, FOUND)),
            at_random,
            "found in fashion-slimming at half of the predicted latency, by the first seed; the training of that "
            "supernet and the walk are counted nowhere.",
        ),
    )
}
