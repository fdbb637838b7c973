"""Fine-grained joint search on real data: a slimmable supernet, the greedy walk, and sub-networks of equal score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.latency import LatencyTable
from reference_impls.accounting.record import Control, Record
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.experiments import searches
from reference_impls.experiments.harness import Context, Scenario, fork_seed, over_seeds, record
from reference_impls.experiments.searches import GREEDY, LAST, RANDOM, Fold, Split, compare, first, parts_table
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
)
from reference_impls.techniques.latency_driven_slimming.search import greedy

ID = "fine-grained-joint-search"


def sandwich_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the sub-networks of the cross-entropy. logits: (sub-networks, B, C)."""
    return torch.stack([F.cross_entropy(one, targets) for one in logits]).mean()


@dataclass(frozen=True)
class Recipe(searches.Recipe):
    """The supernet is trained by the sandwich rule."""

    search: ClassVar = "joint"

    def network(self, state: Subnet) -> nn.Module:
        return Network(self.space, state)

    def supernet(self, part: Split, seed: int) -> Slimmable:
        sandwich = self.fitted("supernet", part, seed, lambda: Sandwich(Slimmable(self.space)), sandwich_loss)
        supernet = sandwich.supernet
        supernet.search = SearchData(part.x_valid, part.y_valid, part.x_train[:256])
        return supernet


# --------------------------------------------------------------------------------------------------------------------
# The scenario: the greedy walk beside what knows less

BATCH = 64
"""Images in the batch whose latency is predicted and measured."""
TARGETS = (2.0, 4.0, 8.0)
"""Mobile efficiency scores to reach, as multiples of the largest sub-network's. At the second one, networks are also
trained from scratch."""
SMOKE_TARGETS = (1.5, 2.0)
DRAWS = 6
"""Random sub-networks for each seed and target."""
SCRATCH_DRAWS = 2
"""Of the random sub-networks of a seed, how many are trained from scratch."""
BEST, FAST = "best of random", "latency alone"
LATENCY_ALONE: Mapping[str, float] = {"size": 0.0, "latency": 1.0}


@dataclass
class JointFold(Fold[Subnet]):
    """With what the search asked for."""

    evaluations: int
    """Sub-networks that the greedy walk evaluated."""
    validation: dict[Subnet, float]
    """Accuracy on the validation images of the sub-networks drawn at random."""


def search(recipe: Recipe, table: LatencyTable, seed: int, targets: Sequence[float], draws: int) -> JointFold:
    """Train the supernet of a seed and search it with every method."""
    part = recipe.split(seed)
    supernet = recipe.supernet(part, seed)
    space = recipe.space
    joint = Efficiency.of(space, table)
    most = max(targets) * SCORE

    def trial() -> Trial[Subnet]:
        return Trial(lambda s: supernet.extract(s).to(memory_format=LAST), supernet.search)

    def at_targets(states: Sequence[Subnet]) -> dict[float, Subnet]:
        return {target: first(states, lambda s, t=target: joint(s) >= t * SCORE) for target in targets}

    score = trial()
    path = joint_search(supernet, joint, score, most)
    evaluations = len(score.evaluated)
    found = {(GREEDY, t): [s] for t, s in at_targets([step.state for step in path]).items()}
    walk = walk_until(supernet, Efficiency.of(space, table, LATENCY_ALONE), trial(), lambda s: joint(s) >= most)
    found |= {(FAST, t): [s] for t, s in at_targets(walk).items()}

    generator = torch.Generator().manual_seed(seed)
    validation: dict[Subnet, float] = {}
    for _ in range(draws):
        steps = random_path(space.largest(), lambda s: moves(space, s), joint, most, generator)
        for target, drawn in at_targets([state for _, state in steps]).items():
            found.setdefault((RANDOM, target), []).append(drawn)
            validation[drawn] = score(drawn)
    for target in targets:
        found[BEST, target] = [max(found[RANDOM, target], key=lambda s: validation[s])]
    return JointFold(seed, part, supernet, path, found, evaluations, validation)


def walk_until(
    supernet: Slimmable, efficiency: Efficiency, quality: Callable[[Subnet], float], done: Callable[[Subnet], bool]
) -> list[Subnet]:
    """The greedy walk by another score, to the first sub-network that is `done`."""
    space = supernet.space
    path = greedy(space.largest(), lambda s: () if done(s) else moves(space, s), quality, efficiency, 1e12)
    return [step.state for step in path]


def run_search(ctx: Context, recipe: Recipe, seeds: Sequence[int], scenario: str, title: str) -> Record:
    """Search the supernets of all seeds with every method, and compare at equal mobile efficiency score."""
    space = recipe.space
    ctx.progress("latency table", 0, 1)
    table = parts_table(space, BATCH, ctx)
    joint = Efficiency.of(space, table)
    whole = space.largest()
    targets = SMOKE_TARGETS if ctx.smoke else TARGETS
    folds: list[JointFold] = []

    def search_seed(seed: int) -> JointFold:
        folds.append(search(recipe, table, seed, targets, 2 if ctx.smoke else DRAWS))
        return folds[-1]

    compared = compare(
        ctx,
        recipe,
        FineGrainedJointSearch(),
        search_seed,
        seeds,
        batch=BATCH,
        scratch=targets[1:2],
        scratch_draws=SCRATCH_DRAWS,
    )

    def parameters(subnet: Subnet) -> float:
        return float(space.total(subnet).parameters)

    def removed(subnet: Subnet) -> float:
        return 1 - parameters(subnet) / parameters(whole)

    extra: dict[str, Any] = compared.gains()
    for target in targets:
        for method in compared.methods:
            name, states = f"{method.replace(' ', '_')}_{target:g}", compared.found(method, target)
            extra[f"score_{name}"] = float(np.mean([joint(s) for s in states]))
            extra[f"parameters_{name}"] = float(np.mean([parameters(s) for s in states]))
            extra[f"predicted_ms_{name}"] = float(np.mean([table(s.parts()) for s in states]))
    fold = folds[0]
    drawn = [s for t in targets for s in fold.found[RANDOM, t]]
    return record(
        ctx,
        technique=ID,
        scenario=scenario,
        title=title,
        data=f"{recipe.data}, {space.size} x {space.size}: for each seed {recipe.images:,} images to train on and "
        f"{recipe.validation:,} to search on; {len(fold.part.x_test):,} test images",
        model=f"EfficientFormerV2 in small, largest {whole.text()} (width and expansion of the blocks of each stage, "
        f"a: attends), {space.total(whole).parameters:,} parameters",
        unit=f"one image in a batch of {BATCH}",
        knobs=("target", "weights"),
        baseline=compared.costs["whole"].arm(over_seeds("accuracy", compared.whole["from scratch"])),
        points=compared.points(GREEDY, removed),
        controls=[
            Control(
                name="random sub-networks",
                about="Moves are drawn at random, down to the same mobile efficiency score.",
                points=compared.points(RANDOM, removed),
            ),
            Control(
                name=BEST,
                about="Of the random sub-networks of a seed, the one with the best accuracy on the validation images.",
                points=compared.points(BEST, removed),
            ),
            Control(
                name=FAST,
                about="The same walk, told of the latency only; cut at the same mobile efficiency score.",
                points=compared.points(FAST, removed),
            ),
        ],
        redundancy=compared.redundancy,
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
                f"Random sub-networks: {len(fold.found[RANDOM, targets[0]])} for each seed and target, their mean; "
                f"from scratch, the mean of the first {SCRATCH_DRAWS}."
            ),
            "The search sees validation images only; accuracies are of the test images.",
            "MACs, bytes and time are over the networks of all seeds; batch norms are folded for the timing.",
        ),
        extra={
            **extra,
            "accuracy_largest_inherited": float(np.mean(compared.whole["inherited"])),
            "evaluations": tuple(float(one.evaluations) for one in folds),
            "steps": tuple(float(len(one.path) - 1) for one in folds),
            "path_moves": "; ".join(step.move for step in fold.path[1:]),
            "path_score": tuple(step.benefit for step in fold.path),
            "path_accuracy": tuple(step.quality for step in fold.path),
            "path_parameters": tuple(parameters(step.state) for step in fold.path),
            "path_ms": tuple(table(step.state.parts()) for step in fold.path),
            "random_score": tuple(joint(s) for s in drawn),
            "random_accuracy": tuple(fold.validation[s] for s in drawn),
            "found": "; ".join(f"{t:g}: {fold.found[GREEDY, t][0].text()}" for t in targets),
            "moves_by_kind": compared.move_counts(),
        },
    )


def nano(size: int, depths: tuple[int, ...]) -> Space:
    """The search space of the experiments: V2 in small, widths in steps of 4 and 8, for grey images."""
    widths = ((4, 8), (8, 16), (16, 24, 32), (24, 32, 40))
    return Space(widths, depths, (1, 2, 3), size, 1, 10, 2, heads=2, key_dim=8, ratio=2, layer_scale=0.5)


DIGITS = Recipe("digits", nano(16, (1, 1, 2, 2)), images=1000, validation=437, epochs=15)
FASHION = Recipe("fashion-mnist", nano(32, (2, 2, 3, 2)), images=4000, validation=1000, epochs=3)
"""About 8 minutes of one core for each seed, most of them for the two walks."""


def digits_search(ctx: Context) -> Record:
    recipe = DIGITS
    if ctx.smoke:
        space = dataclasses.replace(nano(16, (1, 1, 1, 1)), ratios=(1, 3))
        recipe = dataclasses.replace(DIGITS, space=space, images=300, validation=100, epochs=3)
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
# Cases with exactly known redundancy

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


class JointSearchCases(Cases):
    """Supernets whose parts are known to matter or not; candidates are held to the largest sub-network's outputs."""

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        supernet = planted(kind, seed).to(device)
        draw = torch.Generator().manual_seed(seed + 1)
        supernet.search = SearchData(torch.randn(2, 1, SMALL.size, SMALL.size, generator=draw).to(device))
        inputs = torch.randn(192, 1, SMALL.size, SMALL.size, generator=draw).to(device)
        return Case(supernet, inputs, torch.no_grad()(lambda network, x: network(x)))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        supernet = self.build("typical", seed, device).target
        efficiency = Efficiency.of(SMALL, SMALL.macs_table())
        trial = Trial(supernet.view, supernet.search)
        whole = SMALL.largest()
        size, work = SMALL.total(whole).parameters, SMALL.total(whole).macs
        for before, after in pairwise(joint_search(supernet, efficiency, trial, 300.0)):
            rates = []
            for _, state in moves(SMALL, before.state):
                cost = SMALL.total(state)
                score = 100 * (size / cost.parameters) ** 0.5 * work / cost.macs
                rates.append((before.quality - trial(state)) / (score - before.benefit))
            taken = (before.quality - after.quality) / (after.benefit - before.benefit)
            yield Expectation(f"loss a point of {after.move}", torch.tensor(min(rates)), torch.tensor(taken))

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        supernet, x = case.target, case.inputs[:8]
        draw = torch.Generator().manual_seed(seed)
        for subnet in (SMALL.largest(), SMALL.smallest(), SMALL.sample(draw)):
            network = supernet.extract(subnet)
            yield Expectation(f"outputs of {subnet.text()}", supernet(x, subnet), network(x))
            numbers = sum(p.numel() for p in network.parameters())
            yield Expectation("parameters", torch.tensor(SMALL.total(subnet).parameters), torch.tensor(numbers))
            for name, weight in network.named_parameters():
                if weight.ndim > 1:  # a leading slice of the shared weight
                    shared = supernet.largest.get_parameter(name)
                    yield Expectation(name, shared[tuple(slice(n) for n in weight.shape)], weight)

    def invalid(self, device: str) -> Iterable[Invalid]:
        technique, case = FineGrainedJointSearch(), self.build("typical", 0, device)
        supernet, x = case.target, case.inputs
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


CASES = JointSearchCases()
