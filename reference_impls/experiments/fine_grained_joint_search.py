"""Fine-grained joint search on real data: a slimmable supernet, the greedy walk, and sub-networks of equal score."""

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

from reference_impls.accounting.latency import LatencyTable
from reference_impls.accounting.record import Control, Measured, Point, Record
from reference_impls.contract import Invalid, Quantity, Specimen, Specimens
from reference_impls.experiments.harness import (
    Context,
    Cost,
    Scenario,
    fork_seed,
    measure_arms,
    over_seeds,
    record,
    train,
    trained,
)
from reference_impls.experiments.latency_driven_slimming import (
    LAST,
    Split,
    accuracy,
    deployed,
    interval,
    paired,
    parts_table,
    pooled,
    run_on,
    split,
)
from reference_impls.techniques.fine_grained_joint_search import (
    SCORE,
    Efficiency,
    FineGrainedJointSearch,
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
    recalibrate,
)
from reference_impls.techniques.latency_driven_slimming.search import Step, greedy

ID = "fine-grained-joint-search"


# --------------------------------------------------------------------------------------------------------------------
# Supernets and networks, trained


def sandwich_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the sub-networks of the cross-entropy. logits: (sub-networks, B, C)."""
    return torch.stack([F.cross_entropy(one, targets) for one in logits]).mean()


@dataclass(frozen=True)
class Recipe:
    """Every choice that the weights of one experiment follow from, but for the seed."""

    data: Literal["digits", "fashion-mnist"]
    space: Space
    images: int
    validation: int
    epochs: int
    lr: float = 4e-3

    def split(self, seed: int) -> Split:
        return split(self.data, self.space.size, self.images, self.validation, seed)

    def supernet(self, part: Split, seed: int) -> Slimmable:
        """The supernet trained by the sandwich rule, from the cache if it was trained before, with its search data."""

        def build() -> nn.Module:
            with fork_seed(seed):
                return Sandwich(Slimmable(self.space).to(memory_format=LAST))

        sandwich = self._trained("joint-supernet", part, seed, build, {}, sandwich_loss)
        supernet = sandwich.supernet
        supernet.search = SearchData(part.x_valid, part.y_valid, part.x_train[:256])
        return supernet

    def from_scratch(self, subnet: Subnet, part: Split, seed: int) -> nn.Module:
        """A plain network, trained on its own for as many epochs as the supernet was."""

        def build() -> nn.Module:
            with fork_seed(seed):
                return Network(self.space, subnet).to(memory_format=LAST)

        return self._trained("joint-network", part, seed, build, {"subnet": subnet.text()}, F.cross_entropy)

    def _trained(
        self,
        name: str,
        part: Split,
        seed: int,
        build: Callable[[], nn.Module],
        more: Mapping[str, Any],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Any:
        def fit(model: nn.Module) -> nn.Module:
            return train(model, part.x_train, part.y_train, epochs=self.epochs, seed=seed, lr=self.lr, loss=loss)

        spec = dataclasses.asdict(self) | dict(more) | {"seed": seed, "version": 1}
        return trained(f"{name}-{self.data}", spec, build, fit)


# --------------------------------------------------------------------------------------------------------------------
# The scenario: the greedy walk beside what knows less

BATCH = 64
"""Images in the batch whose latency is predicted and measured."""
TARGETS = (2.0, 4.0, 8.0)
"""Mobile efficiency scores to reach, as multiples of the largest sub-network's."""
SCRATCH = (4.0,)
"""Targets whose networks are also trained from scratch."""
DRAWS = 6
"""Random sub-networks for each seed and target."""
SCRATCH_DRAWS = 2
"""Of the random sub-networks of a seed, how many are trained from scratch."""
LATENCY_ALONE: Mapping[str, float] = {"size": 0.0, "latency": 1.0}


@dataclass
class Fold:
    """What one seed gave."""

    seed: int
    part: Split
    supernet: Slimmable
    path: list[Step[Subnet]]
    evaluations: int
    """Sub-networks that the greedy walk evaluated."""
    found: dict[tuple[str, float], list[Subnet]]
    """Method and target -> the sub-networks found; several for the random ones."""
    validation: dict[Subnet, float]
    """Accuracy on the validation images of the sub-networks drawn at random."""


def first_reaching(states: Sequence[Subnet], efficiency: Efficiency, target: float) -> Subnet:
    """The first sub-network on a path whose score is at least `target`; the last one if there is none."""
    return next((s for s in states if efficiency(s) >= target), states[-1])


def search(recipe: Recipe, table: LatencyTable, seed: int, draws: int) -> Fold:
    """Train the supernet of a seed and search it with every method."""
    part = recipe.split(seed)
    supernet = recipe.supernet(part, seed)
    space = recipe.space
    joint = Efficiency.of(space, table)
    goals = [target * SCORE for target in TARGETS]

    def trial() -> Trial[Subnet]:
        return Trial(lambda s: supernet.extract(s).to(memory_format=LAST), supernet.search)

    score = trial()
    path = joint_search(supernet, joint, score, max(goals))
    evaluations = len(score.evaluated)
    found = {("greedy", t): [first_reaching([s.state for s in path], joint, t * SCORE)] for t in TARGETS}
    fast = Efficiency.of(space, table, LATENCY_ALONE)
    walk = walk_until(supernet, fast, trial(), lambda s: joint(s) >= max(goals))
    found |= {("latency alone", t): [first_reaching(walk, joint, t * SCORE)] for t in TARGETS}

    generator = torch.Generator().manual_seed(seed)
    validation: dict[Subnet, float] = {}
    for _ in range(draws):
        walk = [s for _, s in random_path(space.largest(), lambda s: moves(space, s), joint, max(goals), generator)]
        for target in TARGETS:
            drawn = first_reaching(walk, joint, target * SCORE)
            found.setdefault(("random", target), []).append(drawn)
            validation[drawn] = score(drawn)
    for target in TARGETS:
        found["best of random", target] = [max(found["random", target], key=lambda s: validation[s])]
    return Fold(seed, part, supernet, path, evaluations, found, validation)


def walk_until(
    supernet: Slimmable, efficiency: Efficiency, quality: Callable[[Subnet], float], done: Callable[[Subnet], bool]
) -> list[Subnet]:
    """The greedy walk by another score, to the first sub-network that is `done`."""
    space = supernet.space
    path = greedy(space.largest(), lambda s: () if done(s) else moves(space, s), quality, efficiency, 1e12)
    return [step.state for step in path]


def inherited(fold: Fold, subnet: Subnet) -> float:
    """Test accuracy with the supernet's weights, batch norms estimated anew as in the search."""
    network = fold.supernet.extract(subnet).to(memory_format=LAST)
    recalibrate(network, fold.supernet.search.calibration)
    return accuracy(network, fold.part)


def run_search(ctx: Context, recipe: Recipe, seeds: Sequence[int], scenario: str, title: str) -> Record:
    """Search the supernets of all seeds with every method, and compare at equal mobile efficiency score."""
    space = recipe.space
    ctx.progress("latency table", 0, 1)
    table = parts_table(space, BATCH, ctx)
    joint = Efficiency.of(space, table)
    whole = space.largest()
    folds, redundancy, noise = [], [], []
    inherits: dict[tuple[str, float], list[float]] = defaultdict(list)
    scratch: dict[tuple[str, float], list[float]] = defaultdict(list)
    base: dict[str, list[float]] = {"inherited": [], "from scratch": []}
    technique = FineGrainedJointSearch()
    for seed in seeds:
        ctx.progress("search", seed, len(seeds))
        fold = search(recipe, table, seed, 2 if ctx.smoke else DRAWS)
        folds.append(fold)
        redundancy.append(technique.measure(fold.supernet, fold.part.x_test[:512]))
        white = torch.randn(fold.part.x_test[:512].shape, generator=torch.Generator().manual_seed(seed))
        noise.append(technique.measure(fold.supernet, white).value)
        base["inherited"].append(inherited(fold, whole))
        base["from scratch"].append(accuracy(recipe.from_scratch(whole, fold.part, seed), fold.part))
        for key, subnets in fold.found.items():
            inherits[key].append(float(np.mean([inherited(fold, s) for s in subnets])))
        for target in SCRATCH:
            for method in ("greedy", "random"):
                ctx.progress(f"training {method}", seed, len(seeds))
                networks = [recipe.from_scratch(s, fold.part, seed) for s in fold.found[method, target][:SCRATCH_DRAWS]]
                scratch[method, target].append(float(np.mean([accuracy(n, fold.part) for n in networks])))

    ctx.progress("timing", 0, 1)
    methods = tuple(dict.fromkeys(method for method, _ in folds[0].found))
    every = {key: [s for fold in folds for s in fold.found[key]] for key in folds[0].found}
    distinct = {s.text(): s for subnets in every.values() for s in subnets}
    x = folds[0].part.x_test[:BATCH]
    arms = {"whole": run_on(deployed(Network(space, whole)), x)}
    arms |= {text: run_on(deployed(Network(space, s)), x) for text, s in distinct.items()}
    costs = measure_arms(arms, units=BATCH, repetitions=3 if ctx.smoke else 15, threads=ctx.threads)
    for text, s in distinct.items():
        if costs[text].operations != space.total(s).operations:
            raise RuntimeError(f"{text}: {costs[text].operations} operations counted, {space.total(s)} by closed form")

    def cost(method: str, target: float) -> Cost:
        return pooled([costs[s.text()] for s in every[method, target]])

    def removed(method: str, target: float) -> float:
        sizes = [space.total(s).parameters / space.total(whole).parameters for s in every[method, target]]
        return 1 - float(np.mean(sizes))

    def points(method: str) -> list[Point]:
        made = []
        for weights, scores in (("inherited", inherits), ("from scratch", scratch)):
            for target in TARGETS:
                if values := scores.get((method, target)):
                    quality = over_seeds("accuracy", values)
                    share = removed(method, target)
                    made.append(
                        cost(method, target).point({"target": target, "weights": weights}, quality, redundancy=share)
                    )
        return made

    extra: dict[str, Any] = {}
    for target in TARGETS:
        for method in methods:
            name = f"{method.replace(' ', '_')}_{target:g}"
            extra[f"score_{name}"] = float(np.mean([joint(s) for s in every[method, target]]))
            extra[f"parameters_{name}"] = float(np.mean([space.total(s).parameters for s in every[method, target]]))
            extra[f"predicted_ms_{name}"] = float(np.mean([table(s.parts()) for s in every[method, target]]))
            if method != "greedy":
                gain = paired("gain", inherits["greedy", target], inherits[method, target])
                extra |= interval(f"gain_over_{method.replace(' ', '_')}_inherited_{target:g}", gain)
        if target in SCRATCH:
            gain = paired("gain", scratch["greedy", target], scratch["random", target])
            extra |= interval(f"gain_over_random_from_scratch_{target:g}", gain)
    where = {name: float(np.mean([r.where[name] for r in redundancy])) for name in redundancy[0].where}
    value = over_seeds(redundancy[0].measure, [r.value for r in redundancy])
    first = folds[0]
    drawn = [s for t in TARGETS for s in first.found["random", t]]
    return record(
        ctx,
        technique=ID,
        scenario=scenario,
        title=title,
        data=f"{recipe.data}, {space.size} x {space.size}: for each seed {recipe.images:,} images to train on and "
        f"{recipe.validation:,} to search on; {len(first.part.x_test):,} test images",
        model=f"EfficientFormerV2 in small, largest {whole.text()} (width and expansion of the blocks of each stage, "
        f"a: attends), {space.total(whole).parameters:,} parameters",
        unit=f"one image in a batch of {BATCH}",
        knobs=("target", "weights"),
        baseline=costs["whole"].arm(over_seeds("accuracy", base["from scratch"])),
        points=points("greedy"),
        controls=[
            Control(
                name="random sub-networks",
                about="Moves are drawn at random, down to the same mobile efficiency score.",
                points=tuple(points("random")),
            ),
            Control(
                name="best of random",
                about="Of the random sub-networks of a seed, the one with the best accuracy on the validation images.",
                points=tuple(points("best of random")),
            ),
            Control(
                name="latency alone",
                about="The same walk, told of the latency only; cut at the same mobile efficiency score.",
                points=tuple(points("latency alone")),
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
            (
                "`target`: mobile efficiency score, as a multiple of the largest sub-network's; the first sub-network "
                "of a path that reaches it counts. Units are the largest sub-network's parameters and predicted "
                f"latency; exponents, our choice: size {joint.exponents['size']:g}, latency "
                f"{joint.exponents['latency']:g}."
            ),
            (
                "`inherited`: weights of the supernet, batch norms estimated anew on training images. `from scratch`: "
                "the same architecture trained alone, for as many epochs. The baseline is trained from scratch."
            ),
            (
                f"Random sub-networks: {len(first.found['random', TARGETS[0]])} for each seed and target, their mean; "
                f"from scratch, the mean of the first {SCRATCH_DRAWS}."
            ),
            "The search sees validation images only; accuracies are of the test images.",
            "Operations, bytes and time are over the networks of all seeds; batch norms are folded for the timing.",
        ),
        extra={
            **extra,
            "accuracy_largest_inherited": float(np.mean(base["inherited"])),
            "evaluations": tuple(float(fold.evaluations) for fold in folds),
            "steps": tuple(float(len(fold.path) - 1) for fold in folds),
            "path_moves": "; ".join(step.move for step in first.path[1:]),
            "path_score": tuple(step.benefit for step in first.path),
            "path_accuracy": tuple(step.quality for step in first.path),
            "path_parameters": tuple(float(space.total(step.state).parameters) for step in first.path),
            "path_ms": tuple(table(step.state.parts()) for step in first.path),
            "random_score": tuple(joint(s) for s in drawn),
            "random_accuracy": tuple(first.validation[s] for s in drawn),
            "found": "; ".join(f"{t:g}: {first.found['greedy', t][0].text()}" for t in TARGETS),
            "moves_by_kind": move_counts(folds),
        },
    )


def move_counts(folds: Iterable[Fold]) -> str:
    """How often each kind of move was made, over the greedy paths of all seeds."""
    counts: dict[str, int] = defaultdict(int)
    for fold in folds:
        for step in fold.path[1:]:
            counts[step.move.partition(" ")[0]] += 1
    return "; ".join(f"{kind}: {n}" for kind, n in sorted(counts.items()))


def nano(size: int, depths: tuple[int, ...]) -> Space:
    """The search space of the experiments: V2 in small, widths in steps of 4 and 8, for grey images."""
    widths = ((4, 8), (8, 16), (16, 24, 32), (24, 32, 40))
    return Space(widths, depths, (1, 2, 3), size, 1, 10, 2, heads=2, key_dim=8, ratio=2, layer_scale=0.5)


DIGITS = Recipe("digits", nano(16, (1, 1, 2, 2)), images=1000, validation=437, epochs=15)
FASHION = Recipe("fashion-mnist", nano(32, (2, 2, 3, 2)), images=4000, validation=1000, epochs=3)
"""About 8 minutes of one core for each seed, most of them for the two walks. No record of it is committed yet."""


def digits_search(ctx: Context) -> Record:
    recipe = DIGITS
    if ctx.smoke:
        recipe = dataclasses.replace(DIGITS, space=nano(16, (1, 1, 1, 1)), images=500, validation=200, epochs=3)
    return run_search(ctx, recipe, range(1 if ctx.smoke else 5), "digits-search", "Joint search on 8 x 8 digits")


def fashion_search(ctx: Context) -> Record:
    recipe = FASHION
    if ctx.smoke:
        recipe = dataclasses.replace(FASHION, space=nano(32, (1, 1, 1, 1)), images=500, validation=200, epochs=1)
    return run_search(ctx, recipe, range(1 if ctx.smoke else 5), "fashion-search", "Joint search on Fashion-MNIST")


SCENARIOS = (
    Scenario("digits-search", "Joint search on 8 x 8 digits", digits_search),
    Scenario(
        "fashion-search",
        "Joint search on Fashion-MNIST",
        fashion_search,
        {"smoke": ("fashion-mnist",), "full": ("fashion-mnist",)},
    ),
)


# --------------------------------------------------------------------------------------------------------------------
# Specimens with exactly known redundancy

SMALL = Space(((4, 8), (4,), (8,), (8,)), (1, 1, 1, 1), (1, 2), 16, 1, 5, 2, 2, 4, 2, layer_scale=1.0)
DROWN = 100.0


def planted(kind: Literal["typical", "redundant", "null"], seed: int) -> Slimmable:
    """A supernet whose blocks and trailing channels are ordinary, do nothing (`redundant`), or drown the rest (`null`).

    Trailing channels are those that a move takes away.
    """
    with fork_seed(seed):
        supernet = Slimmable(SMALL)
        whole = supernet.largest
        for parameter in whole.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
    scale = {"typical": 1.0, "redundant": 0.0, "null": DROWN}[kind]
    for j, stage in enumerate(whole.stages):
        least, most = SMALL.widths[j][0], SMALL.widths[j][-1]
        entry = whole.stem[0] if j == 0 else whole.downs[j - 1]
        convs = [entry.conv] if isinstance(entry.conv, nn.Conv2d) else [entry.conv.conv]
        if hasattr(entry, "attn"):
            convs.append(entry.attn.proj.conv)
        for conv in convs if least < most else ():
            conv.weight.data[least:] *= scale
            conv.bias.data[least:] *= scale
        for block in stage:
            hidden = SMALL.ratios[0] * most
            block.mlp.fc2.conv.weight.data[:, hidden:] *= scale
            block.ls2.gamma.data.fill_(scale)
            if block.ls1 is not None:
                block.ls1.gamma.data.fill_(scale)
    return supernet.eval().requires_grad_(False)


class JointSearchSpecimens(Specimens):
    """Supernets whose parts are known to matter or not; candidates are held to the largest sub-network's outputs."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Specimen:
        supernet = planted(kind, seed).to(device)
        draw = torch.Generator().manual_seed(seed + 1)
        supernet.search = SearchData(torch.randn(2, 1, SMALL.size, SMALL.size, generator=draw).to(device))
        inputs = torch.randn(192, 1, SMALL.size, SMALL.size, generator=draw).to(device)
        return Specimen(supernet, inputs, torch.no_grad()(lambda network, x: network(x)))

    def selection(self, seed: int, device: str) -> Iterable[Quantity]:
        supernet = self.build("typical", seed, device).host
        efficiency = Efficiency.of(SMALL, SMALL.operations_table())
        trial = Trial(supernet.view, supernet.search)
        whole = SMALL.largest()
        size, work = SMALL.total(whole).parameters, SMALL.total(whole).operations
        for before, after in pairwise(joint_search(supernet, efficiency, trial, 300.0)):
            rates = []
            for _, state in moves(SMALL, before.state):
                cost = SMALL.total(state)
                score = 100 * (size / cost.parameters) ** 0.5 * work / cost.operations
                rates.append((before.quality - trial(state)) / (score - before.benefit))
            taken = (before.quality - after.quality) / (after.benefit - before.benefit)
            yield Quantity(f"loss a point of {after.move}", torch.tensor(min(rates)), torch.tensor(taken))

    def conserved(self, seed: int, device: str) -> Iterable[Quantity]:
        specimen = self.build("typical", seed, device)
        supernet, x = specimen.host, specimen.inputs[:8]
        draw = torch.Generator().manual_seed(seed)
        for subnet in (SMALL.largest(), SMALL.smallest(), SMALL.sample(draw)):
            network = supernet.extract(subnet)
            yield Quantity(f"outputs of {subnet.text()}", supernet(x, subnet), network(x))
            numbers = sum(p.numel() for p in network.parameters())
            yield Quantity("parameters", torch.tensor(SMALL.total(subnet).parameters), torch.tensor(numbers))
            for name, weight in network.named_parameters():
                if weight.ndim > 1:  # a leading slice of the shared weight
                    shared = supernet.largest.get_parameter(name)
                    yield Quantity(name, shared[tuple(slice(n) for n in weight.shape)], weight)

    def invalid(self, device: str) -> Iterable[Invalid]:
        technique, specimen = FineGrainedJointSearch(), self.build("typical", 0, device)
        supernet, x = specimen.host, specimen.inputs
        some: Any = "twice"
        yield Invalid("a target below 1", lambda: technique.apply(supernet, target=0.5), "target must be")
        yield Invalid("a target that is no number", lambda: technique.apply(supernet, target=some), "target must be")
        yield Invalid("a negative tolerance", lambda: technique.apply(supernet, tolerance=-1.0), "tolerance must be")
        yield Invalid("a colour image", lambda: supernet(x.repeat(1, 3, 1, 1)), "must have shape (B, 1, 16, 16)")
        yield Invalid("NaN to search on", lambda: SearchData(x * torch.nan), "not finite")
        yield Invalid("falling widths", lambda: Space(((16, 8),) * 4, (1, 1, 1, 1)), "must be positive and rise")
        yield Invalid(
            "a table of nothing", lambda: technique.apply(supernet, table=LatencyTable({})), "the table holds no"
        )
        units = {"size": 1.0}
        yield Invalid("no latency", lambda: mobile_efficiency_score({"size": 1.0}, units), "must name the same")
        yield Invalid(
            "no size", lambda: mobile_efficiency_score({"size": 0.0}, units, {"size": 1.0}), "metric size must be"
        )
        nothing, training = planted("typical", 0), planted("typical", 0).train()
        yield Invalid("nothing to search on", lambda: technique.apply(nothing), "supernet.search")
        yield Invalid("a supernet in training mode", lambda: technique.apply(training), "eval mode")


SPECIMENS = JointSearchSpecimens()
