"""What the experiments of the two searches share, latency-driven slimming and fine-grained joint search.

Several methods search the supernet of every seed for networks that reach the same targets. What they find is compared:
test accuracy with the supernet's weights and from scratch, MACs, time.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.latency import LatencyTable, measure_table
from reference_impls.accounting.record import Measured, Point
from reference_impls.accounting.timing import wall_time
from reference_impls.contract import Technique
from reference_impls.data import images
from reference_impls.experiments.harness import (
    Context,
    Cost,
    fork_seed,
    measure_arms,
    over_seeds,
    predict,
    train,
    trained,
)
from reference_impls.layers.norm import fold_batch_norm, recalibrate
from reference_impls.techniques.latency_driven_slimming.search import Step


class Searched(Protocol):
    """What a search finds: an architecture, or a sub-network."""

    def text(self) -> str:
        """It in a line."""


State = TypeVar("State", bound=Searched)
LAST = torch.channels_last
"""The memory layout of all networks here: several times as fast on a CPU for maps this small."""
QUIET = 10
"""Percentile of the repetitions that latency tables hold, and that they are compared with."""
TEST = 5000
"""Test images at most, the first ones of the test set."""


# --------------------------------------------------------------------------------------------------------------------
# Data and trained networks


@dataclass(frozen=True)
class Split:
    """Data of one seed: what trains, what a search may look at, and what tests in the end."""

    x_train: Tensor
    y_train: Tensor
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor


def split(data: Literal["digits", "fashion-mnist"], size: int, train_on: int, validate_on: int, seed: int) -> Split:
    """Training and validation images drawn without overlap from the training set, and the first `TEST` test images.

    Digits (8 x 8) are enlarged to `size`, Fashion-MNIST (28 x 28) is padded with black to it.
    """
    x, y, x_test, y_test = images.digits() if data == "digits" else images.fashion_mnist()
    x_test, y_test = x_test[:TEST], y_test[:TEST]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train_rows, valid_rows = order[:train_on], order[train_on : train_on + validate_on]

    def sized(part: Tensor) -> Tensor:
        if data == "digits":
            return F.interpolate(part, size=(size, size), mode="bilinear", align_corners=False)
        return F.pad(part, [(size - part.shape[-1]) // 2] * 4)

    x_train, x_valid, x_test = (sized(part) for part in (x[train_rows], x[valid_rows], x_test))
    mean, std = x_train.mean(), x_train.std()
    x_train, x_valid, x_test = ((part - mean) / std for part in (x_train, x_valid, x_test))
    return Split(x_train, y[train_rows], x_valid, y[valid_rows], x_test, y_test)


@dataclass(frozen=True)
class Recipe:
    """Every choice that the weights of one experiment follow from, but for the seed.

    Each search adds how its networks are built: `network`, `supernet`.
    """

    search: ClassVar[str]
    """Short name of the search, for the cache."""
    data: Literal["digits", "fashion-mnist"]
    space: Any
    images: int
    validation: int
    epochs: int
    lr: float = 4e-3

    def split(self, seed: int) -> Split:
        return split(self.data, self.space.size, self.images, self.validation, seed)

    def network(self, state: Any) -> nn.Module:
        """The plain network of a state."""
        raise NotImplementedError

    def supernet(self, part: Split, seed: int) -> Any:
        """The trained supernet, with its search data."""
        raise NotImplementedError

    def from_scratch(self, state: Any, part: Split, seed: int) -> nn.Module:
        """The plain network of a state, trained on its own for as many epochs as the supernet was."""
        return self.fitted("network", part, seed, lambda: self.network(state), architecture=state.text())

    def fitted(
        self,
        name: str,
        part: Split,
        seed: int,
        build: Callable[[], nn.Module],
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        **more: Any,
    ) -> Any:
        """What `build` makes, trained; from the cache if the same was trained before. `more`: what else tells it."""

        def seeded() -> nn.Module:
            with fork_seed(seed):
                return build().to(memory_format=LAST)

        def fit(model: nn.Module) -> nn.Module:
            return train(model, part.x_train, part.y_train, epochs=self.epochs, seed=seed, lr=self.lr, loss=loss)

        spec = dataclasses.asdict(self) | more | {"seed": seed, "version": 1}
        return trained(f"{self.search}-{name}-{self.data}", spec, seeded, fit)


def accuracy(network: nn.Module, part: Split) -> float:
    """Share of the test images that a network in eval mode gets right."""
    return (predict(network, part.x_test).argmax(-1) == part.y_test).double().mean().item()


# --------------------------------------------------------------------------------------------------------------------
# Latency


def deployed(network: nn.Module) -> nn.Module:
    """A network as it would be deployed: batch norms folded into the convolutions. The network itself is changed."""
    fold_batch_norm(network.eval())
    return network.to(memory_format=LAST)


def run_on(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call that runs the network on x without gradients."""
    return torch.no_grad()(lambda: network(x))


def parts_table(space: Any, batch: int, ctx: Context, networks: Mapping[str, nn.Module] | None = None) -> LatencyTable:
    """The latency of every part of a space (`every_part`, `build`, `example`) on this machine, batch norms folded.

    `networks` are measured in the same rounds and stand in the table under their names, to be held against their parts.
    """
    arms: dict[Hashable, Callable[[], object]] = {}
    for part in space.every_part():
        x = space.example(part, batch)
        arms[part] = run_on(deployed(space.build(part)), x.contiguous(memory_format=LAST) if x.ndim == 4 else x)
    for name, network in (networks or {}).items():
        x = torch.zeros(batch, space.in_channels, space.size, space.size)
        arms[name] = run_on(deployed(network), x)
    return measure_table(arms, repetitions=5 if ctx.smoke else 50, threads=ctx.threads, percentile=QUIET)


def pooled(costs: Sequence[Cost]) -> Cost:
    """One cost of several networks, such as those that the seeds found: means of counts, and all repetitions."""
    samples = [sample for cost in costs for sample in cost.samples]
    return Cost(
        macs=round(float(np.mean([cost.macs for cost in costs]))),
        bytes=round(float(np.mean([cost.bytes for cost in costs]))),
        wall_ms=wall_time(samples),
        uncounted=tuple(sorted({name for cost in costs for name in cost.uncounted})),
        samples=tuple(samples),
    )


# --------------------------------------------------------------------------------------------------------------------
# The comparison

Weights = Literal["inherited", "from scratch"]
WEIGHTS: tuple[Weights, ...] = ("inherited", "from scratch")
GREEDY, RANDOM = "greedy", "random"
"""The method under test, and the one that is also trained from scratch beside it."""


@dataclass
class Fold(Generic[State]):
    """What the methods found in one seed."""

    seed: int
    part: Split
    supernet: Any
    path: list[Step[State]]
    """Of the greedy method."""
    found: dict[tuple[str, float], list[State]]
    """Method and target -> the states found; several where the method draws."""


@dataclass
class Comparison(Generic[State]):
    """What the methods found over all seeds."""

    folds: list[Fold[State]]
    accuracies: Mapping[tuple[Weights, str, float], list[float]]
    """Weights, method and target -> the test accuracy of each seed, the mean where a seed found several networks."""
    whole: Mapping[Weights, list[float]]
    """The same of the whole network."""
    costs: Mapping[str, Cost]
    """Text of a state -> its cost; "whole" for the whole network."""
    redundancy: Measured

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(method for method, _ in self.folds[0].found))

    @property
    def targets(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(target for _, target in self.folds[0].found))

    def found(self, method: str, target: float) -> list[State]:
        """The states of all seeds."""
        return [state for fold in self.folds for state in fold.found[method, target]]

    def points(self, method: str, removed: Callable[[State], float]) -> tuple[Point, ...]:
        """A point for each kind of weights and each target. `removed`: which share of the whole a state leaves out."""
        made = []
        for weights in WEIGHTS:
            for target in self.targets:
                if values := self.accuracies.get((weights, method, target)):
                    states = self.found(method, target)
                    cost = pooled([self.costs[state.text()] for state in states])
                    share = float(np.mean([removed(state) for state in states]))
                    knobs = {"target": target, "weights": weights}
                    made.append(cost.point(knobs, over_seeds("accuracy", values), redundancy=share))
        return tuple(made)

    def gains(self) -> dict[str, tuple[float, ...]]:
        """For the record's `extra`: accuracy of greedy minus each other method, paired by seed, and its interval."""
        gains = {}
        for (weights, method, target), values in self.accuracies.items():
            if method != GREEDY:
                ours = self.accuracies[weights, GREEDY, target]
                gain = over_seeds("gain", [a - b for a, b in zip(ours, values, strict=True)])
                ends = () if gain.low is None or gain.high is None else (gain.low, gain.high)
                name = f"gain_over_{method}_{weights}_{target:g}".replace(" ", "_")
                gains[name] = (gain.value, *ends)
        return gains

    def move_counts(self) -> str:
        """How often each kind of move was made, over the greedy paths of all seeds."""
        counts: dict[str, int] = defaultdict(int)
        for fold in self.folds:
            for step in fold.path[1:]:
                counts[step.move.rpartition(" ")[0]] += 1
        return "; ".join(f"{kind}: {n}" for kind, n in sorted(counts.items()))


def compare(
    ctx: Context,
    recipe: Recipe,
    technique: Technique,
    search: Callable[[int], Fold[State]],
    seeds: Sequence[int],
    *,
    batch: int,
    scratch: Sequence[float],
    scratch_draws: int = 1,
) -> Comparison[State]:
    """Search with every seed, then test, count and time all that was found.

    At the targets `scratch`, what the greedy method found and the first `scratch_draws` of the random one are also
    trained from scratch. Raises RuntimeError where counted MACs differ from the closed form.
    """
    space = recipe.space
    folds, measured, noise = [], [], []
    accuracies: dict[tuple[Weights, str, float], list[float]] = defaultdict(list)
    whole: dict[Weights, list[float]] = defaultdict(list)
    for seed in seeds:
        ctx.progress("search", seed, len(seeds))
        fold = search(seed)
        folds.append(fold)
        sample = fold.part.x_test[:512]
        measured.append(technique.measure(fold.supernet, sample))
        white = torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed))
        noise.append(technique.measure(fold.supernet, white).value)

        def scratched(states: Iterable[Any], fold: Fold[State] = fold) -> float:
            return _mean(accuracy(recipe.from_scratch(s, fold.part, fold.seed), fold.part) for s in states)

        whole["inherited"].append(inherited(fold, space.largest()))
        whole["from scratch"].append(scratched([space.largest()]))
        for (method, target), states in fold.found.items():
            accuracies["inherited", method, target].append(_mean(inherited(fold, s) for s in states))
            if target in scratch and method in (GREEDY, RANDOM):
                ctx.progress(f"training {method}", seed, len(seeds))
                accuracies["from scratch", method, target].append(scratched(states[:scratch_draws]))

    ctx.progress("timing", 0, 1)
    distinct = {s.text(): s for fold in folds for states in fold.found.values() for s in states}
    networks = {"whole": recipe.network(space.largest())} | {text: recipe.network(s) for text, s in distinct.items()}
    x = folds[0].part.x_test[:batch]
    arms = {text: run_on(deployed(network), x) for text, network in networks.items()}
    costs = measure_arms(arms, units=batch, repetitions=3 if ctx.smoke else 15, threads=ctx.threads)
    for text, s in distinct.items():
        if costs[text].macs != space.total(s).macs:
            raise RuntimeError(f"{text}: {costs[text].macs} MACs counted, {space.total(s)} by closed form")
    value = over_seeds(measured[0].measure, [one.value for one in measured])
    redundancy = Measured(
        measure=value.metric,
        value=value.value,
        low=None if value.low is None else max(value.low, 0.0),
        high=None if value.high is None else min(value.high, 1.0),
        where={name: _mean(one.where[name] for one in measured) for name in measured[0].where},
        null={"white noise": _mean(noise)},
    )
    return Comparison(folds, accuracies, whole, costs, redundancy)


def inherited(fold: Fold[State], state: State) -> float:
    """Test accuracy with the supernet's weights, batch norms estimated anew as in the search."""
    network = fold.supernet.extract(state).to(memory_format=LAST)
    recalibrate(network, fold.supernet.search.calibration)
    return accuracy(network, fold.part)


def first(states: Sequence[State], reaches: Callable[[State], bool]) -> State:
    """The first state on a path that reaches the target; the last one if there is none."""
    return next((s for s in states if reaches(s)), states[-1])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
