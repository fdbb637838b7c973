"""What a search finds, beside what searches that know less find at the same target.

Every method searches the supernet of each seed. What it finds is tested with the weights that it inherits and, at some
targets, trained from scratch; networks are counted, held to their closed form, and timed in one interleaved run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.latency import LatencyTable, measure_table
from reference_impls.accounting.record import Record, Table
from reference_impls.contract import Technique, generator
from reference_impls.data.splits import TITLES, Labelled, Split, split, standardised
from reference_impls.layers.norm import fold_batch_norm, recalibrate
from reference_impls.layers.search_space import Choice
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Recipe, Study, measure_calls, measured, pooled, table
from reference_impls.study.training import accuracy, forward, seeded, train, trained
from reference_impls.techniques.latency_driven_slimming.search import SearchData, Step, Trial

State = TypeVar("State", bound=Choice)
"""What a search finds: an architecture, or a sub-network."""
LAST = torch.channels_last
"""The memory layout of all networks here: several times as fast on a CPU for feature maps this small."""
WEIGHTS = (
    "`inherited`: weights of the supernet, batch norms recalibrated on training images. `from scratch`: the same "
    "architecture trained alone, {}. The baseline is trained from scratch."
)


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Plan):
    """The sizes of a search, and every choice that its weights follow from but the seed.

    Each search adds how its networks are built: `network`, `trained_supernet`, and what the supernet's training costs.
    """

    search: ClassVar[str]
    """Short name of the search, for the cache."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    data: Labelled
    space: Any
    images: int
    """To train on, drawn for each seed."""
    validation: int
    """To search on."""
    recipe: Recipe
    batch: int
    """Images in the batch whose latency is predicted and measured."""
    targets: tuple[float, ...]
    scratch: tuple[float, ...]
    """Targets whose networks are also trained from scratch."""
    draws: int
    """Random paths for each seed and target."""
    scratch_draws: int = 1
    """Of what the random paths found, how many networks are trained from scratch."""
    table_rounds: int = 50

    def smoke(self, **sizes: Any) -> Any:
        """The plan of the smoke budget, with other sizes."""
        return replace(self, seeds=(0,), repetitions=3, table_rounds=5, **sizes)

    def split(self, seed: int) -> Split:
        """Images to train and to search on, drawn without overlap, and at most 5,000 to test; all standardised.

        Digits (8 x 8) are enlarged to the space's size, Fashion-MNIST (28 x 28) is padded with black to it.
        """
        size = self.space.size

        def sized(x: Tensor) -> Tensor:
            if self.data == "digits":
                return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
            return F.pad(x, [(size - x.shape[-1]) // 2] * 4)

        return standardised(split(self.data, self.images, self.validation, 5000, seed=seed).mapped(sized))

    @abstractmethod
    def network(self, state: Any) -> nn.Module:
        """The plain network of a state."""

    @abstractmethod
    def trained_supernet(self, part: Split, seed: int) -> Any:
        """The supernet, trained."""

    @abstractmethod
    def supernet_macs(self, part: Split) -> int:
        """MACs of that training."""

    def supernet(self, part: Split, seed: int) -> Any:
        """The trained supernet, with validation images to search on and training images to recalibrate norms on."""
        supernet = self.trained_supernet(part, seed)
        supernet.search = SearchData(*part.held, part.train.x[:256])
        return supernet

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
        spec = {"space": self.space, "images": self.images, "recipe": self.recipe, "seed": seed} | more
        return trained(
            f"{self.search}-{name}-{self.data}",
            spec,
            lambda: seeded(seed, build).to(memory_format=LAST),
            lambda network: train(network, *part.train, self.recipe, seed=seed, loss=loss),
        )


def trial(supernet: Any) -> Trial[Any]:
    """Accuracy of the supernet's networks on what the search may look at."""
    return Trial(lambda state: supernet.extract(state).to(memory_format=LAST), supernet.search)


def evaluation_macs(score: Trial[Any], space: Any) -> int:
    """MACs of everything that was evaluated so far."""
    return score.data.samples() * sum(space.total(state).macs for state in score.evaluated)


# --------------------------------------------------------------------------------------------------------------------
# Latency


def deployed(network: nn.Module) -> nn.Module:
    """A network as it would be deployed: batch norms folded into the convolutions. The network itself is changed."""
    fold_batch_norm(network.eval())
    return network.to(memory_format=LAST)


def parts_table(study: Study[Any], networks: Mapping[str, nn.Module] | None = None) -> LatencyTable:
    """The latency of every part of the plan's space on this machine, batch norms folded.

    `networks` are measured in the same rounds and stand in the table under their names, to be held against their parts.
    """
    study.progress("latency table", 0, 1)
    plan, space = study.plan, study.plan.space
    calls: dict[Hashable, Callable[[], object]] = {}
    for part in space.every_part():
        x = space.example(part, plan.batch)
        calls[part] = forward(deployed(space.build(part)), x.contiguous(memory_format=LAST) if x.ndim == 4 else x)
    for name, network in (networks or {}).items():
        calls[name] = forward(deployed(network), torch.zeros(plan.batch, space.in_channels, space.size, space.size))
    return measure_table(calls, repetitions=plan.table_rounds, threads=study.context.threads, percentile=10)


# --------------------------------------------------------------------------------------------------------------------
# The comparison


@dataclass
class Fold(Generic[State]):
    """What the methods found in one seed."""

    part: Split
    supernet: Any
    path: list[Step[State]]
    """Of the technique."""
    found: dict[tuple[str, float], list[State]]
    """Series and target -> the states found; several where the method draws."""
    macs: int = 0
    """Of what the technique evaluated on its path."""
    evaluations: int = 0
    """States that the technique evaluated on its path."""
    validation: dict[State, float] = field(default_factory=dict)
    """Accuracy on the validation images of the states drawn at random."""

    def inherited(self, state: State) -> float:
        """Test accuracy with the supernet's weights, batch norms recalibrated as in the search."""
        network = self.supernet.extract(state).to(memory_format=LAST)
        recalibrate(network, self.supernet.search.calibration)
        return accuracy(network, *self.part.test)


def reached(
    paths: Mapping[str, Iterable[Sequence[State]]], targets: Sequence[float], reaches: Callable[[State, float], bool]
) -> dict[tuple[str, float], list[State]]:
    """Of every path of each series, for each target, the first state that reaches it; the last if there is none."""
    found: dict[tuple[str, float], list[State]] = {}
    for series, taken in paths.items():
        for path in taken:
            for target in targets:
                state = next((s for s in path if reaches(s, target)), path[-1])
                found.setdefault((series, target), []).append(state)
    return found


class Comparison(Generic[State]):
    """What the methods found with all seeds, in a study: tested, counted and timed.

    `technique` measures the supernets. `search` finds with a seed, and `removed` is the share of the whole network that
    a state leaves out. Networks of the series `at_random` are trained from scratch beside the technique's.
    Raises: RuntimeError where counted MACs differ from the closed form.
    """

    def __init__(
        self,
        study: Study[Any],
        technique: Technique,
        search: Callable[[int], Fold[State]],
        removed: Callable[[State], float],
        *,
        at_random: str,
    ) -> None:
        self.study, self.folds = study, list[Fold[State]]()
        plan, redundancy, noise, whole = study.plan, [], [], []
        for seed in plan.seeds:
            study.progress("search", seed, len(plan.seeds))
            fold = search(seed)
            self.folds.append(fold)
            sample = fold.part.test.x[:512]
            redundancy.append(technique.measure(fold.supernet, sample))
            noise.append(technique.measure(fold.supernet, torch.randn(sample.shape, generator=generator(seed))).value)
            whole.append(fold.inherited(plan.space.largest()))
            self._score(fold, seed, at_random)
        self.redundancy = measured(redundancy, {"white noise": mean(noise)})
        self.whole = mean(whole)
        """Accuracy of the whole network with inherited weights."""
        self._add_costs(removed, at_random)

    def found(self, series: str, target: float) -> list[State]:
        """The states of all seeds."""
        return [state for fold in self.folds for state in fold.found[series, target]]

    def drawn(self, series: str) -> list[State]:
        """What a method found in the first seed, at all targets."""
        return [state for (name, _), states in self.folds[0].found.items() if name == series for state in states]

    def record(self, *, notes: Sequence[str], tables: Mapping[str, Table], **rest: Any) -> Record:
        """The record; `rest` as in `Study.record`."""
        plan, size = self.study.plan, self.study.plan.space.size
        self._say_what_it_takes()
        counts = Counter(step.move.rpartition(" ")[0] for fold in self.folds for step in fold.path[1:])
        about = "How often each kind of move was made, over the greedy paths of all seeds."
        return self.study.record(
            data=f"{TITLES[plan.data]}, {size} x {size}: for each seed {plan.images:,} images to train on and "
            f"{plan.validation:,} to search on; {len(self.folds[0].part.test.x):,} test images",
            unit=f"one image in a batch of {plan.batch}",
            knobs=("target", "weights"),
            metric="accuracy",
            redundancy=self.redundancy,
            notes=(
                *notes[:3],
                "The search sees validation images only; accuracies are of the test images.",
                "MACs, bytes and time are over the networks of all seeds; batch norms are folded for the timing.",
                *notes[3:],
            ),
            tables={"moves": table(about, ("move", "times"), sorted(counts.items())), **tables},
            **rest,
        )

    def _say_what_it_takes(self) -> None:
        """The preparations of one search, the first seed's: training the supernet, and evaluating what it may find."""
        study, plan, first = self.study, self.study.plan, self.folds[0]
        found = first.found[TECHNIQUE, plan.targets[0]][0]
        images = len(first.supernet.search.calibration)
        study.prepare("training", "training the supernet", plan.supernet_macs(first.part))
        study.prepare("search", "evaluating candidates on validation images, batch norms recalibrated", first.macs)
        again = f"recalibrating the batch norms of what is found on {images} images"
        study.prepare("calibration", again, images * plan.space.total(found).macs)

    def _score(self, fold: Fold[State], seed: int, at_random: str) -> None:
        """Test accuracy of what a seed found, with inherited weights and from scratch."""
        study, plan = self.study, self.study.plan

        def from_scratch(state: Any) -> float:
            return accuracy(plan.from_scratch(state, fold.part, seed), *fold.part.test)

        study.add(BASELINE, score=from_scratch(plan.space.largest()))
        for (series, target), states in fold.found.items():
            study.add(series, {"target": target, "weights": "inherited"}, score=mean(map(fold.inherited, states)))
        for (series, target), states in fold.found.items():
            if target in plan.scratch and series in (TECHNIQUE, at_random):
                study.progress(f"training {series}", seed, len(plan.seeds))
                score = mean(map(from_scratch, states[: plan.scratch_draws]))
                study.add(series, {"target": target, "weights": "from scratch"}, score=score)

    def _add_costs(self, removed: Callable[[State], float], at_random: str) -> None:
        """Count and time every network that was found once, and pool them over the seeds."""
        study, plan, first = self.study, self.study.plan, self.folds[0]
        study.progress("timing", 0, 1)
        x = first.part.test.x[: plan.batch]
        states = {s.text(): s for key in first.found for s in self.found(*key)} | {"whole": plan.space.largest()}
        costs = measure_calls(
            {text: forward(deployed(plan.network(state)), x) for text, state in states.items()},
            units=dict.fromkeys(states, len(x)),
            repetitions=plan.repetitions,
            threads=study.context.threads,
        )
        for text, state in states.items():
            if costs[text].macs != (total := plan.space.total(state)).macs:
                raise RuntimeError(f"{text}: {costs[text].macs} MACs counted, {total} by closed form")
        study.add(BASELINE, cost=costs["whole"])
        for series, target in first.found:
            found = self.found(series, target)
            cost = pooled([costs[state.text()] for state in found])
            trained_alone = target in plan.scratch and series in (TECHNIQUE, at_random)
            for weights in ("inherited", "from scratch") if trained_alone else ("inherited",):
                knobs = {"target": target, "weights": weights}
                study.add(series, knobs, cost=cost, redundancy=mean(map(removed, found)))


def mean(values: Iterable[float]) -> float:
    """The mean of numbers."""
    return float(np.mean(list(values)))
