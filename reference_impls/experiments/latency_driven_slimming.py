"""Latency-driven slimming on real data: a supernet of MetaPaths, a latency table of this machine, the greedy path."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from reference_impls.accounting.latency import LatencyTable, prediction_error
from reference_impls.accounting.record import Control, Record
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.experiments import searches
from reference_impls.experiments.harness import Context, Scenario, fork_seed, over_seeds, record
from reference_impls.experiments.searches import (
    GREEDY,
    LAST,
    RANDOM,
    Fold,
    Split,
    compare,
    first,
    parts_table,
)
from reference_impls.techniques.latency_driven_slimming import (
    Architecture,
    LatencyDrivenSlimming,
    Network,
    SearchData,
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

ID = "latency-driven-slimming"


@dataclass(frozen=True)
class Recipe(searches.Recipe):
    """With the temperature of the Gumbel softmax that the supernet is trained at."""

    search: ClassVar = "slimming"
    temperature: float = 1.0

    def network(self, state: Architecture) -> nn.Module:
        return Network(self.space, state)

    def supernet(self, part: Split, seed: int) -> Supernet:
        supernet = self.fitted("supernet", part, seed, lambda: Supernet(self.space, temperature=self.temperature))
        supernet.search = SearchData(part.x_valid, part.y_valid, part.x_train[:256])
        return supernet


# --------------------------------------------------------------------------------------------------------------------
# The scenario: greedy slimming beside what knows less

BATCH = 16
"""Images in the batch whose latency is predicted and measured."""
TARGETS = (0.75, 0.5, 0.35)
SCRATCH = (0.5,)
"""Targets whose networks are also trained from scratch."""
DRAWS = 2
"""Random paths for each seed and target."""


def search(recipe: Recipe, table: LatencyTable, seed: int) -> Fold[Architecture]:
    """Train the supernet of a seed and slim it with every method."""
    part = recipe.split(seed)
    supernet = recipe.supernet(part, seed)
    space = recipe.space
    start = space.largest()
    whole = table(start.parts())

    def latency(architecture: Architecture) -> float:
        return table(architecture.parts())

    def trial() -> Trial[Architecture]:
        return Trial(lambda a: supernet.extract(a).to(memory_format=LAST), supernet.search)

    path = slim(supernet, table, trial(), min(TARGETS))

    # By MACs: the same walk, told what a move saves in multiply-accumulates in the place of milliseconds.
    scores = importance(supernet.probabilities())
    blind = greedy(
        start,
        lambda a: moves(a, scores) if latency(a) > min(TARGETS) * whole else (),
        trial(),
        lambda a: -float(space.total(a).macs),
        0.0,
    )

    # Shuffled: what the supernet learned of its positions is dealt out to other positions.
    generator = torch.Generator().manual_seed(seed)
    keys = list(scores)
    dealt = dict(zip(keys, [scores[keys[k]] for k in torch.randperm(len(keys), generator=generator)], strict=True))
    shuffled = greedy(start, lambda a: moves(a, dealt), trial(), lambda a: -latency(a), -min(TARGETS) * whole)

    walks = [
        random_path(start, all_moves, lambda a: -latency(a), -min(TARGETS) * whole, generator) for _ in range(DRAWS)
    ]
    paths = {
        GREEDY: [[step.state for step in path]],
        "macs": [[step.state for step in blind]],
        "shuffled": [[step.state for step in shuffled]],
        RANDOM: [[state for _, state in walk] for walk in walks],
    }
    found = {
        (method, target): [first(states, lambda a, t=target: latency(a) <= t * whole) for states in taken]
        for method, taken in paths.items()
        for target in TARGETS
    }
    return Fold(seed, part, supernet, path, found)


def run_slimming(ctx: Context, recipe: Recipe, seeds: Sequence[int], scenario: str, title: str) -> Record:
    """Slim the supernets of all seeds with every method, and compare at equal predicted latency."""
    space = recipe.space
    ctx.progress("latency table", 0, 1)
    table = parts_table(space, BATCH, ctx)
    start = space.largest()
    compared = compare(
        ctx,
        recipe,
        LatencyDrivenSlimming(),
        lambda seed: search(recipe, table, seed),
        seeds,
        batch=BATCH,
        scratch=SCRATCH,
    )

    def removed(architecture: Architecture) -> float:
        return 1 - sum(architecture.depths()) / sum(start.depths())

    fold = compared.folds[0]
    return record(
        ctx,
        technique=ID,
        scenario=scenario,
        title=title,
        data=f"{recipe.data}, {space.size} x {space.size}: for each seed {recipe.images:,} images to train on and "
        f"{recipe.validation:,} to search on; {len(fold.part.x_test):,} test images",
        model=f"EfficientFormer in small, {start.text()} "
        f"(width and blocks of each stage), {space.total(start).parameters:,} parameters",
        unit=f"one image in a batch of {BATCH}",
        knobs=("target", "weights"),
        baseline=compared.costs["whole"].arm(over_seeds("accuracy", compared.whole["from scratch"])),
        points=compared.points(GREEDY, removed),
        controls=[
            Control(
                name="random slimming",
                about="Moves are drawn at random among all that the rules allow, down to the same predicted latency.",
                points=compared.points(RANDOM, removed),
            ),
            Control(
                name="MACs for latency",
                about="The same walk, told what a move saves in MACs; cut at the same predicted latency.",
                points=compared.points("macs", removed),
            ),
            Control(
                name="importance shuffled",
                about="The same walk, with the learned importance of the positions dealt out at random.",
                points=compared.points("shuffled", removed),
            ),
        ],
        redundancy=compared.redundancy,
        seeds=seeds,
        notes=(
            "`target`: share of the whole network's predicted latency; the first network of a path below it counts.",
            (
                "`inherited`: weights of the supernet, batch norms estimated anew on training images. `from scratch`: "
                "the same architecture trained alone, as long as the supernet. The baseline is trained from scratch."
            ),
            f"Random slimming is the mean of {DRAWS} paths a seed; from scratch, one of them is trained.",
            "The search sees validation images only; accuracies are of the test images.",
            "MACs, bytes and time are over the networks of all seeds; batch norms are folded for the timing.",
            (
                "Latency tables hold 10th percentiles of 50 repetitions of a batch. Networks are held against sums of "
                "parts that were measured in the same rounds, not against the search's own table."
            ),
        ),
        extra={
            **compared.gains(),
            "accuracy_whole_inherited": float(np.mean(compared.whole["inherited"])),
            "whole_predicted_ms": table(start.parts()),
            **predicted_and_measured(recipe, fold, ctx),
            "path_moves": "; ".join(step.move for step in fold.path[1:]),
            "path_ms": tuple(-step.benefit for step in fold.path),
            "path_accuracy": tuple(step.quality for step in fold.path),
            "path_architectures": "; ".join(step.state.text() for step in fold.path),
            "steps": tuple(float(len(one.path) - 1) for one in compared.folds),
            "moves_by_kind": compared.move_counts(),
            "importance": tuple(importance(fold.supernet.probabilities()).values()),
        },
    )


def predicted_and_measured(recipe: Recipe, fold: Fold[Architecture], ctx: Context) -> dict[str, Any]:
    """Milliseconds of a batch for every network on the greedy path and those found at random, for the record's `extra`.

    Sums of the parts and whole networks come from the same rounds. Those of the search's own table were taken minutes
    before, and on a shared machine minutes make a difference of their own.
    """
    chosen = {step.state.text(): step.state for step in fold.path}
    chosen |= {a.text(): a for (method, _), found in fold.found.items() if method == RANDOM for a in found}
    table = parts_table(recipe.space, BATCH, ctx, {text: recipe.network(a) for text, a in chosen.items()})
    predicted = [table(a.parts()) for a in chosen.values()]
    measured = [table([text]) for text in chosen]
    error, correlation = prediction_error(predicted, measured)
    return {
        "predicted_ms": tuple(predicted),
        "measured_ms": tuple(measured),
        "prediction_error": error,
        "prediction_correlation": correlation,
    }


DIGITS = Recipe(
    "digits",
    Space((32, 32, 48, 64), (2, 2, 2, 2), 16, 1, 10, 2, heads=4, key_dim=8, ratio=2, layer_scale=0.5),
    images=1000,
    validation=437,
    epochs=20,
)
FASHION = Recipe(
    "fashion-mnist",
    Space((32, 32, 48, 64), (2, 2, 3, 2), 28, 1, 10, 2, heads=4, key_dim=8, ratio=2, layer_scale=0.5),
    images=5000,
    validation=1000,
    epochs=5,
)


def digits_slimming(ctx: Context) -> Record:
    recipe = DIGITS
    if ctx.smoke:
        space = dataclasses.replace(DIGITS.space, widths=(16, 32, 32, 48), depths=(1, 1, 2, 2))
        recipe = dataclasses.replace(DIGITS, space=space, images=300, validation=100, epochs=3)
    return run_slimming(ctx, recipe, range(1 if ctx.smoke else 5), "digits-slimming", "Slimming on 8 x 8 digits")


def fashion_slimming(ctx: Context) -> Record:
    recipe = dataclasses.replace(FASHION, images=1000, validation=500, epochs=2) if ctx.smoke else FASHION
    seeds = range(1 if ctx.smoke else 5)
    return run_slimming(ctx, recipe, seeds, "fashion-slimming", "Slimming on Fashion-MNIST")


SCENARIOS = (
    Scenario("digits-slimming", "Slimming on 8 x 8 digits", digits_slimming),
    Scenario(
        "fashion-slimming",
        "Slimming on Fashion-MNIST",
        fashion_slimming,
        {"smoke": ("fashion-mnist",), "full": ("fashion-mnist",)},
    ),
)


# --------------------------------------------------------------------------------------------------------------------
# Cases with exactly known redundancy

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


class SlimmingCases(Cases):
    """Supernets whose blocks are known to matter or not; candidates are held to the whole network's outputs."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        supernet = planted(kind, seed).to(device)
        draw = torch.Generator().manual_seed(seed + 1)
        supernet.search = SearchData(torch.randn(2, 1, SMALL.size, SMALL.size, generator=draw).to(device))
        inputs = torch.randn(96, 1, SMALL.size, SMALL.size, generator=draw).to(device)
        return Case(supernet, inputs, torch.no_grad()(lambda network, x: network(x)))

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

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        supernet, x = case.target, case.inputs[:8]
        start = SMALL.largest()
        yield Expectation("outputs of the whole network", supernet(x), supernet.extract(start)(x))
        shallow = start.replaced(2, 0, "4d").replaced(0, 1, "identity")
        yield Expectation("outputs of a path", supernet.path(x, shallow), supernet.extract(shallow)(x))
        parameters = sum(p.numel() for p in supernet.extract(shallow.narrowed(0)).parameters())
        yield Expectation(
            "parameters", torch.tensor(SMALL.total(shallow.narrowed(0)).parameters), torch.tensor(parameters)
        )
        dead = torch.randperm(32, generator=torch.Generator().manual_seed(seed))[:16]
        with torch.no_grad():  # channels of the first stage that nothing reads
            supernet.downs[0].conv.conv.weight[:, dead] = 0
            for position in supernet.stages[0]:
                position.choices["4d"].mlp.fc1.conv.weight[:, dead] = 0
                position.choices["4d"].mlp.fc2.conv.weight[:, 64:] = 0  # nor half of the hidden units
        yield Expectation("outputs without dead channels", supernet(x), supernet.extract(start.narrowed(0))(x))

    def invalid(self, device: str) -> Iterable[Invalid]:
        technique, case = LatencyDrivenSlimming(), self.build("typical", 0, device)
        supernet, x = case.target, case.inputs
        some: Any = "half"
        yield Invalid("a target above 1", lambda: technique.apply(supernet, target=1.5), "target must be")
        yield Invalid("a target that is no number", lambda: technique.apply(supernet, target=some), "target must be")
        yield Invalid("a negative tolerance", lambda: technique.apply(supernet, tolerance=-1.0), "tolerance must be")
        yield Invalid("a colour image", lambda: supernet(x.repeat(1, 3, 1, 1)), "must have shape (B, 1, 16, 16)")
        yield Invalid("NaN to search on", lambda: SearchData(x * torch.nan), "not finite")
        yield Invalid("labels of other images", lambda: SearchData(x, torch.zeros(3).long()), "as many labels")
        yield Invalid("a width of 20", lambda: Space((20, 32, 32, 32), (1, 1, 1, 1)), "multiples of 16")
        yield Invalid(
            "a table of nothing", lambda: technique.apply(supernet, table=LatencyTable({})), "the table holds no"
        )
        nothing, training = planted("typical", 0), planted("typical", 0).train()
        yield Invalid("nothing to search on", lambda: technique.apply(nothing), "supernet.search")
        yield Invalid("a supernet in training mode", lambda: technique.apply(training), "eval mode")


CASES = SlimmingCases()
