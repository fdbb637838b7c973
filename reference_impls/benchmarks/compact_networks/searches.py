"""What a search finds, beside what searches that know less find at the same target.

Every method searches the supernet of each seed. What it finds is tested with the weights that it inherits and, at some
targets, trained from scratch; networks are counted, held to their closed form, and timed in one interleaved run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.latency import LatencyTable, measure_table
from reference_impls.accounting.record import Measured, Record, Table
from reference_impls.contract import Technique, generator
from reference_impls.data.splits import TITLES, Labelled, Split, split, standardised
from reference_impls.layers.norm import fold_batch_norm, recalibrate
from reference_impls.study import (
    BASELINE,
    TECHNIQUE,
    Plan,
    Recipe,
    Study,
    accuracy,
    forward,
    measure_calls,
    measured,
    pooled,
    seeded,
    table,
    train,
    trained,
)
from reference_impls.techniques.latency_driven_slimming.search import SearchData, Step, Trial


class Searched(Protocol):
    """What a search finds: an architecture, or a sub-network."""

    def text(self) -> str:
        """It in a line."""


State = TypeVar("State", bound=Searched)
LAST = torch.channels_last
"""The memory layout of all networks here: several times as fast on a CPU for feature maps this small."""
QUIET = 10
"""Percentile of the repetitions that latency tables hold, and that they are compared with."""
WEIGHTS = (
    "`inherited`: weights of the supernet, batch norms recalibrated on training images. `from scratch`: the same "
    "architecture trained alone, {}. The baseline is trained from scratch."
)
NOTES = (
    "The search sees validation images only; accuracies are of the test images.",
    "MACs, bytes and time are over the networks of all seeds; batch norms are folded for the timing.",
)


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Plan):
    """The sizes of a search, and every choice that its weights follow from but the seed.

    Each search adds how its networks are built: `network`, `supernet`.
    """

    search: ClassVar[str]
    """Short name of the search, for the cache."""
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
    def supernet(self, part: Split, seed: int) -> Any:
        """The trained supernet, with its `search_data`."""

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


def search_data(part: Split) -> SearchData:
    """What a search may look at: validation images, and training images to recalibrate batch norms on."""
    return SearchData(*part.held, part.train.x[:256])


def trial(supernet: Any) -> Trial[Any]:
    """Accuracy of the supernet's networks on what the search may look at."""
    return Trial(lambda state: supernet.extract(state).to(memory_format=LAST), supernet.search)


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
    plan, space = study.plan, study.plan.space
    calls: dict[Hashable, Callable[[], object]] = {}
    for part in space.every_part():
        x = space.example(part, plan.batch)
        calls[part] = forward(deployed(space.build(part)), x.contiguous(memory_format=LAST) if x.ndim == 4 else x)
    for name, network in (networks or {}).items():
        calls[name] = forward(deployed(network), torch.zeros(plan.batch, space.in_channels, space.size, space.size))
    return measure_table(calls, repetitions=plan.table_rounds, threads=study.context.threads, percentile=QUIET)


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
    evaluations: int = 0
    """States that the technique evaluated on its path."""
    validation: dict[State, float] = field(default_factory=dict)
    """Accuracy on the validation images of the states drawn at random."""


@dataclass
class Compared(Generic[State]):
    """What the methods found over all seeds."""

    folds: list[Fold[State]]
    redundancy: Measured
    """Of the supernets."""
    whole: float
    """Mean accuracy of the whole network with inherited weights."""

    def found(self, series: str, target: float) -> list[State]:
        """The states of all seeds."""
        return [state for fold in self.folds for state in fold.found[series, target]]

    def drawn(self, series: str) -> list[State]:
        """What a method found in the first seed, at all targets."""
        return [state for (name, _), states in self.folds[0].found.items() if name == series for state in states]


def compare(
    study: Study[Any],
    technique: Technique,
    search: Callable[[int], Fold[State]],
    removed: Callable[[State], float],
    *,
    at_random: str,
) -> Compared[State]:
    """Search with every seed; add all that was found to the study, tested, counted and timed.

    Args:
        removed: which share of the whole network a state leaves out.
        at_random: the series whose networks are trained from scratch beside the technique's.

    Raises: RuntimeError where counted MACs differ from the closed form.
    """
    plan, space = study.plan, study.plan.space
    folds: list[Fold[State]] = []
    redundancy, noise, whole = [], [], []
    for seed in plan.seeds:
        study.progress("search", seed, len(plan.seeds))
        fold = search(seed)
        folds.append(fold)
        sample = fold.part.test.x[:512]
        redundancy.append(technique.measure(fold.supernet, sample))
        white = torch.randn(sample.shape, generator=generator(seed))
        noise.append(technique.measure(fold.supernet, white).value)
        whole.append(_inherited(fold, space.largest()))

        def from_scratch(state: Any, fold: Fold[State] = fold, seed: int = seed) -> float:
            return accuracy(plan.from_scratch(state, fold.part, seed), *fold.part.test)

        study.add(BASELINE, score=from_scratch(space.largest()))
        for (series, target), states in fold.found.items():
            score = mean(_inherited(fold, state) for state in states)
            study.add(series, _knobs(target, "inherited"), score=score)
        for (series, target), states in fold.found.items():
            if target in plan.scratch and series in (TECHNIQUE, at_random):
                study.progress(f"training {series}", seed, len(plan.seeds))
                score = mean(map(from_scratch, states[: plan.scratch_draws]))
                study.add(series, _knobs(target, "from scratch"), score=score)
    compared = Compared(folds, measured(redundancy, {"white noise": mean(noise)}), mean(whole))
    _add_costs(study, compared, removed, at_random)
    return compared


def _add_costs(study: Study[Any], compared: Compared[State], removed: Callable[[State], float], at_random: str) -> None:
    """Count and time every network that was found once, and pool them over the seeds."""
    study.progress("timing", 0, 1)
    plan, space, x = study.plan, study.plan.space, compared.folds[0].part.test.x[: study.plan.batch]
    states = {s.text(): s for key in compared.folds[0].found for s in compared.found(*key)}
    states["whole"] = space.largest()
    costs = measure_calls(
        {text: forward(deployed(plan.network(state)), x) for text, state in states.items()},
        units=dict.fromkeys(states, len(x)),
        repetitions=plan.repetitions,
        threads=study.context.threads,
    )
    for text, state in states.items():
        if costs[text].macs != space.total(state).macs:
            raise RuntimeError(f"{text}: {costs[text].macs} MACs counted, {space.total(state)} by closed form")
    study.add(BASELINE, cost=costs["whole"])
    for series, target in compared.folds[0].found:
        found = compared.found(series, target)
        more: dict[str, Any] = {
            "cost": pooled([costs[state.text()] for state in found]),
            "redundancy": mean(map(removed, found)),
        }
        study.add(series, _knobs(target, "inherited"), **more)
        if target in plan.scratch and series in (TECHNIQUE, at_random):
            study.add(series, _knobs(target, "from scratch"), **more)


def _knobs(target: float, weights: str) -> dict[str, float | str]:
    return {"target": target, "weights": weights}


def _inherited(fold: Fold[State], state: State) -> float:
    """Test accuracy with the supernet's weights, batch norms recalibrated as in the search."""
    network = fold.supernet.extract(state).to(memory_format=LAST)
    recalibrate(network, fold.supernet.search.calibration)
    return accuracy(network, *fold.part.test)


def at_targets(
    path: Sequence[State], targets: Iterable[float], reaches: Callable[[State, float], bool]
) -> dict[float, State]:
    """For each target the first state of a path that reaches it; the last one if there is none."""
    return {target: next((s for s in path if reaches(s, target)), path[-1]) for target in targets}


def record(
    study: Study[Any], compared: Compared[State], *, notes: Sequence[str], tables: Mapping[str, Table], **rest: Any
) -> Record:
    """The record of a comparison; `rest` as in `Study.record`."""
    plan, folds = study.plan, compared.folds
    counts = Counter(step.move.rpartition(" ")[0] for fold in folds for step in fold.path[1:])
    about = "How often each kind of move was made, over the greedy paths of all seeds."
    return study.record(
        data=f"{TITLES[plan.data]}, {plan.space.size} x {plan.space.size}: for each seed {plan.images:,} images to "
        f"train on and {plan.validation:,} to search on; {len(folds[0].part.test.x):,} test images",
        unit=f"one image in a batch of {plan.batch}",
        knobs=("target", "weights"),
        metric="accuracy",
        redundancy=compared.redundancy,
        notes=(*notes[:3], *NOTES, *notes[3:]),
        tables={"moves": table(about, ("move", "times"), sorted(counts.items())), **tables},
        **rest,
    )


def mean(values: Iterable[float]) -> float:
    """The mean of numbers."""
    return float(np.mean(list(values)))
