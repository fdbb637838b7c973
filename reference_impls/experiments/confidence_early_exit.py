"""Early exit on real data: a residual CNN on Fashion-MNIST, and MiniLM with off-ramps on the SpamAssassin mails."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.record import Control, Measured, Point, Record
from reference_impls.contract import Case, Cases, Expectation, Invalid
from reference_impls.data import images, text
from reference_impls.experiments.harness import (
    Context,
    Cost,
    Scenario,
    cached,
    fork_seed,
    measure_arms,
    over_seeds,
    predict,
    record,
    train,
    trained,
)
from reference_impls.hosts.bert import pool, staged_bert
from reference_impls.hosts.staged import AllExits, Staged, StageMacs, State, batch_size, count_stages
from reference_impls.layers.conv import conv_norm_act
from reference_impls.models import minilm
from reference_impls.redundancy.sufficiency import MEASURE, sufficiency
from reference_impls.techniques.confidence_early_exit import (
    ConfidenceEarlyExit,
    EarlyExit,
    Rule,
    at_exits,
    calibrate,
    exit_decisions,
    expected_macs,
)

ID = "confidence-early-exit"
EXITS = 4


# --------------------------------------------------------------------------------------------------------------------
# A residual CNN with four exits


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet's basic block). (B, c_in, H, W) -> (B, c_out, H / stride, ...)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        first, second = conv_norm_act(c_in, c_out, 3, stride, act=None), conv_norm_act(c_out, c_out, 3, act=None)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        same = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm_act(c_in, c_out, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def residual_cnn(size: int, width: int = 16, classes: int = 10) -> Staged:
    """A small ResNet for grey images of `size` x `size`, cut into four stages: (B, 1, size, size) -> (B, classes).

    Images of more than 16 pixels are halved by the first convolution. Each exit pools to at most 4 x 4 and is linear.
    """
    stride = 2 if size > 16 else 1
    c = (width, 2 * width, 2 * width, 4 * width)
    side = -(-size // stride)
    sides = (side, -(-side // 2), -(-side // 2), -(-side // 4))
    stem = conv_norm_act(1, width, 3, stride, act=nn.ReLU)
    stages = [nn.Sequential(stem, Block(c[0], c[0])), Block(c[0], c[1], 2), Block(c[1], c[2]), Block(c[2], c[3], 2)]
    pools = [min(4, s) for s in sides]
    heads = [
        nn.Sequential(nn.AdaptiveAvgPool2d(p), nn.Flatten(), nn.Linear(n * p * p, classes))
        for n, p in zip(c, pools, strict=True)
    ]
    a = [s * s for s in sides]  # positions
    macs = StageMacs(
        stages=(
            a[0] * (9 * c[0] + 2 * 9 * c[0] ** 2),
            a[1] * (9 * c[0] * c[1] + 9 * c[1] ** 2 + c[0] * c[1]),
            a[2] * 2 * 9 * c[2] ** 2,
            a[3] * (9 * c[2] * c[3] + 9 * c[3] ** 2 + c[2] * c[3]),
        ),
        heads=tuple(n * p * p * classes for n, p in zip(c, pools, strict=True)),
    )
    return Staged(stages, heads, macs)


def joint_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """BranchyNet's joint objective, the sum of every exit's cross-entropy with equal weights. logits: (E, B, C)."""
    return torch.stack([F.cross_entropy(at_exit, targets) for at_exit in logits]).sum()


def first_exits(network: Staged, depth: int) -> nn.Module:
    """The network that ends at its exit number `depth`, counted from 1."""
    return nn.Sequential(*network.stages[:depth], network.heads[depth - 1])


@dataclass(frozen=True)
class Recipe:
    """Every choice that the weights of a CNN follow from."""

    data: Literal["digits", "fashion-mnist"]
    size: int
    width: int
    images: int
    epochs: int
    depth: int = EXITS
    """Number of stages; fewer than four for a smaller plain network."""
    joint: bool = True
    """All exits trained together, or the last one alone."""
    shuffled: bool = False
    """Labels permuted: nothing can be learnt but by heart."""

    def train(self, split: Split, seed: int) -> Any:
        """The trained network, from the cache if it was trained before: `Staged` if `joint`, else plain."""

        def build() -> nn.Module:
            with fork_seed(seed):
                network = residual_cnn(self.size, self.width)
            return AllExits(network) if self.joint else first_exits(network, self.depth)

        def fit(model: nn.Module) -> nn.Module:
            y = split.y_train
            if self.shuffled:
                y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
            loss = joint_loss if self.joint else F.cross_entropy
            return train(model, split.x_train, y, epochs=self.epochs, seed=seed, lr=4e-3, loss=loss)

        spec = dataclasses.asdict(self) | {"seed": seed, "version": 1}
        model = trained(f"early-exit-{self.data}", spec, build, fit)
        return model.network if self.joint else model


@dataclass(frozen=True)
class Split:
    """Data of one seed: what trains the weights, what calibrates thresholds, and what tests both."""

    x_train: Tensor
    y_train: Tensor
    x_held: Tensor
    y_held: Tensor
    x_test: Tensor
    y_test: Tensor


def split(data: tuple[Tensor, Tensor, Tensor, Tensor], train_on: int, held_out: int, seed: int) -> Split:
    """`train_on` and `held_out` images drawn without overlap from the training set; the test set as it is."""
    x, y, x_test, y_test = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    mean, std = x.mean(), x.std()
    x, x_test = (x - mean) / std, (x_test - mean) / std
    a, b = order[:train_on], order[train_on : train_on + held_out]
    return Split(x[a], y[a], x[b], y[b], x_test, y_test)


# --------------------------------------------------------------------------------------------------------------------
# The sweep that every scenario shares

SWEEP: Mapping[Rule, Sequence[float]] = {
    "confidence": (0.999, 0.99, 0.97, 0.9, 0.8, 0.6, 0.0),
    "entropy": (0.01, 0.05, 0.1, 0.3, 0.6, 1.0),
    "patience": (2, 1),
}
BATCH_1: tuple[float, ...] = (0.99, 0.9, 0.6)
"""Confidence thresholds that are also timed one sample at a time."""
BUDGETS = (0.005, 0.01, 0.02)
DELTA = 0.05
CALIBRATION_COLUMNS = (
    "budget; 1 if certified at 95 %, else 0; threshold (mean over seeds); held-out loss (mean); "
    "test loss (mean, low, high); seeds within the budget on test; MACs, as a share of the plain network's. "
    "Losses are against the last exit of the same network."
)


@dataclass(frozen=True)
class Fold:
    """What one seed gave: the logits of all exits (E, N, C) on held-out and on test data."""

    seed: int
    network: Staged
    held: Tensor
    y_held: Tensor
    test: Tensor
    y_test: Tensor
    plain_accuracy: float
    """Accuracy on the test data of the network that a user without early exit would run."""

    def accuracy(self, left: Tensor) -> float:
        """Test accuracy when samples leave at `left`, (N,)."""
        return (at_exits(self.test, left).argmax(-1) == self.y_test).double().mean().item()

    def macs(self, left: Tensor) -> float:
        """MACs per test sample when samples leave at `left`, (N,)."""
        return expected_macs(left, self.network.macs.stages, self.network.macs.heads) / len(left)

    def plain_macs(self) -> int:
        return sum(self.network.macs.stages) + self.network.macs.heads[-1]

    def at_exit(self, e: int) -> Tensor:
        """Every test sample at exit `e`."""
        return torch.full((self.test.shape[1],), e)


def label(rule: Rule, threshold: float) -> str:
    return f"{rule} {threshold:g}"


def run_on(network: nn.Module, batches: Sequence[State]) -> Any:
    """A call that runs the network over all the batches, without gradients."""

    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            network(batch)

    return run


def costs_of(
    ctx: Context, plain: nn.Module, runners: Mapping[str, EarlyExit], cut: Mapping[str, nn.Module], batches: list[State]
) -> dict[str, Cost]:
    """Every arm counted and timed on the same batches, per sample. The closed form must agree with the counter."""
    units = sum(map(batch_size, batches))
    arms = {"plain": run_on(plain, batches)} | {k: run_on(v, batches) for k, v in (*runners.items(), *cut.items())}
    costs = measure_arms(arms, units=units, repetitions=3 if ctx.smoke else 15, threads=ctx.threads)
    for name, runner in runners.items():
        total = 0
        for batch in batches:
            runner(batch)
            total += expected_macs(runner.left, *dataclasses.astuple(runner.network.macs))
        if round(total / units) != costs[name].macs:
            raise RuntimeError(f"{name}: {costs[name].macs} MACs counted, {total / units} by the closed form")
    return costs


def sweep_points(
    folds: Sequence[Fold], costs: Mapping[str, Cost], decide: Mapping[str, tuple[dict[str, Any], list[Tensor]]]
) -> list[Point]:
    """A point for each entry of `decide`: name of its cost -> its knobs and the exits taken in every fold.

    Accuracy and MACs are over all test samples of all folds; bytes and time are those of the timed samples.
    """
    points = []
    for name, (knobs, lefts) in decide.items():
        stages = len(folds[0].network.stages)
        skipped = np.mean([1 - (left.double().mean().item() + 1) / stages for left in lefts])
        macs = np.mean([fold.macs(left) for fold, left in zip(folds, lefts, strict=True)])
        quality = over_seeds("accuracy", [fold.accuracy(left) for fold, left in zip(folds, lefts, strict=True)])
        cost = dataclasses.replace(costs[name], macs=round(macs))
        points.append(cost.point(knobs, quality, redundancy=max(float(skipped), 0.0)))
    return points


def calibration_table(folds: Sequence[Fold], rule: Rule) -> tuple[tuple[float, ...], ...]:
    """Thresholds calibrated on held-out data and tried on test data: rows of `CALIBRATION_COLUMNS`."""
    rows = []
    for budget in BUDGETS:
        for delta in (None, DELTA):
            try:
                chosen = [calibrate(fold.held, fold.y_held, rule, budget, delta=delta) for fold in folds]
            except ValueError:  # too few held-out samples to certify this budget
                continue
            lefts = [exit_decisions(f.test, rule, c.threshold) for f, c in zip(folds, chosen, strict=True)]
            losses = [f.accuracy(f.at_exit(-1)) - f.accuracy(left) for f, left in zip(folds, lefts, strict=True)]
            loss = over_seeds("loss", losses)
            share = np.mean([f.macs(left) / f.plain_macs() for f, left in zip(folds, lefts, strict=True)])
            rows.append(
                (
                    budget,
                    0.0 if delta is None else 1.0,
                    float(np.mean([c.threshold for c in chosen])),
                    float(np.mean([c.loss for c in chosen])),
                    loss.value,
                    loss.value if loss.low is None else loss.low,
                    loss.value if loss.high is None else loss.high,
                    float(sum(x <= budget for x in losses)),
                    float(share),
                )
            )
    return tuple(rows)


def measured(folds: Sequence[Fold], null: Mapping[str, float]) -> Measured:
    """Sufficiency of the test data, over the seeds."""
    per_fold = [sufficiency(f.test.argmax(-1), f.network.macs.stages) for f in folds]
    mean = over_seeds(MEASURE, [r.value for r in per_fold])
    where = {name: float(np.mean([r.where[name] for r in per_fold])) for name in per_fold[0].where}
    low, high = (None, None) if mean.low is None else (max(mean.low, 0.0), min(mean.high, 1.0))
    return Measured(measure=MEASURE, value=mean.value, low=low, high=high, where=where, null=dict(null))


def report(
    ctx: Context,
    folds: Sequence[Fold],
    *,
    plain: nn.Module,
    batches: list[State],
    singles: list[State],
    cut: Mapping[str, nn.Module] | None = None,
    cut_accuracy: Sequence[float] = (),
    null: Mapping[str, float],
    extra: Mapping[str, Any],
    sweep: Mapping[Rule, Sequence[float]] = SWEEP,
    **about: Any,
) -> Record:
    """The record of a scenario: the sweep of the three rules, the controls, the calibration, and a batch of one.

    `batches` and `singles` are what is timed; `cut` may hold a plain smaller network, of which `cut_accuracy` is known.
    """
    network = folds[0].network
    settings = [(rule, threshold) for rule, thresholds in sweep.items() for threshold in thresholds]
    runners = {label(rule, threshold): EarlyExit(network, rule, threshold) for rule, threshold in settings}
    static = {f"exit {d}": first_exits(network, d) for d in range(1, len(network.stages))}
    ctx.progress("timing", 0, 2)
    costs = costs_of(ctx, plain, runners, static | dict(cut or {}), batches)
    ctx.progress("timing", 1, 2)
    alone = costs_of(
        ctx, plain, {label("confidence", t): EarlyExit(network, "confidence", t) for t in BATCH_1}, {}, singles
    )
    ctx.progress("timing", 2, 2)

    decide = {
        label(rule, threshold): (
            {"threshold": threshold, "rule": rule},
            [exit_decisions(fold.test, rule, threshold) for fold in folds],
        )
        for rule, threshold in settings
    }
    points = sweep_points(folds, costs, decide)
    drawn = {
        name: (knobs, [left[torch.randperm(len(left), generator=torch.Generator().manual_seed(0))] for left in lefts])
        for name, (knobs, lefts) in decide.items()
        if knobs["rule"] == "confidence"
    }
    baseline = costs["plain"].arm(over_seeds("accuracy", [f.plain_accuracy for f in folds]))
    exits = range(len(network.stages))
    static_points = [
        costs[name].point({"exit": d}, over_seeds("accuracy", [f.accuracy(f.at_exit(d - 1)) for f in folds]))
        for d, name in enumerate(static, 1)
    ]
    controls = [
        Control(
            name="random exits",
            about="The same number of samples leaves at each exit, but which ones is drawn at random. MACs are "
            "the same by construction; bytes and time are those of the rule.",
            points=tuple(sweep_points(folds, costs, drawn)),
        ),
        Control(
            name="one exit for all",
            about="The network is cut: every sample is answered by the same exit, and nothing is decided.",
            points=tuple(static_points),
        ),
    ]
    controls += [
        Control(
            name="smaller plain network",
            about="A plain network that ends after the named stages, trained alone with the same recipe and seeds.",
            points=(costs[name].point({"network": name}, over_seeds("accuracy", cut_accuracy)),),
        )
        for name in cut or {}
    ]
    exit_accuracy = tuple(float(np.mean([f.accuracy(f.at_exit(e)) for f in folds])) for e in exits)
    wanted = max(baseline.quality.value, *exit_accuracy) - 0.01
    good = [name for name, p in zip(decide, points, strict=True) if p.quality.value >= wanted]
    shares = [
        (knobs["threshold"], *(float(np.mean([(left == e).double().mean().item() for left in lefts])) for e in exits))
        for knobs, lefts in decide.values()
        if knobs["rule"] == "confidence"
    ]
    return record(
        ctx,
        technique=ID,
        knobs=("threshold", "rule"),
        baseline=baseline,
        points=points,
        controls=controls,
        redundancy=measured(folds, null),
        seeds=[f.seed for f in folds],
        extra={
            "exit_accuracy": exit_accuracy,
            "exit_share_by_confidence": tuple(shares),
            "batch_1_threshold": BATCH_1,
            "batch_1_plain_ms": _spread(alone["plain"]),
            "batch_1_ms": tuple(_spread(alone[label("confidence", t)]) for t in BATCH_1),
            "patience_gain_over_confidence": gain_at_equal_macs(points),
            "time_saved_within_1_percent": time_saved(costs, good),
            "time_saved_within_1_percent_batch_1": time_saved(alone, good),
            "calibration_columns": CALIBRATION_COLUMNS,
            **{f"calibration_{rule}": calibration_table(folds, rule) for rule in sweep},
            **extra,
        },
        **about,
    )


def time_saved(costs: Mapping[str, Cost], good: Sequence[str]) -> float:
    """Largest share of the plain network's time that one of the arms `good` saves; 0 if none does.

    `good` are the arms at most one point less accurate than the plain network and than every single exit.
    """
    plain = costs["plain"].wall_ms.median
    return max([0.0, *(1 - costs[name].wall_ms.median / plain for name in good if name in costs)])


def gain_at_equal_macs(points: Sequence[Point]) -> float:
    """Mean accuracy of the patience points minus that of the confidence rule at as many MACs, interpolated."""
    curve = sorted((p.macs, p.quality.value) for p in points if p.knobs["rule"] == "confidence")
    patience = [p for p in points if p.knobs["rule"] == "patience"]
    return float(np.mean([p.quality.value - np.interp(p.macs, *zip(*curve, strict=True)) for p in patience]))


def _spread(cost: Cost) -> tuple[float, float, float]:
    return cost.wall_ms.p10, cost.wall_ms.median, cost.wall_ms.p90


# --------------------------------------------------------------------------------------------------------------------
# Scenarios: a residual CNN


def run_cnn(ctx: Context, recipe: Recipe, held_out: int, seeds: Sequence[int], name: str, title: str) -> Record:
    """Train networks with and without exits, sweep the rules, and add the null cases."""
    data = images.digits() if recipe.data == "digits" else images.fashion_mnist()
    folds, smaller, null, left_early = [], [], {}, {}
    for i, seed in enumerate(seeds):
        ctx.progress("training", i, len(seeds))
        part = split(data, recipe.images, held_out, seed)
        network = recipe.train(part, seed).to(ctx.device)
        plain = dataclasses.replace(recipe, joint=False).train(part, seed)
        small = dataclasses.replace(recipe, joint=False, depth=2).train(part, seed)
        smaller.append(accuracy(small, part))
        held, test = all_exits(network, part.x_held), all_exits(network, part.x_test)
        folds.append(Fold(seed, network, held, part.y_held, test, part.y_test, accuracy(plain, part)))
        if i == 0:
            timed, timed_plain, timed_small = part.x_test, plain, small
            draw = torch.Generator().manual_seed(seed)
            pixels = part.x_test.flatten(1)
            order = torch.rand(pixels.shape, generator=draw).argsort(1)
            nulls = {
                "pixels shuffled": all_exits(network, pixels.gather(1, order).view_as(part.x_test)),
                "noise": all_exits(network, torch.randn(part.x_test.shape, generator=draw)),
                "labels shuffled in training": all_exits(
                    dataclasses.replace(recipe, shuffled=True).train(part, seed), part.x_test
                ),
            }
            null = {k: sufficiency(v.argmax(-1), network.macs.stages).value for k, v in nulls.items()}
            left_early = {
                f"left_early_{k.replace(' ', '_')}": (exit_decisions(v, "confidence", 0.9) < EXITS - 1)
                .double()
                .mean()
                .item()
                for k, v in {"real images": test, **nulls}.items()
            }
    ctx.progress("training", len(seeds), len(seeds))
    n = 64 if ctx.smoke else 512
    return report(
        ctx,
        folds,
        plain=timed_plain.to(ctx.device),
        batches=list(timed[:n].to(ctx.device).split(32)),
        singles=list(timed[: n // 8].to(ctx.device).split(1)),
        cut={"stages 1 and 2": timed_small.to(ctx.device)},
        cut_accuracy=smaller,
        null=null,
        extra={
            **left_early,
            "joint_training_gain": float(np.mean([f.accuracy(f.at_exit(-1)) - f.plain_accuracy for f in folds])),
        },
        scenario=name,
        title=title,
        data=f"{recipe.data}: {recipe.images} images to train, {held_out} held out to calibrate, {len(timed)} to test",
        model=f"residual CNN, width {recipe.width}, 4 stages, an exit after each; "
        f"{sum(p.numel() for p in folds[0].network.parameters())} parameters",
        unit="one image, in batches of 32",
        notes=(
            "The baseline is the same network trained without exits; accuracy is over all test images and seeds.",
            f"Bytes and time are those of the first seed's networks on {n} test images.",
            "The exits are trained together with the network, with equal weights.",
        ),
    )


@torch.no_grad()
def all_exits(network: Staged, x: Tensor) -> Tensor:
    """Logits of all exits, (E, N, C), on the CPU."""
    device = next(network.parameters()).device
    return torch.cat([network.exits(part.to(device)).cpu() for part in x.split(256)], 1)


def accuracy(model: nn.Module, part: Split) -> float:
    """Accuracy of a plain network on the test data."""
    return (predict(model, part.x_test).argmax(-1) == part.y_test).double().mean().item()


def digits_cnn(ctx: Context) -> Record:
    recipe = Recipe("digits", size=8, width=16, images=1000, epochs=5 if ctx.smoke else 20)
    return run_cnn(ctx, recipe, 437, range(2 if ctx.smoke else 5), "digits-cnn", "Residual CNN on 8 x 8 digits")


def fashion_cnn(ctx: Context) -> Record:
    recipe = Recipe("fashion-mnist", size=28, width=16, images=2000, epochs=1)
    if not ctx.smoke:
        recipe = dataclasses.replace(recipe, images=20_000, epochs=6)
    return run_cnn(ctx, recipe, 10_000, range(1 if ctx.smoke else 5), "fashion-cnn", "Residual CNN on Fashion-MNIST")


# --------------------------------------------------------------------------------------------------------------------
# Scenarios: MiniLM with off-ramps

MAIL_SWEEP: Mapping[Rule, Sequence[float]] = {
    "confidence": (0.999, 0.99, 0.9, 0.6, 0.0),
    "entropy": (0.05, 0.2, 0.4),
    "patience": (3, 2, 1),
}


class Ramps(nn.Module):
    """The off-ramps alone, on features that were computed once: (B, E, D) -> logits (E, B, C)."""

    def __init__(self, exits: int, dim: int, classes: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(dim, classes) for _ in range(exits))

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([c(x) for c, x in zip(self.classifiers, features.unbind(1), strict=True)])


@torch.no_grad()
def ramp_features(network: Staged, inputs: Mapping[str, Tensor], ctx: Context) -> Tensor:
    """What each off-ramp sees of each text: (N, E, D), on the CPU."""
    parts, n = [], len(inputs["ids"])
    for start in range(0, n, 64):
        ctx.progress("features", start, n)
        state: State = {name: x[start : start + 64].to(ctx.device) for name, x in inputs.items()}
        pooled = []
        for stage in network.stages:
            state = stage(state)
            pooled.append(pool(state))
        parts.append(torch.stack(pooled, 1).cpu())
    ctx.progress("features", n, n)
    return torch.cat(parts)


def mail_inputs(tokens: int, limit: int | None) -> tuple[Any, dict[str, Tensor], Tensor]:
    """MiniLM, and the mails as token ids cut and padded to `tokens`, with their labels (1: spam).

    Of mails that look the same to the model (equal token ids after the cut) one is kept, because a mail that is in the
    training and in the test data would be answered by heart; mails whose copies bear both labels are left out.
    """
    model, tokenizer = minilm.load_minilm()
    mails = text.mails()
    if limit is not None:
        mails = [mails[i] for i in np.random.default_rng(0).permutation(len(mails))[:limit]]
    labels: dict[tuple[int, ...], set[bool]] = {}
    for mail, ids in zip(mails, minilm.tokenise(tokenizer, [m.text for m in mails], tokens), strict=True):
        labels.setdefault(tuple(ids), set()).add(mail.spam)
    kept = [(ids, spam) for ids, (spam, *others) in labels.items() if not others]
    ids = torch.zeros(len(kept), tokens, dtype=torch.long)
    real = torch.zeros(len(kept), tokens, dtype=torch.bool)
    for i, (row, _) in enumerate(kept):
        ids[i, : len(row)] = torch.tensor(row)
        real[i, : len(row)] = True
    return model, {"ids": ids, "real": real}, torch.tensor([int(spam) for _, spam in kept])


def mails_minilm(ctx: Context) -> Record:
    """Off-ramps trained on a frozen MiniLM; a new split of the mails for each seed."""
    tokens = 32 if ctx.smoke else 64
    model, inputs, y = mail_inputs(tokens, 400 if ctx.smoke else None)
    network = staged_bert(model.to(ctx.device), classes=2).to(ctx.device)
    spec = {"ids": hashlib.sha256(inputs["ids"].numpy().tobytes()).hexdigest(), "tokens": tokens}
    features = cached("mail-ramp-features", spec, lambda: ramp_features(network, inputs, ctx))  # (N, E, D)
    mean, std = features.mean(0, keepdim=True), features.std(0, keepdim=True)
    exits, dim, n = features.shape[1], features.shape[2], len(y)
    noise = torch.randint(1000, 30000, (min(n, 256), tokens), generator=torch.Generator().manual_seed(0))
    noise_features = ramp_features(network, {"ids": noise, "real": torch.ones_like(noise, dtype=torch.bool)}, ctx)

    def fit(x: Tensor, targets: Tensor, seed: int) -> Ramps:
        with fork_seed(seed):
            ramps = Ramps(exits, dim, 2)
        return train(ramps, (x - mean) / std, targets, epochs=20, seed=seed, lr=3e-3, batch_size=64, loss=joint_loss)

    @torch.no_grad()
    def logits(ramps: Ramps, x: Tensor) -> Tensor:
        return ramps((x - mean) / std)

    folds, null, extra = [], {}, {}
    for seed in range(2 if ctx.smoke else 5):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        fit_on, held, test = order.split([n - 2 * (n // 5), n // 5, n // 5])
        ramps = fit(features[fit_on], y[fit_on], seed)
        at_test = logits(ramps, features[test])
        right = at_test[-1].argmax(-1) == y[test]
        folds.append(
            Fold(seed, network, logits(ramps, features[held]), y[held], at_test, y[test], right.double().mean().item())
        )
        if seed == 0:
            for ramp, classifier, m, s in zip(network.heads, ramps.classifiers, mean[0], std[0], strict=True):
                weight = classifier.weight.detach() / s  # the standardisation, folded into the classifier
                ramp.classifier.weight.data.copy_(weight)
                ramp.classifier.bias.data.copy_(classifier.bias.detach() - weight @ m)
            timed = test[: 32 if ctx.smoke else 64]
            blind = fit(
                features[fit_on], y[fit_on][torch.randperm(len(fit_on), generator=torch.Generator().manual_seed(1))], 0
            )
            network.macs = count_stages(network, {k: v[:2].to(ctx.device) for k, v in inputs.items()})
            nulls = {
                "random tokens": logits(ramps, noise_features),
                "labels shuffled in training": logits(blind, features[test]),
            }
            null = {k: sufficiency(v.argmax(-1), network.macs.stages).value for k, v in nulls.items()}
            extra = {
                f"left_early_{k.replace(' ', '_')}": (exit_decisions(v, "confidence", 0.9) < exits - 1)
                .double()
                .mean()
                .item()
                for k, v in {"real mails": at_test, **nulls}.items()
            }
            extra["accuracy_of_the_larger_class"] = max(y.double().mean().item(), 1 - y.double().mean().item())
    batches = [{k: v[part].to(ctx.device) for k, v in inputs.items()} for part in timed.split(32)]
    singles = [{k: v[part].to(ctx.device) for k, v in inputs.items()} for part in timed[: len(timed) // 2].split(1)]
    return report(
        ctx,
        folds,
        plain=network,
        batches=batches,
        singles=singles,
        null=null,
        extra=extra,
        sweep=MAIL_SWEEP,
        scenario="mails-minilm",
        title="MiniLM with off-ramps on the SpamAssassin mails",
        data=f"{n} mails of SpamAssassin, distinct in their first {tokens} tokens; for each seed a random split into "
        f"{len(fit_on)} to train, {len(held)} held out to calibrate, {len(test)} to test",
        model="all-MiniLM-L6-v2, frozen, an off-ramp after each of 6 layers",
        unit=f"one mail of {tokens} tokens (padded), in batches of 32",
        notes=(
            (
                "The baseline is the same network with its last off-ramp only; the encoder is frozen, so the other "
                "ramps change nothing in it. DeeBERT fine-tunes the encoder first, which ours does not."
            ),
            "The last layer of a sentence encoder need not be the best one for another task: see `one exit for all`.",
            f"Bytes and time are those of the first seed's ramps on {len(timed)} test mails.",
            (
                "Mails of one thread or one campaign may still be on both sides of a split, unless their first tokens "
                "are equal: accuracy on mails from another source would be lower."
            ),
        ),
    )


SCENARIOS = (
    Scenario("digits-cnn", "Residual CNN with four exits on 8 x 8 digits", digits_cnn),
    Scenario(
        "fashion-cnn",
        "Residual CNN with four exits on Fashion-MNIST",
        fashion_cnn,
        {"smoke": ("fashion-mnist",), "full": ("fashion-mnist",)},
    ),
    Scenario(
        "mails-minilm",
        "MiniLM with off-ramps on the SpamAssassin mails",
        mails_minilm,
        {"smoke": ("minilm", "spam-assassin"), "full": ("minilm", "spam-assassin")},
    ),
)


# --------------------------------------------------------------------------------------------------------------------
# Cases with exactly known exits


class Turn(nn.Linear):
    """Turns a ring of blocks of C numbers by one block: an exact permutation, written as a dense layer."""

    def __init__(self, blocks: int, classes: int) -> None:
        n = blocks * classes
        super().__init__(n, n, bias=False)
        self.weight.data = torch.eye(n).roll(classes, dims=1).contiguous()


class First(nn.Linear):
    """Reads the first block of C numbers as logits."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__(blocks * classes, classes, bias=False)
        self.weight.data = torch.eye(blocks * classes)[:classes].clone()


def ring(exits: int, classes: int) -> Staged:
    """A network whose exits see exactly what the inputs (B, E * C) hold: the logits of exit e are block e.

    Each stage turns the ring on, so a stage that is left out or run twice shows as wrong logits.
    """
    n = exits * classes
    stages = [nn.Identity() if e == 0 else Turn(exits, classes) for e in range(exits)]
    macs = StageMacs((0, *[n * n] * (exits - 1)), (n * classes,) * exits)
    return Staged(stages, [First(exits, classes) for _ in range(exits)], macs)


def ring_inputs(logits: Tensor) -> Tensor:
    """Inputs with which `ring` gives these logits at its exits: (E, B, C) -> (B, E * C)."""
    return logits.transpose(0, 1).flatten(1).contiguous()


class EarlyExitCases(Cases):
    """`redundant`: every exit is sure of the same class. `null`: every exit before the last is unsure, and wrong."""

    classes = 5
    batch = 12

    def build(self, kind: Literal["typical", "redundant", "null"], seed: int, device: str) -> Case:
        with fork_seed(seed):
            if kind == "typical":
                target = residual_cnn(8, width=4)
                for head in target.heads:
                    head[-1].weight.data *= 30  # untrained heads are never sure; these are for some inputs
                inputs = torch.randn(self.batch, 1, 8, 8)
            else:
                final = torch.randint(self.classes, (self.batch,))
                shift = torch.arange(EXITS - 1, -1, -1).unsqueeze(1) if kind == "null" else torch.zeros(EXITS, 1).long()
                answers = (final + shift) % self.classes  # (E, B): in `null`, each exit gives an answer of its own
                sure = torch.full((EXITS, 1, 1), 8.0)
                if kind == "null":
                    sure[:-1] = 0.1
                target, inputs = ring(EXITS, self.classes), ring_inputs(F.one_hot(answers, self.classes) * sure)
        return Case(target.eval().to(device), inputs.to(device), torch.no_grad()(lambda network, x: network(x)))

    def selection(self, seed: int, device: str) -> Iterable[Expectation]:
        case = self.build("typical", seed, device)
        for rule, threshold in (("confidence", 0.7), ("entropy", 0.6), ("patience", 1)):
            batched = EarlyExit(case.target, rule, threshold)
            logits = batched(case.inputs)
            alone = EarlyExit(case.target, rule, threshold)
            pairs = [(alone(x.unsqueeze(0)), alone.left) for x in case.inputs]
            yield Expectation(f"{rule}: exits one by one", torch.cat([left for _, left in pairs]), batched.left)
            yield Expectation(f"{rule}: logits one by one", torch.cat([one for one, _ in pairs]), logits)
            offline = exit_decisions(case.target.exits(case.inputs).detach(), rule, threshold)
            yield Expectation(f"{rule}: exits from all logits", offline, batched.left)

    def conserved(self, seed: int, device: str) -> Iterable[Expectation]:
        with fork_seed(seed):
            logits = 3 * torch.randn(EXITS, 32, self.classes)
        logits[..., 0] = -20 - torch.arange(32.0)  # names the sample, whichever exit answers
        runner = EarlyExit(ring(EXITS, self.classes).eval().to(device), "confidence", 0.7)
        out = runner(ring_inputs(logits).to(device))
        yield Expectation("each sample answered once, in its place", -20 - torch.arange(32.0), out[:, 0].cpu())
        yield Expectation("samples over exits", torch.tensor(32), runner.left.bincount(minlength=EXITS).sum().cpu())
        yield Expectation("logits are those of the exit taken", at_exits(logits, runner.left.cpu()), out.cpu())

    def invalid(self, device: str) -> Iterable[Invalid]:
        technique = ConfidenceEarlyExit()
        network = self.build("null", 0, device).target
        x = torch.zeros(2, EXITS * self.classes, device=device)
        bad = x.clone()
        bad[0, 0] = float("nan")
        yield Invalid("unknown rule", lambda: technique.apply(network, rule="margin", threshold=0.5), "rule must be")
        yield Invalid(
            "confidence above 1",
            lambda: technique.apply(network, rule="confidence", threshold=1.5),
            "threshold of the confidence rule must be",
        )
        yield Invalid(
            "half a step of patience",
            lambda: technique.apply(network, rule="patience", threshold=1.5),
            "must be an integer",
        )
        yield Invalid("NaN", lambda: EarlyExit(network, "confidence", 0.5)(bad), "not finite")
        yield Invalid("no batch", lambda: EarlyExit(network, "confidence", 0.5)(()), "first axis")
        yield Invalid("logits without exits", lambda: exit_decisions(x, "entropy", 0.5), "must have shape (E, B, C)")
        training = self.build("typical", 0, device).target.train()
        yield Invalid(
            "batch norm in training mode", lambda: technique.apply(training, rule="patience", threshold=1), "eval"
        )


CASES = EarlyExitCases()
