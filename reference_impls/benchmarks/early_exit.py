"""Early exit: what a classifier loses when easy inputs are answered before its last stage.

Two tasks: a residual CNN with four exits, trained on digits and on Fashion-MNIST; and MiniLM, frozen, with off-ramps on
the SpamAssassin mails. A technique sends a `Method` for each of its settings. What it would answer is read off the
logits of all exits, for several seeds; what it costs is measured on the network of the first. The controls are the same
for all: random exits, one exit for all, and a smaller plain network trained alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.accounting.record import Record, Table
from reference_impls.contract import generator
from reference_impls.data import text
from reference_impls.data.splits import TITLES, Labelled, Part, Split, split, standardised
from reference_impls.hosts import bert
from reference_impls.hosts.staged import AllExits, Staged, State, batch_size, count_stages, first_exits, joint_loss
from reference_impls.models import minilm
from reference_impls.models.residual_cnn import residual_cnn
from reference_impls.redundancy.sufficiency import sufficiency
from reference_impls.study import BASELINE, TECHNIQUE, Plan, Scenario, Study, measured, table, training
from reference_impls.techniques.confidence_early_exit import at_exits

ID = "early-exit"
task = partial(Scenario, benchmark=ID)
RANDOM, CUT, SMALLER = "random exits", "one exit for all", "smaller plain network"
CONTROLS = {
    RANDOM: "The same number of samples leaves at each exit, but which ones is drawn at random. MACs are the same by "
    "construction; bytes and time are those of the rule.",
    CUT: "The network is cut: every sample is answered by the same exit, and nothing is decided.",
    SMALLER: "A plain network that ends after the named stages, trained alone with the same recipe and seeds.",
}


@dataclass(frozen=True)
class Method:
    """A setting of a technique: its name, and its knobs, the main one first.

    `decide`: logits of all exits (E, N, C) -> the exit at which each sample leaves, (N,). `runner(network)` decides
    alike while it runs: a module that is called like the network, and holds the exits of its last run in `left`.
    """

    name: str
    knobs: Mapping[str, Any]
    decide: Callable[[Tensor], Tensor]
    runner: Callable[[Staged], Any]


@dataclass(frozen=True)
class Fold:
    """What one seed gave: the logits of all exits (E, N, C) and the classes (N,) of held-out and of test data."""

    held: Tensor
    y_held: Tensor
    test: Tensor
    y_test: Tensor
    plain: float  # accuracy on the test data without exits

    def accuracy(self, left: Tensor) -> float:
        """Of the test data, when they leave at the exits `left`, (N,)."""
        return (at_exits(self.test, left).argmax(-1) == self.y_test).double().mean().item()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What methods are tried on: networks of the first seed, answers of all of them, and words for the record."""

    network: Staged
    plain: nn.Module  # without exits
    smaller: Mapping[str, tuple[nn.Module, Sequence[float]]]  # ends after the named stages; accuracy of each seed's
    folds: Sequence[Fold]
    timed: Sequence[State]  # batches of test data
    singles: Sequence[State]  # test data to be timed one sample at a time
    logits: Mapping[str, Tensor]  # (E, N, C) of the first seed's test data, then of data that hold nothing
    extra: Mapping[str, float]
    about: Mapping[str, Any]
    exits_macs: int  # of training the exits, beyond what the baseline's training takes

    def lefts(self, method: Method) -> list[Tensor]:
        """The exits at which a method lets each seed's test data leave, (N,) each."""
        return [method.decide(fold.test) for fold in self.folds]

    def accuracies(self, lefts: Sequence[Tensor]) -> list[float]:
        """Test accuracy of each seed when its samples leave at `lefts`, (N,) each."""
        return [fold.accuracy(left) for fold, left in zip(self.folds, lefts, strict=True)]

    def accuracies_at(self, e: int) -> list[float]:
        """Test accuracy of each seed when all samples leave at exit `e`; -1 is the last."""
        return self.accuracies([torch.full_like(fold.y_test, e) for fold in self.folds])

    def macs(self, lefts: Sequence[Tensor]) -> float:
        """MACs per test sample when samples leave at `lefts`."""
        return float(np.mean([self.network.costs().spent(left) / len(left) for left in lefts]))


# --------------------------------------------------------------------------------------------------------------------
# Measuring


def report(
    study: Study[Any],
    on: Trained,
    methods: Sequence[Method],
    *,
    alone: Sequence[Method],
    typical: Method,
    tables: Mapping[str, Table],
    extra: Mapping[str, float],
) -> Record:
    """The record of all methods beside the controls.

    Accuracy and MACs are over all test samples of all seeds; bytes and time are those of the timed samples.

    Args:
        methods: those with the name of the first have random exits as a control, and their exits in a table.
        alone: methods to time one sample at a time as well. typical: the method to try on null data.
        tables, extra: those of the technique itself.
    """
    main, knob = methods[0].name, next(iter(methods[0].knobs))
    held, costs = len(on.folds[0].y_held), on.network.costs()
    study.prepare("training", "training the exits, beyond what training without them takes", on.exits_macs)
    study.prepare(
        "calibration",
        f"answering {held:,} held-out samples at every exit, to calibrate thresholds",
        costs.spent(torch.full((held,), len(costs.stages) - 1)),
    )
    _measure(study, on, methods)
    singly = Study[Any](study.owner, study.scenario, study.context)
    _time(singly, on, alone, on.singles)
    study.add(BASELINE, stream=training.each(on.plain, on.singles))
    for method in alone:
        study.add(TECHNIQUE, method.knobs, stream=training.each(method.runner(on.network), on.singles))
    study.measure()
    stages = on.network.costs().stages
    by_exit = [(e + 1, float(np.mean(on.accuracies_at(e)))) for e in range(len(stages))]
    wanted = max(float(np.mean([fold.plain for fold in on.folds])), *(right for _, right in by_exit)) - 0.01
    good = [v.knobs for v in study.series(TECHNIQUE) if np.mean(v.scores) >= wanted]
    saved = {"": _time_saved(study, good), ", batch 1": _time_saved(singly, good)}
    lefts = {method.knobs[knob]: on.lefts(method) for method in methods if method.name == main}
    times = [("plain", None, singly.cost(BASELINE).wall_ms)]
    times += [(m.name, m.knobs[knob], singly.cost(TECHNIQUE, **m.knobs).wall_ms) for m in alone]
    return study.record(
        **on.about,
        knobs=tuple(methods[0].knobs),
        metric="accuracy",
        controls={name: about for name, about in CONTROLS.items() if study.series(name)},
        redundancy=measured(
            [sufficiency(fold.test.argmax(-1), stages) for fold in on.folds],
            {name: sufficiency(logits.argmax(-1), stages).value for name, logits in list(on.logits.items())[1:]},
        ),
        tables={
            "exits": table("Accuracy when every sample leaves at the same exit.", ("exit", "accuracy"), by_exit),
            "share at each exit": table(
                f"Share of the test samples that leave at each exit by the {main} rule.",
                (knob, "exit", "share"),
                [
                    (value, e + 1, float(np.mean([(left == e).double().mean().item() for left in lefts])))
                    for value, lefts in lefts.items()
                    for e in range(len(stages))
                ],
            ),
            "one sample at a time": table(
                "Milliseconds a sample in batches of 1: median, 10th and 90th percentile.",
                ("network", knob, "median", "p10", "p90"),
                [(name, value, time.median, time.p10, time.p90) for name, value, time in times],
            ),
            **tables,
            "left early": table(
                "Share of the samples that leave before the last exit at "
                f"the {typical.name} {knob} {typical.knobs[knob]:g}.",
                ("samples", "share"),
                [(name, (typical.decide(x) < len(x) - 1).double().mean().item()) for name, x in on.logits.items()],
            ),
        },
        extra={
            **extra,
            **{f"time saved within 1 percent{how}": share for how, share in saved.items()},
            **{f"speed-up within 1 percent{how}": 1 / (1 - share) for how, share in saved.items()},
            **on.extra,
        },
    )


def _measure(study: Study[Any], on: Trained, methods: Sequence[Method]) -> None:
    """Add the methods and the controls, and measure them."""
    exits, add = len(on.network.stages), partial(study.add, units=sum(map(batch_size, on.timed)))
    study.add(BASELINE, score=[fold.plain for fold in on.folds])
    for depth in range(1, exits):
        cut = first_exits(on.network, depth)
        add(CUT, {"exit": depth}, _over(cut, on.timed), score=on.accuracies_at(depth - 1))
    for name, (network, scores) in on.smaller.items():
        add(SMALLER, {"network": name}, _over(network, on.timed), score=scores)
    _time(study, on, methods, on.timed)
    for method in methods:
        lefts = on.lefts(method)
        skipped = float(np.mean([1 - (left.double().mean().item() + 1) / exits for left in lefts]))
        cost = replace(study.cost(TECHNIQUE, **method.knobs), macs=round(on.macs(lefts)))
        series = {TECHNIQUE: lefts}
        if method.name == methods[0].name:
            series[RANDOM] = [left[torch.randperm(len(left), generator=generator(0))] for left in lefts]
        for name, exits_ in series.items():
            scores = on.accuracies(exits_)
            study.add(name, method.knobs, score=scores, cost=cost, redundancy=max(skipped, 0.0))


def _time(study: Study[Any], on: Trained, methods: Sequence[Method], batches: Sequence[State]) -> None:
    """Measure the plain network and the methods on the same batches. The closed form must agree with the counter."""
    units = sum(map(batch_size, batches))
    study.add(BASELINE, call=_over(on.plain, batches), units=units)
    runners = [(method, method.runner(on.network)) for method in methods]
    for method, runner in runners:
        study.add(TECHNIQUE, method.knobs, _over(runner, batches), units=units)
    study.measure()
    for method, runner in runners:
        spent, counted = 0, study.cost(TECHNIQUE, **method.knobs).macs
        for batch in batches:
            runner(batch)
            spent += on.network.costs().spent(runner.left)
        if round(spent / units) != counted:
            raise RuntimeError(f"{dict(method.knobs)}: {counted} MACs counted, {spent / units} by the closed form")


def _over(network: nn.Module, batches: Sequence[State]) -> Callable[[], object]:
    """A call that runs the network over all the batches, without gradients."""
    return torch.no_grad()(lambda: [network(batch) for batch in batches])


def _time_saved(study: Study[Any], good: Sequence[Mapping[str, Any]]) -> float:
    """Largest share of the plain network's time that a method with the knobs `good` saves; 0 if none does.

    Good are those at most one point less accurate than the plain network and than every single exit.
    """
    plain = study.cost(BASELINE).wall_ms.median
    times = [study.cost(TECHNIQUE, **v.knobs).wall_ms.median for v in study.series(TECHNIQUE) if v.knobs in good]
    return max([0.0, *(1 - time / plain for time in times)])


# --------------------------------------------------------------------------------------------------------------------
# A residual CNN


@dataclass(frozen=True, kw_only=True)
class CnnPlan(Plan):
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    data: Labelled
    train: int
    held: int
    epochs: int
    timed: int = 512
    """Test images that are timed in batches of 32; a quarter of them also one at a time."""


_digits = partial(CnnPlan, data="digits", train=1000, held=437)
_fashion = partial(CnnPlan, data="fashion-mnist", needs=("fashion-mnist",), held=10_000)
DIGITS = (_digits(epochs=20), _digits(repetitions=3, seeds=(0, 1), epochs=5, timed=64))  # full, smoke: for `task`
FASHION = (_fashion(train=20_000, epochs=6), _fashion(repetitions=3, seeds=(0,), train=2000, epochs=1, timed=64))


def images_of(plan: CnnPlan, seed: int) -> Split:
    """The images of one seed, standardised by all that there are to train on."""
    return standardised(split(plan.data, plan.train, plan.held, seed=seed), by=split(plan.data).train.x)


def trained_cnn(plan: CnnPlan, part: Part, seed: int, depth: int | None = None) -> Any:
    """A `Staged` CNN trained together with all its exits, or the first `depth` stages with one head, trained alone."""
    labels, how = hashlib.sha256(part.y.numpy().tobytes()).hexdigest(), _training(plan, part, depth)
    model = training.trained(
        f"early-exit-{plan.data}",
        {
            "recipe": how["recipe"],
            "exits": "all" if depth is None else f"{depth} alone",
            "labels": labels,
            "seed": seed,
        },
        partial(how["build"], seed),
        lambda model: training.train(model, part.x, part.y, how["recipe"], seed=seed, loss=how["loss"]),
    )
    return model.network if isinstance(model, AllExits) else model


def cnn_macs(plan: CnnPlan, part: Part, depth: int | None = None) -> int:
    """MACs of that training."""
    how = _training(plan, part, depth)
    return training.training_macs(partial(how["build"], 0), part.x, part.y, how["recipe"], loss=how["loss"])


def _training(plan: CnnPlan, part: Part, depth: int | None) -> dict[str, Any]:
    """How a CNN is built, by its seed, and trained."""
    cut: Callable[[Staged], nn.Module] = AllExits if depth is None else partial(first_exits, depth=depth)
    return {
        "recipe": training.Recipe(plan.epochs, 4e-3),
        "exits": "all" if depth is None else f"{depth} alone",
        "loss": joint_loss if depth is None else F.cross_entropy,
        "build": lambda seed: cut(training.seeded(seed, lambda: residual_cnn(part.x.shape[-1]))),
    }


def all_exits(network: Staged, x: Tensor) -> Tensor:
    """Logits of all exits, (E, N, C), on x: (N, ...)."""
    return training.predict(lambda part: network.exits(part).transpose(0, 1), x).transpose(0, 1)


def cnn(study: Study[CnnPlan]) -> Trained:
    """CNNs with exits and without, trained with each seed, and images that hold nothing."""
    plan, folds, networks = study.plan, [], []
    for number, seed in enumerate(plan.seeds):
        study.progress("training", number, len(plan.seeds))
        parts = images_of(plan, seed)
        x, y = test = parts.test.to(study.device)  # the same for every seed
        networks.append([trained_cnn(plan, parts.train, seed, depth).to(study.device) for depth in (None, 4, 2)])
        network, plain, _ = networks[-1]
        held, tested = (all_exits(network, part.to(study.device)).cpu() for part in (parts.held.x, x))
        folds.append(Fold(held, parts.held.y, tested, y.cpu(), training.accuracy(plain, *test)))
    seed, (network, plain, small), known = plan.seeds[0], networks[0], images_of(plan, plan.seeds[0]).train
    blind = Part(known.x, known.y[torch.randperm(len(known.y), generator=generator(seed))])
    draws = generator(seed)
    order = torch.rand(parts.test.x.flatten(1).shape, generator=draws).argsort(1).to(x.device)
    noise = torch.randn(x.shape, generator=draws).to(x.device)
    gains, timed = [fold.accuracy(torch.full_like(fold.y_test, -1)) - fold.plain for fold in folds], x[: plan.timed]
    return Trained(
        network=network,
        plain=plain,
        smaller={"stages 1 and 2": (small, [training.accuracy(one, *test) for *_, one in networks])},
        folds=folds,
        timed=timed.split(32),
        singles=timed[: plan.timed // 4].split(1),
        logits={
            "real images": folds[0].test,
            "pixels shuffled": all_exits(network, x.flatten(1).gather(1, order).view_as(x)).cpu(),
            "noise": all_exits(network, noise).cpu(),
            "labels shuffled in training": all_exits(trained_cnn(plan, blind, seed).to(x.device), x).cpu(),
        },
        extra={"gain of joint training": float(np.mean(gains))},
        exits_macs=cnn_macs(plan, known) - cnn_macs(plan, known, len(network.stages)),
        about={
            "data": f"{TITLES[plan.data]}: {plan.train:,} images to train, {plan.held:,} held out to calibrate, "
            f"{len(x):,} to test",
            "model": "residual CNN, width 16, 4 stages, an exit after each; "
            f"{sum(p.numel() for p in network.parameters()):,} parameters",
            "unit": "one image, in batches of 32",
            "notes": (
                "The baseline is the same network trained without exits; accuracy is over all test images and seeds.",
                f"Bytes and time are those of the first seed's networks on {len(timed)} test images.",
                "The exits are trained together with the network, with equal weights.",
            ),
        },
    )


# --------------------------------------------------------------------------------------------------------------------
# MiniLM with off-ramps


@dataclass(frozen=True, kw_only=True)
class MailPlan(Plan):
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    needs: tuple[str, ...] = ("minilm", "spam-assassin")
    tokens: int = 64
    timed: int = 64
    """Test mails that are timed in batches of 32."""
    single: int = 100
    """Test mails that are timed one at a time, over which the spread of the cost is measured."""
    limit: int | None = None
    """So many mails are drawn; None: all of them."""


MAILS = (MailPlan(), MailPlan(repetitions=3, seeds=(0, 1), tokens=32, timed=32, single=16, limit=400))


def mails(study: Study[MailPlan]) -> Trained:
    """Off-ramps trained on a frozen MiniLM; a new split of the mails for each seed."""
    plan, folds, runs = study.plan, [], []
    model, tokenizer = minilm.load_minilm()
    found = text.mails()
    if plan.limit is not None:
        found = [found[i] for i in np.random.default_rng(0).permutation(len(found))[: plan.limit]]
    spam_of = text.distinct(found, minilm.tokenise(tokenizer, [mail.text for mail in found], plan.tokens))
    ids, real = minilm.pad(list(spam_of))
    assert real is not None  # some mails are shorter than others
    inputs, y = {"ids": ids, "real": real}, torch.tensor(list(spam_of.values())).long()
    network = bert.staged_bert(model.to(study.device), classes=2).to(study.device)
    network.macs = count_stages(network, {name: x[:2].to(study.device) for name, x in inputs.items()})
    features = training.cached(  # (N, E, D)
        "mail-ramp-features",
        {"ids": hashlib.sha256(ids.numpy().tobytes()).hexdigest(), "tokens": plan.tokens},
        partial(bert.ramp_features, network, inputs, partial(study.progress, "features")),
    )
    study.prepare("embedding", "encoding the training mails, which the last off-ramp needs too", held="shared")
    n, spam, recipe = len(y), y.double().mean().item(), training.Recipe(20, 3e-3, 64)

    def ramps_of(seed: int) -> bert.Ramps:
        return training.seeded(seed, lambda: bert.Ramps(features))

    def fitted(rows: Tensor, targets: Tensor, seed: int) -> bert.Ramps:
        return training.train(ramps_of(seed), features[rows], targets, recipe, seed=seed, loss=joint_loss)

    for seed in plan.seeds:
        fit, held, test = torch.randperm(n, generator=generator(seed)).split([n - 2 * (n // 5), n // 5, n // 5])
        ramps = fitted(fit, y[fit], seed)
        at_held, at_test = (training.forward(ramps, features[rows])() for rows in (held, test))
        plain = (at_test[-1].argmax(-1) == y[test]).double().mean().item()
        folds.append(Fold(at_held, y[held], at_test, y[test], plain))
        runs.append((fit, test, ramps))
    fit, test, ramps = runs[0]
    ramps.copy_into(network)
    blind = fitted(fit, y[fit][torch.randperm(len(fit), generator=generator(1))], plan.seeds[0])
    tokens = torch.randint(1000, 30000, (min(n, 256), plan.tokens), generator=generator(0))
    noise = bert.ramp_features(network, {"ids": tokens, "real": torch.ones_like(tokens, dtype=torch.bool)})
    timed = test[: plan.timed]

    def batches(rows: Tensor, size: int) -> list[State]:
        return [{name: x[part].to(study.device) for name, x in inputs.items()} for part in rows.split(size)]

    return Trained(
        network=network,
        plain=network,
        smaller={},
        folds=folds,
        timed=batches(timed, 32),
        singles=batches(test[: plan.single], 1),
        logits={
            "real mails": folds[0].test,
            "random tokens": training.forward(ramps, noise)(),
            "labels shuffled in training": training.forward(blind, features[test])(),
        },
        extra={"accuracy of the larger class": max(spam, 1 - spam)},
        exits_macs=training.training_macs(partial(ramps_of, 0), features[fit], y[fit], recipe, loss=joint_loss)
        * (len(network.stages) - 1)
        // len(network.stages),  # all ramps are of one size, and the baseline trains the last
        about={
            "data": f"{n:,} mails of SpamAssassin, distinct in their first {plan.tokens} tokens; for each seed a "
            f"random split into {len(fit):,} to train, {len(held):,} held out to calibrate, {len(test):,} to test",
            "model": "all-MiniLM-L6-v2, frozen, an off-ramp after each of 6 layers",
            "unit": f"one mail of {plan.tokens} tokens (padded), in batches of 32",
            "notes": (
                (
                    "The baseline is the same network with its last off-ramp only; the encoder is frozen, so the other "
                    "ramps change nothing in it. DeeBERT fine-tunes the encoder first, which ours does not."
                ),
                "The last layer of a sentence encoder need not be the best for another task: see `one exit for all`.",
                f"Bytes and time are those of the first seed's ramps on {len(timed)} test mails.",
                (
                    "Mails of one thread or one campaign may still be on both sides of a split, unless their first "
                    "tokens are equal: accuracy on mails from another source would be lower."
                ),
            ),
        },
    )
