"""Latency-driven slimming on real data: a supernet of MetaPaths, a latency table of this machine, the greedy path."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.latency import LatencyTable, measure_table, prediction_error
from reference_impls.accounting.record import Control, Measured, Point, Quality, Record
from reference_impls.accounting.timing import repeat, wall_time
from reference_impls.contract import Invalid, Quantity, Specimen, Specimens
from reference_impls.data import images
from reference_impls.experiments.harness import (
    Context,
    Cost,
    Scenario,
    fork_seed,
    measure_arms,
    over_seeds,
    predict,
    record,
    train,
    trained,
)
from reference_impls.techniques.dimension_consistent_design import fold_batch_norm
from reference_impls.techniques.latency_driven_slimming import (
    Architecture,
    LatencyDrivenSlimming,
    Network,
    SearchData,
    Space,
    Step,
    Supernet,
    Trial,
    all_moves,
    greedy,
    importance,
    moves,
    random_path,
    recalibrate,
    slim,
)

ID = "latency-driven-slimming"
LAST = torch.channels_last
"""The memory layout of all networks here: several times as fast on a CPU for maps this small."""
QUIET = 10
"""Percentile of the repetitions that latency tables hold, and that they are compared with."""


# --------------------------------------------------------------------------------------------------------------------
# Data, shared with the experiments of fine-grained-joint-search


@dataclass(frozen=True)
class Split:
    """Data of one seed: what trains, what a search may look at, and what tests in the end."""

    x_train: Tensor
    y_train: Tensor
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor


TEST = 5000
"""Test images at most, the first ones of the test set."""


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


def accuracy(network: nn.Module, part: Split) -> float:
    """Share of the test images that a network in eval mode gets right."""
    return (predict(network, part.x_test).argmax(-1) == part.y_test).double().mean().item()


def deployed(network: nn.Module) -> nn.Module:
    """A network as it would be deployed: batch norms folded into the convolutions. The network itself is changed."""
    fold_batch_norm(network.eval())
    return network.to(memory_format=LAST)


def run_on(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call that runs the network on x without gradients."""
    return torch.no_grad()(lambda: network(x))


def parts_table(space: Any, batch: int, ctx: Context) -> LatencyTable:
    """The latency of every part of a space (`every_part`, `build`, `example`) on this machine, batch norms folded."""
    arms = {}
    for part in space.every_part():
        x = space.example(part, batch)
        arms[part] = run_on(deployed(space.build(part)), x.contiguous(memory_format=LAST) if x.ndim == 4 else x)
    return measure_table(arms, repetitions=5 if ctx.smoke else 50, threads=ctx.threads, percentile=QUIET)


def pooled(costs: Sequence[Cost]) -> Cost:
    """One cost of several networks, such as those that the seeds found: means of counts, and all repetitions."""
    samples = [sample for cost in costs for sample in cost.samples]
    return Cost(
        operations=round(float(np.mean([cost.operations for cost in costs]))),
        bytes=round(float(np.mean([cost.bytes for cost in costs]))),
        wall_ms=wall_time(samples),
        uncounted=tuple(sorted({name for cost in costs for name in cost.uncounted})),
        samples=tuple(samples),
    )


def paired(metric: str, ours: Sequence[float], theirs: Sequence[float]) -> Quality:
    """Mean over seeds of ours - theirs, with its 95 % t interval."""
    return over_seeds(metric, [a - b for a, b in zip(ours, theirs, strict=True)])


def interval(name: str, quality: Quality) -> dict[str, tuple[float, ...]]:
    """`extra` field of a difference: mean, and the ends of its interval where there are several seeds."""
    ends = () if quality.low is None or quality.high is None else (quality.low, quality.high)
    return {name: (quality.value, *ends)}


# --------------------------------------------------------------------------------------------------------------------
# Supernets and networks, trained


@dataclass(frozen=True)
class Recipe:
    """Every choice that the weights of one experiment follow from, but for the seed."""

    data: Literal["digits", "fashion-mnist"]
    space: Space
    images: int
    validation: int
    epochs: int
    lr: float = 4e-3
    temperature: float = 1.0

    def split(self, seed: int) -> Split:
        return split(self.data, self.space.size, self.images, self.validation, seed)

    def supernet(self, part: Split, seed: int) -> Supernet:
        """The trained supernet, from the cache if it was trained before, with its search data."""

        def build() -> nn.Module:
            with fork_seed(seed):
                return Supernet(self.space, temperature=self.temperature).to(memory_format=LAST)

        supernet = self._trained("slimming-supernet", part, seed, build, {})
        assert isinstance(supernet, Supernet)
        supernet.search = SearchData(part.x_valid, part.y_valid, part.x_train[:256])
        return supernet

    def from_scratch(self, architecture: Architecture, part: Split, seed: int) -> nn.Module:
        """A plain network of the architecture, trained on its own as long as the supernet was."""

        def build() -> nn.Module:
            with fork_seed(seed):
                return Network(self.space, architecture).to(memory_format=LAST)

        return self._trained("slimming-network", part, seed, build, {"architecture": architecture.text()})

    def _trained(
        self, name: str, part: Split, seed: int, build: Callable[[], nn.Module], more: Mapping[str, Any]
    ) -> nn.Module:
        def fit(model: nn.Module) -> nn.Module:
            return train(model, part.x_train, part.y_train, epochs=self.epochs, seed=seed, lr=self.lr)

        spec = dataclasses.asdict(self) | dict(more) | {"seed": seed, "version": 1}
        return trained(f"{name}-{self.data}", spec, build, fit)


# --------------------------------------------------------------------------------------------------------------------
# The scenario: greedy slimming beside what knows less

BATCH = 16
"""Images in the batch whose latency is predicted and measured."""
TARGETS = (0.75, 0.5, 0.35)
SCRATCH = (0.5,)
"""Targets whose networks are also trained from scratch."""
DRAWS = 2
"""Random paths for each seed and target."""


def first_within(
    path: Sequence[tuple[str, Architecture]], latency: Callable[[Architecture], float], most: float
) -> Architecture:
    """The first architecture on a path whose latency is at most `most`; the last one if there is none."""
    return next((a for _, a in path if latency(a) <= most), path[-1][1])


@dataclass
class Fold:
    """What one seed gave."""

    seed: int
    part: Split
    supernet: Supernet
    path: list[Step[Architecture]]
    found: dict[tuple[str, float], list[Architecture]]
    """Method and target -> the architectures found; several for the random paths."""


METHODS = ("greedy", "random", "operations", "shuffled")


def search(recipe: Recipe, table: LatencyTable, seed: int, draws: int) -> Fold:
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
    paths = {"greedy": [(step.move, step.state) for step in path]}

    # By operations: the same walk, told what a move saves in multiply-accumulates in the place of milliseconds.
    scores = importance(supernet.probabilities())
    blind = greedy(
        start,
        lambda a: moves(a, scores) if latency(a) > min(TARGETS) * whole else (),
        trial(),
        lambda a: -float(space.total(a).operations),
        0.0,
    )
    paths["operations"] = [(step.move, step.state) for step in blind]

    # Shuffled: what the supernet learned of its positions is dealt out to other positions.
    generator = torch.Generator().manual_seed(seed)
    keys = list(scores)
    dealt = dict(zip(keys, [scores[keys[k]] for k in torch.randperm(len(keys), generator=generator)], strict=True))
    shuffled = greedy(start, lambda a: moves(a, dealt), trial(), lambda a: -latency(a), -min(TARGETS) * whole)
    paths["shuffled"] = [(step.move, step.state) for step in shuffled]

    found = {(name, t): [first_within(p, latency, t * whole)] for name, p in paths.items() for t in TARGETS}
    for _ in range(draws):
        walk = random_path(start, all_moves, lambda a: -latency(a), -min(TARGETS) * whole, generator)
        for target in TARGETS:
            found.setdefault(("random", target), []).append(first_within(walk, latency, target * whole))
    return Fold(seed, part, supernet, path, found)


def inherited(fold: Fold, architecture: Architecture) -> float:
    """Test accuracy with the supernet's weights, batch norms estimated anew."""
    network = fold.supernet.extract(architecture).to(memory_format=LAST)
    recalibrate(network, fold.supernet.search.calibration)
    return accuracy(network, fold.part)


def run_slimming(ctx: Context, recipe: Recipe, seeds: Sequence[int], scenario: str, title: str) -> Record:
    """Slim the supernets of all seeds with every method, and compare at equal predicted latency."""
    space = recipe.space
    ctx.progress("latency table", 0, 1)
    table = parts_table(space, BATCH, ctx)
    start = space.largest()
    whole = table(start.parts())
    draws = 2 if ctx.smoke else DRAWS
    methods = ("greedy", "random", "operations", "shuffled")
    folds, redundancy, noise = [], [], []
    inherits: dict[tuple[str, float], list[float]] = defaultdict(list)
    scratch: dict[tuple[str, float], list[float]] = defaultdict(list)
    base: dict[str, list[float]] = {"inherited": [], "from scratch": []}
    technique = LatencyDrivenSlimming()
    for seed in seeds:
        ctx.progress("search", seed, len(seeds))
        fold = search(recipe, table, seed, draws)
        folds.append(fold)
        redundancy.append(technique.measure(fold.supernet, fold.part.x_test[:512]))
        white = torch.randn(fold.part.x_test[:512].shape, generator=torch.Generator().manual_seed(seed))
        noise.append(technique.measure(fold.supernet, white).value)
        base["inherited"].append(inherited(fold, start))
        base["from scratch"].append(accuracy(recipe.from_scratch(start, fold.part, seed), fold.part))
        for key, architectures in fold.found.items():
            inherits[key].append(float(np.mean([inherited(fold, a) for a in architectures])))
        for target in SCRATCH:
            for method in ("greedy", "random"):
                ctx.progress(f"training {method}", seed, len(seeds))
                network = recipe.from_scratch(fold.found[method, target][0], fold.part, seed)
                scratch[method, target].append(accuracy(network, fold.part))

    ctx.progress("timing", 0, 1)
    x = folds[0].part.x_test[:BATCH]
    arms: dict[str, Callable[[], object]] = {"whole": run_on(deployed(Network(space, start)), x)}
    named = {
        (method, target, fold.seed, n): a
        for fold in folds
        for (method, target), architectures in fold.found.items()
        for n, a in enumerate(architectures)
    }
    distinct = {a.text(): a for a in named.values()}
    arms |= {text: run_on(deployed(Network(space, a)), x) for text, a in distinct.items()}
    costs = measure_arms(arms, units=BATCH, repetitions=3 if ctx.smoke else 15, threads=ctx.threads)
    for text, a in distinct.items():
        if costs[text].operations != space.total(a).operations:
            raise RuntimeError(f"{text}: {costs[text].operations} operations counted, {space.total(a)} by closed form")

    def cost(method: str, target: float) -> Cost:
        return pooled([costs[a.text()] for (m, t, _, _), a in named.items() if (m, t) == (method, target)])

    def removed(method: str, target: float) -> float:
        found = [a for (m, t, _, _), a in named.items() if (m, t) == (method, target)]
        return float(np.mean([1 - sum(a.depths()) / sum(start.depths()) for a in found]))

    def points(method: str) -> list[Point]:
        made = []
        for weights, scores in (("inherited", inherits), ("from scratch", scratch)):
            for target in TARGETS:
                if values := scores.get((method, target)):
                    knobs = {"target": target, "weights": weights}
                    quality = over_seeds("accuracy", values)
                    made.append(cost(method, target).point(knobs, quality, redundancy=removed(method, target)))
        return made

    extra: dict[str, Any] = {}
    for target in TARGETS:
        for method in methods[1:]:
            gain = paired("gain", inherits["greedy", target], inherits[method, target])
            extra |= interval(f"gain_over_{method}_inherited_{target:g}", gain)
        if target in SCRATCH:
            extra |= interval(
                f"gain_over_random_from_scratch_{target:g}",
                paired("gain", scratch["greedy", target], scratch["random", target]),
            )
    predicted, seen = predicted_and_measured(folds[0], table, x, ctx)
    error, correlation = prediction_error(predicted, seen)
    where = {name: float(np.mean([r.where[name] for r in redundancy])) for name in redundancy[0].where}
    value = over_seeds(redundancy[0].measure, [r.value for r in redundancy])
    return record(
        ctx,
        technique=ID,
        scenario=scenario,
        title=title,
        data=f"{recipe.data}, {space.size} x {space.size}: for each seed {recipe.images:,} images to train on and "
        f"{recipe.validation:,} to search on; {len(folds[0].part.x_test):,} test images",
        model=f"EfficientFormer in small, {start.text()} "
        f"(width and blocks of each stage), {space.total(start).parameters:,} parameters",
        unit=f"one image in a batch of {BATCH}",
        knobs=("target", "weights"),
        baseline=costs["whole"].arm(over_seeds("accuracy", base["from scratch"])),
        points=points("greedy"),
        controls=[
            Control(
                name="random slimming",
                about="Moves are drawn at random among all that the rules allow, down to the same predicted latency.",
                points=tuple(points("random")),
            ),
            Control(
                name="operations for latency",
                about="The same walk, told what a move saves in operations; cut at the same predicted latency.",
                points=tuple(points("operations")),
            ),
            Control(
                name="importance shuffled",
                about="The same walk, with the learned importance of the positions dealt out at random.",
                points=tuple(points("shuffled")),
            ),
        ],
        redundancy=Measured(
            measure=value.metric,
            value=value.value,
            low=None if value.low is None else max(value.low, 0.0),
            high=None if value.high is None else min(value.high, 1.0),
            where=where,
            null={"white noise": float(np.mean(noise))},
        ),
        seeds=seeds,
        notes=(
            "`target`: share of the whole network's predicted latency; the first network of a path below it counts.",
            (
                "`inherited`: weights of the supernet, batch norms estimated anew on training images. `from scratch`: "
                "the same architecture trained alone, as long as the supernet. The baseline is trained from scratch."
            ),
            f"Random slimming is the mean of {draws} paths a seed; from scratch, one of them is trained.",
            "The search sees validation images only; accuracies are of the test images.",
            "Operations, bytes and time are over the networks of all seeds; batch norms are folded for the timing.",
            "The latency table, and what it is compared with, are 10th percentiles of 50 repetitions of a batch.",
        ),
        extra={
            **extra,
            "accuracy_whole_inherited": float(np.mean(base["inherited"])),
            "whole_predicted_ms": whole,
            "predicted_ms": tuple(predicted),
            "measured_ms": tuple(seen),
            "prediction_error": error,
            "prediction_correlation": correlation,
            "path_moves": "; ".join(step.move for step in folds[0].path[1:]),
            "path_ms": tuple(-step.benefit for step in folds[0].path),
            "path_accuracy": tuple(step.quality for step in folds[0].path),
            "path_architectures": "; ".join(step.state.text() for step in folds[0].path),
            "steps": tuple(float(len(fold.path) - 1) for fold in folds),
            "moves_by_kind": move_counts(folds),
            "importance": tuple(importance(folds[0].supernet.probabilities()).values()),
        },
    )


def move_counts(folds: Iterable[Fold]) -> str:
    """How often each kind of move was made, over the greedy paths of all seeds."""
    counts: dict[str, int] = defaultdict(int)
    for fold in folds:
        for step in fold.path[1:]:
            counts[step.move.rpartition(" ")[0]] += 1
    return "; ".join(f"{kind}: {n}" for kind, n in sorted(counts.items()))


def predicted_and_measured(fold: Fold, table: LatencyTable, x: Tensor, ctx: Context) -> tuple[list[float], list[float]]:
    """Milliseconds of a batch for every network on the greedy path and those found at random: table, and measured."""
    chosen = {step.state.text(): step.state for step in fold.path}
    chosen |= {a.text(): a for (method, _), found in fold.found.items() if method == "random" for a in found}
    space = fold.supernet.space
    arms = {text: run_on(deployed(Network(space, a)), x) for text, a in chosen.items()}
    times = repeat(arms, repetitions=5 if ctx.smoke else 50, threads=ctx.threads)
    return [table(a.parts()) for a in chosen.values()], [float(np.percentile(times[a], QUIET)) for a in chosen]


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
    recipe = dataclasses.replace(DIGITS, images=500, validation=200, epochs=4) if ctx.smoke else DIGITS
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
# Specimens with exactly known redundancy

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


class SlimmingSpecimens(Specimens):
    """Supernets whose blocks are known to matter or not; candidates are held to the whole network's outputs."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Specimen:
        supernet = planted(kind, seed).to(device)
        draw = torch.Generator().manual_seed(seed + 1)
        supernet.search = SearchData(torch.randn(2, 1, SMALL.size, SMALL.size, generator=draw).to(device))
        inputs = torch.randn(96, 1, SMALL.size, SMALL.size, generator=draw).to(device)
        return Specimen(supernet, inputs, torch.no_grad()(lambda network, x: network(x)))

    def selection(self, seed: int, device: str) -> Iterable[Quantity]:
        supernet = self.build("typical", seed, device).host
        table, trial = SMALL.operations_table(), Trial(supernet.extract, supernet.search)
        path = slim(supernet, table, trial, 0.5)
        for before, after in pairwise(path):
            rates = []
            for _, state in moves(before.state, importance(supernet.probabilities())):
                gain = sum(SMALL.cost(p).operations for p in before.state.parts()) - sum(
                    SMALL.cost(p).operations for p in state.parts()
                )
                if gain > 0:
                    rates.append((before.quality - trial(state)) / gain)
            taken = (before.quality - after.quality) / (after.benefit - before.benefit)
            yield Quantity(f"loss a MAC of {after.move}", torch.tensor(min(rates)), torch.tensor(taken))
        scores = importance(supernet.probabilities())
        start = SMALL.largest()
        deep = [position for position in scores if SMALL.depths[position[0]] > 1]
        ranked = sorted(deep, key=lambda position: scores[position])
        least = next(state for name, state in moves(start, scores) if name.startswith("remove"))
        gone = [(j, i) for j, i, kind in least.positions() if kind == "identity"]
        yield Quantity("the least important block", torch.tensor(ranked[0]), torch.tensor(gone[0]))

    def conserved(self, seed: int, device: str) -> Iterable[Quantity]:
        specimen = self.build("typical", seed, device)
        supernet, x = specimen.host, specimen.inputs[:8]
        start = SMALL.largest()
        yield Quantity("outputs of the whole network", supernet(x), supernet.extract(start)(x))
        shallow = start.replaced(2, 0, "4d").replaced(0, 1, "identity")
        yield Quantity("outputs of a path", supernet.path(x, shallow), supernet.extract(shallow)(x))
        parameters = sum(p.numel() for p in supernet.extract(shallow.narrowed(0)).parameters())
        yield Quantity(
            "parameters", torch.tensor(SMALL.total(shallow.narrowed(0)).parameters), torch.tensor(parameters)
        )
        dead = torch.randperm(32, generator=torch.Generator().manual_seed(seed))[:16]
        with torch.no_grad():  # channels of the first stage that nothing reads
            supernet.downs[0].conv.conv.weight[:, dead] = 0
            for position in supernet.stages[0]:
                position.choices["4d"].mlp.fc1.conv.weight[:, dead] = 0
                position.choices["4d"].mlp.fc2.conv.weight[:, 64:] = 0  # nor half of the hidden units
        yield Quantity("outputs without dead channels", supernet(x), supernet.extract(start.narrowed(0))(x))

    def invalid(self, device: str) -> Iterable[Invalid]:
        technique, specimen = LatencyDrivenSlimming(), self.build("typical", 0, device)
        supernet, x = specimen.host, specimen.inputs
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


SPECIMENS = SlimmingSpecimens()
